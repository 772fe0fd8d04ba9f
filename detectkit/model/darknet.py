"""Darknets, the networks of YOLO 9000 (Redmon and Farhadi 2016) and YOLOv3 (2018): a stride of 32, 1024 channels."""

from __future__ import annotations

from torch import Tensor, nn

from detectkit.model.base import Backbone, Convolution

# Channels of the 3x3 convolutions of a stage, and of the 1x1 convolutions between them, and how many there are in all.
STAGES_19 = ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
UNITS_53 = (0, 1, 2, 8, 8, 4)  # residual units of each stage


def _convolution(before: int, after: int, size: int, stride: int = 1) -> Convolution:
    return Convolution(before, after, size, stride=stride, function=nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    """A 1x1 convolution to half the channels and a 3x3 one back, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, channels // 2, 1)
        self.conv2 = _convolution(channels // 2, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """[B, channels, h, w] -> the same."""
        result: Tensor = features + self.conv2(self.conv1(features))
        return result


class DarkNet(Backbone):
    """Darknet-19 or Darknet-53 without classifier.

    Args:
        depth: 19 (each stage after the first begins with a 2x2 maximum pool) or 53 (with a 3x3 convolution of stride 2).
    """

    order = tuple(f"stage{number}" for number in range(6))

    def __init__(self, depth: int) -> None:
        super().__init__()
        for number in range(6):
            self.add_module(f"stage{number}", _stage_19(number) if depth == 19 else _stage_53(number))

    def blocks(self) -> dict[int, nn.Module]:
        """What `freeze_blocks` can name: the six stages, 0 to 5."""
        return dict(enumerate(self.children()))


def _stage_19(number: int) -> nn.Sequential:
    channels, convolutions = STAGES_19[number]
    before = channels // 2 if number else 3
    stage = nn.Sequential()
    if number:
        stage.add_module("pool", nn.MaxPool2d(2, 2, ceil_mode=True))
    for position in range(1, convolutions + 1):
        after, size = (channels, 3) if position % 2 else (channels // 2, 1)
        stage.add_module(f"conv{position}", _convolution(before, after, size))
        before = after
    return stage


def _stage_53(number: int) -> nn.Sequential:
    channels = 32 << number
    stage = nn.Sequential()
    stage.add_module(
        "conv1", _convolution(channels // 2, channels, 3, stride=2) if number else _convolution(3, 32, 3)
    )
    for position in range(1, UNITS_53[number] + 1):
        stage.add_module(f"unit{position}", Residual(channels))
    return stage
