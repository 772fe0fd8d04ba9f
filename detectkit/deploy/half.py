"""16-bit floating-point networks, from 32-bit ones: ONNX to ONNX."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detectkit.errors import ModelError
from detectkit.model.header import INPUT

BEHIND = {
    "Sigmoid",
    "Softmax",
    "Reshape",
    "Transpose",
}  # of the operators that make outputs, those that stay in 32 bits
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16 from the image to the heads' convolutions, with weights in float16.

    Its input and outputs stay float32, and so does the sigmoid: a coverage near 1 would round to 1.

    Args:
        model: as `onnx.to_model` makes it, without quantisation or NMS; it stays as it is.

    Raises:
        ModelError: the model is quantised already, or one of its weights is too large for float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]  # of float32
    makers = {output: node for node in graph.node for output in node.output}
    outputs = [output.name for output in graph.output]
    ends = {name: _end(name, makers) for name in outputs}  # the last values of 16 bits
    inside = _upstream(list(ends.values()), makers)
    if any(node.op_type in QUANTIZERS for node in inside):
        raise ModelError("a quantised model cannot be made 16-bit: use the float32 one that it was made from")

    read = {name for node in inside for name in node.input}
    for constant in graph.initializer:
        if constant.name in read and constant.data_type == TensorProto.FLOAT:
            constant.CopyFrom(_rounded(constant))
    behind = [node for node in graph.node if not any(node is other for other in inside)]
    # An output that is itself of 16 bits gives its name to what it becomes in 32.
    renamed = {name: f"{name}/half" for name in outputs if ends[name] == name}
    image = f"{INPUT}/half"
    for node in inside:
        node.input[:] = [renamed.get(name, image if name == INPUT else name) for name in node.input]
        if node.output[0] in renamed:
            node.name = renamed[node.output[0]]
            node.output[0] = node.name
    wide = {end: f"{end}/float" for name, end in ends.items() if end != name}
    for node in behind:
        node.input[:] = [wide.get(name, name) for name in node.input]
    nodes = [
        _cast(INPUT, image, TensorProto.FLOAT16),
        *inside,
        *(_cast(end, name, TensorProto.FLOAT) for end, name in wide.items()),
        *(_cast(end, name, TensorProto.FLOAT) for name, end in renamed.items()),
        *behind,
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(result, full_check=True)
    return result


def _end(name: str, makers: dict[str, onnx.NodeProto]) -> str:
    """The last value before an output that a convolution makes, or what is put into another form behind one."""
    while makers[name].op_type in BEHIND:
        name = makers[name].input[0]
    return name


def _upstream(names: list[str], makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that compute these values, in the order of the graph."""
    found: set[str] = set()  # their first outputs
    while names:
        node = makers.get(names.pop())  # None: the image, or a constant
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            names += node.input
    return [node for name, node in makers.items() if name in found]


def _rounded(constant: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(constant)
    largest, limit = float(np.abs(values).max(initial=0)), float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise ModelError(
            f"{constant.name} has a value of {largest:.3g}, and float16 ends at {limit:.0f}:"
            " keep this network in float32"
        )
    return numpy_helper.from_array(values.astype(np.float16), constant.name)


def _cast(before: str, after: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [before], [after], name=after, to=kind)
