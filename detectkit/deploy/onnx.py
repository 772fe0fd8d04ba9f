"""ONNX: a detector as one file that ONNX Runtime and TensorRT read."""

from __future__ import annotations

import copy
import os

import onnx
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectkit.files import atomic_write
from detectkit.model.detector import Detector

INPUT = "images"
# TLT's names of the two, which its DeepStream parsers ask for.
OUTPUTS = ("output_cov/Sigmoid", "output_bbox/BiasAdd")


def to_onnx(detector: Detector, *, height: int, width: int) -> bytes:
    """The detector in evaluation mode as an ONNX model, batch normalisation folded into the convolutions.

    Its input is "images" [N, c, height, width] float32 in [0, 1] with any N from 1 on. Its outputs are
    "output_cov/Sigmoid" [N, C, h, w] and "output_bbox/BiasAdd" [N, 4C, h, w], as those of `Detector`.

    Args:
        detector: on any device, in any mode; it stays as it is.
        height: of the images in pixels, a multiple of the detector's stride.
        width: likewise.
    """
    # torch.export takes a batch of 1 for a constant.
    images = torch.empty(2, detector.channels, height, width, device="cpu")
    with torch.no_grad():
        program = torch.onnx.export(
            _folded(detector),
            (images,),
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            optimize=False,  # its one find here would be the batch normalisation, which `_folded` has taken out
            verbose=False,
        )
    assert program is not None  # that is for the exporter which torch has deprecated
    model = program.model_proto
    _forget_origin(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def save_onnx(path: str | os.PathLike[str], detector: Detector, *, height: int, width: int) -> None:
    """Write what `to_onnx` gives to a file.

    Raises:
        OutputError: the file cannot be written.
    """
    model = to_onnx(detector, height=height, width=width)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model)


def _folded(detector: Detector) -> fx.GraphModule:
    """A copy on the CPU that computes what the detector does in evaluation mode, without batch normalisation."""
    network = copy.deepcopy(detector).eval().cpu().float().to(memory_format=torch.contiguous_format)
    traced = fx.symbolic_trace(network)
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(layers[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        # It fails loudly where a network normalises what is not a convolution's or is also read by others.
        assert list(before.users) == [node], f"{node.target}: others read {before.target} before it"
        traced.set_submodule(before.target, fuse_conv_bn_eval(layers[before.target], layers[node.target]))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _forget_origin(graph: onnx.GraphProto) -> None:
    """Take out where each node comes from: stack traces, with the paths of this machine."""
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        entry.ClearField("metadata_props")
