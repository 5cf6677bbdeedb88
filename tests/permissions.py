"""What the roles of the functions allow, and what the handlers ask for. test_permissions.py compares them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

from support import BUCKET, STREAM, TABLE

from cxr.verification.iam import Request, Statement, allows

ACCOUNT, REGION = "123456789012", "us-east-1"  # moto's
JOB_CREATOR, CLASSIFIER = "JobCreator", "Classifier"
ANNOUNCER, RECONCILER = "ArrivalsAnnouncer", "ArrivalsReconciler"

# Names of resources, by logical id without its hash. The name of any other resource is its logical id.
NAMES = {"StorageImages": BUCKET, "StorageTable": TABLE, "JobsStream": STREAM, "JobsFailures": "failures"}
TABLES = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/"
STREAMS = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/"
BUSES = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:"
KEYS = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/"
ROLES = f"arn:aws:iam::{ACCOUNT}:role/"
EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}:"
BUCKETS = "arn:aws:s3:::"
QUEUES = f"arn:aws:sqs:{REGION}:{ACCOUNT}:"
ARNS = {
    "AWS::DynamoDB::Table": TABLES,
    "AWS::IAM::Role": ROLES,
    "AWS::Kinesis::Stream": STREAMS,
    "AWS::KMS::Key": KEYS,
    "AWS::Logs::LogGroup": LOGS,
    "AWS::S3::Bucket": BUCKETS,
    "AWS::SQS::Queue": QUEUES,
}
PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Region": REGION, "AWS::Partition": "aws"}


class Unmapped(Exception):
    """A handler made a call that `asked` does not know."""


class Call(NamedTuple):
    """A request of a function to IAM."""

    role: str  # of one of the functions
    request: Request


class Stack:
    """A synthesized stack, as CloudFormation would create it in ACCOUNT and REGION.

    Raises ValueError for an unknown intrinsic function, and KeyError for an unknown resource.
    """

    def __init__(self, template: Mapping[str, Any]) -> None:
        self._resources: Mapping[str, Any] = template["Resources"]
        self._policies = self._resolved(self._all("AWS::IAM::Policy"))
        self._bucket_policies = self._resolved(self._all("AWS::S3::BucketPolicy"))
        self._endpoints = self._resolved(
            [
                {name: endpoint[name] for name in ("ServiceName", "PolicyDocument")}
                for endpoint in self._all("AWS::EC2::VPCEndpoint")
            ]
        )

    def policy(self, role: str) -> list[Statement]:
        """The statements of a function's role."""
        return [
            statement
            for policy in self._policies
            if policy["Roles"] == [f"{role}Role"]
            for statement in policy["PolicyDocument"]["Statement"]
        ]

    def bucket_policy(self, bucket: str) -> list[Statement]:
        """The statements of a bucket's own policy. A bucket outside the stack has none here."""
        return [
            statement
            for policy in self._bucket_policies
            if policy["Bucket"] == bucket
            for statement in policy["PolicyDocument"]["Statement"]
        ]

    def endpoint_policies(self) -> dict[str, list[Statement]]:
        """The statements of the policy of each endpoint of the network, by its service: "s3"."""
        return {
            endpoint["ServiceName"].rpartition(".")[2]: endpoint["PolicyDocument"]["Statement"]
            for endpoint in self._endpoints
        }

    def environment(self, role: str) -> dict[str, str]:
        """A function's environment variables."""
        return dict(self._resolved(self._function(role)["Environment"]["Variables"]))

    def traced(self, role: str) -> bool:
        """Whether Lambda sends traces of a function to X-Ray."""
        return bool(self._function(role).get("TracingConfig", {}).get("Mode") == "Active")

    def allows(self, call: Call) -> bool:
        """Whether the role's policy and the bucket's policy allow a call. Raises iam.Unsupported."""
        bucket = re.fullmatch(r"arn:aws:s3:::([^/]+)(/.*)?", call.request.resource, re.DOTALL)
        return allows(
            call.request,
            self.policy(call.role),
            resource_policy=self.bucket_policy(bucket[1]) if bucket else (),
            principal=role_arn(call.role),
        )

    def _function(self, role: str) -> Any:
        """The properties of the function that has a role."""
        functions = self._all("AWS::Lambda::Function")
        (function,) = (f for f in functions if self._resolved(f["Role"]) == role_arn(role))
        return function

    def _all(self, resource_type: str) -> list[Any]:
        """The properties of every resource of a type."""
        return [r["Properties"] for r in self._resources.values() if r["Type"] == resource_type]

    def _resolved(self, value: Any) -> Any:
        """`value` without intrinsic functions."""
        match value:
            case {"Ref": str(name)}:
                return PSEUDO[name] if "::" in name else _name(name)
            case {"Fn::GetAtt": [str(name), "Arn"]}:
                resource_type = self._resources[name]["Type"]
                # The ARN of a log group ends with this, which means the streams in it.
                end = ":*" if resource_type == "AWS::Logs::LogGroup" else ""
                return f"{ARNS[resource_type]}{_name(name)}{end}"
            case {"Fn::GetAtt": [str(name), "GroupId"]}:
                return _name(name)
            case {"Fn::Join": [str(separator), parts]}:
                return separator.join(self._resolved(part) for part in parts)
            case dict():
                if any(name.startswith("Fn::") for name in value):
                    raise ValueError(f"{value}: no such intrinsic function is known")
                return {name: self._resolved(item) for name, item in value.items()}
            case list():
                return [self._resolved(item) for item in value]
        return value


# Buckets of tests of a bucket that is not there, or another stack's: AWS refuses both.
OTHER_BUCKETS = re.compile(rf"{BUCKETS}(gone|others)(/|$)")


@cache
def stack(*settings: str) -> Stack:
    """The stack of these settings."""
    from synth import synth  # here, because it loads the CDK, which takes seconds

    return Stack(synth(*settings).template.to_json())


def refused(calls: Iterable[Call], by: Stack) -> list[Call]:
    """The calls that the roles of a stack do not allow."""
    return [call for call in calls if not by.allows(call)]


def refused_by(settings: tuple[str, ...], calls: Iterable[Call]) -> list[Call]:
    """The calls that the stack of these settings does not allow, but for those of OTHER_BUCKETS."""
    return [
        call
        for call in calls
        if not OTHER_BUCKETS.match(call.request.resource) and not _allowed_by(settings, call)
    ]


@cache
def _allowed_by(settings: tuple[str, ...], call: Call) -> bool:
    return stack(*settings).allows(call)


def role_arn(role: str) -> str:
    return f"{ROLES}{role}Role"


@contextmanager
def watched() -> Iterator[set[Call]]:
    """Record the different calls of all handlers that are made from here on."""
    from arrivals.announcer import Announcer
    from arrivals.reconciler import Reconciler
    from classifier.handler import Classifier
    from job_creator.handler import JobCreator

    calls: set[Call] = set()

    def watch(made: type, role: str) -> Any:
        """Patch a class so that it records the calls of the clients that its objects are made with."""
        make = made.__init__  # type: ignore[misc]

        def watching(self: Any, *args: Any, **kwargs: Any) -> None:
            for given in (*args, *kwargs.values()):
                # An argument is a client, or an object that holds one: Sources or RunTable.
                for client in (given, *getattr(given, "__dict__", {}).values()):
                    if hasattr(client, "meta"):
                        _record(client, role, calls)
            if "events" in kwargs:
                kwargs["events"] = _recorded(kwargs["events"], role, calls)
            make(self, *args, **kwargs)

        return patch.object(made, "__init__", watching)

    roles = {JobCreator: JOB_CREATOR, Classifier: CLASSIFIER, Announcer: ANNOUNCER, Reconciler: RECONCILER}
    with ExitStack() as watching:
        for made, role in roles.items():
            watching.enter_context(watch(made, role))
        yield calls


def _recorded(make_client: Callable[[], Any], role: str, calls: set[Call]) -> Callable[[], Any]:
    def make() -> Any:
        client = make_client()
        _record(client, role, calls)
        return client

    return make


def _record(client: Any, role: str, calls: set[Call]) -> None:
    """Make a boto3 client record its calls. An unknown call raises Unmapped."""
    endpoint: str = client.meta.endpoint_url
    if not endpoint.endswith(".amazonaws.com"):
        return  # a test uses another endpoint, without IAM
    transport = {"aws:SecureTransport": str(endpoint.startswith("https:")).lower()}

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        for action, resource, context in asked(model.name, params):
            calls.add(Call(role, Request(action, resource, transport | context)))

    client.meta.events.register("provide-client-params", note)


# (action, resource, context keys)
Asked = Iterator[tuple[str, str, dict[str, Any]]]


def asked(operation: str, params: Mapping[str, Any]) -> Asked:
    """The requests to IAM for one call of the SDK, by the service authorization reference.

    Raises Unmapped for a call that no handler makes yet, or a parameter that needs another action.
    """
    if {"VersionId", "IndexName"} & params.keys():
        raise Unmapped(f"{operation} with {', '.join(params)}")
    own = {"s3:ResourceAccount": ACCOUNT}
    match operation, params:
        case "GetObject" | "HeadObject", {"Bucket": bucket, "Key": key}:
            yield "s3:GetObject", f"{BUCKETS}{bucket}/{key}", own
        case "ListObjectsV2", {"Bucket": bucket}:
            prefix = {"s3:prefix": params["Prefix"]} if "Prefix" in params else {}
            yield "s3:ListBucket", f"{BUCKETS}{bucket}", own | prefix
        case "PutRecords", {"StreamName": stream}:
            yield "kinesis:PutRecords", f"{STREAMS}{stream}", {}
        case "GetItem" | "PutItem" | "UpdateItem", {"TableName": table}:
            yield f"dynamodb:{operation}", f"{TABLES}{table}", _leading(params)
        case "Query", {"TableName": table, "KeyConditionExpression": "pk = :pk"}:
            yield "dynamodb:Query", f"{TABLES}{table}", _leading({"Key": _of_query(params)})
        case "BatchGetItem", {"RequestItems": tables}:
            for table, keys in tables.items():
                for key in keys["Keys"]:
                    yield "dynamodb:BatchGetItem", f"{TABLES}{table}", _leading({"Key": key})
        case "TransactWriteItems", {"TransactItems": items}:
            # DynamoDB guide, transaction-apis-iam: a transaction needs the permissions of its parts.
            for item in items:
                ((part, fields),) = item.items()  # Put, Update, Delete or ConditionCheck
                yield f"dynamodb:{part}Item", f"{TABLES}{fields['TableName']}", _leading(fields)
        case "PutEvents", {"Entries": entries}:
            for entry in entries:
                of = {"events:source": (entry["Source"],), "events:detail-type": (entry["DetailType"],)}
                yield "events:PutEvents", f"{BUSES}{entry.get('EventBusName', 'default')}", of
        case _:
            raise Unmapped(operation)


def _of_query(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"pk": params["ExpressionAttributeValues"][":pk"]}


def _leading(fields: Mapping[str, Any]) -> dict[str, tuple[str]]:
    """The condition key for a partition key. All runs and partitions count as one."""
    pk = fields.get("Key", fields.get("Item"))["pk"]["S"]
    return {"dynamodb:LeadingKeys": ("#".join(["RUN", "r", "00"][: pk.count("#") + 1]),)}


def _name(logical_id: str) -> str:
    readable = re.sub("[0-9A-F]{8}$", "", logical_id)
    return NAMES.get(readable, readable)
