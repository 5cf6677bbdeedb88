"""The bundle that ships: that it is what its card says, and what torch computes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from classifier.images import Preprocessing
from classifier.model import Model

from cxr.phantoms import draw_phantom
from training import card, data, networks, splits

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "containers" / "classifier" / "model"
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr"


@pytest.fixture(scope="module")
def found() -> dict:  # type: ignore[type-arg]
    return json.loads((BUNDLE / "model.json").read_text())  # type: ignore[no-any-return]


def test_the_card_is_of_this_graph(found) -> None:  # type: ignore[no-untyped-def]
    assert found["sha256"] == hashlib.sha256((BUNDLE / "model.onnx").read_bytes()).hexdigest()
    assert [label["name"] for label in found["labels"]] == ["abnormal"]
    assert (ROOT / "MODEL_CARD.md").read_text() == card.render(found)


def test_it_beats_the_starting_point_on_other_patients(found) -> None:  # type: ignore[no-untyped-def]
    metrics = found["metrics"]
    assert metrics["starting_point"]["collection"] == "other-patients-64"
    assert metrics["starting_point"]["difference"]["ci95"][0] > 0
    assert all(across["difference"]["value"] >= 0 for across in metrics["across_collections"])


def test_it_is_one_small_file_without_traces_of_where_it_was_made() -> None:
    graph = onnx.load(BUNDLE / "model.onnx")
    assert (BUNDLE / "model.onnx").stat().st_size < 20e6
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_the_graph_scores_as_torch_does(found) -> None:  # type: ignore[no-untyped-def]
    graph = onnx.load(BUNDLE / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.graph.initializer}
    weight, bias = torch.from_numpy(tensors["weight"]), float(tensors["bias"][0])
    network = networks.build("efficientnet-lite0", "imagenet")
    stages = 1 + [192, 320, 1280].index(weight.shape[1])
    trunk = torch.nn.Sequential(*networks.stages(network)[:stages])
    oracle = networks.Graph(networks.Coarse("efficientnet-lite0"), trunk, weight.flatten(), bias)

    prepare = Preprocessing.from_json(found["preprocessing"])
    pixels = np.stack([prepare(draw_phantom(seed, opacity=seed % 2 == 0)) for seed in range(8)])
    with torch.inference_mode():
        scores, cam = (part.numpy() for part in oracle(torch.from_numpy(pixels)))
    model = Model(BUNDLE)
    ours = [float(score["abnormal"]) for score in model.score(list(pixels))]
    np.testing.assert_allclose(ours, scores[:, 0], rtol=0, atol=1e-5)
    assert np.std(ours) > 0.001
    maps = np.stack([model.explain(one)["abnormal"] for one in pixels])
    np.testing.assert_allclose(maps, cam[:, 0], rtol=0, atol=1e-4)
    logits = np.log(scores[:, 0] / (1 - scores[:, 0]))
    np.testing.assert_allclose(cam.sum((1, 2, 3)) + bias, logits, rtol=0, atol=1e-4)


def test_the_committed_splits_are_of_patients_and_can_be_made_again(tmp_path: Path) -> None:
    if not XRAYS.exists():
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    images = data.read_labels(XRAYS / "labels.csv", XRAYS, ("other-patients-64", "images-512"))
    split = splits.read(BUNDLE / "split.csv", images)
    assert split.folds.shape == (5, 1353)
    splits.write(splits.make(images, 5, 5, seed=0), images, tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_bytes() == (BUNDLE / "split.csv").read_bytes()
