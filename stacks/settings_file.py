"""The file that keeps the settings of each stack, in a table of the stack's name.

[ChestXray]
imagesBucket = "my-bucket"
shards = 4
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from stacks.config import APP_SETTINGS, FILE_SETTING, Config, ConfigError, stack_name

DEFAULT_FILE = Path(__file__).parents[1] / "settings.toml"
FILE_VARIABLE = "CXR_SETTINGS"  # names another file, for the CDK and for `cxr`


def read_settings(context: Mapping[str, object]) -> tuple[str, Config]:
    """The stack's name, and its settings: those of its table in the file, and over them those of the context.

    Raises ConfigError.
    """
    name = stack_name(context)
    return name, Config.from_context({**kept_settings(settings_file(context), name), **context})


def settings_file(context: Mapping[str, object]) -> Path:
    """The file that the context names, or the environment, or the project's own."""
    given = context.get(FILE_SETTING) or os.environ.get(FILE_VARIABLE)
    return Path(str(given)).expanduser() if given else DEFAULT_FILE


def kept_settings(file: Path, stack: str) -> dict[str, object]:
    """The settings in the table of a stack, by their names for `-c`; none if there is no default file.

    A file that has tables must have one for the stack: a misspelt name would deploy the defaults, with a new
    and empty bucket. Raises ConfigError, also for settings that cannot be deployed by themselves.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file == DEFAULT_FILE:
            return {}
        raise ConfigError(f"{file}: no such file; expected one with a table [{stack}]") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a file with a table [{stack}]") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: expected TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}; expected TOML, with lines like shards = 4") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name} is in no table; write it below a line [{stack}]")
    if tables and stack not in tables:
        raise ConfigError(f"{file}: no table [{stack}], found {', '.join(tables)}; add it, or correct a name")
    kept: dict[str, object] = tables.get(stack, {})
    where = f"{file}, [{stack}]"
    for name, value in kept.items():
        if name in APP_SETTINGS:
            raise ConfigError(f"{where}: {name}: expected outside the file, by -c")
        if type(value) not in (str, int):
            raise ConfigError(f"{where}: {name}: expected text in quotes or a whole number")
    try:
        Config.from_context(kept)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return kept


def line(name: str, value: object) -> str:
    """A setting as a line of the file. A JSON string without surrogates is one of TOML, too."""
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


def table(stack: str, config: Config) -> str:
    """The whole table of a stack: all its settings but those at their defaults."""
    return "\n".join([f"[{stack}]", *(line(*setting) for setting in config.non_default().items())])
