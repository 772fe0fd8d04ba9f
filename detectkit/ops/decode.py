"""From a network's maps back to boxes: which cells have one, and where it is, the inverse of rasterize.Targets.bbox."""

from __future__ import annotations

import torch
from torch import Tensor


def decode(bbox: Tensor, *, stride: int, scale: float, offset: float, width: int, height: int) -> Tensor:
    """Boxes [B, C, H, W, 4] in network pixels from distances [B, C, 4, H, W], one a cell, cut to the image.

    width, height: size of the network's input in pixels. A box whose right (lower) side lies before its left (upper)
    one becomes empty, never crossed. Source: TLT DetectNet_v2, bbox objective.
    """
    left, top, right, bottom = (bbox * scale).unbind(2)
    x = torch.arange(bbox.shape[-1], device=bbox.device, dtype=bbox.dtype) * stride + offset
    y = (torch.arange(bbox.shape[-2], device=bbox.device, dtype=bbox.dtype) * stride + offset)[:, None]
    x1, y1 = (x - left).clamp(0, width), (y - top).clamp(0, height)
    x2, y2 = torch.maximum((x + right).clamp(max=width), x1), torch.maximum(
        (y + bottom).clamp(max=height), y1
    )
    return torch.stack((x1, y1, x2, y2), dim=-1)


def highest(scores: Tensor, at_most: int) -> Tensor:
    """Which of the scores [B, ...] are the `at_most` highest of their image, bool [B, ...]; of equal ones the first.

    The choice is the same on every device. NaN is lower than any number.
    """
    flat = torch.where(scores.isnan(), -torch.inf, scores).flatten(1)
    if at_most >= flat.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    lowest = flat.topk(at_most + 1, dim=1).values[:, -1:]  # of the first that is one too many
    above, equal = flat > lowest, flat == lowest
    missing = at_most - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing))).reshape(scores.shape)
