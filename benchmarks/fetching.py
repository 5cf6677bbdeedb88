"""Compares a worker that fetches by boto3 with one that fetches by obstore, and with bytes to score alone.

`python -m benchmarks.fetching [ROUNDS]` measures all three ways on one CPU in each round, so only
ratios count. docs/decisions/0019-fetching.md has the result.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import boto3
from classifier import handler, objects
from runs.table import RunTable

from benchmarks.__main__ import find_images
from benchmarks.child_process import run_json
from benchmarks.worker import kinesis_event
from cxr.local_aws.local_aws import LocalAws
from cxr.upload import upload

COPIES = 4  # uploads of every image


def measure(rounds: int, keys: list[str]) -> dict[str, list[dict[str, float]]]:
    """Of each way, seconds and CPU seconds of each round. The first round is left out: it warms up."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bucket, model = os.environ["BUCKET_NAME"], handler.load_model()
    table = RunTable(boto3.client("dynamodb"), os.environ["TABLE_NAME"])
    s3 = boto3.client("s3")
    files = [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]
    parts: dict[str, Any] = {"model": model, "table": table, "s3": s3, "bucket": bucket, "vcpus": 1}
    parts["events"] = lambda: boto3.client("events")

    def score(worker: handler.Classifier) -> None:
        run = f"{uuid.uuid4()}"
        run_uid = table.begin(run, {"model_sha256": model.sha256}) or ""
        answer = worker(kinesis_event(run, run_uid, bucket, keys), lambda: 900_000)
        assert answer == {"batchItemFailures": []}, answer  # noqa: S101 - a benchmark of failures is none

    ways: dict[str, Callable[[], object]] = {
        "bytes to score": lambda: [model.score([model.prepare(data)[0]]) for data in files],
        "boto3": functools.partial(score, handler.Classifier(**parts)),
        "obstore": functools.partial(score, handler.Classifier(**parts, read=objects.read)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started, cpu = time.perf_counter(), time.process_time()
            way()
            seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
            if number:
                found[name].append(seconds)
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as drawings, LocalAws() as aws:
        folder, files = find_images(None, Path(drawings))
        stack = aws.deploy()
        prefixes = [f"{stack['KeyPrefix']}{copy}/" for copy in range(COPIES)]
        for prefix in prefixes:
            for _ in upload(aws.client("s3"), stack["ImagesBucketName"], prefix, folder, files):
                pass
        keys = [f"{prefix}{file.as_posix()}" for prefix in prefixes for file in files]
        names = {"TABLE_NAME": stack["TableName"], "BUCKET_NAME": stack["ImagesBucketName"]}
        command = [sys.executable, "-m", "benchmarks.fetching", f"{rounds}", "child"]
        found: dict[str, Any] = run_json(command, names, stdin=json.dumps(keys))
    for name, times in found.items():
        for unit in ("seconds", "cpu"):
            ratio = median(
                alone[unit] / each[unit] for alone, each in zip(found["bytes to score"], times, strict=True)
            )
            ms = 1e3 * median(each[unit] for each in times) / len(keys)
            print(f"{name:15} {unit:8} {ms:6.2f} ms an image, rate {ratio:.3f} of bytes to score alone")
    for unit in ("seconds", "cpu"):
        pairs = zip(found["boto3"], found["obstore"], strict=True)
        print(f"obstore / boto3, {unit}: {median(old[unit] / new[unit] for old, new in pairs):.3f}")


if __name__ == "__main__":
    if sys.argv[2:] == ["child"]:
        print(json.dumps(measure(int(sys.argv[1]), json.loads(sys.stdin.read()))))
    else:
        main()
