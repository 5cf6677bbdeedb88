"""The operator's commands on the stack as the real CDK deploys it to local AWS, with real X-rays."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from deployment import Deployment, retries
from runs import layout
from runs.attributes import pack
from support import PREFIX, ROOT, begin_run, counts, recounted, table_items, wait_for
from typer.testing import CliRunner

from cxr import Stack, results, start_run, status
from cxr.aws_errors import explained
from cxr.commands import options, run_display
from cxr.commands import runs as run_commands
from cxr.commands.app import app
from cxr.doctor import Finding
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.runs import RunStatus
from cxr.stack import client
from cxr.upload import files_in, upload

pytestmark = pytest.mark.xdist_group("deployment")

LABELS = ROOT.parent / "shared" / "data" / "nih-cxr" / "labels.csv"
LARGE = 40_000  # images of a run
MEMORY_MB = 120  # 81 and 92 were seen, with 1,000 images and with 40,000


@pytest.fixture(scope="module")
def stack(deployment: Deployment) -> Iterator[Stack]:
    with deployment.used():
        yield Stack.find()


@pytest.fixture(scope="module")
def folder(stack: Stack, xrays: list[Path]) -> Path:
    """The folder of the forty X-rays, which are in the bucket."""
    folder = xrays[0].parents[2]
    assert all(upload(client("s3"), stack.images_bucket, stack.prefix, folder, files_in(folder)))
    return folder


@pytest.fixture(scope="module")
def small(stack: Stack, folder: Path) -> str:
    """A run of two of the X-rays, complete."""
    start_run(stack, "small", prefix=f"{PREFIX}images_01/", count=2)
    wait_for(lambda: status(stack, "small").state == "COMPLETE", "a run of two images")
    return "small"


def cxr(*arguments: str, exit_code: int = 0) -> Any:
    """Runs a command in this process."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == exit_code, done.output
    return done


def cxr_json(*arguments: str, exit_code: int = 0) -> Any:
    return json.loads(cxr(*arguments, "--json", exit_code=exit_code).stdout)


def error(*arguments: str, exit_code: int = 2) -> str:
    """The one line that a command ends with."""
    done = cxr(*arguments, exit_code=exit_code)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return str(line.removeprefix("Error: "))


@pytest.fixture
def held(stack: Stack) -> Iterator[Callable[[bool], None]]:
    """Holds the jobs back on the stream, and lets them go."""
    functions = boto3.client("lambda")

    def hold(on: bool) -> None:
        functions.update_event_source_mapping(UUID=stack.mapping, Enabled=not on)

    yield hold
    hold(False)


@pytest.fixture
def few_retries(stack: Stack) -> Iterator[None]:
    """Lambda gives a job up after one retry."""
    with retries(stack.classifier, 1):
        yield


def test_doctor_finds_all_that_a_run_needs(
    stack: Stack, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept.toml").write_text("[ChestXray]\nretries = 8\nimagesPerJob = 8\n")
    monkeypatch.setenv("CXR_SETTINGS", str(tmp_path / "kept.toml"))
    monkeypatch.setattr("cxr.classifier_log.RECENT", timedelta(0))  # other tests let jobs fail
    found = cxr_json("doctor")
    assert found["ok"]
    levels = {check["name"]: check["level"] for check in found["checks"]}
    needed = ("region", "credentials", "stack", "images", "table", "job creator", "mapping", "concurrency")
    assert [levels[name] for name in needed] == ["ok"] * len(needed)
    assert "local AWS has no quota" in cxr("doctor").stdout


def test_an_upload_is_not_sent_twice(folder: Path) -> None:
    assert cxr_json("upload", str(folder)) == {"uploaded": 0, "unchanged": 41}
    assert "0 files uploaded, 41 unchanged" in cxr("upload", str(folder)).stdout


def test_a_run_is_watched_to_its_end_and_its_results_are_evaluated(
    stack: Stack, folder: Path, tmp_path: Path
) -> None:
    done = cxr("run", "story", "--prefix", f"{PREFIX}images_01/", "--watch")
    assert "40 images in 5 jobs on the stream" in done.stdout
    assert "story COMPLETE" in done.stdout
    found = cxr_json("status", "story")
    assert (found["state"], found["expected"], found["scored"], found["failed"]) == ("COMPLETE", 40, 40, 0)
    assert found["remaining"] == 0
    assert found["stream_lag_seconds"] is None

    listed = cxr("results", "story").stdout
    rows = list(csv.DictReader(io.StringIO(listed)))
    items = table_items(stack.table)
    predicted = {sk: item for (pk, sk), item in items.items() if pk in layout.partitions("story")}
    assert {row["key"]: Decimal(row["score"]) for row in rows} == {
        key: item["scores"]["abnormal"] for key, item in predicted.items()
    }
    in_lines = [json.loads(line) for line in cxr("results", "story", "--format", "jsonl").stdout.splitlines()]
    assert sorted(line["key"] for line in in_lines) == sorted(predicted)
    assert in_lines == list(results(stack, "story"))
    abnormal = cxr("results", "story", "--positive", "--max-score", "0.6").stdout
    assert list(csv.DictReader(io.StringIO(abnormal))) == [
        row for row in rows if row["label"] == "abnormal" and float(row["score"]) <= 0.6
    ]

    out = tmp_path / "results.csv"
    assert cxr("results", "story", "--out", str(out)).stdout == ""
    assert out.read_text() == listed
    evaluated = cxr_json("evaluate", str(out), "--labels", str(LABELS))
    assert (evaluated["overall"]["images"], evaluated["without_label"]) == (40, 0)


def test_control_characters_stay_in_results_and_are_escaped_in_errors(stack: Stack) -> None:
    key = f"{PREFIX}red\x1b[31m\u202e.png"
    client("s3").put_object(Bucket=stack.images_bucket, Key=key, Body=b"no image")
    start_run(stack, "red", keys=[key])
    wait_for(lambda: status(stack, "red").state == "COMPLETE", "a run of one image")
    (row,) = csv.DictReader(io.StringIO(cxr("results", "red").stdout))
    assert row["key"] == key
    assert "\x1b" not in error("run", "a", "--prefix", "else\x1bwhere/")


def test_runs_are_listed(small: str) -> None:
    run = next(run for run in cxr_json("runs") if run["run"] == small)
    assert (run["state"], run["expected"], run["scored"]) == ("COMPLETE", 2, 2)
    assert small in cxr("runs").stdout
    assert options.complete_run(type("Context", (), {"params": {}}), "sma") == [small]  # type: ignore[arg-type]


def test_keys_of_a_file_and_of_an_index(folder: Path, xrays: list[Path], tmp_path: Path) -> None:
    keys = [PREFIX + path.relative_to(folder).as_posix() for path in xrays[:3]]
    (tmp_path / "keys.txt").write_text("\r\n".join(["", *keys, ""]))
    assert cxr_json("run", "keys", "--keys", str(tmp_path / "keys.txt"))["images"] == 3
    cxr("status", "keys", "--watch")
    assert {
        json.loads(line)["key"] for line in cxr("results", "keys", "--format", "jsonl").stdout.splitlines()
    } == (set(keys))
    assert cxr_json("run", "index", "--index", f"{PREFIX}index.csv", "--count", "2")["images"] == 2


def test_a_cancelled_run_drops_what_waits_and_goes_on_when_started_again(
    stack: Stack, folder: Path, held: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("run", "rested", "--prefix", f"{PREFIX}images_01/", "--count", "10")
    held(True)
    cxr(*start)
    said = cxr("cancel", "rested").stdout
    assert "rested is cancelled: 0 scored, 0 failed, 10 left without an outcome" in said
    assert f"To continue: cxr {' '.join(start)}" in said
    held(False)
    cxr("run", "marker", "--count", "1", "--watch")  # whose job is behind those of the cancelled run
    assert cxr_json("status", "rested", exit_code=0)["scored"] == 0
    assert cxr_json("status", "rested", "--watch", exit_code=1)["state"] == "CANCELLED"
    assert "start it again" in error("retry", "rested")

    cxr(*start, "--watch")
    items = table_items(stack.table)
    assert counts(items, "rested") == recounted(items, "rested")
    assert cxr_json("status", "rested")["scored"] == 10
    again = status(stack, "rested")
    assert again.resumed_at
    assert again.completed_at
    worked = max(1.0, (again.completed_at - again.resumed_at).total_seconds())
    assert again.speed == 10 / worked  # without the time that it rested
    assert "COMPLETE: nothing is left to cancel" in error("cancel", "rested")


@pytest.mark.usefixtures("few_retries")
def test_what_lambda_gave_up_is_retried_once_its_cause_is_mended(
    stack: Stack, folder: Path, held: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    held(True)
    cxr("run", "broken", "--prefix", f"{PREFIX}images_01/", "--count", "10")
    model = _set(stack, "broken", model_sha256="0" * 64)["model_sha256"]
    held(False)
    with monkeypatch.context() as patch:
        patch.setattr(run_display, "IDLE_SECONDS", 1)
        stuck = cxr_json("status", "broken", "--watch", exit_code=1)
    assert (stuck["state"], stuck["remaining"]) == ("SCORING", 10)
    assert stuck["failure_bucket"]["images"] == 10
    assert re.search(r"10 +in the failure bucket", cxr("status", "broken").stdout)
    (problem,) = [found for found in stuck["problems"] if found["name"] == "failures"]
    assert problem["text"].startswith("run broken is pinned to nih-abnormal:1.0.0, this function holds ")
    assert problem["remedy"] == (
        "set the model of the run in settings.toml and deploy it again, or cancel the run"
    )

    _set(stack, "broken", model_sha256=model)
    assert cxr_json("retry", "broken")["given_up"] == 10
    assert cxr_json("status", "broken", "--watch")["scored"] == 10
    after = cxr_json("retry", "broken")
    assert (after["given_up"], after["objects_left"]) == (0, 0)
    assert after["objects_deleted"] >= 1
    assert boto3.client("s3").list_objects_v2(Bucket=stack.failure_bucket)["KeyCount"] == 0
    items = table_items(stack.table)
    assert counts(items, "broken") == recounted(items, "broken")
    assert counts(items, "broken")["SCORED"] == 10


def test_failed_images_are_retried_and_followed_to_their_new_outcome(
    stack: Stack, xrays: list[Path], held: Callable[[bool], None]
) -> None:
    s3, key = boto3.client("s3"), f"{PREFIX}corrected/a.png"
    s3.put_object(Bucket=stack.images_bucket, Key=key, Body=b"")
    run = cxr_json("run", "corrected", "--prefix", f"{PREFIX}corrected/", "--watch")
    assert (run["state"], run["failures"]) == ("COMPLETE", {"IMAGE_EMPTY": 1})
    s3.put_object(Bucket=stack.images_bucket, Key=key, Body=xrays[0].read_bytes())
    assert cxr_json("retry", "corrected", "--failed", "image_missing")["failed"] == 0
    said = cxr("retry", "corrected").stdout
    assert "  cxr retry corrected --failed IMAGE_EMPTY  # 1 image" in said
    held(True)
    assert cxr_json("retry", "corrected", "--all-failed")["failed"] == 1
    waiting = cxr_json("status", "corrected")
    assert (waiting["state"], waiting["remaining"], waiting["retrying"]) == ("SCORING", 1, 1)
    assert "mapping" in [problem["name"] for problem in waiting["problems"]]
    # Other numbers may be wider: of images in the failure bucket, which other tests fill.
    assert re.search(r"remaining +1 +1 sent again after they failed", cxr("status", "corrected").stdout)
    held(False)
    after = cxr_json("status", "corrected", "--watch")
    assert (after["scored"], after["failures"], after["retrying"]) == (1, {}, 0)
    s3.delete_object(Bucket=stack.images_bucket, Key=key)


def test_a_run_is_deleted(stack: Stack, folder: Path) -> None:
    cxr("run", "gone", "--count", "3", "--watch")
    assert "give --yes" in error("delete", "gone")
    assert cxr_json("delete", "gone", "--yes") == {"run": "gone", "predictions": 3}
    assert not {pk for pk, sk in table_items(stack.table) if "gone" in pk + sk}
    assert "there is no run gone" in error("status", "gone")


def test_a_deletion_that_is_interrupted_says_how_it_continues(
    stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cxr("run", "half", "--count", "3", "--watch")

    def interrupted(*_: object) -> Any:
        raise SystemExit(130)

    with monkeypatch.context() as patch:
        patch.setattr("runs.table.RunTable.delete", interrupted)
        done = cxr("delete", "half", "--yes", exit_code=130)
    assert "Run half is deleted in part: `cxr delete half`" in done.stderr
    assert "Its deletion was not finished: `cxr delete half` continues it" in cxr("status", "half").stdout
    cxr("delete", "half", "--yes")


@pytest.mark.parametrize("status", ["SCORED", "Scored", "scored"])
def test_a_status_may_be_written_in_any_case(small: str, status: str) -> None:
    assert len(cxr("results", small, "--status", status).stdout.splitlines()) == 3


def test_lag_is_said_where_cloudwatch_has_it(
    stack: Stack, held: Callable[[bool], None], folder: Path
) -> None:
    held(True)
    cxr("run", "lagging", "--count", "1")
    assert status(stack, "lagging").stream_lag is None
    boto3.client("cloudwatch").put_metric_data(
        Namespace="AWS/Lambda",
        MetricData=[
            {
                "MetricName": "IteratorAge",
                "Dimensions": [{"Name": "FunctionName", "Value": stack.classifier}],
                "Value": 90_000,
                "Unit": "Milliseconds",
            }
        ],
    )
    assert cxr_json("status", "lagging")["stream_lag_seconds"] == 90
    assert "stream lag  90 s" in cxr("status", "lagging").stdout


@pytest.fixture(scope="module")
def large(stack: Stack) -> str:
    """A run of LARGE images. Every scan of the table takes long from then on."""
    return put_run(stack, "large", LARGE)


def put_run(stack: Stack, run_id: str, images: int) -> str:
    """Put a run with a prediction for each of its images but one."""
    dynamodb = client("dynamodb", parameter_validation=False)  # which takes as long as all the rest
    fields = {
        "status": "SCORED",
        "scores": {"abnormal": Decimal("0.383928")},
        "positive": [],
        "warnings": [],
        "model": "nih-abnormal:1.0.0",
        "model_sha256": "a" * 64,
        "scored_at": "2026-11-24T21:20:00+00:00",
    }

    packed = pack(fields)

    def put(numbers: range) -> None:
        keys = (f"{PREFIX}images_{number % 12:03}/images/{number:08}_000.png" for number in numbers)
        items = (pack(layout.prediction_key(run_id, key)) | packed for key in keys)
        requests: Any = [{"PutRequest": {"Item": item}} for item in items]
        dynamodb.batch_write_item(RequestItems={stack.table: requests})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, (range(n, min(n + 25, images - 1)) for n in range(0, images - 1, 25))))
    run = {"expected": images, "model": fields["model"], "model_sha256": "a" * 64}
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    begin_run(run_id, stack.table, **run, created_at=created_at)
    dynamodb.put_item(
        TableName=stack.table,
        Item=pack(layout.counter_key(run_id, 3)) | pack({"uid": "any", "SCORED": images - 1}),
    )
    return run_id


@pytest.mark.skipif(sys.platform != "linux", reason="reads the most memory of a process from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("command", [["results"], ["status", "--json"]])
def test_a_large_run_is_read_in_little_memory(large: str, command: list[str]) -> None:
    code = """
import atexit, pathlib, sys
atexit.register(lambda: sys.stderr.write(pathlib.Path("/proc/self/status").read_text()))
from cxr.commands.app import app
app()
"""
    name, *options = command
    done = subprocess.run(
        [sys.executable, "-c", code, name, large, *options], capture_output=True, text=True, check=True
    )
    most = next(line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    assert int(most.split()[1]) < MEMORY_MB * 1024
    if name == "status":
        assert json.loads(done.stdout)["remaining"] == 1
    else:
        assert len(done.stdout.splitlines()) == LARGE  # one is missing, and there is a heading


@pytest.mark.slow
def test_status_makes_few_requests_whatever_the_run(
    stack: Stack, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = boto3.client("s3")
    for number in range(30):
        document = json.dumps({"payload": json.dumps({"Records": []})})
        s3.put_object(Bucket=stack.failure_bucket, Key=f"aws/lambda/{number}", Body=document)
    made = []

    class Counted(boto3.Session):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.events.register("before-send", lambda request, **_: made.append(request.url))

    monkeypatch.setattr(boto3, "Session", Counted)
    found = cxr_json("status", large)
    assert (found["remaining"], found["failure_bucket"]["more"]) == (1, True)
    assert 3 <= len(made) <= 30
    monkeypatch.undo()
    for number in range(30):
        s3.delete_object(Bucket=stack.failure_bucket, Key=f"aws/lambda/{number}")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["status", "nowhere"], 2, "there is no run nowhere; `cxr runs` lists those that there are"),
        (["results", "nowhere"], 2, "there is no run nowhere; `cxr runs` lists those that there are"),
        (
            ["runs", "--stack", "Other"],
            2,
            "there is no stack Other in us-east-1; deploy it by `npx cdk deploy -c stackName=Other`, ",
        ),
        (
            ["runs", "--stack", "CDKToolkit"],
            2,
            "stack CDKToolkit has no output 'ImagesBucketName': expected ",
        ),
        (["upload", "nowhere"], 2, "nowhere does not exist; give a folder of images"),
        (
            ["upload", "tests", "--prefix", "other/"],
            2,
            "--prefix other/: expected one that begins with cxr-nih/",
        ),
        (
            ["run", "a", "--keys", "nowhere.txt"],
            2,
            "nowhere.txt: No such file or directory; expected a file of",
        ),
        (
            ["run", "a", "--prefix", "cxr-nih/", "--index", "a"],
            2,
            "--prefix, --index and --keys: expected one",
        ),
        (["run", "a", "--prefix", "other/"], 2, "the prefix: expected a string of at most 1024 bytes in "),
        (["run", "a", "--prefix", "other/", "--no-wait"], 2, "the prefix: expected a string of at most 1024"),
        (["run", "a b"], 2, "run 'a b': expected a name of letters, digits, _ . and -, at most 128, that "),
        (["run", "a b", "--no-wait"], 2, "run 'a b': expected a name of letters, digits, _ . and -, at "),
        (["run", "a", "--count", "0"], 2, "the number of images: expected a whole number from 1 to 1,000"),
        (["run", "a", "--prefix", "cxr-nih/none/"], 2, "the prefix: no image there; expected at least one"),
        (["run", "a", "--index", "cxr-nih/no.csv"], 2, "the index: expected "),
        (["run", "a", "--prefix", "cxr-nih/none/", "--no-wait"], 2, "there is nothing at cxr-nih/none/ in "),
        (["run", "a", "--index", "cxr-nih/no.csv", "--no-wait"], 2, "there is nothing at cxr-nih/no.csv in "),
        (["run"], 2, "Missing argument 'RUN'; `cxr run --help` shows what it takes"),
        (["runs", "--nonsense"], 2, "No such option: --nonsense; `cxr runs --help` shows what it takes"),
        (
            ["run", "a", "--count", "x"],
            2,
            "Invalid value for '--count': expected a whole number; `cxr run --help` shows what it takes",
        ),
        (["results", "a", "--min-score", "2"], 2, "--min-score 2: expected a score from 0 to 1"),
        (
            ["results", "a", "--out", "nowhere/a.csv"],
            2,
            "nowhere/a.csv: expected a file in a folder that",
        ),
        (["results", "a", "--out", "tests"], 2, "tests: expected a file, found a folder"),
        (
            ["retry", "a", "--failed", "A", "--all-failed"],
            2,
            "--failed and --all-failed: expected one of them",
        ),
        (
            ["evaluate", "nowhere", "--labels", "a.csv"],
            2,
            "nowhere is not a file, and no run was found: there is no",
        ),
    ],
)
def test_wrong_input_is_an_error_of_one_line(
    stack: Stack, arguments: list[str], exit_code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert error(*arguments, exit_code=exit_code).startswith(message)


def test_a_name_that_another_set_of_images_has_is_refused(small: str) -> None:
    assert error("run", small, "--count", "3") == (
        "run small has at most 2 of the images below cxr-nih/images_01/, and not at most 3 of the images "
        "below cxr-nih/; choose another name"
    )
    assert "choose another name" in error("run", small, "--count", "3", "--no-wait")
    assert cxr_json("status", small)["expected"] == 2


def test_a_run_that_is_scored_already_has_nothing_to_do(small: str) -> None:
    again = ("run", small, "--prefix", f"{PREFIX}images_01/", "--count", "2")
    assert "Nothing to do: all 2 images have a score" in cxr(*again, "--watch").stdout
    assert cxr_json(*again) == {"run": small, "images": 2, "jobs": 0}


def test_images_that_are_gone_are_named(stack: Stack) -> None:
    s3, keys = boto3.client("s3"), [f"{PREFIX}passing/{letter}.png" for letter in "abc"]
    for key in keys:
        s3.put_object(Bucket=stack.images_bucket, Key=key, Body=b"")
    cxr("run", "passing", "--prefix", f"{PREFIX}passing/", "--watch")
    s3.delete_object(Bucket=stack.images_bucket, Key=keys[1])
    assert error("run", "passing", "--prefix", f"{PREFIX}passing/") == (
        "run passing cannot continue: 1 of its images have a prediction and are no longer among the images "
        "below cxr-nih/passing/: cxr-nih/passing/b.png; put them back, or choose another name"
    )
    for key in keys:
        s3.delete_object(Bucket=stack.images_bucket, Key=key)


def test_a_watched_run_that_does_not_move_says_why(
    stack: Stack, folder: Path, held: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = run_display.causes

    def find_and_let_go(stack: Stack, run: RunStatus) -> list[Finding]:
        found = find(stack, run)
        held(False)
        return found

    monkeypatch.setattr(run_display, "CAUSE_SECONDS", 0)
    monkeypatch.setattr(run_display, "causes", find_and_let_go)
    held(True)
    cxr("run", "still", "--count", "1")
    said = cxr("status", "still", "--watch").stderr.splitlines()
    assert said[0].startswith("Nothing has moved for ")
    assert said[1] == "✗ mapping      Disabled: no job reaches the classifier"
    assert said[2] == (
        f"               → aws lambda update-event-source-mapping --uuid {stack.mapping} --enabled"
    )


def test_keys_that_are_too_many_for_an_invocation_are_refused_with_the_way_out(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("".join(f"{PREFIX}{number:0900}.png\n" for number in range(7_000)))
    assert "put a CSV of the keys, with the heading Key" in error(
        "run", "a", "--keys", str(tmp_path / "keys")
    )


def test_labels_that_match_nothing_write_nothing(small: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("key,abnormal\nelsewhere.png,1\n")
    arguments = (
        "evaluate",
        small,
        "--labels",
        str(tmp_path / "labels.csv"),
        "--out",
        str(tmp_path / "out"),
    )
    assert error(*arguments).startswith("no scored image has a label: 2 scored")
    assert not (tmp_path / "out").exists()


def test_a_results_file_is_whole_or_as_it_was(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.csv"
    out.write_text("before")

    def breaks(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerow", breaks)
        assert "No space left" in error("results", small, "--out", str(out), exit_code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    assert out.read_text() == "before"


def test_ctrl_c_ends_the_watching_and_not_the_run(
    stack: Stack, folder: Path, held: Callable[[bool], None]
) -> None:
    held(True)
    command = subprocess.Popen(
        [Path(sys.executable).with_name("cxr"), "run", "interrupted", "--count", "2", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    assert "on the stream" in command.stdout.readline()
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=20)
    assert command.returncode == 130
    assert said.splitlines() == [
        "Run interrupted continues: `cxr status interrupted`, `cxr cancel interrupted`"
    ]
    held(False)
    cxr("status", "interrupted", "--watch")


def test_ctrl_c_before_the_job_creator_answers_promises_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Any:
        raise SystemExit(130)

    monkeypatch.setattr(run_commands, "start_run", interrupted)
    done = cxr("run", "never", exit_code=130)
    assert "Run never may have been started; if so, it continues: `cxr status never`" in done.stderr


def test_ctrl_c_leaves_no_half_results(small: str, tmp_path: Path) -> None:
    code = """
import csv, os, signal
from cxr.commands.app import app
write = csv.DictWriter.writerow
csv.DictWriter.writerow = lambda self, row: (write(self, row), os.kill(os.getpid(), signal.SIGINT))
app()
"""
    command = [sys.executable, "-c", code, "results", small, "--out", str(tmp_path / "results.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """AWS as a server that answers everything alike."""
    servers = []

    def answer(status: int, body: str, **headers: str) -> None:
        reply = Reply(status, body.encode(), {"Content-Type": "text/xml", **headers})
        servers.append(LoopbackServer(lambda *_: reply))
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{servers[0].address}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)

    yield answer
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ExpiredToken", "the AWS credentials have expired; renew them, for example by `aws sso login`"),
        (
            "InvalidClientTokenId",
            "AWS does not know these credentials (InvalidClientTokenId); set AWS_PROFILE, ",
        ),
        (
            "AccessDenied",
            "these credentials may not call DescribeStacks (AccessDenied); have it allowed, or",
        ),
        (
            "SignatureDoesNotMatch",
            "AWS refuses the signature (SignatureDoesNotMatch): the clock of this machine",
        ),
        ("RequestTimeTooSkewed", "the clock of this machine is wrong, so AWS refuses its requests (Request"),
        ("Odd", "DescribeStacks failed with Odd; `cxr --debug` shows more"),
    ],
)
def test_what_aws_refuses_is_said_in_one_line(
    answering: Callable[..., None], code: str, message: str
) -> None:
    answering(
        403, f"<ErrorResponse><Error><Code>{code}</Code><Message>a/key.png</Message></Error></ErrorResponse>"
    )
    assert error("status", "first", exit_code=1).startswith(message)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<!DOCTYPE html><p>Hello"),
        (200, "<html><p>Hello</p></html>"),
        (200, "{}"),
        (404, "<html>Not Found</html>"),
        (404, "<!DOCTYPE html><p>Not Found"),
        (501, "<html><p>POST?</html>"),
        (405, ""),
    ],
)
def test_an_endpoint_that_is_not_aws(
    answering: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: int, body: str
) -> None:
    monkeypatch.setattr("cxr.stack.ATTEMPTS", 1)
    answering(status, body)
    refused = CliRunner().invoke(app, ["status", "first"])
    assert refused.exit_code in (1, 2)
    assert re.match(r"Error: what answered( \(.*\))? is not AWS; check AWS_ENDPOINT_URL", refused.stderr)
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[default]\nregion = us-east-1\naws_secret_access_key hunter2\n", ", line 3"),
        (b"region = us-east-1\n", ", line 1"),
        (b"[default]\n[default]\n", ", line 2"),
        (b"[default]\nregion = \xff\xfe\n", ""),
    ],
)
def test_a_config_file_that_does_not_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, line: str
) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    refused = error("status", "first", exit_code=1)
    assert refused.startswith(f"{path}{line}: expected an AWS config file")
    assert "hunter2" not in refused


@pytest.mark.parametrize("region", ["us-east-1 ", "us-east-1\r", "us-east-1,", "\N{EN DASH}us-east-1"])
def test_a_stray_character_in_the_region(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    monkeypatch.setenv("AWS_REGION", region)
    assert error("status", "first", exit_code=1).startswith(
        f"{region!r} is no AWS region; correct AWS_REGION"
    )


def test_a_clock_that_is_off_is_named_whatever_the_code() -> None:
    answer: Any = {"Error": {"Code": "InvalidSignatureException", "Message": "Signature expired: 2020 ..."}}
    assert explained(ClientError(answer, "GetItem")).startswith("the clock of this machine is wrong")


def test_a_bucket_in_another_region_is_named_with_its_region(
    answering: Callable[..., None], tmp_path: Path
) -> None:
    answering(
        301,
        "<Error><Code>PermanentRedirect</Code><Message>m</Message></Error>",
        **{"x-amz-bucket-region": "eu-central-1"},
    )
    (tmp_path / "a.png").touch()
    with pytest.raises(ClientError) as raised:
        list(upload(client("s3"), "bucket", PREFIX, tmp_path, [Path("a.png")]))
    assert explained(raised.value) == (
        "ListObjectsV2: the bucket is in another region; set AWS_REGION to eu-central-1"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no answer from 127.0.0.1:9; check the network"),
        ({"AWS_PROFILE": "nobody"}, "there is no AWS profile nobody; set AWS_PROFILE to one of"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "no AWS region is set; set AWS_REGION"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "no AWS credentials were found; set AWS_PROFILE",
        ),
    ],
)
def test_an_environment_that_leads_nowhere(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (nowhere | environment).items():
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("cxr.stack.ATTEMPTS", 1)
    assert error("status", "first", exit_code=1).startswith(message)


def test_the_region_is_the_aws_clis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert client("s3").meta.region_name == "us-east-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert client("s3").meta.region_name == "eu-west-1"


def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "notaurl")
    assert error("runs").endswith("expected a URL in AWS_ENDPOINT_URL, or none")


def test_a_traceback_only_with_debug(answering: Callable[..., None]) -> None:
    odd = "<Error><Code>Odd</Code><Message>m&#x9b;31m&#x202e;</Message></Error>"
    answering(400, f"<ErrorResponse>{odd}</ErrorResponse>")
    assert "Traceback" not in error("runs", exit_code=1)
    command = [str(Path(sys.executable).with_name("cxr")), "--debug", "runs"]
    debugged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr
    assert r"m\x9b31m\u202e" in debugged.stderr
    assert debugged.stderr.replace("\n", "").isprintable()


def _set(stack: Stack, run: str, **fields: Any) -> dict[str, Any]:
    """Sets fields of the run's item; what they were."""
    table = boto3.resource("dynamodb").Table(stack.table)
    before = table.get_item(Key={"pk": "RUN", "sk": run})["Item"]
    table.put_item(Item=before | fields)
    return before
