"""Decoders in a child process, which may crash, hang or take memory without harm to this one.

The child starts when it is first needed and stays for the next image. It ends with the pipe to it, and so
with this process. After a crash there is a new child: an image is corrupt only if a child that has decoded
nothing before fails on it.
"""

import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from runs.codes import ErrorCode

from classifier.bounds import MAX_PIXELS, ImageError

SECONDS = 8  # for one image; the classifier stops 10 s before its deadline
MEMORY = 2**30  # of address space

# What passes through the pipes: the name of the format and the length of the data; the size of the image, its
# samples, bytes of a sample, and whether each sample is a plane of its own.
REQUEST, ANSWER = struct.Struct("<16sI"), struct.Struct("<5I")
Format = Literal["JPEG", "JPEG lossless", "JPEG-LS", "JPEG2000"]

_idle: list["_Child"] = []  # appending and popping are safe among threads


class DecoderUnavailable(Exception):
    """The child process does not start. This says nothing about the image."""


@dataclass(frozen=True)
class Decoded:
    """Samples as little-endian words of `size` bytes, row by row."""

    rows: int
    columns: int
    samples: int
    size: int
    planes: bool  # whether the samples follow each other as planes
    pixels: bytes


def decode(data: bytes, name: Format) -> Decoded:
    """Decode data in a child process. Raises ImageError, and DecoderUnavailable."""
    while True:
        child = _idle.pop() if _idle else _Child()
        fresh = child.fresh
        try:
            found = child.decode(data, name)
        except (OSError, EOFError) as error:
            child.end()
            if fresh or child.late:
                raise ImageError(ErrorCode.IMAGE_CORRUPT) from error
        else:
            _idle.append(child)
            return found


class _Child:
    def __init__(self) -> None:
        self.fresh, self.late = True, False
        path = os.pathsep.join(entry for entry in sys.path if entry)
        # A decoder that a hostile file takes over must not have the credentials of the function.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
                [sys.executable, "-m", "classifier.decoder_child", str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders quote what they read
                env={**inherited, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._say_ready()
        except (OSError, EOFError) as error:
            raise DecoderUnavailable("the process that decodes compressed DICOM does not start") from error

    def decode(self, data: bytes, name: Format) -> Decoded:
        """Raises OSError or EOFError if the child does not answer."""
        self.fresh = False
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - for mypy
        timer = threading.Timer(SECONDS, self._stop)
        timer.start()
        try:
            stdin.write(REQUEST.pack(name.encode(), len(data)))
            stdin.write(data)
            stdin.flush()
            rows, columns, samples, size, planes = ANSWER.unpack(self._read(ANSWER.size))
            length = rows * columns * samples * size
            if length > 6 * MAX_PIXELS:
                raise EOFError
            return Decoded(rows, columns, samples, size, bool(planes), self._read(length))
        finally:
            timer.cancel()

    def end(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError), self._process:  # which closes the pipes: what was not sent is lost
            pass
        self._process.wait()

    def _stop(self) -> None:
        self.late = True
        self._process.kill()

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        found = self._process.stdout.read(length)
        if len(found) < length:
            raise EOFError
        return found

    def _say_ready(self) -> None:
        self._read(1)
