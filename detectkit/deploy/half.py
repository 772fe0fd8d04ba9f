"""16-bit floating-point networks, from 32-bit ones: ONNX to ONNX."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detectkit.errors import ModelError
from detectkit.model.header import INPUT, OUTPUTS

QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16 from the image to the heads' convolutions, with weights in float16.

    Its input and outputs stay float32, and so does the sigmoid: a coverage near 1 would round to 1. What comes behind
    the maps (`nms.add_nms`) stays as it is.

    Args:
        model: as `onnx.to_model` makes it, without quantisation; it stays as it is.

    Raises:
        ModelError: the model is quantised already, or one of its weights is too large for float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]  # of float32
    makers = {output: node for node in graph.node for output in node.output}
    sigmoid, boxes = (makers[name] for name in OUTPUTS)
    logits = sigmoid.input[0]
    inside = _upstream([logits, OUTPUTS[1]], makers)
    if any(node.op_type in QUANTIZERS for node in inside):
        raise ModelError("a quantised model cannot be made 16-bit: use the float32 one that it was made from")

    read = {name for node in inside for name in node.input}
    for constant in graph.initializer:
        if constant.name in read and constant.data_type == TensorProto.FLOAT:
            constant.CopyFrom(_rounded(constant))
    image, end = f"{INPUT}/half", f"{OUTPUTS[1]}/half"
    for node in inside:
        node.input[:] = [image if name == INPUT else name for name in node.input]
    boxes.output[:], boxes.name = [end], end
    sigmoid.input[:] = [f"{logits}/float"]
    behind = [node for node in graph.node if not any(node is other for other in inside)]
    nodes = [
        _cast(INPUT, image, TensorProto.FLOAT16),
        *inside,
        _cast(logits, f"{logits}/float", TensorProto.FLOAT),
        _cast(end, OUTPUTS[1], TensorProto.FLOAT),
        *behind,
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(result, full_check=True)
    return result


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
