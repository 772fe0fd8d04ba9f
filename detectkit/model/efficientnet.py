"""EfficientNets (Tan and Le 2019) and EfficientNet-Lites (Liu 2020), their form without gates.

B batch, h w cells.
"""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor, nn
from torchvision import models

from detectkit.model.base import Backbone, Conv2dSame, Convolution, Features, replace


class EfficientNet(Features):
    """torchvision's without its classifier, at a stride of 32 as in TLT; 1280 channels in b0 to 2560 in b7.

    While training it leaves out residual branches at random, with torchvision's probabilities.

    Args:
        arch: "efficientnet_b0" to "efficientnet_b7".
        tlt: with TensorFlow's padding.
        whole: with the last convolution, the classifier's; without, 320 channels in b0 to 640 in b7.
    """

    def __init__(self, arch: str, *, tlt: bool = False, whole: bool = True) -> None:
        layers = models.get_model(arch, weights=None).features
        super().__init__(layers if whole else layers[:-1])
        self.published = f"torchvision's {arch}"
        if not whole:
            self.behind = (f"features.{len(layers) - 1}.", "classifier.")
        if tlt:
            replace(self, nn.Conv2d, _padded_as_tensorflow)

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, 1 to 7 are the stages, 8 is the last convolution."""
        return dict(enumerate(self.features))


def _padded_as_tensorflow(layer: nn.Conv2d) -> nn.Conv2d:
    if layer.stride == (1, 1):
        return layer
    return Conv2dSame(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=False,
    )


# Of each stage: channels of a block's input that it widens to, kernel, stride, channels. The last two are at a stride of 32.
LITE_STAGES = (
    *((1, 3, 1, 16), (6, 3, 2, 24), (6, 5, 2, 40), (6, 3, 2, 80), (6, 5, 1, 112)),
    *((6, 5, 2, 192), (6, 3, 1, 320)),
)
SHALLOW = 5  # stages at strides up to 16
# Blocks of all seven stages.
LITE_REPEATS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
}
# What the layers of a block are called in EfficientNet-PyTorch's files, and the normalisation behind each.
LITE_LAYERS = {
    **{"_expand_conv": "expand.conv", "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv"},
    **{"_bn0": "expand.bn", "_bn1": "depthwise.bn", "_bn2": "project.bn"},
}


class InvertedResidual(nn.Module):
    """A 1x1 convolution to `ratio` times the channels, one of each channel by itself, and a 1x1 one to `after`.

    What came in is added where it has the same shape. Where `ratio` is 1 there is no first convolution.
    """

    def __init__(self, before: int, after: int, *, ratio: int, size: int, stride: int) -> None:
        super().__init__()
        wide = before * ratio
        layer = partial(Convolution, eps=1e-3, same=True)
        self.adds = stride == 1 and before == after
        self.expand = layer(before, wide, 1, function=nn.ReLU6(inplace=True)) if ratio > 1 else nn.Identity()
        self.depthwise = layer(wide, wide, size, stride=stride, groups=wide, function=nn.ReLU6(inplace=True))
        self.project = layer(wide, after, 1, function=nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        """[B, before, h, w] -> [B, after, h / stride, w / stride]."""
        result: Tensor = self.project(self.depthwise(self.expand(features)))
        return features + result if self.adds else result


class EfficientNetLite(Backbone):
    """EfficientNet-Lite up to its last block at a stride of 16, as MobileNet v2 is cut: 112 channels.

    The files of EfficientNet-PyTorch load. Their weights come from TensorFlow: with its padding, an epsilon of 0.001, and
    for colours of (0 to 255 - 127) / 128. No residual branch is left out while training.

    Args:
        arch: a key of `LITE_REPEATS`.
        deep: with the stages at a stride of 32: 320 channels.
    """

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, arch: str, *, deep: bool = False) -> None:
        super().__init__()
        self.published = f"EfficientNet-PyTorch's {arch.replace('_', '-')}"
        self.block0 = Convolution(3, 32, 3, stride=2, function=nn.ReLU6(inplace=True), eps=1e-3, same=True)
        before, last, repeats = 32, 0, LITE_REPEATS[arch]
        stages = LITE_STAGES if deep else LITE_STAGES[:SHALLOW]
        for (ratio, size, stride, after), count in zip(stages, repeats):
            for step in (stride, *[1] * (count - 1)):
                last += 1
                block = InvertedResidual(before, after, ratio=ratio, size=size, stride=step)
                self.add_module(f"block{last}", block)
                before = after
        behind = (f"block{number}." for number in range(last + 1, sum(repeats) + 1))
        self.behind = (*behind, "_conv_head.", "_bn1.", "_fc.")
        self.order = [name for name, _ in self.named_children()]

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, the others are the inverted residuals."""
        return dict(enumerate(self.children()))

    def named_here(self, name: str) -> str:
        """As `Backbone`: `_blocks.0._bn1.bias` is `block1.depthwise.bn.bias`."""
        for theirs, ours in (("_conv_stem.", "block0.conv."), ("_bn0.", "block0.bn.")):
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if not found or found[2] not in LITE_LAYERS:
            return name
        return f"block{int(found[1]) + 1}.{LITE_LAYERS[found[2]]}.{found[3]}"
