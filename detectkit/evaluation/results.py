"""What evaluation takes for the truth of an image, and what it gives."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from detectkit.errors import DataError
from detectkit.predict import Latency


class Truth(NamedTuple):
    """The labels of an image on the CPU, in the pixels of the detections they are compared with. N boxes."""

    boxes: Tensor  # [N, 4]
    classes: Tensor  # int64 [N], a target class, BACKGROUND or DONTCARE, see `detectkit.data.labels`
    # KITTI's difficulties need these, the other protocols none of them:
    names: tuple[str, ...] = ()  # N names in lower case
    truncation: Tensor | None = None  # float32 [N]
    occlusion: Tensor | None = None  # int64 [N]


class ClassResult(NamedTuple):
    """One class. Without a labelled box there is no recall to speak of: average_precision and precision to threshold are None.

    Precision to true_positives, and the curves, are of the protocol's plainest setting: the one IoU of VOC, KITTI's
    moderate objects, the IoU 0.5 of COCO.
    """

    name: str
    average_precision: float | None  # 0 to 1
    precision: float | None  # at the threshold with the best F1
    recall: float | None
    f1: float | None
    threshold: float | None  # the score of the last detection counted there
    ground_truth: int
    detections: int
    true_positives: int  # among all detections
    precision_curve: list[float]  # by descending score
    recall_curve: list[float]
    figures: dict[str, float | None]  # the protocol's own, 0 to 1; None where no labelled box is of that kind


class Coverage(NamedTuple):
    """What a network gives for a class, 0 to 1, without augmentation."""

    objects: (
        float | None
    )  # mean over the cells at the centres (cov_center_x, cov_center_y) of its labels, where 1 is asked; None without any
    background: (
        float | None
    )  # mean over the cells that no label reaches into, where 0 is asked; None without any


class ClassMistakes(NamedTuple):
    """What is wrong with the detections of a class, and what it costs; see `detectkit.evaluation.mistakes`.

    Counted as the protocol VOC does, at the class's `minimum_detection_ground_truth_overlap`, in the protocol's pixels.
    """

    name: str
    labels: int
    found: int  # labels that are detected, at any score
    detections: int  # that count for or against
    average_precision: float | None  # 0 to 1; None without a label
    lenient_average_precision: float | None  # the same at an IoU of at most 0.5
    doubled: int  # detections on a label that another one has found
    doubled_cost: float  # what average_precision gains without them
    confused: int  # labels over which a detection of another class is stronger than all of this one
    confused_with: str  # the class that those are of most often; "" if there is none
    confused_cost: (
        float  # what average_precision gains where detections on labels of another class get its name
    )
    coverage: Coverage | None  # None where no network was run


class Evaluation(NamedTuple):
    """Accuracy over all images, and cost and latency where a network was run."""

    classes: list[ClassResult]
    images: int
    cost: float | None  # mean unregularised cost of an image
    latency: Latency | None  # median over the batches, seconds an image
    protocol: str = "VOC"
    rejected: int = 0  # lines of label files that could not be used
    mistakes: Sequence[ClassMistakes] = ()  # by class

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the classes that have labelled boxes, 0 to 1; None where none has: nothing is measured then."""
        return _mean(result.average_precision for result in self.classes)

    def required_mean(self) -> float:
        """`mean_average_precision`, for what is decided by it.

        Raises:
            DataError: no class has a labelled box.
        """
        mean = self.mean_average_precision
        if mean is None:
            raise DataError(
                f"no class has a labelled box that counts in the {self.images} images measured, so there is no mAP:"
                " measure images with labels of the classes (detectkit check -e SPEC counts them)"
            )
        return mean

    @property
    def mean_figures(self) -> dict[str, float | None]:
        """The mean of each of the protocol's figures over the classes that have it."""
        keys = self.classes[0].figures if self.classes else ()
        return {key: _mean(result.figures[key] for result in self.classes) for key in keys}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
