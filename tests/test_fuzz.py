"""Thousands of damaged files get documented error codes or scores, and broken decoders are caught."""

import os
import random
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier import decode as decoding
from classifier.bounds import ImageError
from PIL import Image

from reliability import fuzz as fuzzing
from reliability import mutations, png
from reliability.fuzz import Target, fuzz
from reliability.mutations import MAX_BYTES, mutate, undamaged_files

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest shows the warnings that the classifier silences


def silent(_: int) -> None:
    pass


def test_repeated_damage_does_not_grow_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "damage_anywhere", lambda data, pool, rng: data * 300)
    tracemalloc.start()
    try:
        lengths = {len(mutate([b"x" * 1000], random.Random(seed))) for seed in range(10)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(lengths) == MAX_BYTES
    assert peak < 310 * MAX_BYTES


@pytest.mark.examples(few=300, many=2_000)
def test_damaged_files_get_codes_or_scores(examples: int) -> None:
    progress: list[int] = []
    assert fuzz(examples, 20_26, progress.append) == examples
    assert progress == sorted(progress)
    assert progress[-1] == examples


def test_the_undamaged_files_all_decode() -> None:
    target = fuzzing.score()
    assert all(target(file).startswith("SCORED") for file in undamaged_files())


def test_a_seed_gives_the_same_files_and_another_seed_gives_others() -> None:
    def some(seed: int) -> list[bytes]:
        pool, rng = undamaged_files(), random.Random(seed)
        return [mutate(pool, rng) for _ in range(50)]

    assert some(1) == some(1)
    assert some(1) != some(2)


@pytest.mark.slow
def test_damage_reaches_every_stage_of_decoding() -> None:
    """Some files still decode. The others get most error codes, from many lines of code."""
    target, rng, pool = fuzzing.score(), random.Random(0), undamaged_files()
    inputs = [mutate(pool, rng) for _ in range(1_500)]
    found = [target(data) for data in inputs]
    assert max(map(len, inputs)) <= MAX_BYTES
    assert {outcome.split()[0] for outcome in found} >= {
        "SCORED",
        "NOT_AN_IMAGE",
        "IMAGE_CORRUPT",
        "IMAGE_TOO_SMALL",
        "IMAGE_TOO_LARGE",
        "IMAGE_TOO_NARROW",
        "DICOM_NO_PIXELS",
        "DICOM_PHOTOMETRIC",
        "DICOM_TRANSFER_SYNTAX",
    }
    assert 200 < sum(outcome.startswith("SCORED") for outcome in found) < 1_200
    assert len(set(found)) > 40


# Broken decoders. The child makes them; each fails on some files.


def fails(data: bytes) -> bool:
    """Whether a broken decoder fails on this file."""
    return zlib.crc32(data) % 50 == 7


def raises() -> Target:
    def target(data: bytes) -> str:
        if fails(data):
            raise ValueError("no such mode")
        return ""

    return target


def hangs() -> Target:
    def target(data: bytes) -> str:
        while fails(data):
            pass
        return ""

    return target


def allocates() -> Target:
    def target(data: bytes) -> str:
        return str(np.ones(1_200 * 2**17).sum()) if fails(data) else ""  # 1,200 MB

    return target


def leaks() -> Target:
    kept = []

    def target(data: bytes) -> str:
        kept.append(bytes(2**20) + data)
        return str(kept[-1].count(b"\1"))

    return target


def aborts() -> Target:
    def target(data: bytes) -> str:
        if fails(data):
            os.abort()
        return ""

    return target


def leaves() -> Target:
    def target(data: bytes) -> str:
        if fails(data):
            os._exit(0)
        return ""

    return target


def says() -> Target:
    def target(data: bytes) -> str:
        if fails(data):
            os.write(2, b"Invalid value: Doe^Jane")
        return ""

    return target


def invents_a_code() -> Target:
    def refuse(data: bytes, *_: Any) -> Image.Image:
        raise ImageError("IMAGE_ODD" if fails(data) else "IMAGE_EMPTY")  # type: ignore[arg-type]

    return with_decoder("decode", refuse)


def decodes_otherwise() -> Target:
    """A fast decoder that is wrong by one grey value in some files."""
    fast = decoding._decode_plain_png

    def off(data: bytes) -> Image.Image | None:
        image = fast(data)
        return image.point(lambda value: value ^ 1) if image and len(data) % 2 else image

    decoding._decode_plain_png = off
    return fuzzing.score()


def with_decoder(name: str, decoder: Callable[..., Any]) -> Target:
    import classifier.model

    setattr(classifier.model, name, decoder)
    return fuzzing.score()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (raises, "ValueError: no such mode test_fuzz.py:"),
        (hangs, "it took over 1 s of CPU time"),
        (allocates, r"it took \d+ MB of memory, over 1000"),
        (aborts, "it ended the process: SIGABRT"),
        (leaves, "it ended the process: exit code 0"),
        (says, "it printed Invalid value: Doe"),
        (invents_a_code, "the error code 'IMAGE_ODD' is not in runs.codes"),
        (decodes_otherwise, "kornia-rs and Pillow decode other pixels"),
    ],
)
def test_a_broken_decoder_is_caught_and_its_input_is_kept(
    target: Callable[[], Target], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target is hangs:
        monkeypatch.setattr(fuzzing, "CPU_SECONDS", 1)
    with pytest.raises(AssertionError, match=message) as error:
        fuzz(1_000, 5, silent, target=target, failures=tmp_path)
    (kept,) = tmp_path.iterdir()
    named = re.search(r"kept in (\S+):", str(error.value))
    assert named
    assert Path(named[1]) == kept
    assert fails(kept.read_bytes()) or target is decodes_otherwise


def test_a_leak_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="grew by"):
        fuzz(200, 5, silent, target=leaks, failures=tmp_path)


def test_plain_pngs_are_compared_with_pillow() -> None:
    assert fuzzing.agrees_with_pillow(png.encode_pixels(np.zeros((64, 64), np.uint8)))
