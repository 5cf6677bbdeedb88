"""Training the whole network, as NIH's classifier was: binary cross-entropy, Adam, and stopping early."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier.images import Preprocessing
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from cxr.files import whole_file
from training.data import Floats, Images, Ints, read_pixels
from training.features import FULL
from training.networks import SIDE, build, last_layer, pixel_statistics, stages
from training.progress import Teller
from training.scorer import Normalise, Scorer

LEARNING_RATE = 1e-4
BATCH = 32
PATIENCE = 3  # epochs without a smaller validation loss
WHOLE = Preprocessing(channels=3, resize=256, crop=256)  # the augmentation crops it


@dataclass(frozen=True)
class Settings:
    """How to train; `weights` is `imagenet` or a checkpoint's path."""

    architecture: str
    weights: str
    epochs: int
    device: str
    seed: int


def fit(
    images: Images, train: Ints, validation: Ints, settings: Settings, kept: Path, tell: Teller
) -> nn.Module:
    """The network at its best epoch, which is kept as a checkpoint that `--weights` takes.

    A network that is kept there already is read and not trained again. Raises InputError, CheckpointError,
    OSError.
    """
    if kept.exists():
        return build(settings.architecture, str(kept))
    torch.manual_seed(settings.seed)
    network = build(settings.architecture, settings.weights)
    model = _with_normalisation(network, settings)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    shuffled = DataLoader(
        Augmented(images, train, settings.seed),
        BATCH,
        shuffle=True,
        drop_last=len(train) > BATCH,  # a last batch of one image would upset the batch normalisation
        num_workers=_workers(len(train)),
        generator=torch.Generator().manual_seed(settings.seed),
    )
    best, least, since = copy.deepcopy(network.state_dict()), float("inf"), 0
    for epoch in range(settings.epochs):
        model.train()
        for step, (pixels, labels) in enumerate(shuffled):
            tell.at(f"{kept.stem}, epoch {epoch + 1}", step, len(shuffled))
            loss = functional.binary_cross_entropy_with_logits(
                model(pixels.to(settings.device)).flatten(), labels.to(settings.device)
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        logits = torch.from_numpy(logits_of(network, images, validation, settings))
        loss_there = functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(images.abnormal[validation]).double()
        ).item()
        tell.say(f"{kept.stem}: epoch {epoch + 1}, validation loss {loss_there:.4f}")
        if loss_there < least:
            best, least, since = copy.deepcopy(network.state_dict()), loss_there, 0
        elif (since := since + 1) == PATIENCE:
            break
    network.load_state_dict(best)
    with whole_file(kept) as part:
        torch.save({"state_dict": {name: value.cpu() for name, value in best.items()}}, part)
    return network.cpu().eval()


def logits_of(network: nn.Module, images: Images, which: Ints, settings: Settings) -> Floats:
    """Logits [which] of the central crop, as in scoring."""
    model = _with_normalisation(network, settings).eval()
    loader = DataLoader(Central(images, which), BATCH, num_workers=_workers(len(which)))
    with torch.inference_mode():
        found = [model(pixels.to(settings.device)).flatten().double().cpu() for pixels in loader]
    return torch.cat(found).numpy() if found else np.zeros(0)


def graph(network: nn.Module, architecture: str, slope: float, offset: float) -> Scorer:
    """The network with its calibration folded into the last layer."""
    head = last_layer(network)
    return Scorer(
        Normalise(*pixel_statistics(architecture)),
        nn.Sequential(*stages(network)),
        slope * head.weight,
        slope * head.bias.double() + offset,
    )


class Central(Dataset[Tensor]):
    """Pixels as in scoring."""

    def __init__(self, images: Images, which: Ints) -> None:
        self._files = images.file[which].tolist()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(read_pixels(self._files[index], FULL))


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Any 224 of 256 pixels, half of the time mirrored, and the label."""

    def __init__(self, images: Images, which: Ints, seed: int) -> None:
        self._files, self._labels = images.file[which].tolist(), images.abnormal[which].tolist()
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
        source = (
            self._random if info is None else None
        )  # a worker has torch's own, seeded by worker and epoch
        return int(torch.randint(below, (), generator=source))


def _with_normalisation(network: nn.Module, settings: Settings) -> nn.Sequential:
    normalise = Normalise(*pixel_statistics(settings.architecture))
    return nn.Sequential(normalise, network).to(settings.device)


def _workers(images: int) -> int:
    return 0 if images < 1000 else 4
