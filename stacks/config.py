"""Every setting of the stack: its default, unit and allowed values, and which pairs cannot work together.

A setting has the name of its field in camelCase: imagesPerJob. `settings_file.py` reads the file that keeps
settings, and the CDK takes them as `-c imagesPerJob=16`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Self

# The values that CloudWatch Logs takes (API reference, PutRetentionPolicy).
LOG_RETENTION_DAYS = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365),
    *(400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653),
)

# The longest time that one vCPU may take to fetch, decode and score an image. A DenseNet-121 in fp32 stays
# under it on a slow processor, and the default model takes a fraction of it.
IMAGE_MS = 200
ONE_VCPU_MB = (
    1769  # Lambda's CPU grows with memory (its guide, configuration-memory); scoring uses one thread
)
# An image of 50 megapixels takes up to 820 MB, and the files that are fetched ahead up to 350. In
# tests/test_memory.py a classifier has all of them at once.
LEAST_MB = 1200
STOP_SECONDS = 10  # the classifier stops this long before its deadline, to report the jobs that are not done

STACK_NAME = "stackName"  # two stacks in one account need two names
FILE_SETTING = "settings"  # the file that keeps the settings
APP_SETTINGS = (STACK_NAME, FILE_SETTING)  # of the app, not of a stack
DEFAULT_NAME = "ChestXray"  # of the stack

# The settings that bear on how a run goes. Every run records them.
RUN_SETTINGS = (
    *("prefix", "shards", "parallelizationFactor", "imagesPerJob", "batchSize", "batchWindow"),
    *("streamRetention", "retries", "recordAge", "memory", "timeout", "architecture"),
)

# What the CDK itself puts into the context without a colon in its name.
CDK_CONTEXT = {"acknowledged-issue-numbers", "cli-telemetry"}


class ConfigError(ValueError):
    """A setting or a model that cannot be deployed. The message is one line for the user."""


def _number(default: int | None, allowed: range | tuple[int, ...], doc: str) -> Any:
    """A setting that is a whole number in `allowed`; `doc` names its unit."""
    span = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else f"one of {allowed}"

    def parse(text: str) -> int | None:
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and int(text) in allowed else None

    return field(default=default, metadata={"parse": parse, "allowed": f"a whole number, {span}", "doc": doc})


def _text(default: str | None, pattern: str, allowed: str, doc: str) -> Any:
    """A setting that is text and matches the whole of `pattern`; `allowed` says the pattern in words."""

    def parse(text: str) -> str | None:
        return text if re.fullmatch(pattern, text) else None

    return field(default=default, metadata={"parse": parse, "allowed": allowed, "doc": doc})


def _choice(default: str, *others: str, doc: str) -> Any:
    """A setting that is one of a few words."""
    words = (default, *others)
    return _text(default, "|".join(words), " or ".join(words), doc)


def _key(doc: str) -> Any:
    """A setting that is a KMS key."""
    return _text(
        None,
        r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+",
        "the ARN of a KMS key, arn:aws:kms:REGION:ACCOUNT:key/ID",
        doc,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings. Where AWS has an upper limit, it is the limit here.

    Raises ConfigError for a pair of settings that cannot work together.
    """

    images_bucket: str | None = _text(
        None,
        # S3 user guide, bucketnamingrules: no empty label, none with a hyphen at its end, no IP address.
        r"(?!\d+\.\d+\.\d+\.\d+$)(?=.{3,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*",
        "the plain name of a bucket",
        "existing bucket with the images; the stack only reads it. Without this, the stack creates a bucket",
    )
    images_kms_key: str | None = _key("KMS key that the existing imagesBucket is encrypted with")
    kms_key: str | None = _key("your own KMS key: it encrypts all that the stack stores except access logs")
    # IAM policies contain the prefix: `*`, `?` and `$` would be wildcards and variables there. Every key
    # begins with it: a spreadsheet would read a key that begins with any of =+@- as a formula.
    prefix: str = _text(
        "cxr-nih/",
        r"(?![=+@-])([A-Za-z0-9 !_.()=+@,-]+/)+",
        "folders of letters, digits, spaces and !_.()=+@,- each ending in '/'; not =+@- at the start",
        "prefix of every image's key; the functions can read only the objects under it",
    )
    shards: int = _number(
        1, range(1, 1001), "shards of the Kinesis stream; each costs about 11 dollars a month"
    )
    parallelization_factor: int = _number(
        10, range(1, 11), "classifiers that Lambda runs at the same time for one shard"
    )
    images_per_job: int = _number(
        32, range(1, 100), "images in one job; one DynamoDB transaction takes 99 and their counter"
    )
    batch_size: int = _number(
        4, range(1, 10_001), "maximum number of jobs in one invocation of the classifier"
    )
    batch_window: int = _number(0, range(301), "seconds that Lambda waits to fill a batch")
    stream_retention: int = _number(
        24, range(24, 8761), "hours that the stream keeps a job; the first 24 are free"
    )
    retries: int = _number(
        # While AWS is throttled or broken, each retry lasts for the time-out: ten of them for 18 minutes.
        10,
        range(10_001),
        "retries before Lambda writes a failing job to the failure bucket",
    )
    record_age: int = _number(
        12, range(1, 169), "hours before Lambda writes a waiting job to the failure bucket"
    )
    warm_throughput: int | None = _number(
        None,
        range(4000, 1_000_001),
        "write units a second that the table takes from the start; AWS charges for raising it, once, and it "
        "cannot be lowered again. Without this, 4000 for a new table",
    )
    memory: int = _number(
        ONE_VCPU_MB,
        range(LEAST_MB, 10_241),
        f"MB for one classifier; {ONE_VCPU_MB} MB come with one vCPU. The largest image needs {LEAST_MB}",
    )
    timeout: int = _number(120, range(30, 901), "seconds that one invocation of the classifier may take")
    # arm64 costs less. There, the import of ONNX Runtime aborted in Lambda (onnxruntime#10038) until 2026
    # (onnxruntime#28230). Its speed, and scores in 8 bits, were not measured.
    architecture: str = _choice("x86_64", "arm64", doc="processor of the classifier and of its image")
    base_image: str | None = _text(
        None,
        r"[a-z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}",
        "an image by its digest, NAME@sha256: and 64 hex digits",
        "base of the classifier's image, by digest: `make base-image` prints the newest. Without this, the "
        "one for Python 3.13 that Docker finds when it first builds the image",
    )
    model: str | None = _text(
        None,
        r"[^\x00-\x1f\x7f]+",
        "a folder",
        "folder with the model.json and model.onnx that score; a relative one is looked for in the project's "
        "folder. Without this, the model that ships",
    )
    network: str = _choice(
        "open",
        "isolated",
        doc="isolated: the functions run in a network that leads only to the AWS services they use; about 29 "
        "dollars a month",
    )
    arrivals: str = _choice(
        "off",
        "on",
        doc="on: images that arrive under the prefix are scored without anybody starting a run",
    )
    arrivals_window: int = _number(
        20, range(301), "seconds that arrivals wait for others, so that a job holds several"
    )
    arrivals_closing: int = _number(
        2, range(1, 24), "hours after midnight (UTC) at which the standing run of the day before is closed"
    )
    failure_expiry: int = _number(90, range(1, 3651), "days that the failure bucket keeps an object")
    log_retention: int = _number(30, LOG_RETENTION_DAYS, "days that CloudWatch keeps the functions' logs")
    alarm_topic: str | None = _text(
        None,
        r"arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}",
        "the ARN of an SNS topic, arn:aws:sns:REGION:ACCOUNT:NAME",
        "SNS topic that CloudWatch notifies when an alarm starts and when it ends",
    )
    data: str = _choice(
        "keep", "destroy", doc="what `cdk destroy` does with images, predictions and failed jobs"
    )

    def __post_init__(self) -> None:
        if self.images_kms_key and not self.images_bucket:
            raise ConfigError(
                f"imagesKmsKey={self.images_kms_key}: expected only together with imagesBucket "
                "(S3 encrypts a bucket that the stack creates with its own key, or with kmsKey)"
            )
        if self.record_age >= self.stream_retention:
            raise ConfigError(
                f"recordAge={self.record_age}: expected less than streamRetention={self.stream_retention} "
                "(hours; Lambda writes no failure object for a job that has left the stream)"
            )
        image_ms = IMAGE_MS * max(1, ONE_VCPU_MB / self.memory)
        max_images = int((self.timeout - STOP_SECONDS) * 1000 / image_ms)
        if self.batch_size * self.images_per_job > max_images:
            raise ConfigError(
                f"batchSize={self.batch_size} x imagesPerJob={self.images_per_job}: expected at most "
                f"{max_images} images in an invocation with timeout={self.timeout} and memory={self.memory} "
                f"({image_ms:.0f} ms for an image, and {STOP_SECONDS} s to stop)"
            )

    @classmethod
    def from_context(cls, context: Mapping[str, object]) -> Self:
        """The settings in a CDK context. Missing ones have their defaults.

        Raises ConfigError for an unknown name, a value that is not allowed, or a pair that cannot work.
        """
        known = [*map(context_name, (setting.name for setting in fields(cls))), *APP_SETTINGS]
        for name in context:
            if ":" not in name and name not in known and name not in CDK_CONTEXT:
                meant = get_close_matches(name, known, n=1) or known
                raise ConfigError(f"{name}: no such setting, expected {', '.join(meant)}")
        return cls.from_settings(context)

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Self:
        """The settings that a stack's output `Settings` or a run holds. A value is text, an int or a Decimal.

        Unknown names are ignored: an older or a newer stack may have written them. Missing settings have
        their defaults. Raises ConfigError for a value that is not allowed, or a pair that cannot work.
        """
        values = {}
        for setting in fields(cls):
            name, rule = context_name(setting.name), setting.metadata
            if name in settings:
                value = rule["parse"](str(settings[name]))
                if value is None:
                    raise ConfigError(f"{name}={settings[name]}: expected {rule['allowed']} ({rule['doc']})")
                values[setting.name] = value
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """Every setting that has a value, by its name for `-c`."""
        values = {context_name(setting.name): getattr(self, setting.name) for setting in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def run_settings(self) -> dict[str, Any]:
        """The settings that every run records, by their names for `-c`."""
        values = self.settings()
        return {name: values[name] for name in RUN_SETTINGS}

    def non_default(self) -> dict[str, Any]:
        """The settings that are not at their defaults, by their names for `-c`."""
        defaults = type(self)().settings()
        return {name: value for name, value in self.settings().items() if value != defaults.get(name)}


def context_name(field_name: str) -> str:
    """The name of a setting for `-c`: images_per_job -> imagesPerJob."""
    first, *rest = field_name.split("_")
    return first + "".join(map(str.capitalize, rest))


def stack_name(context: Mapping[str, object]) -> str:
    """The name that `-c stackName=NAME` gives the stack. Raises ConfigError for one that is not allowed."""
    name = str(context.get(STACK_NAME, DEFAULT_NAME))
    # CloudFormation API reference, CreateStack, StackName
    if not re.fullmatch("[A-Za-z][A-Za-z0-9-]{0,127}", name):
        raise ConfigError(
            f"{STACK_NAME}={name}: expected a letter and then up to 127 letters, digits and hyphens"
        )
    return name
