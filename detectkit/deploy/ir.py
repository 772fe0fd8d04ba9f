"""A network as one flat list of operators, which the writers of every file format read.

Shapes are without the batch: channels, height, width. Layouts and weights are torch's: [C, h, w], and [C, c / groups, h, w].
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from detectkit.model.detector import Detector
from detectkit.model.graph import folded, tensor_name
from detectkit.heads.layers import WeightedSum
from detectkit.model.operators import (
    argument,
    axis_of,
    border_of,
    kind_of,
    layer_of,
    operands,
    resized_by,
    unknown,
    window_of,
)

BATCH = 9973  # of images without values that shapes are found with: no side of a map is as long


class Operator(NamedTuple):
    """One operator of a network in evaluation mode, batch normalisation folded into the convolutions.

    Attributes:
        kind: name of a row of `model.operators.KINDS`; "images" is what the network takes.
        layer: name of the layer in the detector, numbered where it is used again (`model.graph.folded`); "" of a function.
        output: the tensor that it gives, by its name in files (`model.graph.tensor_name`).
        inputs: the tensors that it takes, then its constants, in this order; of a sum and the like as they are written.
        shape: of what it gives.
        attributes: by kind. convolution: kernel, stride, dilation, pads (top, left, bottom, right), groups. max_pool:
            kernel, stride, pads. average_pool: the same, and its means are without the border. resize: factor. leaky_relu, elu: alpha. softmax: axis, the batch is 0. transpose: order, of
            the axes with the batch as 0.
        constants: by name, as in the state dict, but of weighted_sum its `shares`.
    """

    kind: str
    layer: str
    output: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, NDArray[np.float32]]


def operators(detector: Detector, *, height: int, width: int) -> list[Operator]:
    """The operators of a detector in an order in which they can run; the first is its images.

    Its outputs are those that `Detector.outline` names.

    Args:
        detector: on any device, in any mode; it stays as it is.
        height: of the images in pixels.
        width: likewise.

    Raises:
        ModelError: the network has an operator that is not known.
    """
    graph = folded(detector)
    nodes = [node for node in graph.graph.nodes if node.op not in ("get_attr", "output")]
    constants = {node: _constants(node) for node in nodes}
    graph.to("meta")  # the arrays of the constants keep their values
    shapes = _Shapes(graph).of(torch.empty(BATCH, detector.channels, height, width, device="meta"))
    return [_operator(node, shapes, constants[node]) for node in nodes]


def _operator(
    node: fx.Node, shapes: Mapping[fx.Node, torch.Size], constants: Mapping[str, NDArray[np.float32]]
) -> Operator:
    taken = [_name(source) for source in operands(node)]
    return Operator(
        kind=kind_of(node).name,
        layer=str(node.target) if node.op == "call_module" else "",
        output=tensor_name(node),
        inputs=(*taken, *(name for name in constants if name not in taken)),
        shape=tuple(shapes[node][1:]),
        attributes=_attributes(node, shapes),
        constants=constants,
    )


class _Shapes(fx.Interpreter):
    """Finds the shape of every value, the batch included."""

    def of(self, images: Tensor) -> dict[fx.Node, torch.Size]:
        """Of all nodes for these images."""
        self.found: dict[fx.Node, torch.Size] = {}
        self.run(images)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("output", "get_attr"):
            if value.shape[0] != BATCH:
                raise unknown(n)  # it moves one image's values to another's
            self.found[n] = value.shape
        return value


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "get_attr" else tensor_name(node)


def _constants(node: fx.Node) -> dict[str, NDArray[np.float32]]:
    """What a node takes that is no result of another: its layer's parameters, or tensors of the network."""
    owner, layer = node.graph.owning_module, layer_of(node)
    values = {_name(source): source for source in operands(node) if source.op == "get_attr"}
    found = {name: operator.attrgetter(name)(owner).detach().numpy() for name in values}
    if layer is not None:
        own = [("shares", layer.shares())] if isinstance(layer, WeightedSum) else layer.named_parameters()
        found |= {f"{node.target}.{name}": value.detach().numpy() for name, value in own}
    return found


def _attributes(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> dict[str, Any]:
    layer: Any = layer_of(node)
    match kind_of(node).name:
        case "convolution":
            return _window(node, shapes) | {"groups": layer.groups}
        case "max_pool" | "average_pool":
            found = _window(node, shapes)
            del found["dilation"]
            if layer.ceil_mode:
                found["pads"] = _rounded_up(shapes[node.all_input_nodes[0]], **found)
            return found
        case "resize":
            return {"factor": resized_by(node)}
        case "leaky_relu":
            return {"alpha": layer.negative_slope}
        case "elu":
            return {"alpha": layer.alpha}
        case "softmax":
            axis = axis_of(node) % len(shapes[node])
            if axis == 0:
                raise unknown(node)  # it is over the images
            return {"axis": axis}
        case "transpose":
            return {"order": _order(node, len(shapes[node]))}
    return {}


def _window(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> dict[str, tuple[int, ...]]:
    window = window_of(node)
    assert window is not None
    return window._asdict() | {"pads": border_of(node, shapes[node.all_input_nodes[0]][2:])}


def _rounded_up(
    shape: torch.Size, kernel: tuple[int, ...], stride: tuple[int, ...], pads: tuple[int, ...]
) -> tuple[int, ...]:
    """The border of a pool that rounds its size up, with what that adds below and on the right: runtimes differ in it."""
    more = []
    for size, step, padding, side in zip(kernel, stride, pads[:2], shape[2:], strict=True):
        windows, rest = divmod(side + 2 * padding - size, step)
        # PyTorch leaves out a last window that would begin in the border.
        more.append(step - rest if rest and (windows + 1) * step < side + padding else 0)
    top, left, bottom, right = pads
    return top, left, bottom + more[0], right + more[1]


def _order(node: fx.Node, rank: int) -> tuple[int, ...]:
    """Where each axis of a transposed value comes from."""
    if "permute" in str(node.target):
        axes: Any = argument(node, 1, "dims")
        each: Any = axes if isinstance(axes, (tuple, list)) else node.args[1:]
        return tuple(axis % rank for axis in each)
    order = list(range(rank))
    one, other = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    order[one], order[other] = order[other], order[one]
    return tuple(order)
