"""Labels that a network contradicts: objects without one, of another class, or with a box that fits badly.

A network that was trained on these very labels has learnt their mistakes too, so its scores alone say little. What counts
is what its class usually gets: a detection is as sure as those of its class with about its score are right by the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.audit.findings import AuditedImage, DataFinding, FindingKind, of_image, of_label, ranked
from detectkit.console import progress
from detectkit.data.cleaning_list import Box, Correction, Verb
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import BACKGROUND, NO_OBJECTS
from detectkit.data.workers import loader
from detectkit.ops.boxes import area, iou
from detectkit.ops.metrics import best_overlaps, match
from detectkit.predict import Predictor
from detectkit.spec import label_name

RIGHT = 0.5  # IoU from which a detection is that of a label
TOUCHED = 0.15  # IoU below which a detection is of an object that no label is on
COVERED = 0.6  # share of a detection inside one label from which on it is of that label's object
BADLY = 0.3, 0.7  # IoU of a box that fits badly
LEAST = 0.5  # sureness that is worth a look
BATCH = 16  # images
REACH = 50  # detections to either side in score that tell how often one like it is right


class _Boxes(NamedTuple):
    """All detections, or all labels: n of them."""

    boxes: Tensor  # float32 [n, 4], pixels of the files
    classes: Tensor  # int64 [n]; BACKGROUND: none of the network
    images: Tensor  # int64 [n]
    scores: Tensor  # float32 [n]; of labels: their indices in their images

    def of(self, rows: Tensor) -> _Boxes:
        return _Boxes(*(column[rows] for column in self))


def suggestions(
    images: Sequence[AuditedImage], predictor: Predictor, classes: Mapping[str, str]
) -> list[DataFinding]:
    """What a network would label otherwise, the surest first.

    Args:
        images: that can be read.
        classes: label, as `label_name` gives it, to class of the network.

    Raises:
        DataError: an image cannot be read.
    """
    if not images:
        return []
    found = _detections(images, predictor)
    labels = _labels(images, predictor.class_names, classes)
    sure = _sureness(found, labels)
    found, sure = found.of(sure >= LEAST), sure[sure >= LEAST]
    told = [
        *_missing(images, predictor.class_names, found, labels, sure),
        *_contradicting(images, predictor.class_names, found, labels, sure),
    ]
    return ranked(told)


def _detections(images: Sequence[AuditedImage], predictor: Predictor) -> _Boxes:
    """Of all images, in batches that a worker decodes while the network runs."""
    dataset = Dataset([_frame(image) for image in images])
    batches = loader(dataset, predictor.augmentation, batch_size=BATCH, order=range(len(images)), workers=1)
    steps = progress(
        predictor.batches(batches), total=-(-len(images) // BATCH), label="detecting", unit="batches"
    )
    found = [one for predicted in steps for one in predicted.in_original_pixels()]
    predictor.seen.warn_of_larger()
    counts = torch.tensor([len(one.scores) for one in found])
    return _Boxes(
        torch.cat([one.boxes.cpu() for one in found]),
        torch.cat([one.classes.cpu() for one in found]),
        torch.arange(len(found)).repeat_interleave(counts),
        torch.cat([one.scores.cpu().float() for one in found]),
    )


def _frame(image: AuditedImage) -> Frame:
    """What the loader decodes. A record's size is left out: that it is wrong is no reason not to look."""
    if image.record is not None:
        return image.record._replace(size=None, objects=NO_OBJECTS)
    return Frame(image.frame.frame_id, image.name, None, 0, None, NO_OBJECTS)


def _labels(images: Sequence[AuditedImage], names: Sequence[str], classes: Mapping[str, str]) -> _Boxes:
    numbers = {name: names.index(target) for name, target in classes.items() if target in names}
    # A label that is called as a class is of it, where no mapping says otherwise.
    numbers = {label_name(name): number for number, name in enumerate(names)} | numbers
    rows = [
        (label.box, numbers.get(label_name(label.name), BACKGROUND), number, index)
        for number, image in enumerate(images)
        for index, label in enumerate(image.frame.labels)
    ]
    boxes, owners, places, indices = zip(*rows) if rows else ((), (), (), ())
    return _Boxes(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor(places, dtype=torch.int64),
        torch.tensor(indices, dtype=torch.float32),
    )


def _sureness(found: _Boxes, labels: _Boxes) -> Tensor:
    """How sure [n] each detection is, 0 to 1: the share of those of its class with about its score that a label confirms."""
    sure = torch.zeros(len(found.scores), dtype=torch.float64)
    for number in sorted(set(found.classes.tolist())):
        own = found.classes == number
        mine, truths = found.of(own), labels.of(labels.classes == number)
        hit = match(mine.boxes, mine.scores, mine.images, truths.boxes, truths.images, iou_threshold=RIGHT)
        order = mine.scores.argsort(descending=True, stable=True)
        sums = torch.cat((torch.zeros(1), hit[order].cumsum(0))).double()
        reach = min(max(len(truths.boxes) // 8, 1), REACH)
        place = torch.arange(len(order))
        first, last = (place - reach).clamp(min=0), (place + reach + 1).clamp(max=len(order))
        share = torch.empty(len(order), dtype=torch.float64)
        # One more that is wrong: a few detections prove nothing.
        share[order] = (sums[last] - sums[first]) / (last - first + 1)
        sure[own] = share
    return sure


def _missing(
    images: Sequence[AuditedImage], names: Sequence[str], found: _Boxes, labels: _Boxes, sure: Tensor
) -> Iterator[DataFinding]:
    """Detections of objects that no label is on, of several of one object the surest."""
    _, overlap = best_overlaps(found.boxes, found.images, labels.boxes, labels.images)
    _, covered = best_overlaps(found.boxes, found.images, labels.boxes, labels.images, overlap=_inside)
    rows = ((overlap < TOUCHED) & (covered < COVERED)).nonzero()[:, 0]
    taken: dict[int, list[Tensor]] = {}
    for row in rows[sure[rows].argsort(descending=True, stable=True)].tolist():
        others = taken.setdefault(int(found.images[row]), [])
        if any(float(iou(found.boxes[row], other)) > BADLY[0] for other in others):
            continue
        others.append(found.boxes[row])
        image, name, box = (
            images[int(found.images[row])],
            names[int(found.classes[row])],
            _box(found.boxes[row]),
        )
        text = f"{name} is found (score {found.scores[row]:.2f}) where no label is"
        yield of_image(
            FindingKind.MISSING,
            image,
            text,
            correction=Correction(Verb.ADD_LABEL),
            sureness=float(sure[row]),
            name=name,
            box=box,
        )


def _inside(boxes: Tensor, labels: Tensor) -> Tensor:
    """Share of the area of boxes [P, 4] in labels [P, 4]."""
    corners = torch.cat(
        (torch.maximum(boxes[:, :2], labels[:, :2]), torch.minimum(boxes[:, 2:], labels[:, 2:])), dim=1
    )
    return area(corners) / area(boxes).clamp(min=1e-9)


def _contradicting(
    images: Sequence[AuditedImage], names: Sequence[str], found: _Boxes, labels: _Boxes, sure: Tensor
) -> Iterator[DataFinding]:
    """Labels of the network's classes with a detection of another class on them, or one of theirs beside them."""
    best, overlap = best_overlaps(found.boxes, found.images, labels.boxes, labels.images)
    for place in (labels.classes >= 0).nonzero()[:, 0].tolist():
        rows = (best == place).nonzero()[:, 0]
        if not len(rows):
            continue
        own = found.classes[rows] == labels.classes[place]
        near, good = overlap[rows] >= BADLY[0], overlap[rows] >= RIGHT
        image, index = images[int(labels.images[place])], int(labels.scores[place])
        other = rows[~own & good]
        if len(other):
            row = int(other[sure[other].argmax()])
            # What speaks for the label: detections of its own class.
            margin = (
                float(sure[row] - sure[rows[own & near]].max().clamp(min=0))
                if (own & near).any()
                else float(sure[row])
            )
            name = names[int(found.classes[row])]
            text = f"{image.frame.labels[index].name} is found to be {name} (score {found.scores[row]:.2f})"
            correction, where = Correction(Verb.RENAME, name=name), _box(found.boxes[row])
            yield of_label(
                FindingKind.WRONG_CLASS,
                image,
                index,
                text,
                correction=correction,
                sureness=margin,
                other_box=where,
            )
        elif own.any() and float(overlap[rows[own]].max()) < BADLY[1] and (own & near).any():
            row = int(rows[own & near][sure[rows[own & near]].argmax()])
            share = float(overlap[row])
            text = f"{image.frame.labels[index].name} fits what is found (score {found.scores[row]:.2f}) with an IoU of {share:.2f} only"
            badness = (1 - share) / (1 - BADLY[0])
            correction = Correction(Verb.REPLACE_BOX, box=_box(found.boxes[row]))
            more = {"sureness": float(sure[row]) * badness, "other_box": correction.box}
            yield of_label(FindingKind.BADLY_PLACED, image, index, text, correction=correction, **more)


def _box(values: Tensor) -> Box:
    x1, y1, x2, y2 = (round(value, 1) for value in values.tolist())
    return x1, y1, x2, y2
