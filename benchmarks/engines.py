"""Measures engines from the bytes of image files to scores: the original's, the classifier's and OpenVINO."""

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
from classifier.decode import decode
from classifier.model import Model

from benchmarks import rounds


@dataclass(frozen=True)
class Candidate:
    """An engine to measure, the Python that has its libraries, and the model's folder or checkpoint."""

    engine: str  # a key of ENGINES
    python: Path
    model: Path


class Engine(Protocol):
    def score(self, files: Sequence[bytes]) -> list[float]:
        """The score of each file for the first label."""

    def parts(self, files: Sequence[bytes]) -> dict[str, float]:
        """Milliseconds an image for `decode`, `resize` and `infer`, measured separately on one thread."""


class ClassifierEngine:
    """The classifier's: ONNX Runtime, with one image in each thread."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.model = Model(folder)
        self.pool = ThreadPoolExecutor(threads)
        self.threads = threads

    def infer(self, pixels: Any) -> float:
        (scores,) = self.model.score([pixels])
        return float(next(iter(scores.values())))

    def score(self, files: Sequence[bytes]) -> list[float]:
        def score_file(data: bytes) -> float:
            return self.infer(self.model.prepare(data)[0])

        return list(map(score_file, files) if self.threads == 1 else self.pool.map(score_file, files))

    def parts(self, files: Sequence[bytes]) -> dict[str, float]:
        pixels = [self.model.prepare(data)[0] for data in files]
        decoding, preparing = time_items(decode, files), time_items(self.model.prepare, files)
        return {"decode": decoding, "resize": preparing - decoding, "infer": time_items(self.infer, pixels)}


class OpenVino(ClassifierEngine):
    """OpenVINO, set to low latency, with the classifier's decoding and resizing."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        super().__init__(folder, 1)
        core = openvino.Core()
        graph = core.read_model(folder / "model.onnx")
        graph.reshape({"pixels": [1, *list(graph.input("pixels").partial_shape)[1:]]})
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # by default it uses bfloat16 on processors that have it
        }
        self.request = core.compile_model(graph, "CPU", hints).create_infer_request()

    def infer(self, pixels: Any) -> float:
        return float(self.request.infer([pixels[None]])[0][0, 0])


class Original:
    """The engine of benchmarks/original.py, with `batch` images a batch."""

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
            "decode": time_items(self.original.decode, files),
            "resize": time_items(self.resize, images),
            "infer": time_items(self.original.infer, batches) * len(batches) / len(files),
        }


class OriginalInBatchesOf8(Original):
    batch = 8


ENGINES: Mapping[str, Callable[[Path, int], Engine]] = {
    "original, batch 1": Original,
    "original, batch 8": OriginalInBatchesOf8,
    "classifier": ClassifierEngine,
    "openvino": OpenVino,
}


GEMM_SIDE = 2048


def gemm_gflops() -> float:
    """Billions of fp32 operations a second in a matrix product, which limits every fp32 engine."""
    a, b = np.random.default_rng(0).random((2, GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    return 2 * GEMM_SIDE**3 / 1e6 / time_items(a.__matmul__, [b])


def time_items(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Milliseconds that `work` takes for an item."""
    started = time.perf_counter()
    for item in items:
        work(item)
    return (time.perf_counter() - started) * 1e3 / len(items)


def time_scores(engine: Engine, files: Sequence[bytes]) -> dict[str, Any]:
    """Scores of the files, and the seconds that they took."""
    started = time.perf_counter()
    scores = engine.score(files)
    return {"seconds": time.perf_counter() - started, "scores": scores}


class EngineProcess:
    """An engine in a child process. It works only while it answers a request."""

    def __init__(self, candidate: Candidate, threads: int, images: Sequence[Path]) -> None:
        module = ["-m", "benchmarks.engines"]
        command = [str(candidate.python), *module, candidate.engine, str(candidate.model), str(threads)]
        # OpenBLAS settings of this shell would change what the matrix product measures.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        variables |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self.request({"images": [str(path) for path in images]})

    def request(self, body: object) -> Any:
        """Send a request, and return the answer. Raises RuntimeError if the process ends."""
        assert self._process.stdin  # noqa: S101 - Popen was given a pipe
        assert self._process.stdout  # noqa: S101 - as above
        self._process.stdin.write(json.dumps(body) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def start_engines(
    candidates: Mapping[str, Candidate], threads: int, images: Sequence[Path]
) -> Iterator[dict[str, EngineProcess]]:
    """A process for each candidate, stopped after the block."""
    started: dict[str, EngineProcess] = {}
    try:
        for name, candidate in candidates.items():
            started[name] = EngineProcess(candidate, threads, images)
        yield started
    finally:
        for process in started.values():
            process.stop()


def measure(
    candidates: Mapping[str, Candidate],
    threads: int,
    images: Sequence[Path],
    repeats: int,
    show_progress: Callable[[str], object],
) -> dict[str, Any]:
    """`gemm_gflops`, and in `engines` for each candidate images a second, milliseconds by part, and scores.

    All but the scores are medians of the repeats. In each repeat, the candidates run one after the other, so
    that a slow moment of the machine affects all of them.
    """
    with start_engines(candidates, threads, images) as running:
        seconds: dict[str, list[float]] = {name: [] for name in running}
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        scores: dict[str, list[float]] = {}
        gflops = []
        for number, counts in enumerate(rounds(repeats), 1):
            for name, process in running.items():
                show_progress(f"{name}, {threads} threads, round {number}")
                answer = process.request("score")
                scores[name] = answer["scores"]
                if counts:
                    seconds[name].append(answer["seconds"])
                    parts[name].append(process.request("parts"))
            if counts:
                gflops.append(process.request("gemm"))
    return {
        "gemm_gflops": median(gflops),
        "engines": {
            name: {
                "images_per_second": len(images) / median(seconds[name]),
                "ms": 1e3 * median(seconds[name]) / len(images),
                "parts": {part: median(each[part] for each in parts[name]) for part in parts[name][0]},
                "scores": scores[name],
            }
            for name in candidates
        },
    }


def main() -> None:
    """`python -m benchmarks.engines ENGINE MODEL THREADS` answers lines of JSON with lines of JSON."""
    name, model, threads = sys.argv[1:]
    files = [Path(path).read_bytes() for path in json.loads(sys.stdin.readline())["images"]]
    engine = ENGINES[name](Path(model), int(threads))
    print("null", flush=True)
    answers: dict[str, Callable[[], Any]] = {
        "score": lambda: time_scores(engine, files),
        "parts": lambda: engine.parts(files),
        "gemm": gemm_gflops,
    }
    for line in sys.stdin:
        print(json.dumps(answers[json.loads(line)]()), flush=True)


if __name__ == "__main__":
    main()
