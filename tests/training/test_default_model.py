"""The default model: the graph that ships against torch, and what its model.json says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from training.default_model import PREPROCESSING, Classifier, Collection, auc, export, out_of_fold

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "containers" / "classifier" / "model"
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """32 real X-rays as the model takes them."""
    files = sorted(XRAYS.rglob("*.png"))[:32]
    if not files:
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    return np.stack([PREPROCESSING(file.read_bytes()) for file in files])


@pytest.fixture(scope="module")
def head() -> Pipeline:
    """A standardiser and a logistic regression fitted on noise."""
    noise = np.random.default_rng(0)
    features = noise.gamma(1.0, 0.5, size=(64, 1280))
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.001)).fit(features, np.arange(64) % 2)


@pytest.fixture(scope="module")
def classifier(head: Pipeline) -> Classifier:
    made = Classifier()
    made.set_head(head)
    return made


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def scores(run: onnxruntime.InferenceSession, pixels: Pixels, batch: int) -> npt.NDArray[np.float32]:
    parts = [run.run(["scores"], {"pixels": pixels[i : i + batch]})[0] for i in range(0, len(pixels), batch)]
    return np.concatenate(parts)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_score_is_the_same_bits_alone_and_in_any_batch(pixels: Pixels, threads: int) -> None:
    run = session(BUNDLE / "model.onnx", threads)
    alone = scores(run, pixels, 1)
    assert len(np.unique(alone)) > len(pixels) / 2  # it does look at the image
    for batch in (2, 3, 8, 32):
        np.testing.assert_array_equal(scores(run, pixels, batch), alone)


def test_the_exported_graph_scores_as_torch_does(
    classifier: Classifier, pixels: Pixels, tmp_path: Path
) -> None:
    export(classifier, tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(pixels)).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(
        scores(session(tmp_path / "model.onnx", 1), pixels, 8), expected, rtol=0, atol=1e-5
    )


def test_the_head_is_the_standardiser_and_the_regression_folded(
    classifier: Classifier, head: Pipeline, pixels: Pixels
) -> None:
    collection = Collection(pixels, np.arange(len(pixels)), np.arange(len(pixels)))
    expected = head.predict_proba(collection.features(classifier))[:, 1:]
    with torch.inference_mode():
        np.testing.assert_allclose(classifier(torch.from_numpy(pixels)).numpy(), expected, rtol=0, atol=1e-5)


def test_the_shipped_graph_is_one_small_file_without_traces_of_where_it_was_made() -> None:
    data = (BUNDLE / "model.onnx").read_bytes()
    assert len(data) < 20e6
    graph = onnx.load_from_string(data)
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


def test_the_card_names_the_graph_its_worth_its_limits_and_its_sources() -> None:
    card = json.loads((BUNDLE / "model.json").read_text())
    assert card["sha256"] == hashlib.sha256((BUNDLE / "model.onnx").read_bytes()).hexdigest()
    assert card["preprocessing"] == {
        "channels": 3,
        "resize": PREPROCESSING.resize,
        "crop": PREPROCESSING.crop,
    }
    for figures in card["metrics"]["shipped"].values():
        assert figures["ci95"][0] < figures["auc"] < figures["ci95"][1]
        assert "patients" in figures
    assert "Demonstration model" in card["intended_use"]
    assert "NIH Clinical Center" in card["attribution"]
    assert "IEEE CVPR 2017" in card["attribution"]


def test_the_interval_is_that_of_patients_and_not_of_images() -> None:
    # A hundred copies of every image say nothing that one did not.
    labels, patients = np.arange(40) % 2, np.arange(40)
    ranks = labels + np.random.default_rng(0).normal(size=(1, 40))
    none = np.zeros(0, np.uint8)
    once = auc(ranks, Collection(none, labels, patients))
    copied = auc(ranks.repeat(100, axis=1), Collection(none, labels.repeat(100), patients.repeat(100)))
    assert once == copied
    assert once["ci95"][1] - once["ci95"][0] > 0.1


def test_no_fold_scores_a_patient_it_was_fitted_on() -> None:
    # The features say who the patient is and nothing else: only memory could tell the labels.
    patients = np.arange(30).repeat(4)
    own = Collection(np.zeros(0, np.uint8), patients % 2, patients)
    assert auc(out_of_fold(np.eye(30)[patients], own), own)["auc"] < 0.6
