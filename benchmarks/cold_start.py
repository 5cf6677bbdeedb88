"""A new process to its first prediction: seconds, as who starts it sees them, and its peak memory in MB."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.engines import Kind


def measure(kinds: Mapping[str, Kind], image: Path, repeats: int) -> dict[str, dict[str, float]]:
    """`seconds` and `peak_mb` of each, medians of interleaved repeats after one to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(repeats + 1):
        for name, kind in kinds.items():
            command = [
                str(kind.python),
                "-m",
                "benchmarks.first_prediction",
                kind.engine,
                str(kind.model),
                str(image),
            ]
            started = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
            seconds = time.perf_counter() - started
            found[name].append((seconds, json.loads(done.stdout)["peak_mb"]))
    return {
        name: dict(zip(("seconds", "peak_mb"), map(median, zip(*times[1:], strict=True)), strict=True))
        for name, times in found.items()
    }
