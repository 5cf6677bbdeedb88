"""Measures that cxr.evaluation has not: a difference of AUC, a calibration, the choice of a threshold."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxr.evaluation.measures import Interval
from training.data import Floats, Ints, Texts

RESAMPLES = 1000


def auc_difference(labels: Ints, new: Floats, old: Floats, patients: Texts) -> tuple[float, Interval]:
    """AUC of `new` less AUC of `old` on the same images, and its 95% interval by a bootstrap of patients."""
    unique, patient = np.unique(patients, return_inverse=True)
    random = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(len(unique), size=len(unique)), minlength=len(unique))[patient]
        drawn = times > 0
        if len(np.unique(labels[drawn])) == 2:
            new_auc, old_auc = (
                roc_auc_score(labels[drawn], scores[drawn], sample_weight=times[drawn])
                for scores in (new, old)
            )
            differences.append(new_auc - old_auc)
    low, high = np.quantile(differences, [0.025, 0.975])
    value = roc_auc_score(labels, new) - roc_auc_score(labels, old)
    return float(value), (float(low), float(high))


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
