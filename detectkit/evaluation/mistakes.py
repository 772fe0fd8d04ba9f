"""What is wrong with the detections of each class, and what it costs in average precision.

A mistake costs what the average precision gains if it alone is put right, as TIDE measures it (Bolya et al. 2020, "TIDE: A
General Toolbox for Identifying Object Detection Errors").
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.data.labels import DONTCARE
from detectkit.evaluation.results import ClassMistakes, Coverage
from detectkit.evaluation.voc import Found, Labelled, Scores, judge
from detectkit.ops.metrics import best_overlaps, match, precision_recall
from detectkit.ops.rasterize import ClassGeometry, touched
from detectkit.predict import Predicted

ON_LABEL = (
    0.1  # IoU from which a wrong box belongs to the object beneath it; below it, TIDE calls it background
)
LENIENT = 0.5  # IoU at which a class counts as learnt, however exact its boxes must be


class CoverageMeter:
    """Sums up what a network gives at the centres of objects and where there is nothing, batch by batch.

    Args:
        geometry: of the C classes, whose centres need not be in the middle.
    """

    def __init__(self, geometry: ClassGeometry):
        self._center = torch.stack((geometry.center_x, geometry.center_y), dim=1)  # [C, 2], parts of a box
        classes = len(self._center)
        self._sums = torch.zeros(2, classes, dtype=torch.float64)  # on objects, on the background
        self._counts = torch.zeros(2, classes, dtype=torch.float64)  # of labels, of cells

    def add(self, predicted: Predicted) -> None:
        """One batch, whose first output is the coverage [B, C, h, w] of the classes."""
        prepared, coverage = predicted.prepared, predicted.outputs[0].float()
        batch, classes, height, width = coverage.shape
        stride = prepared.images.shape[-1] // width
        labels = prepared.labels
        low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
        center = low + self._center.to(low)[labels.classes] * (high - low)
        column, row = (center / stride).long().unbind(1)
        at = (labels.image_index, labels.classes, row.clamp(max=height - 1), column.clamp(max=width - 1))
        zeros = coverage.new_zeros(classes)
        on_objects = zeros.index_add(0, labels.classes, coverage[at])
        counts = torch.bincount(labels.classes, minlength=classes)
        parts = (labels, prepared.others)
        boxes, images = (
            torch.cat(column) for column in zip(*((part.boxes, part.image_index) for part in parts))
        )
        covered = touched(
            boxes,
            images,
            torch.ones(len(boxes), 1, dtype=torch.bool, device=boxes.device),
            batch_size=batch,
            stride=stride,
            grid_width=width,
            grid_height=height,
        )
        beside = coverage.masked_fill(covered, 0).sum((0, 2, 3))
        cells = (~covered).sum().expand(classes)
        self._sums += torch.stack((on_objects, beside)).cpu()
        self._counts += torch.stack((counts, cells)).cpu()

    def result(self) -> list[Coverage]:
        """The means of each class."""
        means = [
            [total / count if count else None for total, count in zip(totals, counts, strict=True)]
            for totals, counts in zip(self._sums.tolist(), self._counts.tolist(), strict=True)
        ]
        return [Coverage(*pair) for pair in zip(*means, strict=True)]


class _Judged(NamedTuple):
    """The N detections of a class that count for or against, and its M labels."""

    rows: Tensor  # int64 [N], of all detections
    own: Found
    hit: Tensor  # bool [N]
    labels: Labelled
    best: Tensor  # int64 [N], the label that a detection overlaps most, -1 without any
    overlap: Tensor  # float64 [N], with that label
    average_precision: float
    lenient_average_precision: float  # at an IoU of at most LENIENT


class _Misplaced(NamedTuple):
    """Wrong detections that lie on a label of another class as a right one of that class would. P of them."""

    rows: Tensor  # int64 [P], of all detections
    classes: Tensor  # int64 [P], of the labels


def mistakes(scores: Scores, coverage: CoverageMeter | None = None) -> list[ClassMistakes]:
    """What is wrong with the detections of each class, in the order of the class names; there must be an image.

    Args:
        scores: with the detections and labels of all images.
        coverage: of the same images.
    """
    found, labels = scores.columns()
    judged = [_judged(scores, index, found, labels) for index in range(len(scores.class_names))]
    misplaced = _misplaced(scores, judged, found)
    levels = coverage.result() if coverage else [None] * len(judged)
    return [
        _of_class(scores, index, judged[index], misplaced, found, level) for index, level in enumerate(levels)
    ]


def _judged(scores: Scores, index: int, found: Found, labels: Labelled) -> _Judged:
    least = scores.overlap(index)
    rows = scores.counts(index, found).nonzero().flatten()
    wanted = Labelled(*(column[scores.counts(index, labels)] for column in labels))
    regions = Labelled(*(column[labels.classes == DONTCARE] for column in labels))
    candidates = Found(*(column[rows] for column in found))
    hit, neutral = judge(candidates, wanted, regions, least_overlap=least)
    eased, aside = (
        judge(candidates, wanted, regions, least_overlap=LENIENT) if least > LENIENT else (hit, neutral)
    )
    lenient = _area(scores, candidates.scores[~aside], eased[~aside], len(wanted.boxes))
    rows, hit = rows[~neutral], hit[~neutral]
    own = Found(*(column[rows] for column in found))
    best, overlap = best_overlaps(own.boxes, own.images, wanted.boxes, wanted.images)
    area = _area(scores, own.scores, hit, len(wanted.boxes))
    return _Judged(rows, own, hit, wanted, best, overlap, area, lenient)


def _misplaced(scores: Scores, judged: list[_Judged], found: Found) -> _Misplaced:
    rows = torch.cat([part.rows[~part.hit] for part in judged])
    labels = Labelled(*(torch.cat(column) for column in zip(*(part.labels for part in judged))))
    best, overlap = best_overlaps(found.boxes[rows], found.images[rows], labels.boxes, labels.images)
    on_label = best >= 0
    rows, overlap, classes = rows[on_label], overlap[on_label], labels.classes[best[on_label]]
    least = overlap.new_tensor([scores.overlap(index) for index in range(len(judged))])
    chosen = (classes != found.classes[rows]) & (overlap >= least[classes])
    return _Misplaced(rows[chosen], classes[chosen])


def _of_class(
    scores: Scores,
    index: int,
    judged: _Judged,
    misplaced: _Misplaced,
    found: Found,
    coverage: Coverage | None,
) -> ClassMistakes:
    wanted, own = judged.labels, judged.own
    labels = len(wanted.boxes)
    elsewhere = torch.isin(judged.rows, misplaced.rows)
    claimed = torch.zeros(labels + 1, dtype=torch.bool)  # the last for detections without a label
    claimed[judged.best[judged.hit]] = True
    doubled = ~judged.hit & ~elsewhere & (judged.overlap >= ON_LABEL) & claimed[judged.best]
    without = _area(scores, own.scores[~doubled], judged.hit[~doubled], labels)
    arrived = misplaced.rows[misplaced.classes == index]
    arrivals = Found(*(column[arrived] for column in found))
    corrected = _corrected(scores, index, judged, elsewhere, arrivals)
    confused = _confused(judged, arrivals, scores.overlap(index))
    most = Counter(confused.tolist()).most_common(1)
    return ClassMistakes(
        name=scores.class_names[index],
        labels=labels,
        found=int(judged.hit.sum()),
        detections=len(own.scores),
        average_precision=judged.average_precision if labels else None,
        lenient_average_precision=judged.lenient_average_precision if labels else None,
        doubled=int(doubled.sum()),
        doubled_cost=without - judged.average_precision,
        confused=len(confused),
        confused_with=scores.class_names[most[0][0]] if most else "",
        confused_cost=corrected - judged.average_precision,
        coverage=coverage,
    )


def _corrected(scores: Scores, index: int, judged: _Judged, elsewhere: Tensor, arrivals: Found) -> float:
    """The average precision of a class where each misplaced detection has the class of the label it lies on.

    Where that makes a second detection of a label, the weaker one is left out, so that nothing is put right for the price of
    another mistake.
    """
    own, was_hit = Found(*(column[~elsewhere] for column in judged.own)), judged.hit[~elsewhere]
    together = Found(*(torch.cat(pair) for pair in zip(own, arrivals)))
    hit = match(
        together.boxes,
        together.scores,
        together.images,
        judged.labels.boxes,
        judged.labels.images,
        iou_threshold=scores.overlap(index),
    )
    needed = torch.cat((was_hit, torch.ones(len(arrivals.scores), dtype=torch.bool)))
    kept = hit | ~needed
    return _area(scores, together.scores[kept], hit[kept], len(judged.labels.boxes))


def _confused(judged: _Judged, arrivals: Found, least_overlap: float) -> Tensor:
    """For each label over which another class is stronger, the class of its strongest detection there: int64 [L]."""
    wanted = judged.labels
    place, _ = best_overlaps(arrivals.boxes, arrivals.images, wanted.boxes, wanted.images)
    own = _highest(judged.best, judged.own.scores, judged.overlap >= least_overlap, len(wanted.boxes))
    other = _highest(place, arrivals.scores, place >= 0, len(wanted.boxes))
    strongest = (arrivals.scores == other[place]) & (other > own)[place]
    # Of equally strong ones on a label the last given counts.
    classes = torch.full((len(wanted.boxes),), -1)
    classes[place[strongest]] = arrivals.classes[strongest]
    return classes[classes >= 0]


def _highest(place: Tensor, scores: Tensor, chosen: Tensor, count: int) -> Tensor:
    """The highest score of those chosen of [N] on each of `count` labels; -inf where there is none."""
    none = torch.full((count,), -torch.inf, dtype=scores.dtype)
    return none.scatter_reduce_(0, place[chosen], scores[chosen], "amax")


def _area(scores: Scores, ranked: Tensor, hit: Tensor, labels: int) -> float:
    precision, recall, _ = precision_recall(ranked, hit, labels)
    return scores.area(precision, recall)
