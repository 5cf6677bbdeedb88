"""The grey values of DICOM files are those of dcmtk's `dcm2pnm`, at most one level apart."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pydicom.data
import pytest
from classifier.decode import decode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reliability import dicom

needs_dcmtk = pytest.mark.skipif(
    not shutil.which("dcm2pnm"), reason="needs dcm2pnm (Debian's package dcmtk) to compare with"
)
FUNCTION, SHAPE, HIGH = (0x28, 0x1056), (0x2050, 0x20), (0x28, 0x102)
MODALITY, VOI = (0x28, 0x3000), (0x28, 0x3010)


def oracle(data: bytes, folder: Path, *options: str) -> npt.NDArray[np.int_]:
    """The grey values of dcm2pnm, without overlays; the range of a table is that of its entries, as here."""
    (folder / "x.dcm").write_bytes(data)
    command = ["dcm2pnm", "-O", "+Mm", "+Mv", *options, str(folder / "x.dcm")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("L")).astype(int)


def shown(data: bytes) -> npt.NDArray[np.int_]:
    return np.asarray(decode(data)).astype(int)


def apart(one: npt.NDArray[np.int_], two: npt.NDArray[np.int_]) -> int:
    """How many grey levels two images are apart, at most."""
    return int(np.abs(one - two).max())


@st.composite
def tables(draw: st.DrawFn, lowest: int, highest: int, order: str) -> bytes:
    """An item with a lookup table that starts in the range of its input: smooth, as those of real files."""
    count = draw(st.sampled_from([16, 255, 256, 1000, 4096, 65_536]))
    first = draw(
        st.integers(max(lowest, -32_768), max(min(highest, 65_535 if lowest >= 0 else 32_767), lowest))
    )
    bits = draw(st.integers(8, 16))
    entries = np.linspace(0, 2**bits - 1, count).round().astype(int)
    if draw(st.booleans()):
        entries = entries[::-1]
    packed = bits == 8 and count % 2 == 0 and draw(st.booleans())
    declared = 8 if packed else draw(st.sampled_from([bits, 16]))
    words = entries[::2] | entries[1::2] << 8 if packed else entries
    descriptor: dicom.Value = [count & 0xFFFF, first & 0xFFFF, declared]
    implicit = order == "i"
    order = "<" if implicit else order
    fields = dicom.encode_element((0x28, 0x3002), "US", descriptor, order=order, implicit=implicit)
    data = words.astype(f"{order}u2").tobytes()
    fields += dicom.encode_element((0x28, 0x3006), "OW", data, order=order, implicit=implicit)
    return (
        np.array([0xFFFE, 0xE000], f"{order}u2").tobytes()
        + np.array([len(fields)], f"{order}u4").tobytes()
        + fields
    )


@st.composite
def headers(draw: st.DrawFn) -> tuple[dicom.Elements, str, list[str]]:
    """A header without pixels, a transfer syntax, and the options of dcm2pnm that the header asks for."""
    allocated = draw(st.sampled_from([8, 16, 16]))
    stored = draw(st.integers(8, allocated))  # dcm2pnm does not reach black if it inverts fewer bits
    high = draw(st.integers(stored - 1, allocated - 1))
    signed = draw(st.booleans())
    syntax = draw(st.sampled_from([dicom.LITTLE, dicom.IMPLICIT, dicom.BIG]))
    order = ">" if syntax == dicom.BIG else "<"
    elements = dicom.without(dicom.x_ray_elements(every_word(allocated), allocated), dicom.PIXELS) | {
        dicom.STORED: ("US", stored),
        HIGH: ("US", high),
        dicom.SIGNED: ("US", int(signed)),
        dicom.PHOTOMETRIC: ("CS", draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))),
    }
    shape = draw(st.sampled_from([None, "IDENTITY", "INVERSE", ""]))
    if shape is not None:
        elements[SHAPE] = ("CS", shape)
    low, top = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    modality = draw(st.sampled_from(["none", "rescale", "table", "senseless"]))
    if modality == "rescale":
        # Whole numbers: dcm2pnm rounds what it has rescaled.
        slope = draw(st.sampled_from(["1", "2", "-1", " 3 ", "16"]))
        intercept = draw(st.sampled_from(["0", "-1024", "7", "1000"]))
        elements |= {dicom.SLOPE: ("DS", slope), dicom.INTERCEPT: ("DS", intercept)}
        low, top = sorted(int(value * float(slope) + float(intercept)) for value in (low, top))
    elif modality == "table":
        elements[MODALITY] = ("SQ", draw(tables(low, top, "i" if syntax == dicom.IMPLICIT else order)))
        low, top = 0, 255
    elif modality == "senseless":
        elements |= draw(
            st.sampled_from(
                [
                    {dicom.SLOPE: ("DS", "")},
                    {dicom.SLOPE: ("DS", "0"), dicom.INTERCEPT: ("DS", "5")},
                    {dicom.SLOPE: ("DS", ""), dicom.INTERCEPT: ("DS", "5")},
                ]
            )
        )
    options: list[str] = []
    voi = draw(st.sampled_from(["none", "window", "window", "table", "senseless"]))
    if voi == "window":
        centre = draw(st.integers(low, top)) + draw(st.sampled_from([0, 0.5]))
        function = draw(st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID", "", "CUBIC"]))
        width = draw(st.integers(1, 2 * (top - low) + 2)) + draw(st.sampled_from([0, 0.25]))
        more = draw(st.sampled_from(["", "\\9"]))
        elements |= {dicom.CENTRE: ("DS", f"{centre}{more}"), dicom.WIDTH: ("DS", f"{width}{more}")}
        if function is not None:
            elements[FUNCTION] = ("CS", function)
        # dcm2pnm has no LINEAR_EXACT, which is LINEAR of another centre and width.
        options = ["+Wi", "1"]
        if function == "LINEAR_EXACT":
            options = ["+Ww", str(centre + 0.5), str(width + 1)]
    elif voi == "table":
        elements[VOI] = ("SQ", draw(tables(low, top, "i" if syntax == dicom.IMPLICIT else order)))
        options = ["+Wl", "1"]
    elif voi == "senseless":
        senseless = draw(st.sampled_from(["", "0", "-3", "0.5"]))
        elements |= {dicom.CENTRE: ("DS", "40"), dicom.WIDTH: ("DS", senseless)}
    return elements, syntax, options


def every_word(allocated: int) -> npt.NDArray[np.int_]:
    """Every word that a pixel can be, so that unused bits are set, too."""
    return np.resize(np.arange(2**allocated), (256, 256) if allocated == 16 else (64, 64))


def with_pixels(elements: dicom.Elements, syntax: str) -> bytes:
    (_, allocated) = elements[dicom.ALLOCATED]
    assert isinstance(allocated, int)
    words = every_word(allocated).astype(f"{'>' if syntax == dicom.BIG else '<'}u{allocated // 8}")
    pixels: dicom.Elements = {dicom.PIXELS: ("OB" if allocated == 8 else "OW", words.tobytes())}
    return dicom.encode_file(elements | pixels, syntax)


@needs_dcmtk
@pytest.mark.examples(few=60, many=300)
def test_any_header_is_shown_as_dcmtk_shows_it(
    examples: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dcmtk")

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(headers())
    def compare(drawn: tuple[dicom.Elements, str, Sequence[str]]) -> None:
        elements, syntax, options = drawn
        data = with_pixels(elements, syntax)
        difference = apart(shown(data), oracle(data, folder, *options))
        assert difference <= 1

    compare()


@pytest.mark.parametrize("slope", ["0.5", "0.000244", "1.25"])
def test_a_slope_with_a_fraction_is_as_one_without(slope: str) -> None:
    """A window that is rescaled with the values shows the same."""
    basis = dicom.x_ray_elements(every_word(16) // 16, 12) | {FUNCTION: ("CS", "LINEAR_EXACT")}

    def windowed(factor: float) -> npt.NDArray[np.int_]:
        window: dicom.Elements = {
            dicom.SLOPE: ("DS", str(factor)),
            dicom.INTERCEPT: ("DS", "0"),
            dicom.CENTRE: ("DS", f"{1500 * factor:.10g}"),
            dicom.WIDTH: ("DS", f"{1000 * factor:.10g}"),
        }
        return shown(dicom.encode_file(basis | window))

    assert apart(windowed(float(slope)), windowed(1)) <= 1


# pydicom's own files that are grey and of one frame, but that are refused here or by dcm2pnm.
BIT_DEPTH = "declares 16 bits, uses 12 or fewer, and has no window"
NO_JPEG_2000 = "dcmtk does not decode JPEG 2000"
EXCEPTIONS = {
    "CT_small.dcm": BIT_DEPTH,
    "JPEG2000.dcm": BIT_DEPTH,
    "JPEG2000-embedded-sequence-delimiter.dcm": "its codestream is damaged on purpose",
    "693_J2KI.dcm": NO_JPEG_2000,
    "J2K_pixelrep_mismatch.dcm": NO_JPEG_2000,
    "MR_small_jp2klossless.dcm": NO_JPEG_2000,
    "MR_truncated.dcm": "its pixels are cut short, which dcmtk refuses too",
    "badVR.dcm": "32 bits",
    "liver_1frame.dcm": "1 bit: a segmentation",
    "liver_expb_1frame.dcm": "1 bit: a segmentation",
    "rtdose_1frame.dcm": "32 bits: radiation doses",
    "rtdose_expb_1frame.dcm": "32 bits: radiation doses",
    "rtdose_rle_1frame.dcm": "32 bits: radiation doses",
}
DECOMPRESS = {"50": "dcmdjpeg", "51": "dcmdjpeg", "70": "dcmdjpeg", "80": "dcmdjpls", "81": "dcmdjpls"}


@needs_dcmtk
def test_pydicoms_own_grey_files_agree_or_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifier.bounds.MIN_SIDE", 1)
    monkeypatch.setattr("classifier.bounds.MAX_ASPECT", 10)
    apart_by_name = {}
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm")):
        dataset = pydicom.dcmread(path, force=True)
        grey = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
        if (
            not grey
            or "PixelData" not in dataset
            or str(dataset.get("NumberOfFrames") or 1) not in ("1", "1A")
        ):
            continue
        options = ["+Wi", "1"] if dataset.get("WindowCenter") is not None else []
        plain = path
        if command := DECOMPRESS.get(str(dataset.file_meta.TransferSyntaxUID).rpartition(".")[2]):
            plain = tmp_path / "plain.dcm"
            subprocess.run([command, str(path), str(plain)], check=True, capture_output=True)
        if path.name not in EXCEPTIONS:
            expected = oracle(plain.read_bytes(), tmp_path, *options)
            apart_by_name[path.name] = apart(shown(path.read_bytes()), expected)
    assert len(apart_by_name) >= 10
    assert {name: levels for name, levels in apart_by_name.items() if levels > 1} == {}
