"""The network of the functions with `network=isolated`. It leads only to the services that they call."""

import os
from collections.abc import Mapping
from typing import Any, cast

from aws_cdk import ArnFormat, Aws, CfnMapping, Fn, Stack
from aws_cdk.aws_ec2 import (
    CfnSecurityGroup,
    CfnSecurityGroupEgress,
    CfnSecurityGroupIngress,
    FlowLogDestination,
    FlowLogTrafficType,
    GatewayVpcEndpointAwsService,
    InterfaceVpcEndpoint,
    InterfaceVpcEndpointAwsService,
    SecurityGroup,
    SubnetConfiguration,
    SubnetType,
    Vpc,
    VpcEndpoint,
)
from aws_cdk.aws_iam import AnyPrincipal, Effect, PolicyStatement, Role, ServicePrincipal
from aws_cdk.aws_kms import IKey
from aws_cdk.aws_lambda import CfnFunction, Function
from aws_cdk.aws_route53resolver import (
    CfnFirewallDomainList,
    CfnFirewallRuleGroup,
    CfnFirewallRuleGroupAssociation,
)
from constructs import Construct

from stacks.arrivals import Arrivals
from stacks.config import Config, ConfigError
from stacks.function_role import log_group
from stacks.job_stream import JobStream
from stacks.permissions import allow
from stacks.storage import Storage

ZONES = (0, 1)  # of the availability zones that CloudFormation lists for the region

# The lists of S3's and DynamoDB's addresses in each region, by `aws ec2 describe-prefix-lists`. They are
# AWS's own, the same in all accounts. CloudFormation cannot look them up.
PREFIX_LISTS: Mapping[str, Mapping[str, str]] = {
    "ap-northeast-1": {"S3": "pl-61a54008", "DynamoDB": "pl-78a54011"},
    "ap-northeast-2": {"S3": "pl-78a54011", "DynamoDB": "pl-48a54021"},
    "ap-south-1": {"S3": "pl-78a54011", "DynamoDB": "pl-66a7420f"},
    "ap-southeast-1": {"S3": "pl-6fa54006", "DynamoDB": "pl-67a5400e"},
    "ap-southeast-2": {"S3": "pl-6ca54005", "DynamoDB": "pl-62a5400b"},
    "ca-central-1": {"S3": "pl-7da54014", "DynamoDB": "pl-4ea54027"},
    "eu-central-1": {"S3": "pl-6ea54007", "DynamoDB": "pl-66a5400f"},
    "eu-north-1": {"S3": "pl-c3aa4faa", "DynamoDB": "pl-adae4bc4"},
    "eu-west-1": {"S3": "pl-6da54004", "DynamoDB": "pl-6fa54006"},
    "eu-west-2": {"S3": "pl-7ca54015", "DynamoDB": "pl-b3a742da"},
    "eu-west-3": {"S3": "pl-23ad484a", "DynamoDB": "pl-abb451c2"},
    "sa-east-1": {"S3": "pl-6aa54003", "DynamoDB": "pl-60a54009"},
    "us-east-1": {"S3": "pl-63a5400a", "DynamoDB": "pl-02cd2c6b"},
    "us-east-2": {"S3": "pl-7ba54012", "DynamoDB": "pl-4ca54025"},
    "us-west-1": {"S3": "pl-6ba54002", "DynamoDB": "pl-6ea54007"},
    "us-west-2": {"S3": "pl-68a54001", "DynamoDB": "pl-00a54069"},
}

HTTPS: dict[str, Any] = {"ip_protocol": "tcp", "from_port": 443, "to_port": 443}

# What Lambda does with the role of a function in a network (Lambda guide, configuration-vpc).
DESCRIBE = ("ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets")
CHANGE = ("ec2:AssignPrivateIpAddresses", "ec2:DeleteNetworkInterface", "ec2:UnassignPrivateIpAddresses")
CREATE = "ec2:CreateNetworkInterface"


class Network(Construct):
    """Puts both functions into subnets without a route out, with an endpoint for each service that they call.

    Lambda itself reads the stream, writes failure objects, and sends logs and traces. None of that uses this
    network (Lambda guide, monitoring-cloudwatchlogs; X-Ray guide, xray-services-lambda). Raises ConfigError.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        storage: Storage,
        jobs: JobStream,
        creator: Function,
        classifier: Function,
        arrivals: Arrivals | None,
        key: IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        check_region(os.environ.get("CDK_DEFAULT_REGION"))  # the command line of the CDK sets it
        self._vpc = Vpc(
            self,
            "Vpc",
            availability_zones=[Fn.select(zone, Fn.get_azs()) for zone in ZONES],
            subnet_configuration=[
                SubnetConfiguration(name="Isolated", subnet_type=SubnetType.PRIVATE_ISOLATED)
            ],
            create_internet_gateway=False,
            nat_gateways=0,
            # It would add a function that changes a group which nothing uses.
            restrict_default_security_group=False,
        )
        self._prefix_lists = CfnMapping(self, "PrefixLists", mapping=PREFIX_LISTS)
        of_creator, of_classifier = self._group("JobCreator"), self._group("Classifier")
        standing = [self._group("Arrivals")] if arrivals else []

        s3 = self._vpc.add_gateway_endpoint("S3", service=GatewayVpcEndpointAwsService.S3)
        pass_through(s3, "s3:GetObject", on=storage.images.arn_for_objects(f"{config.prefix}*"))
        pass_through(s3, "s3:ListBucket", on=storage.images.bucket_arn)
        table = self._vpc.add_gateway_endpoint("DynamoDB", service=GatewayVpcEndpointAwsService.DYNAMODB)
        actions = ("BatchGetItem", "GetItem", "PutItem", "Query", "UpdateItem")
        pass_through(table, *(f"dynamodb:{action}" for action in actions), on=storage.table.table_arn)
        stream = self._interface(
            "Kinesis", InterfaceVpcEndpointAwsService.KINESIS_STREAMS, of_creator, *standing
        )
        pass_through(stream, "kinesis:PutRecords", on=jobs.stream.stream_arn)
        events = self._interface(
            "EventBridge", InterfaceVpcEndpointAwsService.EVENTBRIDGE, of_creator, of_classifier, *standing
        )
        bus = Stack.of(self).format_arn(service="events", resource="event-bus", resource_name="default")
        pass_through(events, "events:PutEvents", on=bus)

        self._resolve_only_aws()
        self._log_what_is_refused(config, key)
        connected = [(creator, of_creator), (classifier, of_classifier)]
        if arrivals:
            connected += [(function, standing[0]) for function in arrivals.functions]
        for function, group in connected:
            self._connect(function, group)

    def _group(self, name: str) -> SecurityGroup:
        """A security group for a function: out to S3 and DynamoDB by HTTPS, and in from nowhere."""
        group = SecurityGroup(
            self, name, vpc=self._vpc, description=f"{name}: to its endpoints", allow_all_outbound=False
        )
        # Not by add_egress_rule, which keeps only the first of two lists whose ids are not known at synth. A
        # group without a rule of its own would allow everything.
        cast(CfnSecurityGroup, group.node.default_child).security_group_egress = [
            CfnSecurityGroup.EgressProperty(
                destination_prefix_list_id=self._prefix_lists.find_in_map(Aws.REGION, service),
                description=f"HTTPS to {service}",
                **HTTPS,
            )
            for service in ("S3", "DynamoDB")
        ]
        return group

    def _interface(
        self, name: str, service: InterfaceVpcEndpointAwsService, *clients: SecurityGroup
    ) -> InterfaceVpcEndpoint:
        """An interface endpoint, which is paid by the hour and zone. Only `clients` reach it, by HTTPS."""
        group = SecurityGroup(
            self,
            f"{name}Endpoint",
            vpc=self._vpc,
            description=f"Endpoint of {name}",
            allow_all_outbound=False,
        )
        for client in clients:
            CfnSecurityGroupEgress(
                client,
                f"To{name}",
                group_id=client.security_group_id,
                destination_security_group_id=group.security_group_id,
                description=f"HTTPS to {name}",
                **HTTPS,
            )
            CfnSecurityGroupIngress(
                group,
                f"From{client.node.id}",
                group_id=group.security_group_id,
                source_security_group_id=client.security_group_id,
                description=f"HTTPS from {client.node.id}",
                **HTTPS,
            )
        return self._vpc.add_interface_endpoint(name, service=service, security_groups=[group], open=False)

    def _resolve_only_aws(self) -> None:
        """Refuse DNS queries for names outside of AWS. A query could carry data to the owner of the name.

        Route 53 guide, resolver-dns-firewall.
        """
        aws = CfnFirewallDomainList(self, "AwsNames", domains=[f"*.{Aws.URL_SUFFIX}"])
        others = CfnFirewallDomainList(self, "OtherNames", domains=["*"])
        rule = CfnFirewallRuleGroup.FirewallRuleProperty
        rules = CfnFirewallRuleGroup(
            self,
            "Names",
            firewall_rules=[
                rule(action="ALLOW", firewall_domain_list_id=aws.attr_id, priority=1),
                rule(
                    action="BLOCK",
                    block_response="NXDOMAIN",
                    firewall_domain_list_id=others.attr_id,
                    priority=2,
                ),
            ],
        )
        CfnFirewallRuleGroupAssociation(
            self, "NamesOfVpc", firewall_rule_group_id=rules.attr_id, priority=101, vpc_id=self._vpc.vpc_id
        )

    def _log_what_is_refused(self, config: Config, key: IKey | None) -> None:
        """Log connections that a security group refused: none is expected."""
        own_account = {"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
        service = ServicePrincipal("vpc-flow-logs.amazonaws.com", conditions=own_account)
        self._vpc.add_flow_log(
            "Refused",
            destination=FlowLogDestination.to_cloud_watch_logs(
                log_group(self, config=config, key=key), Role(self, "FlowLogRole", assumed_by=service)
            ),
            traffic_type=FlowLogTrafficType.REJECT,
        )

    def _connect(self, function: Function, group: SecurityGroup) -> None:
        """Put a function into the subnets, and let Lambda make network interfaces there with its role."""
        subnets = [subnet.subnet_id for subnet in self._vpc.isolated_subnets]
        resource = cast(CfnFunction, function.node.default_child)
        resource.vpc_config = CfnFunction.VpcConfigProperty(
            security_group_ids=[group.security_group_id], subnet_ids=subnets
        )
        # Before all of the network is there, the function would wait for answers that cannot come.
        resource.node.add_dependency(self)

        def arn(resource: str, name: str) -> str:
            found: str = Stack.of(self).format_arn(service="ec2", resource=resource, resource_name=name)
            return found

        for subnet in subnets:
            allow(function, CREATE, on=arn("subnet", subnet))
        allow(function, CREATE, on=arn("security-group", group.security_group_id))
        allow(
            function,
            CREATE,
            *CHANGE,
            on=arn("network-interface", "*"),
            why_wildcard="EC2 names the network interfaces that Lambda makes.",
        )
        allow(
            function,
            *DESCRIBE,
            on="*",
            why_wildcard="EC2 has no resources to allow these actions on.",
        )
        # Only Lambda itself may do this. The guide says so too: requests of the code carry this key.
        any_function = Stack.of(self).format_arn(
            service="lambda", resource="function", resource_name="*", arn_format=ArnFormat.COLON_RESOURCE_NAME
        )
        function.add_to_role_policy(
            PolicyStatement(
                effect=Effect.DENY,
                actions=[CREATE, *CHANGE, *DESCRIBE],
                resources=["*"],
                conditions={"StringLike": {"lambda:SourceFunctionArn": any_function}},
            )
        )


def pass_through(endpoint: VpcEndpoint, *actions: str, on: str) -> None:
    """Let exactly these requests through an endpoint. Without a policy, it would let all through."""
    endpoint.add_to_policy(
        PolicyStatement(principals=[AnyPrincipal()], actions=list(actions), resources=[on])
    )


def check_region(region: str | None) -> None:
    """Raise ConfigError for a region whose prefix lists are not known. None: it was not said."""
    if region and region not in PREFIX_LISTS:
        raise ConfigError(
            f"network=isolated: the prefix lists of {region} are not known; add them to PREFIX_LISTS in "
            f"stacks/network.py, as `aws ec2 describe-prefix-lists --region {region}` shows them"
        )
