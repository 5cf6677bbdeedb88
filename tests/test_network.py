"""stacks/network.py: the network of `network=isolated` leads to the services of the stack, and nowhere else.

tests/test_permissions.py has the policies of its endpoints, and what the roles may do in it.
"""

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from synth import synth, synthesize

from cxr.planning import capacity
from cxr.verification.iam import single
from stacks.config import ConfigError
from stacks.network import PREFIX_LISTS, ZONES

pytestmark = pytest.mark.xdist_group("stack")  # they share templates, and loading the CDK takes seconds

ISOLATED = "network=isolated"
FUNCTION_GROUPS = {"JobCreator": "NetworkJobCreator", "Classifier": "NetworkClassifier"}


@cache
def resources(*settings: str) -> dict[str, Any]:
    """The resources of a template by logical id."""
    found: dict[str, Any] = synth(*settings).template.to_json()["Resources"]
    return found


def of_type(kind: str) -> list[dict[str, Any]]:
    """The properties of the resources of a type in the isolated template."""
    return [r["Properties"] for r in resources(ISOLATED).values() if r["Type"] == kind]


def name(value: Any) -> str:
    """The logical id in a Ref or a Fn::GetAtt, without its hash."""
    match value:
        case {"Ref": str(logical_id)} | {"Fn::GetAtt": [str(logical_id), _]}:
            return re.sub("[0-9A-F]{8}$", "", logical_id)
    raise ValueError(value)


def rules(direction: str) -> set[tuple[str, str]]:
    """(group, other end) of each rule of a direction, "Egress" or "Ingress". All are for TCP 443."""
    own = [
        {"GroupId": {"Ref": logical_id}, **rule}
        for logical_id, r in resources(ISOLATED).items()
        if r["Type"] == "AWS::EC2::SecurityGroup"
        for rule in r["Properties"].get(f"SecurityGroup{direction}", [])
    ]
    found = set()
    for rule in own + of_type(f"AWS::EC2::SecurityGroup{direction}"):
        match rule:
            case {"CidrIp": "255.255.255.255/32", "IpProtocol": "icmp"}:
                continue  # the CDK's rule that allows nothing which exists
            case {"DestinationSecurityGroupId": group} | {"SourceSecurityGroupId": group}:
                other = name(group)
            case {"DestinationPrefixListId": {"Fn::FindInMap": [_, {"Ref": "AWS::Region"}, service]}}:
                other = service
        assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 443, 443)
        found.add((name(rule["GroupId"]), other))
    return found


def test_open_is_the_default_and_has_no_network() -> None:
    assert resources("network=open") == resources()
    assert [r["Type"] for r in resources().values() if re.match("AWS::(EC2|Route53)", r["Type"])] == []


def test_isolated_only_adds() -> None:
    """Without the network, and what connects the functions to it, the template is that of an open stack."""
    rest = {name: r for name, r in resources(ISOLATED).items() if not name.startswith("Network")}
    assert {name: without_network(r) for name, r in rest.items()} == {
        name: without_network(r) for name, r in resources().items()
    }


def without_network(resource: dict[str, Any]) -> dict[str, Any]:
    """A resource without its place in the network, what it waits for there, and permissions for EC2."""
    found = deepcopy(resource)
    properties = found["Properties"]
    found["DependsOn"] = [n for n in found.get("DependsOn", []) if not n.startswith("Network")]
    if found["Type"] == "AWS::Lambda::Function":
        properties.pop("VpcConfig", None)
    if found["Type"] == "AWS::IAM::Policy":
        parts = [part for s in properties["PolicyDocument"]["Statement"] for part in single(s)]
        kept = (json.dumps(part) for part in parts if not part["Action"].startswith("ec2:"))
        properties["PolicyDocument"] = sorted(kept)
    return found


def test_both_functions_are_in_it() -> None:
    for function in of_type("AWS::Lambda::Function"):
        place = function["VpcConfig"]
        assert {name(subnet) for subnet in place["SubnetIds"]} == {
            f"NetworkVpcIsolatedSubnet{number}Subnet" for number in (1, 2)
        }
        (group,) = place["SecurityGroupIds"]
        assert name(group) == FUNCTION_GROUPS["JobCreator" if "Handler" in function else "Classifier"]


def test_no_route_leads_out() -> None:
    """A route table has a route within its VPC, and those that its gateway endpoints add."""
    kinds = {r["Type"] for r in resources(ISOLATED).values()} - {r["Type"] for r in resources().values()}
    assert kinds == {
        "AWS::EC2::FlowLog",
        "AWS::EC2::RouteTable",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::SecurityGroupEgress",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::Subnet",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPC",
        "AWS::EC2::VPCEndpoint",
        "AWS::Route53Resolver::FirewallDomainList",
        "AWS::Route53Resolver::FirewallRuleGroup",
        "AWS::Route53Resolver::FirewallRuleGroupAssociation",
    }
    for subnet in of_type("AWS::EC2::Subnet"):
        assert not subnet["MapPublicIpOnLaunch"]
        assert not {"Ipv6CidrBlock", "AssignIpv6AddressOnCreation"} & subnet.keys()


def test_each_service_has_an_endpoint() -> None:
    endpoints = {
        endpoint["ServiceName"]["Fn::Join"][1][-1].lstrip("."): endpoint
        for endpoint in of_type("AWS::EC2::VPCEndpoint")
    }
    assert {service: endpoint["VpcEndpointType"] for service, endpoint in endpoints.items()} == {
        "s3": "Gateway",
        "dynamodb": "Gateway",
        "kinesis-streams": "Interface",
        "events": "Interface",
    }
    tables = {name for name, r in resources(ISOLATED).items() if r["Type"] == "AWS::EC2::RouteTable"}
    for endpoint in endpoints.values():
        if endpoint["VpcEndpointType"] == "Gateway":
            assert {route_table["Ref"] for route_table in endpoint["RouteTableIds"]} == tables
        else:
            assert endpoint["PrivateDnsEnabled"]
            assert len(endpoint["SubnetIds"]) == len(ZONES)


def test_the_functions_start_after_the_network_is_there() -> None:
    network = {
        name
        for name, r in resources(ISOLATED).items()
        if r["Type"] in ("AWS::EC2::VPCEndpoint", "AWS::Route53Resolver::FirewallRuleGroupAssociation")
    }
    for function in resources(ISOLATED).values():
        if function["Type"] == "AWS::Lambda::Function":
            assert network <= set(function["DependsOn"])


def test_security_groups_allow_https_to_the_endpoints_and_nothing_else() -> None:
    kinesis, events = "NetworkKinesisEndpoint", "NetworkEventBridgeEndpoint"
    creator, classifier = FUNCTION_GROUPS["JobCreator"], FUNCTION_GROUPS["Classifier"]
    used = {(creator, kinesis), (creator, events), (classifier, events)}
    lists = {(group, service) for group in (creator, classifier) for service in ("S3", "DynamoDB")}
    assert rules("Egress") == used | lists
    assert rules("Ingress") == {(endpoint, group) for group, endpoint in used}
    # Where a group has no rule of its own, EC2 allows everything.
    assert all(group["SecurityGroupEgress"] for group in of_type("AWS::EC2::SecurityGroup"))


def test_dns_answers_only_for_names_of_aws() -> None:
    lists = {
        name: r["Properties"]["Domains"]
        for name, r in resources(ISOLATED).items()
        if r["Type"] == "AWS::Route53Resolver::FirewallDomainList"
    }
    (group,) = of_type("AWS::Route53Resolver::FirewallRuleGroup")
    by_priority = sorted(group["FirewallRules"], key=lambda rule: int(rule["Priority"]))
    assert [
        (rule["Action"], lists[rule["FirewallDomainListId"]["Fn::GetAtt"][0]]) for rule in by_priority
    ] == [
        ("ALLOW", [{"Fn::Join": ["", ["*.", {"Ref": "AWS::URLSuffix"}]]}]),
        ("BLOCK", ["*"]),
    ]
    (association,) = of_type("AWS::Route53Resolver::FirewallRuleGroupAssociation")
    assert name(association["VpcId"]) == "NetworkVpc"
    assert 100 < association["Priority"] < 9900  # CloudFormation's reference


def test_refused_connections_are_logged() -> None:
    (log,) = of_type("AWS::EC2::FlowLog")
    assert (log["TrafficType"], log["ResourceType"], name(log["ResourceId"])) == (
        "REJECT",
        "VPC",
        "NetworkVpc",
    )
    group = resources(ISOLATED)[log["LogGroupName"]["Ref"]]
    assert group["Properties"]["RetentionInDays"] == 30


def test_each_region_has_two_lists() -> None:
    (mapping,) = synth(ISOLATED).template.to_json()["Mappings"].values()
    assert mapping == PREFIX_LISTS
    for lists in PREFIX_LISTS.values():
        assert lists.keys() == {"S3", "DynamoDB"}
        assert len(set(lists.values())) == 2
        assert all(re.fullmatch("pl-[0-9a-f]{8}", number) for number in lists.values())


def test_a_region_without_known_lists_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CDK_DEFAULT_REGION", "af-south-1")
    synthesize(tmp_path / "open")
    with pytest.raises(
        ConfigError, match=r"^network=isolated: the prefix lists of af-south-1 are not known; add"
    ):
        synthesize(tmp_path / "isolated", ISOLATED)


def test_plan_counts_the_endpoints_that_are_paid() -> None:
    interfaces = [e for e in of_type("AWS::EC2::VPCEndpoint") if e["VpcEndpointType"] == "Interface"]
    assert sum(len(endpoint["SubnetIds"]) for endpoint in interfaces) == capacity.ENDPOINTS
