"""Local AWS's own parts: functions in processes, the seam to MiniStack, and nothing left behind."""

import base64
import copy
import http.client
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from support import ROOT, wait_for
from typer.testing import CliRunner

from cxr.commands import local, run_display
from cxr.commands.app import app
from cxr.local_aws import function_host
from cxr.local_aws import processes as processes_module
from cxr.local_aws.execution_environment import Function, FunctionSpec
from cxr.local_aws.function_host import PROXY_URL, FunctionHost
from cxr.local_aws.local_aws import LocalAws, LocalAwsError
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import STOP_SIGNALS, Processes, StoppingError, signals_held
from cxr.local_aws.stream_mapping import FunctionError

STREAM_ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/jobs"
FAILS = FunctionError({"errorType": "ValueError"})

TOY = """
import os, signal, time

def handle(event, context):
    if event.get("raise"):
        raise ValueError("no")
    if event.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(event.get("sleep", 0))
    return {
        "pid": os.getpid(),
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "environment": dict(os.environ),
    }
"""

# What a browser adds to a request of a web page; no page can leave it out.
WEB_PAGES: list[dict[str, str]] = [
    {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"},  # a script's
    {"Sec-Fetch-Site": "cross-site"},  # an image's, a form's
    {"Origin": "null"},  # a sandboxed frame's, where the browser is old
    {"Host": "page.example:80"},  # its own name, which DNS now leads here
    {"Host": "127.0.0.1.page.example"},
    {"Host": "localhost.page.example:80"},
    {"Host": "0.0.0.0:80"},  # every address of this machine, for some browsers
]


def ask(
    address: str, method: str, path: str, body: str = "", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer to a request of text, which needs no preflight."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path, body.encode(), {"Content-Type": "text/plain", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.stop_all()


@pytest.fixture
def make_toy(tmp_path: Path, processes: Processes) -> Callable[..., Function]:
    """A function with a timeout of a second and at most two processes; keywords change its configuration."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "broken.py").write_text("import no_such_module")
    (tmp_path / "Dockerfile").write_text('FROM base\nCMD ["toy.handle"]\n')

    def make(**configuration: Any) -> Function:
        deployed = {
            "FunctionName": "toy",
            "FunctionArn": "arn:toy",
            "Timeout": 1,
            "MemorySize": 512,
            "Environment": {"Variables": {"TABLE_NAME": "predictions"}},
            **configuration,
        }
        spec = FunctionSpec(deployed, tmp_path, {"AWS_REGION": "us-east-1"}, tmp_path / "log")
        return Function(spec, processes, concurrency=2)

    return make


@pytest.fixture
def toy(make_toy: Callable[..., Function]) -> Function:
    return make_toy()


def invoke(function: Function, **event: Any) -> dict[str, Any]:
    answer = function.invoke(event, "request-1")
    assert isinstance(answer, dict)
    return answer


def error(function: Function, **event: Any) -> Mapping[str, Any]:
    with pytest.raises(FunctionError) as raised:
        function.invoke(event, "request-1")
    return raised.value.payload


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_function_gets_its_event_its_context_and_its_own_variables(toy: Function) -> None:
    answer = invoke(toy)
    assert answer["request_id"] == "request-1"
    assert 500 < answer["remaining_ms"] <= 1000
    expected = {
        "TABLE_NAME": "predictions",
        "AWS_REGION": "us-east-1",
        "AWS_LAMBDA_FUNCTION_NAME": "toy",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
    }
    assert expected.items() <= answer["environment"].items()
    assert "VIRTUAL_ENV" not in answer["environment"]


def test_an_environment_is_used_again(toy: Function) -> None:
    assert invoke(toy)["pid"] == invoke(toy)["pid"]


def test_what_a_function_raises_is_its_error(toy: Function) -> None:
    before = invoke(toy)["pid"]
    raised = error(toy, **{"raise": True})
    assert (raised["errorType"], raised["errorMessage"]) == ("ValueError", "no")
    assert invoke(toy)["pid"] == before


def test_a_function_that_cannot_be_imported_fails_each_invocation(make_toy: Callable[..., Function]) -> None:
    broken = make_toy(ImageConfigResponse={"ImageConfig": {"Command": ["broken.handle"]}})
    for _ in range(2):
        assert error(broken)["errorType"] == "Runtime.ImportModuleError"


def test_a_function_over_its_timeout_is_killed_and_replaced(toy: Function) -> None:
    before = invoke(toy)["pid"]
    assert error(toy, sleep=30)["errorType"] == "Sandbox.Timedout"
    assert not alive(before)
    assert invoke(toy)["pid"] != before


def test_a_function_killed_at_work_fails_and_is_replaced(toy: Function) -> None:
    assert error(toy, die=True)["errorType"] == "Runtime.ExitError"
    assert invoke(toy)


def test_a_function_killed_while_idle_is_replaced(toy: Function) -> None:
    before = invoke(toy)["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: not any(environment.alive for environment in toy._idle), "the death noticed")
    assert invoke(toy)["pid"] != before


def test_as_many_environments_as_are_needed_at_once_up_to_the_limit(
    make_toy: Callable[..., Function],
) -> None:
    toy = make_toy(Timeout=30)
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda _: invoke(toy, sleep=0.1), range(6))
    assert len({answer["pid"] for answer in answers}) == 2


def test_a_dockerfile_without_a_command_is_a_function_error(
    make_toy: Callable[..., Function], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    assert error(make_toy())["errorType"] == "Runtime.InvalidEntrypoint"


@pytest.mark.parametrize("headers", WEB_PAGES)
def test_no_web_page_is_answered_on_loopback(headers: dict[str, str]) -> None:
    asked = []

    def respond(path: str, *_: object) -> Reply:
        asked.append(path)
        return Reply(200, b'"for programs"')

    server = LoopbackServer(respond)
    try:
        for method in ("GET", "POST"):
            status, body = ask(server.address, method, "/page", "{}", headers)
            assert (status, b"for programs" in body) == (403, False)
            assert ask(server.address, method, "/program") == (200, b'"for programs"')
    finally:
        server.close()
    assert asked == ["/program", "/program"]


def test_a_web_page_neither_takes_an_event_nor_answers_for_a_function(toy: Function) -> None:
    before = invoke(toy)["pid"]
    runtime_api = toy._idle[0]._runtime_api.address
    ask(runtime_api, "POST", "/2018-06-01/runtime/invocation/x/response", '{"pid": "forged"}', WEB_PAGES[0])
    with ThreadPoolExecutor(1) as pool:
        stolen = pool.submit(
            ask, runtime_api, "GET", "/2018-06-01/runtime/invocation/next", headers=WEB_PAGES[1]
        )
        assert [invoke(toy)["pid"] for _ in range(2)] == [before] * 2
        assert stolen.result()[0] == 403


def test_stopping_ends_descendants_and_those_that_ignore_sigterm(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_module, "GRACE_SECONDS", 0.3)
    script = "trap '' TERM; sleep 60 & echo $! > child; wait; sleep 60"
    process = processes.start(
        ["sh", "-c", script], cwd=tmp_path, environment=os.environ, log=tmp_path / "log"
    )
    child = tmp_path / "child"
    wait_for(lambda: child.exists() and bool(child.read_text()), "the child started")
    processes.stop(process)
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: not alive(int(child.read_text())), "the child gone")


def test_nothing_starts_once_all_is_being_stopped(processes: Processes, tmp_path: Path) -> None:
    processes.stop_all()
    with pytest.raises(StoppingError):
        processes.start(["true"], cwd=tmp_path, environment={}, log=tmp_path / "log")


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals_held():  # noqa: PT012 - what follows the signal is the point
        signal.raise_signal(signal.SIGINT)
        done.append("still here")
    assert done


class FakeLambda:
    """The calls of the Lambda API that the function host makes, for one function with one mapping."""

    def __init__(self) -> None:
        self.function: dict[str, Any] = {
            "FunctionName": "toy",
            "PackageType": "Image",
            "RevisionId": "1",
            "Environment": {"Variables": {"A": "b"}},
        }
        self.functions = [{**self.function, "FunctionName": "zipped", "PackageType": "Zip"}, self.function]
        self.mapping = {
            "UUID": "mapping",
            "State": "Enabled",
            "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:toy",
            "EventSourceArn": STREAM_ARN,
            "MaximumRetryAttempts": 3,
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:s3:::failures"}},
        }
        self.mappings = [self.mapping]
        self.looks = 0

    def get_function_configuration(self, FunctionName: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        return copy.deepcopy(self.function)

    def get_event_source_mapping(self, UUID: str) -> dict[str, Any]:  # noqa: N803
        return self.mapping

    def get_paginator(self, name: str) -> Any:
        self.looks += 1
        pages: dict[str, dict[str, Any]] = {
            "list_functions": {"Functions": self.functions},
            "list_event_source_mappings": {"EventSourceMappings": self.mappings},
        }
        return SimpleNamespace(paginate=lambda: [pages[name]])

    def update_function_configuration(self, FunctionName: str, Environment: dict[str, Any]) -> None:  # noqa: N803
        assert FunctionName == "toy"
        self.function |= {"Environment": Environment, "RevisionId": "2"}


class FakeKinesis:
    """The calls of the Kinesis API that the reader of a stream makes, for one stream."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.closed: set[str] = set()
        self.add_shard("shard-0")

    def add_shard(self, shard: str, *parents: str) -> None:
        names = ("ParentShardId", "AdjacentParentShardId")
        self.shards.append({"ShardId": shard, **dict(zip(names, parents, strict=False))})
        self.records[shard] = []
        self.closed.update(parents)

    def put(self, number: int, shard: str = "shard-0") -> None:
        moment = datetime.fromtimestamp(1, UTC)
        record = {"SequenceNumber": str(number), "PartitionKey": "p", "Data": b"{}"}
        self.records[shard].append({**record, "ApproximateArrivalTimestamp": moment})

    def get_paginator(self, _name: str) -> Any:
        return SimpleNamespace(paginate=lambda StreamARN: [{"Shards": self.shards}])  # noqa: N803

    def get_shard_iterator(
        self,
        StreamARN: str,  # noqa: N803
        ShardId: str,  # noqa: N803
        ShardIteratorType: str,  # noqa: N803
        StartingSequenceNumber: str = "0",  # noqa: N803
    ) -> dict[str, Any]:
        return {"ShardIterator": (ShardId, int(StartingSequenceNumber))}

    def get_records(self, ShardIterator: tuple[str, int]) -> dict[str, Any]:  # noqa: N803
        shard, last = ShardIterator
        found = [record for record in self.records[shard] if int(record["SequenceNumber"]) > last]
        return {"Records": found} | ({} if shard in self.closed else {"NextShardIterator": "next"})


class Seam:
    """A function host between a fake Lambda API, a fake stream and a function that behaves as told."""

    def __init__(self) -> None:
        self.api, self.stream = FakeLambda(), FakeKinesis()
        self.made: list[Mapping[str, Any]] = []  # configurations that a function was made from
        self.retired = 0
        self.events: list[dict[str, Any]] = []
        self.answers: list[object] = []  # of the next invocations; None when they run out
        self.go_on = threading.Event()  # an invocation does not end before
        self.go_on.set()
        self.objects: list[dict[str, Any]] = []
        s3: Any = SimpleNamespace(put_object=self._put_object)
        api: Any = self.api
        stream: Any = self.stream
        self.host = FunctionHost(api, stream, s3, self._make_function)
        self.host.plug_in()

    def post(self, event: object) -> Any:
        """Invoke as MiniStack does."""
        request = urllib.request.Request(
            self.api.function["Environment"]["Variables"][PROXY_URL],
            json.dumps(event).encode(),
            {"X-Amzn-Lambda-Function-Name": "toy", "X-Amzn-Lambda-Request-Id": "request-1"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def delivered(self) -> list[str]:
        """The sequence numbers of the records in the events so far."""
        records = (record for event in self.events for record in event["Records"])
        return [record["kinesis"]["sequenceNumber"] for record in records]

    def let_look(self) -> None:
        """Wait until the host has looked for functions, mappings and records once more."""
        enough = self.api.looks + 4
        wait_for(lambda: self.api.looks > enough, "a look", 10)

    def wait_for(self, *numbers: int) -> None:
        """Wait until these records are delivered, in this order, and no others."""
        expected = [str(number) for number in numbers]
        wait_for(
            lambda: self.delivered() == expected and not self.host.delivering, f"{expected} delivered", 10
        )

    def _make_function(self, configuration: Mapping[str, Any]) -> Any:
        self.made.append(configuration)
        return SimpleNamespace(
            spec=SimpleNamespace(configuration=configuration), invoke=self._invoke, retire=self._retire
        )

    def _retire(self) -> None:
        self.retired += 1

    def _invoke(self, event: dict[str, Any], _request_id: str) -> object:
        self.events.append(event)
        self.go_on.wait(10)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _put_object(self, **call: Any) -> None:
        if call["Bucket"] == "deleted":
            raise ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject")
        self.objects.append(call)


@pytest.fixture
def seam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seam]:
    monkeypatch.setattr(function_host, "LOOK_SECONDS", 0.01)
    opened = Seam()
    yield opened
    opened.go_on.set()
    opened.host.close()


def test_only_image_functions_are_plugged_in_and_do_not_see_it(seam: Seam) -> None:
    assert seam.api.function["Environment"]["Variables"].keys() == {"A", PROXY_URL}
    seam.post({})
    assert seam.made[0]["Environment"] == {"Variables": {"A": "b"}}


def test_a_direct_invocation_is_answered(seam: Seam) -> None:
    seam.answers = [{"Predictions": []}]
    assert seam.post({"Jobs": []}) == {"Predictions": []}


def test_a_direct_invocation_that_fails_is_an_error_with_lambdas_document(seam: Seam) -> None:
    document = {"errorType": "ValueError", "errorMessage": "no"}
    seam.answers = [FunctionError(document)]
    with pytest.raises(urllib.error.HTTPError) as raised:
        seam.post({"Jobs": []})
    assert json.load(raised.value) == document


def test_a_record_of_the_stream_is_delivered_until_the_function_succeeds(seam: Seam) -> None:
    failure = {"batchItemFailures": [{"itemIdentifier": "7"}]}
    seam.answers = [failure, failure]
    seam.stream.put(7)
    seam.wait_for(7, 7, 7)
    assert seam.events[0] == {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "p",
                    "sequenceNumber": "7",
                    "data": "e30=",
                    "approximateArrivalTimestamp": 1.0,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": "shard-0:7",
                "eventName": "aws:kinesis:record",
                "awsRegion": "us-east-1",
                "eventSourceARN": STREAM_ARN,
            }
        ]
    }


def test_a_record_that_never_succeeds_goes_to_the_failure_bucket(seam: Seam) -> None:
    seam.answers = [FAILS] * 4
    seam.stream.put(7)
    seam.wait_for(7, 7, 7, 7)
    (call,) = seam.objects
    assert call["Bucket"] == "failures"
    assert call["Key"].startswith("aws/lambda/mapping/shard-0/")
    assert json.loads(json.loads(call["Body"])["payload"]) == seam.events[0]


def test_without_its_failure_bucket_the_stream_goes_on(seam: Seam) -> None:
    seam.api.mapping |= {
        "MaximumRetryAttempts": 0,
        "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:s3:::deleted"}},
    }
    seam.answers = [FAILS]
    seam.stream.put(7)
    seam.wait_for(7)
    seam.stream.put(8)
    seam.wait_for(7, 8)


def test_settings_that_change_count_from_then_on(seam: Seam) -> None:
    seam.stream.put(7)
    seam.wait_for(7)
    seam.api.mapping["MaximumRetryAttempts"] = 0
    seam.answers = [FAILS]
    seam.stream.put(8)
    seam.wait_for(7, 8)
    assert seam.objects


def test_a_disabled_mapping_waits_and_goes_on_where_it_was(seam: Seam) -> None:
    seam.stream.put(7)
    seam.wait_for(7)
    seam.api.mapping["State"] = "Disabled"
    seam.stream.put(8)
    seam.let_look()
    assert seam.delivered() == ["7"]
    seam.api.mapping["State"] = "Enabled"
    seam.wait_for(7, 8)


def test_records_that_were_read_while_the_mapping_was_disabled_stay_on_the_stream(seam: Seam) -> None:
    """The host sees the mapping enabled, reads, and sees it disabled."""
    seam.api.mappings = [{**seam.api.mapping}]
    seam.api.mapping["State"] = "Disabled"
    seam.stream.put(7)
    seam.let_look()
    assert seam.delivered() == []
    seam.api.mapping["State"] = "Enabled"
    seam.wait_for(7)


@pytest.mark.parametrize("parents", [["shard-0"], ["shard-0", "shard-1"]], ids=["split", "merged"])
def test_records_of_a_closed_shard_are_delivered_before_those_of_its_children(
    seam: Seam, parents: list[str]
) -> None:
    seam.go_on.clear()
    for shard in parents[1:]:
        seam.stream.add_shard(shard)
    seam.stream.put(7, parents[-1])
    wait_for(lambda: seam.delivered() == ["7"], "the parent's record with the function", 10)
    seam.stream.put(8, parents[-1])
    seam.stream.add_shard("shard-2", *parents)
    seam.stream.put(9, "shard-2")
    seam.let_look()
    seam.answers = [FAILS, None, FAILS]
    seam.go_on.set()
    seam.wait_for(7, 7, 8, 8, 9)


def test_a_child_of_a_shard_that_has_expired_is_read(seam: Seam) -> None:
    seam.stream.shards.append({"ShardId": "shard-2", "ParentShardId": "expired"})
    seam.stream.records["shard-2"] = []
    seam.stream.put(7, "shard-2")
    seam.wait_for(7)


def test_a_deleted_mapping_delivers_nothing_more(seam: Seam) -> None:
    seam.api.mapping["BatchSize"] = 1
    seam.go_on.clear()
    for number in (7, 8):
        seam.stream.put(number)
    wait_for(lambda: seam.delivered() == ["7"], "the first record with the function", 10)
    seam.api.mappings.clear()
    wait_for(lambda: not seam.host._mappings, "the deletion seen", 10)
    seam.go_on.set()
    seam.wait_for(7)


def test_a_deleted_function_ends(seam: Seam) -> None:
    seam.post({})
    seam.api.functions.clear()
    wait_for(lambda: seam.retired == 1, "the function ended", 10)


def test_a_new_revision_is_a_new_function(seam: Seam) -> None:
    seam.post({})
    seam.post({})
    seam.api.function["RevisionId"] = "3"
    seam.post({})
    assert [configuration["RevisionId"] for configuration in seam.made] == ["2", "3"]


def test_a_function_deployed_later_is_plugged_in_by_itself(seam: Seam) -> None:
    seam.api.function["Environment"] = {"Variables": {"A": "c"}}
    wait_for(lambda: PROXY_URL in str(seam.api.function), "plugged in", seconds=10)


def test_local_aws_leads_here_knows_no_other_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "a-persons-own")
    before = dict(os.environ)
    threads = threading.active_count()
    with LocalAws() as aws:
        assert boto3.client("s3").list_buckets()["Buckets"] == []
        assert "AWS_PROFILE" not in os.environ
        assert aws.running
        logs = aws.logs
        assert logs.exists()
        boto3.client("s3").create_bucket(Bucket="first")
        with LocalAws():
            assert boto3.client("s3").list_buckets()["Buckets"] == []
        assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["first"]
    assert not aws.running
    assert dict(os.environ) == before
    assert not logs.exists()
    wait_for(lambda: threading.active_count() <= threads, "its threads gone", seconds=5)


class RecordingAws(LocalAws):
    """Local AWS whose only function notes the records that it is invoked with, without a process."""

    def __init__(self, project: Path) -> None:
        super().__init__(project)
        self.got: list[str] = []  # the data of the records
        self.go_on = threading.Event()  # an invocation does not end before

    def _make_function(self, configuration: Mapping[str, Any]) -> Any:
        return SimpleNamespace(
            spec=SimpleNamespace(configuration=configuration), invoke=self._invoke, retire=lambda: None
        )

    def _invoke(self, event: dict[str, Any], _request_id: str) -> None:
        self.go_on.wait(30)
        self.got += [base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[RecordingAws]:
    """It has a stream `jobs` of one shard, and a function with a mapping to it."""
    with RecordingAws(tmp_path) as aws:
        functions, kinesis = aws.client("lambda"), aws.client("kinesis")
        kinesis.create_stream(StreamName="jobs", ShardCount=1)
        functions.create_function(
            FunctionName="toy",
            PackageType="Image",
            Code={"ImageUri": "toy"},
            Role="arn:aws:iam::000000000000:role/toy",
        )
        functions.create_event_source_mapping(
            FunctionName="toy", EventSourceArn=STREAM_ARN, StartingPosition="TRIM_HORIZON", BatchSize=1
        )
        yield aws


def test_every_record_of_a_resharded_stream_is_delivered_once_parents_first(recording: RecordingAws) -> None:
    kinesis = recording.client("kinesis")
    sent: list[str] = []

    def put(shards: int) -> None:
        answer = kinesis.put_records(
            StreamName="jobs",
            Records=[
                {"Data": f"{shards} {number}".encode(), "PartitionKey": str(number)} for number in range(20)
            ],
        )
        assert len({record["ShardId"] for record in answer["Records"]}) == shards
        sent.extend(f"{shards} {number}" for number in range(20))

    put(1)
    for shards in (5, 2, 3, 1):
        kinesis.update_shard_count(StreamName="jobs", TargetShardCount=shards, ScalingType="UNIFORM_SCALING")
        summary = kinesis.describe_stream_summary(StreamName="jobs")["StreamDescriptionSummary"]
        assert summary["OpenShardCount"] == shards
        put(shards)
    recording.go_on.set()
    wait_for(lambda: len(recording.got) == len(sent), "all delivered", 30)
    assert sorted(recording.got) == sorted(sent)
    for key in range(20):  # what has one partition key keeps its order
        assert [data for data in recording.got if data.endswith(f" {key}")] == [
            data for data in sent if data.endswith(f" {key}")
        ]


def test_a_closed_shard_says_so(recording: RecordingAws) -> None:
    kinesis = recording.client("kinesis")
    kinesis.put_record(StreamName="jobs", Data=b"before", PartitionKey="a")
    kinesis.update_shard_count(StreamName="jobs", TargetShardCount=2, ScalingType="UNIFORM_SCALING")
    closed, *children = kinesis.list_shards(StreamName="jobs")["Shards"]
    assert "EndingSequenceNumber" in closed["SequenceNumberRange"]
    assert [child["ParentShardId"] for child in children] == [closed["ShardId"]] * 2
    assert not any("EndingSequenceNumber" in child["SequenceNumberRange"] for child in children)
    ranges = [child["HashKeyRange"] for child in children]
    assert int(ranges[0]["EndingHashKey"]) + 1 == int(ranges[1]["StartingHashKey"]) == 2**127
    for shard, data in ((closed, [b"before"]), (children[0], [])):
        iterator = kinesis.get_shard_iterator(
            StreamName="jobs", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        answer = kinesis.get_records(ShardIterator=iterator)
        assert [record["Data"] for record in answer["Records"]] == data
        assert ("NextShardIterator" in answer) == (shard is not closed)
    with pytest.raises(kinesis.exceptions.ResourceNotFoundException):
        kinesis.merge_shards(
            StreamName="jobs", ShardToMerge=closed["ShardId"], AdjacentShardToMerge=children[0]["ShardId"]
        )


KILLED = """
import os, signal, sys
from cxr.local_aws.local_aws import LocalAws

with LocalAws() as aws:
    print(aws.environment["AWS_ENDPOINT_URL"], aws._ministack.pid, aws.logs, aws._folder, flush=True)
    signal.pause()
"""


def test_a_local_aws_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        endpoint, ministack, logs, folder = started.stdout.readline().split()
        started.kill()
    wait_for(lambda: not alive(int(ministack)), "MiniStack ended", 10)
    with pytest.raises(ConnectionRefusedError):
        ask(endpoint.removeprefix("http://"), "GET", "/_ministack/health")
    assert not Path(folder).exists()  # it may hold images
    shutil.rmtree(logs)


OUTPUTS = {"JobCreatorName": "creator", "MappingId": "mapping"}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment file is."""
    path = tmp_path / ".cxr-local.env"
    monkeypatch.setattr(local, "ENVIRONMENT_FILE", path)
    return path


def write_environment() -> AbstractContextManager[None]:
    aws: Any = SimpleNamespace(environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    return local.environment_file(aws, OUTPUTS)


def test_the_environment_file_leads_a_shell_to_local_aws_and_is_the_owners_alone(environment: Path) -> None:
    environment.write_text("export AWS_ENDPOINT_URL=http://127.0.0.1:2\n")  # of one that was killed
    environment.chmod(0o644)
    with write_environment():
        assert stat.S_IMODE(environment.stat().st_mode) == 0o600
        echo = f". {environment}; echo $AWS_ENDPOINT_URL $JOB_CREATOR $MAPPING_ID"
        assert (
            subprocess.check_output(["sh", "-c", echo], text=True) == "http://127.0.0.1:1 creator mapping\n"
        )
    assert not environment.exists()


def test_a_second_local_aws_in_a_folder_is_refused_before_it_starts_anything(environment: Path) -> None:
    with write_environment():
        before = environment.read_text()
        done = CliRunner().invoke(app, ["local", "up"])
        assert (done.exit_code, environment.read_text()) == (2, before)
    assert done.stderr == (
        f"Error: another local AWS is up in this folder ({environment}); stop it by Ctrl-C in its terminal\n"
    )


def test_the_environment_file_of_a_killed_local_aws_is_no_obstacle(environment: Path) -> None:
    environment.write_text("export AWS_ENDPOINT_URL=http://127.0.0.1:2\n")
    done = CliRunner().invoke(app, ["local", "up", "--images", "nowhere"])
    assert "nowhere does not exist" in done.stderr
    assert not environment.exists()


@pytest.mark.slow
def test_local_up_starts_again_after_it_was_killed() -> None:
    environment = ROOT / ".cxr-local.env"
    for _ in range(2):
        command = [str(Path(sys.executable).with_name("cxr")), "local", "up"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
            assert up.stdout
            output = iter(up.stdout)
            assert any("Press Ctrl-C to stop." in line for line in output)
            (endpoint,) = re.findall(r"AWS_ENDPOINT_URL=http://(\S+)", environment.read_text())
            assert ask(endpoint, "GET", "/_ministack/health")[0] == 200
            up.kill()
        assert environment.exists()
    environment.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, "of the last demo\n"])
def test_a_demo_that_stops_leaves_the_results_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    results = tmp_path / "demo-results.csv"
    if before:
        results.write_text(before)
    monkeypatch.setattr(local, "STALL_SECONDS", 0)
    monkeypatch.setattr(local, "IDLE_STALL_SECONDS", 0)
    monkeypatch.setattr(run_display, "IDLE_SECONDS", 1)
    # Lambda waits for more jobs, and there are none.
    done = CliRunner().invoke(app, ["local", "demo", "--csv", str(results), "-c", "batchWindow=300"])
    assert done.exit_code == 1, done.output
    assert "The run has stopped: 0 of 8 images have a prediction" in done.stderr
    assert f"{results} {'is as it was' if before else 'was not written'}." in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])


def test_no_web_page_reads_or_makes_anything_on_local_aws(tmp_path: Path) -> None:
    function = {
        "FunctionName": "page",
        "Runtime": "python3.12",
        "Role": "arn:aws:iam::000000000000:role/page",
        "Handler": "page.handle",
        "Code": {"ZipFile": "UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="},  # an empty one
    }
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    with LocalAws(project=tmp_path) as aws:
        address = aws.environment["AWS_ENDPOINT_URL"].removeprefix("http://")
        boto3.client("s3").create_bucket(Bucket="chest")
        boto3.client("s3").put_object(Bucket="chest", Key="a.png", Body=b"pixels")
        websockets = boto3.client("apigatewayv2")
        api = websockets.create_api(
            Name="a", ProtocolType="WEBSOCKET", RouteSelectionExpression="$request.body.action"
        )["ApiId"]
        websockets.create_stage(ApiId=api, StageName="b")
        assert ask(address, "GET", f"/_aws/execute-api/{api}/b", headers=upgrade)[0] == 101
        for headers in WEB_PAGES:
            status, body = ask(address, "GET", "/chest/a.png", headers=headers)
            assert (status, b"pixels" in body) == (403, False)
            assert ask(address, "OPTIONS", "/chest", headers=headers)[0] == 403
            assert ask(address, "POST", "/2015-03-31/functions", json.dumps(function), headers)[0] == 403
            assert ask(address, "GET", f"/_aws/execute-api/{api}/b", headers=upgrade | headers)[0] == 403
        assert boto3.client("lambda").list_functions()["Functions"] == []
        for endpoint in (None, f"http://localhost:{address.rpartition(':')[2]}"):
            found = boto3.client("s3", endpoint_url=endpoint).get_object(Bucket="chest", Key="a.png")
            assert found["Body"].read() == b"pixels"


def test_after_an_error_the_logs_stay_and_are_the_owners_alone(tmp_path: Path) -> None:
    parent = tmp_path / "build" / "local"
    parent.mkdir(parents=True)  # by an older version

    def deploy_nothing() -> None:
        with LocalAws(project=tmp_path) as aws:
            aws.deploy()

    with pytest.raises(LocalAwsError, match="make install"):
        deploy_nothing()
    (logs,) = parent.iterdir()
    files = list(logs.iterdir())
    assert {path.name for path in files} == {"cxr.log", "ministack.log"}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (parent, logs, *files)}
    assert modes == {parent: 0o700, logs: 0o700} | dict.fromkeys(files, 0o600)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([signal.SIGINT] * 3, id="SIGINT three times"),
        *(pytest.param([number], id=number.name, marks=pytest.mark.slow) for number in STOP_SIGNALS),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_signal_stops_all_that_was_started(tmp_path: Path, sent: list[signal.Signals]) -> None:
    command = [str(Path(sys.executable).with_name("cxr")), "local", "demo"]
    demo = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)})
    wait_for(lambda: "cdk" in _commands(tmp_path), "cdk started")
    for number in sent:
        demo.send_signal(number)
        time.sleep(0.02)
    assert demo.wait(timeout=15) == 128 + sent[0]
    assert _commands(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "nowhere does not exist; give a folder of images"),
        ("a-file", "a-file is not a folder; give the folder that the images are in"),
        ("empty", "empty has no files; give a folder of images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    Path("empty").mkdir()
    done = CliRunner().invoke(app, ["local", "demo", "--images", folder])
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"Error: {message}\n")


def _commands(folder: Path) -> str:
    """The command lines of all processes that have the folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):  # it has ended, or is not ours to read
            continue
    return "\n".join(found)
