"""Sends jobs as the original project does: index read by pandas, one key a record, refused records lost.

Arguments: bucket, index key, stream, number of keys. Prints keys, seconds from the first call of AWS to the
last answer, and peak memory, as JSON. Do not change it: the benchmarks compare with it.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pandas

from benchmarks.memory import peak_mb

bucket, index_key, stream, count = sys.argv[1:]
s3, kinesis = boto3.client("s3"), boto3.client("kinesis")
started = time.perf_counter()
table = pandas.read_csv(s3.get_object(Bucket=bucket, Key=index_key)["Body"])
keys = table["Key"].tolist()[: int(count)]


def put(start: int) -> None:
    """Put 500 keys on the stream."""
    records: Any = [
        {"Data": json.dumps({"Bucket": bucket, "Key": key}), "PartitionKey": key}
        for key in keys[start : start + 500]
    ]
    kinesis.put_records(StreamName=stream, Records=records)


with ThreadPoolExecutor(10) as pool:
    list(pool.map(put, range(0, len(keys), 500)))
seconds = time.perf_counter() - started
print(json.dumps({"keys": len(keys), "seconds": seconds, "peak_mb": peak_mb()}))
