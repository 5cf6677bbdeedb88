"""stacks/: the template of the stack for each setting, and `cdk synth` itself."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App
from aws_cdk.assertions import Match, Template
from aws_cdk.aws_dynamodb import Attribute, AttributeType, Table
from aws_cdk.aws_kinesis import Stream
from cfnlint.api import ManualArgs, lint
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from constructs import Construct
from support import ROOT
from synth import synth, synthesize

from stacks import inference_stack, job_stream, storage
from stacks.classifier import Model, bundle_folder, read_model
from stacks.config import Config, ConfigError
from stacks.image_context import SHIPPED
from stacks.job_stream import JobStream
from stacks.storage import PrivateBucket, Storage

pytestmark = pytest.mark.xdist_group("stack")  # they share templates, and loading the CDK takes seconds

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OWN_KEY = "arn:aws:kms:eu-west-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
TOPIC = "arn:aws:sns:eu-west-1:111122223333:on-call"
EXISTING_BUCKET = ("imagesBucket=hospital", f"imagesKmsKey={KEY}", "prefix=chest/")

MAPPING = "AWS::Lambda::EventSourceMapping"
JOB_CREATOR = {"Handler": "job_creator.handler.handle"}
CLASSIFIER = {"PackageType": "Image"}

# Each setting, and the property that it sets.
SETTINGS = {
    f"kmsKey={OWN_KEY}": ("AWS::Logs::LogGroup", {"KmsKeyId": OWN_KEY}),
    f"alarmTopic={TOPIC}": ("AWS::CloudWatch::Alarm", {"AlarmActions": [TOPIC]}),
    "prefix=chest/": ("AWS::Lambda::Function", {"Environment": {"Variables": {"KEY_PREFIX": "chest/"}}}),
    "shards=7": ("AWS::Kinesis::Stream", {"ShardCount": 7}),
    "parallelizationFactor=3": (MAPPING, {"ParallelizationFactor": 3}),
    "imagesPerJob=9": ("AWS::Lambda::Function", {"Environment": {"Variables": {"IMAGES_PER_JOB": "9"}}}),
    "batchSize=11": (MAPPING, {"BatchSize": 11}),
    "batchWindow=2": (MAPPING, {"MaximumBatchingWindowInSeconds": 2}),
    "streamRetention=48": ("AWS::Kinesis::Stream", {"RetentionPeriodHours": 48}),
    "retries=1": (MAPPING, {"MaximumRetryAttempts": 1}),
    "recordAge=36": (MAPPING, {"MaximumRecordAgeInSeconds": 36 * 3600}),
    "warmThroughput=16000": (
        "AWS::DynamoDB::Table",
        {"WarmThroughput": {"WriteUnitsPerSecond": 16000}},
    ),
    "memory=3008": ("AWS::Lambda::Function", CLASSIFIER | {"MemorySize": 3008}),
    "timeout=90": ("AWS::Lambda::Function", CLASSIFIER | {"Timeout": 90}),
    "architecture=arm64": ("AWS::Lambda::Function", CLASSIFIER | {"Architectures": ["arm64"]}),
    "network=isolated": (
        "AWS::Lambda::Function",
        CLASSIFIER | {"VpcConfig": {"SecurityGroupIds": [Match.any_value()]}},
    ),
    "arrivals=on": (MAPPING, {"BatchSize": 500, "ScalingConfig": {"MaximumConcurrency": 2}}),
    "arrivalsWindow=30": (MAPPING, {"MaximumBatchingWindowInSeconds": 30}),
    "arrivalsClosing=5": ("AWS::Events::Rule", {"ScheduleExpression": "cron(0 5 * * ? *)"}),
    "failureExpiry=14": (
        "AWS::S3::Bucket",
        {
            "LifecycleConfiguration": {
                "Rules": [Match.object_like({"ExpirationInDays": 14, "Status": "Enabled"})]
            }
        },
    ),
    "logRetention=400": ("AWS::Logs::LogGroup", {"RetentionInDays": 400}),
}

CHANGED = (*SETTINGS, "data=destroy")

# The resources that hold data, by logical id, with the properties that CloudFormation cannot change in place.
# If a test with them fails, then the deployment of your change creates a new and empty resource.
STRING = {"AttributeType": "S"}
IRREPLACEABLE: dict[str, dict[str, Any]] = {
    "StorageAccessLogs96FB524C": {"Type": "AWS::S3::Bucket"},
    "StorageImagesCFC0E004": {"Type": "AWS::S3::Bucket"},
    "JobsFailures01350C66": {"Type": "AWS::S3::Bucket"},
    "JobsStream4599A5F2": {"Type": "AWS::Kinesis::Stream"},
    "StorageTableB43FDCE7": {
        "Type": "AWS::DynamoDB::Table",
        "KeySchema": [
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        "AttributeDefinitions": [{"AttributeName": "pk"} | STRING, {"AttributeName": "sk"} | STRING],
    },
}


@pytest.fixture
def template() -> Template:
    """The template of the default settings."""
    return synth().template


def readable(value: Any) -> Any:
    """A template with text like "StorageTable.Arn" for intrinsic functions, logical ids without hashes."""
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


def test_resources(template: Template) -> None:
    """The stack contains these resources and no others."""
    counts = Counter(resource["Type"] for resource in template.to_json()["Resources"].values())
    assert counts == {
        "AWS::S3::Bucket": 3,
        "AWS::S3::BucketPolicy": 3,
        "AWS::DynamoDB::Table": 1,
        "AWS::Kinesis::Stream": 1,
        "AWS::Lambda::Function": 2,
        "AWS::Lambda::EventSourceMapping": 1,
        "AWS::Lambda::EventInvokeConfig": 1,
        "AWS::Logs::LogGroup": 2,
        "AWS::IAM::Role": 2,
        "AWS::IAM::Policy": 2,
        "AWS::CloudWatch::Alarm": 11,
        "AWS::CloudWatch::Dashboard": 1,
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
            "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        },
    )


def test_buckets_refuse_requests_without_tls(template: Template) -> None:
    policies = readable(template.find_resources("AWS::S3::BucketPolicy")).values()
    statements = {
        policy["Properties"]["Bucket"]: policy["Properties"]["PolicyDocument"]["Statement"]
        for policy in policies
    }
    assert statements.keys() == {"StorageImages", "JobsFailures", "StorageAccessLogs"}
    for bucket, (tls_only, *others) in statements.items():
        assert tls_only == {
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Action": "s3:*",
            "Resource": [f"{bucket}.Arn", f"{bucket}.Arn/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        assert others == [] or bucket == "StorageAccessLogs"


def test_s3_logs_requests_for_images_and_failures(template: Template) -> None:
    buckets = template.find_resources("AWS::S3::Bucket")
    logging = readable(buckets["StorageImagesCFC0E004"]["Properties"]["LoggingConfiguration"])
    assert logging == {"DestinationBucketName": "StorageAccessLogs", "LogFilePrefix": "Images/"}
    logging = readable(buckets["JobsFailures01350C66"]["Properties"]["LoggingConfiguration"])
    assert logging == {"DestinationBucketName": "StorageAccessLogs", "LogFilePrefix": "Failures/"}
    assert "LoggingConfiguration" not in buckets["StorageAccessLogs96FB524C"]["Properties"]


def test_only_s3_writes_access_logs_and_only_for_these_buckets(template: Template) -> None:
    policy = readable(template.find_resources("AWS::S3::BucketPolicy"))["StorageAccessLogsPolicyB327A790"]
    _tls_only, *allowed = policy["Properties"]["PolicyDocument"]["Statement"]
    assert allowed == [
        {
            "Effect": "Allow",
            "Principal": {"Service": "logging.s3.amazonaws.com"},
            "Action": "s3:PutObject",
            "Resource": f"StorageAccessLogs.Arn/{folder}/*",
            "Condition": {
                "ArnLike": {"aws:SourceArn": f"{bucket}.Arn"},
                "StringEquals": {"aws:SourceAccount": "AWS::AccountId"},
            },
        }
        for folder, bucket in (("Images", "StorageImages"), ("Failures", "JobsFailures"))
    ]


def test_images_never_expire_and_parts_of_interrupted_uploads_do(template: Template) -> None:
    rules = {
        name: bucket["Properties"].get("LifecycleConfiguration", {}).get("Rules")
        for name, bucket in template.find_resources("AWS::S3::Bucket").items()
    }
    abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}, "Status": "Enabled"}
    ninety_days = [abort | {"ExpirationInDays": 90}]
    assert rules == {
        "StorageImagesCFC0E004": [abort],
        "StorageAccessLogs96FB524C": ninety_days,
        "JobsFailures01350C66": ninety_days,
    }


def test_table(template: Template) -> None:
    template.has_resource_properties(
        "AWS::DynamoDB::Table",
        {
            "BillingMode": "PAY_PER_REQUEST",
            "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
            "DeletionProtectionEnabled": True,
        },
    )


def test_stream(template: Template) -> None:
    template.has_resource_properties(
        "AWS::Kinesis::Stream",
        {
            "StreamModeDetails": {"StreamMode": "PROVISIONED"},
            "ShardCount": 1,
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
    variables = function["Properties"]["Environment"]["Variables"]
    run_fields = json.loads(variables.pop("RUN_FIELDS"))
    assert variables == {
        "BUCKET_NAME": "StorageImages",
        "KEY_PREFIX": "cxr-nih/",
        "TABLE_NAME": "StorageTable",
        "STREAM_NAME": "JobsStream",
        "IMAGES_PER_JOB": "32",
    }
    card = json.loads((SHIPPED / "model.json").read_text())
    assert run_fields == {
        "model": f"{card['name']}:{card['version']}",
        "model_sha256": card["sha256"],
        "labels": card["labels"],
        "settings": {
            "prefix": "cxr-nih/",
            "shards": 1,
            "parallelizationFactor": 10,
            "imagesPerJob": 32,
            "batchSize": 4,
            "batchWindow": 0,
            "streamRetention": 24,
            "retries": 10,
            "recordAge": 12,
            "memory": 1769,
            "timeout": 120,
            "architecture": "x86_64",
        },
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
        "MaximumRetryAttempts": 10,
        "MaximumRecordAgeInSeconds": 12 * 3600,
        "DestinationConfig": {"OnFailure": {"Destination": "JobsFailures.Arn"}},
        "MetricsConfig": {"Metrics": ["EventCount"]},
    }


@pytest.mark.parametrize("settings", [(), ("data=destroy",)])  # which adds a function of the CDK
def test_each_function_has_its_own_log_group(settings: tuple[str, ...]) -> None:
    template = synth(*settings).template
    functions = readable(template.find_resources("AWS::Lambda::Function")).values()
    groups = {function["Properties"]["LoggingConfig"]["LogGroup"] for function in functions}
    assert groups == {"ClassifierRoleLogs", "JobCreatorRoleLogs"} | ({"StorageLogs"} if settings else set())
    template.resource_count_is("AWS::Logs::LogGroup", len(functions))
    template.all_resources(
        "AWS::Logs::LogGroup", {"Properties": {"RetentionInDays": 30}, "DeletionPolicy": "Delete"}
    )


def test_lambda_does_not_retry_the_job_creator(template: Template) -> None:
    """A retry would continue a run that was cancelled during its listing."""
    template.has_resource_properties(
        "AWS::Lambda::EventInvokeConfig",
        {
            "FunctionName": {"Ref": Match.string_like_regexp("^JobCreator")},
            "MaximumRetryAttempts": 0,
        },
    )


def test_your_own_key_encrypts_all_that_is_stored() -> None:
    template = synth(f"kmsKey={OWN_KEY}").template
    encrypted = {
        name: OWN_KEY in json.dumps(resource["Properties"])
        for name, resource in readable(template.to_json()["Resources"]).items()
        if resource["Type"].split("::")[1] in ("S3", "DynamoDB", "Kinesis", "Logs", "Lambda")
    }
    assert {name for name, by_key in encrypted.items() if not by_key} == {
        "StorageAccessLogs96FB524C",  # S3 delivers access logs only to a bucket with S3's own key
        *(name for name in encrypted if re.search("Policy|Mapping|InvokeConfig|Filter", name)),
    }
    template.has_resource_properties(
        "AWS::DynamoDB::Table",
        {"SSESpecification": {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": OWN_KEY}},
    )
    template.has_resource_properties(
        "AWS::Kinesis::Stream", {"StreamEncryption": {"EncryptionType": "KMS", "KeyId": OWN_KEY}}
    )
    template.resource_properties_count_is("AWS::Lambda::Function", {"KmsKeyArn": OWN_KEY}, 2)
    template.resource_properties_count_is("AWS::Logs::LogGroup", {"KmsKeyId": OWN_KEY}, 2)
    by_key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": OWN_KEY}
    rule = {"BucketKeyEnabled": True, "ServerSideEncryptionByDefault": by_key}
    encryption = {"BucketEncryption": {"ServerSideEncryptionConfiguration": [rule]}}
    template.resource_properties_count_is("AWS::S3::Bucket", encryption, 2)


def test_roles_have_no_other_policies(template: Template) -> None:
    for role in template.find_resources("AWS::IAM::Role").values():
        assert role["Properties"].keys() == {"AssumeRolePolicyDocument"}


def test_the_stack_creates_no_bucket_beside_an_existing_one() -> None:
    template = synth(*EXISTING_BUCKET).template
    template.resource_count_is("AWS::S3::Bucket", 2)
    template.resource_count_is("AWS::S3::BucketPolicy", 2)
    assert template.find_outputs("ImagesBucketName")["ImagesBucketName"]["Value"] == "hospital"


def test_every_setting_has_a_test() -> None:
    # test_existing_bucket_..., test_image_is_built_..., test_data_is_kept_...
    elsewhere = {"imagesBucket", "imagesKmsKey", "baseImage", "model", "data"}
    assert len(SETTINGS) + len(elsewhere) == len(Config.__dataclass_fields__)


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_reaches_the_template(setting: str) -> None:
    resource_type, properties = SETTINGS[setting]
    synth(*CHANGED).template.has_resource_properties(resource_type, properties)


@pytest.mark.parametrize(("settings", "platform"), [((), "linux/amd64"), (CHANGED, "linux/arm64")])
def test_image_is_built_for_the_architecture(settings: tuple[str, ...], platform: str) -> None:
    assets = json.loads((synth(*settings).folder / "ChestXray.assets.json").read_text())
    assert [image["source"]["platform"] for image in assets["dockerImages"].values()] == [platform]


def test_image_is_built_on_the_base_of_the_setting() -> None:
    base = f"public.ecr.aws/lambda/python:3.13@sha256:{'0' * 64}"
    (image,) = json.loads((synth(f"baseImage={base}").folder / "ChestXray.assets.json").read_text())[
        "dockerImages"
    ].values()
    assert image["source"]["dockerBuildArgs"] == {"BASE_IMAGE": base}


def test_zip_holds_only_the_job_creator_and_the_run_protocol() -> None:
    (handler,) = synth().folder.glob("asset.*/job_creator/handler.py")
    sources = ROOT / "lambdas"
    assert files_in(handler.parents[1]) == {path.relative_to(sources) for path in sources.rglob("*.py")}


def test_image_is_built_only_from_the_classifier_and_the_run_protocol() -> None:
    (dockerfile,) = synth().folder.glob("asset.*/containers/classifier/Dockerfile")
    folder = ROOT / "containers" / "classifier"
    expected = {
        ROOT / ".dockerignore",
        folder / "Dockerfile",
        folder / "requirements.txt",
        folder / "model" / "model.json",
        folder / "model" / "model.onnx",
        folder / "classifier" / "frontal_chest.png",
        *(folder / "classifier").glob("*.py"),
        *(ROOT / "lambdas" / "runs").glob("*.py"),
    }
    assert files_in(dockerfile.parents[2]) == {path.relative_to(ROOT) for path in expected}


def files_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("settings", "policy", "replaced"),
    [((), "RetainExceptOnCreate", "Retain"), (CHANGED, "Delete", "Delete")],
)
def test_data_is_kept_unless_the_setting_says_destroy(
    settings: tuple[str, ...], policy: str, replaced: str
) -> None:
    template = synth(*settings).template
    for resource_type in ("AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::DynamoDB::Table"):
        template.all_resources(resource_type, {"DeletionPolicy": policy, "UpdateReplacePolicy": replaced})
    protected = {"DeletionProtectionEnabled": policy != "Delete"}
    template.all_resources_properties("AWS::DynamoDB::Table", protected)
    template.resource_count_is("Custom::S3AutoDeleteObjects", 3 if policy == "Delete" else 0)
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
        "AccessLogsBucketName": "StorageAccessLogs",
        "Settings": json.dumps(Config().settings()),
        "OnDelete": "Deleting the stack keeps its buckets and its table. To delete them: "
        "aws dynamodb update-table --no-deletion-protection-enabled --table-name StorageTable; "
        "aws dynamodb delete-table --table-name StorageTable; aws s3 rb --force s3://JobsFailures; "
        "aws s3 rb --force s3://StorageAccessLogs; aws s3 rb --force s3://StorageImages",
    }
    assert all(output["Description"] for output in outputs.values())


def test_settings_are_read_back_from_the_output() -> None:
    for settings in (CHANGED, EXISTING_BUCKET):
        output = synth(*settings).template.find_outputs("Settings")["Settings"]["Value"]
        given = Config.from_context(dict(setting.split("=") for setting in settings))
        assert Config.from_settings(json.loads(output)) == given


def test_the_stack_says_what_stays_after_deleting_it() -> None:
    def on_delete(*settings: str) -> str:
        return str(readable(synth(*settings).template.find_outputs("OnDelete"))["OnDelete"]["Value"])

    assert on_delete(*CHANGED) == (
        "Deleting the stack deletes its buckets and its table with everything in them."
    )
    assert "s3://JobsFailures" in on_delete(*EXISTING_BUCKET)
    assert "hospital" not in on_delete(*EXISTING_BUCKET)  # no command deletes a bucket that was there before


@pytest.mark.parametrize("settings", [CHANGED, (f"kmsKey={OWN_KEY}", "data=destroy")])
def test_cfn_lint_finds_nothing(settings: tuple[str, ...]) -> None:
    """With settings together. `make audit` checks the default stack, and single settings."""
    # W3005: the CDK also writes dependencies that a reference implies.
    text = (synth(*settings).folder / "ChestXray.template.json").read_text()
    assert lint(text, config=ManualArgs(ignore_checks=["W3005"])) == []


def irreplaceable(template: Template) -> dict[str, dict[str, Any]]:
    """The resources that hold data, by logical id: type, and properties that cannot be changed in place."""
    resources = template.to_json()["Resources"].items()
    return {
        name: {"Type": resource["Type"]}
        | {
            key: resource["Properties"][key]
            for key in fixed(resource["Type"])
            if key in resource["Properties"]
        }
        for name, resource in resources
        if resource["Type"] in ("AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::Kinesis::Stream")
    }


def fixed(resource_type: str) -> set[str]:
    """The properties of a type that CloudFormation cannot change in place, by CloudFormation's schema."""
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource_type).schema
    pointers = schema["createOnlyProperties"] + schema.get("conditionalCreateOnlyProperties", [])
    # A new type of a key attribute replaces the table too, but the schema does not say so.
    types = {"AttributeDefinitions"} if resource_type == "AWS::DynamoDB::Table" else set()
    return types | {pointer.split("/")[2] for pointer in pointers}


@pytest.mark.parametrize("settings", [(), CHANGED])
def test_no_setting_replaces_a_resource_with_data(settings: tuple[str, ...]) -> None:
    assert irreplaceable(synth(*settings).template) == IRREPLACEABLE


def test_an_existing_bucket_replaces_only_the_images() -> None:
    others = {name: value for name, value in IRREPLACEABLE.items() if name != "StorageImagesCFC0E004"}
    assert irreplaceable(synth(*EXISTING_BUCKET).template) == others


@pytest.mark.parametrize(
    ("module", "construct", "change"),
    [
        (inference_stack, Storage, {}),
        (inference_stack, JobStream, {}),
        (storage, PrivateBucket, {}),
        (storage, Table, {"partition_key": Attribute(name="run", type=AttributeType.STRING)}),
        (storage, Table, {"sort_key": Attribute(name="sk", type=AttributeType.BINARY)}),
        (storage, Table, {"table_name": "predictions"}),
        (job_stream, Stream, {"stream_name": "jobs"}),
    ],
)
def test_a_change_that_replaces_data_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, construct: Any, change: dict[str, Any]
) -> None:
    def changed(scope: Construct, construct_id: str, **properties: Any) -> Any:
        return construct(scope, construct_id if change else f"{construct_id}2", **properties | change)

    monkeypatch.setattr(module, construct.__name__, changed)
    assert irreplaceable(synthesize(tmp_path).template) != IRREPLACEABLE


def test_two_stacks_of_one_account_share_no_name(tmp_path: Path) -> None:
    """CloudFormation chooses every name, which begins with the name of the stack."""
    template = synth(*CHANGED).template.to_json()
    first = json.dumps(template)
    other = json.dumps(synthesize(tmp_path, *CHANGED, name="Other").template.to_json())
    permissions = r"AllowEventRule(?:ChestXray|Other)(\w+?)[0-9A-F]{8,16}\b"  # of EventBridge, by path
    first, other = (re.sub(permissions, r"AllowEventRule\1", text) for text in (first, other))
    assert json.loads(other.replace('"Other/', '"ChestXray/')) == json.loads(first)  # tags of the network
    assert [name for name, resource in template["Resources"].items() if is_named(resource)] == []


def is_named(resource: dict[str, Any]) -> bool:
    """Whether a template gives the whole of a resource's name."""
    if resource["Type"].startswith("Custom::"):
        return False
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource["Type"]).schema
    names = [pointer.split("/")[2] for pointer in schema["primaryIdentifier"]]
    return all(isinstance(resource["Properties"].get(name), str) for name in names)


def test_a_name_that_the_template_gives_is_noticed() -> None:
    dashboard = {"Type": "AWS::CloudWatch::Dashboard", "Properties": {"DashboardName": "runs"}}
    assert is_named(dashboard)


def test_the_model_of_the_setting_is_in_the_image_and_pins_the_runs(tmp_path: Path) -> None:
    """The rest of the image is as with the model that ships."""
    shutil.copy(SHIPPED / "model.onnx", tmp_path)
    card = json.loads((SHIPPED / "model.json").read_text()) | {"name": "own"}
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "notes.txt").write_text("not for the image")
    found = synth(f"model={tmp_path}")
    (dockerfile,) = found.folder.glob("asset.*/containers/classifier/Dockerfile")
    (default,) = synth().folder.glob("asset.*/containers/classifier/Dockerfile")
    context, default = dockerfile.parents[2], default.parents[2]
    assert files_in(context) == files_in(default)
    other = {
        file for file in files_in(context) if (context / file).read_bytes() != (default / file).read_bytes()
    }
    assert other == {Path("containers/classifier/model/model.json")}
    (function,) = found.template.find_resources("AWS::Lambda::Function", {"Properties": JOB_CREATOR}).values()
    fields = json.loads(function["Properties"]["Environment"]["Variables"]["RUN_FIELDS"])
    assert (fields["model"], fields["model_sha256"]) == (f"own:{card['version']}", card["sha256"])


def test_the_shipped_model_by_its_folder_changes_no_asset(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "copy")

    def assets(*settings: str) -> set[str]:
        return {path.name for path in synth(*settings).folder.glob("asset.*")}

    assert assets(f"model={tmp_path / 'copy'}") == assets(f"model={SHIPPED}") == assets()


def test_a_models_folder_is_looked_for_in_the_projects() -> None:
    assert bundle_folder(Config()) == SHIPPED
    assert bundle_folder(Config(model="models/own")) == ROOT / "models" / "own"
    assert bundle_folder(Config(model="/models/own")) == Path("/models/own")
    assert bundle_folder(Config(model="~/own")) == Path.home() / "own"


def test_a_model_that_the_classifier_would_refuse_stops_the_app(tmp_path: Path) -> None:
    card = json.loads((SHIPPED / "model.json").read_text())
    del card["version"]
    (tmp_path / "model.json").write_text(json.dumps(card | {"labels": []}))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ConfigError) as refused:
        read_model(tmp_path)
    first, *problems = str(refused.value).splitlines()
    assert first == "model: 4 problems:"
    assert [problem.rpartition(str(tmp_path))[2].partition(":")[0] for problem in problems] == [
        "/model.json",
        "/model.json",
        "/model.json",
        "/model.onnx",
    ]


def test_model_with_too_many_labels_for_lambda_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deploy(labels: int) -> None:
        names = [{"name": f"finding number {number:03}", "threshold": 0.123} for number in range(labels)]
        model = Model(name="wide:1.0.0", sha256="0" * 64, labels=names)
        monkeypatch.setattr(inference_stack, "read_model", lambda _: model)
        synthesize(tmp_path)

    deploy(40)
    message = (
        r"^the model's labels and the settings: expected at most 4096 bytes of environment variables "
        r"\(Lambda's limit\), found \d{4}; use fewer or shorter labels, or a shorter prefix$"
    )
    with pytest.raises(ConfigError, match=message):
        deploy(60)


def test_wrong_setting_stops_the_app_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, which has loaded the CDK. Python prints the text of a SystemExit, and exits with 1.
    monkeypatch.setattr("aws_cdk.App", partial(App, context={"shards": "0"}))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "app.py"))
    assert stopped.value.code == (
        "Error: shards=0: expected a whole number, 1 to 1000 "
        "(shards of the Kinesis stream; each costs about 11 dollars a month)"
    )


@pytest.mark.slow
def test_lambda_can_read_the_assets_of_a_clone_made_under_a_strict_umask(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("stacks", "lambdas", "containers"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", ".dockerignore"):
        shutil.copy(ROOT / name, clone)
    for path in clone.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    env = os.environ | {"CDK_OUTDIR": str(tmp_path / "out"), "CDK_CONTEXT_JSON": json.dumps(flags)}
    subprocess.run([sys.executable, "app.py"], cwd=clone, env=env, check=True, umask=0o077)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("asset.*/**/*")}
    assert len(modes) > 50
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}


@pytest.mark.slow
def test_synth_needs_no_credentials_no_network_no_docker(tmp_path: Path) -> None:
    npx = shutil.which("npx")
    if not npx or not (ROOT / "node_modules").exists():
        pytest.skip("needs Node.js and `npm ci`")
    offline = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"]).returncode != 0:
        offline = []  # not on Linux, or not allowed: the test cannot take the network away
    # An empty home has no settings of a person, but also no unpacked library of the CDK, which takes long.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CDK_DOCKER": "false",
        "JSII_RUNTIME_PACKAGE_CACHE_ROOT": str(cache / "aws" / "jsii" / "package-cache"),
    }
    synth = [npx, "cdk", "synth", "--quiet", "--output", str(tmp_path), "-c", "stackName=Other"]
    subprocess.run([*offline, *synth], cwd=ROOT, env=env, check=True)
    assert (tmp_path / "Other.template.json").exists()
