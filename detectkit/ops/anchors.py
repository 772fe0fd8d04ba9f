"""Boxes that a network starts from: shapes around the centres of the cells of each level.

A generator gives an `AnchorGrid` a level, and `tile` the boxes of all of them, in the order of the channels of published networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Width and height over those of a square, exactly as published weights have them: boxes of 0.98 of the square's area.
EFFICIENTDET_RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


class AnchorGrid(NamedTuple):
    """The anchors of a level: the same shapes around the centre of each cell."""

    rows: int
    columns: int
    step_x: float  # input pixels from the centre of a cell to that of the next; the first one is half a step inside
    step_y: float
    shapes: Tensor  # float64 [A, 2] width, height in input pixels, in the order of the channels


def tile(grids: Sequence[AnchorGrid]) -> Tensor:
    """The anchors of all levels, float32 [N, 4] in input pixels: by level, row, column, shape; neither clipped nor rounded."""
    return torch.cat([_tile_level(grid) for grid in grids]).float()


def pyramid_sizes(width: int, height: int, *, first: int, last: int) -> list[tuple[int, int]]:
    """Rows and columns of the maps of levels first .. last, where each level halves the one before and rounds up.

    Level 0 is the input; level 3 has stride 8. So are maps under SAME padding: 513 pixels give 65 cells at level 3.
    """
    sizes = [(height, width)]
    for _ in range(last):
        rows, columns = sizes[-1]
        sizes.append(((rows + 1) // 2, (columns + 1) // 2))
    return sizes[first:]


def octave_anchors(
    width: int,
    height: int,
    sizes: Sequence[tuple[int, int]],
    *,
    scales: Sequence[float],
    octaves: int,
    ratios: Sequence[tuple[float, float]],
) -> tuple[AnchorGrid, ...]:
    """EfficientDet's anchors, those of RetinaNet too, of an input of width x height pixels.

    Args:
        sizes: rows and columns of the map of each level; a cell is height / rows by width / columns pixels.
        scales: for each level, the side of its smallest square anchor in cells (anchor_scale, 4 in most published nets).
        octaves: a shape comes in the sizes 2 ** (0 .. octaves - 1) / octaves times the scale.
        ratios: what the width and the height of a square are multiplied by, such as EFFICIENTDET_RATIOS.

    Shapes are by octave, then by ratio. Source: AUTOML efficientdet, anchors.py.
    """
    grids = []
    for (rows, columns), scale in zip(sizes, scales, strict=True):
        step_x, step_y = width / columns, height / rows
        shapes = [
            (scale * step_x * 2 ** (octave / octaves) * x, scale * step_y * 2 ** (octave / octaves) * y)
            for octave in range(octaves)
            for x, y in ratios
        ]
        grids.append(AnchorGrid(rows, columns, step_x, step_y, _shapes(shapes)))
    return tuple(grids)


def default_boxes(
    width: int,
    height: int,
    sizes: Sequence[tuple[int, int]],
    *,
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
    steps: Sequence[float] | None = None,
    clip: bool = True,
) -> tuple[AnchorGrid, ...]:
    """SSD's default boxes of an input of width x height pixels.

    Args:
        sizes: rows and columns of the map of each level.
        scales: for each level, the sides of its square as a part of the input's, and one more. A second square has the
            geometric mean of the level's scale and the next one. Where the input is not square, "squares" have its ratio.
        ratios: for each level, those of more boxes, each lying and standing: width r times the height, and the reverse.
        steps: for each level, input pixels from cell to cell; None: the input divided by the map.
        clip: no box is wider or higher than the input. Boxes may leave it all the same.

    Shapes are the two squares, then lying and standing for each ratio. Source: torchvision, DefaultBoxGenerator.
    """
    if len(scales) != len(sizes) + 1:
        raise ValueError(f"{len(sizes)} levels need {len(sizes) + 1} scales, got {len(scales)}")
    limit = 1.0 if clip else math.inf
    grids = []
    for level, ((rows, columns), own) in enumerate(zip(sizes, ratios, strict=True)):
        scale, between = scales[level], math.sqrt(scales[level] * scales[level + 1])
        parts = [(scale, scale), (between, between)]
        for ratio in own:
            longer, shorter = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            parts += [(longer, shorter), (shorter, longer)]
        shapes = [(min(x, limit) * width, min(y, limit) * height) for x, y in parts]
        step_x, step_y = (width / columns, height / rows) if steps is None else (steps[level], steps[level])
        grids.append(AnchorGrid(rows, columns, step_x, step_y, _shapes(shapes)))
    return tuple(grids)


def even_scales(levels: int, *, smallest: float, largest: float) -> list[float]:
    """levels + 1 scales for `default_boxes`: even steps from smallest to largest, then 1. Source: torchvision, the SSD paper."""
    if levels == 1:
        return [smallest, largest]
    return [smallest + (largest - smallest) * level / (levels - 1) for level in range(levels)] + [1.0]


def percent_scales(levels: int, *, first: float, smallest: float, largest: float) -> list[float]:
    """levels + 1 scales, 3 levels or more: `first`, then from smallest up in even steps of whole per cents.

    With first 0.1, smallest 0.2, largest 0.9 those of SSD300 for Pascal VOC, 30 to 315 pixels of 300; with 0.07, 0.15, 0.9
    those for COCO and of torchvision. Source: the prototxt files of SSD for Caffe.
    """
    step = math.floor(round((largest - smallest) * 100, 6) / (levels - 2))
    return [first] + [smallest + step * level / 100 for level in range(levels)]


def _shapes(pairs: Sequence[tuple[float, float]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def _tile_level(grid: AnchorGrid) -> Tensor:
    x = (torch.arange(grid.columns, dtype=torch.float64) + 0.5) * grid.step_x
    y = (torch.arange(grid.rows, dtype=torch.float64) + 0.5) * grid.step_y
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None]
    half = grid.shapes / 2
    return torch.cat((centers - half, centers + half), dim=-1).reshape(-1, 4)
