"""MobileNets: networks of depthwise convolutions (Howard et al. 2017, Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from detectkit.model.base import Backbone, Convolution, Features, replace

# Channels and stride of blocks 1 to 11 of version 1, and of those that follow in the paper.
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
DEEP = ((1024, 2), (1024, 1))


class Separable(nn.Module):
    """A 3x3 convolution of each channel by itself, and a 1x1 convolution across them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.depthwise = Convolution(
            before, before, 3, stride=stride, groups=before, function=nn.ReLU(inplace=True)
        )
        self.pointwise = Convolution(before, after, 1, function=nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, ceil(h / stride), ceil(w / stride)]."""
        result: Tensor = self.pointwise(self.depthwise(features))
        return result


class MobileNetV1(Backbone):
    """Version 1 up to its last block at a stride of 16, as TLT DetectNet_v2 cuts it: 512 channels.

    Args:
        deep: with the blocks at a stride of 32: 1024 channels.
    """

    def __init__(self, *, deep: bool = False) -> None:
        super().__init__()
        self.block0 = Convolution(3, 32, 3, stride=2, function=nn.ReLU(inplace=True))
        before = 32
        for number, (after, stride) in enumerate(SEPARABLE + DEEP * deep, start=1):
            self.add_module(f"block{number}", Separable(before, after, stride))
            before = after
        self.order = [name for name, _ in self.named_children()]

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, the others are the separable ones."""
        return dict(enumerate(self.children()))


class MobileNetV2(Features):
    """torchvision's up to its last block at a stride of 16, as TLT DetectNet_v2 cuts it: 96 channels.

    Args:
        tlt: with ReLU in the place of ReLU6.
        deep: with the blocks at a stride of 32: 320 channels.
    """

    published = "torchvision's mobilenet_v2"

    def __init__(self, *, tlt: bool = False, deep: bool = False) -> None:
        end = 18 if deep else 14
        super().__init__(mobilenet_v2(weights=None).features[:end])
        self.behind = (*(f"features.{number}." for number in range(end, 19)), "classifier.")
        if tlt:
            replace(self, nn.ReLU6, lambda _: nn.ReLU(inplace=True))

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, the others are the inverted residuals."""
        return dict(enumerate(self.features))
