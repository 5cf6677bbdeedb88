"""`cxr evaluate`: its figures against figures by hand and by scikit-learn, its files, and bad input."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from classifier.model import Model
from PIL import Image
from runs.predictions import Prediction
from runs.run import Run, State
from runs.table import RunTable
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from support import TABLE, begin_run, client, uid
from typer.testing import CliRunner

from cxr.bundles import SHIPPED
from cxr.commands.app import app
from cxr.commands.terminal import console
from cxr.errors import InputError
from cxr.evaluation import measures, plots
from cxr.evaluation.cohort import Cohort, TrainingSet, fingerprint, patient_fingerprint
from cxr.evaluation.labels import Labels, Reference, plain_number, read_labels
from cxr.evaluation.measures import (
    LabelledScores,
    at_prevalence,
    measure,
    proportion_interval,
    reliability,
    threshold_at_sensitivity,
)
from cxr.evaluation.plots import folder_names
from cxr.evaluation.results import Results, read_results
from cxr.result_rows import row, write_csv

# Twelve images, six positive (P), with ties of a positive and a negative at 0.8, 0.6 and 0.5:
#   0.9 P   0.8 P   0.8 N   0.7 P   0.6 N   0.6 P   0.5 P   0.5 N   0.4 N   0.3 P   0.2 N   0.1 N
# AUC: of the 36 pairs, the positives win, a tie for half,
#   0.9: 6   0.8: 5 + 1/2   0.7: 5   0.6: 4 + 1/2   0.5: 3 + 1/2   0.3: 2   in all 26.5, so 53/72.
# Average precision: each positive adds 1/6 of recall, at the precision of all images from its score on,
#   0.9: 1/1   0.8: 2/3   0.7: 3/4   0.6: 4/6   0.5: 5/8   0.3: 6/10   in all 517/120, so 517/720.
# From 0.5 on: TP 0.9 0.8 0.7 0.6 0.5, FP 0.8 0.6 0.5, TN 0.4 0.2 0.1, FN 0.3.
# Brier: positives 0.01 + 0.04 + 0.09 + 0.16 + 0.25 + 0.49, negatives 0.64 + 0.36 + 0.25 + 0.16 + 0.04 + 0.01.
TWELVE = LabelledScores(
    scores=np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]),
    positive=np.array([1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0], dtype=bool),
)
BY_HAND = {
    "auc": 53 / 72,
    "average_precision": 517 / 720,
    "accuracy": 8 / 12,
    "sensitivity": 5 / 6,
    "specificity": 3 / 6,
    "ppv": 5 / 8,
    "npv": 3 / 4,
    "f1": 10 / 14,
    "tp": 5,
    "fp": 3,
    "tn": 3,
    "fn": 1,
    "brier": 2.5 / 12,
}


def test_twelve_images_by_hand() -> None:
    found = measure(TWELVE, 0.5, probability=True)
    assert (found.images, found.patients, found.positives, found.prevalence) == (12, None, 6, 0.5)
    values = {name: estimate.value for name, estimate in found.measures.items()}
    assert {name: values[name] for name in BY_HAND} == pytest.approx(BY_HAND, abs=1e-12)
    assert list(found.measures) == list(measures.MEASURES)


def test_the_highest_threshold_that_reaches_a_sensitivity() -> None:
    assert threshold_at_sensitivity(TWELVE, 5 / 6) == 0.5
    assert threshold_at_sensitivity(TWELVE, 0.84) == 0.3  # needs all six
    assert threshold_at_sensitivity(TWELVE, 0.01) == 0.9


def test_another_prevalence_by_hand() -> None:
    # Sensitivity 5/6 and specificity 1/2 among 100 positive and 900 negative images of 1,000:
    # TP 83.3, FN 16.7, FP 450, TN 450, so PPV is 83.3 / 533.3 = 5/32 and NPV 450 / 466.7 = 27/28.
    here = measure(TWELVE, 0.5, probability=True)
    there = at_prevalence(here, 0.1)
    assert there.ppv.value == pytest.approx(5 / 32)
    assert there.npv.value == pytest.approx(27 / 28)
    assert {name: estimate.value for name, estimate in there.per_1000.items()} == pytest.approx(
        {"tp": 250 / 3, "fp": 450, "tn": 450, "fn": 50 / 3}
    )
    for estimate in (there.ppv, there.npv, *there.per_1000.values()):
        assert estimate.value is not None
        assert estimate.ci95
        assert estimate.ci95[0] < estimate.value < estimate.ci95[1]
    same = at_prevalence(here, here.prevalence)
    assert same.ppv.value == pytest.approx(here.measures["ppv"].value)
    assert same.npv.value == pytest.approx(here.measures["npv"].value)


@pytest.mark.parametrize(
    ("positive", "undefined", "accuracy"), [(True, "specificity", 8 / 12), (False, "sensitivity", 4 / 12)]
)
def test_one_class(positive: bool, undefined: str, accuracy: float) -> None:
    found = measure(LabelledScores(TWELVE.scores, np.full(12, positive)), 0.45, probability=True).measures
    without_value = {name for name, estimate in found.items() if estimate.value is None}
    assert without_value == {"auc", "average_precision", "calibration_slope", undefined}
    assert found["auc"].undefined == "only one class"
    assert found["accuracy"].value == accuracy


def test_calibration_slope_by_hand() -> None:
    # Two scores, 0.25 and 0.75, are 2 log 3 apart in logits. Of four images each, 1 and 3 are positive: so
    # are the observed logits, and the slope is 1. With 2 and 3 they are log 3 apart, and it is 1/2. The
    # variance of a log odds ratio is the sum of the inverse counts (Woolf), here times 8/7 for 8 clusters.
    scores = np.repeat([0.25, 0.75], 4)
    calibrated = LabelledScores(scores, np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool))
    found = measure(calibrated, 0.5, probability=True).measures["calibration_slope"]
    assert found.value == pytest.approx(1, abs=1e-4)
    half_width = 1.96 * ((1 + 1 / 3 + 1 / 3 + 1) * 8 / 7) ** 0.5 / (2 * np.log(3))
    assert found.ci95 == pytest.approx((1 - half_width, 1 + half_width), abs=1e-3)
    too_extreme = LabelledScores(scores, np.array([1, 1, 0, 0, 1, 1, 1, 0], dtype=bool))
    found = measure(too_extreme, 0.5, probability=True).measures["calibration_slope"]
    assert found.value == pytest.approx(0.5, abs=1e-4)
    parted = measure(LabelledScores(scores, scores > 0.5), 0.5, probability=True).measures
    assert parted["calibration_slope"].undefined == "a score separates the classes"
    assert parted["auc"].value == 1
    assert parted["auc"].ci95 is None  # each resample says 1 too, which is no interval


def test_scores_that_are_not_probabilities_have_no_calibration() -> None:
    assert not {"brier", "calibration_slope"} & set(measure(TWELVE, 0.5, probability=False).measures)


def ranked_by(statistic: Callable[..., float]) -> Callable[..., float]:
    return lambda positive, scores: statistic(positive, scores) if len(set(positive)) == 2 else np.nan


BY_SCIKIT_LEARN: dict[str, Callable[..., float]] = {
    "auc": ranked_by(roc_auc_score),
    "average_precision": ranked_by(average_precision_score),
    "f1": lambda positive, scores: f1_score(positive, scores >= 0.5),
    "tp": lambda positive, scores: np.sum(positive & (scores >= 0.5)),
    "fp": lambda positive, scores: np.sum(~positive & (scores >= 0.5)),
    "tn": lambda positive, scores: np.sum(~positive & (scores < 0.5)),
    "fn": lambda positive, scores: np.sum(positive & (scores < 0.5)),
    "brier": brier_score_loss,
}


@pytest.mark.parametrize("ill", [20, 3])  # of 40 patients; with 3, some resamples have one class
def test_intervals_are_those_of_a_plain_bootstrap(monkeypatch: pytest.MonkeyPatch, ill: int) -> None:
    """Patients have one to five images, with many ties. Each resample is put together image by image."""
    monkeypatch.setattr(measures, "RESAMPLES", 100)
    random = np.random.default_rng(0)
    patients = random.permutation(np.repeat(np.arange(40), random.integers(1, 6, 40)))
    positive = (patients < ill) & (random.random(len(patients)) < 0.8)
    scores = np.round((positive + 2 * random.random(len(patients))) / 3, 1)
    draws = np.random.default_rng(0)
    resamples = [
        np.concatenate([np.flatnonzero(patients == patient) for patient in draws.integers(40, size=40)])
        for _ in range(100)
    ]
    assert any(not positive[images].any() for images in resamples) == (ill == 3)
    found = measure(LabelledScores(scores, positive, patients), 0.5, probability=True).measures
    for name, statistic in BY_SCIKIT_LEARN.items():
        measured = [statistic(positive[images], scores[images]) for images in resamples]
        assert found[name].ci95 == pytest.approx(tuple(np.nanquantile(measured, [0.025, 0.975]))), name


def test_resamples_are_measured_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    scores = np.sort(random.integers(0, 20, 200) / 20)[::-1]  # many ties
    positive, times = random.random(200) < scores, random.integers(0, 4, 200)
    times[:20] = 0  # the highest scores are not drawn
    found = measures.ranking(LabelledScores(scores, positive), np.arange(200))(times)
    assert found["auc"] == pytest.approx(roc_auc_score(positive, scores, sample_weight=times))
    expected = average_precision_score(positive, scores, sample_weight=times)
    assert found["average_precision"] == pytest.approx(expected)


def test_a_perfect_ranking_has_no_interval() -> None:
    """Each resample ranks perfectly too, and rounding must not make an interval of that."""
    positive = simulated(50, 1).positive
    scores = (positive + np.random.default_rng(0).random(150)) / 2
    found = measure(LabelledScores(scores, positive), 0.5, probability=True).measures
    for name in ("auc", "average_precision"):
        assert (found[name].value, found[name].ci95) == (1, None)


def test_interval_of_a_proportion_is_wilsons_and_wider_for_patients_with_several_images() -> None:
    success = np.arange(20) < 14
    # 14 of 20: (0.7 + 0.096036 -+ 1.959964 sqrt(0.0105 + 0.002401)) / 1.192073
    assert proportion_interval(success, np.arange(20)) == pytest.approx((0.481027, 0.854523), abs=1e-5)
    # Ten patients whose two images agree are about ten independent images: 7 of 10.
    in_pairs = np.arange(20) // 2
    assert proportion_interval(success, in_pairs) == pytest.approx((0.396778, 0.892209), abs=0.02)
    # 10 of 10: 1 / (1 + 1.959964 ** 2 / 10)
    assert proportion_interval(np.ones(20, dtype=bool), in_pairs) == pytest.approx((0.722467, 1), abs=1e-5)


@pytest.mark.slow
def test_intervals_hold_the_true_value_in_about_95_of_100_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty patients with three similar images each. The true value is that of 60,000 such patients."""
    monkeypatch.setattr(measures, "RESAMPLES", 1)
    truth = measure(simulated(60_000, 0), 0.5, probability=True).measures
    monkeypatch.setattr(measures, "RESAMPLES", 200)
    names = ("auc", "average_precision", "sensitivity", "accuracy", "ppv", "calibration_slope", "brier")
    hits = dict.fromkeys(names, 0)
    for seed in range(1, 61):
        found = measure(simulated(50, seed), 0.5, probability=True).measures
        for name in names:
            value, interval = truth[name].value, found[name].ci95
            assert value is not None
            assert interval
            hits[name] += interval[0] <= value <= interval[1]
    assert all(50 <= hit <= 60 for hit in hits.values()), hits  # 57 are expected


def simulated(patients: int, seed: int) -> LabelledScores:
    """Calibrated scores: the logits of the classes are one apart, and images of a patient are similar."""
    random = np.random.default_rng(seed)
    positive = np.repeat(random.random(patients) < 0.5, 3)
    noise = np.repeat(random.normal(size=patients), 3) + random.normal(size=3 * patients)
    logits = np.where(positive, 0.5, -0.5) + noise / 2**0.5
    return LabelledScores(1 / (1 + np.exp(-logits)), positive, np.repeat(np.arange(patients), 3))


def test_reliability_keeps_ties_together_and_counts_every_image() -> None:
    bins = reliability(TWELVE, bins=4)
    assert sum(group.images for group in bins) == 12
    assert [(group.images, group.observed) for group in bins] == [
        (3, 1 / 3),
        (3, 1 / 3),
        (3, 2 / 3),
        (3, 2 / 3),
    ]
    everything_tied = LabelledScores(np.full(5, 0.5), np.arange(5) < 2)
    assert [(group.images, group.observed) for group in reliability(everything_tied)] == [(5, 0.4)]


RESULTS = "key,status,score,label,error\n" + "".join(
    f"cxr/{number:02}.png,SCORED,{score:.6f},{'abnormal' if score >= 0.5 else 'normal'},\n"
    for number, score in enumerate(TWELVE.scores)
)
LABELS = "file,abnormal,patient_id,view,age\n" + "".join(
    f"some/{number:02}.png,{int(positive)},{number // 2},{'AP' if number % 4 else 'PA'},{15 + 7 * number}\n"
    for number, positive in enumerate(TWELVE.positive)
)
Evaluate = Callable[..., Any]  # returns the result of Typer's CliRunner


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The bundle that ships, but with a threshold of 0.5 and without trained_on.json."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("model.onnx", "model.json"):
        shutil.copy(SHIPPED / name, folder)
    card = json.loads((folder / "model.json").read_text())
    card |= {"score": "probability", "labels": [{"name": "abnormal", "threshold": 0.5}]}
    (folder / "model.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def run(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs `cxr evaluate results.csv --labels labels.csv` in a folder with these two files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measures, "RESAMPLES", 50)
    monkeypatch.setattr("cxr.bundles.SHIPPED", bundle)

    def evaluated(*options: str, results: str | bytes = RESULTS, labels: str | bytes = LABELS) -> Any:
        for name, content in {"results.csv": results, "labels.csv": labels}.items():
            Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return CliRunner().invoke(app, ["evaluate", "results.csv", "--labels", "labels.csv", *options])

    return evaluated


@pytest.fixture
def empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and their files stay empty: to draw one takes 0.1 s."""
    monkeypatch.setattr("cxr.evaluation.plots.save", lambda _figure, path, _format: path.touch())


def in_json(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def values(evaluated: dict[str, Any]) -> dict[str, Any]:
    return {name: estimate["value"] for name, estimate in evaluated["measures"].items()}


def test_json(run: Evaluate) -> None:
    found = in_json(run("--json", "--prevalence", "0.1"))
    assert values(found["overall"]) | BY_HAND == pytest.approx(values(found["overall"]))
    assert found["overall"]["patients"] == 6
    assert found["threshold"]["value"] == 0.5
    assert found["threshold"]["source"] == f"the threshold of {found['model']}; the results agree with it"
    assert found["at_prevalence"]["ppv"]["value"] == pytest.approx(5 / 32)
    assert "by patients" in found["intervals"]
    without_patients = in_json(run("--json", labels=LABELS.replace("patient_id", "who")))
    assert without_patients["overall"]["patients"] is None
    assert "by images" in without_patients["intervals"]


def test_groups(run: Evaluate) -> None:
    result = run("--group", "view", "--group", "age", "--json")
    groups = in_json(result)["groups"]
    assert {value: group["images"] for value, group in groups["view"].items()} == {"AP": 9, "PA": 3}
    pa = np.arange(12) % 4 == 0
    called = TWELVE.scores[pa] >= 0.5
    expected = {
        "auc": roc_auc_score(TWELVE.positive[pa], TWELVE.scores[pa]),
        "sensitivity": recall_score(TWELVE.positive[pa], called),
        "ppv": precision_score(TWELVE.positive[pa], called),
        "f1": f1_score(TWELVE.positive[pa], called),
    }
    of_pa = values(groups["view"]["PA"])
    assert {name: of_pa[name] for name in expected} == pytest.approx(expected)
    ages = {value: group["images"] for value, group in groups["age"].items()}
    assert ages == {"0-17": 1, "18-39": 3, "40-59": 3, "60-79": 3, "80+": 2}
    on_a_terminal = run("--group", "view").stdout
    assert "not defined" not in on_a_terminal
    assert "12 images of 6 patients: 6 positive, prevalence 0.500" in on_a_terminal


def test_thresholds(run: Evaluate, bundle: Path) -> None:
    assert in_json(run("--threshold", "0.3", "--json"))["overall"]["measures"]["tp"]["value"] == 6
    reached = in_json(run("--at-sensitivity", "0.95", "--json"))
    assert reached["threshold"]["value"] == 0.3
    assert "chosen on these same images" in reached["threshold"]["source"]
    assert values(reached["overall"])["sensitivity"] == 1
    # Decided at 0.65, which is not the threshold of the bundle that ships: another model made these results.
    decided = RESULTS.replace("0.600000,abnormal", "0.600000,normal").replace(
        "0.500000,abnormal", "0.500000,normal"
    )
    of_another = in_json(run("--json", results=decided))
    assert of_another["threshold"] == {
        "value": 0.7,
        "source": "the lowest score that the results call positive",
    }
    assert (of_another["model"], of_another["probability"]) == (None, False)
    assert "It is not known which model made these scores" in " ".join(run(results=decided).stdout.split())
    implied = in_json(run("--json", "--bundle", str(bundle), results=decided))["threshold"]
    assert implied["value"] == 0.7
    assert implied["source"].startswith("the lowest score that the results call positive (")
    assert "has 0.5: it may not have made them" in implied["source"]
    nothing_called = in_json(run("--json", results=RESULTS.replace(",abnormal", ",normal")))
    assert values(nothing_called["overall"])["tp"] == 0
    assert nothing_called["overall"]["measures"]["ppv"]["undefined"] == "no image called positive"
    undecided = "".join(
        line.split(",SC")[0] + "," + line.split(",")[2] + "\n" for line in RESULTS.splitlines()
    )
    undecided = undecided.replace("key,status,score,label,error,score", "key,score")
    assert in_json(run("--json", results=undecided))["threshold"]["value"] == 0.5


def test_what_is_left_out_is_printed(run: Evaluate) -> None:
    results = RESULTS + "cxr/a.png,FAILED,,,IMAGE_EMPTY\ncxr/unknown.png,SCORED,0.400000,normal,\n"
    labels = LABELS + "b.png,1,77,AP,50\nb.png,1,77,AP,50\n"
    found = in_json(run("--json", results=results, labels=labels))
    counts = ("failed", "without_label", "labels_without_image", "repeated_labels")
    assert [found[count] for count in counts] == [1, 1, 1, 1]
    printed = run(results=results, labels=labels).stdout
    assert "1 FAILED images, 1 images without a label, 1 labels without an image, 1 labels given again" in (
        " ".join(printed.split())
    )


def test_images_are_found_by_the_end_of_their_key(run: Evaluate) -> None:
    results = "key,score\nx/a/1.png,0.9\nx/b/1.png,0.1\n"
    found = in_json(run("--json", results=results, labels="key,abnormal\na/1.png,1\nx/b/1.png,0\n"))
    assert values(found["overall"])["auc"] == 1


def read(tmp_path: Path, text: str | bytes, label: str = "abnormal", *columns: str) -> Labels:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(path, label, columns)


def positives(labels: Labels) -> dict[str, bool | None]:
    return {reference.image: reference.positive for reference in labels.references}


@pytest.mark.parametrize(
    ("yes", "no", "unknown"),
    [
        ("1", "0", ""),
        ("1.0", "0.0", "-1.0"),
        ("True", "False", "nan"),
        ("yes", "NO", "-1"),
        ("1,00", "0,0", ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_in_every_usual_form(tmp_path: Path, yes: str, no: str, unknown: str, encoding: str) -> None:
    text = f"Image;Abnormal\r\nx\\a.png;{yes}\r\nb;{no}\r\nc.png;{unknown};\r\n;\r\n\r\n"
    labels = read(tmp_path, text.encode(encoding))
    assert positives(labels) == {"x/a.png": True, "b": False, "c.png": None}


CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Edema,Support Devices\n"
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,F,68,Frontal,AP,1.0,,,1.0\n"
    "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,F,87,Frontal,AP,,1.0,-1.0,1.0\n"
    "CheXpert-v1.0-small/train/patient00003/study1/view1_frontal.jpg,F,83,Frontal,AP,,-1.0,,1.0\n"
    "CheXpert-v1.0-small/valid/patient00004/study1/view1_frontal.jpg,F,41,Frontal,AP,0.0,0.0,1.0,0.0\n"
)
RSNA = "patientId,class\na,Normal\nb,Lung Opacity\nb,Lung Opacity\nc,No Lung Opacity / Not Normal\n"
VINDR = (
    "image_id,rad_id,Cardiomegaly,No finding\n"
    "a,R1,0,1\na,R2,1,0\na,R3,0,1\nb,R1,1,0\nb,R2,1,0\nb,R3,0,1\nc,R1,1,0\nc,R2,0,1\n"
)
VINDR_BOXES = (
    "image_id,class_name,rad_id,x_min\n"
    "a,No finding,R1,\na,Cardiomegaly,R2,1\na,No finding,R3,\n"
    "b,Cardiomegaly,R1,1\nb,Nodule/Mass,R1,2\nb,Nodule/Mass,R2,3\nb,No finding,R3,\n"
)


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        (CHEXPERT, "abnormal", [False, True, None, True]),
        (CHEXPERT, "Cardiomegaly", [None, True, None, False]),
        (RSNA, "abnormal", [False, True, True]),
        (RSNA, "Lung Opacity", [False, True, False]),
        ("patientId,x,Target\na,,0\nb,1.5,1\nb,2.5,1\n", "abnormal", [False, True]),
        ("patientId,x,Target\na,,0\nb,1.5,1\n", "Pneumonia", [False, True]),
        (VINDR, "abnormal", [False, True, None]),
        (VINDR, "Cardiomegaly", [False, True, None]),
        (VINDR_BOXES, "abnormal", [False, True]),
        (VINDR_BOXES, "Cardiomegaly", [False, False]),
        ("image,Finding Labels\na,Mass|Nodule\nb,No Finding\nc,\n", "abnormal", [True, False, None]),
    ],
)
def test_the_files_of_datasets(tmp_path: Path, text: str, label: str, expected: list[bool | None]) -> None:
    assert list(positives(read(tmp_path, text, label)).values()) == expected


def test_chexperts_images_are_found_in_another_folder(run: Evaluate) -> None:
    results = "key,score\n" + "".join(
        f"cxr/{part}/patient0000{number}/study1/view1_frontal.png,0.{number}\n"
        for number, part in enumerate(("train", "train", "train", "valid"), start=1)
    )
    found = in_json(run("--json", "--threshold", "0.15", results=results, labels=CHEXPERT))
    assert values(found["overall"])["auc"] == 1
    assert (found["overall"]["images"], found["unknown_labels"], found["without_label"]) == (3, 1, 0)


def test_ages_in_years_months_weeks_and_days(tmp_path: Path) -> None:
    ages = ("060Y", "013M", "003D", "002W", "17", "18.5", "216M", "411Y", "", "unknown")
    rows = "".join(f"{number}.png,1,{age}\n" for number, age in enumerate(ages))
    labels = read(tmp_path, f"image,abnormal,Patient Age\n{rows}", "abnormal", "Patient Age")
    bands = [reference.groups[0] for reference in labels.references]
    assert bands == ["60-79", *["0-17"] * 4, "18-39", "18-39", *["not given"] * 3]


@pytest.mark.parametrize("patient", ["{}", "{:08}", "{}.0"])
def test_what_the_model_was_trained_on_is_found_by_another_suffix(patient: str) -> None:
    images = [
        (
            Prediction(f"x/{number:08}_000.JPG", {"abnormal": Decimal("0.5")}),
            Reference(f"{number}", True, plain_number(patient.format(number)), (), 1),
        )
        for number in range(1, 5)
    ]
    cohort = Cohort("abnormal", images, (), 0, 0, 0, 0)
    by_name = TrainingSet(frozenset(map(fingerprint, ("00000001_000.png", "00000002_000"))), frozenset())
    assert by_name.overlap(cohort) == (2, 2)
    by_patient = TrainingSet(frozenset(), frozenset(map(patient_fingerprint, ("3", "00000004"))))
    assert by_patient.overlap(cohort) == (0, 2)


def test_a_uid_has_no_suffix(run: Evaluate) -> None:
    results = "key,score,label\n1.2.3.4.dcm,0.9,abnormal\n1.2.3.5.dcm,0.1,normal\n"
    found = in_json(run("--json", results=results, labels="image,abnormal\n1.2.3.4,1\n1.2.3.5,0\n"))
    assert values(found["overall"])["auc"] == 1


def test_a_results_file_of_a_spreadsheet_with_decimal_commas(run: Evaluate) -> None:
    results = "\ufeffkey;score;label\r\nx/1,png;0,9;abnormal\r\nx/2.png;0,100000;normal\r\n"
    found = in_json(run("--json", results=results, labels="image;abnormal\r\n1.png;1\r\n2.png;0\r\n"))
    assert values(found["overall"])["auc"] == 1


def test_nihs_own_labels_and_one_label_of_many(run: Evaluate) -> None:
    labels = (
        "Image Index,Finding Labels,Patient ID\n"
        "1.png,No Finding,1\n2.png,Effusion|Mass,2\n3.png,Mass,3\n4.png,No Finding,3\n"
    )
    results = "key,status,score,label,error\n" + "".join(
        f"{number}.png,SCORED,{score},{label},\n"
        for number, (score, label) in enumerate(
            ((0.2, "normal"), (0.7, "abnormal"), (0.6, "abnormal"), (0.1, "normal")), start=1
        )
    )
    found = in_json(run("--json", results=results, labels=labels))
    assert values(found["overall"])["auc"] == 1
    assert found["overall"]["patients"] == 3
    several = "key,status,score,label,error,score_Mass,score_Effusion\n" + "".join(
        f"{number}.png,SCORED,{score},{label},,{score},{1 - score}\n"
        for number, (score, label) in enumerate(
            ((0.2, "no Mass"), (0.7, "Mass"), (0.6, "Mass"), (0.1, "no Mass")), start=1
        )
    )
    of_primary = in_json(run("--json", results=several, labels=labels))
    assert (of_primary["label"], of_primary["model"], of_primary["threshold"]["value"]) == ("Mass", None, 0.6)
    of_other = in_json(
        run("--json", "--label", "Effusion", "--threshold", "0.3", results=several, labels=labels)
    )
    assert of_other["label"] == "Effusion"
    assert values(of_other["overall"])["auc"] == 0  # only 2.png has it, with the lowest score


# abnormal as above, Mass the other way round, and Effusion, of which LABELS says nothing.
SEVERAL = "key,status,score,label,error,score_abnormal,score_Mass,score_Effusion\n" + "".join(
    f"{line},{line.split(',')[2]},{1 - float(line.split(',')[2]):.6f},0.5\n"
    for line in RESULTS.splitlines()[1:]
)
WITH_MASS = "".join(
    f"{line},{'Mass' if number == 0 else number % 2}\n" for number, line in enumerate(LABELS.splitlines())
)


def test_all_labels_at_once(run: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"results": SEVERAL, "labels": WITH_MASS}
    options = ("--threshold", "0.5", "--group", "view", "--prevalence", "0.1")
    found = in_json(run("--json", *options, **files))
    assert list(found["by_label"]) == ["abnormal", "Mass"]
    for name, one in found["by_label"].items():  # the same as one command for each label
        alone = in_json(run("--json", "--label", name, *options, **files))
        assert alone["by_label"] == {name: one}
        assert {field: alone[field] for field in one} == one
    assert found == in_json(run("--json", "--label", "abnormal", *options, **files)) | {
        "by_label": found["by_label"],
        "not_evaluated": {
            "Effusion": "labels.csv: expected a column Effusion of 0 and 1; its columns are file, abnormal, "
            "patient_id, view, age, Mass"
        },
    }
    assert found["by_label"]["Mass"]["overall"]["measures"]["auc"]["value"] == pytest.approx(
        roc_auc_score(np.arange(12) % 2 == 0, 1 - TWELVE.scores)
    )

    auc = found["by_label"]["Mass"]["overall"]["measures"]["auc"]["value"]
    in_a_pipe = " ".join(run(*options, **files).stdout.split())
    assert f" Mass 12 6 6 0.5 {auc:.2f} " in in_a_pipe
    monkeypatch.setattr(console, "size", (80, 25))  # as on a terminal
    printed = run(*options, **files).stdout
    rows = {cells[0]: cells for line in printed.splitlines() if len(cells := line.split()) > 1}
    assert rows["Mass"][:5] == ["Mass", "12", "6", "0.5", f"{auc:.2f}"]
    assert "Effusion: labels.csv: expected a column Effusion" in " ".join(printed.split())
    assert printed.count("at prevalence 0.1") == 2
    assert max(map(len, printed.splitlines())) <= 80


def test_a_label_without_a_threshold_leaves_the_others(run: Evaluate) -> None:
    files = {"results": SEVERAL, "labels": WITH_MASS}  # a CSV records the decisions of its primary label
    found = in_json(run("--json", **files))
    assert list(found["by_label"]) == ["abnormal"]
    assert "choose a threshold with --threshold" in found["not_evaluated"]["Mass"]


def test_no_label_can_be_evaluated(run: Evaluate) -> None:
    refused = run(results=SEVERAL, labels="file,Nodule\n00.png,1\n")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "Error: labels.csv: expected a column abnormal of 0 and 1; its columns are file, Nodule; nor can "
        "Mass, Effusion be evaluated\n"
    )


def test_the_plots_of_each_further_label_are_in_a_folder_of_its_name(
    run: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_svg(figure: Any, path: Path, file_format: str) -> None:
        save(figure, path, file_format) if file_format == "svg" else path.touch()

    save = plots.save
    monkeypatch.setattr(plots, "save", save_svg)
    assert folder_names(["Mass", "mass", "../x", "...", "Größe"]) == ["Mass", "mass-2", "x", "label", "Gr-e"]
    run("--threshold", "0.5", "--out", "plots", results=SEVERAL, labels=WITH_MASS)
    assert Path("plots/roc.png").exists()
    assert "Mass" in Path("plots/Mass/roc.svg").read_text()
    assert json.loads(Path("plots/evaluation.json").read_text())["by_label"].keys() == {"abnormal", "Mass"}


def test_the_help_and_the_docs_name_every_field_of_the_json(run: Evaluate) -> None:
    found = in_json(run("--json", "--prevalence", "0.1", "--group", "view"))
    assert found.pop("by_label")["abnormal"].keys() < found.keys()  # so its fields are those at the top
    of_group = found["groups"].pop("view")["PA"]
    assert of_group.keys() == found["overall"].keys()

    def names(value: Any) -> Iterator[str]:
        for name, inner in value.items() if isinstance(value, dict) else ():
            yield name
            yield from names(inner)

    help_text = CliRunner().invoke(app, ["evaluate", "--help"]).stdout
    docs = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    fields = docs.partition("## The JSON")[2].partition("\n## ")[0]
    for name in {*names(found), "by_label"}:
        assert re.search(rf"\b{name}\b", help_text), name
        assert re.search(rf"`{name}`", fields), name


def test_what_the_model_was_trained_on_is_printed_first(run: Evaluate, bundle: Path) -> None:
    assert in_json(run("--json"))["training_overlap"] is None
    assert "has no trained_on.json" in " ".join(run().stdout.split())

    hashed = {
        "images": [hashlib.sha256(name.encode()).hexdigest()[:16] for name in ("03.png", "04.png", "99.png")],
        "patients": [fingerprint("1"), fingerprint("2"), fingerprint("5")],
    }
    (bundle / "trained_on.json").write_text(json.dumps(hashed))
    trained = in_json(run("--json"))["training_overlap"]
    assert trained == {"images": 2, "patients": 3, "of_images": 12, "of_patients": 6}
    first = " ".join(run().stdout.split())[:100]
    assert "was trained on 2 of these 12 images, 3 of 6 patients" in first
    padded = re.sub(r"(?<=png,\d,)", "0000", LABELS)  # as NIH's files name their patients
    assert in_json(run("--json", labels=padded))["training_overlap"] == trained

    (bundle / "trained_on.json").write_text('{"images": [], "patients": []}')
    printed = " ".join(run().stdout.split())
    assert "was trained on 0 of these 12 images, 0 of 6 patients." in printed  # the bundle names none at all
    (bundle / "trained_on.json").write_text('{"images": ["00"], "patients": []}')
    assert in_json(run("--json"))["training_overlap"] is None
    assert "It is not known whether" in run().stdout
    (bundle / "trained_on.json").write_text('{"images": []}')
    refused = run("--bundle", str(bundle))
    assert refused.exit_code == 2
    assert "trained_on.json" in refused.stderr


@pytest.mark.usefixtures("aws", "run")
def test_a_run_is_read_from_the_table(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(bundle)
    predictions = [
        Prediction(
            f"cxr/{number:02}.png", {"abnormal": Decimal(str(score))}, ("abnormal",) * bool(score >= 0.5)
        )
        for number, score in enumerate(TWELVE.scores)
    ]
    failed = Prediction("cxr/empty.png", error="IMAGE_EMPTY")
    labels = [{"name": "abnormal", "threshold": Decimal("0.45")}]
    table = RunTable(client("dynamodb"), TABLE)
    for name, fields in (
        ("first", {"model_sha256": model.sha256, "labels": labels}),
        ("old", {"model_sha256": model.sha256}),  # older versions recorded no labels
        ("other", {"model_sha256": "0" * 64, "labels": labels}),
    ):
        begin_run(name, state="COMPLETE", model=model.name, **fields)
        table.write(name, uid(name), [*predictions, failed], {}, {})
    mass = {"name": "Mass", "threshold": Decimal("0.3")}
    begin_run("several", state="COMPLETE", model="other:1", model_sha256="0" * 64, labels=[*labels, mass])
    both = [replace(one, scores={**one.scores, "Mass": 1 - one.scores["abnormal"]}) for one in predictions]
    table.write("several", uid("several"), both, {}, {})
    monkeypatch.setattr("cxr.stack.Stack.find", lambda name: SimpleNamespace(table=TABLE))
    Path("labels.csv").write_text(WITH_MASS)

    def evaluated(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["evaluate", *arguments, "--labels", "labels.csv", "--json"])

    assert in_json(evaluated("several"))["by_label"].keys() == {"abnormal", "Mass"}
    found = in_json(evaluated("first"))
    assert values(found["overall"]) | BY_HAND == pytest.approx(values(found["overall"]))
    assert (found["failed"], found["model"]) == (1, model.name)
    assert found["threshold"] == {"value": 0.45, "source": "recorded by the run"}
    assert in_json(evaluated("old"))["threshold"]["value"] == 0.5
    other = in_json(evaluated("other"))
    assert (other["model"], other["threshold"]["value"]) == (None, 0.45)
    for arguments, message in (
        (("first", "--label", "Mass"), "run first has no label Mass; expected abnormal"),
        (("second",), "second is not a file, and no run was found: there is no run second"),
        (
            ("other", "--bundle", str(bundle)),
            "expected the bundle that made these scores of abnormal, with 000",
        ),
    ):
        refused = evaluated(*arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.parametrize("label", ["abnormal", "mass"])
def test_a_csv_gives_the_predictions_back(tmp_path: Path, label: str) -> None:
    predictions = [
        Prediction("a.png", {"abnormal": Decimal("0.5"), "mass": Decimal("0.123456")}, ("abnormal",)),
        Prediction("b.png", {"abnormal": Decimal("0.25"), "mass": Decimal("0.75")}, ("mass",)),
        Prediction("c.png", error="IMAGE_EMPTY"),
    ]
    for primary in ("abnormal", "mass"):
        labels = sorted(("abnormal", "mass"), key=lambda name: name != primary)
        with (tmp_path / "results.csv").open("w") as file:
            write_csv(file, (row(prediction, labels, "demo:1") for prediction in predictions))
        found = read_results(tmp_path / "results.csv", label)
        run = Run(run_id="first", uid="u", state=State.COMPLETE)
        of_run = Results.of_run(run, predictions, label)
        assert found.decided == (label == primary)  # the CSV has the decisions for its primary label only
        assert [(one.key, one.scores, one.error) for one in found.predictions] == [
            (one.key, one.scores, one.error) for one in of_run.predictions
        ]
        if found.decided:
            assert found.predictions == of_run.predictions


def test_results_with_a_decision_missing_have_no_decisions(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("key,score,label\na.png,0.9,abnormal\nb.png,0.1,\n")
    found = read_results(path)
    assert (found.label, found.decided) == ("abnormal", False)
    with pytest.raises(InputError, match="do not say which images are abnormal"):
        found.decided_by()


def test_plots(run: Evaluate) -> None:
    result = run("--out", "plots")
    assert result.exit_code == 0, result.output
    folder = Path("plots")
    names = {"scores", "roc", "precision-recall", "calibration"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"evaluation.json"}
    assert {file.name for file in folder.iterdir()} == expected
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 800
        assert 0.01 < (pixels < 128).mean() < 0.5  # there is a drawing
        assert "<path" in (folder / f"{name}.svg").read_text()
    assert json.loads((folder / "evaluation.json").read_text())["overall"]["images"] == 12
    # One class has no ROC curve, and the one of the other evaluation does not stay.
    ones = "\n".join(line.replace(",0,", ",1,", 1) for line in LABELS.splitlines())
    assert run("--out", "plots", labels=ones).exit_code == 0
    assert {file.name for file in folder.glob("*.png")} == {"scores.png", "calibration.png"}


@pytest.mark.usefixtures("empty_plots")
def test_an_interval_that_ends_at_the_value_is_drawn(run: Evaluate, bundle: Path) -> None:
    """In the last bit it may end before the value, for example with four abnormal images in a bin."""
    lines = [f"cxr/{number}.png,SCORED,{number / 40:.3f},normal,\n" for number in range(40)]
    labels = [f"{number}.png,{int(number > 30)}\n" for number in range(40)]
    results = "key,status,score,label,error\n" + "".join(lines)
    options = ("--bundle", str(bundle), "--out", "plots")
    result = run(*options, results=results, labels="image,abnormal\n" + "".join(labels))
    assert result.exit_code == 0, result.output
    assert Path("plots/calibration.png").exists()


@pytest.mark.usefixtures("empty_plots")
def test_operating_point_scores_are_not_probabilities(run: Evaluate, bundle: Path) -> None:
    card = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps(card | {"score": "operating point"}))
    found = in_json(run("--json", "--out", "plots"))
    assert not found["probability"]
    assert "brier" not in found["overall"]["measures"]
    assert not Path("plots/calibration.png").exists()


BAD_INPUT: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    "labels without an image column": ([], {"labels": "name,abnormal\n1,1\n"}, ["labels.csv", "Image Index"]),
    "labels without a label column": (
        [],
        {"labels": "file,sick\n00.png,1\n"},
        ["labels.csv: expected a column abnormal of 0 and 1", "sick"],
    ),
    "labels without the group": (
        ["--group", "hospital"],
        {},
        ["labels.csv: expected a column hospital", "view"],
    ),
    "a label that is not 0 or 1": (
        [],
        {"labels": "file,abnormal\n00.png,1\n01.png,2\n"},
        ["labels.csv, line 3: column abnormal is '2'; expected 0 or 1"],
    ),
    "a conflict": (
        [],
        {"labels": "file,abnormal\n00.png,1\n01.png,1\n00.png,0\n"},
        ["labels.csv, line 4", "line 2"],
    ),
    "a short row": ([], {"labels": "file,abnormal\n00.png\n"}, ["labels.csv, line 2: expected 2 columns"]),
    "a row without a patient": (
        [],
        {"labels": "file,abnormal,patient_id\n00.png,1,\n"},
        ["labels.csv, line 2: column patient_id is empty"],
    ),
    "empty labels": ([], {"labels": ""}, ["labels.csv: expected a CSV file"]),
    "labels that are an image": (
        [],
        {"labels": b"\x89PNG\r\n\x1a\n\x00\xff"},
        ["labels.csv: expected a CSV file"],
    ),
    "nothing matches": ([], {"labels": "file,abnormal\nother.png,1\n"}, ["no scored image has a label"]),
    "one base name, two labels": (
        [],
        {"labels": "file,abnormal\na/00.png,1\nb/00.png,1\n"},
        ["lines 2 and 3", "whole key"],
    ),
    "one label, two images": (
        [],
        {"results": "key,score\na/00.png,0.1\nb/00.png,0.2\n"},
        ["labels.csv, line 2", "whole key"],
    ),
    "results without scores": ([], {"results": "key,label\na,b\n"}, ["results.csv: expected a column score"]),
    "a score over 1": (
        [],
        {"results": "key,score\n00.png,1.5\n"},
        ["results.csv, line 2: column score is '1.5'; expected a score from 0 to 1"],
    ),
    "a score that is not a number": (
        [],
        {"results": "key,score\n00.png,nan\n"},
        ["line 2: column score is 'nan'"],
    ),
    "an image twice": (
        [],
        {"results": RESULTS + RESULTS.splitlines()[1]},
        ["results.csv, line 14", "repeats"],
    ),
    "contradicting decisions": (
        [],
        {"results": RESULTS.replace("0.100000,normal", "0.100000,abnormal")},
        ["0.400000 negative", "0.100000 positive", "; choose a threshold with --threshold"],
    ),
    "a label that was not scored": (["--label", "Mass"], {}, ["results.csv: expected a column score_Mass"]),
    "a finding that is not there": (
        ["--label", "Mass", "--threshold", "0.5"],
        {"results": "key,score\n1.png,0.5\n", "labels": "file,findings\n1.png,Effusion\n"},
        ["labels.csv: no image has Mass in column findings"],
    ),
    "no threshold": (
        ["--label", "Mass"],
        {"results": "key,score\n1.png,0.5\n", "labels": "file,Mass\n1.png,1\n"},
        ["the results do not say which images are Mass; choose a threshold with --threshold"],
    ),
    "too many groups": (
        ["--group", "patient_id"],
        {
            "results": "key,score\n" + "".join(f"{number}.png,0.5\n" for number in range(30)),
            "labels": "file,abnormal,patient_id\n"
            + "".join(f"{number}.png,1,{number}\n" for number in range(30)),
        },
        ["column patient_id has 30 different values; expected at most 20 groups"],
    ),
    "a threshold over 1": (["--threshold", "2"], {}, ["--threshold 2: expected"]),
    "a sensitivity of 0": (["--at-sensitivity", "0"], {}, ["--at-sensitivity 0: expected"]),
    "a sensitivity without positives": (
        ["--at-sensitivity", "0.9"],
        {"labels": "file,abnormal\n00.png,0\n"},
        ["--at-sensitivity 0.9: no image is positive"],
    ),
    "a prevalence of NaN": (["--prevalence", "nan"], {}, ["--prevalence nan: expected"]),
    "two thresholds": (["--threshold", "0.5", "--at-sensitivity", "0.9"], {}, ["one of the two"]),
    "no bundle": (["--bundle", "nowhere"], {}, ["nowhere"]),
    "plots into a file": (["--out", "labels.csv"], {}, ["--out labels.csv: expected a folder"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(run: Evaluate, case: str) -> None:
    options, files, messages = BAD_INPUT[case]
    result = run(*options, **files)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    assert all(message in result.stderr for message in messages), result.stderr


def test_missing_files(run: Evaluate) -> None:
    for arguments in (["absent.csv", "--labels", "labels.csv"], ["results.csv", "--labels", "absent.csv"]):
        run()
        result = CliRunner().invoke(app, ["evaluate", *arguments])
        assert (result.exit_code, result.stderr) == (2, "Error: absent.csv: No such file or directory\n")
