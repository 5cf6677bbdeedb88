"""How the stack says what a function may do: one statement at a time, with its condition and its reason."""

from collections.abc import Mapping
from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk.aws_iam import PolicyStatement
from aws_cdk.aws_lambda import Function
from aws_cdk.aws_s3 import IBucket

Conditions = Mapping[str, Mapping[str, str | list[str]]]


def allow(
    function: Function,
    *actions: str,
    on: str,
    when: Conditions | None = None,
    why_wildcard: str | None = None,
) -> None:
    """Allows exactly these actions on one resource: CDK's own grants give actions that nobody calls.

    A resource with a `*` needs its reason; cdk-nag stops synth without it.
    """
    function.add_to_role_policy(PolicyStatement(actions=list(actions), resources=[on], conditions=when))
    if why_wildcard:
        resource = _as_cdk_nag_writes(Stack.of(function).resolve(on))
        finding = Acknowledgment(id=f"AwsSolutions-IAM5[Resource::{resource}]", reason=why_wildcard)
        Validations.of(function.role or function).acknowledge(finding)


def _as_cdk_nag_writes(reference: Any) -> str:
    """A resolved ARN as one text, with references in angle brackets, as findings of AwsSolutions-IAM5 are."""
    match reference:
        case {"Fn::Join": [separator, parts]}:
            return str(separator).join(map(_as_cdk_nag_writes, parts))
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
        case {"Ref": name}:
            return f"<{name}>"
    return str(reference)


def through(service: str, context: str | None = None, *values: str) -> Conditions:
    """A key is used by this service alone and, with `context`, for what these values name alone."""
    only = {f"kms:EncryptionContext:{context}": list(values)} if context else {}
    return {"StringLike": {"kms:ViaService": f"{service}.*", **only}}


def of_bucket(bucket: IBucket) -> Conditions:
    """A key is used by S3 for this bucket alone: S3 names the bucket or, without a bucket key, the object."""
    return through("s3", "aws:s3:arn", bucket.bucket_arn, bucket.arn_for_objects("*"))
