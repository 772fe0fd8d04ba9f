"""SqueezeNet 1.0 (Iandola et al. 2016)."""

from __future__ import annotations

from torch import nn
from torchvision.models import squeezenet1_0
from torchvision.models.squeezenet import Fire

from detectkit.model.base import Features, first_convolution


class SqueezeNet(Features):
    """torchvision's squeezenet1_0 up to its last Fire module: 512 channels, no batch normalisation.

    The first convolution and the pools have a border of zeros, as in TLT DetectNet_v2, so that the image is divided by
    exactly 16; torchvision's lose a few pixels.
    """

    published = "torchvision's squeezenet1_0"

    def __init__(self) -> None:
        super().__init__(squeezenet1_0(weights=None).features)
        first_convolution(self).padding = (3, 3)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.padding, layer.ceil_mode = 1, False

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, 1 to 8 are the Fire modules."""
        return dict(enumerate(layer for layer in self.features if isinstance(layer, (nn.Conv2d, Fire))))
