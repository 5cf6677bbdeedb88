"""The originals that the benchmarks compare with, and the service times that `cxr plan` reads."""

import json

import pytest
from support import ROOT


@pytest.mark.parametrize("name", ["original.py", "original_job_creator.py"])
def test_the_original_is_short(name: str) -> None:
    assert len((ROOT / "benchmarks" / name).read_text().splitlines()) <= 40


def test_service_times_begin_with_the_model_that_ships() -> None:
    times = json.loads((ROOT / "cxr" / "planning" / "service_times.json").read_text())
    card = json.loads((ROOT / "containers" / "classifier" / "model" / "model.json").read_text())
    assert next(iter(times["images_per_second"])) == card["name"]
