"""Every bad image has the outcome that docs/bad-images.md lists, with little memory and time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from classifier.handler import DEADLINE_MARGIN_MS, Classifier
from classifier.model import Model
from runs import layout
from runs.codes import ErrorCode
from runs.table import RunTable
from support import (
    BUCKET,
    PREFIX,
    ROOT,
    TABLE,
    begin_run,
    client,
    events_noted,
    kinesis_event,
    table_items,
    uid,
)

from reliability.bad_file import SCORED, BadFile, plain_png
from reliability.bad_images import PAGE, bad_files, render_page

pytestmark = pytest.mark.xdist_group("bad_images")  # they share the scored files

BUNDLE = ROOT / "containers" / "classifier" / "model"
MEMORY_MB = 300  # for one file, on top of what the classifier holds; a function has 1,769

# Scores each file in a folder as the handler does, and writes the outcomes to outcomes.json there. Loggers
# print, as on Lambda. A file that takes too much memory or time ends the process.
SCORE = """
import json, logging, resource, sys, time
from pathlib import Path
from classifier.bounds import ImageError
from classifier.model import Model

def peak_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

folder, seconds = Path(sys.argv[1]), int(sys.argv[3])
logging.basicConfig()
model = Model(Path(sys.argv[2]))
outcomes = {}
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory: proc(5)
    before, used = peak_mb(), time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, resource.RLIM_INFINITY))
    try:
        pixels, warnings = model.prepare(data)
        (scores,) = model.score([pixels])
        outcome = ["SCORED", list(warnings)]
    except ImageError as error:
        outcome, scores = [error.code, []], {}
    outcomes[path.name] = [*outcome, float(scores.get("abnormal", -1)), peak_mb() - before]
(folder / "outcomes.json").write_text(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def corpus() -> list[BadFile]:
    return list(bad_files())


@pytest.fixture(scope="module")
def outcomes(corpus: list[BadFile], tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """[outcome, warnings, score, MB of memory] of each file."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, file in enumerate(corpus):
        (folder / f"{number:04}").write_bytes(file.data)
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(BUNDLE), str(DEADLINE_MARGIN_MS // 1000)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    found: dict[str, list[Any]] = json.loads((folder / "outcomes.json").read_text())
    return list(found.values())


# Codes of what S3 answers, and of no file.
OF_OBJECTS = {"IMAGE_MISSING", "IMAGE_ARCHIVED", "IMAGE_CUSTOMER_KEY"}


def test_the_files_cover_every_error_code(corpus: list[BadFile]) -> None:
    assert len({file.name for file in corpus}) == len(corpus) >= 60
    assert {file.outcome for file in corpus} == {SCORED, *ErrorCode} - OF_OBJECTS


def test_no_two_files_are_equal(corpus: list[BadFile]) -> None:
    names: dict[bytes, list[str]] = {}
    for file in corpus:
        names.setdefault(file.data, []).append(file.name)
    equal = [found for found in names.values() if len(found) > 1]
    assert equal == [["JPEG, cut after segment 6, DRI", "JPEG, SOS is missing"]]  # SOS is the last segment


def test_each_file_has_its_outcome(corpus: list[BadFile], outcomes: list[list[Any]]) -> None:
    expected = {file.name: [file.outcome, list(file.warnings)] for file in corpus}
    assert {file.name: found[:2] for file, found in zip(corpus, outcomes, strict=True)} == expected


def test_harmless_files_score_like_the_plain_png(corpus: list[BadFile], outcomes: list[list[Any]]) -> None:
    scores = {file.name: found[2] for file, found in zip(corpus, outcomes, strict=True)}
    compared = {file.name: file.tolerance for file in corpus if file.tolerance is not None}
    assert len(compared) >= 60
    far = {
        name: scores[name]
        for name, within in compared.items()
        if abs(scores[name] - scores["PNG, plain"]) > within
    }
    assert far == {}


def test_no_file_takes_much_memory(corpus: list[BadFile], outcomes: list[list[Any]]) -> None:
    taken = {file.name: found[3] for file, found in zip(corpus, outcomes, strict=True)}
    assert {name: mb for name, mb in taken.items() if mb > MEMORY_MB} == {}


def test_the_page_is_current(corpus: list[BadFile]) -> None:
    assert PAGE.read_text() == render_page(corpus), "run: python -m reliability.bad_images"


@pytest.mark.filterwarnings("ignore")  # pytest shows the warnings that the classifier silences
def test_bad_images_are_failed_predictions_beside_scored_neighbours(aws: None, corpus: list[BadFile]) -> None:
    """The handler scores a job with a file of each outcome and format, and a plain PNG after each of them."""
    samples = {(file.name.split(",")[0], file.outcome): file for file in corpus if len(file.data) < 100_000}
    expected: dict[str, str | None] = {}
    for number, file in enumerate(samples.values()):
        for name, data, code in (
            (f"bad-{number:02}.png", file.data, None if file.outcome == SCORED else file.outcome),
            (f"good-{number:02}.png", plain_png(), None),
        ):
            client("s3").put_object(Bucket=BUCKET, Key=PREFIX + name, Body=data)
            expected[PREFIX + name] = code
    model = Model(BUNDLE)
    begin_run("r", expected=len(expected), model_sha256=model.sha256)
    classifier = Classifier(
        model=model,
        table=RunTable(boto3.client("dynamodb"), TABLE),
        s3=boto3.client("s3"),
        events=events_noted([]),
        bucket=BUCKET,
        vcpus=2,
    )
    job = {"RunId": "r", "RunUid": uid("r"), "Bucket": BUCKET, "Keys": list(expected)}
    assert classifier(kinesis_event(job), lambda: 900_000) == {"batchItemFailures": []}
    partitions = layout.partitions("r")
    found = {key: item.get("error") for (pk, key), item in table_items().items() if pk in partitions}
    assert len(expected) > 30
    assert {key: found[key] for key in expected} == expected


def test_decoding_in_threads_prints_nothing(corpus: list[BadFile], tmp_path: Path) -> None:
    """pydicom and Pillow are silenced in every thread: they could print a value from a header."""
    for number, file in enumerate(corpus):
        if (file.name.startswith("DICOM") and len(file.data) < 100_000) or "EXIF" in file.name:
            (tmp_path / str(number)).write_bytes(file.data)
    threads = """
import logging, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from classifier.bounds import ImageError
from classifier.decode import decode
logging.basicConfig()
sys.setswitchinterval(1e-5)

def score(data):
    try:
        decode(data)
    except ImageError:
        pass

files = [path.read_bytes() for path in Path(sys.argv[1]).iterdir()]
with ThreadPoolExecutor(4) as pool:
    list(pool.map(score, files * 5))
"""
    command = [sys.executable, "-c", threads, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
