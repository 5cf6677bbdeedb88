"""What scores images as they arrive: events of S3, their queue, and the functions of standing runs."""

from aws_cdk import Duration
from aws_cdk.aws_events import EventPattern, Rule, Schedule
from aws_cdk.aws_events_targets import LambdaFunction, SqsQueue
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import EventSourceMapping
from aws_cdk.aws_s3 import CfnBucket
from aws_cdk.aws_sqs import DeadLetterQueue, Queue, QueueEncryption
from constructs import Construct
from runs.completion import RUN_COMPLETE

from stacks.config import Config
from stacks.function_role import FunctionRole, ZipFunction
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.permissions import allow, allow_events, allow_key_of_table, allow_traces, through
from stacks.storage import Storage

ANNOUNCER_SECONDS = 60
MESSAGES = 500  # of one invocation: some six transactions
RECEIVES = 5  # before a message goes to the dead-letter queue
KEPT = Duration.days(14)  # SQS keeps no message longer
# An upload of a hundred thousand files must not take the concurrency of the account. SQS allows no fewer.
ANNOUNCERS = 2


class Arrivals(Construct):
    """`queue` holds the events of S3, `announcer` counts what they announce, `reconciler` closes each day.

    `mapping` gives the events in the queue to the announcer. `dead_letters` holds those that it failed to
    take.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        storage: Storage,
        jobs: JobStream,
        creator: JobCreator,
        key: IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.dead_letters = self._queue("DeadLetters", key)
        self.queue = self._queue("Queue", key, self.dead_letters)
        if isinstance(bucket := storage.images.node.default_child, CfnBucket):
            # Not by the CDK's own option: that adds a function which may change every bucket's notifications.
            bucket.notification_configuration = CfnBucket.NotificationConfigurationProperty(
                event_bridge_configuration=CfnBucket.EventBridgeConfigurationProperty(
                    event_bridge_enabled=True
                )
            )
        self.rule = Rule(
            self,
            "Rule",
            description="Images that arrive under the prefix",
            event_pattern=EventPattern(
                source=["aws.s3"],
                detail_type=["Object Created"],
                detail={
                    "bucket": {"name": [storage.images.bucket_name]},
                    "object": {"key": [{"prefix": config.prefix}]},
                },
            ),
            targets=[SqsQueue(self.queue, dead_letter_queue=self.dead_letters)],
        )
        # With the job creator's environment, and each with a role of its own.
        self.announcer = ZipFunction(
            self,
            "Announcer",
            description="Counts images as they arrive, and sends them to the stream as jobs",
            handler="arrivals.announcer.handle",
            role=FunctionRole(self, "AnnouncerRole", config=config, key=key),
            timeout=Duration.seconds(ANNOUNCER_SECONDS),
            environment=creator.environment,
            key=key,
        )
        self.reconciler = ZipFunction(
            self,
            "Reconciler",
            description="Compares the run of a day with what S3 holds of that day, and closes it",
            handler="arrivals.reconciler.handle",
            role=FunctionRole(self, "ReconcilerRole", config=config, key=key),
            timeout=Duration.minutes(15),
            environment=creator.environment,
            key=key,
        )
        self.functions = (self.announcer, self.reconciler)
        self.mapping = EventSourceMapping(
            self,
            "Mapping",
            target=self.announcer,
            event_source_arn=self.queue.queue_arn,
            batch_size=MESSAGES,
            max_batching_window=Duration.seconds(config.arrivals_window),
            max_concurrency=ANNOUNCERS,
            report_batch_item_failures=True,
        )
        Rule(
            self,
            "Closing",
            description="Closes the standing run of the day before",
            schedule=Schedule.cron(hour=str(config.arrivals_closing), minute="0"),
            targets=[LambdaFunction(self.reconciler)],
        )
        self._allow(config, storage, jobs, key)

    def _queue(self, name: str, key: IKey | None, dead_letters: Queue | None = None) -> Queue:
        """A queue that is encrypted, and that answers only over TLS."""
        return Queue(
            self,
            name,
            encryption=QueueEncryption.KMS if key else QueueEncryption.SQS_MANAGED,
            encryption_master_key=key,
            enforce_ssl=True,
            retention_period=KEPT,
            # Lambda guide, services-sqs-configure: at least six times the timeout of the function.
            visibility_timeout=Duration.seconds(6 * ANNOUNCER_SECONDS),
            dead_letter_queue=DeadLetterQueue(max_receive_count=RECEIVES, queue=dead_letters)
            if dead_letters
            else None,
        )

    def _allow(self, config: Config, storage: Storage, jobs: JobStream, key: IKey | None) -> None:
        """Allow what the functions do, and what Lambda does in the announcer's name."""
        table, stream = storage.table, jobs.stream
        writes = ("dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:UpdateItem")
        for function in self.functions:
            allow(function, *writes, on=table.table_arn)
            allow(function, "kinesis:PutRecords", on=stream.stream_arn)
            allow_traces(function)
            if key:
                allow_key_of_table(function, table, key)
                of_stream = through("kinesis", "aws:kinesis:arn", stream.stream_arn)
                allow(function, "kms:GenerateDataKey", on=key.key_arn, when=of_stream)
        # With this role Lambda reads the queue (Lambda guide, services-sqs-configure).
        allow(
            self.announcer,
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            on=self.queue.queue_arn,
        )
        if key:
            allow(self.announcer, "kms:Decrypt", on=key.key_arn, when=through("sqs"))
        allow(self.reconciler, "dynamodb:Query", on=table.table_arn)
        under_prefix = {"StringLike": {"s3:prefix": f"{config.prefix}*"}}
        allow(self.reconciler, "s3:ListBucket", on=storage.images.bucket_arn, when=under_prefix)
        allow_events(self.reconciler, RUN_COMPLETE)
