"""The job creator and the original's way, from keys to jobs on the stream: `python -m benchmarks.fan_out`.

Each in a new process, on one local AWS. The clock runs from the event to the answer: imports and the making
of AWS clients, which are boto3's and happen once a process, count for neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import boto3
from rich.console import Console

from benchmarks.listing import PREFIX, key, listing
from cxr import PROJECT
from cxr.local_aws.local_aws import LocalAws
from reliability.table import create_table

BUCKET, TABLE = "images", "predictions"
COUNTS = (10_000, 113_178, 1_000_000)
COMPARED = 113_178  # as many as NIH has images
# From so many keys on the original's way runs once: local AWS goes through the whole stream at every call,
# and a key a record takes minutes.
ONCE = 1_000_000
WAYS = ("index", "listing", "original")

# A process of its own, so that what is measured is the job creator's memory and nobody else's.
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
def local_aws() -> Iterator[str]:
    """Local AWS with a bucket and the stack's table, and the endpoint of an S3 that only lists."""
    with LocalAws() as aws, listing() as endpoint:
        aws.client("s3").create_bucket(Bucket=BUCKET)
        create_table(aws.client("dynamodb"), TABLE)
        yield endpoint


@contextmanager
def stream(name: str) -> Iterator[str]:
    """A stream, gone afterwards, or local AWS would hold the records of all."""
    kinesis = boto3.client("kinesis")
    kinesis.create_stream(StreamName=name, ShardCount=1)
    try:
        yield name
    finally:
        kinesis.delete_stream(StreamName=name)


def put_index(count: int) -> None:
    """Puts the index of the first `count` objects that the listing lists."""
    body = "\n".join(["Key", *map(key, range(count))])
    boto3.client("s3").put_object(Bucket=BUCKET, Key=index_key(count), Body=body.encode())


def index_key(count: int) -> str:
    return f"{PREFIX}{count}.csv"


def invoke(event: dict[str, Any], listing_endpoint: str) -> dict[str, Any]:
    """The job creator's answer to an event whose RunId is its stream; the seconds and its peak_mb."""
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
    return _run([sys.executable, "-c", INVOKE, json.dumps(event)], environment)


def measure(
    repeats: int, counts: Sequence[int], say: Callable[[str], object] = lambda doing: None
) -> dict[str, Any]:
    """`keys_per_second`, `peak_mb` and `repeats` of each count and way, medians; and `ratio`.

    `ratio` is ours over the original's way, from one index, at that of the counts which is nearest to NIH's.
    """
    found: dict[str, Any] = {}
    with local_aws() as endpoint:
        for count in counts:
            put_index(count)
            taken: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for repeat in range(repeats):
                for way in WAYS:
                    if way != "original" or count < ONCE or not repeat:
                        say(f"job creator: {count:,} keys, {way}, {repeat + 1} of {repeats}")
                        taken[way].append(_measured(way, count, f"{way}-{count}-{repeat}", endpoint))
            found[str(count)] = {
                way: {
                    "keys_per_second": count / median(each["seconds"] for each in runs),
                    "peak_mb": median(each["peak_mb"] for each in runs),
                    "repeats": len(runs),
                }
                for way, runs in taken.items()
            }
    compared = found[str(min(counts, key=lambda count: abs(count - COMPARED)))]
    ratio = compared["index"]["keys_per_second"] / compared["original"]["keys_per_second"]
    return {**found, "ratio": ratio}


def _measured(way: str, count: int, name: str, listing_endpoint: str) -> dict[str, Any]:
    """One run's seconds and peak_mb. Raises RuntimeError if it was not of all keys."""
    with stream(name):
        if way == "original":
            python = str(PROJECT / ".venv-training" / "bin" / "python")
            command = [python, "-m", "benchmarks.original_job_creator", BUCKET, index_key(count), name]
            result = _run([*command, str(count)], {})
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


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON in a process's last line. Raises RuntimeError with what it said when it failed."""
    done = subprocess.run(  # noqa: S603 - our own modules
        command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of keys")
    options = parser.parse_args()
    with Console(stderr=True).status("local AWS") as status:
        found = measure(options.repeats, [int(count) for count in options.counts.split(",")], status.update)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
