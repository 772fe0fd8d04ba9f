"""Matching of detections to ground truth and average precision (VOC 2012 devkit), for all images at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from detectkit.ops.boxes import area, iou, ragged_ranges, take

CHUNK = 2**12  # detections compared at once: bounds the memory and keeps the pairs in the processor's cache


def match(
    det_boxes: Tensor,
    det_scores: Tensor,
    det_group: Tensor,
    gt_boxes: Tensor,
    gt_group: Tensor,
    *,
    iou_threshold: float | Tensor,
) -> Tensor:
    """Which detections [N] are true positives: bool [N], in the order given; one class a call.

    det_boxes [N, 4], det_scores [N] and gt_boxes [M, 4] belong to the images det_group [N] and gt_group [M] (int64).
    By descending score (ties: in the order given) a detection claims the ground truth of its image with the highest
    IoU (ties: the first given). It is true if that IoU reaches iou_threshold (a number or a tensor [N]) and no
    earlier detection has claimed the box; it never falls back to the second best.
    """
    best, best_iou = best_overlaps(det_boxes, det_group, gt_boxes, gt_group)
    claims = (best >= 0) & (best_iou >= iou_threshold)
    order = torch.argsort(det_scores, descending=True, stable=True)
    order = order[claims[order]]
    place = torch.arange(order.shape[0], device=order.device)
    first = place.new_full((gt_boxes.shape[0],), order.shape[0]).scatter_reduce_(
        0, best[order], place, "amin"
    )
    result = torch.zeros_like(claims)
    result[order] = first[best[order]] == place
    return result


def within(
    boxes: Tensor, group: Tensor, regions: Tensor, region_group: Tensor, *, least_share: float
) -> Tensor:
    """Which boxes [N, 4] have more than `least_share` of their own area in one of their group's regions [M, 4]: bool [N]."""
    return best_overlaps(boxes, group, regions, region_group, overlap=_share)[1] > least_share


def best_overlaps(
    boxes: Tensor,
    group: Tensor,
    gt_boxes: Tensor,
    gt_group: Tensor,
    *,
    overlap: Callable[[Tensor, Tensor], Tensor] = iou,
) -> tuple[Tensor, Tensor]:
    """For each box [N, 4] the ground truth of its group with the highest overlap: (index int64 [N], overlap float64 [N]).

    Index -1 and overlap 0 where the group has no ground truth; the first given of equals. `overlap` takes boxes and
    ground truth [P, 4] each and gives [P].
    """
    gt_group, order = torch.sort(gt_group, stable=True)
    gt_sorted = gt_boxes.double()[order]
    first = torch.searchsorted(gt_group, group)
    count = torch.searchsorted(gt_group, group, right=True) - first
    chunks = zip(*(torch.split(values, CHUNK) for values in (boxes.double(), first, count)))
    best, highest = zip(
        *(_best_of_range(box, start, length, gt_sorted, overlap) for box, start, length in chunks)
    )
    place = torch.cat(best)
    # Boxes without a candidate look up an appended -1.
    return torch.cat((order, order.new_tensor([-1])))[place], torch.cat(highest)


def precision_recall(
    scores: Tensor, true_positive: Tensor, num_ground_truth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and score, float64 [N] each, after each detection by descending score (ties: order given).

    scores [N], true_positive bool [N]; recall is 0 if there is no ground truth.
    """
    sorted_scores, order = torch.sort(scores.double(), descending=True, stable=True)
    true = true_positive[order].cumsum(0, dtype=torch.float64)
    precision = true / torch.arange(1, len(true) + 1, dtype=torch.float64, device=true.device)
    return precision, true / max(num_ground_truth, 1), sorted_scores


def average_precision(precision: Tensor, recall: Tensor, mode: Literal["sample", "integrate"]) -> float:
    """Average precision in [0, 1] of the curve [N] by ascending recall; 0 for no detections.

    "sample": mean over the recalls 0, 0.1 .. 1 of the highest precision at that recall or beyond (VOC 2007).
    "integrate": area under the highest precision at each recall or beyond, first and last segment included (VOC 2010 on).
    """
    if mode not in ("sample", "integrate"):
        raise ValueError(f'mode must be "sample" or "integrate", got {mode!r}')
    envelope = torch.cat((precision.flip(0).cummax(0).values.flip(0), precision.new_zeros(1)))
    if mode == "sample":
        # k / 10, not k * 0.1: a recall of 3 / 10 must reach the level 0.3.
        levels = torch.arange(11, dtype=recall.dtype, device=recall.device) / 10
        return float(envelope[torch.searchsorted(recall, levels)].mean())
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((steps * envelope[:-1]).sum())


def best_f1(precision: Tensor, recall: Tensor, scores: Tensor) -> tuple[float, float, float, float]:
    """(precision, recall, F1, score) at the score threshold with the highest F1, of a curve as precision_recall gives.

    The threshold keeps scores >= score, hence every one of equal scores; the highest such score of equal F1. All 0
    without detections.
    """
    if len(scores) == 0:
        return 0.0, 0.0, 0.0, 0.0
    reachable = torch.diff(scores, append=scores.new_tensor([-torch.inf])) != 0
    precision, recall, scores = precision[reachable], recall[reachable], scores[reachable]
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(precision.dtype).tiny)
    best = int(f1.argmax())
    return float(precision[best]), float(recall[best]), float(f1[best]), float(scores[best])


def _share(boxes: Tensor, regions: Tensor) -> Tensor:
    """How much of the area of boxes [P, 4] lies in regions [P, 4]: [P], 0 for an empty box."""
    left_top = torch.maximum(boxes[:, :2], regions[:, :2])
    common = area(torch.cat((left_top, torch.minimum(boxes[:, 2:], regions[:, 2:])), dim=1))
    return common / area(boxes).clamp(min=torch.finfo(boxes.dtype).tiny)


def _best_of_range(
    boxes: Tensor,
    first: Tensor,
    count: Tensor,
    gt_boxes: Tensor,
    overlap: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """For each box [N, 4] the index [N] and overlap [N] of the best of gt_boxes first .. first + count - 1 (M if none)."""
    owner, candidate = ragged_ranges(first, count)
    values = overlap(take(boxes, owner), take(gt_boxes, candidate))
    highest = values.new_zeros(len(boxes)).scatter_reduce_(0, owner, values, "amax")
    equal = values == highest[owner]
    none = torch.full_like(first, len(gt_boxes))
    return none.scatter_reduce_(0, owner[equal], candidate[equal], "amin"), highest
