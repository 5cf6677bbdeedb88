"""Waiting before what failed for the moment is tried again.

Throttling needs longer waits than a conflict, because it ends only when the callers ask for less.
`reliability/throttling.py` shows what these numbers do.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

ATTEMPTS = 8  # of a caller that has no deadline

Given = ParamSpec("Given")
Result = TypeVar("Result")


def full_jitter(longest: float) -> float:
    """A random part of a wait, so that callers who failed together do not come back together.

    AWS builders' library, "Timeouts, retries, and backoff with jitter".
    """
    return random.uniform(0, longest)  # noqa: S311 - not a secret


@dataclass(frozen=True)
class Backoff:
    """Waits that double with each failure."""

    base: float  # seconds: the longest first wait
    cap: float  # seconds: the longest wait of all

    def longest(self, failures: int) -> float:
        """The longest wait after so many failures, in seconds."""
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 30))


CONFLICT = Backoff(base=0.04, cap=5)  # another caller was changing the same item
OVERLOAD = Backoff(base=0.5, cap=10)  # AWS throttled the request, or could not answer it


def most_of(seconds_left: Callable[[], float]) -> Callable[[], float]:
    """Says how many seconds are left of three quarters of those that are left now.

    For one of several requests: if it fails for ever, the others have the rest.
    """
    kept = seconds_left() / 4
    return lambda: seconds_left() - kept


class Patience:
    """How long one request is tried again: until the caller's deadline, or else so many attempts.

    `seconds_left` says how many seconds the caller has for waiting.
    """

    def __init__(
        self,
        seconds_left: Callable[[], float] | None = None,
        *,
        attempts: int = ATTEMPTS,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._seconds_left = seconds_left
        self._attempts = attempts
        self._jitter = jitter
        self._failures: Counter[Backoff] = Counter()

    def next_wait(self, backoff: Backoff) -> float | None:
        """Note a failure. The seconds to wait before the next attempt; None if there is to be none."""
        self._failures[backoff] += 1
        seconds = self._jitter(backoff.longest(self._failures[backoff]))
        if self._seconds_left is None:
            return seconds if self._failures.total() < self._attempts else None
        return seconds if seconds < self._seconds_left() else None

    def wait(self, backoff: Backoff) -> bool:
        """Wait before the next attempt. Whether there is to be one."""
        seconds = self.next_wait(backoff)
        if seconds is not None:
            time.sleep(seconds)
        return seconds is not None


def keep_trying(
    patience: Patience, call: Callable[Given, Result], *arguments: Given.args, **options: Given.kwargs
) -> Result:
    """What `call` returns: it is called again after temporary errors. Raises the last one."""
    # Here: `cxr --help` does without botocore.
    from botocore.exceptions import BotoCoreError, ClientError

    from runs.errors import is_temporary

    while True:
        try:
            return call(*arguments, **options)
        except (ClientError, BotoCoreError) as error:
            if not is_temporary(error) or not patience.wait(OVERLOAD):
                raise
