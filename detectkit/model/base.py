"""What every backbone has, and the convolution that those of ours are made of.

B batch, c image channels, H W pixels, h w grid cells.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional

L = TypeVar("L", bound=nn.Module)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module, abc.ABC):
    """A feature extractor: images [B, c, H, W] -> [B, out_channels, H / stride, W / stride].

    It can be traced by torch.fx, so that a program can see which layer feeds which.
    """

    stride = 16  # input pixels per grid cell
    out_channels: int
    arch, depth = "", 0  # of model_config; the depth is 0 where a family has one
    title = ""  # what model_config asks for, as in "resnet 18"
    tlt = False  # TLT's form of the network, see `model_config.layout`
    # Whose weight files of this network load, if anybody's do, as in "torchvision's resnet18".
    published: str | None = None
    # How the names of those tensors begin that such files have behind the last layer of ours.
    behind: tuple[str, ...] = ("classifier.",)
    # What those weights expect to be taken from the image, and it to be divided by, for each colour.
    mean, std = IMAGENET_MEAN, IMAGENET_STD

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

    def forward(self, images: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, out_channels, H / stride, W / stride]."""
        features: Tensor = self.features(images)
        return features


class Conv2dSame(nn.Conv2d):
    """A convolution with one row of zeros less above, and one column less on the left, than its `padding` says.

    With half the kernel as padding that is where TensorFlow's "same" puts the border of a convolution of stride 2 on
    images of even height and width, as all are that a detector takes: its inputs are multiples of its stride.
    """

    def forward(self, images: Tensor) -> Tensor:
        """As nn.Conv2d."""
        top, left, bottom, right = borders(self)
        images = functional.pad(images, (left, right, top, bottom))
        return functional.conv2d(
            images, self.weight, self.bias, self.stride, dilation=self.dilation, groups=self.groups
        )


def borders(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """The zeros that a convolution puts around an image: rows above, columns on the left, below, on the right."""
    assert layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    bottom, right = layer.padding
    fewer = isinstance(layer, Conv2dSame)
    return bottom - fewer, right - fewer, bottom, right


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
        same: the padding of a stride of 2 is TensorFlow's, see `Conv2dSame`.
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
    """Whether both have the same layers: widths, strides, pooling and activation, whatever their weights are."""
    first, second = (re.sub("(, )?inplace=True", "", str(backbone)) for backbone in (one, other))
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
