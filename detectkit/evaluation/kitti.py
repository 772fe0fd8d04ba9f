"""KITTI's official evaluation of boxes: easy, moderate and hard objects, AP over 11 and over 40 recalls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.data.labels import DONTCARE
from detectkit.evaluation.results import ClassResult, Truth
from detectkit.evaluation.voc import Found, Labelled, Scores
from detectkit.ops import kitti
from detectkit.ops.cluster import Detections
from detectkit.ops.metrics import best_f1, within
from detectkit.spec import EvaluationConfig


class Difficulty(NamedTuple):
    """What an object may be at most, and its least height, to be looked for."""

    name: str
    height: float  # pixels of the image file
    occlusion: int
    truncation: float


DIFFICULTIES = (
    Difficulty("easy", 40, 0, 0.15),
    Difficulty("moderate", 25, 1, 0.3),
    Difficulty("hard", 25, 2, 0.5),
)
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # class to the label that may be taken for it
REGION = "dontcare"


class KittiScores(Scores):
    """Counts as the benchmark's evaluate_object.cpp does, in the pixels of the image files.

    Labels that are harder than the difficulty, and those of the neighbouring class, are neither to be found nor wrong
    to detect, as are DontCare regions and what lies in them; detections below the difficulty's height do not count.
    As there, such low detections of any class may be taken for an object. Scores rank, and may be any numbers.
    """

    def __init__(self, class_names: list[str], config: EvaluationConfig):
        super().__init__(class_names, config)
        self._names: list[str] = []
        self._truncation: list[Tensor] = []
        self._occlusion: list[Tensor] = []

    def add(self, detections: Detections, truth: Truth) -> None:
        assert truth.truncation is not None and truth.occlusion is not None
        super().add(detections, truth)
        self._names += truth.names
        self._truncation.append(truth.truncation)
        self._occlusion.append(truth.occlusion)

    def _class_result(self, index: int, found: Found, labels: Labelled) -> ClassResult:
        counted = [self._count(index, difficulty, found, labels) for difficulty in DIFFICULTIES]
        figures: dict[str, float | None] = {}
        for key, over in (("AP40", 1), ("AP11", 0)):
            for difficulty, counts in zip(DIFFICULTIES, counted, strict=True):
                area = kitti.average_precisions(counts.precision[:-1])[over]
                figures[f"{key}_{difficulty.name}"] = area if counts.ground_truth else None
        return _result(self.class_names[index], counted[1], figures)

    def _count(self, index: int, difficulty: Difficulty, found: Found, labels: Labelled) -> kitti.Counts:
        low = found.boxes[:, 3] - found.boxes[:, 1] < difficulty.height
        of_class = found.classes == index
        kept = torch.where(of_class, self.counts(index, found), low)
        boxes, _, images, scores = (column[kept] for column in found)
        overlap = self.overlap(index)
        own = self.counts(index, labels)
        # Whatever else it may be, to this class the neighbour is one.
        wanted = own | (
            self._named(NEIGHBOURS.get(self.class_names[index].lower())) & (labels.classes != index)
        )
        regions = (labels.classes == DONTCARE) | (self._named(REGION) & (labels.classes < 0))
        return kitti.count(
            kitti.overlapping(
                boxes, images, labels.boxes[wanted], labels.images[wanted], iou_threshold=overlap
            ),
            scores,
            ignored_det=low[kept],
            ignored_gt=(~own | self._is_harder(difficulty, labels.boxes))[wanted],
            in_region=within(
                boxes, images, labels.boxes[regions], labels.images[regions], least_share=overlap
            ),
        )

    def _named(self, name: str | None) -> Tensor:
        """Which labels have a name."""
        return torch.tensor([own == name for own in self._names], dtype=torch.bool)

    def _is_harder(self, difficulty: Difficulty, boxes: Tensor) -> Tensor:
        """Which labels, of boxes [N, 4], are lower, more hidden or more truncated than a difficulty allows."""
        low = boxes[:, 3] - boxes[:, 1] < difficulty.height
        # Records hold 32-bit truncations, and the limit becomes 32-bit here, too: 0.3 is not above 0.3.
        truncated = torch.cat(self._truncation).float() > difficulty.truncation
        return low | truncated | (torch.cat(self._occlusion) > difficulty.occlusion)


def _result(name: str, counts: kitti.Counts, figures: dict[str, float | None]) -> ClassResult:
    """What is counted of moderate objects as a class's result; the last count is that of all detections."""
    precision, recall = counts.precision[:-1], counts.recall[:-1]
    best = best_f1(precision, recall, counts.scores[:-1]) if counts.ground_truth else (None,) * 4
    true, false = int(counts.true[-1]), int(counts.false[-1])
    return ClassResult(
        name=name,
        average_precision=figures["AP40_moderate"],
        precision=best[0],
        recall=best[1],
        f1=best[2],
        threshold=best[3],
        ground_truth=counts.ground_truth,
        detections=true + false,
        true_positives=true,
        precision_curve=precision.tolist(),
        recall_curve=recall.tolist(),
        figures=figures,
    )
