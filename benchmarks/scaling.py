"""Writes docs/scaling.md and its plots, from the formulas in cxr/planning/capacity.py.

Run `python -m benchmarks.scaling` after service_times.json or prices.json in cxr/planning/ has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from classifier.handler import FETCHES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs.layout import COUNTERS, PARTITIONS

from benchmarks import NIH_IMAGES
from cxr.evaluation.plots import STYLE, save
from cxr.files import whole_file
from cxr.planning import capacity
from cxr.planning.capacity import Plan, Workload
from cxr.words import counted, duration, money
from stacks.config import Config
from tools.markdown import table

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {
    10_000: "10 thousand",
    NIH_IMAGES: f"{NIH_IMAGES:,} (NIH)",
    10**6: "1 million",
    10**7: "10 million",
    10**8: "100 million",
}
CURVE = [round(10 ** (4 + step / 20)) for step in range(81)]  # images, 10 thousand to 100 million
SHARDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)

# The palette of Okabe and Ito, https://jfly.uni-koeln.de/color/. Line styles differ too, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#595959")
DASHES = ("-", "--", "-.", ":", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)))
SERVICES = ("Lambda", "Kinesis", "DynamoDB", "S3")

MEASURED, PRICED = capacity.read_json(capacity.SERVICE_TIMES), capacity.read_json(capacity.PRICES)
DEFAULT_MODEL = next(iter(MEASURED["images_per_second"]))
DEFAULTS = Config()
QUOTA = capacity.TABLE_QUOTA


def workload(images: int, **fields: Any) -> Workload:
    """A run with the model that ships, on a new account and a new table unless `fields` change that."""
    given = {
        "images_per_second": MEASURED["images_per_second"][DEFAULT_MODEL],
        "cold_start_seconds": MEASURED["cold_start_seconds"],
        "keys_per_second": MEASURED["keys_per_second"]["listing"],
    }
    return Workload(images=images, **(given | fields))


def plan(images: int, config: Config = DEFAULTS, **fields: Any) -> Plan:
    """The plan of a `workload` with these settings."""
    return capacity.plan(workload(images, **fields), config, PRICED["prices"])


def fastest(images: int, **fields: Any) -> Plan:
    """The plan with the fastest settings; with the defaults if no settings are faster."""
    present = plan(images, **fields)
    return capacity.suggest(present, PRICED["prices"]).get("faster", present)


def most_images(holds: Callable[[int], bool]) -> int:
    """The largest number of images for which `holds` is true, rounded down to two digits; at most 10^12."""
    low, high = 1, 10**12
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    unit = int(f"1{'0' * (len(str(low)) - 2)}")
    return low // unit * unit


def write(folder: Path) -> None:
    """Write scaling.md and its plots, each file complete or not at all. Raises OSError."""
    with mpl.rc_context(STYLE):
        for name, figure in figures():
            with whole_file(folder / f"scaling-{name}.svg") as part:
                save(figure, part, "svg")
    with whole_file(folder / "scaling.md") as part:
        part.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page docs/scaling.md."""
    return "\n\n".join([*introduction(), *at_defaults(), *at_best(), *costs(), *changes()]) + "\n"


def introduction() -> Iterator[str]:
    yield "# From ten thousand to a hundred million images"
    rate = MEASURED["images_per_second"][DEFAULT_MODEL]
    yield (
        "This page says how long a run takes and what it costs as it grows, what limits it, and where the "
        "design has to change. `python -m benchmarks.scaling` writes it with the formulas of "
        "[cxr/planning/capacity.py](../cxr/planning/capacity.py), which `cxr plan` uses too."
    )
    yield (
        "**None of it was measured on AWS**; [`cxr verify`](verify.md) measures your stack. The figures are "
        "computed from three sources:\n\n"
        f"- Service times of {MEASURED['measured']} ({MEASURED['machine']}): one worker of one vCPU scores "
        f"{rate:g} images a second with {DEFAULT_MODEL}.\n"
        f"- Prices of {PRICED['region']} as of {PRICED['date']}. {PRICED['note']}\n"
        "- Limits in AWS's guides, for a new account and a new table."
    )
    yield (
        "Round trips on AWS are longer than on one machine. Of these, the formulas include only the time to "
        f"the first byte of S3 ({capacity.FIRST_BYTE_SECONDS:g} s). So trust the orders of magnitude and the "
        "bottlenecks. Measure a run of some thousand images, and give the result to `cxr plan "
        "--images-per-second`."
    )


def at_defaults() -> Iterator[str]:
    yield "## With the stack's defaults"
    yield (
        f"{counted(DEFAULTS.shards, 'shard')} x {DEFAULTS.parallelization_factor} = "
        f"{capacity.lanes(DEFAULTS)} classifiers of {DEFAULTS.memory} MB, jobs of {DEFAULTS.images_per_job} "
        "images."
    )
    yield table(
        ("images", "time", "limited by", "images a second", "dollars", "for a million"),
        (
            (
                name,
                duration(found.seconds),
                found.bottleneck,
                f"{images / found.seconds:,.0f}",
                money(found.dollars),
                money(found.dollars / images * 1e6),
            )
            for images, name in SIZES.items()
            for found in [plan(images)]
        ),
    )
    yield "![Seconds that each limit takes, against images](scaling-time.svg)"
    yield "Each row says how long the run would take if only this limited it. The largest decides:"
    yield table(
        ("", *SIZES.values()),
        (
            (f"[{name}](#{name.lower().replace(' ', '-')})", *(duration(plan(n).bounds[name]) for n in SIZES))
            for name in plan(1).bounds
        ),
    )


def at_best() -> Iterator[str]:
    yield "## With the fastest settings"
    yield (
        "These are the fastest settings that `cxr plan` finds with 1,000 concurrent executions. A raised "
        f"table is one whose warm throughput was raised before the run to its quota of {QUOTA:,} write units "
        "a second."
    )
    yield table(
        ("images", "table", "settings", "time", "limited by", "dollars", "idle month"),
        (
            (
                name if of_table == "new" else "",
                of_table,
                ", ".join(f"`{setting}={value}`" for setting, value in found.config.non_default().items())
                or "the defaults",
                duration(found.seconds),
                found.bottleneck,
                money(found.dollars),
                money(found.idle_dollars),
            )
            for images, name in SIZES.items()
            for of_table, writes in (("new", 4000), ("raised", QUOTA))
            for found in [fastest(images, table_writes=writes)]
        ),
    )
    yield "![Time against shards](scaling-shards.svg)"


def costs() -> Iterator[str]:
    yield "## What a million images cost"
    yield "With the defaults. You pay shards by the hour begun, so they matter most for small runs."
    yield table(
        ("", *SIZES.values()),
        (
            (service, *(money(spent[service] / n * 1e6) for n, spent in by_size.items()))
            for by_size in [{n: by_service(plan(n)) for n in SIZES}]
            for service in (*SERVICES, "other")
        ),
    )
    yield "![Dollars for a million images, against images](scaling-cost.svg)"


def changes() -> Iterator[str]:
    """A section for each bound: where the design has to change."""
    lanes = capacity.lanes(DEFAULTS)
    million = plan(10**6)
    rate = million.images_per_second_per_worker
    units = capacity.write_units(million.workload, DEFAULTS) / 10**6
    new, raised = capacity.table_rate(capacity.NEW_TABLE_WRITES), capacity.table_rate(QUOTA)
    yield "## Where the design has to change"

    yield "### DynamoDB table"
    yield (
        f"An image costs {units:.2f} write units: a transaction takes two for each item, and the counter is "
        f"one more item for each job. The {lanes} classifiers of the defaults write up to "
        f"{lanes * rate * units:,.0f} units a second. A new on-demand table takes 4,000. A run gets "
        f"{new:,.0f} of them ({new / units:,.0f} images a second, those of {new / units / rate:,.0f} "
        f"classifiers): its {PARTITIONS} partition keys are spread unevenly over the partitions, and "
        "cancelled transactions cost units ([decision 16](decisions/0016-throttling.md)). The table doubles "
        f"what it takes in half an hour of full load, up to the quota of {QUOTA:,}, of which a run gets "
        f"{raised:,.0f} ({raised / units:,.0f} images a second). Meanwhile classifiers wait, and you pay for "
        "that. A table that has once taken a load takes it again at once.\n\n"
        "*Before a large run:* raise the table's warm throughput by the setting `warmThroughput`. AWS "
        "charges for it once, and does not lower it again. Several runs at once, each of a Prefix, have more "
        "partition keys, which are spread more evenly. *Beyond the quota:* ask for a higher one. Or write "
        "predictions without transactions, for half the units, and count in another way."
    )

    yield "### S3 prefix"
    yield (
        "S3 answers 5,500 GETs a second for one partitioned prefix, which is what "
        f"{5500 / rate:,.0f} classifiers ask for. Under sustained load S3 splits a prefix by itself, in tens "
        "of minutes. Meanwhile it answers 503, and the SDK retries.\n\n"
        "*Beyond:* put the images under several prefixes whose first characters differ, and mix them in the "
        "jobs. Today keys come in the order of the listing, so one prefix is read after the other."
    )

    yield "### job creator"
    listing = most_images(lambda n: capacity.job_creator_seconds(workload(n)) <= capacity.CREATOR_SECONDS)
    keys = MEASURED["keys_per_second"]["index"]
    indexed = most_images(
        lambda n: (
            capacity.job_creator_seconds(workload(n, indexed=True, keys_per_second=keys))
            <= capacity.CREATOR_SECONDS
        )
    )
    yield (
        "S3 lists 1,000 keys a call, one call after another, so the job creator reads "
        f"{10**6 / capacity.job_creator_seconds(workload(10**6)):,.0f} keys a second. In the 15 minutes of a "
        f"Lambda function it lists some {listing:,} images, or half of that for a run that continues. With "
        f"an index whose keys are in order it reads {indexed:,}. If the keys of an index are not in order, "
        "the job creator remembers every key, and its memory ends sooner.\n\n"
        "*Beyond:* start one run for each Prefix, all at once; the stack needs no change. To make that one "
        "run, the listing would have to be split: one job creator for each prefix, and the last one adds up "
        "the expected number."
    )

    yield "### lanes"
    yield (
        "A lane is a place for one classifier: there are shards x parallelizationFactor of them. The hash of "
        "its partition key decides to which lane a job goes. So lanes have different numbers of jobs, and "
        "the busiest lane ends last. In at least half of all runs it has no more jobs than this:"
    )
    yield table(
        ("images", "jobs", f"{lanes} lanes: mean", "busiest", "1,000 lanes: mean", "busiest"),
        (
            (name, f"{jobs:,}", *lane_loads(jobs, lanes), *lane_loads(jobs, 1000))
            for images, name in SIZES.items()
            for jobs in [capacity.jobs(workload(images), DEFAULTS)]
        ),
    )
    yield (
        "Smaller jobs make the lanes more even, and cost more writes of counters. For small runs on many "
        "lanes, a queue from which any free worker takes jobs would end sooner. A stream cannot do that."
    )
    hours = DEFAULTS.record_age
    waiting = {
        name: most_images(lambda n, r=r: plan(n, images_per_second=r).seconds < hours * 3600)  # type: ignore[misc]
        for name, r in MEASURED["images_per_second"].items()
    }
    yield (
        f"Lambda discards a job that waits longer than `recordAge`, {hours} hours, into the failure bucket. "
        "With the defaults that happens from some "
        f"{', '.join(f'{n:,} images ({name})' for name, n in waiting.items())} on. Raise `recordAge` and "
        "`streamRetention`, or the number of shards."
    )

    yield "### account concurrency"
    per_shard = DEFAULTS.parallelization_factor
    yield (
        f"The default quota is 1,000 executions at once, or {1000 * rate:,.0f} images a second. "
        f"{1000 // per_shard} shards keep them busy. They cost "
        f"{money(plan(1, replace(DEFAULTS, shards=1000 // per_shard)).idle_dollars)} a month while nothing "
        "runs, so take them for the run only: `cxr scale`. A new account may have a quota of 10, which is "
        f"what the default of {counted(DEFAULTS.shards, 'shard')} asks for. Then memory for more vCPUs "
        f"helps, up to {FETCHES / capacity.FIRST_BYTE_SECONDS:.0f} images a second for a classifier, "
        f"which fetches {FETCHES} at once. Beyond 1,000, a function gets 1,000 more executions every 10 "
        "seconds.\n\n"
        "*With a higher quota,* shards become the limit: 20,000 for an account in us-east-1, us-west-2 and "
        "eu-west-1, and 1,000 or 6,000 elsewhere (Kinesis guide, service-sizes-and-limits). The setting "
        "`shards` takes up to 1,000."
    )

    yield "### DynamoDB partition"
    yield (
        f"Predictions are spread over {PARTITIONS} partition keys, which take "
        f"{PARTITIONS * 1000 / 2:,.0f} images a second. All counters of a run share one partition "
        f"key, so that one request reads them. It takes 500 jobs a second: {500 * 32:,} images a second with "
        f"`imagesPerJob=32`, and {500 * 99:,} with 99. DynamoDB may split that key under load, but does not "
        "promise it. The formula leaves one thing out: two transactions on one counter at the same moment "
        "conflict, and one is repeated.\n\n"
        "*Beyond:* start several runs. Or give each counter its own partition key; then "
        f"{COUNTERS} reads tell the state of a run."
    )

    yield "### stream"
    job = capacity.job_bytes(million.workload, DEFAULTS)
    yield (
        f"A job of {DEFAULTS.images_per_job} images has some {job:,} bytes, so a shard takes "
        f"{min(1000, 1e6 / job) * DEFAULTS.images_per_job:,.0f} images a second. Its {per_shard} "
        f"classifiers score {per_shard * rate:,.0f}. So with 32 images in a job the stream is never the "
        "limit; that is why a job holds several images."
    )

    yield "### Money"
    writes = next(line.dollars for line in million.lines if line.item == "DynamoDB, writes")
    large = plan(10**8)
    yield (
        f"Of the {money(large.dollars)} for 100 million images, "
        f"{by_service(large)['DynamoDB'] / large.dollars:.0%} go to DynamoDB, "
        f"{by_service(large)['S3'] / large.dollars:.0%} to S3 and "
        f"{by_service(large)['Lambda'] / large.dollars:.0%} to Lambda. A million predictions cost "
        f"{money(writes)} to write.\n\n"
        "*To save most,* change the table. Write one item for each job with all its predictions: 2 units for "
        "each KB instead of for each image. Or write a file to S3 for each job, and only the counts to "
        "DynamoDB. Both lose two things: the lookup of one image by key, and the condition of each item that "
        "refuses a second prediction."
    )


def lane_loads(jobs: int, lanes: int) -> tuple[str, str]:
    """Jobs in an average lane and in the busiest lane."""
    mean = jobs / lanes
    return f"{mean:,.0f}" if mean >= 10 else f"{mean:.1f}", f"{capacity.busiest_lane(jobs, lanes):,}"


def by_service(found: Plan) -> dict[str, float]:
    """Dollars by service."""
    spent = dict.fromkeys((*SERVICES, "other"), 0.0)
    for line in found.lines:
        service = line.item.split(",")[0]
        spent[service if service in spent else "other"] += line.dollars
    return spent


def figures() -> Iterator[tuple[str, Figure]]:
    """Each figure with its name."""
    yield "time", time_figure()
    yield "shards", shards_figure()
    yield "cost", cost_figure()


def time_figure() -> Figure:
    figure, axes = _figure("What bounds a run: the stack's defaults", "images", "seconds")
    plans = [plan(images) for images in CURVE]
    axes.plot(CURVE, [p.seconds for p in plans], color="black", linewidth=4, alpha=0.25, label="the run")
    for name, colour, dashes in zip(capacity.WHAT_HELPS, COLOURS, DASHES, strict=True):
        bound = [p.bounds[name] for p in plans]
        axes.plot(CURVE, bound, color=colour, linestyle=dashes, label=name)
    for seconds, text in ((60, "a minute"), (3600, "an hour"), (86_400, "a day")):
        axes.axhline(seconds, color="#bbbbbb", linewidth=0.6, zorder=0)
        axes.text(CURVE[0] * 1.1, seconds, text, fontsize=8, color="#595959", va="bottom")
    axes.set(xscale="log", yscale="log", xlim=(CURVE[0], CURVE[-1]), ylim=(0.1, 2e5))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def shards_figure() -> Figure:
    figure, axes = _figure("Time against shards, 10 classifiers a shard", "shards", "seconds")
    for (images, name), colour in zip(SIZES.items(), COLOURS, strict=False):
        for writes, style in ((4000, "-"), (QUOTA, "--")):
            seconds = [
                plan(images, replace(DEFAULTS, shards=shards), table_writes=writes).seconds
                for shards in SHARDS
            ]
            axes.plot(SHARDS, seconds, color=colour, linestyle=style, marker=".")
        axes.text(1, 1.15 * plan(images, replace(DEFAULTS, shards=1)).seconds, name, color=colour)
    axes.plot([], [], color="black", label="new table")
    axes.plot([], [], color="black", linestyle="--", label=f"table raised to {QUOTA:,} write units/s")
    axes.set(xscale="log", yscale="log", ylim=(1, 1e6), xticks=(1, 2, 5, 10, 20, 50, 100))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.legend(loc="upper right")
    return figure


def cost_figure() -> Figure:
    figure, axes = _figure("What a million images cost: the stack's defaults", "images in the run", "dollars")
    spent = [by_service(plan(images)) for images in CURVE]
    layers = [[s[service] / n * 1e6 for s, n in zip(spent, CURVE, strict=True)] for service in SERVICES]
    axes.stackplot(CURVE, layers, labels=SERVICES, colors=COLOURS[:4], edgecolor="white")
    axes.set(xscale="log", xlim=(CURVE[0], CURVE[-1]))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right")  # in the order of the layers
    return figure


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


if __name__ == "__main__":
    write(DOCS)
    sys.stdout.write(f"Wrote {DOCS.name}/scaling.md and its plots\n")
