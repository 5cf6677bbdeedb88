"""The two ways to train: a head on frozen features, or the whole network. Finished folds are reused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from classifier.images import Preprocessing
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from cxr.files import whole_file
from training import features, networks, recipe, tuning
from training.data import Floats, Images, Ints
from training.progress import Teller
from training.splits import Split


@dataclass(frozen=True, eq=False)
class Across:
    """A model fitted on some collections and tested on all images of another."""

    trained_on: Ints
    tested_on: Ints
    scores: Floats  # of tested_on
    starting_point: Floats  # of tested_on
    coarse_starting_point: Floats  # of tested_on, by a network that sees coarse pixels as well


@dataclass(frozen=True, eq=False)
class Outcome:
    """Scores of images by models that saw no image of the patient, and the model fitted on all.

    Scores are [repeats, images], NaN where an image is never tested.
    """

    scores: Floats
    graph: Callable[[float, float], nn.Module]  # of slope and offset, the calibration of the scores
    preprocessing: Preprocessing
    how: dict[str, Any]
    starting_point: Floats | None = None
    across: list[Across] = field(default_factory=list)


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
    chosen: Counter[str] = Counter()
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
                chosen[str(saved["recipe"])] += 1
                tell.say(f"split {repeat + 1}, fold {fold}: {saved['recipe']}")
            tell.at("folds", sum(chosen.values()), fits)
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
        lambda slope, offset: recipe.graph(
            fitted, slope, offset, networks.Coarse(architecture), networks.stages(network)
        ),
        features.COARSE,
        {
            "method": "ridge regression on frozen features, group-centred; recipe chosen in an inner loop",
            "recipe": str(best),
            "recipes_in_the_inner_loop": compared,
            "features": len(fitted.weight),
            "chosen_in_outer_folds": [f"{count} x {text}" for text, count in chosen.most_common()],
            "inner_auc": round(inner_auc, 3),
        },
        start,
        across,
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
        lambda slope, offset: tuning.graph(shipped.cpu(), settings.architecture, slope, offset),
        features.FULL,
        {
            "method": "whole network, Adam, binary cross-entropy, stopped early on validation images",
            "learning_rate": tuning.LEARNING_RATE,
            "batch": tuning.BATCH,
            "most_epochs": settings.epochs,
        },
    )


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
        data.head(best, trained)(data.features)[tested],
        recipe.starting_point(measured.full, data.images, trained, inner)[tested],
        recipe.starting_point(measured.coarse[-1], data.images, trained, inner)[tested],
    )


def _keep(path: Path, **arrays: Any) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
