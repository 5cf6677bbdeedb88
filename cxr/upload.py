"""A folder of images into the images bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UPLOADS_AT_ONCE = 8


def files_in(folder: Path) -> list[Path]:
    """The paths of the folder's files, from the folder on; hidden ones are left out. Raises InputError."""
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that the images are in")
    paths = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    files = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    odd = [path for path in files if str(path).encode(errors="replace").decode() != str(path)]
    if odd:
        raise InputError(f"{folder}: the name of {str(odd[0])!r} is not UTF-8, as S3 keys are; rename it")
    if not files:
        raise InputError(f"{folder} has no files; give a folder of images")
    return files


def upload(s3: S3Client, bucket: str, prefix: str, folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Put the folder's files into the bucket as `prefix` + path, several at once, yielding after each.

    Raises OSError, and what boto3 raises.
    """
    pool = ThreadPoolExecutor(UPLOADS_AT_ONCE)
    try:
        uploads = [
            pool.submit(s3.upload_file, str(folder / file), bucket, f"{prefix}{file.as_posix()}")
            for file in files
        ]
        for done in as_completed(uploads):
            done.result()
            yield
    finally:
        pool.shutdown(cancel_futures=True)
