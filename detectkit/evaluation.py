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
    cost: float | None  # mean unregularised cost of an image
    latency: Latency | None  # median over the batches, seconds an image

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that have labelled boxes, 0 to 1; 0 when none has."""
        values = [result.average_precision for result in self.classes if result.average_precision is not None]
        return statistics.fmean(values) if values else 0.0


class Scores:
    """Collects detections and labels image by image; `results` and `result` measure them.

    Both count only if their size passes the class's `evaluation_box_config`. An image counts once.
    """

    def __init__(self, class_names: list[str], config: EvaluationConfig):
        self.class_names, self.config = class_names, config
        self.images = 0
        self._found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # boxes, classes, images, scores
        self._labels: list[tuple[Tensor, Tensor, Tensor]] = []  # boxes, classes, images

    def add(self, detections: Detections, boxes: Tensor, classes: Tensor) -> None:
        """One image: its detections, and its labels as boxes [N, 4] and classes [N] in the same pixels; on the CPU."""
        image = torch.full((len(detections.boxes),), self.images)
        self._found.append((detections.boxes, detections.classes, image, detections.scores))
        self._labels.append((boxes, classes, torch.full((len(boxes),), self.images)))
        self.images += 1

    def results(self) -> list[ClassResult]:
        """One result a class, in the order of the class names; there must be an image."""
        found, labels = self._columns()
        return [self._class_result(index, found, labels) for index in range(len(self.class_names))]

    def result(self, index: int) -> ClassResult:
        """The result of one class alone; there must be an image."""
        return self._class_result(index, *self._columns())

    def _columns(self) -> tuple[list[Tensor], list[Tensor]]:
        """The detections and the labels of all images."""
        found = [torch.cat(column) for column in zip(*self._found)]
        return found, [torch.cat(column) for column in zip(*self._labels)]

    def _class_result(self, index: int, found: list[Tensor], labels: list[Tensor]) -> ClassResult:
        name = self.class_names[index]
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
    cost_sum = 0.0
    latencies: list[Latency] = []
    for predicted in predictions:
        for detections, labels in zip(predicted.detections, labels_by_image(predicted.prepared), strict=True):
            scores.add(detections, *labels)
        latencies.append(predicted.latency)
        if cost:
            cost_sum += cost(predicted) * len(predicted.detections)
    return Evaluation(
        classes=scores.results(),
        images=scores.images,
        cost=cost_sum / scores.images if cost else None,
        latency=Latency(*(statistics.median(stage) for stage in zip(*latencies))) if latencies else None,
    )


def evaluate_files(detections: Path, labels: Path, experiment: Experiment) -> Evaluation:
    """Measure KITTI detection files (16 columns) on label files of the same names, in the pixels they are written in.

    Labels count through `target_class_mapping` alone, as in training: one called like a target class but not mapped is
    background. Detections are of target classes or of names that are mapped; others are left out with a warning. A
    label file without a detection file is an image without detections. `evaluation_box_config` is applied in the
    pixels of the files, not in those of the network.

    Raises:
        DataError: no label files, no detection file for any of them, or a line that cannot be read.
    """
    names = class_names(experiment)
    mapping = experiment.dataset_config.target_class_mapping
    mapped = {_key(label): names.index(name) for label, name in mapping.items() if name in names}
    own = {_key(name): number for number, name in enumerate(names)}
    files = sorted(labels.glob("*.txt"))
    if not files:
        raise DataError(f"{labels} holds no label files (*.txt)")
    missing = {file for file in files if not (detections / file.name).exists()}
    if len(missing) == len(files):
        raise DataError(
            f"{detections} holds no detection file for any label file of {labels}, such as {files[0].name}"
        )
    if missing:
        log.warning(
            f"{len(missing)} of {len(files)} images have no file in {detections}, such as {min(missing).name}"
        )
    scores = Scores(names, experiment.evaluation_config)
    # A detection called like one target class and mapped to another is of the class of its name.
    detected = mapped | own
    unknown: set[str] = set()
    for file in files:
        truth, rejected = kitti.read_labels(file)
        for line, reason in rejected:
            log.warning(f"{file}:{line}: {reason}")
        found = [] if file in missing else kitti.read_detections(detections / file.name)
        unknown |= {label.name for label in found if _key(label.name) not in detected}
        boxes, classes, _ = _columns(truth, mapped)
        found_boxes, found_classes, confidence = _columns(found, detected)
        scores.add(Detections(found_boxes, confidence, found_classes), boxes, classes)
    if unknown:
        log.warning(
            f"detections of {', '.join(sorted(unknown))} are left out: neither target classes nor mapped to one"
        )
    return Evaluation(scores.results(), scores.images, cost=None, latency=None)


def labels_by_image(prepared: Prepared) -> list[tuple[Tensor, Tensor]]:
    """The labels of each image of a batch, boxes [N, 4] in network pixels and classes [N], on the CPU."""
    boxes, classes, image_index = (
        column.cpu() for column in (prepared.boxes, prepared.classes, prepared.image_index)
    )
    masks = [image_index == image for image in range(len(prepared.images))]
    return [(boxes[own], classes[own]) for own in masks]


def _columns(labels: Sequence[kitti.Label], numbers: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 4], classes [N] and scores [N] (0 without one) of the labels whose class counts."""
    known = [label for label in labels if _key(label.name) in numbers]
    boxes = torch.tensor([label.box for label in known]).reshape(-1, 4)
    classes = torch.tensor([numbers[_key(label.name)] for label in known], dtype=torch.int64)
    return boxes, classes, torch.tensor([label.score or 0.0 for label in known])


def _key(name: str) -> str:
    """A class name as label files are searched for it."""
    return kitti.file_name(name).lower()


def _threshold(overlaps: Mapping[str, float], name: str) -> float:
    # The spec's 32-bit 0.6 is a little above 0.6, which an overlap of exactly 0.6 would not reach.
    return round(overlaps[name], 6) if name in overlaps else 0.5
