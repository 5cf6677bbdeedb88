"""A run as one HTML file: what was run, what came of it, and how good that is. It needs no network.

Everything that a page shows of a run is one JSON document, packed into it and put in place by page/page.js as
text, never as markup: a key may hold anything. The document's figures are made here; what a slider moves is
reckoned in the page, from the sorted scores.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.images import ImageError, Preprocessing, decode
from classifier.model import Model
from PIL import Image, ImageOps
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr import RESEARCH_ONLY, capacity
from cxr.cohort import Cohort, Reference, Result, TrainingSet, join
from cxr.errors import InputError
from cxr.evaluation import MEASURES, Estimate, Evaluation, reliability
from cxr.evaluation_report import Report, labelled_scores, report
from cxr.explanation import LESS, MORE, STRONGEST
from cxr.files import whole_file
from cxr.plan_command import duration, money
from cxr.runs import Outcome, RunStatus
from stacks.config import Config, context_name

PAGE = Path(__file__).with_name("page")
NODE_MODULES = Path(__file__).parents[1] / "node_modules"
LIBRARIES = {  # npm package -> the file of it that goes into the page
    "d3": "dist/d3.min.js",
    "@observablehq/plot": "dist/plot.umd.min.js",
    "datatables.net": "js/dataTables.min.js",
}

FAILURES = {
    "IMAGE_MISSING": "is not in the bucket",
    "IMAGE_EMPTY": "holds no bytes",
    "NOT_AN_IMAGE": "is neither PNG, JPEG nor DICOM",
    "IMAGE_CORRUPT": "is cut short or damaged",
    "IMAGE_TOO_SMALL": "has a side under 64 pixels",
    "IMAGE_TOO_LARGE": "has over 50 megapixels, or 64 MiB",
    "IMAGE_TOO_NARROW": "has sides beyond 4:1",
    "BIT_DEPTH_UNKNOWN": "is a 16-bit PNG that uses 12 bits or fewer, and the model names no depth",
    "DICOM_NO_PIXELS": "is DICOM without pixel data of 8 or 16 bits",
    "DICOM_MULTI_FRAME": "is DICOM with more than one frame",
    "DICOM_PHOTOMETRIC": "is DICOM in colour: neither MONOCHROME1 nor MONOCHROME2",
    "DICOM_TRANSFER_SYNTAX": "is DICOM compressed in a way that is not decoded: deflated, JPEG Lossless, "
    "JPEG-LS, video",
}
WARNINGS = {
    "COLOUR": "has colour in it, where an X-ray is grey",
    "LOOKS_SIDEWAYS": "turned by a quarter, looks more like a chest",
    "LOOKS_INVERTED": "black for white, looks like a chest",
    "NOT_A_FRONTAL_CHEST": "looks like none in any of these ways",
    "OUT_OF_TRAINING_RANGE": "is darker, brighter, flatter or harsher than any that the model was trained on",
}

SETTINGS = {  # of the stack, which bear on how a run goes
    *("prefix", "shards", "parallelization_factor", "images_per_job", "batch_size", "batch_window"),
    *("stream_retention", "retries", "record_age", "memory", "timeout", "architecture"),
}
MILLION = 1_000_000  # scores have six decimals, and travel as whole numbers
GALLERY_SIZE = 12  # images in each part of the gallery
THUMBNAIL, MAP = 320, 64  # sides in pixels; the browser enlarges a map smoothly
FETCHES = 8  # images at once
NONE = "\N{EN DASH}"  # instead of a figure
CURVE_POINTS = 1000  # of a curve, which is more than a screen tells apart

Facts = list[tuple[str, str]]
Fetch = Callable[[str], bytes | None]


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
    def read(cls, found: Iterable[Outcome], label: str) -> Rows:
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
            rows.append((outcome.key, score, positive, outcome.error, outcome.warnings))
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
    outcomes: Iterable[Outcome],
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
        rows = Rows.read(outcomes, label)
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
        "run": run.run,
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
        "failures": _by_code(Counter(filter(None, rows.errors)), FAILURES),
        "warnings": _by_code(Counter(code for codes in rows.warnings for code in codes), WARNINGS),
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
    patients = "" if overall.patients is None else f" of {_counted(overall.patients, 'patient')}"
    roc = precision_recall = None
    if data.two_classes:
        fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
        precision, recall, _ = precision_recall_curve(data.positive, data.scores, drop_intermediate=True)
        roc, precision_recall = _curve(fall_out, sensitivity), _curve(recall[::-1], precision[::-1])
    return {
        "on": f"{_counted(overall.images, 'image')}{patients}, of which {overall.positives:,} are "
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
        ("Name", run.run),
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


# The gallery


def gallery(
    rows: Rows,
    threshold: float | None,
    reference: npt.NDArray[np.int8] | None,
    model: Model | None,
    fetch: Fetch | None,
) -> dict[str, Any]:
    """Parts of a dozen images each, by row, and a picture of each image: thumbnail and map as data URLs."""
    scored = np.flatnonzero(rows.scores >= 0)
    scores = rows.scores[scored]
    called = scores >= math.inf if threshold is None else scores >= np.ceil(threshold * MILLION - 1e-6)
    parts = []

    def part(title: str, note: str, among: npt.NDArray[np.int64], by: npt.NDArray[Any]) -> None:
        """The first of `among` by a measure of every scored image."""
        order = among[np.argsort(by[among], kind="stable")][:GALLERY_SIZE]
        parts.append({"title": title, "note": note, "rows": scored[order].tolist()})

    every = np.arange(len(scored))
    if reference is not None:
        truth = reference[scored]
        part(
            "False positives",
            f"called {rows.label}, reference says not; the highest scores first",
            every[called & (truth == 0)],
            -scores,
        )
        part(
            "False negatives",
            f"not called {rows.label}, reference says {rows.label}; the lowest scores first",
            every[~called & (truth == 1)],
            scores,
        )
    part("Highest scores", f"most {rows.label} by the model", every, -scores)
    if threshold is not None:
        part(
            "Nearest to the threshold",
            f"where {threshold:g} decides, and the model is least sure",
            every,
            np.abs(scores - threshold * MILLION),
        )
    part("Lowest scores", f"least {rows.label} by the model", every, scores)
    pictures: dict[int, dict[str, str]] = {}
    if fetch:
        shown = sorted({row for one in parts for row in one["rows"]})
        with ThreadPoolExecutor(FETCHES) as pool:
            found = pool.map(lambda row: picture(fetch(rows.keys[row]), rows.label, model), shown)
            pictures = dict(zip(shown, found, strict=True))
    return {
        "parts": parts,
        "pictures": pictures if fetch else None,
        "maps": any("map" in one for one in pictures.values()),
        "cut": model is not None,
    }


def picture(data: bytes | None, label: str, model: Model | None) -> dict[str, str]:
    """An image as the page shows it: what the model sees of it and where the score comes from, or why not."""
    if data is None:
        return {"missing": "not in the bucket"}
    geometry = Preprocessing.from_json(model.card["preprocessing"]) if model else None
    try:
        image = decode(data, geometry.bit_depth) if geometry else decode(data)
    except ImageError as error:
        return {"missing": error.code}
    shown = {"image": _data_url(thumbnail(image, geometry), "JPEG", quality=82)}
    if model and model.card.get("cam") and label in model.thresholds:
        pixels, _ = model.prepare(data)
        shown["map"] = _data_url(map_layer(model.explain(pixels)[label]), "PNG", optimize=True)
    return shown


def thumbnail(image: Image.Image, geometry: Preprocessing | None) -> Image.Image:
    """The square that a model with this geometry sees; without one, the whole image on black."""
    if geometry is None:
        return ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    half = min(image.size) * geometry.crop / geometry.resize / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, box, reducing_gap=2)


def map_layer(cam: npt.NDArray[np.float32]) -> Image.Image:
    """A class activation map [rows, columns] to lay over the image, in the colours of `cxr explain`."""
    strength = np.asarray(Image.fromarray(cam).resize((MAP, MAP), Image.Resampling.BICUBIC))
    opacity = STRONGEST * np.abs(strength) / max(float(np.abs(strength).max()), 1e-9)
    colour = np.where(strength[..., np.newaxis] > 0, MORE, LESS)
    layer = np.concatenate([colour, 255 * opacity[..., np.newaxis]], axis=-1)
    return Image.fromarray(layer.round().astype(np.uint8), "RGBA")


# The page


class Template:
    """The page without a run: template, style, script and libraries, all read before a file is written."""

    def __init__(self, html: str) -> None:
        self._before, self._after = html.split("{{data}}")

    @classmethod
    def read(cls) -> Template:
        """Raises InputError if a library is not installed."""
        scripts, licences = [], []
        for name, file in LIBRARIES.items():
            folder = NODE_MODULES / name
            try:
                scripts.append((folder / file).read_text(encoding="utf-8"))
                licence = next(
                    path for path in sorted(folder.iterdir()) if path.name.lower().startswith("licen")
                )
                version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
                licences.append(f"{name} {version}\n\n{licence.read_text(encoding='utf-8').strip()}")
            except (FileNotFoundError, StopIteration):
                raise InputError(
                    f"{folder}: expected the npm package {name}; `make install` brings it"
                ) from None
        scripts.append((PAGE / "page.js").read_text(encoding="utf-8"))
        scripts = [_inline(script) for script in scripts]
        hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
        parts = {
            "policy": "; ".join(
                [
                    "default-src 'none'",
                    f"script-src {' '.join(f'{chr(39)}sha256-{digest}{chr(39)}' for digest in hashes)}",
                    "style-src 'unsafe-inline'",  # Plot puts a style into each chart
                    "img-src data:",
                    "base-uri 'none'",
                    "form-action 'none'",
                ]
            ),
            "disclaimer": RESEARCH_ONLY,
            "style": (PAGE / "page.css").read_text(encoding="utf-8").replace("{{disclaimer}}", RESEARCH_ONLY),
            "licences": _escaped("\n\n\n".join(licences)),
            "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
            "data": "{{data}}",
        }
        template = (PAGE / "template.html").read_text(encoding="utf-8")
        return cls(re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))

    def write(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write the page with this document in it. Raises OSError."""
        packed = gzip.compress(json.dumps(document, separators=(",", ":")).encode(), compresslevel=6, mtime=0)
        with path.open("w", encoding="utf-8") as file:
            file.write(self._before)
            file.write(base64.b64encode(packed).decode())
            file.write(self._after)


def _inline(script: str) -> str:
    """A script whose strings cannot end the element that it stands in."""
    return re.sub(r"<(/script|!--)", r"<\\\1", script.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


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


def _by_code(counts: Counter[str], meanings: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"code": code, "meaning": meanings.get(code, ""), "images": n} for code, n in counts.most_common()
    ]


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


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _notice(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _data_url(image: Image.Image, file_format: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
