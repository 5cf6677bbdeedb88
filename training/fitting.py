"""Fits models: a head on frozen features, or the whole network. Fits that were saved are not repeated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from classifier.preprocessing import Preprocessing
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from cxr.files import whole_file
from training import bundle, features, networks, quantise, recipe, tuning
from training.data import Floats, Images, Ints, read_pixels
from training.progress import ProgressDisplay
from training.scorer import CoarseNormalise
from training.splits import Split


@dataclass(frozen=True, eq=False)
class CrossCollectionTest:
    """Scores of all images of a collection by models fitted on the other collections."""

    trained_on: Ints
    tested_on: Ints
    recipe: recipe.Recipe
    scores: Floats  # [tested_on]
    starting_point: Floats  # [tested_on]
    coarse_starting_point: Floats  # [tested_on], by a starting point on features of coarse pixels


@dataclass(frozen=True)
class ChosenRecipes:
    """The recipes that the inner loops chose."""

    folds: list[recipe.Recipe]  # for every fit of the split
    all_images: recipe.Recipe  # for the model fitted on all images
    stage_sizes: list[int]  # number of features after each stage that a recipe may use


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A model fitted on all images, and scores of each image by models that saw no image of its patient.

    Scores are [repeats, images], NaN for images that are never tested.
    """

    scores: Floats
    export: Callable[[float, float], onnx.ModelProto]  # of slope and offset that calibrate the scores
    preprocessing: Preprocessing
    description: dict[str, Any]
    starting_point: Floats | None = None
    cross_collection_tests: list[CrossCollectionTest] = field(default_factory=list)
    chosen: ChosenRecipes | None = None  # of a head


def fit_head(
    images: Images,
    split: Split,
    architecture: str,
    weights: str,
    inner_folds: int,
    work: Path,
    progress: ProgressDisplay,
) -> FittedModel:
    """Choose a recipe and fit a head in every fold, and then on all images. Fits are saved in `work`."""
    network = networks.build(architecture, weights)
    extracted = features.extract(network, architecture, images, work / "features.npz", progress)
    progress.print(f"features of {len(images)} images")
    data = recipe.LabelledFeatures(images, extracted.coarse)
    first = images.in_collection(images.collections[0])
    scores, start = (np.full(split.folds.shape, np.nan) for _ in range(2))
    by_name = {str(one): one for one in data.recipes(list(recipe.GROUPS))}
    chosen: list[recipe.Recipe] = []
    fits = sum(1 for _ in split.fits())
    with threadpool_limits(1):  # these fits are small, and slower when threads wait for each other
        for repeat, fold, train, test in split.fits():
            saved_fit = work / f"head-{repeat + 1}-{fold}.npz"
            if not saved_fit.exists():
                best, _ = data.choose(train, inner_folds)
                own = np.intersect1d(train, first)
                _save_arrays(
                    saved_fit,
                    scores=data.fit_head(best, train)(data.features)[test],
                    start=recipe.score_by_starting_point(extracted.full, images, own, inner_folds)[test],
                    recipe=np.array(str(best)),
                )
            with np.load(saved_fit) as saved:
                scores[repeat, test], start[repeat, test] = saved["scores"], saved["start"]
                chosen.append(by_name[str(saved["recipe"])])
                progress.print(f"split {repeat + 1}, fold {fold}: {chosen[-1]}")
            progress.show("folds", len(chosen), fits)
        all_images = np.arange(len(images))
        best, inner_auc = data.choose(all_images, inner_folds)
        progress.print(f"on all images: {best}; inner AUC {inner_auc:.3f}")
        head = data.fit_head(best, all_images)
        cross_collection_tests = [
            _test_across_collections(data, extracted, train, test, inner_folds)
            for train, test in _cross_collection_pairs(images, first)
        ]
    compared = len(data.recipes(list(recipe.GROUPS) if len(images.collections) > 1 else [recipe.OWN]))
    return FittedModel(
        scores,
        lambda slope, offset: _export_head(head, slope, offset, architecture, network),
        features.COARSE,
        {
            "method": "ridge regression on frozen features, group-centred; recipe chosen in an inner loop",
            "recipe": str(best),
            "recipes_in_the_inner_loop": compared,
            "features": len(head.weight),
            "chosen_in_outer_folds": [f"{count} x {one}" for one, count in Counter(chosen).most_common()],
            "inner_auc": round(inner_auc, 3),
        },
        start,
        cross_collection_tests,
        ChosenRecipes(chosen, best, [found.shape[1] for found in extracted.coarse[: recipe.STAGES]]),
    )


def refit_in_int8(
    images: Images,
    split: Split,
    fp32: FittedModel,
    chosen: ChosenRecipes,
    architecture: str,
    weights: str,
    progress: ProgressDisplay,
) -> FittedModel:
    """Refit the recipes of `fit_head` in the same folds, on features of the network in 8 bits.

    The ranges of the activations come from a sample of all images, without their labels. Raises InputError.
    """
    network = networks.build(architecture, weights)
    pixels = [read_pixels(file, fp32.preprocessing) for file in images.file.tolist()]
    sample = [pixels[i] for i in quantise.sample_indices(len(pixels))]
    graphs, features_of_stages = [], []
    for stage, size in enumerate(chosen.stage_sizes):
        any_head = recipe.Head(stage, np.ones(size), 1.0)
        graph = _export_head(any_head, 1.0, 0.0, architecture, network)
        graphs.append(quantise.quantise(graph, sample))
        features_of_stages.append(quantise.pooled_features(graphs[-1], pixels))
        progress.print(f"features of {len(images)} images in 8 bits, stage {stage + 1}")
    data = recipe.LabelledFeatures(images, features_of_stages)
    scores = np.full(split.folds.shape, np.nan)
    with threadpool_limits(1):
        for (repeat, _, train, test), one in zip(split.fits(), chosen.folds, strict=True):
            scores[repeat, test] = data.fit_head(one, train)(data.features)[test]
        cross_collection_tests = [
            replace(one, scores=data.fit_head(one.recipe, one.trained_on)(data.features)[one.tested_on])
            for one in fp32.cross_collection_tests
        ]
        head = data.fit_head(chosen.all_images, np.arange(len(images)))
    return replace(
        fp32,
        scores=scores,
        export=lambda slope, offset: quantise.replace_head(
            graphs[head.stage], slope * head.weight, slope * head.bias + offset
        ),
        description={
            **fp32.description,
            "method": f"{fp32.description['method']}; head refitted on features of the network in 8 bits",
            "quantisation": f"{quantise.DESCRIPTION}; ranges from the pixels, and not the labels, of "
            f"{len(sample)} images of all folds",
        },
        cross_collection_tests=cross_collection_tests,
    )


def fit_network(
    images: Images, split: Split, settings: tuning.Settings, work: Path, progress: ProgressDisplay
) -> FittedModel:
    """Fit the whole network in every fold, and then on all images. A split in parts has only one fit."""
    scores = np.full(split.folds.shape, np.nan)
    for repeat, fold, train, test in split.fits():
        stop = split.validation(repeat, fold)
        saved = work / f"network-{repeat + 1}-{fold}.pt"
        network = tuning.fit(images, np.setdiff1d(train, stop), stop, settings, saved, progress)
        scores[repeat, test] = tuning.compute_logits(network, images, test, settings)
    if not split.parts:
        stop = np.flatnonzero(split.folds[0] == 0)
        train = np.flatnonzero(split.folds[0] != 0)
        network = tuning.fit(images, train, stop, settings, work / "network-shipped.pt", progress)
    return FittedModel(
        scores,
        lambda slope, offset: bundle.to_onnx(
            tuning.build_scorer(network.cpu(), settings.architecture, slope, offset), features.FULL
        ),
        features.FULL,
        {
            "method": "whole network, Adam, binary cross-entropy, stopped early on validation images",
            "learning_rate": tuning.LEARNING_RATE,
            "batch": tuning.BATCH,
            "most_epochs": settings.epochs,
        },
    )


def _export_head(
    head: recipe.Head, slope: float, offset: float, architecture: str, network: nn.Module
) -> onnx.ModelProto:
    parts = networks.coarse_stages(network)
    prepare = CoarseNormalise(*networks.pixel_statistics(architecture))
    return bundle.to_onnx(recipe.build_scorer(head, slope, offset, prepare, parts), features.COARSE)


def _cross_collection_pairs(images: Images, first: Ints) -> list[tuple[Ints, Ints]]:
    """Images to train on and images to test on: the first collection against all others, both ways."""
    others = np.setdiff1d(np.arange(len(images)), first)
    return [(others, first), (first, others)] if len(others) else []


def _test_across_collections(
    data: recipe.LabelledFeatures, extracted: features.Features, train: Ints, test: Ints, inner_folds: int
) -> CrossCollectionTest:
    best, _ = data.choose(train, inner_folds)
    return CrossCollectionTest(
        train,
        test,
        best,
        data.fit_head(best, train)(data.features)[test],
        recipe.score_by_starting_point(extracted.full, data.images, train, inner_folds)[test],
        recipe.score_by_starting_point(extracted.coarse[-1], data.images, train, inner_folds)[test],
    )


def _save_arrays(path: Path, **arrays: Any) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
