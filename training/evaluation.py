"""Measures the scores of a model, for the field `metrics` of model.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cxr.evaluation import measures as cxr_measures
from cxr.evaluation.labels import AGE_BANDS
from cxr.evaluation.measures import Estimate, Interval, LabelledScores
from training import measures
from training.data import Bytes, Floats, Images, Ints

FEWEST = 10  # of each class; a smaller group is counted and not measured
IN_COLLECTION = ("auc", "average_precision", "sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True, eq=False)
class Scored:
    """Images with a score each, [images], and the threshold of the label."""

    images: Images
    scores: Floats
    threshold: float

    def __getitem__(self, which: Ints) -> "Scored":
        return Scored(self.images[which], self.scores[which], self.threshold)

    @property
    def read(self) -> "Scored":
        """The images that radiologists read."""
        return self[np.flatnonzero(self.images.radiologist != "")]


def measure(scored: Scored, *, radiologists: bool = False) -> dict[str, Any]:
    """Numbers of images, patients and abnormal ones, and IN_COLLECTION, by the labels or by radiologists."""
    scored = scored.read if radiologists else scored
    labels = _labels(scored, radiologists)
    counts = {
        "images": len(labels),
        "patients": len(np.unique(scored.images.patient)),
        "abnormal": int(labels.sum()),
    }
    if min(labels.sum(), (1 - labels).sum()) < FEWEST:
        return {**counts, **dict.fromkeys(IN_COLLECTION)}
    found = cxr_measures.measure(_labelled(scored, labels), scored.threshold, probability=False).measures
    return {**counts, **{name: _rounded(found[name]) for name in IN_COLLECTION}}


def measure_groups(scored: Scored) -> dict[str, dict[str, Any]]:
    """For each way to group the images, each group by the labels (`labels`) and by radiologists (`read`)."""
    images = scored.images
    columns = {
        "view": images.view,
        "age": np.array([_age_band(age) for age in images.age.tolist()]),
        "sex": images.sex,
        "detector, mm a pixel": images.detector,
        "folder": np.array([name.rpartition("/")[0] for name in images.name.tolist()]),
    }
    return {
        column: {
            value: {
                "labels": measure(scored[members]),
                "read": measure(scored[members], radiologists=True),
            }
            for value in np.unique(values).tolist()
            if value and len(members := np.flatnonzero(values == value)) >= FEWEST
        }
        for column, values in columns.items()
        if len(np.unique(values)) > 1
    }


def measure_calibration(scored: Scored) -> dict[str, Any]:
    """Slope and Brier score, and the share of abnormal images among images of about the same score."""
    labelled = _labelled(scored, _labels(scored, radiologists=False))
    if not labelled.two_classes:
        return {}
    found = cxr_measures.measure(labelled, scored.threshold, probability=True).measures
    return {
        "slope": _rounded(found["calibration_slope"]),
        "brier": _rounded(found["brier"]),
        "bins": [
            {
                "images": one.images,
                "mean_score": round(one.mean_score, 3),
                "abnormal": _estimate(one.observed, one.ci95),
            }
            for one in cxr_measures.reliability(labelled, 5)
        ],
    }


def compare(scored: Scored, old: Floats) -> dict[str, Any]:
    """AUC of other scores of the same images, and by how much ours is higher, paired by patient."""
    found = {}
    for name, radiologists in (("labels", False), ("read", True)):
        members = np.flatnonzero(scored.images.radiologist != "") if radiologists else np.arange(len(old))
        labels, ours = _labels(scored[members], radiologists), scored[members]
        if min(labels.sum(), (1 - labels).sum()) >= FEWEST:
            before = measure(Scored(ours.images, old[members], scored.threshold), radiologists=radiologists)
            change = measures.auc_difference(labels, ours.scores, old[members], ours.images.patient)
            found[name] = {
                **{key: before[key] for key in ("images", "patients", "abnormal")},
                "auc_before": before["auc"],
                "difference": _estimate(*change),
            }
    return found


def measure_disagreement(images: Images) -> dict[str, Any]:
    """How often the labels and radiologists disagree on the images that radiologists read."""
    read = images[np.flatnonzero(images.radiologist != "")]
    normal = read.read_abnormal == 0
    if not 0 < normal.sum() < len(read):
        return {}
    return {
        "images": len(read),
        "normal_with_label": round(float(read.abnormal[normal].mean()), 3),
        "abnormal_without_label": round(float(1 - read.abnormal[~normal].mean()), 3),
    }


def show_auc(images: Images, scores: Floats) -> str:
    """AUC by the labels and, if radiologists read images, by them."""
    scored = Scored(images, scores, 0.5)
    values = (
        roc_auc_score(_labels(one, radiologists), one.scores)
        for one, radiologists in ((scored, False), (scored.read, True))
        if len(np.unique(_labels(one, radiologists))) == 2
    )
    return ", ".join(f"{value:.3f}" for value in values)


def training_range(pixels: Bytes) -> dict[str, list[float]]:
    """The least and the greatest brightness and contrast of training images [images, height, width]."""
    values = {"brightness": pixels.mean((1, 2)), "contrast": pixels.std((1, 2))}
    return {name: [round(float(x.min()), 2), round(float(x.max()), 2)] for name, x in values.items()}


def _labels(scored: Scored, radiologists: bool) -> Ints:
    return scored.images.read_abnormal.astype(int) if radiologists else scored.images.abnormal


def _labelled(scored: Scored, labels: Ints) -> LabelledScores:
    patients = np.unique(scored.images.patient, return_inverse=True)[1]
    return LabelledScores(scored.scores, labels == 1, patients)


def _age_band(age: str) -> str:
    if not age.isdigit():
        return ""
    return next((band for band, highest in AGE_BANDS.items() if int(age) <= highest), "")


def _rounded(found: Estimate) -> dict[str, Any] | None:
    return None if found.value is None or found.ci95 is None else _estimate(found.value, found.ci95)


def _estimate(value: float, interval: Interval) -> dict[str, Any]:
    low, high = interval
    return {"value": round(value, 3), "ci95": [round(low, 3), round(high, 3)]}
