"""Graphs with 8-bit weights and activations, by ONNX Runtime's static quantisation; nothing of torch.

QuantizeLinear and DequantizeLinear, operators of ONNX itself, are put around nodes, and ONNX Runtime computes
what stands between two of them in whole numbers. Weights have 7 bits and a scale for each output channel:
instruction sets without VNNI add two products of 8 bits in 16, which weights of 8 bits can overflow and those
of 7 cannot, so that a score does not depend on the processor.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from classifier.images import Pixels
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

IMAGES = 128  # whose activations give the ranges
BATCH = 32
KINDS = ["Conv", "Clip", "Relu"]
FLOAT = 3  # convolutions at the start that stay: cheap, and what rounding loses there is lost to all others
HOW = (
    "weights in 7 bits by output channel, activations in 8, biases corrected; "
    f"the first {FLOAT} convolutions and the head in float"
)
WEIGHT, BIAS = "weight", "bias"  # the head's: [labels, features, 1, 1] and [labels]

Floats = npt.NDArray[np.float64]


def sample(count: int) -> list[int]:
    """Which of `count` images to take ranges from, at most IMAGES: by chance, and the same every time."""
    chosen: list[int] = np.sort(np.random.default_rng(0).permutation(count)[:IMAGES]).tolist()
    return chosen


def quantised(model: onnx.ModelProto, images: Sequence[Pixels]) -> onnx.ModelProto:
    """The graph with nodes of KINDS in 8 bits, from behind its first FLOAT convolutions on.

    Activations range as these images' do. What rounding its weights adds to a convolution's mean output on
    them is taken from its bias: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019.
    """
    model = copy.deepcopy(model)
    convolutions = 0
    stay: list[str] = []
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        convolutions += node.op_type == "Conv"
        if convolutions <= FLOAT or WEIGHT in node.input:
            stay.append(node.name)
        if node.op_type == "Conv" and len(node.input) == 2 and WEIGHT not in node.input:
            _add_bias(model, node)
    add_pre_process_metadata(model)  # the exporter has inferred shapes and folded constants
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            copy.deepcopy(model),  # it moves the tensors of what it is given into a file
            path,
            _Reader(images),
            op_types_to_quantize=KINDS,
            nodes_to_exclude=stay,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(path)
    del found.metadata_props[:]
    _correct(found, model, images)
    return found


def _add_bias(model: onnx.ModelProto, convolution: onnx.NodeProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == convolution.input[1])
    name = f"{convolution.name}_bias"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(weight.dims[0], np.float32), name))
    convolution.input.append(name)


def _correct(found: onnx.ModelProto, model: onnx.ModelProto, images: Sequence[Pixels]) -> None:
    """Shifts the biases, whole numbers, of the quantised convolutions."""
    tensors = {tensor.name: tensor for tensor in found.graph.initializer}
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {node.output[0]: node for node in found.graph.node}
    inputs = {node.name: node.input[:2] for node in model.graph.node if node.op_type == "Conv"}
    means = _means(model, images, [maps for maps, _ in inputs.values()])
    for node in found.graph.node:
        if node.op_type != "Conv" or node.input[1] not in made_by:
            continue  # in float
        weight, weight_scale, bias, scale = (
            numpy_helper.to_array(tensors[name])
            for given in node.input[1:]
            for name in made_by[given].input[:2]
        )
        maps, name = inputs[node.name]
        lost = exact[name] - weight * weight_scale.reshape(-1, 1, 1, 1)
        # Of each group of the convolution, the mean of its inputs; then the same for each of its outputs.
        seen = means[maps].reshape(-1, lost.shape[1])
        shift = (lost.sum((2, 3)) * seen.repeat(len(lost) // len(seen), 0)).sum(1)
        tensor = tensors[made_by[node.input[2]].input[0]]
        corrected = bias + np.round(shift / scale).astype(np.int32)
        tensor.CopyFrom(numpy_helper.from_array(corrected, tensor.name))


def _means(model: onnx.ModelProto, images: Sequence[Pixels], names: Sequence[str]) -> dict[str, Floats]:
    """The mean [channels] of some maps over images and places."""
    names = list(dict.fromkeys(names))
    model = copy.deepcopy(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    total = dict.fromkeys(names, np.zeros(()))
    for image in images:
        for name, maps in zip(names, session.run(names, {"pixels": image[np.newaxis]}), strict=True):
            total[name] = total[name] + maps[0].mean((1, 2), dtype=np.float64)
    return {name: value / len(images) for name, value in total.items()}


def pooled(model: onnx.ModelProto, images: Sequence[Pixels]) -> Floats:
    """What the head is linear on, [images, features]."""
    (name,) = (node.input[0] for node in model.graph.node if BIAS in node.input)
    model = copy.deepcopy(model)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return output(model, name, images)[:, :, 0, 0]


def output(model: onnx.ModelProto, name: str, images: Sequence[Pixels]) -> Floats:
    """One output of the graph, [images, ...]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [
        session.run([name], {"pixels": np.stack(images[start : start + BATCH])})[0]
        for start in range(0, len(images), BATCH)
    ]
    found: Floats = np.concatenate(parts).astype(np.float64)
    return found


def with_head(model: onnx.ModelProto, weight: Floats, bias: float) -> onnx.ModelProto:
    """The graph with another head of one label; `weight` is [features]."""
    model = copy.deepcopy(model)
    values = {WEIGHT: weight.reshape(1, -1, 1, 1), BIAS: np.array([bias])}
    for tensor in model.graph.initializer:
        if tensor.name in values:
            value = values[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """One image at a time."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {"pixels": image[np.newaxis]}
