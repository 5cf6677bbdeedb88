"""Trains a classifier of normal and abnormal chest X-rays. Writes its model bundle and its card.

The model that ships, in about half an hour on two cores:

    .venv-training/bin/python -m training.train --data nih-cxr-128 --split training/split.csv \\
        --others nih-cxr --collections images-512 other-patients-64 --sizes images-512 originals \\
        --about training/about_default.json --out containers/classifier/model --card MODEL_CARD.md \\
        --float training/nih-abnormal-float --work build/training --log docs/training-log.txt

If 8 bits cost too much, the model ships in float, and --float is not used.

DIR/labels.csv of --data has columns for the image (file, key, image or Image Index), the patient (patient_id
or Patient ID) and the label (abnormal, 0 or 1; or Finding Labels). With a column radiologist (normal, or what
a radiologist saw; empty if none read the image) the model learns this too. Columns view, age, sex and
pixel_spacing_mm are used to measure groups.

If you stop a training, the same command goes on after the last finished epoch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from classifier.bundle import BundleError
from classifier.model import Model
from classifier.preprocessing import Preprocessing
from rich.console import Console

from cxr.errors import InputError
from cxr.evaluation.cohort import TrainingSet, fingerprint
from cxr.evaluation.labels import ABNORMAL
from cxr.files import whole_file
from training import bundle, card, data, evaluation, fitting, measures, quantise, sizes, splits
from training.data import Bytes, Floats, Images
from training.evaluation import Scored
from training.fitting import Settings
from training.networks import ARCHITECTURES, Network
from training.progress import ProgressDisplay

PROGRAM = ".venv-training/bin/python -m training.train"
ABOUT = {  # fields of --about, with their defaults
    "name": "trained-here",
    "version": "1.0.0",
    "intended_use": "Research use only, not for patient care: not shown to work on your patients.",
    "licence": "Not given. The licences of the images and of the ImageNet weights apply.",
    "attribution": "Not given.",
    "labels_by": "the labels",
    "limitations": [],
}
MOST_AUC_LOST = 0.005  # by 8 bits, on the validation patients
QUICK = 32  # images of each part, with --quick


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder of labels.csv and the X-rays")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the bundle")
    add(
        "--split",
        type=Path,
        metavar="CSV",
        help="columns patient and part, which is train, validation or test (default: a new split, which is "
        "written to split.csv in --work)",
    )
    add("--others", type=Path, metavar="DIR", help="folder of labels.csv and X-rays to measure on only")
    add(
        "--collections",
        nargs="+",
        default=[],
        metavar="NAME",
        help="folders in --others; images of patients in training are left out",
    )
    add(
        "--sizes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="folders in --others whose files are scored in several sizes and formats too",
    )
    add("--compare-with", type=Path, metavar="DIR", help="a bundle to compare with on the test patients")
    add("--about", type=Path, metavar="JSON", help="name, version, licence, attribution, ... of the model")
    add("--card", type=Path, metavar="FILE", help="the model card (default: MODEL_CARD.md in --out)")
    add("--log", type=Path, metavar="FILE", help="for the lines that are printed too")
    add("--work", type=Path, metavar="DIR", help="folder for finished epochs (default: work in --out)")
    add("--float", type=Path, metavar="DIR", help="folder for the model in float, if 8 bits ship")
    add("--architecture", choices=ARCHITECTURES, default=Settings.architecture)
    add("--side", type=int, default=Settings.side, help="pixels that the network sees (default: %(default)s)")
    add("--epochs", type=int, default=Settings.epochs, help="default: %(default)s")
    add("--seed", type=int, default=0)
    add(
        "--validation-only",
        action="store_true",
        help="stop before the test patients are looked at: to choose among settings",
    )
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK} images of each part, one epoch: tests the command, and makes no useful model",
    )
    options = parser.parse_args(arguments)
    options.work = options.work or options.out / "work"
    options.card = options.card or options.out / "MODEL_CARD.md"
    if (options.collections or options.sizes) and not options.others:
        parser.error("--collections and --sizes: folders in --others, which is not given")
    return options


def train(options: argparse.Namespace, console: Console) -> None:
    """Train the model, measure it, and write its bundle and its card. Raises InputError and OSError."""
    about = ABOUT | (_read_about(options.about) if options.about else {})
    images = data.read_labels(options.data / "labels.csv", options.data)
    parts = splits.read(options.split) if options.split else splits.make(images, options.seed)
    chosen = {part: splits.indices(parts, images, part) for part in splits.PARTS}
    if options.quick:
        chosen = {part: indices[:QUICK] for part, indices in chosen.items()}
    fitted_on, validated_on, tested_on = (images[chosen[part]] for part in splits.PARTS)
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.split:
        splits.write(parts, options.work / "split.csv")

    settings = Settings(
        architecture=options.architecture,
        side=options.side,
        epochs=1 if options.quick else options.epochs,
        batch=16 if options.quick else Settings.batch,
        seed=options.seed,
    )
    with ProgressDisplay(console, options.log) as progress:
        preprocessing = Preprocessing(channels=1, resize=settings.pixels, crop=settings.pixels)
        progress.print(f"{len(fitted_on)} images to train on, {len(validated_on)} to make choices on")
        pixels, validation_pixels = (_read_pixels(x, preprocessing) for x in (fitted_on, validated_on))
        graphs, choices = _fit(
            pixels, fitted_on, validation_pixels, validated_on, settings, options, progress
        )
        if options.validation_only:
            return
        fields = {
            **{name: value for name, value in about.items() if name != "limitations"},
            "architecture": ARCHITECTURES[settings.architecture],
            "labels": [{"name": ABNORMAL, "threshold": choices["threshold"]}],
            "score": "probability",
            "cam": True,
            "preprocessing": {name: getattr(preprocessing, name) for name in ("channels", "resize", "crop")},
            "training_range": evaluation.training_range(pixels),
            "training": {
                **asdict(settings),
                **{
                    name: choices[name]
                    for name in ("outputs", "score", "temperature", "offset", "quantisation")
                },
                "parts": {part: images.describe(indices) for part, indices in chosen.items()},
            },
            "limitations": about["limitations"],
        }
        unmeasured = options.work / "bundle"
        unmeasured.mkdir(exist_ok=True)
        bundle.write_model(graphs["ships"], fields, unmeasured)
        progress.print("measuring on the test patients")
        used = images[np.concatenate([chosen[splits.TRAIN], chosen[splits.VALIDATION]])]
        metrics = _measure(Model(unmeasured), images, tested_on, used, options, about["labels_by"], progress)
        metrics["int8"] = choices["int8"]
        written = bundle.write(graphs["ships"], fields | {"metrics": metrics}, used, options.out)
        if options.float and "float" in graphs:
            in_float = {"name": f"{about['name']}-float", "metrics": {}}
            options.float.mkdir(parents=True, exist_ok=True)
            bundle.write_model(graphs["float"], fields | in_float, options.float)
        with whole_file(options.card) as unfinished:
            unfinished.write_text(card.render(written))
        progress.print(f"wrote {options.out}, {options.card}; sha256 {written['sha256']}")


def _fit(
    pixels: Bytes,
    fitted_on: Images,
    validation_pixels: Bytes,
    validated_on: Images,
    settings: Settings,
    options: argparse.Namespace,
    progress: ProgressDisplay,
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """The graph that `ships`, the one in `float` if it does not, and what was chosen on validation."""
    read = bool((fitted_on.radiologist != "").any())

    def validate(network: Network) -> Floats:
        return fitting.compute_logits(fitting.build_scorer(network, settings, read), validation_pixels)

    network = fitting.fit(
        *(pixels, fitting.make_targets(fitted_on), settings, options.work, progress),
        lambda network: f"validation AUC {evaluation.show_auc(validated_on, validate(network))}",
    )
    logits = validate(network)
    slope, offset = measures.fit_temperature(validated_on.abnormal, logits)
    preprocessing = Preprocessing(channels=1, resize=settings.pixels, crop=settings.pixels)
    exact = bundle.to_onnx(fitting.build_scorer(network, settings, read, slope, offset), preprocessing)
    sample = [pixels[place][None] for place in quantise.sample_indices(len(pixels))]
    small = quantise.quantise(exact, sample)
    planes = list(validation_pixels[:, None])
    exact_scores, small_scores = (
        quantise.compute_output(graph, "scores", planes)[:, 0] for graph in (exact, small)
    )
    change = evaluation.compare(Scored(validated_on, small_scores, 0.5), exact_scores)
    int8 = bool(change) and all(one["difference"]["value"] >= -MOST_AUC_LOST for one in change.values())
    for name, one in change.items():
        progress.print(
            f"validation, {name}: AUC {one['auc_before']['value']} in float; in 8 bits "
            f"{one['difference']['value']:+.3f}"
        )
    progress.print("8 bits ship" if int8 else "float ships")
    scores = small_scores if int8 else exact_scores
    return {"ships": small, "float": exact} if int8 else {"ships": exact}, {
        "outputs": ", ".join(
            [
                "abnormal by the labels",
                *["abnormal by radiologists"] * read,
                f"{len(fitting.FINDINGS)} findings",
            ]
        ),
        "score": f"the mean over the image and its mirror image of {fitting.LABEL_SHARE:.2f} of the logit of "
        f"abnormal by the labels and {1 - fitting.LABEL_SHARE:.2f} of that by radiologists"
        if read
        else "the mean logit of the image and its mirror image",
        "threshold": measures.balanced_threshold(validated_on.abnormal, scores),
        "temperature": round(1 / slope, 4),
        "offset": round(offset, 4),
        "quantisation": f"{quantise.DESCRIPTION}; ranges from {len(sample)} images" if int8 else "none",
        "int8": {"ships": int8, "most_auc_lost": MOST_AUC_LOST, "validation": change},
    }


def _measure(
    model: Model,
    images: Images,
    tested_on: Images,
    used: Images,
    options: argparse.Namespace,
    labels_by: str,
    progress: ProgressDisplay,
) -> dict[str, Any]:
    (threshold,) = (float(limit) for limit in model.thresholds.values())
    test = Scored(tested_on, _score(model, tested_on), threshold)
    found: dict[str, Any] = {
        "interval": "95%, patients sampled (1000 times)",
        "scores": "of patients whose images were used for neither training nor any choice",
        "collections": {},
    }
    collections = {"test patients": test}
    if options.collections:
        others = data.read_labels(options.others / "labels.csv", options.others, options.collections)
        others = others[np.flatnonzero(~np.isin(others.patient, used.patient))].with_readings(images)
        scores = _score(model, others)
        for name in options.collections:
            members = others.in_collection(name)
            collections[name] = Scored(others[members], scores[members], threshold)
    for name, scored in collections.items():
        found["collections"][f"{name}, {labels_by}"] = evaluation.measure(scored)
        if len(scored.read.scores):
            of_radiologists = evaluation.measure(scored, radiologists=True)
            found["collections"][f"{name}, radiologists"] = of_radiologists
    for name, one in found["collections"].items():
        progress.print(f"{name}: {card.describe(one)}")
    found["disagreement"] = evaluation.measure_disagreement(images)
    found["groups"] = evaluation.measure_groups(test)
    found["calibration"] = evaluation.measure_calibration(test)
    if options.compare_with:
        old = Model(options.compare_with)
        change = evaluation.compare(test, _score(old, tested_on))
        trained_on = TrainingSet.read(options.compare_with)
        names = [Path(name).name for name in tested_on.name.tolist()]
        seen = sum(fingerprint(name) in trained_on.images for name in names) if trained_on else 0
        found["compared_with"] = {"model": old.name, "trained_on": seen, **change}
        for name, one in change.items():
            progress.print(f"AUC less that of {old.name}, {name}: {card.estimate(one['difference'])}")
    found["sizes"] = {}
    for name in options.sizes:
        files = sorted(path for path in (options.others / name).rglob("*.png"))
        found["sizes"][name] = sizes.compare_versions(model, files[:4] if options.quick else files)
        progress.print(f"{name}, scores of any two versions: {found['sizes'][name]['any_two']}")
    return found


def _score(model: Model, images: Images) -> Floats:
    """Scores [images] of files, as the classifier gives them. Raises InputError."""
    scores = []
    for file in images.file.tolist():
        (score,) = model.score([model.prepare(Path(file).read_bytes())[0]])[0].values()
        scores.append(float(score))
    return np.array(scores)


def _read_pixels(images: Images, preprocessing: Preprocessing) -> Bytes:
    """[images, height, width]. Raises InputError."""
    return np.stack([data.read_pixels(file, preprocessing)[0] for file in images.file.tolist()])


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected a JSON file") from None
    if not isinstance(about, dict) or not about.keys() <= ABOUT.keys():
        raise InputError(f"{path}: expected an object with some of the fields {', '.join(ABOUT)}")
    return about


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    try:
        train(options, Console())
    except (BundleError, InputError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


if __name__ == "__main__":
    main()
