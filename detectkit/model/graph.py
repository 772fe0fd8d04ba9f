"""A detector as a torch.fx graph: without batch normalisation, and which of its values and convolutions get 8 bits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectkit.errors import ModelError
from detectkit.model.detector import Detector
from detectkit.model.header import INPUT
from detectkit.model.operators import Values, graph_of, kind_of, layer_of, operands

T = TypeVar("T")  # of torch.fx a node, of an ONNX file a name


class Made(NamedTuple, Generic[T]):
    """A value of a network, and how it is made."""

    value: T
    sources: Sequence[T]  # without constants
    is_convolution: bool
    is_mean: bool  # over the image


def trace(detector: Detector) -> fx.GraphModule:
    """The floating-point network of a detector, sharing its layers, without those that no output needs.

    The layers act in the mode that they are in, except EfficientNet's `stochastic_depth`, whose mode is that of now.

    Raises:
        ModelError: it has an operator that `model.operators` does not know.
    """
    graph = graph_of(detector, "plain")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for image in graph.graph.find_nodes(op="placeholder"):
        image.meta["tensor"] = INPUT
    for output, node in zip(detector.outline.outputs, operands(graph.graph.output_node()), strict=True):
        _maker(node).meta["tensor"] = output.name
    return graph


def folded(detector: Detector) -> fx.GraphModule:
    """A copy on the CPU, in float32, that computes what the detector does in evaluation mode, with fewer nodes.

    Batch normalisation is in the convolutions, whose nodes keep their names; a convolution that is used several times
    becomes as many, `head.conv`, `head.conv_1` and so on. What does nothing in evaluation mode (dropout and the like, a
    mean of 0 and a deviation of 1) is gone. The padding is one of normalised values, so another mean and deviation stay
    where they are.

    Raises:
        ModelError: as `trace`; or a batch normalisation is not that of one convolution.
    """
    # 64 bits, so that folding rounds each weight once.
    network = copy.deepcopy(detector).eval().cpu().double().to(memory_format=torch.contiguous_format)
    graph = trace(network)
    _skip_normalisation(graph)
    _part(graph)
    for node in list(graph.graph.nodes):
        match kind_of(node).values:
            case Values.NORMALISED:
                _fold(graph, node)
            case Values.UNCHANGED:
                _erase(node, _source(node))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.float()


def tensor_name(node: fx.Node) -> str:
    """The name that the value of a node has in ONNX files and in tables of ranges.

    It is the node's own, except that batch normalisation counts as the convolution before it, what does nothing
    in evaluation mode as what is before it, and that images and outputs are called as in files (`Detector.outline`).
    """
    maker = _maker(node)
    return str(maker.meta.get("tensor", maker.name))


def measured(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values have a range in 8 bits, in the order of the graph, each with a `tensor_name` of its own.

    They are the image, its normalisation if that does something, and what the backbone and the heads compute; not a
    convolution that only a function reads that is computed with it. Of a convolution and its batch normalisation it is
    the latter.

    Args:
        graph: of `trace` or `folded`; both give the same names.
    """
    normalised = _normalised(graph)
    left_out = set[fx.Node]()
    if normalised is not None:
        left_out = {_source(normalised)} if normalises(graph) else {_source(normalised), normalised}
    return [
        node
        for node in graph.graph.nodes
        if node.op not in ("output", "get_attr")
        and node not in left_out
        and kind_of(node).values is not Values.UNCHANGED
        and not (_is_convolution(node) and _is_read_by_its_own(node))
    ]


def eight_bit_convolutions(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions that 8 bits are for: all but the last before each output and those of gates, which cost nothing.

    Args:
        graph: of `trace` or `folded`.
    """
    outside = gates(graph) | ends(graph)
    return [
        node for node in graph.graph.nodes if isinstance(layer_of(node), nn.Conv2d) and node not in outside
    ]


def gates(graph: fx.GraphModule) -> set[fx.Node]:
    """See `gate_values`."""
    return gate_values(_made(graph))


def ends(graph: fx.GraphModule) -> set[fx.Node]:
    """See `end_values`."""
    return end_values(_made(graph), graph.graph.output_node().all_input_nodes)


def gate_values(steps: Iterable[Made[T]]) -> set[T]:
    """Those that are one pixel, behind a global average pool: all that is computed from means over the image alone."""
    single: set[T] = set()
    for step in steps:
        if step.is_mean or (step.sources and single.issuperset(step.sources)):
            single.add(step.value)
    return single


def end_values(steps: Sequence[Made[T]], outputs: Iterable[T]) -> set[T]:
    """What the last convolution before each output gives, and all that is between; others may read it as well."""
    found = set(outputs)
    for step in reversed(steps):
        if step.value in found and not step.is_convolution:
            found.update(step.sources)
    return found


def _made(graph: fx.GraphModule) -> list[Made[fx.Node]]:
    return [
        Made(
            node,
            [source for source in node.all_input_nodes if source.op != "get_attr"],
            isinstance(layer_of(node), nn.Conv2d),
            kind_of(node).values is Values.AVERAGED,
        )
        for node in graph.graph.nodes
    ]


def normalises(graph: fx.GraphModule) -> bool:
    """Whether the images are normalised, by a mean and a deviation that change something."""
    if _normalised(graph) is None:
        return False
    normalize: nn.Module = graph.get_submodule("normalize")
    mean, std = normalize.get_buffer("mean"), normalize.get_buffer("std")
    return bool((mean != 0).any() or (std != 1).any())


def _part(graph: fx.GraphModule) -> None:
    """Give each use of a convolution a copy of its own, to be folded with what normalises it, and rounded to what it reads."""
    names, used = dict(graph.named_modules()).keys(), set[str]()
    for node in graph.graph.nodes:
        layer = layer_of(node)
        if isinstance(layer, nn.Conv2d):
            if node.target in used:
                numbered = (f"{node.target}_{number}" for number in itertools.count(1))
                node.target = next(name for name in numbered if name not in used and name not in names)
                graph.add_submodule(node.target, copy.deepcopy(layer))
            used.add(str(node.target))


def _fold(graph: fx.GraphModule, node: fx.Node) -> None:
    before = _source(node)
    layer, normalisation = layer_of(before), layer_of(node)
    assert isinstance(normalisation, nn.BatchNorm2d)
    if not isinstance(layer, nn.Conv2d):
        raise ModelError(f"{node.target} cannot be folded: normalise what a convolution gives, not {before}")
    if list(before.users) != [node]:
        raise ModelError(f"{node.target} cannot be folded into {before.target}: others read that too")
    graph.set_submodule(str(before.target), fuse_conv_bn_eval(layer, normalisation))
    _erase(node, before)


def _skip_normalisation(graph: fx.GraphModule) -> None:
    node = _normalised(graph)
    if node is None or normalises(graph):
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


def _erase(node: fx.Node, instead: fx.node.Argument) -> None:
    assert isinstance(instead, fx.Node)
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _maker(node: fx.Node) -> fx.Node:
    """What a value counts as made by: before what does nothing, and before batch normalisation."""
    while kind_of(node).values in (Values.UNCHANGED, Values.NORMALISED):
        node = _source(node)
    return node


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value, behind what does nothing."""
    for reader in node.users:
        if kind_of(reader).values is Values.UNCHANGED:
            yield from _readers(reader)
        else:
            yield reader


def _is_convolution(node: fx.Node) -> bool:
    """Whether it is a convolution, or its batch normalisation."""
    return isinstance(layer_of(node), (nn.Conv2d, nn.BatchNorm2d))


def _is_read_by_its_own(node: fx.Node) -> bool:
    """Whether what reads a convolution is computed with it: its normalisation, or a function that alone reads it."""
    readers = [kind_of(reader).values for reader in _readers(node)]
    return Values.NORMALISED in readers or readers == [Values.FUSED]
