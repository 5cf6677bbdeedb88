"""Trains the whole network, and goes on after the last finished epoch of a training that was stopped."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr.errors import InputError
from cxr.files import whole_file
from training.augmentation import augment
from training.data import Bytes, Floats, Images
from training.networks import DEVIATION, MEAN, Network, build
from training.progress import ProgressDisplay
from training.scorer import Enlarge, Mirrored, Normalise, Scorer

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
THREADS = 2  # with another number, sums are added in another order, and the training ends elsewhere
LABEL_SHARE = 2 / 3  # decision 5
GRADIENT_NORM = 5.0  # longer gradients are shortened to this


@dataclass(frozen=True)
class Settings:
    """How to train.

    The loss is the sum of three: of the label, of what radiologists read (of the images that they read), and
    of all findings together, weighted by `findings_weight`. The learning rate goes through one cycle.
    """

    architecture: str = "efficientnet-lite0"
    pixels: int = 128  # side of the input
    side: int = 128  # that the input is enlarged to, for the network
    epochs: int = 6
    batch: int = 48
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    findings_weight: float = 0.15
    seed: int = 0


Targets = npt.NDArray[np.float32]


def make_targets(images: Images) -> Targets:
    """[images, 2 + findings], 0 or 1: the label, what radiologists read (NaN if none did), each finding."""
    columns = (images.abnormal, images.read_abnormal, *(images.shows(finding) for finding in FINDINGS))
    return np.stack(columns, axis=1).astype(np.float32)


def fit(
    pixels: Bytes,
    targets: Targets,
    settings: Settings,
    work: Path,
    progress: ProgressDisplay,
    watch: Callable[[Network], str],
) -> Network:
    """The network whose weights are an average over the steps of the training, the late ones counting most.

    `pixels` are [images, pixels, pixels]. Every finished epoch is kept in `work`, with which the same
    training goes on. `watch` describes the average after an epoch. Raises InputError if `work` holds another
    training, and OSError.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    network = build(settings.architecture, settings.side, targets.shape[1])
    network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    batches = max(1, len(pixels) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=max(5, batches * settings.epochs), pct_start=0.25
    )
    saved = _Checkpoint(work / "epoch.pt", _identify(pixels, targets, settings))
    state = {"network": network, "average": average, "optimiser": optimiser, "schedule": schedule}
    for epoch in range(saved.load(state), settings.epochs):
        network.train()
        torch.manual_seed(1000 * settings.seed + epoch)  # so that a training that goes on ends the same
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(pixels))
        total = 0.0
        for step, chosen in enumerate(np.array_split(order, batches)):
            progress.show(f"epoch {epoch + 1}", step, batches)
            grey = augment(enlarge(pixels[chosen], settings.side))
            loss = compute_loss(network(normalise(grey)), torch.from_numpy(targets[chosen]), settings)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            optimiser.step()
            schedule.step()
            total += loss.item()
            _move_average(average, network, epoch * batches + step)
        saved.save(state, epoch + 1)
        progress.print(
            f"epoch {epoch + 1} of {settings.epochs}: loss {total / batches:.3f}; {watch(average)}"
        )
    return average


def compute_loss(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """The loss of a batch; an image without a radiologist's reading does not count in that part."""
    known = ~targets.isnan()
    each = functional.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none") * known
    read = each[:, 1].sum() / known[:, 1].sum().clamp(min=1)
    return each[:, 0].mean() + read + settings.findings_weight * each[:, 2:].sum(1).mean()


def enlarge(pixels: Bytes, side: int) -> Tensor:
    """Grey values [N, 1, side, side] of pixels [N, height, width], bilinear."""
    grey = torch.from_numpy(pixels).float()[:, None]
    return functional.interpolate(grey, (side, side), mode="bilinear")


def normalise(grey: Tensor) -> Tensor:
    """Grey values as the network takes them."""
    return ((grey - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)


def compute_logits(scorer: Scorer, pixels: Bytes) -> Floats:
    """The logits of the scores of pixels [images, height, width]."""
    with torch.inference_mode():
        parts = [
            scorer(torch.from_numpy(part[:, None]))[0]
            for part in np.array_split(pixels, -(-len(pixels) // 64))
        ]
    return torch.cat(parts).flatten().double().logit().numpy()


def build_scorer(
    network: Network, settings: Settings, read: bool, slope: float = 1.0, offset: float = 0.0
) -> Scorer:
    """The module to export. Its logit is `slope` x the mean of two logits + `offset`.

    LABEL_SHARE is the share of the label's logit in the mean. With `read`, the rest is that of what
    radiologists read.
    """
    shares = torch.tensor([LABEL_SHARE, 1 - LABEL_SHARE] if read else [1.0])
    weight = (shares[:, None] * network.head.weight[: len(shares)]).sum(0, keepdim=True)
    bias = (shares * network.head.bias[: len(shares)]).sum(0, keepdim=True)
    factor = settings.side / settings.pixels
    prepare = Normalise([MEAN], [DEVIATION]) if factor == 1 else Enlarge(MEAN, DEVIATION, factor)
    return Scorer(prepare, Mirrored(network.trunk), slope * weight, slope * bias + offset)


def _move_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Polynomial-decay averaging (Shamir & Zhang, ICML 2013), mostly of the last tenth of the steps."""
    for old, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 9 / (10 + step))


def _identify(pixels: Bytes, targets: Targets, settings: Settings) -> dict[str, str]:
    """What must be the same for a training to go on."""
    digest = hashlib.sha256(pixels.tobytes() + targets.tobytes()).hexdigest()[:16]
    return {
        **{name: str(value) for name, value in asdict(settings).items()},
        "images and labels": digest,
        **{name: metadata.version(name) for name in ("numpy", "torch")},
    }


class _Checkpoint:
    """A training after a finished epoch, in a file."""

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        self._path, self._identity = path, identity

    def load(self, state: dict[str, Any]) -> int:
        """Load the state, if there is a file, and return how many epochs are finished."""
        if not self._path.exists():
            return 0
        saved = torch.load(self._path, weights_only=True)
        for name, value in self._identity.items():
            if (found := saved["identity"].get(name)) != value:
                raise InputError(
                    f"{self._path}: {name} is {found}, expected {value}: this is another training. Choose "
                    "another --work, or delete the folder"
                )
        for name, part in state.items():
            part.load_state_dict(saved[name])
        return int(saved["epoch"])

    def save(self, state: dict[str, Any], epoch: int) -> None:
        content = {name: part.state_dict() for name, part in state.items()}
        content |= {"identity": self._identity, "epoch": epoch}
        with whole_file(self._path) as unfinished:
            torch.save(content, unfinished)
