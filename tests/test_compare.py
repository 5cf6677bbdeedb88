"""`cxr compare`: its figures against figures by hand and by scikit-learn, its files, and bad input."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs.predictions import Prediction
from runs.table import RunTable
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score, roc_curve
from support import TABLE, begin_run, client, uid
from typer.testing import CliRunner

from cxr.bundles import SHIPPED
from cxr.commands.app import app
from cxr.evaluation import measures
from cxr.evaluation.cohort import fingerprint
from cxr.evaluation.measures import Booleans, Floats, LabelledScores
from cxr.evaluation.paired import SENSITIVITY, agreement, midranks, paired_differences, shift

Scores = tuple[LabelledScores, LabelledScores]


def drawn(patients: int, seed: int) -> Scores:
    """Two models on the same images, one to five a patient, with ties. B separates the classes better."""
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), random.integers(1, 6, patients))
    positive = random.random(len(patient)) < 0.4
    of_patient, of_image = random.normal(size=patients)[patient], random.normal(size=len(patient))

    def scored(distance: float) -> LabelledScores:
        noise = of_patient + of_image + random.normal(size=len(patient))
        logits = distance * positive + noise / 2
        return LabelledScores(np.round(1 / (1 + np.exp(-logits)), 2), positive, patient)

    return scored(0.8), scored(1.6)


def sensitivity_at(specificity: float) -> Callable[[Booleans, Floats], float]:
    """By scikit-learn's ROC curve. The specificity must be between two of its points."""

    def sensitivity(positive: Booleans, scores: Floats) -> float:
        fall_out, sensitivities, _ = roc_curve(positive, scores, drop_intermediate=False)
        return float(np.interp(1 - specificity, fall_out, sensitivities))

    return sensitivity


BETWEEN = 0.7718281828  # a specificity that no number of images makes
BY_SCIKIT_LEARN: dict[str, Callable[[Booleans, Floats], float]] = {
    "auc": roc_auc_score,
    "average_precision": average_precision_score,
    SENSITIVITY: sensitivity_at(BETWEEN),
}


def test_differences_are_scikit_learns_and_intervals_those_of_a_plain_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each resample is put together image by image, and both models are measured on it."""
    monkeypatch.setattr(measures, "RESAMPLES", 60)
    a, b = drawn(80, 1)
    assert a.patients is not None
    draws = np.random.default_rng(0)
    samples = [
        np.concatenate([np.flatnonzero(a.patients == patient) for patient in draws.integers(80, size=80)])
        for _ in range(60)
    ]
    found = paired_differences(a, b, BETWEEN)
    for name, measure in BY_SCIKIT_LEARN.items():
        of_a, of_b = (measure(one.positive, one.scores) for one in (a, b))
        assert found[name].a.value == pytest.approx(of_a)
        assert found[name].b.value == pytest.approx(of_b)
        assert found[name].difference.value == pytest.approx(of_b - of_a)
        assert of_b - of_a > 0.05
        pairs = [[measure(one.positive[images], one.scores[images]) for one in (a, b)] for images in samples]
        differences = [of_b - of_a for of_a, of_b in pairs]
        assert found[name].difference.ci95 == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
        assert found[name].a.ci95 == pytest.approx(tuple(np.quantile(pairs, [0.025, 0.975], axis=0)[:, 0]))


def test_the_sensitivity_at_a_specificity_by_hand() -> None:
    # Negatives 0.1 0.2 0.3 0.4, positives: A 0.25 0.35 0.5 0.6, B 0.4 0.4 0.5 0.05.
    # Specificity 3/4 allows one of four negatives. A: 0.4 is above two of its positives, 0.3 above one; at a
    # threshold of 0.35 there is one false positive, and 3 of 4 are found. B: at 0.4 one, and 3 of 4.
    # Specificity 1 allows none. A finds 0.5 and 0.6, B 0.5.
    # Specificity 7/8 is in the middle between none and one. A: from 2 to 2 of 4 as the threshold passes 0.4;
    # B: 0.4 is also the score of two positives, so from 1 to 3 of 4, and 2 in the middle.
    negatives, positive = [0.1, 0.2, 0.3, 0.4], np.arange(8) >= 4
    a = LabelledScores(np.array([*negatives, 0.25, 0.35, 0.5, 0.6]), positive)
    b = LabelledScores(np.array([*negatives, 0.4, 0.4, 0.5, 0.05]), positive)
    by_hand = {1: (2 / 4, 1 / 4), 7 / 8: (2 / 4, 2 / 4), 3 / 4: (3 / 4, 3 / 4), 0: (1, 1)}
    for specificity, expected in by_hand.items():
        found = paired_differences(a, b, specificity)[SENSITIVITY]
        assert (found.a.value, found.b.value) == expected, specificity


@pytest.mark.slow
def test_intervals_hold_the_true_difference_in_about_95_of_100_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The true difference is that of 40,000 such patients."""
    monkeypatch.setattr(measures, "RESAMPLES", 1)
    truth = paired_differences(*drawn(40_000, 0), BETWEEN)
    monkeypatch.setattr(measures, "RESAMPLES", 200)
    hits = dict.fromkeys(truth, 0)
    for seed in range(1, 61):
        for name, found in paired_differences(*drawn(60, seed), BETWEEN).items():
            value, interval = truth[name].difference.value, found.difference.ci95
            assert value is not None
            assert interval
            hits[name] += interval[0] <= value <= interval[1]
    assert all(50 <= hit <= 60 for hit in hits.values()), hits  # 57 are expected


def test_models_that_rank_alike_differ_by_exactly_0() -> None:
    a, _ = drawn(30, 2)
    squared = LabelledScores(a.scores**2, a.positive, a.patients)
    for other in (a, squared):
        for found in paired_differences(a, other, 0.8).values():
            assert (found.difference.value, found.difference.ci95) == (0, (0, 0))


def test_two_perfect_rankings_have_no_interval() -> None:
    """That they never differed on these images does not show that they are equally good."""
    positive, random = np.arange(40) < 20, np.random.default_rng(0)
    a, b = (LabelledScores((positive + random.random(40)) / 2, positive) for _ in range(2))
    found = paired_differences(a, b, 0.9)["auc"].difference
    assert (found.value, found.ci95) == (0, None)


def test_agreement_by_hand_and_by_scikit_learn() -> None:
    # 100 images: both 20, only A 5, only B 10, neither 65. Observed 0.85; by chance 0.25 * 0.3 + 0.75 * 0.7,
    # which is 0.6; kappa is 0.25 / 0.4.
    a, b = np.arange(100) < 25, (np.arange(100) < 20) | (np.arange(100) >= 90)
    found = agreement(a, b, np.arange(100))
    counts = (found.both_positive, found.only_a_positive, found.only_b_positive, found.both_negative)
    assert counts == (20, 5, 10, 65)
    assert found.share.value == 0.85
    assert found.kappa.value == pytest.approx(0.625)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(a, b))
    for estimate in (found.share, found.kappa):
        assert estimate.value is not None
        assert estimate.ci95
        assert estimate.ci95[0] < estimate.value < estimate.ci95[1]
    nothing_called = np.zeros(100, dtype=bool)
    assert agreement(nothing_called, nothing_called, np.arange(100)).kappa.value is None


def test_shift_by_hand() -> None:
    # At 0.4, three quarters of A and a quarter of B are reached: the distance is a half.
    # Ranks of A: 1 2 3 4; of B: 1 3 2 4. Spearman is 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8.
    a, b = np.array([0.1, 0.2, 0.4, 0.8]), np.array([0.3, 0.6, 0.5, 0.8])
    found = shift(a, b)
    assert found.ks_distance == 0.5
    assert found.rank_correlation == pytest.approx(0.8)
    assert (found.mean_a, found.mean_b) == pytest.approx((0.375, 0.55))
    assert found.quantiles["0.5"] == pytest.approx((0.3, 0.55))
    assert found.changed == 3
    assert found.largest_change == pytest.approx(0.4)
    assert shift(a, np.full(4, 0.5)).rank_correlation is None
    assert list(midranks(np.array([0.5, 0.1, 0.5, 0.9]))) == [2.5, 1, 2.5, 4]


# Eight images of four patients. A calls 3, 5, 6 and 7 positive, from 0.5 on; B calls 2, 5, 6 and 7, from 0.6.
A = (0.1, 0.2, 0.4, 0.5, 0.3, 0.6, 0.7, 0.9)
B = (0.2, 0.1, 0.9, 0.4, 0.3, 0.7, 0.6, 0.8)
POSITIVE = (0, 0, 1, 0, 0, 1, 1, 1)


def results_of(scores: tuple[float, ...], threshold: float, folder: str = "cxr/") -> str:
    rows = (
        f"{folder}{number}.png,SCORED,{score:.6f},{'abnormal' if score >= threshold else 'normal'},\n"
        for number, score in enumerate(scores)
    )
    return "key,status,score,label,error\n" + "".join(rows)


FILES = {
    "a.csv": results_of(A, 0.5),
    "b.csv": results_of(B, 0.6),
    "labels.csv": "file,abnormal,patient_id\n"
    + "".join(f"{number}.png,{label},{number // 2}\n" for number, label in enumerate(POSITIVE)),
}
LABELS = ("--labels", "labels.csv")
Compare = Callable[..., Any]  # returns the result of Typer's CliRunner


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Runs `cxr compare a.csv b.csv` in a folder with the FILES, or with others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measures, "RESAMPLES", 50)

    def compared(*options: str, **files: str) -> Any:
        for name, content in (FILES | {f"{name}.csv": content for name, content in files.items()}).items():
            Path(name).write_text(content)
        return CliRunner().invoke(app, ["compare", "a.csv", "b.csv", *options])

    return compared


def in_json(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def printed(result: Any) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_json_with_labels(run: Compare) -> None:
    found = in_json(run(*LABELS, "--json"))
    assert (found["label"], found["images"], found["patients"], found["paired_by"]) == (
        "abnormal",
        8,
        4,
        "key",
    )
    reference = found["reference"]
    assert (reference["positives"], reference["prevalence"]) == (4, 0.5)
    assert reference["specificity"] == 0.75  # of A, which calls 3.png positive
    auc = reference["differences"]["auc"]
    assert auc["a"]["value"] == pytest.approx(roc_auc_score(POSITIVE, A))
    assert auc["difference"]["value"] == pytest.approx(
        roc_auc_score(POSITIVE, B) - roc_auc_score(POSITIVE, A)
    )
    sensitivity = reference["differences"]["sensitivity_at_specificity"]
    assert (sensitivity["a"]["value"], sensitivity["b"]["value"]) == (1, 1)
    calls = ("both_positive", "only_a_positive", "only_b_positive", "both_negative")
    assert [found["agreement"][name] for name in calls] == [3, 1, 1, 3]
    assert found["agreement"]["kappa"]["value"] == pytest.approx(0.5)
    first, second = found["disagreements"][:2]
    assert first == {
        **{"key": "cxr/2.png", "a": 0.4, "b": 0.9},
        **{"positive_a": False, "positive_b": True, "positive": True},
    }
    assert second["key"] == "cxr/3.png"  # by its call, although no score of these changed less
    assert {one["key"] for one in found["disagreements"]} == {f"cxr/{n}.png" for n in (0, 1, 2, 3, 5, 6, 7)}
    at_1 = in_json(run(*LABELS, "--json", "--at-specificity", "1"))["reference"]
    assert at_1["specificity"] == 1
    assert at_1["differences"]["sensitivity_at_specificity"]["difference"]["value"] == pytest.approx(0.25)


def test_without_labels(run: Compare) -> None:
    found = in_json(run("--json"))
    assert (found["reference"], found["patients"]) == (None, None)
    assert found["shift"]["changed"] == 7
    assert found["agreement"]["share"]["value"] == 0.75
    text = printed(run())
    assert "abnormal on 8 images that both scored" in text
    assert "Images with another score: 7 of 8; largest change 0.500000" in text
    assert "Kolmogorov-Smirnov distance" in text
    assert "They disagree most on 7 images, below cxr/" in text
    assert "AUC" not in text


def test_the_same_results_differ_by_0(run: Compare) -> None:
    result = run(*LABELS, "--json", b=FILES["a.csv"])
    found = in_json(result)
    for difference in found["reference"]["differences"].values():
        assert difference["difference"] == {"value": 0, "ci95": [0, 0], "undefined": ""}
    assert (found["shift"]["ks_distance"], found["shift"]["rank_correlation"]) == (0, pytest.approx(1))
    assert (found["agreement"]["kappa"]["value"], found["disagreements"]) == (1, [])
    assert "do not show that one is better" in printed(run(*LABELS, b=FILES["a.csv"]))


def test_the_order_of_rows_changes_no_figure(run: Compare) -> None:
    header, *rows = FILES["b.csv"].splitlines(keepends=True)
    for options in ((), LABELS):
        shuffled = in_json(run(*options, "--json", b=header + "".join(reversed(rows))))
        assert shuffled == in_json(run(*options, "--json"))


def test_the_better_one_is_named(run: Compare) -> None:
    labels = "file,abnormal\n" + "".join(f"{number}.png,{number % 2}\n" for number in range(60))
    random = np.random.default_rng(0)
    noise = results_of(tuple(random.random(60)), 0.5)
    good = results_of(tuple(0.3 * random.random(60) + 0.5 * (np.arange(60) % 2)), 0.5)
    b_better = printed(run(*LABELS, a=noise, b=good, labels=labels))
    assert "B separates abnormal better than A: the interval of the difference in AUC excludes 0." in b_better
    assert "A separates abnormal better than B" in printed(run(*LABELS, a=good, b=noise, labels=labels))


def test_what_is_left_out_is_counted(run: Compare) -> None:
    a = FILES["a.csv"] + "cxr/only-a.png,SCORED,0.100000,normal,\ncxr/bad.png,FAILED,,,IMAGE_EMPTY\n"
    b = FILES["b.csv"] + "cxr/bad.png,SCORED,0.100000,normal,\ncxr/new.png,SCORED,0.200000,normal,\n"
    labels = FILES["labels.csv"].replace("0.png,0,0\n", "")
    found = in_json(run(*LABELS, "--json", a=a, b=b, labels=labels + "other.png,1,9\nother.png,1,9\n"))
    assert found["images"] == 7
    assert [found[side][count] for side in "ab" for count in ("failed", "unpaired")] == [1, 1, 0, 2]
    counts = ("without_label", "labels_without_image", "repeated_labels")
    assert [found["reference"][count] for count in counts] == [1, 1, 1]
    text = printed(run(*LABELS, a=a, b=b, labels=labels))
    assert (
        "Left out: 1 FAILED images of A, 1 images that only A scored, 2 images that only B scored, 1 images "
        "without a label"
    ) in text


def test_without_a_common_key_base_names_pair(run: Compare) -> None:
    elsewhere = results_of(B, 0.6, folder="other/place/")
    found = in_json(run(*LABELS, "--json", b=elsewhere))
    assert found["paired_by"] == "base name, because no key is in both"
    assert found["reference"] == in_json(run(*LABELS, "--json"))["reference"]
    assert "paired by base name" in printed(run(b=elsewhere))


def test_thresholds(run: Compare) -> None:
    undecided = "key,score\n" + "".join(f"cxr/{number}.png,{score}\n" for number, score in enumerate(A))
    found = in_json(run(*LABELS, "--json", a=undecided))
    assert (found["a"]["threshold"], found["agreement"]) == (None, None)
    assert found["b"]["threshold"]["value"] == 0.6
    difference = found["reference"]["differences"]["sensitivity_at_specificity"]["difference"]
    assert (difference["value"], difference["undefined"]) == (None, "no specificity to compare at")
    assert "Give their thresholds with --thresholds" in printed(run(*LABELS, a=undecided))
    given = in_json(run(*LABELS, "--json", "--thresholds", "0.5", "0.6", a=undecided))
    decided = in_json(run(*LABELS, "--json"))
    assert given["a"]["threshold"] == {"value": 0.5, "source": "as given"}
    for part in ("agreement", "reference", "disagreements"):
        assert given[part] == decided[part]


def test_what_the_models_were_trained_on_is_printed(run: Compare, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("model.onnx", "model.json"):
        shutil.copy(SHIPPED / name, bundle)
    (bundle / "trained_on.json").write_text(
        json.dumps({"images": [fingerprint("2.png")], "patients": [fingerprint("1")]})
    )
    text = printed(run(*LABELS, "--bundle-b", str(bundle)))
    assert "B was trained on 1 of these 8 images, 1 of 4 patients: the difference does not show" in text
    assert "It is not known whether A was trained on these images. Give the bundle" in text
    found = in_json(run(*LABELS, "--json", "--bundle-b", str(bundle)))
    assert found["a"]["training_overlap"] is None
    assert found["b"]["training_overlap"]["images"] == 1


def test_only_one_class_has_no_difference(run: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.evaluation.plots.save", lambda _figure, path, _format: path.touch())
    labels = re.sub(r",1,", ",0,", FILES["labels.csv"])
    found = in_json(run(*LABELS, "--json", "--out", "plots", labels=labels))
    assert found["reference"]["differences"]["auc"]["difference"]["undefined"] == "only one class"
    assert not Path("plots/compared-roc.png").exists()
    assert "cannot tell which of the two is better" in printed(run(*LABELS, labels=labels))


@pytest.mark.usefixtures("aws")
def test_two_runs_of_one_model(run: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    table = RunTable(client("dynamodb"), TABLE)
    labels = [{"name": "abnormal", "threshold": Decimal("0.5")}]
    for name, scores, digest in (("may", A, "1"), ("june", B, "1"), ("new-model", B, "2")):
        begin_run(name, state="COMPLETE", model="chest:1", model_sha256=digest * 64, labels=labels)
        predictions = [
            Prediction(
                f"cxr/{number}.png", {"abnormal": Decimal(str(score))}, ("abnormal",) * bool(score >= 0.5)
            )
            for number, score in enumerate(scores)
        ]
        table.write(name, uid(name), predictions, {}, {})
    monkeypatch.setattr("cxr.stack.Stack.find", lambda name: SimpleNamespace(table=TABLE))

    def compared(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["compare", *arguments])

    found = in_json(compared("may", "june", "--json"))
    assert (found["same_model"], found["a"]["model"]) == (True, "chest:1")
    assert found["a"]["threshold"] == {"value": 0.5, "source": "recorded by the run"}
    assert "One model made both." in printed(compared("may", "june"))
    assert in_json(compared("may", "new-model", "--json"))["same_model"] is False
    run()  # writes the files
    of_both_kinds = in_json(compared("may", "a.csv", "--json"))
    assert (of_both_kinds["same_model"], of_both_kinds["shift"]["changed"]) == (None, 0)
    refused = compared("may", "july")
    assert refused.exit_code == 2
    assert "july is not a file, and no run was found: there is no run july" in refused.stderr
    refused = compared("may", "june", "--label", "Mass")
    assert (refused.exit_code, refused.stderr) == (2, "Error: run may has no label Mass; expected abnormal\n")


def test_keys_are_printed_as_text(run: Compare) -> None:
    odd = {name: FILES[f"{name}.csv"].replace("cxr/2.png", "cxr/[red]\x1b[31m.png") for name in "ab"}
    assert "[red]\\x1b[31m.png" in printed(run(**odd))


def test_the_help_names_every_field_of_the_json(run: Compare) -> None:
    text = CliRunner().invoke(app, ["compare", "--help"]).stdout
    found = in_json(run(*LABELS, "--json"))

    def names(value: Any) -> Iterator[str]:
        for name, inner in value.items() if isinstance(value, dict) else ():
            if name not in ("quantiles", "threshold", "training_overlap"):  # those are named as one
                yield from names(inner)
            yield name
        for inner in value if isinstance(value, list) else ():
            yield from names(inner)

    for name in set(names(found)) - {"undefined"}:
        assert re.search(rf"\b{name}\b", text), name


def test_plots(run: Compare) -> None:
    result = run(*LABELS, "--out", "plots", "--json")
    folder = Path("plots")
    names = {"compared-scores", "compared-roc"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"comparison.json"}
    assert {file.name for file in folder.iterdir()} == expected
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 800
        assert 0.01 < (pixels < 128).mean() < 0.5  # there is a drawing
        assert "<path" in (folder / f"{name}.svg").read_text()
    assert json.loads((folder / "comparison.json").read_text()) == in_json(result)
    # Without labels there is no ROC curve, and that of the other comparison does not stay.
    assert run("--out", "plots").exit_code == 0
    assert {file.name for file in folder.glob("*.png")} == {"compared-scores.png"}


BAD_INPUT: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "no overlap": (
        (),
        {"b": "key,score\nx.png,0.5\n"},
        "no image is scored in both: A has 8 images and B 1 image, 0 in common; expected results of the same",
    ),
    "only failed images in common": (
        (),
        {"b": "key,status,score\ncxr/1.png,FAILED,\n"},
        "A has 8 images and B 1 image, 1 in common",
    ),
    "base names that repeat": (
        (),
        {"b": "key,score\nx/1.png,0.5\ny/1.png,0.5\n"},
        "no key is in both A and B, and several images have one base name; expected the same keys in both",
    ),
    "another label": (
        (),
        {"b": FILES["b.csv"].replace("abnormal", "Mass").replace("normal", "no Mass")},
        "A has scores of abnormal, B has not: b.csv: expected a column score_abnormal; its scores are of "
        "Mass; choose a label that both have with --label",
    ),
    "a label that B has not": (
        ("--label", "Mass"),
        {"a": "key,score\ncxr/1.png,0.5\n"},
        "b.csv: expected a column score_Mass; its scores are of abnormal",
    ),
    "labels of another label": (
        LABELS,
        {"labels": "file,Mass\n1.png,1\n"},
        "labels.csv: expected a column abnormal of 0 and 1; its columns are file, Mass",
    ),
    "labels of other images": (
        LABELS,
        {"labels": "file,abnormal\nother.png,1\n"},
        "no scored image has a label: 8 scored, 0 FAILED, 1 labels",
    ),
    "contradicting calls": (
        (),
        {"b": FILES["b.csv"].replace("0.200000,normal", "0.200000,abnormal")},
        "b.csv: the results call a score of 0.400000 negative and one of 0.200000 positive; expected one "
        "threshold; choose the thresholds with --thresholds",
    ),
    "a score over 1": ((), {"b": "key,score\ncxr/1.png,7\n"}, "b.csv, line 2: column score is '7'"),
    "no scores": ((), {"a": "key,label\ncxr/1.png,normal\n"}, "a.csv: expected a column score"),
    "a specificity without labels": (
        ("--at-specificity", "0.9"),
        {},
        "--at-specificity: expected together with --labels",
    ),
    "a specificity over 1": ((*LABELS, "--at-specificity", "nan"), {}, "--at-specificity nan: expected"),
    "a threshold over 1": (("--thresholds", "0.5", "5"), {}, "--thresholds 5: expected scores from 0 to 1"),
    "too many to list": (("--top", "-1"), {}, "--top -1: expected a whole number from 0 to 1,000"),
    "plots into a file": (("--out", "a.csv"), {}, "--out a.csv: expected a folder"),
    "no bundle": (("--bundle-a", "nowhere"), {}, "nowhere"),
    "no labels": (("--labels", "absent.csv"), {}, "absent.csv: No such file or directory"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(run: Compare, case: str) -> None:
    options, files, message = BAD_INPUT[case]
    result = run(*options, **files)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    assert message in result.stderr, result.stderr


def test_a_missing_file(run: Compare) -> None:
    run()
    result = CliRunner().invoke(app, ["compare", "a.csv", "absent.csv"])
    assert (result.exit_code, result.stderr) == (2, "Error: absent.csv: No such file or directory\n")
