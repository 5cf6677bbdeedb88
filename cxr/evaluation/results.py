"""Results to evaluate: the predictions of a run or of a CSV file, for one label."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from runs.predictions import Prediction, counts_of
from runs.run import Run, State
from runs.table import RunTable

from cxr.errors import InputError, NoSuchLabel, NotMeasurable
from cxr.evaluation.csv_table import CsvTable
from cxr.evaluation.labels import ABNORMAL, NOT_GIVEN
from cxr.result_rows import labels_of
from cxr.runs import RunStatus, run_status, run_table
from cxr.stack import Stack

if TYPE_CHECKING:
    from classifier.model import Model

INFINITY, MILLIONTH = Decimal("Infinity"), Decimal("0.000001")  # scores have six decimals


@dataclass(frozen=True)
class Threshold:
    """Scores at or above this value are called positive."""

    value: float
    source: str  # in words


@dataclass(frozen=True)
class Results:
    """Predictions with the score of one label, and what is known of how they were made."""

    label: str
    predictions: Sequence[Prediction]
    decided: bool  # whether it is known which of them were called positive
    labels: Sequence[str] = ()  # that the run has scores of, the primary one first
    threshold: Decimal | None = None  # that the run records
    model: str = ""  # name:version of the model, as the run or the file records it; empty if not known
    model_sha256: str = ""  # of the model that made them; empty if not known

    @classmethod
    def of_run(cls, run: Run, predictions: Iterable[Prediction], label: str) -> Results:
        """The run's predictions in the order of their keys. Raises InputError if one has no score of `label`.

        A run of an older version records no labels. Then its predictions tell which there are.
        """
        labels = list(run.thresholds)
        found = []
        for prediction in predictions:
            if prediction.error:
                found.append(prediction)
                continue
            labels = labels or sorted(prediction.scores)
            if label not in prediction.scores:
                raise NoSuchLabel(
                    f"there are no scores of {label}; expected {' or '.join(prediction.scores)}"
                )
            positive = (label,) if label in prediction.positive else ()
            scores = {label: prediction.scores[label]}  # all other labels' scores would fill the memory
            found.append(Prediction(prediction.key, scores, positive, prediction.warnings))
        found.sort(key=lambda prediction: prediction.key)
        return cls(label, found, True, labels, run.thresholds.get(label), run.model, run.model_sha256)

    def agree_with(self, threshold: Decimal) -> bool:
        """Whether every decision is the one that this threshold gives. True if no decisions are known."""
        highest_negative, lowest_positive = self._limits()
        return highest_negative < threshold <= lowest_positive

    def may_come_from(self, model: Model) -> bool:
        """Whether the model made these results, as a run tells, or may have made them, as a file tells."""
        if self.model_sha256:
            return self.model_sha256 == model.sha256
        if self.model not in ("", model.name):
            return False
        threshold = model.thresholds.get(self.label)
        return threshold is not None and self.agree_with(threshold)

    def decided_by(self, model: Model | None = None) -> Threshold:
        """The threshold between the results that were called positive and the others.

        It is the one that the run records, else that of `model`, which made the results as far as is known,
        else one that separates them. Raises NotMeasurable if the results do not tell.
        """
        if self.threshold is not None:
            return Threshold(float(self.threshold), "recorded by the run")
        of_model = model.thresholds.get(self.label) if model else None
        if model and of_model is not None and self.agree_with(of_model):
            agreement = "; the results agree with it" if self.decided else ""
            return Threshold(float(of_model), f"the threshold of {model.name}{agreement}")
        highest_negative, lowest_positive = self._limits()
        if (highest_negative, lowest_positive) == (-INFINITY, INFINITY):
            raise NotMeasurable(f"the results do not say which images are {self.label}")
        if highest_negative >= lowest_positive:
            raise NotMeasurable(
                f"the results call a score of {highest_negative:g} negative and one of {lowest_positive:g} "
                "positive; expected one threshold"
            )
        doubt = f" ({model.name} has {of_model:g}: it may not have made them)" if model and of_model else ""
        if lowest_positive == INFINITY:
            above = float(highest_negative + MILLIONTH)
            return Threshold(above, f"above every score: the results call no image positive{doubt}")
        return Threshold(float(lowest_positive), f"the lowest score that the results call positive{doubt}")

    def _limits(self) -> tuple[Decimal, Decimal]:
        """The highest score called negative and the lowest called positive, infinite where there is none."""
        scored = [one for one in self.predictions if self.decided and not one.error]
        return (
            max((one.scores[self.label] for one in scored if not one.positive), default=-INFINITY),
            min((one.scores[self.label] for one in scored if one.positive), default=INFINITY),
        )


@dataclass(frozen=True)
class AllResults:
    """The results of every label. Those of a label are made when they are asked for."""

    labels: Sequence[str]  # the primary one first
    of: Callable[[str], Results]

    @classmethod
    def of_run(cls, run: Run, predictions: Iterable[Prediction], labels: Sequence[str]) -> AllResults:
        """The run's predictions for each of these labels. Reads them once, and raises what that raises."""
        if len(labels) == 1:  # without a list, as the scores of other labels would fill the memory
            only = Results.of_run(run, predictions, labels[0])
            return cls(labels, lambda _: only)
        found = sorted(predictions, key=lambda prediction: prediction.key)
        return cls(labels, lambda label: Results.of_run(run, found, label))


def find_all_results(name: str, *, stack: str, primary: str = ABNORMAL) -> AllResults:
    """The results of all labels in a CSV file, or of the run of this name. See `find_results`."""
    if is_file(name):
        path = Path(name)
        return AllResults(labels_in(path, primary), lambda label: read_results(path, label, primary))
    table, run = _find_run(name, stack)
    labels = labels_of(table, run) or [ABNORMAL]
    return AllResults.of_run(run, table.predictions(run.run_id), labels)


def find_results(name: str, label: str | None = None, *, stack: str, primary: str = ABNORMAL) -> Results:
    """The results in a CSV file, or those of the run of this name; see `read_results` and `read_run`.

    Raises InputError, and what boto3 raises while it reads a run.
    """
    if is_file(name):
        return read_results(Path(name), label, primary)
    return read_run(*_find_run(name, stack), label)


def is_file(name: str) -> bool:
    """Whether results are a file, or standard input, and not a run."""
    return name == "-" or name.endswith(".csv") or os.sep in name or Path(name).is_file()


def _find_run(name: str, stack: str) -> tuple[RunTable, Run]:
    from cxr.aws_errors import AWS_ERRORS, explained

    try:
        table = run_table(Stack.find(stack))
        return table, run_status(table, name)
    except (InputError, *AWS_ERRORS) as error:
        why = error if isinstance(error, InputError) else explained(error)
        raise InputError(f"{name} is not a file, and no run was found: {why}") from None


def read_run(table: RunTable, run: Run, label: str | None = None) -> Results:
    """The run's results for `label`, by default the primary one. Raises InputError, and what boto3 raises."""
    about = next(iter(labels_of(table, run, label)), label or ABNORMAL)
    return Results.of_run(run, table.predictions(run.run_id), about)


def labels_in(path: Path, primary: str = ABNORMAL) -> list[str]:
    """The labels that a CSV file of results has scores of, the primary one first. Raises InputError."""
    table = CsvTable(path)
    first = _decided_label(table) or primary
    others = (name.removeprefix("score_") for name in table.columns if name.startswith("score_"))
    return list(dict.fromkeys([first, *others]))


def read_results(path: Path, label: str | None = None, primary: str = ABNORMAL) -> Results:
    """The results for `label` from a CSV file, by default those for the primary label.

    The columns are key and score, and if need be status, label, error, warnings, model, model_version and
    score_<label>, as `write_csv` of cxr.result_rows writes them. Without a column label, `primary` names the
    label that `score` is of.

    Raises InputError.
    """
    table = CsvTable(path)
    table.require("key", "score")
    decided_label = _decided_label(table)
    label = label or decided_label or primary
    column = f"score_{label}" if f"score_{label}" in table.columns else "score"
    if column == "score" and decided_label not in (None, label):
        others = [name.removeprefix("score_") for name in table.columns if name.startswith("score_")]
        known = ", ".join(dict.fromkeys([str(decided_label), *others]))
        raise NoSuchLabel(f"{path}: expected a column score_{label}; its scores are of {known}")
    predictions: dict[str, Prediction] = {}
    models: set[str] = set()
    decided = decided_label == label
    for line, row in table:
        key, decision = row["key"], row.get("label", "")
        models.add(":".join(filter(None, (row.get("model"), row.get("model_version")))))
        if key in predictions:
            raise InputError(f"{path}, line {line}: column key repeats an image; expected each image once")
        if decision and _label_of(decision) != decided_label:
            raise InputError(
                f"{path}, line {line}: column label is of {_label_of(decision)}, but above of {decided_label}"
            )
        if row["status"] == "FAILED" if "status" in table.columns else not row[column]:
            predictions[key] = Prediction(key, error=row.get("error") or NOT_GIVEN)
            continue
        score = _score(row[column], f"{path}, line {line}: column {column}")
        positive = (label,) if decision == label else ()
        warnings = tuple(filter(None, row.get("warnings", "").split(";")))
        predictions[key] = Prediction(key, {label: score}, positive, warnings)
        decided = decided and decision != ""
    model = models.pop() if len(models) == 1 else ""
    return Results(label, list(predictions.values()), decided, model=model)


def read_as_run(
    path: Path, model: Model | None, primary: str = ABNORMAL
) -> tuple[RunStatus, list[Prediction], list[str]]:
    """The results in a CSV file as a run, its predictions, and its labels whose positive images are known.

    These are all labels of `model`, which made the results, or else the first one of the file. `primary` is
    as for `read_results`. Raises InputError.
    """
    names = labels_in(path, primary)
    results = [read_results(path, name, primary) for name in names]
    first = results[0]
    if not model:
        first.decided_by()
    known = [name for name in names if name in model.thresholds] if model else names[:1]
    predictions = []
    for of_labels in zip(*(one.predictions for one in results), strict=True):
        scores = {name: score for one in of_labels for name, score in one.scores.items()}
        positive = of_labels[0].positive
        if model:
            limits = model.thresholds
            positive = tuple(name for name in known if name in scores and scores[name] >= limits[name])
        predictions.append(replace(of_labels[0], scores=scores, positive=positive))
    run = RunStatus(
        run_id="results" if path == Path("-") else path.stem,
        uid="",
        state=State.COMPLETE,
        source={"kind": "the file", "value": path.name},
        model=first.model or (model.name if model else "a model that the file does not name"),
        expected=len(predictions),
        counts=counts_of(predictions),
    )
    return run, predictions, known


def _decided_label(table: CsvTable) -> str | None:
    """The label that the decisions in the column label are about; None if there are none."""
    return next((_label_of(row["label"]) for _, row in table if row.get("label")), None)


def _label_of(decision: str) -> str:
    """The label that a decision is about, as runs.predictions.Prediction.label words it."""
    return ABNORMAL if decision == "normal" else decision.removeprefix("no ")


def _score(text: str, where: str) -> Decimal:
    try:
        score = Decimal(text.replace(",", "."))  # with semicolons, a spreadsheet writes decimal commas
        if 0 <= score <= 1:
            return score
    except InvalidOperation:  # no number, or NaN
        pass
    raise InputError(f"{where} is {text!r}; expected a score from 0 to 1")
