"""The training command with --quick, on drawings: from labels to a bundle that scores."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from classifier.model import Model
from PIL import Image

from cxr.errors import InputError
from cxr.evaluation.cohort import fingerprint
from training import card, data, networks, splits, train, tuning
from training.densenet121 import densenet121
from training.features import FULL
from training.progress import ProgressDisplay
from training.scorer import Normalise


def run_quick(drawings: Path, out: Path, *more: str) -> None:
    options = ("--images", drawings, "--labels", drawings / "labels.csv", "--out", out, "--quick", *more)
    train.main([str(option) for option in options])


@pytest.fixture(scope="module")
def trained(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run_quick(drawings, out, "--collections", "first", "second")
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestHead:
    def test_scores_do_not_depend_on_the_batch_and_maps_add_up_to_logits(
        self, trained: Path, drawings: Path
    ) -> None:
        model = Model(trained)
        pixels = [model.prepare(file.read_bytes())[0] for file in sorted(drawings.rglob("*.png"))]
        alone = [model.score([one])[0] for one in pixels]
        assert len({scores["abnormal"] for scores in alone}) > 30
        for size in (3, 8, 40):
            batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
            assert [scores for batch in batches for scores in model.score(batch)] == alone
        biases = []
        for one, scores in zip(pixels, alone, strict=True):
            score = float(scores["abnormal"])
            biases.append(np.log(score / (1 - score)) - model.explain(one)["abnormal"].sum())
        assert np.ptp(biases) < 1e-3  # the same for every image

    def test_no_patient_is_in_two_folds(self, trained: Path) -> None:
        split = rows(trained / "split.csv")
        assert len(split) == 32
        folds: dict[str, set[str]] = {}
        for row in split:
            folds.setdefault(row["patient"], set()).add(row["split_1"])
        assert all(len(found) == 1 for found in folds.values())
        assert {fold for found in folds.values() for fold in found} == {"0", "1"}

    def test_the_card_is_rendered_from_model_json(self, trained: Path) -> None:
        found = json.loads((trained / "model.json").read_text())
        assert (trained / "MODEL_CARD.md").read_text() == card.render(found)
        assert found["cam"] is True
        assert found["score"] == "probability"
        assert found["metrics"]["collections"]["first"]["patients"] == 8
        assert 0 < found["labels"][0]["threshold"] < 1

    def test_trained_on_json_holds_fingerprints_of_images_and_patients(self, trained: Path) -> None:
        found = json.loads((trained / "trained_on.json").read_text())
        split = rows(trained / "split.csv")
        assert found["images"] == sorted(fingerprint(Path(row["image"]).name) for row in split)
        assert found["patients"] == sorted({fingerprint(row["patient"]) for row in split})

    def test_the_same_seed_makes_the_same_model_and_finished_folds_are_reused(
        self, trained: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fresh, resumed = tmp_path / "fresh", tmp_path / "resumed"
        run_quick(drawings, fresh, "--collections", "first", "second")
        assert (fresh / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()

        def fail(*_: object) -> None:
            raise AssertionError("this fold was finished")

        # Every unfinished fold calls it.
        monkeypatch.setattr("training.recipe.score_by_starting_point", fail)
        monkeypatch.setattr("training.fitting._cross_collection_pairs", lambda *_: [])
        monkeypatch.setattr("training.features._read_batch", fail)
        work = ("--work", str(trained / "work"))
        run_quick(drawings, resumed, "--collections", "first", "second", *work)
        assert (resumed / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()

    def test_finished_folds_of_another_training_are_refused(self, trained: Path, drawings: Path) -> None:
        with pytest.raises(SystemExit, match=r"training\.json: seed is 0, expected 1.*another --work"):
            run_quick(drawings, trained, "--collections", "first", "second", "--seed", "1")

    def test_ctrl_c_says_how_to_continue(
        self, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("training.recipe.score_by_starting_point", stop)
        with pytest.raises(SystemExit, match="same command continues"):
            run_quick(drawings, tmp_path)
        assert not (tmp_path / "model.json").exists()
        assert not list((tmp_path / "work").glob(".*"))  # no unfinished file


class TestInt8:
    @pytest.fixture
    def options(self, trained: Path, tmp_path: Path) -> tuple[str, ...]:
        work, out = str(trained / "work"), str(tmp_path / "int8")
        return ("--collections", "first", "second", "--work", work, "--int8", out)

    def test_the_8_bit_model_has_the_same_recipe_and_its_card_compares_both(
        self,
        trained: Path,
        drawings: Path,
        tmp_path: Path,
        options: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("training.train.MOST_AUC_LOST", 1)
        monkeypatch.setattr("training.train.MOST_LOG_LOSS_GAINED", 10)
        run_quick(drawings, tmp_path / "fp32", *options)
        assert (tmp_path / "fp32" / "model.onnx").read_bytes() == (trained / "model.onnx").read_bytes()

        fp32, int8 = Model(tmp_path / "fp32"), Model(tmp_path / "int8")
        assert int8.name == "trained-here-int8:1.0.0"
        pixels = [int8.prepare(file.read_bytes())[0] for file in sorted(drawings.rglob("*.png"))]
        alone = [int8.score([one])[0] for one in pixels]
        assert int8.score(pixels) == alone
        in_8_bits, in_float = (
            np.array([float(scores["abnormal"]) for scores in found]) for found in (alone, fp32.score(pixels))
        )
        assert np.corrcoef(in_8_bits, in_float).min() > 0.9
        assert (in_8_bits != in_float).any()

        page = (tmp_path / "int8" / "MODEL_CARD.md").read_text()
        found = json.loads((tmp_path / "int8" / "model.json").read_text())
        assert page == card.render(found)
        assert "Against trained-here 1.0.0, the same network in float" in page
        assert [one["collection"] for one in found["metrics"]["against_fp32"]["collections"]] == [
            "first",
            "second",
        ]
        assert (tmp_path / "int8" / "split.csv").read_bytes() == (trained / "split.csv").read_bytes()

    @pytest.mark.parametrize("limit", ["MOST_AUC_LOST", "MOST_LOG_LOSS_GAINED"])
    def test_an_8_bit_model_that_costs_too_much_is_not_written(
        self, drawings: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: Any, limit: str
    ) -> None:
        limits = {"MOST_AUC_LOST": 1, "MOST_LOG_LOSS_GAINED": 10} | {limit: -1}
        for name, value in limits.items():
            monkeypatch.setattr(f"training.train.{name}", value)
        with pytest.raises(SystemExit, match=r"on first 8 bits change AUC by .* Not written$"):
            run_quick(drawings, tmp_path / "fp32", *options)
        assert (tmp_path / "fp32" / "model.json").exists()
        assert not (tmp_path / "int8").exists()

    def test_int8_needs_tune_head(
        self, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            run_quick(drawings, tmp_path / "out", "--tune", "network", "--int8", str(tmp_path / "int8"))
        assert "--int8: only with --tune head" in capsys.readouterr().err


class TestNetwork:
    def test_trains_from_a_checkpoint_with_a_split_in_parts(self, drawings: Path, tmp_path: Path) -> None:
        architecture = "efficientnet-lite2"
        torch.save(networks.build(architecture, "imagenet").state_dict(), tmp_path / "start.pt")
        part = tmp_path / "part.csv"
        lines = [
            f"{row['file']},{splits.PARTS[int(row['patient_id']) % 3]}"
            for row in rows(drawings / "labels.csv")
        ]
        part.write_text("\n".join(["image,part", *lines, ""]))
        out = tmp_path / "out"
        options = ["--weights", str(tmp_path / "start.pt"), "--split", str(part)]
        run_quick(drawings, out, "--architecture", architecture, "--tune", "network", *options)

        model, found = Model(out), json.loads((out / "model.json").read_text())
        assert found["preprocessing"] == {"channels": 3, "resize": 256, "crop": 224}
        assert {row["part"] for row in rows(out / "split.csv")} == set(splits.PARTS)
        network = networks.build(architecture, str(out / "work" / "network-1-0.pt"))
        pixels, _ = model.prepare((drawings / "first" / "001.png").read_bytes())
        normalise = Normalise(*networks.pixel_statistics(architecture))
        with torch.inference_mode():
            logit = network(normalise(torch.from_numpy(pixels)[None])).item()
        calibrated = logit / found["training"]["temperature"] + found["training"]["offset"]
        score = float(model.score([pixels])[0]["abnormal"])
        assert score == pytest.approx(1 / (1 + np.exp(-calibrated)), abs=5e-3)  # temperature is rounded

    def test_a_densenet_is_saved_and_its_scorer_gives_calibrated_scores(
        self, drawings: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        torch.save(densenet121(outputs=1).state_dict(), tmp_path / "start.pt")
        images = data.sample(data.read_labels(drawings / "labels.csv", drawings), 4)
        settings = tuning.Settings("densenet121", str(tmp_path / "start.pt"), 1, "cpu", 0)
        indices, progress = np.arange(4), mock.Mock(ProgressDisplay)
        saved = tmp_path / "network.pt"
        network = tuning.fit(images, indices, indices, settings, saved, progress)
        logits = tuning.compute_logits(network, images, indices, settings)
        again = tuning.fit(images, indices, indices, settings, saved, progress)
        np.testing.assert_array_equal(tuning.compute_logits(again, images, indices, settings), logits)
        assert progress.print.call_count == 1  # one epoch, and none when the network is read

        pixels = torch.from_numpy(np.stack([data.read_pixels(file, FULL) for file in images.file]))
        with torch.inference_mode():
            scores, cam = tuning.build_scorer(network, "densenet121", 2.0, 0.5)(pixels)
        np.testing.assert_allclose(scores[:, 0], 1 / (1 + np.exp(-(2 * logits + 0.5))), atol=1e-5)
        assert cam.shape == (4, 1, 7, 7)


@pytest.fixture
def labels(drawings: Path, tmp_path: Path) -> Callable[[Callable[[list[list[str]]], Any]], Path]:
    """A function that writes a changed copy of labels.csv."""

    def write_changed(alter: Callable[[list[list[str]]], Any]) -> Path:
        with (drawings / "labels.csv").open(newline="") as file:
            table = list(csv.reader(file))
        alter(table)
        path = tmp_path / "changed.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(table)
        return path

    return write_changed


def set_cell(row: int, column: int, text: str) -> Callable[[list[list[str]]], None]:
    return lambda table: table[row].__setitem__(column, text)


def one_class(table: list[list[str]]) -> None:
    for row in table[1:]:
        row[6] = "1"


class TestBadInput:
    @pytest.mark.parametrize(
        ("alter", "message"),
        [
            (
                set_cell(0, 0, "picture"),
                r"changed\.csv: expected a column file or key .*; its columns are pict",
            ),
            (set_cell(0, 1, "who"), r"changed\.csv: expected a column patient_id or Patient ID; its columns"),
            (
                set_cell(3, 0, "first/000.png"),
                r"line 4: column file repeats line 2; expected each image once",
            ),
            (set_cell(3, 6, "yes"), r"line 4: column abnormal is 'yes'; expected 0 or 1"),
            (set_cell(3, 6, ""), r"line 4: column abnormal is ''; expected 0 or 1"),
            (set_cell(3, 1, ""), r"line 4: column patient_id is empty"),
            (
                set_cell(3, 0, "first/none.png"),
                r"line 4: column file: .*none\.png does not exist; expected an image",
            ),
            (one_class, r"column abnormal of all images holds \['1'\]: expected both 0 and 1"),
            (
                lambda table: table.clear(),
                r"changed\.csv: expected a CSV file with a header and at least one row",
            ),
        ],
    )
    def test_labels_csv(
        self, labels: Any, drawings: Path, alter: Callable[[list[list[str]]], Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            data.read_labels(labels(alter), drawings)

    def test_the_command_prints_one_line_and_writes_nothing(
        self, labels: Any, drawings: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(SystemExit, match=r"^\S+ -m training\.train: .*expected 0 or 1$"):
            run_quick(drawings, tmp_path / "out", "--labels", str(labels(set_cell(3, 6, "2"))))
        assert not (tmp_path / "out").exists()

    def test_an_image_that_is_a_text_file(self, drawings: Path, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("text")
        with pytest.raises(InputError, match=r"a\.png: NOT_AN_IMAGE; expected a PNG"):
            data.read_pixels(str(tmp_path / "a.png"), FULL)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,fold\na,0\n", "expected columns image and part, or image and split_1"),
            ("image,split_1\na,0\n", "column image lacks first/000.png, 40 in all"),
            ("image,split_1\n" + "".join(f"{{{i}}},{i % 2}\n" for i in range(40)), "is in 2 folds or parts"),
            ("image,split_1\n" + "".join(f"{{{i}}},0\n" for i in range(40)), "expected two or more folds"),
            ("image,part\n" + "".join(f"{{{i}}},train\n" for i in range(40)), "expected test, validation"),
        ],
    )
    def test_split_csv(self, drawings: Path, tmp_path: Path, text: str, message: str) -> None:
        images = data.read_labels(drawings / "labels.csv", drawings, ("first", "second"))
        path = tmp_path / "split.csv"
        path.write_text(text.format(*images.name.tolist()))
        with pytest.raises(InputError, match=message):
            splits.read(path, images)

    def test_reads_nih_s_data_entry_csv(self, drawings: Path, tmp_path: Path) -> None:
        path = tmp_path / "Data_Entry_2017.csv"
        path.write_text(
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position\n"
            "000.png,No Finding,0,7,58,PA\n001.png,Mass|Effusion|Mass,0,8,58,AP\n"
        )
        images = data.read_labels(path, drawings)  # finds the files in subfolders
        assert images.abnormal.tolist() == [0, 1]
        assert images.finding_count.tolist() == [0, 2]
        assert images.view.tolist() == ["PA", "AP"]
        assert Image.open(images.file[0]).size == (256, 256)
