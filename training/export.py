"""Turns a checkpoint that others trained into a model bundle.

NIH's classifier of normal and abnormal chest X-rays (Tang et al. 2020), from the file that NIH distributes:

    .venv-training/bin/python -m training.export nih densenet121_256_64_0.001 --out DIR

A TorchXRayVision DenseNet. These two lines of Python write its file, where torchxrayvision is installed:

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-all")
    torch.save({"state_dict": model.state_dict(), "labels": model.pathologies}, "densenet121-res224-all.pt")

    .venv-training/bin/python -m training.export torchxrayvision densenet121-res224-all.pt --out DIR

With weights and activations in 8 bits, both run about twice as fast. The ranges of the activations come from
your X-rays. The command prints how much the scores of these X-rays change, and how many labels:

    .venv-training/bin/python -m training.export nih densenet121_256_64_0.001 --out DIR --int8 --images DIR

No code in a checkpoint is run: a file with anything but tensors, numbers and names is refused.
"""

import argparse
import hashlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from classifier.bounds import ImageError
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from cxr.errors import InputError
from training import bundle, checkpoint, quantise
from training.checkpoint import CheckpointError
from training.densenet121 import CROP, IMAGENET_DEVIATION, IMAGENET_MEAN, RESIZE, densenet121, trunk
from training.scorer import Normalise, Scorer

PROGRAM = ".venv-training/bin/python -m training.export"
NOT_MEASURED = (
    "Not measured here: the checkpoint comes without images. Measure the model on your own labelled patients "
    "before you rely on a score."
)
RESEARCH = "Research use only, not for patient care. It has not been shown to work on your patients."


def read_nih(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """NIH's checkpoint as a Scorer, and fields of model.json. Raises CheckpointError and OSError."""
    network = densenet121(outputs=1)
    checkpoint.load(network, checkpoint.read(path), path)
    prepare, head = Normalise(IMAGENET_MEAN, IMAGENET_DEVIATION), network.classifier
    return Scorer(prepare, trunk(network), head.weight, head.bias), {
        "name": "nih-densenet121",
        "score": "probability",
        "labels": [{"name": "abnormal", "threshold": 0.5}],
        "preprocessing": {"channels": 3, "resize": RESIZE, "crop": CROP},
        "training": {
            "data": "NIH ChestX-ray14, by its authors; abnormal is any of 14 findings mined from the report",
            "paper": "Tang Y-X, Tang Y-B, Peng Y, et al. Automated abnormality classification of chest "
            "radiographs using deep convolutional neural networks. npj Digital Medicine 3, 70 (2020)",
        },
        "limitations": "Trained and tested by its authors on one hospital's images, with labels mined from "
        "reports. It is unknown which images it was trained on. Any image of NIH ChestX-ray14 may be one of "
        "them, and an evaluation on training images is too favourable. The score is called a probability "
        "because it comes from a sigmoid. How well it is calibrated was not measured here.",
        "intended_use": RESEARCH,
        "licence": "NIH's Software Terms of Use of CXR-Binary-Classifier, which came with the checkpoint: "
        "research at not-for-profit organisations only, no redistribution. They apply to this bundle too.",
        "attribution": "Weights by the Imaging Biomarkers and Computer-Aided Diagnosis Laboratory, NIH "
        "Clinical Center: https://github.com/rsummers11/CADLab, CXR-Binary-Classifier",
    }


def read_torchxrayvision(
    path: Path, labels: list[str] | None, thresholds: list[float] | None
) -> tuple[Scorer, dict[str, Any]]:
    """A TorchXRayVision DenseNet as a Scorer, and fields of model.json.

    Labels and thresholds come from the file if they are None. An output whose label is empty or whose
    threshold is NaN was not trained, and is left out. Raises CheckpointError and OSError.
    """
    saved = checkpoint.read(path)
    state = checkpoint.state_dict(saved, path)
    points: Any = state.pop("op_threshs", None)
    if thresholds is None:
        if points is None:
            raise CheckpointError(
                f"{path}: state_dict has no op_threshs: give --thresholds, one for each output"
            )
        thresholds = points.flatten().tolist()
    labels = labels or saved.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(
            f"{path}: labels: expected a list of names, one for each output; or give --labels"
        )
    if len(labels) != len(thresholds):
        raise CheckpointError(
            f"{path}: {len(labels)} labels and {len(thresholds)} thresholds: expected one of each "
            "for every output"
        )
    network = densenet121(len(labels), channels=1)
    checkpoint.load(network, state, path)

    kept = [i for i, label in enumerate(labels) if label.strip() and not math.isnan(thresholds[i])]
    names = [labels[i] for i in kept]
    if not names or len(set(names)) < len(names):
        raise CheckpointError(f"{path}: labels {', '.join(names)}: expected one or more, each once")
    for i in kept:
        if not 0 < thresholds[i] < 1:
            raise CheckpointError(f"{path}: threshold of {labels[i]} is {thresholds[i]}: expected 0 to 1")
    chosen = torch.tensor([thresholds[i] for i in kept])
    prepare, head = Normalise([255 / 2], [255 / 2048]), network.classifier  # to -1024 to 1024
    return Scorer(prepare, trunk(network), head.weight[kept], head.bias[kept], chosen), {
        "name": path.stem,
        "score": "operating point",
        "labels": [{"name": name, "threshold": 0.5} for name in names],
        "preprocessing": {
            "channels": 1,
            "resize": CROP,
            "crop": CROP,
            "square": True,
            "resampling": "gaussian",
        },
        "training": {
            "data": "By its authors, on public collections; their page on the weights lists them",
            "operating_points": dict(zip(names, chosen.tolist(), strict=True)),
            "paper": "Cohen JP, Viviano JD, Bertin P, et al. TorchXRayVision: A library of chest X-ray "
            "datasets and models. Medical Imaging with Deep Learning (2022)",
        },
        "limitations": "Scores are not probabilities: 0.5 is the operating point that the authors chose for "
        "the label, and scores below and above it are scaled separately. It is unknown which images it was "
        "trained on. Any image of the public collections may be one of them, and an evaluation on training "
        "images is too favourable.",
        "intended_use": RESEARCH,
        "licence": "TorchXRayVision is Apache-2.0. The terms of the collections that the weights were "
        "trained on apply too.",
        "attribution": "Weights by the authors of TorchXRayVision: https://github.com/mlmed/torchxrayvision",
    }


def quantise_and_compare(
    model: onnx.ModelProto, card: dict[str, Any], images: list[Pixels]
) -> tuple[onnx.ModelProto, list[str]]:
    """The graph in 8 bits, and lines that describe how scores change. Adds the same figures to `card`."""
    quantised = quantise.quantise(model, images)
    before, after = (quantise.compute_output(graph, "scores", images) for graph in (model, quantised))
    changes: dict[str, Any] = {}
    lines = []
    for label, old, new in zip(card["labels"], before.T, after.T, strict=True):
        name, threshold = label["name"], label["threshold"]
        differ = np.ptp(old) > 0 and np.ptp(new) > 0  # the rank correlation is defined
        change = {
            "rank_correlation": round(float(spearmanr(old, new).statistic), 4) if differ else None,
            "greatest_change": round(float(abs(new - old).max()), 4),
            "mean_change": round(float(abs(new - old).mean()), 4),
            "labels_changed": int(((old >= threshold) != (new >= threshold)).sum()),
        }
        changes[name] = change
        lines.append(
            f"{name}: rank correlation with float {change['rank_correlation']}, scores change by "
            f"{change['mean_change']} on average and {change['greatest_change']} at most, "
            f"{change['labels_changed']} of {len(images)} labels change"
        )
    card["training"]["quantisation"] = f"{quantise.DESCRIPTION}; ranges from {len(images)} images"
    card["metrics"]["against_fp32"] = {"images": len(images), "labels": changes}
    card["limitations"].append(
        "In 8 bits, scores differ from those of the same network in float. The metrics give the differences "
        "on the images that the ranges were taken from. On images unlike them, differences may be larger."
    )
    return quantised, lines


def read_sample(folder: Path, preprocessing: Preprocessing) -> list[Pixels]:
    """The pixels of at most SAMPLE_SIZE images in a folder, at random but the same in every call.

    Raises InputError if there are fewer than two.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: expected a folder")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found: list[Pixels] = []
    for number in np.random.default_rng(0).permutation(len(files)).tolist():
        try:
            found.append(preprocessing(decode(files[number].read_bytes(), preprocessing.bit_depth)))
        except ImageError:
            continue  # labels, notes, and images that cannot be scored
        if len(found) == quantise.SAMPLE_SIZE:
            break
    if len(found) < 2:
        raise InputError(
            f"--images {folder}: {len(found)} X-rays in it: expected two or more, preferably a hundred"
        )
    return found


def write_bundle(model: onnx.ModelProto, card: dict[str, Any], out: Path) -> str:
    """Write a bundle to a new folder, complete or not at all, and return its SHA-256. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as unfinished:
        folder = Path(unfinished) / "bundle"  # a temporary folder has other permissions
        folder.mkdir()
        card = bundle.write_model(model, {"version": "1.0.0", **card, "cam": True}, folder)
        folder.rename(out)
    return str(card["sha256"])


def parse_names(text: str) -> list[str]:
    return text.split(",")


def parse_numbers(text: str) -> list[float]:
    return [float(part or "nan") for part in text.split(",")]


def export(options: argparse.Namespace) -> list[str]:
    """Write the bundle, and return lines that describe it. Raises CheckpointError, InputError and OSError."""
    if options.out.exists():
        raise FileExistsError(f"{options.out}: exists, and no bundle is overwritten: expected a new folder")
    if options.kind == "nih":
        scorer, card = read_nih(options.file)
    else:
        scorer, card = read_torchxrayvision(options.file, options.labels, options.thresholds)
    card["name"] = options.name or card["name"] + "-int8" * options.int8
    card["metrics"] = {}
    card["training"]["checkpoint_sha256"] = hashlib.sha256(options.file.read_bytes()).hexdigest()
    card["limitations"] = [NOT_MEASURED, card["limitations"]]
    preprocessing = Preprocessing.from_json(card["preprocessing"])
    images = read_sample(options.images, preprocessing) if options.int8 else []
    model = bundle.to_onnx(scorer, preprocessing)
    changes: list[str] = []
    if images:
        model, changes = quantise_and_compare(model, card, images)
    digest = write_bundle(model, card, options.out)
    labels = ", ".join(label["name"] for label in card["labels"])
    return [*changes, f"{options.out}: {card['name']}, {labels}; sha256 {digest}"]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="nih | torchxrayvision")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("file", type=Path, help="the checkpoint, a file written by torch.save")
    common.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the bundle")
    common.add_argument("--name", help="name of the model, for model.json and every prediction")
    common.add_argument("--int8", action="store_true", help="quantise to 8 bits; needs --images")
    common.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="X-rays like those that you will score, without labels; at most "
        f"{quantise.SAMPLE_SIZE} of them are used",
    )
    kinds.add_parser("nih", parents=[common], help="NIH's classifier of normal and abnormal chest X-rays")
    xrv = kinds.add_parser("torchxrayvision", parents=[common], help="a DenseNet of TorchXRayVision")
    xrv.add_argument(
        "--labels",
        type=parse_names,
        metavar="NAME,NAME,...",
        help="one for each output, empty for an output that was not trained (default: `labels` in the file)",
    )
    xrv.add_argument(
        "--thresholds",
        type=parse_numbers,
        metavar="0.07,nan,...",
        help="operating point of each output, nan for none (default: `op_threshs` in the file)",
    )
    options = parser.parse_args()
    if options.int8 != bool(options.images):
        sys.exit(f"{PROGRAM}: --int8 and --images: expected both, or neither")
    return options


def main() -> None:
    options = parse_options()
    try:
        lines = export(options)
    except (CheckpointError, InputError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
