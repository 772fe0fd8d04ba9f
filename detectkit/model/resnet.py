"""Residual networks (He et al. 2015), and their form v1d (He et al. 2018, "Bag of tricks")."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1, conv3x3

from detectkit.model.base import Backbone

RESNETS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
TORCHVISION = (18, 34, 50, 101, 152)  # depths that torchvision has
TIMM = (*TORCHVISION, 200)  # those that timm has with deep stem and averaged shortcuts, as resnet50d


class ResNet(Backbone):
    """A residual network cut off before its classifier; every tensor has torchvision's name, those of v1d timm's.

    Without pooling the first convolution and the first three stages halve the image, as in TLT DetectNet_v2;
    with pooling a 3x3 maximum takes the place of the first stage's stride, and everything up to `layer3` computes
    what torchvision computes. Bottlenecks carry their stride on the 3x3 convolution, as torchvision's do.

    Batch normalisation moves its running statistics by 0.1 a step, as torch does. TLT's 0.01 leaves them hundreds of
    steps behind the weights: on a few hundred images, validation in mid-training then measures nothing.

    Args:
        depth: a key of `RESNETS`.
        pooling: maximum pooling after the first convolution.
        all_projections: a 1x1 convolution on every shortcut, not only on those that change the shape.
        tlt: bottlenecks carry their stride on the first 1x1 convolution.
        deep: the last stage halves the image, too, as torchvision's.
        deep_stem: three 3x3 convolutions in the place of the first.
        averaged: shortcuts that halve the image take the mean of 2x2 pixels, where others take one of the four.
    """

    behind = ("fc.",)

    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        depth: int,
        *,
        pooling: bool,
        all_projections: bool,
        tlt: bool = False,
        deep: bool = False,
        deep_stem: bool = False,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        block, repeats = RESNETS[depth]
        self.published = _published(depth, deep_stem, averaged)
        self.conv1 = _deep_stem() if deep_stem else nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pooling else nn.Identity()
        strides = (1 if pooling else 2, 2, 2, 2 if deep else 1)
        before = 64
        for stage, (units, stride) in enumerate(zip(repeats, strides, strict=True)):
            planes, after = 64 << stage, (64 << stage) * block.expansion
            unit = partial(_unit, block, planes=planes, projection=all_projections, averaged=averaged)
            layer = [unit(before=before, stride=stride)]
            layer += [unit(before=after, stride=1) for _ in range(units - 1)]
            before = after
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            first = layer[0]
            if tlt and isinstance(first, Bottleneck):
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution or the deep stem, 1 to 4 are the stages."""
        return {0: self.conv1} | {stage: self.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)}


def _published(depth: int, deep_stem: bool, averaged: bool) -> str | None:
    if deep_stem and averaged:
        return f"timm's resnet{depth}d" if depth in TIMM else None
    return f"torchvision's resnet{depth}" if depth in TORCHVISION and deep_stem == averaged else None


def _deep_stem() -> nn.Sequential:
    first, second = ((nn.BatchNorm2d(32), nn.ReLU(inplace=True)) for _ in range(2))
    return nn.Sequential(conv3x3(3, 32, stride=2), *first, conv3x3(32, 32), *second, conv3x3(32, 64))


def _unit(
    block: type[BasicBlock | Bottleneck],
    *,
    before: int,
    planes: int,
    stride: int,
    projection: bool,
    averaged: bool,
) -> nn.Module:
    after, shortcut = planes * block.expansion, None
    if projection or stride != 1 or before != after:
        convolution = conv1x1(before, after, 1 if averaged else stride)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after))
        if averaged:  # a last row or column without a pair is averaged by itself
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            shortcut.insert(0, pool if stride != 1 else nn.Identity())
    unit: nn.Module = block(before, planes, stride, shortcut)
    return unit
