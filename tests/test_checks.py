"""Warnings on real X-rays, turned and inverted, and on what is none."""

import csv

import numpy as np
import pytest
from classifier.checks import warnings
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing
from support import XRAYS, image_bytes

pytestmark = pytest.mark.xdist_group("checks")  # they share decoded X-rays

DATA = XRAYS.parents[1]
PREPROCESSING = Preprocessing(channels=1, resize=256, crop=224)


def collection(folder: str) -> list[Pixels]:
    """The images of one of the collections of X-rays."""
    if not DATA.exists():
        pytest.skip(f"needs the NIH X-rays in {DATA}")
    with (DATA / "labels.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["file"].startswith(f"{folder}/")]
    return [PREPROCESSING(decode((DATA / name).read_bytes())) for name in names]


@pytest.fixture(scope="module")
def upright() -> list[Pixels]:
    """Nothing of them is in frontal_chest.png."""
    return collection("images-512")


def share(images: list[Pixels], code: str) -> float:
    return float(np.mean([code in warnings(image, False, {}) for image in images]))


def test_false_alarms_on_upright_x_rays_are_at_most_two_per_cent(upright: list[Pixels]) -> None:
    assert len(upright) == 845
    assert np.mean([bool(warnings(image, False, {})) for image in upright]) <= 0.02


def test_x_rays_on_their_side(upright: list[Pixels]) -> None:
    assert share(collection("sideways-512"), "LOOKS_SIDEWAYS") == 1
    for turns in (1, 3):
        assert share([np.rot90(image, turns, (1, 2)) for image in upright], "LOOKS_SIDEWAYS") > 0.95


def test_inverted_x_rays(upright: list[Pixels]) -> None:
    assert share([255 - image for image in upright], "LOOKS_INVERTED") > 0.95


def test_what_is_no_chest() -> None:
    noise = [PREPROCESSING(decode(image_bytes(seed=n))) for n in range(20)]
    assert share(noise, "NOT_A_FRONTAL_CHEST") == 1
    assert warnings(np.full((1, 224, 224), 90, np.uint8), False, {}) == ("NOT_A_FRONTAL_CHEST",)


def test_colour_is_said() -> None:
    assert "COLOUR" in warnings(np.zeros((3, 224, 224), np.uint8), True, {})


@pytest.mark.parametrize(
    "ranges", [{"brightness": (200, 255)}, {"contrast": (0, 5)}, {"brightness": (0, 20)}]
)
def test_outside_of_the_training_range(upright: list[Pixels], ranges: dict[str, tuple[int, int]]) -> None:
    assert warnings(upright[0], False, ranges) == ("OUT_OF_TRAINING_RANGE",)
    assert warnings(upright[0], False, {"brightness": (0, 255), "contrast": (0, 128)}) == ()
