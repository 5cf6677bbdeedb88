"""The whole pipeline on local AWS, from the invocation of the job creator to the last prediction."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import psutil
from classifier import handler, images, model
from runs.jobs import Job, encode
from runs.table import RunTable

from cxr.local_aws.local_aws import LocalAws
from cxr.runs import run_status
from cxr.upload import upload

MINISTACK = "cxr.local_aws.guarded_ministack"
COPIES = 10  # of every image, each with a key of its own
WORKER_COPIES = 3  # of them, for a worker alone
KEYS_A_JOB = 32


def measure(
    models: Mapping[str, Path],
    folder: Path,
    files: Sequence[Path],
    repeats: int,
    tell: Callable[[str], object],
) -> dict[str, Any]:
    """`whole`: all that a deployed stack does; `workers`: a classifier alone on one CPU, with each model."""
    with LocalAws() as aws:
        tell("pipeline: deploying")
        stack = aws.deploy()
        s3 = aws.client("s3")
        for copy in range(COPIES):
            for _ in upload(s3, stack["ImagesBucketName"], f"{stack['KeyPrefix']}{copy}/", folder, files):
                pass
        keys = [f"{stack['KeyPrefix']}{copy}/{file.as_posix()}" for copy in range(COPIES) for file in files]
        whole = []
        for repeat in range(repeats + 1):
            tell(f"pipeline: run {repeat}/{repeats}")
            whole.append(_run(aws, stack, f"bench-{repeat}"))
        workers = {}
        for name, model_folder in models.items():
            tell(f"pipeline: one worker with {name}")
            done = subprocess.run(  # noqa: S603 - our own module
                [sys.executable, "-m", "benchmarks.pipeline", str(repeats)],
                check=True,
                input=json.dumps(keys[: WORKER_COPIES * len(files)]),
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "TABLE_NAME": stack["TableName"],
                    "BUCKET_NAME": stack["ImagesBucketName"],
                    "MODEL_DIR": str(model_folder),
                },
            )
            workers[name] = json.loads(done.stdout.splitlines()[-1])
    return {
        "images": len(keys),
        "whole": {name: median(run[name] for run in whole[1:]) for name in whole[0]},
        "workers": workers,
    }


def _run(aws: LocalAws, stack: dict[str, str], run_id: str) -> dict[str, float]:
    """Seconds and images a second of a run, and the CPU seconds that local AWS and the functions took."""
    before = _cpu_seconds()
    started = time.perf_counter()
    payload = json.dumps({"RunId": run_id}).encode()
    aws.client("lambda").invoke(FunctionName=stack["JobCreatorName"], Payload=payload)
    sent = time.perf_counter() - started
    table = RunTable(aws.client("dynamodb"), stack["TableName"])
    while not (status := run_status(table, run_id)).complete:
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    used = {name: seconds_now - before[name] for name, seconds_now in _cpu_seconds().items()}
    return {
        "seconds": seconds,
        "images_per_second": status.done / seconds,
        "job_creator_seconds": sent,
        "local_aws_cpu_seconds": used[MINISTACK],
        "classifier_cpu_seconds": used["awslambdaric"],
    }


def _cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of the processes below this one, by the module that they run."""
    used: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        with process.oneshot():
            times, command = process.cpu_times(), process.cmdline()
        name = next((part for part in (MINISTACK, "awslambdaric") if part in command), "other")
        used[name] += times.user + times.system
    return used


@contextmanager
def _counted(spent: dict[str, float]) -> Iterator[None]:
    """Has the classifier's steps note what CPU time they take in their thread."""
    steps: list[tuple[Any, str, str]] = [
        (handler.Classifier, "_fetch", "fetch"),
        (model, "decode", "decode"),
        (images.Preprocessing, "__call__", "resize"),
        (model.Model, "score", "infer"),
        (RunTable, "write", "write"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in steps]

    def noting(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return work(*arguments)
            finally:
                spent[step] += time.thread_time() - started

        return wrapper

    for (owner, name, step), (_, _, work) in zip(steps, originals, strict=True):
        setattr(owner, name, noting(step, work))
    try:
        yield
    finally:
        for owner, name, work in originals:
            setattr(owner, name, work)


def main() -> None:
    """One classifier on one CPU: `python -m benchmarks.pipeline REPEATS`, with keys as JSON on its input.

    Prints images a second, and the CPU milliseconds of each step, medians over the repeats.
    """
    repeats, keys = int(sys.argv[1]), json.loads(sys.stdin.read())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    classifier, bucket = handler.setup(), os.environ["BUCKET_NAME"]
    table = RunTable(boto3.client("dynamodb"), os.environ["TABLE_NAME"])
    rates, steps = [], []
    for _ in range(repeats + 1):
        run_id = f"{uuid.uuid4()}"
        run_uid = table.begin(run_id, {"model_sha256": handler.load_model().sha256}) or ""
        jobs = [
            Job(run_id, run_uid, bucket, tuple(keys[start : start + KEYS_A_JOB]))
            for start in range(0, len(keys), KEYS_A_JOB)
        ]
        records = [
            {
                "kinesis": {
                    "sequenceNumber": str(i),
                    "data": base64.b64encode(encode(job)["Data"]).decode(),
                }
            }
            for i, job in enumerate(jobs)
        ]
        spent: dict[str, float] = defaultdict(float)
        with _counted(spent):
            started, cpu = time.perf_counter(), time.process_time()
            classifier({"Records": records}, lambda: 900_000)
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
