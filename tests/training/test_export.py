"""Exported bundles against torch, from the bytes of a file to the score."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from classifier.model import Model
from classifier.resampling import resize
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from training import export

ROOT = Path(__file__).parents[2]
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"
TOLERANCE = 1e-4

Floats = npt.NDArray[np.float32]
Transform = Callable[[Image.Image], Tensor]


@pytest.fixture(scope="module")
def xrays() -> list[Path]:
    """Forty full-size NIH chest X-rays."""
    files = sorted(XRAYS.rglob("*.png"))
    if not files:
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    return files


def seeded(network: models.DenseNet, inputs: Tensor) -> models.DenseNet:
    """Random weights of which the scores of these inputs spread, as those of a trained network do."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.2, 0.2)
                module.momentum = None  # the mean of what it sees
        network.train()(inputs)
        network.eval()
        network.classifier.weight.normal_()
        logits = network(inputs)
        network.classifier.weight /= logits.std(0)[:, None]
        network.classifier.bias -= logits.mean(0) / logits.std(0)
    return network


def scored(model: Model, xrays: Sequence[Path]) -> Floats:
    """The bundle's scores [N, labels] from the bytes of the files."""
    scores = (model.score([model.prepare(path.read_bytes())[0]])[0] for path in xrays)
    return np.array([list(map(float, row.values())) for row in scores], np.float32)


def worst(scores: Floats, expected: Floats) -> float:
    assert (expected.std(0) > 0.05).all()  # a difference would show
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


def assert_one_clean_file(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    # Those in front of a convolution stay: a ReLU stands between the two.
    assert sum(node.op_type == "BatchNormalization" for node in graph.graph.node) == 62
    assert sorted(path.name for path in bundle.iterdir()) == ["model.json", "model.onnx"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    export.main()


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *arguments)
    message = str(error.value.code)
    assert message.startswith("python -m training.export: ")
    assert "\n" not in message
    return message


class TestNih:
    @staticmethod
    def transform(mode: InterpolationMode = InterpolationMode.BILINEAR) -> Transform:
        """The paper's, in torchvision's words."""
        done: Transform = transforms.Compose(
            [
                transforms.Resize(256, interpolation=mode),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
        return done

    @staticmethod
    def inputs(xrays: Sequence[Path], transform: Transform) -> Tensor:
        return torch.stack([transform(Image.open(path).convert("RGB")) for path in xrays])

    @pytest.fixture(scope="class")
    def network(self, xrays: list[Path]) -> models.DenseNet:
        return seeded(models.densenet121(num_classes=1), self.inputs(xrays[::2], self.transform()))

    @pytest.fixture(scope="class")
    def oracle(self, network: models.DenseNet) -> Callable[[Tensor], Floats]:
        @torch.inference_mode()
        def score(inputs: Tensor) -> Floats:
            scores: Floats = torch.cat([network(batch) for batch in inputs.split(8)]).sigmoid().numpy()
            return scores

        return score

    @pytest.fixture(scope="class")
    def bundle(self, network: models.DenseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("nih")
        path = folder / "densenet121_256_64_0.001"
        fields = {"Epoch": 1, "state_dict": network.state_dict(), "best_loss": 0.1, "optimizer": {}}
        torch.save(fields, path, _use_new_zipfile_serialization=False)
        with pytest.MonkeyPatch.context() as patch:
            run(patch, "nih", path, "--out", folder / "bundle")
        return folder / "bundle"

    @pytest.fixture(scope="class")
    def scores(self, bundle: Path, xrays: list[Path]) -> Floats:
        return scored(Model(bundle), xrays)

    def test_scores_are_torchs_from_the_bytes_of_the_file_on(
        self, scores: Floats, xrays: list[Path], oracle: Callable[[Tensor], Floats]
    ) -> None:
        assert worst(scores, oracle(self.inputs(xrays, self.transform()))) <= TOLERANCE

    def test_that_comparison_rejects_a_bicubic_resize(
        self, scores: Floats, xrays: list[Path], oracle: Callable[[Tensor], Floats]
    ) -> None:
        bicubic = self.inputs(xrays, self.transform(InterpolationMode.BICUBIC))
        assert worst(scores, oracle(bicubic)) > 10 * TOLERANCE

    def test_that_comparison_rejects_a_horizontal_flip(
        self, scores: Floats, xrays: list[Path], oracle: Callable[[Tensor], Floats]
    ) -> None:
        flipped = self.inputs(xrays, self.transform()).flip(3)
        assert worst(scores, oracle(flipped)) > 10 * TOLERANCE

    def test_pixels_are_torchvisions(self, bundle: Path, xrays: list[Path]) -> None:
        model = Model(bundle)
        transform = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
        )
        for path in xrays:
            pixels, _ = model.prepare(path.read_bytes())
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, transform(Image.open(path).convert("RGB")).numpy())

    def test_the_same_bits_alone_and_in_any_batch(self, bundle: Path, xrays: list[Path]) -> None:
        model = Model(bundle)
        pixels = np.stack([model.prepare(path.read_bytes())[0] for path in xrays[:16]])
        assert_same_bits_in_any_batch(bundle, pixels)

    def test_the_map_adds_up_to_the_logit(
        self, bundle: Path, xrays: list[Path], network: models.DenseNet
    ) -> None:
        model = Model(bundle)
        with torch.inference_mode():
            logits = network(self.inputs(xrays[:4], self.transform())) - network.classifier.bias
        for path, logit in zip(xrays, logits[:, 0].tolist(), strict=False):
            cam = model.explain(model.prepare(path.read_bytes())[0])["abnormal"]
            assert cam.shape == (7, 7)
            assert cam.sum() == pytest.approx(logit, abs=1e-3)

    def test_the_bundle_is_whole_and_says_what_it_is(self, bundle: Path) -> None:
        assert_one_clean_file(bundle)
        card = json.loads((bundle / "model.json").read_text())
        assert card["sha256"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
        assert card["score"] == "probability"
        assert card["cam"] is True
        assert card["metrics"] == {}
        assert "Not measured here" in card["limitations"]
        assert "not-for-profit" in card["licence"]
        assert "no redistribution" in card["licence"]
        assert "CADLab" in card["attribution"]
        assert set(card["self_test"]) == {"abnormal"}

    def test_a_bundle_is_not_overwritten(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (bundle / "model.json").read_bytes()
        checkpoint = bundle.parent / "densenet121_256_64_0.001"
        assert "is there already" in refusal(monkeypatch, "nih", checkpoint, "--out", bundle)
        assert (bundle / "model.json").read_bytes() == before

    def test_a_bundle_that_fails_leaves_nothing(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(onnx, "save", full)
        checkpoint = bundle.parent / "densenet121_256_64_0.001"
        assert "no space left" in refusal(monkeypatch, "nih", checkpoint, "--out", tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    def test_no_such_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "No such file" in refusal(monkeypatch, "nih", tmp_path / "none", "--out", tmp_path / "bundle")


class TestTorchXRayVision:
    LABELS = ("Atelectasis", "", "Edema", "Lung Lesion", "Hernia")
    POINTS = (0.0742, float("nan"), 0.3, float("nan"), 0.62)
    KEPT = (0, 2, 4)

    @staticmethod
    def inputs(xrays: Sequence[Path]) -> Tensor:
        """As torchxrayvision crops, but for its XRayResizer; tests/test_resampling.py pins that one."""
        planes = []
        for path in xrays:
            plane = np.asarray(Image.open(path).convert("RGB"))[:, :, 0]
            height, width = plane.shape
            side = min(height, width)
            top, left = height // 2 - side // 2, width // 2 - side // 2
            planes.append(resize(plane[top : top + side, left : left + side], 224))
        return torch.from_numpy((2 * (np.stack(planes)[:, np.newaxis] / 255) - 1) * 1024)

    @pytest.fixture(scope="class")
    def network(self, xrays: list[Path]) -> models.DenseNet:
        network = models.densenet121(num_classes=len(self.LABELS))
        network.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        return seeded(network, self.inputs(xrays[::2]))

    @pytest.fixture(scope="class")
    def state(self, network: models.DenseNet) -> dict[str, Any]:
        return {**network.state_dict(), "op_threshs": torch.tensor(self.POINTS)}

    @pytest.fixture(scope="class")
    def bundle(self, state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("xrv")
        path = folder / "densenet121-res224-test.pt"
        torch.save({"state_dict": state, "labels": list(self.LABELS)}, path)
        with pytest.MonkeyPatch.context() as patch:
            run(patch, "torchxrayvision", path, "--out", folder / "bundle")
        return folder / "bundle"

    @torch.inference_mode()
    def oracle(self, network: models.DenseNet, inputs: Tensor) -> Floats:
        """As torchxrayvision scores: its features2, classifier and op_norm."""
        features = torch.cat([network.features(batch) for batch in inputs.split(8)])
        pooled = functional.adaptive_avg_pool2d(functional.relu(features), (1, 1)).flatten(1)
        scores = network.classifier(pooled).sigmoid()[:, self.KEPT]
        for i, kept in enumerate(self.KEPT):
            point = self.POINTS[kept]
            for row in scores:
                row[i] = row[i] / (point * 2) if row[i] < point else 1 - (1 - row[i]) / ((1 - point) * 2)
        expected: Floats = scores.numpy()
        return expected

    def test_scores_are_torchs_from_the_bytes_of_the_file_on(
        self, bundle: Path, xrays: list[Path], network: models.DenseNet
    ) -> None:
        inputs = self.inputs(xrays)
        scores = scored(Model(bundle), xrays)
        assert worst(scores, self.oracle(network, inputs)) <= TOLERANCE
        assert ((scores.min(0) < 0.5) & (scores.max(0) > 0.5)).all()  # both sides of every operating point
        assert worst(scores, self.oracle(network, inputs.flip(3))) > 10 * TOLERANCE

    def test_the_same_bits_alone_and_in_any_batch(self, bundle: Path, xrays: list[Path]) -> None:
        model = Model(bundle)
        pixels = np.stack([model.prepare(path.read_bytes())[0] for path in xrays[:16]])
        assert pixels.dtype == np.float32
        assert_same_bits_in_any_batch(bundle, pixels)

    def test_the_bundle_is_whole_and_says_what_it_is(self, bundle: Path) -> None:
        assert_one_clean_file(bundle)
        card = json.loads((bundle / "model.json").read_text())
        assert card["name"] == "densenet121-res224-test"
        assert card["labels"] == [
            {"name": name, "threshold": 0.5} for name in ("Atelectasis", "Edema", "Hernia")
        ]
        assert card["score"] == "operating point"
        assert "not probabilities" in card["limitations"]
        assert card["training"]["operating_points"]["Edema"] == pytest.approx(0.3)
        assert "Apache-2.0" in card["licence"]
        assert set(card["self_test"]) == {"Atelectasis", "Edema", "Hernia"}

    def test_labels_and_thresholds_may_be_given(self, state: dict[str, Any], tmp_path: Path) -> None:
        del (bare := dict(state))["op_threshs"]
        torch.save(bare, tmp_path / "bare.pt")
        _, card = export.torchxrayvision(
            tmp_path / "bare.pt", list("ABCDE"), [0.1, 0.2, 0.3, float("nan"), 0.5]
        )
        assert [label["name"] for label in card["labels"]] == ["A", "B", "C", "E"]
        assert card["training"]["operating_points"]["B"] == pytest.approx(0.2)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ([], "labels: expected a list of names"),
            (["--labels", "A,B"], "2 labels and 5 thresholds"),
            (["--labels", "A,B,C"], "3 labels and 5 thresholds"),
            (["--labels", "A,B,C,D,A"], "labels A, C, A: expected one or more, each once"),
            (["--labels", ",,,,"], "expected one or more"),
            (["--labels", "A,B,C,D,E", "--thresholds", "0.1,,0.3,,1.5"], "threshold of E is 1.5"),
            (["--labels", "A,B", "--thresholds", "0.1,0.2"], "classifier.weight in state_dict has shape"),
        ],
    )
    def test_labels_and_thresholds_that_do_not_fit(
        self,
        state: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: list[str],
        said: str,
    ) -> None:
        torch.save(state, tmp_path / "bare.pt")
        arguments = "torchxrayvision", tmp_path / "bare.pt", *options, "--out", tmp_path / "bundle"
        assert said in refusal(monkeypatch, *arguments)

    def test_no_thresholds(
        self, network: models.DenseNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.save(network.state_dict(), tmp_path / "bare.pt")
        message = refusal(
            monkeypatch,
            *("torchxrayvision", tmp_path / "bare.pt", "--labels", "A,B,C,D,E", "--out", tmp_path / "bundle"),
        )
        assert "state_dict has no op_threshs: give --thresholds" in message
