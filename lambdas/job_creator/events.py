"""What the job creator is asked: the event, checked field by field."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs.arrivals import day_of
from runs.jobs import RUN_ID

SOURCES = ("Prefix", "IndexKey", "Keys")
MAX_KEY_BYTES = 1024  # S3 user guide, object-keys
MAX_COUNT = 10**9


class EventError(ValueError):
    """An event that cannot be served. The message names the field and what is expected, and no object key."""


@dataclass(frozen=True)
class Request:
    """A run as an event asks for it."""

    run_id: str
    kind: str  # Prefix, IndexKey or Keys
    value: str  # the prefix, the key of the index, or the SHA-256 of the keys
    keys: tuple[str, ...] = ()
    job_count: int | None = None  # the most images that the run has; None is all

    @classmethod
    def from_event(cls, event: Any, stack_prefix: str) -> Request:
        """The request in an event of `events/`. Raises EventError."""
        if not isinstance(event, dict):
            raise EventError("expected a JSON object with RunId")
        unknown = sorted(set(event) - {"RunId", "JobCount", *SOURCES})
        if unknown:
            # Name the field only if it looks like one: it may be a key that came in a field's place.
            name = unknown[0] if re.fullmatch("[A-Za-z]{1,30}", unknown[0]) else "the event"
            raise EventError(f"{name}: unknown field; expected RunId, JobCount and one of {SOURCES}")
        run_id = event.get("RunId")
        if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
            raise EventError(f"RunId: expected a string matching {RUN_ID.pattern}")
        if day_of(run_id):
            raise EventError("RunId: expected another name than that of the standing run of a day")
        job_count = event.get("JobCount")
        if "JobCount" in event and (type(job_count) is not int or not 1 <= job_count <= MAX_COUNT):
            raise EventError(f"JobCount: expected a whole number from 1 to {MAX_COUNT:,}")
        given = [name for name in SOURCES if name in event]
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
    def source(self) -> Mapping[str, Any]:
        """What the run is made from. Two requests with one RunId are one run if these are equal."""
        source: dict[str, Any] = {"kind": self.kind, "value": self.value}
        return source if self.job_count is None else source | {"job_count": self.job_count}


def check_key(key: Any, stack_prefix: str, field: str) -> None:
    """Raise EventError unless `key` is an S3 key, or a prefix of keys, under the stack's prefix."""
    if (
        not isinstance(key, str)
        or not key.startswith(stack_prefix)
        or len(key.encode(errors="replace")) > MAX_KEY_BYTES
        or key.encode(errors="replace").decode() != key  # half a surrogate pair, which is no UTF-8
    ):
        raise EventError(
            f"{field}: expected a string of at most {MAX_KEY_BYTES} bytes in UTF-8 that begins with "
            f"the stack's prefix {stack_prefix!r}"
        )
