"""EfficientNets (Tan and Le 2019)."""

from __future__ import annotations

from torch import nn
from torchvision import models

from detectkit.model.base import Features


class EfficientNet(Features):
    """torchvision's without its classifier, at a stride of 32 as in TLT; 1280 channels in b0 to 2560 in b7.

    While training it leaves out residual branches at random, with torchvision's probabilities.

    Args:
        arch: "efficientnet_b0" to "efficientnet_b7".
    """

    stride = 32

    def __init__(self, arch: str) -> None:
        whole = models.get_model(arch, weights=None)
        super().__init__(whole.features)
        self.torchvision = arch
        self.out_channels = whole.classifier[1].in_features

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: 0 is the first convolution, 1 to 7 are the stages, 8 is the last convolution."""
        return dict(enumerate(self.features))
