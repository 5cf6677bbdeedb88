"""DICOM made from real and drawn pixels: the grey values shown, what is refused, and what is kept quiet."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from classifier.bounds import ImageError
from classifier.decode import decode
from classifier.model import Model
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from support import ROOT

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
RAMP = np.arange(256 * 256).reshape(256, 256) % 256


def dicom(
    pixels: npt.NDArray[Any], syntax: UID = ExplicitVRLittleEndian, bits: int = 8, **fields: Any
) -> bytes:
    """A DICOM file of grey pixels, with header fields as given."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DIGITAL_X_RAY
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "secret-4711"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.min() < 0)
    kind = {(8, 0): "<u1", (16, 0): "<u2", (16, 1): "<i2"}[dataset.BitsAllocated, dataset.PixelRepresentation]
    dataset.PixelData = pixels.astype(kind).tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(kind.replace("<", ">")).tobytes()
    return written(dataset)


def written(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def shown(data: bytes) -> npt.NDArray[Any]:
    return np.asarray(decode(data))


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        decode(data)
    return error.value.code


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed(syntax: UID, bits: int) -> None:
    values = RAMP * (2**bits // 256)
    assert np.array_equal(shown(dicom(values, syntax, bits)), (values * (255 / (2**bits - 1))).round())


@pytest.mark.parametrize("bits", [8, 12])
def test_run_length_encoded(bits: int) -> None:
    plain = dicom(RAMP * (2**bits // 256), bits=bits)
    dataset = dcmread(io.BytesIO(plain))
    dataset.compress(RLELossless)
    assert np.array_equal(shown(written(dataset)), shown(plain))


@pytest.mark.parametrize(
    ("syntax", "options"),
    [
        (JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": True}),
        (JPEGBaseline8Bit, {"format": "JPEG", "quality": 100}),
    ],
)
def test_jpeg(syntax: UID, options: dict[str, Any]) -> None:
    smooth = np.add.outer(np.arange(256), np.arange(256)) // 2
    file = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(file, **options)
    dataset = dcmread(io.BytesIO(dicom(smooth)))
    dataset.PixelData = encapsulate([file.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.abs(shown(written(dataset)).astype(int) - smooth).max() <= (
        2 if syntax == JPEGBaseline8Bit else 0
    )


def test_eight_bits_stay_as_they_are() -> None:
    assert np.array_equal(shown(dicom(RAMP)), RAMP)


def test_monochrome1_is_inverted() -> None:
    assert np.array_equal(shown(dicom(255 - RAMP, PhotometricInterpretation="MONOCHROME1")), RAMP)


def test_twelve_bits_in_sixteen_are_scaled_by_the_stored_bits() -> None:
    assert shown(dicom(np.full((64, 64), 4095), bits=12)).max() == 255
    assert shown(dicom(np.full((64, 64), 2048), bits=12)).max() == 128


def test_signed_pixels_and_rescale() -> None:
    values = RAMP * 4 - 512
    data = dicom(values, bits=10, RescaleSlope=2, RescaleIntercept=7)
    assert np.array_equal(shown(data), (RAMP * 4 * (255 / 1023)).round())


def test_a_negative_slope_turns_the_grey_values_round() -> None:
    plain = shown(dicom(RAMP, RescaleSlope=-1, RescaleIntercept=255))
    assert np.array_equal(plain, 255 - RAMP)
    windowed = shown(dicom(RAMP, RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256))
    assert np.array_equal(windowed, 255 - RAMP)


@pytest.mark.parametrize(("function", "half"), [("LINEAR", 127), ("LINEAR_EXACT", 128), ("SIGMOID", 128)])
def test_windows(function: str, half: int) -> None:
    values = np.array([[0, 1000, 2000, 3000, 4095] * 20] * 100)
    data = dicom(values, bits=12, WindowCenter=2000, WindowWidth=2000, VOILUTFunction=function)
    grey = shown(data)[0, :5].tolist()
    assert abs(grey[2] - half) <= 1
    if function != "SIGMOID":
        assert grey[:2] == [0, 0]
        assert grey[3:] == [255, 255]


def test_the_first_of_several_windows() -> None:
    one = dicom(RAMP, WindowCenter=100, WindowWidth=50)
    two = dicom(RAMP, WindowCenter=[100, 9], WindowWidth=[50, 9])
    assert np.array_equal(shown(one), shown(two))


def test_a_voi_table() -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.LUTData = bytes(range(255, -1, -1))
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "OW"
    table.LUTData = np.arange(255, -1, -1, dtype="<u2").tobytes()
    assert np.array_equal(shown(dicom(RAMP, VOILUTSequence=Sequence([table]))), 255 - RAMP)


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(polarity: str) -> None:
    values = np.full((64, 64), 1000)
    values[:, :8] = 4000
    values[:, -8:] = 4003
    data = dicom(
        values,
        bits=12,
        PhotometricInterpretation=polarity,
        PixelPaddingValue=4003,
        PixelPaddingRangeLimit=3999,
    )
    grey = shown(data)
    assert grey[:, :8].max() == grey[:, -8:].max() == 0
    assert grey[:, 8:-8].min() > 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"NumberOfFrames": 2}, "DICOM_MULTI_FRAME"),
        ({"PhotometricInterpretation": "RGB"}, "DICOM_PHOTOMETRIC"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "DICOM_PHOTOMETRIC"),
        ({"BitsAllocated": 32}, "DICOM_NO_PIXELS"),
        ({"Rows": 60_000, "Columns": 60_000}, "IMAGE_TOO_LARGE"),
        ({"Rows": 1, "Columns": 1}, "IMAGE_TOO_SMALL"),
        ({"Rows": 100, "Columns": 20_000}, "IMAGE_TOO_NARROW"),
        ({"Rows": 300}, "IMAGE_CORRUPT"),
        ({"PixelData": b"\0\0"}, "IMAGE_CORRUPT"),
        ({"BitsStored": 0}, "DICOM_HEADER"),
        ({"BitsStored": 28}, "DICOM_HEADER"),
    ],
)
def test_refused_by_name(fields: dict[str, Any], code: str) -> None:
    assert refused(dicom(RAMP, **fields)) == code


def test_no_pixels() -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DIGITAL_X_RAY, UID("1.2.3")
    assert refused(written(dataset)) == "DICOM_NO_PIXELS"


def test_a_transfer_syntax_that_is_not_decoded() -> None:
    data = dicom(RAMP).replace(
        ExplicitVRLittleEndian.encode() + b"\0", MPEG2MPML.encode()[:20].ljust(20, b"\0")
    )
    assert refused(data) == "DICOM_TRANSFER_SYNTAX"


@pytest.mark.parametrize(
    "fields",
    [
        {"RescaleSlope": 0, "RescaleIntercept": 5},
        {"RescaleSlope": 2},
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": 1, "WindowWidth": 0.5},
        {"HighBit": 3},
    ],
)
def test_what_is_senseless_is_as_if_absent(fields: dict[str, Any]) -> None:
    assert np.array_equal(shown(dicom(RAMP, **fields)), RAMP)


def test_the_upper_bits_of_a_word() -> None:
    """High Bit says where the value lies. Overlays may lie in the other bits."""
    values = RAMP * 16
    assert np.array_equal(shown(dicom(values << 4 | 9, bits=12, HighBit=15)), shown(dicom(values, bits=12)))
    assert np.array_equal(shown(dicom(values | 0x5000, bits=12)), shown(dicom(values, bits=12)))


def test_a_decimal_comma() -> None:
    point = dicom(RAMP, WindowCenter="100.5", WindowWidth="50")
    assert np.array_equal(shown(point.replace(b"100.5", b"100,5")), shown(point))


def test_a_table_whose_entries_are_narrower_than_declared() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], (np.arange(256) * 16).astype("<u2").tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    assert np.abs(shown(dicom(RAMP, VOILUTSequence=Sequence([table]))).astype(int) - RAMP).max() <= 1


def test_twelve_bits_that_declare_sixteen() -> None:
    """As for PNGs: the bundle's bit depth says what they are."""
    data = dicom(RAMP * 16, bits=12, BitsStored=16, HighBit=15)
    assert refused(data) == "BIT_DEPTH_UNKNOWN"
    assert np.array_equal(np.asarray(decode(data, bit_depth=12)), shown(dicom(RAMP * 16, bits=12)))
    windowed = dicom(RAMP * 16, bits=12, BitsStored=16, HighBit=15, WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(shown(windowed), np.asarray(decode(windowed, bit_depth=12)))
    padded = dicom(np.where(RAMP == 0, 65_535, RAMP * 16), bits=16, PixelPaddingValue=65_535)
    assert refused(padded) == "BIT_DEPTH_UNKNOWN"


@pytest.mark.parametrize("start", [128 + 4, 0])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_preamble_or_transfer_syntax(syntax: UID, start: int) -> None:
    """Without both, only the elements are left: the encoding shows in the first of them."""
    whole = dicom(RAMP, syntax)
    elements = whole[whole.index(b"\x08\0\x16\0" if syntax != ExplicitVRBigEndian else b"\0\x08\0\x16") :]
    assert np.array_equal(shown(elements if start == 0 else whole[start:]), RAMP)
    kept = bytes(128) + b"DICM" + b"\x02\0\x02\0UI\x02\x001\0"
    assert np.array_equal(shown(kept + elements), RAMP)


def test_a_deflated_file() -> None:
    assert np.array_equal(shown(dicom(RAMP, DeflatedExplicitVRLittleEndian)), RAMP)
    huge = np.zeros((9000, 9000), np.uint8)
    data = dicom(huge, DeflatedExplicitVRLittleEndian)
    assert len(data) < 100_000
    assert refused(data) == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("planar", [0, 1])
def test_grey_that_is_stored_as_rgb(planar: int) -> None:
    planes = np.stack([RAMP] * 3, 0 if planar else -1).astype(np.uint8)
    fields: dict[str, Any] = {
        "PhotometricInterpretation": "RGB",
        "SamplesPerPixel": 3,
        "PlanarConfiguration": planar,
    }
    assert np.array_equal(shown(dicom(RAMP, **fields, PixelData=planes.tobytes())), RAMP)
    coloured = bytes([planes.flat[0] ^ 1]) + planes.tobytes()[1:]
    assert refused(dicom(RAMP, **fields, PixelData=coloured)) == "DICOM_PHOTOMETRIC"


@pytest.mark.parametrize(
    "class_",
    [
        "1.2.840.10008.5.1.4.1.1.88.11",
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.5.1.4.1.1.104.1",
        "1.2.840.10008.5.1.4.1.1.11.1",
    ],
)
def test_reports_directories_and_documents(class_: str) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(class_), UID("1.2.3")
    assert refused(written(dataset)) == "DICOM_NOT_AN_IMAGE"


def test_cut_short_anywhere() -> None:
    data = dicom(RAMP)
    for end in (132, 150, 200, 300, 400, 600, len(data) - 2):
        assert refused(data[:end]) in ("IMAGE_CORRUPT", "DICOM_TRANSFER_SYNTAX", "DICOM_NO_PIXELS")


def test_no_header_value_is_said(caplog: Any, capsys: Any, recwarn: Any) -> None:
    odd = dicom(RAMP, StudyDate="not a date secret-4711", WindowCenter=128, WindowWidth=256)
    broken = dicom(RAMP, PixelData=b"\0\0")
    recwarn.clear()
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        shown(odd)
        refused(broken)
    said = caplog.text + "".join(capsys.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    assert "secret" not in said
    assert "Doe" not in said


def test_an_x_ray_scores_the_same_as_a_png_and_as_dicom(xrays: list[Path]) -> None:
    model = Model(ROOT / "containers" / "classifier" / "model")

    def score(data: bytes) -> float:
        return float(model.score([model.prepare(data)[0]])[0]["abnormal"])

    for path in xrays[:8]:
        grey = np.asarray(Image.open(path).convert("L"))
        expected = score(path.read_bytes())
        assert score(dicom(grey)) == expected
        assert score(dicom(255 - grey, PhotometricInterpretation="MONOCHROME1")) == expected
        twelve = dicom(grey * np.uint16(16), bits=12, WindowCenter=2040.5, WindowWidth=4081)
        assert abs(score(twelve) - expected) <= 0.01
