"""scikit-image's antialiased resize in numpy, for models that were trained with it."""

import functools

import numpy as np
import numpy.typing as npt

MIDDLE = np.float32(127.5)


def resize(plane: npt.NDArray[np.uint8] | npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Grey values [height, width] from 0 to 255 as float32 [size, size], unrounded.

    Computes `skimage.transform.resize(plane, (size, size), mode="constant", cval=127.5,
    preserve_range=True)`, anti_aliasing and clipping being its defaults: a Gaussian of standard deviation
    (factor - 1) / 2, then linear interpolation. That is how torchxrayvision's XRayResizer calls it, on values
    from -1024 to 1024, where the 0 that it takes the outside of the image for is the middle grey here.
    """
    rows, columns = (_weights(length, size) for length in plane.shape)
    centred = plane - MIDDLE
    resized = rows @ centred @ columns.T
    grey: npt.NDArray[np.float32] = resized.clip(centred.min(), centred.max()) + MIDDLE
    return grey


@functools.lru_cache(maxsize=8)
def _weights(length: int, size: int) -> npt.NDArray[np.float32]:
    """The weight of every pixel of a line in every pixel of the resized line, [size, length]."""
    factor = length / size
    deviation = max((factor - 1) / 2, 1e-9)  # never 0, to divide by
    reach = int(4 * deviation + 0.5)  # scipy.ndimage.gaussian_filter's truncate=4
    place = (np.arange(size)[:, np.newaxis] + 0.5) * factor - 0.5
    below = np.floor(place)

    def gaussian(centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        distance = np.arange(length) - centre
        bell: npt.NDArray[np.float64] = np.exp(-0.5 * (distance / deviation) ** 2) * (abs(distance) <= reach)
        return bell

    line = np.arange(-reach, reach + 1)
    total = np.exp(-0.5 * (line / deviation) ** 2).sum()
    smooth = gaussian(below) * (below + 1 - place) + gaussian(below + 1) * (place - below)
    weights: npt.NDArray[np.float32] = (smooth / total).astype(np.float32)
    weights.setflags(write=False)  # every caller gets the same one
    return weights
