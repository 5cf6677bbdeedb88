"""What is measured once on every image: frozen features of an ImageNet network, and plain statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from classifier.images import Pixels, Preprocessing
from torch import nn

from cxr.files import whole_file
from training.data import Floats, Images, read_pixels
from training.networks import SIDE, coarse_stages, pixel_statistics, stages
from training.progress import Teller
from training.scorer import CoarseNormalise, Normalise

FULL = Preprocessing(channels=3, resize=256, crop=SIDE)
COARSE = Preprocessing(channels=1, resize=64, crop=SIDE // 4)
BATCH = 32


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features, each [images, C]."""

    coarse: list[Floats]  # of coarse pixels, after each stage of the network
    full: Floats  # of 224 x 224 pixels, after the last


def frozen(network: nn.Module, architecture: str, images: Images, kept: Path, tell: Teller) -> Features:
    """Reads them from the file `kept`, or measures them and keeps them there. Raises InputError, OSError."""
    if not kept.exists():
        parts, coarse_parts = stages(network), coarse_stages(network)
        coarse: list[list[Floats]] = [[] for _ in parts]
        full: list[Floats] = []
        with torch.inference_mode():
            for files in _batches(images.file.tolist()):
                maps = CoarseNormalise(*pixel_statistics(architecture))(_stack(files, COARSE))
                for part, found in zip(coarse_parts, coarse, strict=True):
                    maps = part(maps)
                    found.append(maps.mean((2, 3)).double().numpy())
                maps = nn.Sequential(Normalise(*pixel_statistics(architecture)), *parts)(_stack(files, FULL))
                full.append(maps.mean((2, 3)).double().numpy())
                tell.at("features", sum(map(len, full)), len(images))
        stacked = {f"coarse_{i}": np.concatenate(found) for i, found in enumerate(coarse)}
        with whole_file(kept) as part_file, part_file.open("wb") as file:
            np.savez(file, **stacked, full=np.concatenate(full))  # type: ignore[arg-type]
    with np.load(kept) as saved:
        return Features([saved[f"coarse_{i}"] for i in range(len(saved.files) - 1)], saved["full"])


@dataclass(frozen=True, eq=False)
class Statistics:
    """Plain measures of every image, each [images]: what a score must be better than."""

    bytes: Floats
    brightness: Floats  # mean grey value of the model's input
    contrast: Floats  # standard deviation of the same
    edges: Floats  # mean squared difference of neighbouring pixels, their gradient energy


def statistics(images: Images, preprocessing: Preprocessing) -> Statistics:
    """Of pixels as the model takes them. Raises InputError."""
    found = np.array([_statistics(file, preprocessing) for file in images.file.tolist()])
    return Statistics(*found.T)


def _statistics(file: str, preprocessing: Preprocessing) -> tuple[float, ...]:
    pixels: Pixels = read_pixels(file, preprocessing)
    grey = pixels.mean(axis=0, dtype=np.float64)
    edges = (np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()
    return Path(file).stat().st_size, pixels.mean(), pixels.std(), edges


def _batches(files: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]


def _stack(files: Sequence[str], preprocessing: Preprocessing) -> torch.Tensor:
    return torch.from_numpy(np.stack([read_pixels(file, preprocessing) for file in files]))
