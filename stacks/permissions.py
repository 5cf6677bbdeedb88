"""How to allow a function something, and what both functions may do.

What only one function may do is in the module of its construct.
"""

from collections.abc import Mapping
from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk.aws_dynamodb import ITable
from aws_cdk.aws_iam import PolicyStatement
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import Function
from aws_cdk.aws_s3 import IBucket
from runs.completion import EVENT_SOURCE, RUN_COMPLETE

from stacks.config import Config
from stacks.storage import Storage

# What DynamoDB does with a table's key for the caller (DynamoDB guide, encryption.usagenotes).
TABLE_KEY_ACTIONS = (
    "kms:Decrypt",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)

Conditions = Mapping[str, Mapping[str, str | list[str]]]


def allow(
    function: Function,
    *actions: str,
    on: str,
    when: Conditions | None = None,
    why_wildcard: str | None = None,
) -> None:
    """Allow exactly these actions on one resource. The CDK's own grants include actions that nothing calls.

    A resource that contains `*` needs a reason: without it, cdk-nag stops synth.
    """
    function.add_to_role_policy(PolicyStatement(actions=list(actions), resources=[on], conditions=when))
    if why_wildcard:
        resource = _as_cdk_nag_writes(Stack.of(function).resolve(on))
        finding = Acknowledgment(id=f"AwsSolutions-IAM5[Resource::{resource}]", reason=why_wildcard)
        Validations.of(function.role or function).acknowledge(finding)


def allow_shared(function: Function, *, config: Config, storage: Storage, key: IKey | None) -> None:
    """Allow what both functions do: read images and runs, complete runs, and send traces."""
    images, table = storage.images, storage.table
    allow(
        function,
        "s3:GetObject",
        on=images.arn_for_objects(f"{config.prefix}*"),
        why_wildcard="A run names its images when it starts. All of them are under the prefix.",
    )
    # The classifier lists too. Without this permission, S3 answers 403 for an image that is missing.
    under_prefix = {"StringLike": {"s3:prefix": f"{config.prefix}*"}}
    allow(function, "s3:ListBucket", on=images.bucket_arn, when=under_prefix)
    if config.images_kms_key:
        allow(function, "kms:Decrypt", on=config.images_kms_key, when=through_s3(images))

    allow(function, "dynamodb:GetItem", "dynamodb:Query", on=table.table_arn)
    allow_events(function, RUN_COMPLETE)
    allow_traces(function)
    if key:
        allow_key_of_table(function, table, key)
        if not config.images_bucket:
            allow(function, "kms:Decrypt", on=key.key_arn, when=through_s3(images))


def allow_events(function: Function, *types: str) -> None:
    """Allow to say these types of events on EventBridge."""
    # Both condition keys can have several values (EventBridge guide,
    # eb-event-bus-example-policy-cross-account-custom-bus-source).
    ours = {"events:source": EVENT_SOURCE, "events:detail-type": list(types) if types[1:] else types[0]}
    bus = Stack.of(function).format_arn(service="events", resource="event-bus", resource_name="default")
    allow(function, "events:PutEvents", on=bus, when={"ForAllValues:StringEquals": ours})


def allow_traces(function: Function) -> None:
    """Allow to send traces to X-Ray."""
    allow(
        function,
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
        on="*",
        why_wildcard="X-Ray has no resources to allow these actions on.",
    )


def allow_key_of_table(function: Function, table: ITable, key: IKey) -> None:
    """Allow the user's key, through the table that it encrypts."""
    of_table = through("dynamodb", "aws:dynamodb:tableName", table.table_name)
    allow(function, *TABLE_KEY_ACTIONS, on=key.key_arn, when=of_table)
    # KMS has an encryption context only for encrypting and decrypting.
    allow(function, "kms:DescribeKey", on=key.key_arn, when=through("dynamodb"))


def through(service: str, context: str | None = None, *values: str) -> Conditions:
    """The condition that a service uses the key and, with `context`, that it names one of `values` in it."""
    only = {f"kms:EncryptionContext:{context}": list(values)} if context else {}
    return {"StringLike": {"kms:ViaService": f"{service}.*", **only}}


def through_s3(bucket: IBucket) -> Conditions:
    """The condition that S3 uses the key for this bucket. S3 names the object if there is no bucket key."""
    return through("s3", "aws:s3:arn", bucket.bucket_arn, bucket.arn_for_objects("*"))


def _as_cdk_nag_writes(reference: Any) -> str:
    """A resolved ARN as text, with references in angle brackets, as in the findings of AwsSolutions-IAM5."""
    match reference:
        case {"Fn::Join": [separator, parts]}:
            return str(separator).join(map(_as_cdk_nag_writes, parts))
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
        case {"Ref": name}:
            return f"<{name}>"
    return str(reference)
