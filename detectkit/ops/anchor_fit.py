"""Anchors from the boxes of a data set: how many objects an anchor overlaps well enough, and which shapes would overlap more.

Boxes are in input pixels, as the network sees them without augmentation. A search may find less than
what one has, and takes few anchors where they cover as much: look at `anchor_coverage` before and after. All is a function of the
arguments and of the generator that is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectkit.ops.anchors import EFFICIENTDET_RATIOS, AnchorGrid, default_boxes, octave_anchors
from detectkit.ops.boxes import area

# Sides in pixels of a square of an object's area: below the first it is small, from the second on large, as in COCO.
SIZES = (32.0, 96.0)
PRICE = 0.01  # of one more anchor in each cell, in units of `worth`
ALIKE = 0.001  # shares of covered objects that differ by no more are equal to a search
SAMPLE = 20_000  # objects that a search looks at
STARTS = 10  # of k-means
AT_ONCE = 2**15  # objects whose IoUs are in memory

# What `fit_octaves` tries.
SCALES = (2.0, 2.5, 3.0, 4.0, 5.0)
OCTAVES = (1, 2, 3)
RATIOS = (1, 3, 5)  # how many

# What `fit_default_boxes` tries: quantiles of the objects' sides for the first scale and for a later one, sides of a level's
# square in its cells, and up to which ratio a box is as good as that square.
LOWEST = (0.0, 0.01, 0.05, 0.1)
HIGHEST = (0.9, 0.99)
STRIDES = (1.5, 8.0)
SQUARE = 1.2


class AnchorCoverage(NamedTuple):
    """How many objects have an anchor of an IoU of at least the threshold, by size: small, medium, large."""

    objects: tuple[int, ...]
    covered: tuple[int, ...]

    @property
    def share(self) -> float:
        """Part of all objects that is covered, 0 .. 1; 1 where there are none."""
        return sum(self.covered) / sum(self.objects) if any(self.objects) else 1.0


class OctaveFit(NamedTuple):
    """Arguments of `octave_anchors`."""

    scale: float  # of every level
    octaves: int
    ratios: tuple[tuple[float, float], ...]


class DefaultBoxFit(NamedTuple):
    """Arguments of `default_boxes`."""

    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]


def best_iou(boxes: Tensor, grids: Sequence[AnchorGrid]) -> tuple[Tensor, Tensor]:
    """For boxes [N, 4] the IoU [N] of the anchor that overlaps each most, and its level int64 [N], the first of equals.

    Every position counts, but only one of a shape is looked at: no IoU with a shape is higher than in the cell whose centre
    is nearest. Exact, and for the 49,104 anchors of EfficientDet-D0 as cheap as 45 anchors.
    """
    parts = [
        torch.stack([_best_of_level(some.double(), grid) for grid in grids]).max(0)
        for some in torch.split(boxes, AT_ONCE)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _best_of_level(boxes: Tensor, grid: AnchorGrid) -> Tensor:
    size, center = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    step = size.new_tensor([grid.step_x, grid.step_y])
    last = size.new_tensor([grid.columns - 1, grid.rows - 1])
    cell = torch.minimum((center / step).floor().clamp(min=0), last)
    offset = (center - (cell + 0.5) * step).abs()
    return _offset_iou(size, offset, grid.shapes.to(size)).amax(1)


def anchor_coverage(
    boxes: Tensor, grids: Sequence[AnchorGrid], *, threshold: float = 0.5, sizes: Sequence[float] = SIZES
) -> AnchorCoverage:
    """Which of the boxes [N, 4] have an anchor of an IoU of at least threshold; sizes: pixels where the next size begins."""
    covered = best_iou(boxes, grids)[0] >= threshold
    size = torch.bucketize(area(boxes.double()).sqrt(), boxes.new_tensor(sizes).double(), right=True)
    objects = torch.bincount(size, minlength=len(sizes) + 1)
    return AnchorCoverage(
        tuple(objects.tolist()), tuple(torch.bincount(size[covered], minlength=len(objects)).tolist())
    )


def worth(boxes: Tensor, grids: Sequence[AnchorGrid], *, threshold: float = 0.5) -> float:
    """What anchors are worth to boxes [N, 4], N > 0: higher is better, 1.2 is an anchor just like each, without its price.

    The mean over objects of their best IoU as a part of the threshold, at most 1, and of a fifth of that IoU itself; less
    PRICE for each anchor in a cell.
    """
    iou = best_iou(boxes, grids)[0]
    anchors = sum(len(grid.shapes) for grid in grids) / len(grids)
    return float((iou / threshold).clamp(max=1).mean() + 0.2 * iou.mean()) - PRICE * anchors


def fit_octaves(
    boxes: Tensor, width: int, height: int, sizes: Sequence[tuple[int, int]], *, generator: torch.Generator
) -> OctaveFit:
    """The arguments of `octave_anchors` with which most of the boxes [N, 4] are covered, of equals those `worth` most.

    All combinations of SCALES, OCTAVES and ratios are tried; ratios are the published ones, and `fit_ratios` of RATIOS.
    width, height, sizes: as of `octave_anchors`. Raises ValueError: no box has an area.
    """
    boxes = _sample(boxes, generator)
    ratio_sets: list[tuple[tuple[float, float], ...]] = [EFFICIENTDET_RATIOS]
    ratio_sets += [tuple(_pair(ratio) for ratio in fit_ratios(boxes, count, generator)) for count in RATIOS]
    fits = [
        OctaveFit(scale, octaves, ratios) for ratios in ratio_sets for octaves in OCTAVES for scale in SCALES
    ]
    grids = [
        octave_anchors(width, height, sizes, scales=[scale] * len(sizes), octaves=octaves, ratios=ratios)
        for scale, octaves, ratios in fits
    ]
    return fits[_best(boxes, grids)]


def fit_default_boxes(
    boxes: Tensor, width: int, height: int, sizes: Sequence[tuple[int, int]], *, generator: torch.Generator
) -> DefaultBoxFit:
    """The arguments of `default_boxes` with which most of the boxes [N, 4] are covered, of equals those `worth` most.

    Scales go from each of the LOWEST quantiles of the boxes' sides in equal factors to each of the HIGHEST, which the second
    level has or a later one; within STRIDES of the cells of their level, within the input, and never falling. Ratios are those
    published, 2, or 2 and 3, or up to two that `fit_ratios` finds, lying or standing, for all levels. Scales are searched with the
    ratio 2, then ratios, then scales once more.
    width, height, sizes: as of `default_boxes`. Raises ValueError: no box has an area.
    """
    boxes = _sample(boxes, generator)
    longer = {round(max(ratio, 1 / ratio), 2) for ratio in fit_ratios(boxes, max(RATIOS), generator)}
    ratios = sorted(ratio for ratio in longer if ratio > SQUARE)
    ratio_sets: list[tuple[float, ...]] = [(2.0,), (2.0, 3.0)]
    ratio_sets += [own for count in (0, 1, 2) for own in itertools.combinations(ratios, count)]
    scale_sets = _scale_sets(boxes, width, height, sizes)

    def better(fits: list[DefaultBoxFit]) -> DefaultBoxFit:
        grids = [default_boxes(width, height, sizes, scales=fit.scales, ratios=fit.ratios) for fit in fits]
        return fits[_best(boxes, grids)]

    fit = better([DefaultBoxFit(scales, ((2.0,),) * len(sizes)) for scales in scale_sets])
    fit = better([fit._replace(ratios=(own,) * len(sizes)) for own in ratio_sets])
    return better([fit._replace(scales=scales) for scales in scale_sets])


def _scale_sets(
    boxes: Tensor, width: int, height: int, sizes: Sequence[tuple[int, int]]
) -> list[tuple[float, ...]]:
    """The scales that `fit_default_boxes` tries, each for the levels and one more."""
    side, whole = area(boxes).sqrt().numpy(), math.sqrt(width * height)
    cells = np.array([math.sqrt(width / columns * height / rows) for rows, columns in sizes])
    found = []
    for low, high in itertools.product(np.quantile(side, LOWEST), np.quantile(side, HIGHEST)):
        for last in range(1, max(len(sizes), 2)):
            sides = low * (high / low) ** np.minimum(np.arange(len(sizes)) / last, 1)
            sides = np.minimum(np.clip(sides, STRIDES[0] * cells, STRIDES[1] * cells), whole)
            scales = (np.maximum.accumulate(sides) / whole).tolist()
            found.append((*(round(scale, 3) for scale in scales), 1.0))
    return found


def _best(boxes: Tensor, choices: Sequence[Sequence[AnchorGrid]]) -> int:
    """Which of the choices covers most of boxes [N, 4], and of those that are ALIKE in this is worth most."""
    shares = [anchor_coverage(boxes, grids).share for grids in choices]
    figures = [
        worth(boxes, grids) if share >= max(shares) - ALIKE else -math.inf
        for share, grids in zip(shares, choices)
    ]
    return figures.index(max(figures))


def fit_ratios(boxes: Tensor, count: int, generator: torch.Generator) -> list[float]:
    """Up to `count` ratios, width over height, ascending, that the boxes [N, 4] are near to, all boxes taken as of one area."""
    size = (boxes[:, 2:] - boxes[:, :2]).double()
    ratio = size[:, 0] / size[:, 1]
    means = shape_means(torch.stack((ratio.sqrt(), ratio.rsqrt()), dim=1), count, generator)
    return sorted((means[:, 0] / means[:, 1]).tolist())


def shape_means(shapes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` shapes [k, 2] for shapes [N, 2] (width, height), N > 0: k-means where near is a high `shape_iou`.

    Of STARTS starts from shapes that the generator draws, the one of the highest mean best IoU. Source: YOLO9000.
    """
    distinct = torch.unique(shapes, dim=0)
    found = []
    for _ in range(STARTS):
        drawn = torch.randperm(len(distinct), generator=generator)[:count]
        found.append(improve_means(shapes, distinct[drawn.to(shapes.device)]))
    return max(found, key=lambda means: float(shape_iou(shapes, means).amax(1).mean()))


def improve_means(shapes: Tensor, means: Tensor) -> Tensor:
    """The best means [k, 2] on the way of k-means from those given; shapes [N, 2].

    A mean need not have a higher IoU with its shapes than the one before, so the way ends where nothing is gained.
    """
    overlap = shape_iou(shapes, means)
    while True:
        nearest = overlap.argmax(1)
        counts = torch.bincount(nearest, minlength=len(means)).to(shapes)
        sums = torch.zeros_like(means).index_add_(0, nearest, shapes)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
        moved_overlap = shape_iou(shapes, moved)
        if moved_overlap.amax(1).mean() <= overlap.amax(1).mean():
            return means
        means, overlap = moved, moved_overlap


def shape_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [N, M] of boxes of shapes a [N, 2] and b [M, 2] (width, height) that have the same centre."""
    return _offset_iou(a, torch.zeros_like(a), b)


def _offset_iou(size: Tensor, offset: Tensor, shapes: Tensor) -> Tensor:
    """IoU [N, A] of boxes of size [N, 2] with shapes [A, 2] whose centres are offset [N, 2] away, along each axis."""
    a, b, between = size[:, None], shapes[None], offset[:, None]
    common = torch.minimum(torch.minimum(a, b), (a + b) / 2 - between).clamp(min=0)
    intersection = common.prod(-1)
    union = a.prod(-1) + b.prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def _pair(ratio: float) -> tuple[float, float]:
    """Factors of width and height that leave the area as it is, in the digits that a person would write."""
    return round(math.sqrt(ratio), 3), round(1 / math.sqrt(ratio), 3)


def _sample(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """The boxes [N, 4] that have an area, or SAMPLE of them."""
    boxes = boxes[area(boxes) > 0].cpu().double()
    if not len(boxes):
        raise ValueError("no box has an area")
    return boxes[torch.randperm(len(boxes), generator=generator)[:SAMPLE]]
