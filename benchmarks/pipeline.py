"""Measures the whole pipeline on local AWS, from the invocation of the job creator to the last prediction."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from runs.table import RunTable

from benchmarks import rounds
from benchmarks.child_process import run_json
from cxr.local_aws.local_aws import LocalAws
from cxr.runs import run_status
from cxr.upload import upload

LOCAL_AWS, FUNCTIONS = "cxr.local_aws.guarded_ministack", "awslambdaric"  # modules that processes run
COPIES = 10  # uploads of every image, under different keys
WORKER_COPIES = 3  # copies that a worker alone scores


def measure(
    models: Mapping[str, Path],
    folder: Path,
    files: Sequence[Path],
    repeats: int,
    show_progress: Callable[[str], object],
) -> dict[str, Any]:
    """`whole`: runs of a deployed stack. `workers`: one classifier on one CPU, with each of the models."""
    with LocalAws() as aws:
        show_progress("pipeline: deploying")
        stack = aws.deploy()
        s3 = aws.client("s3")
        for copy in range(COPIES):
            for _ in upload(s3, stack["ImagesBucketName"], f"{stack['KeyPrefix']}{copy}/", folder, files):
                pass
        keys = [f"{stack['KeyPrefix']}{copy}/{file.as_posix()}" for copy in range(COPIES) for file in files]
        runs = []
        for number, counts in enumerate(rounds(repeats), 1):
            show_progress(f"pipeline: run {number}")
            run = _measure_run(aws, stack, f"bench-{number}")
            if counts:
                runs.append(run)
        workers = {}
        for name, bundle in models.items():
            show_progress(f"pipeline: one worker with {name}")
            workers[name] = run_json(
                [sys.executable, "-m", "benchmarks.worker", str(repeats)],
                {
                    "TABLE_NAME": stack["TableName"],
                    "BUCKET_NAME": stack["ImagesBucketName"],
                    "MODEL_DIR": str(bundle),
                },
                stdin=json.dumps(keys[: WORKER_COPIES * len(files)]),
            )
    return {
        "images": len(keys),
        "whole": {name: median(run[name] for run in runs) for name in runs[0]},
        "workers": workers,
    }


def _measure_run(aws: LocalAws, stack: dict[str, str], run_id: str) -> dict[str, float]:
    """Seconds and images a second of a run, and CPU seconds of local AWS and of the functions."""
    before = _cpu_seconds()
    started = time.perf_counter()
    payload = json.dumps({"RunId": run_id}).encode()
    aws.client("lambda").invoke(FunctionName=stack["JobCreatorName"], Payload=payload)
    job_creator_seconds = time.perf_counter() - started
    table = RunTable(aws.client("dynamodb"), stack["TableName"])
    while not (status := run_status(table, run_id)).complete:
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    used = {name: seconds_now - before[name] for name, seconds_now in _cpu_seconds().items()}
    return {
        "seconds": seconds,
        "images_per_second": status.done / seconds,
        "job_creator_seconds": job_creator_seconds,
        "local_aws_cpu_seconds": used[LOCAL_AWS],
        "classifier_cpu_seconds": used[FUNCTIONS],
    }


def _cpu_seconds() -> dict[str, float]:
    """CPU seconds that child processes of this one have used so far, by the module that they run."""
    used: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        with process.oneshot():
            times, command = process.cpu_times(), process.cmdline()
        module = next((part for part in (LOCAL_AWS, FUNCTIONS) if part in command), "other")
        used[module] += times.user + times.system
    return used
