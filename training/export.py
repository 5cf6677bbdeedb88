"""Turns a checkpoint that others trained into a model bundle.

NIH's classifier of normal and abnormal chest X-rays (Tang et al. 2020), from the file that NIH distributes:

    .venv-training/bin/python -m training.export nih densenet121_256_64_0.001 --out DIR

A DenseNet of TorchXRayVision, by the name of its weights. The library torchxrayvision fetches them:

    .venv-training/bin/python -m training.export torchxrayvision densenet121-res224-all --out DIR

Where the library or the network is missing, two lines of Python write a file elsewhere. Give the file then:

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-all")
    torch.save({"state_dict": model.state_dict(), "labels": model.pathologies}, "densenet121-res224-all.pt")

With weights and activations in 8 bits, both run about twice as fast. The ranges of the activations come from
your X-rays. The command prints how much the scores of these X-rays change, and how many labels:

    .venv-training/bin/python -m training.export nih densenet121_256_64_0.001 --out DIR --int8 --images DIR

No code in a checkpoint is run: a file with anything but tensors, numbers and names is refused.

Any other image classifier of PyTorch: a function of yours that returns the module, or the name of a network
of torchvision or timm, with your weights.

    .venv-training/bin/python -m training.export torchvision resnet18 --weights weights.pt --out DIR \\
        --labels normal,pneumonia,other --resize 256 --crop 224 \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --activation softmax
"""

import argparse
import hashlib
import importlib
import math
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import torch
import torchvision
from classifier.bounds import ImageError
from classifier.bundle import open_session
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import nn

from cxr import bundles
from cxr.errors import InputError
from cxr.packing import Activation, Recipe, pack_graph
from training import bundle, checkpoint, quantise
from training.checkpoint import CheckpointError
from training.densenet121 import CROP, IMAGENET_DEVIATION, IMAGENET_MEAN, RESIZE, densenet121, trunk
from training.scorer import Normalise, Scorer

# The networks that are exported as they are: what names them, and whether they need a file of weights.
NETWORKS = {
    "torchvision": ("name of a classifier of torchvision", True),
    "timm": ("name of a network of timm, which you install: .venv-training/bin/pip install timm", True),
    "module": ("package.module:function; the function returns a torch.nn.Module", False),
}
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


def fetch_torchxrayvision(name: str) -> dict[str, Any]:
    """`state_dict` and `labels` of a DenseNet, which the library downloads. Raises CheckpointError."""
    try:
        import torchxrayvision  # type: ignore[import-not-found]
    except ImportError:
        raise CheckpointError(
            f"{name}: no such file; for weights by their name, install torchxrayvision: "
            ".venv-training/bin/pip install torchxrayvision"
        ) from None
    try:
        network = torchxrayvision.models.DenseNet(weights=name)
    except Exception as error:  # noqa: BLE001 - it raises Exception itself, and what its downloads raise
        raise CheckpointError(f"{name}: torchxrayvision: {one_line(error)}") from None
    return {"state_dict": network.state_dict(), "labels": list(network.pathologies)}


def build_network(kind: str, name: str, labels: int, channels: int) -> nn.Module:
    """A network with random weights, or those that your function loads.

    `kind` is torchvision or timm, and `name` one of their networks; or `module`, and `name` is
    "package.module:function". Raises CheckpointError.
    """
    try:
        if kind == "torchvision":
            network = torchvision.models.get_model(name, num_classes=labels)
        elif kind == "timm":
            import timm  # type: ignore[import-not-found]

            network = timm.create_model(name, num_classes=labels, in_chans=channels)
        else:
            module, _, function = name.partition(":")
            network = getattr(importlib.import_module(module), function)()
    except Exception as error:  # noqa: BLE001 - code of others
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f"; install {error.name}, or set PYTHONPATH to the folder that it is in"
        raise CheckpointError(f"{name}: {type(error).__name__}: {one_line(error)}{hint}") from None
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{name}: expected a torch.nn.Module, found {type(network).__name__}")
    return network.eval()


def to_graph(network: nn.Module, name: str, channels: int, side: int) -> onnx.ModelProto:
    """The network in ONNX, for any number of images. It must give what torch does. Raises CheckpointError."""
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            expected = network(images)
        if not isinstance(expected, torch.Tensor):
            raise CheckpointError(f"{name}: it returns {type(expected).__name__}: expected one tensor")
        program: Any = torch.onnx.export(
            network,
            (images,),
            input_names=["image"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            opset_version=20,
            verbose=False,
        )
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - the code of the network, and torch's exporter
        cause = error.__cause__ or error
        raise CheckpointError(
            f"{name}: torch cannot run or export it: {type(cause).__name__}: {one_line(cause)}"
        ) from None
    graph: onnx.ModelProto = program.model_proto
    found = open_session(graph.SerializeToString()).run(None, {"image": images.numpy()})[0]
    if not np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4):
        difference = abs(found - expected.numpy()).max()
        raise CheckpointError(f"{name}: outputs of ONNX Runtime and of torch differ by {difference:.2g}")
    return graph


def one_line(error: BaseException) -> str:
    """The first line of a message."""
    return str(error).strip().partition("\n")[0]


def read_torchxrayvision(
    path: Path, labels: list[str] | None, thresholds: list[float] | None
) -> tuple[Scorer, dict[str, Any]]:
    """A TorchXRayVision DenseNet as a Scorer, and fields of model.json.

    Labels and thresholds come from the file if they are None. An output whose label is empty or whose
    threshold is NaN was not trained, and is left out. Raises CheckpointError and OSError.
    """
    saved = checkpoint.read(path) if path.exists() else fetch_torchxrayvision(str(path))
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


def parse_names(text: str) -> list[str]:
    return text.split(",")


def parse_numbers(text: str) -> list[float]:
    return [float(part or "nan") for part in text.split(",")]


def export_network(options: argparse.Namespace) -> list[str]:
    """The same for a network of torchvision, of timm, or of your own."""
    bundles.expect_new(options.out)
    recipe = Recipe(
        labels=options.labels,
        mean=options.mean,
        std=options.std,
        activation=options.activation,
        resize=options.resize,
        crop=options.crop,
        thresholds=options.thresholds,
    )
    network = build_network(options.kind, options.network, len(recipe.labels), len(recipe.mean))
    training = {}
    if options.weights:
        checkpoint.load(network, checkpoint.read(options.weights), options.weights)
        training["checkpoint_sha256"] = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    graph = to_graph(network, options.network, len(recipe.mean), recipe.crop)
    name = options.name or options.network.rpartition(":")[2]
    fields = {"name": name, "version": "1.0.0", "architecture": type(network).__name__, "training": training}
    packed = pack_graph(graph, options.network, recipe, options.out, **fields, limitations=[NOT_MEASURED])
    return [f"{options.out}: {name}, {', '.join(packed.model.thresholds)}; sha256 {packed.model.sha256}"]


def export(options: argparse.Namespace) -> list[str]:
    """Write the bundle, and return lines that describe it. Raises CheckpointError, InputError and OSError."""
    if options.kind in NETWORKS:
        return export_network(options)
    bundles.expect_new(options.out)
    if options.kind == "nih":
        scorer, card = read_nih(options.file)
    else:
        scorer, card = read_torchxrayvision(options.file, options.labels, options.thresholds)
    card["name"] = options.name or card["name"] + "-int8" * options.int8
    card["metrics"] = {}
    if options.file.exists():
        card["training"]["checkpoint_sha256"] = hashlib.sha256(options.file.read_bytes()).hexdigest()
    card["limitations"] = [NOT_MEASURED, card["limitations"]]
    preprocessing = Preprocessing.from_json(card["preprocessing"])
    images = read_sample(options.images, preprocessing) if options.int8 else []
    model = bundle.to_onnx(scorer, preprocessing)
    changes: list[str] = []
    if images:
        model, changes = quantise_and_compare(model, card, images)
    onnx.checker.check_model(model, full_check=True)
    card = {"version": "1.0.0", **card, "cam": True}
    digest = bundles.write(model.SerializeToString(), card, options.out)["sha256"]
    labels = ", ".join(label["name"] for label in card["labels"])
    return [*changes, f"{options.out}: {card['name']}, {labels}; sha256 {digest}"]


def add_networks(kinds: Any) -> None:
    """Add a parser for each of NETWORKS."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the bundle")
    common.add_argument("--name", help="name of the model, for model.json and every prediction")
    common.add_argument(
        "--labels",
        type=parse_names,
        required=True,
        metavar="NAME,NAME,...",
        help="one for each output, the primary one first, empty for an output to leave out",
    )
    common.add_argument("--resize", type=int, required=True, metavar="PIXELS", help="of the shorter side")
    common.add_argument("--crop", type=int, required=True, metavar="PIXELS", help="of the centre square")
    for name in ("mean", "std"):
        common.add_argument(
            f"--{name}",
            type=parse_numbers,
            required=True,
            metavar="X,X,X",
            help="of each channel, of grey values from 0 to 1",
        )
    common.add_argument("--activation", choices=get_args(Activation), required=True)
    common.add_argument(
        "--thresholds", type=parse_numbers, metavar="X,X,...", help="one for each label (default: 0.5)"
    )
    for kind, (what, needs_weights) in NETWORKS.items():
        parser = kinds.add_parser(kind, parents=[common], help=what)
        parser.add_argument("network", help=what)
        parser.add_argument(
            "--weights",
            type=Path,
            required=needs_weights,
            metavar="FILE",
            help="its state_dict",
        )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar=f"nih | torchxrayvision | {' | '.join(NETWORKS)}"
    )
    add_networks(kinds)
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
    if options.kind not in NETWORKS and options.int8 != bool(options.images):
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
