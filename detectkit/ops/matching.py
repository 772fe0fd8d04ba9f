"""Which anchor answers for which object of a batch, and what it shall answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.ops.boxes import pairwise_iou
from detectkit.ops.coder import UNWEIGHTED, encode_boxes

BACKGROUND = -1
IGNORED = -2
# IoUs at once, however many objects there are: on a processor as many as stay in its cache, which is several times as fast, and
# on other devices 64 MiB for each of the tensors on the way.
IN_CACHE = 2**17
IN_MEMORY = 2**24


class Matches(NamedTuple):
    """What each of A anchors in B images answers for; N objects in all."""

    object_index: Tensor  # int64 [B, A], row of an object, or BACKGROUND, or IGNORED
    iou: Tensor  # float32 [B, A], IoU with that object; with the nearest one where there is none, 0 in an empty image
    matched: Tensor  # bool [N], whether any anchor answers for an object


class AnchorTargets(NamedTuple):
    """What the maps shall say; P anchors answer for an object."""

    classes: Tensor  # int64 [B, A], class of the object, or BACKGROUND, or IGNORED
    positives: Tensor  # int64 [P], ascending: which these are, image * A + anchor
    codes: Tensor  # float32 [P, 4], as of `encode_boxes`


def match(
    boxes: Tensor,
    image_index: Tensor,
    anchors: Tensor,
    *,
    batch_size: int,
    positive_iou: float = 0.5,
    negative_iou: float = 0.5,
    clash: str = "first",
) -> Matches:
    """The object for each of anchors [A, 4] in each image, of boxes [N, 4] in images image_index [N], 0 <= i < batch_size.

    An anchor answers for the object that it overlaps most, the first of equals, if their IoU is at least positive_iou
    (above 0). It is background below negative_iou and ignored between the two. Then each object takes the anchor that
    overlaps it most, the first of equals, whatever it answered for before: published matchers do so as well, though one of
    them may lose its only anchor by it.

    Args:
        clash: which of several objects gets an anchor that is the best of all of them: the "first" in `boxes`, as in
            EfficientDet, or the "last", as in SSD. The others get no anchor by that rule.

    An object that no anchor overlaps takes none; published matchers give it the first anchor of all, at IoU 0. Objects
    that are left without an anchor are told by `matched`. Source: the argmax matcher of TensorFlow's object detection API.
    """
    if clash not in ("first", "last"):
        raise ValueError(f'clash must be "first" or "last", got {clash!r}')
    object_index = image_index.new_full((batch_size, len(anchors)), BACKGROUND)
    iou = anchors.new_zeros(batch_size, len(anchors))
    best_iou, best_anchor = boxes.new_zeros(len(boxes)), torch.zeros_like(image_index)
    counts = torch.bincount(image_index, minlength=batch_size).tolist()
    for image, rows in enumerate(torch.split(torch.argsort(image_index, stable=True), counts)):
        if len(rows):
            nearest, iou[image], best_iou[rows], best_anchor[rows] = _nearest(boxes[rows], anchors)
            object_index[image] = rows[nearest]
    object_index = torch.where(iou < positive_iou, IGNORED, object_index)
    object_index = torch.where(iou < negative_iou, BACKGROUND, object_index)
    _take_best(object_index, iou, image_index, best_iou, best_anchor, clash=clash)
    matched = torch.zeros_like(image_index, dtype=torch.bool)
    matched[object_index[object_index >= 0]] = True
    return Matches(object_index, iou, matched)


def _nearest(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which of boxes [M, 4], M > 0, overlaps each of anchors [A, 4] most, its IoU, and for each box the highest IoU and its anchor.

    Shapes are [A], [A], [M], [M]; the first of equals counts.
    """
    at_once = IN_CACHE if boxes.device.type == "cpu" else IN_MEMORY
    best_iou, best_anchor = boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes), dtype=torch.int64)
    for_anchors = []
    start = 0
    for some in torch.split(anchors, max(at_once // len(boxes), 1)):
        overlaps = pairwise_iou(boxes, some.T.contiguous().T)  # `iou` reads column by column
        for_anchors.append(overlaps.max(0))
        highest, which = overlaps.max(1)
        better = highest > best_iou
        best_iou = torch.where(better, highest, best_iou)
        best_anchor = torch.where(better, which + start, best_anchor)
        start += len(some)
    iou, nearest = (torch.cat(parts) for parts in zip(*for_anchors))
    return nearest, iou, best_iou, best_anchor


def _take_best(
    object_index: Tensor,
    iou: Tensor,
    image_index: Tensor,
    best_iou: Tensor,
    best_anchor: Tensor,
    *,
    clash: str,
) -> None:
    """Give each object that has an IoU above 0 with an anchor its best one, in object_index and iou [B, A] themselves."""
    rows = torch.nonzero(best_iou > 0).flatten()
    places = image_index[rows] * object_index.shape[1] + best_anchor[rows]
    places, owner = torch.unique(places, return_inverse=True)
    # A reduction, and no assignment: which of several writes to a place stays is not said on a GPU.
    winners = torch.zeros_like(places).scatter_reduce_(
        0, owner, rows, "amin" if clash == "first" else "amax", include_self=False
    )
    object_index.view(-1)[places] = winners
    iou.view(-1)[places] = best_iou[winners]


def anchor_targets(
    matches: Matches,
    boxes: Tensor,
    classes: Tensor,
    anchors: Tensor,
    *,
    weights: tuple[float, float, float, float] = UNWEIGHTED,
) -> AnchorTargets:
    """Targets of a batch from what `match` gave of boxes [N, 4] and anchors [A, 4]; classes int64 [N], 0 and up.

    weights: those of `encode_boxes`.
    """
    index = matches.object_index
    positives = torch.nonzero(index.flatten() >= 0).flatten()
    objects = index.flatten()[positives]
    wanted = index.clamp(max=BACKGROUND)
    wanted.view(-1)[positives] = classes[objects]
    codes = encode_boxes(boxes[objects], anchors[positives % len(anchors)], weights=weights)
    return AnchorTargets(wanted, positives, codes)
