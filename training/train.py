"""Trains a classifier of normal and abnormal chest X-rays. Writes its model bundle, its splits and its card.

The model that ships, in about 15 minutes on two cores:

    .venv-training/bin/python -m training.train --images DIR --labels DIR/labels.csv \\
        --collections other-patients-64 images-512 --about training/about_default.json \\
        --out training/nih-lite0-demo --int8 containers/classifier/model --card MODEL_CARD.md \\
        --work build/training

The model in 8 bits ships. The same model in float, which it is compared with, stays in
training/nih-lite0-demo.

NIH's DenseNet-121 from all of NIH ChestX-ray14, on a GPU:

    .venv-training/bin/python -m training.train --images DIR --labels Data_Entry_2017.csv --out DIR \\
        --device cuda --architecture densenet121 --tune network --split split.csv

The labels CSV has columns for the image (file, key, image or Image Index), the patient (patient_id or Patient
ID) and the label (abnormal, 0 or 1; or Finding Labels). If you stop a training, the same command continues
after the last finished fold.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cxr.errors import InputError
from cxr.evaluation.labels import ABNORMAL
from cxr.files import whole_file
from training import bundle, card, data, evaluation, fitting, splits, tuning
from training.checkpoint import CheckpointError
from training.features import ImageStatistics, measure_statistics
from training.networks import ARCHITECTURES
from training.progress import ProgressDisplay

PROGRAM = ".venv-training/bin/python -m training.train"
SPLITS = 5  # repeats for a head, which is fitted in seconds; a network has one
ABOUT = {  # fields of --about, with their defaults
    "name": "trained-here",
    "version": "1.0.0",
    "intended_use": "Research use only, not for patient care: not shown to work on your patients.",
    "licence": "Not given. The licences of the images and of the ImageNet weights apply.",
    "attribution": "Not given.",
    "limitations": [],
    "int8": {},  # fields that differ for the model in 8 bits; its limitations are added to the others
}
MOST_AUC_LOST, MOST_LOG_LOSS_GAINED = 0.005, 0.01  # by 8 bits, on the first collection


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    add("--labels", type=Path, required=True, metavar="CSV", help="labels of the images")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the bundle and split.csv")
    add(
        "--split",
        type=Path,
        metavar="CSV",
        help="a split.csv, or a CSV with the columns image and part (default: a new split)",
    )
    add(
        "--collections",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train on images in these folders only. The model is evaluated and calibrated on the first; of "
        "the others, a head uses only the abnormal images (default: all images, as one collection)",
    )
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-lite0")
    add("--weights", default="imagenet", metavar="imagenet|CHECKPOINT", help="weights to start from")
    add(
        "--tune",
        choices=("head", "network"),
        default="head",
        help="train a head on frozen features, or the whole network (default: %(default)s)",
    )
    add("--folds", type=int, default=5, help="number of folds of patients (default: %(default)s)")
    add("--epochs", type=int, default=30, help="most epochs of --tune network (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device for --tune network")
    add("--about", type=Path, metavar="JSON", help="name, version, licence, attribution, ... of the model")
    add(
        "--int8",
        type=Path,
        metavar="DIR",
        help="folder for a second bundle in 8 bits, for --tune head. It is not written if its AUC or "
        "log-loss is clearly worse",
    )
    add(
        "--card",
        type=Path,
        metavar="FILE",
        help="the model card of the 8-bit model, or of the only one (default: MODEL_CARD.md in its folder)",
    )
    add("--work", type=Path, metavar="DIR", help="folder for finished folds (default: work in --out)")
    add(
        "--quick",
        action="store_true",
        help="32 images, 2 folds, 1 epoch: tests the command, and makes no useful model",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.folds, options.epochs = 2, 1
    if options.folds < 2:
        parser.error("--folds: expected 2 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device on this machine")
    if options.int8 and options.tune != "head":
        parser.error("--int8: only with --tune head, whose head is refitted on features in 8 bits")
    options.work = options.work or options.out / "work"
    options.card = options.card or (options.int8 or options.out) / "MODEL_CARD.md"
    return options


def train(options: argparse.Namespace, console: Console) -> None:
    """Train the model, and write its bundle, its splits and its card.

    Raises InputError, also if 8 bits cost too much, CheckpointError and OSError.
    """
    torch.manual_seed(options.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    about = ABOUT | (_read_about(options.about) if options.about else {})
    int8_about = about.pop("int8")
    images = data.read_labels(options.labels, options.images, options.collections)
    if options.quick:
        images = data.sample(images, 32)
    if options.split:
        split = splits.read(options.split, images)
    else:
        repeats = SPLITS if options.tune == "head" and not options.quick else 1
        split = splits.make(images, options.folds, repeats, options.seed)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    _check_work_folder(options, images, split)
    splits.write(split, images, options.out / "split.csv")

    with ProgressDisplay(console) as progress:
        model = _fit(options, images, split, progress)
        progress.print("measuring")
        statistics = measure_statistics(images, model.preprocessing)
        writer = _BundleWriter(options, images, split, statistics, progress)
        page = options.out / "MODEL_CARD.md" if options.int8 else options.card
        written = writer.write(model, about, {}, options.out, page)
        if not (options.int8 and model.chosen):
            return
        int8 = fitting.refit_in_int8(
            images, split, model, model.chosen, options.architecture, options.weights, progress
        )
        changes = evaluation.compare_with_fp32(images, split, model, int8)
        _check_cost_of_int8(changes[0], options.int8)
        options.int8.mkdir(parents=True, exist_ok=True)
        splits.write(split, images, options.int8 / "split.csv")
        about = {
            **about,
            "name": f"{about['name']}-int8",
            **int8_about,
            "limitations": [*about["limitations"], *int8_about.get("limitations", [])],
        }
        fp32_name = f"{written['name']} {written['version']}"
        more_metrics = {"against_fp32": {"model": fp32_name, "collections": changes}}
        writer.write(int8, about, more_metrics, options.int8, options.card)


def _fit(
    options: argparse.Namespace, images: data.Images, split: splits.Split, progress: ProgressDisplay
) -> fitting.FittedModel:
    if options.tune == "head":
        inner_folds = 2 if options.quick else 5
        return fitting.fit_head(
            images, split, options.architecture, options.weights, inner_folds, options.work, progress
        )
    settings = tuning.Settings(
        options.architecture, options.weights, options.epochs, options.device, options.seed
    )
    return fitting.fit_network(images, split, settings, options.work, progress)


@dataclass(frozen=True)
class _BundleWriter:
    """Writes bundles of models that were fitted on the same images."""

    options: argparse.Namespace
    images: data.Images
    split: splits.Split
    statistics: ImageStatistics
    progress: ProgressDisplay

    def write(
        self,
        model: fitting.FittedModel,
        about: dict[str, Any],
        more_metrics: dict[str, Any],
        folder: Path,
        page: Path,
    ) -> dict[str, Any]:
        """Write a bundle to a folder and its card to `page`, and return model.json. Raises OSError."""
        images = self.images
        metrics = {**evaluation.measure(images, self.split, model, self.statistics), **more_metrics}
        limitations = evaluation.list_limitations(images, metrics, model.description)
        slope, offset, threshold = evaluation.fit_calibration(images, model)
        fields = {
            **about,
            "architecture": ARCHITECTURES[self.options.architecture],
            "labels": [{"name": ABNORMAL, "threshold": threshold}],
            "score": "probability",
            "cam": True,
            "preprocessing": {
                name: getattr(model.preprocessing, name) for name in ("channels", "resize", "crop")
            },
            "training_range": evaluation.training_range(self.statistics),
            "training": {
                **model.description,
                "images": [images.describe(images.in_collection(c)) for c in images.collections],
                "folds": int(self.split.folds.max()) + 1,
                "splits": len(self.split.folds),
                "seed": self.options.seed,
                "temperature": round(1 / slope, 4),
                "offset": round(offset, 4),
            },
            "metrics": metrics,
            "limitations": [*about["limitations"], *limitations],
        }
        written = bundle.write(model.export(slope, offset), fields, images, folder)
        with whole_file(page) as part:
            part.write_text(card.render(written))
        self.progress.print(f"wrote {folder}, {page}; sha256 {written['sha256']}")
        return written


def _check_cost_of_int8(change: dict[str, Any], folder: Path) -> None:
    """Raises InputError if 8 bits change AUC or log-loss too much."""
    auc, loss = change["auc"]["value"], change["log_loss"]["value"]
    if auc < -MOST_AUC_LOST or loss > MOST_LOG_LOSS_GAINED:
        raise InputError(
            f"--int8 {folder}: on {change['collection']} 8 bits change AUC by {auc:+.3f} and log-loss by "
            f"{loss:+.3f}: expected at most {MOST_AUC_LOST} less and {MOST_LOG_LOSS_GAINED} more. Not written"
        )


def _check_work_folder(options: argparse.Namespace, images: data.Images, split: splits.Split) -> None:
    """Raises InputError if the finished folds in --work are of a training with other options or images."""
    expected = {
        name: str(getattr(options, name))
        for name in ("architecture", "weights", "tune", "epochs", "seed", "quick")
    }
    expected["images and split"] = hashlib.sha256(
        split.folds.tobytes()
        + "\n".join(map("".join, np.stack([images.name, images.findings, images.view], axis=1))).encode()
        + images.abnormal.tobytes()
    ).hexdigest()[:16]
    expected["versions"] = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "torch"))
    path = options.work / "training.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name, value in expected.items():
            if found.get(name) != value:
                raise InputError(
                    f"{path}: {name} is {found.get(name)}, expected {value}: these folds are of another "
                    "training. Use its options, choose another --work, or delete the folder"
                )
    with whole_file(path) as part:
        part.write_text(json.dumps(expected, indent=2) + "\n")


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected a JSON file") from None
    if not isinstance(about, dict) or not (about.keys() | about.get("int8", {}).keys()) <= ABOUT.keys():
        raise InputError(f"{path}: expected an object with some of the fields {', '.join(ABOUT)}")
    return about


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    try:
        train(options, Console())
    except (InputError, CheckpointError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues after the last finished fold.")


if __name__ == "__main__":
    main()
