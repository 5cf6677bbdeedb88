"""`cxr verify` on the stack as the real CDK deploys it to local AWS, and on stacks that are broken."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import permissions
import pytest
from deployment import Deployment
from runs import layout
from support import ROOT, begin_run, table_items
from typer.testing import CliRunner

from cxr.commands.app import app
from cxr.errors import InputError
from cxr.local_aws.execution_environment import Function
from cxr.runs import run_table
from cxr.stack import Stack, client
from cxr.verification import scratch, verification
from cxr.verification.check import CheckFailed, NotChecked, Outcome, passed
from cxr.verification.recount import Recount
from cxr.verification.roles import CLASSIFIER, JOB_CREATOR, check_roles, known_actions
from cxr.verification.verification import PROMISES, Verification

CXR = Path(sys.executable).with_name("cxr")
IMAGES = 24

on_the_deployment = pytest.mark.xdist_group("deployment")


@pytest.fixture
def stack(deployment: Deployment) -> Iterator[Stack]:
    """The shared stack, without the runs at work that other tests have left."""
    with deployment.used():
        found = Stack.find()
        for run in list(run_table(found).runs()):
            run_table(found).cancel(run.run_id)
        yield found


def put_policy(stack: Stack, name: str, *statements: Mapping[str, Any]) -> None:
    """Give the classifier's role one more policy."""
    boto3.client("iam").put_role_policy(
        RoleName=role_of(stack), PolicyName=name, PolicyDocument=json.dumps({"Statement": statements})
    )


def role_of(stack: Stack) -> str:
    found = client("lambda").get_function_configuration(FunctionName=stack.classifier)
    return str(found["Role"]).rpartition("/")[2]


# The five broken stacks


@contextmanager
def a_wider_policy(_: Deployment, stack: Stack) -> Iterator[None]:
    put_policy(stack, "added", {"Effect": "Allow", "Action": "s3:*", "Resource": "*"})
    yield
    boto3.client("iam").delete_role_policy(RoleName=role_of(stack), PolicyName="added")


@contextmanager
def no_bisect(_: Deployment, stack: Stack) -> Iterator[None]:
    functions = boto3.client("lambda")
    functions.update_event_source_mapping(UUID=stack.mapping, BisectBatchOnFunctionError=False)
    yield
    functions.update_event_source_mapping(UUID=stack.mapping, BisectBatchOnFunctionError=True)


@contextmanager
def a_classifier_that_drops_a_write(deployment: Deployment, stack: Stack) -> Iterator[None]:
    """The one of `reliability/broken.py` that counts an image and does not write its prediction."""
    task_root = deployment.aws.logs / "broken-classifier"
    shutil.copytree(ROOT / "containers" / "classifier", task_root)
    shutil.copy(ROOT / "reliability" / "broken.py", task_root / "classifier")
    with (task_root / "classifier" / "handler.py").open("a") as handler:
        handler.write(
            "\nfrom classifier.broken import BROKEN\n"
            "\n_broken = BROKEN['counts an image without writing it']()\n_broken.__enter__()\n"
        )
    host: Any = deployment.aws._host
    make = host._make_function

    def make_broken(configuration: Mapping[str, Any]) -> Function:
        function: Function = make(configuration)
        function.spec = replace(function.spec, task_root=task_root)
        return function

    host._make_function = make_broken
    host._functions.pop(stack.classifier).retire() if stack.classifier in host._functions else None
    yield
    host._make_function = make
    host._functions.pop(stack.classifier).retire()
    shutil.rmtree(task_root)


@contextmanager
def no_counters(_: Deployment, stack: Stack) -> Iterator[None]:
    """A job creator that makes a run without its counters."""
    functions = boto3.client("lambda")
    functions.update_function_code(FunctionName=stack.job_creator, ZipFile=zip_of_lambdas("\nCOUNTERS = 0\n"))
    yield
    functions.update_function_code(FunctionName=stack.job_creator, ZipFile=zip_of_lambdas(""))


def zip_of_lambdas(more: str) -> bytes:
    """The code of the job creator, with more lines at the end of runs/layout.py."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((ROOT / "lambdas").rglob("*.py")):
            text = path.read_text() + (more if path.name == "layout.py" else "")
            archive.writestr(str(path.relative_to(ROOT / "lambdas")), text)
    return file.getvalue()


@contextmanager
def a_failure_bucket_that_takes_nothing(deployment: Deployment, _: Stack) -> Iterator[None]:
    """Lambda cannot write to the bucket, so the failure objects are lost."""
    host: Any = deployment.aws._host
    put, host._put_failure = host._put_failure, lambda *_: None
    yield
    host._put_failure = put


# How a stack is broken -> the check that fails, and what it says.
NO_COUNTERS = {no_counters: ("outcomes", f"the run has 0 of its {layout.COUNTERS} counters")}
DROPPED_WRITE = {a_classifier_that_drops_a_write: ("outcomes", "images without a prediction")}
THREE_FAULTS = {
    a_wider_policy: ("roles", "the role of the classifier allows s3:*"),
    no_bisect: ("mapping", "BisectBatchOnFunctionError is False, expected True"),
    a_failure_bucket_that_takes_nothing: ("failures", "are not in the failure bucket"),
}


@on_the_deployment
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(NO_COUNTERS, id="no counters"),
        pytest.param(DROPPED_WRITE, id="a dropped write", marks=pytest.mark.slow),
        pytest.param(THREE_FAULTS, id="three faults", marks=pytest.mark.slow),
    ],
)
def test_a_broken_stack_fails_and_the_fault_is_named(
    deployment: Deployment,
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Mapping[Callable[[Deployment, Stack], AbstractContextManager[None]], tuple[str, str]],
) -> None:
    # The 8 retries of the stack take 9 s on local AWS.
    monkeypatch.setattr(verification, "FAILURE_SECONDS", 20)
    with ExitStack() as faults:
        for make in broken:
            faults.enter_context(make(deployment, stack))
        done = CliRunner().invoke(
            app, ["verify", "--yes", "--json", "--images", str(IMAGES), "--out", str(tmp_path / "out")]
        )
    assert done.exit_code == 1, done.output
    found = {result["name"]: result for result in json.loads(done.stdout)["checks"]}
    failed = {name for name, result in found.items() if result["outcome"] == "FAILED"}
    assert failed == {check for check, _ in broken.values()}
    for check, seen in broken.values():
        assert seen in found[check]["seen"]
        assert found[check]["remedy"]
    assert found["clean-up"]["outcome"] == "PASSED"


@on_the_deployment
def test_a_role_with_a_wider_policy_is_named(deployment: Deployment, stack: Stack) -> None:
    with a_wider_policy(deployment, stack), pytest.raises(CheckFailed) as raised:
        check_roles(stack)
    for wrong in ("may delete an image", "may read another bucket", "the role of the classifier allows s3:*"):
        assert wrong in raised.value.seen
    assert "job creator" not in raised.value.seen


@on_the_deployment
def test_a_role_that_cannot_write_failure_objects_is_named(stack: Stack) -> None:
    put_policy(stack, "added", {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"})
    with pytest.raises(CheckFailed, match="the classifier may not write a failure object"):
        check_roles(stack)
    boto3.client("iam").delete_role_policy(RoleName=role_of(stack), PolicyName="added")


@on_the_deployment
def test_a_policy_of_another_kind_is_named(stack: Stack) -> None:
    put_policy(stack, "added", {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"})
    with pytest.raises(CheckFailed, match="the stack did not give it"):
        check_roles(stack)
    boto3.client("iam").delete_role_policy(RoleName=role_of(stack), PolicyName="added")


@on_the_deployment
def test_a_mapping_without_bisect_is_named(deployment: Deployment, stack: Stack) -> None:
    with (
        no_bisect(deployment, stack),
        pytest.raises(CheckFailed, match="BisectBatchOnFunctionError is False"),
    ):
        Verification(stack, IMAGES)._check_mapping()


# A stack as it should be


@pytest.mark.slow
@on_the_deployment
def test_a_stack_as_deployed_passes_and_nothing_is_left(stack: Stack, tmp_path: Path) -> None:
    """The reader of its output leaves after one line."""
    items, keys = table_items(stack.table), bucket_keys(stack)
    out = tmp_path / "out"
    command = f"{CXR} verify --yes --images {IMAGES} --out {out} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (table_items(stack.table), bucket_keys(stack)) == (items, keys)
    assert not boto3.client("events").list_rules(NamePrefix=scratch.PREFIX)["Rules"]
    assert not boto3.client("sqs").list_queues(QueueNamePrefix=scratch.PREFIX).get("QueueUrls")

    assert {path.name for path in out.iterdir()} == {
        "verification.md",
        "verification.json",
        "service_times.json",
    }
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    found = json.loads((out / "verification.json").read_text())
    assert {check["name"]: check["outcome"] for check in found["checks"]} == dict.fromkeys(PROMISES, "PASSED")
    assert found["measured"]["images"] >= 3 * IMAGES
    assert found["measured"]["most_at_once"] >= 1
    plan = CliRunner().invoke(
        app,
        ["plan", "--images", "1000", "--json", "--service-times", str(out / "service_times.json")],
    )
    assert plan.exit_code == 0, plan.output
    rate = found["measured"]["images_per_second"]
    assert json.loads(plan.stdout)["images_per_second_per_worker"] == pytest.approx(rate, abs=0.01)


def bucket_keys(stack: Stack) -> list[str]:
    pages = client("s3").get_paginator("list_objects_v2")
    return [
        entry["Key"]
        for bucket in (stack.images_bucket, stack.failure_bucket)
        for page in pages.paginate(Bucket=bucket)
        for entry in page.get("Contents", [])
    ]


@pytest.mark.slow
@on_the_deployment
def test_an_interrupted_verification_removes_what_it_made(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, keys = table_items(stack.table), bucket_keys(stack)

    def interrupt(*_: Any) -> None:
        raise SystemExit(130)  # as the command line does on Ctrl-C

    monkeypatch.setattr(Verification, "_wait", interrupt)
    with pytest.raises(SystemExit), Verification(stack, IMAGES) as found:
        list(found.checks())
    assert (table_items(stack.table), bucket_keys(stack)) == (items, keys)


@on_the_deployment
def test_it_refuses_while_a_run_is_at_work(stack: Stack, tmp_path: Path) -> None:
    begin_run("busy", stack.table)
    done = CliRunner().invoke(app, ["verify", "--yes", "--out", str(tmp_path / "out")])
    run_table(stack).cancel("busy")
    assert done.exit_code == 2
    assert "run busy is SCORING" in done.stderr


@on_the_deployment
def test_what_a_killed_verification_has_left_is_removed_after_an_hour(stack: Stack) -> None:
    old, young = "cxr-verify-20260101-000000", scratch.Scratch.new(stack).name
    key = f"{stack.prefix}{old}/images/00000.png"
    client("s3").put_object(Bucket=stack.images_bucket, Key=key, Body=b"")
    begin_run(f"{old}-outcomes", stack.table)
    with Verification(stack, IMAGES):
        assert run_table(stack).run(f"{old}-outcomes") is None
        assert key not in bucket_keys(stack)
    begin_run(f"{young}-outcomes", stack.table)
    with pytest.raises(InputError, match="is at work, or was killed"), Verification(stack, IMAGES):
        pass
    scratch.Scratch(stack, young).remove()


# Without a stack


@pytest.mark.parametrize("settings", [(), ("network=isolated",), (f"kmsKey={permissions.KEYS}own",)])
def test_the_known_actions_are_those_of_the_template(settings: tuple[str, ...]) -> None:
    given = dict(setting.split("=") for setting in settings)
    for function, role in ((JOB_CREATOR, permissions.JOB_CREATOR), (CLASSIFIER, permissions.CLASSIFIER)):
        actions: set[str] = set()
        for statement in permissions.stack(*settings).policy(role):
            if statement["Effect"] == "Allow":
                found = statement["Action"]
                actions.update([found] if isinstance(found, str) else found)
        assert actions == known_actions(function, given)


def prediction(key: str, **more: Any) -> dict[str, Any]:
    return {"pk": f"RUN#r#{key}", "sk": key, "status": "SCORED", **more}


@pytest.mark.parametrize(
    ("predictions", "counts", "expected", "seen"),
    [
        (("a", "b"), {"SCORED": 2}, 2, ""),
        (("a",), {"SCORED": 2}, 2, "1 of 2 images without a prediction; the counters say 2 SCORED"),
        (("a", "b", "b"), {"SCORED": 2}, 2, "1 image with more than one prediction"),
        (("a", "b", "c"), {"SCORED": 3}, 2, "1 prediction of images that the run does not have"),
        (("a", "b"), {"SCORED": 3}, 2, "the counters say 3 SCORED, the predictions 2"),
        (("a", "b"), {"SCORED": 2}, 3, "the run expects 3 images, and the bucket has 2"),
    ],
)
def test_a_recount(predictions: tuple[str, ...], counts: dict[str, int], expected: int, seen: str) -> None:
    counters = tuple({"uid": "u", **(counts if n == 0 else {})} for n in range(layout.COUNTERS))
    found = Recount({"uid": "u", "expected": expected}, counters, tuple(map(prediction, predictions)))
    if not seen:
        found.check(["a", "b"])
        return
    with pytest.raises(CheckFailed, match=seen):
        found.check(["a", "b"])


def test_what_may_not_be_checked_is_no_failure_unless_nothing_was() -> None:
    def refuse() -> str:
        raise NotChecked("local AWS lacks it")

    event, outcomes = (verification._result(name, refuse) for name in ("event", "outcomes"))
    assert event.outcome == Outcome.NOT_CHECKED
    assert passed([event, replace(outcomes, outcome=Outcome.PASSED)])
    assert not passed([event, outcomes])


def test_a_stack_that_scores_what_arrives_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("ChestXray", "images", "x/", "creator", "jobs", "classifier", "id", "table", "failures")
    stack = Stack(*names, settings={"arrivals": "on"})
    with pytest.raises(InputError, match="scores what arrives"), Verification(stack, IMAGES):
        pass
    monkeypatch.setattr(Stack, "find", lambda _: stack)
    done = CliRunner().invoke(app, ["verify", "--yes", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stdout == ""  # it does not first say what it is going to do
    assert "scores what arrives" in done.stderr


def test_a_terminal_is_needed_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stack = Stack("ChestXray", "images", "x/", "creator", "jobs", "classifier", "id", "table", "failures")
    monkeypatch.setattr(Stack, "find", lambda _: stack)
    done = CliRunner().invoke(app, ["verify", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "give --yes" in done.stderr
    assert list(tmp_path.iterdir()) == []
