"""What a month of arrivals costs, where the stack scores images as they arrive.

It is an upper bound: the images are taken to come one by one, spread over the whole day, so that as few of
them as possible share a job. Not included: errors and retries, and what the reconciliation reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from cxr.planning.capacity import (
    FIRST_BYTE_SECONDS,
    ITEM_BYTES,
    LISTED_KEYS,
    LOG_BYTES,
    Line,
    Workload,
    line,
    worker_rate,
)
from stacks.config import ONE_VCPU_MB, Config

DAYS_A_MONTH = 365 / 12
DAY_SECONDS = 86_400
ANNOUNCER_SECONDS = 0.3  # an invocation: it reads and writes the table, and puts its jobs on the stream
MESSAGES_A_CALL = 10  # of SQS, in the polls of Lambda (SQS API, ReceiveMessage)


def month(
    workload: Workload, config: Config, a_day: int, kept: int, prices: dict[str, Any]
) -> Iterator[Line]:
    """The lines of the bill for a month in which so many images arrive each day.

    `kept` are the images under the prefix, which the reconciliation lists each day.
    """
    images = a_day * DAYS_A_MONTH
    batches = min(images, DAYS_A_MONTH * DAY_SECONDS / max(1, config.arrivals_window))
    jobs = max(batches, images / config.images_per_job)
    busy = images / worker_rate(workload, config) + jobs * FIRST_BYTE_SECONDS
    kilobytes = math.ceil((ITEM_BYTES + workload.key_bytes) / 1024)
    # Each image is written as it waits and with its outcome; each of these transactions changes a counter,
    # and that of a batch also the item of the run (DynamoDB guide, transaction-apis: 2 units a KB).
    writes = 2 * (2 * images * kilobytes + 2 * batches + jobs)

    def of(item: str, quantity: float, price: str) -> Line:
        return line(prices, item, quantity, price)

    yield of("Lambda, classifier", busy * config.memory / 1024, f"lambda_{config.architecture}")
    yield of("Lambda, announcer", batches * ANNOUNCER_SECONDS * ONE_VCPU_MB / 1024, "lambda_x86_64")
    yield of("Lambda, requests", batches + jobs, "lambda_request")
    yield of("SQS, messages", images + 2 * max(batches, images / MESSAGES_A_CALL), "sqs_request")
    yield of("EventBridge, events of jobs", jobs, "event")
    yield of("Kinesis, jobs", jobs, "kinesis_put")
    yield of("DynamoDB, writes", writes, "dynamodb_write")
    yield of("DynamoDB, reads", 2 * images + 4 * jobs, "dynamodb_read")
    yield of("S3, images", images, "s3_get")
    yield of("S3, listing", DAYS_A_MONTH * math.ceil(kept / LISTED_KEYS), "s3_list")
    yield of("CloudWatch Logs", (batches + jobs) * LOG_BYTES / 1e9, "logs")
    yield of("X-Ray, traces", batches + jobs, "trace")
