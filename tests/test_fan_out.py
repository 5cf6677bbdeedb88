"""113,178 keys through the job creator: each sent once, in memory that does not grow with their number."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from support import BUCKET, PREFIX, ROOT, TABLE, create_table

from cxr.local import LocalAws

FEW, ALL = 10_000, 113_178
MEMORY_MB = 20

# A process of its own, so that what is measured is the job creator's memory and nobody else's.
INVOKE = """
import json, re, resource, sys
from pathlib import Path
from types import SimpleNamespace
import handler
context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
answer = handler.handle(json.loads(sys.argv[1]), context)
if sys.platform == "linux":  # where ru_maxrss begins with what the parent held when it forked
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"answer": answer, "peak_mb": peak / 2**20}))
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    with LocalAws():
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        create_table()
        yield


def key(number: int) -> str:
    return f"{PREFIX}images_{number // 10_000:03}/images/{number:08}_000.png"


def invoke(event: dict[str, Any], **environment: str) -> tuple[dict[str, Any], float]:
    """The job creator's answer, and its peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", INVOKE, json.dumps(event)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "lambdas" / "job_creator"),
            "BUCKET_NAME": BUCKET,
            "KEY_PREFIX": PREFIX,
            "STREAM_NAME": event["RunId"],
            "TABLE_NAME": TABLE,
            "IMAGES_PER_JOB": "32",
            "MODEL": "demo:1.0.0",
            "MODEL_SHA256": "ab" * 32,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return result["answer"], result["peak_mb"]


def sent(stream: str) -> Counter[str]:
    """How often each key is on the stream."""
    kinesis = boto3.client("kinesis")
    found: Counter[str] = Counter()
    (shard,) = kinesis.list_shards(StreamName=stream)["Shards"]
    iterator = kinesis.get_shard_iterator(
        StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    while (page := kinesis.get_records(ShardIterator=iterator))["Records"]:
        for record in page["Records"]:
            found.update(json.loads(record["Data"])["Keys"])
        iterator = page["NextShardIterator"]
    return found


def run_both(source: str, **environment: str) -> None:
    peaks = {}
    for count in (FEW, ALL):
        run_id = f"{source}-{count}"
        boto3.client("kinesis").create_stream(StreamName=run_id, ShardCount=1)
        event: dict[str, Any] = {"RunId": run_id, "JobCount": count}
        if source == "index":
            event["IndexKey"] = f"{PREFIX}{ALL}.csv"
        answer, peaks[count] = invoke(event, **environment)
        assert answer == {"RunId": run_id, "ImageCount": count, "JobCount": -(-count // 32)}
        assert sent(run_id) == Counter(key(number) for number in range(count))
    print(f"{source}: peak {peaks[FEW]:.1f} MB for {FEW} keys, {peaks[ALL]:.1f} MB for {ALL}")
    assert peaks[ALL] - peaks[FEW] < MEMORY_MB


@pytest.mark.usefixtures("aws")
def test_from_an_index() -> None:
    index = "\n".join(["Key", *(key(number) for number in range(ALL))])
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{PREFIX}{ALL}.csv", Body=index.encode())
    run_both("index")


@pytest.mark.usefixtures("aws")
def test_from_a_listing() -> None:
    """Of an S3 that only lists: to put so many objects would take local AWS minutes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        run_both("listing", AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


class Listing(BaseHTTPRequestHandler):
    """ListObjectsV2 of ALL objects, a thousand a page; the continuation token is where to go on."""

    def do_GET(self) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])
        end = min(start + 1000, ALL)
        entries = "".join(
            f"<Contents><Key>{key(n)}</Key><Size>1</Size></Contents>" for n in range(start, end)
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>"
        body = f"<ListBucketResult>{more if end < ALL else ''}{entries}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""
