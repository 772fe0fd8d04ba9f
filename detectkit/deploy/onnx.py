"""ONNX: a detector as one file that ONNX Runtime and TensorRT read."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from detectkit.deploy.ir import Operator, operators
from detectkit.errors import ModelError, UsageError
from detectkit.model.detector import Detector
from detectkit.model.header import INPUT
from detectkit.model.operators import KINDS
from detectkit.ops.quantize import decibels
from detectkit.runtimes.onnx import FAILURES, make_session

OPSET = 20
FIRST_OPSET = 13  # the first whose quantisation has a scale for each channel
GRAINS = (1, 8, 32)  # pixels a patch of the images that an exported model is tried on
QUIET = 1e-8  # variance of an output below which it is constant
WRITTEN_AS = {kind.name: kind.onnx for kind in KINDS if kind.onnx}


def to_model(
    detector: Detector, *, height: int, width: int, opset: int = OPSET, batch: int | None = None
) -> onnx.ModelProto:
    """The detector in evaluation mode as an ONNX model in float32, batch normalisation folded into the convolutions.

    Its input is "images" [N, c, height, width] in [0, 1]. Its outputs are those of `Detector`, by the names of its
    `outline`. Every other value, and the node that makes it, has the name of its node in `model.graph.folded`; weights
    have their names in the state dict.

    Args:
        detector: on any device, in any mode; it stays as it is.
        height: of the images in pixels, a multiple of the detector's stride.
        width: likewise.
        opset: version of ONNX's operators, 13 or later.
        batch: N; any from 1 on if None.

    Raises:
        UsageError: there is no such opset.
        ModelError: the network has an operator that `model.operators` does not know.
    """
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise UsageError(
            f"there is no opset {opset} to write: use one from {FIRST_OPSET} to {newest} (--target_opset)"
        )
    writer = _Writer(opset)
    for operator in operators(detector, height=height, width=width):
        writer.write(operator)
    model = writer.model([output.name for output in detector.outline.outputs], batch or "N")
    onnx.checker.check_model(model, full_check=True)
    return model


def to_onnx(
    detector: Detector, *, height: int, width: int, opset: int = OPSET, batch: int | None = None
) -> bytes:
    """What `to_model` gives, as the content of a file."""
    return to_model(detector, height=height, width=width, opset=opset, batch=batch).SerializeToString()


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
    outputs = [output.name for output in detector.outline.outputs]
    try:
        session = make_session(model)
        fixed, channels, height, width = session.get_inputs()[0].shape
        sizes = [fixed] * -(-len(GRAINS) // fixed) if isinstance(fixed, int) else [1, len(GRAINS)]
        grains = GRAINS if math.isfinite(least_sqnr) else GRAINS[:1]
        every = random_images(sum(sizes), channels, height, width, grains=grains)
        batches = list(torch.split(every, sizes))
        found = [session.run(outputs, {INPUT: images.numpy()}) for images in batches]
    except FAILURES as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the exported model ({reason})"
        ) from error
    with torch.no_grad():
        expected = [reference.plain(images) for images in batches]
    worst = 0.0
    for place, name in enumerate(outputs):
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
    varies = float((expected - expected.mean((0, *range(2, expected.dim())), keepdim=True)).square().mean())
    off = float((found - expected).square().mean())
    ratio = decibels(max(varies, QUIET), off)
    if not ratio >= least:
        raise ModelError(
            f"in 8 bits {name} is noise on random images (signal to noise {ratio:.1f} dB, at least {least:g} is asked for):"
            " the ranges are not those of this network, or a layer must stay in float (--max-drop); run detectkit"
            " calibrate on this model"
        )


class _Writer:
    """Writes operators one after the other."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of tensors, without the batch

    def model(self, outputs: Sequence[str], batch: int | str) -> onnx.ModelProto:
        """The whole, for images of this batch."""
        images, *results = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *self.shapes[name]])
            for name in (INPUT, *outputs)
        )
        constants = list(self.constants.values())
        graph = helper.make_graph(self.nodes, "detector", [images], results, initializer=constants)
        opset = helper.make_opsetid("", self.opset)
        # The oldest file format that has this opset: a runtime refuses one newer than itself.
        version = helper.find_min_ir_version_for([opset])
        return helper.make_model(graph, opset_imports=[opset], ir_version=version, producer_name="detectkit")

    def write(self, operator: Operator) -> None:
        """Write an operator, and its constants."""
        self.shapes[operator.output] = operator.shape
        found = operator.attributes
        match operator.kind:
            case "images":
                pass
            case "convolution":
                sizes = {"kernel_shape": found["kernel"], "strides": found["stride"], "pads": found["pads"]}
                self._add(operator, dilations=found["dilation"], group=found["groups"], **sizes)
            case "max_pool" | "average_pool":
                self._add(operator, kernel_shape=found["kernel"], strides=found["stride"], pads=found["pads"])
            case "relu6":
                least = self._constant(f"{operator.output}.min", np.float32(0))
                self._add(operator, least, self._constant(f"{operator.output}.max", np.float32(6)))
            case "silu":
                self._gated(operator, "Sigmoid")
            case "hard_sigmoid":
                self._add(operator, alpha=1 / 6, beta=0.5)
            case "hard_swish" if self.opset >= 14:
                self._node("HardSwish", operator.inputs, operator.output)
            case "hard_swish":
                self._gated(operator, "HardSigmoid", alpha=1 / 6, beta=0.5)
            case "concatenate":
                self._add(operator, axis=1)
            case "resize":
                self._resize(operator)
            case "reshape":
                shape = np.array([0, *operator.shape], np.int64)  # 0: as many images as there are
                self._add(operator, self._constant(f"{operator.output}.shape", shape))
            case "transpose":
                self._add(operator, perm=found["order"])
            case "weighted_sum":
                self._weighted_sum(operator)
            case "l2_normalisation":
                self._l2_normalisation(operator)
            case _:
                self._add(operator, **found)

    def _gated(self, operator: Operator, function: str, **attributes: Any) -> None:
        """x f(x)."""
        gate = self._node(function, operator.inputs, f"{operator.output}/{function}", **attributes)
        self._node("Mul", [*operator.inputs, gate], operator.output)

    def _resize(self, operator: Operator) -> None:
        """Each pixel several times."""
        factor = operator.attributes["factor"]
        factors = self._constant(f"{operator.output}.factors", np.array([1, 1, factor, factor], np.float32))
        pixels = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self._add(operator, "", factors, **pixels)

    def _weighted_sum(self, operator: Operator) -> None:
        """Each map times its share, and the sums of the first two, three and so on."""
        *maps, shares = operator.inputs
        output = operator.output
        parts = []
        for number, (name, share) in enumerate(zip(maps, operator.constants[shares], strict=True)):
            factor = self._constant(f"{output}.share{number}", share)
            parts.append(self._node("Mul", [name, factor], f"{output}/part{number}"))
        total, *others = parts
        for part in others:
            total = self._node("Add", [total, part], output if part is parts[-1] else f"{part}/sum")

    def _l2_normalisation(self, operator: Operator) -> None:
        """Vectors of length 1, times the scale of each channel."""
        maps, scale = operator.inputs
        column = operator.constants[scale][:, None, None]
        unit = self._node("LpNormalization", [maps], f"{operator.output}/unit", axis=1, p=2)
        self._node("Mul", [unit, self._constant(scale, column)], operator.output)

    def _add(self, operator: Operator, *constants: str, **attributes: Any) -> None:
        """The one node of an operator; `constants` are behind what it takes."""
        for name, value in operator.constants.items():
            self._constant(name, value)
        inputs = [*operator.inputs, *constants]
        self._node(WRITTEN_AS[operator.kind], inputs, operator.output, **attributes)

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
