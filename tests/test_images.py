"""From file bytes to pixels: what decodes, what is refused, and the pixels against torchvision's rules."""

import io
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from classifier import decode as decoding
from classifier.bounds import ImageError
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing
from classifier.resampling import resize
from PIL import Image
from support import image_bytes, png

PREPROCESSING = Preprocessing(channels=3, resize=256, crop=224)


def nih(data: bytes) -> Pixels:
    return PREPROCESSING(decode(data))


def refused(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as error:
        decode(data, **options)
    return error.value.code


def sixteen_bits(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


class TestRefused:
    def test_no_bytes(self) -> None:
        assert refused(b"") == "IMAGE_EMPTY"

    @pytest.mark.parametrize(
        "data", [b"hello, this is text", b"%PDF-1.7", image_bytes(fmt="GIF"), b"\x89PNG"]
    )
    def test_other_formats(self, data: bytes) -> None:
        assert refused(data) == "NOT_AN_IMAGE"

    @pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
    def test_cut_short_anywhere(self, fmt: str) -> None:
        data = image_bytes(fmt=fmt)
        for end in (10, 30, 200, len(data) // 2, len(data) - 200):
            assert refused(data[:end]) == "IMAGE_CORRUPT"

    def test_a_flipped_bit_anywhere_in_a_pngs_data(self) -> None:
        data = image_bytes()
        for place in range(100, len(data) - 30, len(data) // 7):
            damaged = bytearray(data)
            damaged[place] ^= 1
            assert refused(bytes(damaged)) == "IMAGE_CORRUPT"

    @pytest.mark.parametrize(
        ("width", "height", "code"),
        [
            (1, 1, "IMAGE_TOO_SMALL"),
            (1, 20_000, "IMAGE_TOO_SMALL"),
            (63, 64, "IMAGE_TOO_SMALL"),
            (64, 257, "IMAGE_TOO_NARROW"),
            (257, 64, "IMAGE_TOO_NARROW"),
            (10_000, 5_001, "IMAGE_TOO_LARGE"),
            (60_000, 60_000, "IMAGE_TOO_LARGE"),
            (0, 100, "IMAGE_CORRUPT"),
        ],
    )
    def test_sizes_by_the_header_alone(self, width: int, height: int, code: str) -> None:
        assert refused(png(width, height)) == code

    def test_a_header_within_limits_is_decoded(self) -> None:
        assert refused(png(10_000, 5_000, data=zlib.compress(b""))) == "IMAGE_CORRUPT"

    @pytest.mark.parametrize("size", [(64, 64), (64, 256), (256, 64)])
    def test_the_limits_themselves_pass(self, size: tuple[int, int]) -> None:
        assert nih(image_bytes(size)).shape == (3, 224, 224)


class TestModes:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
    def test_png_modes(self, mode: str) -> None:
        assert decode(image_bytes(mode=mode)).mode == ("RGB" if mode in ("RGB", "RGBA", "P") else "L")

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_jpeg_modes(self, mode: str) -> None:
        assert decode(image_bytes(mode=mode, fmt="JPEG")).mode == ("L" if mode == "L" else "RGB")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
    def test_grey_in_any_mode_has_the_same_pixels(self, mode: str) -> None:
        grey = Image.open(io.BytesIO(image_bytes()))
        file = io.BytesIO()
        grey.convert(mode).save(file, "PNG")
        assert np.array_equal(nih(file.getvalue()), nih(image_bytes()))

    def test_alpha_is_dropped_not_blended(self) -> None:
        image = Image.open(io.BytesIO(image_bytes(mode="RGB")))
        plain, transparent = io.BytesIO(), io.BytesIO()
        image.save(plain, "PNG")
        image.putalpha(0)
        image.save(transparent, "PNG")
        assert np.array_equal(nih(transparent.getvalue()), nih(plain.getvalue()))

    def test_exif_rotation_is_undone(self) -> None:
        image = Image.open(io.BytesIO(image_bytes((128, 256))))
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        image.save(file, "PNG", exif=exif)
        assert np.array_equal(np.asarray(decode(file.getvalue())), np.rot90(np.asarray(image), -1))


@contextmanager
def pillow_alone() -> Iterator[None]:
    with mock.patch.object(decoding, "_decode_plain_png", return_value=None):
        yield


def verdict(data: bytes) -> str | tuple[str, bytes]:
    """The error code, or the mode and the pixels."""
    try:
        image = decode(data)
    except ImageError as error:
        return error.code
    return image.mode, image.tobytes()


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """The PNG with one more chunk in front of its pixels."""
    place = data.index(b"IDAT") - 4
    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return data[:place] + chunk + data[place:]


class TestPlainPng:
    """The fast way agrees with Pillow about every file, and is taken for the files there are many of."""

    def test_real_x_rays_take_it(self, xrays: list[Path]) -> None:
        for path in xrays:
            fast = decoding._decode_plain_png(path.read_bytes())
            assert fast is not None
            assert fast.tobytes() == Image.open(path).tobytes()

    @pytest.mark.parametrize(
        ("data", "plain"),
        [
            (image_bytes(mode="L"), True),
            (image_bytes(mode="RGB"), True),
            (image_bytes(mode="RGBA"), True),
            (with_chunk(image_bytes(), b"tIME", b"\x07\xe8\x01\x01\x00\x00\x00"), True),
            (with_chunk(image_bytes(), b"gAMA", (45455).to_bytes(4, "big")), True),
            (image_bytes(mode="1"), False),
            (image_bytes(mode="P"), False),
            (image_bytes(mode="LA"), False),
            (image_bytes(fmt="JPEG"), False),
            (sixteen_bits(np.full((256, 256), 60_000)), False),
            (with_chunk(image_bytes(), b"tRNS", b"\x00\x07"), False),
            (with_chunk(image_bytes(mode="RGB"), b"tRNS", b"\x00\x07" * 3), False),
            (with_chunk(image_bytes(), b"eXIf", b"MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"), False),
            (with_chunk(image_bytes(), b"tEXt", b"Raw profile type exif\x00"), False),
            (with_chunk(image_bytes(), b"IHDR", image_bytes()[16:29]), False),
            (image_bytes() + b"\x00", False),
            (image_bytes() + image_bytes()[8:], False),
        ],
    )
    def test_of_any_kind_the_pixels_are_pillows(self, data: bytes, plain: bool) -> None:
        ours = verdict(data)
        assert (decoding._decode_plain_png(data) is not None) == plain
        with pillow_alone():
            assert ours == verdict(data)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    @pytest.mark.parametrize("mended", [False, True], ids=["as it is", "checksums mended"])
    def test_of_damage_the_verdict_is_pillows(self, mode: str, mended: bool) -> None:
        """But for zlib's own checksum, which kornia-rs passes over: a chunk's tells of any damage since."""
        rng = random.Random(0)
        whole = image_bytes((70, 90), mode)
        seen = set()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 1, 2, 8))):
                damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
            data = bytes(damaged[: rng.choice((len(damaged), rng.randrange(8, len(damaged))))])
            data = checksums_mended(data) if mended else data
            ours = verdict(data)
            with pillow_alone():
                pillows = verdict(data)
            assert ours == pillows or (mended and inflates_but_for_its_checksum(data))
            seen.add(ours if isinstance(ours, str) else "decoded")
        assert seen >= {"IMAGE_CORRUPT", *(["decoded"] if mended else [])}


def inflates_but_for_its_checksum(data: bytes) -> bool:
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    with pytest.raises(zlib.error, match="incorrect data check"):
        zlib.decompress(data[start + 4 : start + 4 + length])
    return True


def checksums_mended(data: bytes) -> bytes:
    """The PNG with every chunk's checksum as it should be, so that damage gets as far as the decoder."""
    mended, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(mended)


class TestSixteenBits:
    def test_the_full_range_is_scaled_not_clipped(self) -> None:
        eight = np.arange(256 * 256).reshape(256, 256) % 256
        assert np.array_equal(np.asarray(decode(sixteen_bits(eight * 257))), eight)

    @pytest.mark.parametrize("top", [0, 255, 4095])
    def test_what_may_be_twelve_bits_or_fewer_is_refused(self, top: int) -> None:
        assert refused(sixteen_bits(np.full((256, 256), top))) == "BIT_DEPTH_UNKNOWN"

    def test_unless_the_model_names_the_depth(self) -> None:
        values = np.full((256, 256), 4095)
        values[0, 0] = 0
        assert np.asarray(decode(sixteen_bits(values), bit_depth=12))[0, :2].tolist() == [0, 255]


class TestPixels:
    @pytest.mark.parametrize(
        "size", [(300, 400), (401, 300), (1024, 1024), (2048, 512), (640, 640), (256, 256), (100, 130)]
    )
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_short_side_256_bilinear_then_the_centre(self, size: tuple[int, int], mode: str) -> None:
        """As torchvision's Resize(256) and CenterCrop(224) reckon sizes and margins."""
        data = image_bytes(size, mode)
        width, height = size
        target = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
        resized = Image.open(io.BytesIO(data)).convert("RGB").resize(target, Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2.0) for side in target)
        expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
        assert np.array_equal(nih(data), expected)

    def test_real_x_rays_some_of_them_rgba(self, xrays: list[Path]) -> None:
        for path in xrays:
            image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
            expected = np.asarray(image.crop((16, 16, 240, 240))).transpose(2, 0, 1)
            assert np.array_equal(nih(path.read_bytes()), expected)

    def test_one_channel(self) -> None:
        one = Preprocessing(channels=1, resize=64, crop=64)
        assert one(decode(image_bytes(mode="RGB"))).shape == (1, 64, 64)

    def test_a_square_is_cut_before_resizing(self) -> None:
        wide = decode(image_bytes((300, 200)))
        square = Preprocessing(channels=1, resize=64, crop=64, square=True)
        assert np.array_equal(square(wide), square(wide.crop((50, 0, 250, 200))))

    def test_gaussian_resampling_keeps_fractions(self) -> None:
        xrv = Preprocessing(channels=1, resize=224, crop=224, square=True, resampling="gaussian")
        image = decode(image_bytes((512, 600)))
        pixels = xrv(image)
        assert pixels.dtype == np.float32
        assert np.array_equal(pixels[0], resize(np.asarray(image)[44:556], 224))

    @pytest.mark.parametrize(
        "fields",
        [
            {"channels": 2, "resize": 256, "crop": 224},
            {"channels": 3, "resize": 200, "crop": 224},
            {"channels": 3, "resize": 256, "crop": 0},
            {"channels": 3, "resize": 256, "crop": 224, "bit_depth": 8},
            {"channels": 3, "resize": 256, "crop": 224, "square": True, "resampling": "gaussian"},
            {"channels": 1, "resize": 256, "crop": 224, "resampling": "bicubic"},
        ],
    )
    def test_a_bundles_impossible_wishes_are_refused(self, fields: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="channels is 1 or 3"):
            Preprocessing.from_json(fields)
