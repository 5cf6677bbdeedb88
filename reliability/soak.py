"""`python -m reliability [SECONDS]`, as `make soak` calls it: fuzz and random schedules until time is up.

Two processes, each with seeds of its own. What they come to goes to build/soak.json when all of it passed;
a violation, or Ctrl-C, leaves no file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import queue
import signal
import threading
import time
import traceback
from collections import Counter
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cxr.errors import Failed
from cxr.files import whole_file
from reliability.checker import Totals
from reliability.fuzz import fuzz
from reliability.schedules import Schedule, schedules
from reliability.simulator import World
from tools.markdown import place, put_table

OUT = Path(__file__).parents[1] / "build" / "soak.json"
PROCESSES = 2
FUZZED_A_SECOND = 100_000 / 2400  # of the whole time: 100,000 inputs in the default 2,400 seconds
AT_ONCE = 100  # schedules of one seed
ENDING_SECONDS = 3  # that a child has to end in
LINE_SECONDS = 60  # from one line to the next where there is no terminal

console = Console(highlight=False)


def main() -> int:
    """0 if all passed, 1 after a violation, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="that of another run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the totals into docs/reliability.md")
    given_ = parser.parse_args()
    if given_.seconds < 1:
        parser.error(f"{given_.seconds} seconds: expected at least 1")
    if given_.write:
        try:
            place(given_.write, "soak")
        except Failed as error:
            parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    OUT.parent.mkdir(exist_ok=True)
    OUT.unlink(missing_ok=True)
    console.print(f"{given_.seconds:,} s of fuzz and schedules in {PROCESSES} processes, seed {given_.seed}")
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    children = [
        context.Process(target=_work, args=(number, given_.seconds, given_.seed, told))
        for number in range(PROCESSES)
    ]
    begun = time.monotonic()
    try:
        for child in children:
            child.start()
        done, problem = _follow(told, children, begun, given_.seconds)
    except KeyboardInterrupt:
        console.print(f"stopped; {OUT.name} was not written")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave a child behind
        for child in children:
            child.terminate()
        for child in children:
            child.join(ENDING_SECONDS)
            child.kill()
    if problem:
        console.print(problem, markup=False, soft_wrap=True)
        console.print("Paste the schedule into tests/test_schedules.py to have it again.")
        return 1
    totals = _sum(done)
    report = {
        **totals,
        "seconds": round(time.monotonic() - begun),
        "seed": given_.seed,
        "processes": PROCESSES,
        "python": platform.python_version(),
    }
    with whole_file(OUT) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    console.print(_line(totals), f"written to build/{OUT.name}", sep="; ")
    if given_.write:
        names = ("schedules", "images", "faults", "lost", "doubled", "fuzzed")
        rows = [(name, f"{totals[name]:,}") for name in names]
        kinds = [(f"fault: {kind}", f"{number:,}") for kind, number in totals["kinds"].items()]
        put_table(given_.write, "soak", f"make soak SECONDS={given_.seconds}", [*rows, *kinds])
    return 0


def _work(number: int, seconds: int, first_seed: int, told: Any) -> None:
    """One process: its share of the fuzz, then schedules. Tells (number, totals so far, problem, ended)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    until = time.monotonic() + seconds
    fuzzed, totals = 0, Totals()

    def tell(problem: str = "", ended: bool = False) -> None:
        counts = {**asdict(totals), "faults": dict(totals.faults), "fuzzed": fuzzed}
        told.put((number, counts, problem, ended))

    def progress(inputs: int) -> None:
        nonlocal fuzzed
        fuzzed = inputs
        tell()

    try:
        fuzzed = fuzz(math.ceil(seconds * FUZZED_A_SECOND / PROCESSES), first_seed + number, progress)
        world = World()
        totals = world.totals
        part = 0
        while time.monotonic() < until:
            _some(world, f"{first_seed}-{number}-{part}", until)
            part += 1
            tell()
        tell(ended=True)
    except Exception:  # noqa: BLE001 - told to the parent, whatever it is
        tell(problem=traceback.format_exc())


def _end(*_: object) -> None:
    """End at once, with the fuzz's own process. An exception may be caught by what runs."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _end_with_the_parent() -> None:
    """Whatever ends the parent ends this process too."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        _end()


def _some(world: World, name: str, until: float) -> None:
    @seed(name)
    @settings(
        max_examples=AT_ONCE,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules())
    def check(schedule: Schedule) -> None:
        if time.monotonic() < until:
            world.run(schedule)

    check()


def _follow(told: Any, children: list[Any], begun: float, seconds: int) -> tuple[list[dict[str, Any]], str]:
    """Show how far it is until all have ended: what each came to, and what went wrong."""
    latest: dict[int, dict[str, Any]] = {}
    ended = 0
    line_at = begun + LINE_SECONDS
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=seconds)
        while ended < len(children):
            try:
                number, totals, problem, is_end = told.get(timeout=1)
            except queue.Empty:
                if any(child.exitcode for child in children):
                    return list(latest.values()), "a process ended by itself; run it again with the same seed"
            else:
                latest[number] = totals
                ended += is_end
                if problem:
                    return list(latest.values()), problem
            now = time.monotonic()
            bar.update(task, completed=min(seconds, now - begun), description=_line(_sum(latest.values())))
            if not console.is_terminal and now >= line_at:
                console.print(_line(_sum(latest.values())))
                line_at = now + LINE_SECONDS
    return list(latest.values()), ""


def _sum(totals: Any) -> dict[str, Any]:
    """What all processes came to; `kinds` says how often each fault was met."""
    found = list(totals)
    kinds: Counter[str] = Counter()
    for one in found:
        kinds.update(one["faults"])
    names = ("schedules", "images", "lost", "doubled", "fuzzed")
    counts = {name: sum(one[name] for one in found) for name in names}
    return {**counts, "faults": kinds.total(), "kinds": dict(kinds.most_common())}


def _line(totals: dict[str, Any]) -> str:
    return (
        f"{totals['fuzzed']:,} inputs fuzzed, {totals['schedules']:,} schedules, "
        f"{totals['images']:,} images, {totals['faults']:,} faults, "
        f"lost {totals['lost']}, doubled {totals['doubled']}"
    )
