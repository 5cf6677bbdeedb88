"""Where jobs wait, and where those end that no retry could help."""

from aws_cdk import Acknowledgment, Duration, RemovalPolicy, Validations
from aws_cdk.aws_kinesis import Stream, StreamEncryption, StreamMode
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_s3 import IBucket
from constructs import Construct

from stacks.config import Config
from stacks.storage import PrivateBucket


class JobStream(Construct):
    """`stream`: one record a job. `failures`: one object a batch of jobs that Lambda gave up."""

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
            # On-demand scales on what comes in, but shards are what sets how many classifiers run.
            stream_mode=StreamMode.PROVISIONED,
            shard_count=config.shards,
            retention_period=Duration.hours(config.stream_retention),
            encryption=StreamEncryption.KMS if key else StreamEncryption.MANAGED,
            encryption_key=key,
            # Never kept: it is billed by the hour, and running a run again sends again what was in it.
            removal_policy=RemovalPolicy.DESTROY,
        )
        if key:
            reason = "Whoever gives a key of their own wants jobs, which hold object keys, under it."
            Validations.of(self.stream).acknowledge(Acknowledgment(id="AwsSolutions-KDS3", reason=reason))
        self.failures = PrivateBucket(
            self,
            "Failures",
            config=config,
            key=key,
            access_logs=access_logs,
            expires_after=Duration.days(config.failure_expiry),
        )
