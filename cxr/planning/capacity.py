"""How long a run takes and what it costs: a formula for each thing that can bound it.

Jobs are made, queued, scored and written at the same time, so a run takes as long as its slowest bound.
Limits come from AWS's guides, each named where it is used. Service times are measured and come with the
workload.

Not included: errors, retries other than those of a throttled table, and the round trips of AWS other than
S3's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from classifier.handler import FETCHES
from runs.layout import COUNTERS, PARTITIONS

from stacks.config import ONE_VCPU_MB, STOP_SECONDS, Config, ConfigError

SERVICE_TIMES = Path(__file__).with_name("service_times.json")
PRICES = Path(__file__).with_name("prices.json")

# Round trips. S3's first byte takes roughly 100 to 200 ms (S3 guide, optimizing-performance). The classifier
# fetches ahead, so only the first image of an invocation waits for it. A listing waits at each page.
FIRST_BYTE_SECONDS = 0.1
POLL_SECONDS = 1  # Lambda polls a shard once a second (DG with-kinesis)

LISTED_KEYS = 1000  # a page of ListObjectsV2 (S3 API)
NEW_TABLE_WRITES = 4000  # write units/s of a new on-demand table (DynamoDB guide, warm-throughput)
PARTITION_WRITES = 1000  # write units/s of a partition (DynamoDB guide, bp-partition-key-design)
# Time of a run on a table that throttles, over the time that its busiest partition needs: a cancelled
# transaction has spent write units, and then its classifier waits. It is the median of 40 runs of
# `reliability.throttling` with 50 classifiers on a new table. With 200 it is 1.5, with 500 it is 1.8.
RETRIED = 1.35
TABLE_QUOTA = 40_000  # write units/s of a table, unless AWS is asked for more (DynamoDB guide, ServiceQuotas)
PUT_UNIT_BYTES = 25 * 1024  # a PUT payload unit (Kinesis pricing)
JOB_BYTES = 150  # of a record besides its keys: run, bucket, JSON and the partition key
ITEM_BYTES = 250  # of a prediction besides its key: scores, model, hash and time
LOG_BYTES = 1300  # an invocation: the handler's line, and Lambda's own two
METRICS = 8  # that the two functions print, paid by the hour in which they do; Lambda's own are free
ALARMS = 11  # of stacks/monitoring.py, on one metric each, beside one dashboard
ARRIVAL_ALARMS = 4  # with arrivals=on
# Lambda polls a queue with five long polls of 20 s at a time (Lambda guide, services-sqs-scaling).
POLLS_A_MONTH = 5 * 3 * 60 * 730
ENDPOINTS = (
    4  # of stacks/network.py with network=isolated: two services in two zones each; S3 and DynamoDB are free
)
CREATOR_SECONDS = 15 * 60 - STOP_SECONDS  # the longest that a function may run (DG gettingstarted-limits)
HOURS_A_MONTH = 730

# What `suggest` tries, besides the present values. Memory in whole vCPUs: scoring cannot use a part of one.
GRID: dict[str, tuple[int, ...]] = {
    "shards": (1, 2, 3, 5, 8, 10, 20, 50, 100, 200),
    "parallelization_factor": (1, 2, 5, 10),
    "memory": tuple(ONE_VCPU_MB * vcpus for vcpus in range(1, 6)),
    "images_per_job": (16, 32, 64, 99),
    "batch_size": (1, 2, 4, 16),
}
WORTH_SAYING = 0.05  # share of time or money; smaller differences are within the model's error
WORTH_SECONDS = 10
AS_GOOD = 0.02  # among settings this close to the best, the one with the fewest changes is suggested


# What bounds a run -> what helps.
WHAT_HELPS = {
    "job creator": "It lists keys page by page. Several runs, each of a Prefix, list at the same time.",
    "stream": "A shard takes 1,000 jobs/s and 1 MB/s. More shards take more.",
    "lanes": "The busiest of shards x parallelizationFactor classifiers ends last. More shards help.",
    "account concurrency": "A higher quota helps, or more memory for each classifier.",
    "DynamoDB table": "Its throughput doubles in half an hour of load. Until then classifiers wait, and you "
    "pay for that. The setting warmThroughput raises it at once; it cannot be lowered again.",
    "DynamoDB partition": "The counters of a run share one partition. Larger jobs or several runs help.",
    "S3 prefix": "S3 answers 5,500 GET/s a prefix, and splits a prefix as load grows. Several prefixes help.",
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The images of a run, and how fast one worker with one vCPU scores them."""

    images: int
    images_per_second: float  # one worker of one vCPU, from S3 to DynamoDB
    cold_start_seconds: float  # new process to first prediction, on one vCPU
    keys_per_second: float  # the job creator, without S3's round trips
    key_bytes: int = 60
    indexed: bool = False  # the keys come from a CSV in the bucket, else from listing it
    concurrency: int = 1000  # executions at once that the account allows
    table_writes: int = NEW_TABLE_WRITES  # write units/s that the table takes at once: its warm throughput


@dataclass(frozen=True)
class Line:
    """A line of the bill: a number of units and the dollars of each."""

    item: str
    quantity: float
    unit: str
    price: float

    @property
    def dollars(self) -> float:
        return self.quantity * self.price


@dataclass(frozen=True)
class Plan:
    """Time and cost of a run with these settings."""

    workload: Workload
    config: Config
    images_per_second_per_worker: float
    workers: int  # classifiers busy at once
    start_seconds: float  # until the first classifier works
    bounds: dict[str, float]  # what bounds the run -> seconds that it needs at least
    prices: dict[str, Any]  # the object of that name in prices.json
    idle_dollars: float  # a month in which nothing runs

    @property
    def seconds(self) -> float:
        return self.start_seconds + max(self.bounds.values())

    @property
    def bottleneck(self) -> str:
        return max(self.bounds, key=lambda name: self.bounds[name])

    # Made only when they are read: `suggest` compares thousands of plans by their time.
    @cached_property
    def lines(self) -> tuple[Line, ...]:
        hours = math.ceil(self.seconds / 3600)
        return tuple(bill(self.workload, self.config, self.bounds, hours, self.prices))

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What would go wrong, and what to do about it."""
        return tuple(warnings(self.workload, self.config, self.bounds, self.start_seconds))

    @property
    def dollars(self) -> float:
        return sum(line.dollars for line in self.lines)


def plan(workload: Workload, config: Config, prices: dict[str, Any]) -> Plan:
    """The plan for settings; `prices` is the object of that name in prices.json."""
    bounds = {
        "job creator": job_creator_seconds(workload) + job_seconds(workload, config),
        "stream": stream_seconds(workload, config),
        "lanes": lanes_seconds(workload, config),
        "account concurrency": concurrency_seconds(workload, config),
        "DynamoDB table": table_seconds(workload, config),
        "DynamoDB partition": partition_seconds(workload, config),
        "S3 prefix": bucket_seconds(workload),
    }
    start = POLL_SECONDS + config.batch_window + cold_start_seconds(workload, config)
    hour = config.shards * prices["kinesis_shard"]["dollars"]
    if config.stream_retention > 24:
        hour += config.shards * prices["kinesis_retention"]["dollars"]
    if config.network == "isolated":
        hour += ENDPOINTS * prices["endpoint"]["dollars"]
    month = ALARMS * prices["alarm"]["dollars"] + prices["dashboard"]["dollars"]
    if config.arrivals == "on":
        month += ARRIVAL_ALARMS * prices["alarm"]["dollars"]
        month += line(prices, "SQS, polls", POLLS_A_MONTH, "sqs_request").dollars
    return Plan(
        workload=workload,
        config=config,
        images_per_second_per_worker=worker_rate(workload, config),
        workers=workers(workload, config),
        start_seconds=start,
        bounds=bounds,
        prices=prices,
        idle_dollars=HOURS_A_MONTH * hour + month,
    )


# What a run is made of


def jobs(workload: Workload, config: Config) -> int:
    """Records on the stream."""
    return math.ceil(workload.images / config.images_per_job)


def job_bytes(workload: Workload, config: Config) -> int:
    """Bytes of one record: each key in quotes and with a comma."""
    return JOB_BYTES + min(config.images_per_job, workload.images) * (workload.key_bytes + 3)


def cpu(config: Config) -> float:
    """vCPUs that score: whole ones from 1,769 MB on, a share of one below (DG configuration-memory)."""
    return config.memory // ONE_VCPU_MB or config.memory / ONE_VCPU_MB


def worker_rate(workload: Workload, config: Config) -> float:
    """Images a second of one busy classifier: the lower of what it scores and what it fetches from S3."""
    return min(workload.images_per_second * cpu(config), FETCHES / FIRST_BYTE_SECONDS)


def cold_start_seconds(workload: Workload, config: Config) -> float:
    """Seconds until a new classifier scores its first image. Loading uses at most one vCPU."""
    return workload.cold_start_seconds / min(1, cpu(config))


def job_seconds(workload: Workload, config: Config) -> float:
    """Seconds from a job's delivery to its predictions."""
    images = min(config.images_per_job, workload.images)
    return FIRST_BYTE_SECONDS + images / worker_rate(workload, config)


def lanes(config: Config) -> int:
    """Batches that Lambda delivers at once: shards x ParallelizationFactor (DG with-kinesis)."""
    return config.shards * config.parallelization_factor


def workers(workload: Workload, config: Config) -> int:
    """Classifiers busy at once: the lanes that get a job, at most what the account allows."""
    filled = lanes(config) * (1 - (1 - 1 / lanes(config)) ** jobs(workload, config))
    return min(workload.concurrency, math.ceil(round(filled, 6)))


def invocations(workload: Workload, config: Config) -> float:
    """Invocations of the classifier: full batches, and in each lane a last one that is half full.

    If the job creator is slower than the lanes, batches are not full.
    """
    number, filled = jobs(workload, config), workers(workload, config)
    fill = lanes_seconds(workload, config) / job_creator_seconds(workload)
    batch = max(1, config.batch_size * min(1, fill))
    return min(number, max(filled, number / batch + filled * (1 - 1 / batch) / 2))


def work_seconds(workload: Workload, config: Config) -> float:
    """Seconds of all classifiers together, if they wait only for the first image of each batch."""
    fetching = invocations(workload, config) * FIRST_BYTE_SECONDS
    return workload.images / worker_rate(workload, config) + fetching


def write_units(workload: Workload, config: Config) -> float:
    """DynamoDB write units: in a transaction each item takes 2 a KB (DynamoDB guide, transaction-apis).

    One item an image and one counter a job. Beginning the run writes its item and its counters; later its
    item changes twice.
    """
    kilobytes = math.ceil((ITEM_BYTES + workload.key_bytes) / 1024)
    return 2 * (workload.images * kilobytes + jobs(workload, config) + 1 + COUNTERS) + 2


def run_reads(workload: Workload, config: Config) -> float:
    """Reads of the run's item: twice an invocation, and once a second by the job creator."""
    return 2 * invocations(workload, config) + math.ceil(job_creator_seconds(workload))


@lru_cache(maxsize=10_000)
def busiest_lane(number: int, lane_count: int) -> int:
    """Jobs in the busiest lane: in at least half of all runs, no lane gets more.

    The hash of a job's partition key chooses its lane, and no two jobs share a key. The number of jobs in a
    lane is binomial; the chance that any lane has over k is at most the sum of the chances of all lanes.
    """
    if lane_count == 1:
        return number
    p, mean = 1 / lane_count, number / lane_count

    def lanes_over(k: int) -> float:
        """Expected number of lanes with over k jobs, for k from the mean on."""
        if k >= number:
            return 0
        i = k + 1
        ways = math.lgamma(number + 1) - math.lgamma(i + 1) - math.lgamma(number - i + 1)
        term = total = math.exp(ways + i * math.log(p) + (number - i) * math.log1p(-p))
        while term > total * 1e-9:
            term *= (number - i) / (i + 1) * p / (1 - p)
            i += 1
            total += term
        return lane_count * total

    low = math.floor(mean)
    high = low + math.ceil(8 * math.sqrt(mean)) + 30
    while low < high:
        middle = (low + high) // 2
        if lanes_over(middle) > 0.5:
            low = middle + 1
        else:
            high = middle
    return max(1, low)


# What can bound it: each in seconds, if nothing else did


def job_creator_seconds(workload: Workload) -> float:
    """Listing keys, one round trip to S3 a page (S3 guide, optimizing-performance), or reading an index.

    An index is read twice: first to find wrong rows before any job is sent.
    """
    encoding = workload.images / workload.keys_per_second
    round_trips = 2 if workload.indexed else math.ceil(workload.images / LISTED_KEYS)
    return encoding + round_trips * FIRST_BYTE_SECONDS


def stream_seconds(workload: Workload, config: Config) -> float:
    """A shard takes 1,000 records/s and 1 MB/s (Kinesis guide, service-sizes-and-limits).

    It gives twice that, so reading each record once is never the limit.
    """
    number = jobs(workload, config)
    return max(number / 1000, number * job_bytes(workload, config) / 1e6) / config.shards


def lanes_seconds(workload: Workload, config: Config) -> float:
    """The busiest lane works through its jobs batch by batch (DG with-kinesis)."""
    number = busiest_lane(jobs(workload, config), lanes(config))
    images = min(workload.images, number * config.images_per_job)
    batches = math.ceil(number / config.batch_size)
    return images / worker_rate(workload, config) + batches * FIRST_BYTE_SECONDS


def concurrency_seconds(workload: Workload, config: Config) -> float:
    """The account's executions share the work; a function gets 1,000 in 10 s (DG scaling-behavior)."""
    most = workers(workload, config)
    active, elapsed, left = min(most, 1000), 0, work_seconds(workload, config)
    while active < most and left > active * 10:
        left -= active * 10
        elapsed += 10
        active = min(most, active + 1000)
    return elapsed + left / active


def table_partitions(writes: int) -> int:
    """Partitions of a table that takes so many write units/s."""
    return math.ceil(writes / PARTITION_WRITES)


def table_rate(writes: int) -> float:
    """Write units/s that a run gets from a table that takes `writes` of them, once it throttles.

    The hash of a partition key chooses the partition (DynamoDB guide, HowItWorks.Partitions). A run has
    PARTITIONS keys, so one partition has more of them than the others. A transaction needs nearly all
    partitions, so the busiest decides. That DynamoDB splits a busy partition in time is not counted on.
    """
    busiest = busiest_lane(PARTITIONS, table_partitions(writes))
    return min(writes, PARTITION_WRITES * PARTITIONS / busiest) / RETRIED


def table_seconds(workload: Workload, config: Config) -> float:
    """A new on-demand table takes 4,000 write units/s (DynamoDB guide, warm-throughput).

    What it takes doubles in 30 minutes of full load (on-demand-capacity-mode), up to the quota of 40,000
    (ServiceQuotas). `table_rate` says what a run gets of that.
    """
    writes, elapsed, left = workload.table_writes, 0, write_units(workload, config)
    while writes < TABLE_QUOTA and left > table_rate(writes) * 1800:
        left -= table_rate(writes) * 1800
        elapsed += 1800
        writes = min(TABLE_QUOTA, writes * 2)
    return elapsed + left / table_rate(writes)


def partition_seconds(workload: Workload, config: Config) -> float:
    """A partition takes 1,000 write and 3,000 read units/s (DynamoDB guide, bp-partition-key-design).

    Predictions are spread over PARTITIONS keys; a run's counters share one, and all runs' items another.
    """
    number = jobs(workload, config)
    predictions = (write_units(workload, config) - 2 * number) / PARTITIONS
    return max(
        predictions / PARTITION_WRITES, 2 * number / PARTITION_WRITES, run_reads(workload, config) / 3000
    )


def bucket_seconds(workload: Workload) -> float:
    """S3 answers 5,500 GET/s a prefix (S3 guide, optimizing-performance); all images are in one."""
    return workload.images / 5500


# What it costs


def line(prices: dict[str, Any], item: str, quantity: float, price: str) -> Line:
    """A line of the bill, by an entry of the prices."""
    entry = prices[price]
    return Line(item, quantity, entry["unit"], entry["dollars"] / entry["per"])


def bill(
    workload: Workload, config: Config, bounds: dict[str, float], hours: int, prices: dict[str, Any]
) -> Iterator[Line]:
    """The lines of the bill. `hours` are the hours begun, by which the stream is billed."""
    number, calls = jobs(workload, config), invocations(workload, config)
    creator = job_creator_seconds(workload)
    creator_runs = math.ceil(creator / CREATOR_SECONDS)
    # A classifier that waits for DynamoDB or S3 is billed meanwhile.
    behind = max(bounds["DynamoDB table"], bounds["DynamoDB partition"], bounds["S3 prefix"])
    held_up = workers(workload, config) * behind if behind > bounds["job creator"] else 0
    busy = max(work_seconds(workload, config), held_up)
    # Init is billed as well (AWS compute blog, aws-lambda-standardizes-billing-for-init-phase).
    busy += workers(workload, config) * cold_start_seconds(workload, config)
    pages = math.ceil(workload.images / LISTED_KEYS)

    def of(item: str, quantity: float, price: str) -> Line:
        return line(prices, item, quantity, price)

    yield of("Lambda, classifier", busy * config.memory / 1024, f"lambda_{config.architecture}")
    yield of("Lambda, job creator", creator * ONE_VCPU_MB / 1024, "lambda_x86_64")
    yield of("Lambda, requests", math.ceil(calls) + creator_runs, "lambda_request")
    yield of("Kinesis, shards", hours * config.shards, "kinesis_shard")
    if config.stream_retention > 24:
        yield of("Kinesis, over 24 hours", hours * config.shards, "kinesis_retention")
    units = math.ceil(job_bytes(workload, config) / PUT_UNIT_BYTES)
    yield of("Kinesis, jobs", number * units, "kinesis_put")
    if config.network == "isolated":
        yield of("Endpoints", hours * ENDPOINTS, "endpoint")
        yield of("Endpoints, jobs", number * job_bytes(workload, config) / 1e9, "endpoint_data")
    yield of("DynamoDB, writes", write_units(workload, config), "dynamodb_write")
    # Besides the run's item, its counters: one unit an invocation, because they are small and adjacent.
    yield of("DynamoDB, reads", math.ceil(run_reads(workload, config) + calls), "dynamodb_read")
    yield of("S3, images", workload.images + 2 * workload.indexed, "s3_get")
    if not workload.indexed:
        yield of("S3, listing", pages, "s3_list")
    if config.images_kms_key:
        yield of("KMS, images", workload.images, "kms_request")
    yield of("CloudWatch Logs", calls * LOG_BYTES / 1e9, "logs")
    yield of("CloudWatch, metrics", METRICS * hours, "metric")
    # Lambda samples the first request each second and 5% of the others (DG services-xray).
    yield of("X-Ray, traces", math.ceil(min(calls, max(bounds.values()) + calls / 20)), "trace")


def warnings(
    workload: Workload, config: Config, bounds: dict[str, float], start_seconds: float
) -> Iterator[str]:
    """What would go wrong, and what to do about it."""
    creator = job_creator_seconds(workload)
    if creator > CREATOR_SECONDS:
        runs = math.ceil(creator / CREATOR_SECONDS)
        yield (
            f"The job creator would take {creator / 60:.0f} minutes, and Lambda stops it after 15: "
            f"split the images over at least {runs} runs by Prefix."
        )
    hours = (start_seconds + max(bounds.values())) / 3600
    if hours >= config.record_age:
        yield (
            f"The run takes {hours:.0f} hours, and after recordAge={config.record_age} a waiting job is "
            "discarded to the failure bucket: raise recordAge and streamRetention."
        )
    room = config.timeout - STOP_SECONDS
    images = min(config.batch_size * config.images_per_job, workload.images)
    batch = images / worker_rate(workload, config) + FIRST_BYTE_SECONDS
    if batch > room:
        yield (
            f"A batch takes {batch:.0f} s, and timeout={config.timeout} leaves it {room}: "
            "lower batchSize or imagesPerJob, or raise timeout."
        )
    table = max(bounds["DynamoDB table"], bounds["DynamoDB partition"])
    if table > 2 * max(bounds["lanes"], bounds["account concurrency"], bounds["job creator"]):
        yield (
            "The classifiers would write over twice what DynamoDB takes. They wait, and you pay for that. "
            "Fewer shards lose no time. The setting warmThroughput raises what the table takes: it cannot be "
            "lowered again, and AWS charges for it once (not in this plan: see the DynamoDB pricing page)."
        )


# What would be better


def by_shards(present: Plan) -> list[Plan]:
    """The same run with fewer and more shards, as far as more of them save time worth saying."""
    plans: list[Plan] = []
    for shards in sorted({1, 2, 4, 8, 16, 32, 64, present.config.shards}):
        found = plan(present.workload, replace(present.config, shards=shards), present.prices)
        needed = shards <= present.config.shards
        if needed or found.seconds < plans[-1].seconds * (1 - WORTH_SAYING):
            plans.append(found)
    return plans


def suggest(present: Plan, prices: dict[str, Any]) -> dict[str, Plan]:
    """Better settings: "cheaper" (as fast, for less) and "faster" (the fastest), if there are any.

    Only settings that Config allows and that have no more warnings than the present ones.
    """
    tried = [found for found in _plans(present, prices) if len(found.warnings) <= len(present.warnings)]
    suggestions = {}
    as_fast = [
        found
        for found in tried
        if found.seconds <= present.seconds
        and found.idle_dollars <= present.idle_dollars
        and found.config.memory <= present.config.memory  # the gain of several vCPUs was not measured
    ]
    cheapest = min(found.dollars for found in as_fast)
    if cheapest < present.dollars * (1 - WORTH_SAYING):
        near = (found for found in as_fast if found.dollars <= cheapest * (1 + AS_GOOD))
        suggestions["cheaper"] = min(near, key=lambda found: _changes(present, found))
    fastest = min(found.seconds for found in tried)
    if fastest < min(present.seconds * (1 - WORTH_SAYING), present.seconds - WORTH_SECONDS):
        near = (found for found in tried if found.seconds <= fastest * (1 + AS_GOOD))
        suggestions["faster"] = min(near, key=lambda found: _changes(present, found))
    return suggestions


def _plans(present: Plan, prices: dict[str, Any]) -> Iterator[Plan]:
    """The present plan, and one for every point of the grid."""
    yield present
    values = [sorted({*choices, getattr(present.config, name)}) for name, choices in GRID.items()]
    for point in product(*values):
        try:
            config = replace(present.config, **dict(zip(GRID, point, strict=True)))
        except ConfigError:
            continue
        yield plan(present.workload, config, prices)


def _changes(present: Plan, found: Plan) -> tuple[float, ...]:
    """The order of equally good plans. Less memory comes first, because its gain was not measured."""
    changed = sum(getattr(present.config, name) != getattr(found.config, name) for name in GRID)
    return found.config.memory, changed, found.dollars, found.idle_dollars, found.seconds


def read_json(path: Path) -> dict[str, Any]:
    """The object in SERVICE_TIMES or PRICES."""
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
