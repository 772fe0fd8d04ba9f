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
    tenths: Sequence[
        float
    ] = ()  # of that on objects the least, nine tenths between, and the most; () without any


class Kinds(NamedTuple):
    """A number for each kind of mistake, as TIDE tells them apart (Bolya et al. 2020), see `detectkit.evaluation.kinds`."""

    wrong_class: float = 0  # on a label of another class, as a right one of that would lie
    misplaced: float = 0  # on a label of its class, and overlaps it too little
    both: float = 0  # on a label of another class, and overlaps it too little
    duplicate: float = 0  # right, on a label that a stronger one has found
    background: float = 0  # on no label
    missed: float = 0  # labels that have neither a right detection nor one of the first two kinds


TITLES = ("wrong class", "badly placed", "both", "doubled", "background", "missed")  # of `Kinds`, for people


class Sides(NamedTuple):
    """How large labels are: medians of the root of the area, in the protocol's pixels; None without any."""

    found: float | None = None
    missed: float | None = None  # of those that are `Kinds.missed`


class Suppression(NamedTuple):
    """The IoU from which of two detections of a class the weaker is best dropped, tried on the detections themselves."""

    overlap: float
    gain: float  # of average_precision


class Cut(NamedTuple):
    """A score below which hardly a right detection lies."""

    score: float
    dropped: int  # wrong detections below it
    lost: int  # right ones


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
    counts: Kinds = Kinds()
    costs: Kinds = (
        Kinds()
    )  # what average_precision gains where all of one kind, and they alone, are put right
    costs_by_size: Sequence[Kinds] = ()  # the same of small, medium and large ones alone
    sides: Sides = Sides()
    suppression: Suppression | None = (
        None  # tried where doubled_cost is worth it, None where nothing is gained
    )
    cut: Cut | None = None  # None where no detection is right


class Confusion(NamedTuple):
    """How often labels of a class are found as which, by detections of the score where the F1 of their class is best.

    A detection belongs to one label at most: first those that are right, then the others by falling score to the label
    that they overlap most of those left, as a right one of its class would.
    """

    class_names: Sequence[str]  # C
    counts: Sequence[
        Sequence[int]
    ]  # [C + 1][C + 1]: label, detection; the last row and column are the background's

    def worst(self, most: int) -> list[tuple[str, str, int]]:
        """The pairs (label, detection, how often) of two classes that are most often confused."""
        pairs = [
            (label, found, self.counts[row][column])
            for row, label in enumerate(self.class_names)
            for column, found in enumerate(self.class_names)
            if row != column and self.counts[row][column]
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:most]


class Evaluation(NamedTuple):
    """Accuracy over all images, and cost and latency where a network was run."""

    classes: list[ClassResult]
    images: int
    cost: float | None  # mean unregularised cost of an image
    latency: Latency | None  # median over the batches, seconds an image
    protocol: str = "VOC"
    rejected: int = 0  # lines of label files that could not be used
    mistakes: Sequence[ClassMistakes] = ()  # by class
    sizes: tuple[float, float] | None = (
        None  # sides of the squares that small and medium boxes are at most as large as
    )
    confusion: Confusion | None = None
    scale: float | None = (
        None  # pixels of the network's input in one that the protocol counts; None without a network
    )

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
    def mean_costs(self) -> Kinds:
        """`ClassMistakes.costs`, the mean over the classes with a label."""
        return _mean_kinds([item.costs for item in self.mistakes if item.labels])

    @property
    def mean_costs_by_size(self) -> list[Kinds]:
        """The same for small, medium and large ones."""
        labelled = [item.costs_by_size for item in self.mistakes if item.labels]
        return [_mean_kinds(column) for column in zip(*labelled, strict=True)]

    @property
    def mean_figures(self) -> dict[str, float | None]:
        """The mean of each of the protocol's figures over the classes that have it."""
        keys = self.classes[0].figures if self.classes else ()
        return {key: _mean(result.figures[key] for result in self.classes) for key in keys}


def _mean_kinds(costs: Sequence[Kinds]) -> Kinds:
    return Kinds(*(statistics.fmean(column) for column in zip(*costs))) if costs else Kinds()


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
