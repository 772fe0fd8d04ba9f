"""The operators that networks are made of: the one reader of networks, and the one table of what each operator does.

Pruning asks it what becomes of channels, folding and rounding what becomes of values, `receptive_field` and the writers
how far a window reaches. So a new operator is one row here, and its form in `deploy.ir` and `deploy.onnx`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from enum import Enum, auto
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.ops import stochastic_depth

from detectkit.errors import ModelError
from detectkit.heads.layers import L2Normalisation, MaxPool2dSame, WeightedSum, pair, same_border
from detectkit.model.base import Conv2dSame


class Channels(Enum):
    """What becomes of the channels of what an operator takes."""

    FIXED = auto()  # it takes nothing: images and constants
    MADE = auto()  # it gives others, one for each of its filters
    KEPT = auto()  # it works on each by itself, and gives as many
    JOINED = auto()  # those of one input with those of the others, value by value
    STACKED = auto()  # those of one input behind those of the other
    MIXED = auto()  # they are in other places afterwards, or each depends on all: they cannot be told apart


class Values(Enum):
    """What becomes of the values that an operator takes."""

    COMPUTED = auto()  # it gives others
    UNCHANGED = auto()  # in evaluation mode it does nothing
    NORMALISED = auto()  # it is folded into the convolution before it
    FUSED = auto()  # a runtime computes it in the convolution before it: only what comes out is ever stored
    PICKED = auto()  # it gives what it gets, or some of it: both sides have one range
    AVERAGED = auto()  # it gives their means over the image: one pixel


class Window(NamedTuple):
    """What slides over a map, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


class Row(NamedTuple):
    """A row of the table."""

    name: str  # in `deploy.ir`
    forms: tuple[Any, ...]  # what is such an operator: layers, functions, and methods of tensors by name
    channels: Channels
    values: Values = Values.COMPUTED
    limits: tuple[float, float] = (-math.inf, math.inf)  # of what it gives
    onnx: str = ""  # ONNX's operator, where it is one
    integers: bool = (
        False  # ONNX Runtime computes it in integers where the values on both sides are 8-bit ones
    )
    # Which uses of the forms are known; the others are as unknown as what has no row.
    fits: Callable[[fx.Node], bool] = lambda node: True


def kind_of(node: fx.Node) -> Row:
    """The row of a node of a graph that `graph_of` has read."""
    kind: Row = node.meta["kind"]
    return kind


def graph_of(network: nn.Module, method: str = "forward") -> fx.GraphModule:
    """Read a network with torch.fx; its layers are shared, and each that has a row in the table is one node.

    Args:
        method: that shall be read.

    Raises:
        ModelError: it has an operator that the table does not have.
    """
    graph = fx.GraphModule(network, _Tracer(method).trace(network), type(network).__name__)
    for node in graph.graph.nodes:
        node.meta["kind"] = _find(node)
    return graph


def layer_of(node: fx.Node) -> nn.Module | None:
    """The layer that a node runs; None: it is none."""
    owner = node.graph.owning_module
    assert owner is not None  # as of all graphs of `graph_of`
    return owner.get_submodule(str(node.target)) if node.op == "call_module" else None


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node takes, in their order, and as often as it takes them."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:
    """An argument of a function or method, wherever it is given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def window_of(node: fx.Node) -> Window | None:
    """The window of a convolution or pool; None: the operator has none."""
    layer = layer_of(node)
    if isinstance(layer, nn.Conv2d):
        return Window(pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation))
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return Window(pair(layer.kernel_size), pair(layer.stride), (1, 1))
    return None


def border_of(node: fx.Node, sides: Sequence[int]) -> tuple[int, int, int, int]:
    """What a convolution or pool puts around a map: rows above, columns on the left, below, on the right.

    A pool that rounds its size up reaches further than that.

    Args:
        node: one that has a window.
        sides: height and width of the map.
    """
    layer: Any = layer_of(node)
    if isinstance(layer, (Conv2dSame, MaxPool2dSame)):
        return same_border(sides, layer.kernel_size, layer.stride, layer.dilation)
    return pair(layer.padding) * 2


def resized_by(node: fx.Node) -> int:
    """How many times larger a map is behind an operator; 1: as large, or made smaller by a window."""
    return int(_resizing(node)[1]) if kind_of(node).name == "resize" else 1


def receptive_field(network: nn.Module) -> int:
    """Side in pixels of the square that one output value depends on, by the kernels and strides on the widest path.

    What gates of the whole image (EfficientNet) let through is counted, the gates are not.

    Raises:
        ModelError: as `graph_of`.
    """
    seen: dict[fx.Node, tuple[int, Fraction]] = {}  # pixels seen by a value, and from one value to the next
    field, step = 1, Fraction(1)
    for node in graph_of(network).graph.nodes:
        field, step = max((seen[source] for source in node.all_input_nodes), default=(1, Fraction(1)))
        window = window_of(node)
        if window is not None:
            field += math.ceil((max(window.kernel) - 1) * max(window.dilation) * step)
            step *= max(window.stride)
        seen[node] = field, step / resized_by(node)
    return field


def unknown(node: fx.Node) -> ModelError:
    """The error of an operator that the table does not have, or not in this form."""
    layer, around = layer_of(node), list(node.meta.get("nn_module_stack", ()))
    what = f"{node.name} in {around[-1]}" if around else node.name
    if layer is not None:
        what = f"{node.target} ({str(layer).splitlines()[0]})"
    elif node.target in (getattr, "size"):
        return ModelError(
            f"{what} asks a tensor for its shape, which files do not compute: use flatten(first, last) and"
            " unflatten(axis, sizes) in the place of a reshape by the number of images"
        )
    return ModelError(
        f"it is not known what {what} does: use an operator that detectkit/model/operators.py has, or add this one there"
    )


def onnx_operators(which: Callable[[Row], bool]) -> frozenset[str]:
    """ONNX's operators for the rows that are asked for; without those that are written as several."""
    return frozenset(kind.onnx for kind in KINDS if kind.onnx and which(kind))


def _pads_with_zeros(node: fx.Node) -> bool:
    layer: Any = layer_of(node)
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def axis_of(node: fx.Node) -> Any:
    """Along which axis a softmax is, counted as it is written."""
    layer: Any = layer_of(node)
    return argument(node, 1, "dim") if layer is None else layer.dim


def _has_axis(node: fx.Node) -> bool:
    return isinstance(axis_of(node), int) and argument(node, 2, "dtype") is None


def _is_plain_pool(node: fx.Node) -> bool:
    layer: Any = layer_of(node)
    return pair(layer.dilation) == (1, 1) and not layer.return_indices


def _has_no_border(node: fx.Node) -> bool:
    layer: Any = layer_of(node)
    return pair(layer.padding) == (0, 0) and layer.divisor_override is None


def _is_global(node: fx.Node) -> bool:
    layer: Any = layer_of(node)
    return layer.output_size in (1, (1, 1))


def _resizing(node: fx.Node) -> tuple[object, Any, str]:
    """The size, factor and mode of a resize."""
    layer = layer_of(node)
    if isinstance(layer, nn.Upsample):
        return layer.size, layer.scale_factor, layer.mode
    mode = argument(node, 3, "mode", "nearest")
    return argument(node, 1, "size"), argument(node, 2, "scale_factor"), mode


def _repeats_pixels(node: fx.Node) -> bool:
    size, factor, mode = _resizing(node)
    return size is None and mode == "nearest" and isinstance(factor, (int, float)) and factor == int(factor)


def _takes_two_tensors(node: fx.Node) -> bool:
    return len(operands(node)) == len(node.args) == 2 and not node.kwargs


def _is_along_channels(node: fx.Node) -> bool:
    parts = argument(node, 0, "tensors")
    return (
        argument(node, 1, "dim") == 1
        and isinstance(parts, (list, tuple))
        and len(operands(node)) == len(parts)
    )


MEANS = (nn.AdaptiveAvgPool2d,)
SIGMOIDS = (nn.Sigmoid, torch.sigmoid)
SOFTMAXES = (nn.Softmax, torch.softmax, functional.softmax, "softmax")
RELUS = (nn.ReLU, torch.relu, functional.relu)
RESIZES = (nn.Upsample, functional.interpolate)
PRODUCTS = (operator.mul, torch.mul)
RESHAPES = ("reshape", "view", "flatten", "unflatten", torch.reshape, torch.flatten)
TRANSPOSES = ("permute", "transpose", torch.permute, torch.transpose)
KINDS = (
    Row("convolution", (nn.Conv2d,), Channels.MADE, onnx="Conv", fits=_pads_with_zeros),
    Row("batch_normalisation", (nn.BatchNorm2d,), Channels.KEPT, Values.NORMALISED),
    Row("l2_normalisation", (L2Normalisation,), Channels.KEPT),
    Row(
        "max_pool",
        (nn.MaxPool2d,),
        Channels.KEPT,
        Values.PICKED,
        onnx="MaxPool",
        integers=True,
        fits=_is_plain_pool,
    ),
    # Rounded up in size, its last windows are as large as the map goes, in torch, ONNX Runtime and TensorRT alike.
    Row(
        "average_pool",
        (nn.AvgPool2d,),
        Channels.KEPT,
        onnx="AveragePool",
        integers=True,
        fits=_has_no_border,
    ),
    Row("mean", MEANS, Channels.KEPT, Values.AVERAGED, onnx="GlobalAveragePool", fits=_is_global),
    Row("resize", RESIZES, Channels.KEPT, Values.PICKED, onnx="Resize", integers=True, fits=_repeats_pixels),
    Row("relu", RELUS, Channels.KEPT, Values.FUSED, limits=(0.0, math.inf), onnx="Relu"),
    Row("relu6", (nn.ReLU6,), Channels.KEPT, Values.FUSED, limits=(0.0, 6.0), onnx="Clip"),
    Row("leaky_relu", (nn.LeakyReLU,), Channels.KEPT, onnx="LeakyRelu", integers=True),
    Row("elu", (nn.ELU,), Channels.KEPT, onnx="Elu"),
    Row("silu", (nn.SiLU,), Channels.KEPT),
    Row("hard_swish", (nn.Hardswish,), Channels.KEPT),
    Row("sigmoid", SIGMOIDS, Channels.KEPT, limits=(0.0, 1.0), onnx="Sigmoid", integers=True),
    Row("softmax", SOFTMAXES, Channels.MIXED, limits=(0.0, 1.0), onnx="Softmax", fits=_has_axis),
    Row("hard_sigmoid", (nn.Hardsigmoid,), Channels.KEPT, limits=(0.0, 1.0), onnx="HardSigmoid"),
    # torch.fx writes += and *= as + and *.
    Row(
        "add", (operator.add, torch.add), Channels.JOINED, onnx="Add", integers=True, fits=_takes_two_tensors
    ),
    Row("subtract", (operator.sub, torch.sub), Channels.JOINED, onnx="Sub", fits=_takes_two_tensors),
    Row("multiply", PRODUCTS, Channels.JOINED, onnx="Mul", integers=True, fits=_takes_two_tensors),
    Row("divide", (operator.truediv, torch.div), Channels.JOINED, onnx="Div", fits=_takes_two_tensors),
    Row("maximum", (torch.maximum,), Channels.JOINED, onnx="Max", fits=_takes_two_tensors),
    Row("minimum", (torch.minimum,), Channels.JOINED, onnx="Min", fits=_takes_two_tensors),
    Row("weighted_sum", (WeightedSum,), Channels.JOINED),
    Row(
        "concatenate",
        (torch.cat,),
        Channels.STACKED,
        Values.PICKED,
        onnx="Concat",
        integers=True,
        fits=_is_along_channels,
    ),
    Row("reshape", RESHAPES, Channels.MIXED, Values.PICKED, onnx="Reshape"),
    Row("transpose", TRANSPOSES, Channels.MIXED, Values.PICKED, onnx="Transpose"),
    Row("nothing", (nn.Identity, nn.Dropout, "float", stochastic_depth), Channels.KEPT, Values.UNCHANGED),
)
# No operators, but nodes all the same.
IMAGES, CONSTANT, RESULTS = (Row(name, (), Channels.FIXED) for name in ("images", "constant", "results"))


def _layers(*kinds: Row) -> tuple[type, ...]:
    return tuple(form for kind in kinds for form in kind.forms if isinstance(form, type))


LAYERS = _layers(*KINDS)


class _Tracer(fx.Tracer):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, layer: nn.Module, name: str) -> bool:
        """As fx.Tracer, for which only what torch has is one node."""
        return isinstance(layer, LAYERS) or super().is_leaf_module(layer, name)


def _find(node: fx.Node) -> Row:
    match node.op:
        case "placeholder":
            return IMAGES
        case "get_attr":
            return CONSTANT
        case "output":
            return RESULTS
    layer = layer_of(node)
    for kind in KINDS:
        is_such = node.target in kind.forms if layer is None else isinstance(layer, _layers(kind))
        if is_such and kind.fits(node):
            return kind
    raise unknown(node)
