"""What a verification measures: how fast classifiers score, how they start, and what it cost."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cxr.classifier_log import LOCAL_LOGS
from cxr.doctor import is_local
from cxr.planning import capacity
from cxr.runs import recent_metric
from cxr.stack import Stack, client
from stacks.config import Config

LOG_SECONDS = 90  # that CloudWatch Logs may take to show a line
LOOK_SECONDS = 3
# The lines of the handler, and those of Lambda (Lambda guide, telemetry-schema-reference).
PATTERN = '{ $.ImagesScored >= 0 || $.type = "platform.report" }'
MILLISECONDS = "Milliseconds"


@dataclass(frozen=True)
class Report:
    """An invocation, as Lambda reports it."""

    ended: datetime
    seconds: float
    billed_seconds: float
    init_seconds: float | None  # of a new execution environment


@dataclass(frozen=True)
class Measurement:
    """What was measured; None where the log or CloudWatch does not say it."""

    date: str
    machine: str
    model: str  # name:version
    vcpus: float  # of one classifier
    images: int  # with an outcome, a second delivery included
    invocations: int
    images_per_second: float | None  # of one busy classifier, from S3 to DynamoDB
    milliseconds: Mapping[str, float]  # metric of the classifier's log -> mean of an image
    cold_starts: int
    cold_start_seconds: float | None  # from a new process to its first prediction, the median
    most_at_once: int  # classifiers, in the first run
    seconds_to_most: float | None  # from the start of the first run
    throttles: int | None
    gigabyte_seconds: float | None
    dollars: float | None

    def service_times(self) -> dict[str, Any]:
        """What `cxr plan` takes. Raises ValueError if the speed was not measured."""
        if self.images_per_second is None:
            raise ValueError("the speed was not measured")
        shipped = capacity.read_json(capacity.SERVICE_TIMES)
        cold_start = shipped["cold_start_seconds"]
        if self.cold_start_seconds is not None:
            cold_start = self.cold_start_seconds * min(1, self.vcpus)  # on one vCPU
        return {
            "measured": self.date,
            "machine": self.machine,
            "images_per_second": {
                self.model.rpartition(":")[0]: round(self.images_per_second / self.vcpus, 2)
            },
            "cold_start_seconds": round(cold_start, 3),
            "keys_per_second": shipped["keys_per_second"],  # too few keys to measure
        }


def images_scored(images: int) -> int:
    """How many images a verification scores: all three times, and some more."""
    return 3 * images + 50


def estimate(stack: Stack, images: int) -> float:
    """Dollars that a verification costs, by the service times that ship."""
    return _other_dollars(stack, images) + _line(stack, images, "Lambda, classifier")


def measure(
    stack: Stack,
    *,
    began: datetime,
    first_run: tuple[datetime, datetime],
    runs: str,
    model: str,
    images: int,
    seen: int,
) -> Measurement:
    """What the log of the classifier says since `began` of the runs whose names begin with `runs`.

    It waits until the log has `seen` images. `images` is the number that were uploaded. Raises ClientError
    and BotoCoreError.
    """
    lines, reports = _read(stack, began, runs, seen)
    done = [(line["ImagesScored"] + line["ImagesFailed"], line) for line in lines]
    weighted: Counter[str] = Counter()
    for number, line in done:
        weighted.update({name: number * line[name] for name in line if name.startswith(MILLISECONDS)})
    total = sum(number for number, _ in done)
    busy = weighted["MillisecondsPerImage"] / 1000
    rate = total / busy if busy else None
    inits = [report.init_seconds for report in reports if report.init_seconds is not None]
    most, seconds = _most_at_once(reports, *first_run)
    config = Config.from_settings(stack.settings)
    billed = sum(report.billed_seconds for report in reports) * config.memory / 1024 if reports else None
    return Measurement(
        date=f"{began:%Y-%m-%d}",
        machine=_machine(config),
        model=model,
        vcpus=capacity.cpu(config),
        images=total,
        invocations=len(lines),
        images_per_second=rate,
        milliseconds={name: value / total for name, value in weighted.items()} if total else {},
        cold_starts=len(inits),
        cold_start_seconds=statistics.median(inits) + (1 / rate if rate else 0) if inits else None,
        most_at_once=most,
        seconds_to_most=seconds,
        throttles=_throttles(stack),
        gigabyte_seconds=billed,
        dollars=None if billed is None else _dollars(stack, images, billed, config),
    )


def _read(stack: Stack, began: datetime, runs: str, images: int) -> tuple[list[dict[str, Any]], list[Report]]:
    """The lines of the handler on these runs, once they cover so many images, and the reports of Lambda."""
    until = time.monotonic() + LOG_SECONDS
    while True:
        lines, reports = [], []
        for record in _records(stack, began):
            if any(str(run).startswith(runs) for run in record.get("runs", ())):
                lines.append(record)
            elif record.get("type") == "platform.report" and (report := _report(record)):
                reports.append(report)
        seen = sum(line["ImagesScored"] + line["ImagesFailed"] for line in lines)
        if seen >= images or time.monotonic() > until:
            return lines, reports
        time.sleep(LOOK_SECONDS)


def _records(stack: Stack, began: datetime) -> Iterator[dict[str, Any]]:
    """The JSON lines of the classifier's log since then."""
    folder = os.environ.get(LOCAL_LOGS)
    lines = _local_lines(Path(folder)) if folder else _cloudwatch_lines(stack, began)
    for line in lines:
        try:
            record = json.loads(line)
            if datetime.fromisoformat(record.get("timestamp") or record["time"]) >= began:
                yield record
        except (ValueError, KeyError, TypeError, AttributeError):  # a line of something else
            continue


def _local_lines(folder: Path) -> Iterable[str]:
    return (folder / "classifier.log").read_text(errors="replace").splitlines()


def _cloudwatch_lines(stack: Stack, began: datetime) -> Iterator[str]:
    found = client("lambda").get_function_configuration(FunctionName=stack.classifier)
    group = found.get("LoggingConfig", {}).get("LogGroup", f"/aws/lambda/{stack.classifier}")
    pages = (
        client("logs")
        .get_paginator("filter_log_events")
        .paginate(logGroupName=group, startTime=int(began.timestamp() * 1000), filterPattern=PATTERN)
    )
    return (event["message"] for page in pages for event in page["events"])


def _report(record: Mapping[str, Any]) -> Report | None:
    """The report of an invocation; None for one without its metrics."""
    metrics = record["record"].get("metrics", {})
    if "durationMs" not in metrics:
        return None
    init = metrics.get("initDurationMs")
    return Report(
        ended=datetime.fromisoformat(record["time"]),
        seconds=metrics["durationMs"] / 1000,
        billed_seconds=metrics.get("billedDurationMs", metrics["durationMs"]) / 1000,
        init_seconds=None if init is None else init / 1000,
    )


def _most_at_once(reports: Iterable[Report], start: datetime, end: datetime) -> tuple[int, float | None]:
    """The most invocations at one time within start and end, and how many seconds after the start."""
    changes = [
        change
        for report in reports
        if report.ended - timedelta(seconds=report.seconds) < end and report.ended > start
        for change in ((report.ended - timedelta(seconds=report.seconds), 1), (report.ended, -1))
    ]
    most, at, now = 0, None, 0
    for moment, change in sorted(changes):
        now += change
        if now > most:
            most, at = now, moment
    return most, None if at is None else max(0.0, (at - start).total_seconds())


def _throttles(stack: Stack) -> int | None:
    """Of the classifier in the last minutes; None on local AWS, which throttles nothing."""
    if is_local():
        return None
    return int(sum(recent_metric(client("cloudwatch"), stack.classifier, "Throttles", "Sum")))


def _machine(config: Config) -> str:
    if is_local():
        return f"local AWS, {os.cpu_count()} cores"
    region = client("lambda").meta.region_name
    return f"AWS Lambda in {region}, {config.architecture}, {config.memory} MB"


def _dollars(stack: Stack, images: int, gigabyte_seconds: float, config: Config) -> float:
    price = capacity.read_json(capacity.PRICES)["prices"][f"lambda_{config.architecture}"]
    return _other_dollars(stack, images) + gigabyte_seconds * float(price["dollars"])


def _other_dollars(stack: Stack, images: int) -> float:
    """What is paid besides the time of the classifiers. The shards are paid, whether they are used or not."""
    planned = _planned(stack, images)
    # S3 bills an upload as a listing.
    puts = next(line for line in planned.lines if line.item == "S3, listing").price * images
    free = ("Lambda, classifier", "Kinesis, shards", "Kinesis, over 24 hours", "Endpoints")
    return puts + sum(line.dollars for line in planned.lines if line.item not in free)


def _line(stack: Stack, images: int, item: str) -> float:
    return next(line.dollars for line in _planned(stack, images).lines if line.item == item)


def _planned(stack: Stack, images: int) -> capacity.Plan:
    measured = capacity.read_json(capacity.SERVICE_TIMES)
    workload = capacity.Workload(
        images=images_scored(images),
        images_per_second=min(measured["images_per_second"].values()),
        cold_start_seconds=measured["cold_start_seconds"],
        keys_per_second=measured["keys_per_second"]["listing"],
    )
    prices = capacity.read_json(capacity.PRICES)["prices"]
    return capacity.plan(workload, Config.from_settings(stack.settings), prices)
