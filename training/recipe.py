"""A linear head on the frozen features of an ImageNet network, and how its recipe is chosen.

The target can be the number of findings, which says more than yes or no, and both the target and the features
are centred within each group of images: a head can then not profit from telling groups apart, such as two
collections with their own detectors, patients and share of abnormal images. Of collections other than the
first only the abnormal images are fitted on, because their normal ones may have been collected apart.
docs/decisions/0005-default-model.md has what was tried.
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
GROUPS: dict[str, dict[str, float]] = {  # what is fitted on, and the weight of an image
    OWN: {OWN: 1},
    OTHERS: {OTHERS: 1},
    "both groups, weighted 0.3 and 1": {OWN: 0.3, OTHERS: 1},
    "both groups": {OWN: 1, OTHERS: 1},
}
YES_OR_NO, COUNT, UP_TO_3 = "abnormal or not", "number of findings", "number of findings up to 3"
STRENGTHS = (1, 3, 10, 30, 100)  # of the ridge, in mean squared features
STAGES = 2  # of the network, that the recipe may cut it after


@dataclass(frozen=True)
class Recipe:
    """One way to fit a head."""

    stage: int  # of `networks.stages`, the last one used
    groups: str  # of GROUPS
    target: str
    strength: float

    def __str__(self) -> str:
        return f"{self.target}, on {self.groups}, ridge {self.strength:g}, stage {self.stage + 1}"


@dataclass(frozen=True, eq=False)
class Head:
    """`features` [images, C] @ weight [C] + bias: mean 0 and deviation 1 where it was fitted."""

    stage: int
    weight: Floats
    bias: float

    def __call__(self, features: Sequence[Floats]) -> Floats:
        scores: Floats = features[self.stage] @ self.weight + self.bias
        return scores


@dataclass(frozen=True, eq=False)
class Data:
    """Images, and their pooled features [images, C] after each stage of the network."""

    images: Images
    features: Sequence[Floats]

    def recipes(self, groups: Sequence[str]) -> list[Recipe]:
        """All that the inner loop chooses from."""
        return [
            Recipe(stage, group, target, strength)
            for stage in range(min(STAGES, len(self.features)))
            for group in groups
            for target in (YES_OR_NO, COUNT, UP_TO_3)
            for strength in STRENGTHS
            if target != YES_OR_NO or group == OWN  # the others' images are all abnormal
        ]

    def targets(self, name: str) -> Floats:
        counts = self.images.finding_count
        return {YES_OR_NO: np.minimum(counts, 1), COUNT: counts, UP_TO_3: np.minimum(counts, 3)}[name]

    def members(self, train: Ints, groups: str) -> list[tuple[Ints, float]]:
        """Groups of images to fit on, each with the weight of its images; none has fewer than two."""
        first, *others = self.images.collections
        found = []
        for kind, weight in GROUPS[groups].items():
            for collection in [first] if kind == OWN else others:
                of = train[self.images.collection[train] == collection]
                found.append((of if kind == OWN else of[self.images.abnormal[of] == 1], weight))
        return [(group, weight) for group, weight in found if len(group) > 1]

    def fit(self, recipes: Sequence[Recipe], train: Ints) -> list[Floats]:
        """Weights [C] by each of some recipes of one stage and the same groups: one decomposition for all."""
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

    def head(self, recipe: Recipe, train: Ints) -> Head:
        """Fitted, and standardised on the first collection among `train`, the one that it is judged on."""
        (weight,) = self.fit([recipe], train)
        judged = train[self.images.collection[train] == self.images.collection[train[0]]]
        scores = self.features[recipe.stage][judged] @ weight
        deviation = scores.std() or 1.0
        return Head(recipe.stage, weight / deviation, -scores.mean() / deviation)

    def choose(self, train: Ints, folds: int, repeats: int = 2) -> tuple[Recipe, float]:
        """The recipe with the best mean AUC over collections and views, out of fold within `train`."""
        present = [c for c in self.images.collections if (self.images.collection[train] == c).any()]
        has_own = present[0] == self.images.collections[0]
        groups = list(GROUPS) if len(present) > 1 and has_own else [OWN if has_own else OTHERS]
        by_fit = defaultdict(list)
        for recipe in self.recipes(groups):
            by_fit[recipe.stage, recipe.groups].append(recipe)
        found = defaultdict(list)
        for seed in range(repeats):
            for fit_on, test in self._inner_folds(train, present, folds, seed):
                cells = self._cells(test)
                for (stage, kind), recipes in by_fit.items():
                    if not self.members(fit_on, kind):
                        continue
                    for recipe, weight in zip(recipes, self.fit(recipes, fit_on), strict=True):
                        scores = self.features[stage] @ weight
                        found[recipe].append(
                            np.mean([_auc(self.images.abnormal[cell], scores[cell]) for cell in cells])
                        )
        means = {recipe: float(np.mean(values)) for recipe, values in found.items()}
        best = max(means, key=lambda recipe: means[recipe])
        return best, means[best]

    def _inner_folds(
        self, train: Ints, collections: Sequence[str], folds: int, seed: int
    ) -> list[tuple[Ints, Ints]]:
        parts = []
        for collection in collections:
            of = train[self.images.collection[train] == collection]
            grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts.append(
                [
                    (of[a], of[b])
                    for a, b in grouped.split(of, self.images.abnormal[of], self.images.patient[of])
                ]
            )
        return [
            (np.concatenate([a for a, _ in same]), np.concatenate([b for _, b in same]))
            for same in zip(*parts, strict=True)
        ]

    def _cells(self, test: Ints) -> list[Ints]:
        """Images of one collection in one view, where both classes are there."""
        kinds = np.stack([self.images.collection[test], self.images.view[test]])
        cells = [test[(kinds == kind[:, None]).all(0)] for kind in np.unique(kinds, axis=1).T]
        return [cell for cell in cells if len(set(self.images.abnormal[cell].tolist())) == 2] or [test]


def starting_point(features: Floats, images: Images, train: Ints, folds: int) -> Floats:
    """Scores [images] by what anybody would try first: standardised features and a logistic regression.

    Its strength is chosen by patient-grouped cross-validation on the images that it is fitted on.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [1e-4, 1e-3, 1e-2]},
        scoring="roc_auc",
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=0),
    )
    search.fit(features[train], images.abnormal[train], groups=images.patient[train])
    scores = search.decision_function(features)
    # On one scale in all folds, as a head's are: their strengths differ, and with them the scale.
    scaled: Floats = (scores - scores[train].mean()) / scores[train].std()
    return scaled


def graph(head: Head, slope: float, offset: float, prepare: nn.Module, parts: Sequence[nn.Module]) -> Scorer:
    """The head with its calibration folded in, on as much of the network as it uses."""
    trunk = nn.Sequential(*parts[: head.stage + 1])
    weight = torch.from_numpy(slope * head.weight)[None]
    return Scorer(prepare, trunk, weight, torch.tensor([slope * head.bias + offset]))


def _auc(abnormal: Ints, scores: Floats) -> float:
    return float(auc(abnormal, scores, np.ones((1, len(scores))))[0])
