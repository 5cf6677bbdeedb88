"""The function that turns one event into a run: its jobs on the stream, its item in the table."""

import json
from pathlib import Path

from aws_cdk import Duration
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import (
    ApplicationLogLevel,
    Code,
    Function,
    LoggingFormat,
    Runtime,
    SystemLogLevel,
    Tracing,
)
from constructs import Construct

from stacks.classifier import Model
from stacks.config import ONE_VCPU_MB, Config
from stacks.function_role import FunctionRole
from stacks.job_stream import JobStream
from stacks.permissions import allow, allow_shared, through
from stacks.storage import Storage

CODE = Path(__file__).parents[1] / "lambdas"


class JobCreator(Construct):
    """`function`: the job creator.

    Lambda does not retry an asynchronous invocation: it would start a run again that was cancelled meanwhile.
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
        role = FunctionRole(self, "Role", config=config, key=key)
        self.function = Function(
            self,
            "Function",
            description="Creates a run: lists its images and sends them to the stream as jobs",
            runtime=Runtime.PYTHON_3_14,
            code=Code.from_asset(str(CODE), exclude=["__pycache__"]),
            handler="job_creator.handler.handle",
            role=role,
            log_group=role.log_group,
            # As the classifier's: above INFO, metrics would be lost.
            logging_format=LoggingFormat.JSON,
            application_log_level_v2=ApplicationLogLevel.INFO,
            system_log_level_v2=SystemLogLevel.INFO,
            tracing=Tracing.ACTIVE,
            retry_attempts=0,
            timeout=Duration.minutes(15),  # Lambda's longest: a listing of millions takes minutes
            memory_size=ONE_VCPU_MB,  # encoding, signing and sending jobs is bound by the CPU, not by memory
            environment_encryption=key,
            environment={
                "BUCKET_NAME": storage.images.bucket_name,
                "KEY_PREFIX": config.prefix,
                "TABLE_NAME": storage.table.table_name,
                "STREAM_NAME": jobs.stream.stream_name,
                "IMAGES_PER_JOB": str(config.images_per_job),
                "RUN_FIELDS": json.dumps({"model": model.name, "model_sha256": model.sha256}),
            },
        )
        table, stream = storage.table, jobs.stream
        allow_shared(self.function, config=config, storage=storage, key=key)
        # It writes runs (RUN) and their counters (RUN#<run>), but no prediction (RUN#<run>#<00..3f>). This
        # condition key needs ForAllValues (DynamoDB guide, specifying-conditions).
        no_prediction = {"ForAllValues:StringNotLike": {"dynamodb:LeadingKeys": "RUN#*#*"}}
        allow(
            self.function, "dynamodb:PutItem", "dynamodb:UpdateItem", on=table.table_arn, when=no_prediction
        )
        allow(self.function, "kinesis:PutRecords", on=stream.stream_arn)
        if key:
            of_stream = through("kinesis", "aws:kinesis:arn", stream.stream_arn)
            allow(self.function, "kms:GenerateDataKey", on=key.key_arn, when=of_stream)
