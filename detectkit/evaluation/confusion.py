"""Which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detectkit.data.labels import DONTCARE
from detectkit.evaluation.results import ClassResult, Confusion
from detectkit.evaluation.voc import Found, Labelled, Scores, judge
from detectkit.ops.metrics import best_overlaps, match


def confusion(scores: Scores, results: Sequence[ClassResult]) -> Confusion:
    """How often labels of each class are found as which.

    Args:
        scores: with the detections and labels of all images.
        results: of its classes; detections below their `threshold` are left out, and those of a class without a label. A
            class that nothing right is found of has the lowest threshold of the others.
    """
    found, labels = scores.columns()
    regions = Labelled(*(column[labels.classes == DONTCARE] for column in labels))
    classes = len(scores.class_names)
    counts = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    free_found, free_labels = [], []
    lowest = min((item.threshold for item in results if item.f1 and item.threshold is not None), default=0.0)
    for index, result in enumerate(results):
        chosen = scores.counts(index, found)
        threshold = math.inf if result.threshold is None else result.threshold if result.f1 else lowest
        chosen &= found.scores >= threshold
        own = Found(*(column[chosen] for column in found))
        wanted = Labelled(*(column[scores.counts(index, labels)] for column in labels))
        hit, neutral = judge(own, wanted, regions, least_overlap=scores.overlap(index))
        claimed = torch.zeros(len(wanted.boxes), dtype=torch.bool)
        claimed[best_overlaps(own.boxes[hit], own.images[hit], wanted.boxes, wanted.images)[0]] = True
        counts[index, index] = hit.sum()
        free_found.append(Found(*(column[~hit & ~neutral] for column in own)))
        free_labels.append(Labelled(*(column[~claimed] for column in wanted)))
    rest = Found(*(torch.cat(column) for column in zip(*free_found)))
    left = Labelled(*(torch.cat(column) for column in zip(*free_labels)))
    least = torch.tensor([scores.overlap(index) for index in range(classes)], dtype=torch.float64)
    label = _taken(rest, left, least)
    others = torch.cat((left.classes, torch.tensor([classes])))
    counts.index_put_((others[label], rest.classes), torch.ones_like(label), accumulate=True)
    missed = torch.ones(len(left.boxes), dtype=torch.bool)
    missed[label[label >= 0]] = False
    counts[:, classes] += torch.bincount(left.classes[missed], minlength=classes + 1)
    return Confusion(tuple(scores.class_names), counts.tolist())


def _taken(found: Found, labels: Labelled, least_overlap: Tensor) -> Tensor:
    """The label that each of N detections takes, by falling score, whatever its class: int64 [N], -1 for none."""
    best, _ = best_overlaps(found.boxes, found.images, labels.boxes, labels.images)
    # What overlaps no label of its image passes no threshold, whichever is looked up for it.
    thresholds = torch.cat((least_overlap[labels.classes], least_overlap.new_ones(1)))[best]
    hit = match(
        found.boxes, found.scores, found.images, labels.boxes, labels.images, iou_threshold=thresholds
    )
    return torch.where(hit, best, -1)
