"""stacks/: the template that settings lead to, each permission in it, and `cdk synth` itself."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aws_cdk import App
from aws_cdk.assertions import Template
from cfnlint.api import ManualArgs, lint
from support import ROOT

from stacks.classifier import MODEL_BUNDLE, Model, read_model
from stacks.config import Config, ConfigError
from stacks.inference_stack import InferenceStack

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
EXISTING_BUCKET = ("imagesBucket=hospital", f"imagesKmsKey={KEY}", "prefix=chest/")

MAPPING = "AWS::Lambda::EventSourceMapping"
JOB_CREATOR = {"Handler": "handler.handle"}
CLASSIFIER = {"PackageType": "Image"}

# Each setting, and where it arrives.
SETTINGS = {
    "prefix=chest/": ("AWS::Lambda::Function", {"Environment": {"Variables": {"KEY_PREFIX": "chest/"}}}),
    "shards=7": ("AWS::Kinesis::Stream", {"ShardCount": 7}),
    "parallelizationFactor=3": (MAPPING, {"ParallelizationFactor": 3}),
    "imagesPerJob=9": ("AWS::Lambda::Function", {"Environment": {"Variables": {"IMAGES_PER_JOB": "9"}}}),
    "batchSize=11": (MAPPING, {"BatchSize": 11}),
    "batchWindow=2": (MAPPING, {"MaximumBatchingWindowInSeconds": 2}),
    "streamRetention=48": ("AWS::Kinesis::Stream", {"RetentionPeriodHours": 48}),
    "retries=1": (MAPPING, {"MaximumRetryAttempts": 1}),
    "recordAge=36": (MAPPING, {"MaximumRecordAgeInSeconds": 36 * 3600}),
    "memory=3008": ("AWS::Lambda::Function", CLASSIFIER | {"MemorySize": 3008}),
    "timeout=90": ("AWS::Lambda::Function", CLASSIFIER | {"Timeout": 90}),
    "architecture=arm64": ("AWS::Lambda::Function", CLASSIFIER | {"Architectures": ["arm64"]}),
    "failureExpiry=14": (
        "AWS::S3::Bucket",
        {"LifecycleConfiguration": {"Rules": [{"ExpirationInDays": 14, "Status": "Enabled"}]}},
    ),
    "logRetention=400": ("AWS::Logs::LogGroup", {"RetentionInDays": 400}),
}


CHANGED = (*SETTINGS, "data=destroy")


class Synthesized(NamedTuple):
    template: Template
    folder: Path  # the cloud assembly, with its assets


Synth = Callable[..., Synthesized]


@pytest.fixture(scope="module")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Synth:
    """synth("shards=3", ...), done once for the same settings: it takes the CDK a second."""

    @cache
    def synthesize(*settings: str) -> Synthesized:
        folder = tmp_path_factory.mktemp("cdk.out")
        # The CDK's own rules take five seconds; test_synth_needs_... has them on.
        flags = json.loads((ROOT / "cdk.json").read_text())["context"]
        flags["@aws-cdk/core:validateAgainstDefaultRules"] = False
        app = App(context=flags, outdir=str(folder))
        config = Config.from_context(dict(setting.split("=") for setting in settings))
        return Synthesized(Template.from_stack(InferenceStack(app, "ChestXray", config=config)), folder)

    return synthesize


@pytest.fixture
def template(synth: Synth) -> Template:
    """The template of the default settings."""
    return synth().template


def readable(value: Any) -> Any:
    """Replaces intrinsic functions by text, as in "StorageTable.Arn", logical ids without their hashes."""
    match value:
        case {"Ref": str(logical_id)}:
            return re.sub("[0-9A-F]{8}$", "", logical_id)
        case {"Fn::GetAtt": [logical_id, attribute]}:
            return f"{readable({'Ref': logical_id})}.{attribute}"
        case {"Fn::Join": [separator, parts]}:
            return separator.join(map(readable, parts))
        case dict():
            return {key: readable(item) for key, item in value.items()}
        case list():
            return [readable(item) for item in value]
    return value


def allowed(template: Template, role: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every statement of a role: actions, resource, conditions."""
    policies = readable(template.find_resources("AWS::IAM::Policy"))
    return [
        (
            statement["Action"] if isinstance(statement["Action"], str) else " ".join(statement["Action"]),
            statement["Resource"],
            statement.get("Condition", {}),
        )
        for policy in policies.values()
        if policy["Properties"]["Roles"] == [role]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
    ]


def test_resources(template: Template) -> None:
    """Nothing is deployed that is not listed here."""
    counts = Counter(resource["Type"] for resource in template.to_json()["Resources"].values())
    assert counts == {
        "AWS::S3::Bucket": 2,
        "AWS::S3::BucketPolicy": 2,
        "AWS::DynamoDB::Table": 1,
        "AWS::Kinesis::Stream": 1,
        "AWS::Lambda::Function": 2,
        "AWS::Lambda::EventSourceMapping": 1,
        "AWS::Logs::LogGroup": 2,
        "AWS::IAM::Role": 2,
        "AWS::IAM::Policy": 2,
    }


def test_buckets_are_private_and_encrypted(template: Template) -> None:
    template.all_resources_properties(
        "AWS::S3::Bucket",
        {
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": True,
                "BlockPublicPolicy": True,
                "IgnorePublicAcls": True,
                "RestrictPublicBuckets": True,
            },
            "BucketEncryption": {
                "ServerSideEncryptionConfiguration": [
                    {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
                ]
            },
        },
    )


def test_buckets_answer_over_tls_only(template: Template) -> None:
    policies = readable(template.find_resources("AWS::S3::BucketPolicy")).values()
    assert {policy["Properties"]["Bucket"] for policy in policies} == {"StorageImages", "JobsFailures"}
    for policy in policies:
        bucket = policy["Properties"]["Bucket"]
        assert policy["Properties"]["PolicyDocument"]["Statement"] == [
            {
                "Effect": "Deny",
                "Principal": {"AWS": "*"},
                "Action": "s3:*",
                "Resource": [f"{bucket}.Arn", f"{bucket}.Arn/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ]


def test_only_failures_expire(template: Template) -> None:
    buckets = readable(template.find_resources("AWS::S3::Bucket")).values()
    rules = [bucket["Properties"].get("LifecycleConfiguration") for bucket in buckets]
    assert rules == [None, {"Rules": [{"ExpirationInDays": 90, "Status": "Enabled"}]}]


def test_table(template: Template) -> None:
    template.has_resource_properties(
        "AWS::DynamoDB::Table",
        {
            "BillingMode": "PAY_PER_REQUEST",
            "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
            "KeySchema": [
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            "AttributeDefinitions": [
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
        },
    )


def test_stream(template: Template) -> None:
    template.has_resource_properties(
        "AWS::Kinesis::Stream",
        {
            "StreamModeDetails": {"StreamMode": "PROVISIONED"},
            "ShardCount": 5,
            "RetentionPeriodHours": 24,
            "StreamEncryption": {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"},
        },
    )


def test_job_creator(template: Template) -> None:
    (function,) = readable(
        template.find_resources("AWS::Lambda::Function", {"Properties": JOB_CREATOR})
    ).values()
    assert function["Properties"]["Runtime"] == "python3.14"
    assert function["Properties"]["Timeout"] == 900
    assert function["Properties"]["MemorySize"] == 1769
    model = read_model(MODEL_BUNDLE)
    assert function["Properties"]["Environment"]["Variables"] == {
        "BUCKET_NAME": "StorageImages",
        "KEY_PREFIX": "cxr-nih/",
        "TABLE_NAME": "StorageTable",
        "STREAM_NAME": "JobsStream",
        "IMAGES_PER_JOB": "32",
        "MODEL": model.name,
        "MODEL_SHA256": model.sha256,
    }


def test_classifier(template: Template) -> None:
    (function,) = readable(
        template.find_resources("AWS::Lambda::Function", {"Properties": CLASSIFIER})
    ).values()
    assert function["Properties"]["Architectures"] == ["x86_64"]
    assert function["Properties"]["Timeout"] == 120
    assert function["Properties"]["MemorySize"] == 1769
    assert function["Properties"]["Environment"]["Variables"] == {
        "BUCKET_NAME": "StorageImages",
        "TABLE_NAME": "StorageTable",
    }


def test_mapping(template: Template) -> None:
    (mapping,) = readable(template.find_resources(MAPPING)).values()
    assert mapping["Properties"] == {
        "EventSourceArn": "JobsStream.Arn",
        "FunctionName": "ClassifierFunction",
        "StartingPosition": "TRIM_HORIZON",
        "ParallelizationFactor": 10,
        "BatchSize": 4,
        "MaximumBatchingWindowInSeconds": 0,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "BisectBatchOnFunctionError": True,
        "MaximumRetryAttempts": 5,
        "MaximumRecordAgeInSeconds": 12 * 3600,
        "DestinationConfig": {"OnFailure": {"Destination": "JobsFailures.Arn"}},
    }


def test_each_function_logs_to_a_group_of_its_own(template: Template) -> None:
    functions = readable(template.find_resources("AWS::Lambda::Function")).values()
    groups = {function["Properties"]["LoggingConfig"]["LogGroup"] for function in functions}
    assert groups == {"ClassifierRoleLogs", "JobCreatorRoleLogs"}
    template.all_resources(
        "AWS::Logs::LogGroup", {"Properties": {"RetentionInDays": 30}, "DeletionPolicy": "Delete"}
    )


def test_what_the_job_creator_may_do(template: Template) -> None:
    assert allowed(template, "JobCreatorRole") == [
        ("logs:CreateLogStream logs:PutLogEvents", "JobCreatorRoleLogs.Arn", {}),
        ("s3:GetObject", "StorageImages.Arn/cxr-nih/*", {}),
        ("s3:ListBucket", "StorageImages.Arn", {"StringLike": {"s3:prefix": "cxr-nih/*"}}),
        (
            "dynamodb:GetItem dynamodb:PutItem dynamodb:Query dynamodb:UpdateItem",
            "StorageTable.Arn",
            {},
        ),
        ("kinesis:PutRecords", "JobsStream.Arn", {}),
        (
            "events:PutEvents",
            "arn:AWS::Partition:events:AWS::Region:AWS::AccountId:event-bus/default",
            {"StringEquals": {"events:source": "chest-xray-inference"}},
        ),
    ]


def test_what_the_classifier_may_do(template: Template) -> None:
    own_account = {"StringEquals": {"s3:ResourceAccount": "AWS::AccountId"}}
    assert allowed(template, "ClassifierRole") == [
        ("logs:CreateLogStream logs:PutLogEvents", "ClassifierRoleLogs.Arn", {}),
        ("s3:GetObject", "StorageImages.Arn/cxr-nih/*", {}),
        ("s3:ListBucket", "StorageImages.Arn", {"StringLike": {"s3:prefix": "cxr-nih/*"}}),
        (
            "dynamodb:BatchGetItem dynamodb:GetItem dynamodb:PutItem dynamodb:Query dynamodb:UpdateItem",
            "StorageTable.Arn",
            {},
        ),
        (
            "events:PutEvents",
            "arn:AWS::Partition:events:AWS::Region:AWS::AccountId:event-bus/default",
            {"StringEquals": {"events:source": "chest-xray-inference"}},
        ),
        (
            "kinesis:DescribeStream kinesis:DescribeStreamSummary kinesis:GetRecords "
            "kinesis:GetShardIterator kinesis:ListShards",
            "JobsStream.Arn",
            {},
        ),
        ("s3:PutObject", "JobsFailures.Arn/*", own_account),
        ("s3:ListBucket", "JobsFailures.Arn", own_account),
    ]


def test_roles_have_no_other_policies(template: Template) -> None:
    for role in template.find_resources("AWS::IAM::Role").values():
        assert role["Properties"].keys() == {"AssumeRolePolicyDocument"}


@pytest.mark.parametrize("role", ["JobCreatorRole", "ClassifierRole"])
def test_existing_bucket_is_read_under_its_prefix_alone(synth: Synth, role: str) -> None:
    template = synth(*EXISTING_BUCKET).template
    template.resource_count_is("AWS::S3::Bucket", 1)
    template.resource_count_is("AWS::S3::BucketPolicy", 1)
    bucket = "arn:AWS::Partition:s3:::hospital"
    on_bucket = [statement for statement in allowed(template, role) if statement[1].startswith((bucket, KEY))]
    assert on_bucket == [
        ("s3:GetObject", f"{bucket}/chest/*", {}),
        ("s3:ListBucket", bucket, {"StringLike": {"s3:prefix": "chest/*"}}),
        ("kms:Decrypt", KEY, {"StringLike": {"kms:ViaService": "s3.*"}}),
    ]
    assert template.find_outputs("ImagesBucketName")["ImagesBucketName"]["Value"] == "hospital"


def test_every_setting_is_looked_for() -> None:
    elsewhere = {"imagesBucket", "imagesKmsKey", "data"}  # test_existing_bucket_..., test_data_is_kept_...
    assert len(SETTINGS) + len(elsewhere) == len(Config.__dataclass_fields__)


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_reaches_the_template(synth: Synth, setting: str) -> None:
    resource_type, properties = SETTINGS[setting]
    synth(*CHANGED).template.has_resource_properties(resource_type, properties)


@pytest.mark.parametrize(("settings", "platform"), [((), "linux/amd64"), (CHANGED, "linux/arm64")])
def test_image_is_built_for_the_architecture(synth: Synth, settings: tuple[str, ...], platform: str) -> None:
    assets = json.loads((synth(*settings).folder / "ChestXray.assets.json").read_text())
    assert [image["source"]["platform"] for image in assets["dockerImages"].values()] == [platform]


def test_zip_holds_the_job_creator_alone(synth: Synth) -> None:
    (handler,) = synth().folder.glob("asset.*/handler.py")
    sources = {path.name for path in (ROOT / "lambdas" / "job_creator").glob("*.py")}
    assert {path.name for path in handler.parent.iterdir()} == sources


@pytest.mark.parametrize(("settings", "policy"), [((), "Retain"), (CHANGED, "Delete")])
def test_data_is_kept_unless_told_otherwise(synth: Synth, settings: tuple[str, ...], policy: str) -> None:
    template = synth(*settings).template
    for resource_type in ("AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::DynamoDB::Table"):
        template.all_resources(resource_type, {"DeletionPolicy": policy, "UpdateReplacePolicy": policy})
    template.resource_count_is("Custom::S3AutoDeleteObjects", 2 if policy == "Delete" else 0)
    template.has_resource("AWS::Kinesis::Stream", {"DeletionPolicy": "Delete"})


def test_outputs(template: Template) -> None:
    outputs = readable(template.find_outputs("*"))
    assert {name: output["Value"] for name, output in outputs.items()} == {
        "ImagesBucketName": "StorageImages",
        "KeyPrefix": "cxr-nih/",
        "JobCreatorName": "JobCreatorFunction",
        "StartRun": "aws lambda invoke --function-name JobCreatorFunction "
        "--payload fileb://events/create-jobs-100.json --cli-read-timeout 0 out.json",
        "StreamName": "JobsStream",
        "ClassifierName": "ClassifierFunction",
        "MappingId": "ClassifierMapping",
        "TableName": "StorageTable",
        "FailureBucketName": "JobsFailures",
    }
    assert all(output["Description"] for output in outputs.values())


@pytest.mark.parametrize("settings", [(), EXISTING_BUCKET])
def test_cfn_lint_finds_nothing(synth: Synth, settings: tuple[str, ...]) -> None:
    # W3005: the CDK writes out dependencies that a reference implies.
    text = (synth(*settings).folder / "ChestXray.template.json").read_text()
    assert lint(text, config=ManualArgs(ignore_checks=["W3005"])) == []


def bundle(folder: Path, **card: str) -> Path:
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def test_model_is_named_by_its_card(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"onnx").hexdigest()
    bundle(tmp_path, name="lite", version="1.2.0", sha256=sha256)
    assert read_model(tmp_path) == Model(name="lite:1.2.0", sha256=sha256)


def test_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected model\.json .*, but FileNotFoundError: .*model\.json"):
        read_model(tmp_path)


def test_model_without_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="but KeyError: 'version'"):
        read_model(bundle(tmp_path, name="lite", sha256="0"))


def test_model_other_than_its_card_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected model\.onnx with SHA-256 0, found"):
        read_model(bundle(tmp_path, name="lite", version="1.2.0", sha256="0"))


def test_wrong_setting_stops_the_app_in_one_line() -> None:
    env = os.environ | {"CDK_CONTEXT_JSON": '{"shards": "0"}'}
    app = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert app.returncode == 1
    # The last line, because the CDK may have warned about the age of Node.js before.
    assert app.stderr.splitlines()[-1] == (
        "Error: shards=0: expected a whole number, 1 to 1000 "
        "(shards of the Kinesis stream, some 11 dollars a month each)"
    )
    assert "Traceback" not in app.stderr


def test_synth_needs_no_credentials_no_network_no_docker(tmp_path: Path) -> None:
    npx = shutil.which("npx")
    if not npx or not (ROOT / "node_modules").exists():
        pytest.skip("needs Node.js and `npm ci`")
    offline = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"]).returncode != 0:
        offline = []  # elsewhere than on Linux, or not allowed: without this part of the proof
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CDK_DOCKER": "false"}
    subprocess.run(
        [*offline, npx, "cdk", "synth", "--quiet", "--output", str(tmp_path)], cwd=ROOT, env=env, check=True
    )
    assert (tmp_path / "ChestXray.template.json").exists()
