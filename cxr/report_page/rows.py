"""A run's outcomes for one label, as the report and its gallery take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from classifier.model import Model
from runs.predictions import Prediction

from cxr.errors import InputError
from cxr.evaluation.cohort import Result

MILLION = 1_000_000  # scores have six decimals, and travel as whole numbers


@dataclass(frozen=True)
class Rows:
    """A run's outcomes for one label, in the order of their keys."""

    label: str
    labels: frozenset[str]  # all that the run has
    keys: list[str]
    scores: npt.NDArray[np.int32]  # [images], millionths; -1 where FAILED
    positive: npt.NDArray[np.bool_]  # [images], as decided when it was scored
    errors: list[str]  # empty where SCORED
    warnings: list[tuple[str, ...]]

    @classmethod
    def read(cls, found: Iterable[Prediction], label: str) -> Rows:
        """The outcomes, each read once. Raises InputError."""
        rows = []
        labels: set[str] = set()
        for outcome in found:
            if outcome.scores:
                labels |= outcome.scores.keys()
                if label not in outcome.scores:
                    raise InputError(
                        f"the run has no scores of {label}; --label: {', '.join(sorted(outcome.scores))}"
                    )
                score, positive = int(outcome.scores[label] * MILLION), label in outcome.positive
            else:
                score, positive = -1, False
            rows.append((outcome.key, score, positive, outcome.error or "", outcome.warnings))
        rows.sort(key=lambda row: row[0])
        keys, scores, decided, errors, warnings = map(list, zip(*rows, strict=True)) if rows else ([],) * 5
        return cls(
            label,
            frozenset(labels),
            keys,
            np.array(scores, dtype=np.int32),
            np.array(decided, dtype=bool),
            errors,
            warnings,
        )

    @property
    def results(self) -> Iterator[Result]:
        """As an evaluation takes them."""
        for key, score, positive in zip(self.keys, self.scores.tolist(), self.positive.tolist(), strict=True):
            yield Result(key, None, None) if score < 0 else Result(key, score / MILLION, positive)

    def threshold(self, model: Model | None) -> tuple[float | None, str]:
        """From which score on images were called positive, and how that is known; None if it cannot be."""
        scored = self.scores >= 0
        highest = int(self.scores[scored & ~self.positive].max(initial=-1))
        lowest = int(self.scores[scored & self.positive].min(initial=2 * MILLION))
        of_model = model.thresholds.get(self.label) if model else None
        if model and of_model is not None and highest < of_model * MILLION <= lowest:
            return float(of_model), f"of {model.name}"
        if highest < lowest <= MILLION:
            return lowest / MILLION, "the lowest score that the run calls positive"
        return None, ""
