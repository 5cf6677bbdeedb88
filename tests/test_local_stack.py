"""A stack on local AWS from its first deployment to its removal, as a person would rehearse it."""

import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from support import ROOT, client, wait_for

from cxr import InputError, Stack, results, start_run, status
from cxr.local_aws.local_aws import LocalAws
from cxr.phantoms import write_phantoms
from cxr.upload import files_in, upload
from stacks.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("local_stack"), pytest.mark.usefixtures("local_aws")]


HOSPITAL = "hospital"  # a bucket that no stack has made


@pytest.fixture(scope="module")
def local_aws() -> Iterator[None]:
    with LocalAws() as aws:
        aws.bootstrap()
        yield


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    write_phantoms(folder)
    return folder


def deploy(drawings: Path, **settings: object) -> Stack:
    """The stack with these settings, and the drawings in its bucket.

    It is not deployed if an earlier test has left it with the same settings.
    """
    settings = {"imagesPerJob": 1, **settings}
    if not is_deployed(settings):
        context = " ".join(f"-c {name}={value}" for name, value in settings.items())
        typed(f"npx cdk deploy --require-approval never {context}")
    stack = Stack.find()
    for _ in upload(client("s3"), stack.images_bucket, stack.prefix, drawings, files_in(drawings)):
        pass
    return stack


def is_deployed(settings: Mapping[str, object]) -> bool:
    try:
        return Stack.find().settings == Config.from_context(settings).settings()
    except InputError:
        return False


def score(stack: Stack, run: str) -> None:
    """Start a run and wait until all its images have their scores."""
    assert start_run(stack, run).images
    wait_for(lambda: status(stack, run).state == "COMPLETE", f"run {run} COMPLETE", 120)
    assert status(stack, run).scored == status(stack, run).expected


def typed(command: str) -> str:
    """What a command prints that a person types in the project's folder."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def buckets() -> set[str]:
    """The buckets of the stack."""
    names = {bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]}
    return {name for name in names if not name.startswith("cdk-") and name != HOSPITAL}


def tables() -> list[str]:
    return boto3.client("dynamodb").list_tables()["TableNames"]


def delete_as_told(command: str) -> None:
    """Carry out a command like those of the output OnDelete. The AWS CLI may not be here."""
    s3: Any = boto3.resource("s3")
    match shlex.split(command):
        case ["aws", "dynamodb", "update-table", "--no-deletion-protection-enabled", "--table-name", table]:
            boto3.client("dynamodb").update_table(TableName=table, DeletionProtectionEnabled=False)
        case ["aws", "dynamodb", "delete-table", "--table-name", table]:
            boto3.client("dynamodb").delete_table(TableName=table)
        case ["aws", "s3", "rb", "--force", url]:
            bucket = s3.Bucket(url.removeprefix("s3://"))
            bucket.objects.delete()
            bucket.delete()
        case other:
            raise AssertionError(other)


def test_more_and_fewer_shards_score_every_run(drawings: Path) -> None:
    kinesis, functions = boto3.client("kinesis"), boto3.client("lambda")
    stack = deploy(drawings)
    for shards in (3, 2):
        # Jobs wait on the stream while it is resharded.
        functions.update_event_source_mapping(UUID=stack.mapping, Enabled=False)
        start_run(stack, f"before-{shards}")
        deploy(drawings, shards=shards)
        summary = kinesis.describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
        assert summary["OpenShardCount"] == shards
        start_run(stack, f"after-{shards}")
        functions.update_event_source_mapping(UUID=stack.mapping, Enabled=True)
        for run in (f"before-{shards}", f"after-{shards}"):
            wait_for(lambda: status(stack, run).state == "COMPLETE", f"run {run} COMPLETE", 120)  # noqa: B023


def test_a_stack_that_is_destroyed_keeps_its_data(drawings: Path) -> None:
    destroyed = deploy(drawings, data="destroy")
    score(destroyed, "kept")
    stack = deploy(drawings)  # data=keep again, so that `cdk destroy` keeps them
    assert stack.on_delete != destroyed.on_delete
    on_delete, kept = stack.on_delete, buckets()
    assert len(kept) == 3
    # `-o install`: the tests run in an environment that is installed.
    assert on_delete in typed("make -o install destroy ARGS=--force")
    with pytest.raises(InputError, match="there is no stack ChestXray"):
        Stack.find()
    assert (buckets(), tables()) == (kept, [stack.table])
    assert boto3.client("kinesis").list_streams()["StreamNames"] == []
    assert boto3.client("lambda").list_functions()["Functions"] == []
    assert len(list(results(stack, "kept"))) == len(files_in(drawings))
    assert boto3.client("s3").list_objects_v2(Bucket=stack.images_bucket)["KeyCount"]

    again = deploy(drawings)  # with new names, so that it takes no data of the old stack for its own
    assert not kept & {again.images_bucket, again.failure_bucket}
    score(again, "kept")
    for command in on_delete.partition(": ")[2].split("; "):
        delete_as_told(command)
    assert not kept & buckets()
    assert tables() == [again.table]


def test_a_stack_gets_another_key_and_is_destroyed_with_its_data(drawings: Path) -> None:
    stack, kept = deploy(drawings), buckets()
    score(stack, "before")
    key = "arn:aws:kms:us-east-1:000000000000:key/0f1e2d3c-0000-4000-8000-000000000000"
    assert deploy(drawings, data="destroy", kmsKey=key).table == stack.table
    assert buckets() == kept
    assert status(stack, "before").state == "COMPLETE"
    score(stack, "after")
    deleted = typed("npx cdk destroy --force")
    assert "destroyed" in deleted
    assert (buckets(), tables()) == (set(), [])
    groups = boto3.client("logs").describe_log_groups()["logGroups"]
    assert [group["logGroupName"] for group in groups if "ChestXray" in group["logGroupName"]] == []


def test_a_first_deployment_that_fails_leaves_only_the_protected_table(drawings: Path) -> None:
    stack, before = deploy(drawings), (buckets(), tables())
    cloudformation = boto3.client("cloudformation")
    template: Any = cloudformation.get_template(StackName=stack.name)["TemplateBody"]
    resources = template["Resources"]
    resources["Wrong"] = {
        "Type": "AWS::Lambda::EventInvokeConfig",
        "Properties": {"FunctionName": "not-there", "Qualifier": "$LATEST"},
        "DependsOn": list(resources),
    }
    cloudformation.create_stack(StackName="First", TemplateBody=json.dumps(template))
    ended = "ROLLBACK_COMPLETE"
    wait_for(
        lambda: cloudformation.describe_stacks(StackName="First")["Stacks"][0]["StackStatus"] == ended, ended
    )
    assert buckets() == before[0]
    (protected,) = set(tables()) - set(before[1])
    cloudformation.delete_stack(StackName="First")
    delete_as_told(f"aws dynamodb update-table --no-deletion-protection-enabled --table-name {protected}")
    delete_as_told(f"aws dynamodb delete-table --table-name {protected}")


def test_an_update_that_fails_deletes_nothing(drawings: Path) -> None:
    stack = deploy(drawings)
    score(stack, "before")
    cloudformation = boto3.client("cloudformation")
    template: Any = cloudformation.get_template(StackName=stack.name)["TemplateBody"]
    resources = template["Resources"]
    (stream,) = (each for each in resources.values() if each["Type"] == "AWS::Kinesis::Stream")
    stream["Properties"]["ShardCount"] = 2
    resources["Wrong"] = {
        "Type": "AWS::Lambda::EventInvokeConfig",
        "Properties": {"FunctionName": "not-there", "Qualifier": "$LATEST"},
        "DependsOn": list(resources),
    }
    cloudformation.update_stack(StackName=stack.name, TemplateBody=json.dumps(template))
    ended = "UPDATE_ROLLBACK_COMPLETE"
    wait_for(
        lambda: cloudformation.describe_stacks(StackName=stack.name)["Stacks"][0]["StackStatus"] == ended,
        ended,
    )
    score(stack, "after")


def differences(before: Any, after: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two templates differ, as paths of names, and what each has there."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = before.keys() | after.keys()
        found = [differences(before.get(name), after.get(name), f"{path}/{name}") for name in sorted(names)]
        return {where: values for each in found for where, values in each.items()}
    return {} if before == after else {path: (before, after)}


def test_settings_stay_while_the_stream_is_scaled(tmp_path: Path) -> None:
    """A deployment with five settings, other shards and back, and one setting that changes in the file."""
    kinesis, cloudformation = boto3.client("kinesis"), boto3.client("cloudformation")
    client("s3").create_bucket(Bucket=HOSPITAL)
    file = tmp_path / "settings.toml"
    lines = (
        "[ChestXray]",
        f'imagesBucket = "{HOSPITAL}"',
        'prefix = "xrays/"',
        'alarmTopic = "arn:aws:sns:us-east-1:000000000000:on-call"',
        "retries = 9",
        "failureExpiry = 30",
    )
    file.write_text("\n".join(lines))
    deployment = f"npx cdk deploy --require-approval never -c settings={shlex.quote(str(file))}"
    typed(deployment)
    stack = Stack.find()
    assert (stack.images_bucket, stack.prefix) == (HOSPITAL, "xrays/")
    before: Any = cloudformation.get_template(StackName=stack.name)["TemplateBody"]
    for shards in (4, 1):
        assert f"The stream has {shards} shard" in typed(f".venv/bin/cxr scale {shards}")
        summary = kinesis.describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
        assert summary["OpenShardCount"] == shards
    doctor = f"CXR_SETTINGS={shlex.quote(str(file))} .venv/bin/cxr doctor"
    assert f"the stack has those of {file}" in typed(f"COLUMNS=200 {doctor}")

    file.write_text("\n".join(lines).replace("failureExpiry = 30", "failureExpiry = 60"))
    assert "would change failureExpiry from 30 to 60" in typed(f"COLUMNS=200 {doctor}")
    typed(deployment)
    assert Stack.find().stream == stack.stream
    after: Any = cloudformation.get_template(StackName=stack.name)["TemplateBody"]
    (settings, bucket) = differences(before, after).items()
    assert settings[0] == "/Outputs/Settings/Value"
    assert bucket[0].endswith("/Properties/LifecycleConfiguration/Rules")
    old, new = (json.dumps(rules) for rules in bucket[1])
    assert old.replace(": 30", ": 60") == new
