"""Standing runs: one for each day (UTC), of the images that S3 has received that day.

docs/decisions/0020-arrivals.md says why their counts are exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

from runs.predictions import Prediction

_RUN_ID = re.compile(r"arrivals-(\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Arrival:
    """A content that S3 has received for a key."""

    key: str
    etag: str  # without quotes
    time: datetime  # when S3 had it, in UTC

    @property
    def run_id(self) -> str:
        """The standing run of its day."""
        return run_id(self.time.astimezone(UTC).date())

    def waiting_after(self, before: Prediction | None) -> Prediction | None:
        """The image as it waits for an outcome of this content, after what the table held.

        None if it has that outcome.
        """
        if before and before.etag == self.etag:
            return before if before.waiting else None
        return Prediction(
            self.key,
            waiting=True,
            arrivals=before.arrivals + 1 if before else 1,
            arrived_at=self.time.isoformat(timespec="seconds"),
            etag=self.etag,
        )


def run_id(day: date) -> str:
    """The name of the standing run of a day."""
    return f"arrivals-{day.isoformat()}"


def day_of(run_id: str) -> date | None:
    """The day of a standing run; None if this is the name of another run."""
    found = _RUN_ID.fullmatch(run_id)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None
