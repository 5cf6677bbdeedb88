"""`cxr plan`: how long a run will take and what it will cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cxr.commands.options import Json, context_of
from cxr.commands.terminal import console, errors_reported, shown
from cxr.errors import InputError
from cxr.scaling import steps
from cxr.words import counted, duration, money

if TYPE_CHECKING:
    from cxr.planning import capacity
    from cxr.planning.capacity import Line, Plan
    from stacks.config import Config

MAX_IMAGES = 10**9  # as many as the job creator takes
MAX_KEY_BYTES = 1024  # S3 user guide, object-keys


def plan(
    images: Annotated[int | None, typer.Option(metavar="N", help="How many images the run has.")] = None,
    arrivals_per_day: Annotated[
        int | None,
        typer.Option(metavar="N", help="Instead of a run: a month in which N images arrive each day."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            metavar="NAME=VALUE",
            help="A setting in place of the one in settings.toml: -c shards=20. Repeatable.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model whose service time to use. Default: the one that ships."),
    ] = None,
    service_times: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The service_times.json that `cxr verify` has measured."),
    ] = None,
    images_per_second: Annotated[
        float | None,
        typer.Option(metavar="X", help="Your own measurement: what one classifier of 1769 MB scores."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", help="Concurrent executions that your account allows.")
    ] = 1000,
    table_writes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The table's warm throughput in write units/s. Default: the setting warmThroughput, or else "
            "the 4000 of a new table.",
        ),
    ] = None,
    key_bytes: Annotated[int, typer.Option(metavar="N", help="Length of an image's key.")] = 60,
    index: Annotated[bool, typer.Option("--index", help="Keys come by IndexKey and are not listed.")] = False,
    as_json: Json = False,
) -> None:
    """Show how long a run will take, what it will cost, and what limits it.

    Makes no AWS call. Service times were measured by `make bench`, or by `cxr
    verify` on your stack; prices come from a dated table. The output names both
    sources. It plans for the settings
    in settings.toml. If it finds better ones, it shows the whole table to write
    there.

    The JSON is one object: images, settings, model,
    images_per_second_per_worker, workers (classifiers busy at once), seconds,
    images_per_second, start_seconds, bounds (seconds that each needs; the
    largest is the bottleneck), bottleneck, dollars (total, per_1000_images,
    per_million_images, idle_month, lines: item, quantity, unit, price,
    dollars), warnings, by_shards (the same run with fewer and more shards:
    shards, workers, seconds, dollars, idle_month), suggestions (cheaper,
    faster: settings, seconds, dollars, idle_month, bottleneck, table: the text
    for settings.toml), service_times and prices (where they are from).

    With --arrivals-per-day it shows a month instead, of a stack with arrivals=on,
    and the JSON is one object: arrivals_per_day, settings, dollars (month,
    idle_month, idle_month_without_arrivals, lines).

    Ends with 0, also when it warns, and with 2 if what was given cannot be
    used.
    """
    with errors_reported():
        from cxr.planning import capacity

        measured = read_service_times(service_times or capacity.SERVICE_TIMES)
        priced = capacity.read_json(capacity.PRICES)
        stack, config = planned_settings(settings or [])
        rates = measured["images_per_second"]
        model = model or next(iter(rates))
        if model not in rates:
            raise InputError(f"--model {model}: expected one of {', '.join(rates)}, or --images-per-second")
        if images_per_second is not None and not 1e-3 <= images_per_second <= 1e6:
            raise InputError(f"--images-per-second {images_per_second:g}: expected 0.001 to 1,000,000")
        if table_writes is None:
            table_writes = config.warm_throughput or capacity.NEW_TABLE_WRITES
        if (images is None) == (arrivals_per_day is None):
            raise InputError("expected --images, or --arrivals-per-day")
        number = images or arrivals_per_day or 0
        for option, value, most in (
            ("--images" if arrivals_per_day is None else "--arrivals-per-day", number, MAX_IMAGES),
            ("--concurrency", concurrency, MAX_IMAGES),
            ("--table-writes", table_writes, MAX_IMAGES),
            ("--key-bytes", key_bytes, MAX_KEY_BYTES),
        ):
            if not 1 <= value <= most:
                raise InputError(f"{option} {value}: expected a whole number from 1 to {most:,}")
        workload = capacity.Workload(
            images=number,
            images_per_second=images_per_second or rates[model],
            cold_start_seconds=measured["cold_start_seconds"],
            keys_per_second=measured["keys_per_second"]["index" if index else "listing"],
            key_bytes=key_bytes,
            indexed=index,
            concurrency=concurrency,
            table_writes=table_writes,
        )
        if arrivals_per_day:
            month_of_arrivals(workload, replace(config, arrivals="on"), priced["prices"], as_json)
            return
        with console.status("Planning"):
            present = capacity.plan(workload, config, priced["prices"])
            better = capacity.suggest(present, priced["prices"])
        if as_json:
            typer.echo(
                json.dumps(document(present, better, stack, model, images_per_second, measured, priced))
            )
            return
        print_plan(present, better, stack)
        source = "yours, by --images-per-second"
        if not images_per_second:
            source = f"{model}, {measured['machine']}, {measured['measured']}"
        advice = (
            "" if service_times else "On AWS it may differ: `cxr verify` measures it, for --service-times."
        )
        console.print(
            f"\n[dim]{workload.images_per_second:g} images a second for each vCPU: {shown(source)}. "
            f"{advice}\n"
            f"Prices of {priced['date']}, {priced['region']}. {shown(priced['note'])} "
            "Shards are billed by the hour begun. Storage, retries and KMS for the stream are not "
            "included.[/]"
        )
        if config.architecture == "arm64":
            console.print("[yellow]The price is that of arm64, but its speed was not measured.[/]")


def month_of_arrivals(
    workload: capacity.Workload, config: Config, prices: dict[str, Any], as_json: bool
) -> None:
    """Print what a month costs in which so many images arrive each day."""
    from cxr.planning import arrivals, capacity

    a_day = workload.images
    # The images of a year: the reconciliation lists them all.
    lines = tuple(arrivals.month(workload, config, a_day, 365 * a_day, prices))
    idle = capacity.plan(workload, config, prices).idle_dollars
    off = capacity.plan(workload, replace(config, arrivals="off"), prices).idle_dollars
    dollars = sum(line.dollars for line in lines)
    if as_json:
        document = {
            "arrivals_per_day": a_day,
            "settings": config.non_default(),
            "dollars": {
                "month": dollars + idle,
                "idle_month": idle,
                "idle_month_without_arrivals": off,
                "lines": [{**asdict(line), "dollars": line.dollars} for line in lines],
            },
        }
        typer.echo(json.dumps(document))
        return
    console.print(
        f"[bold]{counted(a_day, 'image')} a day for {money(dollars + idle)} a month[/]: {money(dollars)} for "
        f"the images, {money(idle)} while nothing arrives"
    )
    console.print(_bill(lines))
    console.print(
        f"Without arrivals, the idle stack costs {money(off)} a month. The images are taken to come one by "
        "one, all day and night, which costs the most. What the reconciliation reads is not in it. The "
        "bucket keeps the images of a year.",
        soft_wrap=True,
    )


def read_service_times(path: Path) -> dict[str, Any]:
    """The service times of a file. Raises InputError for one that is not of `cxr verify`."""
    from cxr.planning import capacity

    try:
        found = capacity.read_json(path)
        numbers = (*found["images_per_second"].values(), found["cold_start_seconds"])
        keys = (found["keys_per_second"]["listing"], found["keys_per_second"]["index"])
        if all(float(number) > 0 for number in (*numbers, *keys)) and found["images_per_second"]:
            return {**found, **{name: str(found[name]) for name in ("machine", "measured")}}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected the service_times.json of cxr verify") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path}: expected the service_times.json that cxr verify has written")


def planned_settings(given: list[str]) -> tuple[str, Config]:
    """The stack's name, and its settings of the file and of name=value. Raises InputError."""
    from stacks.config import Config, ConfigError, stack_name
    from stacks.settings_file import kept_settings, settings_file

    context = context_of(given)
    try:
        stack = stack_name(context)
        kept = kept_settings(settings_file(context), stack)
    except ConfigError as error:
        raise InputError(str(error)) from None
    try:
        return stack, Config.from_context({**kept, **context})
    except ConfigError as error:
        raise InputError(f"-c {error}") from None


def document(
    present: Plan,
    better: dict[str, Plan],
    stack: str,
    model: str,
    own_rate: float | None,
    measured: dict[str, Any],
    priced: dict[str, Any],
) -> dict[str, Any]:
    """The plan as an object for JSON."""
    from cxr.planning import capacity
    from stacks.settings_file import table

    images = present.workload.images
    return {
        "images": images,
        "settings": present.config.non_default(),
        "model": None if own_rate else model,
        "images_per_second_per_worker": present.images_per_second_per_worker,
        "workers": present.workers,
        "seconds": present.seconds,
        "images_per_second": images / present.seconds,
        "start_seconds": present.start_seconds,
        "bounds": present.bounds,
        "bottleneck": present.bottleneck,
        "dollars": {
            "total": present.dollars,
            "per_1000_images": present.dollars / images * 1000,
            "per_million_images": present.dollars / images * 1e6,
            "idle_month": present.idle_dollars,
            "lines": [{**asdict(line), "dollars": line.dollars} for line in present.lines],
        },
        "warnings": list(present.warnings),
        "by_shards": [
            {
                "shards": found.config.shards,
                "workers": found.workers,
                "seconds": found.seconds,
                "dollars": found.dollars,
                "idle_month": found.idle_dollars,
            }
            for found in capacity.by_shards(present)
        ],
        "suggestions": {
            name: {
                "settings": found.config.non_default(),
                "seconds": found.seconds,
                "dollars": found.dollars,
                "idle_month": found.idle_dollars,
                "bottleneck": found.bottleneck,
                "table": table(stack, found.config),
            }
            for name, found in better.items()
        },
        "service_times": {name: measured[name] for name in ("measured", "machine")},
        "prices": {name: priced[name] for name in ("date", "region", "currency", "note")},
    }


def print_plan(present: Plan, better: dict[str, Plan], stack: str) -> None:
    """Print time, bill, bottleneck and better settings."""
    from cxr.planning import capacity
    from stacks.settings_file import table

    images, total = present.workload.images, present.dollars
    console.print(
        f"[bold]{counted(images, 'image')} in {duration(present.seconds)} for {money(total)}[/]: "
        f"{money(total / images * 1000)} for 1,000 images, {money(total / images * 1e6)} for a million"
    )
    console.print(
        f"{counted(present.workers, 'classifier')} at once, "
        f"{present.images_per_second_per_worker:,.3g} images a second each"
    )
    console.print(_bill(present.lines))
    console.print(f"While nothing runs, the stack costs {money(present.idle_dollars)} a month.")
    console.print(_by_shards(capacity.by_shards(present)))
    console.print("[dim]`cxr run NAME --shards N` has them for that run only.[/]")
    others = sorted(present.bounds.items(), key=lambda bound: -bound[1])[1:]
    console.print(
        f"\nBottleneck: [bold]{present.bottleneck}[/], {duration(max(present.bounds.values()))}. "
        f"{capacity.WHAT_HELPS[present.bottleneck]}"
    )
    console.print(
        f"[dim]The others: {', '.join(f'{name} {duration(seconds)}' for name, seconds in others)}[/]"
    )
    for warning in present.warnings:
        console.print(f"\n[yellow]{shown(warning)}[/]")
    for name, found in better.items():
        console.print(
            f"\n[green]{name.capitalize()}[/]: {duration(found.seconds)} for {money(found.dollars)}, "
            f"{money(found.idle_dollars)} a month while nothing runs; bottleneck: {found.bottleneck}"
        )
        for line in table(stack, found.config).split("\n"):
            console.print(f"  {shown(line)}", soft_wrap=True)
    if better:
        console.print("\nTo have them, write the table into settings.toml, then run `npx cdk deploy`.")
    for shards in sorted({found.config.shards for found in better.values()}):
        if way := steps(present.config.shards, shards)[:-1]:
            console.print(
                f"If the stack is deployed, run `cxr scale {way[-1]}` before you deploy {shards} shards: "
                "Kinesis at most doubles or halves them at once."
            )
    if not better:
        console.print("\nNo other settings are better: none is as fast for less, or much faster.")


def _by_shards(plans: list[Plan]) -> Table:
    columns = ("shards", "classifiers at once", "time", "dollars for the run", "idle a month")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", title=" ")
    for column in table.columns:
        column.justify = "right"
    for found in plans:
        table.add_row(
            f"{found.config.shards}",
            f"{found.workers:,}",
            duration(found.seconds),
            f"{found.dollars:,.2f}",
            f"{found.idle_dollars:,.2f}",
        )
    return table


def _bill(lines: Sequence[Line]) -> Table:
    table = Table("", "quantity", "", "dollars", box=None, pad_edge=False, header_style="bold", title=" ")
    for column in (table.columns[1], table.columns[3]):
        column.justify = "right"
    for line in lines:
        table.add_row(
            line.item,
            f"{line.quantity:,.0f}" if line.quantity >= 10 else f"{line.quantity:.3g}",
            line.unit if line.unit == "GB" or line.quantity == 1 else f"{line.unit}s",
            f"{line.dollars:,.4f}",
        )
    table.add_row("[bold]total[/]", "", "", f"[bold]{sum(line.dollars for line in lines):,.4f}[/]")
    return table
