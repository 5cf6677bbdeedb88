"""`cxr model pack`: bundles of ONNX files of every form, and why a file cannot be packed."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from classifier.model import Model
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support import ROOT
from test_model_commands import cxr
from typer.testing import Result

from cxr.phantoms import draw_phantom

SIDE = 32
MEAN, STD = {1: "0.5", 3: "0.485,0.456,0.406"}, {1: "0.25", 3: "0.229,0.224,0.225"}
Sizes = list[Any]


def network(
    outputs: int = 3,
    channels: int = 3,
    *,
    sizes: Sizes | None = None,
    element: int = TensorProto.FLOAT,
    ending: Callable[[str], list[onnx.NodeProto]] | None = None,
    result: Sizes | None = None,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A convolution, average pooling and a matrix product: [images, channels, height, width] to outputs.

    `ending` gives nodes from the name of the last value to `logits`.
    """
    random = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(element)
    weights = {
        "kernel": random.normal(0, 1, (8, channels, 3, 3)),
        "matrix": random.normal(0, 0.3, (8, outputs)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        *(ending or (lambda last: [helper.make_node("Identity", [last], ["logits"])]))("product"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", element, sizes or ["n", channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", element, result or ["n", outputs])],
        [numpy_helper.from_array(value.astype(kind), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.operators", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def pack(
    folder: Path,
    model: onnx.ModelProto,
    labels: str = "a,b,c",
    activation: str = "softmax",
    channels: int = 3,
    **options: str,
) -> Result:
    """Pack a graph into `folder`/bundle by the command; keywords are more options, or others."""
    onnx.save(model, folder / "network.onnx")
    given = {
        "labels": labels,
        "resize": "36",
        "crop": str(SIDE),
        "mean": MEAN[channels],
        "std": STD[channels],
        "activation": activation,
        "out": str(folder / "bundle"),
        **options,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    return cxr("model", "pack", folder / "network.onnx", *words)


def refusal(folder: Path, model: onnx.ModelProto, **options: Any) -> str:
    """What the command says of a file that cannot be packed. Nothing is left."""
    result = pack(folder, model, **options)
    assert result.exit_code == 2, result.stderr
    assert [path.name for path in folder.iterdir()] == ["network.onnx"]
    return " ".join(result.stderr.replace(str(folder), "").split())


def logits(model: onnx.ModelProto, image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """The outputs of a graph by ONNX Runtime, of an image prepared here."""
    resized = image.resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    planes = np.broadcast_to(np.asarray(resized) / 255, (channels, SIDE, SIDE))
    mean, std = (
        np.array(text.split(","), float).reshape(-1, 1, 1) for text in (MEAN[channels], STD[channels])
    )
    inputs = ((planes - mean) / std)[np.newaxis].astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(["logits"], {"image": inputs})[0])


def scores(bundle: Path, image: Image.Image, file: Path) -> dict[str, float]:
    """The scores that `cxr score` gives an image."""
    image.save(file)
    result = cxr("score", "--json", "--bundle", bundle, file)
    found: dict[str, float] = json.loads(result.stdout)["scores"]
    return found


def softmax(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def test_three_labels_with_softmax(tmp_path: Path) -> None:
    model, image = network(), draw_phantom(7, opacity=True)
    result = pack(tmp_path, model, thresholds="0.2,0.3,0.4", name="lungs", version="2.1")
    assert result.exit_code == 0, result.stderr
    assert "scores of drawings are those of" in result.stdout
    expected = softmax(logits(model, image, 3)[0])
    found = scores(tmp_path / "bundle", image, tmp_path / "x.png")
    assert list(found) == ["a", "b", "c"]
    np.testing.assert_allclose(list(found.values()), expected, atol=2e-6)
    assert expected.max() < 0.99  # scores near 0 and 1 would prove little
    card = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert (card["name"], card["version"]) == ("lungs", "2.1")
    assert [label["threshold"] for label in card["labels"]] == [0.2, 0.3, 0.4]
    assert card["preprocessing"] == {"channels": 3, "resize": 36, "crop": SIDE}
    assert set(card["self_test"]) == {"a", "b", "c"}
    assert cxr("model", "check", tmp_path / "bundle").exit_code == 0


def test_one_channel_and_one_label_with_sigmoid(tmp_path: Path) -> None:
    model, image = network(1, 1), draw_phantom(8, opacity=False)
    assert pack(tmp_path, model, "effusion", "sigmoid", channels=1).exit_code == 0
    (found,) = scores(tmp_path / "bundle", image, tmp_path / "x.png").values()
    expected = 1 / (1 + np.exp(-logits(model, image, 1)[0, 0]))
    assert found == pytest.approx(expected, abs=2e-6)
    assert 0.01 < expected < 0.99


def test_probabilities_and_outputs_that_are_left_out(tmp_path: Path) -> None:
    model = network(ending=lambda last: [helper.make_node("Softmax", [last], ["logits"], axis=1)])
    image = draw_phantom(9, opacity=True)
    assert pack(tmp_path, model, ",b,c", "none").exit_code == 0
    expected = logits(model, image, 3)[0]
    found = scores(tmp_path / "bundle", image, tmp_path / "x.png")
    assert found == pytest.approx({"b": expected[1], "c": expected[2]}, abs=2e-6)


def maps_of_one(last: str) -> list[onnx.NodeProto]:
    shape = numpy_helper.from_array(np.array([-1, 3, 1, 1]))
    return [
        helper.make_node("Constant", [], ["target"], value=shape),
        helper.make_node("Reshape", [last, "target"], ["logits"]),
    ]


def one_row(last: str) -> list[onnx.NodeProto]:
    """What an exporter writes for `flatten(1)` where the batch is one image."""
    shape = numpy_helper.from_array(np.array([1, 3]))
    return [
        helper.make_node("Constant", [], ["target"], value=shape),
        helper.make_node("Reshape", [last, "target"], ["logits"], allowzero=1),
    ]


@pytest.mark.parametrize(
    "model",
    [
        network(sizes=["n", 3, "height", "width"]),
        network(sizes=["n", "channels", None, None]),
        network(sizes=[1, 3, SIDE, SIDE], result=[1, 3]),
        network(sizes=[1, 3, SIDE, SIDE], result=[1, 3], ending=one_row),
        network(ending=maps_of_one, result=["n", 3, 1, 1]),
        network(opset=9, ir_version=4),
    ],
    ids=["any sides", "any channels", "one image", "one image by a Reshape", "maps of one pixel", "old"],
)
def test_other_forms(tmp_path: Path, model: onnx.ModelProto) -> None:
    image = draw_phantom(3, opacity=True)
    result = pack(tmp_path, model)
    assert result.exit_code == 0, result.stderr
    found = scores(tmp_path / "bundle", image, tmp_path / "x.png")
    expected = softmax(logits(model, image, 3).reshape(-1))
    np.testing.assert_allclose(list(found.values()), expected, atol=2e-6)


def test_half_precision(tmp_path: Path) -> None:
    assert pack(tmp_path, network(element=TensorProto.FLOAT16)).exit_code == 0
    found = scores(tmp_path / "bundle", draw_phantom(3, opacity=True), tmp_path / "x.png")
    expected = softmax(logits(network(), draw_phantom(3, opacity=True), 3)[0])
    np.testing.assert_allclose(list(found.values()), expected, atol=5e-3)


def test_channels_last(tmp_path: Path) -> None:
    model = network()
    transpose = helper.make_node("Transpose", ["rows"], ["image"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, transpose)
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", SIDE, SIDE, 3]))
    assert pack(tmp_path, model).exit_code == 0
    found = scores(tmp_path / "bundle", draw_phantom(3, opacity=True), tmp_path / "x.png")
    expected = softmax(logits(network(), draw_phantom(3, opacity=True), 3)[0])
    np.testing.assert_allclose(list(found.values()), expected, atol=2e-6)


def test_names_that_the_bundle_uses_itself(tmp_path: Path) -> None:
    """The names pixels and scores are free in a file, too."""
    model = network()
    swapped = {"image": "scores", "logits": "pixels", "maps": "grey", "flat": "mean"}
    for node in model.graph.node:
        node.input[:] = [swapped.get(name, name) for name in node.input]
        node.output[:] = [swapped.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "scores", "pixels"
    assert pack(tmp_path, model).exit_code == 0


def test_one_of_several_outputs(tmp_path: Path) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["n", 8]))
    assert "found 2 outputs, logits, flat: expected the name of one of them" in refusal(tmp_path, model)
    assert "output gone: expected one of logits, flat" in refusal(tmp_path, model, output="gone")
    assert pack(tmp_path, model, output="logits").exit_code == 0


def in_training(last: str) -> list[onnx.NodeProto]:
    """A normalisation over the images of a batch."""
    return [
        helper.make_node("ReduceMean", [last], ["middle"], axes=[0], keepdims=1),
        helper.make_node("Sub", [last, "middle"], ["centred"]),
        helper.make_node("Identity", ["centred"], ["logits"]),
    ]


def of_one_image(last: str) -> list[onnx.NodeProto]:
    """Outputs whose number depends on the number of images."""
    shape = numpy_helper.from_array(np.array([3]))
    row = numpy_helper.from_array(np.array([1, 3]))
    return [
        helper.make_node("Constant", [], ["target"], value=shape),
        helper.make_node("Reshape", [last, "target"], ["values"]),
        helper.make_node("Constant", [], ["row"], value=row),
        helper.make_node("Expand", ["values", "row"], ["logits"]),
    ]


def foreign(last: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Unheard", [last], ["logits"], domain="my.operators")]


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (network(), {"labels": "a,b"}, "output logits has 3 values: expected as many labels, found 2"),
        (network(), {"labels": "a,b,c,d"}, "output logits has 3 values: expected as many labels, found 4"),
        (network(), {"labels": "a,b,a"}, "labels a, b, a: expected one or more, each once"),
        (network(), {"labels": ",,"}, "labels , , : expected one or more"),
        (network(), {"activation": "none"}, "these are no probabilities: expected a sigmoid or a softmax"),
        (network(1), {"labels": "a"}, "softmax of one output is always 1"),
        (network(), {"mean": "0.5"}, "mean: expected a number for each of the input's 3 channels, found 1"),
        (network(), {"std": "0.5,0.5"}, "std: expected 1 number, or 3 for a colour image, found 2"),
        (network(1, 1), {"labels": "a", "activation": "sigmoid"}, "of the input's 1 channels, found 3"),
        (network(), {"mean": "123.7,116.3,103.5"}, "mean: expected numbers from 0 to 1"),
        (network(), {"std": "0.2,0.2,0"}, "std: expected numbers from 0 to 1"),
        (network(), {"std": "0.2,much,0"}, "--std 0.2,much,0: expected numbers with commas between them"),
        (network(), {"thresholds": "0.5"}, "1 thresholds for 3 labels"),
        (network(), {"thresholds": "0.5,0.5,1.5"}, "thresholds: expected numbers from 0 to 1"),
        (network(), {"crop": "40"}, "resize 36, crop 40: expected whole numbers, crop at most resize"),
        (network(), {"crop": "24"}, "it takes 32 x 32 pixels, but the crop is 24"),
        (network(channels=4), {}, "input image: expected 1 or 3 channels, found 4"),
        (network(sizes=["n", 3, SIDE]), {}, "expected [images, channels, height, width], found 3 dimensions"),
        (network(sizes=[8, 3, SIDE, SIDE]), {}, "expected 1 image or any number, found always 8"),
        (network(ending=in_training), {}, "the score of an image depends on the other images of its batch"),
        (
            network(sizes=[1, 3, SIDE, SIDE], result=[1, 3], ending=of_one_image),
            {},
            "it takes one image at a time, and cannot be changed to take more",
        ),
        (network(ending=foreign), {}, "my.operators:Unheard(-1) is not a registered function/op"),
        (network(ir_version=14), {}, "cannot run it: Unsupported model IR version: 14"),
        (network(ir_version=99), {}, "ir_version 99 is higher"),
        (network(opset=99), {}, "99"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, model: onnx.ModelProto, options: dict[str, str], said: str
) -> None:
    assert said in refusal(tmp_path, model, **options)


def test_a_second_sigmoid_is_refused(tmp_path: Path) -> None:
    model = network(ending=lambda last: [helper.make_node("Sigmoid", [last], ["logits"])])
    assert "comes from a Sigmoid already" in refusal(tmp_path, model, activation="sigmoid")


def test_whole_numbers_as_input_and_two_inputs(tmp_path: Path) -> None:
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "floats"
    assert "input image: expected numbers of type float" in refusal(tmp_path, model)
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["n", 1]))
    assert "expected one input, the images, found image, age" in refusal(tmp_path, model)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    result = pack(tmp_path, network(), "a", mean="0.5", crop="40", thresholds="0.1,0.2")
    assert result.stderr.startswith("Error: 5 problems:\n  ")
    assert len(result.stderr.splitlines()) == 6


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x01", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    result = pack_file(file, tmp_path / "bundle")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"Error: {file}: expected a file in ONNX, found something else"]
    assert "found a folder" in pack_file(tmp_path, tmp_path / "bundle").stderr
    assert "No such file" in pack_file(tmp_path / "gone", tmp_path / "bundle").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_in_another_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(network(), file, save_as_external_data=True, location="model.data", size_threshold=0)
    assert pack_file(file, tmp_path / "bundle").exit_code == 0
    assert not any(path.suffix == ".data" for path in (tmp_path / "bundle").iterdir())
    (tmp_path / "model.data").unlink()
    result = pack_file(file, tmp_path / "second")
    assert result.stderr.splitlines() == [
        f"Error: {file}: its weights are in other files: expected model.data beside it"
    ]
    assert not (tmp_path / "second").exists()


def test_no_bundle_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    result = pack(tmp_path, network())
    assert result.exit_code == 2
    assert "no bundle is overwritten" in result.stderr
    assert list((tmp_path / "bundle").iterdir()) == []


def pack_file(file: Path, out: Path) -> Result:
    options = {"labels": "a,b,c", "resize": 36, "crop": SIDE, "mean": MEAN[3], "std": STD[3]}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return cxr("model", "pack", file, *words, "--activation", "softmax", "--out", out)


def test_a_packed_bundle_is_a_model_in_a_notebook(tmp_path: Path) -> None:
    pack(tmp_path, network())
    model = Model(tmp_path / "bundle", trial=True)
    assert model.name == "network:1.0.0"


@pytest.mark.slow  # a local AWS of its own
def test_a_run_scores_with_the_packed_model(tmp_path: Path) -> None:
    """From a file in ONNX to rows of results, through the whole stack."""
    if not shutil.which("node") or not (ROOT / "node_modules").exists():
        pytest.skip("needs Node.js and `npm ci`")
    model = network()
    pack(tmp_path, model)
    (tmp_path / "images").mkdir()
    for number in range(3):
        draw_phantom(number, opacity=True).save(tmp_path / "images" / f"{number}.png")
    csv_file = tmp_path / "results.csv"
    result = cxr(
        *("local", "demo", "--bundle", tmp_path / "bundle"),
        *("--images", tmp_path / "images", "--csv", csv_file),
    )
    assert result.exit_code == 0, result.output
    assert "3 scored by network:1.0.0" in result.stdout
    with csv_file.open() as file:
        rows = list(csv.DictReader(file))
    expected = [softmax(logits(model, draw_phantom(n, opacity=True), 3)[0])[0] for n in range(3)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-4)


def test_a_demo_refuses_a_bundle_before_it_starts_anything(tmp_path: Path) -> None:
    pack(tmp_path, network())
    card = json.loads((tmp_path / "bundle" / "model.json").read_text())
    (tmp_path / "bundle" / "model.json").write_text(json.dumps(card | {"labels": card["labels"][:2]}))
    result = cxr("local", "demo", "--bundle", tmp_path / "bundle", "--csv", tmp_path / "results.csv")
    assert result.exit_code == 2
    assert "expected scores of float [images, 2] by model.json" in result.stderr
    assert not (tmp_path / "results.csv").exists()
