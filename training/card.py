"""MODEL_CARD.md: model.json in a form to read. Every figure in it comes from there."""

from collections.abc import Iterable
from typing import Any

from tools.markdown import table

HEADER = ("images of", "images", "patients", "abnormal", "AUC", "average precision")


def render(card: dict[str, Any]) -> str:
    """The page. `card` is model.json as this project's training writes it."""
    metrics = card["metrics"]
    (label,) = card["labels"]
    parts = [
        f"# Model card: {card['name']} {card['version']}",
        f"> {card['intended_use']}",
        "Written by `python -m training.train` from what it measured; `model.json` in the bundle holds the "
        f"same figures. Intervals in brackets: {metrics['interval']}.",
        "## What it is",
        _bullets(
            [
                f"{card['architecture']}; input {_fields(card['preprocessing'])}; SHA-256 `{card['sha256']}`",
                f"one label, `{label['name']}`, positive from {label['threshold']} on: there, sensitivity "
                "and specificity were the most alike",
                f"trained: {card['training']['method']}",
                *(f"{_words(name)}: {_value(value)}" for name, value in _rest(card["training"])),
                "the score is a probability as far as the calibration below goes; a class activation map "
                "comes with it, which is not evidence of where a finding is",
            ]
        ),
        "## What it is worth",
        f"Scores {metrics['scores']}. AUC 0.5 is chance.",
        table(HEADER, (_row(name, found) for name, found in metrics["collections"].items())),
    ]
    for name, found in metrics["collections"].items():
        for title, groups in (
            ("view", found["by_view"]),
            ("pixel spacing of the detector, mm", found["by_detector"]),
        ):
            if groups:
                parts += [
                    f"Within {name}:",
                    table((title, *HEADER[1:]), (_row(value, group) for value, group in groups.items())),
                ]
    if metrics["across_collections"]:
        parts += [
            "Trained on one collection and tested on all images of the other, the recipe chosen on the "
            "former alone. The starting point, a logistic regression on the same network's features of "
            "224 x 224 pixels, was trained and tested on the same images; on coarse pixels it sees no more "
            "detail than the model does:",
            table(
                (
                    "trained on",
                    "tested on",
                    *HEADER[1:],
                    "AUC of the starting point",
                    "difference",
                    "AUC of the starting point on coarse pixels",
                ),
                (
                    (found["trained_on"]["collection"], *_row(found["collection"], found), *_against(found))
                    for found in metrics["across_collections"]
                ),
            ),
        ]
    if "starting_point" in metrics:
        found = metrics["starting_point"]
        parts += [
            f"Against the same starting point, fitted on the {found['collection']} images of the same folds "
            f"and tested on {_whom(found)}: AUC {_estimate(found['auc'])} against "
            f"{_estimate(found['starting_point_auc'])}, a difference of {_estimate(found['difference'])}, "
            "paired by patient.",
        ]
    if "against_fp32" in metrics:
        found = metrics["against_fp32"]
        parts += [
            "### What 8 bits cost",
            f"Against {found['model']}, the same network in float: the same recipe in every fold, paired by "
            "patient. Log-loss is after calibration on the other folds of the collection.",
            table(
                ("images of", *HEADER[1:4], "change of AUC", "change of log-loss"),
                (
                    (
                        one["collection"],
                        *(str(one[key]) for key in ("images", "patients", "abnormal")),
                        _estimate(one["auc"]),
                        _estimate(one["log_loss"]),
                    )
                    for one in found["collections"]
                ),
            ),
        ]
    parts += [
        "### What else tells the label",
        "AUC of plain properties of a file on the same images, the higher the more abnormal. One far from "
        "0.5, on either side, means that the label could be read without looking at the chest.",
        table(
            ("images of", *next(iter(metrics["collections"].values()))["nuisances"]),
            (
                (name, *map(_estimate, found["nuisances"].values()))
                for name, found in metrics["collections"].items()
            ),
        ),
        "### At the threshold, and as a probability",
        f"On {_whom(metrics['calibration'])}; {metrics['calibration']['fitted']}. "
        f"Sensitivity {_estimate(metrics['calibration']['sensitivity'])}, "
        f"specificity {_estimate(metrics['calibration']['specificity'])}.",
        table(
            ("", "calibration slope (1 is best)", "Brier score", "log-loss"),
            (
                (f"{when} calibration", *map(_estimate, metrics["calibration"][when].values()))
                for when in ("before", "after")
            ),
        ),
        "## Limitations",
        _bullets(card["limitations"]),
        "## Licence and attribution",
        card["licence"],
        card["attribution"],
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    counts = (str(found[key]) for key in ("images", "patients", "abnormal"))
    return (name, *counts, _estimate(found["auc"]), _estimate(found["average_precision"]))


def _against(found: dict[str, Any]) -> Iterable[str]:
    return (
        _estimate(found[key]) for key in ("starting_point_auc", "difference", "coarse_starting_point_auc")
    )


def _whom(found: dict[str, Any]) -> str:
    return (
        f"{found['collection']} ({found['images']} images, {found['patients']} patients, "
        f"{found['abnormal']} abnormal)"
    )


def _estimate(found: dict[str, Any] | None) -> str:
    if found is None:
        return "too few"
    low, high = found["ci95"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _rest(training: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in training.items() if name != "method")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_value, value))
    if isinstance(value, dict):
        return _whom(value) if "patients" in value else _fields(value)
    return str(value)


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{_words(name)} {value}" for name, value in fields.items())


def _words(name: str) -> str:
    return name.replace("_", " ")
