"""Finding the clustering values of each class that give the best average precision on images with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from google.protobuf import text_format
from torch import Tensor

from detectkit.console import ProgressBar
from detectkit.evaluation import Evaluation, Truth, image_truths, new_scores, placements
from detectkit.heads import GridHead, clustering_arguments, spec_clustering
from detectkit.ops.cluster import Detections, cluster
from detectkit.predict import Predicted
from detectkit.spec import ClusteringConfig, EvaluationConfig, Experiment, PostProcessingConfig, class_names

GRID: dict[str, tuple[float, ...]] = {
    "coverage_threshold": (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    "dbscan_eps": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6),
    "dbscan_min_samples": (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0),
}
ROUNDS = 2  # of going through the values one after the other


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


def tune_clustering(predictions: Iterable[Predicted], head: GridHead, experiment: Experiment) -> Tuned:
    """Search `coverage_threshold`, `dbscan_eps` and `dbscan_min_samples` for every class by itself.

    One value is changed at a time, from those of the spec, and kept where AP rises. A class that another algorithm
    than DBSCAN serves better keeps its own, as does a class without a labelled box.
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
    trials = len(names) * ROUNDS * sum(map(len, GRID.values()))
    with ProgressBar("tuning", total=trials, unit="trials") as bar:
        for index, config in enumerate(configs):
            _tune_class(images, index, config, experiment, bar)
    before = _measure_all(images, experiment.postprocessing_config, experiment)
    return Tuned(best, _measure_all(images, best, experiment), before)


def _tune_class(
    images: list[_Image], index: int, config: ClusteringConfig, experiment: Experiment, bar: ProgressBar
) -> None:
    """Change `config` in place to the best values for one class."""
    tuned = _copy(config, clustering_algorithm=ClusteringConfig.DBSCAN)
    before = score = _measure(images, index, config, experiment)
    if tuned != config:
        score = _measure(images, index, tuned, experiment)
    for _ in range(ROUNDS):
        for field, values in GRID.items():
            for value in values:
                trial = _copy(tuned, **{field: value})
                trial_score = _measure(images, index, trial, experiment)
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
    predicted: Predicted, head: GridHead, config: EvaluationConfig, *, lowest: float
) -> list[_Image]:
    """What clustering needs of a batch: the cells of more coverage than `lowest`."""
    boxes, coverage = head.candidates(predicted.outputs)
    truths, places = image_truths(predicted, config), placements(predicted, config)
    images = []
    for cells, values, truth, place in zip(boxes, coverage, truths, places, strict=True):
        kept = [class_values > lowest for class_values in values]
        images.append(
            _Image(
                [class_cells[mask] for class_cells, mask in zip(cells, kept, strict=True)],
                [class_values[mask] for class_values, mask in zip(values, kept, strict=True)],
                truth,
                place,
            )
        )
    return images


def _detections(image: _Image, index: int, arguments: dict[str, Any]) -> Detections:
    boxes, scores, _ = cluster(image.boxes[index], image.coverage[index], **arguments)
    return image.place(Detections(boxes, scores, torch.full((len(scores),), index)))


def _measure(images: list[_Image], index: int, config: ClusteringConfig, experiment: Experiment) -> float:
    """AP of one class; 0 where it has no labels."""
    names = class_names(experiment)
    of_spec = spec_clustering(experiment.postprocessing_config)[names[index]]
    arguments = clustering_arguments(of_spec._replace(config=config))
    scores = new_scores(names, experiment.evaluation_config)
    for image in images:
        scores.add(_detections(image, index, arguments), image.truth)
    return scores.result(index).average_precision or 0.0


def _measure_all(
    images: list[_Image], postprocessing: PostProcessingConfig, experiment: Experiment
) -> Evaluation:
    names = class_names(experiment)
    clustering = spec_clustering(postprocessing)
    arguments = [clustering_arguments(clustering[name]) for name in names]
    scores = new_scores(names, experiment.evaluation_config)
    for image in images:
        parts = [_detections(image, index, values) for index, values in enumerate(arguments)]
        scores.add(Detections(*(torch.cat(column) for column in zip(*parts))), image.truth)
    protocol = EvaluationConfig.PROTOCOL.Name(experiment.evaluation_config.protocol)
    return Evaluation(scores.results(), scores.images, cost=None, latency=None, protocol=protocol)
