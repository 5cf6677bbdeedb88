"""The whole system: its parts, what each may do, and what a person needs to type."""

from collections.abc import Mapping

from aws_cdk import CfnOutput, Stack
from aws_cdk.aws_iam import PolicyStatement
from aws_cdk.aws_lambda import Function
from constructs import Construct

from stacks.classifier import MODEL_BUNDLE, Classifier, read_model
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.storage import Storage

EVENT_SOURCE = "chest-xray-inference"  # of "Run Complete", on the default event bus


class InferenceStack(Stack):
    """From chest X-rays in S3 to predictions in DynamoDB. Raises ConfigError without a model to deploy."""

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(
            scope, construct_id, description="Scores chest X-rays. Research use only, not for patient care."
        )
        storage = Storage(self, "Storage", config=config)
        images, table = storage.images, storage.table
        jobs = JobStream(self, "Jobs", config=config)
        stream, failures = jobs.stream, jobs.failures
        classifier = Classifier(
            self, "Classifier", config=config, images=images, table=table, stream=stream, failures=failures
        )
        creator = JobCreator(
            self,
            "JobCreator",
            config=config,
            images=images,
            table=table,
            stream=stream,
            model=read_model(MODEL_BUNDLE),
        )

        under_prefix = {"StringLike": {"s3:prefix": f"{config.prefix}*"}}
        through_s3 = {"StringLike": {"kms:ViaService": "s3.*"}}
        for function in (creator.function, classifier.function):
            _allow(function, "s3:GetObject", on=images.arn_for_objects(f"{config.prefix}*"))
            # The classifier lists too: without it, S3 answers 403 for an image that is missing.
            _allow(function, "s3:ListBucket", on=images.bucket_arn, when=under_prefix)
            if config.images_kms_key:
                _allow(function, "kms:Decrypt", on=config.images_kms_key, when=through_s3)

        table_actions = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:UpdateItem"]
        _allow(creator.function, *table_actions, on=table.table_arn)
        _allow(creator.function, "kinesis:PutRecords", on=stream.stream_arn)
        _allow(classifier.function, *table_actions, "dynamodb:BatchGetItem", on=table.table_arn)

        # Who completes a run says so, as this source alone.
        bus = self.format_arn(service="events", resource="event-bus", resource_name="default")
        as_us = {"StringEquals": {"events:source": EVENT_SOURCE}}
        for function in (creator.function, classifier.function):
            _allow(function, "events:PutEvents", on=bus, when=as_us)

        # What Lambda itself does in the classifier's name: it reads the stream, and writes what it gave up
        # (DG with-kinesis, kinesis-on-failure-destination).
        _allow(
            classifier.function,
            "kinesis:DescribeStream",
            "kinesis:DescribeStreamSummary",
            "kinesis:GetRecords",
            "kinesis:GetShardIterator",
            "kinesis:ListShards",
            on=stream.stream_arn,
        )
        own_account = {"StringEquals": {"s3:ResourceAccount": self.account}}
        _allow(classifier.function, "s3:PutObject", on=failures.arn_for_objects("*"), when=own_account)
        _allow(classifier.function, "s3:ListBucket", on=failures.bucket_arn, when=own_account)

        start_run = (
            f"aws lambda invoke --function-name {creator.function.function_name} "
            "--payload fileb://events/create-jobs-100.json --cli-read-timeout 0 out.json"
        )
        for name, value, description in (
            ("ImagesBucketName", images.bucket_name, "Bucket that the images are in"),
            ("KeyPrefix", config.prefix, "Start of every image's key"),
            ("JobCreatorName", creator.function.function_name, "Function to invoke with an event of events/"),
            ("StartRun", start_run, "Command that starts a run of 100 images"),
            ("StreamName", stream.stream_name, "Kinesis stream that jobs wait in"),
            ("ClassifierName", classifier.function.function_name, "Function that scores images"),
            ("MappingId", classifier.mapping.event_source_mapping_id, "What feeds jobs to the classifier"),
            ("TableName", table.table_name, "DynamoDB table of runs and predictions"),
            ("FailureBucketName", failures.bucket_name, "Bucket of jobs that ran out of retries"),
        ):
            CfnOutput(self, name, value=value, description=description)


def _allow(
    function: Function, *actions: str, on: str, when: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Allows exactly these actions on one resource: CDK's own grants give actions that nobody calls."""
    function.add_to_role_policy(PolicyStatement(actions=list(actions), resources=[on], conditions=when))
