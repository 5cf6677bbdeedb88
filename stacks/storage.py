"""What a run reads and what it leaves: the images, the table of runs and predictions."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk.aws_dynamodb import (
    Attribute,
    AttributeType,
    BillingMode,
    PointInTimeRecoverySpecification,
    Table,
)
from aws_cdk.aws_s3 import BlockPublicAccess, Bucket, BucketEncryption, IBucket, LifecycleRule
from constructs import Construct

from stacks.config import Config


def removal_policy(config: Config) -> RemovalPolicy:
    """What becomes of data when the stack is deleted."""
    return RemovalPolicy.DESTROY if config.data == "destroy" else RemovalPolicy.RETAIN


class PrivateBucket(Bucket):
    """A bucket that is encrypted, answers over TLS only and is closed to the public.

    It keeps no versions: an X-ray that somebody deletes is to be gone.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, config: Config, expires_after: Duration | None = None
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            encryption=BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            block_public_access=BlockPublicAccess.BLOCK_ALL,
            lifecycle_rules=[LifecycleRule(expiration=expires_after)] if expires_after else None,
            removal_policy=removal_policy(config),
            auto_delete_objects=config.data == "destroy",
        )
        if self.policy:  # A kept bucket stays TLS-only.
            self.policy.apply_removal_policy(removal_policy(config))


class Storage(Construct):
    """`images`: the bucket made here, or the existing one. `table`: runs, their counts and predictions."""

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(scope, construct_id)
        self.images: IBucket = (
            Bucket.from_bucket_name(self, "Images", config.images_bucket)
            if config.images_bucket
            else PrivateBucket(self, "Images", config=config)
        )
        self.table = Table(
            self,
            "Table",
            partition_key=Attribute(name="pk", type=AttributeType.STRING),
            sort_key=Attribute(name="sk", type=AttributeType.STRING),
            billing_mode=BillingMode.PAY_PER_REQUEST,
            point_in_time_recovery_specification=PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            removal_policy=removal_policy(config),
        )
