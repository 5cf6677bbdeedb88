"""The module that a bundle's ONNX graph is exported from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Normalise(nn.Module):
    """Subtracts a mean from the grey values of each channel, [N, channels, H, W], and divides by a deviation.

    One channel with the means of three becomes three channels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.deviation


class Enlarge(Normalise):
    """Enlarges grey values [N, 1, H, W] by a factor, bilinear, and normalises them."""

    def __init__(self, mean: float, deviation: float, factor: float) -> None:
        super().__init__([mean], [deviation])
        self.factor = factor

    def forward(self, pixels: Tensor) -> Tensor:
        enlarged = functional.interpolate(pixels.float(), scale_factor=self.factor, mode="bilinear")
        return super().forward(enlarged)


class Mirrored(nn.Module):
    """Feature maps [N, features, h, w]: the mean of those of an image and of its mirror image."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, grey: Tensor) -> Tensor:
        maps: Tensor = self.trunk(torch.cat([grey, grey.flip(3)]))
        as_is, mirrored = maps.reshape(2, -1, *maps.shape[1:])
        mean: Tensor = (as_is + mirrored.flip(3)) / 2
        return mean


class Scorer(nn.Module):
    """Scores grey values from 0 to 255: normalisation, network, linear head and sigmoid in one module.

    `pixels` [N, channels, H, W] of any type become `scores` [N, labels] from 0 to 1 and `cam`
    [N, labels, h, w], the class activation map: the sum of a map is the label's logit less its bias (Zhou et
    al., "Learning Deep Features for Discriminative Localization", CVPR 2016).

    `prepare` normalises the pixels, `trunk` turns them into feature maps [N, features, h, w]. `weight`
    [labels, features] and `bias` [labels] are the head's, on average pooling.

    With `operating_points` [labels], the scores at which a label turns positive, scores are rescaled as
    TorchXRayVision does (Cohen et al., MIDL 2022; `op_norm` in its code): the operating point becomes 0.5.
    Rescaled scores are not probabilities.
    """

    operating_points: Tensor | None

    def __init__(
        self,
        prepare: nn.Module,
        trunk: nn.Module,
        weight: Tensor,
        bias: Tensor,
        operating_points: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.prepare, self.trunk = prepare, trunk
        # The head is a 1x1 convolution, because the sums of a matrix product depend on the size of the batch.
        self.weight = nn.Parameter(weight.detach().float()[:, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        self.register_buffer("operating_points", operating_points)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(self.prepare(pixels))
        pooled = maps.mean((2, 3), keepdim=True)
        scores = functional.conv2d(pooled, self.weight, self.bias).flatten(1).sigmoid()
        if self.operating_points is not None:
            low = scores / (2 * self.operating_points)
            high = 1 - (1 - scores) / (2 * (1 - self.operating_points))
            scores = torch.where(scores < self.operating_points, low, high)
        return scores, functional.conv2d(maps, self.weight) / (maps.shape[2] * maps.shape[3])
