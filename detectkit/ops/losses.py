"""Costs per class (TLT DetectNet_v2: coverage and bbox objectives) and weight regularisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from detectkit.ops.boxes import generalized_iou

EPSILON = 1e-5


def coverage_cost(
    predicted: Tensor,
    target: Tensor,
    *,
    foreground_weight: Tensor,
    focal_gamma: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Weighted binary cross entropy [C], mean over images and cells; computed in 32 bits or more.

    predicted and target [B, C, H, W] in [0, 1]; foreground_weight [C] weighs cells whose target is above 0.5 and
    1 - foreground_weight all others; mask broadcasts against [B, C, H, W] and multiplies the cost of each cell.
    With a focal_gamma above 0 each cell's cost is also multiplied by |target - predicted| ** focal_gamma (quality focal
    loss, Li et al. 2020).
    """
    predicted, target = _at_least_float32(predicted), _at_least_float32(target)
    entropy = -(target * (predicted + EPSILON).log() + (1 - target) * (1 - predicted + EPSILON).log())
    foreground = foreground_weight.to(entropy)[:, None, None]
    cost = entropy * torch.where(target > 0.5, foreground, 1 - foreground)
    if focal_gamma:
        cost = cost * (target - predicted).abs().clamp_min(EPSILON) ** focal_gamma
    return (cost if mask is None else cost * mask).mean((0, 2, 3))


def bbox_cost(
    predicted: Tensor, target: Tensor, *, coverage_norm: Tensor, mask: Tensor | None = None
) -> Tensor:
    """L1 cost [C] of box distances, mean over images, sides and all cells; computed in 32 bits or more.

    predicted and target [B, C, 4, H, W]; coverage_norm [B, C, H, W] weighs the cells (0: the cell does not count);
    mask broadcasts against [B, C, H, W].
    """
    weight = coverage_norm if mask is None else coverage_norm * mask
    difference = (_at_least_float32(predicted) - _at_least_float32(target)).abs()
    return (difference * weight[:, :, None]).mean((0, 2, 3, 4))


def giou_cost(
    predicted: Tensor, target: Tensor, *, coverage_norm: Tensor, mask: Tensor | None = None
) -> Tensor:
    """1 - generalised IoU of the boxes [C], mean over images and all cells; computed in 32 bits or more.

    Arguments as of `bbox_cost`. A cell's predicted and target box start from the same anchor and have the same scale,
    neither of which moves their IoU: the distances are compared as they are, not cut to the image.
    A predicted box whose sides are crossed overlaps nothing, wherever it lies: so that it learns to uncross, it costs
    what it is crossed by more, as a part of the target's width or height.
    """
    weight = coverage_norm if mask is None else coverage_norm * mask
    boxes, wanted = _around_anchor(predicted), _around_anchor(target)
    crossed = (boxes[..., :2] - boxes[..., 2:]).clamp(min=0)
    size = wanted[..., 2:] - wanted[..., :2]
    crossing = (crossed / torch.where(size > 0, size, 1)).sum(-1)
    return ((1 - generalized_iou(boxes, wanted) + crossing) * weight).mean((0, 2, 3))


def correlation_cost(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - the correlation of each channel of two feature maps [B, n, H, W], mean over channels, a scalar in [0, 2].

    Over images and cells, in 32 bits or more. The size and offset of a channel do not count: half the mean squared difference of the
    standardised maps (PKD, Cao et al. 2022). A channel that is the same everywhere is correlated with nothing: 0.5.
    """
    first, second = (_standardized(_at_least_float32(maps)) for maps in (predicted, target))
    return (first - second).square().mean() / 2


def _standardized(maps: Tensor) -> Tensor:
    """Mean 0 and variance 1 of every channel; one without variance is 0."""
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return centred * (centred.square().mean((0, 2, 3), keepdim=True) + EPSILON**2).rsqrt()


def _around_anchor(distances: Tensor) -> Tensor:
    """Boxes [B, C, H, W, 4] in units of the scale, seen from each cell's anchor; distances [B, C, 4, H, W]."""
    left, top, right, bottom = _at_least_float32(distances).unbind(2)
    return torch.stack((-left, -top, right, bottom), dim=-1)


def regularization(parameters: Iterable[Tensor], *, power: int, weight: float) -> Tensor:
    """weight * sum |w|^power over all parameters, a scalar; power 1 is L1, 2 is L2 (no half, no root)."""
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    sums = (p.square().sum() if power == 2 else p.abs().sum() for p in parameters)
    return weight * sum(sums, torch.zeros(()))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
