"""A folder of images into the images bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UPLOADS_AT_ONCE = 16
UPLOADS_AHEAD = 256  # files that wait for a thread, at most


def files_in(folder: Path) -> list[Path]:
    """The paths of the folder's files, relative to it, without hidden ones. Raises InputError."""
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that the images are in")
    paths = (file.relative_to(folder) for file in sorted(folder.rglob("*")))
    seen = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    for path in seen:
        if not (folder / path).exists():
            raise InputError(f"{folder / path}: this link points to nothing; repair or remove it")
    files = [path for path in seen if (folder / path).is_file()]
    odd = [path for path in files if str(path).encode(errors="replace").decode() != str(path)]
    if odd:
        raise InputError(f"{folder}: the name of {str(odd[0])!r} is not UTF-8, as S3 keys are; rename it")
    if not files:
        raise InputError(f"{folder} has no files; give a folder of images")
    return files


def upload(
    s3: S3Client, bucket: str, prefix: str, folder: Path, files: Sequence[Path]
) -> Generator[bool, None, None]:
    """Put the folder's files into the bucket as `prefix` + path, several at once. Yields after each file.

    Yields True if the file was sent, False if it was there already: an object with the file's size and MD5.
    The ETag is the MD5 if S3 encrypts the bucket by its own key. With a KMS key it is not, and every file is
    sent again. If this is interrupted, no object is half written.

    Raises OSError, and what boto3 raises.
    """
    there = {
        entry["Key"]: (entry["Size"], entry["ETag"].strip('"'))
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for entry in page.get("Contents", [])
    }

    def send(file: Path) -> bool:
        path, key = folder / file, f"{prefix}{file.as_posix()}"
        with path.open("rb") as body:
            if key in there:
                digest = hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                if there[key] == (body.tell(), digest):
                    return False
                body.seek(0)
            s3.put_object(Bucket=bucket, Key=key, Body=body)  # in one part: its ETag is the MD5
        return True

    pool = ThreadPoolExecutor(UPLOADS_AT_ONCE)
    try:
        waiting: set[Future[bool]] = set()
        for file in files:
            waiting.add(pool.submit(send, file))
            if len(waiting) >= UPLOADS_AHEAD:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)
