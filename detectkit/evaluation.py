"""Average precision, precision and recall, and latency of detections against labels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.console import log
from detectkit.data import kitti
from detectkit.data.augment import Prepared
from detectkit.errors import DataError
from detectkit.ops.cluster import Detections
from detectkit.ops.metrics import average_precision, best_f1, match, precision_recall
from detectkit.predict import Latency, Predicted
from detectkit.spec import EvaluationConfig, Experiment, class_names

Cost = Callable[[Predicted], float]


class ClassResult(NamedTuple):
    """One class. `average_precision` is None for a class without a labelled box: it has no recall to speak of."""

    name: str
    average_precision: float | None  # 0 to 1
    precision: float  # at the threshold with the best F1
    recall: float
    f1: float
    threshold: float  # the score of the last detection counted there
    ground_truth: int
    detections: int
    true_positives: int  # among all detections
    precision_curve: list[float]  # by descending score
    recall_curve: list[float]


class Evaluation(NamedTuple):
    """Accuracy over all images, and cost and latency where a network was run."""

    classes: list[ClassResult]
    images: int
    cost: float | None  # mean unregularised cost of a batch
    latency: Latency | None  # median over the batches, seconds an image

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that have labelled boxes, 0 to 1; 0 when none has."""
        values = [result.average_precision for result in self.classes if result.average_precision is not None]
        return statistics.fmean(values) if values else 0.0


class Scores:
    """Collects detections and labels image by image; `results` measures them.

    Both count only if their size passes the class's `evaluation_box_config`. An image counts once.
    """

    def __init__(self, class_names: list[str], config: EvaluationConfig):
        self.class_names, self.config = class_names, config
        self.images = 0
        self._found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # boxes, classes, images, scores
        self._labels: list[tuple[Tensor, Tensor, Tensor]] = []  # boxes, classes, images

    def add(self, detections: Detections, boxes: Tensor, classes: Tensor) -> None:
        """One image: its detections, and its labels as boxes [N, 4] and classes [N] in the same pixels."""
        image = torch.full((len(detections.boxes),), self.images)
        self._found.append((detections.boxes, detections.classes, image, detections.scores))
        self._labels.append((boxes.cpu(), classes.cpu(), torch.full((len(boxes),), self.images)))
        self.images += 1

    def results(self) -> list[ClassResult]:
        """One result a class, in the order of the class names; there must be an image."""
        found = [torch.cat(column) for column in zip(*self._found)]
        labels = [torch.cat(column) for column in zip(*self._labels)]
        return [self._class_result(index, name, found, labels) for index, name in enumerate(self.class_names)]

    def _class_result(self, index: int, name: str, found: list[Tensor], labels: list[Tensor]) -> ClassResult:
        boxes, _, images, scores = (column[self._counts(index, name, found)] for column in found)
        truth, _, truth_images = (column[self._counts(index, name, labels)] for column in labels)
        overlap = _threshold(self.config.minimum_detection_ground_truth_overlap, name)
        hit = match(boxes, scores, images, truth, truth_images, iou_threshold=overlap)
        precision, recall, ranked = precision_recall(scores, hit, len(truth))
        sampled = self.config.average_precision_mode == EvaluationConfig.SAMPLE
        area = average_precision(precision, recall, "sample" if sampled else "integrate")
        best = best_f1(precision, recall, ranked)
        return ClassResult(
            name=name,
            average_precision=area if len(truth) else None,
            precision=float(best[0]),
            recall=float(best[1]),
            f1=float(best[2]),
            threshold=float(best[3]),
            ground_truth=len(truth),
            detections=len(boxes),
            true_positives=int(hit.sum()),
            precision_curve=precision.tolist(),
            recall_curve=recall.tolist(),
        )

    def _counts(self, index: int, name: str, columns: list[Tensor]) -> Tensor:
        """Which rows are of this class and of a size that counts."""
        boxes, classes = columns[:2]
        own = classes == index
        limits = self.config.evaluation_box_config
        if name not in limits:
            return own
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        limit = limits[name]
        own &= (width >= limit.minimum_width) & (height >= limit.minimum_height)
        return own & (width <= limit.maximum_width) & (height <= limit.maximum_height)


def evaluate(
    predictions: Iterable[Predicted],
    class_names: list[str],
    config: EvaluationConfig,
    *,
    cost: Cost | None = None,
) -> Evaluation:
    """Measure predicted batches against the labels that came with them, in network pixels.

    Args:
        cost: of a predicted batch, for the validation cost.
    """
    scores = Scores(class_names, config)
    costs: list[float] = []
    latencies: list[Latency] = []
    for predicted in predictions:
        for image, detections in enumerate(predicted.detections):
            scores.add(detections, *_labels(predicted.prepared, image))
        latencies.append(predicted.latency)
        if cost:
            costs.append(cost(predicted))
    return Evaluation(
        classes=scores.results(),
        images=scores.images,
        cost=statistics.fmean(costs) if costs else None,
        latency=Latency(*(statistics.median(stage) for stage in zip(*latencies))) if latencies else None,
    )


def evaluate_files(detections: Path, labels: Path, experiment: Experiment) -> Evaluation:
    """Measure KITTI detection files (16 columns) on label files of the same names, in the pixels they are written in.

    Names go through `target_class_mapping`; those that it does not map are left out, like unmapped labels in training.
    A label file without a detection file is an image without detections.

    Raises:
        DataError: no label files, no detection file for any of them, or a line that cannot be read.
    """
    names = class_names(experiment)
    mapping = {key.lower(): value for key, value in experiment.dataset_config.target_class_mapping.items()}
    numbers = {key: names.index(value) for key, value in mapping.items() if value in names}
    numbers |= {name.lower(): number for number, name in enumerate(names)}
    files = sorted(labels.glob("*.txt"))
    if not files:
        raise DataError(f"{labels} holds no label files (*.txt)")
    missing = [file.name for file in files if not (detections / file.name).exists()]
    if len(missing) == len(files):
        raise DataError(
            f"{detections} holds no detection file for any label file of {labels}, such as {missing[0]}"
        )
    if missing:
        log.warning(
            f"{len(missing)} of {len(files)} images have no file in {detections}, such as {missing[0]}"
        )
    scores = Scores(names, experiment.evaluation_config)
    for file in files:
        truth, rejected = kitti.read_labels(file)
        for line, reason in rejected:
            log.warning(f"{file}:{line}: {reason}")
        found = [] if file.name in missing else kitti.read_detections(detections / file.name)
        boxes, classes = _columns(truth, numbers)
        confidence = torch.tensor([label.score for label in found if label.name.lower() in numbers])
        found_boxes, found_classes = _columns(found, numbers)
        scores.add(Detections(found_boxes, confidence, found_classes), boxes, classes)
    return Evaluation(scores.results(), scores.images, cost=None, latency=None)


def _columns(labels: Sequence[kitti.Label], numbers: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] and classes [N] of the labels whose class counts."""
    known = [label for label in labels if label.name.lower() in numbers]
    boxes = torch.tensor([label.box for label in known]).reshape(-1, 4)
    return boxes, torch.tensor([numbers[label.name.lower()] for label in known], dtype=torch.int64)


def _labels(prepared: Prepared, image: int) -> tuple[Tensor, Tensor]:
    own = prepared.image_index == image
    return prepared.boxes[own], prepared.classes[own]


def _threshold(overlaps: Mapping[str, float], name: str) -> float:
    return overlaps[name] if name in overlaps else 0.5
