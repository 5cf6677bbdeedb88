"""The deployed stack, found by its name: where its parts are, and how to reach them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from cxr.errors import InputError

NAME = "ChestXray"
ATTEMPTS = 5  # of a request, where another may pass


@dataclass(frozen=True)
class Stack:
    """A deployed stack: the names of its parts, as its outputs give them."""

    name: str
    images_bucket: str
    prefix: str  # of every image's key
    job_creator: str
    stream: str
    classifier: str
    mapping: str  # UUID of the event source mapping
    table: str
    failure_bucket: str

    @classmethod
    def find(cls, name: str = NAME) -> Stack:
        """The stack of this name in the account and region of the environment.

        Raises InputError if it is not there or is another app's, and what boto3 raises.
        """
        cloudformation = client("cloudformation")
        try:
            (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationError":
                raise
            raise InputError(
                f"there is no stack {name} in {cloudformation.meta.region_name}; deploy it by "
                "`npx cdk deploy`, or set AWS_REGION and AWS_PROFILE to where it is"
            ) from None
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
        return cls.of(outputs, name)

    @classmethod
    def of(cls, outputs: Mapping[str, str], name: str = NAME) -> Stack:
        """The stack with these outputs. Raises InputError if one is missing."""
        try:
            return cls(
                name=name,
                images_bucket=outputs["ImagesBucketName"],
                prefix=outputs["KeyPrefix"],
                job_creator=outputs["JobCreatorName"],
                stream=outputs["StreamName"],
                classifier=outputs["ClassifierName"],
                mapping=outputs["MappingId"],
                table=outputs["TableName"],
                failure_bucket=outputs["FailureBucketName"],
            )
        except KeyError as error:
            raise InputError(
                f"stack {name} has no output {error}: expected one that this app deployed"
            ) from None


def session() -> boto3.Session:
    """The environment's. AWS_REGION comes first, as for the AWS CLI; boto3 knows AWS_DEFAULT_REGION only."""
    return boto3.Session(region_name=os.environ.get("AWS_REGION") or None)


def client(service: str, **options: Any) -> Any:
    """A boto3 client that tries again what may pass, and keeps enough connections for parallel work."""
    config = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, max_pool_connections=32)
    try:
        return session().client(service, config=config.merge(Config(**options)))  # type: ignore[call-overload]
    except ValueError as error:  # botocore's, of an endpoint that is no URL
        raise InputError(f"{error}; expected a URL in AWS_ENDPOINT_URL, or none") from None
