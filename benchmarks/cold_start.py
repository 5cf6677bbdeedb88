"""Measures cold starts: a new process up to its first prediction, in seconds, and its peak memory in MB."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks import rounds
from benchmarks.child_process import run_json
from benchmarks.engines import Candidate


def measure(candidates: Mapping[str, Candidate], image: Path, repeats: int) -> dict[str, dict[str, float]]:
    """`seconds` and `peak_mb` of each candidate: medians of the repeats.

    The time includes starting the process. In each repeat, the candidates run one after the other.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for counts in rounds(repeats):
        for name, candidate in candidates.items():
            module = ["-m", "benchmarks.first_prediction"]
            command = [str(candidate.python), *module, candidate.engine, str(candidate.model), str(image)]
            started = time.perf_counter()
            peak_mb = run_json(command, {})["peak_mb"]
            if counts:
                found[name].append((time.perf_counter() - started, peak_mb))
    return {
        name: dict(zip(("seconds", "peak_mb"), map(median, zip(*times, strict=True)), strict=True))
        for name, times in found.items()
    }
