"""A run as one HTML file: what was run, what came of it, and how good that is. It needs no network.

Everything that a page shows of a run is one JSON document, packed into it and put in place by page/page.js as
text, never as markup: a key may hold anything. The document's figures are made here; what a slider moves is
reckoned in the page, from the sorted scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.model import Model
from runs.codes import ErrorCode, WarningCode
from runs.predictions import Prediction
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr.evaluation.assessment import Report, labelled_scores, report
from cxr.evaluation.cohort import Cohort, Reference, TrainingSet, join
from cxr.evaluation.measures import MEASURES, Estimate, Evaluation, reliability
from cxr.files import whole_file
from cxr.planning import capacity
from cxr.report_page.gallery import Fetch, gallery
from cxr.report_page.rows import Rows
from cxr.report_page.template import Template
from cxr.runs import RunStatus
from cxr.words import counted, duration, money
from stacks.config import Config, context_name

SETTINGS = {  # of the stack, which bear on how a run goes
    *("prefix", "shards", "parallelization_factor", "images_per_job", "batch_size", "batch_window"),
    *("stream_retention", "retries", "record_age", "memory", "timeout", "architecture"),
}
NONE = "\N{EN DASH}"  # instead of a figure
CURVE_POINTS = 1000  # of a curve, which is more than a screen tells apart

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Labels:
    """Reference labels, as cohort.read_labels reads them."""

    references: Sequence[Reference]
    repeated: int
    columns: Sequence[str] = ()  # of groups


def write(
    path: Path,
    *,
    run: RunStatus,
    predictions: Iterable[Prediction],
    label: str,
    model: Model | None = None,
    training_set: TrainingSet | None = None,
    labels: Labels | None = None,
    config: Config | None = None,
    fetch: Fetch | None = None,
) -> None:
    """Write the report of a run, whole or not at all.

    It is about one label. `model` is the bundle that scored the run if that is at hand, `config` the stack's
    settings, and `fetch` gives an image's bytes by its key, None if there are none; without it the page holds
    no pictures. Raises InputError, and OSError.
    """
    page = Template.read()
    with whole_file(path) as part:  # from here on, so that one that cannot be written is known early
        rows = Rows.read(predictions, label)
        page.write(part, document(run, rows, model, training_set, labels, config, fetch))


def document(
    run: RunStatus,
    rows: Rows,
    model: Model | None,
    training_set: TrainingSet | None,
    labels: Labels | None,
    config: Config | None,
    fetch: Fetch | None,
) -> dict[str, Any]:
    """What page.js puts in place. Raises InputError."""
    threshold, source = rows.threshold(model)
    cohort = found = reference = None
    if labels:
        cohort = join(rows.results, labels.references)
        found = report(
            cohort,
            rows.label,
            model=model,
            training_set=training_set,
            threshold=threshold,
            columns=labels.columns,
        )
        threshold, source = found.threshold.value, source or found.threshold.source
        reference = references_of(rows, cohort)
    return {
        "run": run.run_id,
        "label": rows.label,
        "negative": "normal" if rows.label == "abnormal" else f"no {rows.label}",
        "threshold": threshold,
        "threshold_source": source,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        "subtitle": f"{run.model} on {_source(run)}",
        "tiles": tiles(run, rows, config),
        "notices": list(notices(run, rows, model, found, pictures=fetch is not None)),
        "rows": {
            "keys": rows.keys,
            "scores": rows.scores.tolist(),
            "positive": rows.positive.astype(int).tolist(),
            **_coded("error", rows.errors),
            **_coded("warning", [" ".join(codes) for codes in rows.warnings]),
            "reference": None if reference is None else reference.tolist(),
        },
        "failures": _by_code(Counter(filter(None, rows.errors)), ErrorCode),
        "warnings": _by_code(Counter(code for codes in rows.warnings for code in codes), WarningCode),
        "evaluation": evaluation(found, cohort, labels) if found and cohort and labels else None,
        "gallery": gallery(rows, threshold, reference, model, fetch),
        "about": about(run, model, config),
        "cost": cost(run, rows, config),
    }


# What the page says


def tiles(run: RunStatus, rows: Rows, config: Config | None) -> list[dict[str, str]]:
    """The few figures that a reader wants first: name, value and a note."""
    scored, failed = int((rows.scores >= 0).sum()), len(rows.keys) - int((rows.scores >= 0).sum())
    positive = int(rows.positive.sum())
    rate = run.images_per_second(datetime.now(UTC))
    known = rate is not None and not run.at_work
    plan = _plan(run, rows, config)
    expected = "listing goes on" if run.expected is None else f"of {run.expected:,} expected"
    return [
        {"name": "Scored", "value": f"{scored:,}", "note": expected},
        {"name": "Failed", "value": f"{failed:,}", "note": _share(failed, len(rows.keys), "of all")},
        {
            "name": f"Called {rows.label}",
            "value": f"{positive:,}",
            "note": _share(positive, scored, "of scored"),
        },
        {
            "name": "Duration",
            "value": duration(run.done / rate) if rate and known else NONE,
            "note": "created to completed" if known else "at work" if run.at_work else "was cancelled",
        },
        {
            "name": "Images a second",
            "value": f"{rate:,.1f}" if rate else NONE,
            "note": "over the whole run",
        },
        {
            "name": "Cost",
            "value": money(plan.dollars) if plan else NONE,
            "note": "as cxr plan reckons it" if plan else "no service time for it",
        },
    ]


def notices(
    run: RunStatus,
    rows: Rows,
    model: Model | None,
    found: Report | None,
    *,
    pictures: bool,
) -> Iterator[dict[str, str]]:
    """What a reader must know before the figures."""
    if pictures:
        yield _notice(
            "care",
            "This file holds patients' images: keep it where you would keep them. "
            "cxr report --no-images leaves the pictures out.",
        )
    else:
        yield _notice(
            "info", "Made without pictures. The keys of images are in it all the same, and may name patients."
        )
    if run.state != "COMPLETE":
        missing = f": {run.remaining:,} images have no outcome" if run.remaining else ""
        yield _notice("care", f"This run is {run.state}{missing}. Figures are of what there was at the time.")
    if found and found.training_overlap and found.training_overlap.any:
        yield _notice(
            "alarm",
            f"{found.model} was trained on {found.training_overlap.text}: "
            "the evaluation does not tell how good it is on others.",
        )
    elif found and found.training_overlap is None:
        yield _notice("care", f"Not known: whether {run.model} was trained on some of these images.")
    if model is None:
        yield _notice(
            "info",
            f"The bundle that scored this run (SHA-256 {run.model_sha256[:12] or 'not given'} …) was not at "
            "hand: there are no maps and no model card. --bundle DIR gives them.",
        )
    if len(rows.labels) > 1:
        yield _notice(
            "info",
            f"This report is about {rows.label}. The run has {len(rows.labels)} labels "
            f"({', '.join(sorted(rows.labels))}); --label chooses another.",
        )


def evaluation(found: Report, cohort: Cohort, labels: Labels) -> dict[str, Any]:
    """How good the scores are: what cxr evaluate tells, and what the page draws."""
    overall, data = found.overall, labelled_scores(cohort)
    left_out = {
        "FAILED images": found.failed,
        "scored images without a label": found.without_label,
        "labels without an image": found.labels_without_image,
        "labels given again": labels.repeated,
    }
    patients = "" if overall.patients is None else f" of {counted(overall.patients, 'patient')}"
    roc = precision_recall = None
    if data.two_classes:
        fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
        precision, recall, _ = precision_recall_curve(data.positive, data.scores, drop_intermediate=True)
        roc, precision_recall = _curve(fall_out, sensitivity), _curve(recall[::-1], precision[::-1])
    return {
        "on": f"{counted(overall.images, 'image')}{patients}, of which {overall.positives:,} are "
        f"{found.label} by reference: prevalence {overall.prevalence:.3f}",
        "left_out": ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n),
        "intervals": found.intervals,
        "threshold": found.threshold.value,
        "prevalence": overall.prevalence,
        "measures": _estimates(overall),
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


def about(run: RunStatus, model: Model | None, config: Config | None) -> dict[str, Any]:
    """Run, model and settings as facts; the latter two None where they are not at hand."""
    facts: Facts = [
        ("Name", run.run_id),
        ("Images from", _source(run)),
        ("Created", _time(run.created_at)),
        ("Listed", _time(run.listed_at)),
        ("Completed", _time(run.completed_at)),
        ("Model", run.model),
        ("Its SHA-256", run.model_sha256 or "not given"),
    ]
    settings: Facts = []
    for setting in fields(Config) if config else ():
        if setting.name in SETTINGS:
            value = getattr(config, setting.name)
            default = "" if value == setting.default else " (not the default)"
            settings.append((context_name(setting.name), f"{value}{default}"))
    return {"run": facts, "model": _card(model) if model else None, "settings": settings or None}


def cost(run: RunStatus, rows: Rows, config: Config | None) -> dict[str, Any] | None:
    """The bill as `cxr plan` reckons it; None where it cannot."""
    plan = _plan(run, rows, config)
    if plan is None:
        return None
    priced, images = capacity.read_json(capacity.PRICES), plan.workload.images
    return {
        "lines": [
            {
                "item": line.item,
                "quantity": _quantity(line.quantity),
                "unit": line.unit,
                "dollars": f"{line.dollars:,.4f}",
            }
            for line in plan.lines
        ],
        "total": f"{plan.dollars:,.4f}",
        "per_1000": money(plan.dollars / images * 1000),
        "idle": money(plan.idle_dollars),
        "seconds": duration(plan.seconds),
        "bottleneck": plan.bottleneck,
        "note": f"Reckoned beforehand for these settings, not read off a bill. Prices of {priced['date']}, "
        f"{priced['region']}. {priced['note']}",
    }


# Small things


def references_of(rows: Rows, cohort: Cohort) -> npt.NDArray[np.int8]:
    """[images]: 1 positive by the reference labels, 0 negative, -1 not known or not scored."""
    positive = {result.key: reference.positive for result, reference in cohort.images}
    return np.array([int(positive.get(key, -1)) for key in rows.keys], dtype=np.int8)


def _plan(run: RunStatus, rows: Rows, config: Config | None) -> capacity.Plan | None:
    measured = capacity.read_json(capacity.SERVICE_TIMES)
    rate = measured["images_per_second"].get(run.model.rpartition(":")[0])
    images = run.expected or len(rows.keys)
    if config is None or rate is None or not images:
        return None
    indexed = run.source.get("kind") == "IndexKey"
    workload = capacity.Workload(
        images=images,
        images_per_second=rate,
        cold_start_seconds=measured["cold_start_seconds"],
        keys_per_second=measured["keys_per_second"]["index" if indexed else "listing"],
        key_bytes=max(1, round(sum(map(len, rows.keys)) / max(1, len(rows.keys)))),
        indexed=indexed,
    )
    return capacity.plan(workload, config, capacity.read_json(capacity.PRICES)["prices"])


def _card(model: Model) -> dict[str, Any]:
    card = model.card
    facts: Facts = [
        ("Name", model.name),
        ("Architecture", str(card.get("architecture", "not said"))),
        ("Intended use", str(card.get("intended_use", "not said"))),
        ("Labels", ", ".join(f"{label} from {limit}" for label, limit in model.thresholds.items())),
        ("Licence", str(card.get("licence", "not said"))),
        ("Attribution", str(card.get("attribution", "not said"))),
    ]
    training = card.get("training", {})
    trained = training if isinstance(training, dict) else {"training": training}
    metrics = card.get("metrics", {})
    collections = metrics.get("collections", {}) if isinstance(metrics, dict) else {}
    return {
        "facts": facts,
        "limitations": [str(line) for line in card.get("limitations", [])],
        "training": [(name.replace("_", " "), _plain(value)) for name, value in trained.items()],
        "worth": [
            [
                name,
                *(f"{one[field]:,}" for field in ("images", "patients")),
                f"{auc['value']:.3f}",
                _interval(auc["ci95"], 3),
            ]
            for name, one in collections.items()
            if (auc := one.get("auc"))
        ],
        "worth_note": f"Scores {metrics['scores']}. Intervals: {metrics['interval']}." if collections else "",
    }


def _plain(value: Any) -> str:
    """A value of model.json in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    return str(value)


def _estimates(found: Evaluation) -> list[tuple[str, str, str]]:
    """Name, value and interval of every measure."""
    rows = []
    for name, estimate in found.measures.items():
        decimals = 0 if name in ("tp", "fp", "tn", "fn") else 3
        rows.append((MEASURES[name], *_estimate(estimate, decimals)))
    return rows


def _estimate(estimate: Estimate, decimals: int) -> tuple[str, str]:
    if estimate.value is None:
        return NONE, f"not defined: {estimate.undefined}"
    interval = _interval(estimate.ci95, decimals) if estimate.ci95 else "no interval"
    return f"{estimate.value:,.{decimals}f}", interval


def _interval(limits: Sequence[float], decimals: int) -> str:
    return " to ".join(f"{limit:,.{decimals}f}" for limit in limits)


def _group(value: str, found: Evaluation) -> dict[str, Any]:
    auc = found.measures["auc"]
    return {
        "value": value,
        "images": f"{found.images:,}",
        "patients": "" if found.patients is None else f"{found.patients:,}",
        "positives": f"{found.positives:,}",
        "auc": None if auc.value is None else [auc.value, *(auc.ci95 or (None, None))],
        "measures": [_estimate(found.measures[name], 2) for name in ("auc", "sensitivity", "specificity")],
    }


def _curve(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points of a curve, so many that a screen shows no difference: both ends, and evenly between."""
    which = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().astype(int))
    return [(round(a, 5), round(b, 5)) for a, b in zip(x[which].tolist(), y[which].tolist(), strict=True)]


def _coded(name: str, values: Sequence[str]) -> dict[str, Any]:
    """A column of few different values: each row's number, and what the numbers stand for."""
    different = sorted(set(values))
    number = {value: i for i, value in enumerate(different)}
    return {name: [number[value] for value in values], f"{name}_values": different}


def _by_code(counts: Counter[str], codes: type[ErrorCode] | type[WarningCode]) -> list[dict[str, Any]]:
    known = {str(code): code.meaning for code in codes}  # a later version may have written others
    return [{"code": code, "meaning": known.get(code, ""), "images": n} for code, n in counts.most_common()]


def _source(run: RunStatus) -> str:
    source = run.source
    kind, value = source.get("kind", "unknown"), source.get("value", "")
    what = {
        "Prefix": f"all images under {value}",
        "IndexKey": f"the index {value}",
        "Keys": "a list of keys",
        "Direct": "direct jobs",
    }.get(kind, f"{kind} {value}")
    return f"{what}, the first {int(source['job_count']):,}" if "job_count" in source else what


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "not yet"


def _quantity(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _share(part: int, whole: int, of: str) -> str:
    return f"{100 * part / whole:.1f}% {of}" if part else "none"


def _notice(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}
