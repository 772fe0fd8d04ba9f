"""How far two networks find the same, whatever the labels say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectkit.ops.boxes import pairwise_iou
from detectkit.ops.cluster import Detections


class Agreement(NamedTuple):
    """Detections of two networks on the same images, in pairs of one class that overlap."""

    pairs: int
    first: int  # detections of the first network
    second: int
    iou_sum: float  # over the pairs

    @property
    def share(self) -> float:
        """Share of all detections that are in a pair (the F1 of one network with the other as truth), 0 to 1."""
        return 2 * self.pairs / (self.first + self.second) if self.first + self.second else 1.0

    @property
    def mean_iou(self) -> float | None:
        """Of the pairs, 0 to 1; None where there is none."""
        return self.iou_sum / self.pairs if self.pairs else None


def agreement(
    first: Sequence[Detections], second: Sequence[Detections], *, overlap: float = 0.5
) -> Agreement:
    """Pair the detections of two networks, image by image.

    Pairs have one class and at least this IoU; those of the greatest IoU are made first, each detection is in one at
    most. Exchanging the networks changes nothing but the choice between equal overlaps.

    Args:
        first: one an image.
        second: of the same images, in their order.
        overlap: least IoU of a pair, in (0, 1].
    """
    overlaps: list[float] = []
    for one, other in zip(first, second, strict=True):
        overlaps += _pairs(one, other, overlap)
    return Agreement(
        pairs=len(overlaps),
        first=sum(len(found.scores) for found in first),
        second=sum(len(found.scores) for found in second),
        iou_sum=sum(overlaps),
    )


def _pairs(one: Detections, other: Detections, overlap: float) -> list[float]:
    """The IoU of each pair of an image."""
    ious = pairwise_iou(one.boxes, other.boxes)
    ious[one.classes[:, None] != other.classes[None]] = 0
    rows, columns = (ious >= overlap).nonzero(as_tuple=True)
    values = ious[rows, columns]
    found: list[float] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for index in values.argsort(descending=True, stable=True).tolist():
        row, column = int(rows[index]), int(columns[index])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            found.append(float(values[index]))
    return found
