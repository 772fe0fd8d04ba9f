"""Costs per class (TLT DetectNet_v2: coverage and bbox objectives) and weight regularisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EPSILON = 1e-5


def coverage_cost(
    predicted: Tensor, target: Tensor, *, foreground_weight: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Weighted binary cross entropy [C], mean over images and cells; computed in 32 bits or more.

    predicted and target [B, C, H, W] in [0, 1]; foreground_weight [C] weighs cells whose target is above 0.5 and
    1 - foreground_weight all others; mask broadcasts against [B, C, H, W] and multiplies the cost of each cell.
    """
    predicted, target = _at_least_float32(predicted), _at_least_float32(target)
    entropy = -(target * (predicted + EPSILON).log() + (1 - target) * (1 - predicted + EPSILON).log())
    foreground = foreground_weight.to(entropy)[:, None, None]
    cost = entropy * torch.where(target > 0.5, foreground, 1 - foreground)
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


def regularization(parameters: Iterable[Tensor], *, power: int, weight: float) -> Tensor:
    """weight * sum |w|^power over all parameters, a scalar; power 1 is L1, 2 is L2 (no half, no root)."""
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    sums = (p.square().sum() if power == 2 else p.abs().sum() for p in parameters)
    return weight * sum(sums, torch.zeros(()))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
