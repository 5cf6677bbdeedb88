"""The bucket of images, the table of runs and predictions, and the bucket of S3's access logs."""

from typing import cast

from aws_cdk import CfnResource, Duration, RemovalPolicy, Stack
from aws_cdk.aws_dynamodb import (
    Attribute,
    AttributeType,
    BillingMode,
    PointInTimeRecoverySpecification,
    Table,
    TableEncryption,
    WarmThroughput,
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

ABORT_DAYS = 7  # after which S3 deletes the parts of an upload that was interrupted: nobody sees or uses them
ACCESS_LOG_DAYS = 90  # a log holds object keys, and they can identify patients


def removal_policy(config: Config) -> RemovalPolicy:
    """What CloudFormation does with data when the stack is deleted.

    What is kept is still deleted if the deployment that creates it fails: it is empty.
    """
    return RemovalPolicy.DESTROY if config.data == "destroy" else RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE


class PrivateBucket(Bucket):
    """A bucket that is not public, and answers only over TLS. `key` encrypts it, or else S3's own key.

    It keeps no versions, so that deleting an X-ray removes it. S3 records each request in `access_logs`.
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
            bucket_key_enabled=True if key else None,  # without it, S3 calls KMS for each image
            object_ownership=ObjectOwnership.BUCKET_OWNER_ENFORCED,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix=f"{construct_id}/" if access_logs else None,
            enforce_ssl=True,
            block_public_access=BlockPublicAccess.BLOCK_ALL,
            lifecycle_rules=[
                LifecycleRule(
                    expiration=expires_after,
                    abort_incomplete_multipart_upload_after=Duration.days(ABORT_DAYS),
                )
            ],
            removal_policy=removal_policy(config),
            auto_delete_objects=config.data == "destroy",
        )
        if self.policy:  # A bucket that is kept must still refuse requests without TLS.
            self.policy.apply_removal_policy(removal_policy(config))


class Storage(Construct):
    """`images` is the bucket made here or the existing one, `table` holds runs, their counts and predictions.

    S3 records in `access_logs` each request to the buckets of this stack.
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: Config, key: IKey | None) -> None:
        super().__init__(scope, construct_id)
        # S3 delivers access logs only to a bucket with S3's own key.
        self.access_logs = PrivateBucket(
            self, "AccessLogs", config=config, expires_after=Duration.days(ACCESS_LOG_DAYS)
        )
        if config.data == "destroy":
            # By default, the log of the CDK's function that empties buckets never expires.
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
            warm_throughput=WarmThroughput(write_units_per_second=config.warm_throughput)
            if config.warm_throughput
            else None,
            encryption=TableEncryption.CUSTOMER_MANAGED if key else TableEncryption.DEFAULT,
            encryption_key=key,
            point_in_time_recovery_specification=PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            deletion_protection=config.data == "keep",
            removal_policy=removal_policy(config),
        )
