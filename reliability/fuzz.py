"""Fuzzing of what turns a file's bytes into a score: `fuzz(inputs, seed, progress)`.

Small files of every format are damaged: anywhere, or by the parts that they consist of, with lengths and
checksums made right again, so that damage reaches what lies deeper. An input that comes to a failure which
none before came to (by the places in the code that raised it) is damaged further, as coverage-guided fuzzers
do; that sees the Python of Pillow, pydicom and ours, and costs nothing. A child process decodes and scores,
watched from outside: so an input that crashes it, hangs it or exhausts it is known, and is kept.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from classifier import decode as decoding
from classifier.bounds import ImageError
from classifier.model import Model
from PIL import Image
from runs.codes import ErrorCode

from cxr.files import whole_file
from cxr.phantoms import draw_phantom
from reliability import dicom, jpeg, png
from reliability.bad_file import saved

ROOT = Path(__file__).parents[1]
FAILURES = ROOT / "build" / "fuzz"

CPU_SECONDS = 5  # that one input may take: a function gives up 10 s before its time is over
MEMORY_MB = 1000  # over what the process holds before: a function has 1,769
LEAK_MB = 100  # that the process may have grown by from a tenth of its inputs to their end
LONGEST = 256 * 1024  # bytes of an input
MOST_KEPT = 1000  # inputs that are damaged further
NOT_YET = -1
SIDE = 64  # pixels of the files that are damaged
CODES = frozenset(ErrorCode)

# From an input to what it comes to: a name for it, new for every new way through the code.
Target = Callable[[bytes], str]


def score() -> Target:
    """The way of a file through the classifier, held to what is promised of it."""
    model = Model(ROOT / "containers" / "classifier" / "model")

    def target(data: bytes) -> str:
        try:
            pixels, warnings = model.prepare(data)
        except ImageError as error:
            if error.code not in CODES:
                raise AssertionError(f"the error code {error.code!r} is in no list") from None
            return error.code + places(error)
        (scores,) = model.score([pixels])
        for value in scores.values():
            if not 0 <= value <= 1:
                raise AssertionError(f"the score is {value}")
        agreed = agrees_with_pillow(data)
        return f"SCORED {data[:2]!r} {warnings} {agreed}"

    return target


def places(error: BaseException | None) -> str:
    """Where the error was raised, and those that it came from, as file:line."""
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
    """Whether kornia-rs decoded the file and Pillow does, too. Raises AssertionError if pixels differ."""
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
            f"kornia-rs: {fast.mode} {fast.size}, other pixels than Pillow's: {slow.mode} {slow.size}"
        )
    return True


# --- inputs


def seeds() -> list[bytes]:
    """Small files of every kind that decodes."""
    drawing = draw_phantom(1, opacity=False).resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(drawing)
    colours, alpha = np.dstack([grey, grey, grey // 2]), np.full_like(grey, 200)
    grey_jpeg = saved(drawing, "JPEG")
    basis = dicom.x_ray(grey)
    no_pixels = dicom.without(basis, dicom.PIXELS)
    table = dicom.element((0x28, 0x3002), "US", [256, 0, 8]) + dicom.element((0x28, 0x3006), "OW", bytes(512))
    window: dicom.Elements = {dicom.CENTRE: ("DS", "2000"), dicom.WIDTH: ("DS", "4000")}
    rescale: dicom.Elements = {dicom.SLOPE: ("DS", "2.5"), dicom.INTERCEPT: ("DS", "-1024")}
    private = dicom.start_of_element((9, 0x1001), "SQ", dicom.UNDEFINED) + dicom.item(
        dicom.element((9, 0x10), "LO", "VENDOR"), dicom.UNDEFINED
    )
    return [
        png.drawn(grey),
        png.drawn(grey, interlaced=1),
        png.drawn(colours, colour=2),
        png.drawn(np.dstack([colours, alpha]), colour=6),
        png.drawn(np.dstack([grey, alpha]), colour=4),
        png.drawn(grey >> 6, 2),
        png.drawn(grey.astype(int) * 257, 16),
        saved(drawing.convert("P"), "PNG", transparency=3),
        saved(drawing, "PNG", exif=jpeg.exif(6), icc_profile=bytes(200), dpi=(72, 72)),
        saved(drawing, "PNG", save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
        grey_jpeg,
        saved(drawing.convert("RGB"), "JPEG", exif=b"Exif\0\0" + jpeg.exif(3), icc_profile=bytes(200)),
        saved(drawing, "JPEG", progressive=True, restart_marker_rows=2),
        saved(drawing.convert("CMYK"), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        jpeg.arithmetic(grey_jpeg),
        saved(drawing, "MPO", save_all=True, append_images=[drawing]),
        dicom.file_of(basis),
        dicom.file_of(basis | rescale | {dicom.PHOTOMETRIC: ("CS", "MONOCHROME1")}, dicom.IMPLICIT),
        dicom.file_of(basis, dicom.BIG),
        dicom.file_of(dicom.x_ray(grey.astype(int) * 16, 12) | window | {dicom.PADDING: ("US", 9)}),
        dicom.file_of(dicom.x_ray(grey.astype(int) - 128) | rescale),
        dicom.file_of(basis | {dicom.TABLE: ("SQ", dicom.item(table))}),
        dicom.file_of(basis, more=private + dicom.END_OF_ITEM + dicom.END_OF_SEQUENCE),
        dicom.file_of(no_pixels, dicom.RLE, tail=dicom.encapsulated(dicom.run_lengths(grey.tobytes()))),
        dicom.file_of(no_pixels, dicom.JPEG, tail=dicom.encapsulated(grey_jpeg[:500], grey_jpeg[500:])),
        dicom.file_of(no_pixels, dicom.J2K, tail=dicom.encapsulated(saved(drawing, "JPEG2000", no_jp2=True))),
        dicom.file_of(
            no_pixels, dicom.J2K, tail=dicom.encapsulated(saved(drawing, "JPEG2000"), offsets=bytes(4))
        ),
    ]


EXTREMES = (
    0,
    1,
    2,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
    7000,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
VALUES = [b"NaN ", b"inf ", b"-1", b"0 ", b"1e308 ", b"9" * 16, b"1\\2 ", b"", b"\xff\xff", b"\0\0", b"RGB "]
KINDS = [b"SQ", b"UN", b"OB", b"OW", b"US", b"SS", b"UL", b"DS", b"IS", b"CS", b"FD", b"AT", b"UI", b"ZZ"]


def mutate(pool: list[bytes], rng: random.Random) -> bytes:
    """One of the pool, damaged once or a few times."""
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.5:
            data = somewhere(data, pool, rng)
        elif data.startswith(png.SIGNATURE):
            data = in_a_png(data, pool, rng)
        elif data.startswith(b"\xff\xd8"):
            data = in_a_jpeg(data, pool, rng)
        elif data[128:132] == b"DICM":
            data = in_a_dicom(data, pool, rng)
        else:
            data = somewhere(data, pool, rng)
        data = data[:LONGEST]  # each time, or what doubles would take gigabytes itself
    return data


def somewhere(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """Damage that knows of no format."""
    size = len(data)
    place, length = rng.randrange(size + 1), min(rng.choice((1, 2, 4, 8, 32, 200)), size)
    what = rng.randrange(9)
    if what == 0 and place < size:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if what == 1:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if what == 2:
        return data[:place] + data[place + length :]
    if what == 3:
        return data[:place] + rng.randbytes(length) + data[place:]
    if what == 4:
        start = rng.randrange(size + 1)
        return data[:place] + data[start : start + length] + data[place + length :]
    if what == 5:
        return data[:place] + data[place : place + length] * rng.choice((2, 3, 50)) + data[place + length :]
    if what == 6:
        return data[:place]
    if what == 7:
        number = rng.choice(EXTREMES)
        form = rng.choice((">H", "<H", ">I", "<I"))
        coded = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
        return data[:place] + coded + data[place + len(coded) :]
    other = rng.choice(pool)
    return data[:place] + other[rng.randrange(len(other) + 1) :]


def shuffled(
    parts: list[bytes], others: list[bytes], damage: Callable[[bytes], bytes], rng: random.Random
) -> None:
    """Damages one part, or takes it away, doubles it, exchanges two, or brings in one of another file."""
    place = rng.randrange(len(parts))
    what = rng.randrange(8)
    if what < 4:
        parts[place] = damage(parts[place])
    elif what == 4:
        del parts[place]
    elif what == 5:
        parts[place:place] = [parts[place]] * rng.choice((1, 1, 300))
    elif what == 6:
        other = rng.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
    elif others:
        parts.insert(place, rng.choice(others))


def in_a_png(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """Chunks damaged and moved, then all checksums made right."""

    def parts_of(file: bytes) -> list[bytes]:
        return [kind + body for kind, body in png.chunks_of(file)]

    def damage(part: bytes) -> bytes:
        kind, body = part[:4], part[4:]
        if kind == b"IDAT" and rng.random() < 0.5:
            try:
                lines = zlib.decompressobj().decompress(body, LONGEST)
            except zlib.error:
                lines = b""
            return kind + zlib.compress(somewhere(lines or b"\0", pool, rng), 1)
        if kind == b"IHDR" and len(body) == 13:
            fields = list(struct.unpack(">IIBBBBB", body))
            field = rng.randrange(7)
            fields[field] = rng.choice(EXTREMES) if field < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            return kind + struct.pack(">IIBBBBB", *fields)
        return kind + somewhere(body, pool, rng)[:LONGEST]

    parts = parts_of(data)
    if not parts:
        return somewhere(data, pool, rng)
    other = rng.choice(pool)
    shuffled(parts, parts_of(other) if other.startswith(png.SIGNATURE) else [], damage, rng)
    return png.file_of(*((part[:4], part[4:]) for part in parts))


def in_a_jpeg(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """Segments damaged and moved, their lengths made right."""

    def damage(part: bytes) -> bytes:
        if len(part) < 4 or part[1] == 0xDA:
            return somewhere(part, pool, rng)
        return jpeg.segment(part[1], somewhere(part[4:], pool, rng)[:65_533])

    start, *parts = jpeg.segments_of(data)
    other = rng.choice(pool)
    shuffled(parts, jpeg.segments_of(other)[1:] if other.startswith(b"\xff\xd8") else [], damage, rng)
    return start + b"".join(parts)


def in_a_dicom(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """Elements damaged and moved, lengths made right; of explicit little-endian files, which most are."""

    def damage(part: bytes) -> bytes:
        tag, kind = part[:4], part[4:6]
        long = kind.decode("latin-1") in dicom.LONG
        body = part[12 if long else 8 :]
        what = rng.randrange(6)
        if what == 0:
            body = rng.choice(VALUES)
        elif what == 1:
            body = struct.pack("<H", rng.choice(EXTREMES) & 0xFFFF)
        elif what == 2:
            kind = rng.choice(KINDS)
        elif what == 3:
            kind, body = b"SQ", dicom.item(part) * rng.choice((1, 2, 50))
        elif kind == b"OB" and body.startswith(b"\xfe\xff\x00\xe0"):  # fragments: what is coded in them
            place = rng.randrange(len(body))
            body = body[:place] + somewhere(body[place : place + 200], pool, rng) + body[place + 200 :]
            return part[:12] + body
        else:
            body = somewhere(body, pool, rng)
        if kind.decode("latin-1") in dicom.LONG:
            return tag + kind + struct.pack("<HI", 0, len(body)) + body
        return tag + kind + struct.pack("<H", len(body) & 0xFFFF) + body

    parts = list(elements_of(data))
    if not parts:
        return somewhere(data, pool, rng)
    other = rng.choice(pool)
    shuffled(parts, list(elements_of(other)) if other[128:132] == b"DICM" else [], damage, rng)
    return data[:132] + b"".join(parts)


def elements_of(data: bytes) -> Iterator[bytes]:
    """The top elements of an explicit little-endian file; one of undefined length takes all behind it."""
    place = 132
    while place + 8 <= len(data):
        (length,), size = struct.unpack_from("<H", data, place + 6), 8
        if data[place + 4 : place + 6].decode("latin-1") in dicom.LONG and place + 12 <= len(data):
            (length,), size = struct.unpack_from("<I", data, place + 8), 12
        yield data[place : place + size + length]
        place += size + length


# --- the watched child


def fuzz(
    inputs: int,
    seed: int,
    progress: Callable[[int], None],
    *,
    target: Callable[[], Target] = score,
    failures: Path = FAILURES,
) -> int:
    """Puts so many inputs through the target, the same ones for the same seed; answers how many are done.

    Raises AssertionError that says what an input did and where it is kept: raise, come to no documented
    code, say something, take over CPU_SECONDS or MEMORY_MB, or end the process. `target` is made in the
    child, and so has to be a function of a module.
    """
    failures.mkdir(parents=True, exist_ok=True)
    said = failures / f"said-{os.getpid()}-{seed}.txt"
    context = multiprocessing.get_context("spawn")
    state, current = context.RawArray("q", [0, NOT_YET]), context.RawArray("B", LONGEST)
    ours, theirs = context.Pipe()
    arguments = (target, inputs, seed, state, current, said, theirs)
    child = context.Process(target=_work, args=arguments, daemon=True)
    child.start()
    theirs.close()
    try:
        problem = _watch(child, ours, state, progress)
        if problem is None and state[0] < inputs:
            problem = f"it ended the process: {_ending(child.exitcode)}\n{said.read_text()[-2000:]}"
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
        said.unlink(missing_ok=True)


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def _watch(child: Any, pipe: Connection, state: Any, progress: Callable[[int], None]) -> str | None:
    """Waits for the child to end; answers its problem, if it told one or is too slow to."""
    process = psutil.Process(child.pid)
    done, since = NOT_YET, 0.0
    while not pipe.poll(0.2):
        times = process.cpu_times()
        spent = times.user + times.system
        if state[0] != done or state[1] == NOT_YET:
            done, since = state[0], spent
            progress(done)
        elif spent - since > CPU_SECONDS:
            return f"it took over {CPU_SECONDS} s of CPU time"
    try:
        problem: str | None = pipe.recv()
    except EOFError:  # the child has ended, without a word or with the last one said
        problem = None
    child.join()
    progress(state[0])
    return problem


def _work(
    make: Callable[[], Target], inputs: int, seed: int, state: Any, current: Any, said: Path, pipe: Connection
) -> None:
    """The child. `state`: inputs done, and the length of the one at work, which is in `current`."""
    quiet = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    faulthandler.enable()
    logging.basicConfig()  # a logger prints, as on Lambda
    buffer = memoryview(current).cast("B")
    target, rng, pool = make(), random.Random(seed), seeds()  # noqa: S311 - to repeat, not to hide
    seen: set[str] = set()
    memory = Memory()
    for done in range(inputs):
        data = mutate(pool, rng)
        buffer[: len(data)] = data
        state[0], state[1] = done, len(data)
        started = time.process_time()
        try:
            outcome = target(data)
        except Exception as error:  # noqa: BLE001 - any is a finding
            pipe.send(f"{type(error).__name__}: {error}{places(error)}")
            return
        problem = memory.problem(done, inputs)
        if time.process_time() - started > CPU_SECONDS:
            problem = f"it took over {CPU_SECONDS} s of CPU time"
        if os.fstat(quiet).st_size:
            problem = f"it said {said.read_text()[:2000]}"
        if problem:
            pipe.send(problem)
            return
        if outcome not in seen:
            seen.add(outcome)
            if len(data) < LONGEST // 4 and len(seen) < MOST_KEPT:
                pool.append(data)
    state[0] = inputs


class Memory:
    """What this process holds, in MB (proc(5), /proc/self/status)."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._first, self._early = self._read()[1], 0.0

    def problem(self, done: int, inputs: int) -> str | None:
        peak, now = self._read()
        if peak > self._first + MEMORY_MB:
            return f"it took {peak - self._first:.0f} MB of memory, over {MEMORY_MB}"
        if done == inputs // 10:
            self._early = now
        if done == inputs - 1 and now > self._early + LEAK_MB:
            return f"not it alone: the process grew by {now - self._early:.0f} MB, over {LEAK_MB}"
        return None

    def _read(self) -> tuple[float, float]:
        """The peak, and now."""
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
