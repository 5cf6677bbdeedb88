"""IAM's decision on a request, for the policy elements that the roles of the stack use.

An element, an operator or a form that is unknown here raises Unsupported. The rules are those of the IAM user
guide; each names its page.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Statement = Mapping[str, Any]  # of a policy document, its intrinsic functions resolved

ELEMENTS = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}


class Unsupported(Exception):
    """A policy contains something that this module cannot evaluate."""


@dataclass(frozen=True)
class Request:
    """One action that a principal asks for."""

    action: str  # "s3:GetObject"
    resource: str  # an ARN; "*" for an action without resources
    # Condition key -> its value, or the values of a key that can have several.
    context: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict, hash=False)


def allows(
    request: Request,
    policy: Iterable[Statement],
    *,
    resource_policy: Iterable[Statement] = (),
    principal: str = "",
) -> bool:
    """Whether IAM allows a request of a principal (an ARN) with an identity policy, within one account.

    A Deny in any policy decides. Without one, either policy may allow (reference_policies_evaluation-logic).
    Raises Unsupported.
    """
    effects = {statement["Effect"] for statement in policy if applies(statement, request)} | {
        statement["Effect"]
        for statement in resource_policy
        if _names(statement["Principal"], principal) and applies(statement, request)
    }
    if not effects <= {"Allow", "Deny"}:
        raise Unsupported(f"Effect {effects}")
    return effects == {"Allow"}


def applies(statement: Statement, request: Request) -> bool:
    """Whether action, resource and every condition match. Raises Unsupported, even if one does not match."""
    if unknown := statement.keys() - ELEMENTS:
        raise Unsupported(f"element {', '.join(sorted(unknown))}")
    # Lists, so that each part is evaluated and can raise. One action, one resource and one value of each key
    # must match, and all conditions (reference_policies_condition-logic-multiple-context-keys-or-values).
    actions = [_action(pattern, request.action) for pattern in _list(statement["Action"])]
    resources = [_resource(pattern, request.resource) for pattern in _list(statement["Resource"])]
    conditions = [
        _condition(operator, key, _list(values), request)
        for operator, wanted in statement.get("Condition", {}).items()
        for key, values in wanted.items()
    ]
    return any(actions) and any(resources) and all(conditions)


def single(statement: Statement) -> Iterator[Statement]:
    """The statement in parts, each with one action, one resource and one value for each condition key."""
    conditions = [
        (operator, key, _list(values))
        for operator, wanted in statement.get("Condition", {}).items()
        for key, values in wanted.items()
    ]
    values = product(*(values for _, _, values in conditions))
    for action, resource, chosen in product(_list(statement["Action"]), _list(statement["Resource"]), values):
        condition: dict[str, dict[str, str]] = {}
        for (operator, key, _), value in zip(conditions, chosen, strict=True):
            condition.setdefault(operator, {})[key] = value
        yield {
            "Effect": statement["Effect"],
            "Action": action,
            "Resource": resource,
            **({"Condition": condition} if condition else {}),
        }


def _action(pattern: str, action: str) -> bool:
    """Whether the pattern matches, without regard to case (reference_policies_elements_action)."""
    return _like(pattern.lower(), action.lower())


def _resource(pattern: str, resource: str) -> bool:
    """Whether the pattern matches, with regard to case (reference_policies_elements_resource).

    Wildcards are supported in the last segment of an ARN, where a `*` at the end also matches colons.
    """
    if pattern != "*":
        *head, name = pattern.split(":", maxsplit=5)
        if re.search(r"[*?]", "".join(head)) or len(head) != 5 or "*" in name[:-1]:
            raise Unsupported(f"resource {pattern}")
    return _like(_plain(pattern), resource)


def _condition(operator: str, key: str, values: list[str], request: Request) -> bool:
    """Whether a condition holds (reference_policies_elements_condition, ..._condition_operators).

    The case of a key's name does not matter. A key that the request lacks fulfils only ForAllValues
    (reference_policies_condition-single-vs-multi-valued-context-keys).
    """
    *qualifier, name = operator.split(":")
    if name not in OPERATORS or qualifier not in ([], ["ForAllValues"]):
        raise Unsupported(f"condition operator {operator}")
    if "Not" in name and len(values) > 1:
        raise Unsupported(f"condition operator {operator} with several values")
    wanted = [_plain(value) for value in values]
    given = {name.lower(): value for name, value in request.context.items()}.get(key.lower())
    if given is None:
        return bool(qualifier)
    if isinstance(given, str) == bool(qualifier):
        raise Unsupported(f"condition operator {operator} for {key}: one value or several")
    each = [given] if isinstance(given, str) else given
    return all(any(OPERATORS[name](value, one) for value in wanted) for one in each)


def _like(pattern: str, text: str) -> bool:
    wildcards = {"*": ".*", "?": "."}
    return bool(re.fullmatch("".join(wildcards.get(c, re.escape(c)) for c in pattern), text, re.DOTALL))


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": str.__eq__,
    "StringLike": _like,
    "StringNotLike": lambda wanted, given: not _like(wanted, given),
    "Bool": lambda wanted, given: wanted.lower() == given.lower(),
}


def _names(principal: Any, arn: str) -> bool:
    """Whether the Principal of a resource policy includes the ARN (reference_policies_elements_principal)."""
    match principal:
        case "*" | {"AWS": "*"}:
            return True
        case {"AWS": str(named)} if named.startswith("arn:") and not named.endswith(":root"):
            return named == arn
        case {"Service": str()}:
            return False  # a service is not a role
    raise Unsupported(f"Principal {principal}")


def _plain(text: str) -> str:
    """The text. Raises Unsupported for one with a variable, `${...}` (reference_policies_variables)."""
    if not isinstance(text, str) or "$" in text:
        raise Unsupported(f"value {text}")
    return text


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
