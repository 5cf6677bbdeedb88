"""What `cxr doctor` finds, where it is not the local AWS of test_operator.py."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from test_runs import STACK
from typer.testing import CliRunner

from cxr import classifier_log, doctor, scaling
from cxr.commands.app import app
from cxr.doctor import Finding
from cxr.stack import Stack
from stacks.config import Config


def refused(code: str, operation: str = "ListThings") -> Callable[..., Any]:
    def call(**_: object) -> Any:
        raise ClientError({"Error": {"Code": code, "Message": "secret"}}, operation)

    return call


def answer(document: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    return lambda **_: document


@pytest.fixture
def quotas(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A deployed stack of five shards, in an account with so many concurrent executions."""

    def allow(executions: int) -> None:
        apis = {
            "lambda": SimpleNamespace(
                get_event_source_mapping=answer({"ParallelizationFactor": 10}),
                get_account_settings=answer({"AccountLimit": {"UnreservedConcurrentExecutions": executions}}),
            ),
            "kinesis": SimpleNamespace(
                describe_stream_summary=answer({"StreamDescriptionSummary": {"OpenShardCount": 5}})
            ),
        }
        for module in (doctor, scaling):
            monkeypatch.setattr(module, "client", apis.__getitem__)

    return allow


def test_an_account_that_allows_all_classifiers(quotas: Callable[[int], None]) -> None:
    quotas(50)
    assert doctor._concurrency(STACK) == ("ok", "5 x 10 = 50 classifiers at once, the account allows 50")


@pytest.mark.parametrize(("executions", "shards"), [(49, 4), (21, 2), (10, 1)])
def test_an_account_that_allows_fewer(quotas: Callable[[int], None], executions: int, shards: int) -> None:
    quotas(executions)
    level, text, remedy = doctor._concurrency(STACK)
    assert (level, text.partition(":")[0]) == (
        "warn",
        f"5 x 10 = 50 classifiers at once, the account allows {executions}",
    )
    assert "Service Quotas" in remedy
    assert remedy.endswith(f"`cxr scale {shards}`")
    assert "-c " not in remedy


KMS_KEY = "arn:aws:kms:us-east-1:111122223333:key/a"
TOPIC = "arn:aws:sns:us-east-1:111122223333:on-call"


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Keep this text in the settings file."""

    def write(text: str) -> Path:
        file = tmp_path / "settings.toml"
        file.write_text(text)
        monkeypatch.setenv("CXR_SETTINGS", str(file))
        return file

    return write


def deployed(**settings: Any) -> Stack:
    return replace(STACK, settings=Config.from_context(settings).settings())


def test_settings_that_are_kept_as_deployed(keep: Callable[[str], Path]) -> None:
    assert doctor._settings(deployed()) == ("ok", "the stack has the defaults")
    file = keep('[Test]\nkmsKey = "' + KMS_KEY + '"\nshards = 4\n\n[Other]\nshards = 9\n')
    found = doctor._settings(deployed(kmsKey=KMS_KEY, shards=4))
    assert found == ("ok", f"the stack has those of {file}")


def test_a_deployment_that_would_drop_settings_is_said_with_what_keeps_them(
    keep: Callable[[str], Path],
) -> None:
    file = keep(f'[Test]\nshards = 4\nalarmTopic = "{TOPIC}"\n')
    stack = deployed(imagesBucket="xrays", kmsKey=KMS_KEY, retries=8, shards=4)
    level, text, remedy = doctor._settings(stack)
    assert (level, text) == (
        "warn",
        f"`npx cdk deploy` would change retries from 8 to 10; alarmTopic from none to {TOPIC}; "
        "imagesBucket from xrays to none: the stack makes a new, empty bucket; "
        f"kmsKey from {KMS_KEY} to none: from then on AWS's own keys encrypt what is stored",
    )
    begin = f"to keep what is deployed, have in the table [Test] of {file}: "
    assert remedy.startswith(begin)
    *lines, last = remedy.removeprefix(begin).split(", ")
    assert last == "no alarmTopic"
    # Written as it says, a deployment changes nothing.
    keep("\n".join(["[Test]", "shards = 4", *lines]))
    assert doctor._settings(stack)[0] == "ok"


def test_without_a_settings_file_settings_are_kept_by_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cxr local up` points to /dev/null, which nobody can write lines into."""
    monkeypatch.setenv("CXR_SETTINGS", os.devnull)
    level, text, remedy = doctor._settings(deployed(retries=8))
    assert (level, remedy) == ("warn", "to keep what is deployed, give the same settings again by -c")
    assert "retries from 8 to 10" in text


def test_a_settings_file_that_stops_a_deployment_is_a_failure(keep: Callable[[str], Path]) -> None:
    file = keep("[Test]\nshards = 0\n")
    level, text, _ = doctor._settings(deployed())
    assert level == "fail"
    assert text.startswith(f"`npx cdk deploy` would stop: {file}, [Test]: shards=0: expected")


def test_settings_of_an_older_stack_are_not_compared(keep: Callable[[str], Path]) -> None:
    assert doctor._settings(STACK)[0] == "warn"


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("shards", "first"),
    [(4, ""), (1, ""), (20, " (Kinesis refuses that in one step: `cxr scale 16` first)")],
)
def test_a_change_of_shards_that_would_roll_back_is_said(
    keep: Callable[[str], Path], shards: int, first: str
) -> None:
    """The stream of the tests has two shards."""
    keep(f"[Test]\nshards = {shards}\n")
    assert doctor._settings(deployed(shards=2))[1] == (
        f"`npx cdk deploy` would change shards from 2 to {shards}{first}"
    )


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnknownOperationException", "405"])
def test_what_may_not_be_checked_is_no_failure(code: str) -> None:
    (found,) = doctor._checked("table", refused(code))
    assert found == Finding("table", "warn", f"not checked: ListThings answers {code}")


def test_what_is_gone_is_a_failure_with_its_remedy() -> None:
    (found,) = doctor._checked("table", refused("ResourceNotFoundException", "DescribeTable"))
    assert found.level == "fail"
    assert found.text == "DescribeTable: a part of the stack is gone (ResourceNotFoundException)"
    assert found.remedy == "`cxr doctor` says how it comes back"


@pytest.mark.parametrize(
    ("state", "level", "says"),
    [
        ({"State": "Active"}, "ok", "active, 1,769 MB, 120 s"),
        ({}, "ok", "active"),
        ({"State": "Pending"}, "warn", "still being created"),
        ({"State": "Failed", "StateReason": "no image"}, "fail", "no image"),
        ({"State": "Active", "LastUpdateStatus": "Failed"}, "fail", "no reason given"),
    ],
)
def test_a_function(monkeypatch: pytest.MonkeyPatch, state: dict[str, str], level: str, says: str) -> None:
    found = {"MemorySize": 1769, "Timeout": 120, **state}
    lambda_api = api(get_function_configuration=found, get_function_concurrency={})
    monkeypatch.setattr(doctor, "client", lambda service: lambda_api)
    looked = doctor._function(STACK, "classifier")
    assert looked[0] == level
    assert says in looked[1]


def test_a_mapping_that_is_off_names_the_command_that_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lambda_api = api(get_event_source_mapping={"State": "Disabled"})
    monkeypatch.setattr(doctor, "client", lambda service: lambda_api)
    level, _, remedy = doctor._mapping(STACK)
    assert (level, remedy) == ("fail", "aws lambda update-event-source-mapping --uuid mapping --enabled")


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("environment", "check", "remedy"),
    [
        ({"AWS_DEFAULT_REGION": ""}, "region", "set AWS_REGION to where the stack is"),
        ({"AWS_PROFILE": "nobody"}, "credentials", "set AWS_PROFILE to one of `aws configure list-profiles`"),
    ],
)
def test_the_first_thing_that_is_missing_ends_the_list(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], check: str, remedy: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("AWS_REGION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["ok"]) == (1, False)
    assert (found["checks"][-1]["name"], found["checks"][-1]["remedy"]) == (check, remedy)


@pytest.mark.parametrize(("days", "level"), [(60, "ok"), (61, "warn")])
def test_an_old_base_image(monkeypatch: pytest.MonkeyPatch, days: int, level: str) -> None:
    then = (datetime.now(UTC) - timedelta(days=days, hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
    functions = SimpleNamespace(get_function_configuration=answer({"LastModified": then}))
    monkeypatch.setattr(doctor, "client", {"lambda": functions}.__getitem__)
    found = doctor._base_image(STACK)
    assert found[0] == level
    assert f"{days} days ago" in found[1]
    assert ("make base-image" in found[-1]) == (level == "warn")


def test_without_tools_it_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CDK_DOCKER", raising=False)
    found = [(finding.name, finding.level) for finding in doctor._tools(local=False)]
    assert found == [("Node.js", "warn"), ("Docker", "warn")]


@pytest.mark.parametrize(
    ("script", "level", "says"),
    [
        ("echo 28.2.2", "ok", "docker, engine 28.2.2"),
        ("echo Client only; exit 1", "warn", "docker is installed, but its engine does not answer"),
    ],
)
def test_docker_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, level: str, says: str
) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CDK_DOCKER", raising=False)
    docker = list(doctor._tools(local=False))[-1]
    assert (docker.name, docker.level) == ("Docker", level)
    assert docker.text.startswith(says)


def api(**operations: Any) -> Any:
    """An API whose operations answer these documents, or raise."""
    answers = {name: do if callable(do) else answer(do) for name, do in operations.items()}
    gone = type("Gone", (ClientError,), {})
    return SimpleNamespace(**answers, exceptions=SimpleNamespace(ResourceNotFoundException=gone))


def deleted(operation: str) -> Any:
    """An API whose resource is gone."""
    found = api()

    def call(**_: object) -> Any:
        code = {"Error": {"Code": "ResourceNotFoundException", "Message": "secret"}}
        raise found.exceptions.ResourceNotFoundException(code, operation)

    setattr(found, operation, call)
    return found


def test_a_deleted_table_or_stream_has_a_remedy_that_is_no_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "client", {"dynamodb": deleted("describe_table")}.__getitem__)
    level, _, remedy = doctor._table(STACK)
    assert level == "fail"
    assert f"restore-table-from-backup --backup-arn ARN --target-table-name {STACK.table}" in remedy
    monkeypatch.setattr(doctor, "client", {"kinesis": deleted("describe_stream_summary")}.__getitem__)
    level, _, remedy = doctor._stream(replace(STACK, settings={"shards": 3}))
    assert (level, remedy) == (
        "fail",
        f"aws kinesis create-stream --stream-name {STACK.stream} --shard-count 3",
    )


@pytest.mark.parametrize(
    ("state", "shards", "level", "says"),
    [
        ("ACTIVE", 5, "ok", "ACTIVE, 5 shards"),
        ("ACTIVE", 3, "warn", "ACTIVE, 3 shards, but the stack was deployed with 5: `cxr scale`"),
        ("UPDATING", 3, "warn", "UPDATING, 3 shards, but the stack"),
        ("CREATING", 0, "warn", "CREATING: it takes no jobs"),
    ],
)
def test_a_stream(monkeypatch: pytest.MonkeyPatch, state: str, shards: int, level: str, says: str) -> None:
    summary = {"StreamDescriptionSummary": {"StreamStatus": state, "OpenShardCount": shards}}
    monkeypatch.setattr(doctor, "client", lambda _: api(describe_stream_summary=summary))
    found = doctor._stream(STACK, 5)
    assert found[0] == level
    assert found[1].startswith(says)


def test_a_function_that_may_not_run_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    lambda_api = api(
        get_function_configuration={"MemorySize": 1769, "Timeout": 120},
        get_function_concurrency={"ReservedConcurrentExecutions": 0},
    )
    monkeypatch.setattr(doctor, "client", lambda _: lambda_api)
    level, text, remedy = doctor._function(STACK, "classifier")
    assert (level, remedy) == ("fail", "aws lambda delete-function-concurrency --function-name classifier")
    assert "Lambda throttles every invocation" in text


def just_now(name: str = "timestamp", **fields: Any) -> Callable[[], str]:
    """A line of the log that is written when the test runs, which may be long after it was collected."""
    return lambda: json.dumps({name: datetime.now(UTC).isoformat(), **fields})


@pytest.mark.parametrize(
    ("lines", "level", "says"),
    [
        ([], "ok", "none in the classifier's log of the last 5 minutes"),
        (
            [
                just_now(failures={"1": "GetObject: AccessDenied", "2": "GetObject: AccessDenied"}),
                lambda: "no JSON",
            ],
            "warn",
            "GetObject: AccessDenied (2 times in the last 5 minutes)",
        ),
        (
            [just_now(failures={"1": "run a is pinned to m:1, this function holds m:2"})],
            "fail",
            "run a is pinned to m:1, this function holds m:2 (1 time in",
        ),
        (
            [just_now(level="ERROR", errorType="BundleError", errorMessage="no model.onnx")],
            "warn",
            "BundleError: no model.onnx (1",
        ),
        (
            [lambda: json.dumps({"time": "2020-01-01T00:00:00.000Z", "record": {"status": "timeout"}})],
            "ok",
            "none in",
        ),
        ([just_now("time", record={"status": "timeout"})], "warn", "an invocation ended by timeout (1"),
    ],
)
def test_the_classifiers_log_says_why_jobs_come_back(
    monkeypatch: pytest.MonkeyPatch, lines: list[Callable[[], str]], level: str, says: str
) -> None:
    monkeypatch.delenv("CXR_LOCAL_LOGS", raising=False)
    apis = {
        "lambda": api(get_function_configuration={"LoggingConfig": {"LogGroup": "group"}}),
        "logs": api(filter_log_events={"events": [{"message": line()} for line in lines]}),
        "cloudwatch": api(get_metric_data={"MetricDataResults": []}),
    }
    monkeypatch.setattr(doctor, "client", apis.__getitem__)
    monkeypatch.setattr(classifier_log, "client", apis.__getitem__)
    found = doctor._failures(STACK)
    assert found[0] == level
    assert found[1].startswith(says)


def test_throttles_are_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXR_LOCAL_LOGS", raising=False)
    apis = {
        "lambda": api(get_function_configuration={}),
        "logs": api(filter_log_events={"events": []}),
        "cloudwatch": api(get_metric_data={"MetricDataResults": [{"Values": [3.0, 4.0]}]}),
    }
    monkeypatch.setattr(doctor, "client", apis.__getitem__)
    monkeypatch.setattr(classifier_log, "client", apis.__getitem__)
    level, text, _ = doctor._failures(STACK)
    assert level == "warn"
    assert text.startswith("Lambda throttled the classifier 7 times in the last 5 minutes")


@pytest.mark.usefixtures("aws")
def test_permissions_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    apis = {
        "lambda": api(invoke=refused("AccessDeniedException", "Invoke")),
        "s3": api(list_objects_v2=refused("AccessDenied", "ListObjectsV2")),
        "cloudwatch": api(get_metric_data={"MetricDataResults": []}),
    }
    monkeypatch.setattr(doctor, "client", apis.__getitem__)
    level, text, _ = doctor._permissions(STACK)
    assert level == "warn"
    assert text == "these credentials lack lambda:InvokeFunction, s3:ListBucket of the failure bucket"
