"""Boxes painted on the output grid: what the network is to answer (TLT DetectNet_v2, bbox rasterizer and bbox objective)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.ops.boxes import ragged_ranges

SAMPLES = 4  # a cell is sampled at SAMPLES x SAMPLES points, so coverage comes in sixteenths
MASK_SAMPLES = 5  # the same for the rectangles of `touched`
SMALLEST_RADIUS = 0.1  # cells


class Targets(NamedTuple):
    """Training targets of a batch; all 0 in cells that belong to no box."""

    coverage: Tensor  # [B, C, H, W] part of the cell inside the coverage ellipse, multiples of 1/16
    coverage_norm: Tensor  # [B, C, H, W] coverage / cells of the rectangle around the ellipse (at least 1)
    bbox: Tensor  # [B, C, 4, H, W] distances left, top, right, bottom to the box's sides, in pixels / scale
    mask: Tensor | None = (
        None  # [B, C, 2, H, W] factors on the costs of coverage and of bbox; None: 1 everywhere
    )


class ClassGeometry(NamedTuple):
    """Shape of the coverage ellipse per class, each [C]."""

    center_x: Tensor  # centre as a part of the box's width, 0 left, 1 right
    center_y: Tensor
    radius_x: Tensor  # semi-axis as a part of the distance from the centre to the nearer side
    radius_y: Tensor
    min_radius: Tensor  # smaller ellipses grow to this, aspect kept; in cells


class _Ellipses(NamedTuple):
    """Per box [N, 2] (x, y), in cells."""

    center: Tensor
    radius: Tensor
    deadzone: Tensor


def rasterize(
    boxes: Tensor,
    image_index: Tensor,
    class_index: Tensor,
    *,
    batch_size: int,
    geometry: ClassGeometry,
    deadzone_radius: float,
    stride: int,
    grid_width: int,
    grid_height: int,
    scale: float,
    offset: float,
) -> Targets:
    """Paint boxes [N, 4] (network pixels) of images image_index [N] and classes class_index [N] (both int64).

    Boxes of one image and class are painted by ascending lower edge y2 (ties: in the order given), so nearer objects
    cover farther ones. Where a box's deadzone covers at least as much of a cell as the coverage there, the cell
    becomes the new box's, or background if the new box's coverage misses it. deadzone_radius in [0, 1]: 0 none, 1 up
    to the sides. A cell's anchor for `bbox` is its top-left corner plus offset pixels (column * stride + offset).
    """
    classes = geometry.center_x.shape[0]
    plane = image_index * classes + class_index
    order, rank = _painting_order(boxes[:, 3], plane)
    boxes, plane = boxes[order], plane[order]
    ellipses = _ellipses(boxes / stride, class_index[order], geometry, deadzone_radius)
    box, column, row = _cells(ellipses, grid_width, grid_height)
    corner = torch.stack((column, row), dim=1).to(boxes.dtype) - ellipses.center[box]
    coverage, painter = _paint(
        (plane[box] * grid_height + row) * grid_width + column,
        _inside(corner, ellipses.radius[box]),
        _inside(corner, ellipses.deadzone[box]),
        box,
        pairs_per_rank=torch.bincount(rank[box], minlength=1).tolist(),
        cells=batch_size * classes * grid_height * grid_width,
    )
    painted = torch.nonzero(painter >= 0).flatten()
    box = painter[painted]
    norm = torch.zeros_like(coverage)
    norm[painted] = coverage[painted] / (4 * ellipses.radius[box].prod(1)).clamp(min=1)
    field, plane = painted % (grid_height * grid_width), painted // (grid_height * grid_width)
    anchor = torch.stack((field % grid_width, field // grid_width), dim=1) * stride + offset
    bbox = boxes.new_zeros(batch_size * classes, 4, grid_height * grid_width)
    bbox[plane, :, field] = torch.cat((anchor - boxes[box, :2], boxes[box, 2:] - anchor), dim=1) / scale
    shape = (batch_size, classes, grid_height, grid_width)
    return Targets(coverage.reshape(shape), norm.reshape(shape), bbox.reshape(*shape[:2], 4, *shape[2:]))


def touched(
    boxes: Tensor,
    image_index: Tensor,
    chosen: Tensor,
    *,
    batch_size: int,
    stride: int,
    grid_width: int,
    grid_height: int,
) -> Tensor:
    """The cells that boxes reach into, bool [B, K, H, W], for K choices among boxes [N, 4] (network pixels).

    image_index int64 [N]; chosen bool [N, K]. A cell counts if one of its MASK_SAMPLES x MASK_SAMPLES samples lies in a
    chosen box (on its left or upper side: in it; on its right or lower one: not).
    """
    limit = torch.tensor((grid_width, grid_height) * 2, device=boxes.device) * MASK_SAMPLES
    # Sample k is at (k + 0.5) / MASK_SAMPLES cells: the first in the box and the first behind it, for x and y.
    sample = torch.minimum((boxes / stride * MASK_SAMPLES - 0.5).ceil().long().clamp(min=0), limit)
    first = sample[:, :2] // MASK_SAMPLES
    stop = (sample[:, 2:] + MASK_SAMPLES - 1) // MASK_SAMPLES
    counts = (chosen & (sample[:, 2:] > sample[:, :2]).all(1, keepdim=True)).int()
    # How many boxes cover a cell is the sum over what is above and left of it of +1 and -1 at their corners.
    corners = torch.cat(
        [
            (image_index * (grid_height + 1) + y) * (grid_width + 1) + x
            for x, y in (
                (first[:, 0], first[:, 1]),
                (stop[:, 0], stop[:, 1]),
                (first[:, 0], stop[:, 1]),
                (stop[:, 0], first[:, 1]),
            )
        ]
    )
    plane = counts.new_zeros(batch_size * (grid_height + 1) * (grid_width + 1), chosen.shape[1])
    plane.index_add_(0, corners, torch.cat((counts, counts, -counts, -counts)))
    covers = plane.reshape(batch_size, grid_height + 1, grid_width + 1, -1).cumsum(1).cumsum(2)
    return (covers[:, :-1, :-1] > 0).permute(0, 3, 1, 2)


def _painting_order(bottom: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
    """Order that puts the first box of every plane (image and class) first, then every second one; and those ranks."""
    order = torch.argsort(bottom, stable=True)
    order = order[torch.argsort(plane[order], stable=True)]
    counts = torch.bincount(plane)
    first = (counts.cumsum(0) - counts)[plane[order]]
    rank, by_rank = torch.sort(torch.arange(order.shape[0], device=order.device) - first, stable=True)
    return order[by_rank], rank


def _ellipses(
    boxes: Tensor, class_index: Tensor, geometry: ClassGeometry, deadzone_radius: float
) -> _Ellipses:
    """Ellipses of boxes [N, 4] given in cells."""
    low, high = boxes[:, :2], boxes[:, 2:]
    part, ratio = (
        torch.stack(pair, dim=1).to(boxes)[class_index]
        for pair in ((geometry.center_x, geometry.center_y), (geometry.radius_x, geometry.radius_y))
    )
    center = low + part * (high - low)
    reach = torch.where(part < 0.5, center - low, high - center)
    radius = (ratio * reach).clamp(min=SMALLEST_RADIUS)
    smaller = radius.amin(1, keepdim=True)
    least = geometry.min_radius.to(boxes)[class_index, None]
    radius = torch.where(smaller < least, radius / smaller * least, radius)
    deadzone = torch.maximum((1 - deadzone_radius) * radius + deadzone_radius * reach, radius)
    return _Ellipses(center, radius, deadzone)


def _cells(ellipses: _Ellipses, grid_width: int, grid_height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every (box, column, row) whose cell the box's deadzone may touch, flat [P] each, in the order of the boxes."""
    limit = torch.tensor((grid_width, grid_height), device=ellipses.center.device)
    start = (ellipses.center - ellipses.deadzone).floor().long().clamp(min=0)
    stop = torch.minimum((ellipses.center + ellipses.deadzone).ceil().long(), limit)
    size = (stop - start).clamp(min=0)
    owner, index = ragged_ranges(torch.zeros_like(size[:, 0]), size.prod(1))
    columns = size[owner, 0]
    return owner, start[owner, 0] + index % columns, start[owner, 1] + index // columns


def _inside(corner: Tensor, radius: Tensor) -> Tensor:
    """Part [P] of the cell inside the ellipse; corner [P, 2] is the cell's top-left corner as seen from the centre."""
    steps = (torch.arange(SAMPLES, device=corner.device, dtype=corner.dtype) + 0.5) / SAMPLES
    squares = ((corner[:, :, None] + steps) / radius[:, :, None]).square()  # [P, 2, SAMPLES]
    inside = squares[:, 0, :, None] + squares[:, 1, None, :] < 1
    return inside.sum((1, 2)).to(corner.dtype) / SAMPLES**2


def _paint(
    cell: Tensor, coverage: Tensor, deadzone: Tensor, box: Tensor, *, pairs_per_rank: list[int], cells: int
) -> tuple[Tensor, Tensor]:
    """Coverage [cells] and painting box [cells] (-1 none) after painting the pairs [P] in their order.

    Pairs of one rank never share a cell, so a rank is painted at once. Coverage <= deadzone, hence the one test: a
    cell that the new coverage would win is always one that the new deadzone has cleared.
    """
    canvas = coverage.new_zeros(cells)
    painter = torch.full((cells,), -1, dtype=torch.int64, device=cell.device)
    ranks = zip(*(torch.split(values, pairs_per_rank) for values in (cell, coverage, deadzone, box)))
    for where, new, cleared, owner in ranks:
        old = canvas[where]
        wins = (cleared > 0) & (cleared >= old)
        canvas[where] = torch.where(wins, new, old)
        painter[where] = torch.where(wins, torch.where(new > 0, owner, -1), painter[where])
    return canvas, painter
