"""Plain values as DynamoDB attributes, and back."""

import functools
from collections.abc import Mapping
from typing import Any

Item = dict[str, Any]  # attribute name -> {"S": ...}, {"N": ...} and so on


def pack(fields: Mapping[str, Any]) -> Item:
    """Plain values as DynamoDB attributes. Numbers are int or Decimal: boto3 refuses floats."""
    serialize, _ = _converters()
    return {name: serialize(value) for name, value in fields.items()}


def unpack(item: Item) -> dict[str, Any]:
    """DynamoDB attributes as plain values; every number becomes a Decimal."""
    _, deserialize = _converters()
    return {name: deserialize(value) for name, value in item.items()}


@functools.cache
def _converters() -> tuple[Any, Any]:
    from boto3.dynamodb import types  # here: `cxr --help` and `cdk synth` do without boto3

    return types.TypeSerializer().serialize, types.TypeDeserializer().deserialize
