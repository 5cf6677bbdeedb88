"""Check all that a run needs, and say what to do about each problem."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from cxr.aws_errors import explained
from cxr.errors import InputError
from cxr.stack import Stack, client, session

NODE = 20  # the oldest that the CDK runs on

# Error codes that say nothing about the stack: the call is not allowed, or not emulated.
NOT_CHECKED = {
    "403",
    "405",
    "AccessDenied",
    "AccessDeniedException",
    "InvalidAction",
    "MethodNotAllowed",
    "NotImplemented",
    "UnauthorizedOperation",
    "UnknownOperationException",
    "UnsupportedOperation",
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
    yield from _tools()
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
    yield from _checked("images", lambda: _images(stack))
    yield from _checked("table", lambda: _table(stack))
    for function in ("job_creator", "classifier"):
        yield from _checked(function.replace("_", " "), lambda: _function(stack, function))  # noqa: B023
    yield from _checked("mapping", lambda: _mapping(stack))
    yield from _checked("concurrency", lambda: _concurrency(stack))


def _checked(name: str, check: Callable[[], tuple[str, ...]]) -> Iterator[Finding]:
    """The finding of a check (level, text, remedy), or that AWS did not allow the check."""
    try:
        yield Finding(name, *check())
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in NOT_CHECKED:
            yield Finding(name, "warn", f"not checked: {error.operation_name} answers {code}")
        else:
            what, _, remedy = explained(error).partition("; ")
            yield Finding(name, "fail", what, remedy)
    except BotoCoreError as error:
        yield Finding(name, "fail", explained(error))


def _images(stack: Stack) -> tuple[str, ...]:
    listed = client("s3").list_objects_v2(Bucket=stack.images_bucket, Prefix=stack.prefix, MaxKeys=1)
    if listed["KeyCount"]:
        return "ok", f"there are some below {stack.prefix}"
    return "warn", f"none below {stack.prefix} yet", "`cxr upload DIR` puts some there"


def _table(stack: Stack) -> tuple[str, ...]:
    state = client("dynamodb").describe_table(TableName=stack.table)["Table"]["TableStatus"]
    return ("ok", state) if state in ("ACTIVE", "UPDATING") else ("fail", state, "deploy the stack again")


def _function(stack: Stack, name: str) -> tuple[str, ...]:
    found = client("lambda").get_function_configuration(FunctionName=getattr(stack, name))
    about = f"{found['MemorySize']:,} MB, {found['Timeout']} s"
    state = found.get("State", "Active")
    if state == "Failed" or found.get("LastUpdateStatus") == "Failed":
        why = found.get("StateReason") or found.get("LastUpdateStatusReason") or "no reason given"
        return "fail", f"{about}; its last change failed: {why}", "deploy the stack again by `npx cdk deploy`"
    if state == "Inactive":
        return "ok", f"{about}; it was idle for long, so its first invocation is slow"
    if state == "Pending":
        return "warn", f"{about}; still being created", "wait a minute"
    return "ok", f"active, {about}"


def _mapping(stack: Stack) -> tuple[str, ...]:
    found = client("lambda").get_event_source_mapping(UUID=stack.mapping)
    state = found["State"]
    if state in ("Disabled", "Disabling"):
        remedy = f"aws lambda update-event-source-mapping --uuid {stack.mapping} --enabled"
        return "fail", f"{state}: no job reaches the classifier", remedy
    last = found.get("LastProcessingResult", "")
    if last.startswith("PROBLEM"):
        return "warn", f"{state}; its last result: {last}", "read the classifier's log"
    return "ok", f"{state}, up to {found['ParallelizationFactor']} classifiers a shard"


def _concurrency(stack: Stack) -> tuple[str, ...]:
    functions = client("lambda")
    factor = functions.get_event_source_mapping(UUID=stack.mapping)["ParallelizationFactor"]
    stream = client("kinesis").describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
    shards = stream["OpenShardCount"]
    allowed = functions.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
    asked = f"{shards} x {factor} = {shards * factor:,} classifiers at once, the account allows {allowed:,}"
    if shards * factor < allowed:  # one is for the job creator
        return "ok", asked
    return (
        "warn",
        f"{asked}: Lambda throttles a run to that, and nothing is lost",
        "ask for more under Service Quotas, Lambda, Concurrent executions (a new account has as few as 10, "
        "and 3,008 MB a function); or deploy with fewer shards: "
        f"-c shards={max(1, (allowed - 1) // factor)}",
    )


def _tools() -> Iterator[Finding]:
    """The tools on this machine that only a deployment needs."""
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
    docker = os.environ.get("CDK_DOCKER") or "docker"
    if not shutil.which(docker):
        remedy = "start or install Docker; `cxr local` works without it"
        yield Finding(
            "Docker", "warn", f"no {docker}; `cdk deploy` builds the classifier's image with it", remedy
        )
    else:
        yield Finding("Docker", "ok", docker)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
