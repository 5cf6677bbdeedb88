"""The resampling in numpy against numbers that scikit-image 0.26 gave, called as by torchxrayvision.

x = (2 * (plane.astype(np.float32) / 255) - 1) * 1024
x = skimage.transform.resize(x[None], (1, size, size), mode="constant", preserve_range=True)
(x[0] / 2048 + 0.5) * 255
"""

import numpy as np
import numpy.typing as npt
import pytest
from classifier.resampling import resize

Plane = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def pattern(height: int, width: int) -> npt.NDArray[np.uint8]:
    i, j = np.indices((height, width))
    grey: npt.NDArray[np.uint8] = ((37 * i * i + 11 * j * j + 5 * i * j) % 256).astype(np.uint8)
    return grey


def test_a_smaller_image_is_smoothed_first_with_middle_grey_around_it() -> None:
    expected = [
        [89.4253, 128.8156, 133.2851, 126.9989],
        [130.9975, 155.6022, 134.4619, 147.5763],
        [113.8270, 129.3780, 121.1718, 143.0818],
        [130.0464, 116.4353, 109.8895, 166.7834],
    ]
    np.testing.assert_allclose(resize(pattern(13, 10), 4), expected, rtol=0, atol=1e-4)


def test_a_larger_image_is_interpolated() -> None:
    expected = [
        [47.8125, 36.0000, 44.2500, 60.7500, 85.5000, 109.6875],
        [28.9583, 15.3750, 27.2083, 50.0417, 83.8750, 114.5833],
        [44.3750, 35.1250, 48.6250, 73.1250, 108.6250, 136.2500],
        [75.2083, 73.3750, 88.5417, 114.7083, 119.8750, 120.0000],
        [121.4583, 130.1250, 146.9583, 174.7917, 117.6250, 65.8333],
        [140.3125, 150.7500, 164.0000, 185.5000, 119.2500, 60.9375],
    ]
    np.testing.assert_allclose(resize(pattern(3, 4), 6), expected, rtol=0, atol=1e-4)


def test_an_image_of_the_size_of_an_x_ray() -> None:
    i, j = np.indices((1024, 700))
    resized = resize(((i * i + 2 * j * j) // 8192 % 256).astype(np.uint8), 224)
    assert resized.dtype == np.float32
    found = resized[[0, 100, 150, 200, 223], [0, 50, 223, 180, 223]]
    expected = [20.877768, 31.138401, 172.82524, 179.50519, 226.26065]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_grey_around_an_image_does_not_leave_its_range() -> None:
    bright = np.full((9, 9), 200, np.uint8)
    bright[4, 4] = 210
    expected = [[200.0, 200.0, 200.0], [200.0, 201.59155, 200.0], [200.0, 200.0, 200.0]]
    np.testing.assert_allclose(resize(bright, 3), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("plane", [pattern(224, 224), pattern(224, 224).astype(np.float32)])
def test_an_image_of_the_right_size_stays_as_it_is(plane: Plane) -> None:
    np.testing.assert_array_equal(resize(plane, 224), plane)
