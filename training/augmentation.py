"""Random changes of training images, so that the score does not depend on how a file was made.

They come from torch's own generator, which the training seeds.
"""

import torch
from torch import Tensor
from torch.nn import functional

TURN, SHIFT, LOG_SCALE = 8.0, 0.06, 0.12  # at most: degrees, share of the side, natural logarithm
LOG_GAMMA, LOG_CONTRAST, BRIGHTNESS, NOISE = 0.35, 0.3, 0.1, 0.02  # at most, for grey values from 0 to 1
SMALLEST = 48  # pixels, of a side
GROUPS = 6  # of a batch; the images of a group lose the same resolution


def augment(grey: Tensor) -> Tensor:
    """Changed grey values [N, 1, side, side], from 0 to 255: another place, sharpness and contrast."""
    moved = _move(grey)
    return _change_contrast(torch.cat([_lose_resolution(group) for group in moved.chunk(GROUPS)]))


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape) * (high - low) + low


def _move(grey: Tensor) -> Tensor:
    """Turn, scale, shift and mirror."""
    count = len(grey)
    angle = _uniform(-TURN, TURN, count).deg2rad()
    scale = _uniform(-LOG_SCALE, LOG_SCALE, count).exp()
    mirror = torch.where(_uniform(0, 1, count) < 0.5, -1.0, 1.0)
    shift = _uniform(-2 * SHIFT, 2 * SHIFT, count, 2)  # the grid goes from -1 to 1
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.reshape(count, 2, 3), list(grey.shape), align_corners=False)
    return functional.grid_sample(grey, grid, padding_mode="border", align_corners=False)


def _lose_resolution(grey: Tensor) -> Tensor:
    """Reduce to a random side, and enlarge again; a quarter of the time, leave as it is."""
    side = grey.shape[-1]
    smaller = int(_uniform(SMALLEST, side + (side - SMALLEST) / 3, 1))
    if smaller >= side:
        return grey
    antialias = bool(_uniform(0, 1, 1) < 0.7)
    reduced = functional.interpolate(grey, (smaller, smaller), mode="bilinear", antialias=antialias)
    return functional.interpolate(reduced, (side, side), mode="bilinear")


def _change_contrast(grey: Tensor) -> Tensor:
    """Change gamma, contrast and brightness, and add noise."""
    shape = len(grey), 1, 1, 1
    shown = (grey / 255).clamp(0, 1) ** _uniform(-LOG_GAMMA, LOG_GAMMA, *shape).exp()
    middle = shown.mean((2, 3), keepdim=True)
    shown = (shown - middle) * _uniform(-LOG_CONTRAST, LOG_CONTRAST, *shape).exp() + middle
    shown = shown + _uniform(-BRIGHTNESS, BRIGHTNESS, *shape)
    noise = torch.randn(grey.shape) * _uniform(0, NOISE, *shape)
    return (shown + noise).clamp(0, 1) * 255
