"""What the job creator is asked to do, and the jobs it makes of it."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import chain, islice, repeat
from operator import lt
from typing import Any, TextIO, TypedDict

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SOURCES = ("Prefix", "IndexKey", "Keys")
_IMAGES = (".png", ".jpg", ".dcm")  # most keys; it is quicker to ask for these first
_NO_IMAGES = ("/", ".csv", ".json", ".txt", ".xml", ".zip", ".gz", ".md")
_MAX_KEY_BYTES = 1024  # S3 user guide, object-keys
_MAX_COUNT = 10**9
_BLOCK = 2**16  # characters of an index that are looked at together
_MAX_ROW = 2**20  # characters: what has no end is not read into memory

# Kinesis takes 500 records and 5 MiB a PutRecords, partition keys included (Kinesis API, PutRecords).
_MAX_RECORDS = 500
_MAX_BYTES = 4 * 2**20


class EventError(ValueError):
    """An event that cannot be served. The message names the field and what is expected of it, and no key."""


class Record(TypedDict):
    """An entry of PutRecords."""

    Data: bytes
    PartitionKey: str


@dataclass(frozen=True)
class Request:
    """A run as an event asks for it."""

    run_id: str
    kind: str  # Prefix, IndexKey or Keys
    value: str  # the prefix, the index's key, or the SHA-256 of the keys
    keys: tuple[str, ...] = ()
    job_count: int | None = None  # at most so many images; None is all

    @classmethod
    def from_event(cls, event: Any, stack_prefix: str) -> "Request":
        """Raises EventError."""
        if not isinstance(event, dict):
            raise EventError("expected a JSON object with RunId")
        unknown = sorted(set(event) - {"RunId", "JobCount", *_SOURCES})
        if unknown:
            # A field is named, unless it may be something else that came in its place.
            name = unknown[0] if re.fullmatch("[A-Za-z]{1,30}", unknown[0]) else "the event"
            raise EventError(f"{name}: unknown field; expected RunId, JobCount and one of {_SOURCES}")
        run_id = event.get("RunId")
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise EventError(f"RunId: expected a string matching {_RUN_ID.pattern}")
        job_count = event.get("JobCount")
        if "JobCount" in event and (type(job_count) is not int or not 1 <= job_count <= _MAX_COUNT):
            raise EventError(f"JobCount: expected a whole number from 1 to {_MAX_COUNT:,}")
        given = [name for name in _SOURCES if name in event]
        if len(given) > 1:
            raise EventError(f"{' and '.join(given)}: expected one source of keys, found {len(given)}")
        kind = given[0] if given else "Prefix"
        value = event.get(kind, stack_prefix)
        if kind != "Keys":
            check_key(value, stack_prefix, kind)
            return cls(run_id, kind, value, job_count=job_count)
        if not isinstance(value, list) or not value:
            raise EventError("Keys: expected a list of at least one S3 key")
        for number, key in enumerate(value):
            check_key(key, stack_prefix, f"Keys[{number}]")
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return cls(run_id, kind, digest, tuple(value), job_count)

    @property
    def source(self) -> dict[str, Any]:
        """What the run is made from. Two requests with one RunId are one run if these are equal."""
        source: dict[str, Any] = {"kind": self.kind, "value": self.value}
        return source if self.job_count is None else source | {"job_count": self.job_count}


def check_key(key: Any, stack_prefix: str, field: str) -> None:
    """Raises EventError unless `key` is an S3 key, or a prefix of keys, under the stack's prefix."""
    if not _is_key(key, stack_prefix):
        raise _no_key(stack_prefix, field)


def _is_key(key: Any, stack_prefix: str) -> bool:
    return (
        isinstance(key, str)
        and key.startswith(stack_prefix)
        and len(key.encode(errors="replace")) <= _MAX_KEY_BYTES
        and key.encode(errors="replace").decode() == key  # not half a surrogate pair, which is no UTF-8
    )


def _are_keys(keys: list[str], stack_prefix: str) -> bool:
    """Whether these surely are; False also where one is not ASCII, and may be."""
    return (
        all(map(str.startswith, keys, repeat(stack_prefix)))
        and all(map(str.isascii, keys))
        and max(map(len, keys)) <= _MAX_KEY_BYTES
    )


def _no_key(stack_prefix: str, field: str) -> EventError:
    return EventError(
        f"{field}: expected a string of at most {_MAX_KEY_BYTES} bytes in UTF-8 that begins with "
        f"the stack's prefix {stack_prefix!r}"
    )


def check_index(text: TextIO, stack_prefix: str) -> bool:
    """Whether the keys of an index are in order, and so none comes twice. Raises EventError."""
    in_order, last = True, ""
    try:
        column, line = _header(text)
        while block := _block(text):
            keys = _plain_keys(block, column)
            if not keys or not _are_keys(keys, stack_prefix) or len(block) >= _BLOCK + _MAX_ROW:
                break
            in_order = in_order and last < keys[0] and all(map(lt, keys, keys[1:]))
            last = keys[-1]
            line += block.count("\n")
        for number, row in _rows(text, line, block):
            if not row:
                continue  # an empty line
            if len(row) <= column or not _is_key(row[column], stack_prefix):
                raise _no_key(stack_prefix, f"IndexKey, line {number}, Key")
            in_order = in_order and last < row[column]
            last = row[column]
    except (UnicodeDecodeError, csv.Error):
        raise EventError("IndexKey: expected a well-formed CSV in UTF-8") from None
    return in_order


def indexed(text: TextIO) -> Iterator[str]:
    """The keys of an index that has been checked."""
    column, _ = _header(text)
    while block := _block(text):
        keys = _plain_keys(block, column)
        if keys is None:
            yield from (row[column] for _, row in _rows(text, 0, block) if row)
        else:
            yield from keys


def _header(text: TextIO) -> tuple[int, int]:
    """Which column the keys are in, and how many lines the header takes."""
    line, header = next(_rows(text), (0, []))
    if "Key" not in header:
        raise EventError("IndexKey: expected a CSV with a column Key")
    return header.index("Key"), line


def _rows(text: TextIO, line: int = 0, block: str = "") -> Iterator[tuple[int, list[str]]]:
    """The rows of a block and of the text behind it, each with its last line; `line` is the one before.

    Raises EventError for a row of _MAX_ROW characters, and csv.Error.
    """
    begins, length = line + 1, 0

    def lines() -> Iterator[str]:
        nonlocal line, length
        for part in chain(StringIO(block, newline=""), iter(partial(text.readline, _MAX_ROW), "")):
            length += len(part)
            if length >= _MAX_ROW:
                raise EventError(
                    f"IndexKey, line {begins}: expected a row of less than {_MAX_ROW:,} characters"
                )
            line += 1
            yield part

    for row in csv.reader(lines(), strict=True):
        yield line, row
        begins, length = line + 1, 0


def _block(text: TextIO) -> str:
    """The next whole lines, some thousand; nothing at the end. A line without end stops half-way."""
    block = text.read(_BLOCK)
    return block + text.readline(_MAX_ROW) if block else ""


def _plain_keys(block: str, column: int) -> list[str] | None:
    """The keys of lines that are plain enough to do without a CSV parser, which takes three times as long."""
    if '"' in block or "\r" in block:
        return None
    lines = list(filter(None, block.split("\n")))
    if "," not in block:
        return lines if column == 0 else None
    try:
        return [line.split(",", column + 1)[column] for line in lines]
    except IndexError:
        return None


def images(keys: Iterable[str]) -> Iterator[str]:
    """The keys without those of what is surely no image."""
    return (key for key in keys if key.endswith(_IMAGES) or not key.lower().endswith(_NO_IMAGES))


def distinct(keys: Iterable[str]) -> Iterator[str]:
    """Each key once. Remembers 64 bits of a hash, so of a million keys two clash once in 37 million runs."""
    seen: set[int] = set()
    for key in keys:
        digest = hash(key)  # SipHash, secret to this process
        if digest not in seen:
            seen.add(digest)
            yield key


def batches(
    keys: Iterable[str], *, run_id: str, run_uid: str, bucket: str, images_per_job: int, continued: bool
) -> Iterator[tuple[list[Record], int]]:
    """Jobs as records, packed as PutRecords takes them, each batch with its number of images."""
    records: list[Record] = []
    size = count = 0
    keys = iter(keys)
    while group := list(islice(keys, images_per_job)):
        record = _record({"RunId": run_id, "RunUid": run_uid, "Bucket": bucket}, group, continued)
        length = len(record["Data"]) + len(record["PartitionKey"])
        if records and (len(records) == _MAX_RECORDS or size + length > _MAX_BYTES):
            yield records, count
            records, size, count = [], 0, 0
        records.append(record)
        size += length
        count += len(group)
    if records:
        yield records, count


def _record(run: Mapping[str, str], keys: list[str], continued: bool) -> Record:
    job: Mapping[str, Any] = {**run, "Keys": keys}
    if continued:
        job = {**job, "Continued": True}
    # Spreads the jobs over the shards, and keeps object keys out of what Kinesis shows.
    partition_key = hashlib.sha256(keys[0].encode()).hexdigest()
    return {"Data": json.dumps(job, separators=(",", ":")).encode(), "PartitionKey": partition_key}
