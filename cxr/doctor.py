"""Whether all that a run needs is there, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from cxr.errors import InputError, explained
from cxr.stack import Stack, client, session

NODE = 20  # the oldest that the CDK runs on

# What an answer means that says nothing about the stack: the call is not allowed, or not emulated.
NOT_ASKED = {
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
    """What one look found."""

    name: str
    level: str  # ok, warn or fail
    text: str
    mend: str = ""


def examine(name: str) -> Iterator[Finding]:
    """Every check, in an order in which each builds on those before."""
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
        what, _, mend = text.partition("; ")
        yield Finding("credentials", "fail", what, mend)
        return
    try:
        stack = Stack.find(name)
    except (InputError, BotoCoreError, ClientError) as error:
        text = str(error) if isinstance(error, InputError) else explained(error)
        what, _, mend = text.partition("; ")
        yield Finding("stack", "fail", what, mend)
        return
    yield Finding("stack", "ok", f"{name}, images below {stack.prefix} in {stack.images_bucket}")
    yield from _asked("images", lambda: _images(stack))
    yield from _asked("table", lambda: _table(stack))
    for function in ("job_creator", "classifier"):
        yield from _asked(function.replace("_", " "), lambda: _function(stack, function))  # noqa: B023
    yield from _asked("mapping", lambda: _mapping(stack))
    yield from _asked("concurrency", lambda: _concurrency(stack))


def _asked(name: str, look: Callable[[], tuple[str, ...]]) -> Iterator[Finding]:
    """What a look says (level, text, mend), or that AWS could not be asked."""
    try:
        yield Finding(name, *look())
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in NOT_ASKED:
            yield Finding(name, "warn", f"could not be asked: {error.operation_name} answers {code}")
        else:
            what, _, mend = explained(error).partition("; ")
            yield Finding(name, "fail", what, mend)
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
        return "ok", f"{about}; idle for long, so that its first invocation is slow"
    if state == "Pending":
        return "warn", f"{about}; still being made", "wait a minute"
    return "ok", f"active, {about}"


def _mapping(stack: Stack) -> tuple[str, ...]:
    found = client("lambda").get_event_source_mapping(UUID=stack.mapping)
    state = found["State"]
    if state in ("Disabled", "Disabling"):
        mend = f"aws lambda update-event-source-mapping --uuid {stack.mapping} --enabled"
        return "fail", f"{state}: no job reaches the classifier", mend
    last = found.get("LastProcessingResult", "")
    if last.startswith("PROBLEM"):
        return "warn", f"{state}; its last result: {last}", "look into the classifier's log"
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
        f"{asked}: a run is throttled to that, and loses nothing",
        "ask for more under Service Quotas, Lambda, Concurrent executions (a new account has as few as 10, "
        "and 3,008 MB a function); or deploy with fewer shards: "
        f"-c shards={max(1, (allowed - 1) // factor)}",
    )


def _tools() -> Iterator[Finding]:
    """What only a deployment needs, on this machine."""
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
        mend = "start or install Docker; an AWS on this machine (`cxr local`) does without"
        yield Finding(
            "Docker", "warn", f"no {docker}; `cdk deploy` builds the classifier's image by it", mend
        )
    else:
        yield Finding("Docker", "ok", docker)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
