"""What the roles of the two functions may do, and what they must not be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runs.completion import EVENT_SOURCE, RUN_COMPLETE
from runs.layout import RUNS, partitions

from cxr.doctor import is_local
from cxr.failure_bucket import FOLDER
from cxr.stack import Stack, client
from cxr.verification.check import CheckFailed
from cxr.verification.iam import Request, Statement, Unsupported, allows

JOB_CREATOR, CLASSIFIER = "job creator", "classifier"

# What each function asks for, and AWS in its name. tests/test_verification.py compares it with the template.
BOTH = (
    *("dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:UpdateItem"),
    *("events:PutEvents", "logs:CreateLogStream", "logs:PutLogEvents"),
    *("s3:GetObject", "s3:ListBucket", "xray:PutTelemetryRecords", "xray:PutTraceSegments"),
)
OWN = {
    JOB_CREATOR: ("kinesis:PutRecords",),
    CLASSIFIER: (
        *("dynamodb:BatchGetItem", "s3:PutObject"),
        *("kinesis:DescribeStream", "kinesis:DescribeStreamSummary", "kinesis:GetRecords"),
        *("kinesis:GetShardIterator", "kinesis:ListShards"),
    ),
}
WITH_A_KEY = (
    *("kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"),
    *("kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"),
)
IN_A_NETWORK = (
    *("ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface"),
    *("ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses"),
)


Context = Mapping[str, str | tuple[str, ...]]  # condition key -> value, or values


@dataclass(frozen=True)
class Role:
    """The role of a function, as IAM has it now."""

    function: str  # JOB_CREATOR or CLASSIFIER
    arn: str
    statements: tuple[Statement, ...]  # of its own policies
    attached: tuple[str, ...]  # names of managed policies

    @classmethod
    def read(cls, stack: Stack, function: str) -> Role:
        """Raises ClientError and BotoCoreError."""
        names = {JOB_CREATOR: stack.job_creator, CLASSIFIER: stack.classifier}
        found = client("lambda").get_function_configuration(FunctionName=names[function])
        iam, arn = client("iam"), str(found["Role"])
        role = {"RoleName": arn.rpartition("/")[2]}
        statements: list[Statement] = []
        for page in iam.get_paginator("list_role_policies").paginate(**role):
            for name in page["PolicyNames"]:
                document = iam.get_role_policy(**role, PolicyName=name)["PolicyDocument"]["Statement"]
                statements += document if isinstance(document, list) else [document]
        attached = [
            policy["PolicyName"]
            for page in iam.get_paginator("list_attached_role_policies").paginate(**role)
            for policy in page["AttachedPolicies"]
        ]
        return cls(function, arn, tuple(statements), tuple(attached))


@dataclass(frozen=True)
class Question:
    """A request of a function, and whether its role has to allow it."""

    what: str  # as in "the classifier may delete an image"
    request: Request
    needed: bool


def known_actions(function: str, settings: Mapping[str, Any]) -> set[str]:
    """The actions that the stack allows a function, with these settings of the stack."""
    key = "kmsKey" in settings
    return {
        *BOTH,
        *OWN[function],
        *(WITH_A_KEY if key else ("kms:Decrypt",) if "imagesKmsKey" in settings else ()),
        *(IN_A_NETWORK if settings.get("network") == "isolated" else ()),
    }


def questions(stack: Stack, function: str, role: str) -> Iterator[Question]:
    """What the function needs, and what a hostile image could try if it took the function over."""
    partition, account = role.split(":")[1], role.split(":")[4]
    region = client("lambda").meta.region_name
    images, failures = (
        f"arn:{partition}:s3:::{name}" for name in (stack.images_bucket, stack.failure_bucket)
    )
    image, failed = f"{images}/{stack.prefix}image.png", f"{failures}/{FOLDER}object"
    table = f"arn:{partition}:dynamodb:{region}:{account}:table/{stack.table}"
    stream = f"arn:{partition}:kinesis:{region}:{account}:stream/{stack.stream}"
    bus = f"arn:{partition}:events:{region}:{account}:event-bus/default"
    ours = {"s3:ResourceAccount": account}
    in_prefix = {"s3:prefix": stack.prefix}
    complete = {"events:source": (EVENT_SOURCE,), "events:detail-type": (RUN_COMPLETE,)}
    of_runs = {"dynamodb:LeadingKeys": (RUNS,)}
    of_predictions = {"dynamodb:LeadingKeys": (partitions("run")[0],)}

    def must(what: str, action: str, on: str, context: Context = MappingProxyType({})) -> Question:
        return Question(what, Request(action, on, context), needed=True)

    def never(what: str, action: str, on: str, context: Context = MappingProxyType({})) -> Question:
        return Question(what, Request(action, on, context), needed=False)

    yield must("read an image", "s3:GetObject", image, ours)
    yield must("list the images", "s3:ListBucket", images, in_prefix)
    yield must("read a run", "dynamodb:GetItem", table, of_runs)
    yield must("announce a run", "events:PutEvents", bus, complete)
    yield never("read what is not below the prefix", "s3:GetObject", f"{images}/other/image.png", ours)
    yield never("list what is not below the prefix", "s3:ListBucket", images, {"s3:prefix": ""})
    yield never("read another bucket", "s3:GetObject", f"{images}-2/{stack.prefix}image.png", ours)
    yield never("list all buckets", "s3:ListAllMyBuckets", "*")
    yield never("overwrite an image", "s3:PutObject", image, ours)
    yield never("delete an image", "s3:DeleteObject", image, ours)
    yield never("publish an image", "s3:PutObjectAcl", image, ours)
    yield never("change who may read the images", "s3:PutBucketPolicy", images, ours)
    yield never("read a failure object", "s3:GetObject", failed, ours)
    yield never("delete a failure object", "s3:DeleteObject", failed, ours)
    yield never("scan the table", "dynamodb:Scan", table)
    yield never("delete from the table", "dynamodb:DeleteItem", table, of_runs)
    yield never("delete the table", "dynamodb:DeleteTable", table)
    yield never("read another table", "dynamodb:GetItem", f"{table}-2", of_runs)
    yield never("write another table", "dynamodb:PutItem", f"{table}-2", of_runs)
    yield never("delete the stream", "kinesis:DeleteStream", stream)
    yield never("send other events", "events:PutEvents", bus, complete | {"events:source": ("another",)})
    for action in ("iam:PassRole", "iam:PutRolePolicy", "sts:AssumeRole"):
        yield never(f"call {action}", action, role)
    for action in ("lambda:InvokeFunction", "lambda:UpdateFunctionCode"):
        name = f"arn:{partition}:lambda:{region}:{account}:function:{stack.classifier}"
        yield never(f"call {action}", action, name)
    secret = f"arn:{partition}:secretsmanager:{region}:{account}:secret:any"
    yield never("read a secret", "secretsmanager:GetSecretValue", secret)
    if function == JOB_CREATOR:
        yield must("send jobs", "kinesis:PutRecords", stream)
        yield must("write a run", "dynamodb:PutItem", table, of_runs)
        yield never("write a prediction", "dynamodb:PutItem", table, of_predictions)
        yield never("read jobs", "kinesis:GetRecords", stream)
        yield never("write a failure object", "s3:PutObject", failed, ours)
    else:
        yield must("read jobs", "kinesis:GetRecords", stream)
        yield must("write a prediction", "dynamodb:PutItem", table, of_predictions)
        yield must("count a prediction", "dynamodb:UpdateItem", table, of_runs)
        yield must("write a failure object", "s3:PutObject", failed, ours)
        yield must("find the failure bucket", "s3:ListBucket", failures, ours)
        yield never("send jobs", "kinesis:PutRecords", stream)
        other = {"s3:ResourceAccount": "999999999999"}
        yield never("write a failure object to another account", "s3:PutObject", failed, other)


def check_roles(stack: Stack) -> str:
    """What was asked. Raises CheckFailed if a role allows less or more than the stack gives it."""
    local = is_local()  # where the simulator allows everything
    wrong: list[str] = []
    needed = refused = 0
    for function in (JOB_CREATOR, CLASSIFIER):
        role = Role.read(stack, function)
        asked = list(questions(stack, function, role.arn))
        answers = _evaluated(role, asked) if local else _simulated(role, asked)
        for question, allowed in zip(asked, answers, strict=True):
            if allowed != question.needed:
                wrong.append(f"the {function} {'may' if allowed else 'may not'} {question.what}")
        needed += sum(question.needed for question in asked)
        refused += sum(not question.needed for question in asked)
        wrong += [f"the policy {name} is attached to the role of the {function}" for name in role.attached]
        more = sorted(_allowed_actions(role) - known_actions(function, stack.settings))
        if more:
            wrong.append(f"the role of the {function} allows {', '.join(more)}")
    if wrong:
        raise CheckFailed(
            "; ".join(wrong),
            "let CloudFormation detect the drift of the stack, which finds what was changed by hand; take it "
            "back in IAM, then deploy the stack again by `npx cdk deploy`",
        )
    how = "evaluated here: local AWS has no policy simulator" if local else "by IAM's policy simulator"
    return f"{needed} requests that the functions need are allowed, {refused} others are refused ({how})"


def _allowed_actions(role: Role) -> set[str]:
    """The actions of all statements that allow something; `*` if one allows all but some."""
    found: set[str] = set()
    for statement in role.statements:
        if statement["Effect"] == "Allow":
            actions = statement.get("Action", "*")
            found.update([actions] if isinstance(actions, str) else actions)
    return found


def _simulated(role: Role, asked: list[Question]) -> list[bool]:
    """IAM's own answers. Raises ClientError."""
    iam, answers = client("iam"), []
    for question in asked:
        request = question.request
        context = [
            {
                "ContextKeyName": name,
                "ContextKeyValues": [value] if isinstance(value, str) else list(value),
                "ContextKeyType": "string" if isinstance(value, str) else "stringList",
            }
            for name, value in request.context.items()
        ]
        found = iam.simulate_principal_policy(
            PolicySourceArn=role.arn,
            ActionNames=[request.action],
            ResourceArns=[request.resource],
            ContextEntries=context,
        )["EvaluationResults"]
        answers.append(found[0]["EvalDecision"] == "allowed")
    return answers


def _evaluated(role: Role, asked: list[Question]) -> list[bool]:
    """The answers by the role's own policies. Raises CheckFailed for a form that the stack does not use."""
    try:
        return [allows(question.request, role.statements) for question in asked]
    except (Unsupported, KeyError) as error:
        raise CheckFailed(
            f"the role of the {role.function} has a policy that the stack did not give it ({error})",
            "remove from the role in IAM what was added by hand",
        ) from None
