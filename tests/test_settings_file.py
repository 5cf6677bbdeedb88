"""The file that keeps the settings of each stack: what is read, what `-c` puts over it, what is refused."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT

from stacks import settings_file
from stacks.config import Config, ConfigError
from stacks.settings_file import read_settings, table

TWO = """
[ChestXray]
imagesBucket = "my-bucket"  # of the hospital
shards = 4
retries = "9"

[Other]
"""


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the default file."""
    file = tmp_path / "settings.toml"
    monkeypatch.setattr(settings_file, "DEFAULT_FILE", file)
    monkeypatch.delenv("CXR_SETTINGS")

    def write(text: str) -> Path:
        file.write_text(text)
        return file

    return write


def test_each_stack_has_its_own_table(keep: Callable[[str], Path]) -> None:
    keep(TWO)
    kept = Config(images_bucket="my-bucket", shards=4, retries=9)
    assert read_settings({"@aws-cdk/core:x": True}) == ("ChestXray", kept)
    assert read_settings({"stackName": "Other"}) == ("Other", Config())


def test_what_is_typed_changes_that_setting_alone(keep: Callable[[str], Path]) -> None:
    keep(TWO)
    found = read_settings({"shards": "10"})[1]
    assert found == Config(images_bucket="my-bucket", shards=10, retries=9)


@pytest.mark.usefixtures("keep")
def test_without_a_file_the_defaults_hold() -> None:
    assert read_settings({}) == ("ChestXray", Config())


def test_another_file_is_named_by_the_command_or_else_by_the_environment(
    keep: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(TWO)
    for name, shards in (("environment", 2), ("typed", 3)):
        (tmp_path / f"{name}.toml").write_text(f"[ChestXray]\nshards = {shards}\n")
    monkeypatch.setenv("CXR_SETTINGS", str(tmp_path / "environment.toml"))
    assert read_settings({})[1] == Config(shards=2)
    assert read_settings({"settings": str(tmp_path / "typed.toml")})[1] == Config(shards=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ChestXray]\nshard = 5", ", [ChestXray]: shard: no such setting, expected shards"),
        ("[ChestXray]\nshards = 0", ", [ChestXray]: shards=0: expected a whole number, 1 to 1000 (shards of"),
        ("[ChestXray]\nshards = 2.0", ", [ChestXray]: shards: expected text in quotes or a whole number"),
        ("[ChestXray]\nshards = true", ", [ChestXray]: shards: expected text in quotes or a whole number"),
        ('[ChestXray]\nmodel = ["a"]', ", [ChestXray]: model: expected text in quotes or a whole number"),
        ("[ChestXray.model]", ", [ChestXray]: model: expected text in quotes or a whole number"),
        ('[ChestXray]\nstackName = "a"', ", [ChestXray]: stackName: expected outside the file, by -c"),
        ('[ChestXray]\nsettings = "a"', ", [ChestXray]: settings: expected outside the file, by -c"),
        ("[ChestXray]\nrecordAge = 30", ", [ChestXray]: recordAge=30: expected less than streamRetention=24"),
        ("shards = 4\n[ChestXray]", ": shards is in no table; write it below a line [ChestXray]"),
        ("[chestxray]\n[Old]", ": no table [ChestXray], found chestxray, Old; add it, or correct a name"),
        (
            "[ChestXray]\nshards 4",
            ": Expected '=' after a key in a key/value pair (at line 2, column 8); expec",
        ),
        (
            "[ChestXray]\nshards = 4\nshards = 5\n",
            ": Cannot overwrite a value (at ",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_table(keep: Callable[[str], Path], text: str, said: str) -> None:
    file = keep(text)
    with pytest.raises(ConfigError) as error:
        read_settings({"shards": "3"})
    assert str(error.value).startswith(f"{file}{said}")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(keep: Callable[[str], Path], tmp_path: Path) -> None:
    keep("").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"settings\.toml: expected TOML in UTF-8$"):
        read_settings({})
    for name, problem in (("none.toml", "no such file"), (".", "Is a directory")):
        with pytest.raises(ConfigError, match=f"{problem}; expected .* table \\[ChestXray\\]"):
            read_settings({"settings": str(tmp_path / name)})


def test_a_table_is_read_back_as_it_was() -> None:
    config = Config(images_bucket="my-bucket", prefix="chest x-rays/", model='a "\\ \U0001f9b4', shards=7)
    text = table("ChestXray", config)
    assert text.startswith('[ChestXray]\nimagesBucket = "my-bucket"\n')
    assert Config.from_context(tomllib.loads(text)["ChestXray"]) == config
    assert table("Other", Config()) == "[Other]"


def test_the_example_of_the_docs_can_be_deployed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "as-it-is.toml").write_text(example)
    (tmp_path / "all-set.toml").write_text(re.sub(r"^# (?=\w+ = )", "", example, flags=re.MULTILINE))
    assert read_settings({"settings": str(tmp_path / "as-it-is.toml")})[1] == Config()
    found = read_settings({"settings": str(tmp_path / "all-set.toml")})[1]
    assert len(found.non_default()) == example.count(" = ")
    assert read_settings({"settings": str(tmp_path / "all-set.toml"), "stackName": "Other"})[1] == Config()


def test_the_app_reads_the_file_and_stops_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[ChestXray]\nshards = 0\n")
    context = json.dumps({"settings": str(tmp_path / "mine.toml")})
    env = os.environ | {"CDK_CONTEXT_JSON": context}
    app = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert app.returncode == 1
    # The last line, because the CDK may warn about an old Node.js before it.
    last = app.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {tmp_path / 'mine.toml'}, [ChestXray]: shards=0: expected a whole number")
