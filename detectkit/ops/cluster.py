"""From the many boxes that cells give for one object to one box: coverage-weighted DBSCAN, NMS, or both.

Everything here treats one class of one image. Source: TLT DetectNet_v2 post-processing; labels as scikit-learn's DBSCAN.
"""

from __future__ import annotations

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
    scores: Tensor  # [N] aggregated coverage (may exceed 1) or, after NMS, the coverage of one cell
    classes: Tensor  # int64 [N]


def cluster(
    boxes: Tensor,
    coverage: Tensor,
    *,
    algorithm: str,
    coverage_threshold: float,
    minimum_height: float,
    dbscan_eps: float,
    dbscan_min_samples: float,
    dbscan_confidence_threshold: float,
    nms_iou_threshold: float,
    nms_confidence_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Detections (boxes [K, 4], scores [K]) by descending score from candidate boxes [N, 4] with coverage [N].

    Candidates need a coverage above coverage_threshold; results are taller than minimum_height (strictly) and score
    at least the algorithm's confidence threshold.
    "dbscan": weighted mean box of each cluster, scored by its summed coverage. dbscan_eps is the largest 1 - IoU of
    neighbours, dbscan_min_samples the coverage that a neighbourhood must sum up to (0 counts as 1).
    "nms": boxes that no better box overlaps by more than nms_iou_threshold, scored by their own coverage.
    "hybrid": "nms" among the members of the clusters that "dbscan" would return.
    """
    candidates = coverage > coverage_threshold
    boxes, coverage = boxes[candidates], coverage[candidates]
    if algorithm in ("dbscan", "hybrid"):
        labels = dbscan(boxes, coverage, eps=dbscan_eps, min_samples=dbscan_min_samples or 1.0)
        merged, score, _ = merge(boxes, coverage, labels)
        kept = _tall(merged, minimum_height) & (score >= dbscan_confidence_threshold)
        if algorithm == "dbscan":
            return _by_score(merged[kept], score[kept])
        # Label -1 (noise) would index from the end: the appended False is what it finds there.
        member = torch.cat((kept, kept.new_zeros(1)))[labels]
        boxes, coverage = boxes[member], coverage[member]
    elif algorithm != "nms":
        raise ValueError(f'algorithm must be "dbscan", "nms" or "hybrid", got {algorithm!r}')
    chosen = nms(boxes, coverage, iou_threshold=nms_iou_threshold)
    boxes, coverage = boxes[chosen], coverage[chosen]
    kept = _tall(boxes, minimum_height) & (coverage >= nms_confidence_threshold)
    return boxes[kept], coverage[kept]


def dbscan(boxes: Tensor, weights: Tensor, *, eps: float, min_samples: float) -> Tensor:
    """Cluster numbers int64 [N] of boxes [N, 4] with weights [N]; -1 is noise.

    Boxes are neighbours if 1 - IoU <= eps. A box is a core if the weights of its neighbours and itself sum up to
    min_samples (> 0); connected cores are a cluster, numbered by first core; a box that only neighbours cores joins
    the lowest-numbered of their clusters. An empty box is not even its own neighbour (eps < 1): noise.
    Weights are summed in 64 bits: exact for 32-bit coverages, so any order of summation gives the same cores.
    """
    values, weight = boxes.detach().cpu().double(), weights.detach().cpu().double()
    order = torch.argsort(values[:, 0], stable=True)
    values, weight = values[order], weight[order]
    a, b = _neighbours(values, eps)
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


def _neighbours(boxes: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """All pairs a < b (each [P], a ascending) with 1 - IoU <= eps among boxes [N, 4] sorted by x1.

    IoU >= 1 - eps needs left sides within eps widths of the box further left: only a run of boxes is compared to it.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(1)
    slack = 1e-9 * boxes.abs().sum(1)  # rounding must not lose a pair
    x, y = boxes[:, 0].contiguous(), boxes[:, 1]
    after = torch.arange(1, len(boxes) + 1)
    if eps < 1:
        a, b = ragged_ranges(after, torch.searchsorted(x, x + eps * width + slack, right=True) - after)
        # The same holds for the upper sides, where either box may be the upper one.
        lowest = y + eps * height + slack
        level = _where((_pick(y, b) <= _pick(lowest, a)) & (_pick(y, a) <= _pick(lowest, b)))
        a, b = _pick(a, level), _pick(b, level)
    else:
        a, b = ragged_ranges(after, len(boxes) - after)
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


def _by_score(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(scores, descending=True, stable=True)
    return boxes[order], scores[order]
