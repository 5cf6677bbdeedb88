"""The function that starts a run: it sends the run's jobs to the stream and writes its item to the table."""

import json
from collections.abc import Mapping

from aws_cdk import Duration
from aws_cdk.aws_kms import IKey
from constructs import Construct
from runs.layout import PREDICTION_KEYS

from stacks.classifier import Model
from stacks.config import Config, ConfigError
from stacks.function_role import FunctionRole, ZipFunction
from stacks.job_stream import JobStream
from stacks.permissions import allow, allow_shared, through
from stacks.storage import Storage

# Lambda measures all variables together, as JSON (Lambda guide, gettingstarted-limits).
ENVIRONMENT_BYTES = 4096
# CloudFormation chooses these names at deployment. A bucket, a table and a stream have no longer ones.
LONGEST_NAMES = {"BUCKET_NAME": 63 * "x", "TABLE_NAME": 255 * "x", "STREAM_NAME": 128 * "x"}


class JobCreator(Construct):
    """`function` is the job creator.

    Lambda must not retry an asynchronous invocation: the retry would start a cancelled run again.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        storage: Storage,
        jobs: JobStream,
        model: Model,
        key: IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.environment = {
            "BUCKET_NAME": storage.images.bucket_name,
            "KEY_PREFIX": config.prefix,
            "TABLE_NAME": storage.table.table_name,
            "STREAM_NAME": jobs.stream.stream_name,
            "IMAGES_PER_JOB": str(config.images_per_job),
            "RUN_FIELDS": run_fields(model, config),
        }
        check_size(self.environment)
        role = FunctionRole(self, "Role", config=config, key=key)
        self.function = ZipFunction(
            self,
            "Function",
            description="Creates a run: lists its images and sends them to the stream as jobs",
            handler="job_creator.handler.handle",
            role=role,
            retry_attempts=0,
            timeout=Duration.minutes(15),  # Lambda's longest; listing millions of keys takes minutes
            environment=self.environment,
            key=key,
        )
        table, stream = storage.table, jobs.stream
        allow_shared(self.function, config=config, storage=storage, key=key)
        # It writes runs and their counters, but no predictions. This condition key needs ForAllValues
        # (DynamoDB guide, specifying-conditions).
        no_prediction = {"ForAllValues:StringNotLike": {"dynamodb:LeadingKeys": PREDICTION_KEYS}}
        allow(
            self.function, "dynamodb:PutItem", "dynamodb:UpdateItem", on=table.table_arn, when=no_prediction
        )
        allow(self.function, "kinesis:PutRecords", on=stream.stream_arn)
        if key:
            of_stream = through("kinesis", "aws:kinesis:arn", stream.stream_arn)
            allow(self.function, "kms:GenerateDataKey", on=key.key_arn, when=of_stream)


def run_fields(model: Model, config: Config) -> str:
    """What every run records besides its own source: the model, its labels and the settings, as JSON."""
    return json.dumps(
        {
            "model": model.name,
            "model_sha256": model.sha256,
            "labels": model.labels,
            "settings": config.run_settings(),
        },
        separators=(",", ":"),
    )


def check_size(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for environment variables that Lambda would refuse."""
    size = len(json.dumps({**environment, **LONGEST_NAMES}, separators=(",", ":")))
    if size > ENVIRONMENT_BYTES:
        raise ConfigError(
            f"the model's labels and the settings: expected at most {ENVIRONMENT_BYTES} bytes of environment "
            f"variables (Lambda's limit), found {size}; use fewer or shorter labels, or a shorter prefix"
        )
