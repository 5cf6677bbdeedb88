"""Runs all benchmarks beside the original: `make bench [IMAGES=DIR]`.

Writes docs/benchmarks.md, the same figures as build/bench.json, and cxr/planning/service_times.json, from
which `cxr plan` calculates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import arrivals, cold_start, engines, fan_out, pipeline, summary
from benchmarks.child_process import TRAINING_PYTHON
from benchmarks.engines import Candidate
from cxr import PROJECT
from cxr.commands.terminal import console
from cxr.files import whole_file
from cxr.phantoms import draw_phantom

PYTHON = Path(sys.executable)
XRAYS = PROJECT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"
SHIPPED = PROJECT / "containers" / "classifier" / "model"
FP32 = PROJECT / "training" / "nih-abnormal-float"
TOLERANCE = 1e-4  # largest difference of scores between two engines in fp32
QUICK_IMAGES = 4
LIBRARIES = ("numpy", "pillow", "kornia-rs", "onnxruntime", "boto3", "ministack")
TORCH_LIBRARIES = ("torch", "torchvision", "openvino", "pandas")


def find_images(folder: Path | None, drawings: Path) -> tuple[Path, list[Path]]:
    """A folder and its PNG files: `folder`, else NIH's X-rays if they exist, else new files in `drawings`."""
    folder = folder or (XRAYS if XRAYS.exists() else None)
    if not folder:
        folder = drawings
        for number in range(40):
            drawing = draw_phantom(number, opacity=bool(number % 2)).resize((1024, 1024))
            drawing.save(folder / f"{number:02}.png")
    return folder.resolve(), sorted(path.relative_to(folder) for path in folder.rglob("*.png"))


def list_candidates(models: Path) -> dict[str, Candidate]:
    """Every engine and model to compare. `models` has the files of benchmarks.random_densenet."""
    return {
        summary.ORIGINAL: Candidate("original, batch 1", TRAINING_PYTHON, models / "densenet121"),
        "original, batch 8": Candidate("original, batch 8", TRAINING_PYTHON, models / "densenet121"),
        summary.FP32: Candidate("classifier", PYTHON, models / "fp32"),
        summary.INT8: Candidate("classifier", PYTHON, models / "int8"),
        summary.DEFAULT_FP32: Candidate("classifier", PYTHON, FP32),
        summary.DEFAULT: Candidate("classifier", PYTHON, SHIPPED),
        "OpenVINO, DenseNet-121 fp32": Candidate("openvino", TRAINING_PYTHON, models / "fp32"),
        summary.OPENVINO_INT8: Candidate("openvino", TRAINING_PYTHON, models / "int8"),
        "OpenVINO, default model": Candidate("openvino", TRAINING_PYTHON, SHIPPED),
    }


def measure(folder: Path, files: list[Path], quick: bool) -> dict[str, Any]:
    """All of bench.json but its ratios. Raises RuntimeError if a benchmark fails or scores disagree."""
    repeats, fewer, counts = (1, 1, fan_out.COUNTS[:1]) if quick else (7, 3, fan_out.COUNTS)
    paths = [folder / file for file in files]
    with tempfile.TemporaryDirectory() as temporary, console.status("") as status:
        models = Path(temporary)
        status.update("DenseNet-121 in fp32 and int8")
        command = [str(TRAINING_PYTHON), "-m", "benchmarks.random_densenet", str(models), str(folder)]
        subprocess.run(command, check=True)  # noqa: S603 - our own module
        candidates = list_candidates(models)
        one = engines.measure(candidates, 1, paths, repeats, status.update)
        _compare_scores(one["engines"])
        every = engines.measure(candidates, os.cpu_count() or 1, paths, fewer, status.update)
        status.update("cold start")
        cold = cold_start.measure(candidates, paths[0], fewer)
        alone = {name: candidates[name].model for name in (summary.DEFAULT, summary.FP32, summary.INT8)}
        whole = pipeline.measure(alone, folder, files, fewer, status.update)
        arrived = arrivals.measure(folder, files, status.update)
        sent = fan_out.measure(fewer, counts, status.update)
    return {
        "date": f"{date.today():%Y-%m-%d}",
        "machine": _machine(),
        "versions": _versions(),
        "megabytes": _megabytes("openvino", "onnxruntime"),
        "images": len(paths),
        "repeats": {"one thread": repeats, "all else": fewer},
        "model": json.loads((SHIPPED / "model.json").read_text())["name"],
        "one_thread": one,
        "all_threads": every,
        "cold_start": cold,
        "fan_out": sent,
        "pipeline": whole,
        "arrivals": arrived,
    }


def _compare_scores(found: dict[str, Any]) -> None:
    """Add the largest difference from the original's scores. Raises RuntimeError if it is too large."""
    pairs = zip(found[summary.ORIGINAL]["scores"], found[summary.FP32]["scores"], strict=True)
    worst = max(abs(original - score) for original, score in pairs)
    found[summary.FP32]["worst_difference"] = worst
    if worst > TOLERANCE:
        raise RuntimeError(
            f"DenseNet-121: scores differ from the original's by {worst}, expected at most {TOLERANCE}"
        )


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in LIBRARIES}
    code = f"from importlib.metadata import version as v; print(*map(v, {TORCH_LIBRARIES}))"
    return versions | dict(zip(TORCH_LIBRARIES, _run_with_torch(code).split(), strict=True))


def _megabytes(*libraries: str) -> dict[str, float]:
    """Size of the installed files of each library."""
    code = "from importlib.metadata import files; " + "; ".join(
        f"print(sum(f.locate().stat().st_size for f in files({name!r})) / 1e6)" for name in libraries
    )
    return dict(zip(libraries, map(float, _run_with_torch(code).split()), strict=True))


def _run_with_torch(code: str) -> str:
    """What Python code prints in the environment of training/."""
    done = subprocess.run([str(TRAINING_PYTHON), "-c", code], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the PNG files to score")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few images and keys, one repeat, written to build/bench.json only: tests that it runs",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawings:
        folder, files = find_images(options.images, Path(drawings))
        if not files:
            sys.exit(f"{folder}: expected PNG files in it or below")
        found = measure(folder, files[:QUICK_IMAGES] if options.quick else files, options.quick)
    found |= summary.ratios(found)
    page = summary.render(found)
    (PROJECT / "build").mkdir(exist_ok=True)
    texts = {PROJECT / "build" / "bench.json": json.dumps(found, indent=2) + "\n"}
    if not options.quick:
        texts[PROJECT / "docs" / "benchmarks.md"] = page
        times = json.dumps(summary.service_times(found), indent=2) + "\n"
        texts[PROJECT / "cxr" / "planning" / "service_times.json"] = times
    for path, text in texts.items():
        with whole_file(path) as part:
            part.write_text(text)
        console.print(f"Wrote {path.relative_to(PROJECT)}")
    for name, ratio in found["ratios"].items():
        console.print(f"{ratio:8.2f} times as fast as the original: {name}")


if __name__ == "__main__":
    main()
