"""From the many boxes that cells give for one object to one box: coverage-weighted DBSCAN, NMS, or both.

Everything here treats one class, of one image or of several at once. Source: TLT DetectNet_v2 post-processing; labels as scikit-learn's DBSCAN.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from detectkit.ops.boxes import area, iou, ragged_ranges, take


class Detections(NamedTuple):
    """Detections of one image by descending score."""

    boxes: Tensor  # [N, 4]
    scores: Tensor  # [N] sum (may exceed 1) or mean of coverages or, after NMS, the coverage of one cell
    classes: Tensor  # int64 [N]


def cluster(
    boxes: Tensor,
    coverage: Tensor,
    image_index: Tensor | None = None,
    *,
    algorithm: str,
    coverage_threshold: float,
    minimum_height: float,
    dbscan_eps: float,
    dbscan_min_samples: float,
    dbscan_confidence_threshold: float,
    nms_iou_threshold: float,
    nms_confidence_threshold: float,
    confidence_model: str = "aggregate_cov",
    confidence_threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections (boxes [K, 4], scores [K], images [K]) from candidate boxes [N, 4] with coverage [N].

    image_index, ascending int64 [N], says which image a candidate is in (None: 0); images do not touch each other, and
    one call for many is several times faster than one for each. Results come by image, then by descending score.
    Candidates need a coverage above coverage_threshold, and finite numbers (those of a diverged network are not); results
    are taller than minimum_height (strictly) and score at least the algorithm's confidence threshold and
    confidence_threshold, which is for the results of all three.
    "dbscan": weighted mean box of each cluster, scored by its summed coverage (confidence_model "aggregate_cov") or by
    its mean one ("mean_cov"). dbscan_eps is the largest 1 - IoU of neighbours, dbscan_min_samples the coverage that a
    neighbourhood must sum up to (0 counts as 1).
    "nms": boxes that no better box overlaps by more than nms_iou_threshold, scored by their own coverage.
    "hybrid": "nms" among the members of the clusters that "dbscan" would return with a confidence_threshold of 0.
    """
    if confidence_model not in ("aggregate_cov", "mean_cov"):
        raise ValueError(f'confidence_model must be "aggregate_cov" or "mean_cov", got {confidence_model!r}')
    if image_index is None:
        image_index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    candidates = _where(coverage > coverage_threshold)
    candidates = candidates[(boxes[candidates].sum(1) + coverage[candidates]).isfinite()]
    boxes, coverage, images = boxes[candidates], coverage[candidates], image_index[candidates]
    if algorithm in ("dbscan", "hybrid"):
        labels = dbscan(boxes, coverage, eps=dbscan_eps, min_samples=dbscan_min_samples or 1.0, groups=images)
        merged, total, mean = merge(boxes, coverage, labels)
        score = mean if confidence_model == "mean_cov" else total
        kept = _tall(merged, minimum_height) & (score >= dbscan_confidence_threshold)
        if algorithm == "dbscan":
            kept &= score >= confidence_threshold
            return _by_score(
                merged[kept], score[kept], _images_of_clusters(images, labels, len(merged))[kept]
            )
        # Label -1 (noise) would index from the end: the appended False is what it finds there.
        member = torch.cat((kept, kept.new_zeros(1)))[labels]
        boxes, coverage, images = boxes[member], coverage[member], images[member]
    elif algorithm != "nms":
        raise ValueError(f'algorithm must be "dbscan", "nms" or "hybrid", got {algorithm!r}')
    chosen = _nms_by_image(boxes, coverage, images, iou_threshold=nms_iou_threshold)
    boxes, coverage, images = boxes[chosen], coverage[chosen], images[chosen]
    kept = _tall(boxes, minimum_height) & (coverage >= max(nms_confidence_threshold, confidence_threshold))
    return boxes[kept], coverage[kept], images[kept]


def dbscan(
    boxes: Tensor, weights: Tensor, *, eps: float, min_samples: float, groups: Tensor | None = None
) -> Tensor:
    """Cluster numbers int64 [N] of boxes [N, 4] with weights [N]; -1 is noise.

    Boxes are neighbours if 1 - IoU <= eps. A box is a core if the weights of its neighbours and itself sum up to
    min_samples (> 0); connected cores are a cluster, numbered by first core; a box that only neighbours cores joins
    the lowest-numbered of their clusters. An empty box is not even its own neighbour (eps < 1): noise.
    Boxes of different groups (ascending int64 [N], 0 and up) are never neighbours. None: all are of one group.
    Weights are summed in 64 bits: exact for 32-bit coverages, so any order of summation gives the same cores.
    """
    values, weight = boxes.detach().cpu().double(), weights.detach().cpu().double()
    place = values[:, 0]
    if groups is not None and len(groups) and groups[-1]:
        place = place + groups.cpu() * (3 * _reach(values))  # no box reaches one of another group
    order = torch.argsort(place, stable=True)
    values, weight = values[order], weight[order]
    a, b = _neighbours(values, place[order], eps)
    itself = (area(values) > 0) | (eps >= 1)
    mass = (weight * itself).index_add_(0, a, _pick(weight, b)).index_add_(0, b, _pick(weight, a))
    core = mass >= min_samples
    core_a, core_b = _pick(core, a), _pick(core, b)
    linked, mixed = _where(core_a & core_b), _where(core_a != core_b)
    labels = _components(_pick(a, linked), _pick(b, linked), order, core)
    inner = torch.where(core_a[mixed], a[mixed], b[mixed])
    labels.scatter_reduce_(0, a[mixed] + b[mixed] - inner, labels[inner], "amin")
    result = torch.empty_like(labels)
    result[order] = torch.where(labels < len(labels), labels, -1)
    return result.to(boxes.device)


def merge(boxes: Tensor, weights: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per cluster 0..K-1: weighted mean box [K, 4], summed weight [K], mean weight [K]; weights are positive."""
    member = labels >= 0
    labels, weight = labels[member], weights[member].double()
    clusters = int(labels.max()) + 1 if labels.numel() else 0
    total = weight.new_zeros(clusters).index_add_(0, labels, weight)
    weighted = boxes[member].double() * weight[:, None]
    mean_box = weight.new_zeros(clusters, 4).index_add_(0, labels, weighted) / total[:, None]
    mean = total / torch.bincount(labels, minlength=clusters)
    return mean_box.to(boxes.dtype), total.to(weights.dtype), mean.to(weights.dtype)


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float) -> Tensor:
    """Indices, by descending score, of boxes that overlap no better kept box with IoU > iou_threshold."""
    kept: Tensor = torchvision.ops.nms(boxes, scores, iou_threshold)
    return kept


def _reach(boxes: Tensor) -> Tensor:
    """More than the distance of any two left sides of boxes [N, 4], and than any width; N > 0."""
    return 2 * boxes.abs().amax() + 1


def _neighbours(boxes: Tensor, place: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """All pairs a < b (each [P], a ascending) with 1 - IoU <= eps among boxes [N, 4] of a group.

    Boxes are sorted by place [N]: their left sides, those of other groups moved on by three times `_reach`.
    IoU >= 1 - eps needs left sides within eps widths of the box further left: only a run of boxes is compared to it.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(1)
    slack = 1e-9 * boxes.abs().sum(1) + 1e-15 * place.abs()  # rounding must not lose a pair
    x, y = place.contiguous(), boxes[:, 1]
    after = torch.arange(1, len(boxes) + 1)
    if eps < 1:
        a, b = ragged_ranges(after, torch.searchsorted(x, x + eps * width + slack, right=True) - after)
        # The same holds for the upper sides, where either box may be the upper one.
        lowest = y + eps * height + slack
        level = _where((_pick(y, b) <= _pick(lowest, a)) & (_pick(y, a) <= _pick(lowest, b)))
        a, b = _pick(a, level), _pick(b, level)
    elif len(boxes):
        a, b = ragged_ranges(after, torch.searchsorted(x, x + _reach(boxes), right=True) - after)
    else:
        a, b = after, after
    near = _where(1 - iou(take(boxes, a), take(boxes, b)) <= eps)
    return _pick(a, near), _pick(b, near)


def _components(a: Tensor, b: Tensor, order: Tensor, core: Tensor) -> Tensor:
    """Numbers [N] of the connected components of cores with edges a-b (a ascending), by smallest `order`; others N."""
    count = len(core)
    pointers = np.concatenate(([0], torch.bincount(a, minlength=count).cumsum(0).numpy()))
    graph = csr_array((np.ones(len(a)), b.numpy(), pointers), shape=(count, count))
    component = torch.from_numpy(connected_components(graph, directed=False)[1]).long()[core]
    smallest = torch.full((count,), count).scatter_reduce_(0, component, order[core], "amin")
    labels = torch.full((count,), count)
    labels[core] = torch.unique(smallest[component], return_inverse=True)[1]
    return labels


def _where(flags: Tensor) -> Tensor:
    return torch.nonzero(flags).flatten()


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index)  # several times faster than values[index]


def _tall(boxes: Tensor, minimum_height: float) -> Tensor:
    return boxes[:, 3] - boxes[:, 1] > minimum_height


def _nms_by_image(boxes: Tensor, scores: Tensor, images: Tensor, *, iou_threshold: float) -> Tensor:
    """Indices of what `nms` keeps of each image, by image; images [N] ascending."""
    counts = torch.bincount(images).tolist()
    starts = itertools.accumulate(counts, initial=0)
    kept = [
        start + nms(own, own_scores, iou_threshold=iou_threshold)
        for start, own, own_scores in zip(starts, torch.split(boxes, counts), torch.split(scores, counts))
    ]
    return torch.cat(kept) if kept else torch.zeros_like(images)


def _images_of_clusters(images: Tensor, labels: Tensor, clusters: int) -> Tensor:
    member = labels >= 0
    return images.new_zeros(clusters).index_copy_(0, labels[member], images[member])


def _by_score(boxes: Tensor, scores: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = by_image_and_score(images, scores)
    return boxes[order], scores[order], images[order]


def by_image_and_score(images: Tensor, scores: Tensor) -> Tensor:
    """The order [N] by image, then by descending score, ties as they stand."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[torch.argsort(images[order], stable=True)]
