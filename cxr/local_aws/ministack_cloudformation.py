"""Stacks of MiniStack that can be deleted and deployed again as on AWS.

MiniStack gives the resources of a new stack the names of an older one. It makes managed policies of the
policies of a role, and then cannot list them. It cannot run the CDK's function that empties buckets, and
waits an hour for its answer. Version 1.4, for Python 3.11, finds no stack by its id, by which the CDK deletes
one, deletes what a template retains, and empties a table that is updated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from ministack.services import cloudformation, dynamodb, iam, s3  # type: ignore[import-untyped]
from ministack.services.cloudformation import handlers, provisioners, stacks  # type: ignore[import-untyped]

Properties = dict[str, Any]
Created = tuple[str, dict[str, str]]  # physical id, attributes

BY_NAME = ("DeleteStack", "DescribeStackResource", "DescribeStackResources", "UpdateStack")
EMPTIER = "Custom::S3AutoDeleteObjects"  # of the CDK
EMPTIED = "aws-cdk:auto-delete-objects"  # tag of the buckets that it empties
SUFFIX = 13  # characters at the end of a name

_name, _delete, _add_event = provisioners._physical_name, stacks._delete_resource, stacks._add_event
_delete_existing = handlers._delete_change_set


def install() -> None:
    """Change MiniStack."""
    for action in BY_NAME:
        handlers._ACTION_HANDLERS[action] = _taking_ids(handlers._ACTION_HANDLERS[action])
    handlers._ACTION_HANDLERS["DeleteChangeSet"] = _delete_change_set
    provisioners._physical_name = _physical_name
    stacks._delete_resource = _delete_resource
    stacks._add_event = _add_stack_event
    resources = provisioners._RESOURCE_HANDLERS
    for step in ("create", "update"):
        resources["AWS::S3::Bucket"][step] = _tagging(resources["AWS::S3::Bucket"][step])
    resources["AWS::DynamoDB::Table"].setdefault("update", _update_table)
    resources["AWS::IAM::Policy"] = {
        "create": lambda _id, properties, _stack: _put_role_policy(properties),
        "update": lambda _name, _old, properties, _stack: _put_role_policy(properties),
        "delete": _delete_role_policy,
    }
    resources[EMPTIER] = {
        "create": lambda _id, properties, _stack: (properties["BucketName"], {}),
        "update": lambda name, _old, _new, _stack: (name, {}),
        "delete": _empty_bucket,
    }


def _taking_ids(action: Callable[[Properties], Any]) -> Callable[[Properties], Any]:
    """An action that takes the id of a stack as its StackName (CloudFormation API reference, DeleteStack)."""

    def handle(parameters: Properties) -> Any:
        given = handlers._p(parameters, "StackName")
        names = [name for name, stack in cloudformation._stacks.items() if stack["StackId"] == given]
        return action({**parameters, "StackName": names} if names else parameters)

    return handle


def _delete_change_set(parameters: Properties) -> Any:
    """A change set that is not there counts as deleted. The CDK relies on it in every update."""
    status, *answer = _delete_existing(parameters)
    if status == HTTPStatus.NOT_FOUND:
        return handlers._xml(HTTPStatus.OK, "DeleteChangeSetResponse", "")
    return status, *answer


def _physical_name(stack: str, logical_id: str, *, lowercase: bool = False, **more: Any) -> str:
    """A name that no other stack gave (CloudFormation guide, aws-properties-name): data may be left of it.

    It stays the same while the stack exists.
    """
    name: str = _name(stack, logical_id, lowercase=lowercase, **more)
    stack_id = cloudformation._stacks.get(stack, {}).get("StackId", "")
    suffix = hashlib.sha256(f"{stack_id}:{name}".encode()).hexdigest()[:SUFFIX]
    return name[:-SUFFIX] + (suffix if lowercase else suffix.upper())


def _is_kept(stack_name: str | None, logical_id: str | None) -> bool:
    """Whether a resource outlives its deletion from the stack.

    A template may retain it (CloudFormation guide, aws-attribute-deletionpolicy), or only if its stack was
    created. MiniStack also deletes what an update that failed has changed, where AWS restores it.
    """
    stack = cloudformation._stacks.get(stack_name) or {}
    resource = stack.get("_template", {}).get("Resources", {}).get(logical_id)
    if not resource:
        return False
    policy, status = resource.get("DeletionPolicy"), stack["StackStatus"]
    if policy == "RetainExceptOnCreate":
        return bool(status != "ROLLBACK_IN_PROGRESS")
    return bool(policy == "Retain" or status == "UPDATE_ROLLBACK_IN_PROGRESS")


def _delete_resource(
    kind: str, name: str, properties: Properties, stack: str | None = None, logical_id: str | None = None
) -> None:
    if not _is_kept(stack, logical_id):
        if kind == "AWS::DynamoDB::Table" and dynamodb._tables.get(name, {}).get("DeletionProtectionEnabled"):
            raise ValueError("Resource cannot be deleted as it is currently protected against deletion.")
        _delete(kind, name, properties, stack, logical_id)


def _add_stack_event(
    stack_id: str, stack: str, logical_id: str, kind: str, status: str, *more: Any, **named: Any
) -> None:
    if status.startswith("DELETE_") and _is_kept(stack, logical_id):
        if status == "DELETE_IN_PROGRESS":
            return
        status = "DELETE_SKIPPED"
    _add_event(stack_id, stack, logical_id, kind, status, *more, **named)


def _tagging(step: Callable[..., Created]) -> Callable[..., Created]:
    """Creates or updates a bucket with its tags, which MiniStack leaves out."""

    def handle(*arguments: Any) -> Created:
        name, attributes = step(*arguments)
        *_, properties, _stack = arguments
        s3._bucket_tags[name] = {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
        return name, attributes

    return handle


def _update_table(name: str, _old: Properties, new: Properties, _stack: str) -> Created:
    """Keep the table and its items. Settings of this project's stack change its protection and encryption."""
    dynamodb._tables[name]["DeletionProtectionEnabled"] = new.get("DeletionProtectionEnabled", False)
    return name, {"Arn": dynamodb._tables[name]["TableArn"]}


def _put_role_policy(properties: Properties) -> Created:
    """A policy in each of its roles (CloudFormation guide, AWS::IAM::Policy)."""
    name = properties["PolicyName"]
    for role in properties["Roles"]:
        iam._roles[role]["InlinePolicies"][name] = json.dumps(properties["PolicyDocument"])
    return name, {}


def _delete_role_policy(name: str, properties: Properties) -> None:
    for role in properties["Roles"]:
        if role in iam._roles:
            iam._roles[role]["InlinePolicies"].pop(name, None)


def _empty_bucket(_id: str, properties: Properties) -> None:
    """What the CDK's function does. The update that takes the tag from a bucket must not empty it."""
    name = properties["BucketName"]
    if name in s3._buckets and s3._bucket_tags.get(name, {}).get(EMPTIED) == "true":
        s3._buckets[name]["objects"].clear()
