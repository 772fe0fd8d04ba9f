"""16-bit floating-point networks, from 32-bit ones: ONNX to ONNX."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detectkit.errors import ModelError
from detectkit.model.header import INPUT
from detectkit.model.operators import Channels, onnx_operators

# Of the operators that make outputs those that stay in 32 bits: what gives shares of 1, and what puts these in another form.
BEHIND = onnx_operators(lambda kind: kind.limits == (0.0, 1.0) or kind.channels is Channels.MIXED)
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16 from the image to the heads' convolutions, with weights in float16.

    Its input and outputs stay float32, and so does the sigmoid: a coverage near 1 would round to 1. An output that the
    network also reads is computed for it in float16 once more.

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

    # The factors of a resize are of 32 bits in any network.
    read = {name for node in inside for name in node.input[: 1 if node.op_type == "Resize" else None]}
    for constant in graph.initializer:
        if constant.name in read and constant.data_type == TensorProto.FLOAT:
            constant.CopyFrom(_rounded(constant))
    behind = _between(ends, makers)
    # What is there in 16 and in 32 bits has its own name in 32.
    twice = {*outputs, *(node.output[0] for node in behind)}
    image = f"{INPUT}/half"
    narrow = {name: f"{name}/half" for node in inside for name in node.output if name in twice} | {
        INPUT: image
    }
    wide = {end: end if end in twice else f"{end}/float" for end in ends.values()}
    nodes = [
        _cast(INPUT, image, TensorProto.FLOAT16),
        *(_renamed(node, narrow) for node in inside),
        *(_cast(narrow.get(end, end), name, TensorProto.FLOAT) for end, name in wide.items()),
        *(_renamed(node, wide) for node in behind),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def _end(name: str, makers: dict[str, onnx.NodeProto]) -> str:
    """The last value before an output that a convolution makes, or what is put into another form behind one."""
    while makers[name].op_type in BEHIND:
        name = makers[name].input[0]
    return name


def _between(ends: dict[str, str], makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes from the ends to the outputs, in the order of the graph."""
    found: set[str] = set()
    for name, end in ends.items():
        while name != end:
            found.add(name)
            name = makers[name].input[0]
    return [node for name, node in makers.items() if name in found]


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A copy that reads and gives these values by other names; a node has the name of what it gives."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    copy.name = names.get(node.name, node.name)
    return copy


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
