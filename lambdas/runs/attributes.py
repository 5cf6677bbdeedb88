"""Plain values as DynamoDB attributes, and back."""

from collections.abc import Mapping
from typing import Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

Item = dict[str, Any]  # attribute name -> {"S": ...}, {"N": ...} and so on

_serialize = TypeSerializer().serialize
_deserialize = TypeDeserializer().deserialize


def pack(fields: Mapping[str, Any]) -> Item:
    """Plain values as DynamoDB attributes. Numbers are int or Decimal: boto3 refuses floats."""
    return {name: _serialize(value) for name, value in fields.items()}


def unpack(item: Item) -> dict[str, Any]:
    """DynamoDB attributes as plain values; every number becomes a Decimal."""
    return {name: _deserialize(value) for name, value in item.items()}
