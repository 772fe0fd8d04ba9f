"""Boxes that cannot be right where they are, that are there twice, or far from others of their class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from detectkit.audit.findings import AuditedImage, DataFinding, FindingKind, labels_of, of_image, of_label
from detectkit.data.cleaning_list import Correction, Box, Verb
from detectkit.data.readers import Label, Reject, box_text
from detectkit.ops.boxes import pairwise_iou
from detectkit.spec import DataCleaningConfig, label_name

EDGE = 1.0  # pixels that a box may stick out, or keep from the border, without a word: tools round
THIN = 2.0  # pixels of a side below which no object can be told
ENOUGH = 30  # boxes of a class, to know what is usual
# Least robust deviations of the logarithms: however alike the others are, an object of some times their size or thrice as
# long as they may be one of them.
SIZE_SPREAD, SHAPE_SPREAD = 0.3, 0.2
TO_DEVIATION = 1.4826  # of a normal distribution, from the median of the absolute deviations
SUREST = 0.9  # a far box may be the one large object


def findings(
    images: Sequence[AuditedImage], config: DataCleaningConfig, neutral: Collection[str]
) -> Iterator[DataFinding]:
    """What is wrong with boxes.

    Args:
        neutral: labels, as `label_name` gives them, that mark regions and not objects: they may overlap and be of any size.
    """
    for image in images:
        turned = _turned(image)
        if turned is not None:
            yield turned
        else:
            yield from _misplaced(image)
        yield from _doubled(image, config.duplicate_box_iou, neutral)
    yield from _outliers(images, config.outlier_deviations, neutral)


def unusable(rejected: Iterable[Reject]) -> Iterator[DataFinding]:
    """Labels that a conversion leaves out by itself."""
    for reject in rejected:
        if reject.is_label:
            has_area = "has no area" not in reject.reason and "is reversed" not in reject.reason
            kind = FindingKind.LEFT_OUT if has_area else FindingKind.DEGENERATE
            text = f"{reject.reason}; conversions leave it out"
            yield DataFinding(kind, "", text, label_file=reject.file, line=reject.line)


def _turned(image: AuditedImage) -> DataFinding | None:
    """Labels that leave an image as viewers show it, and lie in its pixels as they are stored."""
    frame = image.frame
    if not frame.turned or not frame.labels:
        return None
    boxes = np.array([label.box for label in frame.labels])
    right, bottom = boxes[:, 2].max(), boxes[:, 3].max()
    leaves = right > frame.width + EDGE or bottom > frame.height + EDGE
    if not leaves or right > frame.height + EDGE or bottom > frame.width + EDGE:
        return None
    text = (
        f"labels reach to ({right:g}, {bottom:g}) and fit the {frame.height}x{frame.width} pixels as stored, not the"
        f" {frame.width}x{frame.height} that its EXIF orientation makes of them: take the orientation out of the file"
    )
    return of_image(FindingKind.TURNED, image, text)


def _misplaced(image: AuditedImage) -> Iterator[DataFinding]:
    width, height = image.frame.width, image.frame.height
    size = f"the image of {width}x{height}"
    for index, label in enumerate(image.frame.labels):
        x1, y1, x2, y2 = label.box
        inside: Box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        told = f"{label.name} {box_text(*label.box)}"
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            yield of_label(
                FindingKind.OUTSIDE,
                image,
                index,
                f"{told} is outside {size}",
                correction=Correction(Verb.DROP_LABEL),
            )
        elif x2 - x1 < THIN or y2 - y1 < THIN:
            text = f"{told} is thinner than {THIN:g} pixels"
            yield of_label(
                FindingKind.DEGENERATE,
                image,
                index,
                text,
                correction=Correction(Verb.DROP_LABEL),
                sureness=0.95,
            )
        elif max(abs(a - b) for a, b in zip(label.box, inside)) > EDGE:
            share = 1 - _area(inside) / _area(label.box)
            text = f"{share:.0%} of {told} is outside {size}"
            correction = Correction(Verb.REPLACE_BOX, box=inside)
            sureness = 0.3 + 0.7 * share
            yield of_label(
                FindingKind.PARTLY_OUTSIDE,
                image,
                index,
                text,
                correction=correction,
                sureness=sureness,
                other_box=inside,
            )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _doubled(image: AuditedImage, bound: float, neutral: Collection[str]) -> Iterator[DataFinding]:
    """The later of each two boxes that are on one object."""
    labels = image.frame.labels
    counting = [index for index, label in enumerate(labels) if label_name(label.name) not in neutral]
    boxes = torch.tensor([labels[index].box for index in counting], dtype=torch.float64).reshape(-1, 4)
    overlaps = pairwise_iou(boxes, boxes).triu(1)
    said: set[int] = set()
    for first, second in (overlaps > bound).nonzero().tolist():
        earlier, later = counting[first], counting[second]
        if later in said:
            continue
        said.add(later)
        yield _pair(image, earlier, later, float(overlaps[first, second]))


def _pair(image: AuditedImage, earlier: int, later: int, overlap: float) -> DataFinding:
    one, other = image.frame.labels[earlier], image.frame.labels[later]
    place = f" (line {image.frame.lines[earlier]})" if image.frame.lines else ""
    more = {"sureness": overlap, "other_box": one.box}
    if label_name(one.name) == label_name(other.name):
        text = f"{other.name} is labelled twice: IoU {overlap:.2f} with another{place}"
        return of_label(
            FindingKind.DOUBLED, image, later, text, correction=Correction(Verb.DROP_LABEL), **more
        )
    text = f"{other.name} is labelled {one.name} too{place}: IoU {overlap:.2f}"
    return of_label(FindingKind.TWO_CLASSES, image, later, text, **more)


# Outliers


def _outliers(
    images: Sequence[AuditedImage], bound: float, neutral: Collection[str]
) -> Iterator[DataFinding]:
    """Boxes far from the median of their class, in the logarithm of their share of the image, and of width by height.

    What the border cuts is smaller and narrower than it is: there only what is too large counts.
    """
    by_class: dict[str, list[tuple[AuditedImage, int, Label]]] = {}
    for item in labels_of(images):
        _, _, label = item
        is_thin = label.box[2] - label.box[0] < THIN or label.box[3] - label.box[1] < THIN  # told already
        if label_name(label.name) not in neutral and not is_thin:
            by_class.setdefault(label_name(label.name), []).append(item)
    for members in by_class.values():
        if len(members) >= ENOUGH:
            yield from _far(members, bound)


def _far(members: Sequence[tuple[AuditedImage, int, Label]], bound: float) -> Iterator[DataFinding]:
    boxes = np.array([label.box for _, _, label in members])
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    frames = [image.frame for image, _, _ in members]
    pixels = np.array([(max(frame.width, 1), max(frame.height, 1)) for frame in frames], dtype=np.float64)
    cut: NDArray[np.bool_] = np.asarray(
        (boxes[:, :2] <= EDGE).any(axis=1) | (boxes[:, 2:] >= pixels - EDGE).any(axis=1)
    )
    size = _deviations(np.log(sides.prod(axis=1) / pixels.prod(axis=1)), ~cut, SIZE_SPREAD)
    shape = _deviations(np.log(sides[:, 0] / sides[:, 1]), ~cut, SHAPE_SPREAD)
    usual = np.median(sides[~cut] if (~cut).any() else sides, axis=0)
    is_odd_size = (size > bound) | ((size < -bound) & ~cut)
    is_odd_shape = (np.abs(shape) > bound) & ~cut
    for place in np.flatnonzero(is_odd_size | is_odd_shape).tolist():
        image, index, label = members[place]
        by_size = (
            abs(size[place]) >= abs(shape[place]) and bool(is_odd_size[place]) or not is_odd_shape[place]
        )
        far = float(size[place] if by_size else shape[place])
        kind, what = (FindingKind.ODD_SIZE, "size") if by_size else (FindingKind.ODD_SHAPE, "shape")
        text = (
            f"{label.name} of {sides[place][0]:.0f}x{sides[place][1]:.0f} pixels, {abs(far):.0f} deviations from the usual"
            f" {what}: the median is {usual[0]:.0f}x{usual[1]:.0f}"
        )
        sureness = min(SUREST, 1 - 0.5 * bound / abs(far))
        yield of_label(kind, image, index, text, sureness=sureness)


def _deviations(values: NDArray[np.float64], usable: NDArray[np.bool_], least: float) -> NDArray[np.float64]:
    """How many robust deviations each value is from the median of those that are usable, or of all."""
    base = values[usable] if usable.sum() >= ENOUGH else values
    median = np.median(base)
    spread = TO_DEVIATION * np.median(np.abs(base - median))
    return np.asarray((values - median) / max(spread, least))
