"""Predicted batches against the labels that came with them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import torch

from detectkit.data.augment import Prepared
from detectkit.data.batch import Batch
from detectkit.data.labels import DONTCARE
from detectkit.evaluation.coco import CocoScores
from detectkit.evaluation.kitti import KittiScores
from detectkit.evaluation.confusion import confusion
from detectkit.evaluation.mistakes import CoverageMeter, mistakes, size_bounds
from detectkit.evaluation.results import Evaluation, Truth
from detectkit.evaluation.voc import Scores
from detectkit.ops.cluster import Detections
from detectkit.ops.rasterize import ClassGeometry
from detectkit.predict import Latency, Predicted
from detectkit.spec import EvaluationConfig

Cost = Callable[[Predicted], float]
Place = Callable[[Detections], Detections]


def evaluate(
    predictions: Iterable[Predicted],
    class_names: list[str],
    config: EvaluationConfig,
    *,
    geometry: ClassGeometry | None = None,
    cost: Cost | None = None,
) -> Evaluation:
    """Measure predicted batches as `config.protocol` says: VOC in network pixels, the others in those of the files.

    Args:
        geometry: of the head's classes; coverage on and beside objects is measured where it is given.
        cost: of a predicted batch, for the validation cost.

    Raises:
        DetectkitError: the protocol needs a package that is not installed.
    """
    scores = new_scores(class_names, config)
    meter = CoverageMeter(geometry) if geometry else None
    cost_sum = 0.0
    latencies: list[Latency] = []
    scales: list[float] = []
    for predicted in predictions:
        places, truths = placements(predicted, config), image_truths(predicted, config)
        for detections, place, truth in zip(predicted.detections, places, truths, strict=True):
            scores.add(place(detections), truth)
        if meter:
            meter.add(predicted)
        latencies.append(predicted.latency)
        scales += _scales(predicted, config)
        if cost:
            cost_sum += cost(predicted) * len(predicted.detections)
    results = scores.results()
    return Evaluation(
        classes=results,
        images=scores.images,
        cost=cost_sum / scores.images if cost else None,
        latency=Latency(*(statistics.median(stage) for stage in zip(*latencies))) if latencies else None,
        protocol=EvaluationConfig.PROTOCOL.Name(config.protocol),
        mistakes=mistakes(scores, meter),
        sizes=size_bounds(scores),
        confusion=confusion(scores, results),
        scale=statistics.fmean(scales) if scales else None,
    )


def new_scores(class_names: list[str], config: EvaluationConfig) -> Scores:
    """An empty collection that measures by `config.protocol`."""
    protocols = {EvaluationConfig.KITTI: KittiScores, EvaluationConfig.COCO: CocoScores}
    return protocols.get(config.protocol, Scores)(class_names, config)


def placements(predicted: Predicted, config: EvaluationConfig) -> list[Place]:
    """For each image what brings detections from network pixels to those that the protocol measures."""
    if config.protocol == EvaluationConfig.VOC:
        return [_stay] * len(predicted.detections)
    return predicted.placements()


def _scales(predicted: Predicted, config: EvaluationConfig) -> list[float]:
    """For each image the side of a pixel that the protocol measures, in network pixels."""
    if config.protocol == EvaluationConfig.VOC:
        return [1.0] * len(predicted.detections)
    scales: list[float] = torch.linalg.det(predicted.prepared.matrices[:, :2, :2]).abs().sqrt().tolist()
    return scales


def _stay(found: Detections) -> Detections:
    return found


def image_truths(predicted: Predicted, config: EvaluationConfig) -> list[Truth]:
    """The labels of each image of a batch in the pixels that the protocol measures."""
    if config.protocol == EvaluationConfig.VOC:
        return _prepared_truths(predicted.prepared)
    return _original_truths(predicted.batch)


def _prepared_truths(prepared: Prepared) -> list[Truth]:
    """In network pixels: labels of target classes, and DontCare regions."""
    parts = [prepared.labels]
    if (prepared.others.classes == DONTCARE).any():
        parts.append(prepared.others)
    columns = zip(*((part.boxes, part.classes, part.image_index) for part in parts))
    boxes, classes, image_index = (torch.cat(column).cpu() for column in columns)
    masks = [image_index == image for image in range(len(prepared.images))]
    return [Truth(boxes[own], classes[own]) for own in masks]


def _original_truths(batch: Batch) -> list[Truth]:
    """In the pixels of the image files, all labels, clipped to nothing."""
    truths = []
    for image in range(len(batch.images)):
        own = (batch.image_index == image).nonzero().flatten()
        names = tuple(batch.names[label] for label in own.tolist())
        truths.append(
            Truth(batch.boxes[own], batch.classes[own], names, batch.truncation[own], batch.occlusion[own])
        )
    return truths
