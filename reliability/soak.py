"""`make soak`, or `python -m reliability [SECONDS]`: fuzz the classifier, then run random schedules.

Two processes run, each with its own seeds. If nothing failed, the totals are written to build/soak.json.
After a failure or Ctrl-C, there is no such file.
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
from collections.abc import Iterable
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cxr.errors import Failed
from cxr.files import whole_file
from reliability.checker import Totals
from reliability.fuzz import fuzz
from reliability.schedules import Schedule, run_random_schedules
from reliability.simulator import Simulator
from tools.markdown import place, put_table

OUT = Path(__file__).parents[1] / "build" / "soak.json"
PROCESSES = 2
INPUTS_PER_SECOND = 100_000 / 2400  # of the soak: 100,000 fuzzed files in the default 2,400 seconds
SCHEDULES_PER_SEED = 100
STOP_SECONDS = 3  # for a process to stop, before it is killed
LINE_SECONDS = 60  # between two lines of progress, if there is no terminal

console = Console(highlight=False)


def main() -> int:
    """Run the soak. Returns 0 if all passed, 1 after a failure, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=2400, help="how long to run (default: 2400)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10**9, help="repeat the run with this seed"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the totals to docs/reliability.md")
    arguments = parser.parse_args()
    if arguments.seconds < 1:
        parser.error(f"{arguments.seconds} seconds: expected at least 1")
    if arguments.write:
        try:
            place(arguments.write, "soak")  # fail now rather than after the soak
        except Failed as error:
            parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    OUT.parent.mkdir(exist_ok=True)
    OUT.unlink(missing_ok=True)
    console.print(
        f"Fuzzing, then random schedules: {arguments.seconds:,} s in {PROCESSES} processes, "
        f"seed {arguments.seed}"
    )
    context = multiprocessing.get_context("spawn")
    updates: Any = context.Queue()
    processes = [
        context.Process(target=_run_process, args=(number, arguments.seconds, arguments.seed, updates))
        for number in range(PROCESSES)
    ]
    started = time.monotonic()
    try:
        for process in processes:
            process.start()
        latest, problem = _show_progress(updates, processes, started, arguments.seconds)
    except KeyboardInterrupt:
        console.print(f"Stopped; {OUT.name} was not written.")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave a process running
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(STOP_SECONDS)
            process.kill()
    if problem:
        console.print(problem, markup=False, soft_wrap=True)
        console.print("To repeat a schedule that failed, paste it into tests/test_schedules.py.")
        return 1
    totals = _sum_totals(latest)
    report = {
        **totals,
        "seconds": round(time.monotonic() - started),
        "seed": arguments.seed,
        "processes": PROCESSES,
        "python": platform.python_version(),
    }
    with whole_file(OUT) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"{_summary(totals)}; written to build/{OUT.name}")
    if arguments.write:
        names = ("schedules", "images", "faults", "lost", "doubled", "fuzzed")
        rows = [(name, f"{totals[name]:,}") for name in names]
        kinds = [(f"fault: {kind}", f"{number:,}") for kind, number in totals["kinds"].items()]
        put_table(arguments.write, "soak", f"make soak SECONDS={arguments.seconds}", [*rows, *kinds])
    return 0


def _run_process(number: int, seconds: int, first_seed: int, updates: Any) -> None:
    """Run one process: its share of the fuzzing, then schedules until the time is up.

    Puts (number of the process, its totals so far, problem, whether it has ended) on the queue of updates.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_exit_with_the_parent, daemon=True).start()
    until = time.monotonic() + seconds
    fuzzed, totals = 0, Totals()

    def send(problem: str = "", ended: bool = False) -> None:
        counts = {**asdict(totals), "faults": dict(totals.faults), "fuzzed": fuzzed}
        updates.put((number, counts, problem, ended))

    def progress(inputs: int) -> None:
        nonlocal fuzzed
        fuzzed = inputs
        send()

    try:
        fuzzed = fuzz(math.ceil(seconds * INPUTS_PER_SECOND / PROCESSES), first_seed + number, progress)
        simulator = Simulator()
        totals = simulator.totals
        part = 0
        while time.monotonic() < until:
            _run_schedules(simulator, f"{first_seed}-{number}-{part}", until)
            part += 1
            send()
        send(ended=True)
    except Exception:  # noqa: BLE001 - the parent shows any error
        send(problem=traceback.format_exc())


def _exit(*_: object) -> None:
    """End this process and its child at once. The code under test could catch an exception."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _exit_with_the_parent() -> None:
    """End this process when the parent ends, also if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        _exit()


def _run_schedules(simulator: Simulator, seed: str, until: float) -> None:
    """Run the schedules of one seed, until the time is up. Raises Violation."""

    def run(schedule: Schedule) -> None:
        if time.monotonic() < until:
            simulator.run(schedule)

    run_random_schedules(run, SCHEDULES_PER_SEED, seed)


def _show_progress(
    updates: Any, processes: list[Any], started: float, seconds: int
) -> tuple[list[dict[str, Any]], str]:
    """Show the progress until all processes have ended. Returns the totals of each, and the first problem."""
    latest: dict[int, dict[str, Any]] = {}
    ended = 0
    line_at = started + LINE_SECONDS
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=seconds)
        while ended < len(processes):
            try:
                number, totals, problem, is_end = updates.get(timeout=1)
            except queue.Empty:
                if any(process.exitcode for process in processes):
                    return list(latest.values()), "A process ended early; run the same seed again."
            else:
                latest[number] = totals
                ended += is_end
                if problem:
                    return list(latest.values()), problem
            now = time.monotonic()
            summary = _summary(_sum_totals(latest.values()))
            bar.update(task, completed=min(seconds, now - started), description=summary)
            if not console.is_terminal and now >= line_at:
                console.print(summary)
                line_at = now + LINE_SECONDS
    return list(latest.values()), ""


def _sum_totals(totals: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The totals of all processes. `kinds` says how many requests met each kind of fault."""
    found = list(totals)
    kinds: Counter[str] = Counter()
    for one in found:
        kinds.update(one["faults"])
    names = ("schedules", "images", "lost", "doubled", "fuzzed")
    counts = {name: sum(one[name] for one in found) for name in names}
    return {**counts, "faults": kinds.total(), "kinds": dict(kinds.most_common())}


def _summary(totals: dict[str, Any]) -> str:
    return (
        f"{totals['fuzzed']:,} files fuzzed, {totals['schedules']:,} schedules, "
        f"{totals['images']:,} images, {totals['faults']:,} faults, "
        f"lost {totals['lost']}, doubled {totals['doubled']}"
    )
