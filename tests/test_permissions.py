"""Each role may do what its function does, and nothing else.

The tests record what the handlers ask for while they work on moto. `asked_by_aws` lists what AWS's services
ask for with the role, by their guides. tests/iam.py then evaluates the synthesized policies.
"""

import base64
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import boto3
import permissions
import pytest
from arrivals import announcer, reconciler
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from classifier.handler import Classifier
from classifier.handler import setup as set_up_classifier
from job_creator import handler
from job_creator.handler import JobCreator
from moto import mock_aws
from permissions import (
    ACCOUNT,
    ANNOUNCER,
    BUCKETS,
    BUSES,
    CLASSIFIER,
    EC2,
    JOB_CREATOR,
    KEYS,
    LOGS,
    RECONCILER,
    REGION,
    ROLES,
    STREAMS,
    TABLES,
    Call,
    Stack,
    Unmapped,
    asked,
    refused,
    refused_by,
    watched,
)
from runs.arrivals import run_id
from runs.completion import EVENT_SOURCE, RUN_COMPLETE
from runs.table import RunTable
from support import BUCKET, STREAM, TABLE, image_bytes
from synth import synth

from cxr.verification.iam import Request, Statement, allows, applies, single
from reliability.table import create_table

pytestmark = pytest.mark.xdist_group("stack")  # loading the CDK takes seconds

FUNCTIONS = (JOB_CREATOR, CLASSIFIER)
THEIRS = f"{KEYS}1234abcd-12ab-34cd-56ef-1234567890ab"
OWN = f"{KEYS}0987dcba-09fe-87dc-65ba-ab0987654321"


OTHER_ACCOUNT = "999999999999"

READ_STREAM = "kinesis:DescribeStream DescribeStreamSummary GetRecords GetShardIterator ListShards"
USE_KEY = "kms:Encrypt Decrypt ReEncryptFrom ReEncryptTo GenerateDataKey GenerateDataKeyWithoutPlaintext"

# The condition keys of a request to a bucket of this stack.
OURS = {"s3:ResourceAccount": ACCOUNT, "aws:SecureTransport": "true"}


class Case(NamedTuple):
    """Settings of a stack, and the place of its images."""

    settings: tuple[str, ...]
    bucket: str = BUCKET
    prefix: str = "cxr-nih/"


CASES = {
    "default": Case(()),
    "existing bucket": Case(
        ("imagesBucket=hospital", f"imagesKmsKey={THEIRS}", "prefix=chest/"), "hospital", "chest/"
    ),
    "own key": Case((f"kmsKey={OWN}",)),
    "data=destroy": Case(("data=destroy",)),
    "both keys": Case(("imagesBucket=hospital", f"imagesKmsKey={THEIRS}", f"kmsKey={OWN}"), "hospital"),
    "isolated": Case(("network=isolated",)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def stack(case: Case) -> Stack:
    return permissions.stack(*case.settings)


def asked_by_handlers(case: Case) -> frozenset[Call]:
    """What both handlers ask for, in runs that reach every call they can make."""
    environment = {**stack(case).environment(JOB_CREATOR), **stack(case).environment(CLASSIFIER)}
    return _asked_in(frozenset(environment.items()), case.bucket, case.prefix)


@cache  # stacks that differ only in their keys, policies or network give their handlers the same
def _asked_in(environment: frozenset[tuple[str, str]], bucket: str, prefix: str) -> frozenset[Call]:
    with pytest.MonkeyPatch.context() as patch, mock_aws(), watched() as calls:
        for name, value in environment | {("AWS_DEFAULT_REGION", REGION)}:
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        boto3.client("s3").create_bucket(Bucket=bucket)
        boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
        create_table(boto3.client("dynamodb"), TABLE)
        _drive(bucket, prefix)
    return frozenset(calls)


def _drive(bucket: str, prefix: str) -> None:
    """Invoke the real handlers, with their own clients and their own model."""
    # What obstore reads needs the same GetObject.
    creator, scorer = handler.setup.__wrapped__(), set_up_classifier.__wrapped__(read=None)
    s3, table = boto3.client("s3"), boto3.resource("dynamodb").Table(TABLE)
    good, bad, gone = (f"{prefix}{name}.png" for name in ("good", "bad", "gone"))
    index = f"{prefix}index.csv"
    for key, body in {good: image_bytes(), bad: b"text", index: f"Key\n{good}\n".encode()}.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)

    def create(**event: Any) -> None:
        creator(event, lambda: 900_000)

    def state(run_id: str) -> Any:
        return table.get_item(Key={"pk": "RUN", "sk": run_id})["Item"]["state"]

    # A run from each source. After one is cancelled, its event continues it.
    create(RunId="prefix")
    create(RunId="index", IndexKey=index)
    create(RunId="keys", Keys=[good, bad, gone])
    _score(scorer, "prefix", "index", "keys")
    assert [state(run_id) for run_id in ("prefix", "index", "keys")] == ["COMPLETE"] * 3
    _set_state("keys", "CANCELLED")
    create(RunId="keys", Keys=[good, bad, gone])
    assert state("keys") == "COMPLETE"  # the job creator completed and announced it
    s3.put_object(Bucket=bucket, Key=bad, Body=image_bytes())
    _score(scorer, "keys")  # a FAILED one becomes SCORED

    # S3 answers 403 for a key that is missing.
    forbidden = AWSResponse("", 403, HTTPHeaders(), _Raw(b"<Error><Code>AccessDenied</Code></Error>"))
    answered = "before-send.s3.GetObject"
    hooks: Any = scorer._s3.meta.events
    hooks.register_first(answered, lambda **_: forbidden, unique_id="forbidden")
    create(RunId="forbidden", Keys=[gone])
    _score(scorer, "forbidden")
    hooks.unregister(answered, unique_id="forbidden")
    assert state("forbidden") == "COMPLETE"

    assert len(scorer({"Jobs": [{"RunId": "direct", "Key": good}]}, lambda: 100_000)["Predictions"]) == 1


class _Raw:
    """The body of a response, as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._body


def _set_state(run_id: str, state: str) -> None:
    boto3.resource("dynamodb").Table(TABLE).update_item(
        Key={"pk": "RUN", "sk": run_id},
        UpdateExpression="SET #state = :state",
        ExpressionAttributeNames={"#state": "state"},
        ExpressionAttributeValues={":state": state},
    )


def _score(scorer: Classifier, *run_ids: str) -> None:
    """Deliver all jobs of these runs to the classifier, including jobs that it has had before."""
    kinesis = boto3.client("kinesis")
    (shard,) = kinesis.list_shards(StreamName=STREAM)["Shards"]
    iterator = kinesis.get_shard_iterator(
        StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )
    records = [
        {
            "kinesis": {
                "sequenceNumber": record["SequenceNumber"],
                "data": base64.b64encode(record["Data"]).decode(),
            }
        }
        for record in kinesis.get_records(ShardIterator=iterator["ShardIterator"])["Records"]
        if json.loads(record["Data"])["RunId"] in run_ids
    ]
    assert scorer({"Records": records}, lambda: 100_000) == {"batchItemFailures": []}


@cache
def asked_by_aws(case: Case) -> frozenset[Call]:
    """What AWS's services ask for with a role, by their guides."""
    calls: set[Call] = set()

    def ask(role: str, actions: str, on: str, context: dict[str, Any] | None = None) -> None:
        """Record `actions`, written as in "kms:Encrypt Decrypt"."""
        service, names = actions.split(":")
        calls.update(Call(role, Request(f"{service}:{name}", on, context or {})) for name in names.split())

    for role in FUNCTIONS:
        # Lambda guide, monitoring-cloudwatchlogs. The template creates the log group.
        ask(role, "logs:CreateLogStream PutLogEvents", f"{LOGS}{role}RoleLogs:log-stream:2026/11/24/[1]ab")
        if stack(case).traced(role):  # Lambda guide, services-xray
            ask(role, "xray:PutTraceSegments PutTelemetryRecords", "*")

        if "network=isolated" in case.settings:  # Lambda guide, configuration-vpc
            ask(role, "ec2:DescribeNetworkInterfaces DescribeSubnets", "*")
            for resource in (
                "network-interface/*",
                *(f"subnet/NetworkVpcIsolatedSubnet{n}Subnet" for n in (1, 2)),
                f"security-group/Network{role}",
            ):
                ask(role, "ec2:CreateNetworkInterface", f"{EC2}{resource}")
            changes = "DeleteNetworkInterface AssignPrivateIpAddresses UnassignPrivateIpAddresses"
            ask(role, f"ec2:{changes}", f"{EC2}network-interface/eni-1")

    # Lambda guide, services-kinesis-create. SubscribeToShard is only for enhanced fan-out.
    ask(CLASSIFIER, READ_STREAM, f"{STREAMS}{STREAM}")
    # Lambda guide, kinesis-on-failure-destination
    ask(CLASSIFIER, "s3:PutObject", f"{BUCKETS}failures/aws/lambda/a", OURS)
    ask(CLASSIFIER, "s3:ListBucket", f"{BUCKETS}failures", OURS)

    given = dict(setting.split("=") for setting in case.settings)
    images_key = given.get("imagesKmsKey") if "imagesBucket" in given else given.get("kmsKey")
    if images_key:
        # S3 guide, UsingKMSEncryption, bucket-key: the context is the object, or the bucket if it has a key.
        for arn in (f"{BUCKETS}{case.bucket}", f"{BUCKETS}{case.bucket}/{case.prefix}a.png"):
            for role in FUNCTIONS:
                ask(role, "kms:Decrypt", images_key, via("s3", {"aws:s3:arn": arn}))
    if "kmsKey" in given:
        # DynamoDB guide, encryption.usagenotes, "at a minimum". Its CreateGrant is for creating the table.
        for role in FUNCTIONS:
            ask(role, USE_KEY, OWN, via("dynamodb", {"aws:dynamodb:tableName": TABLE}))
            ask(role, "kms:DescribeKey", OWN, via("dynamodb"))
        # Kinesis guide, permissions-user-key-KMS
        jobs = via("kinesis", {"aws:kinesis:arn": f"{STREAMS}{STREAM}"})
        ask(JOB_CREATOR, "kms:GenerateDataKey", OWN, jobs)
        ask(CLASSIFIER, "kms:Decrypt", OWN, jobs)
        # S3 guide, bucket-key
        ask(CLASSIFIER, "kms:GenerateDataKey", OWN, via("s3", {"aws:s3:arn": f"{BUCKETS}failures"}))
    return frozenset(calls)


def via(service: str, context: dict[str, str] | None = None) -> dict[str, str]:
    """The condition keys of a request to KMS that a service makes, with its encryption context."""
    encryption = {f"kms:EncryptionContext:{name}": value for name, value in (context or {}).items()}
    return {"kms:ViaService": f"{service}.{REGION}.amazonaws.com", **encryption}


@cache
def forbidden(case: Case) -> frozenset[Call]:
    """What neither function needs, or only the other function."""
    calls: set[Call] = set()

    def ask(roles: tuple[str, ...], actions: str, on: str, context: dict[str, Any] | None = None) -> None:
        for role in roles:
            service, names = actions.split(":")
            calls.update(Call(role, Request(f"{service}:{n}", on, context or {})) for n in names.split())

    both, creator, scorer = FUNCTIONS, (JOB_CREATOR,), (CLASSIFIER,)
    images, failures, logs = (f"{BUCKETS}{name}" for name in (case.bucket, "failures", "StorageAccessLogs"))
    image, failure, log = f"{images}/{case.prefix}a.png", f"{failures}/aws/lambda/a", f"{logs}/Images/a"

    # Objects: reading others, and doing anything else with the images.
    for other in (
        f"{images}/a.png",
        f"{images}/elsewhere/{case.prefix}a.png",
        f"{images}/{case.prefix.rstrip('/')}-2/a.png",
        f"{images}/{case.prefix.upper()}a.png",
        f"{images}-2/{case.prefix}a.png",
        failure,
        log,
    ):
        ask(both, "s3:GetObject", other, OURS)
    ask(both, "s3:PutObject DeleteObject DeleteObjectVersion PutObjectAcl PutObjectTagging", image, OURS)
    ask(both, "s3:GetObjectVersion GetObjectAcl RestoreObject", image, OURS)
    ask(both, "s3:DeleteObject", failure, OURS)
    ask(both, "s3:PutObject DeleteObject", log, OURS)
    ask(creator, "s3:PutObject", failure, OURS)
    ask(creator, "s3:ListBucket", failures, OURS)
    ask(scorer, "s3:PutObject", f"{failures}-2/aws/lambda/a", OURS)
    # A bucket with our name in another account: after a bucket is deleted, anyone can take its name.
    for account in ({}, {"s3:ResourceAccount": OTHER_ACCOUNT}):
        ask(scorer, "s3:PutObject", failure, account)
        ask(scorer, "s3:ListBucket", failures, account)

    # Buckets: listing without the prefix, and everything except listing.
    for prefix in ("", "elsewhere/", case.prefix[:-1], f"elsewhere/{case.prefix}", case.prefix.upper()):
        ask(both, "s3:ListBucket", images, OURS | {"s3:prefix": prefix})
    ask(both, "s3:ListBucket", images, OURS)
    ask(both, "s3:ListBucket", f"{images}-2", OURS | {"s3:prefix": case.prefix})
    for bucket in (images, failures, logs):
        ask(both, "s3:PutBucketPolicy DeleteBucketPolicy GetBucketPolicy DeleteBucket", bucket, OURS)
        ask(both, "s3:PutLifecycleConfiguration PutBucketPublicAccessBlock ListBucketVersions", bucket, OURS)
    ask(both, "s3:ListAllMyBuckets", "*")

    # Requests without TLS. For an existing bucket, its owner's policy decides.
    insecure = OURS | {"aws:SecureTransport": "false"}
    if case.bucket == BUCKET:
        ask(both, "s3:GetObject", image, insecure)
        ask(both, "s3:ListBucket", images, insecure | {"s3:prefix": case.prefix})
    ask(scorer, "s3:PutObject", failure, insecure)
    ask(scorer, "s3:ListBucket", failures, insecure)

    table = f"{TABLES}{TABLE}"
    ask(both, "dynamodb:Scan DeleteItem BatchWriteItem PartiQLSelect ExportTableToPointInTime", table)
    ask(both, "dynamodb:DeleteTable UpdateTable UpdateTimeToLive UpdateContinuousBackups", table)
    for other in (f"{table}-2", f"{table}/index/a", table.replace(ACCOUNT, OTHER_ACCOUNT)):
        ask(both, "dynamodb:GetItem BatchGetItem PutItem UpdateItem Query Scan", other)
    ask(creator, "dynamodb:BatchGetItem", table)
    ask(creator, "dynamodb:PutItem UpdateItem", table, {"dynamodb:LeadingKeys": ("RUN#r#3f",)})
    ask(scorer, "s3:PutObject", f"{failures}/elsewhere/a", OURS)
    ask(both, "dynamodb:ListTables", "*")

    stream = f"{STREAMS}{STREAM}"
    ask(both, "kinesis:PutRecord DeleteStream SplitShard MergeShards StopStreamEncryption", stream)
    ask(both, "kinesis:RegisterStreamConsumer", stream)
    ask(both, "kinesis:SubscribeToShard", f"{stream}/consumer/a:1")
    for other in (f"{stream}-2", stream.replace(ACCOUNT, OTHER_ACCOUNT)):
        ask(both, f"{READ_STREAM} PutRecord PutRecords", other)
    ask(creator, READ_STREAM, stream)
    ask(scorer, "kinesis:PutRecords", stream)

    # EventBridge itself refuses an event without source or type (PutEventsResultEntry).
    ours = {"events:source": (EVENT_SOURCE,), "events:detail-type": (RUN_COMPLETE,)}
    ask(both, "events:PutEvents", f"{BUSES}default", ours | {"events:source": ("another",)})
    ask(both, "events:PutEvents", f"{BUSES}default", ours | {"events:detail-type": ("Another",)})
    ask(both, "events:PutEvents", f"{BUSES}another", ours)
    ask(both, "events:DeleteEventBus", f"{BUSES}default")
    ask(both, "events:PutPermission", "*")
    ask(both, "events:PutRule DeleteRule PutTargets", f"arn:aws:events:{REGION}:{ACCOUNT}:rule/a")

    for role, other_role in ((JOB_CREATOR, CLASSIFIER), (CLASSIFIER, JOB_CREATOR)):
        own = f"{LOGS}{role}RoleLogs"
        ask((role,), "logs:CreateLogGroup DeleteLogGroup FilterLogEvents", f"{own}:*")
        ask((role,), "logs:GetLogEvents DeleteLogStream", f"{own}:log-stream:a")
        for group in (f"{own}-2", f"{LOGS}{other_role}RoleLogs", f"{LOGS}a"):
            ask((role,), "logs:CreateLogStream PutLogEvents", f"{group}:log-stream:a")

    # KMS keys: directly, through another service, for another resource, other actions, and another key.
    ours_of = {
        "s3": [{"aws:s3:arn": arn} for arn in (image, images, failures)],
        "dynamodb": [{"aws:dynamodb:tableName": TABLE}],
        "kinesis": [{"aws:kinesis:arn": stream}],
    }
    for service, contexts in ours_of.items():
        for context in contexts:
            through = via(service, context)
            directly = {name: value for name, value in through.items() if name != "kms:ViaService"}
            of_another = {
                name: f"{value.removesuffix(image[len(images) :])}-2" for name, value in context.items()
            }
            ask(both, f"{USE_KEY} DescribeKey", f"{KEYS}another", through)
            for key in (THEIRS, OWN):
                ask(both, f"{USE_KEY} DescribeKey", key, directly)
                ask(both, f"{USE_KEY} DescribeKey", key, via("secretsmanager", context))
                ask(both, USE_KEY, key, via(service))
                ask(both, USE_KEY, key, via(service, of_another))
                ask(both, "kms:CreateGrant ScheduleKeyDeletion PutKeyPolicy DisableKey", key, through)
    for key in (THEIRS, OWN):
        ask(both, "kms:Encrypt GenerateDataKey ReEncryptFrom ReEncryptTo", key, via("s3", ours_of["s3"][0]))
        ask(creator, "kms:Decrypt", key, via("kinesis", ours_of["kinesis"][0]))
        ask(scorer, "kms:GenerateDataKey", key, via("kinesis", ours_of["kinesis"][0]))

    for role in FUNCTIONS:
        ask(both, "iam:PassRole PutRolePolicy AttachRolePolicy GetRole", f"{ROLES}{role}Role")
        ask(both, "sts:AssumeRole", f"{ROLES}{role}Role")
        function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{role}Function"
        ask(both, "lambda:InvokeFunction UpdateFunctionCode", function)
    # Network interfaces: from the code of a function, elsewhere, of other accounts, and other actions.
    actions = (
        "DeleteNetworkInterface AssignPrivateIpAddresses UnassignPrivateIpAddresses CreateNetworkInterface"
    )
    interface = f"{EC2}network-interface/eni-1"
    for role in FUNCTIONS:
        from_code = {"lambda:SourceFunctionArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{role}Function"}
        ask((role,), f"ec2:{actions}", interface, from_code)
        ask((role,), "ec2:DescribeNetworkInterfaces DescribeSubnets", "*", from_code)
    ask(both, f"ec2:{actions}", interface.replace(ACCOUNT, OTHER_ACCOUNT))
    for other in ("subnet/a", "security-group/a", "security-group/NetworkEventBridgeEndpoint"):
        ask(both, "ec2:CreateNetworkInterface", f"{EC2}{other}")
    ask(both, "ec2:AttachNetworkInterface DetachNetworkInterface ModifyNetworkInterfaceAttribute", interface)
    ask(both, "ec2:AuthorizeSecurityGroupEgress", f"{EC2}security-group/NetworkClassifier")
    ask(both, "ec2:CreateRoute", f"{EC2}route-table/a")
    ask(both, "ec2:DescribeSecurityGroups DescribeVpcs DescribeInstances", "*")

    ask(both, "iam:CreateRole", f"{ROLES}a")
    ask(both, "iam:CreateUser CreateAccessKey", f"arn:aws:iam::{ACCOUNT}:user/a")
    ask(both, "xray:GetTraceSummaries BatchGetTraces PutEncryptionConfig", "*")
    ask(both, "cloudwatch:PutMetricData", "*")
    return frozenset(calls)


def unused(
    calls: frozenset[Call], of: Stack, roles: tuple[str, ...] = FUNCTIONS
) -> list[tuple[str, Statement]]:
    """Every action, resource and condition value of a role without which all calls are still allowed.

    A Deny is not among them: test_every_denial_is_needed.
    """
    found = []
    for role in roles:
        policy = [part for statement in of.policy(role) for part in single(statement)]
        for number, part in enumerate(policy):
            others = policy[:number] + policy[number + 1 :]
            using = [call.request for call in calls if call.role == role and applies(part, call.request)]
            if part["Effect"] == "Allow" and all(allows(request, others) for request in using):
                found.append((role, part))
    return found


def test_what_the_handlers_ask_for_is_allowed(case: Case) -> None:
    assert refused(asked_by_handlers(case), stack(case)) == []


def test_what_aws_asks_for_with_the_role_is_allowed(case: Case) -> None:
    assert refused(asked_by_aws(case), stack(case)) == []


def test_what_no_function_needs_is_refused(case: Case) -> None:
    assert [call for call in forbidden(case) if stack(case).allows(call)] == []


def test_every_permission_is_used(case: Case) -> None:
    assert unused(asked_by_handlers(case) | asked_by_aws(case), stack(case)) == []


def test_every_denial_is_needed(case: Case) -> None:
    """Without a part of a Deny, the role would allow something that no function needs."""
    for role in FUNCTIONS:
        parts = [part for statement in stack(case).policy(role) for part in single(statement)]
        for part in (part for part in parts if part["Effect"] == "Deny"):
            others = [other for other in parts if other != part]
            refused_calls = (call.request for call in forbidden(case) if call.role == role)
            assert any(allows(request, others) for request in refused_calls), (role, part)


ARRIVING = Case(("arrivals=on",))
QUEUE = f"{permissions.QUEUES}ArrivalsQueue"


@cache
def asked_by_arrivals() -> frozenset[Call]:
    """What the functions of standing runs and the classifier ask for, from an upload to a closed day."""
    with pytest.MonkeyPatch.context() as patch, mock_aws(), watched() as calls:
        for name, value in stack(ARRIVING).environment(ANNOUNCER).items() | {("AWS_DEFAULT_REGION", REGION)}:
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
        create_table(boto3.client("dynamodb"), TABLE)
        announce, reconcile = announcer.setup.__wrapped__(), reconciler.setup.__wrapped__()
        scorer, key, now = set_up_classifier.__wrapped__(), "cxr-nih/a.png", datetime.now(UTC)
        for seed in range(2):
            etag = s3.put_object(Bucket=BUCKET, Key=key, Body=image_bytes(seed=seed))["ETag"].strip('"')
            detail = {"bucket": {"name": BUCKET}, "object": {"key": key, "etag": etag}}
            body = json.dumps({"time": now.isoformat(), "detail": detail})
            assert announce([{"messageId": "1", "body": body}]) == {"batchItemFailures": []}
            _score(scorer, run_id(now.date()))
        patch.setattr(reconciler, "_today", lambda: now.date() + timedelta(days=1))
        s3.put_object(Bucket=BUCKET, Key="cxr-nih/b.png", Body=b"")
        reconcile({}, lambda: 900_000)
        _score(scorer, run_id(now.date()))
        reconcile({"RunId": run_id(now.date())}, lambda: 900_000)
        _set_state(run_id(now.date()), "SCORING")
        reconcile({"RunId": run_id(now.date())}, lambda: 900_000)  # which completes and announces it
    return frozenset(calls)


def asked_by_aws_of_arrivals() -> frozenset[Call]:
    """What AWS's services ask for with the roles of standing runs, by their guides."""
    asked = set()
    for role in (ANNOUNCER, RECONCILER):
        for action in ("CreateLogStream", "PutLogEvents"):
            group = f"{LOGS}{role}RoleLogs:log-stream:2026/11/24/[1]ab"
            asked.add(Call(role, Request(f"logs:{action}", group, {})))
        for action in ("PutTraceSegments", "PutTelemetryRecords"):
            asked.add(Call(role, Request(f"xray:{action}", "*", {})))
    for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes"):  # services-sqs-configure
        asked.add(Call(ANNOUNCER, Request(f"sqs:{action}", QUEUE, {})))
    return frozenset(asked)


class TestArrivals:
    def test_what_is_asked_for_is_allowed(self) -> None:
        asked = asked_by_arrivals() | asked_by_aws_of_arrivals()
        assert {call.role for call in asked} == {ANNOUNCER, RECONCILER, CLASSIFIER}
        assert refused(asked, stack(ARRIVING)) == []

    def test_every_permission_is_used(self) -> None:
        asked = asked_by_arrivals() | asked_by_aws_of_arrivals()
        assert unused(asked, stack(ARRIVING), (ANNOUNCER, RECONCILER)) == []
        of_events = [part for _, part in unused(asked, stack(ARRIVING), (CLASSIFIER,))]
        assert "events:PutEvents" not in str(of_events)

    @pytest.mark.parametrize("role", [ANNOUNCER, RECONCILER])
    def test_what_they_do_not_need_is_refused(self, role: str) -> None:
        images, table = f"{BUCKETS}{BUCKET}", f"{TABLES}{TABLE}"
        ours = {"events:source": (EVENT_SOURCE,), "events:detail-type": ("Another",)}
        for action, resource, context in (
            ("s3:GetObject", f"{images}/cxr-nih/a.png", OURS),
            ("s3:PutObject", f"{images}/cxr-nih/a.png", OURS),
            ("s3:DeleteObject", f"{images}/cxr-nih/a.png", OURS),
            ("s3:ListBucket", images, OURS | {"s3:prefix": "elsewhere/"}),
            ("s3:PutBucketNotification", images, OURS),
            ("dynamodb:DeleteItem", table, {}),
            ("dynamodb:Scan", table, {}),
            ("kinesis:GetRecords", f"{STREAMS}{STREAM}", {}),
            ("sqs:SendMessage", QUEUE, {}),
            ("sqs:PurgeQueue", QUEUE, {}),
            ("sqs:ReceiveMessage", f"{permissions.QUEUES}ArrivalsDeadLetters", {}),
            ("events:PutEvents", f"{BUSES}default", ours),
            ("lambda:InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:JobCreatorFunction", {}),
            ("iam:PassRole", f"{ROLES}{role}Role", {}),
        ):
            assert not stack(ARRIVING).allows(Call(role, Request(action, resource, context))), action
        own = {ANNOUNCER: "s3:ListBucket", RECONCILER: "sqs:ReceiveMessage"}[role]
        resource = {ANNOUNCER: images, RECONCILER: QUEUE}[role]
        assert not stack(ARRIVING).allows(
            Call(role, Request(own, resource, OURS | {"s3:prefix": "cxr-nih/"}))
        )


ISOLATED = CASES["isolated"]
SERVICES = {"kinesis": "kinesis-streams"}  # of an action, where its endpoint has another name


def passes(request: Request) -> bool:
    """Whether the endpoint of the isolated network lets a request of any caller through."""
    service = request.action.partition(":")[0]
    policies = stack(ISOLATED).endpoint_policies()
    return allows(request, policies.get(SERVICES.get(service, service), ()))


class TestEndpoints:
    def test_every_call_of_the_handlers_passes(self) -> None:
        assert [call for call in asked_by_handlers(ISOLATED) if not passes(call.request)] == []

    def test_every_part_of_a_policy_is_used(self) -> None:
        """Each action and resource of a policy is used."""
        used = {call.request for call in asked_by_handlers(ISOLATED)}
        for service, statements in stack(ISOLATED).endpoint_policies().items():
            for statement in statements:
                for part in single(statement):
                    assert any(applies(part, request) for request in used), (service, part)

    @pytest.mark.parametrize(
        ("action", "resource"),
        [
            ("s3:PutObject", f"{BUCKETS}theirs/a"),
            ("s3:GetObject", f"{BUCKETS}theirs/a"),
            ("s3:PutObject", f"{BUCKETS}{BUCKET}/cxr-nih/a.png"),
            ("s3:GetObject", f"{BUCKETS}{BUCKET}/elsewhere/a.png"),
            ("s3:GetObject", f"{BUCKETS}failures/aws/lambda/a"),
            ("s3:ListAllMyBuckets", "*"),
            ("dynamodb:PutItem", f"{TABLES}{TABLE}".replace(ACCOUNT, OTHER_ACCOUNT)),
            ("dynamodb:Scan", f"{TABLES}{TABLE}"),
            ("dynamodb:DeleteItem", f"{TABLES}{TABLE}"),
            ("kinesis:PutRecords", f"{STREAMS}{STREAM}".replace(ACCOUNT, OTHER_ACCOUNT)),
            ("kinesis:GetRecords", f"{STREAMS}{STREAM}"),
            ("events:PutEvents", f"{BUSES}default".replace(ACCOUNT, OTHER_ACCOUNT)),
            ("events:PutRule", f"arn:aws:events:{REGION}:{ACCOUNT}:rule/a"),
            ("sts:AssumeRole", f"{ROLES}a"),
        ],
    )
    def test_what_a_hostile_file_could_ask_for_is_refused(self, action: str, resource: str) -> None:
        """Whatever credentials it has: its own may allow its own buckets and streams."""
        assert not passes(Request(action, resource, OURS))


def test_no_action_has_a_wildcard(case: Case) -> None:
    """A wildcard counts as used if only one of its actions is."""
    actions = [part["Action"] for role in FUNCTIONS for s in stack(case).policy(role) for part in single(s)]
    assert [action for action in actions if "*" in action or "?" in action] == []


class TestWrongTemplates:
    """Each test above fails for a wrong template."""

    def changed(self, change: Callable[[dict[str, Any]], None], role: str = CLASSIFIER) -> Stack:
        """The default stack, after a change to each statement of a role."""
        wrong = deepcopy(dict(synth().template.to_json()))
        for resource in wrong["Resources"].values():
            if resource["Type"] == "AWS::IAM::Policy" and role in resource["Properties"]["PolicyName"]:
                for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                    change(statement)
        return Stack(wrong)

    def test_a_missing_action_is_noticed(self) -> None:
        def change(statement: dict[str, Any]) -> None:
            if "dynamodb:BatchGetItem" in statement["Action"]:
                statement["Action"].remove("dynamodb:BatchGetItem")

        (call,) = refused(asked_by_handlers(CASES["default"]), self.changed(change))
        assert (call.role, call.request.action) == (CLASSIFIER, "dynamodb:BatchGetItem")

    def test_an_unused_action_is_noticed(self) -> None:
        def change(statement: dict[str, Any]) -> None:
            if "dynamodb:Query" in statement["Action"]:
                statement["Action"].append("dynamodb:Scan")

        wrong, case = self.changed(change), CASES["default"]
        ((role, part),) = unused(asked_by_handlers(case) | asked_by_aws(case), wrong)
        assert (role, part["Action"]) == (CLASSIFIER, "dynamodb:Scan")
        assert {call.request.action for call in forbidden(case) if wrong.allows(call)} == {"dynamodb:Scan"}

    def test_a_handler_of_any_test_that_asks_for_more_is_noticed(self) -> None:
        """The fixture `aws` fails every test that leaves something here."""
        own, *_ = asked_by_handlers(CASES["default"])
        wrong = Call(CLASSIFIER, Request("s3:GetObject", f"{BUCKETS}failures/a", OURS))
        elsewhere = wrong._replace(request=Request("s3:GetObject", f"{BUCKETS}others/a", OURS))
        assert refused_by((), [own, wrong, elsewhere]) == [wrong]

    def test_a_wider_resource_is_noticed(self) -> None:
        def change(statement: dict[str, Any]) -> None:
            if statement["Action"] == "s3:GetObject":
                statement["Resource"] = "*"

        wrong = self.changed(change, JOB_CREATOR)
        allowed = {call.request.resource for call in forbidden(CASES["default"]) if wrong.allows(call)}
        assert f"{BUCKETS}failures/aws/lambda/a" in allowed

    def test_a_missing_condition_is_noticed(self) -> None:
        def change(statement: dict[str, Any]) -> None:
            if "s3:prefix" in str(statement.get("Condition")):
                del statement["Condition"]

        wrong = self.changed(change)
        allowed = [call.request for call in forbidden(CASES["default"]) if wrong.allows(call)]
        assert Request("s3:ListBucket", f"{BUCKETS}{BUCKET}", OURS) in allowed

    def test_a_bucket_that_answers_without_tls_is_noticed(self) -> None:
        wrong = deepcopy(dict(synth().template.to_json()))
        resources = wrong["Resources"].items()
        wrong["Resources"] = {name: r for name, r in resources if r["Type"] != "AWS::S3::BucketPolicy"}
        allowed = [call.request for call in forbidden(CASES["default"]) if Stack(wrong).allows(call)]
        assert allowed
        assert all(request.context["aws:SecureTransport"] == "false" for request in allowed)

    def test_every_wider_statement_is_noticed(self, case: Case) -> None:
        """With each resource as `*`, and without each condition, one at a time."""
        refused_calls = [(call.role, call.request) for call in forbidden(case)]
        missed = [
            (role, wider)
            for role in FUNCTIONS
            for statement in stack(case).policy(role)
            for part in single(statement)
            if part["Effect"] == "Allow"
            for wider in _wider(part)
            if not any(who == role and applies(wider, request) for who, request in refused_calls)
        ]
        assert missed == []


def _wider(part: Statement) -> Iterator[Statement]:
    if part["Resource"] != "*":
        yield {**part, "Resource": "*"}
    for operator, keys in part.get("Condition", {}).items():
        for key in keys:
            others = {name: value for name, value in keys.items() if name != key}
            yield {**part, "Condition": {**part["Condition"], operator: others}}


CREATOR_FIELDS = (
    *("sources", "kinesis", "events", "bucket", "prefix", "stream", "images_per_job", "run_fields"),
)


class TestRecorder:
    def test_only_clients_of_handlers_are_recorded(self) -> None:
        with mock_aws(), watched() as calls:
            theirs, ours = (boto3.client("s3", region_name=REGION) for _ in range(2))
            none: Any = None
            Classifier(model=none, table=none, s3=theirs, events=none, bucket=BUCKET, vcpus=1)
            ours.create_bucket(Bucket=BUCKET)
            ours.list_objects_v2(Bucket=BUCKET)
            assert calls == set()
            theirs.list_objects_v2(Bucket=BUCKET, Prefix="a/")
        ours_is = {**OURS, "s3:prefix": "a/"}
        assert calls == {Call(CLASSIFIER, Request("s3:ListBucket", f"{BUCKETS}{BUCKET}", ours_is))}

    def test_a_call_without_tls_is_recorded_as_one(self) -> None:
        with mock_aws(), watched() as calls:
            client = boto3.client("dynamodb", region_name=REGION, use_ssl=False)
            none: Any = None
            JobCreator(**dict.fromkeys(CREATOR_FIELDS, none), table=RunTable(client, TABLE))
            with pytest.raises(client.exceptions.ResourceNotFoundException):
                client.get_item(TableName=TABLE, Key={"pk": {"S": "RUN"}})
        ((_, request),) = calls
        assert request.context["aws:SecureTransport"] == "false"

    def test_a_transaction_asks_for_each_of_its_parts(self) -> None:
        key = {"pk": {"S": "RUN#first#2a"}}
        parts = [{"Put": {"TableName": TABLE, "Item": key}}] + [
            {kind: {"TableName": TABLE, "Key": key}} for kind in ("Update", "Delete", "ConditionCheck")
        ]
        partition = {"dynamodb:LeadingKeys": ("RUN#r#00",)}
        assert [
            (action, context) for action, _, context in asked("TransactWriteItems", {"TransactItems": parts})
        ] == [(f"dynamodb:{name}Item", partition) for name in ("Put", "Update", "Delete", "ConditionCheck")]

    def test_an_event_asks_for_its_bus(self) -> None:
        entry = {"Source": "a", "DetailType": "b", "EventBusName": "c"}
        assert list(asked("PutEvents", {"Entries": [entry]})) == [
            ("events:PutEvents", f"{BUSES}c", {"events:source": ("a",), "events:detail-type": ("b",)})
        ]

    @pytest.mark.parametrize(
        ("operation", "params"),
        [
            ("DeleteObject", {"Bucket": BUCKET, "Key": "a"}),
            ("GetObject", {"Bucket": BUCKET, "Key": "a", "VersionId": "1"}),
            ("Query", {"TableName": TABLE, "IndexName": "a"}),
        ],
    )
    def test_an_unknown_call_raises(self, operation: str, params: dict[str, Any]) -> None:
        with pytest.raises(Unmapped, match=operation):
            list(asked(operation, params))
