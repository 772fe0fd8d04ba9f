"""VGG (Simonyan and Zisserman 2014)."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from detectkit.model.base import Features, first_convolution

CONFIGURATIONS = {16: "D", 19: "E"}
BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions between two pools


class VGG(Features):
    """torchvision's VGG without its fifth pool: 512 channels.

    Args:
        depth: 16 or 19.
        pooling: a 2x2 maximum after each of the first four blocks, as torchvision, which a last odd row or column is part of,
            as in SSD (torchvision's ssd300_vgg16: 75 pixels become 38); otherwise the first convolution of the
            four blocks that follow has a stride of 2, as in TLT DetectNet_v2. Tensors have the same names either way.
        batch_norm: as torchvision's vgg16_bn; without, as its vgg16.
        deep: with the fifth pool.
    """

    def __init__(self, depth: int, *, pooling: bool, batch_norm: bool, deep: bool = False) -> None:
        layers = make_layers(cfgs[CONFIGURATIONS[depth]], batch_norm=batch_norm)
        super().__init__(layers if deep else layers[:-1])
        self.published = f"torchvision's vgg{depth}{'_bn' * batch_norm}"
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        if not pooling:
            for number in (2, 3, 4, 5):
                first_convolution(self.blocks()[number]).stride = (2, 2)
            for number, layer in enumerate(self.features[:-1]):
                if isinstance(layer, nn.MaxPool2d):
                    self.features[number] = nn.Identity()

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: the convolutions of each width between two pools, 1 to 5."""
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.features:
            if isinstance(layer, (nn.MaxPool2d, nn.Identity)):
                blocks.append([])
            else:
                blocks[-1].append(layer)
        return {number: nn.ModuleList(layers) for number, layers in enumerate(blocks, start=1) if layers}
