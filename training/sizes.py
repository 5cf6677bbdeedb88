"""How much a score depends on the size and the format of the file that an X-ray is in."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from classifier.decode import decode
from classifier.model import Model
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from training.data import Floats

SIDES = (512, 256, 128)  # pixels
X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")  # Digital X-Ray Image Storage, for presentation


def compare_versions(model: Model, files: list[Path]) -> dict[str, Any]:
    """How far apart the scores of the versions of a file are: for each version, and for any two of them.

    `median` and `greatest` are of absolute differences of the first label's score. All files are of one size.
    """
    scores: dict[str, list[float]] = {}
    for file in files:
        for version, data in _versions(file.read_bytes()):
            (score,) = model.score([model.prepare(data)[0]])[0].values()
            scores.setdefault(version, []).append(float(score))
    table = np.array(list(scores.values()))  # [versions, files]
    return {
        "files": len(files),
        "versions": {
            version: _summarise(abs(table[place] - table[0]))
            for place, version in enumerate(scores)
            if place > 0
        },
        "any_two": _summarise(np.ptp(table, axis=0)),
    }


def _summarise(differences: Floats) -> dict[str, float]:
    median, greatest = float(np.median(differences)), float(differences.max())
    return {"median": round(median, 4), "greatest": round(greatest, 4)}


def _versions(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and bytes: the file itself, smaller PNGs, a JPEG and a DICOM file."""
    yield "file", data
    image = decode(data).convert("L")
    for side in SIDES:
        if side < min(image.size):
            width, height = (round(side * length / min(image.size)) for length in image.size)
            smaller = image.resize((width, height), Image.Resampling.BILINEAR)
            yield f"PNG of {side} pixels", _save(smaller, "PNG")
    yield "JPEG, quality 90", _save(image, "JPEG", quality=90)
    yield "DICOM, 12 bits", _to_dicom(image)


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _to_dicom(image: Image.Image) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = X_RAY
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.Columns, dataset.Rows = image.size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.round(np.asarray(image) * (4095 / 255)).astype("<u2").tobytes()
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()
