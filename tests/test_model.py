"""The bundle that ships, on real X-rays, and bundles whose parts disagree."""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from classifier.bundle import BundleError
from classifier.model import Model
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


def test_a_bundle_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.json: expected a bundle's model\.json and model\.onnx"):
        Model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(BundleError, match=r"model\.json: expected JSON"):
        Model(tmp_path)
