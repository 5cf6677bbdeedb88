"""Thousands of damaged files come to documented codes or scores, and what would not do so is caught."""

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
from reliability import png
from reliability.fuzz import LONGEST, Target, fuzz, mutate, seeds

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest undoes what keeps pydicom quiet


def silent(_: int) -> None:
    pass


def test_damage_does_not_grow_with_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "somewhere", lambda data, pool, rng: data * 300)
    tracemalloc.start()
    try:
        lengths = {len(mutate([b"x" * 1000], random.Random(seed))) for seed in range(10)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(lengths) == LONGEST
    assert peak < 310 * LONGEST


@pytest.mark.examples(few=1_000, many=5_000)
def test_damaged_files_come_to_codes_or_scores(examples: int) -> None:
    told: list[int] = []
    assert fuzz(examples, 20_26, told.append) == examples
    assert told == sorted(told)
    assert told[-1] == examples


def test_the_seeds_all_decode() -> None:
    target = fuzzing.score()
    assert all(target(seed).startswith("SCORED") for seed in seeds())


def test_a_seed_gives_the_same_files_and_another_seed_gives_others() -> None:
    def some(seed: int) -> list[bytes]:
        pool, rng = seeds(), random.Random(seed)
        return [mutate(pool, rng) for _ in range(50)]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_damage_is_of_every_depth() -> None:
    """Some files still decode, and most codes and many places that raise them are come to."""
    target, rng, pool = fuzzing.score(), random.Random(0), seeds()
    inputs = [mutate(pool, rng) for _ in range(1_500)]
    found = [target(data) for data in inputs]
    assert max(map(len, inputs)) <= LONGEST
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


# Decoders that are broken: made in the child, each fails on a file of a certain sort.


def only(data: bytes) -> bool:
    return zlib.crc32(data) % 50 == 7


def raises() -> Target:
    def target(data: bytes) -> str:
        if only(data):
            raise ValueError("no such mode")
        return ""

    return target


def hangs() -> Target:
    def target(data: bytes) -> str:
        while only(data):
            pass
        return ""

    return target


def allocates() -> Target:
    def target(data: bytes) -> str:
        return str(np.ones(1_200 * 2**17).sum()) if only(data) else ""  # 1,200 MB

    return target


def leaks() -> Target:
    kept = []

    def target(data: bytes) -> str:
        kept.append(bytes(2**20) + data)
        return str(kept[-1].count(b"\1"))

    return target


def aborts() -> Target:
    def target(data: bytes) -> str:
        if only(data):
            os.abort()
        return ""

    return target


def leaves() -> Target:
    def target(data: bytes) -> str:
        if only(data):
            os._exit(0)
        return ""

    return target


def says() -> Target:
    def target(data: bytes) -> str:
        if only(data):
            os.write(2, b"Invalid value: Doe^Jane")
        return ""

    return target


def invents_a_code() -> Target:
    def refuse(data: bytes, *_: Any) -> Image.Image:
        raise ImageError("IMAGE_ODD" if only(data) else "IMAGE_EMPTY")  # type: ignore[arg-type]

    return with_decoder("decode", refuse)


def decodes_otherwise() -> Target:
    """A fast way that is wrong by one grey value in some files."""
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
        (says, "it said Invalid value: Doe"),
        (invents_a_code, "the error code 'IMAGE_ODD' is in no list"),
        (decodes_otherwise, "other pixels than Pillow's"),
    ],
)
def test_a_broken_decoder_is_caught_and_its_input_kept(
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
    assert only(kept.read_bytes()) or target is decodes_otherwise


def test_a_leak_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="grew by"):
        fuzz(200, 5, silent, target=leaks, failures=tmp_path)


def test_pillow_is_the_judge_of_plain_pngs() -> None:
    assert fuzzing.agrees_with_pillow(png.drawn(np.zeros((64, 64), np.uint8)))
