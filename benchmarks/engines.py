"""From the bytes of image files to their scores: the original's way, and every engine that was tried."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from classifier.images import decode
from classifier.model import Model


@dataclass(frozen=True)
class Kind:
    """What to measure: an engine, the Python that has its libraries, the model's folder or checkpoint."""

    engine: str  # of ENGINES
    python: Path
    model: Path


class Engine(Protocol):
    def score(self, files: Sequence[bytes]) -> list[float]:
        """The first label's score of each file."""

    def parts(self, files: Sequence[bytes]) -> dict[str, float]:
        """Milliseconds an image for decode, resize and infer, each after the other, on one thread."""


class Ours:
    """As the classifier does it: one image a thread."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.model = Model(folder)
        self.pool = ThreadPoolExecutor(threads)
        self.threads = threads

    def infer(self, pixels: Any) -> float:
        (scores,) = self.model.score([pixels])
        return float(next(iter(scores.values())))

    def score(self, files: Sequence[bytes]) -> list[float]:
        def one(data: bytes) -> float:
            return self.infer(self.model.prepare(data)[0])

        return [one(data) for data in files] if self.threads == 1 else list(self.pool.map(one, files))

    def parts(self, files: Sequence[bytes]) -> dict[str, float]:
        pixels = [self.model.prepare(data)[0] for data in files]
        decoding, preparing = timed(decode, files), timed(self.model.prepare, files)
        return {"decode": decoding, "resize": preparing - decoding, "infer": timed(self.infer, pixels)}


class OpenVino(Ours):
    """The same but for the engine: OpenVINO, asked for low latency."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        super().__init__(folder, 1)
        core = openvino.Core()
        graph = core.read_model(folder / "model.onnx")
        graph.reshape({"pixels": [1, *list(graph.input("pixels").partial_shape)[1:]]})
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the processor has it
        }
        self.request = core.compile_model(graph, "CPU", hints).create_infer_request()

    def infer(self, pixels: Any) -> float:
        return float(self.request.infer([pixels[None]])[0][0, 0])


class Original:
    """benchmarks/original.py, as many images a batch as asked."""

    batch = 1

    def __init__(self, checkpoint: Path, threads: int) -> None:
        from benchmarks import original

        self.original = original.Original(checkpoint, threads)
        self.resize = original.RESIZE

    def score(self, files: Sequence[bytes]) -> list[float]:
        batches = (list(files[i : i + self.batch]) for i in range(0, len(files), self.batch))
        return [score for batch in batches for score in self.original.score(batch)]

    def parts(self, files: Sequence[bytes]) -> dict[str, float]:
        images = [self.original.decode(data) for data in files]
        pixels = [self.resize(image) for image in images]
        batches = [pixels[i : i + self.batch] for i in range(0, len(files), self.batch)]
        return {
            "decode": timed(self.original.decode, files),
            "resize": timed(self.resize, images),
            "infer": timed(self.original.infer, batches) * len(batches) / len(files),
        }


class Original8(Original):
    batch = 8


ENGINES: Mapping[str, Callable[[Path, int], Engine]] = {
    "original, batch 1": Original,
    "original, batch 8": Original8,
    "ours": Ours,
    "openvino": OpenVino,
}


GEMM_SIDE = 2048


def gemm_gflops() -> float:
    """Billions of fp32 operations a second in a matrix product: the limit, as far as software goes."""
    a, b = np.random.default_rng(0).random((2, GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    return 2 * GEMM_SIDE**3 / 1e6 / timed(a.__matmul__, [b])


def timed(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Milliseconds an item."""
    started = time.perf_counter()
    for item in items:
        work(item)
    return (time.perf_counter() - started) * 1e3 / len(items)


def timed_scores(engine: Engine, files: Sequence[bytes]) -> dict[str, Any]:
    started = time.perf_counter()
    scores = engine.score(files)
    return {"seconds": time.perf_counter() - started, "scores": scores}


class Worker:
    """An engine in a process of its own, which does nothing until it is asked."""

    def __init__(self, kind: Kind, threads: int, images: Sequence[Path]) -> None:
        command = [str(kind.python), "-m", "benchmarks.engines", kind.engine, str(kind.model), str(threads)]
        # What a person has set for OpenBLAS would tell of that and not of the core.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        variables |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self.ask({"images": [str(path) for path in images]})

    def ask(self, question: object) -> Any:
        """What the engine answers. Raises RuntimeError if its process ends."""
        assert self._process.stdin  # noqa: S101 - a pipe was asked for
        assert self._process.stdout  # noqa: S101 - as above
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def workers(kinds: Mapping[str, Kind], threads: int, images: Sequence[Path]) -> Iterator[dict[str, Worker]]:
    started: dict[str, Worker] = {}
    try:
        for name, kind in kinds.items():
            started[name] = Worker(kind, threads, images)
        yield started
    finally:
        for worker in started.values():
            worker.stop()


def measure(
    kinds: Mapping[str, Kind],
    threads: int,
    images: Sequence[Path],
    repeats: int,
    tell: Callable[[str], object],
) -> dict[str, Any]:
    """`gemm_gflops`, and for each of the `engines` images a second, milliseconds by part, and scores.

    Every repeat asks each engine once, one after the other, so that a noisy moment falls on all; medians.
    """
    with workers(kinds, threads, images) as running:
        seconds: dict[str, list[float]] = {name: [] for name in running}
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        scores: dict[str, list[float]] = {}
        gflops = []
        for repeat in range(repeats + 1):  # the first one warms up
            for name, worker in running.items():
                tell(f"{name}, {threads} threads, {repeat}/{repeats}")
                answer = worker.ask("score")
                scores[name] = answer["scores"]
                if repeat:
                    seconds[name].append(answer["seconds"])
                    parts[name].append(worker.ask("parts"))
            gflops.append(worker.ask("gemm"))
    return {
        "gemm_gflops": median(gflops[1:]),
        "engines": {
            name: {
                "images_per_second": len(images) / median(seconds[name]),
                "ms": 1e3 * median(seconds[name]) / len(images),
                "parts": {part: median(each[part] for each in parts[name]) for part in parts[name][0]},
                "scores": scores[name],
            }
            for name in kinds
        },
    }


def main() -> None:
    """A worker: `python -m benchmarks.engines ENGINE MODEL THREADS`, asked and answering in lines of JSON."""
    name, model, threads = sys.argv[1:]
    files = [Path(path).read_bytes() for path in json.loads(sys.stdin.readline())["images"]]
    engine = ENGINES[name](Path(model), int(threads))
    print("null", flush=True)
    answers: dict[str, Callable[[], Any]] = {
        "score": lambda: timed_scores(engine, files),
        "parts": lambda: engine.parts(files),
        "gemm": gemm_gflops,
    }
    for line in sys.stdin:
        print(json.dumps(answers[json.loads(line)]()), flush=True)


if __name__ == "__main__":
    main()
