"""Costs of a grid (TLT DetectNet_v2: coverage and bbox objectives), of anchors (EfficientDet, SSD), and weight regularisation.

Letters of anchors: A anchors of an image, P anchors of a batch that answer for an object, in the order of their places.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from detectkit.ops.boxes import generalized_iou
from detectkit.ops.matching import BACKGROUND, IGNORED

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


def focal_cost(
    logits: Tensor,
    classes: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 1.5,
    label_smoothing: float = 0.0,
    image_weights: Tensor | None = None,
) -> Tensor:
    """Focal loss by class [C], summed over images and anchors, over 1 + the anchors of the batch that answer for an object.

    Args:
        logits: [B, A, C], an output for each class and none for the background; computed in 32 bits or more.
        classes: int64 [B, A], class of each anchor's object, BACKGROUND, which is none of all classes, or IGNORED.
        alpha: weight of an anchor's own class; all else weighs 1 - alpha.
        gamma: (1 - probability of the right answer) ** gamma makes what is easy count less.
        label_smoothing: e: the cross entropy is to 1 - e / 2 and e / 2; gamma's factor is of the true answers.
        image_weights: [B]. The number of anchors by which the sum is divided does not follow them.

    An empty batch costs something, 33.3 at the first step of EfficientDet-D0 for 90 classes. Source: AUTOML efficientdet.
    """
    logits = _at_least_float32(logits)
    image_weights = logits.new_ones(len(logits)) if image_weights is None else image_weights.to(logits)
    weights = image_weights[:, None] * (classes != IGNORED)
    # Nearly all answers are to be no: all of them are costed so, and then those of the objects are taken back.
    wrong_yes = _focal(logits, gamma=gamma, label_smoothing=label_smoothing) * (1 - alpha)
    cost = (wrong_yes * weights[:, :, None]).sum((0, 1))
    image, anchor = torch.nonzero(classes >= 0, as_tuple=True)
    own = classes[image, anchor]
    wrong_no = _focal(-logits[image, anchor, own], gamma=gamma, label_smoothing=label_smoothing) * alpha
    change = (wrong_no - wrong_yes[image, anchor, own]) * weights[image, anchor]
    return cost.index_add(0, own, change) / (1 + len(own))


def _focal(logits: Tensor, *, gamma: float, label_smoothing: float) -> Tensor:
    """Focal loss of logits whose right answer is no; the power is taken by logarithms, so its gradient is finite everywhere."""
    entropy = functional.softplus(logits)
    log_probability = logits - entropy
    return (gamma * log_probability).exp() * (entropy - label_smoothing / 2 * logits)


def huber_cost(
    predicted: Tensor, target: Tensor, *, delta: float = 0.1, weights: Tensor | None = None
) -> Tensor:
    """Huber loss [] of codes [P, 4], summed, over 4 * (1 + P): half the square up to delta, then a line of slope delta.

    weights [P] multiply what an anchor costs. All four numbers count; AUTOML leaves out those whose target is exactly 0, and
    so does not train the centre of an object that lies on that of its anchor. Source: AUTOML efficientdet.
    """
    cost = functional.huber_loss(
        _at_least_float32(predicted), _at_least_float32(target), reduction="none", delta=delta
    )
    return _weigh(cost, weights) / (4 * (1 + len(target)))


def mined_cross_entropy_cost(
    logits: Tensor,
    classes: Tensor,
    *,
    negatives_per_positive: float = 3.0,
    least_negatives: int = 0,
    image_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy [] of the objects' anchors and the worst of the background, summed, over the number of the first, or 1.

    Args:
        logits: [B, A, 1 + C], that of the background first; computed in 32 bits or more.
        classes: int64 [B, A], class of each anchor's object, BACKGROUND or IGNORED; 0 is the first that is no background.
        negatives_per_positive: so many of an image's background anchors count for each of its anchors with an object, those of
            the highest cost, of equals the first.
        least_negatives: but at least so many of every image. With 0, which is published, an image without objects teaches nothing.
        image_weights: [B].

    Source: SSD; torchvision.
    """
    labels = classes.clamp(min=BACKGROUND) - BACKGROUND
    flat = functional.cross_entropy(
        _at_least_float32(logits).flatten(0, 1), labels.flatten(), reduction="none"
    )
    cost = flat.reshape(classes.shape)
    positive = classes >= 0
    wanted = (negatives_per_positive * positive.sum(1)).clamp(min=least_negatives)
    negative_cost = torch.where(classes == BACKGROUND, cost.detach(), -torch.inf)
    order = torch.argsort(negative_cost, dim=1, descending=True, stable=True)
    ranks = torch.arange(classes.shape[1], device=classes.device).expand_as(order)
    hard = torch.empty_like(order).scatter_(1, order, ranks) < wanted[:, None]
    counted = positive | (hard & (classes == BACKGROUND))
    return _weigh((cost * counted).sum(1, keepdim=True), image_weights) / positive.sum().clamp(min=1)


def smooth_l1_cost(
    predicted: Tensor, target: Tensor, *, beta: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Smooth L1 loss [] of codes [P, 4], summed, over P, or 1: half the square over beta up to beta, then a line of slope 1.

    weights [P] multiply what an anchor costs. Source: SSD; torchvision.
    """
    cost = functional.smooth_l1_loss(
        _at_least_float32(predicted), _at_least_float32(target), reduction="none", beta=beta
    )
    return _weigh(cost, weights) / max(len(target), 1)


def _weigh(costs: Tensor, weights: Tensor | None) -> Tensor:
    """The sum [] of costs [N, ...], each row times its weight of [N]."""
    return (costs if weights is None else costs.flatten(1) * weights.to(costs)[:, None]).sum()


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
