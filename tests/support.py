"""What the tests share besides fixtures: names, readers of the table, and files made by code."""

import base64
import io
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from PIL import Image
from runs import layout
from runs.attributes import unpack
from runs.predictions import Prediction, counts_of, total
from runs.table import begin_actions

ROOT = Path(__file__).parents[1]
XRAYS = ROOT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"

BUCKET = "images"
FAILURES = "failures"
PREFIX = "cxr-nih/"
STREAM = "jobs"
TABLE = "predictions"

# (pk, sk) -> the item's other attributes
Items = dict[tuple[str, str], dict[str, Any]]


def client(service: str) -> Any:
    """A client of the AWS that the environment leads to, for the test's own calls: to make one takes 30 ms.

    A handler gets clients of its own, whose calls are watched.
    """
    return _client(service, os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _client(service: str, endpoint: str | None) -> Any:
    return boto3.client(service, endpoint_url=endpoint)  # type: ignore[call-overload]


def uid(run_id: str) -> str:
    """Of a run that `begin_run` made."""
    return f"uid-of-{run_id}"


def begin_run(run_id: str, table: str = TABLE, **fields: Any) -> None:
    """A run's item and its counters, as the job creator makes them; made again, the counts stay."""
    fields = {"uid": uid(run_id), "state": "SCORING", **fields}
    dynamodb = client("dynamodb")
    run, *counters = (put["Put"]["Item"] for put in begin_actions(table, run_id, fields))
    dynamodb.put_item(TableName=table, Item=run)
    for counter in counters:
        dynamodb.update_item(
            TableName=table,
            Key={name: counter[name] for name in ("pk", "sk")},
            UpdateExpression="SET uid = :uid",
            ExpressionAttributeValues={":uid": counter["uid"]},
        )


def table_items(table: str = TABLE) -> Items:
    """The whole table."""
    pages = client("dynamodb").get_paginator("scan").paginate(TableName=table)
    found = [unpack(item) for page in pages for item in page["Items"]]
    return {(item.pop("pk"), item.pop("sk")): item for item in found}


def counts(items: Items, run_id: str) -> dict[str, int]:
    """A run's counts, by its counters."""
    return total(item for (pk, _), item in items.items() if pk == layout.counters_partition(run_id))


def recounted(items: Items, run_id: str) -> dict[str, int]:
    """A run's counts, by its predictions."""
    partitions = layout.partitions(run_id)
    found = (item | {"sk": sk} for (pk, sk), item in items.items() if pk in partitions)
    return counts_of(map(Prediction.from_fields, found))


def events_noted(noted: list[dict[str, Any]]) -> Callable[[], Any]:
    """What makes an EventBridge client that notes the events it is given."""

    def note(params: dict[str, Any], **_: Any) -> None:
        noted.extend(params["Entries"])

    client = boto3.client("events")
    client.meta.events.register("provide-client-params.events.PutEvents", note)
    return lambda: client


def kinesis_event(*jobs: Any) -> dict[str, Any]:
    """A Kinesis event with a record for each job, numbered from 0. Bytes are a record's data as they are."""
    datas = [job if isinstance(job, bytes) else json.dumps(job).encode() for job in jobs]
    return {
        "Records": [
            {"kinesis": {"sequenceNumber": str(number), "data": base64.b64encode(data).decode()}}
            for number, data in enumerate(datas)
        ]
    }


def image_bytes(
    size: tuple[int, int] = (256, 256), mode: str = "L", fmt: str = "PNG", seed: int = 0, **options: Any
) -> bytes:
    """An image of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, fmt, **options)
    return file.getvalue()


def png(width: int, height: int, *, bit_depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Waits until the condition holds; fails naming what did not happen."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not in {seconds:.0f} s"
        time.sleep(0.2)
