"""The stream that jobs wait in, and the bucket for jobs that ran out of retries."""

from aws_cdk import Acknowledgment, Duration, RemovalPolicy, Validations
from aws_cdk.aws_kinesis import Stream, StreamEncryption, StreamMode
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_s3 import IBucket
from constructs import Construct

from stacks.config import Config
from stacks.storage import PrivateBucket


class JobStream(Construct):
    """`stream` holds a record for each job, `failures` an object for each batch that ran out of retries."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        key: IKey | None,
        access_logs: IBucket,
    ) -> None:
        super().__init__(scope, construct_id)
        self.stream = Stream(
            self,
            "Stream",
            # The number of shards sets how many classifiers run. On-demand mode would choose it by how many
            # jobs are written.
            stream_mode=StreamMode.PROVISIONED,
            shard_count=config.shards,
            retention_period=Duration.hours(config.stream_retention),
            encryption=StreamEncryption.KMS if key else StreamEncryption.MANAGED,
            encryption_key=key,
            # A stream costs money by the hour, and the event of a run sends its jobs again.
            removal_policy=RemovalPolicy.DESTROY,
        )
        if key:
            reason = "The user's own key encrypts the jobs, because they hold object keys."
            Validations.of(self.stream).acknowledge(Acknowledgment(id="AwsSolutions-KDS3", reason=reason))
        self.failures = PrivateBucket(
            self,
            "Failures",
            config=config,
            key=key,
            access_logs=access_logs,
            expires_after=Duration.days(config.failure_expiry),
        )
