"""DenseNet-121 and its pixels, as NIH's normal-or-abnormal classifier and TorchXRayVision's models have them.

The network is torchvision's: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional
Networks", CVPR 2017. With one output on three equal channels it is the classifier of Tang et al., "Automated
abnormality classification of chest radiographs using deep convolutional neural networks", npj Digital
Medicine 3, 70 (2020), which takes an ImageNet network's pixels: the short side resized to 256, bilinear; the
central 224 x 224; mean and deviation of ImageNet's channels.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import DenseNet

RESIZE, CROP = 256, 224
# Of grey values from 0 to 255, a channel (torchvision.models.DenseNet121_Weights).
IMAGENET_MEAN = [255 * mean for mean in (0.485, 0.456, 0.406)]
IMAGENET_DEVIATION = [255 * deviation for deviation in (0.229, 0.224, 0.225)]


def densenet121(outputs: int, channels: int = 3) -> DenseNet:
    """The network with weights of chance: normalised pixels [N, channels, H, W] to logits [N, outputs]."""
    network: DenseNet = torchvision.models.densenet121(num_classes=outputs)
    if channels != 3:
        network.features.conv0 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


def features(network: DenseNet) -> nn.Sequential:
    """The network up to its maps, a transition's average pooling in front of its convolution and not behind.

    A 1x1 convolution and a mean of places are both linear and so commute: a quarter of the products are left.
    """
    order = ("norm", "relu", "pool", "conv")  # where torchvision has conv, pool
    return nn.Sequential(
        OrderedDict(
            (name, nn.Sequential(OrderedDict((step, getattr(part, step)) for step in order)))
            if name.startswith("transition")
            else (name, part)
            for name, part in network.features.named_children()
        )
    )


class Scorer(nn.Module):
    """A DenseNet as a bundle holds it: grey values in, scores out, normalisation and sigmoid inside.

    `pixels` [N, channels, H, W] from 0 to 255, of any type, to `scores` [N, outputs] from 0 to 1 and `cam`
    [N, outputs, H / 32, W / 32], the class activation map: its places add up to the logit less the bias (Zhou
    et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).

    With `operating_points` [outputs], the probabilities that decide, scores are rescaled as TorchXRayVision
    does (Cohen et al., MIDL 2022; its `op_norm`): 0.5 is the operating point, and they are probabilities no
    more.
    """

    mean: Tensor
    deviation: Tensor
    operating_points: Tensor | None

    def __init__(
        self,
        network: DenseNet,
        mean: Sequence[float],
        deviation: Sequence[float],
        operating_points: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.features = features(network)
        # 1x1 convolutions and not a matrix product: their sums do not depend on the size of the batch.
        self.weight = nn.Parameter(network.classifier.weight[:, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(network.classifier.bias, requires_grad=False)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, -1, 1, 1))
        self.register_buffer("operating_points", operating_points)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = functional.relu(self.features((pixels.float() - self.mean) / self.deviation))
        pooled = maps.mean((2, 3), keepdim=True)
        scores = functional.conv2d(pooled, self.weight, self.bias).flatten(1).sigmoid()
        if self.operating_points is not None:
            low = scores / (2 * self.operating_points)
            high = 1 - (1 - scores) / (2 * (1 - self.operating_points))
            scores = torch.where(scores < self.operating_points, low, high)
        return scores, functional.conv2d(maps, self.weight) / (maps.shape[2] * maps.shape[3])
