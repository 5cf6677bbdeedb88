"""Quantises ONNX graphs to 8-bit weights and activations, by ONNX Runtime's static quantisation.

It inserts QuantizeLinear and DequantizeLinear, standard ONNX operators, around nodes. ONNX Runtime computes
the nodes between them in integers. Weights have 7 bits and a scale for each output channel: x86 processors
without VNNI add two products in 16 bits, which 8-bit weights can overflow and 7-bit weights cannot. Scores
then do not depend on whether a processor has VNNI.
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
from classifier.preprocessing import Pixels
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

SAMPLE_SIZE = 128  # images whose activations give the ranges
BATCH = 32
QUANTISED_OPERATORS = ["Conv", "Clip", "Relu"]
# The first convolutions stay in float: they are cheap, and a rounding error there reaches all other layers.
FLOAT_CONVOLUTIONS = 3
DESCRIPTION = (
    "weights in 7 bits by output channel, activations in 8, biases corrected; "
    f"the first {FLOAT_CONVOLUTIONS} convolutions and the head in float"
)
WEIGHT = "weight"  # of the head (training.scorer), [labels, features, 1, 1]

Floats = npt.NDArray[np.float64]


def sample_indices(count: int) -> list[int]:
    """Indices of at most SAMPLE_SIZE of `count` images, at random but the same in every call."""
    chosen: list[int] = np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE_SIZE]).tolist()
    return chosen


def quantise(model: onnx.ModelProto, images: Sequence[Pixels]) -> onnx.ModelProto:
    """The graph with its QUANTISED_OPERATORS in 8 bits, but for its first FLOAT_CONVOLUTIONS and its head.

    The ranges of the activations are those on `images`. Rounding its weights changes the mean output of a
    convolution on these images. Its bias is corrected by that change: Nagel et al., "Data-Free Quantization
    Through Weight Equalization and Bias Correction", ICCV 2019.
    """
    model = copy.deepcopy(model)
    convolutions = 0
    in_float: list[str] = []
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
        convolutions += node.op_type == "Conv"
        if convolutions <= FLOAT_CONVOLUTIONS or WEIGHT in node.input:
            in_float.append(node.name)
        if node.op_type == "Conv" and len(node.input) == 2 and WEIGHT not in node.input:
            _add_bias(model, node)
    add_pre_process_metadata(model)  # the exporter has already inferred shapes and folded constants
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            copy.deepcopy(model),  # quantize_static moves the tensors of its argument into a file
            path,
            _CalibrationReader(images),
            op_types_to_quantize=QUANTISED_OPERATORS,
            nodes_to_exclude=in_float,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(path)
    del found.metadata_props[:]
    _correct_biases(found, model, images)
    return found


def _add_bias(model: onnx.ModelProto, convolution: onnx.NodeProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == convolution.input[1])
    name = f"{convolution.name}_bias"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(weight.dims[0], np.float32), name))
    convolution.input.append(name)


def _correct_biases(found: onnx.ModelProto, model: onnx.ModelProto, images: Sequence[Pixels]) -> None:
    """Shift the integer biases of the quantised convolutions in `found`; `model` is the graph in float."""
    tensors = {tensor.name: tensor for tensor in found.graph.initializer}
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {node.output[0]: node for node in found.graph.node}
    inputs = {node.name: node.input[:2] for node in model.graph.node if node.op_type == "Conv"}
    means = _mean_maps(model, images, [maps for maps, _ in inputs.values()])
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
        # The mean inputs of each group of the convolution, repeated for each output of the group.
        inputs_mean = means[maps].reshape(-1, lost.shape[1])
        shift = (lost.sum((2, 3)) * inputs_mean.repeat(len(lost) // len(inputs_mean), 0)).sum(1)
        tensor = tensors[made_by[node.input[2]].input[0]]
        corrected = bias + np.round(shift / scale).astype(np.int32)
        tensor.CopyFrom(numpy_helper.from_array(corrected, tensor.name))


def _mean_maps(model: onnx.ModelProto, images: Sequence[Pixels], names: Sequence[str]) -> dict[str, Floats]:
    """The mean [channels] of each of some feature maps, over images and pixels."""
    names = list(dict.fromkeys(names))
    model = copy.deepcopy(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    total = dict.fromkeys(names, np.zeros(()))
    for image in images:
        for name, maps in zip(names, session.run(names, {"pixels": image[np.newaxis]}), strict=True):
            total[name] = total[name] + maps[0].mean((1, 2), dtype=np.float64)
    return {name: value / len(images) for name, value in total.items()}


def compute_output(model: onnx.ModelProto, name: str, images: Sequence[Pixels]) -> Floats:
    """One output of the graph for all images, [images, ...]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [
        session.run([name], {"pixels": np.stack(images[start : start + BATCH])})[0]
        for start in range(0, len(images), BATCH)
    ]
    found: Floats = np.concatenate(parts).astype(np.float64)
    return found


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]
    """Gives quantize_static one image at a time."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {"pixels": image[np.newaxis]}
