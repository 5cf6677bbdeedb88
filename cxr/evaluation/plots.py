"""Figures of an assessment or a comparison, for print and for colour-blind readers.

Line styles and shapes differ, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr import RESEARCH_ONLY
from cxr.evaluation.assessment import Assessment
from cxr.evaluation.comparison import Comparison, Pairs
from cxr.evaluation.measures import Estimate, LabelledScores, reliability
from cxr.files import whole_file

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#595959"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.06,  # inches
    "figure.constrained_layout.w_pad": 0.1,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "cxr",
}
DOTS_PER_INCH = 200
FEW_IMAGES = 1000
NAME_LENGTH = 40  # characters of a file or a run
SCORE_BINS = [number / 40 for number in range(41)]


def write_files(folder: Path, measured: Sequence[tuple[Assessment, LabelledScores]], text: str) -> None:
    """Write each figure as PNG and SVG, and `text`, the assessments as JSON, as evaluation.json.

    The figures of the first label are in `folder`, those of each other one in a folder of its name in it.
    Files of a figure that is not defined are of an earlier assessment, and are deleted. Raises OSError.
    """
    names = folder_names([found.label for found, _ in measured[1:]])
    for name, (found, data) in zip([".", *names], measured, strict=True):
        _draw(folder / name, figures(found, data))
    _write_document(folder / "evaluation.json", text)


def folder_names(labels: Sequence[str]) -> list[str]:
    """A different name of a folder for each label: letters, digits, - and _ of the label."""
    names: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w-]+", "-", label, flags=re.ASCII).strip("-")[:NAME_LENGTH] or "label"
        taken = {other.casefold() for other in names}  # some file systems do not tell a from A
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(one for one in chain([name], numbered) if one.casefold() not in taken))
    return names


def write_comparison(folder: Path, found: Comparison, pairs: Pairs, text: str) -> None:
    """Write each figure as PNG and SVG, and `text`, the comparison as JSON, as comparison.json.

    Files of a figure that is not defined are of an earlier comparison, and are deleted. Raises OSError.
    """
    _draw(folder, comparison_figures(found, pairs))
    _write_document(folder / "comparison.json", text)


def _draw(folder: Path, drawn: Iterable[tuple[str, Figure | None]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn:
        for file_format in ("png", "svg"):
            path = folder / f"{name}.{file_format}"
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                with whole_file(path) as part:
                    save(figure, part, file_format)


def _write_document(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text + "\n")


def figures(found: Assessment, data: LabelledScores) -> Iterator[tuple[str, Figure | None]]:
    """Name and figure; None for curves of one class and for the calibration of other than probabilities."""
    with mpl.rc_context(STYLE):
        yield "scores", _scores(found, data)
        yield "roc", _roc(found, data) if data.two_classes else None
        yield "precision-recall", _precision_recall(found, data) if data.two_classes else None
        yield "calibration", _calibration(found, data) if found.probability else None


def comparison_figures(found: Comparison, pairs: Pairs) -> Iterator[tuple[str, Figure | None]]:
    """Name and figure; None for ROC curves without labels or of one class."""
    with mpl.rc_context(STYLE):
        yield "compared-scores", _score_by_score(found, pairs)
        two_classes = pairs.labelled if pairs.labelled and pairs.labelled[0].two_classes else None
        yield "compared-roc", _two_roc_curves(found, *two_classes) if two_classes else None


def save(figure: Figure, path: Path, file_format: str) -> None:
    """Write the figure as "png" or "svg". Raises OSError."""
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if file_format == "svg" else None  # so that the file is the same each time
        figure.savefig(path, format=file_format, dpi=DOTS_PER_INCH, metadata=metadata)


def _figure(title: str, found: Assessment) -> Figure:
    overall, overlap = found.overall, found.training_overlap
    note = RESEARCH_ONLY
    if overlap and overlap.any:
        note += f"\nThe model was trained on {overlap.text}."
    return _sheet(f"{title}: {found.label}\n{overall.sample}, prevalence {overall.prevalence:.2f}", note)


def _comparison_figure(title: str, found: Comparison) -> Figure:
    note = RESEARCH_ONLY
    for name, side in (("A", found.a), ("B", found.b)):
        source = side.name.replace("$", r"\$")  # between two of them, matplotlib reads a formula
        note += f"\n{name}: {source[-NAME_LENGTH:]}"
        if side.training_overlap and side.training_overlap.any:
            note += f", trained on {side.training_overlap.text}"
    return _sheet(f"{title}: {found.label}\n{found.sample}", note)


def _sheet(heading: str, note: str) -> Figure:
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def _roc(found: Assessment, data: LabelledScores) -> Figure:
    figure, measures = _figure("ROC curve", found), found.overall.measures
    axes = _unit_square(figure, "1 - specificity", "sensitivity")
    fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
    axes.plot(fall_out, sensitivity, color=BLUE, label=f"AUC {_text(measures['auc'])}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
    _mark_threshold(axes, found, 1 - (measures["specificity"].value or 0), measures["sensitivity"].value)
    _legend(axes)
    return figure


def _precision_recall(found: Assessment, data: LabelledScores) -> Figure:
    figure, measures = _figure("Precision-recall curve", found), found.overall.measures
    axes = _unit_square(figure, "recall (sensitivity)", "precision (PPV)")
    precision, recall, _ = precision_recall_curve(data.positive, data.scores, drop_intermediate=True)
    average = f"average precision {_text(measures['average_precision'])}"
    axes.plot(recall, precision, color=BLUE, drawstyle="steps-post", label=average)
    axes.axhline(data.prevalence, color=GREY, linestyle=":", label="chance (prevalence)")
    _mark_threshold(axes, found, measures["sensitivity"].value, measures["ppv"].value)
    _legend(axes)
    return figure


def _calibration(found: Assessment, data: LabelledScores) -> Figure:
    figure = _figure("Calibration", found)
    axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = reliability(data)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.errorbar(
        [one.mean_score for one in bins],
        [one.observed for one in bins],
        # An end of the interval may be the value itself, but for the last bit.
        yerr=[
            [max(0, one.observed - one.ci95[0]) for one in bins],
            [max(0, one.ci95[1] - one.observed) for one in bins],
        ],
        **{"color": BLUE, "marker": "o", "linewidth": 1, "capsize": 3},
        label=f"observed (95% interval), images\nslope {_text(found.overall.measures['calibration_slope'])}",
    )
    for one in bins:
        style: Any = {
            "fontsize": 7,
            "color": GREY,
            "bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.5},
        }
        top = (one.mean_score, one.ci95[1])
        axes.annotate(f"{one.images:,}", top, (0, 7), textcoords="offset points", ha="center", **style)
    axes.set(ylabel=f"share {found.label}", ylim=(-0.02, 1.06))
    _legend(axes)
    histogram.hist(data.scores, SCORE_BINS, color=BLUE)
    histogram.set(xlabel="score", ylabel="images", xlim=(-0.02, 1.02))
    return figure


def _scores(found: Assessment, data: LabelledScores) -> Figure:
    figure = _figure("Distribution of scores", found)
    axes = figure.subplots()
    for of_class, name, colour, hatch in (
        (~data.positive, f"not {found.label}", BLUE, ""),
        (data.positive, found.label, VERMILLION, "///"),
    ):
        axes.hist(
            data.scores[of_class],
            SCORE_BINS,
            histtype="stepfilled",
            facecolor=(*mpl.colors.to_rgb(colour), 0.3),
            edgecolor=colour,
            hatch=hatch,
            linewidth=1.5,
            label=f"{name} ({int(of_class.sum()):,})",
        )
    threshold = found.threshold.value
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:g}")
    axes.set(xlabel="score", ylabel="images", xlim=(0, 1))
    axes.spines["bottom"].set(linewidth=1.5, zorder=3)  # covers the outlines of empty bins
    _legend(axes)
    return figure


def _two_roc_curves(found: Comparison, a: LabelledScores, b: LabelledScores) -> Figure:
    figure = _comparison_figure("ROC curves", found)
    axes = _unit_square(figure, "1 - specificity", "sensitivity")
    of_auc = found.reference.differences["auc"] if found.reference else None
    for name, data, colour, line in (("A", a, VERMILLION, "--"), ("B", b, BLUE, "-")):
        fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
        auc = f": AUC {_text(getattr(of_auc, name.lower()))}" if of_auc else ""
        axes.plot(fall_out, sensitivity, color=colour, linestyle=line, label=f"{name}{auc}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
    if found.reference and found.reference.specificity is not None:
        fall_out = 1 - found.reference.specificity
        axes.axvline(fall_out, color="black", linewidth=0.8, label="compared at this specificity")
    _legend(axes)
    return figure


def _score_by_score(found: Comparison, pairs: Pairs) -> Figure:
    figure = _comparison_figure("Scores of the same images", found)
    axes = _unit_square(figure, "score of A", "score of B")
    everything = np.ones(len(pairs.a), dtype=bool)
    classes = [(everything, "image", BLUE, "o")]
    if pairs.labelled:
        positive = pairs.labelled[0].positive
        classes = [(~positive, f"not {found.label}", BLUE, "o"), (positive, found.label, VERMILLION, "^")]
    # Few images are clear marks, many are a cloud that is darker where there are more.
    few = len(pairs.a) <= FEW_IMAGES
    size, opacity = (18, 0.7) if few else (4, max(0.04, FEW_IMAGES / len(pairs.a)))
    for which, name, colour, marker in classes:
        style: Any = {"s": size, "alpha": opacity, "color": colour, "marker": marker, "linewidths": 0}
        # As vectors, a hundred thousand points would be tens of megabytes.
        axes.scatter(pairs.a[which], pairs.b[which], rasterized=True, **style)
        axes.scatter([], [], s=18, color=colour, marker=marker, label=f"{name} ({int(which.sum()):,})")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="the same score")
    for side, draw in ((found.a, axes.axvline), (found.b, axes.axhline)):
        if side.threshold:
            draw(side.threshold.value, color="black", linestyle="--", linewidth=0.8)
    if found.a.threshold or found.b.threshold:
        axes.plot([], [], color="black", linestyle="--", linewidth=0.8, label="threshold")
    _legend(axes)
    return figure


def _unit_square(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return axes


def _mark_threshold(axes: Axes, found: Assessment, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        style: Any = {
            "color": VERMILLION,
            "marker": "D",
            "markersize": 8,
            "linestyle": "none",
            "clip_on": False,
        }
        axes.plot(x, y, label=f"threshold {found.threshold.value:g}", **style)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)  # above the data


def _text(estimate: Estimate) -> str:
    value, interval = estimate.texts(2)
    return f"{value} ({interval})"
