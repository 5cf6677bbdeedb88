"""stacks/config.py: accepted and refused values of each setting, and settings as they are stored."""

import json
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest

from stacks.config import Config, ConfigError, stack_name

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

BASE_IMAGE = f"public.ecr.aws/lambda/python:3.13@sha256:{'0123456789abcdef' * 4}"

DEFAULTS = {
    "images_bucket": None,
    "images_kms_key": None,
    "kms_key": None,
    "alarm_topic": None,
    "prefix": "cxr-nih/",
    "shards": 1,
    "parallelization_factor": 10,
    "images_per_job": 32,
    "batch_size": 4,
    "batch_window": 0,
    "stream_retention": 24,
    "retries": 10,
    "record_age": 12,
    "warm_throughput": None,
    "memory": 1769,
    "timeout": 120,
    "architecture": "x86_64",
    "base_image": None,
    "model": None,
    "network": "open",
    "arrivals": "off",
    "arrivals_window": 20,
    "arrivals_closing": 2,
    "failure_expiry": 90,
    "log_retention": 30,
    "data": "keep",
}

ROOMY = {
    "timeout": "900",
    "memory": "10240",
    "streamRetention": "8760",
}  # so that the value alone decides


def test_defaults() -> None:
    config = Config.from_context({})
    assert {field.name: getattr(config, field.name) for field in fields(Config)} == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("imagesBucket", "hospital.x-rays", "images_bucket", "hospital.x-rays"),
        ("imagesBucket", "123", "images_bucket", "123"),
        ("prefix", "a/", "prefix", "a/"),
        ("prefix", "Chest X-rays/2024_(new)/", "prefix", "Chest X-rays/2024_(new)/"),
        ("prefix", "a=+@-b/=+@-/", "prefix", "a=+@-b/=+@-/"),
        ("shards", "1", "shards", 1),
        ("shards", "1000", "shards", 1000),
        ("parallelizationFactor", "1", "parallelization_factor", 1),
        ("parallelizationFactor", "10", "parallelization_factor", 10),
        ("imagesPerJob", "1", "images_per_job", 1),
        ("imagesPerJob", "99", "images_per_job", 99),
        ("batchSize", "1", "batch_size", 1),
        ("batchWindow", "0", "batch_window", 0),
        ("batchWindow", "300", "batch_window", 300),
        ("streamRetention", "24", "stream_retention", 24),
        ("streamRetention", "8760", "stream_retention", 8760),
        ("retries", "0", "retries", 0),
        ("retries", "10000", "retries", 10000),
        ("recordAge", "1", "record_age", 1),
        ("recordAge", "168", "record_age", 168),
        ("warmThroughput", "4000", "warm_throughput", 4000),
        ("warmThroughput", "1000000", "warm_throughput", 1_000_000),
        ("memory", "10240", "memory", 10240),
        ("timeout", "900", "timeout", 900),
        ("architecture", "x86_64", "architecture", "x86_64"),
        ("architecture", "arm64", "architecture", "arm64"),
        ("baseImage", BASE_IMAGE, "base_image", BASE_IMAGE),
        ("model", "../our model/v2", "model", "../our model/v2"),
        ("network", "open", "network", "open"),
        ("network", "isolated", "network", "isolated"),
        ("failureExpiry", "1", "failure_expiry", 1),
        ("failureExpiry", "3650", "failure_expiry", 3650),
        ("logRetention", "1", "log_retention", 1),
        ("logRetention", "3653", "log_retention", 3653),
        ("data", "keep", "data", "keep"),
        ("data", "destroy", "data", "destroy"),
    ],
)
def test_accepted(name: str, text: str, field: str, value: object) -> None:
    assert getattr(Config.from_context({**ROOMY, name: text}), field) == value


def test_smallest_classifier() -> None:
    context = {"memory": "1200", "timeout": "30", "batchSize": "1", "imagesPerJob": "67"}
    config = Config.from_context(context)
    assert (config.memory, config.timeout) == (1200, 30)


def test_largest_batch() -> None:
    context = {"timeout": "900", "batchSize": "4450", "imagesPerJob": "1"}
    assert Config.from_context(context).batch_size == 4450


def test_key_of_an_existing_bucket() -> None:
    assert Config.from_context({"imagesBucket": "xrays", "imagesKmsKey": KEY}).images_kms_key == KEY


def test_your_own_key_needs_no_bucket() -> None:
    assert Config.from_context({"kmsKey": KEY}).kms_key == KEY


def test_topic_for_alarms() -> None:
    topic = "arn:aws:sns:eu-west-1:111122223333:on-call"
    assert Config.from_context({"alarmTopic": topic}).alarm_topic == topic


def test_numbers_of_cdk_json_need_no_quotes() -> None:
    assert Config.from_context({"shards": 7}).shards == 7


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("imagesBucket", "", "the plain name of a bucket"),
        ("imagesBucket", "s3://xrays", "the plain name of a bucket"),
        ("imagesBucket", "X-Rays", "the plain name of a bucket"),
        ("imagesBucket", "my..bucket", "the plain name of a bucket"),
        ("imagesBucket", "my.-bucket", "the plain name of a bucket"),
        ("imagesBucket", "192.168.0.1", "the plain name of a bucket"),
        ("imagesBucket", "ab", "the plain name of a bucket"),
        ("imagesBucket", "a" * 64, "the plain name of a bucket"),
        ("imagesKmsKey", "alias/xrays", "the ARN of a KMS key"),
        ("imagesKmsKey", KEY.replace("key/", "alias/"), "the ARN of a KMS key"),
        ("kmsKey", "alias/xrays", "the ARN of a KMS key"),
        ("alarmTopic", "on-call", "the ARN of an SNS topic"),
        ("baseImage", "public.ecr.aws/lambda/python:3.13", "an image by its digest"),
        ("model", "", "a folder"),
        ("prefix", "", "each ending in '/'"),
        ("prefix", "/", "each ending in '/'"),
        ("prefix", "/cxr/", "each ending in '/'"),
        ("prefix", "cxr", "each ending in '/'"),
        ("prefix", "cxr//", "each ending in '/'"),
        ("prefix", "*/", "each ending in '/'"),
        ("prefix", "cxr?/", "each ending in '/'"),
        ("prefix", "${aws:username}/", "each ending in '/'"),
        ("prefix", "cxr/\n", "each ending in '/'"),
        ("prefix", "=cxr/", "not =+@- at the start"),
        ("prefix", "+cxr/", "not =+@- at the start"),
        ("prefix", "@cxr/", "not =+@- at the start"),
        ("prefix", "-cxr/", "not =+@- at the start"),
        ("shards", "0", "1 to 1000"),
        ("shards", "1001", "1 to 1000"),
        ("shards", "five", "1 to 1000"),
        ("shards", "-1", "1 to 1000"),
        ("shards", "2.5", "1 to 1000"),
        ("shards", "1_0", "1 to 1000"),
        ("shards", " 5", "1 to 1000"),
        ("shards", "\u0665", "1 to 1000"),
        ("shards", "9" * 5000, "1 to 1000"),
        ("shards", True, "1 to 1000"),
        ("shards", None, "1 to 1000"),
        ("parallelizationFactor", "0", "1 to 10"),
        ("parallelizationFactor", "11", "1 to 10"),
        ("imagesPerJob", "0", "1 to 99"),
        ("imagesPerJob", "100", "1 to 99"),
        ("batchSize", "0", "1 to 10000"),
        ("batchSize", "10001", "1 to 10000"),
        ("batchWindow", "301", "0 to 300"),
        ("streamRetention", "23", "24 to 8760"),
        ("streamRetention", "8761", "24 to 8760"),
        ("retries", "-1", "0 to 10000"),
        ("retries", "10001", "0 to 10000"),
        ("recordAge", "0", "1 to 168"),
        ("recordAge", "169", "1 to 168"),
        ("warmThroughput", "3999", "4000 to 1000000"),
        ("warmThroughput", "1000001", "4000 to 1000000"),
        ("memory", "1199", "1200 to 10240"),
        ("memory", "10241", "1200 to 10240"),
        ("timeout", "29", "30 to 900"),
        ("timeout", "901", "30 to 900"),
        ("architecture", "amd64", "x86_64 or arm64"),
        ("failureExpiry", "0", "1 to 3650"),
        ("failureExpiry", "3651", "1 to 3650"),
        ("logRetention", "2", "one of (1, 3, 5, 7,"),
        ("logRetention", "0", "one of (1, 3, 5, 7,"),
        ("data", "delete", "keep or destroy"),
    ],
)
def test_refused(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_context({**ROOMY, name: value})
    assert str(error.value).startswith(f"{name}={value}: expected ")
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            {"imagesKmsKey": KEY},
            f"imagesKmsKey={KEY}: expected only together with imagesBucket",
        ),
        (
            {"recordAge": "24"},
            "recordAge=24: expected less than streamRetention=24",
        ),
        (
            {"recordAge": "100", "streamRetention": "48"},
            "recordAge=100: expected less than streamRetention=48",
        ),
        (
            {"batchSize": "100"},
            "batchSize=100 x imagesPerJob=32: expected at most 550 images in an invocation with timeout=120",
        ),
        (
            {"imagesPerJob": "99", "batchSize": "6"},
            "batchSize=6 x imagesPerJob=99: expected at most 550 images in an invocation with timeout=120",
        ),
        (
            {"timeout": "30"},
            "batchSize=4 x imagesPerJob=32: expected at most 100 images in an invocation with timeout=30",
        ),
        (
            {"memory": "1200", "batchSize": "12"},
            "batchSize=12 x imagesPerJob=32: expected at most 373 images in an invocation with timeout=120 "
            "and memory=1200 (295 ms for an image",
        ),
    ],
)
def test_pairs_that_cannot_work(context: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_context(context)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shard", "shards"),
        ("images-bucket", "imagesBucket"),
        ("batchsize", "batchSize"),
        ("imagesKey", "imagesKmsKey"),
        ("stackname", "stackName"),
    ],
)
def test_misspelt_name_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_context({name: "1"})
    assert str(error.value) == f"{name}: no such setting, expected {meant}"


def test_unknown_name_is_refused_with_a_list_of_all_names() -> None:
    with pytest.raises(
        ConfigError, match=r"^colour: no such setting, expected imagesBucket, .*, data, stackName, settings$"
    ):
        Config.from_context({"colour": "red"})


def test_context_of_the_cdk_itself_is_ignored() -> None:
    context = {"@aws-cdk/core:x": True, "aws:cdk:version-reporting": True, "cli-telemetry": False}
    assert Config.from_context(context) == Config()


ALL_SET = Config.from_context(
    {
        "imagesBucket": "hospital",
        "imagesKmsKey": KEY,
        "kmsKey": KEY,
        "prefix": "Chest X-rays/2024_(new)/",
        "shards": "7",
        "parallelizationFactor": "3",
        "imagesPerJob": "9",
        "batchSize": "11",
        "batchWindow": "2",
        "streamRetention": "48",
        "retries": "1",
        "recordAge": "36",
        "warmThroughput": "16000",
        "memory": "3008",
        "timeout": "90",
        "architecture": "arm64",
        "baseImage": BASE_IMAGE,
        "model": "../our model",
        "failureExpiry": "14",
        "logRetention": "400",
        "network": "isolated",
        "arrivals": "on",
        "arrivalsWindow": "30",
        "arrivalsClosing": "5",
        "alarmTopic": "arn:aws:sns:eu-west-1:111122223333:on-call",
        "data": "destroy",
    }
)


@pytest.mark.parametrize("config", [Config(), Config(shards=7), ALL_SET])
@pytest.mark.parametrize(
    "stored",
    [
        dict,
        lambda settings: json.loads(json.dumps(settings)),
        lambda settings: json.loads(json.dumps(settings), parse_int=Decimal),  # as boto3 reads a number
        lambda settings: {name: str(value) for name, value in settings.items()},
    ],
)
def test_settings_are_read_back_as_they_were(config: Config, stored: Any) -> None:
    assert Config.from_settings(stored(config.settings())) == config


def test_settings_have_the_names_of_the_command_line() -> None:
    assert ALL_SET.settings() == ALL_SET.non_default()
    assert len(ALL_SET.settings()) == len(fields(Config))
    assert Config.from_context(ALL_SET.settings()) == ALL_SET


def test_settings_without_a_value_are_left_out() -> None:
    optional = {
        "imagesBucket",
        "imagesKmsKey",
        "kmsKey",
        "baseImage",
        "model",
        "alarmTopic",
        "warmThroughput",
    }
    assert ALL_SET.settings().keys() - Config().settings().keys() == optional


def test_settings_at_their_defaults_are_left_out_of_non_default() -> None:
    assert Config().non_default() == {}
    assert Config(shards=7, batch_size=4).non_default() == {"shards": 7}


def test_settings_of_another_version_are_read_as_far_as_they_are_known() -> None:
    assert Config.from_settings({"shards": 7, "colour": "red"}) == Config(shards=7)


def test_a_stored_setting_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shards=0: expected a whole number, 1 to 1000"):
        Config.from_settings({"shards": Decimal(0)})


@pytest.mark.parametrize("name", ["ChestXray", "a", "A-1", "a" * 128])
def test_stack_name_is_accepted(name: str) -> None:
    assert stack_name({"stackName": name, "shards": "7"}) == name
    assert Config.from_context({"stackName": name, "shards": "7"}) == Config(shards=7)


def test_stack_name_has_a_default() -> None:
    assert stack_name({"shards": "7"}) == "ChestXray"


@pytest.mark.parametrize("name", ["", "1a", "-a", "a_b", "a b", "a.b", "a\n", "\u00e4", "a" * 129])
def test_stack_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        stack_name({"stackName": name})
    assert str(error.value) == (
        f"stackName={name}: expected a letter and then up to 127 letters, digits and hyphens"
    )
