"""What is wrong with the detections of each class, and what it costs in average precision.

A mistake costs what the average precision gains if it alone is put right, see `detectkit.evaluation.kinds`.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from detectkit.data.labels import DONTCARE
from detectkit.evaluation import kinds
from detectkit.evaluation.kinds import Judged, MistakeKind, Price, Sorted
from detectkit.evaluation.results import ClassMistakes, Coverage, Cut, Kinds, Sides, Suppression
from detectkit.evaluation.voc import Found, Labelled, Scores, judge
from detectkit.ops.boxes import area
from detectkit.ops.cluster import cluster
from detectkit.ops.metrics import best_overlaps, precision_recall
from detectkit.ops.rasterize import ClassGeometry, touched
from detectkit.predict import Predicted

ON_LABEL = kinds.BACKGROUND_OVERLAP  # IoU from which a wrong box belongs to the object beneath it
LENIENT = 0.5  # IoU at which a class counts as learnt, however exact its boxes must be
OVERLAPS = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
)  # IoUs from which the weaker box is dropped, tried where boxes are doubled
WORTH = 0.02  # average precision that doubled boxes cost where that is worth the time
CROWD = 200  # detections that are compared at once
LOST = 0.01  # share of the right detections that score less than twice a `Cut`: other images have weaker ones


class CoverageMeter:
    """Sums up what a network gives at the centres of objects and where there is nothing, batch by batch.

    Args:
        geometry: of the C classes, whose centres need not be in the middle.
    """

    def __init__(self, geometry: ClassGeometry):
        self._center = torch.stack((geometry.center_x, geometry.center_y), dim=1)  # [C, 2], parts of a box
        classes = len(self._center)
        self._sums = torch.zeros(2, classes, dtype=torch.float64)  # on objects, on the background
        self._counts = torch.zeros(2, classes, dtype=torch.float64)  # of labels, of cells
        self._centers: list[tuple[Tensor, Tensor]] = []  # class and coverage of each label of a batch

    def add(self, predicted: Predicted) -> None:
        """One batch, whose first output is the coverage [B, C, h, w] of the classes."""
        prepared, coverage = predicted.prepared, predicted.outputs[0].float()
        batch, classes, height, width = coverage.shape
        stride = prepared.images.shape[-1] // width
        labels = prepared.labels
        low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
        center = low + self._center.to(low)[labels.classes] * (high - low)
        column, row = (center / stride).long().unbind(1)
        at = (labels.image_index, labels.classes, row.clamp(max=height - 1), column.clamp(max=width - 1))
        self._centers.append((labels.classes.cpu(), coverage[at].cpu()))
        zeros = coverage.new_zeros(classes)
        on_objects = zeros.index_add(0, labels.classes, coverage[at])
        counts = torch.bincount(labels.classes, minlength=classes)
        parts = (labels, prepared.others)
        boxes, images = (
            torch.cat(column) for column in zip(*((part.boxes, part.image_index) for part in parts))
        )
        covered = touched(
            boxes,
            images,
            torch.ones(len(boxes), 1, dtype=torch.bool, device=boxes.device),
            batch_size=batch,
            stride=stride,
            grid_width=width,
            grid_height=height,
        )
        beside = coverage.masked_fill(covered, 0).sum((0, 2, 3))
        cells = (~covered).sum().expand(classes)
        self._sums += torch.stack((on_objects, beside)).cpu()
        self._counts += torch.stack((counts, cells)).cpu()

    def result(self) -> list[Coverage]:
        """The means of each class."""
        means = [
            [total / count if count else None for total, count in zip(totals, counts, strict=True)]
            for totals, counts in zip(self._sums.tolist(), self._counts.tolist(), strict=True)
        ]
        return [
            Coverage(pair[0], pair[1], self._tenths(index))
            for index, pair in enumerate(zip(*means, strict=True))
        ]

    def _tenths(self, index: int) -> tuple[float, ...]:
        own = torch.cat([levels[classes == index] for classes, levels in self._centers] or [torch.zeros(0)])
        return tuple(torch.quantile(own, torch.linspace(0, 1, 11)).tolist()) if len(own) else ()


def mistakes(scores: Scores, coverage: CoverageMeter | None = None) -> list[ClassMistakes]:
    """What is wrong with the detections of each class, in the order of the class names; there must be an image.

    Args:
        scores: with the detections and labels of all images.
        coverage: of the same images.
    """
    judged, lenient = _judged(scores)
    found = kinds.sort(judged)
    price = Price(
        judged,
        found,
        average_precision=lambda ranked, hit, labels: _area(scores, ranked, hit, labels),
        bounds=kinds.size_bounds(judged.labels),
    )
    names = _stronger_names(judged, found)
    levels = coverage.result() if coverage else [None] * len(scores.class_names)
    made = []
    for index, level in enumerate(levels):
        item = _of_class(scores, index, judged, found, price)
        stronger = names[judged.labels.classes == index]
        most = Counter(stronger[stronger >= 0].tolist()).most_common(1)
        made.append(
            item._replace(
                lenient_average_precision=lenient[index] if item.labels else None,
                confused=int((stronger >= 0).sum()),
                confused_with=scores.class_names[most[0][0]] if most else "",
                coverage=level,
            )
        )
    return made


def size_bounds(scores: Scores) -> tuple[float, float]:
    """`kinds.size_bounds` of the labels that count."""
    _, labels = scores.columns()
    return kinds.size_bounds(Labelled(*(column[scores.counted(labels)] for column in labels)))


def _judged(scores: Scores) -> tuple[Judged, list[float]]:
    """All detections that count, class by class, and for each class the average precision at an easy IoU."""
    found, labels = scores.columns()
    regions = Labelled(*(column[labels.classes == DONTCARE] for column in labels))
    parts, wanted, hits, bests, overlaps, lenient, offset = [], [], [], [], [], [], 0
    for index in range(len(scores.class_names)):
        own = Found(*(column[scores.counts(index, found)] for column in found))
        truths = Labelled(*(column[scores.counts(index, labels)] for column in labels))
        least = scores.overlap(index)
        hit, neutral = judge(own, truths, regions, least_overlap=least)
        eased, aside = (
            judge(own, truths, regions, least_overlap=LENIENT) if least > LENIENT else (hit, neutral)
        )
        lenient.append(_area(scores, own.scores[~aside], eased[~aside], len(truths.boxes)))
        best, overlap = best_overlaps(own.boxes, own.images, truths.boxes, truths.images)
        parts.append(Found(*(column[~neutral] for column in own)))
        hits.append(hit[~neutral])
        bests.append(torch.where(best >= 0, best + offset, -1)[~neutral])
        overlaps.append(overlap[~neutral])
        wanted.append(truths)
        offset += len(truths.boxes)
    judged = Judged(
        found=Found(*(torch.cat(column) for column in zip(*parts))),
        hit=torch.cat(hits),
        own=torch.cat(bests),
        own_overlap=torch.cat(overlaps),
        labels=Labelled(*(torch.cat(column) for column in zip(*wanted))),
        least_overlap=torch.tensor(
            [scores.overlap(index) for index in range(len(scores.class_names))], dtype=torch.float64
        ),
    )
    return judged, lenient


def _of_class(scores: Scores, index: int, judged: Judged, found: Sorted, price: Price) -> ClassMistakes:
    rows = judged.found.classes == index
    wanted = judged.labels.classes == index
    labels = int(wanted.sum())
    own = Found(*(column[rows] for column in judged.found))
    hit, kind = judged.hit[rows], found.kind[rows]
    claimed = torch.cat((found.claimed, torch.tensor([False])))  # the last for detections without a label
    on_found = (judged.own_overlap[rows] >= ON_LABEL) & claimed[judged.own[rows]]
    doubled = ~hit & (kind != MistakeKind.WRONG_CLASS) & on_found
    area_before = _area(scores, own.scores, hit, labels)
    doubled_cost = _area(scores, own.scores[~doubled], hit[~doubled], labels) - area_before
    costs, by_size = price.of_class(index)
    missed = found.missed[wanted]
    counts = torch.bincount(kind[~hit], minlength=len(MistakeKind))
    counts[MistakeKind.MISSED] = missed.sum()
    sides = area(judged.labels.boxes[wanted]).double().sqrt()
    own_labels = Labelled(*(column[wanted] for column in judged.labels))
    return ClassMistakes(
        name=scores.class_names[index],
        labels=labels,
        found=int(hit.sum()),
        detections=len(own.scores),
        average_precision=area_before if labels else None,
        lenient_average_precision=None,
        doubled=int(doubled.sum()),
        doubled_cost=doubled_cost,
        confused=0,
        confused_with="",
        confused_cost=costs.wrong_class,
        coverage=None,
        counts=Kinds(*counts.tolist()),
        costs=costs,
        costs_by_size=by_size,
        sides=Sides(_median(sides[found.claimed[wanted]]), _median(sides[missed])),
        suppression=_suppression(scores, index, own, own_labels) if doubled_cost >= WORTH else None,
        cut=_cut(own.scores, hit),
    )


def _suppression(scores: Scores, index: int, own: Found, wanted: Labelled) -> Suppression | None:
    """The best of OVERLAPS; detections that count neither way are not among `own`."""
    own, wanted = _side_by_side(own, wanted)
    before = _measured(scores, index, own, wanted)
    gains = []
    for overlap in OVERLAPS:
        boxes, ranked, groups = cluster(
            own.boxes,
            own.scores,
            own.images,
            algorithm="nms",
            coverage_threshold=-1.0,
            minimum_height=-1.0,
            dbscan_eps=0.0,
            dbscan_min_samples=0.0,
            dbscan_confidence_threshold=0.0,
            nms_iou_threshold=overlap,
            nms_confidence_threshold=0.0,
        )
        kept = Found(boxes, torch.full_like(groups, index), groups, ranked)
        gains.append(Suppression(overlap, _measured(scores, index, kept, wanted) - before))
    best = max(gains, key=lambda item: (item.gain, item.overlap))
    return best if best.gain > 0 else None


def _side_by_side(own: Found, wanted: Labelled) -> tuple[Found, Labelled]:
    """The same in fewer, wider images, in each about CROWD detections: one call for each image would take ten times as long."""
    order = torch.argsort(own.images, stable=True)
    own = Found(*(column[order] for column in own))
    reach = float(torch.cat((own.boxes, wanted.boxes)).abs().max())

    def moved(boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        shift = 3 * reach * images.double()[:, None] * boxes.new_tensor([1, 0, 1, 0]).double()
        return boxes.double() + shift, torch.searchsorted(own.images, images) // CROWD

    boxes, groups = moved(own.boxes, own.images)
    truths, places = moved(wanted.boxes, wanted.images)
    return own._replace(boxes=boxes, images=groups, scores=own.scores.double()), wanted._replace(
        boxes=truths, images=places
    )


def _measured(scores: Scores, index: int, found: Found, wanted: Labelled) -> float:
    nothing = Labelled(*(column[:0] for column in wanted))
    hit, _ = judge(found, wanted, nothing, least_overlap=scores.overlap(index))
    return _area(scores, found.scores, hit, len(wanted.boxes))


def _cut(ranked: Tensor, hit: Tensor) -> Cut | None:
    right = ranked[hit].sort().values
    if not len(right):
        return None
    score = right[int(LOST * len(right))] / 2
    return Cut(float(score), int((ranked[~hit] < score).sum()), int((right < score).sum()))


def _stronger_names(judged: Judged, found: Sorted) -> Tensor:
    """For each label over which another class is stronger, the class of its strongest detection there: int64 [M], else -1."""
    count = len(judged.labels.boxes)
    scores, classes = judged.found.scores, judged.found.classes
    least = judged.least_overlap[classes]
    own = _highest(judged.own, scores, (judged.own >= 0) & (judged.own_overlap >= least), count)
    arrived = found.kind == MistakeKind.WRONG_CLASS
    other = _highest(found.label, scores, arrived, count)
    place = found.label[arrived]
    strongest = (scores[arrived] == other[place]) & (other > own)[place]
    # Of equally strong ones on a label the last given counts.
    names = torch.full((count,), -1)
    names[place[strongest]] = classes[arrived][strongest]
    return names


def _highest(place: Tensor, scores: Tensor, chosen: Tensor, count: int) -> Tensor:
    """The highest score of those chosen of [N] on each of `count` labels; -inf where there is none."""
    none = torch.full((count,), -torch.inf, dtype=scores.dtype)
    return none.scatter_reduce_(0, place[chosen], scores[chosen], "amax")


def _median(values: Tensor) -> float | None:
    return float(values.quantile(0.5)) if len(values) else None


def _area(scores: Scores, ranked: Tensor, hit: Tensor, labels: int) -> float:
    precision, recall, _ = precision_recall(ranked, hit, labels)
    return scores.area(precision, recall)
