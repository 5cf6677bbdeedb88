"""Trains a classifier of normal and abnormal chest X-rays and writes its bundle, its splits and its card.

The model that ships, in minutes on two cores:

    python -m training.train --images DIR --labels DIR/labels.csv --out training/nih-lite0-demo \\
        --collections other-patients-64 images-512 --about training/about_default.json \\
        --int8 containers/classifier/model --card MODEL_CARD.md --work build/training

It ships in 8 bits; the same in float, which it is measured against, stays in training/nih-lite0-demo.

NIH's DenseNet-121 from all of NIH ChestX-ray14, on a GPU:

    python -m training.train --images DIR --labels Data_Entry_2017.csv --out DIR --device cuda \\
        --architecture densenet121 --tune network --split split.csv

The labels CSV names the image (file, image or Image Index), the patient (patient_id or Patient ID) and the
label (abnormal, 0 or 1; or Finding Labels). Stopped, the same command goes on after the last finished fold.
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
from cxr.evaluation.cohort import ABNORMAL
from cxr.files import whole_file
from training import bundle, card, data, fitting, report, splits, tuning
from training.checkpoint import CheckpointError
from training.features import Statistics, statistics
from training.networks import ARCHITECTURES
from training.progress import Teller

SPLITS = 5  # of a head, which is fitted in seconds; a network's is one
ABOUT = {
    "name": "trained-here",
    "version": "1.0.0",
    "intended_use": "Research use only, not for patient care: not shown to work on your patients.",
    "licence": "That of the images and of the ImageNet weights; not said.",
    "attribution": "Not said.",
    "limitations": [],
    "int8": {},  # what is otherwise in 8 bits; limitations come on top
}
MOST_AUC_LOST, MOST_LOG_LOSS_GAINED = 0.005, 0.01  # by 8 bits, on the first collection


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    add("--labels", type=Path, required=True, metavar="CSV", help="their labels")
    add("--out", type=Path, required=True, metavar="DIR", help="for the bundle and split.csv")
    add("--split", type=Path, metavar="CSV", help="as split.csv; or columns image and part (default: made)")
    add(
        "--collections",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train on images of these folders only; the first is judged and calibrated on, of the others a "
        "head takes the abnormal images (default: all images, as one)",
    )
    add("--architecture", choices=ARCHITECTURES, default="efficientnet-lite0")
    add("--weights", default="imagenet", metavar="imagenet|CHECKPOINT", help="to start from")
    add("--tune", choices=("head", "network"), default="head", help="a head on frozen features, or all")
    add("--folds", type=int, default=5, help="of patients (default: %(default)s)")
    add("--epochs", type=int, default=30, help="at most, of --tune network (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of --tune network")
    add("--about", type=Path, metavar="JSON", help="name, version, licence, attribution, ... of the model")
    add(
        "--int8",
        type=Path,
        metavar="DIR",
        help="for the bundle in 8 bits, of --tune head; it is not written if it is worth less than the other",
    )
    add(
        "--card",
        type=Path,
        metavar="FILE",
        help="where the card of the model that ships goes (default: MODEL_CARD.md beside it)",
    )
    add("--work", type=Path, metavar="DIR", help="for finished folds (default: work in --out)")
    add("--quick", action="store_true", help="2 folds of 32 images, 1 epoch: whether it works, not a model")
    options = parser.parse_args(arguments)
    if options.quick:
        options.folds, options.epochs = 2, 1
    if options.folds < 2:
        parser.error("--folds: expected 2 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    options.work = options.work or options.out / "work"
    if options.int8 and options.tune != "head":
        parser.error("--int8: only with --tune head, whose head is refitted on features in 8 bits")
    options.card = options.card or (options.int8 or options.out) / "MODEL_CARD.md"
    return options


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Trains, writes everything, and gives model.json of what ships.

    Raises InputError, also where 8 bits cost too much, CheckpointError, OSError.
    """
    torch.manual_seed(options.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    about = ABOUT | (_about(options.about) if options.about else {})
    images = data.read_labels(options.labels, options.images, options.collections)
    if options.quick:
        images = data.few(images, 32)
    if options.split:
        split = splits.read(options.split, images)
    else:
        repeats = SPLITS if options.tune == "head" and not options.quick else 1
        split = splits.make(images, options.folds, repeats, options.seed)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    _same_training(options, images, split)
    splits.write(split, images, options.out / "split.csv")

    with Teller(console) as tell:
        if options.tune == "head":
            inner = 2 if options.quick else 5
            outcome = fitting.head(
                images, split, options.architecture, options.weights, inner, options.work, tell
            )
        else:
            settings = tuning.Settings(
                options.architecture, options.weights, options.epochs, options.device, options.seed
            )
            outcome = fitting.network(images, split, settings, options.work, tell)
        tell.say("measuring")
        measured = _Measured(options, images, split, statistics(images, outcome.preprocessing), tell)
        change = about.pop("int8")
        page = options.out / "MODEL_CARD.md" if options.int8 else options.card
        found = measured.write(outcome, about, {}, options.out, page)
        if options.int8 and outcome.choice:
            in_8_bits = fitting.int8(
                images, split, outcome, outcome.choice, options.architecture, options.weights, tell
            )
            against = report.against_fp32(images, split, outcome, in_8_bits)
            _worth_shipping(against[0], options.int8)
            options.int8.mkdir(parents=True, exist_ok=True)
            splits.write(split, images, options.int8 / "split.csv")
            about = {
                **about,
                "name": f"{about['name']}-int8",
                **change,
                "limitations": [*about["limitations"], *change.get("limitations", [])],
            }
            more = {"against_fp32": {"model": f"{found['name']} {found['version']}", "collections": against}}
            found = measured.write(in_8_bits, about, more, options.int8, options.card)
    return found


@dataclass(frozen=True)
class _Measured:
    """A training, and the plain statistics of its images."""

    options: argparse.Namespace
    images: data.Images
    split: splits.Split
    plain: Statistics
    tell: Teller

    def write(
        self, outcome: fitting.Outcome, about: dict[str, Any], more: dict[str, Any], out: Path, page: Path
    ) -> dict[str, Any]:
        """A bundle and its card, with `more` metrics; gives model.json. Raises OSError."""
        images = self.images
        metrics = {**report.metrics(images, self.split, outcome, self.plain), **more}
        slope, offset, threshold = report.calibration(images, outcome)
        found = {
            **about,
            "architecture": ARCHITECTURES[self.options.architecture],
            "labels": [{"name": ABNORMAL, "threshold": threshold}],
            "score": "probability",
            "cam": True,
            "preprocessing": {
                name: getattr(outcome.preprocessing, name) for name in ("channels", "resize", "crop")
            },
            "training_range": report.training_range(self.plain),
            "training": {
                **outcome.how,
                "images": [images.described(images.of(c)) for c in images.collections],
                "folds": int(self.split.folds.max()) + 1,
                "splits": len(self.split.folds),
                "seed": self.options.seed,
                "temperature": round(1 / slope, 4),
                "offset": round(offset, 4),
            },
            "metrics": metrics,
            "limitations": [*about["limitations"], *report.limitations(images, metrics, outcome.how)],
        }
        found = bundle.write(outcome.graph(slope, offset), found, images, out)
        with whole_file(page) as part:
            part.write_text(card.render(found))
        self.tell.say(f"wrote {out}, {page}; sha256 {found['sha256']}")
        return found


def _worth_shipping(change: dict[str, Any], out: Path) -> None:
    """Raises InputError where 8 bits cost more than they may."""
    auc, loss = change["auc"]["value"], change["log_loss"]["value"]
    if auc < -MOST_AUC_LOST or loss > MOST_LOG_LOSS_GAINED:
        raise InputError(
            f"--int8 {out}: on {change['collection']} 8 bits change AUC by {auc:+.3f} and log-loss by "
            f"{loss:+.3f}: expected at most {MOST_AUC_LOST} less and {MOST_LOG_LOSS_GAINED} more. Not written"
        )


def _same_training(options: argparse.Namespace, images: data.Images, split: splits.Split) -> None:
    """What is kept in --work must be of this very training."""
    asked = {
        name: str(getattr(options, name))
        for name in ("architecture", "weights", "tune", "epochs", "seed", "quick")
    }
    asked["images and split"] = hashlib.sha256(
        split.folds.tobytes()
        + "\n".join(map("".join, np.stack([images.name, images.findings, images.view], axis=1))).encode()
        + images.abnormal.tobytes()
    ).hexdigest()[:16]
    asked["versions"] = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "torch"))
    path = options.work / "training.json"
    if path.exists():
        kept = json.loads(path.read_text())
        for name, value in asked.items():
            if kept.get(name) != value:
                raise InputError(
                    f"{path}: {name} is {kept.get(name)}, expected {value}: these folds are of another "
                    "training. Give its options, another --work, or delete the folder"
                )
    with whole_file(path) as part:
        part.write_text(json.dumps(asked, indent=2) + "\n")


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected a JSON file") from None
    if not isinstance(about, dict) or not (about.keys() | about.get("int8", {}).keys()) <= ABOUT.keys():
        raise InputError(f"{path}: expected an object with some of the fields {', '.join(ABOUT)}")
    return about


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options, Console())
    except (InputError, CheckpointError, OSError) as error:
        sys.exit(f"python -m training.train: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished fold.")


if __name__ == "__main__":
    main()
