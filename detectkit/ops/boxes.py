"""Arithmetic on axis-aligned boxes: float [N, 4], x1 y1 x2 y2, continuous coordinates (a box x1..x2 is x2 - x1 wide)."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Areas [N]; 0 for a box whose sides are crossed or empty."""
    left, top, right, bottom = boxes.unbind(-1)
    return (right - left).clamp(min=0) * (bottom - top).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other, [..., 4] and [..., 4] -> [...], in [0, 1].

    No pixel is added to widths and no constant to the union; two empty boxes have IoU 0.
    """
    left_a, top_a, right_a, bottom_a = a.unbind(-1)
    left_b, top_b, right_b, bottom_b = b.unbind(-1)
    width = (torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)).clamp(min=0)
    height = (torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)).clamp(min=0)
    intersection = width * height
    union = area(a) + area(b) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)  # 0 / tiny where the union is empty


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes that broadcast against each other, [..., 4] and [..., 4] -> [...], in [-1, 1].

    The IoU less the part of the smallest box around both that neither covers (Rezatofighi et al. 2019); it still tells
    far boxes from near ones where the IoU is 0. A crossed box counts as one without area whose sides lie where they lie.
    Two points at the same place have 0. Its gradient is finite everywhere.
    """
    low = torch.minimum(torch.minimum(a[..., :2], a[..., 2:]), torch.minimum(b[..., :2], b[..., 2:]))
    high = torch.maximum(torch.maximum(a[..., :2], a[..., 2:]), torch.maximum(b[..., :2], b[..., 2:]))
    width, height = (high - low).unbind(-1)
    around = width * height
    overlap = iou(a, b)
    union = (area(a) + area(b)) / (1 + overlap)  # as overlap = intersection / union
    return overlap - (around - union) / around.clamp(min=torch.finfo(around.dtype).tiny)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """`iou` of every box of a [N, 4] with every box of b [M, 4]: [N, M]."""
    return iou(a[:, None], b[None])


def take(boxes: Tensor, index: Tensor) -> Tensor:
    """boxes[index], laid out by columns: for many small gathers that `iou` reads, about five times faster."""
    return torch.stack([column.index_select(0, index) for column in boxes.unbind(1)]).T


def clip(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Boxes [..., 4] cut to the image 0..width, 0..height; scalars, or tensors that broadcast against the boxes' [...]."""
    right = torch.as_tensor(width, dtype=boxes.dtype, device=boxes.device)
    bottom = torch.as_tensor(height, dtype=boxes.dtype, device=boxes.device)
    x, y = boxes[..., 0::2].clamp(min=0), boxes[..., 1::2].clamp(min=0)
    x, y = torch.minimum(x, right[..., None]), torch.minimum(y, bottom[..., None])
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def transform(boxes: Tensor, matrices: Tensor) -> Tensor:
    """Smallest axis-aligned boxes [N, 4] around the four corners of boxes [N, 4] moved by affine matrices [N, 3, 3].

    Points are columns: (x, y, 1) -> M @ (x, y, 1).
    """
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = corners @ matrices[:, :2, :2].transpose(1, 2) + matrices[:, None, :2, 2]
    return torch.cat((moved.amin(1), moved.amax(1)), dim=1)


def ragged_ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The ranges starts[n] .. starts[n] + counts[n] - 1 laid end to end, int64 [N] and [N] -> (owner [P], index [P]).

    owner says which range an entry comes from: starts (5, 0), counts (2, 1) give owner (0, 0, 1), index (5, 6, 0).
    """
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    index = torch.arange(owner.shape[0], device=counts.device) + (starts - first).index_select(0, owner)
    return owner, index
