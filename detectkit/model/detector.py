"""The detector: normalisation, backbone, and the layers of a head.

B batch, C class, c image channels, H W pixels, h w cells.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detectkit import heads
from detectkit.heads import Layers, Outline
from detectkit.model.backbones import make_backbone
from detectkit.model.base import Backbone
from detectkit.model.operators import receptive_field
from detectkit.spec.model_pb2 import ModelConfig

if TYPE_CHECKING:
    from detectkit.model.quantization import Ranges


class Normalize(nn.Module):
    """(image - mean) / std per channel; changes nothing until weights that expect it are loaded."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Detector(nn.Module):
    """Images to the maps that `outline` describes.

    Args:
        backbone: gives the maps that the head's layers take.
        layers: of the head; they become children of the detector, by which names they are in files.
        channels: of the images, 1 or 3.
        dropout: share of the values between backbone and head that is dropped at random in training.
        freeze_bn: batch normalisation keeps its running mean and variance while training; its scale and shift are
            trained all the same (TLT DetectNet_v2).
        freeze_pretrained: `pretrained.load_pretrained` shall freeze what it takes from a file.

    Raises:
        ValueError: the layers hold a tensor that is in no child of theirs, or a child whose name the detector has already.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Layers,
        *,
        channels: int,
        dropout: float = 0.0,
        freeze_bn: bool = False,
        freeze_pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(channels)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.channels = channels
        self.freeze_bn = freeze_bn
        self.freeze_pretrained = freeze_pretrained
        # With quantisation-aware training: what makes `forward` round to 8 bits.
        self.ranges: Ranges | None = None
        self.frozen: frozenset[str] = frozenset()  # tensors that `freeze` holds
        self.settled = False
        # Of the backbone's parameters, while it is frozen.
        self._trained_before: dict[str, bool] | None = None
        self._layers = (layers,)  # in a tuple, so that it is no child itself
        self._take_over(layers)

    def _take_over(self, layers: Layers) -> None:
        own = (*layers.named_parameters(recurse=False), *layers.named_buffers(recurse=False))
        for name, _ in own:
            raise ValueError(
                f"{type(layers).__name__}.{name} would be neither trained nor saved: put it in a child of the layers"
            )
        for name, layer in layers.named_children():
            if hasattr(self, name):
                raise ValueError(
                    f"{type(layers).__name__}.{name}: the detector has a {name} of its own, use another name"
                )
            self.add_module(name, layer)

    @property
    def layers(self) -> Layers:
        """Those of the head."""
        return self._layers[0]

    @property
    def head_layers(self) -> list[str]:
        """The names of the children that are the head's."""
        return [name for name, _ in self.layers.named_children()]

    @property
    def outline(self) -> Outline:
        """What the network gives."""
        levels = [level._replace(name=f"backbone.{level.name}") for level in self.backbone.levels]
        return self.layers.outline(levels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            images: [B, c, H, W] in [0, 1], H and W multiples of `outline.multiple`.

        Returns:
            The maps of `outline.outputs`, [B, channels, h, w].
        """
        return self.plain(images) if self.ranges is None else self.ranges(self, images)

    def plain(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `forward`, in floating point throughout; `model.graph` reads the network from here."""
        maps = self.backbone(self.normalize(images))
        return self.layers.forward(tuple(self.dropout(features) for features in maps))

    def freeze(self, names: Iterable[str]) -> None:
        """Train these tensors no more, for good.

        Args:
            names: as in the state dict. Batch normalisation whose running mean is among them keeps its statistics.
        """
        self.frozen |= set(names)
        for name, weight in self.named_parameters():
            if name in self.frozen:
                weight.requires_grad_(False)
        if self._trained_before is not None:
            self._trained_before |= {name: False for name in self._trained_before if name in self.frozen}
        self.train(self.training)

    def freeze_backbone(self, frozen: bool) -> None:
        """Hold the whole backbone, batch-norm statistics included, or train again what was trained before that."""
        parameters = {f"backbone.{name}": weight for name, weight in self.backbone.named_parameters()}
        if frozen and self._trained_before is None:
            self._trained_before = {name: weight.requires_grad for name, weight in parameters.items()}
            self.backbone.requires_grad_(False)
        elif not frozen and self._trained_before is not None:
            for name, trained in self._trained_before.items():
                parameters[name].requires_grad_(trained)
            self._trained_before = None
        self.train(self.training)

    def settle(self) -> None:
        """Hold the statistics of batch normalisation and the ranges of 8-bit rounding, for good."""
        self.settled = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Detector:
        """As nn.Module.train, except that what is frozen stays in evaluation mode."""
        super().train(mode)
        self.layers.train(mode)
        if self._trained_before is not None:
            self.backbone.eval()
        for name, layer in self.named_modules():
            held = self.freeze_bn or self.settled or f"{name}.running_mean" in self.frozen
            if held and isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        if self.settled and self.ranges is not None:
            self.ranges.eval()
        return self


def build(model_config: ModelConfig, class_names: Sequence[str], channels: int) -> Detector:
    """A new detector with random weights from torch's global generator, on the default device.

    Raises:
        SpecError: `arch`, `num_layers` or `activation` name something that does not exist, or the backbone has no maps for
            the head.
    """
    layers = heads.family(model_config).layers
    backbone = make_backbone(model_config, channels, layers.strides)
    _freeze(backbone, model_config.freeze_blocks)
    detector = Detector(
        backbone,
        layers(model_config, backbone.levels, len(class_names)),
        channels=channels,
        dropout=model_config.dropout_rate,
        freeze_bn=model_config.freeze_bn,
        freeze_pretrained=model_config.freeze_pretrained_layers,
    )
    if model_config.HasField("batch_norm_momentum"):
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = model_config.batch_norm_momentum
    return detector


def outline_of(model_config: ModelConfig, class_names: Sequence[str], channels: int) -> Outline:
    """What a network of such a spec gives, with all its channels; no weights are made. Errors as `build`."""
    with torch.device("meta"):
        return build(model_config, class_names, channels).outline


def _freeze(backbone: Backbone, blocks: Iterable[float]) -> None:
    """Stop the training of the convolutions of these blocks; their batch normalisation goes on (TLT DetectNet_v2).

    Blocks that the network does not have count for nothing, as in TLT; `spec.warnings` names them.
    """
    available = backbone.blocks()
    for block in set(blocks) & set(available):
        for layer in available[int(block)].modules():
            if isinstance(layer, nn.Conv2d):
                layer.requires_grad_(False)


class Summary(NamedTuple):
    """Size and cost of a detector."""

    parameters: int
    trainable: int
    gmacs: float  # 1e9 multiply-accumulates of all convolutions for one image
    strides: tuple[int, ...]  # pixels a cell of each level
    receptive_field: int  # side in pixels of what a cell of the last level sees


def summary(detector: Detector, height: int, width: int) -> Summary:
    """Count parameters, and the multiply-accumulates for one image of height x width pixels (none is run)."""
    return Summary(
        parameters=parameters(detector),
        trainable=sum(weight.numel() for weight in detector.parameters() if weight.requires_grad),
        gmacs=gmacs(detector, height, width),
        strides=tuple(level.stride for level in detector.outline.levels),
        receptive_field=receptive_field(detector.backbone),
    )


def parameters(detector: Detector) -> int:
    """How many there are, those of batch normalisation included, its statistics not."""
    return sum(weight.numel() for weight in detector.parameters())


def gmacs(detector: Detector, height: int, width: int) -> float:
    """1e9 multiply-accumulates of all convolutions for one image of height x width pixels (none is run)."""
    shadow = copy.deepcopy(detector).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow.plain(torch.empty(1, detector.channels, height, width, device="meta"))
    flops: int = counter.get_total_flops()
    return flops / 2e9
