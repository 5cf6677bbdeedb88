"""Makes the classifier's frontal_chest.png and measures its warnings: `python -m training.frontal_chest -h`.

The average of one collection, at 16 x 16 pixels and mirrored, so that nothing of a single patient is in it.
The warnings are measured on another collection, of which nothing went into it.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from classifier import checks
from classifier.images import Preprocessing, decode
from PIL import Image

PREPROCESSING = Preprocessing(channels=1, resize=256, crop=224)
MADE_FROM, MEASURED_ON, SIDEWAYS = "other-patients-64", "images-512", "sideways-512"

Pixels = npt.NDArray[np.uint8]


def read(data: Path, folder: str) -> list[Pixels]:
    """The pixels [1, 224, 224] of a collection's images."""
    with (data / "labels.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["file"].startswith(f"{folder}/")]
    return [np.asarray(PREPROCESSING(decode((data / name).read_bytes())), np.uint8) for name in names]


def average(collection: Iterable[Pixels]) -> Image.Image:
    """What the images have in common, as grey values of 16 x 16 pixels."""
    shape = (checks.SIDE, checks.SIDE)
    small = (Image.fromarray(pixels[0]).resize(shape, Image.Resampling.BOX) for pixels in collection)
    mean = np.mean([checks.standardise(np.asarray(image)) for image in small], axis=0)
    mean += mean[:, ::-1]
    return Image.fromarray(((mean - mean.min()) / np.ptp(mean) * 255).round().astype(np.uint8))


def report(name: str, collection: list[Pixels], ranges: dict[str, tuple[float, float]]) -> None:
    """Prints how many images of a collection have each warning."""
    found = Counter(code for pixels in collection for code in checks.warnings(pixels, False, ranges))
    warned = sum(bool(checks.warnings(pixels, False, ranges)) for pixels in collection)
    parts = "".join(f"; {count} {code}" for code, count in sorted(found.items()))
    print(f"{name}: {warned} of {len(collection)} with a warning ({warned / len(collection):.1%}){parts}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and the collections")
    data = parser.parse_args().data
    made_from, upright = read(data, MADE_FROM), read(data, MEASURED_ON)
    average(made_from).save(Path(checks.__file__).with_name("frontal_chest.png"))
    checks._frontal_chest.cache_clear()
    statistics = np.array([(pixels.mean(), pixels.std()) for pixels in made_from])
    low, high = statistics.min(axis=0), statistics.max(axis=0)
    ranges = {"brightness": (low[0], high[0]), "contrast": (low[1], high[1])}
    print(f"brightness {low[0]:.1f} to {high[0]:.1f}, contrast {low[1]:.1f} to {high[1]:.1f} in {MADE_FROM}")
    report(f"{MADE_FROM}, upright", made_from, ranges)
    report(f"{MEASURED_ON}, upright", upright, ranges)
    report(f"{MEASURED_ON}, turned by a quarter", [np.rot90(p, 1, (1, 2)) for p in upright], ranges)
    report(f"{MEASURED_ON}, inverted", [255 - pixels for pixels in upright], ranges)
    report(f"{SIDEWAYS}", read(data, SIDEWAYS), ranges)
    noise = np.random.default_rng(0).integers(0, 256, (200, 1, 224, 224), dtype=np.uint8)
    report("noise", list(noise), ranges)


if __name__ == "__main__":
    main()
