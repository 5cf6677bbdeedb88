"""Fits a linear head on frozen features of an ImageNet network, and chooses the recipe for it.

The target can be the number of findings, which holds more information than abnormal or not. Target and
features are centred within each group of images, so that the head gains nothing by recognising the group. Two
collections, for example, have different detectors, patients and shares of abnormal images. From collections
other than the first, only abnormal images are used, because their normal images may have been collected
separately. docs/decisions/0005-default-model.md lists what was tried.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from training.data import Floats, Images, Ints
from training.measures import auc
from training.scorer import Scorer

OWN, OTHERS = "the first collection", "the abnormal images of the others"
GROUPS: dict[str, dict[str, float]] = {  # name -> groups to fit on, with the weight of an image
    OWN: {OWN: 1},
    OTHERS: {OTHERS: 1},
    "both groups, weighted 0.3 and 1": {OWN: 0.3, OTHERS: 1},
    "both groups": {OWN: 1, OTHERS: 1},
}
YES_OR_NO, COUNT, UP_TO_3 = "abnormal or not", "number of findings", "number of findings up to 3"
STRENGTHS = (1, 3, 10, 30, 100)  # of the ridge, in mean squared features
STAGES = 2  # a recipe may cut the network after each of the first two stages


@dataclass(frozen=True)
class Recipe:
    """A way to fit a head."""

    stage: int  # the last one used, of `networks.stages`
    groups: str  # of GROUPS
    target: str
    strength: float

    def __str__(self) -> str:
        return f"{self.target}, on {self.groups}, ridge {self.strength:g}, stage {self.stage + 1}"


@dataclass(frozen=True, eq=False)
class Head:
    """A score of `features` [images, C] @ weight [C] + bias.

    On the images that it was fitted on, its mean is 0 and its standard deviation 1.
    """

    stage: int
    weight: Floats
    bias: float

    def __call__(self, features: Sequence[Floats]) -> Floats:
        scores: Floats = features[self.stage] @ self.weight + self.bias
        return scores


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Images with their pooled features [images, C] after each stage of the network."""

    images: Images
    features: Sequence[Floats]

    def recipes(self, groups: Sequence[str]) -> list[Recipe]:
        """All recipes that the inner loop chooses from."""
        return [
            Recipe(stage, group, target, strength)
            for stage in range(min(STAGES, len(self.features)))
            for group in groups
            for target in (YES_OR_NO, COUNT, UP_TO_3)
            for strength in STRENGTHS
            if target != YES_OR_NO or group == OWN  # all images of the others are abnormal
        ]

    def targets(self, name: str) -> Floats:
        """The target [images] of that name."""
        counts = self.images.finding_count
        return {YES_OR_NO: np.minimum(counts, 1), COUNT: counts, UP_TO_3: np.minimum(counts, 3)}[name]

    def members(self, train: Ints, groups: str) -> list[tuple[Ints, float]]:
        """Groups of two or more images to fit on, each with the weight of an image."""
        first, *others = self.images.collections
        found = []
        for kind, weight in GROUPS[groups].items():
            for collection in [first] if kind == OWN else others:
                group = train[self.images.collection[train] == collection]
                found.append((group if kind == OWN else group[self.images.abnormal[group] == 1], weight))
        return [(group, weight) for group, weight in found if len(group) > 1]

    def fit_weights(self, recipes: Sequence[Recipe], train: Ints) -> list[Floats]:
        """Weights [C] of each recipe; all have the same stage and groups, and so one decomposition."""
        features, groups = self.features[recipes[0].stage], self.members(train, recipes[0].groups)
        x = np.concatenate([features[group] - features[group].mean(0) for group, _ in groups])
        root = np.sqrt(np.concatenate([np.full(len(group), weight) for group, weight in groups]))
        scale = x.std(0) + 1e-6
        u, s, vt = np.linalg.svd(root[:, None] * x / scale, full_matrices=False)
        fitted = []
        for recipe in recipes:
            target = self.targets(recipe.target)
            y = np.concatenate([target[group] - target[group].mean() for group, _ in groups])
            ridge = recipe.strength * (s**2).sum() / len(root)
            fitted.append(vt.T @ (s / (s**2 + ridge) * (u.T @ (root * y))) / scale)
        return fitted

    def fit_head(self, recipe: Recipe, train: Ints) -> Head:
        """The head, standardised on the first collection in `train`, on which it is judged."""
        (weight,) = self.fit_weights([recipe], train)
        judged = train[self.images.collection[train] == self.images.collection[train[0]]]
        scores = self.features[recipe.stage][judged] @ weight
        deviation = scores.std() or 1.0
        return Head(recipe.stage, weight / deviation, -scores.mean() / deviation)

    def choose(self, train: Ints, folds: int, repeats: int = 2) -> tuple[Recipe, float]:
        """The best recipe and its AUC, a mean over collections and views, measured out of fold in `train`."""
        present = [c for c in self.images.collections if (self.images.collection[train] == c).any()]
        has_own = present[0] == self.images.collections[0]
        groups = list(GROUPS) if len(present) > 1 and has_own else [OWN if has_own else OTHERS]
        by_fit = defaultdict(list)
        for recipe in self.recipes(groups):
            by_fit[recipe.stage, recipe.groups].append(recipe)
        found = defaultdict(list)
        for seed in range(repeats):
            for fit_on, test in self._inner_folds(train, present, folds, seed):
                groups_of_test = self._groups_by_collection_and_view(test)
                for (stage, kind), recipes in by_fit.items():
                    if not self.members(fit_on, kind):
                        continue
                    for recipe, weight in zip(recipes, self.fit_weights(recipes, fit_on), strict=True):
                        scores = self.features[stage] @ weight
                        found[recipe].append(
                            np.mean(
                                [_auc(self.images.abnormal[group], scores[group]) for group in groups_of_test]
                            )
                        )
        means = {recipe: float(np.mean(values)) for recipe, values in found.items()}
        best = max(means, key=lambda recipe: means[recipe])
        return best, means[best]

    def _inner_folds(
        self, train: Ints, collections: Sequence[str], folds: int, seed: int
    ) -> list[tuple[Ints, Ints]]:
        parts = []
        for collection in collections:
            own = train[self.images.collection[train] == collection]
            grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts.append(
                [
                    (own[a], own[b])
                    for a, b in grouped.split(own, self.images.abnormal[own], self.images.patient[own])
                ]
            )
        return [
            (np.concatenate([a for a, _ in same]), np.concatenate([b for _, b in same]))
            for same in zip(*parts, strict=True)
        ]

    def _groups_by_collection_and_view(self, test: Ints) -> list[Ints]:
        """The images of each collection and view that has both classes; all images if none has."""
        kinds = np.stack([self.images.collection[test], self.images.view[test]])
        groups = [test[(kinds == kind[:, None]).all(0)] for kind in np.unique(kinds, axis=1).T]
        return [group for group in groups if len(set(self.images.abnormal[group].tolist())) == 2] or [test]


def score_by_starting_point(features: Floats, images: Images, train: Ints, folds: int) -> Floats:
    """Scores [images] by the obvious first attempt: a logistic regression on standardised features.

    Its regularisation is chosen by patient-grouped cross-validation on `train`.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [1e-4, 1e-3, 1e-2]},
        scoring="roc_auc",
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=0),
    )
    search.fit(features[train], images.abnormal[train], groups=images.patient[train])
    scores = search.decision_function(features)
    # The scale differs with the regularisation, and so between folds. A head is standardised in the same way.
    scaled: Floats = (scores - scores[train].mean()) / scores[train].std()
    return scaled


def build_scorer(
    head: Head, slope: float, offset: float, prepare: nn.Module, parts: Sequence[nn.Module]
) -> Scorer:
    """The head on the stages of the network that it uses, with the calibration in its weights."""
    trunk = nn.Sequential(*parts[: head.stage + 1])
    weight = torch.from_numpy(slope * head.weight)[None]
    return Scorer(prepare, trunk, weight, torch.tensor([slope * head.bias + offset]))


def _auc(abnormal: Ints, scores: Floats) -> float:
    return float(auc(abnormal, scores, np.ones((1, len(scores))))[0])
