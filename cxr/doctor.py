"""Check all that a run needs, and say what to do about each problem."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.exceptions import BotoCoreError, ClientError

from cxr.aws_errors import DENIED, explained
from cxr.classifier_log import RECENT, recent_failures
from cxr.errors import InputError
from cxr.runs import LAMBDA_SECONDS, RunStatus, recent_metric, run_table
from cxr.scaling import open_shards, steps
from cxr.stack import Stack, client, session
from cxr.words import counted
from stacks.config import Config, ConfigError
from stacks.settings_file import kept_settings, line, settings_file

BASE_DAYS = 60  # AWS renews its base images about every two weeks
NODE = 20  # the oldest that the CDK runs on
LOCAL_ENDPOINTS = ("http://127.0.0.1:", "http://localhost:")
DOCKER_SECONDS = 10  # that the engine may take to answer

# Error codes that say nothing about the stack: the call is not allowed, or not emulated.
NOT_CHECKED = {
    *DENIED,
    "405",
    "InvalidAction",
    "MethodNotAllowed",
    "NotImplemented",
    "UnknownOperationException",
    "UnsupportedOperation",
}
NOT_SEEN = "not checked: "  # begins the text of a check that was not made

# What it means if a deployment removes a setting.
WITHOUT = {
    "imagesBucket": "none: the stack makes a new, empty bucket",
    "imagesKmsKey": "none: the functions can no longer read images that this key encrypts",
    "kmsKey": "none: from then on AWS's own keys encrypt what is stored",
    "baseImage": "none: the image for Python 3.13 that Docker finds",
    "model": "none: the model that ships scores",
    "alarmTopic": "none: alarms notify nobody",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    level: str  # ok, warn or fail
    text: str
    remedy: str = ""


def examine(name: str) -> Iterator[Finding]:
    """Every check, in an order in which each depends on those before it only."""
    local = is_local()
    yield from _tools(local)
    try:
        region, endpoint = session().region_name, os.environ.get("AWS_ENDPOINT_URL")
        if not region:
            yield Finding("region", "fail", "none is set", "set AWS_REGION to where the stack is")
            return
        yield Finding("region", "ok", region + (f", at {endpoint}" if endpoint else ""))
        caller = client("sts").get_caller_identity()
        yield Finding("credentials", "ok", f"account {caller['Account']}, {caller['Arn']}")
    except (InputError, BotoCoreError, ClientError) as error:
        text = str(error) if isinstance(error, InputError) else explained(error)
        what, _, remedy = text.partition("; ")
        yield Finding("credentials", "fail", what, remedy)
        return
    try:
        stack = Stack.find(name)
    except (InputError, BotoCoreError, ClientError) as error:
        text = str(error) if isinstance(error, InputError) else explained(error)
        what, _, remedy = text.partition("; ")
        yield Finding("stack", "fail", what, remedy)
        return
    yield Finding("stack", "ok", f"{name}, images below {stack.prefix} in {stack.images_bucket}")
    yield from _checked("settings", lambda: _settings(stack))
    yield from _checked("images", lambda: _images(stack))
    yield from _checked("table", lambda: _table(stack))
    yield from _checked("stream", lambda: _stream(stack, int(stack.settings.get("shards", 0))))
    for function in ("job_creator", "classifier"):
        yield from _checked(function.replace("_", " "), lambda: _function(stack, function))  # noqa: B023
    if not local:  # which builds no image
        yield from _checked("base image", lambda: _base_image(stack))
    yield from _checked("mapping", lambda: _mapping(stack))
    yield from _checked("failures", lambda: _failures(stack))
    if stack.reconciler:
        yield from _checked("arrivals", lambda: _arrivals(stack))
    if local:
        yield Finding("concurrency", "ok", "local AWS has no quota: it runs one classifier a processor core")
        yield Finding("permissions", "ok", "local AWS allows everything")
    else:
        yield from _checked("concurrency", lambda: _concurrency(stack))
        yield from _checked("permissions", lambda: _permissions(stack))


def stall_causes(stack: Stack, run: RunStatus) -> list[Finding]:
    """Why nothing moves in a run at work, as far as that can be seen: what doctor finds wrong on its way."""
    if run.images is None:
        checks = [_checked("job creator", lambda: _listing(stack, run))]
    else:
        checks = [
            _checked("table", lambda: _table(stack)),
            _checked("stream", lambda: _stream(stack)),
            _checked("classifier", lambda: _function(stack, "classifier")),
            _checked("mapping", lambda: _mapping(stack)),
            _checked("failures", lambda: _failures(stack, run.run_id)),
        ]
    return [
        finding
        for findings in checks
        for finding in findings
        if finding.level != "ok" and not finding.text.startswith(NOT_SEEN)
    ]


def _listing(stack: Stack, run: RunStatus) -> tuple[str, ...]:
    """The job creator, while it lists the images of a run."""
    since = run.resumed_at or run.created_at
    if since and datetime.now(UTC) - since > timedelta(seconds=LAMBDA_SECONDS):
        return (
            "fail",
            f"it stopped before it had sent all jobs of {run.run_id}",
            "start the run again by the same line: it continues",
        )
    return _function(stack, "job_creator")


def is_local() -> bool:
    """Whether the environment leads to local AWS."""
    return (os.environ.get("AWS_ENDPOINT_URL") or "").startswith(LOCAL_ENDPOINTS)


def _checked(name: str, check: Callable[[], tuple[str, ...]]) -> Iterator[Finding]:
    """The finding of a check (level, text, remedy), or that AWS did not allow the check."""
    try:
        yield Finding(name, *check())
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in NOT_CHECKED:
            yield Finding(name, "warn", f"{NOT_SEEN}{error.operation_name} answers {code}")
        else:
            what, _, remedy = explained(error).partition("; ")
            yield Finding(name, "fail", what, remedy)
    except BotoCoreError as error:
        yield Finding(name, "fail", explained(error))


def _settings(stack: Stack) -> tuple[str, ...]:
    """Whether the file keeps the settings with which the stack was deployed."""
    file = settings_file({})
    try:
        table = kept_settings(file, stack.name)
        kept = Config.from_context(table).settings()
    except ConfigError as error:
        what, _, remedy = str(error).partition("; ")
        return "fail", f"`npx cdk deploy` would stop: {what}", remedy or "correct the file"
    if not stack.settings:
        return "warn", "an older version deployed the stack and did not note them", f"compare {file} yourself"
    deployed = Config().settings() | dict(stack.settings)
    changes, write, remove = [], [], []
    for name in dict.fromkeys([*kept, *WITHOUT]):
        now, then = deployed.get(name), kept.get(name)
        if now == then:
            continue
        after = WITHOUT[name] if then is None else then
        way = steps(open_shards(stack), kept["shards"])[:-1] if name == "shards" else []
        first = f" (Kinesis refuses that in one step: `cxr scale {way[-1]}` first)" if way else ""
        changes.append(f"{name} from {'none' if now is None else now} to {after}{first}")
        if now is None:
            remove.append(f"no {name}")
        else:
            write.append(line(name, now))
    if not changes:
        return "ok", f"the stack has those of {file}" if table else "the stack has the defaults"
    keep = f"have in the table [{stack.name}] of {file}: {', '.join(write + remove)}"
    if str(file) == os.devnull:  # on local AWS
        keep = "give the same settings again by -c"
    return "warn", f"`npx cdk deploy` would change {'; '.join(changes)}", f"to keep what is deployed, {keep}"


def _images(stack: Stack) -> tuple[str, ...]:
    listed = client("s3").list_objects_v2(Bucket=stack.images_bucket, Prefix=stack.prefix, MaxKeys=1)
    if listed["KeyCount"]:
        return "ok", f"there are some below {stack.prefix}"
    return "warn", f"none below {stack.prefix} yet", "`cxr upload DIR` puts some there"


def _table(stack: Stack) -> tuple[str, ...]:
    dynamodb = client("dynamodb")
    try:
        state = dynamodb.describe_table(TableName=stack.table)["Table"]["TableStatus"]
    except dynamodb.exceptions.ResourceNotFoundException:
        # DynamoDB guide, PointInTimeRecovery_Howitworks: a deleted table leaves a backup for 35 days.
        return (
            "fail",
            f"{stack.table} was deleted, and `npx cdk deploy` does not make it again",
            _restored(
                f"aws dynamodb list-backups --backup-type SYSTEM --table-name {stack.table} names its "
                "backup of the last 35 days: aws dynamodb restore-table-from-backup --backup-arn ARN "
                f"--target-table-name {stack.table}",
            ),
        )
    return ("ok", state) if state in ("ACTIVE", "UPDATING") else ("warn", state, "wait until it is ACTIVE")


def _stream(stack: Stack, deployed: int = 0) -> tuple[str, ...]:
    """Whether the stream takes jobs; with `deployed`, also whether it has so many shards."""
    kinesis = client("kinesis")
    try:
        found = kinesis.describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
    except kinesis.exceptions.ResourceNotFoundException:
        shards = stack.settings.get("shards", 1)
        return (
            "fail",
            f"{stack.stream} was deleted, and `npx cdk deploy` does not make it again",
            _restored(f"aws kinesis create-stream --stream-name {stack.stream} --shard-count {shards}"),
        )
    state, number = found["StreamStatus"], found["OpenShardCount"]
    if state not in ("ACTIVE", "UPDATING"):  # while shards are changed, jobs are delivered
        return "warn", f"{state}: it takes no jobs", "wait until it is ACTIVE"
    text = f"{state}, {counted(number, 'shard')}"
    if deployed in (0, number):
        return "ok", text
    return (
        "warn",
        f"{text}, but the stack was deployed with {deployed}: `cxr scale` has changed it, or a run with more "
        "shards is at work or did not set it back",
        f"`cxr scale {deployed}` when no run needs more",
    )


def _restored(command: str) -> str:
    """How a deleted part comes back: by a command, or on local AWS with a new one."""
    return "stop `cxr local up` and start it again" if is_local() else command


def _function(stack: Stack, name: str) -> tuple[str, ...]:
    functions, function = client("lambda"), getattr(stack, name)
    found = functions.get_function_configuration(FunctionName=function)
    about = f"{found['MemorySize']:,} MB, {found['Timeout']} s"
    state = found.get("State", "Active")
    reserved = functions.get_function_concurrency(FunctionName=function).get("ReservedConcurrentExecutions")
    if reserved == 0 and not is_local():  # which ignores it
        return (
            "fail",
            f"{about}; its reserved concurrency is 0: Lambda throttles every invocation",
            f"aws lambda delete-function-concurrency --function-name {function}",
        )
    if state == "Failed" or found.get("LastUpdateStatus") == "Failed":
        why = found.get("StateReason") or found.get("LastUpdateStatusReason") or "no reason given"
        return "fail", f"{about}; its last change failed: {why}", "deploy the stack again by `npx cdk deploy`"
    if state == "Inactive":
        return "ok", f"{about}; it was idle for long, so its first invocation is slow"
    if state == "Pending":
        return "warn", f"{about}; still being created", "wait a minute"
    return "ok", f"active, {about}"


def _base_image(stack: Stack) -> tuple[str, ...]:
    """Whether the classifier was deployed lately: its image has no security fix of its base since then."""
    found = client("lambda").get_function_configuration(FunctionName=stack.classifier)
    days = (datetime.now(UTC) - datetime.strptime(found["LastModified"], "%Y-%m-%dT%H:%M:%S.%f%z")).days
    text = f"at least as old as the last change of the classifier, {counted(days, 'day')} ago"
    if days <= BASE_DAYS:
        return "ok", text
    remedy = "write the line that `make base-image` prints into settings.toml, then `npx cdk deploy`"
    return "warn", f"{text}: security fixes since then are not in it", remedy


def _mapping(stack: Stack) -> tuple[str, ...]:
    found = client("lambda").get_event_source_mapping(UUID=stack.mapping)
    state = found["State"]
    if state in ("Disabled", "Disabling"):
        remedy = f"aws lambda update-event-source-mapping --uuid {stack.mapping} --enabled"
        return "fail", f"{state}: no job reaches the classifier", remedy
    if state in ("Creating", "Enabling", "Updating"):
        return "warn", f"{state}: jobs reach the classifier when that is done", "wait a minute or two"
    last = found.get("LastProcessingResult", "")
    if last.startswith("PROBLEM"):
        return "warn", f"{state}; its last result: {last}", "see what failures says, and the classifier's log"
    return "ok", f"{state}, up to {found['ParallelizationFactor']} classifiers a shard"


def _arrivals(stack: Stack) -> tuple[str, ...]:
    """Whether S3 announces what arrives, and the announcer takes it."""
    bucket = client("s3").get_bucket_notification_configuration(Bucket=stack.images_bucket)
    if "EventBridgeConfiguration" not in bucket:
        # The command replaces the bucket's notifications, so it repeats those that are there.
        kept = {name: value for name, value in bucket.items() if name.endswith("Configurations")}
        wanted = json.dumps({**kept, "EventBridgeConfiguration": {}})
        return (
            "fail",
            f"the bucket {stack.images_bucket} does not announce what arrives to EventBridge",
            f"its owner runs: aws s3api put-bucket-notification-configuration --bucket {stack.images_bucket} "
            f"--notification-configuration {shlex.quote(wanted)}",
        )
    state = client("lambda").get_event_source_mapping(UUID=stack.arrivals_mapping)["State"]
    if state in ("Disabled", "Disabling"):
        return (
            "warn",
            f"{state}: arrivals wait in their queue, for 14 days",
            "`cxr resume RUN` continues the standing run that was cancelled. If none is CANCELLED: aws "
            f"lambda update-event-source-mapping --uuid {stack.arrivals_mapping} --enabled",
        )
    dead = client("sqs").get_queue_attributes(
        QueueUrl=stack.arrivals_dead_letters, AttributeNames=["ApproximateNumberOfMessages"]
    )["Attributes"]["ApproximateNumberOfMessages"]
    if dead != "0":
        return (
            "warn",
            f"{state}; {counted(int(dead), 'event')} could not be taken",
            "`cxr reconcile RUN` finds their images; see docs/runbook.md, ArrivalsNotTaken",
        )
    return "ok", f"{state}, all events were taken"


def _failures(stack: Stack, run: str = "RUN") -> tuple[str, ...]:
    """What the classifier's log says of the last minutes, and throttles that CloudWatch counted."""
    minutes = RECENT.seconds // 60
    reasons = recent_failures(stack)
    if not reasons:
        metric = (client("cloudwatch"), stack.classifier, "Throttles", "Sum")
        throttled = 0 if is_local() else int(sum(recent_metric(*metric)))
        if not throttled:
            return "ok", f"none in the classifier's log of the last {minutes} minutes"
        return (
            "warn",
            f"Lambda throttled the classifier {throttled:,} times in the last {minutes} minutes: no job is "
            "lost",
            "see concurrency: other functions of the account may use up its executions",
        )
    ((reason, number), *others) = reasons.most_common()
    more = f", and {len(others)} other reasons" if others else ""
    text = f"{reason} ({counted(number, 'time')} in the last {minutes} minutes{more})"
    if "is pinned to" in reason:
        return (
            "fail",
            text,
            "set the model of the run in settings.toml and deploy it again, or cancel the run",
        )
    return "warn", text, f"correct the cause: Lambda retries jobs, and `cxr retry {run}` those it discarded"


def _permissions(stack: Stack) -> tuple[str, ...]:
    """Whether the caller may do what the commands do: reads are tried, an invocation is a dry run."""
    attempts: dict[str, Callable[[], object]] = {
        "dynamodb:GetItem": lambda: run_table(stack).run("-"),
        "dynamodb:Query": lambda: run_table(stack).counts("-"),
        "lambda:InvokeFunction": lambda: client("lambda").invoke(
            FunctionName=stack.job_creator, InvocationType="DryRun"
        ),
        "s3:ListBucket of the failure bucket": lambda: client("s3").list_objects_v2(
            Bucket=stack.failure_bucket, MaxKeys=1
        ),
        "cloudwatch:GetMetricData": lambda: recent_metric(
            client("cloudwatch"), stack.classifier, "Throttles", "Sum"
        ),
    }
    denied = []
    for action, attempt in attempts.items():
        try:
            attempt()
        except ClientError as error:
            if error.response["Error"]["Code"] not in DENIED:
                raise
            denied.append(action)
    if denied:
        return (
            "warn",
            f"these credentials lack {', '.join(denied)}",
            'docs/operations.md, "To use cxr", lists what each command needs',
        )
    return "ok", "these credentials may read runs and start them (uploads and retries are not tried)"


def _concurrency(stack: Stack) -> tuple[str, ...]:
    functions = client("lambda")
    factor = functions.get_event_source_mapping(UUID=stack.mapping)["ParallelizationFactor"]
    number = open_shards(stack)
    allowed = functions.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
    asked = f"{number} x {factor} = {number * factor:,} classifiers at once, the account allows {allowed:,}"
    if number * factor <= allowed:
        return "ok", asked
    enough = max(1, allowed // factor)
    fewer = f"; {counted(enough, 'shard')} would do: `cxr scale {enough}`"
    return (
        "warn",
        f"{asked}: Lambda throttles a run to that, and nothing is lost",
        "ask for more under Service Quotas, Lambda, Concurrent executions (a new account has as few as 10, "
        f"and 3,008 MB a function){fewer if enough < number else ''}",
    )


def _tools(local: bool) -> Iterator[Finding]:
    """The tools on this machine that only a deployment needs; one to local AWS needs no Docker."""
    node = shutil.which("node")
    version = _output([node, "--version"]) if node else ""
    major = version.removeprefix("v").partition(".")[0]
    if major.isdigit() and int(major) >= NODE:
        yield Finding("Node.js", "ok", version)
    else:
        found = version or "not found"
        yield Finding(
            "Node.js", "warn", f"{found}; `cdk deploy` needs it", f"install Node.js {NODE} or later"
        )
    if local:
        yield Finding("Docker", "ok", "not needed: local AWS runs the classifier without it")
        return
    docker = os.environ.get("CDK_DOCKER") or "docker"
    server = _output([docker, "version", "--format", "{{.Server.Version}}"])
    if server:
        yield Finding("Docker", "ok", f"{docker}, engine {server}")
    elif shutil.which(docker):
        what = f"{docker} is installed, but its engine does not answer; `cdk deploy` builds the image with it"
        yield Finding("Docker", "warn", what, "start Docker; `cxr local` works without it")
    else:
        what = f"no {docker}; `cdk deploy` builds the classifier's image with it"
        yield Finding("Docker", "warn", what, "install and start Docker; `cxr local` works without it")


def _output(command: list[str]) -> str:
    """What a program prints; nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=DOCKER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()
