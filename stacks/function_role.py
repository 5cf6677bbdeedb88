"""What both functions run as, and where they log."""

from typing import cast

from aws_cdk import RemovalPolicy
from aws_cdk.aws_iam import Role, ServicePrincipal
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_logs import CfnLogGroup, LogGroup
from constructs import Construct

from stacks.config import Config


def log_group(scope: Construct, *, config: Config, key: IKey | None) -> LogGroup:
    """Where a function logs, for as long as the settings say."""
    group = LogGroup(scope, "Logs", encryption_key=key, removal_policy=RemovalPolicy.DESTROY)
    # Set one level down: RetentionDays is an enumeration of names, with no way in from a number.
    cast(CfnLogGroup, group.node.default_child).retention_in_days = config.log_retention
    return group


class FunctionRole(Role):
    """A function's role: it may write to `log_group`, and do what the stack allows besides.

    CDK's default role may create and write every log group of the account (AWSLambdaBasicExecutionRole).
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: Config, key: IKey | None) -> None:
        super().__init__(scope, construct_id, assumed_by=ServicePrincipal("lambda.amazonaws.com"))
        self.log_group = log_group(self, config=config, key=key)
        self.log_group.grant_write(self)
