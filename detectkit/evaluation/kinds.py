"""Kinds of mistakes, and what each costs in average precision, as TIDE tells them apart.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors"; what the paper leaves open is as in the
authors' program, tidecv 1.0.1, with two differences. Detections are judged as everywhere here, as VOC does, and those that
count neither way are no mistakes. A class of which all labels are missed has an average precision of 1 where they are put
right, not 0.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.evaluation.results import Kinds
from detectkit.evaluation.voc import Found, Labelled
from detectkit.ops.boxes import area, iou
from detectkit.ops.metrics import best_overlaps

BACKGROUND_OVERLAP = 0.1  # TIDE's t_b: IoU up to which a box lies on no object
SIDES = 32.0, 96.0  # of the squares that COCO's small and medium objects are at most as large as
RIGHT = -1  # in the place of a kind


class MistakeKind(enum.IntEnum):
    """The places of `Kinds`."""

    WRONG_CLASS = 0
    MISPLACED = 1
    BOTH = 2
    DUPLICATE = 3
    BACKGROUND = 4
    MISSED = 5


class Judged(NamedTuple):
    """The N detections of all classes that count for or against, and the M labels to be found."""

    found: Found
    hit: Tensor  # bool [N]
    own: Tensor  # int64 [N], the label of its class that a detection overlaps most, -1 without any
    own_overlap: Tensor  # float64 [N]
    labels: Labelled
    least_overlap: Tensor  # float64 [C], TIDE's t_f for each class


class Sorted(NamedTuple):
    """What kind of mistake each of N detections is, and which of M labels are missed."""

    kind: Tensor  # int64 [N], a `MistakeKind`, or RIGHT
    label: Tensor  # int64 [N], that a detection lies on, where its kind is wrong_class or misplaced; else -1
    mends: Tensor  # bool [N], whether it becomes right, where its kind is put right
    missed: Tensor  # bool [M]
    claimed: Tensor  # bool [M], whether a detection is right


def sort(judged: Judged) -> Sorted:
    """Tell the mistakes apart. Of the mistakes on a label that nothing has found, the one of the highest score mends it."""
    found, labels, hit = judged.found, judged.labels, judged.hit
    other, other_overlap = _other_classes(judged)
    # A label of another class is overlapped enough as a right detection of that class would.
    least = torch.cat((judged.least_overlap, judged.least_overlap.new_tensor([torch.inf])))
    classes = torch.cat((labels.classes, labels.classes.new_tensor([len(judged.least_overlap)])))
    is_near = judged.own_overlap >= judged.least_overlap[found.classes]
    rules = (
        (MistakeKind.MISPLACED, ~is_near & (judged.own_overlap >= BACKGROUND_OVERLAP)),
        (MistakeKind.WRONG_CLASS, other_overlap >= least[classes[other]]),
        (MistakeKind.DUPLICATE, is_near),
        (MistakeKind.BACKGROUND, torch.maximum(judged.own_overlap, other_overlap) <= BACKGROUND_OVERLAP),
    )
    kind = torch.full_like(found.classes, MistakeKind.BOTH)
    for number, applies in reversed(rules):  # the first that applies has the last word
        kind[applies] = number
    kind[hit] = RIGHT
    label = torch.where(kind == MistakeKind.MISPLACED, judged.own, -1)
    label = torch.where(kind == MistakeKind.WRONG_CLASS, other, label)
    claimed = torch.zeros(len(labels.boxes) + 1, dtype=torch.bool)
    claimed[judged.own[hit]] = True
    claimed[-1] = True  # of detections without a label
    mends = _strongest(found.scores, label, ~claimed[label], len(labels.boxes))
    mendable = torch.zeros_like(claimed)
    mendable[label[mends]] = True
    return Sorted(kind, label, mends, ~(claimed | mendable)[:-1], claimed[:-1])


def _other_classes(judged: Judged) -> tuple[Tensor, Tensor]:
    """For each detection the label of another class that it overlaps most, and the IoU: int64 [N] (-1: none), float64 [N]."""

    def overlap(boxes: Tensor, labels: Tensor) -> Tensor:
        return iou(boxes[:, :4], labels[:, :4]) * (boxes[:, 4] != labels[:, 4])

    columns = (
        torch.cat((part.boxes.double(), part.classes[:, None].double()), dim=1)
        for part in (judged.found, judged.labels)
    )
    boxes, labels = columns
    best, overlaps = best_overlaps(boxes, judged.found.images, labels, judged.labels.images, overlap=overlap)
    return torch.where(overlaps > 0, best, -1), overlaps


def _strongest(scores: Tensor, label: Tensor, applies: Tensor, labels: int) -> Tensor:
    """Which of N detections has the highest score of those that apply on its label (the first of equals): bool [N]."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[applies[order]]
    place = torch.arange(len(order))
    first = place.new_full((labels,), len(order)).scatter_reduce_(0, label[order], place, "amin")
    result = torch.zeros_like(applies)
    result[order] = first[label[order]] == place
    return result


def size_bounds(labels: Labelled) -> tuple[float, float]:
    """The sides of squares that small and medium boxes are at most as large as, in the pixels that the protocol counts.

    COCO's 32 and 96, or where none of the labels is small, medium or large by them, those that part the labels in three.
    """
    sides = area(labels.boxes).double().sqrt()
    if len(sides) and len(torch.unique(_sizes(labels.boxes, SIDES))) < len(SIDES) + 1:
        low, high = torch.quantile(sides, sides.new_tensor([1 / 3, 2 / 3])).tolist()
        return low, high
    return SIDES


def _sizes(boxes: Tensor, bounds: tuple[float, float]) -> Tensor:
    """0 for small, 1 for medium, 2 for large boxes: int64 [N]."""
    sides = area(boxes).double().sqrt()
    return torch.bucketize(sides, sides.new_tensor(bounds))


class Price:
    """What mistakes cost a class: by kind, and by kind and size.

    Args:
        average_precision: of detections with their scores [N], whether they are right, bool [N], and how many labels there
            are to be found.
        bounds: see `size_bounds`. The size of a mistake is that of its label where it has one, else that of its box.
    """

    def __init__(
        self,
        judged: Judged,
        mistakes: Sorted,
        *,
        average_precision: Callable[[Tensor, Tensor, int], float],
        bounds: tuple[float, float],
    ):
        self._judged, self._mistakes = judged, mistakes
        self._average_precision = average_precision
        label_sizes = torch.cat((_sizes(judged.labels.boxes, bounds), torch.tensor([-1])))
        on_label = mistakes.label >= 0
        self._sizes = torch.where(
            on_label, label_sizes[mistakes.label], _sizes(judged.found.boxes, bounds)
        )  # [N]
        self._label_sizes = label_sizes[:-1]  # [M]
        classes = torch.cat((judged.labels.classes, torch.tensor([-1])))
        self._wanted_classes = classes[mistakes.label]  # [N], of the label that a mistake lies on

    def of_class(self, index: int) -> tuple[Kinds, list[Kinds]]:
        """The cost of each kind, of all sizes and of the small, medium and large alone; 0 for a class without a label."""
        labels = self._judged.labels.classes == index
        count = int(labels.sum())
        if not count:
            return Kinds(), [Kinds()] * 3
        found, mistakes = self._judged.found, self._mistakes
        # A class is charged for its own detections, and gains those of other classes on its labels.
        rows = (found.classes == index).nonzero().flatten()
        arrivals = mistakes.mends & (self._wanted_classes == index) & (found.classes != index)
        arrived = arrivals.nonzero().flatten()
        scores, hit, kind = found.scores[rows], self._judged.hit[rows], mistakes.kind[rows]
        before = self._average_precision(scores, hit, count)

        def gain(number: int, chosen: Tensor, added: Tensor, left: int) -> float:
            affected = (kind == number) & chosen
            if not affected.any() and not len(added) and left == count:
                return 0.0
            mended = affected & mistakes.mends[rows] & (kind == MistakeKind.MISPLACED)
            kept = ~affected | mended
            all_scores = torch.cat((scores[kept], found.scores[added]))
            right = torch.cat(((hit | mended)[kept], torch.ones(len(added), dtype=torch.bool)))
            after = self._average_precision(all_scores, right, left) if left else 1.0
            return max(after - before, 0.0)

        def all_kinds(size: int | None) -> Kinds:
            chosen = torch.ones_like(hit) if size is None else self._sizes[rows] == size
            added = arrived if size is None else arrived[self._sizes[arrived] == size]
            missed = labels & mistakes.missed & ((self._label_sizes == size) if size is not None else True)
            return Kinds(
                *(
                    gain(
                        number,
                        chosen,
                        added if number == MistakeKind.WRONG_CLASS else added[:0],
                        count - int(missed.sum()) if number == MistakeKind.MISSED else count,
                    )
                    for number in MistakeKind
                )
            )

        return all_kinds(None), [all_kinds(size) for size in range(3)]
