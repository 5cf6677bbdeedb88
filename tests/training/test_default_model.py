"""The model that ships: its card, its graph, what it is worth, and its split."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from training import card, data, splits

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "containers" / "classifier" / "model"
SPLIT = ROOT / "training" / "split.csv"
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr-128"


@pytest.fixture(scope="module")
def found() -> dict:  # type: ignore[type-arg]
    return json.loads((BUNDLE / "model.json").read_text())  # type: ignore[no-any-return]


def test_model_json_and_card_describe_this_graph(found) -> None:  # type: ignore[no-untyped-def]
    assert found["sha256"] == hashlib.sha256((BUNDLE / "model.onnx").read_bytes()).hexdigest()
    assert [label["name"] for label in found["labels"]] == ["abnormal"]
    assert (ROOT / "MODEL_CARD.md").read_text() == card.render(found)


def test_it_is_good_enough_on_patients_whom_it_has_not_seen(found) -> None:  # type: ignore[no-untyped-def]
    metrics = found["metrics"]
    by_labels, by_radiologists = (
        metrics["collections"][f"test patients, {who}"] for who in ("NIH's labels", "radiologists")
    )
    assert by_labels["patients"] >= 400
    assert by_labels["auc"]["value"] >= 0.72
    assert by_radiologists["auc"]["value"] >= 0.88
    assert by_radiologists["auc"]["ci95"][0] > 0.85
    for labels in ("labels", "read"):
        assert metrics["compared_with"][labels]["difference"]["ci95"][0] > 0


def test_files_of_other_sizes_score_alike(found) -> None:  # type: ignore[no-untyped-def]
    for folder in ("images-512", "originals"):
        any_two = found["metrics"]["sizes"][folder]["any_two"]
        assert any_two["median"] <= 0.03
        assert any_two["greatest"] <= 0.1


def test_8_bits_ship_if_they_cost_little(found) -> None:  # type: ignore[no-untyped-def]
    int8 = found["metrics"]["int8"]
    changes = [one["difference"]["value"] for one in int8["validation"].values()]
    assert len(changes) == 2
    assert int8["ships"] == (min(changes) >= -0.005)


def test_it_is_one_small_file_without_traces_of_the_machine_that_made_it() -> None:
    graph = onnx.load(BUNDLE / "model.onnx")
    assert (BUNDLE / "model.onnx").stat().st_size < 20e6
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_the_committed_split_is_reproduced(tmp_path: Path) -> None:
    if not XRAYS.exists():
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    images = data.read_labels(XRAYS / "labels.csv", XRAYS)
    splits.write(splits.make(images, seed=0), tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_bytes() == SPLIT.read_bytes()
