"""The whole system: its parts, what each may do, and what a person needs to type."""

from collections.abc import Iterable

from aws_cdk import CfnOutput, Stack
from aws_cdk.aws_dynamodb import ITable
from aws_cdk.aws_kms import Key
from aws_cdk.aws_s3 import IBucket
from constructs import Construct

from stacks.classifier import MODEL_BUNDLE, Classifier, read_model
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.monitoring import Monitoring
from stacks.permissions import allow, of_bucket, through
from stacks.storage import Storage

EVENT_SOURCE, EVENT_TYPE = "chest-xray-inference", "Run Complete"  # on the default event bus

# What DynamoDB does with a table's key for who uses the table (its guide, encryption.usagenotes).
TABLE_KEY_ACTIONS = (
    "kms:Decrypt",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)


class InferenceStack(Stack):
    """From chest X-rays in S3 to predictions in DynamoDB. Raises ConfigError without a model to deploy."""

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(
            scope, construct_id, description="Scores chest X-rays. Research use only, not for patient care."
        )
        key = Key.from_key_arn(self, "Key", config.kms_key) if config.kms_key else None
        storage = Storage(self, "Storage", config=config, key=key)
        images, table = storage.images, storage.table
        jobs = JobStream(self, "Jobs", config=config, key=key, access_logs=storage.access_logs)
        stream, failures = jobs.stream, jobs.failures
        classifier = Classifier(
            self,
            "Classifier",
            config=config,
            images=images,
            table=table,
            stream=stream,
            failures=failures,
            key=key,
        )
        creator = JobCreator(
            self,
            "JobCreator",
            config=config,
            images=images,
            table=table,
            stream=stream,
            model=read_model(MODEL_BUNDLE),
            key=key,
        )

        Monitoring(
            self,
            "Monitoring",
            config=config,
            creator=creator.function,
            classifier=classifier.function,
            mapping=classifier.mapping,
            stream=stream,
            table=table,
            failures=failures,
        )

        under_prefix = {"StringLike": {"s3:prefix": f"{config.prefix}*"}}
        for function in (creator.function, classifier.function):
            allow(
                function,
                "s3:GetObject",
                on=images.arn_for_objects(f"{config.prefix}*"),
                why_wildcard="Which images a run has is known when it starts; all are below the prefix.",
            )
            # The classifier lists too: without it, S3 answers 403 for an image that is missing.
            allow(function, "s3:ListBucket", on=images.bucket_arn, when=under_prefix)
            if config.images_kms_key:
                allow(function, "kms:Decrypt", on=config.images_kms_key, when=of_bucket(images))

        reads, writes = ("dynamodb:GetItem", "dynamodb:Query"), ("dynamodb:PutItem", "dynamodb:UpdateItem")
        allow(creator.function, *reads, on=table.table_arn)
        # Runs (RUN) and their counters (RUN#<run>), but no prediction (RUN#<run>#<00..3f>). ForAllValues is
        # what the key asks for (DynamoDB guide, specifying-conditions).
        no_prediction = {"ForAllValues:StringNotLike": {"dynamodb:LeadingKeys": "RUN#*#*"}}
        allow(creator.function, *writes, on=table.table_arn, when=no_prediction)
        allow(creator.function, "kinesis:PutRecords", on=stream.stream_arn)
        allow(classifier.function, *reads, *writes, "dynamodb:BatchGetItem", on=table.table_arn)

        # Who completes a run says so, and says nothing else. Both keys can have several values (EventBridge
        # guide, eb-event-bus-example-policy-cross-account-custom-bus-source).
        bus = self.format_arn(service="events", resource="event-bus", resource_name="default")
        ours = {"events:source": EVENT_SOURCE, "events:detail-type": EVENT_TYPE}
        for function in (creator.function, classifier.function):
            allow(function, "events:PutEvents", on=bus, when={"ForAllValues:StringEquals": ours})

        for function in (creator.function, classifier.function):
            allow(
                function,
                "xray:PutTraceSegments",
                "xray:PutTelemetryRecords",
                on="*",
                why_wildcard="X-Ray has no resources to allow these actions on.",
            )

        # What Lambda itself does in the classifier's name: it reads the stream, and writes what it gave up
        # (DG with-kinesis, kinesis-on-failure-destination).
        allow(
            classifier.function,
            "kinesis:DescribeStream",
            "kinesis:DescribeStreamSummary",
            "kinesis:GetRecords",
            "kinesis:GetShardIterator",
            "kinesis:ListShards",
            on=stream.stream_arn,
        )
        own_account = {"StringEquals": {"s3:ResourceAccount": self.account}}
        allow(
            classifier.function,
            "s3:PutObject",
            on=failures.arn_for_objects("aws/lambda/*"),
            when=own_account,
            why_wildcard="Lambda names the objects in its folder.",
        )
        allow(classifier.function, "s3:ListBucket", on=failures.bucket_arn, when=own_account)

        if key:
            of_table = through("dynamodb", "aws:dynamodb:tableName", table.table_name)
            of_stream = through("kinesis", "aws:kinesis:arn", stream.stream_arn)
            for function in (creator.function, classifier.function):
                allow(function, *TABLE_KEY_ACTIONS, on=key.key_arn, when=of_table)
                # Without context, which comes only with encrypting and decrypting.
                allow(function, "kms:DescribeKey", on=key.key_arn, when=through("dynamodb"))
                if not config.images_bucket:
                    allow(function, "kms:Decrypt", on=key.key_arn, when=of_bucket(images))
            allow(creator.function, "kms:GenerateDataKey", on=key.key_arn, when=of_stream)
            allow(classifier.function, "kms:Decrypt", on=key.key_arn, when=of_stream)
            # This bucket has a bucket key, so that the context is never an object.
            of_failures = through("s3", "aws:s3:arn", failures.bucket_arn)
            allow(classifier.function, "kms:GenerateDataKey", on=key.key_arn, when=of_failures)

        start_run = (
            f"aws lambda invoke --function-name {creator.function.function_name} "
            "--payload fileb://events/create-jobs-100.json --cli-read-timeout 0 out.json"
        )
        own_buckets = [failures, storage.access_logs, *([] if config.images_bucket else [images])]
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
            ("AccessLogsBucketName", storage.access_logs.bucket_name, "Bucket of S3's access logs"),
            (
                "OnDelete",
                _on_delete(config, table, own_buckets),
                "What becomes of data when the stack is deleted",
            ),
        ):
            CfnOutput(self, name, value=value, description=description)


def _on_delete(config: Config, table: ITable, buckets: Iterable[IBucket]) -> str:
    """What is left when the stack is deleted, which the CDK does not say, and what deletes that."""
    if config.data == "destroy":
        return "Deleting the stack deletes its buckets and its table with all that is in them."
    commands = [
        f"aws dynamodb delete-table --table-name {table.table_name}",
        *(f"aws s3 rb --force s3://{bucket.bucket_name}" for bucket in buckets),
    ]
    return f"Deleting the stack keeps its buckets and its table. To delete them: {'; '.join(commands)}"
