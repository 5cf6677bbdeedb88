"""What a check of a deployed stack comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NOT_CHECKED = "NOT CHECKED"


@dataclass(frozen=True)
class Result:
    """One promise of the README, and what was seen of it."""

    name: str
    promise: str
    outcome: Outcome
    seen: str  # for NOT_CHECKED, why
    remedy: str = ""  # what to do if it FAILED
    seconds: float = 0.0


def passed(results: Sequence[Result]) -> bool:
    """Whether no check failed, and images were scored: without that, nothing is shown."""
    outcomes = {result.name: result.outcome for result in results}
    return Outcome.FAILED not in outcomes.values() and outcomes.get("outcomes") == Outcome.PASSED


class CheckFailed(Exception):
    """The stack does not keep a promise."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(seen)
        self.seen, self.remedy = seen, remedy


class NotChecked(Exception):
    """A promise cannot be checked here. The message says why."""
