"""8-bit ONNX: a float network and the ranges of its tensors become one whose convolutions run in integers.

What is rounded is written out, as QuantizeLinear and DequantizeLinear around the float operations: TensorRT and ONNX
Runtime replace such groups by integer kernels, and any other runtime computes the very same values in float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from detectkit.deploy.placement import Placement, Wires, for_onnxruntime, for_tensorrt, layer
from detectkit.deploy.scales import SIGNED_LEVELS, UNSIGNED_LEVELS, Range, ScaleTable, scale_of
from detectkit.errors import ModelError
from detectkit.model.operators import KINDS

Runtime = Literal["tensorrt", "onnxruntime"]
PLACEMENTS = {"tensorrt": for_tensorrt, "onnxruntime": for_onnxruntime}
FIRST_OPSET = 13  # whose DequantizeLinear has scales by channel
MIDDLE = 128  # the uint8 that stands for 0 where values have both signs
LIMITS = {kind.onnx: kind.limits for kind in KINDS if math.isfinite(max(kind.limits, key=abs))}
LARGEST_BIAS = 2**30  # as int32, with room for the sums that it is added to


def quantize(
    model: onnx.ModelProto,
    table: ScaleTable,
    *,
    runtime: Runtime,
    per_channel: bool = True,
    float_layers: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy of a float network with 8-bit weights, and its activations rounded where the runtime needs it.

    Weights are symmetric int8. For TensorRT activations are symmetric int8 too and biases stay float. For ONNX Runtime
    activations are uint8 (zero at 0 where there is no negative value, else at 128: the steps of symmetric int8) and
    biases int32: of its kernels these are the quick ones. Heads and gates stay float in both. Where the table has the
    means of what a convolution reads, its bias makes up for what the rounding of its weights does on average.

    Args:
        model: with float32 weights and batch normalisation folded, as `to_onnx` makes it, opset 13 or later.
        table: its ranges, see `check_table`.
        per_channel: a scale for each filter of a convolution instead of one for all of them.
        float_layers: names of convolutions that stay float, as `eight_bit_layers` gives them.

    Raises:
        ModelError: it is not such a network, or the table has no range for a tensor or weight that needs one.
    """
    _check(model)
    wires = Wires(model.graph)
    unknown = set(float_layers) - {layer(node) for node in wires.convolutions()}
    assert not unknown, f"no convolution that can run in 8 bits is called {', '.join(sorted(unknown))}"
    placement = PLACEMENTS[runtime](wires, float_layers)
    steps = _steps(placement, wires, table, unsigned=runtime == "onnxruntime")
    writer = _Writer(model, wires, placement, steps)
    return writer.write(table, per_channel=per_channel, integer_bias=runtime == "onnxruntime")


def table_from_cache(model: onnx.ModelProto, amaxes: Mapping[str, float]) -> ScaleTable:
    """The scale table of a float network with the activations' ranges of a TensorRT cache.

    Weights are as large as they are; tensors that cannot be negative are known from what computes them.

    Args:
        amaxes: by tensor, as `read_cache` gives them; names that the network does not have are left out.
    """
    _check(model)
    wires = Wires(model.graph)
    not_negative = wires.not_negative()
    tensors = {
        name: Range(amax, 0.0 if name in not_negative else -amax, amax, None)
        for name, amax in amaxes.items()
        if name in wires.readers
    }
    weights = {
        node.input[1]: np.abs(_filters(wires, node)).max(axis=1).tolist()
        for node in wires.nodes
        if node.op_type == "Conv"
    }
    return ScaleTable(tensors, weights, "cache", 0)


def _check(model: onnx.ModelProto) -> None:
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        raise ModelError(
            f"8-bit ONNX needs opset {FIRST_OPSET} or later, the network has {opset}: export it with --target_opset"
            f" {FIRST_OPSET} or more"
        )
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "BatchNormalization"):
            reason = (
                "batch normalisation" if node.op_type == "BatchNormalization" else "8-bit tensors already"
            )
            raise ModelError(
                f"only a float32 network as detectkit export writes it can be quantised: this has {reason}"
            )
        if node.op_type == "Conv":
            weight = weights.get(node.input[1])
            if weight is None or weight.data_type != TensorProto.FLOAT:
                raise ModelError(
                    f"the weight of {node.name} is no float32 constant: quantise the float32 network"
                )


def _filters(wires: Wires, node: NodeProto) -> NDArray[np.float32]:
    """The weights of a convolution, a row for each output channel."""
    weight = numpy_helper.to_array(wires.constants[node.input[1]])
    return weight.reshape(len(weight), -1)


class Step(NamedTuple):
    """How values become 8-bit integers: value / scale, rounded to the nearest and to even, + zero, within limits."""

    scale: NDArray[np.float32]
    zero: NDArray[np.generic]  # of the integers' type


class _Writer:
    """Writes one network."""

    def __init__(
        self, model: onnx.ModelProto, wires: Wires, placement: Placement, steps: Mapping[str, Step]
    ) -> None:
        self.model, self.wires, self.placement, self.steps = model, wires, placement, steps
        self.nodes: list[NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def write(self, table: ScaleTable, *, per_channel: bool, integer_bias: bool) -> onnx.ModelProto:
        """The network, its nodes in an order in which they can run."""
        chosen = {node.output[0] for node in self.placement.convolutions}
        for image in self.model.graph.input:
            self._round(image.name)
        for node in self.wires.nodes:
            if node.output[0] in chosen:
                amaxes = _amaxes(table, self.wires, node, per_channel=per_channel)
                self._weights(node, amaxes, table.means.get(node.input[0]), integer_bias=integer_bias)
            self.nodes.append(self._reading_rounded(node))
            for name in node.output:
                self._round(name)
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        for field, items in (("node", self.nodes), ("initializer", self.constants.values())):
            result.graph.ClearField(field)
            getattr(result.graph, field).extend(items)
        onnx.checker.check_model(result, full_check=True)
        return result

    def _reading_rounded(self, node: NodeProto) -> NodeProto:
        copied = NodeProto()
        copied.CopyFrom(node)
        for position, name in enumerate(node.input):
            if any(reader is node for reader in self.placement.readers.get(name, ())):
                copied.input[position] = f"{name}/rounded"
        return copied

    def _round(self, tensor: str) -> None:
        """Write the rounding of a tensor, if it is to be rounded."""
        if tensor in self.steps:
            step, integers = self.steps[tensor], f"{tensor}/integer"
            inputs = [
                self._constant(f"{tensor}/scale", step.scale),
                self._constant(f"{tensor}/zero", step.zero),
            ]
            self.nodes.append(_node("QuantizeLinear", [tensor, *inputs], integers))
            self.nodes.append(_node("DequantizeLinear", [integers, *inputs], f"{tensor}/rounded"))

    def _weights(
        self,
        node: NodeProto,
        amaxes: NDArray[np.float64],
        mean: Sequence[float] | None,
        *,
        integer_bias: bool,
    ) -> None:
        """Put 8-bit weights, and a 32-bit bias if asked for, in the place of the float ones.

        Args:
            mean: of each channel that the convolution reads. What rounding the weights does to the results on average
                is then taken off the bias (Nagel et al. 2019, Data-Free Quantization, bias correction).
        """
        weight = numpy_helper.to_array(self.constants.pop(node.input[1]))
        scales = np.array([scale_of(amax) for amax in amaxes])
        bias = None
        if len(node.input) > 2:
            bias = numpy_helper.to_array(self.constants.pop(node.input[2])).astype(np.float64)
        if bias is not None and integer_bias:
            before = self.steps[node.input[0]].scale.astype(np.float64)
            # Where hardly any signal comes in, the steps of the sums can be too small for the bias.
            least = np.abs(bias) / before / LARGEST_BIAS
            scales = np.maximum(scales, least if len(scales) > 1 else least.max())
        steps = scales.astype(np.float32)
        columns = weight.reshape(len(weight), -1) / steps[:, None]
        integers = np.clip(np.rint(columns), -SIGNED_LEVELS, SIGNED_LEVELS).astype(np.int8)
        self._constant_rounded(node.input[1], integers.reshape(weight.shape), steps)
        if bias is None:
            return
        if mean is not None:
            error = (integers * steps[:, None].astype(np.float64)).reshape(weight.shape) - weight
            bias -= _on_average(error, np.array(mean))
        if not integer_bias:
            self._constant(node.input[2], bias.astype(np.float32))
            return
        steps = self.steps[node.input[0]].scale * steps
        self._constant_rounded(node.input[2], np.rint(bias / steps).astype(np.int32), steps)

    def _constant_rounded(
        self, name: str, integers: NDArray[np.generic], scales: NDArray[np.float32]
    ) -> None:
        """A constant under its old name, read from integers; with a scale for each of its rows, or one for all."""
        single = scales.size == 1
        zero = np.zeros(() if single else scales.shape, integers.dtype)
        inputs = [
            self._constant(f"{name}/integer", integers),
            self._constant(f"{name}/scale", scales.reshape(()) if single else scales),
            self._constant(f"{name}/zero", zero),
        ]
        self.nodes.append(_node("DequantizeLinear", inputs, name, **({} if single else {"axis": 0})))

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _node(operation: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    node = helper.make_node(operation, inputs, [output], name=output)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def _on_average(weight: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a convolution with this weight [C, c / groups, h, w] gives on average [C] for inputs of these means [c]."""
    columns = weight.sum((2, 3))
    groups = len(mean) // columns.shape[1]
    each: NDArray[np.float64] = columns.reshape(groups, -1, columns.shape[1]) @ mean.reshape(groups, -1, 1)
    return each.reshape(-1)


def _amaxes(table: ScaleTable, wires: Wires, node: NodeProto, *, per_channel: bool) -> NDArray[np.float64]:
    """The largest weight of each filter of a convolution, or of all of them.

    One range of the least squared error instead was tried: with the largest weights cut off, the coverage of a ResNet18
    came out lower, and the noise of its maps 0.5 dB higher.
    """
    name = node.input[1]
    found = np.array(table.weights.get(name, []))
    wanted = wires.constants[name].dims[0]
    if len(found) != wanted:
        raise ModelError(
            f"the scale table has {len(found)} ranges for {name}, which has {wanted} filters: run detectkit calibrate"
            " on this network"
        )
    return found if per_channel else found.max(keepdims=True)


def _steps(placement: Placement, wires: Wires, table: ScaleTable, *, unsigned: bool) -> dict[str, Step]:
    """How each tensor that is rounded becomes integers."""
    ranges = {name: _range(table, wires, name) for name in placement.readers}
    for group in placement.groups:
        shared = [ranges[name] for name in group]
        widest = max(shared, key=lambda item: item.amax)._replace(low=min(item.low for item in shared))
        ranges.update(dict.fromkeys(group, widest))
    return {name: _step(values, unsigned=unsigned) for name, values in ranges.items()}


def _range(table: ScaleTable, wires: Wires, tensor: str) -> Range:
    if tensor in table.tensors:
        return table.tensors[tensor]
    limits = LIMITS.get(wires.maker[tensor].op_type) if tensor in wires.maker else None
    if limits is not None:
        return Range(max(map(abs, limits)), *limits, None)
    raise ModelError(
        f"the scale table has no range for {tensor}, which is rounded to 8 bits: run detectkit calibrate on this network"
    )


def _step(values: Range, *, unsigned: bool) -> Step:
    if not unsigned:
        return Step(np.array(scale_of(values.amax), np.float32), np.array(0, np.int8))
    if not values.unsigned:
        return Step(np.array(scale_of(values.amax), np.float32), np.array(MIDDLE, np.uint8))
    return Step(np.array(scale_of(values.amax, UNSIGNED_LEVELS), np.float32), np.array(0, np.uint8))
