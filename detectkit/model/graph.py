"""A detector as a torch.fx graph: without batch normalisation, and which of its values and convolutions get 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import stochastic_depth

from detectkit.model.base import Tracer
from detectkit.model.detector import Detector
from detectkit.model.header import INPUT

HEADS = ("output_cov", "output_bbox")
OUTPUTS = ("output_cov/Sigmoid", "output_bbox/BiasAdd")
# Functions that a runtime computes in the convolution before them: only what comes out of them is ever stored.
FUSED = (nn.ReLU, nn.ReLU6)


class _Tracer(Tracer):
    traced_func_name = "plain"


def trace(detector: Detector) -> fx.GraphModule:
    """The floating-point network of a detector, sharing its layers.

    The layers act in the mode that they are in, except EfficientNet's `stochastic_depth`, whose mode is that of now.
    """
    made = fx.GraphModule(detector, _Tracer().trace(detector), "Detector")
    outline = detector.outline
    (found,) = next(iter(reversed(made.graph.nodes))).args
    for node, output in zip(found, outline.outputs, strict=True):
        while node.op == "call_method":
            node = node.args[0]
        node.meta["output"] = output.name
    for node in made.graph.nodes:
        node.meta["head"] = node.target in {o.layer for o in outline.outputs}
    return made


def folded(detector: Detector) -> fx.GraphModule:
    """A copy on the CPU, in float32, that computes what the detector does in evaluation mode, with fewer nodes.

    Batch normalisation is in the convolutions, whose nodes keep their names; what does nothing in evaluation mode
    (dropout and the like, a mean of 0 and a deviation of 1) is gone. The padding is one of normalised values, so
    another mean and deviation stay where they are.
    """
    # 64 bits, so that folding rounds each weight once.
    network = copy.deepcopy(detector).eval().cpu().double().to(memory_format=torch.contiguous_format)
    graph = trace(network)
    _skip_normalisation(graph)
    layers = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if isinstance(_layer(node), nn.BatchNorm2d):
            _fold(graph, node, layers)
        elif _does_nothing(node):
            _erase(node, node.args[0])
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.float()


def tensor_name(node: fx.Node) -> str:
    """The name that the value of a node has in ONNX files and in tables of ranges.

    It is the node's own, except that batch normalisation counts as the convolution before it, what does nothing
    in evaluation mode as what is before it, and that the outputs are called as in TLT.
    """
    while _does_nothing(node) or isinstance(_layer(node), nn.BatchNorm2d):
        node = _source(node)
    if node.op == "placeholder":
        return INPUT
    return str(node.meta.get("output", node.name))


def measured(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values have a range in 8 bits, in the order of the graph, each with a `tensor_name` of its own.

    They are the image, its normalisation if that does something, and what the backbone and the heads compute; not a
    convolution that only a function of `FUSED` reads. Of a convolution and its batch normalisation it is the latter.

    Args:
        graph: of `trace` or `folded`; both give the same names.
    """
    normalised = _normalised(graph)
    last = normalised.all_input_nodes[0] if normalised is not None else None
    found = []
    for node in graph.graph.nodes:
        if node.op in ("output", "get_attr") or node is last or _does_nothing(node):
            continue
        if node is normalised and _is_identity(graph):
            continue
        readers = list(_readers(node))
        if _is_convolution(node) and readers:
            if any(isinstance(_layer(reader), nn.BatchNorm2d) for reader in readers):
                continue
            if len(readers) == 1 and isinstance(_layer(readers[0]), FUSED):
                continue
        found.append(node)
    return found


def quantizable(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions that 8 bits are for: all but the heads and those of gates, which cost nothing.

    Args:
        graph: of `trace` or `folded`.
    """
    outside = gates(graph)
    return [
        node
        for node in graph.graph.nodes
        if isinstance(_layer(node), nn.Conv2d) and not node.meta["head"] and node not in outside
    ]


def gates(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values are one pixel, behind a global average pool."""
    single: set[fx.Node] = set()
    for node in graph.graph.nodes:
        sources = node.all_input_nodes
        if isinstance(_layer(node), nn.AdaptiveAvgPool2d) or (sources and single.issuperset(sources)):
            single.add(node)
    return single


def _fold(graph: fx.GraphModule, node: fx.Node, layers: dict[str, nn.Module]) -> None:
    before = _source(node)
    layer, normalization = layers[str(before.target)], layers[str(node.target)]
    uses = [other for other in graph.graph.nodes if other.target == before.target]
    # It fails loudly where a network normalises what is not a convolution's or is also read by others.
    assert isinstance(normalization, nn.BatchNorm2d)
    assert isinstance(layer, nn.Conv2d), f"{node.target}: {before} is no convolution"
    assert list(before.users) == [node] and uses == [before], f"{node.target}: others read {before} before it"
    graph.set_submodule(str(before.target), fuse_conv_bn_eval(layer, normalization))
    _erase(node, before)


def _skip_normalisation(graph: fx.GraphModule) -> None:
    node = _normalised(graph)
    if node is None or not _is_identity(graph):
        return
    difference = _source(node)
    constants = [difference.args[1], node.args[1]]
    _erase(node, _source(difference))
    for unused in (difference, *constants):
        assert isinstance(unused, fx.Node)
        graph.graph.erase_node(unused)


def _normalised(graph: fx.GraphModule) -> fx.Node | None:
    """(image - mean) / std, if the graph has it."""
    deviations = graph.graph.find_nodes(op="get_attr", target="normalize.std")
    return list(deviations[0].users)[0] if deviations else None


def _is_identity(graph: fx.GraphModule) -> bool:
    normalize: nn.Module = graph.get_submodule("normalize")
    mean, std = normalize.get_buffer("mean"), normalize.get_buffer("std")
    return bool((mean == 0).all() and (std == 1).all())


def _erase(node: fx.Node, instead: fx.node.Argument) -> None:
    assert isinstance(instead, fx.Node)
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def _layer(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    assert owner is not None  # the graphs of `trace` and `folded` have one
    return owner.get_submodule(str(node.target)) if node.op == "call_module" else None


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value, behind what does nothing."""
    for reader in node.users:
        if _does_nothing(reader):
            yield from _readers(reader)
        else:
            yield reader


def _is_convolution(node: fx.Node) -> bool:
    """Whether it is a convolution, or its batch normalisation."""
    return isinstance(_layer(node), (nn.Conv2d, nn.BatchNorm2d))


def _does_nothing(node: fx.Node) -> bool:
    """Whether it gives what it gets, in evaluation mode and float32."""
    if node.op == "call_module":
        return isinstance(_layer(node), (nn.Identity, nn.Dropout))
    return (node.op == "call_method" and node.target == "float") or node.target is stochastic_depth
