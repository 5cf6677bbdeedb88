"""The prediction for one image, and the counts of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

SCORED, FAILED, RETRYING, WARNING = "SCORED", "FAILED", "RETRYING", "WARNING"
WAITING = "WAITING"  # of a standing run only: announced, and without an outcome so far

Counts = Counter[str]  # SCORED, WAITING, FAILED#<code>, RETRYING#<code> and WARNING#<code> -> images


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image came to: scores, or the code of why it has none.

    In a standing run, an image that has arrived has one before it has an outcome: it is `waiting`.
    """

    key: str
    scores: Mapping[str, Decimal] = field(default_factory=dict)  # label -> 0..1, 6 decimals; empty if FAILED
    positive: tuple[str, ...] = ()  # labels whose score reaches the label's threshold
    warnings: tuple[str, ...] = ()  # of runs.codes.WarningCode
    error: str | None = None  # of runs.codes.ErrorCode; None if SCORED
    retrying: bool = False  # sent again after it FAILED: `error` stands until the new outcome replaces it
    waiting: bool = False
    arrivals: int = 0  # how many contents of the image were announced; 0 outside standing runs
    arrived_at: str = ""  # when the last of them was written to S3, in ISO 8601
    scored_at: str = ""  # in ISO 8601
    model: str = ""  # name:version
    etag: str = ""  # of the content that was announced last, then of the one that the outcome is of

    @property
    def status(self) -> str:
        """SCORED, FAILED or WAITING."""
        if self.waiting:
            return WAITING
        return FAILED if self.error else SCORED

    @property
    def count(self) -> str:
        """The name of the count that this image is in."""
        if not self.error:
            return self.status
        return f"{RETRYING if self.retrying else FAILED}#{self.error}"

    def label(self, label: str) -> str | None:
        """The decision in a word: `label`, or else `normal` for `abnormal` and `no <label>` for any other."""
        if self.status != SCORED:
            return None
        return label if label in self.positive else negative(label)

    def to_fields(self) -> dict[str, Any]:
        """Its attributes in the table, besides its key."""
        arrival: dict[str, Any] = {}
        if self.arrivals:
            arrival = {"arrivals": self.arrivals, "arrived_at": self.arrived_at, "etag": self.etag}
        if self.waiting:
            return {"status": WAITING, **arrival}
        if self.error:
            retrying = {"retrying": True} if self.retrying else {}
            return {"status": FAILED, "error": str(self.error), **retrying, **arrival}
        return {
            **arrival,
            "status": SCORED,
            "scores": dict(self.scores),
            "positive": list(self.positive),
            "warnings": list(map(str, self.warnings)),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Prediction:
        """The prediction that an item of the table holds."""
        return cls(
            key=fields["sk"],
            scores=fields.get("scores", {}),
            positive=tuple(fields.get("positive", ())),
            warnings=tuple(fields.get("warnings", ())),
            error=fields.get("error"),
            retrying=fields.get("retrying", False),
            waiting=fields.get("status") == WAITING,
            arrivals=int(fields.get("arrivals", 0)),
            arrived_at=fields.get("arrived_at", ""),
            etag=fields.get("etag", ""),
            scored_at=fields.get("scored_at", ""),
            model=fields.get("model", ""),
        )


def negative(label: str) -> str:
    """The word for an image below the label's threshold."""
    return "normal" if label == "abnormal" else f"no {label}"


def counts_of(predictions: Iterable[Prediction]) -> Counts:
    """The counts that these predictions come to."""
    counts: Counts = Counter()
    for prediction in predictions:
        counts[prediction.count] += 1
        counts.update(f"{WARNING}#{warning}" for warning in prediction.warnings)
    return counts


def total(counters: Iterable[Mapping[str, Any]]) -> Counts:
    """The counts of a run: the sum of its counter items, zeros left out."""
    counts: Counts = Counter()
    for item in counters:
        counts.update({name: int(n) for name, n in item.items() if name not in ("pk", "sk", "uid")})
    return +counts


def outcomes(counts: Mapping[str, int]) -> int:
    """How many images have an outcome."""
    return sum(n for name, n in counts.items() if name == SCORED or name.startswith(f"{FAILED}#"))


def by_code(counts: Mapping[str, int], kind: str) -> Counter[str]:
    """Images by error code (kind FAILED or RETRYING) or by warning code (kind WARNING)."""
    prefix = f"{kind}#"
    return Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
