"""Renders MODEL_CARD.md from model.json. Every figure on the page comes from model.json."""

from collections.abc import Iterable
from typing import Any

from tools.markdown import table

COUNTS = ("images", "patients", "abnormal")
AT_THRESHOLD = ("sensitivity", "specificity")


def render(card: dict[str, Any]) -> str:
    """The page in Markdown. `card` is the content of a model.json that training.train wrote."""
    metrics, training = card["metrics"], card["training"]
    (label,) = card["labels"]
    labels_by = card["labels_by"]
    parts = [
        f"# Model card: {card['name']} {card['version']}",
        f"> {card['intended_use']}",
        f"Written by `python -m training.train`, which measured every figure. Scores {metrics['scores']}. "
        f"In brackets: {metrics['interval']}. AUC 0.5 is chance.",
        "## How good it is",
        table(
            ("images, and who labelled them", *COUNTS, "AUC", *AT_THRESHOLD),
            (
                (name, *_counts(found), estimate(found["auc"]), *(estimate(found[x]) for x in AT_THRESHOLD))
                for name, found in metrics["collections"].items()
                if found["auc"]
            ),
        ),
        f"Sensitivity and specificity are those at the shipped threshold, {label['threshold']}. There, the "
        f"two were most alike on the validation patients, by {labels_by}.",
    ]
    parts += _compared(metrics, labels_by)
    parts += _groups(metrics["groups"], labels_by)
    parts += _calibration(metrics, labels_by)
    parts += _sizes(metrics)
    limitations = [*card["limitations"], *_disagreement(metrics["disagreement"], labels_by)]
    parts += ["## What it cannot tell", *_bullets(limitations), "## How it was made"]
    shown = {
        name: value
        for name, value in training.items()
        if not isinstance(value, dict) and name not in ("outputs", "score")
    }
    parts += _bullets(
        [
            f"{card['architecture']} from ImageNet weights, all layers trained. "
            f"Outputs: {training['outputs']}. The score is made of {training['score']}",
            "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()),
            *(
                f"{part}: {found['images']} images ({found['read_by_radiologists']} read by radiologists) of "
                f"{found['patients']} patients, {found['abnormal']} abnormal by {labels_by}"
                for part, found in training["parts"].items()
            ),
            _int8(metrics["int8"], labels_by),
            f"SHA-256 `{card['sha256']}`",
        ]
    )
    parts += ["## Licence and attribution", card["licence"], card["attribution"]]
    return "\n\n".join(parts) + "\n"


def describe(found: dict[str, Any]) -> str:
    """Measures of a collection in one line."""
    counts = ", ".join(f"{found[name]} {name}" for name in COUNTS)
    return f"{counts}; AUC {estimate(found['auc'])}"


def estimate(found: dict[str, Any] | None) -> str:
    """A value and its interval."""
    if found is None:
        return "too few"
    low, high = found["ci95"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _counts(found: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{found[name]:,}" for name in COUNTS)


def _compared(metrics: dict[str, Any], labels_by: str) -> list[str]:
    found = metrics.get("compared_with")
    if not found:
        return []
    names = {"labels": labels_by, "read": "radiologists"}
    differences = "; ".join(
        f"by {name}, AUC {found[key]['auc_before']['value']:.3f} before, "
        f"difference {estimate(found[key]['difference'])}"
        for key, name in names.items()
        if key in found
    )
    favoured = f" It was trained on {found['trained_on']} of these images." if found["trained_on"] else ""
    return [f"Against {found['model']} on the same images, paired by patient: {differences}.{favoured}"]


def _groups(groups: dict[str, Any], labels_by: str) -> list[str]:
    rows = [
        (
            f"{column}: {value}",
            str(found["labels"]["images"]),
            estimate(found["labels"]["auc"]),
            estimate(found["read"]["auc"]),
            *(f"{found['labels'][name]['value']:.2f}" for name in AT_THRESHOLD),
        )
        for column, values in groups.items()
        for value, found in values.items()
        if found["labels"]["auc"]
    ]
    header = ("test patients", "images", f"AUC by {labels_by}", "AUC by radiologists", *AT_THRESHOLD)
    return [table(header, rows)] if rows else []


def _calibration(metrics: dict[str, Any], labels_by: str) -> list[str]:
    found = metrics["calibration"]
    if not found:
        return []
    bins = ", ".join(f"{one['mean_score']:.2f} ({one['abnormal']['value']:.2f})" for one in found["bins"])
    return [
        "## As a probability",
        f"By {labels_by}, on the test patients: calibration slope {estimate(found['slope'])} (1 is best), "
        f"Brier score {estimate(found['brier'])}. Mean score of a fifth of the images, and in brackets the "
        f"share that is abnormal: {bins}. Where fewer images are abnormal, scores are too high: "
        "`cxr evaluate --prevalence` tells what becomes of PPV and NPV.",
    ]


def _disagreement(found: dict[str, Any], labels_by: str) -> list[str]:
    if not found:
        return []
    return [
        f"Of the {found['images']:,} images that radiologists read: of those that they read as normal, "
        f"{found['normal_with_label']:.0%} are abnormal by {labels_by}; of those that they read as abnormal, "
        f"{found['abnormal_without_label']:.0%} are normal by {labels_by}. No model can agree with both."
    ]


def _sizes(metrics: dict[str, Any]) -> list[str]:
    folders = metrics["sizes"]
    if not folders:
        return []
    found = {
        name: {**one["versions"], "any two of these and the file": one["any_two"]}
        for name, one in folders.items()
    }
    rows = [
        (version, *(_difference(found[name].get(version)) for name in found))
        for version in dict.fromkeys(x for one in sorted(found.values(), key=len, reverse=True) for x in one)
    ]
    return [
        "## The same X-ray in other files",
        "Absolute difference of the score from that of the file, median and greatest. Smaller versions are "
        "made with a bilinear, antialiased filter.",
        table(("version", *(f"{name} ({one['files']} files)" for name, one in folders.items())), rows),
    ]


def _difference(found: dict[str, float] | None) -> str:
    return f"{found['median']:.3f}, {found['greatest']:.3f}" if found else "-"


def _int8(found: dict[str, Any], labels_by: str) -> str:
    names = {"labels": labels_by, "read": "radiologists"}
    changes = "; ".join(
        f"by {names[key]} {one['auc_before']['value']:.3f}, change {estimate(one['difference'])}"
        for key, one in found["validation"].items()
    )
    return (
        f"{'8 bits ship' if found['ships'] else 'float ships'}: 8 bits may lower the AUC on the validation "
        f"patients by {found['most_auc_lost']} at most. AUC in float, and its change in 8 bits: {changes}"
    )


def _bullets(lines: Iterable[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]
