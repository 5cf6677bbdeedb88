"""Figures of an evaluation, for print and for colour-blind readers: line styles and shapes differ too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr import RESEARCH_ONLY
from cxr.evaluation.assessment import Report
from cxr.evaluation.measures import Estimate, LabelledScores, reliability
from cxr.words import counted

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
SCORE_BINS = [number / 40 for number in range(41)]


def figures(report: Report, data: LabelledScores) -> Iterator[tuple[str, Figure | None]]:
    """Name and figure, None where it is not defined: of one class, or of scores that are no probability."""
    with mpl.rc_context(STYLE):
        yield "scores", _scores(report, data)
        yield "roc", _roc(report, data) if data.two_classes else None
        yield "precision-recall", _precision_recall(report, data) if data.two_classes else None
        yield "calibration", _calibration(report, data) if report.probability else None


def save(figure: Figure, path: Path, file_format: str) -> None:
    """Write the figure as "png" or "svg". Raises OSError."""
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if file_format == "svg" else None  # the same file each time
        figure.savefig(path, format=file_format, dpi=DOTS_PER_INCH, metadata=metadata)


def _figure(title: str, report: Report) -> Figure:
    overall, overlap = report.overall, report.training_overlap
    patients = "patients not known" if overall.patients is None else counted(overall.patients, "patient")
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    figure.suptitle(
        f"{title}: {report.label}\n"
        f"{counted(overall.images, 'image')}, {patients}, prevalence {overall.prevalence:.2f}",
        fontsize=11,
    )
    note = RESEARCH_ONLY
    if overlap and overlap.any:
        note += f"\nThe model was trained on {overlap.text}."
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def _roc(report: Report, data: LabelledScores) -> Figure:
    figure, measures = _figure("ROC curve", report), report.overall.measures
    axes = _unit_square(figure, "1 - specificity", "sensitivity")
    fall_out, sensitivity, _ = roc_curve(data.positive, data.scores)
    axes.plot(fall_out, sensitivity, color=BLUE, label=f"AUC {_text(measures['auc'])}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
    _mark_threshold(axes, report, 1 - (measures["specificity"].value or 0), measures["sensitivity"].value)
    _legend(axes)
    return figure


def _precision_recall(report: Report, data: LabelledScores) -> Figure:
    figure, measures = _figure("Precision-recall curve", report), report.overall.measures
    axes = _unit_square(figure, "recall (sensitivity)", "precision (PPV)")
    precision, recall, _ = precision_recall_curve(data.positive, data.scores, drop_intermediate=True)
    average = f"average precision {_text(measures['average_precision'])}"
    axes.plot(recall, precision, color=BLUE, drawstyle="steps-post", label=average)
    axes.axhline(data.prevalence, color=GREY, linestyle=":", label="chance (prevalence)")
    _mark_threshold(axes, report, measures["sensitivity"].value, measures["ppv"].value)
    _legend(axes)
    return figure


def _calibration(report: Report, data: LabelledScores) -> Figure:
    figure = _figure("Calibration", report)
    axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = reliability(data)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.errorbar(
        [one.mean_score for one in bins],
        [one.observed for one in bins],
        # Never below 0, as where an end of the interval is the value itself but for its last bit.
        yerr=[
            [max(0, one.observed - one.ci95[0]) for one in bins],
            [max(0, one.ci95[1] - one.observed) for one in bins],
        ],
        **{"color": BLUE, "marker": "o", "linewidth": 1, "capsize": 3},
        label=f"observed (95% interval), images\nslope {_text(report.overall.measures['calibration_slope'])}",
    )
    for one in bins:
        style: Any = {
            "fontsize": 7,
            "color": GREY,
            "bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.5},
        }
        top = (one.mean_score, one.ci95[1])
        axes.annotate(f"{one.images:,}", top, (0, 7), textcoords="offset points", ha="center", **style)
    axes.set(ylabel=f"share {report.label}", ylim=(-0.02, 1.06))
    _legend(axes)
    histogram.hist(data.scores, SCORE_BINS, color=BLUE)
    histogram.set(xlabel="score", ylabel="images", xlim=(-0.02, 1.02))
    return figure


def _scores(report: Report, data: LabelledScores) -> Figure:
    figure = _figure("Distribution of scores", report)
    axes = figure.subplots()
    for of_class, name, colour, hatch in (
        (~data.positive, f"not {report.label}", BLUE, ""),
        (data.positive, report.label, VERMILLION, "///"),
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
    threshold = report.threshold.value
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:g}")
    axes.set(xlabel="score", ylabel="images", xlim=(0, 1))
    axes.spines["bottom"].set(linewidth=1.5, zorder=3)  # over the outlines of empty bins
    _legend(axes)
    return figure


def _unit_square(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return axes


def _mark_threshold(axes: Axes, report: Report, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        style: Any = {
            "color": VERMILLION,
            "marker": "D",
            "markersize": 8,
            "linestyle": "none",
            "clip_on": False,
        }
        axes.plot(x, y, label=f"threshold {report.threshold.value:g}", **style)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)  # above, where no data are


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"not defined: {estimate.undefined}"
    interval = f" ({estimate.ci95[0]:.2f} to {estimate.ci95[1]:.2f})" if estimate.ci95 else ""
    return f"{estimate.value:.2f}{interval}"
