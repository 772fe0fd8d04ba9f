"""What every backbone has, and the convolution that those of ours are made of.

B batch, c image channels, H W pixels, h w cells.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from detectkit.errors import SpecError
from detectkit.heads.layers import same_border
from detectkit.heads.outline import Level

L = TypeVar("L", bound=nn.Module)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYOUTS = {"TORCHVISION": "torchvision", "TLT": "TLT", "TENSORFLOW": "TensorFlow"}  # whose they are
PROBE = 64  # pixels a side of the image that strides are read from: two cells of the widest


class Backbone(nn.Module, abc.ABC):
    """A chain of layers: images [B, c, H, W] -> the maps [B, channels, H / stride, W / stride] of its levels.

    It can be traced by torch.fx, so that a program can see which layer feeds which.
    """

    order: Sequence[str]  # names of the layers, each of which reads what the one before gives
    given: Sequence[str]  # those of them whose maps are the levels, the finest first
    arch, depth = "", 0  # of model_config; the depth is 0 where a family has one
    title = ""  # what model_config asks for, as in "resnet 18"
    layout = "TORCHVISION"  # whose form of the network it is, as `model_config.layout` names it
    # Whose weight files of this network load, if anybody's do, as in "torchvision's resnet18".
    published: str | None = None
    # How the names of those tensors begin that such files have behind the last layer of ours.
    behind: tuple[str, ...] = ("classifier.",)
    # Names of tensors that tell whose form a file is of, by the layout, where such files differ.
    told_by: Mapping[str, tuple[str, ...]] = {}
    # What those weights expect to be taken from the image, and it to be divided by, for each colour.
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        self._levels: tuple[Level, ...] | None = None  # None: to be read from the layers

    @property
    def levels(self) -> tuple[Level, ...]:
        """What the network gives, the finest first.

        They are read from a run without values, in which hooks take part: ask before there are any.
        """
        if self._levels is None:
            self._levels = tuple(
                Level(name, PROBE // features.shape[-1], features.shape[1])
                for name, features in zip(self.given, self._shapes(), strict=True)
            )
        return self._levels

    def give(self, strides: Sequence[int]) -> None:
        """Give the last maps of these strides, the finest first, and lose what is behind them; none: the last map.

        Raises:
            SpecError: there is no such stride.
            ValueError: they do not ascend, as those that a class of layers names must.
        """
        if list(strides) != sorted(set(strides)):
            raise ValueError(f"strides of {tuple(strides)}: name each once, the finest first")
        self.given = self.order
        last = {level.stride: level for level in self.levels}
        missing = sorted(set(strides) - set(last))
        if missing:
            raise SpecError(
                f"model_config.arch: {self.title} has no maps at a stride of {missing[0]}, which this head wants: use another"
                " network"
            )
        self._levels = tuple(last[stride] for stride in strides) or self.levels[-1:]
        self.given = [level.name for level in self._levels]
        end = self.order.index(self.given[-1]) + 1
        for name in self.order[end:]:
            owner, _, leaf = name.rpartition(".")
            delattr(self.get_submodule(owner), leaf)
            self.behind += (f"{name}.",)
        self.order = self.order[:end]

    def widths_changed(self) -> None:
        """To be called when layers have got other widths."""
        self._levels = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the chain; the maps of the levels."""
        features, maps = images, []
        for name in self.order:
            features = self.get_submodule(name)(features)
            if name in self.given:
                maps.append(features)
        return tuple(maps)

    @torch.no_grad()
    def _shapes(self) -> tuple[Tensor, ...]:
        """The maps of no images of `PROBE` pixels: nothing is computed, in a tenth of the time of the device "meta"."""
        tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in self.state_dict().items()}
        first = first_convolution(self).weight
        images = torch.empty(0, first.shape[1], PROBE, PROBE, dtype=first.dtype, device="cpu")
        training = [layer for layer in self.modules() if layer.training]
        for layer in training:  # in whose mode batch normalisation wants values
            layer.training = False
        try:
            maps: tuple[Tensor, ...] = functional_call(self, tensors, images)
        finally:
            for layer in training:
                layer.training = True
        return maps

    @abc.abstractmethod
    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name."""

    def named_here(self, name: str) -> str:
        """The name of a tensor of a published file in our network; those that we do not have keep their own."""
        return name


class Features(Backbone):
    """A chain of layers, with the names of a torchvision network whose convolutions are in its `features`."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.order = [f"features.{number}" for number in range(len(features))]


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" border of zeros, see `heads.layers.same_border`, whatever its `padding` is."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, ceil(h / stride), ceil(w / stride)]."""
        top, left, bottom, right = same_border(images.shape[2:], self.kernel_size, self.stride, self.dilation)
        images = functional.pad(images, (left, right, top, bottom))
        return functional.conv2d(
            images, self.weight, self.bias, self.stride, dilation=self.dilation, groups=self.groups
        )


class Convolution(nn.Module):
    """Convolution, batch normalisation and a function, with half the kernel as padding.

    Args:
        before: channels in.
        after: channels out.
        size: of the kernel, odd.
        stride: pixels a step.
        groups: of channels that do not see each other.
        function: after the normalisation.
        eps: of the normalisation.
        same: the padding of a stride of 2 is TensorFlow's, see `Conv2dSame`; of others it is the same anyway.
    """

    def __init__(
        self,
        before: int,
        after: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        function: nn.Module,
        eps: float = 1e-5,
        same: bool = False,
    ) -> None:
        super().__init__()
        kind = Conv2dSame if same and stride == 2 else nn.Conv2d
        self.conv = kind(before, after, size, stride, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=eps)
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, ceil(h / stride), ceil(w / stride)]."""
        result: Tensor = self.function(self.bn(self.conv(features)))
        return result


def computes_the_same(one: Backbone, other: Backbone) -> bool:
    """Whether both have the same layers: widths, strides, pooling and activation, whatever their weights are.

    How fast running statistics follow matters to training alone.
    """
    unread = re.compile(r"(, )?inplace=True|, momentum=[^,)]+")
    first, second = (unread.sub("", str(backbone)) for backbone in (one, other))
    return first == second


def replace(network: nn.Module, kind: type[L] | tuple[type[L], ...], make: Callable[[L], nn.Module]) -> None:
    """Put what `make` gives in the place of every layer of a kind."""
    for layer in list(network.modules()):
        for name, child in layer.named_children():
            if isinstance(child, kind):
                setattr(layer, name, make(child))


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The first in the order of the layers: of a backbone, the one that takes the image."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def initialise(network: nn.Module) -> None:
    """He's normal distribution (He et al. 2015), as torchvision; TLT has Glorot's, which halves the signal at ReLU.

    The fan is that of a group, so that a depthwise convolution keeps its signal too. Biases are 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * math.prod(layer.kernel_size) // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2) / math.sqrt(fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
