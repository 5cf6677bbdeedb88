"""Every kind of bad image comes to what docs/bad-images.md says, in little memory and time, in silence."""

import base64
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
from support import BUCKET, PREFIX, ROOT, TABLE, begin_run, client, events_noted, table_items, uid

from reliability.bad_file import SCORED, Kind, plain
from reliability.bad_images import PAGE, kinds, page

pytestmark = pytest.mark.xdist_group("bad_images")  # they share the scored files

BUNDLE = ROOT / "containers" / "classifier" / "model"
MEMORY_MB = 300  # over what the classifier holds before; a function has 1,769

# Scores each file in a folder as the handler does, and writes what came of them to outcomes.json there. A
# logger prints, as on Lambda. Over its memory or time, the process ends.
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
    Path("/proc/self/clear_refs").write_text("5")  # peak memory anew: proc(5)
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
def corpus() -> list[Kind]:
    return list(kinds())


@pytest.fixture(scope="module")
def outcomes(corpus: list[Kind], tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """[outcome, warnings, score, MB it took] of each kind."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, kind in enumerate(corpus):
        (folder / f"{number:04}").write_bytes(kind.data)
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(BUNDLE), str(DEADLINE_MARGIN_MS // 1000)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    found: dict[str, list[Any]] = json.loads((folder / "outcomes.json").read_text())
    return list(found.values())


def test_there_are_sixty_kinds_and_more_and_every_code(corpus: list[Kind]) -> None:
    assert len({kind.name for kind in corpus}) == len(corpus) >= 60
    assert {kind.outcome for kind in corpus} == {SCORED, *ErrorCode} - {"IMAGE_MISSING"}


def test_each_is_a_file_of_its_own(corpus: list[Kind]) -> None:
    names: dict[bytes, list[str]] = {}
    for kind in corpus:
        names.setdefault(kind.data, []).append(kind.name)
    alike = [found for found in names.values() if len(found) > 1]
    assert alike == [["JPEG, cut after segment 6, DRI", "JPEG, SOS is missing"]]  # SOS comes last


def test_each_becomes_what_is_said(corpus: list[Kind], outcomes: list[list[Any]]) -> None:
    expected = {kind.name: [kind.outcome, list(kind.warnings)] for kind in corpus}
    assert {kind.name: found[:2] for kind, found in zip(corpus, outcomes, strict=True)} == expected


def test_harmless_ones_score_as_the_plain_one(corpus: list[Kind], outcomes: list[list[Any]]) -> None:
    scores = {kind.name: found[2] for kind, found in zip(corpus, outcomes, strict=True)}
    compared = {kind.name: kind.within for kind in corpus if kind.within is not None}
    assert len(compared) >= 60
    far = {
        name: scores[name]
        for name, within in compared.items()
        if abs(scores[name] - scores["PNG, plain"]) > within
    }
    assert far == {}


def test_none_takes_much_memory(corpus: list[Kind], outcomes: list[list[Any]]) -> None:
    taken = {kind.name: found[3] for kind, found in zip(corpus, outcomes, strict=True)}
    assert {name: mb for name, mb in taken.items() if mb > MEMORY_MB} == {}


def test_the_page_says_it(corpus: list[Kind]) -> None:
    assert PAGE.read_text() == page(corpus), "run: python -m reliability.bad_images"


@pytest.mark.filterwarnings("ignore")  # pytest undoes what keeps pydicom quiet
def test_bad_images_are_failed_predictions_beside_scored_neighbours(aws: None, corpus: list[Kind]) -> None:
    """Through the handler: a job with one file of each outcome and format, and a plain one after each."""
    samples = {(kind.name.split(",")[0], kind.outcome): kind for kind in corpus if len(kind.data) < 100_000}
    expected: dict[str, str | None] = {}
    for number, kind in enumerate(samples.values()):
        for name, data, code in (
            (f"bad-{number:02}.png", kind.data, None if kind.outcome == SCORED else kind.outcome),
            (f"good-{number:02}.png", plain(), None),
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
    job = json.dumps({"RunId": "r", "RunUid": uid("r"), "Bucket": BUCKET, "Keys": list(expected)}).encode()
    record = {"kinesis": {"sequenceNumber": "0", "data": base64.b64encode(job).decode()}}
    assert classifier({"Records": [record]}, lambda: 900_000) == {"batchItemFailures": []}
    partitions = layout.partitions("r")
    found = {key: item.get("error") for (pk, key), item in table_items().items() if pk in partitions}
    assert len(expected) > 30
    assert {key: found[key] for key in expected} == expected


def test_two_threads_keep_each_other_quiet(corpus: list[Kind], tmp_path: Path) -> None:
    """What silences pydicom and Pillow holds in every thread: a header's value is never said."""
    for number, kind in enumerate(corpus):
        if (kind.name.startswith("DICOM") and len(kind.data) < 100_000) or "EXIF" in kind.name:
            (tmp_path / str(number)).write_bytes(kind.data)
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
