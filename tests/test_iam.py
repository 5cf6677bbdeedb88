"""tests/iam.py: it evaluates each policy element as IAM documents it, and refuses the others."""

from typing import Any

import pytest

from cxr.verification.iam import Request, Statement, Unsupported, allows, single

OBJECT = "arn:aws:s3:::images/cxr-nih/a.png"
ROLE = "arn:aws:iam::123456789012:role/Classifier"


def allow(action: Any = "s3:GetObject", resource: Any = OBJECT, **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any = "s3:GetObject") -> dict[str, Any]:
    return allow(action) | {"Effect": "Deny"}


def get(resource: str = OBJECT, **context: Any) -> Request:
    """A GetObject request. `__` in a condition key means a colon."""
    return Request("s3:GetObject", resource, {key.replace("__", ":"): v for key, v in context.items()})


def when(operator: str, **keys: Any) -> dict[str, Any]:
    return {"Condition": {operator: {key.replace("__", ":"): value for key, value in keys.items()}}}


class TestDecision:
    """reference_policies_evaluation-logic"""

    @pytest.mark.parametrize(
        ("policy", "allowed"),
        [
            ([], False),
            ([allow()], True),
            ([allow("s3:PutObject"), allow()], True),
            ([allow(), deny()], False),
            ([deny(), allow()], False),
            ([deny("s3:PutObject"), allow()], True),
            ([deny()], False),
        ],
    )
    def test_only_what_a_statement_allows_is_allowed_and_a_deny_decides(
        self, policy: list[Statement], allowed: bool
    ) -> None:
        assert allows(get(), policy) is allowed

    @pytest.mark.parametrize(
        ("principal", "applies"),
        [
            ("*", True),
            ({"AWS": "*"}, True),
            ({"AWS": ROLE}, True),
            ({"AWS": f"{ROLE}2"}, False),
            ({"Service": "logging.s3.amazonaws.com"}, False),
        ],
    )
    def test_a_resource_policy_applies_to_its_principals(self, principal: Any, applies: bool) -> None:
        def decision(policy: list[Statement], statement: dict[str, Any]) -> bool:
            return allows(
                get(), policy, resource_policy=[statement | {"Principal": principal}], principal=ROLE
            )

        assert decision([], allow()) is applies
        assert decision([allow()], deny()) is not applies


class TestAction:
    """reference_policies_elements_action"""

    @pytest.mark.parametrize(
        ("pattern", "matches"),
        [
            ("s3:GetObject", True),
            ("S3:getobject", True),
            ("s3:*", True),
            ("*", True),
            ("s3:Get*", True),
            ("s3:G?tObject", True),
            (["s3:PutObject", "s3:GetObject"], True),
            ("s3:GetObject?", False),
            ("s3:GetObjectVersion", False),
            ("s3:Get", False),
            ("s3express:*", False),
            ("s3.GetObject", False),
            ([], False),
        ],
    )
    def test_case_does_not_matter_and_wildcards_match(self, pattern: Any, matches: bool) -> None:
        assert allows(get(), [allow(pattern)]) is matches


class TestResource:
    """reference_policies_elements_resource"""

    @pytest.mark.parametrize(
        ("pattern", "matches"),
        [
            (OBJECT, True),
            ("*", True),
            ("arn:aws:s3:::*", True),
            ("arn:aws:s3:::images/*", True),
            ("arn:aws:s3:::images/cxr-nih/?.png", True),
            (["arn:aws:s3:::other", OBJECT], True),
            ("arn:aws:s3:::images/cxr-nih/", False),
            ("arn:aws:s3:::images/CXR-NIH/*", False),
            ("arn:aws:s3:::image/*", False),
            ("arn:aws:s3:::images/cxr-nih/a?png?", False),
            ("arn:aws:s3:::images/cxr.nih/*", False),
        ],
    )
    def test_case_matters_and_wildcards_match(self, pattern: Any, matches: bool) -> None:
        assert allows(get(), [allow(resource=pattern)]) is matches

    def test_a_wildcard_matches_line_breaks_and_colons(self) -> None:
        assert allows(get(f"{OBJECT}\n:b"), [allow(resource="arn:aws:s3:::images/*")])

    def test_an_action_without_resources_needs_the_wildcard(self) -> None:
        trace = Request("xray:PutTraceSegments", "*")
        assert allows(trace, [allow("xray:PutTraceSegments", "*")])
        assert not allows(
            trace, [allow("xray:PutTraceSegments", "arn:aws:xray:us-east-1:123456789012:group/*")]
        )


class TestCondition:
    """reference_policies_elements_condition_operators, reference_policies_condition-logic-multiple-..."""

    @pytest.mark.parametrize(
        ("condition", "context", "holds"),
        [
            (when("StringEquals", s3__prefix="a/"), {"s3__prefix": "a/"}, True),
            (when("StringEquals", S3__PREFIX="a/"), {"s3__prefix": "a/"}, True),
            (when("StringEquals", s3__prefix="a/"), {"s3__prefix": "A/"}, False),
            (when("StringEquals", s3__prefix="a/*"), {"s3__prefix": "a/b"}, False),
            (when("StringEquals", s3__prefix="a/"), {}, False),
            (when("StringEquals", s3__prefix=["a/", "b/"]), {"s3__prefix": "b/"}, True),
            (when("StringEquals", s3__prefix=[]), {"s3__prefix": "b/"}, False),
            (when("StringLike", s3__prefix="a/*"), {"s3__prefix": "a/b/c"}, True),
            (when("StringLike", s3__prefix="a/*"), {"s3__prefix": "a"}, False),
            (when("StringLike", s3__prefix="a/*"), {"s3__prefix": "A/b"}, False),
            (when("StringLike", s3__prefix="?/"), {"s3__prefix": "a/"}, True),
            (when("StringLike", s3__prefix="*"), {}, False),
            (when("Bool", aws__SecureTransport="false"), {"aws__SecureTransport": "false"}, True),
            (when("Bool", aws__SecureTransport="False"), {"aws__securetransport": "false"}, True),
            (when("Bool", aws__SecureTransport="false"), {"aws__SecureTransport": "true"}, False),
            (when("Bool", aws__SecureTransport="false"), {}, False),
        ],
    )
    def test_one_operator(self, condition: dict[str, Any], context: dict[str, str], holds: bool) -> None:
        assert allows(get(**context), [allow(**condition)]) is holds

    @pytest.mark.parametrize(
        ("context", "holds"),
        [
            ({"a": ("1",)}, True),
            ({"a": ("1", "2", "1")}, True),
            ({"a": ("1", "3")}, False),
            ({"a": ()}, True),
            ({}, True),
        ],
    )
    def test_all_values_of_a_key_that_can_have_several(self, context: dict[str, Any], holds: bool) -> None:
        """reference_policies_condition-single-vs-multi-valued-context-keys"""
        condition = when("ForAllValues:StringEquals", a=["1", "2"])
        assert allows(get(**context), [allow(**condition)]) is holds

    @pytest.mark.parametrize(
        ("context", "holds"),
        [
            ({"a": "1", "b": "2", "c": "3"}, True),
            ({"a": "1", "b": "2"}, False),
            ({"b": "2", "c": "3"}, False),
        ],
    )
    def test_all_keys_of_all_operators_must_match(self, context: dict[str, str], holds: bool) -> None:
        condition = {"StringEquals": {"a": "1", "b": "2"}, "StringLike": {"c": "?"}}
        assert allows(get(**context), [allow(Condition=condition)]) is holds


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ({"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}, "NotAction"),
        ({"Effect": "Allow", "Action": "*", "NotResource": OBJECT}, "NotResource"),
        (allow(NotPrincipal="*"), "NotPrincipal"),
        (allow() | {"Effect": "allow"}, "Effect"),
        (allow(resource="arn:aws:s3:::images/${aws:username}/*"), "value"),
        (allow(resource="arn:*:s3:::images/*"), "resource"),
        (allow(resource="arn:aws:s3:::images/*/a.png"), "resource"),
        (allow(resource="images"), "resource"),
        (allow(**when("StringEquals", a="${aws:username}")), "value"),
        (allow(**when("Bool", a=True)), "value"),
        (allow(**when("StringNotEquals", a="1")), "StringNotEquals"),
        (allow(**when("StringEqualsIfExists", a="1")), "StringEqualsIfExists"),
        (allow(**when("ForAnyValue:StringEquals", a="1")), "ForAnyValue:StringEquals"),
        (allow(**when("ForAllValues:StringEquals", a="1")), "ForAllValues:StringEquals for a"),
        (allow(**when("StringEquals", several="1")), "StringEquals for several"),
        (allow(**when("Null", a="true")), "Null"),
        (allow(**when("ArnLike", a="*")), "ArnLike"),
    ],
)
def test_unknown_elements_are_unsupported(statement: dict[str, Any], what: str) -> None:
    with pytest.raises(Unsupported, match=what):
        allows(get(a="1", several=("1", "2")), [statement])


@pytest.mark.parametrize(
    "principal",
    [{"AWS": "arn:aws:iam::123456789012:root"}, {"AWS": "123456789012"}, {"AWS": [ROLE]}, {"Federated": "x"}],
)
def test_unknown_principals_are_unsupported(principal: Any) -> None:
    with pytest.raises(Unsupported, match="Principal"):
        allows(get(), [], resource_policy=[allow(Principal=principal)], principal=ROLE)


def test_a_statement_in_parts() -> None:
    statement = allow(["s3:A", "s3:B"], OBJECT, **when("StringLike", a=["1", "2"], b="3"))
    assert list(single(statement)) == [
        allow(action, OBJECT, **when("StringLike", a=value, b="3"))
        for action in ("s3:A", "s3:B")
        for value in ("1", "2")
    ]
    assert list(single(allow())) == [allow()]
