"""What `cxr doctor` finds, where it is not the local AWS of test_operator.py."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from test_runs import STACK
from typer.testing import CliRunner

from cxr import doctor
from cxr.commands.app import app
from cxr.doctor import Finding


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
        monkeypatch.setattr(doctor, "client", apis.__getitem__)

    return allow


def test_an_account_that_allows_all_classifiers_and_the_job_creator(quotas: Callable[[int], None]) -> None:
    quotas(51)
    assert doctor._concurrency(STACK) == ("ok", "5 x 10 = 50 classifiers at once, the account allows 51")


@pytest.mark.parametrize(("executions", "shards"), [(50, 4), (21, 2), (10, 1)])
def test_an_account_that_allows_fewer(quotas: Callable[[int], None], executions: int, shards: int) -> None:
    quotas(executions)
    level, text, remedy = doctor._concurrency(STACK)
    assert (level, text.partition(":")[0]) == (
        "warn",
        f"5 x 10 = 50 classifiers at once, the account allows {executions}",
    )
    assert "Service Quotas" in remedy
    assert remedy.endswith(f"-c shards={shards}")


@pytest.mark.parametrize("code", ["AccessDeniedException", "UnknownOperationException", "405"])
def test_what_may_not_be_checked_is_no_failure(code: str) -> None:
    (found,) = doctor._checked("table", refused(code))
    assert found == Finding("table", "warn", f"not checked: ListThings answers {code}")


def test_what_is_gone_is_a_failure_with_its_remedy() -> None:
    (found,) = doctor._checked("table", refused("ResourceNotFoundException", "DescribeTable"))
    assert found.level == "fail"
    assert found.text == "DescribeTable: a part of the stack is gone (ResourceNotFoundException)"
    assert found.remedy == "deploy it again by `npx cdk deploy`"


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
    api = SimpleNamespace(get_function_configuration=answer(found))
    monkeypatch.setattr(doctor, "client", lambda service: api)
    looked = doctor._function(STACK, "classifier")
    assert looked[0] == level
    assert says in looked[1]


def test_a_mapping_that_is_off_names_the_command_that_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    api = SimpleNamespace(get_event_source_mapping=answer({"State": "Disabled"}))
    monkeypatch.setattr(doctor, "client", lambda service: api)
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


def test_without_tools_it_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CDK_DOCKER", raising=False)
    found = [(finding.name, finding.level) for finding in doctor._tools()]
    assert found == [("Node.js", "warn"), ("Docker", "warn")]
