"""What both functions run as, and where they log."""

from typing import cast

from aws_cdk import RemovalPolicy
from aws_cdk.aws_iam import Role, ServicePrincipal
from aws_cdk.aws_logs import CfnLogGroup, LogGroup
from constructs import Construct

from stacks.config import Config


class FunctionRole(Role):
    """A function's role: it may write to `log_group`, and do what the stack allows besides.

    CDK's default role may create and write every log group of the account (AWSLambdaBasicExecutionRole).
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(scope, construct_id, assumed_by=ServicePrincipal("lambda.amazonaws.com"))
        self.log_group = LogGroup(self, "Logs", removal_policy=RemovalPolicy.DESTROY)
        # Set one level down: RetentionDays is an enumeration of names, with no way in from a number.
        cast(CfnLogGroup, self.log_group.node.default_child).retention_in_days = config.log_retention
        self.log_group.grant_write(self)
