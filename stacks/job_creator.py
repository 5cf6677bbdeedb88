"""The function that turns one event into a run: its jobs on the stream, its item in the table."""

import json
from pathlib import Path

from aws_cdk import Duration
from aws_cdk.aws_dynamodb import ITable
from aws_cdk.aws_kinesis import IStream
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
from aws_cdk.aws_s3 import IBucket
from constructs import Construct

from stacks.classifier import Model
from stacks.config import ONE_VCPU_MB, Config
from stacks.function_role import FunctionRole

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
        images: IBucket,
        table: ITable,
        stream: IStream,
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
                "BUCKET_NAME": images.bucket_name,
                "KEY_PREFIX": config.prefix,
                "TABLE_NAME": table.table_name,
                "STREAM_NAME": stream.stream_name,
                "IMAGES_PER_JOB": str(config.images_per_job),
                "RUN_FIELDS": json.dumps({"model": model.name, "model_sha256": model.sha256}),
            },
        )
