"""What the benchmarks compare with, and what `cxr plan` takes from them. `make bench` itself is run in CI."""

import json

import pytest
from support import ROOT


@pytest.mark.parametrize("name", ["original.py", "original_job_creator.py"])
def test_the_originals_way_is_short(name: str) -> None:
    assert len((ROOT / "benchmarks" / name).read_text().splitlines()) <= 40


def test_service_times_are_of_the_model_that_ships() -> None:
    times = json.loads((ROOT / "cxr" / "planning" / "service_times.json").read_text())
    card = json.loads((ROOT / "containers" / "classifier" / "model" / "model.json").read_text())
    assert next(iter(times["images_per_second"])) == card["name"]
