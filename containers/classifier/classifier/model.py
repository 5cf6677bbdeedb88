"""A model: a file's bytes in, scores out."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
from runs.codes import WarningCode

from classifier.bundle import Bundle, BundleError
from classifier.checks import warnings
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing

_SIX_DECIMALS = Decimal("0.000001")


class Model:
    """A checked bundle, ready to score. Several threads may call it at once, each with one image.

    The graph takes `pixels` [images, channels, crop, crop], grey values from 0 to 255, and gives `scores`,
    float32 [images, labels] from 0 to 1: normalisation, head and sigmoid are inside it. A label is positive
    when its score reaches the label's threshold.

    Raises BundleError.
    """

    def __init__(self, folder: Path, *, trial: bool = False) -> None:
        """With `trial`, the bundle must also score test images as it should."""
        bundle = Bundle.read(folder, trial=trial)
        self.card, self.sha256, self._session = bundle.card, bundle.sha256, bundle.session
        self.name = f"{self.card['name']}:{self.card['version']}"
        self.thresholds = {label["name"]: Decimal(str(label["threshold"])) for label in self.card["labels"]}
        self._preprocess = Preprocessing.from_json(self.card["preprocessing"])

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
