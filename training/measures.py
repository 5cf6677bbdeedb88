"""Measures that cxr.evaluation has not: a difference of AUC, a calibration, the choice of a threshold."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression

from cxr.evaluation.measures import Interval
from training.data import Floats, Ints, Texts

RESAMPLES = 1000


def auc_difference(labels: Ints, new: Floats, old: Floats, patients: Texts) -> tuple[float, Interval]:
    """AUC of `new` less AUC of `old` on the same images, and its 95% interval by a bootstrap of patients."""
    unique, patient = np.unique(patients, return_inverse=True)
    random = np.random.default_rng(0)
    new_auc, old_auc = _prepare_auc(labels, new), _prepare_auc(labels, old)
    differences = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(random.integers(len(unique), size=len(unique)), minlength=len(unique))
        times = drawn[patient].astype(float)
        differences.append(new_auc(times) - old_auc(times))
    low, high = np.nanquantile(differences, [0.025, 0.975])
    once = np.ones(len(labels))
    return new_auc(once) - old_auc(once), (float(low), float(high))


def _prepare_auc(labels: Ints, scores: Floats) -> Callable[[Floats], float]:
    """A function from how often each image is drawn to AUC, a tie counting half; NaN for one class."""
    normal = np.flatnonzero(labels == 0)
    normal = normal[scores[normal].argsort()]
    abnormal = scores[labels == 1]
    below, up_to = (np.searchsorted(scores[normal], abnormal, side) for side in ("left", "right"))

    def auc(times: Floats) -> float:
        sums = np.concatenate([[0], times[normal].cumsum()])
        weights = times[labels == 1]
        pairs = sums[-1] * weights.sum()
        return float((weights * (sums[below] + sums[up_to])).sum() / 2 / pairs) if pairs else np.nan

    return auc


def fit_temperature(labels: Ints, logits: Floats) -> tuple[float, float]:
    """Slope (1 / temperature) and offset that turn logits into those of probabilities."""
    regression = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    return float(regression.coef_[0, 0]), float(regression.intercept_[0])


def balanced_threshold(labels: Ints, scores: Floats) -> float:
    """The threshold, to 3 decimals, at which sensitivity and specificity differ least."""
    candidates = np.unique(scores.round(3))
    candidates = candidates[(candidates > 0) & (candidates < 1)]
    abnormal, normal = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    missed = np.searchsorted(abnormal, candidates) / len(abnormal)
    passed = np.searchsorted(normal, candidates) / len(normal)
    return float(candidates[np.abs(1 - missed - passed).argmin()])
