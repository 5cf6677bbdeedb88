"""A thousand batches in one process hold no more memory at their end than after the first hundred."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
from support import BUCKET, PREFIX, TABLE, image_bytes

from cxr.local_aws.local_aws import LocalAws
from reliability.table import create_table

BATCHES, FIRST = 1000, 100
GROWTH = 1.05

# A process of its own, as on Lambda: the memory is the classifier's and nobody else's.
CLASSIFY = """
import json, sys, psutil
from classifier.handler import setup
classifier, resident = setup(), []
keys = json.loads(sys.argv[1])
for batch in range(int(sys.argv[2])):
    jobs = [{"RunId": f"batch-{batch}", "Key": keys[(2 * batch + i) % len(keys)]} for i in range(2)]
    answer = classifier({"Jobs": jobs}, lambda: 900_000)
    assert len(answer["Predictions"]) == 2, answer
    resident.append(psutil.Process().memory_info().rss)
print(json.dumps(resident))
"""


def test_a_thousand_batches_take_no_more_than_a_hundred(xrays: list[Path]) -> None:
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
        done = subprocess.run(
            [sys.executable, "-c", CLASSIFY, json.dumps([PREFIX + name for name in files]), str(BATCHES)],
            env={**os.environ, "BUCKET_NAME": BUCKET, "TABLE_NAME": TABLE},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout.splitlines()[-1])
    mb = [f"{resident[batch - 1] / 2**20:.1f}" for batch in (1, 10, FIRST, 300, BATCHES)]
    print(f"resident MB after 1, 10, {FIRST}, 300 and {BATCHES} batches: {', '.join(mb)}")
    assert resident[BATCHES - 1] <= GROWTH * resident[FIRST - 1]
