"""`cxr score`, `cxr explain` and `cxr model check`, as typed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier.model import Model
from PIL import Image
from support import ROOT, image_bytes
from typer.testing import CliRunner, Result

from cxr.commands.app import app
from cxr.explanation import LESS, MORE, SIDE, overlay

BUNDLE = ROOT / "containers" / "classifier" / "model"


def cxr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def altered(tmp_path: Path) -> Any:
    """Copies the shipped bundle with other fields in its model.json."""

    def alter(**fields: Any) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(BUNDLE, folder)
        card = json.loads((BUNDLE / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(card | fields))
        return folder

    return alter


def test_ctrl_c_while_the_commands_load_leaves_no_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cxr", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if "typer" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said


def test_no_name_in_a_bundle_commands_the_terminal(altered: Any, xrays: list[Path], tmp_path: Path) -> None:
    label = {"name": "ab\x1b[31mn[red]", "threshold": 0.001}
    bundle = altered(name="x\x1b]0;owned\x07[red]", labels=[label], self_test={label["name"]: 0.987})
    scored = cxr("score", xrays[0], "--bundle", bundle)
    explained = cxr("explain", xrays[0], "--bundle", bundle, "--out", tmp_path / "map.png")
    checked = cxr("model", "check", bundle)
    for result, code in ((scored, 0), (explained, 0), (checked, 1)):
        assert result.exit_code == code
        assert result.stdout.replace("\n", "").isprintable()
        assert r"ab\x1b[31mn[red]" in result.stdout  # not obeyed, and not taken for rich's markup
    assert scored.stdout.count(r"ab\x1b[31mn[red]") == 2  # a heading, and what the image is positive for
    assert r"Scored by x\x1b]0;owned\x07[red]:" in scored.stdout


class TestScore:
    def test_a_pipe_is_refused_and_a_huge_file_is_not_read_whole(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        assert "found a device or a pipe" in cxr("score", tmp_path / "pipe.png").stderr
        with (tmp_path / "huge.png").open("wb") as file:
            file.truncate(50 * 2**30)
        assert "IMAGE_TOO_LARGE" in cxr("score", tmp_path / "huge.png").stdout

    def test_a_files_name_cannot_write_to_the_terminal(self, tmp_path: Path) -> None:
        bad = tmp_path / "\x1b[31mred\n.png"
        bad.write_text("text")
        printed = cxr("score", bad).stdout
        assert "\x1b" not in printed
        assert r"\x1b[31mred\n.png" in printed.replace("\n", "")

    def test_real_x_rays_as_the_classifier_scores_them(self, xrays: list[Path]) -> None:
        result = cxr("score", "--json", *xrays[:3])
        assert result.exit_code == 0
        model = Model(BUNDLE)
        for path, line in zip(xrays[:3], result.stdout.splitlines(), strict=True):
            scores = model.score([model.prepare(path.read_bytes())[0]])[0]
            assert json.loads(line)["scores"] == {label: float(score) for label, score in scores.items()}

    def test_one_bad_file_does_not_stop_the_others(self, xrays: list[Path], tmp_path: Path) -> None:
        bad = tmp_path / "bad.png"
        bad.write_text("text")
        result = cxr("score", bad, xrays[0], "--json")
        assert result.exit_code == 1
        first, second = map(json.loads, result.stdout.splitlines())
        assert first == {"file": str(bad), "error": "NOT_AN_IMAGE"}
        assert 0 < second["scores"]["abnormal"] < 1
        assert "NOT_AN_IMAGE" in cxr("score", bad).stdout

    def test_a_missing_file_does_not_stop_the_others(self, tmp_path: Path) -> None:
        there, gone = tmp_path / "a.png", tmp_path / "gone.png"
        there.write_bytes(image_bytes())
        result = cxr("score", gone, there, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["file"] == str(there)
        assert (
            result.stderr == f"Error: {gone}: No such file or directory; expected a PNG, JPEG or DICOM file\n"
        )

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_a_terminal_without_unicode(self, tmp_path: Path, encoding: str) -> None:
        bad = tmp_path / "\N{GREEK SMALL LETTER ALPHA}.png"
        bad.write_text("text")
        done = subprocess.run(
            [sys.executable, "-m", "cxr", "score", str(bad)],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, b"")
        assert b"\\u03b1.png" in done.stdout
        assert b"NOT_AN_IMAGE" in done.stdout

    @pytest.mark.parametrize(
        "arguments", [["gone.png"], ["README.md", "--bundle", "gone"], [str(ROOT / "docs" / "decisions")]]
    )
    def test_what_cannot_be_read_is_said_in_one_line(self, arguments: list[str]) -> None:
        result = cxr("score", *arguments)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert "expected" in result.stderr


class TestModelCheck:
    def test_the_shipped_model_works_here(self) -> None:
        result = cxr("model", "check")
        assert result.exit_code == 0
        assert "self-test: a drawing scores as expected" in result.stdout
        assert json.loads((BUNDLE / "model.json").read_text())["sha256"] in result.stdout.replace("\n", "")

    def test_a_model_that_scores_otherwise_is_found_out(self, altered: Any) -> None:
        result = cxr("model", "check", altered(self_test={"abnormal": 0.987}))
        assert result.exit_code == 1
        assert "expected 0.987" in result.stdout

    def test_a_model_without_a_self_test_is_not_called_good(self, altered: Any) -> None:
        result = cxr("model", "check", altered(self_test={}))
        assert result.exit_code == 2
        assert "no self_test" in result.stderr

    def test_a_bundle_with_only_the_required_fields(self, altered: Any) -> None:
        bundle = altered()
        card = json.loads((BUNDLE / "model.json").read_text())
        required = {name: card[name] for name in ("name", "version", "sha256", "labels", "preprocessing")}
        (bundle / "model.json").write_text(json.dumps(required))
        result = cxr("model", "check", bundle)
        assert "not given" in result.stdout
        assert "no self_test" in result.stderr

    def test_a_bundle_whose_parts_disagree(self, altered: Any) -> None:
        result = cxr("model", "check", altered(sha256="00"))
        assert result.exit_code == 2
        assert "sha256 is 00" in result.stderr


class TestExplain:
    def test_writes_the_overlay(self, xrays: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "map.png"
        result = cxr("explain", xrays[0], "--out", out)
        assert result.exit_code == 0
        assert "Research use only" in " ".join(result.stdout.split())
        assert Image.open(out).width == SIDE
        assert [path.name for path in tmp_path.iterdir()] == ["map.png"]

    def test_the_maps_places_add_up_to_the_logit(self, xrays: list[Path]) -> None:
        """Over images, the sum of the places and the logit differ by one constant, the head's bias."""
        model = Model(BUNDLE)
        rests = []
        for path in xrays[:6]:
            pixels, _ = model.prepare(path.read_bytes())
            score = float(model.score([pixels])[0]["abnormal"])
            rests.append(np.log(score / (1 - score)) - model.explain(pixels)["abnormal"].sum())
        assert np.ptp(rests) < 1e-3

    def test_a_model_without_a_map_refuses(self, altered: Any, xrays: list[Path], tmp_path: Path) -> None:
        result = cxr("explain", xrays[0], "--out", tmp_path / "map.png", "--bundle", altered(cam=False))
        assert result.exit_code == 2
        assert "has no class activation map" in result.stderr
        assert not (tmp_path / "map.png").exists()

    @pytest.mark.parametrize("option", [["--label", "edema"], ["--out", "gone/map.png"]])
    def test_what_cannot_be_done_is_said(self, xrays: list[Path], option: list[str]) -> None:
        result = cxr("explain", xrays[0], *option)
        assert result.exit_code in (1, 2)
        assert len(result.stderr.splitlines()) == 1

    def test_a_file_that_is_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(image_bytes()[:500])
        result = cxr("explain", tmp_path / "a.png")
        assert result.exit_code == 2
        assert "IMAGE_CORRUPT" in result.stderr

    def test_for_and_against_have_their_colours(self) -> None:
        cam = np.zeros((7, 7), np.float32)
        cam[0, 0], cam[6, 6] = 1, -1
        picture = np.asarray(overlay(np.zeros((1, 224, 224), np.uint8), cam, "title")).astype(int)
        for place, colour in (((5, 5), MORE), ((666, 666), LESS)):
            assert np.abs(picture[place] - 0.6 * np.array(colour)).max() < 25
        assert picture[336, 336].max() < 10
