"""The bundle that ships, on real X-rays, and bundles whose parts disagree."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from classifier.bundle import BundleError
from classifier.model import Model
from onnx import TensorProto, helper
from support import ROOT

BUNDLE = ROOT / "containers" / "classifier" / "model"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(BUNDLE)


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle with other fields in its model.json."""

    def alter(**fields: Any) -> Path:
        shutil.copytree(BUNDLE, tmp_path, dirs_exist_ok=True)
        card = json.loads((BUNDLE / "model.json").read_text())
        (tmp_path / "model.json").write_text(json.dumps(card | fields))
        return tmp_path

    return alter


def test_a_score_is_the_same_alone_and_in_any_batch(model: Model, xrays: list[Path]) -> None:
    pixels = [model.prepare(path.read_bytes())[0] for path in xrays[:32]]
    alone = [model.score([image])[0] for image in pixels]
    assert len({scores["abnormal"] for scores in alone}) > 25
    for size in (2, 3, 8, 32):
        batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
        assert [scores for batch in batches for scores in model.score(batch)] == alone


def test_a_score_is_the_same_beside_others(model: Model, xrays: list[Path]) -> None:
    def score(path: Path) -> dict[str, Decimal]:
        return model.score([model.prepare(path.read_bytes())[0]])[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(score, xrays * 2)) == [score(path) for path in xrays] * 2


def test_scores_are_exact_decimals_and_positive_from_the_threshold_on(
    model: Model, xrays: list[Path]
) -> None:
    scores = model.score([model.prepare(xrays[0].read_bytes())[0]])[0]
    assert all(0 <= score <= 1 and score.as_tuple().exponent == -6 for score in scores.values())
    threshold = model.thresholds["abnormal"]
    assert model.positive({"abnormal": threshold}) == ("abnormal",)
    assert model.positive({"abnormal": threshold - Decimal("0.000001")}) == ()


def test_the_engine_cannot_report_to_anybody() -> None:
    """See docs/decisions/0004-onnxruntime-without-telemetry.md."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*")
    assert b"events.data.microsoft.com" not in library.read_bytes()


def test_the_card_says_what_the_model_is_worth() -> None:
    card = json.loads((BUNDLE / "model.json").read_text())
    assert "demonstration" in card["intended_use"].lower()
    assert "NIH Clinical Center" in card["attribution"]
    assert (BUNDLE / "model.onnx").stat().st_size < 20e6


def test_a_graph_with_another_hash_is_refused(altered: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"model\.json: sha256 is 0000, but model\.onnx hashes to"):
        Model(altered(sha256="0000"))


def test_a_file_that_is_no_graph_is_refused(altered: Callable[..., Path]) -> None:
    folder = altered(sha256=hashlib.sha256(b"no graph").hexdigest())
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"model\.onnx: expected a graph for ONNX Runtime"):
        Model(folder)


def test_labels_that_the_graph_does_not_give_are_refused(altered: Callable[..., Path]) -> None:
    labels = [{"name": "abnormal", "threshold": 0.5}, {"name": "edema", "threshold": 0.5}]
    with pytest.raises(BundleError, match=r"expected scores of float \[images, 2\]"):
        Model(altered(labels=labels))


@pytest.mark.parametrize("change", [{"crop": 48}, {"channels": 3}])
def test_an_input_that_the_graph_does_not_take_is_refused(
    altered: Callable[..., Path], change: dict[str, int]
) -> None:
    preprocessing = json.loads((BUNDLE / "model.json").read_text())["preprocessing"]
    with pytest.raises(BundleError, match="expected pixels of uint8"):
        Model(altered(preprocessing=preprocessing | change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [{"name": "abnormal"}]}, r"model\.json: expected a field 'threshold', found none"),
        ({"labels": [{"name": "abnormal", "threshold": "high"}]}, r"model\.json: "),
        ({"preprocessing": {"channels": 3}}, r"model\.json: preprocessing: expected resize, crop"),
        ({"preprocessing": {"channels": 2, "resize": 9, "crop": 9}}, "channels is 1 or 3"),
    ],
)
def test_a_card_that_says_too_little_or_too_much_is_refused(
    altered: Callable[..., Path], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Model(altered(**fields))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": ""}, "name: expected text, found ''"),
        ({"version": 1.0}, "version: expected text, found 1.0"),
        ({"labels": []}, "labels: expected a list of one or more, found []"),
        ({"labels": ["abnormal"]}, "labels: expected objects with name and threshold, found 'abnormal'"),
        (
            {"labels": [{"name": "abnormal", "threshold": 50}]},
            "labels: expected a threshold from 0 to 1, found 50",
        ),
        (
            {"labels": [{"name": "abnormal", "threshold": math.nan}]},
            "labels: expected a threshold from 0 to 1, found nan",
        ),
        ({"labels": [{"name": "", "threshold": 0.5}]}, "labels: expected a name of one or more letters"),
        ({"labels": [{"name": "a", "threshold": 0.5}] * 2}, "labels: expected each once"),
        ({"preprocessing": [56]}, "preprocessing: expected an object, found [56]"),
        ({"preprocessing": {"channels": 1, "resize": "64", "crop": 56}}, "channels is 1 or 3"),
        ({"preprocessing": {"channels": 1, "resize": 10**9, "crop": 56}}, "resize at most 4096"),
        (
            {"preprocessing": {"channels": 1, "resize": 64, "crop": 56, "mean": 0.5}},
            "square, resampling, bit_depth, found mean",
        ),
        ({"cam": "yes"}, "cam: expected true or false, found 'yes'"),
        ({"score": "percent"}, 'score: expected "probability" or "operating point", found \'percent\''),
        ({"training_range": {"brightness": [9, 3]}}, "training_range: expected brightness and contrast"),
        ({"self_test": {"edema": 0.5}}, "self_test: expected a score from 0 to 1 for a label, found edema"),
        ({"self_test": {"abnormal": 1.5}}, "self_test: expected a score from 0 to 1"),
        ({"metrics": []}, "metrics: expected an object, found []"),
        ({"limitations": "none"}, "limitations: expected a list of sentences"),
        ({"licence": None}, "licence: expected text, found None"),
    ],
)
def test_each_field_is_checked(altered: Callable[..., Path], fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BundleError) as refused:
        Model(altered(**fields))
    assert problem in str(refused.value)


def graph(
    scores: list[onnx.NodeProto],
    *,
    pixels: str = "pixels",
    images: str | int = "images",
    sizes: tuple[int, ...] = (1,),
    extra: tuple[str, ...] = (),
) -> bytes:
    """The mean of [images, 1, 8, 8] in a value `mean` [images, 1], and nodes that make `scores` of it."""
    nodes = [
        helper.make_node("Cast", [pixels], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["grey"], ["average"]),
        helper.make_node("Flatten", ["average"], ["mean"]),
        *scores,
    ]
    inputs = [helper.make_tensor_value_info(pixels, TensorProto.UINT8, [images, 1, 8, 8])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images", 1]) for name in extra]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["images", *sizes])]
    made = helper.make_graph(nodes, "graph", inputs, outputs)
    opset = helper.make_opsetid("", 20)
    return bytes(helper.make_model(made, ir_version=10, opset_imports=[opset]).SerializeToString())


def bundle_of(folder: Path, content: bytes) -> Path:
    (folder / "model.onnx").write_bytes(content)
    card = {
        "name": "mean",
        "version": "1",
        "sha256": hashlib.sha256(content).hexdigest(),
        "labels": [{"name": "bright", "threshold": 0.5}],
        "preprocessing": {"channels": 1, "resize": 8, "crop": 8},
    }
    (folder / "model.json").write_text(json.dumps(card))
    return folder


SIGMOID = [helper.make_node("Sigmoid", ["mean"], ["scores"])]


def test_a_bundle_of_the_smallest_graph_works(tmp_path: Path) -> None:
    assert Model(bundle_of(tmp_path, graph(SIGMOID)), trial=True).name == "mean:1"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (graph(SIGMOID, pixels="image"), "expected one input, pixels, found image"),
        (graph([*SIGMOID, helper.make_node("Abs", ["age"], ["a"])], extra=("age",)), "found pixels, age"),
        (graph(SIGMOID, images=4), "expected any number of images in pixels, found always 4"),
        (
            graph([helper.make_node("Sigmoid", ["average"], ["scores"])], sizes=(1, 1, 1)),
            "expected scores of float [images, 1] by model.json",
        ),
    ],
)
def test_a_graph_of_another_form_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(BundleError) as refused:
        Model(bundle_of(tmp_path, content))
    assert problem in str(refused.value)


def test_scores_outside_0_to_1_are_refused(tmp_path: Path) -> None:
    """Without its sigmoid, a model would be deployed, run to COMPLETE, and end in figures above 1."""
    content = graph([helper.make_node("Identity", ["mean"], ["scores"])])
    with pytest.raises(BundleError, match=r"expected scores from 0 to 1, found 1\d\d.* is a sigmoid missing"):
        Model(bundle_of(tmp_path, content), trial=True)
    zero = helper.make_node("Sub", ["mean", "mean"], ["zero"])
    nothing = graph([zero, helper.make_node("Div", ["zero", "zero"], ["scores"])])
    with pytest.raises(BundleError, match="found nan to nan"):
        Model(bundle_of(tmp_path, nothing), trial=True)


def test_scores_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    content = graph(
        [
            helper.make_node("ReduceMean", ["mean"], ["middle"], keepdims=1),
            helper.make_node("Sub", ["mean", "middle"], ["centred"]),
            helper.make_node("Sigmoid", ["centred"], ["scores"]),
        ]
    )
    with pytest.raises(BundleError, match="expected the same score for an image alone and beside others"):
        Model(bundle_of(tmp_path, content), trial=True)


def test_all_problems_are_listed_at_once(altered: Callable[..., Path]) -> None:
    folder = altered(sha256="0000", version="", cam="yes", labels=[{"name": "a", "threshold": 2}] * 2)
    with pytest.raises(BundleError) as refused:
        Model(folder)
    first, *problems = str(refused.value).splitlines()
    assert first == f"{len(problems)} problems:"
    assert len(problems) == 8


def test_a_bundle_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.json: expected a bundle's model\.json and model\.onnx"):
        Model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(BundleError, match=r"model\.json: expected JSON"):
        Model(tmp_path)
