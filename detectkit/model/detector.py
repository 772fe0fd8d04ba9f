"""The grid detector: normalisation, backbone and two 1x1 heads.

B batch, C class, c image channels, H W pixels, h w grid cells.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detectkit.errors import SpecError
from detectkit.model.backbones import RESNETS, ResNet
from detectkit.spec.model_pb2 import ModelConfig


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
    """Images to coverage and box maps.

    Args:
        backbone: gives [B, backbone.out_channels, h, w].
        classes: number of classes C.
        channels: of the images, 1 or 3.
        freeze_bn: batch normalisation keeps its running mean and variance while training; its scale and shift are
            trained all the same (TLT DetectNet_v2).
    """

    def __init__(self, backbone: ResNet, *, classes: int, channels: int, freeze_bn: bool = False) -> None:
        super().__init__()
        self.normalize = Normalize(channels)
        self.backbone = backbone
        self.output_cov = nn.Conv2d(backbone.out_channels, classes, kernel_size=1)
        self.output_bbox = nn.Conv2d(backbone.out_channels, 4 * classes, kernel_size=1)
        self.stride: int = backbone.stride
        self.channels = channels
        self.freeze_bn = freeze_bn
        self.reset_heads()

    def reset_heads(self) -> None:
        """Glorot's uniform distribution and zero bias, as TLT DetectNet_v2."""
        for head in (self.output_cov, self.output_bbox):
            nn.init.xavier_uniform_(head.weight)
            nn.init.zeros_(_bias(head))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            images: [B, c, H, W] in [0, 1], H and W multiples of the stride.

        Returns:
            coverage [B, C, h, w] in (0, 1), and boxes [B, 4C, h, w], class-major: left, top, right, bottom.
        """
        features = self.backbone(self.normalize(images))
        # In 16 bits a coverage near 1 would round to 1, which costs as if it were sure.
        return torch.sigmoid(self.output_cov(features).float()), self.output_bbox(features).float()

    def train(self, mode: bool = True) -> Detector:
        """As nn.Module.train, except that frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self


def build(model_config: ModelConfig, class_names: Sequence[str], channels: int) -> Detector:
    """A new detector with random weights from torch's global generator, on the default device.

    Raises:
        SpecError: `arch`, `num_layers` or `freeze_blocks` name something that does not exist.
    """
    match model_config.arch:
        case "resnet":
            backbone = _resnet(model_config, channels)
        case other:
            raise SpecError(f'model_config.arch: "{other}" is not available; use one of: resnet')
    _freeze(backbone, model_config.freeze_blocks)
    return Detector(backbone, classes=len(class_names), channels=channels, freeze_bn=model_config.freeze_bn)


def _resnet(model_config: ModelConfig, channels: int) -> ResNet:
    depth = model_config.num_layers or 18  # 0 stands for the default in TLT's specs
    if depth not in RESNETS:
        raise SpecError(
            f"model_config.num_layers: resnet has no {depth} layers; use one of: {', '.join(map(str, RESNETS))}"
        )
    return ResNet(
        depth,
        channels=channels,
        pooling=model_config.use_pooling,
        batch_norm=model_config.use_batch_norm,
        all_projections=model_config.all_projections,
    )


def _freeze(backbone: ResNet, blocks: Iterable[float]) -> None:
    """Stop the training of the convolutions of these blocks; their batch normalisation goes on (TLT DetectNet_v2)."""
    available = backbone.blocks()
    for block in blocks:
        if block not in available:
            raise SpecError(
                f"model_config.freeze_blocks: no block {block:g}; use any of: {', '.join(map(str, available))}"
            )
        for layer in available[int(block)].modules():
            if isinstance(layer, nn.Conv2d):
                layer.requires_grad_(False)


class Summary(NamedTuple):
    """Size and cost of a detector."""

    parameters: int
    trainable: int
    gmacs: float  # 1e9 multiply-accumulates of all convolutions for one image
    stride: int  # pixels a grid cell


def summary(detector: Detector, height: int, width: int) -> Summary:
    """Count parameters, and the multiply-accumulates for one image of height x width pixels (none is run)."""
    shadow = copy.deepcopy(detector).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, detector.channels, height, width, device="meta"))
    return Summary(
        parameters=sum(weight.numel() for weight in detector.parameters()),
        trainable=sum(weight.numel() for weight in detector.parameters() if weight.requires_grad),
        gmacs=counter.get_total_flops() / 2e9,
        stride=detector.stride,
    )


def _bias(head: nn.Conv2d) -> Tensor:
    assert head.bias is not None  # heads are made with one
    return head.bias
