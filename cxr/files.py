"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr.errors import InputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends well.

    A new file is its owner's alone to read: reports and results are about patients. One that was there keeps
    its mode. A link is followed. Raises InputError for a path that is there and no file, or in no folder, and
    OSError, before the block where the folder cannot be written to.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a file in a folder that exists")
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced
        raise InputError(f"{path}: expected a file, and that is a folder or a device")
    path = path.resolve()
    # A name that nobody knows beforehand, for a file that was not there: no link can wait for it.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
        yield part
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
