"""EfficientNets (Tan and Le 2019) and EfficientNet-Lites (Liu 2020), their form without gates.

B batch, h w cells.
"""

from __future__ import annotations

import math
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
        tensorflow: with TensorFlow's padding; timm's tf_efficientnet_b0 to b7 load, and the backbones of EfficientDet.
        whole: with the last convolution, the classifier's; without, 320 channels in b0 to 640 in b7.
    """

    told_by = {
        "TORCHVISION": ("features.0.0.weight", "0.0.weight"),
        "TENSORFLOW": ("conv_stem.weight",),
    }

    def __init__(self, arch: str, *, tensorflow: bool = False, whole: bool = True) -> None:
        layers = models.get_model(arch, weights=None).features
        super().__init__(layers if whole else layers[:-1])
        self.published = f"timm's tf_{arch}" if tensorflow else f"torchvision's {arch}"
        if not whole:
            self.behind = (f"features.{len(layers) - 1}.", "classifier.")
        if tensorflow:
            replace(self, nn.Conv2d, _padded_as_tensorflow)

    def named_here(self, name: str) -> str:
        """As `Backbone`, of timm's: `blocks.1.0.conv_pw.weight` is `features.2.0.block.0.0.weight`."""
        layer, _, leaf = name.rpartition(".")
        if layer in TIMM_ENDS:
            return f"{TIMM_ENDS[layer]}.{leaf}"
        found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", layer)
        if not found:
            return name
        stage, unit, part = int(found[1]) + 1, found[2], found[3]
        parts = TIMM_LAYERS if stage > 1 else TIMM_LAYERS_OF_FIRST  # which does not widen
        return f"features.{stage}.{unit}.block.{parts[part]}.{leaf}" if part in parts else name

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
        groups=layer.groups,
        bias=False,
    )


# What the layers of torchvision's blocks are called in timm's files, and those around them.
TIMM_LAYERS = {
    **{"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "3.0", "bn3": "3.1"},
    **{"se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2"},
}
TIMM_LAYERS_OF_FIRST = {
    **{"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "2.0", "bn2": "2.1"},
    **{"se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2"},
}
TIMM_ENDS = {
    **{"conv_stem": "features.0.0", "bn1": "features.0.1"},
    **{"conv_head": "features.8.0", "bn2": "features.8.1"},
}

# Of each stage: channels of a block's input that it widens to, kernel, stride, channels. The last two are at a stride of 32.
LITE_STAGES = (
    *((1, 3, 1, 16), (6, 3, 2, 24), (6, 5, 2, 40), (6, 3, 2, 80), (6, 5, 1, 112)),
    *((6, 5, 2, 192), (6, 3, 1, 320)),
)
LITE_UNITS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each
SHALLOW = 5  # stages at strides up to 16
# What channels and blocks are multiplied by; the first convolution, and the blocks of the first and last stage, stay.
LITE_SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
# What the layers of a block are called in EfficientNet-PyTorch's files, and the normalisation behind each.
LITE_LAYERS = {
    **{"_expand_conv": "expand.conv", "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv"},
    **{"_bn0": "expand.bn", "_bn1": "depthwise.bn", "_bn2": "project.bn"},
}
# The same in timm's, where a block that does not widen counts from its depthwise convolution on.
LITE_TIMM_LAYERS = {
    **{"conv_pw": "expand.conv", "conv_dw": "depthwise.conv", "conv_pwl": "project.conv"},
    **{"bn1": "expand.bn", "bn2": "depthwise.bn", "bn3": "project.bn"},
}
LITE_TIMM_LAYERS_OF_FIRST = {
    **{"conv_dw": "depthwise.conv", "conv_pw": "project.conv"},
    **{"bn1": "depthwise.bn", "bn2": "project.bn"},
}
LITE_STEM = {"_conv_stem": "conv", "conv_stem": "conv", "_bn0": "bn", "bn1": "bn"}


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
    """EfficientNet-Lite up to its last block at a stride of 16, as MobileNet v2 is cut: 112 channels in lite0, 160 in lite4.

    The files of EfficientNet-PyTorch load, and timm's tf_efficientnet_lite0 to lite4. Their weights come from TensorFlow:
    with its padding, an epsilon of 0.001, and for colours of (0 to 255 - 127) / 128. No residual branch is left out while
    training.

    Args:
        arch: a key of `LITE_SCALES`.
        deep: with the stages at a stride of 32: 320 channels in lite0, 448 in lite4.
    """

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, arch: str, *, deep: bool = False) -> None:
        super().__init__()
        self.published = f"EfficientNet-PyTorch's {arch.replace('_', '-')}"
        self.block0 = Convolution(3, 32, 3, stride=2, function=nn.ReLU6(inplace=True), eps=1e-3, same=True)
        width, depth = LITE_SCALES[arch]
        self._repeats = repeats = (1, *(math.ceil(units * depth) for units in LITE_UNITS[1:-1]), 1)
        before, last = 32, 0
        stages = LITE_STAGES if deep else LITE_STAGES[:SHALLOW]
        for (ratio, size, stride, channels), count in zip(stages, repeats):
            after = _to_eights(channels * width)
            for step in (stride, *[1] * (count - 1)):
                last += 1
                block = InvertedResidual(before, after, ratio=ratio, size=size, stride=step)
                self.add_module(f"block{last}", block)
                before = after
        behind = (f"block{number}." for number in range(last + 1, sum(repeats) + 1))
        self.behind = (*behind, "_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2.", "classifier.")
        self.order = [name for name, _ in self.named_children()]

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, the others are the inverted residuals."""
        return dict(enumerate(self.children()))

    def named_here(self, name: str) -> str:
        """As `Backbone`: `_blocks.0._bn1.bias`, or timm's `blocks.0.0.bn1.bias`, is `block1.depthwise.bn.bias`."""
        layer, _, leaf = name.rpartition(".")
        if layer in LITE_STEM:
            return f"block0.{LITE_STEM[layer]}.{leaf}"
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
            number, part, parts = int(found[1]) + 1, found[2], LITE_LAYERS
        elif found := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)", layer):
            stage, part = int(found[1]), found[3]
            number = sum(self._repeats[:stage]) + int(found[2]) + 1
            parts = LITE_TIMM_LAYERS if stage else LITE_TIMM_LAYERS_OF_FIRST
        else:
            return name
        return f"block{number}.{parts[part]}.{leaf}" if part in parts else name


def _to_eights(channels: float) -> int:
    """The nearest multiple of 8 that is not below nine tenths, as in TensorFlow's."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
