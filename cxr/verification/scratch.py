"""What a verification makes in the account, and how all of it is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.exceptions import ClientError
from runs.completion import EVENT_SOURCE, RUN_COMPLETE
from runs.run import State
from runs.table import RunTable

from cxr.aws_errors import AWS_ERRORS, explained
from cxr.errors import Failed, InputError
from cxr.operations import delete_run
from cxr.runs import run_table
from cxr.stack import Stack, client

PREFIX = "cxr-verify-"  # of every name
TIME = "%Y%m%d-%H%M%S"
LONGEST = timedelta(hours=1)  # that a verification takes; an older one was killed
NAME = re.compile(rf"{PREFIX}\d{{8}}-\d{{6}}")
DELETED_AT_ONCE = 1000  # keys that DeleteObjects takes


@dataclass(frozen=True)
class Scratch:
    """The names of one verification: its folder, its runs, its rule and its queue begin with `name`."""

    stack: Stack
    name: str

    @classmethod
    def new(cls, stack: Stack) -> Scratch:
        """Names that hold the time, so that what a killed verification has left can be told by its age."""
        return cls(stack, f"{PREFIX}{datetime.now(UTC):{TIME}}")

    @property
    def folder(self) -> str:
        """The prefix of the keys of its files."""
        return f"{self.stack.prefix}{self.name}/"

    def run(self, kind: str) -> str:
        """The name of one of its runs."""
        return f"{self.name}-{kind}"

    def subscribe(self) -> str:
        """The URL of a queue that gets the completion events of its runs. Raises ClientError."""
        sqs, events = client("sqs"), client("events")
        url = str(sqs.create_queue(QueueName=self.name)["QueueUrl"])
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
        pattern = {
            "source": [EVENT_SOURCE],
            "detail-type": [RUN_COMPLETE],
            "detail": {"RunId": [{"prefix": self.name}]},
        }
        rule = events.put_rule(
            Name=self.name, EventPattern=json.dumps(pattern), Description="A verification of cxr; temporary"
        )["RuleArn"]
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": attributes["QueueArn"],
            "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
        events.put_targets(Rule=self.name, Targets=[{"Id": "queue", "Arn": attributes["QueueArn"]}])
        return url

    def remove(self) -> list[str]:
        """Remove all of it, or what is left of it. Returns what could not be removed, and why."""
        left = []
        for what, remove in (
            ("its runs", self._remove_runs),
            (f"the folder {self.folder}", self._remove_files),
            (f"the EventBridge rule {self.name}", self._remove_rule),
            (f"the SQS queue {self.name}", self._remove_queue),
        ):
            try:
                remove()
            except AWS_ERRORS as error:
                left.append(f"{what}: {explained(error)}")
            except (Failed, InputError) as error:
                left.append(f"{what}: {error}")
        return left

    def _remove_runs(self) -> None:
        """The runs with their failure objects. Their jobs on the stream are dropped."""
        table = run_table(self.stack)
        for run in list(table.runs()):
            if run.run_id.startswith(f"{self.name}-"):
                table.cancel(run.run_id)
                delete_run(self.stack, run.run_id)

    def _remove_files(self) -> None:
        """The objects of the folder, with their versions."""
        s3, bucket = client("s3"), self.stack.images_bucket
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=self.folder):
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            for first in range(0, len(found), DELETED_AT_ONCE):
                objects = [
                    {"Key": entry["Key"], "VersionId": entry["VersionId"]}
                    for entry in found[first : first + DELETED_AT_ONCE]
                ]
                answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                if errors := answer.get("Errors"):
                    raise Failed(f"{len(errors)} files were not deleted ({errors[0]['Code']})")

    def _remove_rule(self) -> None:
        events = client("events")
        with _absent_is_fine("ResourceNotFoundException"):
            events.remove_targets(Rule=self.name, Ids=["queue"])
        with _absent_is_fine("ResourceNotFoundException"):
            events.delete_rule(Name=self.name)

    def _remove_queue(self) -> None:
        sqs = client("sqs")
        with _absent_is_fine("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"):
            sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=self.name)["QueueUrl"])


@contextmanager
def _absent_is_fine(*codes: str) -> Iterator[None]:
    """Ignore the ClientError of something that is not there."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise


def abandoned(stack: Stack, table: RunTable) -> Iterator[Scratch]:
    """What verifications have left that were killed. Raises InputError for one that may still be at work."""
    listed = client("s3").list_objects_v2(
        Bucket=stack.images_bucket, Prefix=f"{stack.prefix}{PREFIX}", Delimiter="/"
    )
    folders = (entry["Prefix"].removeprefix(stack.prefix) for entry in listed.get("CommonPrefixes", ()))
    runs = (run.run_id for run in table.runs())
    names = {found[0] for text in (*folders, *runs) if (found := NAME.match(text))}
    for name in sorted(names):
        began = datetime.strptime(name.removeprefix(PREFIX), TIME).replace(tzinfo=UTC)
        if datetime.now(UTC) - began < LONGEST:
            raise InputError(
                f"the verification {name} is at work, or was killed: wait until it ends. After "
                f"{began + LONGEST:%H:%M} UTC the next verification removes what it has left"
            )
        yield Scratch(stack, name)


def check_idle(table: RunTable) -> None:
    """Raise InputError if a run is at work: a verification would wait for its jobs, and it for ours."""
    for run in table.runs():
        if run.state in (State.LISTING, State.SCORING) and not NAME.match(run.run_id):
            raise InputError(
                f"run {run.run_id} is {run.state}, and a verification would mix its jobs with those of the "
                f"run: wait until it is COMPLETE, or `cxr cancel {run.run_id}`"
            )
