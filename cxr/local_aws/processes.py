"""Child processes that never outlive this one. Each has its own process group and is stopped with it."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cxr.files import owner_only

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 3.0  # from SIGTERM to SIGKILL


class StoppingError(Exception):
    """A process was to be started while all are being stopped."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends: every child is recorded, every clean-up completes."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread only
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    handlers = {number: signal.signal(number, hold) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


class Processes:
    """Starts processes and stops all of them, at the latest when the interpreter ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping = False
        atexit.register(self.stop_all)

    def start(
        self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Run `command` in its own process group and append its output to `log`, a file of its owner alone.

        Raises StoppingError once `stop_all` has begun, OSError if the command cannot be run.
        """
        with signals_held(), self._lock, open(log, "ab", opener=owner_only) as output:
            if self._stopping:
                raise StoppingError
            process = subprocess.Popen(  # noqa: S603 - fixed commands, no shell
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.append(process)
        return process

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """End processes and their descendants: SIGTERM, and SIGKILL after three seconds."""
        with signals_held():
            left = [process for process in processes if _signal_group(process, signal.SIGTERM)]
            deadline = time.monotonic() + GRACE_SECONDS
            while left and time.monotonic() < deadline:
                time.sleep(0.01)
                left = [process for process in left if _signal_group(process, 0)]
            for process in left:
                _signal_group(process, signal.SIGKILL)
            for process in processes:
                process.wait()
            with self._lock:
                self._running = [process for process in self._running if process not in processes]

    def stop_all(self) -> None:
        """Stop all processes, and refuse to start more."""
        with signals_held():
            with self._lock:
                self._stopping = True
            self.stop(*self._running)
        atexit.unregister(self.stop_all)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal (0: none) to a process and its descendants. Returns whether any of them is left."""
    process.poll()  # reaps it; otherwise its group would never be empty
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM where only unreaped ones are left
        return False
    return True
