"""The training command with --quick, on drawings: from labels to a bundle that scores."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier.model import Model
from classifier.preprocessing import Preprocessing

from cxr.errors import InputError
from cxr.evaluation.cohort import TrainingSet, fingerprint
from training import augmentation, card, data, fitting, splits, train
from training.fitting import Settings

pytestmark = pytest.mark.xdist_group("train")  # they share what was trained

SQUARE = Preprocessing(channels=1, resize=64, crop=64)


def run_quick(drawings: Path, out: Path, *more: str) -> None:
    options = ("--data", drawings, "--out", out, "--quick", *more)
    train.main([str(option) for option in options])


@pytest.fixture(scope="module")
def trained(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    others = ("--others", str(drawings), "--collections", "second", "--sizes", "first")
    run_quick(drawings, out, *others, "--log", str(out / "log.txt"))
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestBundle:
    def test_scores_do_not_depend_on_the_batch_and_maps_add_up_to_logits(
        self, trained: Path, drawings: Path
    ) -> None:
        model = Model(trained)
        pixels = [model.prepare(file.read_bytes())[0] for file in sorted(drawings.rglob("*.png"))[:40]]
        alone = [model.score([one])[0] for one in pixels]
        assert len({scores["abnormal"] for scores in alone}) > 30
        for size in (3, 40):
            batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
            assert [scores for batch in batches for scores in model.score(batch)] == alone
        biases = []
        for one, scores in zip(pixels, alone, strict=True):
            score = float(scores["abnormal"])
            biases.append(np.log(score / (1 - score)) - model.explain(one)["abnormal"].sum())
        assert np.ptp(biases) < 1e-3  # the same for every image

    def test_the_card_is_rendered_from_model_json(self, trained: Path) -> None:
        found = json.loads((trained / "model.json").read_text())
        assert (trained / "MODEL_CARD.md").read_text() == card.render(found)
        assert list(found["metrics"]["collections"]) == [
            *("test patients, the labels", "test patients, radiologists"),
            *("second, the labels", "second, radiologists"),
        ]
        assert set(found["metrics"]["groups"]) == {"view", "age", "sex", "folder"}
        assert found["metrics"]["sizes"]["first"]["versions"].keys() == {"JPEG, quality 90", "DICOM, 12 bits"}
        assert "wrote" in (trained / "log.txt").read_text()

    def test_no_test_patient_is_among_those_that_it_was_trained_on(self, trained: Path) -> None:
        parts = splits.read(trained / "work" / "split.csv")
        made_on = TrainingSet.read(trained)
        assert made_on is not None
        tested = {fingerprint(patient) for patient, part in parts.items() if part == "test"}
        assert tested
        assert not tested & made_on.patients

    def test_the_same_seed_makes_the_same_bytes_and_a_finished_training_is_not_repeated(
        self, trained: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_quick(drawings, tmp_path / "fresh")
        assert (tmp_path / "fresh" / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()
        monkeypatch.setattr("training.fitting.compute_loss", None)  # every epoch calls it
        run_quick(drawings, tmp_path / "again", "--work", str(trained / "work"))
        assert (tmp_path / "again" / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()
        with pytest.raises(SystemExit, match=r"seed is 0, expected 1: this is another training"):
            run_quick(drawings, tmp_path / "other", "--work", str(trained / "work"), "--seed", "1")

    def test_it_is_compared_with_another_bundle(self, trained: Path, drawings: Path, tmp_path: Path) -> None:
        work = ("--work", str(trained / "work"), "--float", str(tmp_path / "float"))
        run_quick(drawings, tmp_path / "out", *work, "--compare-with", str(trained))
        found = json.loads((tmp_path / "out" / "model.json").read_text())["metrics"]
        assert found["compared_with"]["model"] == "trained-here:1.0.0"
        assert found["compared_with"]["labels"]["difference"] == {"value": 0.0, "ci95": [0.0, 0.0]}
        assert (tmp_path / "float" / "model.onnx").exists() == found["int8"]["ships"]

    def test_validation_only_writes_no_model(self, trained: Path, drawings: Path, tmp_path: Path) -> None:
        run_quick(drawings, tmp_path / "out", "--work", str(trained / "work"), "--validation-only")
        assert list((tmp_path / "out").iterdir()) == []


class TestTraining:
    def test_a_stopped_training_goes_on_to_the_same_weights(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
        targets = np.zeros((8, 4), dtype=np.float32)
        targets[::2] = 1
        targets[4:, 1] = np.nan
        settings = Settings(pixels=32, side=32, epochs=2, batch=4)

        class Silent:
            def show(self, *_: object) -> None: ...
            def print(self, *_: object) -> None: ...

        def fit(work: Path, watch: Callable[[Any], str]) -> Any:
            work.mkdir(exist_ok=True)
            return fitting.fit(pixels, targets, settings, work, Silent(), watch).state_dict()  # type: ignore[arg-type]

        def stop(_: object) -> str:
            raise KeyboardInterrupt

        whole = fit(tmp_path / "whole", str)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "stopped", stop)
        resumed = fit(tmp_path / "stopped", str)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_unread_images_do_not_count_in_the_loss_of_readings(self) -> None:
        logits = torch.zeros(3, 3)
        targets = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 1.0, 0.0], [1.0, torch.nan, 1.0]])
        once = fitting.compute_loss(logits, targets, Settings())
        logits[0, 1] = logits[2, 1] = 9
        assert fitting.compute_loss(logits, targets, Settings()) == once

    def test_augmented_images_stay_grey_values_and_differ(self) -> None:
        torch.manual_seed(0)
        grey = torch.rand(12, 1, 64, 64) * 255
        changed = augmentation.augment(grey)
        assert changed.shape == grey.shape
        assert 0 <= changed.min() <= changed.max() <= 255
        assert (changed - grey).abs().mean((1, 2, 3)).min() > 1

    def test_images_without_readings_train_on_the_labels_alone(
        self, drawings: Path, labels: Any, tmp_path: Path
    ) -> None:
        folder = labels(lambda table: [row.pop() for row in table]).parent
        run_quick(folder, tmp_path / "out")
        found = json.loads((tmp_path / "out" / "model.json").read_text())
        assert "radiologists" not in found["training"]["outputs"]
        assert list(found["metrics"]["collections"]) == ["test patients, the labels"]


@pytest.fixture
def labels(drawings: Path, tmp_path: Path) -> Callable[[Callable[[list[list[str]]], Any]], Path]:
    """A function that writes a changed labels.csv beside links to the drawings."""

    def write_changed(alter: Callable[[list[list[str]]], Any]) -> Path:
        with (drawings / "labels.csv").open(newline="") as file:
            table = list(csv.reader(file))
        alter(table)
        folder = tmp_path / "changed"
        folder.mkdir()
        for name in ("first", "second"):
            (folder / name).symlink_to(drawings / name)
        with (folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)
        return folder / "labels.csv"

    return write_changed


def set_cell(row: int, column: int, text: str) -> Callable[[list[list[str]]], None]:
    return lambda table: table[row].__setitem__(column, text)


def one_class(table: list[list[str]]) -> None:
    for row in table[1:]:
        row[7] = "1"


class TestBadInput:
    @pytest.mark.parametrize(
        ("alter", "message"),
        [
            (
                set_cell(0, 0, "picture"),
                r"labels\.csv: expected a column file or key .*; its columns are pict",
            ),
            (set_cell(0, 1, "who"), r"labels\.csv: expected a column patient_id or Patient ID; its columns"),
            (
                set_cell(3, 0, "first/000.png"),
                r"line 4: column file repeats line 2; expected each image once",
            ),
            (set_cell(3, 7, "yes"), r"line 4: column abnormal is 'yes'; expected 0 or 1"),
            (set_cell(3, 7, ""), r"line 4: column abnormal is ''; expected 0 or 1"),
            (set_cell(3, 1, ""), r"line 4: column patient_id is empty"),
            (
                set_cell(3, 0, "first/none.png"),
                r"line 4: column file: .*none\.png does not exist; expected an image",
            ),
            (one_class, r"column abnormal of all images holds \['1'\]: expected both 0 and 1"),
            (
                lambda table: table.clear(),
                r"labels\.csv: expected a CSV file with a header and at least one row",
            ),
        ],
    )
    def test_labels_csv(
        self, labels: Any, drawings: Path, alter: Callable[[list[list[str]]], Any], message: str
    ) -> None:
        path = labels(alter)
        with pytest.raises(InputError, match=message):
            data.read_labels(path, path.parent)

    def test_the_command_prints_one_line_and_writes_nothing(self, labels: Any, tmp_path: Path) -> None:
        folder = labels(set_cell(3, 7, "2")).parent
        with pytest.raises(SystemExit, match=r"^\S+ -m training\.train: .*expected 0 or 1$"):
            run_quick(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_image_that_is_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("text")
        with pytest.raises(InputError, match=r"a\.png: NOT_AN_IMAGE; expected a PNG"):
            data.read_pixels(str(tmp_path / "a.png"), SQUARE)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,part\na,train\n", "expected a column patient"),
            ("patient,part\n0,training\n", "line 2: part is 'training'; expected train, validation, test"),
            ("patient,part\n0,train\n0,test\n", "line 3: patient 0 is repeated"),
            ("patient,part\n0,train\n", "the split lacks patient 1, 119 in all"),
        ],
    )
    def test_split_csv(self, drawings: Path, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "split.csv"
        path.write_text(text)
        with pytest.raises(SystemExit, match=message):
            run_quick(drawings, tmp_path / "out", "--split", str(path))

    def test_reads_nih_s_data_entry_csv(self, drawings: Path, tmp_path: Path) -> None:
        path = tmp_path / "Data_Entry_2017.csv"
        path.write_text(
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position\n"
            "000.png,No Finding,0,7,58,PA\n001.png,Mass|Effusion|Mass,0,8,58,AP\n"
        )
        images = data.read_labels(path, drawings)  # finds the files in subfolders
        assert images.abnormal.tolist() == [0, 1]
        assert images.shows("Effusion").tolist() == [0, 1]
        assert images.view.tolist() == ["PA", "AP"]
        assert data.read_pixels(images.file[0], SQUARE).shape == (1, 64, 64)
