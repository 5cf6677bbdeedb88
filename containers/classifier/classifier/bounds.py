"""What an image file may be at most, and the error of a file that cannot be scored."""

import io

from runs.codes import ErrorCode

MIN_SIDE = 64
MAX_PIXELS = 50_000_000
MAX_ASPECT = 4
MAX_BYTES = 64 * 2**20
MAX_READS = 200_000  # of a header in memory: each chunk, segment or element takes one to four


class ImageError(Exception):
    """An image that can never be scored; `code` says why."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


def check_size(size: tuple[int, int]) -> None:
    """Raises ImageError for sides, in pixels, that are not scored."""
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    if short < MIN_SIDE:
        raise ImageError(ErrorCode.IMAGE_TOO_SMALL)
    if long > MAX_ASPECT * short:
        raise ImageError(ErrorCode.IMAGE_TOO_NARROW)


def bits_in_use(declared: int, top: int, bit_depth: int) -> int:
    """How many bits the values of a file use, of those that the file declares. Raises ImageError.

    `top` is its greatest value. `bit_depth` comes from the bundle: with less than 16, files that declare more
    use so many. With 16, a file that declares more than 12 and uses 12 or fewer could be of either depth.
    """
    if declared > bit_depth and top < 2**bit_depth:
        return bit_depth
    uncertain = top < 2**12 if bit_depth == 16 else declared > bit_depth and top < 2 ** (declared - 1)
    if declared > 12 and uncertain:
        raise ImageError(ErrorCode.BIT_DEPTH_UNKNOWN)
    return declared


class BoundedFile(io.BytesIO):
    """A file in memory that can be read at most MAX_READS times. Then it raises ImageError."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
        return super().read(size)
