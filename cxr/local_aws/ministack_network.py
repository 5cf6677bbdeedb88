"""What MiniStack lacks for `network=isolated`. It is created, and has no effect."""

from __future__ import annotations

import uuid
from typing import Any

from ministack.services.cloudformation import provisioners  # type: ignore[import-untyped]

KINDS = (
    "AWS::EC2::FlowLog",
    "AWS::EC2::SecurityGroupEgress",
    "AWS::EC2::SecurityGroupIngress",
    "AWS::Route53Resolver::FirewallDomainList",
    "AWS::Route53Resolver::FirewallRuleGroup",
    "AWS::Route53Resolver::FirewallRuleGroupAssociation",
)


def install() -> None:
    """Change MiniStack."""
    for kind in KINDS:
        provisioners._RESOURCE_HANDLERS[kind] = {"create": _create, "update": _update, "delete": _delete}


def _create(logical_id: str, _properties: dict[str, Any], _stack: str) -> tuple[str, dict[str, str]]:
    number = f"{logical_id}-{uuid.uuid4().hex[:8]}"
    return number, {"Id": number}


def _update(number: str, *_: Any) -> tuple[str, dict[str, str]]:
    return number, {"Id": number}


def _delete(_number: str, _properties: dict[str, Any]) -> None:
    """Nothing is there."""
