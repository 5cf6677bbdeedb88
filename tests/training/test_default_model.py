"""The model that ships in 8 bits, and the same model in float: cards, graphs, and scores against torch."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from classifier.model import Model
from classifier.preprocessing import Preprocessing

from cxr.phantoms import draw_phantom
from training import card, data, networks, quantise, splits
from training.scorer import CoarseNormalise, Scorer

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "containers" / "classifier" / "model"
FLOAT = ROOT / "training" / "nih-lite0-demo"
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr"


@pytest.fixture(scope="module")
def int8_card() -> dict:  # type: ignore[type-arg]
    return json.loads((BUNDLE / "model.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("bundle", "page"), [(BUNDLE, ROOT / "MODEL_CARD.md"), (FLOAT, FLOAT / "MODEL_CARD.md")]
)
def test_model_json_and_card_describe_this_graph(bundle: Path, page: Path) -> None:
    found = json.loads((bundle / "model.json").read_text())
    assert found["sha256"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert [label["name"] for label in found["labels"]] == ["abnormal"]
    assert page.read_text() == card.render(found)


def test_8_bits_cost_less_than_the_limits(int8_card) -> None:  # type: ignore[no-untyped-def]
    against = int8_card["metrics"]["against_fp32"]
    float_card = json.loads((FLOAT / "model.json").read_text())
    assert against["model"] == f"{float_card['name']} {float_card['version']}"
    judged = against["collections"][0]
    assert judged["collection"] == "other-patients-64"
    assert judged["auc"]["value"] >= -0.005
    assert judged["log_loss"]["value"] <= 0.01


def test_its_weights_have_7_bits() -> None:
    graph = onnx.load(BUNDLE / "model.onnx")
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    assert len(weights) == convolutions - quantise.FLOAT_CONVOLUTIONS - 2  # two of the head
    assert max(abs(weight).max() for weight in weights) <= 64


def test_it_beats_the_starting_point_and_in_float_the_interval_is_above_0(int8_card) -> None:  # type: ignore[no-untyped-def]
    in_float = json.loads((FLOAT / "model.json").read_text())["metrics"]
    assert in_float["starting_point"]["collection"] == "other-patients-64"
    assert in_float["starting_point"]["difference"]["ci95"][0] > 0
    for metrics in (int8_card["metrics"], in_float):
        assert metrics["starting_point"]["difference"]["value"] > 0
        assert all(across["difference"]["value"] >= 0 for across in metrics["across_collections"])
    if int8_card["metrics"]["starting_point"]["difference"]["ci95"][0] <= 0:
        assert any("reaches down to 0" in line for line in int8_card["limitations"])


@pytest.mark.parametrize(("bundle", "most"), [(BUNDLE, 3e6), (FLOAT, 10e6)])
def test_it_is_one_small_file_without_traces_of_the_machine_that_made_it(bundle: Path, most: float) -> None:
    graph = onnx.load(bundle / "model.onnx")
    assert (bundle / "model.onnx").stat().st_size < most
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


class ThreeChannels(CoarseNormalise):
    """Three equal channels, as the original network takes them, instead of one."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels).expand(-1, 3, -1, -1)


def test_the_graph_in_float_scores_as_torch_does(int8_card) -> None:  # type: ignore[no-untyped-def]
    graph = onnx.load(FLOAT / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.graph.initializer}
    weight, bias = torch.from_numpy(tensors["weight"]), float(tensors["bias"][0])
    network = networks.build("efficientnet-lite0", "imagenet")
    stages = 1 + [192, 320, 1280].index(weight.shape[1])
    trunk = torch.nn.Sequential(*networks.stages(network)[:stages])
    three_channels = ThreeChannels(*networks.pixel_statistics("efficientnet-lite0"))
    oracle = Scorer(three_channels, trunk, weight[:, :, 0, 0], torch.tensor([bias]))

    prepare = Preprocessing.from_json(int8_card["preprocessing"])
    pixels = np.stack([prepare(draw_phantom(seed, opacity=seed % 2 == 0)) for seed in range(8)])
    with torch.inference_mode():
        scores, cam = (part.numpy() for part in oracle(torch.from_numpy(pixels)))
    model = Model(FLOAT)
    bundle_scores = [float(score["abnormal"]) for score in model.score(list(pixels))]
    np.testing.assert_allclose(bundle_scores, scores[:, 0], rtol=0, atol=1e-5)
    assert np.std(bundle_scores) > 0.001
    maps = np.stack([model.explain(one)["abnormal"] for one in pixels])
    np.testing.assert_allclose(maps, cam[:, 0], rtol=0, atol=1e-4)
    logits = np.log(scores[:, 0] / (1 - scores[:, 0]))
    np.testing.assert_allclose(cam.sum((1, 2, 3)) + bias, logits, rtol=0, atol=1e-4)


def test_the_committed_splits_are_reproduced(tmp_path: Path) -> None:
    if not XRAYS.exists():
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    images = data.read_labels(XRAYS / "labels.csv", XRAYS, ("other-patients-64", "images-512"))
    split = splits.read(BUNDLE / "split.csv", images)
    assert split.folds.shape == (5, 1353)
    splits.write(splits.make(images, 5, 5, seed=0), images, tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_bytes() == (BUNDLE / "split.csv").read_bytes()
