"""The role that a function runs as, the log group that it writes to, and the functions of `lambdas/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from aws_cdk import RemovalPolicy
from aws_cdk.aws_iam import Role, ServicePrincipal
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import (
    ApplicationLogLevel,
    Code,
    Function,
    LoggingFormat,
    Runtime,
    SystemLogLevel,
    Tracing,
)
from aws_cdk.aws_logs import CfnLogGroup, LogGroup
from constructs import Construct

from stacks.config import ONE_VCPU_MB, Config

CODE = Path(__file__).parents[1] / "lambdas"


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


class ZipFunction(Function):
    """A function of the code in `lambdas/`, with the memory of one vCPU."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        role: FunctionRole,
        environment: Mapping[str, str],
        key: IKey | None,
        **options: Any,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            runtime=Runtime.PYTHON_3_14,
            code=Code.from_asset(str(CODE), exclude=["__pycache__"]),
            role=role,
            log_group=role.log_group,
            # As for the classifier: above INFO, Lambda would drop the metrics.
            logging_format=LoggingFormat.JSON,
            application_log_level_v2=ApplicationLogLevel.INFO,
            system_log_level_v2=SystemLogLevel.INFO,
            tracing=Tracing.ACTIVE,
            memory_size=ONE_VCPU_MB,  # the CPU limits encoding, signing and sending jobs
            environment_encryption=key,
            environment=environment,
            **options,
        )
