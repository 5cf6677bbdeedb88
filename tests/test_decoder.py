"""Compressed DICOM: what independent encoders make of an X-ray; decoders that crash, hang or take memory."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from classifier import decoder
from classifier.bounds import ImageError
from classifier.decode import decode
from PIL import Image

from reliability import dicom
from reliability.bad_file import drawing

needs_dcmtk = pytest.mark.skipif(
    not shutil.which("dcmcjpeg"), reason="needs dcmcjpeg (Debian's dcmtk) to encode"
)
GREY = np.asarray(drawing()).astype(int)
PLAIN = {
    "8 bits": dicom.encode_file(dicom.x_ray_elements(GREY)),
    "12 bits": dicom.encode_file(dicom.x_ray_elements(GREY * 16 + 7, 12)),
    "16 bits": dicom.encode_file(dicom.x_ray_elements(GREY * 257, 16)),
    "12 bits, signed": dicom.encode_file(dicom.x_ray_elements(GREY * 16 - 2048, 12)),
}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[decoder._Child]]:
    """The idle children: none yet. They end with the test."""
    found: list[decoder._Child] = []
    monkeypatch.setattr(decoder, "_idle", found)
    yield found
    for child in found:
        child.end()


def encoded(data: bytes, folder: Path, *command: str) -> bytes:
    """The file, compressed by a program of dcmtk."""
    (folder / "plain.dcm").write_bytes(data)
    files = [str(folder / "plain.dcm"), str(folder / "compressed.dcm")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return (folder / "compressed.dcm").read_bytes()


def apart(one: bytes, two: bytes) -> int:
    """How many grey levels two files are apart, at most."""
    first, second = (np.asarray(decode(data)).astype(int) for data in (one, two))
    return int(np.abs(first - second).max())


@needs_dcmtk
@pytest.mark.parametrize("pixels", list(PLAIN))
@pytest.mark.parametrize(
    ("command", "syntax", "levels"),
    [
        ("dcmcjpeg +el", "57", 0),
        ("dcmcjpeg +e1", "70", 0),
        ("dcmcjpeg +eb +q 100", "50", 8),
        ("dcmcjpeg +ee +q 100", "51", 8),
        ("dcmcjpls +el", "80", 0),
        ("dcmcjpls +en", "81", 2),
        ("dcmcrle", "5", 0),
    ],
)
def test_what_dcmtk_compresses(pixels: str, command: str, syntax: str, levels: int, tmp_path: Path) -> None:
    if (pixels, syntax) == ("12 bits, signed", "81"):
        pytest.skip("dcmcjpls refuses near-lossless signed pixels")
    data = encoded(PLAIN[pixels], tmp_path, *command.split())
    if pixels == "16 bits" and syntax in ("50", "51"):  # it scales them to 12 bits or 8
        assert apart(data, PLAIN[pixels]) <= levels
        return
    assert f"1.2.840.10008.1.2.{'' if syntax == '5' else '4.'}{syntax}".encode() in data
    assert apart(data, PLAIN[pixels]) <= levels


def lossless_jpeg(folder: Path) -> bytes:
    return encoded(PLAIN["12 bits"], folder, "dcmcjpeg", "+e1")


@needs_dcmtk
def test_a_damaged_frame_is_corrupt_and_the_next_one_is_not(tmp_path: Path) -> None:
    data = lossless_jpeg(tmp_path)
    for place in range(len(data) // 2, len(data) - 100, len(data) // 8):
        damaged = data[:place] + b"\xff\xd9" * 20 + data[place + 40 :]
        with pytest.raises(ImageError) as error:
            decode(damaged)
        assert error.value.code == "IMAGE_CORRUPT"
        assert apart(data, PLAIN["12 bits"]) == 0


@needs_dcmtk
def test_a_child_that_was_killed_is_replaced(children: list[decoder._Child], tmp_path: Path) -> None:
    data = lossless_jpeg(tmp_path)
    assert apart(data, PLAIN["12 bits"]) == 0
    os.kill(children[0]._process.pid, signal.SIGKILL)
    assert apart(data, PLAIN["12 bits"]) == 0


@needs_dcmtk
def test_a_child_that_hangs_costs_its_image_only(
    children: list[decoder._Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lossless_jpeg(tmp_path)
    assert apart(data, PLAIN["12 bits"]) == 0
    monkeypatch.setattr(decoder, "SECONDS", 0.2)
    os.kill(children[0]._process.pid, signal.SIGSTOP)
    with pytest.raises(ImageError):
        decode(data)
    monkeypatch.setattr(decoder, "SECONDS", 8)
    assert apart(data, PLAIN["12 bits"]) == 0


@needs_dcmtk
@pytest.mark.usefixtures("children")
def test_a_child_without_memory_costs_its_image_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MEMORY", 60 * 2**20)
    large = dicom.encode_file(dicom.x_ray_elements(np.resize(GREY, (3000, 3000)) * 16, 12))
    data = encoded(large, tmp_path, "dcmcjpeg", "+e1")
    with pytest.raises(ImageError) as error:
        decode(data)
    assert error.value.code == "IMAGE_CORRUPT"
    monkeypatch.setattr(decoder, "MEMORY", 2**30)
    assert apart(data, large) == 0


@needs_dcmtk
@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of a process from /proc")
def test_a_child_has_no_credentials(
    children: list[decoder._Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    decode(lossless_jpeg(tmp_path))
    (child,) = children
    variables = Path(f"/proc/{child._process.pid}/environ").read_text().split("\0")
    assert any(variable.startswith("PYTHONPATH=") for variable in variables)
    assert not [variable for variable in variables if variable.startswith("AWS_")]


@needs_dcmtk
def test_threads_have_a_child_each(children: list[decoder._Child], tmp_path: Path) -> None:
    data = lossless_jpeg(tmp_path)
    expected = decode(PLAIN["12 bits"]).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert {image.tobytes() for image in pool.map(decode, [data] * 12)} == {expected}
    assert 1 <= len(children) <= 4


@pytest.mark.usefixtures("children")
def test_a_child_that_does_not_start_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    header = dicom.without(dicom.x_ray_elements(GREY, 12), dicom.PIXELS)
    frame = b"\xff\xd8\xff\xc3\x00\x0b\x0c" + bytes(20)
    with pytest.raises(decoder.DecoderUnavailable):
        decode(dicom.encode_file(header, dicom.JPEG_LOSSLESS, tail=dicom.encapsulate(frame)))


def test_jpeg_2000_of_sixteen_bits() -> None:
    file = io.BytesIO()
    Image.fromarray((GREY * 257).astype(np.uint16)).save(file, "JPEG2000", no_jp2=True)
    header = dicom.without(dicom.x_ray_elements(GREY * 257, 16), dicom.PIXELS)
    data = dicom.encode_file(header, dicom.J2K, tail=dicom.encapsulate(file.getvalue()))
    assert apart(data, PLAIN["16 bits"]) == 0


@pytest.mark.parametrize(("values", "plain", "bits"), [(GREY, "8 bits", 8), (GREY * 257, "16 bits", 16)])
@pytest.mark.parametrize("syntax", ["201", "202", "203"])
def test_htj2k(values: np.ndarray, plain: str, bits: int, syntax: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs to encode HTJ2K")
    frame = imagecodecs.htj2k_encode(values.astype(f"u{bits // 8}"), reversible=True)
    header = dicom.without(dicom.x_ray_elements(values, bits), dicom.PIXELS)
    data = dicom.encode_file(header, f"1.2.840.10008.1.2.4.{syntax}", tail=dicom.encapsulate(frame))
    assert apart(data, PLAIN[plain]) == 0
