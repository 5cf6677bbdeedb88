"""Where jobs wait, and where those end that no retry could help."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk.aws_kinesis import Stream, StreamEncryption, StreamMode
from constructs import Construct

from stacks.config import Config
from stacks.storage import PrivateBucket


class JobStream(Construct):
    """`stream`: one record a job. `failures`: one object a batch of jobs that Lambda gave up."""

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(scope, construct_id)
        self.stream = Stream(
            self,
            "Stream",
            # On-demand scales on what comes in, but shards are what sets how many classifiers run.
            stream_mode=StreamMode.PROVISIONED,
            shard_count=config.shards,
            retention_period=Duration.hours(config.stream_retention),
            encryption=StreamEncryption.MANAGED,
            # Never kept: it is billed by the hour, and running a run again sends again what was in it.
            removal_policy=RemovalPolicy.DESTROY,
        )
        self.failures = PrivateBucket(
            self, "Failures", config=config, expires_after=Duration.days(config.failure_expiry)
        )
