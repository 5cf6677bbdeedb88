"""Where the keys of a run come from: a listing of the bucket, an index in it, or the event itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from job_creator.events import EventError, Request, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOT_IMAGES = ("/", ".csv", ".json", ".txt", ".xml", ".zip", ".gz", ".md")
MAX_ROW = 2**20  # characters: an index without a line end is not read into memory


def s3_client(config: Config) -> S3Client:
    """A client that leaves the times in a listing unparsed. To parse them takes four times as long."""
    session = botocore.session.Session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return boto3.Session(botocore_session=session).client("s3", config=config)


class Sources:
    """The keys that requests ask for, from one bucket."""

    def __init__(self, s3: S3Client, bucket: str, prefix: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = prefix

    def keys(self, request: Request) -> Iterator[str]:
        """The run's keys, each once, read as they are asked for. Raises EventError."""
        if request.kind == "Prefix":
            keys = images(self._listed(request.value))
        elif request.kind == "IndexKey":
            keys = images(self._indexed(request.value))
        else:
            keys = distinct(images(request.keys))
        return islice(keys, request.job_count)

    def _listed(self, prefix: str) -> Iterator[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"]
        except self._s3.exceptions.NoSuchBucket:
            raise EventError(f"Prefix: expected a bucket to list, but there is no {self._bucket}") from None

    def _indexed(self, index_key: str) -> Iterator[str]:
        """The keys of an index, each once. It is read twice, to find a wrong row before any job is sent."""
        text, etag = self._text(index_key)
        in_order, last = True, ""
        for line, key in rows(text):
            check_key(key, self._prefix, f"IndexKey, line {line}, Key")
            in_order = in_order and last < key
            last = key
        text, _ = self._text(index_key, IfMatch=etag)
        keys = (key for _, key in rows(text))
        return keys if in_order else distinct(keys)

    def _text(self, index_key: str, **condition: Any) -> tuple[TextIO, str]:
        """The text of an index, and its ETag. Raises EventError."""
        try:
            answer: Any = self._s3.get_object(Bucket=self._bucket, Key=index_key, **condition)
        except ClientError as error:  # its message may name the key
            code = error.response["Error"]["Code"]
            raise EventError(
                f"IndexKey: expected a CSV in the bucket {self._bucket}, but S3 answers {code}"
            ) from None
        return io.TextIOWrapper(answer["Body"], encoding="utf-8-sig", newline=""), answer["ETag"]


def rows(index: TextIO) -> Iterator[tuple[int, str]]:
    """The column Key of an index, with the line that each row ends in; empty lines are skipped.

    Raises EventError, also for a row of MAX_ROW characters.
    """
    line, begins, length = 0, 1, 0  # the last line read, the first line of the row, characters of the row

    def lines() -> Iterator[str]:
        nonlocal line, length
        while part := index.readline(MAX_ROW):
            length += len(part)
            if length >= MAX_ROW:
                raise EventError(
                    f"IndexKey, line {begins}: expected a row of less than {MAX_ROW:,} characters"
                )
            line += 1
            yield part

    column = None
    try:
        for row in csv.reader(lines(), strict=True):
            if column is None:
                column = row.index("Key") if "Key" in row else -1
                if column < 0:
                    break
            elif row:
                yield line, row[column] if column < len(row) else ""
            begins, length = line + 1, 0
    except (UnicodeDecodeError, csv.Error):
        raise EventError("IndexKey: expected a well-formed CSV in UTF-8") from None
    if column is None or column < 0:
        raise EventError("IndexKey: expected a CSV with a column Key")


def images(keys: Iterable[str]) -> Iterator[str]:
    """The keys, without those whose ending says that they are no images."""
    return (key for key in keys if not key.lower().endswith(NOT_IMAGES))


def distinct(keys: Iterable[str]) -> Iterator[str]:
    """Each key once. Remembers 64 bits of a hash: among a million keys, two clash once in 37 million runs."""
    seen: set[int] = set()
    for key in keys:
        digest = hash(key)  # SipHash with a secret of this process
        if digest not in seen:
            seen.add(digest)
            yield key
