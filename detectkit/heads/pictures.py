"""Pictures of what the grid is to answer, what it answers and what the difference costs (as TLT's visualizer)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detectkit import draw
from detectkit.data.augment import Prepared
from detectkit.heads.head import Maps
from detectkit.heads.weighting import OBJECTIVES
from detectkit.ops.rasterize import Targets

if TYPE_CHECKING:
    from detectkit.heads.grid import GridHead

LONGEST_SIDE = 800  # pixels; event files grow by every picture
SIDES = ("left", "top", "right", "bottom")
BBOX_LIMIT = 4.0  # box distances in units of objective_set.bbox.scale that are shown in full colour


def pictures(
    head: GridHead,
    prepared: Prepared,
    targets: Targets,
    outputs: Maps,
    *,
    count: int,
    thresholds: Mapping[str, float],
) -> dict[str, list[Image.Image]]:
    """Pictures of the first `count` images of a batch by TLT's tags.

    `image/images` are the images. For every class: `_cov_gt` and `_cov_pred`, coverage from 0 (black) to 1 (bright);
    `_bbox_gt` and `_bbox_pred`, the distances to the four sides of the box, positive red and negative blue; `_cov_cost`
    and `_bbox_cost`, the cost of every cell, the brightest cell of a picture being its dearest; `_preds`, the image lit
    where the predicted boxes are, and `_rectangle_bbox_preds`, those boxes, as bright or opaque as their cells' coverage.

    Args:
        outputs: coverage [B, C, H, W] and boxes [B, 4C, H, W] as the detector gives them.
        thresholds: by class, the coverage that cells must exceed for their boxes to be drawn; 0 for the others.
    """
    coverage, bbox = (values[:count].detach().float().cpu() for values in outputs)
    parts = (None if values is None else values[:count].float().cpu() for values in targets)
    targets = Targets(*parts)  # type: ignore[arg-type]  # None for None
    images = [_shown(pixels) for pixels in prepared.images[:count].float().cpu()]
    costs = cell_costs(head, (coverage, bbox), targets, prepared.weights[:count].float().cpu())
    boxes = head.boxes((coverage, bbox))
    distances = bbox.reshape(targets.bbox.shape)
    colors = draw.class_colors(len(head.class_names))
    found = {"image/images": images}
    for index, name in enumerate(head.class_names):
        maps = {
            "cov_cost": [_cost(values, images) for values in costs[:, index, 0].numpy()],
            "cov_gt": [_coverage(values, images) for values in targets.coverage[:, index].numpy()],
            "cov_pred": [_coverage(values, images) for values in coverage[:, index].numpy()],
            "bbox_cost": [_cost(values, images) for values in costs[:, index, 1].numpy()],
            "bbox_gt": [_distances(values, images) for values in targets.bbox[:, index].numpy()],
            "bbox_pred": [_distances(values, images) for values in distances[:, index].numpy()],
        }
        cells = list(_cells(head, boxes[:, index], coverage[:, index], images, thresholds.get(name, 0.0)))
        maps["preds"] = [draw.spotlit(image, *own) for image, own in zip(images, cells, strict=True)]
        maps["rectangle_bbox_preds"] = [
            draw.outlined(image, *own, color=colors[index]) for image, own in zip(images, cells, strict=True)
        ]
        found.update({f"image/{name}_{kind}": shown for kind, shown in maps.items()})
    return found


def cell_costs(head: GridHead, outputs: Maps, targets: Targets, image_weights: Tensor) -> Tensor:
    """What every cell costs, [B, C, 2, H, W] in the order of `OBJECTIVES`; the means over images and cells are the costs.

    A cost is the mean over cells of mask x cost of the cell, so its gradient by the mask tells the costs of the cells.
    """
    batch, classes, height, width = outputs[0].shape
    mask = outputs[0].new_ones(batch, classes, len(OBJECTIVES), height, width)
    mask = (mask if targets.mask is None else targets.mask.detach().clone()).requires_grad_()
    with torch.enable_grad():
        costs = head.costs(outputs, targets._replace(mask=mask), image_weights)
        total = torch.stack(list(costs.values()), dim=1).sum()
        (share,) = torch.autograd.grad(total, mask)
    return (mask * share * (batch * height * width)).detach()


def _shown(pixels: Tensor) -> Image.Image:
    """An image [c, H, W] in [0, 1] as a picture of at most `LONGEST_SIDE`."""
    array = (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    picture = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture


def _cells(
    head: GridHead, boxes: Tensor, coverage: Tensor, images: Sequence[Image.Image], threshold: float
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For every image the boxes [n, 4] in the picture's pixels and coverages [n] of the cells above the threshold."""
    for image, own_boxes, own_coverage in zip(images, boxes, coverage, strict=True):
        is_drawn = own_coverage > threshold
        scale = np.array([image.width / head.width, image.height / head.height] * 2, dtype=np.float32)
        yield own_boxes[is_drawn].numpy() * scale, own_coverage[is_drawn].numpy()


def _coverage(values: NDArray[np.float32], images: Sequence[Image.Image]) -> Image.Image:
    return draw.heat_map(values, size=images[0].size, limits=(0.0, 1.0))


def _cost(values: NDArray[np.float32], images: Sequence[Image.Image]) -> Image.Image:
    return draw.heat_map(values, size=images[0].size, limits=(0.0, float(values.max())))


def _distances(values: NDArray[np.float32], images: Sequence[Image.Image]) -> Image.Image:
    """The four maps [4, H, W] of distances, left and top above right and bottom."""
    size = (images[0].width // 2, images[0].height // 2)
    limits = (-BBOX_LIMIT, BBOX_LIMIT)
    maps = [
        draw.titled(draw.heat_map(side, size=size, limits=limits, diverging=True), title)
        for title, side in zip(SIDES, values, strict=True)
    ]
    return draw.sheet(maps, columns=2, gap=2)
