"""The files that a verification uploads: drawn X-rays, and files that no model can score."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from runs.codes import ErrorCode

from cxr.phantoms import draw_phantom

SIDE = 1024  # pixels, as the images of ChestX-ray14
DISTINCT = 8  # drawings; the other files are links to them
NOISE = 3  # grey values; without it a PNG has a tenth of the bytes of an X-ray
GOOD, BAD, MISSING = "images/", "bad/", "bad/missing.png"


def write_files(folder: Path, images: int) -> Mapping[str, ErrorCode]:
    """Write so many drawn X-rays into `images/`, one of them JPEG and one DICOM, and bad files into `bad/`.

    Returns the code of each bad file by its path, and of one more path that has no file.
    """
    (folder / GOOD).mkdir()
    (folder / BAD).mkdir()
    drawn: list[Path] = []
    for number in range(images):
        suffix = {0: "jpg", 1: "dcm"}.get(number, "png")
        path = folder / GOOD / f"{number:05d}.{suffix}"
        if number < DISTINCT:
            path.write_bytes(_encoded(_drawing(number), suffix))
            drawn.append(path)
        else:
            os.link(drawn[2 + number % (DISTINCT - 2)], path)
    bad = _bad_files()
    for name, (data, _) in bad.items():
        (folder / BAD / name).write_bytes(data)
    return {MISSING: ErrorCode.IMAGE_MISSING} | {f"{BAD}{name}": code for name, (_, code) in bad.items()}


def _bad_files() -> dict[str, tuple[bytes, ErrorCode]]:
    """Name -> bytes, and the code that they shall get."""
    png = _encoded(_drawing(0), "png")
    return {
        "empty.png": (b"", ErrorCode.IMAGE_EMPTY),
        "text.png": (b"no image\n", ErrorCode.NOT_AN_IMAGE),
        "cut-short.png": (png[: len(png) // 2], ErrorCode.IMAGE_CORRUPT),
        "small.png": (_encoded(Image.new("L", (32, 32)), "png"), ErrorCode.IMAGE_TOO_SMALL),
        "narrow.png": (_encoded(Image.new("L", (100, 1000)), "png"), ErrorCode.IMAGE_TOO_NARROW),
        "large.png": (_encoded(Image.new("1", (7100, 7100)), "png"), ErrorCode.IMAGE_TOO_LARGE),
        "two-frames.dcm": (_dicom(np.zeros((2, 128, 128), np.uint8)), ErrorCode.DICOM_MULTI_FRAME),
        "colour.dcm": (_dicom(np.full((128, 128, 3), (200, 20, 20), np.uint8)), ErrorCode.DICOM_PHOTOMETRIC),
        "no-pixels.dcm": (_dicom(None), ErrorCode.DICOM_NO_PIXELS),
    }


def _drawing(seed: int) -> Image.Image:
    image = draw_phantom(seed, opacity=bool(seed % 2)).resize((SIDE, SIDE))
    noise = np.random.default_rng(seed).normal(0, NOISE, (SIDE, SIDE))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, suffix: str) -> bytes:
    if suffix == "dcm":
        return _dicom(np.asarray(image))
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "png": "PNG"}[suffix], compress_level=1)  # which a JPEG ignores
    return file.getvalue()


def _dicom(pixels: np.ndarray | None) -> bytes:
    """A DICOM file without a patient: (rows, columns), with three colours last or with frames first."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.Modality = "DX"
    if pixels is not None:
        colour = pixels.shape[-1] == 3
        frames = len(pixels) if pixels.ndim == 3 and not colour else 1
        file.Rows, file.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        file.SamplesPerPixel, file.NumberOfFrames = (3 if colour else 1), frames
        file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
        if colour:
            file.PlanarConfiguration = 0
        file.PixelData = pixels.tobytes()
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()
