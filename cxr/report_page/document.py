"""A run as one HTML file: what was run, what came of it, and how good that is. It needs no network.

All that a page shows of a run is one JSON document, packed into the page. page/page.js inserts it as text,
never as markup: a key may hold anything. The figures are computed here, but for those that depend on the
threshold slider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.model import Model
from runs.codes import ErrorCode, WarningCode
from runs.predictions import Prediction, negative
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr.errors import InputError, NotMeasurable
from cxr.evaluation.assessment import Assessment, assess, labelled_scores, none_evaluated
from cxr.evaluation.cohort import Cohort, TrainingSet, join
from cxr.evaluation.labels import Labels
from cxr.evaluation.measures import NONE, Performance, reliability
from cxr.evaluation.results import AllResults, Results, Threshold
from cxr.files import whole_file
from cxr.planning.capacity import Plan
from cxr.report_page import about
from cxr.report_page.gallery import FAILED, MILLION, Fetch, gallery, pictures
from cxr.report_page.template import Template
from cxr.runs import RunStatus
from cxr.words import duration, money

CURVE_POINTS = 1000  # of a curve; more cannot be told apart on a screen

References = Callable[[str], Labels]  # the reference labels for a label. Raises InputError


def write(
    path: Path,
    *,
    run: RunStatus,
    predictions: Iterable[Prediction],
    labels: Sequence[str],
    model: Model | None = None,
    training_set: TrainingSet | None = None,
    references: References | None = None,
    settings: Mapping[str, Any] | None = None,
    fetch: Fetch | None = None,
) -> None:
    """Write the report of a run for these labels, whole or not at all. It opens with the first one.

    `model` is the model that scored the run, and `training_set` what it was trained on. `references` gives
    the reference labels for a label. `settings` are the stack's now, which are used if the run does not
    record its own. `fetch` gives the bytes of an image by its key, or why there are none (see `fetch_from`);
    without it the page has no pictures. Raises InputError and OSError.
    """
    template = Template.read()
    with whole_file(path) as part:  # opened here, to fail early if it cannot be written
        results = AllResults.of_run(run, predictions, labels)
        template.write(part, document(run, results, model, training_set, references, settings or {}, fetch))


def document(
    run: RunStatus,
    results: AllResults,
    model: Model | None,
    training_set: TrainingSet | None,
    references: References | None,
    settings: Mapping[str, Any],
    fetch: Fetch | None,
) -> dict[str, Any]:
    """What page.js shows: what is the same for all labels, and in `labels` the rest, for each of them.

    Raises InputError, also if there are reference labels and no label can be measured with them.
    """
    predictions = results.of(results.labels[0]).predictions  # those for other labels differ in scores only
    keys = [one.key for one in predictions]
    errors = [one.error or "" for one in predictions]
    config = about.config_of(run, settings)
    plan = about.plan_of(run, config, keys)
    parts: dict[str, dict[str, Any]] = {}
    for label in results.labels:
        of_label = results.of(label)
        found, part = label_part(of_label, model, training_set, references)
        said = notices(run, of_label, model, found, shown=results.labels, pictures=fetch is not None)
        parts[label] = part | {"tiles": tiles(run, of_label, plan), "notices": list(said)}
    reasons = {label: part["not_evaluated"] for label, part in parts.items()}
    if all(reasons.values()):
        raise InputError(none_evaluated(reasons))
    galleries = {label: part["gallery"] for label, part in parts.items()}
    return {
        "run": run.run_id,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        "subtitle": f"{run.model} on {about.source(run)}",
        "rows": {
            "keys": keys,
            **_coded("error", errors),
            **_coded("warning", [" ".join(one.warnings) for one in predictions]),
        },
        "labels": list(parts.values()),
        "failures": _by_code(Counter(filter(None, errors)), ErrorCode),
        "warnings": _by_code(Counter(code for one in predictions for code in one.warnings), WarningCode),
        "pictures": pictures(galleries, keys, model, fetch) if fetch else None,
        "about": about.about(run, model, config),
        "cost": about.cost(plan) if plan else None,
    }


def label_part(
    results: Results, model: Model | None, training_set: TrainingSet | None, references: References | None
) -> tuple[Assessment | None, dict[str, Any]]:
    """How good the scores of one label are, None if that cannot be measured, and what page.js shows of them.

    Raises InputError.
    """
    label = results.label
    millionths = [int(one.scores[label] * MILLION) if one.scores else FAILED for one in results.predictions]
    cohort = found = reference = None
    not_evaluated = ""
    try:
        if references:
            cohort = join(results, references(label))
            found = assess(cohort, results.decided_by(model), model=model, training_set=training_set)
            reference = _references(results, cohort)
    except NotMeasurable as error:
        not_evaluated = str(error)
    threshold = _threshold(results, model)
    value = threshold.value if threshold else None
    return found, {
        "label": label,
        "negative": negative(label),
        "threshold": value,
        "threshold_source": threshold.source if threshold else "",
        "scores": millionths,
        "positive": [int(bool(one.positive)) for one in results.predictions],
        "reference": None if reference is None else reference.tolist(),
        "evaluation": evaluation(found, cohort) if found and cohort else None,
        "not_evaluated": not_evaluated,
        "gallery": gallery(results, np.array(millionths, dtype=np.int32), value, reference),
    }


def tiles(run: RunStatus, results: Results, plan: Plan | None) -> list[dict[str, str]]:
    """The few figures that a reader wants first: name, value and a note."""
    images = len(results.predictions)
    failed = sum(one.error is not None for one in results.predictions)
    positive = sum(bool(one.positive) for one in results.predictions)
    scored = images - failed
    rate = run.images_per_second(datetime.now(UTC))
    known = rate is not None and not run.at_work
    why_not = "at work" if run.at_work else "was cancelled" if run.cancelled_at else "not known"
    expected = "still listing" if run.expected is None else f"of {run.expected:,} expected"
    return [
        {"name": "Scored", "value": f"{scored:,}", "note": expected},
        {"name": "Failed", "value": f"{failed:,}", "note": _share(failed, images, "of all")},
        {
            "name": f"Called {results.label}",
            "value": f"{positive:,}",
            "note": _share(positive, scored, "of scored"),
        },
        {
            "name": "Duration",
            "value": duration(run.done / rate) if rate and known else NONE,
            "note": "created to completed" if known else why_not,
        },
        {
            "name": "Images a second",
            "value": f"{rate:,.1f}" if rate else NONE,
            "note": "over the whole run",
        },
        {
            "name": "Cost",
            "value": money(plan.dollars) if plan else NONE,
            "note": "estimated by cxr plan" if plan else "not known",
        },
    ]


def notices(
    run: RunStatus,
    results: Results,
    model: Model | None,
    found: Assessment | None,
    *,
    shown: Sequence[str],
    pictures: bool,
) -> Iterator[dict[str, str]]:
    """What a reader must know before the figures of one label. `shown` are all labels of the page."""
    if pictures:
        yield _notice(
            "care", "This file holds patients' images: protect it as you protect the images themselves."
        )
    else:
        yield _notice(
            "info", "Made without pictures. The file still holds the keys of images, which may name patients."
        )
    if run.state != "COMPLETE":
        missing = f": {run.remaining:,} images have no prediction" if run.remaining else ""
        yield _notice("care", f"This run is {run.state}{missing}. The figures leave them out.")
    if found and found.training_overlap and found.training_overlap.any:
        yield _notice(
            "alarm",
            f"{found.model} was trained on {found.training_overlap.text}: "
            "the evaluation does not show how good it is on other images.",
        )
    elif found and found.training_overlap is None:
        yield _notice("care", f"It is not known whether {run.model} was trained on some of these images.")
    if model is None:
        yield _notice(
            "info",
            "No heatmaps and no model card: the report was made without the bundle that scored this run "
            f"(SHA-256 {run.model_sha256[:12] or 'not given'} …).",
        )
    if len(results.labels) > len(shown):
        yield _notice(
            "info",
            f"This report is for {', '.join(shown)}. The run has scores of {len(results.labels)} labels: "
            f"{', '.join(results.labels)}.",
        )


def evaluation(found: Assessment, cohort: Cohort) -> dict[str, Any]:
    """How good the scores are: what `cxr evaluate` prints, and the points of the curves."""
    overall, data = found.overall, labelled_scores(cohort)
    roc = precision_recall = None
    if data.two_classes:
        fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
        precision, recall, _ = precision_recall_curve(data.positive, data.scores, drop_intermediate=True)
        roc, precision_recall = _curve(fall_out, sensitivity), _curve(recall[::-1], precision[::-1])
    return {
        "on": f"{overall.sample}. By the reference labels {overall.positives:,} are {found.label}: "
        f"prevalence {overall.prevalence:.3f}",
        "left_out": found.left_out,
        "intervals": found.intervals,
        "threshold": found.threshold.value,
        "prevalence": overall.prevalence,
        "measures": overall.texts,
        "roc": roc,
        "precision_recall": precision_recall,
        "reliability": [[one.mean_score, one.observed, *one.ci95, one.images] for one in reliability(data)]
        if found.probability
        else None,
        "groups": [
            {"column": column, "values": [_group(value, one) for value, one in values.items()]}
            for column, values in found.groups.items()
        ],
    }


def _threshold(results: Results, model: Model | None) -> Threshold | None:
    """The threshold of the run; None if it is not known."""
    try:
        return results.decided_by(model)
    except InputError:
        return None


def _references(results: Results, cohort: Cohort) -> npt.NDArray[np.int8]:
    """[images]: 1 positive by the reference labels, 0 negative, -1 not known or not scored."""
    positive = {prediction.key: bool(reference.positive) for prediction, reference in cohort.images}
    return np.array([int(positive.get(one.key, -1)) for one in results.predictions], dtype=np.int8)


def _group(value: str, found: Performance) -> dict[str, Any]:
    auc = found.measures["auc"]
    return {
        "value": value,
        "images": f"{found.images:,}",
        "patients": "" if found.patients is None else f"{found.patients:,}",
        "positives": f"{found.positives:,}",
        "auc": None if auc.value is None else [auc.value, *(auc.ci95 or (None, None))],
        "measures": [found.measures[name].texts(2) for name in ("auc", "sensitivity", "specificity")],
    }


def _curve(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points of a curve: both ends, and evenly between as many as a screen can show."""
    which = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().astype(int))
    return [(round(a, 5), round(b, 5)) for a, b in zip(x[which].tolist(), y[which].tolist(), strict=True)]


def _coded(name: str, values: Sequence[str]) -> dict[str, Any]:
    """A column of few different values: each row's number, and the value of each number."""
    different = sorted(set(values))
    number = {value: i for i, value in enumerate(different)}
    return {name: [number[value] for value in values], f"{name}_values": different}


def _by_code(counts: Counter[str], codes: type[ErrorCode] | type[WarningCode]) -> list[dict[str, Any]]:
    known = {str(code): code.meaning for code in codes}  # a later version may have written other codes
    return [{"code": code, "meaning": known.get(code, ""), "images": n} for code, n in counts.most_common()]


def _share(part: int, whole: int, of: str) -> str:
    return f"{100 * part / whole:.1f}% {of}" if part else "none"


def _notice(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}
