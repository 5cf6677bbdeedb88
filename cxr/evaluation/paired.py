"""Two models' scores of the same images: differences, agreement, shift of the scores. No I/O.

Both models are measured on the same bootstrap samples, of patients if they are known, else of images. So the
interval of a difference is that of the difference itself, and much shorter than the intervals of the two
values suggest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cxr.evaluation.measures import (
    ONE_CLASS,
    Booleans,
    Estimate,
    Floats,
    Integers,
    LabelledScores,
    percentile_interval,
    proportion_interval,
    ranking,
    resamples,
)

SENSITIVITY = "sensitivity_at_specificity"
DIFFERENCES = ("auc", "average_precision", SENSITIVITY)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Difference:
    """A measure of both models, and the measure of B minus that of A."""

    a: Estimate
    b: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Agreement:
    """Which images both models call positive, each at its own threshold."""

    both_positive: int
    only_a_positive: int
    only_b_positive: int
    both_negative: int
    share: Estimate  # of images that both call the same
    kappa: Estimate  # Cohen (1960), Educ. Psychol. Meas. 20:37. 1: always the same, 0: as by chance


@dataclass(frozen=True)
class Shift:
    """How the scores of B differ from those of A."""

    mean_a: float
    mean_b: float
    quantiles: dict[str, tuple[float, float]]  # "0.05" -> that quantile of A's scores, of B's scores
    ks_distance: float
    rank_correlation: float | None  # None if one model gives all images the same score
    changed: int  # images that have not the same score twice
    largest_change: float  # of the score of one image


def paired_differences(
    a: LabelledScores, b: LabelledScores, specificity: float | None
) -> dict[str, Difference]:
    """Each of DIFFERENCES. `a` and `b` are the same images in the same order.

    Sensitivity is compared at one `specificity` (0..1), or not at all if that is None. A difference that is 0
    in every sample has the interval 0 to 0 only if both models rank the images alike.
    """
    clusters = a.clusters
    measures = [_measures(one, clusters, specificity) for one in (a, b)]
    values = [of_sample(np.ones(int(clusters.max()) + 1, dtype=np.int64)) for of_sample in measures]
    sampled: dict[str, list[tuple[float, float]]] = {name: [] for name in DIFFERENCES}
    for times in resamples(int(clusters.max()) + 1):
        of_a, of_b = (of_sample(times) for of_sample in measures)
        for name in DIFFERENCES:
            sampled[name].append((of_a[name], of_b[name]))
    alike = np.array_equal(midranks(a.scores), midranks(b.scores))

    def compared(name: str) -> Difference:
        if not a.two_classes:
            return Difference(*[Estimate(None, undefined=ONE_CLASS)] * 3)
        if math.isnan(values[0][name]):
            return Difference(*[Estimate(None, undefined="no specificity to compare at")] * 3)
        value_a, value_b = (of_model[name] for of_model in values)
        of_a, of_b = np.array(sampled[name]).T
        return Difference(
            Estimate(value_a, percentile_interval(of_a.tolist())),
            Estimate(value_b, percentile_interval(of_b.tolist())),
            Estimate(value_b - value_a, (0, 0) if alike else percentile_interval((of_b - of_a).tolist())),
        )

    return {name: compared(name) for name in DIFFERENCES}


def agreement(called_a: Booleans, called_b: Booleans, clusters: Integers) -> Agreement:
    """How far the calls agree. All arrays are [images]; images of one patient are one cluster."""
    cells = np.stack([called_a & called_b, called_a & ~called_b, ~called_a & called_b, ~called_a & ~called_b])
    of_clusters = np.stack([np.bincount(clusters, cell) for cell in cells])  # [4, clusters]
    both, only_a, only_b, neither = cells.sum(axis=1).tolist()
    same, value = called_a == called_b, _kappa(both, only_a, only_b, neither)
    if math.isnan(value):
        kappa = Estimate(None, undefined="both call all images the same")
    else:
        samples = (of_clusters @ times for times in resamples(of_clusters.shape[1]))
        kappa = Estimate(value, percentile_interval([_kappa(*sample.tolist()) for sample in samples]))
    share = Estimate(float(same.mean()), proportion_interval(same, clusters))
    return Agreement(both, only_a, only_b, neither, share, kappa)


def shift(a: Floats, b: Floats) -> Shift:
    """How the scores differ. Both are [images], in the same order.

    The Kolmogorov-Smirnov distance is the largest difference, over all x, between the shares of the images
    that the two models score at most x (Smirnov 1948, Ann. Math. Stat. 19:279). It is 0 if the distributions
    are the same and 1 if they do not overlap. The rank correlation is Spearman's (1904, Am. J. Psychol.
    15:72).
    """
    scores = np.concatenate([a, b])
    share_a, share_b = (np.searchsorted(np.sort(one), scores, side="right") / len(one) for one in (a, b))
    ranks_a, ranks_b = midranks(a), midranks(b)
    constant = len(np.unique(ranks_a)) == 1 or len(np.unique(ranks_b)) == 1
    return Shift(
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        quantiles={
            f"{share:g}": (float(np.quantile(a, share)), float(np.quantile(b, share))) for share in QUANTILES
        },
        ks_distance=float(np.abs(share_a - share_b).max()),
        rank_correlation=None if constant else float(np.corrcoef(ranks_a, ranks_b)[0, 1]),
        changed=int((a != b).sum()),
        largest_change=float(np.abs(a - b).max()),
    )


def midranks(values: Floats) -> Floats:
    """[images], from 1: the rank of each value. Equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = np.cumsum(count) - (count - 1) / 2
    return ranks[place]


def _measures(
    data: LabelledScores, clusters: Integers, specificity: float | None
) -> Callable[[Integers], dict[str, float]]:
    """A function from a resample of `resamples` to DIFFERENCES of one model, NaN if not defined."""
    order = np.argsort(-data.scores, kind="stable")
    ranked, clusters = data[order], clusters[order]
    rank_measures = ranking(ranked, clusters)
    if specificity is None:
        return lambda times: rank_measures(times) | {SENSITIVITY: math.nan}
    sensitivity = _sensitivity_at(specificity, ranked, clusters)
    return lambda times: rank_measures(times) | {SENSITIVITY: sensitivity(times)}


def _sensitivity_at(
    specificity: float, data: LabelledScores, clusters: Integers
) -> Callable[[Integers], float]:
    """A function from a resample of `resamples` to the sensitivity at this specificity, NaN for one class.

    It is the highest sensitivity on the ROC curve. Between two thresholds the curve is a line, so that two
    models are compared at exactly the same specificity (Fawcett 2006, Pattern Recognit. Lett. 27:861). The
    data are in order of score, highest first.
    """
    of_positives, of_negatives = clusters[data.positive], clusters[~data.positive]
    falling, falling_negatives = -data.scores[data.positive], -data.scores[~data.positive]
    # [negatives] each: how many images score higher than the negative image, or at least as high.
    positives_before = np.searchsorted(falling, falling_negatives, side="left")
    positives_to = np.searchsorted(falling, falling_negatives, side="right")
    negatives_before = np.searchsorted(falling_negatives, falling_negatives, side="left")
    negatives_to = np.searchsorted(falling_negatives, falling_negatives, side="right")

    def sensitivity(times: Integers) -> float:
        tp = np.cumulative_sum(times[of_positives], include_initial=True)
        fp = np.cumulative_sum(times[of_negatives], include_initial=True)
        if not tp[-1] or not fp[-1]:
            return math.nan
        allowed = round((1 - specificity) * int(fp[-1]), 6)  # false positives, without the error of 1 - 0.9
        beyond = int(np.searchsorted(fp, allowed, side="right")) - 1  # the negative that is one too many
        if beyond == len(of_negatives):
            return 1.0
        before, to = fp[negatives_before[beyond]], fp[negatives_to[beyond]]
        found, found_to = tp[positives_before[beyond]], tp[positives_to[beyond]]
        return float(found + (found_to - found) * (allowed - before) / (to - before)) / int(tp[-1])

    return sensitivity


def _kappa(both: float, only_a: float, only_b: float, neither: float) -> float:
    """Cohen's kappa of these numbers of images; NaN if chance alone makes all calls the same."""
    images = both + only_a + only_b + neither
    observed = (both + neither) / images
    positive_a, positive_b = (both + only_a) / images, (both + only_b) / images
    by_chance = positive_a * positive_b + (1 - positive_a) * (1 - positive_b)
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
