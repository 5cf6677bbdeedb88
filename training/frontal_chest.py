"""Makes the classifier's frontal_chest.png, and measures how often a model bundle's images get warnings:

    .venv-training/bin/python -m training.frontal_chest --data DIR

DIR holds labels.csv and the folders other-patients-64, images-512 and sideways-512. frontal_chest.png is the
average of other-patients-64 at 16 x 16 pixels and mirrored, so that no patient can be recognised in it. The
warnings are measured on pixels as the bundle's model takes them. The range of brightness and contrast is that
of other-patients-64 too, and not the bundle's, so that images-512 tests it.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from classifier import checks
from classifier.model import Model
from classifier.preprocessing import Pixels, Preprocessing
from PIL import Image

from training.data import read_labels, read_pixels

AVERAGED = Preprocessing(channels=1, resize=256, crop=224)
MADE_FROM, UPRIGHT, SIDEWAYS = "other-patients-64", "images-512", "sideways-512"
SHIPPED = Path(__file__).parents[1] / "containers" / "classifier" / "model"


def read_folder(data: Path, folder: str, preprocessing: Preprocessing) -> list[Pixels]:
    """Pixels [channels, crop, crop] of the images in a folder that labels.csv names. Raises InputError."""
    images = read_labels(data / "labels.csv", data, (folder,))
    return [read_pixels(file, preprocessing) for file in images.file.tolist()]


def average(images: Iterable[Pixels]) -> Image.Image:
    """The mirrored average of images [1, crop, crop], as grey values of 16 x 16 pixels."""
    shape = (checks.SIDE, checks.SIDE)
    small = (Image.fromarray(pixels[0]).resize(shape, Image.Resampling.BOX) for pixels in images)
    mean = np.mean([checks.standardise(np.asarray(image)) for image in small], axis=0)
    mean += mean[:, ::-1]
    return Image.fromarray(((mean - mean.min()) / np.ptp(mean) * 255).round().astype(np.uint8))


def print_warnings(
    name: str, images: list[npt.NDArray[np.generic]], training_range: dict[str, tuple[float, float]]
) -> None:
    """Prints how many of the images have a warning, and how many have each one."""
    found = [checks.warnings(pixels, False, training_range) for pixels in images]
    warned = sum(map(bool, found))
    counts = sorted(Counter(code for codes in found for code in codes).items())
    parts = "".join(f"; {count} {code}" for code, count in counts)
    print(f"{name}: {warned} of {len(images)} with a warning ({warned / len(images):.1%}){parts}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=".venv-training/bin/python -m training.frontal_chest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of labels.csv and the X-rays"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=SHIPPED,
        metavar="DIR",
        help="model bundle (default: the one that ships)",
    )
    options = parser.parse_args()
    preprocessing = Preprocessing.from_json(Model(options.bundle).card["preprocessing"])

    averaged = read_folder(options.data, MADE_FROM, AVERAGED)
    average(averaged).save(Path(checks.__file__).with_name("frontal_chest.png"))
    checks._frontal_chest.cache_clear()

    made_from, upright, sideways = (
        read_folder(options.data, folder, preprocessing) for folder in (MADE_FROM, UPRIGHT, SIDEWAYS)
    )
    statistics = np.array([(pixels.mean(), pixels.std()) for pixels in made_from])
    low, high = statistics.min(axis=0), statistics.max(axis=0)
    training_range = {"brightness": (low[0], high[0]), "contrast": (low[1], high[1])}
    print(f"brightness {low[0]:.1f} to {high[0]:.1f}, contrast {low[1]:.1f} to {high[1]:.1f} in {MADE_FROM}")
    noise = np.random.default_rng(0).integers(0, 256, (200, *upright[0].shape), dtype=np.uint8)
    for name, images in {
        f"{MADE_FROM}, upright": made_from,
        f"{UPRIGHT}, upright": upright,
        f"{UPRIGHT}, rotated by 90 degrees": [np.rot90(pixels, 1, (1, 2)) for pixels in upright],
        f"{UPRIGHT}, inverted": [255 - pixels for pixels in upright],
        SIDEWAYS: sideways,
        "noise": list(noise),
    }.items():
        print_warnings(name, images, training_range)


if __name__ == "__main__":
    main()
