"""Makes a model bundle of an image classifier in ONNX, and proves that both score alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from classifier.bundle import ENGINE_ERRORS, as_lines, engine_message, open_session
from classifier.model import Model
from classifier.preprocessing import Pixels, Preprocessing

from cxr import bundles
from cxr.errors import InputError
from cxr.phantoms import draw_phantom

if TYPE_CHECKING:
    import onnx

Activation = Literal["sigmoid", "softmax", "none"]
Floats = npt.NDArray[np.float64]

DRAWINGS = 3  # that the bundle and the file must score alike
TOLERANCE = 1e-4
LARGEST = 2**31 - 1  # bytes of a file in the format of ONNX
PREFIX = "file."  # of every name in the given graph, so that the names that are added are free
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}  # onnx.TensorProto's numbers of types


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a file in ONNX does not say about itself.

    `labels` has a name for each output; an output with an empty name is left out. `mean` and `std` have a
    number for each channel, of grey values from 0 to 1, as torchvision's Normalize takes them.
    """

    labels: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    activation: Activation
    resize: int
    crop: int
    thresholds: Sequence[float] | None = None  # one for each label that is kept; 0.5 by default
    output: str | None = None  # the output with a value for each label, where there are several


@dataclass(frozen=True)
class Packed:
    """What was written, and how far its scores of drawings are from those of the file."""

    model: Model
    greatest_difference: float


@dataclass(frozen=True)
class _Image:
    """The input of the given graph that takes images."""

    name: str
    element: int  # its type, onnx.TensorProto's number
    channels: int
    channels_last: bool
    one_at_a_time: bool  # the graph takes exactly one image


def pack(file: Path, recipe: Recipe, out: Path, **fields: Any) -> Packed:
    """Write the bundle of a file to a new folder, complete or not at all. `fields` are those of model.json.

    The bundle's graph takes grey values from 0 to 255, normalises them, runs the given graph and applies the
    activation. Raises InputError with a line for each problem, and OSError.
    """
    bundles.expect_new(out)
    graph = read_onnx(file)
    return pack_graph(graph, str(file), recipe, out, **{"name": file.stem, "version": "1.0.0", **fields})


def pack_graph(graph: onnx.ModelProto, source: str, recipe: Recipe, out: Path, **fields: Any) -> Packed:
    """The same for a graph in memory; `source` names it in messages."""
    problems = list(_recipe_problems(recipe))
    image = _image_input(graph, recipe, problems)
    if problems or not image:
        raise _refusal(source, *problems)
    _set_sizes(graph, image, recipe.crop)
    preprocessing = Preprocessing(channels=_channels(image), resize=recipe.resize, crop=recipe.crop)
    drawings = [preprocessing(draw_phantom(seed, opacity=bool(seed % 2))) for seed in range(DRAWINGS)]
    output, raw = _outputs(graph, image, recipe, drawings, source)
    if problems := list(_output_problems(graph, output, raw, recipe)):
        raise _refusal(source, *problems)
    expected = _activated(raw, recipe.activation)[:, _kept(recipe)]

    labels = [name for name in recipe.labels if name]
    thresholds = recipe.thresholds or [0.5] * len(labels)
    card = {
        **fields,
        "labels": [
            {"name": name, "threshold": limit} for name, limit in zip(labels, thresholds, strict=True)
        ],
        "preprocessing": {"channels": image.channels, "resize": recipe.resize, "crop": recipe.crop},
    }
    packed = _packed(graph, image, output, raw.shape[1], recipe, source)
    _check_batches(packed, drawings, expected, source, one_at_a_time=image.one_at_a_time)
    bundles.write(packed, card, out)
    model = bundles.load(out)
    scores = [model.score([drawing])[0] for drawing in drawings]
    found = np.array([[float(score) for score in row.values()] for row in scores])
    return Packed(model, float(abs(found - expected).max()))


def read_onnx(file: Path) -> onnx.ModelProto:
    """The graph in a file, with all its weights. Raises InputError and OSError."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if file.is_dir():
        raise InputError(f"{file}: expected a file in ONNX, found a folder")
    if file.stat().st_size > LARGEST:
        raise InputError(f"{file}: expected at most 2 GB")
    try:
        graph = onnx.load_model_from_string(file.read_bytes())
    except DecodeError:
        raise InputError(f"{file}: expected a file in ONNX, found something else") from None
    if not graph.ir_version or not graph.graph.node or not graph.opset_import:
        raise InputError(f"{file}: expected a file in ONNX, found something else")
    missing = [name for name in sorted(_external_files(graph)) if not (file.parent / name).is_file()]
    if missing:
        raise InputError(f"{file}: its weights are in other files: expected {', '.join(missing)} beside it")
    try:
        onnx.load_external_data_for_model(graph, str(file.absolute().parent))
        onnx.checker.check_model(graph)
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from None
    return graph


def _external_files(graph: onnx.ModelProto) -> set[str]:
    """The names of the files beside a graph that hold its weights."""
    entries = (entry for tensor in graph.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _refusal(source: str, *problems: str) -> InputError:
    return InputError(as_lines([f"{source}: {problem}" for problem in problems]))


def _recipe_problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong whatever the file is."""
    kept = [name for name in recipe.labels if name]
    if not kept or len(set(kept)) < len(kept):
        yield f"labels {', '.join(recipe.labels)}: expected one or more, each once"
    if recipe.thresholds and len(recipe.thresholds) != len(kept):
        yield f"{len(recipe.thresholds)} thresholds for {len(kept)} labels: expected one for each"
    if not all(0 <= limit <= 1 for limit in recipe.thresholds or ()):
        yield "thresholds: expected numbers from 0 to 1"
    if recipe.activation == "softmax" and len(recipe.labels) < 2:
        yield "softmax of one output is always 1: expected two or more labels, or a sigmoid"
    for name, numbers in (("mean", recipe.mean), ("std", recipe.std)):
        if len(numbers) not in (1, 3):
            yield f"{name}: expected 1 number, or 3 for a colour image, found {len(numbers)}"
        elif not all(0 <= number <= 1 for number in numbers) or (name == "std" and 0 in numbers):
            # The most frequent mistake is to give them for grey values from 0 to 255.
            yield f"{name}: expected numbers from 0 to 1, for grey values from 0 to 1: divide by 255"
    try:
        Preprocessing.from_json({"channels": 1, "resize": recipe.resize, "crop": recipe.crop})
    except ValueError:
        yield f"resize {recipe.resize}, crop {recipe.crop}: expected whole numbers, crop at most resize"


def _image_input(graph: onnx.ModelProto, recipe: Recipe, problems: list[str]) -> _Image | None:
    """The graph's input. Adds to `problems` why it cannot take images, or not as the recipe says."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        problems.append(f"expected one input, the images, found {names}")
        return None
    (value,) = inputs
    name, tensor = value.name, value.type.tensor_type
    sizes = [size.dim_value or None for size in tensor.shape.dim]  # None: any
    if tensor.elem_type not in FLOATS:
        problems.append(f"input {name}: expected numbers of type float, double or float16")
    if len(sizes) != 4:
        found = f"{len(sizes)} dimensions" if tensor.HasField("shape") else "no dimensions"
        problems.append(f"input {name}: expected [images, channels, height, width], found {found}")
        return None
    count, *rest = sizes
    channels_last = rest[0] not in (None, 1, 3) and rest[2] in (1, 3)
    channels, *sides = [rest[2], *rest[:2]] if channels_last else rest
    if count not in (None, 1):
        problems.append(f"input {name}: expected 1 image or any number, found always {count}: export it so")
    channels = channels or len(recipe.mean)
    if channels not in (1, 3):
        problems.append(f"input {name}: expected 1 or 3 channels, found {channels}")
    for what, numbers in (("mean", recipe.mean), ("std", recipe.std)):
        if len(numbers) in (1, 3) and channels in (1, 3) and len(numbers) != channels:
            problems.append(
                f"{what}: expected a number for each of the input's {channels} channels, found {len(numbers)}"
            )
    if any(side not in (None, recipe.crop) for side in sides):
        height, width = (side or "any" for side in sides)
        problems.append(f"input {name}: it takes {height} x {width} pixels, but the crop is {recipe.crop}")
    return _Image(name, tensor.elem_type, channels, channels_last, count == 1)


def _channels(image: _Image) -> Literal[1, 3]:
    return 1 if image.channels == 1 else 3


def _set_sizes(graph: onnx.ModelProto, image: _Image, side: int) -> None:
    """Give the sizes of the input that may be any."""
    (value,) = (value for value in graph.graph.input if value.name == image.name)
    sizes = [side, side, image.channels] if image.channels_last else [image.channels, side, side]
    for dimension, size in zip(value.type.tensor_type.shape.dim[1:], sizes, strict=True):
        dimension.dim_value = size


def _outputs(
    graph: onnx.ModelProto, image: _Image, recipe: Recipe, drawings: Sequence[Pixels], source: str
) -> tuple[str, Floats]:
    """The name of the output with the labels, and its values [drawings, outputs] by the graph as given."""
    names = [value.name for value in graph.graph.output]
    name = recipe.output or names[0]
    if name not in names:
        raise _refusal(source, f"output {name}: expected one of {', '.join(names)}")
    if len(names) > 1 and not recipe.output:
        raise _refusal(
            source, f"found {len(names)} outputs, {', '.join(names)}: expected the name of one of them"
        )
    mean, std = (np.reshape(numbers, (1, -1, 1, 1)) for numbers in (recipe.mean, recipe.std))
    try:
        session = open_session(_serialized(graph, source))
        rows = []
        for drawing in drawings:
            normalised = ((drawing[np.newaxis] / 255 - mean) / std).astype(FLOATS[image.element])
            if image.channels_last:
                normalised = normalised.transpose(0, 2, 3, 1)
            rows.append(np.asarray(session.run([name], {image.name: normalised})[0]))
    except ENGINE_ERRORS as error:
        raise InputError(f"{source}: ONNX Runtime cannot run it: {engine_message(error)}") from None
    shape = rows[0].shape
    # [1, labels], [1, labels, 1, 1], or [1] for one label
    if not shape or shape[0] != 1 or any(size != 1 for size in shape[2:]) or rows[0].dtype.kind != "f":
        raise _refusal(
            source, f"output {name}: expected floats [images, labels], found {rows[0].dtype} {list(shape)}"
        )
    return name, np.stack([row.reshape(-1) for row in rows]).astype(np.float64)


def _output_problems(graph: onnx.ModelProto, output: str, raw: Floats, recipe: Recipe) -> Iterator[str]:
    """Why the outputs are not what the recipe says."""
    count = raw.shape[1]
    if count != len(recipe.labels):
        yield f"output {output} has {count} values: expected as many labels, found {len(recipe.labels)}"
    low, high = raw.min(), raw.max()
    if not np.isfinite(raw).all():
        yield f"output {output} is not a number for a drawing of a chest X-ray"
    elif recipe.activation == "none" and not (low >= 0 and high <= 1):
        yield (
            f"output {output} is from {low:.3g} to {high:.3g} on drawings, so these are no probabilities: "
            "expected a sigmoid or a softmax as the activation"
        )
    last = [node.op_type for node in graph.graph.node if output in node.output]
    if recipe.activation != "none" and last in (["Sigmoid"], ["Softmax"]):
        yield f"output {output} comes from a {last[0]} already: expected no other activation"


def _activated(raw: Floats, activation: Activation) -> Floats:
    scores = raw
    if activation == "sigmoid":
        scores = 1 / (1 + np.exp(-raw))
    if activation == "softmax":
        powers = np.exp(raw - raw.max(1, keepdims=True))
        scores = powers / powers.sum(1, keepdims=True)
    return scores


def _kept(recipe: Recipe) -> list[int]:
    """The numbers of the outputs with a label."""
    return [number for number, name in enumerate(recipe.labels) if name]


def _packed(
    graph: onnx.ModelProto, image: _Image, output: str, count: int, recipe: Recipe, source: str
) -> bytes:
    """The graph from `pixels` to `scores`.

    What is added are nodes of opset 7 and later, and constants in nodes and not in initializers, which
    files of an old IR version would also want among the inputs.
    """
    from onnx import TensorProto, compose, helper, numpy_helper

    model = compose.add_prefix(graph, PREFIX)
    inner, given, result = model.graph, PREFIX + image.name, PREFIX + output
    before: list[Any] = []
    after: list[Any] = []

    def constant(nodes: list[Any], name: str, value: npt.NDArray[Any]) -> str:
        nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def grey_values(numbers: Sequence[float]) -> npt.NDArray[np.float32]:
        return (255 * np.array(numbers)).astype(np.float32).reshape(1, -1, 1, 1)

    before.append(helper.make_node("Cast", ["pixels"], ["grey"], to=TensorProto.FLOAT))
    before.append(
        helper.make_node("Sub", ["grey", constant(before, "mean", grey_values(recipe.mean))], ["centred"])
    )
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Div", [constant(before, "std", grey_values(recipe.std))], {})
    ]
    if image.element != TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": image.element}))
    if image.channels_last:
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    _chain(before, "centred", steps, given)

    steps = [("Cast", [], {"to": TensorProto.FLOAT})]
    steps.append(("Reshape", [constant(after, "shape", np.array([-1, count]))], {}))
    if recipe.activation == "sigmoid":
        steps.append(("Sigmoid", [], {}))
    if recipe.activation == "softmax":
        steps.append(("Softmax", [], {"axis": 1}))
    if len(_kept(recipe)) < count:
        steps.append(("Gather", [constant(after, "kept", np.array(_kept(recipe)))], {"axis": 1}))
    _chain(after, result, steps, "scores")

    if image.one_at_a_time:
        _free_reshapes(inner)
    nodes = [*before, *inner.node, *after]
    inputs = [value for value in inner.input if value.name != given]
    del inner.node[:], inner.input[:], inner.output[:], inner.value_info[:]
    inner.node.extend(nodes)
    sizes: list[str | int | None] = ["images", image.channels, recipe.crop, recipe.crop]
    inner.input.extend([helper.make_tensor_value_info("pixels", TensorProto.UINT8, sizes), *inputs])
    inner.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["images", len(_kept(recipe))])
    )
    for described in (model, inner, *inner.node):  # exporters write paths of their machine here
        described.ClearField("doc_string")
        del described.metadata_props[:]
    return _serialized(model, source)


def _chain(
    nodes: list[Any], value: str, steps: Sequence[tuple[str, list[str], dict[str, Any]]], end: str
) -> None:
    """Add nodes that take `value` through the steps (operator, further inputs, attributes) to `end`."""
    from onnx import helper

    for number, (operator, inputs, attributes) in enumerate(steps, start=1):
        result = end if number == len(steps) else f"to {end}.{number}"
        nodes.append(helper.make_node(operator, [value, *inputs], [result], **attributes))
        value = result


def _free_reshapes(graph: onnx.GraphProto) -> None:
    """Let each Reshape to [1, ...] take more images: exporters write that 1 for a batch of one.

    In the shape of a Reshape, -1 stands for what is left, and 0 for the size that the input has.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    shapes = []
    for number, node in enumerate(graph.node):
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        sizes = numpy_helper.to_array(shape).copy() if shape else np.empty(0)
        if sizes.size > 1 and sizes[0] == 1 and 0 not in sizes:
            sizes[0] = 0 if -1 in sizes else -1
            node.input[1] = f"shape.{number}"
            del node.attribute[:]  # allowzero, which gives 0 another meaning
            shapes.append(
                helper.make_node("Constant", [], [node.input[1]], value=numpy_helper.from_array(sizes))
            )
    nodes = [*shapes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _serialized(graph: onnx.ModelProto, source: str) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        return bytes(graph.SerializeToString())
    except (EncodeError, ValueError):
        raise InputError(f"{source}: with its weights it is larger than 2 GB: expected less") from None


def _check_batches(
    packed: bytes, drawings: Sequence[Pixels], expected: Floats, source: str, *, one_at_a_time: bool
) -> None:
    """Compare the packed graph's scores, of each drawing alone and of all at once, with the expected ones.

    Raises InputError.
    """
    alone, together = None, None
    try:
        session = open_session(packed)
        rows = [session.run(["scores"], {"pixels": drawing[np.newaxis]})[0] for drawing in drawings]
        alone = np.concatenate(rows)
        together = session.run(["scores"], {"pixels": np.stack(drawings)})[0]
    except ENGINE_ERRORS as error:
        if not one_at_a_time:
            raise InputError(f"{source}: ONNX Runtime cannot run it: {engine_message(error)}") from None
    same = [
        scores is not None and scores.shape == expected.shape and abs(scores - expected).max() <= TOLERANCE
        for scores in (alone, together)
    ]
    if all(same):
        return
    if one_at_a_time:
        problem = "it takes one image at a time, and cannot be changed to take more"
    elif same[0]:
        problem = "the score of an image depends on the other images of its batch"
    else:
        problem = "the bundle would not score drawings as this file does"
    raise _refusal(source, f"{problem}: export it in evaluation mode, with a dynamic number of images")
