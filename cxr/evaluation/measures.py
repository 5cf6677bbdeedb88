"""How good scores are against reference labels: measures, each with its 95% interval. No I/O.

Images of one patient are alike, so patients are sampled if they are known, else images. Proportions have
Wilson's interval with the design effect of several images a patient: a bootstrap interval is too short near
0 and 1, and has no length at 0 and 1. The calibration slope has a cluster-robust interval, and every other
measure a percentile bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from cxr.errors import NotMeasurable
from cxr.words import counted

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Interval = tuple[float, float]

MEASURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "tp": "TP",
    "fp": "FP",
    "tn": "TN",
    "fn": "FN",
    "brier": "Brier score",
    "calibration_slope": "calibration slope",
}
COUNTS = ("tp", "fp", "tn", "fn")
ONE_CLASS = "only one class"
NONE = "\N{EN DASH}"  # instead of a value
RESAMPLES = 1000
DEFINED_SHARE = 0.9  # a measure has an interval if it is defined in this share of the resamples
Z_95 = 1.959964  # standard normal quantile


@dataclass(frozen=True, eq=False)
class LabelledScores:
    """Scores of images with their reference labels; each array is [images]."""

    scores: Floats  # 0..1
    positive: Booleans  # by the reference labels
    patients: Integers | None = None  # one number for all images of a patient; None if not known

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Booleans | Integers) -> LabelledScores:
        patients = None if self.patients is None else self.patients[which]
        return LabelledScores(self.scores[which], self.positive[which], patients)

    @property
    def patient_count(self) -> int | None:
        """Distinct patients; None if not known."""
        return None if self.patients is None else len(np.unique(self.patients))

    @property
    def prevalence(self) -> float:
        """Share of positive images."""
        return float(self.positive.mean())

    @property
    def two_classes(self) -> bool:
        """Whether there are positive and negative images."""
        return 0 < int(self.positive.sum()) < len(self)

    @property
    def clusters(self) -> Integers:
        """[images], numbers from 0: the patient of each image, or the image if patients are not known."""
        if self.patients is None:
            return np.arange(len(self))
        return np.unique(self.patients, return_inverse=True)[1]


@dataclass(frozen=True)
class Estimate:
    """A measure on these images. Without a value, `undefined` says why. The interval can be missing too."""

    value: float | None
    ci95: Interval | None = None
    undefined: str = ""

    def texts(self, decimals: int, between: str = " to ") -> tuple[str, str]:
        """The value and its interval in words, or why there is none."""
        if self.value is None:
            return NONE, f"not defined: {self.undefined}"
        interval = between.join(f"{limit:,.{decimals}f}" for limit in self.ci95 or ())
        return f"{self.value:,.{decimals}f}", interval or "no interval"


@dataclass(frozen=True)
class Performance:
    """All measures at one threshold, and the number of images that they are on."""

    images: int
    patients: int | None  # None if not known
    positives: int
    prevalence: float
    threshold: float
    measures: dict[str, Estimate]  # keys as in MEASURES

    @property
    def sample(self) -> str:
        """The images and their patients in words."""
        patients = "" if self.patients is None else f" of {counted(self.patients, 'patient')}"
        return counted(self.images, "image") + patients

    @property
    def texts(self) -> list[tuple[str, str, str]]:
        """Every measure in words: its name, value and interval."""
        return [
            (MEASURES[name], *estimate.texts(0 if name in COUNTS else 3))
            for name, estimate in self.measures.items()
        ]


@dataclass(frozen=True)
class AtPrevalence:
    """Predictive values and counts if another share of images is positive."""

    prevalence: float
    ppv: Estimate
    npv: Estimate
    per_1000: dict[str, Estimate]  # tp, fp, tn, fn expected among 1,000 images


@dataclass(frozen=True)
class ScoreBin:
    """Images of about the same score: how many, and what share of them is positive."""

    images: int
    mean_score: float
    observed: float
    ci95: Interval


def measure(data: LabelledScores, threshold: float, *, probability: bool) -> Performance:
    """Every measure of at least one image. A score at or above the threshold is called positive.

    Brier score and calibration slope are included only if the scores are probabilities.
    """
    data = data[np.argsort(-data.scores, kind="stable")]  # for `ranking`; and scikit-learn sorts faster
    called = data.scores >= threshold
    correct = called == data.positive
    all_images = np.ones(len(data), dtype=bool)
    proportions = {
        "accuracy": (all_images, ""),
        "sensitivity": (data.positive, "no positive image"),
        "specificity": (~data.positive, "no negative image"),
        "ppv": (called, "no image called positive"),
        "npv": (~called, "no image called negative"),
    }
    measures = _bootstrapped(data, called) | {
        name: _proportion(correct[among], data.clusters[among], undefined)
        for name, (among, undefined) in proportions.items()
    }
    if probability:
        measures["calibration_slope"] = _calibration_slope(data)
    else:
        del measures["brier"]
    return Performance(
        images=len(data),
        patients=data.patient_count,
        positives=int(data.positive.sum()),
        prevalence=data.prevalence,
        threshold=threshold,
        measures={name: measures[name] for name in MEASURES if name in measures},
    )


def threshold_at_sensitivity(data: LabelledScores, sensitivity: float) -> float:
    """The highest threshold that reaches a sensitivity (over 0, at most 1).

    Raises NotMeasurable if no image is positive.
    """
    if not data.positive.any():
        raise NotMeasurable("no image is positive; expected at least one")
    ranked = np.sort(data.scores[data.positive])[::-1]
    reached = np.arange(1, len(ranked) + 1) / len(ranked)
    return float(ranked[np.argmax(reached >= sensitivity)])


def at_prevalence(performance: Performance, prevalence: float) -> AtPrevalence:
    """Predictive values and counts by Bayes' rule if a share `prevalence` (between 0 and 1) is positive.

    It assumes that sensitivity and specificity stay the same. The interval of PPV and NPV reaches from both
    at their lower limits to both at their upper limits, which is somewhat wider than 95%.
    """
    sensitivity, specificity = (performance.measures[name] for name in ("sensitivity", "specificity"))
    positives, negatives = 1000 * prevalence, 1000 * (1 - prevalence)

    def ppv(sensitivity: float, specificity: float) -> float:
        tp, fp = positives * sensitivity, negatives * (1 - specificity)
        return _ratio(tp, tp + fp)

    def npv(sensitivity: float, specificity: float) -> float:
        tn, fn = negatives * specificity, positives * (1 - sensitivity)
        return _ratio(tn, tn + fn)

    return AtPrevalence(
        prevalence=prevalence,
        ppv=_derived(ppv, sensitivity, specificity),
        npv=_derived(npv, sensitivity, specificity),
        per_1000={
            "tp": _derived(lambda rate: positives * rate, sensitivity),
            "fp": _derived(lambda rate: negatives * (1 - rate), specificity),
            "tn": _derived(lambda rate: negatives * rate, specificity),
            "fn": _derived(lambda rate: positives * (1 - rate), sensitivity),
        },
    )


def reliability(data: LabelledScores, bins: int = 10) -> list[ScoreBin]:
    """Bins of about equally many images by score. Images of the same score are in one bin."""
    edges = np.unique(np.quantile(data.scores, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, data.scores, side="right")
    members = (np.flatnonzero(bin_of == number) for number in np.unique(bin_of))
    return [
        ScoreBin(
            images=len(images),
            mean_score=float(data.scores[images].mean()),
            observed=float(data.positive[images].mean()),
            ci95=proportion_interval(data.positive[images], data.clusters[images]),
        )
        for images in members
    ]


def proportion_interval(success: Booleans, clusters: Integers) -> Interval:
    """95% interval of the share of images that are a success. Both arrays are [images].

    Wilson (1927), JASA 22:209, with the number of images divided by the design effect of Rao and Scott
    (1992), Biometrics 48:577. If each cluster is one image, it is the plain Wilson interval. Without
    variation the design effect cannot be estimated, and the number of clusters is used.
    """
    images, share = len(success), float(success.mean())
    cluster = np.unique(clusters, return_inverse=True)[1]
    residuals = np.bincount(cluster, weights=success - share)
    if len(residuals) == 1 or share in (0, 1):
        n: float = len(residuals)
    else:
        variance = len(residuals) / (len(residuals) - 1) * float(residuals @ residuals) / images**2
        of_independent_images = share * (1 - share) / (images - 1)
        n = images / max(1.0, variance / of_independent_images)
    centre = share + Z_95**2 / (2 * n)
    half_width = Z_95 * math.sqrt(share * (1 - share) / n + (Z_95 / (2 * n)) ** 2)
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def _proportion(success: Booleans, clusters: Integers, undefined: str) -> Estimate:
    if not len(success):
        return Estimate(None, undefined=undefined)
    return Estimate(float(success.mean()), proportion_interval(success, clusters))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _derived(function: Callable[..., float], *rates: Estimate) -> Estimate:
    """A function of rates that increases with each of them, or decreases with each of them."""
    for rate in rates:
        if rate.value is None:
            return rate
    value = function(*(rate.value for rate in rates))
    if math.isnan(value):
        return Estimate(None, undefined="no image is called that")
    limits = [rate.ci95 for rate in rates if rate.ci95]
    low, high = sorted(function(*limit) for limit in zip(*limits, strict=True))
    return Estimate(value, (low, high))


def _bootstrapped(data: LabelledScores, called: Booleans) -> dict[str, Estimate]:
    """The measures that are not proportions. The data are in order of score, highest first."""
    cells = {
        "tp": called & data.positive,
        "fp": called & ~data.positive,
        "tn": ~called & ~data.positive,
        "fn": ~called & data.positive,
    }
    one_class = "" if data.two_classes else ONE_CLASS
    values = {
        "auc": math.nan if one_class else roc_auc_score(data.positive, data.scores),
        "average_precision": math.nan if one_class else average_precision_score(data.positive, data.scores),
        "f1": f1_score(data.positive, called, zero_division=math.nan),
        "brier": brier_score_loss(data.positive, data.scores),
        **{name: int(cell.sum()) for name, cell in cells.items()},
    }
    undefined = {"f1": "no image is positive or called positive"}
    clusters = data.clusters
    summed = (*cells.values(), (data.scores - data.positive) ** 2)
    of_clusters = np.stack([np.bincount(clusters, of_images) for of_images in summed])  # [5, clusters]
    rank_measures = ranking(data, clusters)
    resampled: dict[str, list[float]] = {name: [] for name in values}
    for times in resamples(of_clusters.shape[1]):
        tp, fp, tn, fn, squared_errors = (of_clusters @ times).tolist()
        sample = {
            **rank_measures(times),
            **{"tp": tp, "fp": fp, "tn": tn, "fn": fn},
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "brier": squared_errors / (tp + fp + tn + fn),
        }
        for name, value in sample.items():
            resampled[name].append(value)
    return {
        name: Estimate(None, undefined=undefined.get(name, one_class))
        if math.isnan(value)
        else Estimate(value, percentile_interval(resampled[name]))
        for name, value in values.items()
    }


def ranking(data: LabelledScores, clusters: Integers) -> Callable[[Integers], dict[str, float]]:
    """A function from a resample of `resamples` to its AUC and average precision, NaN if it has one class.

    The data are in order of score, highest first, so no resample has to be sorted. Both measures are sums
    over the positive images. AUC sums the negative images that each outranks, a tie counting half (Mann and
    Whitney 1947, Ann. Math. Stat. 18:50). Average precision sums the precision at each one's score.
    roc_auc_score and average_precision_score give the same if sample_weight is how often an image is drawn.
    """
    of_positives, of_negatives = clusters[data.positive], clusters[~data.positive]
    falling, falling_negatives = -data.scores[data.positive], -data.scores[~data.positive]
    # [positives] each: how many images score at least as high as the positive image, or higher.
    positives_to = np.searchsorted(falling, falling, side="right")
    negatives_to = np.searchsorted(falling_negatives, falling, side="right")
    negatives_before = np.searchsorted(falling_negatives, falling, side="left")

    def rank_measures(times: Integers) -> dict[str, float]:
        weights = times[of_positives]
        tp = np.cumulative_sum(weights, include_initial=True)  # among the first 0, 1, ... positives
        fp = np.cumulative_sum(times[of_negatives], include_initial=True)
        positives, negatives = int(tp[-1]), int(fp[-1])
        if not positives or not negatives:
            return {"auc": math.nan, "average_precision": math.nan}
        tp_to, fp_to = tp[positives_to], fp[negatives_to]
        outranked_twice = 2 * negatives - fp_to - fp[negatives_before]
        precision = tp_to / np.maximum(tp_to + fp_to, 1)  # if none is drawn, the weight is 0
        # Not @: BLAS computes it in threads, which are slow on a machine with other work.
        return {
            "auc": int((weights * outranked_twice).sum()) / (2 * positives * negatives),
            "average_precision": float((weights * precision).sum()) / positives,
        }

    return rank_measures


def resamples(clusters: int) -> Iterator[Integers]:
    """How often each cluster is drawn in a sample of equal size with replacement: [clusters] each."""
    random = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.bincount(random.integers(clusters, size=clusters), minlength=clusters)


def percentile_interval(values: list[float]) -> Interval | None:
    """None if too few resamples define the measure, or if all have the same value, which is no interval."""
    defined = np.array(values)[~np.isnan(values)]
    if len(defined) < DEFINED_SHARE * len(values):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return (float(low), float(high)) if low < high else None


def _calibration_slope(data: LabelledScores) -> Estimate:
    """Slope of a logistic regression of the labels on the scores' logits (Cox 1958, Biometrika 45:562).

    1 means well calibrated, less than 1 too extreme. The interval uses the cluster-robust variance (Liang and
    Zeger 1986, Biometrika 73:13).
    """
    scores = data.scores.clip(5e-7, 1 - 5e-7)  # a score of six decimals is 0 or 1 only by rounding
    logits = np.log(scores / (1 - scores))
    if not data.two_classes:
        return Estimate(None, undefined=ONE_CLASS)
    of_positives, of_negatives = logits[data.positive], logits[~data.positive]
    if of_positives.min() >= of_negatives.max() or of_positives.max() <= of_negatives.min():
        return Estimate(None, undefined="a score separates the classes")
    regression = LogisticRegression(C=np.inf, solver="newton-cholesky")
    regression.fit(logits[:, np.newaxis], data.positive)
    slope = float(regression.coef_[0, 0])

    predicted = regression.predict_proba(logits[:, np.newaxis])[:, 1]
    terms = np.stack([np.ones(len(data)), logits])  # [intercept and slope, images]
    information = terms * (predicted * (1 - predicted)) @ terms.T
    clusters = data.clusters
    gradients = np.stack([np.bincount(clusters, term * (data.positive - predicted)) for term in terms])
    count = gradients.shape[1]
    if count == 1:
        return Estimate(slope)
    bread = np.linalg.inv(information)
    variance = count / (count - 1) * bread @ gradients @ gradients.T @ bread
    half_width = Z_95 * math.sqrt(variance[1, 1])
    return Estimate(slope, (slope - half_width, slope + half_width))
