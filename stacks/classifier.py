"""The function that scores images, the model in its image, and the mapping that feeds it from the stream."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsii
from aws_cdk import Duration, Stack
from aws_cdk.aws_ecr_assets import Platform
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import (
    ApplicationLogLevel,
    Architecture,
    DlqDestinationConfig,
    DockerImageCode,
    DockerImageFunction,
    EventSourceMapping,
    IEventSourceDlq,
    IEventSourceMapping,
    IFunction,
    LoggingFormat,
    MetricsConfig,
    MetricType,
    StartingPosition,
    SystemLogLevel,
    Tracing,
)
from aws_cdk.aws_s3 import IBucket
from classifier.bundle import Bundle, BundleError
from constructs import Construct
from runs.completion import IMAGES_SCORED

from stacks.config import Config, ConfigError
from stacks.function_role import FunctionRole
from stacks.image_context import DOCKERFILE, PROJECT, SHIPPED, image_context
from stacks.job_stream import JobStream
from stacks.permissions import allow, allow_events, allow_shared, through
from stacks.storage import Storage


@dataclass(frozen=True)
class Model:
    """The model that runs are scored with."""

    name: str  # "name:version"
    sha256: str  # of model.onnx, in hex
    labels: list[dict[str, Any]]  # name and threshold of each, in the order of the bundle: the primary first


def bundle_folder(config: Config) -> Path:
    """The folder of the model that the stack scores with."""
    return PROJECT / Path(config.model).expanduser() if config.model else SHIPPED


def read_model(bundle: Path) -> Model:
    """The model in a bundle's folder. Raises ConfigError for a bundle that the classifier would refuse."""
    try:
        found = Bundle.read(bundle, trial=True)
    except BundleError as error:
        raise ConfigError(f"model: {error}") from None
    card = found.card
    return Model(
        name=f"{card['name']}:{card['version']}",
        sha256=found.sha256,
        labels=[{"name": label["name"], "threshold": label["threshold"]} for label in card["labels"]],
    )


@jsii.implements(IEventSourceDlq)
class FailureDestination:
    """A bucket as the failure destination of a mapping. The CDK's class also grants reading and deleting."""

    def __init__(self, bucket: IBucket) -> None:
        self._bucket = bucket

    def bind(self, _target: IEventSourceMapping, _target_handler: IFunction) -> DlqDestinationConfig:
        return DlqDestinationConfig(destination=self._bucket.bucket_arn)


class Classifier(Construct):
    """`function` is the classifier, `mapping` the event source mapping that gives it the stream's jobs."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        storage: Storage,
        jobs: JobStream,
        key: IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        architecture, platform = {
            "x86_64": (Architecture.X86_64, Platform.LINUX_AMD64),
            "arm64": (Architecture.ARM_64, Platform.LINUX_ARM64),
        }[config.architecture]
        role = FunctionRole(self, "Role", config=config, key=key)
        # The CDK copies the context to cdk.out within the block.
        with image_context(bundle_folder(config)) as context:
            self.function = DockerImageFunction(
                self,
                "Function",
                description="Scores the images of its jobs and writes a prediction for each",
                code=DockerImageCode.from_image_asset(
                    str(context),
                    file=DOCKERFILE,
                    platform=platform,
                    build_args={"BASE_IMAGE": config.base_image} if config.base_image else None,
                ),
                architecture=architecture,
                role=role,
                log_group=role.log_group,
                logging_format=LoggingFormat.JSON,
                # Above INFO, Lambda would drop its own reports and the line that CloudWatch takes metrics
                # from.
                application_log_level_v2=ApplicationLogLevel.INFO,
                system_log_level_v2=SystemLogLevel.INFO,
                tracing=Tracing.ACTIVE,
                timeout=Duration.seconds(config.timeout),
                memory_size=config.memory,
                environment_encryption=key,
                environment={
                    "BUCKET_NAME": storage.images.bucket_name,
                    "TABLE_NAME": storage.table.table_name,
                },
            )
        self.mapping = EventSourceMapping(
            self,
            "Mapping",
            target=self.function,
            event_source_arn=jobs.stream.stream_arn,
            # LATEST can miss jobs that are sent while the mapping is being created.
            starting_position=StartingPosition.TRIM_HORIZON,
            parallelization_factor=config.parallelization_factor,
            batch_size=config.batch_size,
            max_batching_window=Duration.seconds(config.batch_window),
            report_batch_item_failures=True,
            bisect_batch_on_error=True,
            # By default there is no limit: a record that always fails would stop its shard until it expires.
            retry_attempts=config.retries,
            max_record_age=Duration.hours(config.record_age),
            on_failure=FailureDestination(jobs.failures),
            metrics_config=MetricsConfig(metrics=[MetricType.EVENT_COUNT]),  # counts jobs out of retries
        )
        self._allow(config, storage, jobs, key)

    def _allow(self, config: Config, storage: Storage, jobs: JobStream, key: IKey | None) -> None:
        """Allow what the function does, and what Lambda does in its name."""
        function, table, stream, failures = self.function, storage.table, jobs.stream, jobs.failures
        allow_shared(function, config=config, storage=storage, key=key)
        writes = ("dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:UpdateItem")
        allow(function, *writes, on=table.table_arn)
        if config.arrivals == "on":
            allow_events(function, IMAGES_SCORED)

        # With this role Lambda reads the stream, and writes failure objects (Lambda guide, with-kinesis and
        # kinesis-on-failure-destination).
        allow(
            function,
            "kinesis:DescribeStream",
            "kinesis:DescribeStreamSummary",
            "kinesis:GetRecords",
            "kinesis:GetShardIterator",
            "kinesis:ListShards",
            on=stream.stream_arn,
        )
        own_account = {"StringEquals": {"s3:ResourceAccount": Stack.of(self).account}}
        allow(
            function,
            "s3:PutObject",
            on=failures.arn_for_objects("aws/lambda/*"),
            when=own_account,
            why_wildcard="Lambda names the objects in its folder.",
        )
        allow(function, "s3:ListBucket", on=failures.bucket_arn, when=own_account)
        if key:
            of_stream = through("kinesis", "aws:kinesis:arn", stream.stream_arn)
            allow(function, "kms:Decrypt", on=key.key_arn, when=of_stream)
            # This bucket has a bucket key, so the context is always the bucket.
            of_failures = through("s3", "aws:s3:arn", failures.bucket_arn)
            allow(function, "kms:GenerateDataKey", on=key.key_arn, when=of_failures)
