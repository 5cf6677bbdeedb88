"""Measured once for every image: frozen features of an ImageNet network, and plain statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from classifier.preprocessing import Pixels, Preprocessing
from torch import nn

from cxr.files import whole_file
from training.data import Floats, Images, read_pixels
from training.networks import SIDE, coarse_stages, pixel_statistics, stages
from training.progress import ProgressDisplay
from training.scorer import CoarseNormalise, Normalise

FULL = Preprocessing(channels=3, resize=256, crop=SIDE)
COARSE = Preprocessing(channels=1, resize=64, crop=SIDE // 4)
BATCH = 32


@dataclass(frozen=True, eq=False)
class Features:
    """Average-pooled features, each [images, features]."""

    coarse: list[Floats]  # of coarse pixels, after each stage of the network
    full: Floats  # of 224 x 224 pixels, after the last stage


def extract(
    network: nn.Module, architecture: str, images: Images, cache: Path, progress: ProgressDisplay
) -> Features:
    """Features of all images, read from the file `cache` if it exists, else computed and written to it.

    Raises InputError and OSError.
    """
    if not cache.exists():
        parts, coarse_parts = stages(network), coarse_stages(network)
        normalise, coarse_normalise = (
            kind(*pixel_statistics(architecture)) for kind in (Normalise, CoarseNormalise)
        )
        coarse: list[list[Floats]] = [[] for _ in parts]
        full: list[Floats] = []
        with torch.inference_mode():
            for files in _batches(images.file.tolist()):
                maps = coarse_normalise(_read_batch(files, COARSE))
                for part, found in zip(coarse_parts, coarse, strict=True):
                    maps = part(maps)
                    found.append(maps.mean((2, 3)).double().numpy())
                maps = nn.Sequential(normalise, *parts)(_read_batch(files, FULL))
                full.append(maps.mean((2, 3)).double().numpy())
                progress.show("features", sum(map(len, full)), len(images))
        stacked = {f"coarse_{i}": np.concatenate(found) for i, found in enumerate(coarse)}
        with whole_file(cache) as part_file, part_file.open("wb") as file:
            np.savez(file, **stacked, full=np.concatenate(full))  # type: ignore[arg-type]
    with np.load(cache) as saved:
        return Features([saved[f"coarse_{i}"] for i in range(len(saved.files) - 1)], saved["full"])


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Plain statistics of every image, each [images]. A useful score predicts the label better than these."""

    file_bytes: Floats
    brightness: Floats  # mean grey value of the model's input
    contrast: Floats  # standard deviation of the grey values
    gradient_energy: Floats  # mean squared difference of neighbouring pixels


def measure_statistics(images: Images, preprocessing: Preprocessing) -> ImageStatistics:
    """Statistics of the pixels that the model takes. Raises InputError."""
    found = np.array([_measure_image(file, preprocessing) for file in images.file.tolist()])
    return ImageStatistics(*found.T)


def _measure_image(file: str, preprocessing: Preprocessing) -> tuple[float, ...]:
    pixels: Pixels = read_pixels(file, preprocessing)
    grey = pixels.mean(axis=0, dtype=np.float64)
    gradient_energy = (np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()
    return Path(file).stat().st_size, pixels.mean(), pixels.std(), gradient_energy


def _batches(files: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]


def _read_batch(files: Sequence[str], preprocessing: Preprocessing) -> torch.Tensor:
    return torch.from_numpy(np.stack([read_pixels(file, preprocessing) for file in files]))
