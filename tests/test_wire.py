"""Short runs on local AWS with a faulty network and killed classifiers: see reliability/wire.py."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError
from support import ROOT, wait_for

from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.retry import retry_run
from cxr.runs import run_status, run_table
from cxr.stack import Stack, client
from reliability import dicom, jpeg
from reliability.bad_file import drawing
from reliability.endpoint import Answer, FaultyEndpoint, Request
from reliability.wire import (
    SETTINGS,
    WireAws,
    put_images,
    read_images,
    rows,
    run_with_faults,
    start_until_accepted,
)

pytestmark = pytest.mark.xdist_group("wire")  # they share a deployment

CLASSIFIER = ROOT / "containers" / "classifier"


class TestFaultyEndpoint:
    """boto3 sees each fault as its name says, and so does the endpoint behind."""

    @pytest.fixture
    def behind(self) -> Iterator[list[bytes]]:
        """The bodies of the requests that reach the endpoint behind, which answers 64 bytes."""
        got: list[bytes] = []

        def respond(_path: str, _headers: object, body: bytes) -> Reply:
            got.append(body)
            records = [{"SequenceNumber": "1", "ShardId": "s"}] * body.count(b"PartitionKey")
            return Reply(200, json.dumps({"Records": records, "FailedRecordCount": 0}).encode().ljust(64))

        server = LoopbackServer(respond)
        self.endpoint = FaultyEndpoint(server.address, seed=0)
        yield got
        self.endpoint.close()
        server.close()

    def client(self, service: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(self.endpoint, "draw_fault", lambda _: fault)
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self.endpoint.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def test_an_error(self, behind: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ClientError, match="SlowDown"):
            self.client("s3", "503 SlowDown", monkeypatch).get_object(Bucket="b", Key="k")
        dynamodb = self.client("dynamodb", "400 TransactionCanceledException", monkeypatch)
        put: Any = {"Put": {"TableName": "t", "Item": {}}}
        with pytest.raises(dynamodb.exceptions.TransactionCanceledException) as raised:
            dynamodb.transact_write_items(TransactItems=[put, put])
        reasons = raised.value.response["CancellationReasons"]
        assert [reason["Code"] for reason in reasons] == ["None", "TransactionConflict"]
        assert behind == []

    @pytest.mark.parametrize(
        ("fault", "through"),
        [("connection reset before the request", 0), ("answer lost after the request", 1)],
    )
    def test_a_reset(
        self, behind: list[bytes], monkeypatch: pytest.MonkeyPatch, fault: str, through: int
    ) -> None:
        with pytest.raises(ConnectionClosedError):
            self.client("dynamodb", fault, monkeypatch).list_tables()
        assert len(behind) == through

    @pytest.mark.usefixtures("behind")
    def test_a_body_cut_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = self.client("s3", "answer cut short", monkeypatch).get_object(Bucket="b", Key="k")
        assert answer["ContentLength"] == 64
        with pytest.raises(ResponseStreamingError):
            answer["Body"].read()

    def test_records_refused_in_part(self, behind: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        kinesis = self.client("kinesis", "done in part", monkeypatch)
        records: Any = [{"Data": b"x", "PartitionKey": "p"}] * 20
        answer = kinesis.put_records(StreamName="s", Records=records)
        refused = ["ErrorCode" in record for record in answer["Records"]]
        assert len(refused) == 20
        assert 0 < answer["FailedRecordCount"] == sum(refused) < 20
        assert len(json.loads(behind[0])["Records"]) == 20 - sum(refused)


@pytest.fixture(scope="module")
def aws() -> Iterator[WireAws]:
    with WireAws(seed=6) as aws:
        yield aws


@pytest.fixture(scope="module")
def stack(aws: WireAws) -> Stack:
    return Stack.of(aws.deploy(*SETTINGS))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return read_images(None)


@pytest.mark.examples(many=300)
def test_nothing_is_lost_or_doubled(aws: WireAws, stack: Stack, images: list[bytes], examples: int) -> None:
    expected = put_images(stack, "wire", images, examples)
    result = run_with_faults(aws, stack, "wire", expected)
    assert (result.state, result.lost, result.doubled, result.wrong) == ("COMPLETE", 0, 0, 0), rows(result)
    assert result.faults.total() >= examples / 20
    assert result.kills >= 1
    requests = aws.endpoint.requests  # of both functions
    assert requests["Kinesis PutRecords"]
    assert requests["S3 GetObject"]
    assert requests["DynamoDB TransactWriteItems"]
    assert requests["AWSEvents PutEvents"]


@pytest.mark.slow
def test_archived_images_fail_alone_and_score_after_they_are_restored(
    aws: WireAws, stack: Stack, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = put_images(stack, "archive", images, 64)
    scored = [key for key in expected if isinstance(expected[key], Mapping)]
    archived = set(scored[:8])
    fetched: Counter[str] = Counter()

    def answer(request: Request) -> str:
        key = unquote(urlsplit(request.path).path.lstrip("/").partition("/")[2])
        if request.operation != "GetObject" or key not in expected:
            return ""
        fetched[key] += 1
        return "403 InvalidObjectState" if key in archived else ""

    monkeypatch.setattr(aws.endpoint, "draw_fault", answer)
    table = run_table(stack)
    start_until_accepted(aws, stack, "archive")
    wait_for(lambda: run_status(table, "archive").state == "COMPLETE", "all predictions", 120)
    assert run_status(table, "archive").failures["IMAGE_ARCHIVED"] == 8
    # What obstore does not read, boto3 asks for once more.
    refused = archived | {key for key in expected if expected[key] == "IMAGE_MISSING"}
    assert fetched == Counter([*expected, *refused])

    archived.clear()
    with aws.operator():
        assert retry_run(stack, "archive", codes=["IMAGE_ARCHIVED"]).failed == 8
    wait_for(lambda: run_status(table, "archive").scored == len(scored), "the restored images scored", 120)
    assert not run_status(table, "archive").failures["IMAGE_ARCHIVED"]


# What a decoder does with an image that names it in a JPEG comment.
BREAKDOWNS = """
import signal, time

_decode_jpeg = _jpeg


def _jpeg(data, *, lossless=False):
    if b"be killed" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"hang" in data:
        time.sleep(60)
    if b"take memory" in data:
        bytearray(2**31)
    return _decode_jpeg(data, lossless=lossless)
"""


@pytest.mark.slow
def test_a_decoder_that_breaks_down_costs_its_own_image_only(
    aws: WireAws, stack: Stack, tmp_path: Path
) -> None:
    task_root = tmp_path / "classifier"
    shutil.copytree(CLASSIFIER, task_root)
    child = task_root / "classifier" / "decoder_child.py"
    start = 'if __name__ == "__main__":'
    child.write_text(child.read_text().replace(start, f"{BREAKDOWNS}\n\n{start}"))

    pixels = np.asarray(drawing()).astype(np.uint16) * 16
    frame = jpeg.encode_lossless(pixels, 12)
    header = dicom.without(dicom.x_ray_elements(pixels, 12), dicom.PIXELS)
    for number in range(30):
        comment = {5: b"be killed", 14: b"hang", 23: b"take memory"}.get(number, b"decode")
        commented = frame[:2] + jpeg.encode_segment(0xFE, comment) + frame[2:]
        body = dicom.encode_file(header, dicom.JPEG_LOSSLESS, tail=dicom.encapsulate(commented))
        key = f"{stack.prefix}decoders/{number:02}"
        client("s3").put_object(Bucket=stack.images_bucket, Key=key, Body=body)
    aws.serve(stack, task_root)
    client("lambda").invoke(
        FunctionName=stack.job_creator,
        Payload=json.dumps({"RunId": "decoders", "Prefix": f"{stack.prefix}decoders/"}),
    )
    table = run_table(stack)
    wait_for(lambda: run_status(table, "decoders").state == "COMPLETE", "all predictions", 180)
    status = run_status(table, "decoders")
    assert (status.scored, status.failures) == (27, {"IMAGE_CORRUPT": 3})
    aws.serve(stack, CLASSIFIER)


@pytest.mark.slow
def test_an_invocation_whose_answer_is_lost_is_repeated(
    aws: WireAws, stack: Stack, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(stack, "repeated", images, 8)
    forward, invocations = aws.endpoint.forward, []

    def forward_and_lose_the_first(request: Request) -> Answer:
        answer = forward(request)
        if request.path.endswith("/invocations"):
            invocations.append(request.body)
            if len(invocations) == 1:
                raise ConnectionResetError
        return answer

    monkeypatch.setattr(aws.endpoint, "forward", forward_and_lose_the_first)
    assert start_until_accepted(aws, stack, "repeated") == 2
    assert len(invocations) == 2
    assert invocations[0] == invocations[1]


@pytest.mark.examples(many=48)
@pytest.mark.parametrize(
    ("name", "broken"), [("skips an image", "lost"), ("counts every delivery", "doubled")]
)
def test_a_broken_classifier_is_caught(
    aws: WireAws, stack: Stack, images: list[bytes], tmp_path: Path, name: str, broken: str, examples: int
) -> None:
    task_root = tmp_path / "classifier"
    shutil.copytree(CLASSIFIER, task_root)
    shutil.copy(ROOT / "reliability" / "broken.py", task_root / "classifier")
    with (task_root / "classifier" / "handler.py").open("a") as handler:
        handler.write(
            f"\nfrom classifier.broken import BROKEN\n\n_broken = BROKEN[{name!r}]()\n_broken.__enter__()\n"
        )
    aws.serve(stack, task_root)
    for attempt in range(8):  # only jobs that are delivered again show it, and a short run may have none
        run = f"{name.replace(' ', '-')}-{attempt}"
        result = run_with_faults(aws, stack, run, put_images(stack, run, images, examples))
        if not result.passed:
            break
    assert getattr(result, broken) > 0, rows(result)
