"""Finding the clustering values of each class that give the best average precision on images with labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from google.protobuf import text_format
from torch import Tensor

from detectkit.console import ProgressBar
from detectkit.evaluation import Evaluation, Truth, image_truths, new_scores, placements
from detectkit.heads import Head
from detectkit.heads.clustering import clustering_arguments, parted, spec_clustering
from detectkit.ops.cluster import Detections, cluster
from detectkit.predict import Predicted
from detectkit.spec import ClusteringConfig, EvaluationConfig, Experiment, PostProcessingConfig, class_names

GRID: dict[str, tuple[float, ...]] = {
    "coverage_threshold": (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    "dbscan_eps": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6),
    "dbscan_min_samples": (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0),
}
ROUNDS = 2  # of going through the values one after the other
GROUP = 32  # images clustered at once: faster than one by one, and bounds the memory


class Tuned(NamedTuple):
    """The best values found, and what they and those of the spec measure on the images of the search."""

    postprocessing: PostProcessingConfig
    evaluation: Evaluation
    before: Evaluation

    @property
    def block(self) -> str:
        """The values as text, to paste into a spec."""
        return text_format.MessageToString(
            Experiment(postprocessing_config=self.postprocessing), as_utf8=True
        )


class _Image(NamedTuple):
    """What clustering needs of one image, and its labels."""

    boxes: list[Tensor]  # for each class, candidates [N, 4]
    coverage: list[Tensor]  # for each class [N]
    truth: Truth
    place: Callable[[Detections], Detections]  # to the pixels of the labels


class _Group(NamedTuple):
    """Candidates of one class in several images."""

    boxes: Tensor  # [N, 4]
    coverage: Tensor  # [N]
    image_index: Tensor  # int64 [N], ascending
    images: list[_Image]


def tune_clustering(predictions: Iterable[Predicted], head: Head[Any], experiment: Experiment) -> Tuned:
    """Search `coverage_threshold`, `dbscan_eps` and `dbscan_min_samples` for every class by itself.

    One value is changed at a time, from those of the spec, and kept where AP rises. A class that another algorithm
    than DBSCAN serves better keeps its own, as does a class without a labelled box.

    Raises:
        DataError: no class has a labelled box.
    """
    best = PostProcessingConfig()
    best.CopyFrom(experiment.postprocessing_config)
    names = class_names(experiment)
    configs = [best.target_class_config[name].clustering_config for name in names]
    lowest = min(*GRID["coverage_threshold"], *(config.coverage_threshold for config in configs))
    protocol = experiment.evaluation_config
    images = [
        image for predicted in predictions for image in _candidates(predicted, head, protocol, lowest=lowest)
    ]
    before = _measure_all(images, experiment.postprocessing_config, experiment)
    before.required_mean()
    labelled = [index for index, item in enumerate(before.classes) if item.average_precision is not None]
    trials = len(labelled) * ROUNDS * sum(map(len, GRID.values()))
    with ProgressBar("tuning", total=trials, unit="trials") as bar:
        for index in labelled:
            _tune_class(images, index, configs[index], experiment, bar)
    return Tuned(best, _measure_all(images, best, experiment), before)


def _tune_class(
    images: list[_Image], index: int, config: ClusteringConfig, experiment: Experiment, bar: ProgressBar
) -> None:
    """Change `config` in place to the best values for one class."""
    groups = _groups(images, index)
    tuned = _copy(config, clustering_algorithm=ClusteringConfig.DBSCAN)
    before = score = _measure(groups, index, config, experiment)
    if tuned != config:
        score = _measure(groups, index, tuned, experiment)
    for _ in range(ROUNDS):
        for field, values in GRID.items():
            for value in values:
                trial = _copy(tuned, **{field: value})
                trial_score = _measure(groups, index, trial, experiment)
                if trial_score > score:
                    score, tuned = trial_score, trial
                bar.advance()
    if score > before:
        config.CopyFrom(tuned)


def _copy(config: ClusteringConfig, **changes: Any) -> ClusteringConfig:
    copy = ClusteringConfig()
    copy.CopyFrom(config)
    for field, value in changes.items():
        setattr(copy, field, value)
    return copy


def _candidates(
    predicted: Predicted, head: Head[Any], config: EvaluationConfig, *, lowest: float
) -> list[_Image]:
    """What clustering needs of a batch: the candidates of a score above `lowest`."""
    found, classes = head.candidates(predicted.outputs, lowest=lowest), len(head.class_names)
    images = list(zip(image_truths(predicted, config), placements(predicted, config), strict=True))
    parts = iter(parted(found, found.images * classes + found.classes, parts=len(images) * classes))
    return [
        _Image([part.boxes for part in own], [part.scores for part in own], truth, place)
        for truth, place in images
        for own in [list(itertools.islice(parts, classes))]
    ]


def _groups(images: list[_Image], index: int) -> list[_Group]:
    """The candidates of one class, in the order of the images."""
    groups = []
    for start in range(0, len(images), GROUP):
        members = images[start : start + GROUP]
        boxes = torch.cat([image.boxes[index] for image in members])
        coverage = [image.coverage[index] for image in members]
        counts = torch.tensor([len(values) for values in coverage])
        numbers = torch.repeat_interleave(torch.arange(len(members)), counts)
        groups.append(_Group(boxes, torch.cat(coverage), numbers, members))
    return groups


def _detections(groups: list[_Group], index: int, arguments: dict[str, Any]) -> Iterator[Detections]:
    """What clustering makes of the candidates of a class, one `Detections` an image."""
    for group in groups:
        boxes, scores, numbers = cluster(group.boxes, group.coverage, group.image_index, **arguments)
        sizes = torch.bincount(numbers, minlength=len(group.images)).tolist()
        for image, own, own_scores in zip(
            group.images, torch.split(boxes, sizes), torch.split(scores, sizes), strict=True
        ):
            yield image.place(Detections(own, own_scores, torch.full((len(own),), index)))


def _measure(groups: list[_Group], index: int, config: ClusteringConfig, experiment: Experiment) -> float:
    """AP of one class; 0 where it has no labels."""
    names = class_names(experiment)
    of_spec = spec_clustering(experiment.postprocessing_config)[names[index]]
    arguments = clustering_arguments(of_spec._replace(config=config))
    scores = new_scores(names, experiment.evaluation_config)
    images = (image for group in groups for image in group.images)
    for image, found in zip(images, _detections(groups, index, arguments), strict=True):
        scores.add(found, image.truth)
    return scores.result(index).average_precision or 0.0


def _measure_all(
    images: list[_Image], postprocessing: PostProcessingConfig, experiment: Experiment
) -> Evaluation:
    names = class_names(experiment)
    clustering = spec_clustering(postprocessing)
    scores = new_scores(names, experiment.evaluation_config)
    of_classes = (
        _detections(_groups(images, index), index, clustering_arguments(clustering[name]))
        for index, name in enumerate(names)
    )
    for image, *parts in zip(images, *of_classes, strict=True):
        scores.add(Detections(*(torch.cat(column) for column in zip(*parts))), image.truth)
    protocol = EvaluationConfig.PROTOCOL.Name(experiment.evaluation_config.protocol)
    return Evaluation(scores.results(), scores.images, cost=None, latency=None, protocol=protocol)
