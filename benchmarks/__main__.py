"""Measures everything side by side with the original's way: `make bench [IMAGES=DIR]`.

Writes docs/benchmarks.md, the same figures to build/bench.json, and cxr/planning/service_times.json,
from which `cxr plan` calculates.
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

from benchmarks import cold_start, engines, fan_out, pipeline, report
from benchmarks.engines import Kind
from cxr import PROJECT
from cxr.commands.terminal import console
from cxr.files import whole_file
from cxr.phantoms import draw_phantom

TORCH = PROJECT / ".venv-training" / "bin" / "python"
OURS = Path(sys.executable)
XRAYS = PROJECT.parent / "shared" / "data" / "nih-cxr" / "originals" / "cxr-nih"
SHIPPED = PROJECT / "containers" / "classifier" / "model"
FP32 = PROJECT / "training" / "nih-lite0-demo"
SAME = 1e-4  # of two ways to compute one network in fp32
QUICK_IMAGES = 8
COUNTS = (10_000, 113_178, 1_000_000)
LIBRARIES = ("numpy", "pillow", "kornia-rs", "onnxruntime", "boto3", "ministack")
TORCH_LIBRARIES = ("torch", "torchvision", "openvino", "pandas")


def images_in(folder: Path | None, drawn: Path) -> tuple[Path, list[Path]]:
    """A folder and the PNG files in it: NIH's X-rays, if none is given and they are here, else drawings."""
    folder = folder or (XRAYS if XRAYS.exists() else None)
    if not folder:
        folder = drawn
        for number in range(40):
            drawing = draw_phantom(number, opacity=bool(number % 2)).resize((1024, 1024))
            drawing.save(folder / f"{number:02}.png")
    return folder, sorted(path.relative_to(folder) for path in folder.rglob("*.png"))


def kinds(models: Path) -> dict[str, Kind]:
    """Every engine and model that is compared."""
    return {
        report.ORIGINAL: Kind("original, batch 1", TORCH, models / "densenet121"),
        "original, batch 8": Kind("original, batch 8", TORCH, models / "densenet121"),
        report.FP32: Kind("ours", OURS, models / "fp32"),
        report.INT8: Kind("ours", OURS, models / "int8"),
        report.DEFAULT_FP32: Kind("ours", OURS, FP32),
        report.DEFAULT: Kind("ours", OURS, SHIPPED),
        "OpenVINO, DenseNet-121 fp32": Kind("openvino", TORCH, models / "fp32"),
        report.OPENVINO_INT8: Kind("openvino", TORCH, models / "int8"),
        "OpenVINO, default model": Kind("openvino", TORCH, SHIPPED),
    }


def measure(folder: Path, files: list[Path], quick: bool) -> dict[str, Any]:
    """All of bench.json but its ratios. Raises RuntimeError where scores disagree."""
    repeats, fewer, counts = (1, 1, COUNTS[:1]) if quick else (7, 3, COUNTS)
    paths = [folder / file for file in files]
    with tempfile.TemporaryDirectory() as temporary, console.status("") as status:
        models = Path(temporary)
        status.update("DenseNet-121 in fp32 and int8")
        command = [str(TORCH), "-m", "benchmarks.random_densenet", str(models), str(folder)]
        subprocess.run(command, check=True)  # noqa: S603 - our own module
        compared = kinds(models)
        one = engines.measure(compared, 1, paths, repeats, status.update)
        _same(one["engines"])
        every = engines.measure(compared, os.cpu_count() or 1, paths, fewer, status.update)
        status.update("cold start")
        cold = cold_start.measure(compared, paths[0], fewer)
        alone = {name: compared[name].model for name in (report.DEFAULT, report.FP32, report.INT8)}
        whole = pipeline.measure(alone, folder, files, fewer, status.update)
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
    }


def _same(found: dict[str, Any]) -> None:
    """The original and ours compute the same scores. Raises RuntimeError."""
    pairs = zip(found[report.ORIGINAL]["scores"], found[report.FP32]["scores"], strict=True)
    worst = max(abs(theirs - ours) for theirs, ours in pairs)
    found[report.FP32]["worst_difference"] = worst
    if worst > SAME:
        raise RuntimeError(f"DenseNet-121: scores differ from the original's by {worst}, expected {SAME}")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _versions() -> dict[str, str]:
    ours = {name: metadata.version(name) for name in LIBRARIES}
    code = f"from importlib.metadata import version as v; print(*map(v, {TORCH_LIBRARIES}))"
    return ours | dict(zip(TORCH_LIBRARIES, _where_torch_is(code).split(), strict=True))


def _megabytes(*libraries: str) -> dict[str, float]:
    """What the libraries' installed files weigh."""
    code = "from importlib.metadata import files; " + "; ".join(
        f"print(sum(f.locate().stat().st_size for f in files({name!r})) / 1e6)" for name in libraries
    )
    return dict(zip(libraries, map(float, _where_torch_is(code).split()), strict=True))


def _where_torch_is(code: str) -> str:
    done = subprocess.run([str(TORCH), "-c", code], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="PNG files to score")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few images and keys, once, to build/bench.json only: whether it works",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        folder, files = images_in(options.images, Path(drawn))
        if not files:
            sys.exit(f"{folder}: expected PNG files in it or below")
        found = measure(folder, files[:QUICK_IMAGES] if options.quick else files, options.quick)
    found |= report.ratios(found)
    page = report.render(found)
    (PROJECT / "build").mkdir(exist_ok=True)
    texts = {PROJECT / "build" / "bench.json": json.dumps(found, indent=2) + "\n"}
    if not options.quick:
        texts[PROJECT / "docs" / "benchmarks.md"] = page
        times = json.dumps(report.service_times(found), indent=2) + "\n"
        texts[PROJECT / "cxr" / "planning" / "service_times.json"] = times
    for path, text in texts.items():
        with whole_file(path) as part:
            part.write_text(text)
        console.print(f"Wrote {path.relative_to(PROJECT)}")
    for name, ratio in found["ratios"].items():
        console.print(f"{ratio:8.2f} x the original's way  {name}")


if __name__ == "__main__":
    main()
