"""The role that a function runs as, and the log group that it writes to."""

from typing import cast

from aws_cdk import RemovalPolicy
from aws_cdk.aws_iam import Role, ServicePrincipal
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_logs import CfnLogGroup, LogGroup
from constructs import Construct

from stacks.config import Config


def log_group(scope: Construct, *, config: Config, key: IKey | None) -> LogGroup:
    """A log group for a function. The setting logRetention says how long it keeps a line."""
    group = LogGroup(scope, "Logs", encryption_key=key, removal_policy=RemovalPolicy.DESTROY)
    # RetentionDays of the CDK is an enumeration that takes no number, so this sets CloudFormation's property.
    cast(CfnLogGroup, group.node.default_child).retention_in_days = config.log_retention
    return group


class FunctionRole(Role):
    """A function's role. It may write to `log_group`, and do what its construct allows.

    The CDK's default role may create every log group of the account, and write to it
    (AWSLambdaBasicExecutionRole).
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: Config, key: IKey | None) -> None:
        super().__init__(scope, construct_id, assumed_by=ServicePrincipal("lambda.amazonaws.com"))
        self.log_group = log_group(self, config=config, key=key)
        self.log_group.grant_write(self)
