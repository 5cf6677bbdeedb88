"""Measures one classifier on one CPU, from S3 to DynamoDB, for benchmarks.pipeline.

`python -m benchmarks.worker REPEATS` reads S3 keys as JSON from its input. It prints images a second and the
CPU milliseconds an image of each step, medians of the repeats, without a first one to warm up.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import boto3
from classifier import handler, model
from classifier.preprocessing import Preprocessing
from runs.jobs import Job, encode
from runs.table import RunTable

IMAGES_PER_JOB = 32
STEPS: list[tuple[Any, str, str]] = [  # owner and name of a function, and the step that it is
    (handler.Classifier, "_fetch", "fetch"),
    (model, "decode", "decode"),
    (Preprocessing, "__call__", "resize"),
    (model.Model, "score", "infer"),
    (RunTable, "write", "write"),
]


@contextmanager
def cpu_seconds_added_to(spent: dict[str, float]) -> Iterator[None]:
    """Within the block, every call of a step adds the CPU time of its thread to `spent`."""

    def measured(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[step] += time.thread_time() - started

        return wrapper

    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in STEPS]
    for (owner, name, step), (_, _, function) in zip(STEPS, originals, strict=True):
        setattr(owner, name, measured(step, function))
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def kinesis_event(run_id: str, run_uid: str, bucket: str, keys: list[str]) -> dict[str, Any]:
    """An event with the jobs of a run, as Lambda passes it to the classifier."""
    jobs = [
        Job(run_id, run_uid, bucket, tuple(keys[start : start + IMAGES_PER_JOB]))
        for start in range(0, len(keys), IMAGES_PER_JOB)
    ]
    data = [base64.b64encode(encode(job)["Data"]).decode() for job in jobs]
    return {"Records": [{"kinesis": {"sequenceNumber": str(i), "data": text}} for i, text in enumerate(data)]}


def main() -> None:
    repeats, keys = int(sys.argv[1]), json.loads(sys.stdin.read())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    classifier, bucket = handler.setup(), os.environ["BUCKET_NAME"]
    table = RunTable(boto3.client("dynamodb"), os.environ["TABLE_NAME"])
    run_fields = {"model_sha256": handler.load_model().sha256}
    rates, steps = [], []
    for _ in range(repeats + 1):
        run_id = f"{uuid.uuid4()}"
        run_uid = table.begin(run_id, run_fields) or ""
        event = kinesis_event(run_id, run_uid, bucket, keys)
        spent: dict[str, float] = defaultdict(float)
        with cpu_seconds_added_to(spent):
            started, cpu = time.perf_counter(), time.process_time()
            classifier(event, lambda: 900_000)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        rates.append(len(keys) / seconds)
        spent["other"] = cpu - sum(spent.values())
        steps.append({step: 1e3 * used / len(keys) for step, used in spent.items()})
    found = {
        "images_per_second": median(rates[1:]),
        "cpu_ms": {step: median(each[step] for each in steps[1:]) for step in steps[0]},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
