"""The two ways to train: a head on frozen features, or the whole network. Finished folds are reused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from classifier.images import Preprocessing
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from cxr.files import whole_file
from training import bundle, features, networks, quantise, recipe, tuning
from training.data import Floats, Images, Ints, read_pixels
from training.progress import Teller
from training.scorer import CoarseNormalise
from training.splits import Split


@dataclass(frozen=True, eq=False)
class Across:
    """A model fitted on some collections and tested on all images of another."""

    trained_on: Ints
    tested_on: Ints
    recipe: recipe.Recipe
    scores: Floats  # of tested_on
    starting_point: Floats  # of tested_on
    coarse_starting_point: Floats  # of tested_on, by a network that sees coarse pixels as well


@dataclass(frozen=True)
class Choice:
    """What the inner loops chose."""

    folds: list[recipe.Recipe]  # of every fit of the split
    everything: recipe.Recipe  # of the model fitted on all
    sizes: list[int]  # features after each stage that a recipe may cut the network at


@dataclass(frozen=True, eq=False)
class Outcome:
    """Scores of images by models that saw no image of the patient, and the model fitted on all.

    Scores are [repeats, images], NaN where an image is never tested.
    """

    scores: Floats
    graph: Callable[[float, float], onnx.ModelProto]  # of slope and offset, the calibration of the scores
    preprocessing: Preprocessing
    how: dict[str, Any]
    starting_point: Floats | None = None
    across: list[Across] = field(default_factory=list)
    choice: Choice | None = None  # of a head


def head(
    images: Images, split: Split, architecture: str, weights: str, inner: int, work: Path, tell: Teller
) -> Outcome:
    """A recipe chosen, and a head fitted, within every fold and then on all. `inner` is the inner folds."""
    network = networks.build(architecture, weights)
    measured = features.frozen(network, architecture, images, work / "features.npz", tell)
    tell.say(f"features of {len(images)} images")
    data = recipe.Data(images, measured.coarse)
    first = images.of(images.collections[0])
    scores, start = (np.full(split.folds.shape, np.nan) for _ in range(2))
    by_name = {str(one): one for one in data.recipes(list(recipe.GROUPS))}
    chosen: list[recipe.Recipe] = []
    fits = sum(1 for _ in split.fits())
    with threadpool_limits(1):  # these fits are small: threads that wait for each other make them slower
        for repeat, fold, train, test in split.fits():
            kept = work / f"head-{repeat + 1}-{fold}.npz"
            if not kept.exists():
                best, _ = data.choose(train, inner)
                own = np.intersect1d(train, first)
                _keep(
                    kept,
                    scores=data.head(best, train)(data.features)[test],
                    start=recipe.starting_point(measured.full, images, own, inner)[test],
                    recipe=np.array(str(best)),
                )
            with np.load(kept) as saved:
                scores[repeat, test], start[repeat, test] = saved["scores"], saved["start"]
                chosen.append(by_name[str(saved["recipe"])])
                tell.say(f"split {repeat + 1}, fold {fold}: {chosen[-1]}")
            tell.at("folds", len(chosen), fits)
        everything = np.arange(len(images))
        best, inner_auc = data.choose(everything, inner)
        tell.say(f"on all images: {best}; inner AUC {inner_auc:.3f}")
        fitted = data.head(best, everything)
        across = [
            _across(data, measured, trained, tested, inner) for trained, tested in _pairs(images, first)
        ]
    compared = len(data.recipes(list(recipe.GROUPS) if len(images.collections) > 1 else [recipe.OWN]))
    return Outcome(
        scores,
        lambda slope, offset: _graph(fitted, slope, offset, architecture, network),
        features.COARSE,
        {
            "method": "ridge regression on frozen features, group-centred; recipe chosen in an inner loop",
            "recipe": str(best),
            "recipes_in_the_inner_loop": compared,
            "features": len(fitted.weight),
            "chosen_in_outer_folds": [f"{count} x {one}" for one, count in Counter(chosen).most_common()],
            "inner_auc": round(inner_auc, 3),
        },
        start,
        across,
        Choice(chosen, best, [found.shape[1] for found in measured.coarse[: recipe.STAGES]]),
    )


def int8(
    images: Images,
    split: Split,
    fp32: Outcome,
    choice: Choice,
    architecture: str,
    weights: str,
    tell: Teller,
) -> Outcome:
    """The recipes of `head`, refitted in the same folds on features of the network in 8 bits.

    Activations are given the ranges that they have on a sample of all images, whose labels are not looked at.
    Raises InputError.
    """
    network = networks.build(architecture, weights)
    pixels = [read_pixels(file, fp32.preprocessing) for file in images.file.tolist()]
    sample = [pixels[i] for i in quantise.sample(len(pixels))]
    graphs, features_of = [], []
    for stage, size in enumerate(choice.sizes):
        any_head = recipe.Head(stage, np.ones(size), 1.0)
        graph = _graph(any_head, 1.0, 0.0, architecture, network)
        graphs.append(quantise.quantised(graph, sample))
        features_of.append(quantise.pooled(graphs[-1], pixels))
        tell.say(f"features of {len(images)} images in 8 bits, stage {stage + 1}")
    data = recipe.Data(images, features_of)
    scores = np.full(split.folds.shape, np.nan)
    with threadpool_limits(1):
        for (repeat, _, train, test), one in zip(split.fits(), choice.folds, strict=True):
            scores[repeat, test] = data.head(one, train)(data.features)[test]
        across = [
            replace(one, scores=data.head(one.recipe, one.trained_on)(data.features)[one.tested_on])
            for one in fp32.across
        ]
        fitted = data.head(choice.everything, np.arange(len(images)))
    return replace(
        fp32,
        scores=scores,
        graph=lambda slope, offset: quantise.with_head(
            graphs[fitted.stage], slope * fitted.weight, slope * fitted.bias + offset
        ),
        how={
            **fp32.how,
            "method": f"{fp32.how['method']}; head refitted on features of the network in 8 bits",
            "quantisation": f"{quantise.HOW}; ranges from the pixels, and not the labels, of {len(sample)} "
            "images of all folds",
        },
        across=across,
    )


def network(images: Images, split: Split, settings: tuning.Settings, work: Path, tell: Teller) -> Outcome:
    """The whole network, in every fold and then on all; if the split is in parts, once."""
    scores = np.full(split.folds.shape, np.nan)
    for repeat, fold, train, test in split.fits():
        stop = split.validation(repeat, fold)
        kept = work / f"network-{repeat + 1}-{fold}.pt"
        shipped = tuning.fit(images, np.setdiff1d(train, stop), stop, settings, kept, tell)
        scores[repeat, test] = tuning.logits_of(shipped, images, test, settings)
    if not split.parts:
        stop = np.flatnonzero(split.folds[0] == 0)
        train = np.flatnonzero(split.folds[0] != 0)
        shipped = tuning.fit(images, train, stop, settings, work / "network-shipped.pt", tell)
    return Outcome(
        scores,
        lambda slope, offset: bundle.exported(
            tuning.graph(shipped.cpu(), settings.architecture, slope, offset), features.FULL
        ),
        features.FULL,
        {
            "method": "whole network, Adam, binary cross-entropy, stopped early on validation images",
            "learning_rate": tuning.LEARNING_RATE,
            "batch": tuning.BATCH,
            "most_epochs": settings.epochs,
        },
    )


def _graph(
    head: recipe.Head, slope: float, offset: float, architecture: str, network: nn.Module
) -> onnx.ModelProto:
    parts = networks.coarse_stages(network)
    prepare = CoarseNormalise(*networks.pixel_statistics(architecture))
    graph = recipe.graph(head, slope, offset, prepare, parts)
    return bundle.exported(graph, features.COARSE)


def _pairs(images: Images, first: Ints) -> list[tuple[Ints, Ints]]:
    others = np.setdiff1d(np.arange(len(images)), first)
    return [(others, first), (first, others)] if len(others) else []


def _across(
    data: recipe.Data, measured: features.Features, trained: Ints, tested: Ints, inner: int
) -> Across:
    best, _ = data.choose(trained, inner)
    return Across(
        trained,
        tested,
        best,
        data.head(best, trained)(data.features)[tested],
        recipe.starting_point(measured.full, data.images, trained, inner)[tested],
        recipe.starting_point(measured.coarse[-1], data.images, trained, inner)[tested],
    )


def _keep(path: Path, **arrays: Any) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
