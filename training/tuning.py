"""Trains the whole network like NIH's classifier: binary cross-entropy, Adam and early stopping."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier.preprocessing import Preprocessing
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from cxr.files import whole_file
from training.data import Floats, Images, Ints, read_pixels
from training.features import FULL
from training.networks import SIDE, build, last_layer, pixel_statistics, stages
from training.progress import ProgressDisplay
from training.scorer import Normalise, Scorer

LEARNING_RATE = 1e-4
BATCH = 32
PATIENCE = 3  # epochs without a lower validation loss before training stops
WHOLE = Preprocessing(channels=3, resize=256, crop=256)  # the augmentation crops SIDE x SIDE pixels of it


@dataclass(frozen=True)
class Settings:
    """How to train. `weights` is `imagenet` or the path of a checkpoint."""

    architecture: str
    weights: str
    epochs: int
    device: str
    seed: int


def fit(
    images: Images, train: Ints, validation: Ints, settings: Settings, path: Path, progress: ProgressDisplay
) -> nn.Module:
    """The network after its best epoch, saved to `path` as a checkpoint that `Settings.weights` accepts.

    If `path` exists, the network is read from it and not trained again. Raises InputError, CheckpointError
    and OSError.
    """
    if path.exists():
        return build(settings.architecture, str(path))
    torch.manual_seed(settings.seed)
    network = build(settings.architecture, settings.weights)
    model = _with_normalisation(network, settings)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    shuffled = DataLoader(
        AugmentedCrops(images, train, settings.seed),
        BATCH,
        shuffle=True,
        drop_last=len(train) > BATCH,  # batch normalisation cannot train on a last batch of one image
        num_workers=_loader_processes(len(train)),
        generator=torch.Generator().manual_seed(settings.seed),
    )
    best, lowest, epochs_since = copy.deepcopy(network.state_dict()), float("inf"), 0
    for epoch in range(settings.epochs):
        model.train()
        for step, (pixels, labels) in enumerate(shuffled):
            progress.show(f"{path.stem}, epoch {epoch + 1}", step, len(shuffled))
            loss = functional.binary_cross_entropy_with_logits(
                model(pixels.to(settings.device)).flatten(), labels.to(settings.device)
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        logits = torch.from_numpy(compute_logits(network, images, validation, settings))
        validation_loss = functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(images.abnormal[validation]).double()
        ).item()
        progress.print(f"{path.stem}: epoch {epoch + 1}, validation loss {validation_loss:.4f}")
        if validation_loss < lowest:
            best, lowest, epochs_since = copy.deepcopy(network.state_dict()), validation_loss, 0
        elif (epochs_since := epochs_since + 1) == PATIENCE:
            break
    network.load_state_dict(best)
    with whole_file(path) as part:
        torch.save({"state_dict": {name: value.cpu() for name, value in best.items()}}, part)
    return network.cpu().eval()


def compute_logits(network: nn.Module, images: Images, indices: Ints, settings: Settings) -> Floats:
    """Logits of the images at `indices`, with pixels as in scoring."""
    model = _with_normalisation(network, settings).eval()
    loader = DataLoader(CentralCrops(images, indices), BATCH, num_workers=_loader_processes(len(indices)))
    with torch.inference_mode():
        found = [model(pixels.to(settings.device)).flatten().double().cpu() for pixels in loader]
    return torch.cat(found).numpy() if found else np.zeros(0)


def build_scorer(network: nn.Module, architecture: str, slope: float, offset: float) -> Scorer:
    """The network with the calibration in the weights of its last layer."""
    head = last_layer(network)
    return Scorer(
        Normalise(*pixel_statistics(architecture)),
        nn.Sequential(*stages(network)),
        slope * head.weight,
        slope * head.bias.double() + offset,
    )


class CentralCrops(Dataset[Tensor]):
    """Pixels as in scoring."""

    def __init__(self, images: Images, indices: Ints) -> None:
        self._files = images.file[indices].tolist()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(read_pixels(self._files[index], FULL))


class AugmentedCrops(Dataset[tuple[Tensor, Tensor]]):
    """A random 224 x 224 of 256 x 256 pixels, mirrored with probability 0.5, and the label."""

    def __init__(self, images: Images, indices: Ints, seed: int) -> None:
        self._files, self._labels = images.file[indices].tolist(), images.abnormal[indices].tolist()
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(read_pixels(self._files[index], WHOLE))
        top, left, mirrored = (self._draw(n) for n in (WHOLE.crop - SIDE + 1, WHOLE.crop - SIDE + 1, 2))
        cropped = pixels[:, top : top + SIDE, left : left + SIDE]
        return cropped.flip(2) if mirrored else cropped, torch.tensor(float(self._labels[index]))

    def _draw(self, below: int) -> int:
        info: Any = torch.utils.data.get_worker_info()
        # In a worker process, torch's own generator is seeded by worker and epoch.
        generator = self._random if info is None else None
        return int(torch.randint(below, (), generator=generator))


def _with_normalisation(network: nn.Module, settings: Settings) -> nn.Sequential:
    normalise = Normalise(*pixel_statistics(settings.architecture))
    return nn.Sequential(normalise, network).to(settings.device)


def _loader_processes(images: int) -> int:
    return 0 if images < 1000 else 4
