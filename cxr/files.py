"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr.errors import InputError


def owner_only(path: str, flags: int) -> int:
    """An opener for `open`: only the owner can read a file that it makes."""
    return os.open(path, flags, 0o600)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to. When the block ends without an error, its file replaces the one at `path`.

    A new file has mode 0600: reports and results are about patients. An existing file keeps its mode. A link
    is followed. Raises InputError for a folder, a device and a path in no folder, and OSError; if the folder
    cannot be written to, before the block.
    """
    if path == Path("-"):
        raise InputError("-: expected the name of a file; these results cannot go to standard output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a file in a folder that exists")
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced by a file
        raise InputError(f"{path}: expected a file, found a folder or a device")
    path = path.resolve()
    # A random name, and a file that must not exist yet: nobody can put a link there beforehand.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
        yield part
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
