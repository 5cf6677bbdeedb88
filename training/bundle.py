"""Writes model bundles: the graph, its model.json, and fingerprints of what the model was trained on."""

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import torch
from classifier.preprocessing import Preprocessing
from torch import nn

from cxr import bundles
from cxr.evaluation.cohort import fingerprint, patient_fingerprint
from training.data import Images


def write(model: onnx.ModelProto, card: dict[str, Any], images: Images, folder: Path) -> dict[str, Any]:
    """Write model.onnx, model.json and trained_on.json to a folder, and return what model.json holds.

    `images` are those that the model was trained on. Files of the same name are replaced after the new bundle
    is complete. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unfinished = Path(temporary)
        card = write_model(model, card, unfinished)
        _write_json(
            {
                "images": sorted({fingerprint(PurePosixPath(name).name) for name in images.name.tolist()}),
                "patients": sorted({patient_fingerprint(patient) for patient in images.patient.tolist()}),
            },
            unfinished / "trained_on.json",
        )
        for name in ("model.onnx", "model.json", "trained_on.json"):
            (unfinished / name).replace(folder / name)
    return card


def write_model(model: onnx.ModelProto, card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write model.onnx and model.json, and return what model.json holds: `card`, `sha256` and `self_test`.

    The graph takes pixels [N, channels, crop, crop] with the preprocessing that `card` names. Raises OSError,
    and InputError for a bundle that the classifier would refuse.
    """
    onnx.checker.check_model(model, full_check=True)
    return bundles.fill(model.SerializeToString(), card, folder)


def to_onnx(scorer: nn.Module, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The graph of a Scorer, from `pixels` [N, channels, crop, crop] to `scores` and `cam`."""
    # Pixels resampled with a Gaussian are fractions of grey values.
    pixel_type = torch.float32 if preprocessing.resampling == "gaussian" else torch.uint8
    shape = 2, preprocessing.channels, preprocessing.crop, preprocessing.crop
    program: Any = torch.onnx.export(
        scorer,
        (torch.zeros(shape, dtype=pixel_type),),
        input_names=["pixels"],
        output_names=["scores", "cam"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        opset_version=20,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    # The exporter stores a stack trace in every node, with paths of the machine that exported it.
    for described in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del described.metadata_props[:]
    return model


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
