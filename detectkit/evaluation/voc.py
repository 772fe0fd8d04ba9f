"""Average precision at one IoU a class, as TLT and Pascal VOC count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.data.labels import DONTCARE
from detectkit.evaluation.results import ClassResult, Truth
from detectkit.ops.cluster import Detections
from detectkit.ops.metrics import average_precision, best_f1, match, precision_recall, within
from detectkit.spec import EvaluationConfig


class Found(NamedTuple):
    """Detections of many images, N in all."""

    boxes: Tensor  # [N, 4]
    classes: Tensor  # int64 [N]
    images: Tensor  # int64 [N], a number for each image
    scores: Tensor  # [N]


class Labelled(NamedTuple):
    """Labels of many images, N in all."""

    boxes: Tensor  # [N, 4]
    classes: Tensor  # int64 [N]
    images: Tensor  # int64 [N]


def judge(
    found: Found, truths: Labelled, regions: Labelled, *, least_overlap: float
) -> tuple[Tensor, Tensor]:
    """Which of N detections of one class are right, and which count neither way: bool [N] each, never both.

    Right are those that `match` finds so. Of the others those count neither way that have more than `least_overlap` of
    their area in a region.

    Args:
        truths: of this class.
        regions: of DontCare.
    """
    hit = match(
        found.boxes, found.scores, found.images, truths.boxes, truths.images, iou_threshold=least_overlap
    )
    if not len(regions.boxes):
        return hit, torch.zeros_like(hit)
    inside = within(found.boxes, found.images, regions.boxes, regions.images, least_share=least_overlap)
    return hit, inside & ~hit


class Scores:
    """Collects detections and labels image by image; `results` and `result` measure them.

    Both count only if their size passes the class's `evaluation_box_config`. An image counts once. A detection that is
    not right and lies in a DontCare region, with more of its area than the class's overlap, does not count.
    """

    def __init__(self, class_names: list[str], config: EvaluationConfig):
        self.class_names, self.config = class_names, config
        self.images = 0
        self._found: list[tuple[Tensor, ...]] = []
        self._labels: list[tuple[Tensor, ...]] = []

    def add(self, detections: Detections, truth: Truth) -> None:
        """One image: its detections, and its labels in the same pixels; on the CPU."""
        image = torch.full((len(detections.boxes),), self.images)
        self._found.append((detections.boxes, detections.classes, image, detections.scores))
        self._labels.append((truth.boxes, truth.classes, torch.full((len(truth.boxes),), self.images)))
        self.images += 1

    def results(self) -> list[ClassResult]:
        """One result a class, in the order of the class names; there must be an image."""
        found, labels = self.columns()
        return [self._class_result(index, found, labels) for index in range(len(self.class_names))]

    def result(self, index: int) -> ClassResult:
        """The result of one class alone; there must be an image."""
        return self._class_result(index, *self.columns())

    def columns(self) -> tuple[Found, Labelled]:
        """The detections and the labels of all images."""
        return (
            Found(*(torch.cat(column) for column in zip(*self._found))),
            Labelled(*(torch.cat(column) for column in zip(*self._labels))),
        )

    def _class_result(self, index: int, found: Found, labels: Labelled) -> ClassResult:
        own = Found(*(column[self.counts(index, found)] for column in found))
        truths = Labelled(*(column[self.counts(index, labels)] for column in labels))
        regions = Labelled(*(column[labels.classes == DONTCARE] for column in labels))
        hit, neutral = judge(own, truths, regions, least_overlap=self.overlap(index))
        scores, hit = own.scores[~neutral], hit[~neutral]
        precision, recall, ranked = precision_recall(scores, hit, len(truths.boxes))
        best = best_f1(precision, recall, ranked) if len(truths.boxes) else (None,) * 4
        return ClassResult(
            name=self.class_names[index],
            average_precision=self.area(precision, recall) if len(truths.boxes) else None,
            precision=best[0],
            recall=best[1],
            f1=best[2],
            threshold=best[3],
            ground_truth=len(truths.boxes),
            detections=len(scores),
            true_positives=int(hit.sum()),
            precision_curve=precision.tolist(),
            recall_curve=recall.tolist(),
            figures={},
        )

    def area(self, precision: Tensor, recall: Tensor) -> float:
        """The average precision, 0 to 1, of a curve as `precision_recall` gives it."""
        sampled = self.config.average_precision_mode == EvaluationConfig.SAMPLE
        return average_precision(precision, recall, "sample" if sampled else "integrate")

    def counted(self, columns: Found | Labelled) -> Tensor:
        """Which rows [N] are of a target class and of a size that counts for it."""
        parts = (self.counts(index, columns) for index in range(len(self.class_names)))
        return torch.stack(list(parts)).any(0)

    def overlap(self, index: int) -> float:
        """The IoU that makes a detection of a class right."""
        overlaps, name = self.config.minimum_detection_ground_truth_overlap, self.class_names[index]
        # The spec's 32-bit 0.6 is a little above 0.6, which an overlap of exactly 0.6 would not reach.
        return round(overlaps[name], 6) if name in overlaps else 0.5

    def counts(self, index: int, columns: Found | Labelled) -> Tensor:
        """Which rows [N] are of a class and of a size that counts for it."""
        own = columns.classes == index
        limits = self.config.evaluation_box_config
        if self.class_names[index] not in limits:
            return own
        limit = limits[self.class_names[index]]
        sizes = columns.boxes[:, 2:] - columns.boxes[:, :2]
        width, height = sizes.unbind(1)
        own &= (width >= limit.minimum_width) & (height >= limit.minimum_height)
        return own & (width <= limit.maximum_width) & (height <= limit.maximum_height)
