"""Warnings that a file may not be what the model knows. They are stored with a prediction and never stop it.

`frontal_chest.png` is the average frontal chest X-ray at 16 x 16 pixels. An image is compared with it by
correlation, as it is and turned by a quarter. `training/frontal_chest.py` makes it, and measures how often
each warning is a false alarm and how often it is missed.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from runs.codes import WarningCode

LIKE, BETTER = 0.25, 0.25  # the least correlation of a chest; by how much sideways must exceed upright
SIDE = 16


def warnings(
    pixels: npt.NDArray[np.generic], colour: bool, training_range: Mapping[str, Sequence[float]]
) -> tuple[WarningCode, ...]:
    """Warnings about the pixels [channels, crop, crop], 0 to 255, that a model is about to score.

    `training_range` comes from the bundle: `brightness` and `contrast`, the least and the greatest mean and
    standard deviation of the pixels of a training image. It may be empty.
    """
    found: list[WarningCode] = [WarningCode.COLOUR] if colour else []
    small = Image.fromarray(pixels.mean(axis=0).astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    upright, left, right = (_likeness(np.rot90(np.asarray(small), turns)) for turns in (0, 1, 3))
    sideways, inverted = max(left, right), -upright
    if max(upright, sideways, inverted) < LIKE:
        found.append(WarningCode.NOT_A_FRONTAL_CHEST)
    elif inverted > max(upright, sideways):
        found.append(WarningCode.LOOKS_INVERTED)
    elif sideways > upright + BETTER:
        found.append(WarningCode.LOOKS_SIDEWAYS)
    measured = {"brightness": pixels.mean(), "contrast": pixels.std()}
    if any(not low <= measured[name] <= high for name, (low, high) in training_range.items()):
        found.append(WarningCode.OUT_OF_TRAINING_RANGE)
    return tuple(found)


def standardise(small: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Grey values [16, 16] with mean 0 and length 1. An even image becomes zeros."""
    centred = small - small.mean(dtype=np.float64)
    length = np.linalg.norm(centred)
    return np.asarray(centred / length if length > 0 else centred)


def _likeness(small: npt.NDArray[np.float32]) -> float:
    """Pearson's correlation with the average frontal chest, -1 to 1."""
    return float((standardise(small) * _frontal_chest()).sum())


@functools.cache
def _frontal_chest() -> npt.NDArray[np.float64]:
    return standardise(np.asarray(Image.open(Path(__file__).with_name("frontal_chest.png"))))
