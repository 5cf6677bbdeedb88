"""The deployed stack, found by its name: where its parts are, and how to reach them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cxr.errors import InputError
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    import boto3

NOT_AWS = "what answered ({}) is not AWS; check AWS_ENDPOINT_URL, and endpoint_url in your AWS config file"
ATTEMPTS = 5  # of a request that failed for a reason that may pass


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
    settings: Mapping[str, Any] = field(default_factory=dict)  # by their names for -c; {} of older stacks
    reconciler: str = ""  # the function; "" where arrivals are off, as the two below
    arrivals_mapping: str = ""  # UUID of the mapping from the queue of arrivals
    arrivals_dead_letters: str = ""  # URL of the queue of events that were not taken
    on_delete: str = ""  # what happens to the data when the stack is deleted

    @classmethod
    def find(cls, name: str = DEFAULT_NAME) -> Stack:
        """The stack of this name in the account and region of the environment.

        Raises InputError if it is not there or not a stack of this app, and what boto3 raises.
        """
        from botocore.exceptions import ClientError

        cloudformation = client("cloudformation")
        try:
            (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "no error code")
            if code == "no error code" or code.isdecimal():  # CloudFormation names its errors
                raise InputError(NOT_AWS.format(code)) from None
            if code != "ValidationError":
                raise
            raise InputError(
                f"there is no stack {name} in {cloudformation.meta.region_name}; deploy it by "
                "`npx cdk deploy`, or set AWS_REGION and AWS_PROFILE to where it is"
            ) from None
        except KeyError:
            raise InputError(NOT_AWS.format("no stacks")) from None
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
        return cls.of(outputs, name)

    @classmethod
    def of(cls, outputs: Mapping[str, str], name: str = DEFAULT_NAME) -> Stack:
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
                settings=json.loads(outputs.get("Settings", "{}")),
                reconciler=outputs.get("ReconcilerName", ""),
                arrivals_mapping=outputs.get("ArrivalsMappingId", ""),
                arrivals_dead_letters=outputs.get("ArrivalsDeadLettersUrl", ""),
                on_delete=outputs.get("OnDelete", ""),
            )
        except KeyError as error:
            raise InputError(
                f"stack {name} has no output {error}: expected one that this app deployed"
            ) from None


def session() -> boto3.Session:
    """The environment's session. AWS_REGION counts first, as for the AWS CLI; boto3 ignores it."""
    import boto3  # here: it takes longer to load than `cxr --help` takes in all

    return boto3.Session(region_name=os.environ.get("AWS_REGION") or None)


def client(service: str, **options: Any) -> Any:
    """A boto3 client that retries transient errors and keeps enough connections for parallel work."""
    from botocore.config import Config
    from botocore.exceptions import InvalidRegionError

    config = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, max_pool_connections=32)
    try:
        return session().client(service, config=config.merge(Config(**options)))  # type: ignore[call-overload]
    except InvalidRegionError:
        raise
    except ValueError as error:  # botocore raises it for an endpoint that is no URL
        raise InputError(f"{error}; expected a URL in AWS_ENDPOINT_URL, or none") from None
