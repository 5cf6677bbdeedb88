"""The child process of `decoder.py`: decodes what comes through its standard input, until that ends.

It ends without an answer at the first image that is damaged. JPEG (8 to 16 bits, lossless too) is decoded by
the libjpeg-turbo that Pillow brings along, whose functions for more than 8 bits Pillow does not use; HTJ2K by
Pillow's OpenJPEG; JPEG-LS by CharLS.
"""

import ctypes
import functools
import io
import os
import resource
import sys
from collections.abc import Callable

from classifier.decoder import ANSWER, REQUEST

# libjpeg-turbo's jpeglib.h, for 64-bit processors: the ABI of libjpeg 6b; the size of jpeg_decompress_struct,
# which jpeg_CreateDecompress compares with its own; and the places of fields in it and in jpeg_error_mgr.
_VERSION, _SIZE, _ERROR_SIZE = 62, 632, 168
_WIDTH, _HEIGHT, _COMPONENTS, _SPACE, _OUT_SPACE, _PRECISION = 48, 52, 56, 60, 64, 296
_WARNINGS = 128  # a long
_MAX_SAMPLES = 150_000_000
Found = tuple[tuple[int, int, int, int, int], bytes]
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def main() -> None:
    """Answer requests."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"\0")
    answers.flush()
    decoders: dict[bytes, Callable[[bytes], Found]] = {
        b"JPEG": _jpeg,
        b"JPEG lossless": functools.partial(_jpeg, lossless=True),
        b"JPEG-LS": _jpeg_ls,
        b"JPEG2000": _jpeg_2000,
    }
    while request := requests.read(REQUEST.size):
        name, length = REQUEST.unpack(request)
        header, pixels = decoders[name.rstrip(b"\0")](requests.read(length))
        answers.write(ANSWER.pack(*header))
        answers.write(pixels)
        answers.flush()


def _jpeg(data: bytes, *, lossless: bool = False) -> Found:
    from PIL import _imaging  # it loads libjpeg-turbo

    library = ctypes.CDLL(_imaging.__file__)
    errors, state = ctypes.create_string_buffer(_ERROR_SIZE), ctypes.create_string_buffer(_SIZE)
    library.jpeg_std_error.restype = ctypes.c_void_p
    library.jpeg_std_error(errors)
    end, ignore = _Callback(lambda _: os._exit(1)), _Callback(lambda _: None)
    # error_exit must not return; output_message would print.
    for place, callback in ((0, end), (2, ignore)):
        ctypes.cast(errors, ctypes.POINTER(ctypes.c_void_p))[place] = ctypes.cast(callback, ctypes.c_void_p)
    ctypes.cast(state, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.addressof(errors)

    def field(place: int) -> ctypes.c_int:
        return ctypes.c_int.from_buffer(state, place)

    library.jpeg_CreateDecompress(state, _VERSION, ctypes.c_size_t(_SIZE))
    library.jpeg_mem_src(state, data, ctypes.c_ulong(len(data)))
    library.jpeg_read_header(state, 1)
    columns, rows = field(_WIDTH).value, field(_HEIGHT).value
    samples, precision = field(_COMPONENTS).value, field(_PRECISION).value
    if rows * columns * samples > _MAX_SAMPLES or samples not in (1, 3):
        raise ValueError
    field(_OUT_SPACE).value = field(_SPACE).value  # as stored: the caller wants no other colours
    library.jpeg_start_decompress(state)
    size = 1 if precision <= 8 else 2
    name = "jpeg_read_scanlines" if size == 1 else f"jpeg{12 if precision <= 12 else 16}_read_scanlines"
    read = getattr(library, name)
    pixels = ctypes.create_string_buffer(rows * columns * samples * size)
    start, line = ctypes.addressof(pixels), columns * samples * size
    row = ctypes.c_void_p()
    for number in range(rows):
        row.value = start + number * line
        if read(state, ctypes.byref(row), 1) != 1:
            raise ValueError
    library.jpeg_destroy_decompress(state)
    if lossless and ctypes.c_long.from_buffer(errors, _WARNINGS).value:
        raise ValueError  # it made up pixels for the damaged ones
    return (rows, columns, samples, size, 0), pixels.raw


def _jpeg_ls(data: bytes) -> Found:
    import _CharLS  # of pyjpegls

    header = _CharLS.read_header(data)
    rows, columns, samples = header["height"], header["width"], header["components"]
    if rows * columns * samples > _MAX_SAMPLES:
        raise ValueError
    size = 1 if header["bits_per_sample"] <= 8 else 2
    planes = int(samples > 1 and header["interleave_mode"] == 0)
    return (rows, columns, samples, size, planes), bytes(_CharLS.decode_from_buffer(data))


def _jpeg_2000(data: bytes) -> Found:
    from PIL import Image

    image = Image.open(io.BytesIO(data), formats=("JPEG2000",))
    samples = len(image.getbands())
    if image.width * image.height * samples > _MAX_SAMPLES:
        raise ValueError
    size = 2 if image.mode.startswith("I") else 1
    return (image.height, image.width, samples, size, 0), image.tobytes()


if __name__ == "__main__":
    main()
