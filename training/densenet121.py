"""DenseNet-121 as NIH's normal-or-abnormal classifier and TorchXRayVision's models use it.

The network is torchvision's: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional
Networks", CVPR 2017. NIH's classifier has one output and three equal channels: Tang et al., "Automated
abnormality classification of chest radiographs using deep convolutional neural networks", npj Digital
Medicine 3, 70 (2020). It prepares pixels as for ImageNet: resize the short side to 256, bilinear; take the
central 224 x 224; normalise with the mean and the deviation of ImageNet's channels.
"""

from collections import OrderedDict

import torchvision
from torch import nn
from torchvision.models import DenseNet

RESIZE, CROP = 256, 224
# One of each for a channel of values from 0 to 255 (torchvision.models.DenseNet121_Weights).
IMAGENET_MEAN = [255 * mean for mean in (0.485, 0.456, 0.406)]
IMAGENET_DEVIATION = [255 * deviation for deviation in (0.229, 0.224, 0.225)]


def densenet121(outputs: int, channels: int = 3) -> DenseNet:
    """The network with random weights: normalised pixels [N, channels, H, W] to logits [N, outputs]."""
    network: DenseNet = torchvision.models.densenet121(num_classes=outputs)
    if channels != 3:
        network.features.conv0 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


def trunk(network: DenseNet) -> nn.Sequential:
    """The network up to its feature maps [N, 1024, H / 32, W / 32], with faster transitions.

    A transition's average pooling comes before its 1x1 convolution, and not after it as in torchvision. Both
    are linear, so the order does not matter, and the convolution then takes a quarter of the products.
    """
    order = ("norm", "relu", "pool", "conv")
    maps = nn.Sequential(
        OrderedDict(
            (name, nn.Sequential(OrderedDict((step, getattr(part, step)) for step in order)))
            if name.startswith("transition")
            else (name, part)
            for name, part in network.features.named_children()
        )
    )
    return nn.Sequential(maps, nn.ReLU())
