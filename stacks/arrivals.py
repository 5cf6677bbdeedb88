"""What scores images as they arrive: events of S3, their queue, and the functions of standing runs."""

from aws_cdk import Duration
from aws_cdk.aws_events import EventPattern, Rule, Schedule
from aws_cdk.aws_events_targets import LambdaFunction, SqsQueue
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import (
    ApplicationLogLevel,
    Code,
    EventSourceMapping,
    Function,
    LoggingFormat,
    Runtime,
    SystemLogLevel,
    Tracing,
)
from aws_cdk.aws_s3 import CfnBucket
from aws_cdk.aws_sqs import DeadLetterQueue, Queue, QueueEncryption
from constructs import Construct
from runs.completion import RUN_COMPLETE

from stacks.config import ONE_VCPU_MB, Config
from stacks.function_role import FunctionRole
from stacks.job_creator import CODE, JobCreator
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

    `dead_letters` holds events that nobody could take, `mapping` gives those of the queue to the announcer.
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
        self.announcer = self._function(
            "Announcer",
            "Counts images as they arrive, and sends them to the stream as jobs",
            config=config,
            creator=creator,
            key=key,
            timeout=Duration.seconds(ANNOUNCER_SECONDS),
        )
        self.reconciler = self._function(
            "Reconciler",
            "Compares the run of a day with what S3 holds of that day, and closes it",
            config=config,
            creator=creator,
            key=key,
            timeout=Duration.minutes(15),
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

    def _function(
        self,
        name: str,
        description: str,
        *,
        config: Config,
        creator: JobCreator,
        key: IKey | None,
        timeout: Duration,
    ) -> Function:
        """A function with the job creator's code and environment, and a role of its own."""
        role = FunctionRole(self, f"{name}Role", config=config, key=key)
        return Function(
            self,
            name,
            description=description,
            runtime=Runtime.PYTHON_3_14,
            code=Code.from_asset(str(CODE), exclude=["__pycache__"]),
            handler=f"arrivals.{name.lower()}.handle",
            role=role,
            log_group=role.log_group,
            logging_format=LoggingFormat.JSON,
            application_log_level_v2=ApplicationLogLevel.INFO,
            system_log_level_v2=SystemLogLevel.INFO,
            tracing=Tracing.ACTIVE,
            timeout=timeout,
            memory_size=ONE_VCPU_MB,
            environment_encryption=key,
            environment=creator.environment,
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
