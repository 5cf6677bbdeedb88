"""Measures the job creator beside the original's, from keys to jobs on the stream.

`python -m benchmarks.fan_out` runs it alone. Each job creator runs in a new process, all on one local AWS.
The time is from the event to the answer. Importing modules and making AWS clients take the same in both and
happen once in a process, so they are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import boto3
from rich.console import Console

from benchmarks import NIH_IMAGES
from benchmarks.child_process import TRAINING_PYTHON, run_json
from benchmarks.listing_server import PREFIX, listing_server, object_key
from cxr import PROJECT
from cxr.local_aws.local_aws import LocalAws
from reliability.table import create_table

BUCKET, TABLE = "images", "predictions"
COUNTS = (10_000, NIH_IMAGES, 1_000_000)
# With this many keys or more, the original runs only once. It sends one key a record, and local AWS goes
# through the whole stream at every call, so a run takes minutes.
ORIGINAL_ONCE = 1_000_000
WAYS = ("index", "listing", "original")

INVOKE = """
import json, sys, time
from types import SimpleNamespace
from job_creator import handler
from benchmarks.memory import peak_mb
context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
handler.setup()
started = time.perf_counter()
answer = handler.handle(json.loads(sys.argv[1]), context)
seconds = time.perf_counter() - started
print(json.dumps({"answer": answer, "seconds": seconds, "peak_mb": peak_mb()}))
"""


@contextmanager
def start_local_aws() -> Iterator[str]:
    """Local AWS with a bucket and the stack's table, and the endpoint of a listing server."""
    with LocalAws() as aws, listing_server() as endpoint:
        aws.client("s3").create_bucket(Bucket=BUCKET)
        create_table(aws.client("dynamodb"), TABLE)
        yield endpoint


@contextmanager
def temporary_stream(name: str) -> Iterator[None]:
    """A stream within the block. Its records take memory of local AWS until it is deleted."""
    kinesis = boto3.client("kinesis")
    kinesis.create_stream(StreamName=name, ShardCount=1)
    try:
        yield
    finally:
        kinesis.delete_stream(StreamName=name)


def put_index(count: int) -> None:
    """Put the index of the first `count` objects of the listing server into the bucket."""
    body = "\n".join(["Key", *map(object_key, range(count))])
    boto3.client("s3").put_object(Bucket=BUCKET, Key=index_key(count), Body=body.encode())


def index_key(count: int) -> str:
    return f"{PREFIX}{count}.csv"


def invoke(event: dict[str, Any], listing_endpoint: str) -> dict[str, Any]:
    """Run the job creator on an event whose RunId is the name of its stream: answer, seconds and peak_mb."""
    environment = {
        "PYTHONPATH": str(PROJECT / "lambdas"),
        "BUCKET_NAME": BUCKET,
        "KEY_PREFIX": PREFIX,
        "STREAM_NAME": event["RunId"],
        "TABLE_NAME": TABLE,
        "IMAGES_PER_JOB": "32",
        "RUN_FIELDS": json.dumps({"model": "demo:1.0.0", "model_sha256": "ab" * 32}),
    }
    if "IndexKey" not in event:
        environment["AWS_ENDPOINT_URL_S3"] = listing_endpoint
    result: dict[str, Any] = run_json([sys.executable, "-c", INVOKE, json.dumps(event)], environment)
    return result


def measure(repeats: int, counts: Sequence[int], show_progress: Callable[[str], object]) -> dict[str, Any]:
    """For each count and way the medians `keys_per_second` and `peak_mb`, and `repeats`; and `ratio`.

    `ratio` is the speed of the job creator from an index divided by that of the original, at the count
    nearest to NIH_IMAGES.
    """
    found: dict[str, Any] = {}
    with start_local_aws() as endpoint:
        for count in counts:
            put_index(count)
            results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for repeat in range(repeats):
                for way in WAYS:
                    if way != "original" or count < ORIGINAL_ONCE or not repeat:
                        show_progress(f"job creator: {count:,} keys, {way}, {repeat + 1} of {repeats}")
                        results[way].append(_run(way, count, f"{way}-{count}-{repeat}", endpoint))
            found[str(count)] = {
                way: {
                    "keys_per_second": count / median(each["seconds"] for each in runs),
                    "peak_mb": median(each["peak_mb"] for each in runs),
                    "repeats": len(runs),
                }
                for way, runs in results.items()
            }
    compared = found[str(min(counts, key=lambda count: abs(count - NIH_IMAGES)))]
    ratio = compared["index"]["keys_per_second"] / compared["original"]["keys_per_second"]
    return {**found, "ratio": ratio}


def _run(way: str, count: int, name: str, listing_endpoint: str) -> dict[str, Any]:
    """Seconds and peak_mb of one run. Raises RuntimeError if it did not send all keys."""
    with temporary_stream(name):
        if way == "original":
            command = [str(TRAINING_PYTHON), "-m", "benchmarks.original_job_creator"]
            result: dict[str, Any] = run_json([*command, BUCKET, index_key(count), name, str(count)], {})
            keys = result["keys"]
        else:
            event: dict[str, Any] = {"RunId": name, "JobCount": count}
            if way == "index":
                event["IndexKey"] = index_key(count)
            result = invoke(event, listing_endpoint)
            keys = result["answer"]["ImageCount"]
    if keys != count:
        raise RuntimeError(f"{way}: expected {count} keys to be sent, found {keys}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    counts = ",".join(map(str, COUNTS))
    parser.add_argument("--counts", default=counts, help="numbers of keys (default: %(default)s)")
    options = parser.parse_args()
    with Console(stderr=True).status("local AWS") as status:
        found = measure(options.repeats, [int(count) for count in options.counts.split(",")], status.update)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
