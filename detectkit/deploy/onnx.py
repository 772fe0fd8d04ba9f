"""ONNX: a detector as one file that ONNX Runtime and TensorRT read."""

from __future__ import annotations

import copy
import itertools
import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from detectkit.errors import ModelError, UsageError
from detectkit.files import atomic_write
from detectkit.model.base import borders
from detectkit.model.detector import Detector
from detectkit.model.graph import folded, tensor_name
from detectkit.model.header import INPUT
from detectkit.ops.quantize import decibels
from detectkit.runtimes.onnx import FAILURES, make_session

OPSET = 20
FIRST_OPSET = 13  # the first whose quantisation has a scale for each channel
GRAINS = (1, 8, 32)  # pixels a patch of the images that an exported model is tried on
QUIET = 1e-8  # variance of an output below which it is constant
# ONNX's operators for what joins or changes values place by place.
FUNCTIONS: dict[Any, str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    torch.sigmoid: "Sigmoid",
}


def to_model(
    detector: Detector, *, height: int, width: int, opset: int = OPSET, batch: int | None = None
) -> onnx.ModelProto:
    """The detector in evaluation mode as an ONNX model in float32, batch normalisation folded into the convolutions.

    Its input is "images" [N, c, height, width] in [0, 1]. Its outputs are "output_cov/Sigmoid" [N, C, h, w] and
    "output_bbox/BiasAdd" [N, 4C, h, w], as those of `Detector`. Every other value, and the node that makes it, has the
    name of its node in `model.graph.folded`; weights have their names in the state dict.

    Args:
        detector: on any device, in any mode; it stays as it is.
        height: of the images in pixels, a multiple of the detector's stride.
        width: likewise.
        opset: version of ONNX's operators, 13 or later.
        batch: N; any from 1 on if None.

    Raises:
        UsageError: there is no such opset.
        ModelError: the network computes something that this writer does not know.
    """
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise UsageError(
            f"there is no opset {opset} to write: use one from {FIRST_OPSET} to {newest} (--target_opset)"
        )
    model = _Writer(folded(detector), (detector.channels, height, width), opset).model(batch or "N")
    onnx.checker.check_model(model, full_check=True)
    return model


def to_onnx(
    detector: Detector, *, height: int, width: int, opset: int = OPSET, batch: int | None = None
) -> bytes:
    """What `to_model` gives, as the content of a file."""
    return to_model(detector, height=height, width=width, opset=opset, batch=batch).SerializeToString()


def save_onnx(path: str | os.PathLike[str], model: onnx.ModelProto) -> None:
    """Write a model to a file.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def check_against(
    detector: Detector, model: bytes, *, tolerance: float = 1e-4, least_sqnr: float = -math.inf
) -> float:
    """Run a model in ONNX Runtime and the detector in PyTorch on the same random images, in batches of 1 and 3.

    A model of a fixed batch is run on that one only.

    Args:
        detector: on any device, in any mode; it stays as it is. Of a quantised one the floating-point path counts.
        model: content of a file that `to_onnx` or what follows it has made.
        tolerance: greatest difference, as a share of the greatest value of that output where this is above 1.
        least_sqnr: least ratio of what the values of an output vary by to how far they are off, in dB, over all images.

    Returns:
        The greatest difference found, in the unit of `tolerance`.

    Raises:
        ModelError: the outputs differ by more, are not finite, or ONNX Runtime cannot run the model.
    """
    reference = copy.deepcopy(detector).eval().cpu().float()
    try:
        session = make_session(model)
        fixed, channels, height, width = session.get_inputs()[0].shape
        sizes = [fixed] * -(-len(GRAINS) // fixed) if isinstance(fixed, int) else [1, len(GRAINS)]
        grains = GRAINS if math.isfinite(least_sqnr) else GRAINS[:1]
        every = random_images(sum(sizes), channels, height, width, grains=grains)
        batches = list(torch.split(every, sizes))
        found = [session.run(detector.outline.names, {INPUT: images.numpy()}) for images in batches]
    except FAILURES as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the exported model ({reason})"
        ) from error
    with torch.no_grad():
        expected = [reference.plain(images) for images in batches]
    worst = 0.0
    for place, name in enumerate(detector.outline.names):
        ours = [maps[place] for maps in expected]
        theirs = [torch.from_numpy(maps[place]) for maps in found]
        worst = max(worst, *(_difference(*pair, name, tolerance) for pair in zip(ours, theirs, strict=True)))
        if math.isfinite(least_sqnr):  # float models may hold values whose squares are beyond float's
            _check_noise(torch.cat(ours), torch.cat(theirs), name, least_sqnr)
    return worst


def random_images(
    count: int, channels: int, height: int, width: int, *, grains: Sequence[int] = GRAINS
) -> Tensor:
    """Images [count, channels, height, width] in [0, 1] of random patches: noise alone is not what 8 bits were made for.

    Args:
        grains: pixels of a patch, of one image after the other; 1: noise.
    """
    generator = torch.Generator().manual_seed(0)
    images = []
    for grain, _ in zip(itertools.cycle(grains), range(count)):
        patches = torch.rand(1, channels, -(-height // grain), -(-width // grain), generator=generator)
        images.append(nn.functional.interpolate(patches, (height, width), mode="bilinear"))
    return torch.cat(images)


def _difference(expected: Tensor, found: Tensor, name: str, tolerance: float) -> float:
    if found.shape != expected.shape:
        raise ModelError(
            f"the exported model gives {name} {list(found.shape)} where PyTorch gives {list(expected.shape)}"
        )
    if not expected.isfinite().all():
        raise ModelError(
            f"the model itself gives {name} that is not finite on random images: evaluate it first, or take another"
            " checkpoint"
        )
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= tolerance:  # a NaN is not
        raise ModelError(
            f"the exported model does not compute what PyTorch does: {name} of {len(found)} random images"
            f" differs by {difference:.2g} (allowed: {tolerance:.2g})"
        )
    return difference


def _check_noise(expected: Tensor, found: Tensor, name: str, least: float) -> None:
    varies = float((expected - expected.mean((0, 2, 3), keepdim=True)).square().mean())
    off = float((found - expected).square().mean())
    ratio = decibels(max(varies, QUIET), off)
    if not ratio >= least:
        raise ModelError(
            f"in 8 bits {name} is noise on random images (signal to noise {ratio:.1f} dB, at least {least:g} is asked for):"
            " the ranges are not those of this network, or a layer must stay in float (--max-drop); run detectkit"
            " calibrate on this model"
        )


class _Writer:
    """Writes the nodes of a folded graph one after the other; shapes are without the batch: channels, height, width."""

    def __init__(self, graph: fx.GraphModule, image: tuple[int, int, int], opset: int) -> None:
        self.graph, self.image, self.opset = graph, image, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names: dict[fx.Node, str] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        for node in graph.graph.nodes:
            if node.op != "output":
                self.names[node] = tensor_name(node)
                self.shapes[node] = self._write(node)

    def model(self, batch: int | str) -> onnx.ModelProto:
        """The whole, for images of this batch."""
        outputs = [self._value(node, batch) for node in self.graph.graph.output_node().all_input_nodes]
        images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, *self.image])
        constants = list(self.constants.values())
        graph = helper.make_graph(self.nodes, "detector", [images], outputs, initializer=constants)
        opset = helper.make_opsetid("", self.opset)
        # The oldest file format that has this opset: a runtime refuses one newer than itself.
        version = helper.find_min_ir_version_for([opset])
        return helper.make_model(graph, opset_imports=[opset], ir_version=version, producer_name="detectkit")

    def _value(self, node: fx.Node, batch: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(self.names[node], TensorProto.FLOAT, [batch, *self.shapes[node]])

    def _write(self, node: fx.Node) -> tuple[int, ...]:
        """Write a node; gives the shape of its value."""
        if node.op == "placeholder":
            return self.image
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.graph)
            self.names[node] = self._constant(str(node.target), value.numpy())
            return tuple(value.shape)
        if node.op == "call_module":
            return self._layer(node, self.graph.get_submodule(str(node.target)))
        return self._function(node)

    def _function(self, node: fx.Node) -> tuple[int, ...]:
        sources: Any = node.args
        if node.target is torch.cat:
            sources, dimension = node.args if len(node.args) == 2 else (node.args[0], node.kwargs.get("dim"))
            known = dimension == 1
        else:
            known = node.target in FUNCTIONS and not node.kwargs
        if not known or not all(isinstance(source, fx.Node) for source in sources):
            raise _unknown(node, str(node.target))
        names, shapes = zip(*((self.names[source], self.shapes[source]) for source in sources), strict=True)
        if node.target is torch.cat:
            self._add(node, "Concat", names, axis=1)
            return sum(channels for channels, *_ in shapes), *shapes[0][1:]
        self._add(node, FUNCTIONS[node.target], names)
        return tuple(max(sides) for sides in zip(*shapes, strict=True))  # a side of 1 serves all places

    def _layer(self, node: fx.Node, layer: nn.Module) -> tuple[int, ...]:
        shape = self.shapes[node.all_input_nodes[0]]
        match layer:
            case nn.Conv2d():
                return self._convolution(node, layer, shape)
            case nn.MaxPool2d():
                return self._maximum(node, layer, shape)
            case nn.AdaptiveAvgPool2d(output_size=1 | (1, 1)):
                self._after(node, "GlobalAveragePool")
                return shape[0], 1, 1
            case nn.ReLU():
                self._after(node, "Relu")
            case nn.ReLU6():
                limits = [
                    self._constant(f"{self.names[node]}.{end}", at) for end, at in (("min", 0), ("max", 6))
                ]
                self._after(node, "Clip", *limits)
            case nn.LeakyReLU():
                self._after(node, "LeakyRelu", alpha=layer.negative_slope)
            case nn.ELU():
                self._after(node, "Elu", alpha=layer.alpha)
            case nn.Sigmoid():
                self._after(node, "Sigmoid")
            case nn.SiLU():
                self._gated(node, "Sigmoid")
            case nn.Hardswish() if self.opset >= 14:
                self._after(node, "HardSwish")
            case nn.Hardswish():
                self._gated(node, "HardSigmoid", alpha=1 / 6, beta=0.5)
            case _:
                raise _unknown(node, str(layer))
        return shape

    def _convolution(self, node: fx.Node, layer: nn.Conv2d, shape: tuple[int, ...]) -> tuple[int, ...]:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise _unknown(node, str(layer))
        constants = [
            self._constant(f"{node.target}.{name}", value.detach().numpy())
            for name, value in layer.named_parameters()
        ]
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
        pads = borders(layer)
        sizes = {"kernel_shape": kernel, "strides": stride, "pads": pads, "dilations": dilation}
        self._after(node, "Conv", *constants, group=layer.groups, **sizes)
        return layer.out_channels, *_slid(shape, kernel, stride, pads, dilation)

    def _maximum(self, node: fx.Node, layer: nn.MaxPool2d, shape: tuple[int, ...]) -> tuple[int, ...]:
        kernel, stride, padding = (_pair(size) for size in (layer.kernel_size, layer.stride, layer.padding))
        if _pair(layer.dilation) != (1, 1) or layer.return_indices:
            raise _unknown(node, str(layer))
        pads = [*padding, *padding]
        if layer.ceil_mode:  # a border below and on the right: runtimes differ in what rounding up is
            for axis in (0, 1):
                side = shape[1 + axis] + padding[axis]
                windows, rest = divmod(side + padding[axis] - kernel[axis], stride[axis])
                # PyTorch leaves out a last window that would begin in the border.
                if rest and (windows + 1) * stride[axis] < side:
                    pads[2 + axis] += stride[axis] - rest
        self._after(node, "MaxPool", kernel_shape=kernel, strides=stride, pads=pads)
        return shape[0], *_slid(shape, kernel, stride, pads)

    def _gated(self, node: fx.Node, function: str, **attributes: Any) -> None:
        """x f(x), in two nodes."""
        before, between = self.names[node.all_input_nodes[0]], f"{self.names[node]}/{function}"
        self.nodes.append(helper.make_node(function, [before], [between], name=between, **attributes))
        self._after(node, "Mul", between)

    def _after(self, node: fx.Node, kind: str, *constants: str, **attributes: Any) -> None:
        """A node that reads the value before it, and constants."""
        self._add(node, kind, [self.names[node.all_input_nodes[0]], *constants], **attributes)

    def _constant(self, name: str, value: float | NDArray[np.float32]) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)
        return name

    def _add(self, node: fx.Node, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        name = self.names[node]
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))


def _unknown(node: fx.Node, what: str) -> ModelError:
    return ModelError(f"cannot write ONNX: it is not known how to write {node} ({what})")


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _slid(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Sequence[int],
    dilation: tuple[int, ...] = (1, 1),
) -> tuple[int, int]:
    """Height and width of what a window that slides over a value gives; pads: top, left, bottom, right."""
    height, width = (
        (side + before + after - spread * (size - 1) - 1) // step + 1
        for side, before, after, spread, size, step in zip(
            shape[1:], pads[:2], pads[2:], dilation, kernel, stride
        )
    )
    return height, width
