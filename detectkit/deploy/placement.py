"""Where a network rounds to 8 bits: what TensorRT and ONNX Runtime each need so that convolutions run in integers."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import onnx
from onnx import NodeProto

from detectkit.model.graph import Made, end_values, gate_values
from detectkit.model.operators import Values, onnx_operators

JOINTS = onnx_operators(lambda kind: kind.integers)
MEANS = onnx_operators(lambda kind: kind.values is Values.AVERAGED)
FUSED = onnx_operators(lambda kind: kind.values is Values.FUSED)
# They compute no new values, so that one scale does for both sides.
MOVERS = onnx_operators(lambda kind: kind.values is Values.PICKED)
NOT_NEGATIVE = onnx_operators(lambda kind: kind.limits[0] >= 0)
KEEP_SIGN = MEANS | MOVERS | {"Add", "Mul", "AveragePool"}


class Placement(NamedTuple):
    """What is rounded.

    Attributes:
        convolutions: whose weights are.
        readers: by tensor, the nodes that read its rounded values; others read those that it had.
        groups: the tensors that share a scale.
    """

    convolutions: list[NodeProto]
    readers: dict[str, list[NodeProto]]
    groups: list[set[str]]


class Wires:
    """Which node of an ONNX graph makes a tensor and which ones read it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.inputs = {image.name for image in graph.input}
        self.outputs = {output.name for output in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {name: [] for name in (*self.inputs, *self.maker)}
        for node in self.nodes:
            for name in self.sources(node):
                self.readers[name].append(node)

    def sources(self, node: NodeProto) -> list[str]:
        """The inputs of a node that are no constants, each once."""
        return [name for name in dict.fromkeys(node.input) if name and name not in self.constants]

    def computes_of_tensors(self, node: NodeProto) -> bool:
        """Whether no constant takes part in what a node computes; those of what moves values only say where to."""
        return node.op_type in MOVERS or self.sources(node) == list(node.input)

    def convolutions(self) -> list[NodeProto]:
        """Those that can run in 8 bits, see `eight_bit_layers`."""
        steps = [
            Made(name, self.sources(node), node.op_type == "Conv", node.op_type in MEANS)
            for node in self.nodes
            for name in node.output
        ]
        left_out = end_values(steps, self.outputs) | gate_values(steps)
        return [node for node in self.nodes if node.op_type == "Conv" and node.output[0] not in left_out]

    def not_negative(self) -> set[str]:
        """The tensors that have no value below 0; images are from 0 to 1."""
        found = set(self.inputs)
        for node in self.nodes:
            kept = node.op_type in KEEP_SIGN and self.computes_of_tensors(node)
            if node.op_type in NOT_NEGATIVE or (kept and found.issuperset(self.sources(node))):
                found.update(node.output)
        return found

    def rounded_as(self, tensor: str) -> str:
        """Where an integer result of this tensor is rounded: behind a ReLU that alone reads it, else here.

        The ReLU is then what the limits of the integers do.
        """
        readers = self.readers[tensor]
        if tensor in self.outputs or len(readers) != 1 or readers[0].op_type not in FUSED:
            return tensor
        return readers[0].output[0]


def layer(convolution: NodeProto) -> str:
    """Its name in the detector, such as `backbone.layer1.0.conv1`."""
    return convolution.input[1].removesuffix(".weight")


def eight_bit_layers(model: onnx.ModelProto) -> list[str]:
    """The convolutions that can run in 8 bits, by name: all but the last before each output and those that make gates.

    A gate (squeeze and excite) multiplies whole channels by what their means over the image say. It costs next to
    nothing, and its errors are those of every pixel.
    """
    return [layer(node) for node in Wires(model.graph).convolutions()]


def for_tensorrt(wires: Wires, float_layers: Collection[str]) -> Placement:
    """Rounded are the inputs of convolutions, the shorter way into a residual sum, and what is concatenated.

    The longer way into the sum stays as the convolution leaves it, which computes sum and ReLU on its way out.
    """
    chosen = [node for node in wires.convolutions() if layer(node) not in float_layers]
    integer = {node.output[0] for node in chosen}
    readers: dict[str, list[NodeProto]] = {}
    groups = []
    for node in chosen:
        readers.setdefault(node.input[0], []).append(node)
    depth = _depths(wires)
    for node in wires.nodes:
        names = wires.sources(node)
        if node.op_type == "Add" and len(names) == 2 and not _is_of_shares(wires, names):
            skip, main = sorted(names, key=lambda name: depth[name])
            if integer & {main, *wires.maker[main].input}:
                readers.setdefault(skip, []).append(node)
        elif node.op_type == "Concat" and (behind := _pooled(wires, node.output[0]) & set(readers)):
            for name in names:
                readers.setdefault(name, []).append(node)
            groups.append({*names, *behind})
    return Placement(chosen, readers, _joined(groups))


def _is_of_shares(wires: Wires, names: list[str]) -> bool:
    """Whether one of the tensors is another times a constant, as the parts of a weighted sum: of these no range is known."""
    makers = [wires.maker[name] for name in names if name in wires.maker]
    return any(node.op_type == "Mul" and not wires.computes_of_tensors(node) for node in makers)


def _pooled(wires: Wires, tensor: str) -> set[str]:
    """The tensor and what maximum pools make of it, whose rounding may as well be before them."""
    pools = [node.output[0] for node in wires.readers[tensor] if node.op_type == "MaxPool"]
    return {tensor}.union(*(_pooled(wires, pool) for pool in pools))


def _depths(wires: Wires) -> dict[str, int]:
    """How many convolutions there are on the longest way to each tensor."""
    depth = dict.fromkeys(wires.inputs, 0)
    for node in wires.nodes:
        before = max((depth[name] for name in wires.sources(node)), default=0)
        depth.update(dict.fromkeys(node.output, before + (node.op_type == "Conv")))
    return depth


def _joined(groups: list[set[str]]) -> list[set[str]]:
    """Groups that have no tensor in common."""
    apart: list[set[str]] = []
    for group in groups:
        touched = [other for other in apart if other & group]
        apart = [other for other in apart if not other & group] + [group.union(*touched)]
    return apart


def for_onnxruntime(wires: Wires, float_layers: Collection[str]) -> Placement:
    """Rounded is all that stands between convolutions in 8 bits: each result once, behind its ReLU, for all who read it.

    A sum, a pooling or a concatenation computes in integers where all that it takes is rounded.
    """
    chosen = [node for node in wires.convolutions() if layer(node) not in float_layers]
    outputs = {node.output[0] for node in chosen}
    rounded: set[str] = set()  # results of integer arithmetic
    readers: dict[str, list[NodeProto]] = {}
    groups = []
    for node in wires.nodes:
        names = wires.sources(node)
        joint = node.op_type in JOINTS and rounded.issuperset(names) and wires.computes_of_tensors(node)
        if node.output[0] not in outputs and not joint:
            continue
        for name in names:
            if name not in rounded:
                readers.setdefault(name, []).append(node)
        result = wires.rounded_as(node.output[0])
        rounded.add(result)
        readers[result] = wires.readers[result]
        if node.op_type in MOVERS:
            groups.append({*names, result})
    return Placement(chosen, readers, _joined(groups))
