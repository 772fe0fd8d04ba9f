"""Layers that torch does not have, and that necks and heads are made of.

B batch, C channels, h w grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class MaxPool2dSame(nn.MaxPool2d):
    """A maximum pool with TensorFlow's "same" border, see `same_border`, whatever its `padding` is. The border never wins."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, ceil(h / stride), ceil(w / stride)]."""
        top, left, bottom, right = same_border(maps.shape[2:], self.kernel_size, self.stride)
        maps = functional.pad(maps, (left, right, top, bottom), value=-math.inf)
        return functional.max_pool2d(maps, self.kernel_size, self.stride)


class WeightedSum(nn.Module):
    """Maps of one shape added by learnt shares (Tan et al. 2020, EfficientDet): one number for each of them.

    Args:
        count: of the maps, 2 or more.
        softmax: the shares are the softmax of the weights; otherwise each weight, at least 0, over the sum of all
            ("fast attention").
    """

    def __init__(self, count: int, *, softmax: bool = False) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(count))
        self.softmax = softmax

    def shares(self) -> Tensor:
        """[count], from 0 to 1; they sum to 1, or to hardly less."""
        if self.softmax:
            return self.weights.softmax(0)
        positive = self.weights.relu()
        return positive / (positive.sum() + 1e-4)  # EfficientDet's

    def forward(self, *maps: Tensor) -> Tensor:
        """count times [B, C, h, w] -> [B, C, h, w]."""
        first, *others = (share * values for share, values in zip(self.shares(), maps, strict=True))
        total: Tensor = sum(others, start=first)
        return total


class L2Normalisation(nn.Module):
    """The channels of each cell as a vector of length 1, times a learnt scale for each channel (Liu et al. 2015, ParseNet).

    Args:
        channels: C.
        scale: that training begins with.
    """

    def __init__(self, channels: int, *, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale * torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        return functional.normalize(maps, dim=1) * self.scale[:, None, None]


def same_border(
    sides: Sequence[int],
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
) -> tuple[int, int, int, int]:
    """TensorFlow's "same": as many pixels around a map as give ceil(side / stride) windows, the odd one below and on the right.

    Args:
        sides: height and width of the map. Where it is even, a stride of 2 and a kernel of 3 have no border above; where it is
            odd, one on each side.
        kernel: of the window, as torch takes it; likewise the others.

    Returns:
        Rows above, columns on the left, below, on the right.
    """
    before, after = [], []
    for side, size, step, gap in zip(sides, pair(kernel), pair(stride), pair(dilation), strict=True):
        total = max((math.ceil(side / step) - 1) * step + (size - 1) * gap + 1 - side, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before[0], before[1], after[0], after[1]


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width of what torch takes as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
