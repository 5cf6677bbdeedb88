"""The outputs of the stack: with them, `cxr` and its users find the parts of the stack."""

import json
from collections.abc import Iterable

from aws_cdk import CfnOutput, Stack
from aws_cdk.aws_dynamodb import ITable
from aws_cdk.aws_s3 import IBucket

from stacks.arrivals import Arrivals
from stacks.classifier import Classifier
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.storage import Storage


def add_outputs(
    stack: Stack,
    *,
    config: Config,
    storage: Storage,
    jobs: JobStream,
    creator: JobCreator,
    classifier: Classifier,
    arrivals: Arrivals | None,
) -> None:
    """Add the outputs to the stack. `cxr` reads them by their names."""
    images, table, failures = storage.images, storage.table, jobs.failures
    start_run = (
        f"aws lambda invoke --function-name {creator.function.function_name} "
        "--payload fileb://events/create-jobs-100.json --cli-read-timeout 0 out.json"
    )
    own_buckets = [failures, storage.access_logs, *([] if config.images_bucket else [images])]
    for name, value, description in (
        ("ImagesBucketName", images.bucket_name, "Bucket of the images"),
        ("KeyPrefix", config.prefix, "Prefix of every image's key"),
        ("JobCreatorName", creator.function.function_name, "Function that starts a run"),
        ("StartRun", start_run, "Command that starts a run of 100 images without cxr"),
        ("StreamName", jobs.stream.stream_name, "Kinesis stream of jobs"),
        ("ClassifierName", classifier.function.function_name, "Function that scores images"),
        (
            "MappingId",
            classifier.mapping.event_source_mapping_id,
            "Event source mapping from the stream to the classifier",
        ),
        ("TableName", table.table_name, "DynamoDB table of runs and predictions"),
        ("FailureBucketName", failures.bucket_name, "Bucket of jobs that ran out of retries"),
        ("AccessLogsBucketName", storage.access_logs.bucket_name, "Bucket of S3's access logs"),
        *(_arrivals(arrivals) if arrivals else ()),
        ("Settings", json.dumps(config.settings()), "Settings of the stack, by their names for -c"),
        (
            "OnDelete",
            _on_delete(config, table, own_buckets),
            "What happens to the data when the stack is deleted",
        ),
    ):
        CfnOutput(stack, name, value=value, description=description)


def _arrivals(arrivals: Arrivals) -> Iterable[tuple[str, str, str]]:
    yield "ReconcilerName", arrivals.reconciler.function_name, "Function that closes standing runs"
    yield "ArrivalsMappingId", arrivals.mapping.event_source_mapping_id, "Mapping of the queue of arrivals"
    yield "ArrivalsQueueUrl", arrivals.queue.queue_url, "Queue of images that arrived"
    yield "ArrivalsDeadLettersUrl", arrivals.dead_letters.queue_url, "Queue of arrivals that were not taken"


def _on_delete(config: Config, table: ITable, buckets: Iterable[IBucket]) -> str:
    """What stays when the stack is deleted, and the commands that delete it. The CDK says neither."""
    if config.data == "destroy":
        return "Deleting the stack deletes its buckets and its table with everything in them."
    commands = [
        f"aws dynamodb update-table --no-deletion-protection-enabled --table-name {table.table_name}",
        f"aws dynamodb delete-table --table-name {table.table_name}",
        *(f"aws s3 rb --force s3://{bucket.bucket_name}" for bucket in buckets),
    ]
    return f"Deleting the stack keeps its buckets and its table. To delete them: {'; '.join(commands)}"
