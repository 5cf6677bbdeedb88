"""What a run reads and what it leaves: the images, the table of runs and predictions, who read what."""

from typing import cast

from aws_cdk import CfnResource, Duration, RemovalPolicy, Stack
from aws_cdk.aws_dynamodb import (
    Attribute,
    AttributeType,
    BillingMode,
    PointInTimeRecoverySpecification,
    Table,
    TableEncryption,
)
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_s3 import (
    BlockPublicAccess,
    Bucket,
    BucketEncryption,
    IBucket,
    LifecycleRule,
    ObjectOwnership,
)
from constructs import Construct

from stacks.config import Config
from stacks.function_role import log_group

ACCESS_LOG_DAYS = 90  # its lines hold object keys, which can identify patients


def removal_policy(config: Config) -> RemovalPolicy:
    """What becomes of data when the stack is deleted."""
    return RemovalPolicy.DESTROY if config.data == "destroy" else RemovalPolicy.RETAIN


class PrivateBucket(Bucket):
    """A bucket that is encrypted (by `key`, or else by S3), answers over TLS only and is not public.

    It keeps no versions: an X-ray that somebody deletes is to be gone. S3 writes each request to it into
    `access_logs`.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        key: IKey | None = None,
        access_logs: IBucket | None = None,
        expires_after: Duration | None = None,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            encryption=BucketEncryption.KMS if key else BucketEncryption.S3_MANAGED,
            encryption_key=key,
            bucket_key_enabled=True if key else None,  # else each image is a request to KMS
            object_ownership=ObjectOwnership.BUCKET_OWNER_ENFORCED,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix=f"{construct_id}/" if access_logs else None,
            enforce_ssl=True,
            block_public_access=BlockPublicAccess.BLOCK_ALL,
            lifecycle_rules=[LifecycleRule(expiration=expires_after)] if expires_after else None,
            removal_policy=removal_policy(config),
            auto_delete_objects=config.data == "destroy",
        )
        if self.policy:  # A kept bucket stays TLS-only.
            self.policy.apply_removal_policy(removal_policy(config))


class Storage(Construct):
    """`images`: the bucket made here, or the existing one. `table`: runs, their counts and predictions.

    `access_logs`: who asked for what in the buckets made here.
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: Config, key: IKey | None) -> None:
        super().__init__(scope, construct_id)
        # Without `key`: S3 delivers such logs only into a bucket that it encrypts itself.
        self.access_logs = PrivateBucket(
            self, "AccessLogs", config=config, expires_after=Duration.days(ACCESS_LOG_DAYS)
        )
        if config.data == "destroy":
            # The function of CDK's that empties buckets would keep its log for ever.
            emptier = Stack.of(self).node.find_child("Custom::S3AutoDeleteObjectsCustomResourceProvider").node
            logs = log_group(self, config=config, key=key)
            handler = cast(CfnResource, emptier.find_child("Handler"))
            handler.add_property_override("LoggingConfig", {"LogGroup": logs.log_group_name})
        self.images: IBucket = (
            Bucket.from_bucket_name(self, "Images", config.images_bucket)
            if config.images_bucket
            else PrivateBucket(self, "Images", config=config, key=key, access_logs=self.access_logs)
        )
        self.table = Table(
            self,
            "Table",
            partition_key=Attribute(name="pk", type=AttributeType.STRING),
            sort_key=Attribute(name="sk", type=AttributeType.STRING),
            billing_mode=BillingMode.PAY_PER_REQUEST,
            encryption=TableEncryption.CUSTOMER_MANAGED if key else TableEncryption.DEFAULT,
            encryption_key=key,
            point_in_time_recovery_specification=PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            removal_policy=removal_policy(config),
        )
