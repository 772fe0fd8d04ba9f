"""The worst false positives and misses of a model, cut out of their images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detectkit import draw
from detectkit.data.labels import DONTCARE
from detectkit.errors import DataError
from detectkit.evaluation.details import Details, errors, read_image
from detectkit.evaluation.voc import Found
from detectkit.ops.boxes import pairwise_iou
from detectkit.page import Html, lines, picture

SHOWN = 8  # of each kind
FROM_ONE_IMAGE = 2  # at most: eight cuts of one strange image would hide the rest
SIDE = 240  # pixels of a cut
CONTEXT = 2.6  # side of a cut, times the larger side of its box
LEAST = 64  # pixels of the image that a cut shows at least
NEAR = 0.1  # IoU of the detections that are shown beside a missed label
FEW = 3  # of them
QUALITY = 80  # of JPEG
DETECTED, LABELLED = "#ff6a00", "#00a0ff"  # orange and blue: all eyes tell them apart


class Mistake(NamedTuple):
    """A box that is wrong: a detection, or a label that was not found."""

    image: int  # index into `Details.images`
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, pixels of the file
    number: int  # of the class
    score: float | None  # of a detection


class Mistakes(NamedTuple):
    """The worst ones, at most FROM_ONE_IMAGE of a kind from an image, and how many there are in all."""

    false_positives: list[Mistake]  # the classes take turns, see `_ranks`
    misses: list[Mistake]  # by falling area
    false_positive_count: int
    miss_count: int


def mistakes(details: Details) -> Mistakes:
    """The worst mistakes of a model on the images that it was evaluated on."""
    found, missed = errors(details)
    order = _ranks(found, details).argsort(stable=True)  # of equal ones the higher score
    found = Found(*(column[order] for column in found))
    scores: list[float] = found.scores.tolist()
    wrong = zip(found.images.tolist(), found.boxes.tolist(), found.classes.tolist(), scores, strict=True)
    lost = zip(missed.images.tolist(), missed.boxes.tolist(), missed.classes.tolist(), strict=True)
    return Mistakes(
        _chosen(Mistake(image, (*box,), number, score) for image, box, number, score in wrong),
        _chosen(Mistake(image, (*box,), number, None) for image, box, number in lost),
        len(scores),
        len(missed.classes),
    )


def figures(details: Details, found: Sequence[Mistake]) -> list[Html]:
    """A picture of each mistake with its caption; those of images that are gone are left out."""
    shown = []
    for mistake in found:
        try:
            shown.append(_figure(details, mistake, read_image(details.images[mistake.image])))
        except DataError:
            continue
    return shown


def _ranks(found: Found, details: Details) -> torch.Tensor:
    """Places [N] of false positives, which come by falling score: first the first of each class, then the second, ...

    Scores of two classes cannot be compared: as the spec clusters them, some are at most 1 and some are sums. Of those
    that are equally far on in their classes, that comes first which has fewer of its class's detections above it.
    """
    ranks = torch.zeros(len(found.scores), dtype=torch.float64)
    for number in set(found.classes.tolist()):
        rows = found.classes == number
        own = details.found.scores[(details.found.classes == number) & details.found_counts].sort().values
        higher = len(own) - torch.searchsorted(own, found.scores[rows], right=True)
        ranks[rows] = torch.arange(len(higher)) + higher.double() / len(own)  # a share below 1
    return ranks


def _chosen(found: Iterable[Mistake]) -> list[Mistake]:
    chosen: list[Mistake] = []
    for mistake in found:
        if sum(other.image == mistake.image for other in chosen) < FROM_ONE_IMAGE:
            chosen.append(mistake)
        if len(chosen) == SHOWN:
            break
    return chosen


def _figure(details: Details, mistake: Mistake, image: NDArray[np.uint8]) -> Html:
    others = _labels(details, mistake) if mistake.score is not None else _near(details, mistake)
    boxes = np.concatenate((others.numpy(), np.array([mistake.box], dtype=np.float32)))
    cut, moved = draw.cut(image, mistake.box, boxes, context=CONTEXT, least=LEAST, side=SIDE)
    own, other = (DETECTED, LABELLED) if mistake.score is not None else (LABELLED, DETECTED)
    thin = draw.annotate(
        cut, moved[:-1], labels=[""] * len(others), colors=[draw.rgb(other)] * len(others), line_width=2
    )
    shown = draw.annotate(np.asarray(thin), moved[-1:], labels=[""], colors=[draw.rgb(own)], line_width=3)
    name, where = details.class_names[mistake.number], details.images[mistake.image].name.rsplit("/", 1)[-1]
    if mistake.score is not None:
        told, alt = f"{name} {mistake.score:.2f}", f"False positive: {name} in {where}"
    else:
        width, height = mistake.box[2] - mistake.box[0], mistake.box[3] - mistake.box[1]
        told, alt = f"{name} {width:.0f}×{height:.0f}", f"Missed: {name} in {where}"
    return picture(draw.jpeg(shown, quality=QUALITY), lines(told, where), alt=alt)


def _labels(details: Details, mistake: Mistake) -> torch.Tensor:
    """The labelled boxes [N, 4] of an image."""
    truths = details.truths
    return truths.boxes[(truths.images == mistake.image) & (truths.classes != DONTCARE)]


def _near(details: Details, mistake: Mistake) -> torch.Tensor:
    """The strongest few detections [N, 4] of any class that overlap a missed label."""
    rows = details.found.images == mistake.image
    boxes, scores = details.found.boxes[rows], details.found.scores[rows]
    near = pairwise_iou(boxes, torch.tensor([mistake.box]))[:, 0] > NEAR
    return boxes[near][scores[near].argsort(descending=True)[:FEW]]
