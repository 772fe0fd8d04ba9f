"""Boxes seen from anchors: what a network answers for an anchor, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNWEIGHTED = (1.0, 1.0, 1.0, 1.0)  # EfficientDet
SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # one over SSD's variances 0.1, 0.1, 0.2, 0.2
LARGEST_GROWTH = math.log(1000 / 16)  # torchvision: from an anchor of 16 pixels to a box of 1000
SMALLEST_SIDE = 1e-7  # pixels: the logarithm of an empty side is that of this


def encode_boxes(
    boxes: Tensor, anchors: Tensor, *, weights: tuple[float, float, float, float] = UNWEIGHTED
) -> Tensor:
    """Codes [..., 4] of boxes [..., 4] that broadcast against anchors [..., 4], all x1 y1 x2 y2.

    A code is x, y of the box's centre from that of the anchor, in widths and heights of the anchor, and the logarithms of
    its width and height over the anchor's; each times its weight. Files of EfficientDet have y x h w instead, which is
    undone where they are loaded. Source: Faster R-CNN; SSD's variances are 1 / weights.
    """
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    size, anchor_size = size.clamp(min=SMALLEST_SIDE), anchor_size.clamp(min=SMALLEST_SIDE)
    codes = torch.cat(((center - anchor_center) / anchor_size, (size / anchor_size).log()), dim=-1)
    return codes * codes.new_tensor(weights)


def decode_boxes(
    codes: Tensor,
    anchors: Tensor,
    *,
    weights: tuple[float, float, float, float] = UNWEIGHTED,
    largest_growth: float | None = LARGEST_GROWTH,
) -> Tensor:
    """The boxes [..., 4] of codes [..., 4] that broadcast against anchors [..., 4]: the inverse of `encode_boxes`.

    A side is at most exp(largest_growth) times the anchor's, so that no answer of a network is infinite. None: as large as
    it says, which is EfficientDet as published. Boxes may leave the image.
    """
    shift, growth = torch.split(codes / codes.new_tensor(weights), 2, dim=-1)
    if largest_growth is not None:
        growth = growth.clamp(max=largest_growth)
    anchor_center, anchor_size = _center_and_size(anchors)
    center, half = anchor_center + shift * anchor_size, anchor_size * growth.exp() / 2
    return torch.cat((center - half, center + half), dim=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.split(boxes, 2, dim=-1)
    return (low + high) / 2, high - low
