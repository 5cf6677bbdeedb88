"""The whole pipeline, deployed by the real CDK to local AWS, on real X-rays."""

import base64
import csv
import json
import os
import re
import subprocess
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from classifier.model import Model
from deployment import Deployment, retries
from runs import layout
from support import (
    PREFIX,
    ROOT,
    begin_run,
    client,
    counts,
    image_bytes,
    png,
    recounted,
    table_items,
    uid,
    wait_for,
)

from cxr.local_aws.local_aws import LocalAws

pytestmark = pytest.mark.xdist_group("deployment")

AWSCLI = "awscli==1.46.3"
EVENTS = (ROOT / "docs" / "events.md").read_text()


class Pipeline:
    """The deployed stack, and what a person does with it."""

    def __init__(self, aws: LocalAws, outputs: dict[str, str]) -> None:
        self.aws = aws
        self.outputs = outputs

    def upload(self, files: dict[str, bytes]) -> list[str]:
        """Puts files under the prefix: name -> bytes."""
        s3 = boto3.client("s3")
        keys = [PREFIX + name for name in files]
        for key, body in zip(keys, files.values(), strict=True):
            s3.put_object(Bucket=self.outputs["ImagesBucketName"], Key=key, Body=body)
        return keys

    def create(self, **event: Any) -> dict[str, Any]:
        """Invokes the job creator through the Lambda API; its answer or its error."""
        answer = client("lambda").invoke(
            FunctionName=self.outputs["JobCreatorName"], Payload=json.dumps(event)
        )
        return dict(json.loads(answer["Payload"].read()))

    def items(self) -> dict[tuple[str, str], dict[str, Any]]:
        return table_items(self.outputs["TableName"])

    def run(self, run_id: str) -> dict[str, Any]:
        """The run's item, or nothing."""
        table = boto3.resource("dynamodb").Table(self.outputs["TableName"])
        return dict(table.get_item(Key={"pk": "RUN", "sk": run_id}).get("Item", {}))

    def complete(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Waits for the run, and gives its predictions: key -> item. Its counts must be theirs."""
        wait_for(lambda: self.run(run_id).get("state") == "COMPLETE", f"run {run_id} COMPLETE")
        items = self.items()
        assert counts(items, run_id) == recounted(items, run_id)
        return {sk: item for (pk, sk), item in items.items() if pk in layout.partitions(run_id)}

    def failures(self) -> list[dict[str, Any]]:
        """The objects in the failure bucket."""
        s3, bucket = boto3.client("s3"), self.outputs["FailureBucketName"]
        listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [json.load(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"]) for entry in listed]

    def log(self) -> str:
        """What the classifier has printed."""
        return "".join(path.read_text() for path in self.aws.logs.glob("classifier*.log"))


@pytest.fixture(scope="module", params=["process", pytest.param("container", marks=pytest.mark.container)])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The stack, with the classifier in processes of this Python, and in containers of its image."""
    with ExitStack() as stack:
        if request.param == "container":
            made = stack.enter_context(Deployment.made(image=request.config.getoption("--image")))
        else:
            made = request.getfixturevalue("deployment")
        stack.enter_context(made.used())
        yield Pipeline(made.aws, made.outputs)


@pytest.fixture(scope="module")
def originals(pipeline: Pipeline, xrays: list[Path]) -> list[str]:
    """The keys of forty real X-rays that are in the bucket, below images_01/, with their index."""
    folder = xrays[0].parents[2]
    pipeline.upload({"index.csv": (folder / "index.csv").read_bytes()})
    return pipeline.upload({str(path.relative_to(folder)): path.read_bytes() for path in xrays})


def test_real_x_rays_get_the_scores_that_the_model_gives(
    pipeline: Pipeline, originals: list[str], xrays: list[Path]
) -> None:
    answer = pipeline.create(RunId="all", Prefix=f"{PREFIX}images_01/")
    assert answer == {"RunId": "all", "ImageCount": 40, "JobCount": 5}
    predictions = pipeline.complete("all")
    assert predictions.keys() == set(originals)
    model = Model(ROOT / "containers" / "classifier" / "model")
    for key, path in zip(originals, xrays, strict=True):
        expected = model.score([model.prepare(path.read_bytes())[0]])[0]
        assert predictions[key]["scores"] == expected
        assert predictions[key]["positive"] == list(model.positive(expected))
        assert predictions[key]["model_sha256"] == model.sha256


def test_an_index_of_the_bucket(pipeline: Pipeline, originals: list[str]) -> None:
    with (ROOT.parent / "shared/data/nih-cxr/originals/cxr-nih/index.csv").open(newline="") as file:
        indexed = {row["Key"] for row in csv.DictReader(file)}
    pipeline.create(RunId="indexed", IndexKey=f"{PREFIX}index.csv")
    assert pipeline.complete("indexed").keys() == indexed == set(originals)


def test_each_bad_image_has_its_code_and_its_neighbours_their_scores(
    pipeline: Pipeline, xrays: list[Path]
) -> None:
    xray = xrays[0].read_bytes()
    flipped = bytearray(xray)
    flipped[len(xray) // 2] ^= 1
    bad = {
        "empty.png": (b"", "IMAGE_EMPTY"),
        "truncated.png": (xray[: len(xray) // 2], "IMAGE_CORRUPT"),
        "flipped.png": (bytes(flipped), "IMAGE_CORRUPT"),
        "text.png": (b"This is not an image.", "NOT_AN_IMAGE"),
        "huge.png": (png(60_000, 60_000), "IMAGE_TOO_LARGE"),
        "one.png": (png(1, 1), "IMAGE_TOO_SMALL"),
        "narrow.png": (png(1, 20_000), "IMAGE_TOO_SMALL"),
        "strip.png": (png(100, 20_000), "IMAGE_TOO_NARROW"),
    }
    good = pipeline.upload({f"mixed/{path.name}": path.read_bytes() for path in xrays[:4]})
    pipeline.upload({f"mixed/{name}": body for name, (body, _) in bad.items()})
    missing = f"{PREFIX}mixed/missing.png"
    keys = [*good[:2], *(f"{PREFIX}mixed/{name}" for name in bad), missing, *good[2:]]
    pipeline.create(RunId="mixed", Keys=keys)
    predictions = pipeline.complete("mixed")
    assert {key: predictions[key]["status"] for key in good} == dict.fromkeys(good, "SCORED")
    codes = {
        key.removeprefix(f"{PREFIX}mixed/"): predictions[key].get("error") for key in keys if key not in good
    }
    assert codes == {name: code for name, (_, code) in bad.items()} | {"missing.png": "IMAGE_MISSING"}


@pytest.fixture
def many_retries(pipeline: Pipeline) -> Iterator[None]:
    """Lambda gives no job up, however long this machine takes for the next step of the test."""
    with retries(pipeline.outputs["ClassifierName"], 1_000):
        yield


@pytest.mark.usefixtures("many_retries")
def test_a_record_reported_once_is_delivered_again(pipeline: Pipeline) -> None:
    """Its run is another model's at first, and the classifier's own after it has handed the job back."""
    (key,) = pipeline.upload({"late/a.png": image_bytes()})
    _start_run(pipeline, "late", expected=1, model_sha256="0" * 64)
    _send(pipeline, _job("late", pipeline.outputs["ImagesBucketName"], key))
    wait_for(lambda: "run late is pinned to" in pipeline.log(), "a reported failure")
    assert pipeline.run("late")["state"] == "SCORING"
    _start_run(pipeline, "late", expected=1)
    assert pipeline.complete("late")[key]["status"] == "SCORED"


@pytest.fixture
def few_retries(pipeline: Pipeline) -> Iterator[None]:
    """Lambda gives a job up after one retry."""
    with retries(pipeline.outputs["ClassifierName"], 1):
        yield


@pytest.mark.usefixtures("few_retries")
def test_a_record_that_fails_for_ever_ends_in_the_failure_bucket(pipeline: Pipeline) -> None:
    _start_run(pipeline, "poisoned", expected=1)
    before = len(pipeline.failures())
    job = _job("poisoned", "never-there", "a.png")
    _send(pipeline, job)
    wait_for(lambda: len(pipeline.failures()) > before, "an object in the failure bucket")
    (failure,) = pipeline.failures()
    assert failure["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert failure["requestContext"]["approximateInvokeCount"] >= 2
    assert job in _jobs_in(failure)
    assert pipeline.run("poisoned")["state"] == "SCORING"
    s3, bucket = boto3.client("s3"), pipeline.outputs["FailureBucketName"]
    for found in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        s3.delete_object(Bucket=bucket, Key=found["Key"])


def test_a_direct_job_is_answered_and_changes_no_run(pipeline: Pipeline, originals: list[str]) -> None:
    pipeline.create(RunId="owned", Keys=originals[:1])
    pipeline.complete("owned")
    before = pipeline.items()
    answer = boto3.client("lambda").invoke(
        FunctionName=pipeline.outputs["ClassifierName"],
        Payload=json.dumps({"Jobs": [{"RunId": "owned", "Key": originals[0]}]}),
    )
    (prediction,) = json.loads(answer["Payload"].read())["Predictions"]
    assert prediction["Status"] == "SCORED"
    assert pipeline.items() == before


def test_an_event_continues_its_run_and_another_is_refused(pipeline: Pipeline) -> None:
    pipeline.upload({"again/a.png": image_bytes(), "again/empty.png": b""})
    event = {"RunId": "again", "Prefix": f"{PREFIX}again/", "JobCount": 12}
    first = pipeline.create(**event)
    assert first == {"RunId": "again", "ImageCount": 2, "JobCount": 1}
    pipeline.complete("again")
    before = _of_run(pipeline.items(), "again")
    with ThreadPoolExecutor() as pool:  # the empty image has no score, so the job is sent again
        assert list(pool.map(lambda _: pipeline.create(**event), range(2))) == [first, first]
    wait_for(lambda: not pipeline.aws.delivering, "all jobs delivered")
    assert _of_run(pipeline.items(), "again") == before

    refused = pipeline.create(**event | {"JobCount": 7})
    assert "RunId again is taken" in refused["errorMessage"]
    assert '"job_count": 12' in refused["errorMessage"]
    assert '"job_count": 7' in refused["errorMessage"]
    assert _of_run(pipeline.items(), "again") == before


@pytest.fixture(scope="module")
def aws_cli() -> Path:
    """The CLI in an environment of its own: its pins are not ours."""
    folder = ROOT / "build" / "awscli"
    if not (folder / "bin" / "aws").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", AWSCLI], check=True)
    return folder / "bin"


@pytest.mark.slow
def test_the_commands_of_the_docs_start_a_run(
    pipeline: Pipeline, originals: list[str], aws_cli: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        ["bash", "-euc", _documented_commands().replace("out.json", str(out))],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{aws_cli}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(out.read_text())
    assert answer["RunId"] == "first-100"
    assert answer["ImageCount"] >= len(originals)
    pipeline.complete("first-100")


@pytest.mark.container  # once is enough
@pytest.mark.parametrize("pipeline", ["container"], indirect=True)
def test_a_second_deployment_changes_nothing_that_holds_data(pipeline: Pipeline) -> None:
    assert pipeline.aws.deploy("retries=8", "imagesPerJob=8") == pipeline.outputs


def _start_run(pipeline: Pipeline, run_id: str, expected: int, **more: str) -> None:
    model = Model(ROOT / "containers" / "classifier" / "model")
    run = {"expected": expected, "model": model.name, "model_sha256": model.sha256, **more}
    begin_run(run_id, pipeline.outputs["TableName"], **run)


def _job(run_id: str, bucket: str, key: str) -> dict[str, Any]:
    return {"RunId": run_id, "RunUid": uid(run_id), "Bucket": bucket, "Keys": [key]}


def _send(pipeline: Pipeline, job: dict[str, Any]) -> None:
    boto3.client("kinesis").put_record(
        StreamName=pipeline.outputs["StreamName"], Data=json.dumps(job).encode(), PartitionKey="a"
    )


def _jobs_in(failure: dict[str, Any]) -> list[dict[str, Any]]:
    records = json.loads(failure["payload"])["Records"]
    return [json.loads(base64.b64decode(record["kinesis"]["data"])) for record in records]


def _documented_commands() -> str:
    """The commands of docs/events.md that start a run, word for word."""
    (block,) = map(str, re.findall(r"```bash\n(JOB_CREATOR=.*?aws lambda invoke .*?)```", EVENTS, re.DOTALL))
    return block


def _of_run(
    items: dict[tuple[str, str], dict[str, Any]], run_id: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The run's item without its times, its predictions and its counts."""
    own = {
        key: dict(item)
        for key, item in items.items()
        if key == ("RUN", run_id) or key[0].startswith(f"RUN#{run_id}")
    }
    for name in ("listed_at", "resumed_at", "resumed_with"):
        own["RUN", run_id].pop(name, None)
    return own
