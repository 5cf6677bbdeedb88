"""What the classifier is asked to do: jobs off the stream, or given directly."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# One transaction holds 100 actions (DynamoDB quotas), and one of them adds to the counts.
MAX_KEYS = 99
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class JobError(ValueError):
    """A record or an event that is no job; the message names the field."""


@dataclass(frozen=True)
class Job:
    """Images of one run to score and to write together."""

    run_id: str
    bucket: str
    keys: tuple[str, ...]  # 1 to 99, each once
    run_uid: str | None = None  # the run's; a direct job's is whichever has the name
    continued: bool = False  # the run was there before: its SCORED images are to be skipped


def from_record(record: Mapping[str, Any]) -> Job:
    """The job that one Kinesis record of an event holds. Raises JobError."""
    try:
        body = json.loads(base64.b64decode(record["kinesis"]["data"], validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:  # of lists within lists
        raise JobError("the record's data is not JSON") from error
    if not isinstance(body, dict):
        raise JobError("the record's data is not a JSON object")
    keys = body.get("Keys")
    if not isinstance(keys, list) or not all(map(_is_text, keys)):
        raise JobError("Keys: expected a list of S3 keys")
    if not 1 <= len(set(keys)) <= MAX_KEYS:
        raise JobError(f"Keys: expected 1 to {MAX_KEYS} keys, found {len(set(keys))}")
    return Job(
        _run_id(body),
        _text(body, "Bucket"),
        tuple(dict.fromkeys(keys)),
        _text(body, "RunUid"),
        bool(body.get("Continued")),
    )


def from_direct(event: Mapping[str, Any], bucket: str) -> list[Job]:
    """The jobs of `{"Jobs": [{"RunId": ..., "Key": ...}, ...]}`, neighbours of one run joined.

    Raises JobError.
    """
    entries = event.get("Jobs")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise JobError('expected a Kinesis event or {"Jobs": [{"RunId": ..., "Key": ...}]}')
    pairs = [(_run_id(entry), _text(entry, "Key")) for entry in entries]
    jobs = []
    for run_id, group in groupby(pairs, key=lambda pair: pair[0]):
        keys = list(dict.fromkeys(key for _, key in group))
        jobs += [Job(run_id, bucket, tuple(keys[i : i + MAX_KEYS])) for i in range(0, len(keys), MAX_KEYS)]
    return jobs


def _run_id(fields: Mapping[str, Any]) -> str:
    value = _text(fields, "RunId")
    if not _RUN_ID.fullmatch(value):
        raise JobError(f"RunId: expected {_RUN_ID.pattern}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not _is_text(value):
        raise JobError(f"{name}: expected a non-empty string in UTF-8")
    return str(value)


def _is_text(value: Any) -> bool:
    """Whether S3 may have it as a name: JSON can hold half a surrogate pair, UTF-8 cannot."""
    return isinstance(value, str) and value != "" and value.encode(errors="replace").decode() == value
