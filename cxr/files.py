"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr.errors import InputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends well.

    A link is followed. Raises InputError for a path that is there and no file, or in no folder, and OSError,
    before the block where the folder cannot be written to.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected a file in a folder that exists")
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced
        raise InputError(f"{path}: expected a file, and that is a folder or a device")
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch()
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
