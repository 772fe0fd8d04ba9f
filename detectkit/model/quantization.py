"""Quantisation-aware training: the network in 8-bit rounding, and the ranges that it rounds to.

The rounding is symmetric, that of weights by output channel, of whatever a runtime's int8 network stores in 8 bits.
TensorRT's leaves some of it in floating point, ONNX Runtime's has twice the levels where nothing is negative: both have
less noise than evaluation mode here. Their noise is another one: a sum in another order moves many a value to the next
level. Gradients pass through the rounding as if it were not there, and are zero where a value was cut off.
Sources: Jacob et al. 2018, Krishnamoorthi 2018. B batch, c image channels, H W pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from detectkit.model.detector import Detector
from detectkit.model.graph import FUSED, HEADS, gates, measured, quantizable, tensor_name, trace
from detectkit.model.graph import OUTPUTS
from detectkit.model.header import INPUT
from detectkit.ops.quantize import channel_amax, fake_quantize

DECAY = 0.999  # of the moving averages that ranges are
# By definition. What is seen of them could only cut off what is bright, or sure.
KNOWN = {INPUT: (0.0, 1.0), OUTPUTS[0]: (0.0, 1.0)}


class Ranges(nn.Module):
    """The ranges of a detector's tensors, and the detector as a network of 8-bit numbers.

    For every tensor that `graph.measured` names there is a buffer [2] of that name: the moving averages of the least and
    the greatest value of a batch, or what is `KNOWN`. They move in training mode only, in the first n batches by more than
    `DECAY` says, so that the first batch is soon forgotten. `batches` counts those seen.

    Args:
        detector: whose `ranges` this shall be; its weights and widths may change afterwards, not its layers nor whether
            it normalises.
    """

    batches: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        plan = _plan(detector)
        self._used: _Plan | None = None  # the plan of the mode that the layers are in
        self.shared = plan.shared
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        for name in plan.observed.values():
            self.register_buffer(name, torch.tensor(KNOWN.get(name, (0.0, 0.0))))

    def learned(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of every tensor, by its name in ONNX files.

        Tensors that are put together or picked from (concatenation, maximum pooling) have one range.
        """
        found = {}
        for name in self._names():
            extremes = torch.stack([self.get_buffer(member) for member in self._members(name)])
            found[name] = float(extremes[:, 0].amin()), float(extremes[:, 1].amax())
        return found

    def rounded(self, detector: Detector) -> set[str]:
        """The names of the tensors that the detector rounds, and of those that share their range with them."""
        plan = _plan(detector)
        return {plan.observed[node] for node in plan.rounded}

    def forward(self, detector: Detector, images: Tensor) -> tuple[Tensor, ...]:
        """Run the detector in 8-bit rounding: see `Detector.forward`.

        In training mode each tensor's range takes in the batch before the tensor is rounded to it.
        """
        if self._used is None:
            self._used = _plan(detector)
        pace = self._pace()
        if self.training:
            self.batches += 1
        outputs: tuple[Tensor, ...] = _Simulation(detector, self, self._used, pace).run(images)
        return outputs

    def train(self, mode: bool = True) -> Ranges:
        """As nn.Module.train."""
        self._used = None  # a traced network keeps the mode of some functions
        super().train(mode)
        return self

    def observe(self, name: str, values: Tensor, pace: Tensor) -> None:
        """Move the range of a tensor towards the extremes of its values by a share of the way."""
        values = values.detach()
        # torch.aminmax takes ten times as long where channels lie last.
        self.get_buffer(name).lerp_(torch.stack((values.amin(), values.amax())).float(), pace)

    def amax(self, name: str) -> Tensor:
        """The greatest magnitude [] in the range of a tensor."""
        return torch.stack([self.get_buffer(member) for member in self._members(name)]).abs().amax()

    def _names(self) -> Iterable[str]:
        return (name for name in dict(self.named_buffers()) if name != "batches")

    def _members(self, name: str) -> Iterable[str]:
        return self.shared.get(name, (name,))

    def _pace(self) -> Tensor:
        """The weight [] of the next batch, on the device: 1 for the first, then 1 - min(DECAY, (1 + n) / (10 + n))."""
        seen = self.batches.float()
        pace = 1 - ((1 + seen) / (10 + seen)).clamp(max=DECAY)
        return torch.where(seen == 0, torch.ones_like(pace), pace)


class _Plan(NamedTuple):
    """What happens to a network's values; nodes are named, so that a copy of the graph fits."""

    graph: fx.Graph
    observed: dict[str, str]  # the tensor's name by that of the node
    rounded: frozenset[str]  # nodes whose values are rounded
    convolutions: frozenset[str]  # layers whose weights are
    shared: dict[str, tuple[str, ...]]  # the tensors with one range, by each of their names


def _plan(detector: Detector) -> _Plan:
    traced = trace(detector)
    nodes = measured(traced)
    return _Plan(
        traced.graph,
        {node.name: tensor_name(node) for node in nodes},
        frozenset(node.name for node in _rounded(traced, nodes)),
        frozenset(str(node.target) for node in quantizable(traced)),
        _shared(traced),
    )


def _rounded(traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> Iterable[fx.Node]:
    """Of the measured nodes those that an int8 network stores: not the outputs, gates, and what the next one computes.

    What maximum pooling and concatenation give is rounded already.
    """
    outside = gates(traced) | {node for node in nodes if node.target in (*HEADS, torch.sigmoid)}
    if any(node.target is operator.truediv for node in nodes):  # the image is normalised before it is rounded
        outside |= {node for node in nodes if node.op == "placeholder"}
    for node in nodes:
        if node not in outside and not _passes(traced, node) and not _is_fused(traced, node):
            yield node


def _passes(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives the values that it gets, or some of them."""
    return node.target is torch.cat or isinstance(_layer(traced, node), nn.MaxPool2d)


def _is_fused(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value, such as a residual sum, goes into a function that is computed with it and nowhere else."""
    reader, *others = node.users
    return not others and isinstance(_layer(traced, reader), FUSED)


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _shared(traced: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """The tensors that have one range because values pass from one to the other: all of them, by each one's name."""
    shared: dict[str, tuple[str, ...]] = {}
    for node in traced.graph.nodes:
        if _passes(traced, node):
            names = [tensor_name(part) for part in (node, *node.all_input_nodes)]
            together = tuple(dict.fromkeys(member for name in names for member in shared.get(name, (name,))))
            shared |= dict.fromkeys(together, together)
    return shared


class _Simulation(fx.Interpreter):
    """Runs a detector node by node, with the rounding that the plan says."""

    def __init__(self, detector: Detector, ranges: Ranges, plan: _Plan, pace: Tensor) -> None:
        super().__init__(detector, graph=plan.graph)
        self.ranges, self.plan, self.pace = ranges, plan, pace

    def run_node(self, node: fx.Node) -> Any:
        """The value of a node."""
        value = super().run_node(node)
        tensor = self.plan.observed.get(node.name)
        if tensor is None:
            return value
        if self.ranges.training and tensor not in KNOWN:
            self.ranges.observe(tensor, value, self.pace)
        if node.name not in self.plan.rounded:
            return value
        # In 16-bit training what is rounded stays in 16 bits, which the next convolution takes anyway.
        return fake_quantize(value, self.ranges.amax(tensor)).to(value.dtype)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a layer gives; convolutions with weights in 8 bits, if theirs are to be.

        Rounding by output channel is the same before and after batch normalisation is folded into the weight: folding
        multiplies a channel and its range by one number.
        """
        if target not in self.plan.convolutions:
            return super().call_module(target, args, kwargs)
        layer = self.fetch_attr(target)
        weight = fake_quantize(layer.weight, channel_amax(layer.weight), axis=0).to(layer.weight.dtype)
        return functional_call(layer, {"weight": weight}, args, kwargs)
