"""`cxr` in scripts: pipes, JSON, `-` as a file, rows of local files, and waiting for a run."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple

import onnx
import pytest
from classifier.model import Model
from deployment import Deployment
from PIL import Image
from runs.predictions import Prediction
from runs.run import State
from support import PREFIX, ROOT, begin_run, image_bytes
from test_packing import network
from test_report import document_in
from test_retry import give_up
from test_runs import STACK, put_predictions, put_run, two_labels
from typer.main import get_command
from typer.testing import CliRunner, Result

import cxr
from cxr.__main__ import main
from cxr.bundles import SHIPPED
from cxr.commands.app import app
from cxr.commands.local import print_predictions
from cxr.evaluation import measures
from cxr.phantoms import write_phantoms
from cxr.report_page.template import NODE_MODULES
from cxr.result_rows import COLUMNS
from cxr.runs import RunStatus
from cxr.stack import Stack, client
from cxr.upload import files_in, upload

CXR = Path(sys.executable).with_name("cxr")
PACKING = [
    *("--resize", "36", "--crop", "32", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"),
    *("--labels", "a,b,c", "--activation", "softmax"),
]
SLOW = ("local demo", "verify")  # test_verify.py has `verify`


def leaves(command: Any = None, name: str = "") -> dict[str, Any]:
    """Every command by its name, sub-commands with that of their group."""
    command = command or get_command(app)
    children = getattr(command, "commands", None)
    if children is None:
        return {name: command}
    return {
        k: v for word, child in children.items() for k, v in leaves(child, f"{name} {word}".strip()).items()
    }


LEAVES = leaves()
COMMANDS = sorted(LEAVES)


def invoke(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def bash(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which `cxr` is the program of this project."""
    path = f"{CXR.parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=os.environ | {"PATH": path} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def main_into(output: IO[str], errors: Path, *arguments: str) -> tuple[Any, str]:
    """Exit code and standard error of `cxr` in this process, whose standard output goes to a file or pipe."""
    with (
        pytest.MonkeyPatch.context() as patch,
        output,
        errors.open("w") as error_file,
        redirect_stdout(output),
        redirect_stderr(error_file),
    ):
        patch.setattr(sys, "argv", ["cxr", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()  # as Python does when a process ends
        sys.stderr.flush()
    return ended.value.code, errors.read_text()


def pipe_without_reader() -> IO[str]:
    """The end of a pipe to write to; its reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def on_a_terminal(*arguments: object, columns: int = 80) -> tuple[int, str]:
    """Exit code and output of a command on a terminal so wide."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [CXR, *map(str, arguments)],
        env=os.environ | {"COLUMNS": str(columns), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 10_000):
                said += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())  # without colours and cursor movements
    return process.returncode, text.replace("\r\n", "\n")


# Every command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_says_what_is_in_it(name: str) -> None:
    command = LEAVES[name]
    assert "--json" in {option for param in command.params for option in param.opts}
    assert "The JSON is" in command.help


@pytest.mark.parametrize("name", ["", "model", "local", *COMMANDS])
def test_h_is_help(name: str) -> None:
    short, long = (invoke(*name.split(), option) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert "Usage" in short.stdout
    assert short.stdout == long.stdout


def test_the_versions() -> None:
    card = json.loads((SHIPPED / "model.json").read_text())
    assert invoke("--version").stdout == f"cxr 0.1.0, default model {card['name']}:{card['version']}\n"


class Scene(NamedTuple):
    """What the commands work on: a stack with a complete run of drawings, and files here."""

    stack: Stack
    folder: Path
    arguments: dict[str, list[str]]

    def prepare(self, name: str) -> None:
        """Bring back what a command needs, and remove what it has written."""
        if name == "delete":
            begin_run("scripts-gone", self.stack.table, state="CANCELLED")
        shutil.rmtree(self.folder / "packed", ignore_errors=True)


@pytest.fixture(scope="module")
def scene(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scripts")
    images = folder / "images"
    images.mkdir()
    write_phantoms(images)
    names = [path.name for path in sorted(images.iterdir())]
    labels = "".join(f"{name},{number % 2}\n" for number, name in enumerate(names))
    (folder / "labels.csv").write_text(f"file,abnormal\n{labels}")
    onnx.save(network(), folder / "network.onnx")
    prefix = f"{PREFIX}scripts/"
    with deployment.used():
        stack = Stack.find()
        list(upload(client("s3"), stack.images_bucket, prefix, images, files_in(images)))
        cxr.start_run(stack, "scripts", prefix=prefix)
        cxr.wait(stack, "scripts", timeout=120)
        begin_run("scripts-rested", stack.table, state="CANCELLED")
        image = str(images / names[0])
        arguments = {
            "doctor": [],
            "plan": ["--images", "1000"],
            "scale": ["1"],
            "upload": [str(images), "--prefix", prefix],
            "run": ["scripts", "--prefix", prefix],
            "runs": [],
            "status": ["scripts"],
            "retry": ["scripts"],
            "watch": [],  # the stack has arrivals=off, so this is refused
            "reconcile": ["arrivals-2026-11-28"],
            "resume": ["arrivals-2026-11-28"],
            "cancel": ["scripts-rested"],
            "delete": ["scripts-gone", "--yes"],
            "results": ["scripts"],
            "evaluate": ["scripts", "--labels", str(folder / "labels.csv")],
            "compare": ["scripts", "scripts", "--labels", str(folder / "labels.csv")],
            "report": ["scripts", "--out", str(folder / "report.html")],
            "score": [str(images), str(folder / "labels.csv")],  # the CSV is no image: it ends with 1
            "explain": [image, "--out", str(folder / "map.png")],
            "model check": [],
            "model pack": [
                *[str(folder / "network.onnx"), *PACKING],
                *["--out", str(folder / "packed")],
            ],
            "local up": ["-c", "shards=0"],  # which is refused, so that it ends
        }
        yield Scene(stack, folder, arguments)


@pytest.mark.xdist_group("deployment")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SLOW])
def test_a_command_ends_the_same_without_a_reader(scene: Scene, tmp_path: Path, name: str) -> None:
    arguments = [*name.split(), *scene.arguments[name]]
    scene.prepare(name)
    whole = main_into((tmp_path / "whole.txt").open("w"), tmp_path / "errors.txt", *arguments)
    assert whole[0] in (0, 1, 2)  # 2: told to do what cannot be
    assert (tmp_path / "whole.txt").read_text() or whole[1]
    scene.prepare(name)
    assert main_into(pipe_without_reader(), tmp_path / "errors.txt", *arguments) == whole


@pytest.mark.slow
def test_a_demo_ends_as_it_should_for_a_reader_of_one_line(tmp_path: Path) -> None:
    done = bash(f"cxr local demo --csv {tmp_path / 'demo.csv'} | head -1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("deployment")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SLOW])
def test_a_process_ends_the_same_for_a_reader_of_one_line(scene: Scene, tmp_path: Path, name: str) -> None:
    arguments = [*name.split(), *scene.arguments[name]]
    scene.prepare(name)
    whole = main_into((tmp_path / "whole.txt").open("w"), tmp_path / "errors.txt", *arguments)
    scene.prepare(name)
    done = bash(f"cxr {shlex.join(arguments)} | head -1")
    assert (done.returncode, done.stderr) == whole


@pytest.mark.xdist_group("deployment")
def test_the_snippet_for_notebooks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    snippet = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setitem(sys.modules, "pandas", type("pandas", (), {"DataFrame": lambda rows: [*rows]}))
    snippet = snippet.replace('"first-40"', '"scripts-notebook"').replace(
        'start_run(stack, "scripts-notebook"', "started("
    )
    names: dict[str, Any] = {
        "started": lambda: cxr.start_run(scene.stack, "scripts-notebook", prefix=f"{PREFIX}scripts/")
    }
    exec(compile(snippet, "docs/notebook.md", "exec"), names)
    assert len(names["table"]) == 8


@pytest.mark.xdist_group("deployment")
def test_a_report_to_standard_output(scene: Scene) -> None:
    done = invoke("report", "scripts", "--no-images", "--out", "-")
    assert (done.exit_code, done.stdout[:15].lower()) == (0, "<!doctype html>")
    assert done.stderr == "Research use only, not for patient care.\n"
    assert not Path("-").exists()


# Pipes


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with long names, one of them no image, and others beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate((f"{'a' * 120}.png", f"sub/{'b' * 120}.png")):
        (folder / name).write_bytes(image_bytes(seed=number))
    (folder / "bad.png").write_text("text")
    for name in ("notes.txt", ".hidden.png", "index.csv"):
        (folder / name).write_text("none of these is scored")
    return folder


def test_a_pipe_gets_each_row_in_one_line_and_a_terminal_what_fits(images: Path) -> None:
    done = bash("cxr score images | cat", COLUMNS="80")
    assert done.returncode == 1
    for path in sorted(images.rglob("[ab]*.png")):
        (line,) = (
            line for line in done.stdout.splitlines() if line.startswith(f"images/{path.relative_to(images)}")
        )
        assert ("NOT_AN_IMAGE" in line) == (path.name == "bad.png")
    code, said = on_a_terminal("score", "images", columns=80)
    assert code == 1
    assert max(map(len, said.splitlines())) <= 80


def test_what_is_below_each_other_on_a_terminal_is_side_by_side_in_a_pipe(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{number}.png,SCORED,{number / 40:.3f},\n" for number in range(40)]
    Path("results.csv").write_text("key,status,score,label\n" + "".join(rows))
    labels = [
        f"{number}.png,{int(number > 15)},{number},{'AP' if number % 3 else 'PA'}\n" for number in range(40)
    ]
    Path("labels.csv").write_text("file,abnormal,patient_id,view\n" + "".join(labels))
    command = "evaluate results.csv --labels labels.csv --threshold 0.5 --group view"
    monkeypatch.setattr(measures, "RESAMPLES", 50)
    done = invoke(*command.split())
    (heading, *groups) = done.stdout.partition("\nview ")[2].splitlines()[:3]
    assert heading.split() == ["images", "patients", "positive", "AUC", "sensitivity", "specificity"]
    assert [line.split()[:3] for line in groups] == [["AP", "26", "26"], ["PA", "14", "14"]]
    _, said = on_a_terminal(*command.split())
    assert said.partition("\nview ")[2].split()[0] == "patients"  # below "images"


def test_output_that_never_ends_is_left_with_its_reader() -> None:
    code = """
import itertools
from cxr.__main__ import main
from cxr.commands.row_output import write_rows
import cxr.commands.app
rows = ({"key": f"{n}.png", "score": 0.5} for n in itertools.count())
cxr.commands.app.app = lambda: write_rows(rows, None, None)
main()
"""
    done = bash(f"{sys.executable} -c {shlex.quote(code)} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{','.join(COLUMNS)}\n", "")


@pytest.mark.parametrize("line", ["--help", "--version", "model --help", "local demo -h"])
def test_help_that_nobody_reads_is_no_error(tmp_path: Path, line: str) -> None:
    assert main_into(pipe_without_reader(), tmp_path / "errors.txt", *line.split()) == (0, "")


def test_a_process_whose_output_nobody_reads_is_no_error() -> None:
    done = bash("cxr --help | true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_gets_every_row_of_a_demo(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Prediction(f"{PREFIX}{number:02}.png", error="IMAGE_EMPTY") for number in range(60)]
    print_predictions(found, "abnormal", PREFIX, RunStatus(run_id="r", uid="u", state=State.COMPLETE))
    printed = capsys.readouterr().out
    assert all(f"{number:02}.png" in printed for number in range(60))
    assert "more" not in printed


def test_a_closed_standard_error_is_no_error(images: Path) -> None:
    done = bash(f"cxr score {images / 'sub'} gone.png 2>&1 | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == "1\n"


@pytest.mark.slow
def test_the_json_of_a_demo_of_an_isolated_stack(tmp_path: Path) -> None:
    """All references of its template resolve. Nothing is isolated on local AWS."""
    done = bash(f"cxr local demo -c network=isolated --json --csv {tmp_path / 'demo.csv'}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["scored"], found["results"]) == ("COMPLETE", 8, str(tmp_path / "demo.csv"))
    assert "cdk deploy" in done.stderr
    assert (tmp_path / "demo.csv").read_text().startswith(",".join(COLUMNS))


# Files that are `-`


def test_a_picture_to_standard_output(images: Path) -> None:
    (path, *_) = (images / "sub").iterdir()
    done = subprocess.run([CXR, "explain", path, "--out", "-"], capture_output=True, check=True)
    assert Image.open(io.BytesIO(done.stdout)).format == "PNG"
    assert done.stderr.decode().startswith("abnormal 0.")
    assert "Research use only" in done.stderr.decode()
    assert sorted(file.name for file in Path().iterdir()) == ["images"]
    code, said = on_a_terminal("explain", path, "--out", "-", columns=200)
    assert (code, said) == (
        2,
        "Error: --out -: expected a pipe or a file as standard output, found a terminal\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "a.csv", "--labels", "b.csv", "--out", "-"], "--out -: expected a folder"),
        (["compare", "a.csv", "b.csv", "--out", "-"], "--out -: expected a folder"),
        (["explain", "a.png", "--out", "-", "--json"], "--json and --out -: expected one of them"),
        (["report", "first", "--out", "-", "--json"], "--json and --out -: expected one of them"),
        (["results", "first", "--format", "csv", "--json"], "--json and --format csv: expected one of them"),
        (["score", "a.png", "--out", "-", "--json"], "--json together with --out or --format: expected one"),
        (["local", "demo", "--csv", "-"], "-: expected the name of a file"),
        (
            ["model", "pack", "a.onnx", "--out", "-", *PACKING],
            "--out -: expected a new folder",
        ),
    ],
)
def test_standard_output_is_refused_where_it_makes_no_sense(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: {message}")


@pytest.mark.parametrize("piped", ["results", "labels"])
def test_a_csv_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "results": "key,score,score_abnormal,score_Mass\na.png,0.75,0.75,0.2\nb.png,0.25,0.25,0.9\n",
        "labels": "file,abnormal,Mass\na.png,1,0\nb.png,0,1\n",
    }
    for name, text in content.items():
        Path(f"{name}.csv").write_text(text)
    names = {name: "-" if name == piped else f"{name}.csv" for name in content}
    options = ("--labels", names["labels"], "--threshold", "0.5", "--json")
    done = invoke("evaluate", names["results"], *options, input=content[piped])
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)["by_label"]  # of two labels: the input is read several times
    assert {label: one["overall"]["measures"]["auc"]["value"] for label, one in measured.items()} == {
        "abnormal": 1,
        "Mass": 1,
    }


def test_keys_from_standard_input() -> None:
    code = "from pathlib import Path; from cxr.commands.runs import read_keys; print(read_keys(Path('-')))"
    done = subprocess.run(
        [sys.executable, "-c", code], input="a.png\r\nb.png\n", capture_output=True, text=True, check=True
    )
    assert done.stdout == "['a.png', 'b.png']\n"


# Rows


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


LABELS_OF_RUN = [{"name": name, "threshold": Decimal("0.5")} for name in ("abnormal", "mass")]


@pytest.fixture
def run(aws: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of two labels in which one image of four is still missing."""
    put_run("first", state="SCORING", expected=4, labels=LABELS_OF_RUN)
    odd = Prediction("c.png", two_labels("", "0.1", "0.1").scores, (), ("COLOUR", "LOOKS_SIDEWAYS"))
    put_predictions("first", two_labels("a.png", "0.9", "0.1"), Prediction("b.png", error="IMAGE_EMPTY"), odd)
    monkeypatch.setattr(Stack, "find", lambda *_: STACK)
    return "first"


def test_every_csv_says_which_model_and_which_warnings(run: str, tmp_path: Path) -> None:
    out = tmp_path / "first.csv"
    assert invoke("results", run, "--out", out).exit_code == 0
    assert out.read_text().partition("\n")[0] == (
        "key,status,score,label,error,warnings,model,model_version,score_abnormal,score_mass"
    )
    found = {row["key"]: row for row in rows_of(out.read_text())}
    assert {row["model"] + " " + row["model_version"] for row in found.values()} == {"demo 1.0.0"}
    assert [found[key]["warnings"] for key in ("a.png", "b.png", "c.png")] == [
        "",
        "",
        "COLOUR;LOOKS_SIDEWAYS",
    ]


@pytest.mark.parametrize(
    ("options", "suffix", "in_lines"),
    [
        (["--json"], "jsonl", False),
        (["--format", "json"], "jsonl", False),
        (["--format", "jsonl"], "json", True),
        ([], "json", False),
        ([], "jsonl", True),
    ],
)
def test_results_as_json(run: str, tmp_path: Path, options: list[str], suffix: str, in_lines: bool) -> None:
    """Without --format the file's name says it."""
    out = tmp_path / f"first.{suffix}"
    done = invoke("results", run, "--out", out, *options)
    assert (done.exit_code, done.stdout) == (0, "")
    text = out.read_text()
    found = [json.loads(line) for line in text.splitlines()] if in_lines else json.loads(text)
    by_key = {row["key"]: row for row in found}
    assert by_key["c.png"]["warnings"] == ["COLOUR", "LOOKS_SIDEWAYS"]
    assert (by_key["b.png"]["error"], by_key["b.png"]["score"]) == ("IMAGE_EMPTY", None)
    assert by_key["a.png"]["model_version"] == "1.0.0"


def test_no_results_as_json(run: str) -> None:
    assert json.loads(invoke("results", run, "--json", "--min-score", "1").stdout) == []


def test_results_of_a_run_that_is_not_complete_say_so(run: str) -> None:
    done = invoke("results", run)
    assert (done.exit_code, len(rows_of(done.stdout))) == (0, 3)
    assert done.stderr == "Not all results: run first is SCORING: 3 of 4 images have a prediction\n"
    put_run("first", state="LISTING", labels=LABELS_OF_RUN)
    assert "run first is LISTING: 3 images have a prediction" in invoke("results", run).stderr
    put_run("first", state="COMPLETE", expected=3, labels=LABELS_OF_RUN)
    assert invoke("results", run).stderr == ""


# Files on this machine


def test_any_mix_of_paths_is_scored_and_the_bad_ones_are_named(images: Path) -> None:
    (images / "lost.png").symlink_to("nowhere")
    Path("empty").mkdir()
    named = str(images / "bad.png")
    done = invoke("score", "images", "gone.png", "empty", "images/bad.png", named, "--out", "scores.csv")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "Wrote 4 rows to scores.csv",
        "Error: empty: expected a folder with PNG, JPEG or DICOM files, found none",
        "images/lost.png: No such file or directory; expected a PNG, JPEG or DICOM file",
        "gone.png: No such file or directory; expected a PNG, JPEG or DICOM file",
        "images/bad.png: NOT_AN_IMAGE",
        f"{named}: NOT_AN_IMAGE",
    ]
    rows = rows_of(Path("scores.csv").read_text())
    scored = [f"images/{'a' * 120}.png", "images/bad.png", f"images/sub/{'b' * 120}.png", named]
    assert [row["key"] for row in rows] == scored
    assert tuple(rows[0]) == COLUMNS
    assert f"{rows[0]['model']}:{rows[0]['model_version']}" == Model(SHIPPED).name
    assert (rows[1]["status"], rows[1]["error"], rows[1]["score"]) == ("FAILED", "NOT_AN_IMAGE", "")
    assert oct(Path("scores.csv").stat().st_mode)[-3:] == "600"


def test_of_many_bad_files_the_first_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        Path(f"{number:02}.png").write_text("text")
    done = invoke("score", ".", "--out", "scores.csv")
    assert done.exit_code == 1
    _, *lines = done.stderr.splitlines()
    assert [line.removeprefix("Error: ") for line in lines] == [
        *(f"{number:02}.png: NOT_AN_IMAGE" for number in range(20)),
        "10 more are FAILED in the rows",
    ]


def test_without_any_file_that_can_be_read_the_old_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text("old")
    for path in ("gone.png", "x" * 300):
        done = invoke("score", path, "--out", "scores.csv")
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert Path("scores.csv").read_text() == "old"


def test_no_name_of_a_file_is_a_formula_and_any_name_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("=1+1.png").write_bytes(image_bytes())
    Path(os.fsdecode(b"\xff.png")).write_bytes(image_bytes())
    assert invoke("score", ".", "--out", "scores.csv").exit_code == 0
    assert [row["key"] for row in rows_of(Path("scores.csv").read_text())] == ["./=1+1.png", r"\udcff.png"]


def test_rows_of_files_are_read_by_what_reads_results(images: Path) -> None:
    labels = f"file,abnormal\n{'a' * 120}.png,1\n{'b' * 120}.png,0\n"
    Path("labels.csv").write_text(labels)
    invoke("score", "images", "--out", "scores.csv")
    evaluated = json.loads(invoke("evaluate", "scores.csv", "--labels", "labels.csv", "--json").stdout)
    assert (evaluated["overall"]["images"], evaluated["failed"]) == (2, 1)
    assert evaluated["model"] == Model(SHIPPED).name
    compared = json.loads(invoke("compare", "scores.csv", "scores.csv", "--json").stdout)
    assert compared["a"]["model"] == Model(SHIPPED).name
    lines = invoke("score", "images", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["SCORED", "FAILED", "SCORED"]


@pytest.mark.skipif(not NODE_MODULES.exists(), reason="needs `npm ci`")
def test_the_report_of_rows(images: Path) -> None:
    Path("labels.csv").write_text(f"file,abnormal\n{'a' * 120}.png,1\n{'b' * 120}.png,0\n")
    invoke("score", "images", "--out", "scores.csv")
    done = invoke("report", "scores.csv", "--labels", "labels.csv", "--json")
    assert done.exit_code == 0, done.output
    expected = {"file": "scores.html", "run": "scores", "labels": ["abnormal"], "pictures": True}
    assert json.loads(done.stdout) == expected
    page = document_in(Path("scores.html"))
    assert page["subtitle"] == f"{Model(SHIPPED).name} on the file scores.csv"
    assert page["failures"][0]["code"] == "NOT_AN_IMAGE"
    assert page["labels"][0]["evaluation"]["on"].startswith("2 images")
    assert all("abnormal" in picture["maps"] for picture in page["pictures"].values())
    assert [name for name, _ in page["about"]["run"]][:3] == ["Name", "Images", "Model"]
    assert page["cost"] is None
    # Rows of a model that is not here: the decisions are those of the file.
    text = Path("scores.csv").read_text().replace(",nih-abnormal,", ",other,")
    Path("other.csv").write_text(text)
    shutil.move("images", "moved")
    invoke("report", "other.csv", "--out", "other.html")
    page = document_in(Path("other.html"))
    assert page["subtitle"] == "other:1.0.0 on the file other.csv"
    assert page["labels"][0]["threshold_source"] != "recorded by the run"
    assert page["pictures"] is None
    Path("plain.csv").write_text("key,score\na.png,0.5\n")
    Path("foreign.csv").write_text("key,score,model,model_version\na.png,0.5,other,1\n")
    assert invoke("report", "plain.csv").exit_code == 0  # by the default bundle, as `cxr evaluate` takes it
    refused = invoke("report", "foreign.csv")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "do not say which images are abnormal" in refused.stderr


def test_a_model_that_the_rows_name_is_not_taken_for_another(images: Path) -> None:
    invoke("score", "images", "--out", "scores.csv")
    text = Path("scores.csv").read_text()
    Path("scores.csv").write_text(text.replace(",nih-abnormal,", ",other,"))
    Path("labels.csv").write_text(f"file,abnormal\n{'a' * 120}.png,1\n{'b' * 120}.png,0\n")
    arguments = ("evaluate", "scores.csv", "--labels", "labels.csv")
    assert json.loads(invoke(*arguments, "--json").stdout)["model"] is None
    refused = invoke(*arguments, "--bundle", SHIPPED)
    assert refused.exit_code == 2
    assert "expected the bundle that made these scores of abnormal, other:1.0.0" in refused.stderr


def test_the_json_of_what_is_done_here(images: Path) -> None:
    (path, *_) = (images / "sub").iterdir()
    explained = json.loads(invoke("explain", path, "--out", "map.png", "--json").stdout)
    assert (explained["file"], explained["label"], explained["model"]) == (
        "map.png",
        "abnormal",
        Model(SHIPPED).name,
    )
    checked = json.loads(invoke("model", "check", "--json").stdout)
    assert checked["ok"]
    assert checked["self_test"]["abnormal"]["score"] == pytest.approx(
        checked["self_test"]["abnormal"]["expected"], abs=1e-3
    )
    onnx.save(network(), "network.onnx")
    packed = json.loads(invoke("model", "pack", "network.onnx", *PACKING, "--out", "new", "--json").stdout)
    assert (packed["bundle"], packed["labels"]) == ("new", ["a", "b", "c"])


# Waiting for a run


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.runs.time.sleep", lambda _: None)
    monkeypatch.setattr("cxr.runs.IDLE_SECONDS", 0)


def then(*steps: Callable[[], object]) -> Callable[[object], None]:
    """A callback that takes the steps, one a call."""
    left = list(steps)

    def take(_: object) -> None:
        if left:
            left.pop(0)()

    return take


@pytest.mark.usefixtures("aws", "no_pause")
class TestWait:
    def test_until_the_run_is_complete(self) -> None:
        put_run("first", state="LISTING")
        seen = []
        step = then(
            lambda: put_run("first", state="SCORING", expected=2),
            lambda: put_predictions("first", Prediction("a.png", error="IMAGE_EMPTY")),
            lambda: put_run("first", state="COMPLETE", expected=1),
        )

        def progress(run: cxr.RunStatus) -> None:
            seen.append((str(run.state), run.done, run.expected))
            step(run)

        found = cxr.wait(STACK, "first", progress=progress)
        assert (found.state, found.failures) == ("COMPLETE", {"IMAGE_EMPTY": 1})
        assert seen == [("LISTING", 0, None), ("SCORING", 0, 2), ("SCORING", 1, 2), ("COMPLETE", 1, 1)]

    def test_a_cancelled_run_is_not_waited_for(self) -> None:
        put_run("first", state="SCORING", expected=2)
        with pytest.raises(
            cxr.Failed, match="run first is CANCELLED: 0 of 2 images have a prediction; start"
        ):
            cxr.wait(STACK, "first", progress=then(lambda: cxr.cancel_run(STACK, "first")))
        put_run("first", state="DELETING")
        with pytest.raises(cxr.Failed, match="run first is being deleted"):
            cxr.wait(STACK, "first")

    def test_a_run_whose_missing_images_are_all_in_the_failure_bucket(self) -> None:
        put_run("first", state="SCORING", expected=2)
        put_predictions("first", Prediction("a", error="IMAGE_EMPTY"))
        give_up(("first", "b"))
        with pytest.raises(cxr.Failed, match=r"1 of 2 images .* failure bucket; .* by `cxr retry first`"):
            cxr.wait(STACK, "first")

    def test_not_for_ever_and_not_for_no_run(self) -> None:
        put_run("first", state="SCORING", expected=2)
        with pytest.raises(
            cxr.Failed, match="run first is SCORING: 0 of 2 images have a prediction after 0 s"
        ):
            cxr.wait(STACK, "first", timeout=0)
        with pytest.raises(cxr.InputError, match="no run second"):
            cxr.wait(STACK, "second")
