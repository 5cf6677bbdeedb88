"""The classifier's memory has room for the largest image, and does not grow with the number of batches."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from classifier.bounds import MAX_BYTES, MAX_PIXELS
from classifier.model import Model
from PIL import Image
from runs.jobs import Job, encode
from runs.table import RunTable
from support import BUCKET, PREFIX, ROOT, TABLE, image_bytes, kinesis_event

from cxr.local_aws.local_aws import LocalAws
from reliability.table import create_table
from stacks.config import LEAST_MB

FIRST = 100
GROWTH = 1.05

# The classifier has a process to itself, as on Lambda.
CLASSIFY = """
import json, sys, psutil
from classifier.handler import setup
classifier, resident = setup(), []
for line in sys.stdin:
    answer = classifier(json.loads(line), lambda: 900_000)
    assert answer == {"batchItemFailures": []}, answer
    resident.append(psutil.Process().memory_info().rss)
print(json.dumps(resident))
"""


def batches(keys: list[str], number: int) -> list[dict[str, Any]]:
    """Kinesis events, each with a job of two images. A run has each image once, so every batch is written."""
    table = RunTable(boto3.client("dynamodb"), TABLE)
    model = Model(ROOT / "containers" / "classifier" / "model")
    events: list[dict[str, Any]] = []
    while len(events) < number:
        run = f"run-{len(events)}"
        run_uid = table.begin(run, {"model": model.name, "model_sha256": model.sha256})
        assert run_uid
        for pair in zip(keys[::2], keys[1::2], strict=True):
            events.append(kinesis_event(encode(Job(run, run_uid, BUCKET, pair))["Data"]))
    return events[:number]


@pytest.mark.examples(many=250)
def test_memory_does_not_grow_after_a_hundred_batches(xrays: list[Path], examples: int) -> None:
    files = {path.name: path.read_bytes() for path in xrays}
    files |= {
        "cut.png": xrays[0].read_bytes()[:100_000],
        "colour.png": image_bytes((900, 700), "RGB"),
        "grey.jpg": image_bytes((1024, 1024), fmt="JPEG"),
        "palette.png": image_bytes((700, 900), "P"),
    }
    with LocalAws():
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        create_table(boto3.client("dynamodb"), TABLE)
        for name, data in files.items():
            boto3.client("s3").put_object(Bucket=BUCKET, Key=PREFIX + name, Body=data)
        events = batches([PREFIX + name for name in files], examples)
        done = subprocess.run(
            [sys.executable, "-c", CLASSIFY],
            input="".join(f"{json.dumps(event)}\n" for event in events),
            env={**os.environ, "BUCKET_NAME": BUCKET, "TABLE_NAME": TABLE},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout.splitlines()[-1])
    mb = [f"{resident[batch - 1] / 2**20:.1f}" for batch in (1, 10, FIRST, examples)]
    print(f"resident MB after 1, 10, {FIRST} and {examples} batches: {', '.join(mb)}")
    assert resident[-1] <= GROWTH * resident[FIRST - 1]


# Scores the file that is named among 60 others, each as large as may be fetched ahead. The last line is the
# peak memory in MB.
LARGEST = """
import io, sys
from pathlib import Path
from classifier.handler import AHEAD_BYTES, Classifier, load_model
from benchmarks.memory import peak_mb

class S3:
    def get_object(self, Bucket, Key):
        data = Path(sys.argv[1]).read_bytes() if Key == "largest" else b"x" * AHEAD_BYTES
        return {"ContentLength": len(data), "Body": io.BytesIO(data), "ETag": "0"}

classifier = Classifier(model=load_model(), table=None, s3=S3(), events=None, bucket="images", vcpus=1)
keys = [*map(str, range(20)), "largest", *map(str, range(20, 60))]
answer = classifier({"Jobs": [{"RunId": "r", "Key": key} for key in keys]}, lambda: 900_000)
statuses = {prediction["Key"]: prediction["Status"] for prediction in answer["Predictions"]}
assert statuses.pop("largest") == "SCORED" and set(statuses.values()) == {"FAILED"}
print(peak_mb())
"""


@pytest.mark.slow
def test_the_least_memory_is_enough_for_the_largest_image_and_all_that_is_fetched_ahead(
    tmp_path: Path,
) -> None:
    side, file = math.isqrt(MAX_PIXELS), tmp_path / "largest.png"
    grey = np.tile(np.arange(side, dtype=np.uint16) % 256 * 256, (side, 1))
    noisy = side * 9 // 10  # rows: compressed, the file is a little under 64 MiB
    grey[:noisy] += np.random.default_rng(0).integers(0, 256, (noisy, side), dtype=np.uint16)
    Image.fromarray(grey).save(file, compress_level=1)
    assert 0.8 * MAX_BYTES < file.stat().st_size < MAX_BYTES
    command = [sys.executable, "-c", LARGEST, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.splitlines()[-1])
    print(f"peak memory: {peak:.0f} MB")
    assert peak < LEAST_MB
