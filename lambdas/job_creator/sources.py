"""Where the keys of a run come from: a listing of the bucket, an index in it, or the event itself."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import unquote_plus

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from job_creator.events import EventError, Request, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOT_IMAGES = ("/", ".csv", ".json", ".txt", ".xml", ".zip", ".gz", ".md", ".checksum")
MAX_ROW = 2**20  # characters: an index without a line end is not read into memory
MAX_MANIFEST = 2**24  # bytes: 50,000 parts
SLOTS = 2**27  # 16 MB of bits


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
        etags: dict[str, str] = {}
        if index_key.lower().endswith(".json"):
            manifest = self._manifest(index_key)
            slots = repeated_slots(self._inventoried(manifest, etags))
            return distinct(self._inventoried(manifest, etags), slots)
        in_order, last = True, ""
        for key in self._checked(rows(self._text(index_key, etags))):
            in_order = in_order and last < key
            last = key
        keys = (key for _, key in rows(self._text(index_key, etags)))
        return keys if in_order else distinct(keys)

    def _text(self, index_key: str, etags: dict[str, str]) -> TextIO:
        body = self._body(index_key, etags, "IndexKey: expected a CSV")
        return io.TextIOWrapper(body, encoding="utf-8-sig", newline="")

    def _body(self, key: str, etags: dict[str, str], expected: str) -> Any:
        """The body of an object. `etags` gets its ETag; if it has one, the object must not have changed.

        Raises EventError.
        """
        condition: Any = {"IfMatch": etags[key]} if key in etags else {}
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=key, **condition)
        except ClientError as error:  # its message may name the key
            code = error.response["Error"]["Code"]
            raise EventError(f"{expected} in the bucket {self._bucket}, but S3 answers {code}") from None
        etags[key] = answer["ETag"]
        return answer["Body"]

    def _checked(self, indexed: Iterable[tuple[int, str]]) -> Iterator[str]:
        """The keys of a CSV. The first that looks URL-encoded is looked for. Raises EventError."""
        looked = False
        for line, key in indexed:
            if not looked and ("%" in key or "+" in key):
                looked = True
                self._check_encoding(key, line)
            check_key(key, self._prefix, f"IndexKey, line {line}, Key")
            yield key

    def _check_encoding(self, key: str, line: int) -> None:
        """Raise EventError if the key names an image only after URL-decoding."""
        plain = unquote_plus(key)
        if plain == key or not plain.startswith(self._prefix):
            return
        if not key.startswith(self._prefix) or (self._exists(plain) and not self._exists(key)):
            raise EventError(
                f"IndexKey, line {line}, Key: is URL-encoded; expected keys as they are. Decode them, or "
                "give the manifest.json of the S3 Inventory as IndexKey"
            )

    def _exists(self, key: str) -> bool:
        listed = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        return any(entry["Key"] == key for entry in listed.get("Contents", []))

    def _manifest(self, index_key: str) -> Manifest:
        """What the manifest.json of an S3 Inventory says. Raises EventError."""
        expected = "IndexKey: expected the manifest.json of an S3 Inventory"
        text = self._body(index_key, {}, expected).read(MAX_MANIFEST + 1)
        try:
            found: Any = json.loads(text) if len(text) <= MAX_MANIFEST else None
            file_format, schema = (
                found["fileFormat"],
                [name.strip() for name in found["fileSchema"].split(",")],
            )
            source, parts = found["sourceBucket"], [part["key"] for part in found["files"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise EventError(f"{expected}, with sourceBucket, fileFormat, fileSchema and files") from None
        if source != self._bucket:
            raise EventError(f"IndexKey, sourceBucket: expected an inventory of the bucket {self._bucket}")
        if file_format != "CSV" or "Key" not in schema:
            raise EventError(
                "IndexKey, fileFormat: expected CSV with a column Key; configure the inventory so"
            )
        for number, part in enumerate(parts):
            check_key(part, self._prefix, f"IndexKey, files[{number}].key")
        return Manifest(schema, parts)

    def _inventoried(self, manifest: Manifest, etags: dict[str, str]) -> Iterator[str]:
        """The keys of an inventory that are under the stack's prefix, read part by part. Raises EventError.

        S3 URL-encodes the keys, and sorts nothing. An inventory of all versions has the columns IsLatest and
        IsDeleteMarker (S3 user guide, storage-inventory).
        """
        column = manifest.schema.index("Key")
        skipped = {"IsLatest": "false", "IsDeleteMarker": "true"}
        skips = [(manifest.schema.index(name), skipped[name]) for name in skipped if name in manifest.schema]
        for number, part in enumerate(manifest.parts):
            where = f"IndexKey, files[{number}]"
            unpacked = gzip.GzipFile(fileobj=self._body(part, etags, f"{where}: expected a CSV with gzip"))
            try:
                for line, row in csv_rows(io.TextIOWrapper(unpacked, encoding="utf-8", newline=""), where):
                    if len(row) != len(manifest.schema):
                        raise EventError(f"{where}, line {line}: expected {len(manifest.schema)} columns")
                    if any(row[skip].lower() == value for skip, value in skips):
                        continue
                    key = unquote_plus(row[column])
                    if key.startswith(self._prefix):
                        check_key(key, self._prefix, f"{where}, line {line}, Key")
                        yield key
            except (gzip.BadGzipFile, EOFError, zlib.error):
                raise EventError(f"{where}: expected a CSV with gzip, found another or half a file") from None


@dataclass(frozen=True)
class Manifest:
    """The manifest of an S3 Inventory."""

    schema: list[str]  # names of the columns
    parts: list[str]  # keys of its files


def rows(index: TextIO) -> Iterator[tuple[int, str]]:
    """The column Key of an index, with the line that each row ends in. Raises EventError."""
    column = None
    for line, row in csv_rows(index, "IndexKey", empty=True):
        if column is None:
            if "Key" not in row:
                break
            column = row.index("Key")
        elif row:
            yield line, row[column] if column < len(row) else ""
    if column is None:
        raise EventError("IndexKey: expected a CSV with a column Key")


def csv_rows(text: TextIO, where: str, *, empty: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, with the line that each ends in; `empty` ones only if asked.

    Raises EventError, which begins with `where`, also for a row of MAX_ROW characters.
    """
    line, begins, length = 0, 1, 0  # the last line read, the first line of the row, characters of the row

    def lines() -> Iterator[str]:
        nonlocal line, length
        while part := text.readline(MAX_ROW):
            length += len(part)
            if length >= MAX_ROW:
                raise EventError(
                    f"{where}, line {begins}: expected a row of less than {MAX_ROW:,} characters"
                )
            line += 1
            yield part

    try:
        for row in csv.reader(lines(), strict=True):
            if row or empty:
                yield line, row
            begins, length = line + 1, 0
    except (UnicodeDecodeError, csv.Error):
        raise EventError(f"{where}: expected a well-formed CSV in UTF-8") from None


def images(keys: Iterable[str]) -> Iterator[str]:
    """The keys, without those whose ending says that they are no images."""
    return (key for key in keys if not key.lower().endswith(NOT_IMAGES))


def repeated_slots(keys: Iterable[str]) -> set[int]:
    """The slots of SLOTS that more than one of the keys falls into, found in SLOTS / 8 bytes.

    A key that is repeated falls into one of them. Of ten million keys that are not, some 400,000 do.
    """
    taken, repeated = bytearray(SLOTS // 8), set()
    for key in keys:
        slot = hash(key) % SLOTS
        if taken[slot >> 3] & 1 << (slot & 7):
            repeated.add(slot)
        taken[slot >> 3] |= 1 << (slot & 7)
    return repeated


def distinct(keys: Iterable[str], among: Container[int] | None = None) -> Iterator[str]:
    """Each key once. Remembers 64 bits of a hash: among a million keys, two clash once in 37 million runs.

    Given `repeated_slots` of the same keys, it remembers only those that may be repeated.
    """
    seen: set[int] = set()
    for key in keys:
        digest = hash(key)  # SipHash with a secret of this process
        if among is not None and digest % SLOTS not in among:
            yield key
        elif digest not in seen:
            seen.add(digest)
            yield key
