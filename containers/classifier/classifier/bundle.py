"""A model bundle, `model.onnx` and `model.json`: what the two files must hold.

This is the only check of a bundle. The stack, `cxr`, the build of the image and the classifier all run it.
docs/bundle.md describes every field.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as engine

from classifier.preprocessing import Preprocessing

# What ONNX Runtime raises for a graph that it cannot load or run. They have no base class of their own.
ENGINE_ERRORS = (
    *(engine.EPFail, engine.Fail, engine.InvalidArgument, engine.InvalidGraph, engine.InvalidProtobuf),
    *(engine.NoModel, engine.NoSuchFile, engine.NotImplemented, engine.RuntimeException),
)
SAME_SCORE = 1e-5  # a matrix product gives other last bits for another number of images
ROUNDING = 5e-7  # float32 rounds the sum of a softmax; scores are stored in 6 decimals
TEXTS = ("architecture", "intended_use", "licence", "attribution")


class BundleError(Exception):
    """A bundle that cannot score. The message has one line for each problem: file, field, expected value."""

    def __init__(self, *problems: str) -> None:
        super().__init__(as_lines(problems))


def as_lines(problems: Sequence[str]) -> str:
    """One problem as it is; several as a list, under their number."""
    return "\n  ".join(problems if len(problems) == 1 else [f"{len(problems)} problems:", *problems])


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: what model.json holds, and the graph, loaded."""

    card: dict[str, Any]
    sha256: str  # of model.onnx, in hex
    session: ort.InferenceSession

    @classmethod
    def read(cls, folder: Path, *, trial: bool = False) -> "Bundle":
        """The bundle in a folder. With `trial` it scores test images, which takes six forward passes.

        Raises BundleError with all problems that were found.
        """
        card, graph = _read(folder)
        problems = [f"{folder / 'model.json'}: {problem}" for problem in _card_problems(card)]
        sha256 = hashlib.sha256(graph).hexdigest()
        declared = card.get("sha256", sha256)
        if declared != sha256:
            problems.append(
                f"{folder / 'model.json'}: sha256 is {declared}, but model.onnx hashes to {sha256}"
            )
        try:
            session = open_session(graph)
        except ENGINE_ERRORS as error:
            raise BundleError(
                *problems,
                f"{folder / 'model.onnx'}: expected a graph for ONNX Runtime {ort.__version__}: "
                f"{engine_message(error)}",
            ) from None
        in_graph = list(_graph_problems(card, session))
        if trial and not in_graph:
            in_graph += _trial_problems(card, session)
        problems += [f"{folder / 'model.onnx'}: {problem}" for problem in in_graph]
        if problems:
            raise BundleError(*problems)
        return cls(card, sha256, session)


def open_session(graph: bytes) -> ort.InferenceSession:
    """The graph, loaded as the classifier loads it. Raises ENGINE_ERRORS."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # several images at once use the cores better
    options.log_severity_level = 4  # what it warns of is raised as an error as well, or does not matter
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def engine_message(error: Exception) -> str:
    """An error of ONNX Runtime in one line, without its code and the place in its source."""
    line = " ".join(str(error).split())
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    return re.sub(r"/onnxruntime_src/\S+ .+?\) ", "", line)


def trial_images(preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """Three images [3, channels, crop, crop]: noise, and a ramp in each direction."""
    side, channels = preprocessing.crop, preprocessing.channels
    noise = np.random.default_rng(0).integers(0, 256, (channels, side, side))
    ramp = np.broadcast_to(np.linspace(0, 255, side), (channels, side, side))
    images = np.stack([noise, ramp, ramp.transpose(0, 2, 1)])
    return images.astype(np.float32 if preprocessing.resampling == "gaussian" else np.uint8)


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        graph = (folder / "model.onnx").read_bytes()
    except OSError as error:
        raise BundleError(
            f"{error.filename}: expected a bundle's model.json and model.onnx, but {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / 'model.json'}: expected JSON, but {error}") from None
    if not isinstance(card, dict):
        raise BundleError(f"{folder / 'model.json'}: expected an object, found {type(card).__name__}")
    return card, graph


def _card_problems(card: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of model.json."""
    for name in ("name", "version", "sha256", "labels", "preprocessing"):
        if name not in card:
            yield f"expected a field '{name}', found none"
    for name in ("name", "version", "sha256", *TEXTS):
        if name in card and not (isinstance(card[name], str) and card[name]):
            yield f"{name}: expected text, found {card[name]!r}"
    if "labels" in card:
        yield from _label_problems(card["labels"])
    if "preprocessing" in card:
        try:
            Preprocessing.from_json(card["preprocessing"])
        except (TypeError, ValueError) as error:
            yield str(error)
    if not isinstance(card.get("cam", False), bool):
        yield f"cam: expected true or false, found {card['cam']!r}"
    if card.get("score", "probability") not in ("probability", "operating point"):
        yield f'score: expected "probability" or "operating point", found {card["score"]!r}'
    for name, bounds in _object(card, "training_range").items():
        pair = isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))
        if name not in ("brightness", "contrast") or not pair or bounds[0] > bounds[1]:
            yield f"training_range: expected brightness and contrast, each [least, greatest], found {name}"
    names = label_names(card)
    for label, score in _object(card, "self_test").items():
        if not _is_score(score) or (names and label not in names):
            yield f"self_test: expected a score from 0 to 1 for a label, found {label}: {score!r}"
    for name in ("training_range", "self_test", "training", "metrics"):
        if not isinstance(card.get(name, {}), dict):
            yield f"{name}: expected an object, found {card[name]!r}"
    lines = card.get("limitations", [])
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        yield "limitations: expected a list of sentences"


def _label_problems(labels: Any) -> Iterator[str]:
    if not isinstance(labels, list) or not labels:
        yield f"labels: expected a list of one or more, found {labels!r}"
        return
    names = []
    for label in labels:
        if not isinstance(label, dict):
            yield f"labels: expected objects with name and threshold, found {label!r}"
            continue
        for name in ("name", "threshold"):
            if name not in label:
                yield f"expected a field '{name}', found none in labels"
        if "threshold" in label and not _is_score(label["threshold"]):
            yield f"labels: expected a threshold from 0 to 1, found {label['threshold']!r}"
        if "name" in label and not (isinstance(label["name"], str) and label["name"]):
            yield f"labels: expected a name of one or more letters, found {label['name']!r}"
        names.append(label.get("name"))
    if repeated := sorted({str(name) for name in names if name and names.count(name) > 1}):
        yield f"labels: expected each once, found more than one {', '.join(repeated)}"


def label_names(card: Mapping[str, Any]) -> list[Any]:
    """The names of the labels, as far as `card` has them."""
    labels = card.get("labels")
    listed = labels if isinstance(labels, list) else []
    return [label.get("name") for label in listed if isinstance(label, dict)]


def _object(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = card.get(name)
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_score(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _preprocessing(card: Mapping[str, Any]) -> Preprocessing | None:
    try:
        return Preprocessing.from_json(card["preprocessing"])
    except (KeyError, TypeError, ValueError):
        return None


def _graph_problems(card: Mapping[str, Any], session: ort.InferenceSession) -> Iterator[str]:
    """What is wrong with the names, types and shapes of the graph's inputs and outputs."""
    preprocessing, labels = _preprocessing(card), len(label_names(card))
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    if list(inputs) != ["pixels"]:
        yield f"expected one input, pixels, found {', '.join(inputs) or 'none'}"
    elif preprocessing:
        side, pixels = preprocessing.crop, inputs["pixels"]
        kind = "float" if preprocessing.resampling == "gaussian" else "uint8"
        yield from _shape_problems(pixels, kind, [preprocessing.channels, side, side])
        if pixels.shape and isinstance(pixels.shape[0], int):
            yield f"expected any number of images in pixels, found always {pixels.shape[0]}"
    for name, sizes in (("scores", []), *([("cam", [None, None])] if card.get("cam") is True else [])):
        if name not in outputs:
            yield f"expected an output {name}, found {', '.join(outputs)}"
        elif labels:
            yield from _shape_problems(outputs[name], "float", [labels, *sizes])


def _shape_problems(value: ort.NodeArg, kind: str, sizes: Sequence[int | None]) -> Iterator[str]:
    """Check a value against the sizes after the number of images; None stands for any size."""
    found = value.shape[1:]
    same = len(found) == len(sizes) and all(
        size in (None, given) for size, given in zip(sizes, found, strict=True)
    )
    if not same or value.type != f"tensor({kind})":
        shape = ", ".join("any" if size is None else str(size) for size in sizes)
        yield (
            f"expected {value.name} of {kind} [images, {shape}] by model.json, "
            f"found {value.type} {value.shape}"
        )


def _trial_problems(card: Mapping[str, Any], session: ort.InferenceSession) -> Iterator[str]:
    """What is wrong with the scores of test images, each alone and all in one batch."""
    preprocessing, labels = _preprocessing(card), len(label_names(card))
    if not preprocessing or not labels:
        return
    images = trial_images(preprocessing)
    try:
        alone = [session.run(["scores"], {"pixels": image[np.newaxis]})[0] for image in images]
        batch = session.run(["scores"], {"pixels": images})[0]
    except ENGINE_ERRORS as error:
        yield f"ONNX Runtime {ort.__version__} cannot run it: {engine_message(error)}"
        return
    if {scores.shape for scores in alone} != {(1, labels)} or batch.shape != (len(images), labels):
        yield f"expected scores [images, {labels}], found {list(batch.shape)} for {len(images)} test images"
        return
    single = np.concatenate(alone)
    low, high = float(np.min(single)), float(np.max(single))
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also false for NaN
        yield f"expected scores from 0 to 1, found {low:g} to {high:g} on test images: is a sigmoid missing?"
    elif not (difference := float(abs(single - batch).max())) <= SAME_SCORE:
        yield (
            "expected the same score for an image alone and beside others, "
            f"found a difference of {difference:.2g} on test images"
        )
