"""Gathers the details of predicted batches while they are measured: no second pass over the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import DONTCARE
from detectkit.evaluation.details import MOST_DETECTIONS, MOST_POINTS, Curve, Details, Location
from detectkit.evaluation.measure import Place, image_truths, new_scores
from detectkit.evaluation.results import ClassResult, Evaluation, Truth
from detectkit.evaluation.voc import Found, Labelled
from detectkit.files import local_path
from detectkit.ops.cluster import Detections
from detectkit.predict import Predicted
from detectkit.spec import EvaluationConfig
from detectkit.stores import is_remote

ENDS = 4  # points at the ends of a thinned curve, the rest is between


class Collector:
    """Keeps the details of predicted batches while they are measured.

    Args:
        class_names: in the order of the network.
        config: that they are measured by.
        images: that are predicted, in their order.
    """

    def __init__(self, class_names: Sequence[str], config: EvaluationConfig, images: Dataset):
        self.class_names, self.config, self.images = list(class_names), config, images
        self._scores = new_scores(self.class_names, config)
        self._locations: list[Location] = []
        self._found: list[tuple[Tensor, ...]] = []
        self._truths: list[tuple[Tensor, ...]] = []
        self._left_out = 0

    def watch(self, predictions: Iterable[Predicted]) -> Iterator[Predicted]:
        """The same batches, each kept before it is handed on."""
        for predicted in predictions:
            columns = predicted.detections, image_truths(predicted, self.config), predicted.placements()
            for (width, height), found, truth, place in zip(
                predicted.batch.original_sizes.tolist(), *columns, strict=True
            ):
                number = len(self._locations)
                self._add_found(number, found, place)
                self._add_truth(number, truth, place)
                self._locations.append(_location(self.images.frames[number], int(width), int(height)))
            yield predicted

    def details(self, result: Evaluation) -> Details:
        """Those of all batches so far, at least one.

        Args:
            result: what the same batches measure.
        """
        *found, found_counts = (torch.cat(column) for column in zip(*self._found))
        *truths, truths_count = (torch.cat(column) for column in zip(*self._truths))
        return Details(
            class_names=self.class_names,
            images=self._locations,
            found=Found(*found),
            found_counts=found_counts,
            truths=Labelled(*truths),
            truths_count=truths_count,
            overlaps=[self._scores.overlap(index) for index in range(len(self.class_names))],
            curves=[_curve(item) for item in result.classes],
            left_out=self._left_out,
        )

    def _add_found(self, number: int, all_found: Detections, place: Place) -> None:
        found = _strongest(all_found)
        self._left_out += len(all_found.scores) - len(found.scores)
        boxes, rows = _placed(found.boxes, place)
        own = Found(boxes, found.classes[rows], torch.full_like(rows, number), found.scores[rows].float())
        measured = own._replace(boxes=found.boxes[rows]) if self._in_network_pixels else own
        self._found.append((*own, self._scores.counted(measured)))

    def _add_truth(self, number: int, truth: Truth, place: Place) -> None:
        kept = (truth.classes >= 0) | (truth.classes == DONTCARE)
        boxes, classes = truth.boxes[kept], truth.classes[kept]
        measured = Labelled(boxes, classes, torch.full_like(classes, number))
        counts = self._scores.counted(measured)
        if not self._in_network_pixels:
            self._truths.append((boxes.float(), *measured[1:], counts))
            return
        moved, rows = _placed(boxes, place)
        self._truths.append((moved, *(column[rows] for column in (*measured[1:], counts))))

    @property
    def _in_network_pixels(self) -> bool:
        """Whether the protocol measures there; what is kept is in the pixels of the files."""
        return self.config.protocol == EvaluationConfig.VOC


def thinned(curve: Curve) -> Curve:
    """A curve of at most `MOST_POINTS` with the same first and last point, and the same area under its lines.

    The points between are the mean precision over equal parts of the recall.
    """
    if len(curve.recall) <= MOST_POINTS:
        return curve
    recall, precision = np.array(curve.recall), np.array(curve.precision)
    low, high = recall[0], recall[-1]
    if low == high:
        return Curve(recall[[0, -1]].tolist(), precision[[0, -1]].tolist())
    parts = np.diff(recall) * (precision[1:] + precision[:-1]) / 2
    edges = np.linspace(low, high, MOST_POINTS - ENDS + 1)
    areas = np.diff(np.interp(edges, recall, np.concatenate(([0.0], np.cumsum(parts)))))
    means = areas / np.diff(edges)
    middles = (edges[1:] + edges[:-1]) / 2
    return Curve(
        [float(low), float(low), *middles.tolist(), float(high), float(high)],
        [float(precision[0]), float(means[0]), *means.tolist(), float(means[-1]), float(precision[-1])],
    )


def _location(frame: Frame, width: int, height: int) -> Location:
    path = frame.path if is_remote(frame.path) else str(Path(local_path(frame.path)).absolute())
    return Location(path, -1 if frame.shard is None else frame.number, frame.frame_id, width, height)


def _strongest(found: Detections) -> Detections:
    """At most MOST_DETECTIONS of each class, those of the highest scores; the order stays."""
    if len(found.scores) <= MOST_DETECTIONS:
        return found
    kept = torch.zeros_like(found.classes, dtype=torch.bool)
    for number in set(found.classes.tolist()):
        kept[(found.classes == number).nonzero().flatten()[:MOST_DETECTIONS]] = True
    return Detections(*(column[kept] for column in found))


def _placed(boxes: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] in the pixels of the image file, and which rows [M] they were: what lies outside is dropped."""
    rows = torch.arange(len(boxes))
    # Numbers in the place of the scores tell which are left.
    moved = place(Detections(boxes.float(), rows.double(), torch.zeros_like(rows)))
    return moved.boxes, moved.scores.long()


def _curve(result: ClassResult) -> Curve:
    return thinned(Curve(result.recall_curve, result.precision_curve))
