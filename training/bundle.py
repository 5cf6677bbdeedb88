"""Writes a model bundle: the graph, the card, and whom the model was trained on."""

import hashlib
import io
import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import torch
from classifier.images import Preprocessing
from classifier.model import Model
from torch import nn

from cxr.evaluation.cohort import fingerprint, patient_fingerprint
from cxr.phantoms import draw_phantom
from training.data import Images


def write(model: onnx.ModelProto, card: dict[str, Any], images: Images, out: Path) -> dict[str, Any]:
    """Puts model.onnx, model.json and trained_on.json into a folder, and gives the card that is there now.

    Nothing there is touched before the new bundle is whole. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as unfinished:
        folder = Path(unfinished)
        card = fill(folder, model, card)
        _write_json(
            {
                "images": sorted({fingerprint(PurePosixPath(name).name) for name in images.name.tolist()}),
                "patients": sorted({patient_fingerprint(patient) for patient in images.patient.tolist()}),
            },
            folder / "trained_on.json",
        )
        for name in ("model.onnx", "model.json", "trained_on.json"):
            (folder / name).replace(out / name)
    return card


def fill(folder: Path, model: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    """Writes model.onnx and model.json into a folder, and gives the card with its `sha256` and `self_test`.

    The graph takes pixels [N, channels, crop, crop] as the card says. Raises OSError.
    """
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {"name": card["name"], "version": card["version"], "sha256": digest, **card}
    _write_json(card, folder / "model.json")
    scorer = Model(folder)
    drawing = io.BytesIO()
    draw_phantom(0, opacity=True).save(drawing, "PNG")
    (scores,) = scorer.score([scorer.prepare(drawing.getvalue())[0]])
    card["self_test"] = {label: float(score) for label, score in scores.items()}
    _write_json(card, folder / "model.json")
    return card


def exported(graph: nn.Module, preprocessing: Preprocessing) -> onnx.ModelProto:
    """As ONNX: from `pixels` [images, channels, crop, crop] to `scores` and `cam`."""
    # What is resampled with a Gaussian comes in fractions of grey values.
    kind = torch.float32 if preprocessing.resampling == "gaussian" else torch.uint8
    shape = 2, preprocessing.channels, preprocessing.crop, preprocessing.crop
    program: Any = torch.onnx.export(
        graph,
        (torch.zeros(shape, dtype=kind),),
        input_names=["pixels"],
        output_names=["scores", "cam"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        opset_version=20,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    # The exporter notes the stack trace of every node: paths of the machine that made it.
    for described in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del described.metadata_props[:]
    return model


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
