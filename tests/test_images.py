"""From file bytes to pixels: what decodes, what is refused, and the pixels against torchvision's rules."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from classifier.images import ImageError, Pixels, Preprocessing, decode
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
    @pytest.mark.parametrize("size", [(300, 400), (401, 300), (1024, 1024), (256, 256), (100, 130)])
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
