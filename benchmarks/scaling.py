"""Write docs/scaling.md and its plots: ten thousand to a hundred million images, by cxr/planning/capacity.py.

Run it by `python -m benchmarks.scaling` after service_times.json or prices.json in cxr/planning/ has changed.
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

from cxr.commands.plan import HELP, changed
from cxr.evaluation.plots import STYLE, save
from cxr.files import whole_file
from cxr.planning import capacity
from cxr.planning.capacity import Plan, Workload
from cxr.words import duration, money
from stacks.config import Config
from tools.markdown import table

DOCS = Path(__file__).parents[1] / "docs"
NIH = 113_178
SIZES = {
    10_000: "10 thousand",
    NIH: f"{NIH:,} (NIH)",
    10**6: "1 million",
    10**7: "10 million",
    10**8: "100 million",
}
CURVE = [round(10 ** (4 + step / 20)) for step in range(81)]  # images, 10 thousand to 100 million
SHARDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/; styles differ too, for print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#595959")
DASHES = ("-", "--", "-.", ":", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)))
SERVICES = ("Lambda", "Kinesis", "DynamoDB", "S3")

MEASURED, PRICED = capacity.read_json(capacity.SERVICE_TIMES), capacity.read_json(capacity.PRICES)
DEFAULT_MODEL = next(iter(MEASURED["images_per_second"]))
DEFAULTS = Config()
QUOTA = capacity.TABLE_QUOTA


def workload(images: int, **fields: Any) -> Workload:
    """So many images for the model that ships, on a new account and table unless `fields` say otherwise."""
    given = {
        "images_per_second": MEASURED["images_per_second"][DEFAULT_MODEL],
        "cold_start_seconds": MEASURED["cold_start_seconds"],
        "keys_per_second": MEASURED["keys_per_second"]["listing"],
    }
    return Workload(images=images, **(given | fields))


def plan(images: int, config: Config = DEFAULTS, **fields: Any) -> Plan:
    return capacity.plan(workload(images, **fields), config, PRICED["prices"])


def fastest(images: int, **fields: Any) -> Plan:
    """The fastest settings for so many images, or the defaults where those are as good."""
    present = plan(images, **fields)
    return capacity.suggest(present, PRICED["prices"]).get("faster", present)


def most(holds: Callable[[int], bool]) -> int:
    """The most images, to two digits, for which something holds; at most 10^12."""
    low, high = 1, 10**12
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    unit = int(f"1{'0' * (len(str(low)) - 2)}")
    return low // unit * unit


def write(folder: Path) -> None:
    """Writes scaling.md and its plots, each whole or not at all. Raises OSError."""
    with mpl.rc_context(STYLE):
        for name, figure in figures():
            with whole_file(folder / f"scaling-{name}.svg") as part:
                save(figure, part, "svg")
    with whole_file(folder / "scaling.md") as part:
        part.write_text(page(), encoding="utf-8")


def page() -> str:
    """scaling.md."""
    return "\n\n".join([*introduction(), *at_defaults(), *at_best(), *costs(), *changes()]) + "\n"


def introduction() -> Iterator[str]:
    yield "# From ten thousand to a hundred million images"
    rate = MEASURED["images_per_second"][DEFAULT_MODEL]
    yield (
        "How long a run takes and what it costs as it grows, what bounds it, and where the design has to "
        "change. `python -m benchmarks.scaling` writes this page from the formulas in "
        "[cxr/planning/capacity.py](../cxr/planning/capacity.py), which `cxr plan` uses too."
    )
    yield (
        f"**What it stands on.** Service times of {MEASURED['measured']} ({MEASURED['machine']}): one worker "
        f"of one vCPU scores {rate:g} images a second with {DEFAULT_MODEL}. Prices of {PRICED['region']} as "
        f"of {PRICED['date']}. {PRICED['note']} Limits are those of AWS's guides, for an account and a table "
        "that are new. **None of it was measured on AWS**: round trips there are longer than on one machine, "
        f"and only S3's first byte ({capacity.FIRST_BYTE_SECONDS:g} s) is reckoned. So trust the order of "
        "magnitude and what bounds what; measure a run of some thousand images, and give `cxr plan "
        "--images-per-second` what you found."
    )


def at_defaults() -> Iterator[str]:
    yield "## With the stack's defaults"
    yield (
        f"{DEFAULTS.shards} shards x {DEFAULTS.parallelization_factor} = {capacity.lanes(DEFAULTS)} "
        f"classifiers of {DEFAULTS.memory} MB, jobs of {DEFAULTS.images_per_job} images."
    )
    yield table(
        ("images", "time", "bounded by", "images a second", "dollars", "for a million"),
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
    yield "![Seconds that each bound needs, against images](scaling-time.svg)"
    yield "What each needs, if nothing else bounded the run; the largest decides:"
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
        "The fastest that `cxr plan` finds with 1,000 concurrent executions, on a new table and on one whose "
        f"warm throughput was raised to its quota of {QUOTA:,} write units a second beforehand:"
    )
    yield table(
        ("images", "table", "settings", "time", "bounded by", "dollars", "idle month"),
        (
            (
                name if of_table == "new" else "",
                of_table,
                ", ".join(f"`{setting}={value}`" for setting, value in changed(found.config).items())
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
    yield "With the defaults; shards are counted by the hour begun, and so weigh on small runs."
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
    """Where the design must change: a section for each bound."""
    lanes = capacity.lanes(DEFAULTS)
    million = plan(10**6)
    rate = million.images_per_second_per_worker
    units = capacity.write_units(million.workload, DEFAULTS) / 10**6
    yield "## Where the design has to change"

    yield "### DynamoDB table"
    yield (
        f"An image costs {units:.2f} write units, because a transaction takes two for each item and the "
        f"counter comes on top. The {lanes} classifiers of the defaults could write "
        f"{lanes * rate * units:,.0f} units a second; a new on-demand table takes 4,000 ({4000 / units:,.0f} "
        f"images a second), doubles that in half an hour of full load, and stops at the quota of {QUOTA:,} "
        f"({QUOTA / units:,.0f} images a second). Classifiers that are held up wait, and are paid for it. "
        "*Before a large run:* raise the table's warm throughput (`aws dynamodb update-table "
        "--warm-throughput`, which AWS charges for once). *Beyond the quota:* ask for a higher one, or write "
        "predictions without transactions, for half the units, and count in another way. A table that has "
        "once taken a load takes it again at once."
    )

    yield "### S3 prefix"
    yield (
        f"5,500 GETs a second for one partitioned prefix are what {5500 / rate:,.0f} classifiers ask for. S3 "
        "splits a prefix by itself under sustained load, over tens of minutes, and answers 503 meanwhile, "
        "which the SDK tries again. *From there on:* images under several prefixes whose first characters "
        "differ, and jobs that mix them; keys in listing order, as now, all go to one prefix after the other."
    )

    yield "### job creator"
    listing = most(lambda n: capacity.job_creator_seconds(workload(n)) <= capacity.CREATOR_SECONDS)
    keys = MEASURED["keys_per_second"]["index"]
    indexed = most(
        lambda n: (
            capacity.job_creator_seconds(workload(n, indexed=True, keys_per_second=keys))
            <= capacity.CREATOR_SECONDS
        )
    )
    yield (
        "S3 lists 1,000 keys a call, one call after another, so that the job creator goes through "
        f"{10**6 / capacity.job_creator_seconds(workload(10**6)):,.0f} keys a second. Lambda's 15 minutes "
        f"end at some {listing:,} images by listing, half of that where a run goes on, and {indexed:,} by an "
        "index in order; of another it remembers every key, and its memory ends sooner. *Beyond:* one run "
        "for each Prefix, all at once, as the stack is. To make it one run again, the listing has to be "
        "split inside it: one job creator a prefix, and the number expected added up by the last."
    )

    yield "### lanes"
    yield (
        "A job goes to the shard and the lane that the hash of its partition key draws, so lanes are uneven, "
        "and the busiest ends last. In at least half of all runs it has no more jobs than this:"
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
        "Smaller jobs even the lanes out, and cost more writes of counters. For small runs on many lanes a "
        "queue that any free worker takes from would end sooner; a stream cannot do that."
    )
    hours = DEFAULTS.record_age
    waiting = {
        name: most(lambda n, r=r: plan(n, images_per_second=r).seconds < hours * 3600)  # type: ignore[misc]
        for name, r in MEASURED["images_per_second"].items()
    }
    yield (
        f"A job that waits longer than `recordAge`, {hours} hours, is given up. With the defaults that is "
        f"reached at some {', '.join(f'{n:,} images ({name})' for name, n in waiting.items())}: raise "
        "`recordAge` and `streamRetention`, or the shards."
    )

    yield "### account concurrency"
    per_shard = DEFAULTS.parallelization_factor
    yield (
        f"1,000 executions are the default quota, {1000 * rate:,.0f} images a second, and "
        f"{1000 // per_shard} shards feed them "
        f"({money(plan(1, replace(DEFAULTS, shards=1000 // per_shard)).idle_dollars)} a month while nothing "
        "runs: deploy them for the run only). A new account may have 10: there, memory for more vCPUs helps, "
        f"up to the {FETCHES / capacity.FIRST_BYTE_SECONDS:.0f} images a second that a classifier's "
        f"{FETCHES} fetches at once bring. Beyond 1,000, a function gets 1,000 more every 10 "
        "seconds. *With a higher quota:* shards become the limit, at 20,000 for an account in us-east-1, "
        "us-west-2 and eu-west-1, and at 1,000 or 6,000 elsewhere (Kinesis guide, service-sizes-and-limits); "
        "the setting `shards` ends at 1,000."
    )

    yield "### DynamoDB partition"
    yield (
        f"Predictions are spread over 64 partition keys, {64_000 / 2:,.0f} images a second. All counters of "
        f"a run share one, so that they are read together: 500 jobs a second, which is {500 * 32:,} images a "
        f"second with `imagesPerJob=32` and {500 * 99:,} with 99. DynamoDB may split that key under load, "
        "but promises nothing. *Beyond:* several runs, or a partition key for each counter and 16 reads to "
        "know a run's state. What is not in the formula: two transactions on one counter at the same moment "
        "conflict, and one is repeated."
    )

    yield "### stream"
    job = capacity.job_bytes(million.workload, DEFAULTS)
    yield (
        f"A job of {DEFAULTS.images_per_job} images has some {job:,} bytes, so a shard takes "
        f"{min(1000, 1e6 / job) * DEFAULTS.images_per_job:,.0f} images a second, and feeds {per_shard} "
        f"classifiers with {per_shard * rate:,.0f}. With `imagesPerJob` of 32 it is never what bounds; that "
        "is why a job holds several images."
    )

    yield "### Money"
    writes = next(line.dollars for line in million.lines if line.item == "DynamoDB, writes")
    large = plan(10**8)
    yield (
        f"Of the {money(large.dollars)} for 100 million images, "
        f"{by_service(large)['DynamoDB'] / large.dollars:.0%} are DynamoDB's, "
        f"{by_service(large)['S3'] / large.dollars:.0%} S3's and "
        f"{by_service(large)['Lambda'] / large.dollars:.0%} Lambda's. A million predictions cost "
        f"{money(writes)} to write. *From there on* it is the table that is worth a change: one item for "
        "each job, with all its predictions (2 units for each KB instead of for each image), or a file in S3 "
        "for each job and only the counts in DynamoDB. What that loses is the lookup of one image by key, "
        "and the guard against a second prediction that each item's condition is."
    )


def lane_loads(jobs: int, lanes: int) -> tuple[str, str]:
    """Jobs in a lane, on average and at most."""
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
    """Name and figure."""
    yield "time", time_figure()
    yield "shards", shards_figure()
    yield "cost", cost_figure()


def time_figure() -> Figure:
    figure, axes = _figure("What bounds a run: the stack's defaults", "images", "seconds")
    plans = [plan(images) for images in CURVE]
    axes.plot(CURVE, [p.seconds for p in plans], color="black", linewidth=4, alpha=0.25, label="the run")
    for name, colour, dashes in zip(HELP, COLOURS, DASHES, strict=True):
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
    axes.legend(handles[::-1], labels[::-1], loc="upper right")  # as they lie upon each other
    return figure


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


if __name__ == "__main__":
    write(DOCS)
    sys.stdout.write(f"Wrote {DOCS.name}/scaling.md and its plots\n")
