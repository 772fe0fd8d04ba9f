"""Which channels of a network must be kept or lost together, read from the network itself with torch.fx.

A residual sum needs the same channels on both sides, a depthwise convolution gives those that it takes, a gate has one
value a channel: such channels form a *group*, and the group is what pruning decides on. In a residual unit

    a = conv1(x)    b = conv2(relu(bn1(a)))    y = x + b

the channels of a are a group of their own (conv1, bn1), those of x, b and y are one (what makes x, conv2).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, fx, nn

from detectkit.errors import ModelError
from detectkit.model.operators import Channels, graph_of, kind_of, layer_of, operands


class Member(NamedTuple):
    """A part of a layer whose output channels are those of a group."""

    layer: str  # name of a convolution or normalisation
    first: int  # the output channel of the layer that is the first of the group


@dataclass(eq=False)
class Group:
    """Channels that several layers share: all of these layers keep the same ones.

    Attributes:
        width: number of channels.
        period: channels this far apart are kept or lost together (grouped convolutions); otherwise the width.
        fixed: no channel can go: the image, the outputs of the network.
        members: the layers, in the order of the network.
    """

    width: int
    period: int
    fixed: bool = False
    members: list[Member] = field(default_factory=list)


class Wiring(NamedTuple):
    """The groups of a network, and where they go in and out of its layers.

    The channels of a layer are those of its groups one after the other (more than one behind a concatenation).
    """

    groups: list[Group]  # in the order of the network; the image is one without members
    takes: dict[str, list[Group]]  # by the name of each convolution and normalisation
    gives: dict[str, list[Group]]


def wiring(network: nn.Module, channels: int) -> Wiring:
    """Read the groups of a network that takes images of `channels` channels.

    Raises:
        ModelError: the network has an operator that `model.operators` does not know, or convolves what it has reshaped.
    """
    reader = _Reader(network, channels)
    for node in graph_of(network).graph.nodes:
        reader.read(node)
    return reader.wiring()


class _Reader:
    """Follows the channels of every value through the graph; groups are merged as bonds between them appear."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network, self.channels = network, channels
        # The groups of a value along its channels; none for a number.
        self.values: dict[fx.Node, list[Group]] = {}
        self.merged: dict[Group, Group] = {}  # what became of a group
        self.takes: dict[str, list[Group]] = {}
        self.gives: dict[str, list[Group]] = {}

    def read(self, node: fx.Node) -> None:
        """Find the groups of the value of a node from those of the values before it."""
        sources = [self.values[source] for source in operands(node)]
        match kind_of(node).channels:
            case Channels.FIXED if node.op == "output":
                self._fix(sources)
            case Channels.FIXED:
                self.values[node] = self._given(node)
            case Channels.JOINED:
                self.values[node] = self._bind(sources)
            case Channels.STACKED:
                self.values[node] = [group for source in sources for group in source]
            case Channels.MIXED:
                self._fix(sources)
                self.values[node] = []
            case _:
                self.values[node] = self._layer(node, sources[0])

    def wiring(self) -> Wiring:
        """What was read, with every group in its final form."""
        takes, gives = (
            {name: [self._final(group) for group in groups] for name, groups in side.items()}
            for side in (self.takes, self.gives)
        )
        for name, groups in gives.items():
            first = 0
            for group in groups:
                group.members.append(Member(name, first))
                first += group.width
        sides = (groups for name in gives for groups in (takes[name], gives[name]))
        return Wiring(list(dict.fromkeys(group for groups in sides for group in groups)), takes, gives)

    def _given(self, node: fx.Node) -> list[Group]:
        """Of an image or a constant."""
        width = self.channels
        if node.op == "get_attr":
            value: Tensor = operator.attrgetter(str(node.target))(self.network)
            width = value.shape[-3] if value.dim() >= 3 else 1
        return [Group(width, width, fixed=True)]

    def _layer(self, node: fx.Node, source: list[Group]) -> list[Group]:
        name, layer = str(node.target), layer_of(node)
        if layer is None or not layer.state_dict():  # nothing of it has channels
            return source
        if not source:
            raise ModelError(
                f"cannot prune: {name} reads channels that were reshaped or transposed: do that behind it"
            )
        given = self._convolution(layer, source) if isinstance(layer, nn.Conv2d) else source
        if name in self.gives:  # used a second time, with the same weights
            self._bind([self.takes[name], source])
            given = self._bind([self.gives[name], given])
        self.takes[name], self.gives[name] = source, given
        return given

    def _convolution(self, layer: nn.Conv2d, source: list[Group]) -> list[Group]:
        if is_depthwise(layer):
            return source
        given = Group(layer.out_channels, layer.out_channels)
        if layer.groups > 1:  # each group of the convolution keeps the same places
            self._repeat(source, layer.in_channels // layer.groups)
            self._repeat([given], layer.out_channels // layer.groups)
        return [given]

    def _bind(self, sources: Sequence[list[Group]]) -> list[Group]:
        """Values that are joined value by value keep the same channels; one of one channel serves all of the others."""
        wide = [source for source in sources if sum(group.width for group in source) > 1] or list(sources)
        first, *others = wide
        for other in others:
            if [group.width for group in other] == [group.width for group in first]:
                for one, two in zip(first, other, strict=True):
                    self._merge(one, two)
            else:  # concatenations of other parts: no channel of the one is a channel of the other
                self._fix([first, other])
        return first

    def _merge(self, one: Group, two: Group) -> None:
        one, two = self._final(one), self._final(two)
        if one is not two:
            one.period, one.fixed = math.gcd(one.period, two.period), one.fixed or two.fixed
            self.merged[two] = one

    def _repeat(self, source: list[Group], period: int) -> None:
        if len(source) > 1:
            self._fix([source])
        for group in map(self._final, source):
            group.period = math.gcd(group.period, period)

    def _fix(self, sources: Sequence[list[Group]]) -> None:
        for group in (group for source in sources for group in source):
            self._final(group).fixed = True

    def _final(self, group: Group) -> Group:
        while group in self.merged:
            group = self.merged[group]
        return group


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that gives exactly the channels that it takes, each from itself."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels
