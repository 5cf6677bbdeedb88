"""Drawings for a demonstration without patients."""

from pathlib import Path

import numpy as np
from PIL import Image

from cxr.phantoms import draw_phantom, write_phantoms


def test_a_phantom_is_the_same_each_time_and_an_opacity_lightens_a_lung() -> None:
    clear, opaque = (np.asarray(draw_phantom(1, opacity=opacity), dtype=int) for opacity in (False, True))
    assert clear.shape == (512, 512)
    assert np.array_equal(clear, np.asarray(draw_phantom(1, opacity=False)))
    lighter = (opaque - clear) > 50
    assert 1_000 < lighter.sum() < 12_000


def test_phantoms_are_files_that_say_what_they_show(tmp_path: Path) -> None:
    write_phantoms(tmp_path, count=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "phantom-00-clear.png",
        "phantom-01-opacity.png",
    ]
    assert Image.open(tmp_path / "phantom-00-clear.png").mode == "L"
