"""Summarises measurements: ratios, the service times for `cxr plan`, and the page docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import NIH_IMAGES
from tools.markdown import table

ORIGINAL = "original, batch 1"
FP32, INT8 = "DenseNet-121 fp32", "DenseNet-121 int8"
OPENVINO_INT8 = "OpenVINO, DenseNet-121 int8"
DEFAULT_FP32, DEFAULT = "default model fp32", "default model, as shipped"
COMPARED_KEYS = str(NIH_IMAGES)
GFLOP = (
    5.7  # of a DenseNet-121 for one image of 224 x 224; a multiplication and an addition are two operations
)


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """`ratios` of speeds to the original's, where above 1 is faster; and `ms` and `gemm_gflops`."""
    one, cold = found["one_thread"]["engines"], found["cold_start"]
    original = one[ORIGINAL]["images_per_second"]
    return {
        "ratios": {
            "densenet121_fp32": one[FP32]["images_per_second"] / original,
            "densenet121_int8": one[INT8]["images_per_second"] / original,
            "default_model": one[DEFAULT]["images_per_second"] / original,
            "cold_start": cold[ORIGINAL]["seconds"] / cold[DEFAULT]["seconds"],
            "fan_out": found["fan_out"]["ratio"],
        },
        "ms": {
            "original_densenet121_batch1": one[ORIGINAL]["ms"],
            "gemm_gflops": found["one_thread"]["gemm_gflops"],
        },
        "gemm_gflops": found["one_thread"]["gemm_gflops"],
    }


def service_times(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that `cxr plan` calculates with. Images a second are those of one worker on one CPU."""
    workers = found["pipeline"]["workers"]
    keys = found["fan_out"][COMPARED_KEYS]
    rates = {found["model"]: DEFAULT, "densenet121 fp32": FP32, "densenet121 int8": INT8}
    return {
        "measured": found["date"],
        "machine": found["machine"],
        "images_per_second": {
            name: round(workers[worker]["images_per_second"], 1) for name, worker in rates.items()
        },
        "cold_start_seconds": round(found["cold_start"][DEFAULT]["seconds"], 2),
        "keys_per_second": {
            source: round(keys[source]["keys_per_second"]) for source in ("listing", "index")
        },
    }


def render(found: dict[str, Any]) -> str:
    """The page docs/benchmarks.md."""
    return "\n\n".join(_parts(found)) + "\n"


def _parts(found: dict[str, Any]) -> Iterator[str]:
    one, every = found["one_thread"], found["all_threads"]
    yield "# Benchmarks"
    yield (
        f"Written by `make bench` on {found['date']}: {found['machine']}. "
        f"Figures are medians of {found['repeats']['one thread']} repeats on one thread, and of "
        f"{found['repeats']['all else']} for everything else, after one repeat to warm up. In every repeat "
        f"each way is measured once. The input is {found['images']} files of 1024 x 1024 pixels, in memory. "
        "Versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + "."
    )
    yield table(
        ("compared with the original way", "times as fast"),
        ((name, f"{ratio:.2f}") for name, ratio in found["ratios"].items()),
    )
    yield "## Classifier: from the bytes of a file to the score"
    yield (
        "The original way is [benchmarks/original.py](../benchmarks/original.py): Pillow, torchvision's "
        "transforms and DenseNet-121 in torch, with one image a batch as in the original Lambda, or with 8. "
        "DenseNet-121 has random weights here. In this run its fp32 scores differ from the original's by at "
        f"most {one['engines'][FP32]['worst_difference']:.0e}. "
        "The parts are measured one after the other, on one thread."
    )
    first = one["engines"][ORIGINAL]["images_per_second"]
    yield table(
        (
            "",
            "images/s, one thread",
            "times the original",
            "ms: decode",
            "resize",
            "inference",
            "images/s, all threads",
        ),
        (
            (
                name,
                f"{engine['images_per_second']:.1f}",
                f"{engine['images_per_second'] / first:.2f}",
                *(f"{engine['parts'][part]:.1f}" for part in ("decode", "resize", "infer")),
                f"{every['engines'][name]['images_per_second']:.1f}",
            )
            for name, engine in one["engines"].items()
        ),
    )
    limit = one["gemm_gflops"]
    yield (
        f"**Distance to the limit.** A matrix product in fp32 reaches {limit:.0f} GFLOP/s on this core. "
        f"DenseNet-121 as published takes {GFLOP} GFLOP, which is {1e3 * GFLOP / limit:.0f} ms at that rate. "
        f"Here its inference takes {one['engines'][FP32]['parts']['infer']:.0f} ms."
    )
    yield "## Cold start: a new process to its first prediction"
    yield (
        "Our process imports everything that Lambda loads, boto3 included. The time is what the caller who "
        "starts the process sees."
    )
    yield table(
        ("", "seconds", "peak memory, MB"),
        (
            (name, f"{start['seconds']:.2f}", f"{start['peak_mb']:.0f}")
            for name, start in found["cold_start"].items()
        ),
    )
    yield "## Job creator: from keys to jobs on the stream"
    yield (
        "The original way is "
        "[benchmarks/original_job_creator.py](../benchmarks/original_job_creator.py): pandas reads the "
        "whole index, each record holds one key, each call sends 500 records, in 10 threads, and refused "
        "records are not sent again. All ways run on the same local AWS, from the event to the answer. The "
        "listing comes from a server that does nothing else. Local AWS goes through the whole stream at "
        "every call, which slows down the original's million records."
    )
    yield table(
        ("keys", "from", "keys/s", "peak memory, MB", "times the original"),
        (
            (
                f"{int(count):,}",
                source,
                f"{way['keys_per_second']:,.0f}",
                f"{way['peak_mb']:.0f}",
                f"{way['keys_per_second'] / ways['original']['keys_per_second']:.1f}",
            )
            for count, ways in found["fan_out"].items()
            if count.isdigit()
            for source, way in ways.items()
        ),
    )
    yield "## Whole pipeline on local AWS"
    whole, workers = found["pipeline"]["whole"], found["pipeline"]["workers"]
    yield (
        f"{found['pipeline']['images']} images take {whole['seconds']:.1f} s from the invocation of the job "
        f"creator to the last prediction: {whole['images_per_second']:.0f} a second. The job creator "
        f"answers after {whole['job_creator_seconds']:.1f} s. Local AWS and the classifiers share the "
        f"machine: the classifiers used {whole['classifier_cpu_seconds']:.1f} s of CPU, and local AWS "
        f"{whole['local_aws_cpu_seconds']:.1f} s."
    )
    yield (
        "**One worker alone**: the real handler on one CPU and local AWS on another, from S3 to DynamoDB. "
        "`cxr plan` uses these images a second. The other columns are milliseconds of CPU for each image:"
    )
    steps = list(workers[DEFAULT]["cpu_ms"])
    yield table(
        ("", "images/s", *steps),
        (
            (
                name,
                f"{worker['images_per_second']:.1f}",
                *(f"{worker['cpu_ms'][step]:.2f}" for step in steps),
            )
            for name, worker in workers.items()
        ),
    )
    yield from arrivals(found["arrivals"])
    yield "## What was not reached, and why"
    yield _not_reached(found)


def arrivals(found: dict[str, Any]) -> Iterator[str]:
    """The section on arrivals."""
    yield "## Arrivals: from an upload to its prediction"
    yield (
        f"{found['images']} images were uploaded to local AWS, one a second, with `arrivals=on`. From an "
        f"upload to its prediction it took {found['median']:.0f} s (median) and at most {found['worst']:.0f} "
        "s. Local AWS does not wait until events have gathered: on AWS, up to `arrivalsWindow` seconds "
        "(20 by default) come on top."
    )


def _not_reached(found: dict[str, Any]) -> str:
    one, workers = found["one_thread"]["engines"], found["pipeline"]["workers"]
    keys, megabytes = found["fan_out"].get(COMPARED_KEYS, {}), found["megabytes"]
    lines = [
        f"DenseNet-121 in fp32 cannot become much faster on this core: inference takes "
        f"{one[FP32]['parts']['infer']:.0f} of {one[FP32]['ms']:.0f} ms, and runs at the rate of the matrix "
        "product. OpenVINO is no faster.",
        f"OpenVINO in int8 is {one[OPENVINO_INT8]['images_per_second'] / one[INT8]['images_per_second']:.2f} "
        f"times as fast as ours. But it takes {found['cold_start'][OPENVINO_INT8]['seconds']:.1f} s to its "
        f"first prediction instead of {found['cold_start'][INT8]['seconds']:.1f} s, and "
        f"{megabytes['openvino']:.0f} MB of the image instead of {megabytes['onnxruntime']:.0f} MB. So it is "
        "not shipped.",
        f"A worker scores {workers[DEFAULT]['images_per_second']:.0f} images a second and not "
        f"{one[DEFAULT]['images_per_second']:.0f}: it also fetches, for "
        f"{workers[DEFAULT]['cpu_ms']['fetch']:.1f} ms of CPU an image beside obstore's own threads.",
        "Decoding takes most of the default model's time. Faster libraries that inflate a PNG do not undo "
        "the filters of its rows, so a compiled decoder is still needed.",
        "None of it was measured on AWS.",
    ]
    if keys:
        times = keys["listing"]["keys_per_second"] / keys["original"]["keys_per_second"]
        lines.append(
            f"From a listing the job creator is {times:.1f} times as fast as the original way, which "
            "reads an index: a page of a listing holds 1,000 keys, and only then is the next page known."
        )
    return "\n".join(f"- {line}" for line in lines)
