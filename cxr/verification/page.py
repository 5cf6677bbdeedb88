"""The results of a verification as a page, as JSON, and as service times for a plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cxr import RESEARCH_ONLY
from cxr.files import whole_file
from cxr.verification.check import Result, passed
from cxr.verification.measurement import Measurement
from cxr.words import duration

PAGE, DOCUMENT, SERVICE_TIMES = "verification.md", "verification.json", "service_times.json"


def document(stack: str, results: Sequence[Result], measured: Measurement | None) -> dict[str, Any]:
    """Everything, as an object for JSON."""
    return {
        "stack": stack,
        "passed": passed(results),
        "checks": [asdict(result) for result in results],
        "measured": asdict(measured) if measured else None,
    }


def write(folder: Path, stack: str, results: Sequence[Result], measured: Measurement | None) -> list[Path]:
    """Write the page, the JSON and, if the speed was measured, the service times. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    texts = {
        PAGE: page(stack, results, measured),
        DOCUMENT: json.dumps(document(stack, results, measured), indent=2) + "\n",
    }
    if measured and measured.images_per_second:
        texts[SERVICE_TIMES] = json.dumps(measured.service_times(), indent=2) + "\n"
    for name, text in texts.items():
        with whole_file(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def page(stack: str, results: Sequence[Result], measured: Measurement | None) -> str:
    """The page, in Markdown."""
    lines = [f"# Verification of {stack}", "", "| promise | outcome | seen | seconds |", "|---|---|---|---|"]
    for result in results:
        seen = f"{result.seen}. To do: {result.remedy}" if result.remedy else result.seen
        cells = (f"{result.promise} ({result.name})", result.outcome, seen, f"{result.seconds:g}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if measured:
        lines += ["", f"## Measured on {measured.machine}, {measured.date}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in measurements(measured)]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])


def measurements(measured: Measurement) -> list[tuple[str, str]]:
    """What was measured: names, and values in words."""
    unknown = "not checked here"

    def said(value: float | None, text: str) -> str:
        return unknown if value is None else text.format(value)

    first = (
        "" if measured.seconds_to_most is None else f", {duration(measured.seconds_to_most)} after the start"
    )
    cold = measured.cold_start_seconds
    return [
        ("model", measured.model),
        ("images scored", f"{measured.images:,} in {measured.invocations:,} invocations"),
        (
            "images a second, one classifier",
            said(measured.images_per_second, "{:.1f}") + f" ({measured.vcpus:g} vCPU)",
        ),
        *((f"{name}, mean", f"{value:.1f}") for name, value in measured.milliseconds.items()),
        ("cold starts", f"{measured.cold_starts:,}" + ("" if cold is None else f", {duration(cold)} each")),
        ("most classifiers at once", f"{measured.most_at_once:,}{first}"),
        ("throttles", said(measured.throttles, "{:,}")),
        ("Lambda, GB-seconds", said(measured.gigabyte_seconds, "{:.1f}")),
        ("cost of this verification, dollars", said(measured.dollars, "{:.4f}")),
    ]
