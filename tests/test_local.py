"""Local AWS's own parts: functions in processes, the seam to MiniStack, and nothing left behind."""

import copy
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from support import wait_for

from cxr.local_aws import processes as processes_module
from cxr.local_aws.execution_environment import Function, FunctionSpec
from cxr.local_aws.function_host import PROXY_URL, FunctionHost
from cxr.local_aws.local_aws import LocalAws, LocalAwsError
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import Processes, StoppingError, signals_held
from cxr.local_aws.stream_mapping import FunctionError

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


def test_as_many_environments_as_are_needed_at_once_up_to_the_limit(toy: Function) -> None:
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
        self.mapping = {
            "UUID": "mapping",
            "FunctionArn": "arn:toy",
            "EventSourceArn": "arn:stream",
            "MaximumRetryAttempts": 3,
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:s3:::failures"}},
        }

    def get_function_configuration(self, FunctionName: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        return copy.deepcopy(self.function)

    def list_event_source_mappings(self, FunctionName: str, EventSourceArn: str) -> dict[str, Any]:  # noqa: N803
        found = [self.mapping] if EventSourceArn == self.mapping["EventSourceArn"] else []
        return {"EventSourceMappings": found}

    def get_paginator(self, _name: str) -> Any:
        zipped = {**self.function, "FunctionName": "zipped", "PackageType": "Zip"}
        return SimpleNamespace(paginate=lambda: [{"Functions": [zipped, self.function]}])

    def update_function_configuration(self, FunctionName: str, Environment: dict[str, Any]) -> None:  # noqa: N803
        assert FunctionName == "toy"
        self.function |= {"Environment": Environment, "RevisionId": "2"}


class Seam:
    """A function host between a fake Lambda API and a function that behaves as told."""

    def __init__(self) -> None:
        self.api = FakeLambda()
        self.made: list[Mapping[str, Any]] = []  # configurations that a function was made from
        self.events: list[dict[str, Any]] = []
        self.answers: list[object] = []  # of the next invocations; None when they run out
        self.objects: list[dict[str, Any]] = []
        s3: Any = SimpleNamespace(put_object=lambda **call: self.objects.append(call))
        api: Any = self.api
        self.host = FunctionHost(api, s3, self._make_function)
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

    def _make_function(self, configuration: Mapping[str, Any]) -> Any:
        self.made.append(configuration)
        return SimpleNamespace(
            spec=SimpleNamespace(configuration=configuration), invoke=self._invoke, retire=lambda: None
        )

    def _invoke(self, event: dict[str, Any], _request_id: str) -> object:
        self.events.append(event)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def seam() -> Iterator[Seam]:
    opened = Seam()
    yield opened
    opened.host.close()


def stream_event(stream: str = "arn:stream") -> dict[str, Any]:
    kinesis = {"sequenceNumber": "7", "partitionKey": "p", "data": "e30=", "approximateArrivalTimestamp": 1.0}
    record = {
        "eventID": "shardId-0:7",
        "eventSource": "aws:kinesis",
        "eventSourceARN": stream,
        "kinesis": kinesis,
    }
    return {"Records": [record]}


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


def test_a_batch_from_the_stream_is_answered_at_once_and_delivered_until_done(seam: Seam) -> None:
    failure = {"batchItemFailures": [{"itemIdentifier": "7"}]}
    seam.answers = [failure, failure]
    assert seam.post(stream_event()) is None
    wait_for(lambda: len(seam.events) == 3 and not seam.host.delivering, "delivered a third time")
    assert seam.events == [stream_event()] * 3


def test_a_batch_that_never_succeeds_goes_to_the_failure_bucket(seam: Seam) -> None:
    seam.answers = [FunctionError({"errorType": "ValueError"})] * 4
    seam.post(stream_event())
    wait_for(lambda: not seam.host.delivering, "given up")
    (call,) = seam.objects
    assert call["Bucket"] == "failures"
    assert call["Key"].startswith("aws/lambda/mapping/shardId-0/")
    assert json.loads(json.loads(call["Body"])["payload"]) == stream_event()


def test_settings_that_change_count_from_then_on(seam: Seam) -> None:
    seam.post(stream_event())
    seam.api.mapping["MaximumRetryAttempts"] = 0
    wait_for(lambda: not seam.host.delivering, "delivered")
    seam.answers = [FunctionError({"errorType": "ValueError"})]
    seam.post(stream_event())
    wait_for(lambda: bool(seam.objects), "given up at once")


def test_a_kinesis_event_of_no_mapping_is_a_direct_invocation(seam: Seam) -> None:
    seam.answers = ["answer"]
    assert seam.post(stream_event("arn:other")) == "answer"


def test_a_new_revision_is_a_new_function(seam: Seam) -> None:
    seam.post({})
    seam.post({})
    seam.api.function["RevisionId"] = "3"
    seam.post({})
    assert [configuration["RevisionId"] for configuration in seam.made] == ["2", "3"]


def test_a_function_deployed_later_is_plugged_in_by_itself(seam: Seam) -> None:
    seam.api.function["Environment"] = {"Variables": {"A": "c"}}
    wait_for(lambda: PROXY_URL in str(seam.api.function), "plugged in", seconds=10)


def test_local_aws_leads_here_while_it_runs_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "a-persons-own")
    before = dict(os.environ)
    threads = threading.active_count()
    with LocalAws() as aws:
        assert boto3.client("s3").list_buckets()["Buckets"] == []
        assert "AWS_PROFILE" not in os.environ
        assert aws.running
        logs = aws.logs
        assert logs.exists()
    assert not aws.running
    assert dict(os.environ) == before
    assert not logs.exists()
    wait_for(lambda: threading.active_count() <= threads, "its threads gone", seconds=5)


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


def test_two_local_awses_at_once_know_nothing_of_each_other() -> None:
    with LocalAws():
        boto3.client("s3").create_bucket(Bucket="first")
        with LocalAws():
            assert boto3.client("s3").list_buckets()["Buckets"] == []
        assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["first"]


def test_after_an_error_the_logs_stay(tmp_path: Path) -> None:
    def deploy_nothing() -> None:
        with LocalAws(project=tmp_path) as aws:
            aws.deploy()

    with pytest.raises(LocalAwsError, match="make install"):
        deploy_nothing()
    assert list(tmp_path.glob("build/local/*/ministack.log"))


@pytest.mark.parametrize("sent", [[signal.SIGINT], [signal.SIGINT] * 3, [signal.SIGTERM], [signal.SIGHUP]])
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
    tmp_path: Path, folder: str, message: str
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "empty").mkdir()
    command = [str(Path(sys.executable).with_name("cxr")), "local", "demo", "--images", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {message}\n")


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
