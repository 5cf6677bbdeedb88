"""Fuzzing of the classifier: damaged files must get a documented error code, or a score from 0 to 1.

    python -m reliability.fuzz INPUTS SEED

reliability/mutations.py damages small files. An input that fails in a new way (errors from other lines of
code) joins the files that are damaged. This is a simple form of coverage-guided fuzzing: it sees Pillow,
pydicom and the classifier as far as they are Python.

A child process decodes and scores the inputs, and this process watches it. So an input that crashes the
child, hangs it or exhausts its memory is known, and kept in build/fuzz/.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from classifier import decode as decoding
from classifier.bounds import ImageError
from classifier.model import Model
from runs.codes import ErrorCode

from cxr.files import whole_file
from reliability import png
from reliability.mutations import MAX_BYTES, mutate, undamaged_files

ROOT = Path(__file__).parents[1]
FAILURES = ROOT / "build" / "fuzz"

CPU_SECONDS = 5  # for one input; the classifier stops 10 s before its timeout
MEMORY_MB = 1000  # for one input, on top of what the process holds; a function has 1,769
LEAK_MB = 100  # growth of the process from a tenth of its inputs to the last one
MAX_POOL = 1000  # files that are damaged
NOT_STARTED = -1  # the length of the current input, before the first one
CODES = frozenset(ErrorCode)

# The code under test. Returns a name for the outcome: one name for each way through the code.
Target = Callable[[bytes], str]


def score() -> Target:
    """A target that decodes and scores a file as the classifier does, and checks the outcome."""
    model = Model(ROOT / "containers" / "classifier" / "model")

    def target(data: bytes) -> str:
        try:
            pixels, warnings = model.prepare(data)
        except ImageError as error:
            if error.code not in CODES:
                raise AssertionError(f"the error code {error.code!r} is not in runs.codes") from None
            return error.code + raised_at(error)
        (scores,) = model.score([pixels])
        for value in scores.values():
            if not 0 <= value <= 1:
                raise AssertionError(f"the score is {value}")
        return f"SCORED {data[:2]!r} {warnings} {agrees_with_pillow(data)}"

    return target


def raised_at(error: BaseException | None) -> str:
    """The lines that raised the error and its causes, as file:line."""
    found = ""
    while error is not None:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        if trace:
            found += f" {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        error = error.__cause__ or error.__context__
    return found


def agrees_with_pillow(data: bytes) -> bool:
    """Whether kornia-rs and Pillow both decode the file. Raises AssertionError if their pixels differ."""
    fast = decoding._decode_plain_png(data) if data.startswith(png.SIGNATURE) else None
    if fast is None:
        return False
    try:
        slow = decoding._open(data)
        slow.load()
    except (OSError, SyntaxError, ValueError, zlib.error):
        return False
    if (fast.mode, fast.size, fast.tobytes()) != (slow.mode, slow.size, slow.tobytes()):
        raise AssertionError(
            f"kornia-rs and Pillow decode other pixels: {fast.mode} {fast.size} and {slow.mode} {slow.size}"
        )
    return True


def fuzz(
    inputs: int,
    seed: int,
    progress: Callable[[int], None],
    *,
    target: Callable[[], Target] = score,
    failures: Path = FAILURES,
) -> int:
    """Call the target with damaged files, the same ones for the same seed. Returns their number.

    Raises AssertionError if an input makes the target raise or print, takes over CPU_SECONDS or MEMORY_MB, or
    ends the process. The message says what happened and where the input is kept. The child process calls
    `target` to make the target, so it must be a function of a module.
    """
    failures.mkdir(parents=True, exist_ok=True)
    output = failures / f"output-{os.getpid()}-{seed}.txt"
    context = multiprocessing.get_context("spawn")
    state, current = context.RawArray("q", [0, NOT_STARTED]), context.RawArray("B", MAX_BYTES)
    ours, theirs = context.Pipe()
    arguments = (target, inputs, seed, state, current, output, theirs)
    child = context.Process(target=_run_child, args=arguments, daemon=True)
    child.start()
    theirs.close()
    try:
        problem = _watch(child, ours, state, progress)
        if problem is None and state[0] < inputs:
            problem = f"it ended the process: {_exit_reason(child.exitcode)}\n{output.read_text()[-2000:]}"
        if problem is None:
            return inputs
        data = bytes(current[: max(state[1], 0)])
        kept = failures / hashlib.sha256(data).hexdigest()[:16]
        with whole_file(kept) as part:
            part.write_bytes(data)
        raise AssertionError(f"input {state[0]} of seed {seed}, kept in {kept}: {problem}")
    finally:
        child.kill()
        child.join()
        output.unlink(missing_ok=True)


def _exit_reason(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def _watch(child: Any, pipe: Connection, state: Any, progress: Callable[[int], None]) -> str | None:
    """Wait for the child to end. Returns the problem, if it reports one or hangs."""
    process = psutil.Process(child.pid)
    done, since = NOT_STARTED, 0.0
    while not pipe.poll(0.2):
        times = process.cpu_times()
        spent = times.user + times.system
        if state[0] != done or state[1] == NOT_STARTED:
            done, since = state[0], spent
            progress(done)
        elif spent - since > CPU_SECONDS:
            return f"it took over {CPU_SECONDS} s of CPU time"
    try:
        problem: str | None = pipe.recv()
    except EOFError:  # the child has ended and reports nothing
        problem = None
    child.join()
    progress(state[0])
    return problem


def _run_child(
    make: Callable[[], Target],
    inputs: int,
    seed: int,
    state: Any,
    current: Any,
    output: Path,
    pipe: Connection,
) -> None:
    """Run the child. `state` is the number of inputs done and the length of `current`, the input at work."""
    captured = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(captured, 1)
    os.dup2(captured, 2)
    faulthandler.enable()
    logging.basicConfig()  # loggers print, as on Lambda
    buffer = memoryview(current).cast("B")
    target, rng, pool = make(), random.Random(seed), undamaged_files()  # noqa: S311 - to repeat, not to hide
    seen: set[str] = set()
    memory = Memory()
    for done in range(inputs):
        data = mutate(pool, rng)
        buffer[: len(data)] = data
        state[0], state[1] = done, len(data)
        started = time.process_time()
        try:
            outcome = target(data)
        except Exception as error:  # noqa: BLE001 - the target must not raise
            pipe.send(f"{type(error).__name__}: {error}{raised_at(error)}")
            return
        problem = memory.problem(done, inputs)
        if time.process_time() - started > CPU_SECONDS:
            problem = f"it took over {CPU_SECONDS} s of CPU time"
        if os.fstat(captured).st_size:
            problem = f"it printed {output.read_text()[:2000]}"
        if problem:
            pipe.send(problem)
            return
        if outcome not in seen:
            seen.add(outcome)
            if len(data) < MAX_BYTES // 4 and len(seen) < MAX_POOL:
                pool.append(data)
    state[0] = inputs


class Memory:
    """The memory of this process in MB (proc(5), /proc/self/status)."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._first, self._early = self._read()[1], 0.0

    def problem(self, done: int, inputs: int) -> str | None:
        """What is wrong after the input number `done` of `inputs`."""
        peak, now = self._read()
        if peak > self._first + MEMORY_MB:
            return f"it took {peak - self._first:.0f} MB of memory, over {MEMORY_MB}"
        if done == inputs // 10:
            self._early = now
        if done == inputs - 1 and now > self._early + LEAK_MB:
            return f"not this input alone: the process grew by {now - self._early:.0f} MB, over {LEAK_MB}"
        return None

    def _read(self) -> tuple[float, float]:
        """The peak, and the memory now."""
        lines = os.pread(self._status, 4096, 0).split(b"\n")
        peak, now = (
            next(int(line.split()[1]) for line in lines if line.startswith(name))
            for name in (b"VmHWM", b"VmRSS")
        )
        return peak / 1024, now / 1024


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2])
    fuzz(count, first, lambda done: print(f"\r{done:,} inputs", end="", flush=True))
    print()
