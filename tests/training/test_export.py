"""Scores of exported bundles against torch, from the bytes of a file on."""

import contextlib
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from classifier.model import Model
from classifier.preprocessing import Preprocessing
from classifier.resampling import resize
from PIL import Image
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from benchmarks.random_densenet import randomise
from cxr.phantoms import write_phantoms
from training import export, quantise
from training.densenet121 import densenet121

ROOT = Path(__file__).parents[2]
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"
TOLERANCE = 1e-4
NIH_FILE = "densenet121_256_64_0.001"
XRV_LABELS = ("Atelectasis", "", "Edema", "Lung Lesion", "Hernia")
XRV_POINTS = (0.25, float("nan"), 0.4, float("nan"), 0.62)
XRV_KEPT = (0, 2, 4)

# Tests that share an exported network are in one process.
NIH, INT8, XRV = map(pytest.mark.xdist_group, ("nih", "int8", "xrv"))

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def xrays() -> list[Path]:
    """Forty full-size NIH chest X-rays."""
    files = sorted(XRAYS.rglob("*.png"))
    if not files:
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    return files


def score_files(model: Model, xrays: Sequence[Path]) -> Floats:
    """The bundle's scores [N, labels] of the files."""
    scores = (model.score([model.prepare(path.read_bytes())[0]])[0] for path in xrays)
    return np.array([list(map(float, row.values())) for row in scores], np.float32)


def greatest_difference(scores: Floats, expected: Floats) -> float:
    assert (expected.std(0) > 0.05).all()  # scores that are nearly equal would prove nothing
    return float(abs(scores - expected).max())


def assert_same_bits_in_any_batch(bundle: Path, pixels: npt.NDArray[Any]) -> None:
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            bundle / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        alone, *batched = (
            [
                np.concatenate(parts)
                for parts in zip(
                    *(session.run(None, {"pixels": pixels[i : i + n]}) for i in range(0, len(pixels), n)),
                    strict=True,
                )
            ]
            for n in (1, 2, 8)
        )
        for outputs in batched:
            for output, expected in zip(outputs, alone, strict=True):
                np.testing.assert_array_equal(output, expected)


def assert_one_file_without_traces(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    # A normalisation with a ReLU between it and its convolution cannot be folded into the convolution.
    assert sum(node.op_type == "BatchNormalization" for node in graph.graph.node) == 62
    assert sorted(path.name for path in bundle.iterdir()) == ["model.json", "model.onnx"]


def run_export(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    export.main()


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as error:
        run_export(monkeypatch, *arguments)
    message = str(error.value.code)
    assert message.startswith(export.PROGRAM)
    assert "\n" not in message
    return message


def batches(inputs: Tensor) -> list[Tensor]:
    return [inputs[i : i + 8] for i in range(0, len(inputs), 8)]


def nih_inputs(xrays: Sequence[Path], mode: InterpolationMode = InterpolationMode.BILINEAR) -> Tensor:
    """Inputs of the network, prepared by torchvision as in the paper."""
    prepare = transforms.Compose(
        [
            transforms.Resize(256, interpolation=mode),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return torch.stack([prepare(Image.open(path).convert("RGB")) for path in xrays])


@torch.inference_mode()
def nih_torch_scores(network: models.DenseNet, inputs: Tensor) -> Floats:
    scores: Floats = torch.cat([network(batch) for batch in batches(inputs)]).sigmoid().numpy()
    return scores


@pytest.fixture(scope="module")
def nih_network(xrays: list[Path]) -> models.DenseNet:
    return randomise(models.densenet121(num_classes=1), nih_inputs(xrays[::4]))


@pytest.fixture(scope="module")
def nih_bundle(nih_network: models.DenseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    fields = {"Epoch": 1, "state_dict": nih_network.state_dict(), "best_loss": 0.1, "optimizer": {}}
    torch.save(fields, folder / NIH_FILE, _use_new_zipfile_serialization=False)
    with pytest.MonkeyPatch.context() as patch:
        run_export(patch, "nih", folder / NIH_FILE, "--out", folder / "bundle")
    return folder / "bundle"


@NIH
def test_nih_scores_equal_torch_and_differ_with_other_preprocessing(
    nih_bundle: Path, nih_network: models.DenseNet, xrays: list[Path]
) -> None:
    scores = score_files(Model(nih_bundle), xrays)
    assert greatest_difference(scores, nih_torch_scores(nih_network, nih_inputs(xrays))) <= TOLERANCE
    scores, xrays = scores[::4], xrays[::4]
    flipped = nih_inputs(xrays).flip(3)
    assert greatest_difference(scores, nih_torch_scores(nih_network, flipped)) > 10 * TOLERANCE
    bicubic = nih_inputs(xrays, InterpolationMode.BICUBIC)
    assert greatest_difference(scores, nih_torch_scores(nih_network, bicubic)) > 10 * TOLERANCE


@NIH
def test_nih_pixels_equal_torchvision(nih_bundle: Path, xrays: list[Path]) -> None:
    model = Model(nih_bundle)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    for path in xrays:
        pixels, _ = model.prepare(path.read_bytes())
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, transform(Image.open(path).convert("RGB")).numpy())


@pytest.mark.parametrize("size", [(300, 401), (1027, 1000), (999, 1022), (64, 200), (256, 256)])
def test_nih_pixels_equal_torchvision_in_any_size(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    pixels = Preprocessing(channels=3, resize=256, crop=224)(image)
    np.testing.assert_array_equal(pixels, transform(image).numpy())


@NIH
def test_nih_outputs_do_not_depend_on_the_batch(nih_bundle: Path, xrays: list[Path]) -> None:
    model = Model(nih_bundle)
    pixels = np.stack([model.prepare(path.read_bytes())[0] for path in xrays[:16]])
    assert_same_bits_in_any_batch(nih_bundle, pixels)


@NIH
def test_the_activation_map_adds_up_to_the_logit(
    nih_bundle: Path, nih_network: models.DenseNet, xrays: list[Path]
) -> None:
    model = Model(nih_bundle)
    with torch.inference_mode():
        logits = nih_network(nih_inputs(xrays[:4])) - nih_network.classifier.bias
    for path, logit in zip(xrays, logits[:, 0].tolist(), strict=False):
        cam = model.explain(model.prepare(path.read_bytes())[0])["abnormal"]
        assert cam.shape == (7, 7)
        assert cam.sum() == pytest.approx(logit, abs=1e-3)


@NIH
def test_the_nih_bundle_is_complete(nih_bundle: Path) -> None:
    assert_one_file_without_traces(nih_bundle)
    card = json.loads((nih_bundle / "model.json").read_text())
    assert card["sha256"] == hashlib.sha256((nih_bundle / "model.onnx").read_bytes()).hexdigest()
    assert card["score"] == "probability"
    assert card["cam"] is True
    assert card["metrics"] == {}
    assert "Not measured here" in card["limitations"][0]
    assert "not-for-profit" in card["licence"]
    assert "no redistribution" in card["licence"]
    assert "CADLab" in card["attribution"]
    assert set(card["self_test"]) == {"abnormal"}


@NIH
def test_a_bundle_is_not_overwritten(nih_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (nih_bundle / "model.json").read_bytes()
    message = refusal(monkeypatch, "nih", nih_bundle.parent / NIH_FILE, "--out", nih_bundle)
    assert "no bundle is overwritten" in message
    assert (nih_bundle / "model.json").read_bytes() == before


@NIH
def test_a_failed_export_leaves_no_file(
    nih_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch.onnx, "export", fail)
    checkpoint = nih_bundle.parent / NIH_FILE
    assert "no space left" in refusal(monkeypatch, "nih", checkpoint, "--out", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(monkeypatch, "nih", tmp_path / "none", "--out", tmp_path / "bundle")


@pytest.fixture(scope="module")
def fresh_network() -> models.DenseNet:
    """Torchvision's random weights. Those of `randomise` amplify rounding errors."""
    torch.manual_seed(0)
    return models.densenet121(num_classes=1).eval()


@pytest.fixture(scope="module")
def other_xrays(xrays: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32 smaller X-rays, none of them in `xrays`, and a file that is no image."""
    folder = tmp_path_factory.mktemp("others")
    names = {path.name for path in xrays}
    files = sorted(path for path in (XRAYS.parents[1] / "images-512").iterdir() if path.name not in names)
    for path in files[:: len(files) // 32][:32]:
        (folder / path.name).symlink_to(path)
    (folder / "labels.csv").write_text("file,abnormal\n")
    return folder


@pytest.fixture(scope="module")
def int8(
    fresh_network: models.DenseNet, other_xrays: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A bundle in 8 bits, and the output of the command."""
    folder = tmp_path_factory.mktemp("int8")
    torch.save({"state_dict": fresh_network.state_dict()}, folder / NIH_FILE)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        run_export(
            patch, "nih", folder / NIH_FILE, "--out", folder / "bundle", "--int8", "--images", other_xrays
        )
    return folder / "bundle", printed.getvalue()


@INT8
def test_8_bits_keep_the_order_of_the_scores(
    int8: tuple[Path, str], fresh_network: models.DenseNet, xrays: list[Path]
) -> None:
    scores = score_files(Model(int8[0]), xrays)[:, 0]
    expected = nih_torch_scores(fresh_network, nih_inputs(xrays))[:, 0]
    assert spearmanr(scores, expected).statistic >= 0.98
    assert abs(scores - expected).max() < 0.25 * expected.std()


@INT8
def test_outputs_in_8_bits_do_not_depend_on_the_batch(int8: tuple[Path, str], xrays: list[Path]) -> None:
    model = Model(int8[0])
    pixels = np.stack([model.prepare(path.read_bytes())[0] for path in xrays[:16]])
    assert_same_bits_in_any_batch(int8[0], pixels)


@INT8
def test_weights_have_7_bits_and_few_convolutions_are_in_float(int8: tuple[Path, str]) -> None:
    graph = onnx.load(int8[0] / "model.onnx")
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == 120 - quantise.FLOAT_CONVOLUTIONS  # a DenseNet-121 has 120 convolutions
    assert max(abs(weight.astype(int)).max() for weight in weights) <= 64


@INT8
def test_the_changes_by_8_bits_are_printed_and_in_model_json(int8: tuple[Path, str]) -> None:
    bundle, printed = int8
    card = json.loads((bundle / "model.json").read_text())
    assert card["name"] == "nih-densenet121-int8"
    found = card["metrics"]["against_fp32"]
    assert found["images"] == 32
    change = found["labels"]["abnormal"]
    assert change["rank_correlation"] > 0.9
    assert 0 < change["mean_change"] <= change["greatest_change"]
    assert f"rank correlation with float {change['rank_correlation']}" in printed
    assert f"{change['labels_changed']} of 32 labels change" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int8"], "--int8 and --images: expected both, or neither"),
        (["--images", "empty"], "--int8 and --images: expected both, or neither"),
        (["--int8", "--images", "none"], "none: expected a folder"),
        (["--int8", "--images", "empty"], "empty: 0 X-rays in it: expected two or more"),
        (["--int8", "--images", "text"], "text: 0 X-rays in it: expected two or more"),
    ],
)
def test_int8_without_images(
    bare: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    torch.save(bare, tmp_path / "bare.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("text")
    monkeypatch.chdir(tmp_path)
    labels = "--labels", "A,B,C,D,E", "--thresholds", "0.1,0.2,0.3,0.4,0.5"
    assert said in refusal(monkeypatch, "torchxrayvision", "bare.pt", *labels, "--out", "bundle", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.pt", "empty", "text"]


def xrv_crop(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The crop of torchxrayvision's XRayCenterCrop."""
    height, width = plane.shape
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    return plane[top : top + side, left : left + side]


def xrv_inputs(xrays: Sequence[Path]) -> Tensor:
    """Prepared as by torchxrayvision. tests/test_resampling.py tests `resize` against its XRayResizer."""
    planes = [np.asarray(Image.open(path).convert("RGB"))[:, :, 0] for path in xrays]
    resized = np.stack([resize(xrv_crop(plane), 224) for plane in planes])[:, np.newaxis]
    return torch.from_numpy((2 * (resized / 255) - 1) * 1024)


@torch.inference_mode()
def xrv_torch_scores(network: models.DenseNet, inputs: Tensor) -> Floats:
    """Scores by the steps of torchxrayvision: features2, classifier and op_norm."""
    features = torch.cat([network.features(batch) for batch in batches(inputs)])
    pooled = functional.adaptive_avg_pool2d(functional.relu(features), (1, 1)).flatten(1)
    scores = network.classifier(pooled).sigmoid()[:, XRV_KEPT]
    for i, kept in enumerate(XRV_KEPT):
        point = XRV_POINTS[kept]
        for row in scores:
            row[i] = row[i] / (point * 2) if row[i] < point else 1 - (1 - row[i]) / ((1 - point) * 2)
    expected: Floats = scores.numpy()
    return expected


@pytest.fixture(scope="module")
def xrv_network(xrays: list[Path]) -> models.DenseNet:
    network = models.densenet121(num_classes=len(XRV_LABELS))
    network.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return randomise(network, xrv_inputs(xrays[::4]))


@pytest.fixture(scope="module")
def xrv_bundle(xrv_network: models.DenseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xrv")
    path = folder / "densenet121-res224-test.pt"
    state = {**xrv_network.state_dict(), "op_threshs": torch.tensor(XRV_POINTS)}
    torch.save({"state_dict": state, "labels": list(XRV_LABELS)}, path)
    with pytest.MonkeyPatch.context() as patch:
        run_export(patch, "torchxrayvision", path, "--out", folder / "bundle")
    return folder / "bundle"


@XRV
def test_xrv_scores_equal_torch(xrv_bundle: Path, xrv_network: models.DenseNet, xrays: list[Path]) -> None:
    scores = score_files(Model(xrv_bundle), xrays)
    inputs = xrv_inputs(xrays)
    assert greatest_difference(scores, xrv_torch_scores(xrv_network, inputs)) <= TOLERANCE
    assert ((scores.min(0) < 0.5) & (scores.max(0) > 0.5)).all()  # on both sides of every operating point
    flipped = inputs[::4].flip(3)
    assert greatest_difference(scores[::4], xrv_torch_scores(xrv_network, flipped)) > 10 * TOLERANCE


@pytest.mark.parametrize("size", [(300, 401), (1027, 1000), (999, 1022), (64, 201)])
def test_xrv_pixels_equal_torchxrayvision_in_any_size(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    prepare = Preprocessing(channels=1, resize=224, crop=224, square=True, resampling="gaussian")
    np.testing.assert_array_equal(prepare(Image.fromarray(noise))[0], resize(xrv_crop(noise), 224))


@XRV
def test_xrv_outputs_do_not_depend_on_the_batch(xrv_bundle: Path, xrays: list[Path]) -> None:
    model = Model(xrv_bundle)
    pixels = np.stack([model.prepare(path.read_bytes())[0] for path in xrays[:16]])
    assert pixels.dtype == np.float32
    assert_same_bits_in_any_batch(xrv_bundle, pixels)


@XRV
def test_the_xrv_bundle_is_complete(xrv_bundle: Path) -> None:
    assert_one_file_without_traces(xrv_bundle)
    card = json.loads((xrv_bundle / "model.json").read_text())
    assert card["name"] == "densenet121-res224-test"
    assert card["labels"] == [{"name": name, "threshold": 0.5} for name in ("Atelectasis", "Edema", "Hernia")]
    assert card["score"] == "operating point"
    assert "not probabilities" in card["limitations"][1]
    assert card["training"]["operating_points"]["Edema"] == pytest.approx(0.4)
    assert "Apache-2.0" in card["licence"]
    assert set(card["self_test"]) == {"Atelectasis", "Edema", "Hernia"}


@pytest.fixture(scope="module")
def bare() -> dict[str, Tensor]:
    """A state_dict without operating points."""
    return dict(densenet121(outputs=5, channels=1).state_dict())


def test_labels_and_thresholds_as_arguments(bare: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(bare, tmp_path / "bare.pt")
    points = [0.1, 0.2, 0.3, float("nan"), 0.5]
    _, card = export.read_torchxrayvision(tmp_path / "bare.pt", list("ABCDE"), points)
    assert [label["name"] for label in card["labels"]] == ["A", "B", "C", "E"]
    assert card["training"]["operating_points"]["B"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "labels: expected a list of names"),
        (["--labels", "A,B"], "2 labels and 5 thresholds: expected one of each for every output"),
        (["--labels", "A,B,C,D,A"], "labels A, C, A: expected one or more, each once"),
        (["--labels", ",,,,"], "expected one or more"),
        (["--labels", "A,B,C,D,E", "--thresholds", "0.1,,0.3,,1.5"], "threshold of E is 1.5"),
        (["--labels", "A,B", "--thresholds", "0.1,0.2"], "classifier.weight in state_dict has shape"),
    ],
)
def test_labels_and_thresholds_that_do_not_match_the_network(
    bare: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    torch.save({**bare, "op_threshs": torch.tensor(XRV_POINTS)}, tmp_path / "bare.pt")
    arguments = ["torchxrayvision", tmp_path / "bare.pt", *options, "--out", tmp_path / "bundle"]
    assert said in refusal(monkeypatch, *map(str, arguments))


def test_missing_thresholds(bare: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(bare, tmp_path / "bare.pt")
    arguments = "torchxrayvision", tmp_path / "bare.pt", "--labels", "A,B,C,D,E", "--out", tmp_path / "bundle"
    assert "no op_threshs: give --thresholds" in refusal(monkeypatch, *arguments)


IMAGENET = [
    *("--resize", "256", "--crop", "224"),
    *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
]
MODULES = """
import torch

def grey():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 7, stride=4),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 1),
    )

class Two(torch.nn.Module):
    def forward(self, images):
        return images, images

def text():
    return "network"
"""


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("chests")
    write_phantoms(folder, 4)
    return sorted(folder.iterdir())


def test_a_network_of_torchvision_scores_as_in_torch(
    chests: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = models.resnet18(num_classes=3).eval()
    torch.save({"model_state_dict": network.state_dict(), "epoch": 3}, tmp_path / "resnet.pt")
    arguments = [
        "--weights",
        str(tmp_path / "resnet.pt"),
        "--labels",
        "a,b,c",
        *IMAGENET,
        "--activation",
        "softmax",
    ]
    run_export(monkeypatch, "torchvision", "resnet18", *arguments, "--out", tmp_path / "bundle")
    with torch.inference_mode():
        expected = network(nih_inputs(chests)).softmax(1).numpy()
    assert abs(score_files(Model(tmp_path / "bundle"), chests) - expected).max() <= TOLERANCE
    card = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert (card["name"], card["architecture"]) == ("resnet18", "ResNet")
    assert card["training"]["checkpoint_sha256"]
    assert set(card["self_test"]) == {"a", "b", "c"}


def test_a_module_of_ones_own_scores_as_in_torch(
    chests: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks.py").write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)
    own_networks = importlib.import_module("own_networks")
    options = "--labels", "effusion", "--resize", "144", "--crop", "128", "--mean", "0.5", "--std", "0.25"
    run_export(
        monkeypatch,
        *("module", "own_networks:grey", *options, "--activation", "sigmoid", "--thresholds", "0.4"),
        *("--out", tmp_path / "bundle"),
    )
    prepare = transforms.Compose(
        [
            transforms.Resize(144),
            transforms.CenterCrop(128),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.25]),
        ]
    )
    inputs = torch.stack([prepare(Image.open(path)) for path in chests])
    with torch.inference_mode():
        expected = own_networks.grey().eval()(inputs).sigmoid().numpy()
    model = Model(tmp_path / "bundle")
    assert abs(score_files(model, chests) - expected).max() <= TOLERANCE
    assert (model.name, model.card["labels"]) == ("grey:1.0.0", [{"name": "effusion", "threshold": 0.4}])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["module", "no_such_package.x:y"], "No module named 'no_such_package'; install no_such_package"),
        (["module", "own_networks"], "own_networks: AttributeError"),
        (["module", "own_networks:gone"], "own_networks:gone: AttributeError"),
        (["module", "own_networks:text"], "expected a torch.nn.Module, found str"),
        (["module", "own_networks:Two"], "it returns tuple: expected one tensor"),
        (["module", "own_networks:grey"], "torch cannot run or export it: RuntimeError"),
        (["torchvision", "gone", "--weights", "gone.pt"], "Unknown model gone"),
        (["torchvision", "resnet18", "--weights", "gone.pt"], "No such file"),
        (["torchvision", "resnet18", "--weights", "other.pt"], "state_dict has no conv1.weight"),
    ],
)
def test_a_network_that_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    (tmp_path / "own_networks.py").write_text(MODULES)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    monkeypatch.chdir(tmp_path)
    options = [*IMAGENET, "--labels", "a,b", "--activation", "softmax", "--out", "bundle"]
    assert said in refusal(monkeypatch, *arguments, *options)
    assert not (tmp_path / "bundle").exists()


def test_what_packing_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.resnet18(num_classes=2)
    torch.save(network.state_dict(), tmp_path / "resnet.pt")
    options = [
        "--weights",
        str(tmp_path / "resnet.pt"),
        *IMAGENET,
        "--labels",
        "a,b",
        "--activation",
        "none",
    ]
    said = refusal(monkeypatch, "torchvision", "resnet18", *options, "--out", tmp_path / "bundle")
    # Random outputs may lie within 0 and 1 on the drawings and beyond on the test images.
    assert "these are no probabilities" in said or "expected scores from 0 to 1" in said


class FakeLibrary:
    """torchxrayvision as far as it is used; it downloads weights and has a name for each output."""

    def __init__(self, network: models.DenseNet) -> None:
        def make(weights: str) -> models.DenseNet:
            if weights != "densenet121-res224-all":
                raise Exception(f"weights {weights} not found\nmore")
            return network

        self.models = SimpleNamespace(DenseNet=make)


def test_torchxrayvision_by_the_name_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = densenet121(outputs=5, channels=1)
    network.register_buffer("op_threshs", torch.tensor(XRV_POINTS))
    network.pathologies = list(XRV_LABELS)
    monkeypatch.setitem(sys.modules, "torchxrayvision", FakeLibrary(network))
    monkeypatch.chdir(tmp_path)
    run_export(monkeypatch, "torchxrayvision", "densenet121-res224-all", "--out", tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert [label["name"] for label in card["labels"]] == ["Atelectasis", "Edema", "Hernia"]
    said = refusal(monkeypatch, "torchxrayvision", "gone", "--out", tmp_path / "second")
    assert said.endswith("gone: torchxrayvision: weights gone not found")


@pytest.mark.parametrize(
    ("arguments", "library"),
    [(["torchxrayvision", "densenet121-res224-all"], "torchxrayvision"), (["timm", "resnet18"], "timm")],
)
def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pt")
    options = [
        "--weights",
        str(tmp_path / "w.pt"),
        *IMAGENET,
        "--labels",
        "a,b",
        "--activation",
        "softmax",
    ]
    more = options if library == "timm" else []
    assert f"install {library}" in refusal(monkeypatch, *arguments, *more, "--out", tmp_path / "bundle")
