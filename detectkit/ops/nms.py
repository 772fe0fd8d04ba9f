"""One box for each object from the boxes of many anchors: suppression among those of one class and image, hard or soft.

Here boxes are those of a batch, flat, as in `heads.head.Candidates`; `ops.decode.highest` cuts them down before. Of equal
scores the one that comes first is the better one, on every device.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from detectkit.ops.boxes import iou
from detectkit.ops.cluster import by_image_and_score


def classwise_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    images: Tensor,
    *,
    iou_threshold: float,
    at_most: int | None = None,
) -> Tensor:
    """Indices int64 [K] of boxes [N, 4] that overlap no better kept one of their class and image with IoU > iou_threshold.

    scores [N], classes and images int64 [N]. Results come by image, then by descending score, and are no more than `at_most` an
    image (None: all). IoUs are of the boxes as they are: none are moved apart by class, which rounds their sides.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(classes[order], stable=True)]
    order = order[torch.argsort(images[order], stable=True)]  # by image, then class, then score
    groups = torch.stack((images[order], classes[order]), dim=1)
    counts = torch.unique_consecutive(groups, dim=0, return_counts=True)[1].tolist()
    kept = [
        own[torchvision.ops.nms(boxes[own], scores[own], iou_threshold)] for own in torch.split(order, counts)
    ]
    return _best(torch.cat(kept) if kept else order, scores, images, at_most)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    images: Tensor,
    *,
    method: str,
    score_threshold: float,
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    at_most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices int64 [K] of boxes [N, 4] and their new scores [K]: a box that overlaps a better one loses score, and may stay.

    The best box is taken, and the scores of the others of its class and image are multiplied: "gaussian", by
    exp(-IoU ** 2 / sigma); "linear", by 1 - IoU where IoU > iou_threshold. Then the best of what is left, until none has a
    score above score_threshold, or `at_most` (None: any number) of the image are taken. Boxes, scores, classes and images as for
    `classwise_nms`, and so is the order of the results, by their new scores.
    Source: Bodla et al. 2017; AUTOML efficientdet (tf2/postprocess.py), whose nms_np.py adds a pixel to the sides, which this does not.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f'method must be "gaussian" or "linear", got {method!r}')
    kept = [torch.zeros_like(images[:0])]
    new_scores = [scores[:0]]
    for image in torch.unique(images).tolist():
        left = torch.nonzero((images == image) & (scores > score_threshold)).flatten()
        own_boxes, own_scores, own_classes = boxes[left], scores[left], classes[left]
        taken = 0
        while len(left) and (at_most is None or taken < at_most):
            best = int(own_scores.argmax())  # the first of equals
            kept.append(left[best : best + 1])
            new_scores.append(own_scores[best : best + 1])
            taken += 1
            overlap = iou(own_boxes, own_boxes[best])
            if method == "gaussian":
                factor = (-overlap.square() / sigma).exp()
            else:
                factor = torch.where(overlap > iou_threshold, 1 - overlap, 1)
            own_scores = torch.where(own_classes == own_classes[best], own_scores * factor, own_scores)
            own_scores[best] = -torch.inf
            stays = torch.nonzero(own_scores > score_threshold).flatten()
            left, own_boxes = left[stays], own_boxes[stays]
            own_scores, own_classes = own_scores[stays], own_classes[stays]
    return torch.cat(kept), torch.cat(new_scores)


def _best(index: Tensor, scores: Tensor, images: Tensor, at_most: int | None) -> Tensor:
    """The `at_most` best of each image among index [K], by image, then by descending score, then by index."""
    index = index.sort().values
    index = index[by_image_and_score(images[index], scores[index])]
    if at_most is None or not len(index):
        return index
    counts = torch.bincount(images[index])
    place = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[images[index]]
    return index[place < at_most]
