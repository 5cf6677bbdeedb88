"""A run, as its item in the table says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

STANDING = "Arrivals"  # the kind of source of a standing run


class State(StrEnum):
    """Where a run is in its life."""

    LISTING = "LISTING"  # its images are being listed, or arrive, and its jobs are sent
    SCORING = "SCORING"  # all jobs are sent, and how many images to expect is known
    COMPLETE = "COMPLETE"  # every expected image has a prediction
    CANCELLED = "CANCELLED"  # its jobs are dropped until the same event starts it again
    DELETING = "DELETING"  # some of its items may be gone already


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's item. Two runs may have one name, one after the other; their uids differ."""

    run_id: str
    uid: str
    state: State
    source: Mapping[str, Any] = field(default_factory=dict)  # kind, value and job_count, as in the event
    bucket: str = ""
    model: str = ""  # name:version
    model_sha256: str = ""
    thresholds: Mapping[str, Decimal] = field(default_factory=dict)  # label -> threshold, the primary first
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the stack, when the run was made
    expected: int | None = None  # distinct images; None while the job creator is listing
    arrived: int = 0  # distinct images of a standing run so far
    keys_sha256: str = ""  # of all keys, in order
    created_at: datetime | None = None
    listed_at: datetime | None = None
    completed_at: datetime | None = None
    cancelled_at: datetime | None = None  # the last time, also if it was started again since
    resumed_at: datetime | None = None  # when work on it went on the last time, after a pause
    resumed_with: int = 0  # outcomes that it had then, without those that are retried since
    retries: int = 0  # transactions that made images wait for a new outcome

    @property
    def at_work(self) -> bool:
        """Whether its images are being listed or scored, or wait to be."""
        return self.state in (State.LISTING, State.SCORING)

    @property
    def standing(self) -> bool:
        """Whether it takes the images that arrive during a day."""
        return self.source.get("kind") == STANDING

    @property
    def reconciling(self) -> bool:
        """Whether it is a standing run whose day is over, and whose images are not final yet."""
        return self.standing and self.state == State.SCORING and self.expected is None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Run:
        """The run that an item of the table holds. Runs of older versions have no labels and no settings."""

        def moment(name: str) -> datetime | None:
            return datetime.fromisoformat(fields[name]) if name in fields else None

        return cls(
            run_id=fields["sk"],
            uid=fields["uid"],
            state=State(fields["state"]),
            source=fields.get("source", {}),
            bucket=fields.get("bucket", ""),
            model=fields.get("model", ""),
            model_sha256=fields.get("model_sha256", ""),
            thresholds={label["name"]: label["threshold"] for label in fields.get("labels", ())},
            settings=fields.get("settings", {}),
            expected=int(fields["expected"]) if "expected" in fields else None,
            arrived=int(fields.get("arrived", 0)),
            keys_sha256=fields.get("keys_sha256", ""),
            created_at=moment("created_at"),
            listed_at=moment("listed_at"),
            completed_at=moment("completed_at"),
            cancelled_at=moment("cancelled_at"),
            resumed_at=moment("resumed_at"),
            resumed_with=int(fields.get("resumed_with", 0)),
            retries=int(fields.get("retries", 0)),
        )
