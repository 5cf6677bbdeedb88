"""Drawings of X-rays with labels, to train on in seconds."""

import csv
from pathlib import Path

import pytest

from cxr.phantoms import draw_phantom

FIELDS = ("file", "patient_id", "view", "age", "sex", "pixel_spacing_mm", "findings", "abnormal")


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels.csv and two folders, each of 60 patients with a normal and an abnormal drawing."""
    folder = tmp_path_factory.mktemp("drawings")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIELDS, "radiologist"])
        for number in range(240):
            abnormal, patient = number % 2, number // 2
            collection = "first" if number < 120 else "second"
            name = f"{collection}/{number:03d}.png"
            (folder / collection).mkdir(exist_ok=True)
            draw_phantom(number, opacity=bool(abnormal)).resize((96, 96)).save(folder / name)
            findings = (
                "Mass|Nodule" if abnormal and patient % 3 == 0 else "Mass" if abnormal else "No Finding"
            )
            view, sex = ("AP", "F") if patient % 2 else ("PA", "M")
            read = "" if patient % 5 == 0 else "lung opacity" if abnormal else "normal"
            writer.writerow([name, patient, view, 20 + patient % 60, sex, "0.143", findings, abnormal, read])
    return folder
