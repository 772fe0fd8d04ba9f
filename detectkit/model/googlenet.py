"""GoogLeNet (Szegedy et al. 2014)."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision import models
from torchvision.models.googlenet import Inception

from detectkit.heads.layers import MaxPool2dSame
from detectkit.model.base import Backbone, Convolution

STEM = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")
INCEPTIONS = tuple(f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))


class GoogLeNet(Backbone):
    """torchvision's GoogLeNet without its fourth pool, its classifiers and `transform_input`: 1024 channels.

    Its weights come from TensorFlow, for colours from -1 to 1; torchvision's `transform_input` makes those out of
    ImageNet's normalisation.

    Args:
        tlt: with the paper's 5x5 convolutions, where torchvision has 3x3, and 2x2 pools between the stages.
        deep: with the fourth pool.
    """

    published = "torchvision's googlenet"
    behind = ("aux1.", "aux2.", "fc.")
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, *, tlt: bool = False, deep: bool = False) -> None:
        super().__init__()
        blocks = [_convolution, partial(Inception, conv_block=_convolution), nn.Identity]
        whole = models.GoogLeNet(aux_logits=False, init_weights=False, blocks=blocks)
        last = ("maxpool4", *INCEPTIONS[7:]) if deep else INCEPTIONS[7:]
        self.order = (*STEM, *INCEPTIONS[:2], "maxpool3", *INCEPTIONS[2:7], *last)
        for name in self.order:
            self.add_module(name, getattr(whole, name))
        pools = [name for name in self.order if name.startswith("maxpool")]
        for name in pools:  # as torchvision's on even sides; an odd row or column is not lost
            pool = self.get_submodule(name)
            assert isinstance(pool, nn.MaxPool2d)
            self.add_module(name, MaxPool2dSame(pool.kernel_size, 2))
        if tlt:
            for name in pools:
                self.add_module(name, nn.MaxPool2d(2, 2, ceil_mode=True))
            for name in INCEPTIONS:
                small = self.get_submodule(f"{name}.branch3.1.conv")
                assert isinstance(small, nn.Conv2d)
                large = _convolution(small.in_channels, small.out_channels, kernel_size=5, padding=2)
                self.set_submodule(f"{name}.branch3.1", large)

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first three convolutions, 1 to 9 are the inception modules."""
        stem = nn.ModuleList(self.get_submodule(name) for name in STEM)
        return {0: stem} | {number: self.get_submodule(name) for number, name in enumerate(INCEPTIONS, 1)}


def _convolution(
    before: int, after: int, *, kernel_size: int, stride: int = 1, padding: int = 0
) -> Convolution:
    """torchvision's block, whose function is a layer here and can so be replaced."""
    assert padding == kernel_size // 2
    return Convolution(before, after, kernel_size, stride=stride, function=nn.ReLU(inplace=True), eps=0.001)
