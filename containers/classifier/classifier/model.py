"""The model bundle: `model.onnx` and the `model.json` that says what it is and what it wants."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from classifier.images import Preprocessing

_SIX_DECIMALS = Decimal("0.000001")


class BundleError(Exception):
    """A bundle whose parts disagree; the message names the file, the field and the expected value."""


class Model:
    """A verified bundle, ready to score.

    The graph takes `pixels`, uint8 [images, channels, crop, crop], and gives `scores`, float32
    [images, labels] from 0 to 1: normalisation, head and sigmoid are inside it. A label is positive when
    its score reaches its own threshold.

    Raises BundleError.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        card = json.loads((folder / "model.json").read_text())
        graph = (folder / "model.onnx").read_bytes()
        self.sha256 = hashlib.sha256(graph).hexdigest()
        if self.sha256 != card["sha256"]:
            raise BundleError(
                f"{folder / 'model.json'}: sha256 is {card['sha256']}, but model.onnx hashes to {self.sha256}"
            )
        self.name = f"{card['name']}:{card['version']}"
        self.preprocess = Preprocessing.from_json(card["preprocessing"])
        self.thresholds = {label["name"]: Decimal(str(label["threshold"])) for label in card["labels"]}

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        side = self.preprocess.crop
        self._expect(self._session.get_inputs()[0], "pixels", [self.preprocess.channels, side, side])
        self._expect(self._session.get_outputs()[0], "scores", [len(self.thresholds)])

    def score(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> list[dict[str, Decimal]]:
        """One forward pass over images of [channels, crop, crop]: for each, label -> score in 6 decimals."""
        (scores,) = self._session.run(["scores"], {"pixels": np.stack(pixels)})
        return [
            {
                label: Decimal(float(score)).quantize(_SIX_DECIMALS)
                for label, score in zip(self.thresholds, row, strict=True)
            }
            for row in scores
        ]

    def positive(self, scores: Mapping[str, Decimal]) -> tuple[str, ...]:
        """The labels at or above their thresholds."""
        return tuple(label for label, score in scores.items() if score >= self.thresholds[label])

    @staticmethod
    def _expect(value: ort.NodeArg, name: str, shape: list[int]) -> None:
        if value.name != name or value.shape[1:] != shape:
            raise BundleError(
                f"model.onnx: expected {name} of shape [images, {', '.join(map(str, shape))}] "
                f"by model.json, found {value.name} of {value.shape}"
            )
