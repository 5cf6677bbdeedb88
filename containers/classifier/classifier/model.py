"""The model bundle: `model.onnx`, and `model.json` that describes the model and its input."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,  # noqa: A004 - ONNX Runtime raises it for an unknown operator
    RuntimeException,
)
from runs.codes import WarningCode

from classifier.checks import warnings
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing

_SIX_DECIMALS = Decimal("0.000001")


class BundleError(Exception):
    """The parts of a bundle disagree. The message names the file, the field and the expected value."""


class Model:
    """A verified bundle, ready to score. Several threads may call it at once, each with one image.

    The graph takes `pixels` [images, channels, crop, crop], grey values from 0 to 255, and gives `scores`,
    float32 [images, labels] from 0 to 1: normalisation, head and sigmoid are inside it. A label is positive
    when its score reaches the label's threshold.

    Raises BundleError.
    """

    def __init__(self, folder: Path) -> None:
        card, graph = _read(folder)
        self.card = card
        self.sha256 = hashlib.sha256(graph).hexdigest()
        try:
            self.name = f"{card['name']}:{card['version']}"
            self.thresholds = {label["name"]: Decimal(str(label["threshold"])) for label in card["labels"]}
            self._preprocess = Preprocessing.from_json(card["preprocessing"])
            declared = card["sha256"]
        except KeyError as error:
            raise BundleError(f"{folder / 'model.json'}: expected a field {error}, found none") from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise BundleError(f"{folder / 'model.json'}: {error}") from None
        if self.sha256 != declared:
            raise BundleError(
                f"{folder / 'model.json'}: sha256 is {declared}, but model.onnx hashes to {self.sha256}"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # several images at once use the cores better
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except (
            Fail,
            InvalidArgument,
            InvalidGraph,
            InvalidProtobuf,
            NotImplemented,
            RuntimeException,
        ) as error:
            raise BundleError(
                f"{folder / 'model.onnx'}: expected a graph for ONNX Runtime {ort.__version__}: {error}"
            ) from error
        side, labels = self._preprocess.crop, len(self.thresholds)
        pixels = "float" if self._preprocess.resampling == "gaussian" else "uint8"
        self._expect("pixels", self._session.get_inputs(), pixels, [self._preprocess.channels, side, side])
        self._expect("scores", self._session.get_outputs(), "float", [labels])
        if card.get("cam"):
            self._expect("cam", self._session.get_outputs(), "float", [labels])

    def prepare(self, data: bytes) -> tuple[Pixels, tuple[WarningCode, ...]]:
        """A file's bytes as pixels [channels, crop, crop], and warnings about them. Raises ImageError."""
        image = decode(data, self._preprocess.bit_depth)
        pixels = self._preprocess(image)
        colour = image.mode != "L"
        looked_at = pixels if colour else pixels[:1]  # the planes of a grey image are equal
        return pixels, warnings(looked_at, colour, self.card.get("training_range", {}))

    def score(self, pixels: Sequence[Pixels]) -> list[dict[str, Decimal]]:
        """One forward pass over images of [channels, crop, crop]: for each, label -> score in 6 decimals."""
        (scores,) = self._session.run(["scores"], {"pixels": np.stack(pixels)})
        return [
            {
                label: Decimal(float(score)).quantize(_SIX_DECIMALS)
                for label, score in zip(self.thresholds, row, strict=True)
            }
            for row in scores
        ]

    def explain(self, pixels: Pixels) -> dict[str, npt.NDArray[np.float32]]:
        """Label -> class activation map [rows, columns] of one image: what each place adds to the logit.

        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. Raises BundleError
        for a model without such a map: its head is not linear on average pooling.
        """
        if not self.card.get("cam"):
            raise BundleError(f"{self.name} has no class activation map: its model.json says cam: false")
        (maps,) = self._session.run(["cam"], {"pixels": pixels[np.newaxis]})
        return dict(zip(self.thresholds, maps[0], strict=True))

    def positive(self, scores: Mapping[str, Decimal]) -> tuple[str, ...]:
        """The labels at or above their thresholds."""
        return tuple(label for label, score in scores.items() if score >= self.thresholds[label])

    @staticmethod
    def _expect(name: str, given: Sequence[ort.NodeArg], kind: str, shape: list[int]) -> None:
        """Check a value of the graph: the sizes after the number of images. More sizes may follow."""
        values = {value.name: value for value in given}
        if name not in values:
            raise BundleError(f"model.onnx: expected {name}, found {', '.join(values)}")
        value = values[name]
        if value.shape[1 : len(shape) + 1] != shape or value.type != f"tensor({kind})":
            raise BundleError(
                f"model.onnx: expected {name} of {kind} [images, {', '.join(map(str, shape))}] "
                f"by model.json, found {value.type} {value.shape}"
            )


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    try:
        return json.loads((folder / "model.json").read_text()), (folder / "model.onnx").read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename}: expected a bundle's model.json and model.onnx") from None
    except ValueError as error:
        raise BundleError(f"{folder / 'model.json'}: expected JSON, but {error}") from None
