"""The entry point of `cxr`. Until its commands are loaded, Ctrl-C ends it without a traceback."""

from __future__ import annotations

import io
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """Standard output or error. What is written after its reader has left the pipe is dropped.

    So `cxr runs | head -1` does all that `cxr runs` does, and ends as it does.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """The number of bytes that were written or dropped."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def reopened(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, as `Output` writes it. An ASCII terminal gets \\u2713, and no traceback."""
    raw = Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )


def main() -> None:
    """Load the commands and run one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = reopened(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = reopened(sys.stderr)
    from cxr.commands.app import app

    app()


if __name__ == "__main__":
    main()
