"""KITTI's official evaluation of detected boxes, one class at one difficulty, for all images at once.

After `computeStatistics` and `getThresholds` of the benchmark's evaluate_object.cpp (2017), step for step: ground truth
chooses its detection, image by image in the order of the labels, once for each of up to 41 score thresholds. N
detections, M ground truths, P pairs of them, T thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.ops.boxes import iou, ragged_ranges, take
from detectkit.ops.metrics import CHUNK

RECALLS = 41  # 0, 1/40 .. 1


class Pairs(NamedTuple):
    """Detections and ground truths of the same image that overlap enough, by rank, ground truth and detection."""

    det: Tensor  # int64 [P]
    gt: Tensor  # int64 [P]
    overlap: Tensor  # float64 [P] IoU
    rank: Tensor  # int64 [P] how many ground truths of its image come before this one


class Counts(NamedTuple):
    """What is found among the detections that reach a score, for each of T scores by falling order."""

    scores: Tensor  # float64 [T]
    true: Tensor  # int64 [T] ground truth that is found
    missed: Tensor  # int64 [T] ground truth that is not
    false: Tensor  # int64 [T] detections that are of nothing
    ground_truth: int  # also counts what an ignored detection took up, which is neither found nor missed

    @property
    def precision(self) -> Tensor:
        """[T], 0 where nothing is detected."""
        return self.true / (self.true + self.false).clamp(min=1).double()

    @property
    def recall(self) -> Tensor:
        """[T], 0 without ground truth."""
        return self.true / (self.true + self.missed).clamp(min=1).double()


def overlapping(
    det_boxes: Tensor, det_group: Tensor, gt_boxes: Tensor, gt_group: Tensor, *, iou_threshold: float
) -> Pairs:
    """The pairs of det_boxes [N, 4] and gt_boxes [M, 4] of one group (int64 [N], [M]) with an IoU above the threshold."""
    det_group, det_order = torch.sort(det_group, stable=True)
    found = det_boxes.double()[det_order]
    first = torch.searchsorted(det_group, gt_group)
    count = torch.searchsorted(det_group, gt_group, right=True) - first
    columns = []
    for chunk in torch.split(torch.arange(len(gt_boxes)), CHUNK):
        owner, det = ragged_ranges(first[chunk], count[chunk])
        gt = chunk[owner]
        overlap = iou(take(found, det), take(gt_boxes.double(), gt))
        kept = overlap > iou_threshold
        columns.append((det_order[det[kept]], gt[kept], overlap[kept]))
    det, gt, overlap = (torch.cat(column) for column in zip(*columns))
    rank = _ranks(gt_group)[gt]
    order = torch.argsort(rank, stable=True)
    return Pairs(det[order], gt[order], overlap[order], rank[order])


def _ranks(group: Tensor) -> Tensor:
    """How many of the same group [M] come before each: [M]."""
    ordered, order = torch.sort(group, stable=True)
    return torch.empty_like(group).scatter_(
        0, order, torch.arange(len(group)) - torch.searchsorted(ordered, ordered)
    )


def count(
    pairs: Pairs, scores: Tensor, *, ignored_det: Tensor, ignored_gt: Tensor, in_region: Tensor
) -> Counts:
    """Count at the scores that KITTI samples recall at, and last at no score at all: every detection counts there.

    Args:
        scores: [N], any numbers.
        ignored_det: bool [N], too small: neither right nor wrong, but may take up a ground truth.
        ignored_gt: bool [M], of another difficulty or a neighbouring class: neither found nor missed.
        in_region: bool [N], is not wrong where it is not right.
    """
    scores = scores.double()
    everything = torch.ones(1, len(scores), dtype=torch.bool)
    taken = _assign(pairs, everything, scores[pairs.det], num_gt=len(ignored_gt))
    right = _right(taken, ignored_det, ignored_gt)[0]
    num_gt = int((~ignored_gt).sum())
    sampled = thresholds(scores[taken[0, right]], num_gt)
    sampled = torch.cat((sampled, sampled.new_tensor([-torch.inf])))
    reached = scores >= sampled[:, None]
    # An ignored detection is taken where there is no other, and then the first given.
    ignored = ignored_det[pairs.det]
    preference = torch.where(ignored, -torch.arange(len(ignored)).double() - 1, pairs.overlap)
    taken = _assign(pairs, reached, preference, num_gt=len(ignored_gt))
    right = _right(taken, ignored_det, ignored_gt)
    assigned = torch.zeros(len(sampled), len(scores) + 1, dtype=torch.bool)
    assigned.scatter_(1, taken.where(taken >= 0, len(scores)), True)  # the last column is not a detection
    false = reached & ~assigned[:, :-1] & ~(ignored_det | in_region)
    missed = (taken < 0) & ~ignored_gt
    return Counts(sampled, right.sum(dim=1), missed.sum(dim=1), false.sum(dim=1), num_gt)


def _assign(pairs: Pairs, available: Tensor, preference: Tensor, *, num_gt: int) -> Tensor:
    """The detection that each of `num_gt` ground truths takes, or -1: int64 [T, num_gt].

    In every image, each in its turn takes the available one (bool [T, N]) of highest preference [P], the first of
    equals, and nobody else may have it. Turns of different images are taken at once.
    """
    free = available.clone()
    taken = torch.full((len(available), num_gt), -1)
    sizes = torch.bincount(pairs.rank).tolist()
    parts = zip(*(torch.split(column, sizes) for column in (pairs.det, pairs.gt, preference)))
    for det, gt, value in parts:
        owners, owner = torch.unique_consecutive(gt, return_inverse=True)
        owner = owner.expand(len(free), -1)
        offered = torch.where(free[:, det], value, -torch.inf)
        best = offered.new_full((len(free), len(owners)), -torch.inf)
        best.scatter_reduce_(1, owner, offered, "amax")
        wanted = (offered == best.gather(1, owner)) & free[:, det]
        places = torch.where(wanted, torch.arange(len(det)), len(det))
        first = torch.full(best.shape, len(det)).scatter_reduce_(1, owner, places, "amin")
        chosen = torch.cat((det, det.new_tensor([-1])))[first]
        taken[:, owners] = chosen
        row, column = (chosen >= 0).nonzero(as_tuple=True)
        free[row, chosen[row, column]] = False
    return taken


def _right(taken: Tensor, ignored_det: Tensor, ignored_gt: Tensor) -> Tensor:
    """Which ground truths of `taken` [T, M] have a detection, where neither is ignored: bool [T, M]."""
    is_valid = torch.cat((~ignored_det, ignored_det.new_zeros(1)))[taken]  # -1 is the last
    return is_valid & ~ignored_gt


def thresholds(scores: Tensor, num_ground_truth: int) -> Tensor:
    """Of the scores [K] of right detections those, falling, at which recall is nearest to 0, 1/40 .. 1: at most 41."""
    ordered = torch.sort(scores, descending=True).values.tolist()
    sampled, recall = [], 0.0
    for number, score in enumerate(ordered, start=1):
        is_last = number == len(ordered)
        # Skipped where the recall after the next one is nearer.
        if is_last or (number + 1) / num_ground_truth - recall >= recall - number / num_ground_truth:
            sampled.append(score)
            recall += 1 / (RECALLS - 1)
    return torch.tensor(sampled, dtype=torch.float64)


def average_precisions(precision: Tensor) -> tuple[float, float]:
    """AP over 11 and over 40 recalls of the precisions [T] at the `thresholds` of scores; 0 for recalls not reached.

    A class with fewer than 41 ground truths has fewer thresholds than there are recalls, and stays below 1.
    """
    best = torch.zeros(RECALLS, dtype=torch.float64)
    best[: len(precision)] = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
    return float(best[::4].mean()), float(best[1:].mean())
