"""From the candidates of a network to detections, as `postprocessing_config` says for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detectkit import spec
from detectkit.heads.head import Candidates
from detectkit.ops.cluster import Detections, by_image_and_score, cluster


class ClassClustering(NamedTuple):
    """How the cells of one class become detections."""

    config: spec.ClusteringConfig
    confidence_threshold: float = 0.0  # detections of a lower confidence are dropped
    confidence_model: str = "aggregate_cov"


def spec_clustering(config: spec.PostProcessingConfig) -> dict[str, ClassClustering]:
    """The clustering of a training spec by class name."""
    return {
        name: ClassClustering(entry.clustering_config, entry.confidence_config.confidence_threshold)
        for name, entry in config.target_class_config.items()
    }


def clustering_arguments(clustering: ClassClustering) -> dict[str, Any]:
    """The keyword arguments of `ops.cluster.cluster` for one class."""
    config = clustering.config
    algorithm = spec.ClusteringConfig.ClusteringAlgorithm.Name(config.clustering_algorithm).lower()
    return {
        "algorithm": algorithm,
        "coverage_threshold": config.coverage_threshold,
        "minimum_height": config.minimum_bounding_box_height,
        "dbscan_eps": config.dbscan_eps,
        "dbscan_min_samples": config.dbscan_min_samples,
        "dbscan_confidence_threshold": config.dbscan_confidence_threshold,
        "nms_iou_threshold": config.nms_iou_threshold,
        "nms_confidence_threshold": config.nms_confidence_threshold,
        "confidence_model": clustering.confidence_model,
        "confidence_threshold": clustering.confidence_threshold,
    }


def of_class(clustering: Mapping[str, ClassClustering], name: str) -> ClassClustering:
    """The clustering of a class: its own, else the entry "default", else that of an empty section."""
    found = clustering.get(name, clustering.get("default"))
    return ClassClustering(spec.ClusteringConfig()) if found is None else found


def lowest_score(clustering: Sequence[Mapping[str, Any]]) -> float:
    """The score that a candidate of any class must exceed."""
    return min(float(arguments["coverage_threshold"]) for arguments in clustering)


def parted(candidates: Candidates, numbers: Tensor, *, parts: int) -> list[Candidates]:
    """The candidates of each part, in their order, by one sort: a mask a part would go over all of them each time.

    Args:
        numbers: int64 [N], the part of each, from 0 to `parts` - 1.
    """
    order = numbers.argsort(stable=True)
    sizes = torch.bincount(numbers, minlength=parts).tolist()
    columns = (torch.split(values[order], sizes) for values in candidates)
    return [Candidates(*part) for part in zip(*columns, strict=True)]


def clustered(
    candidates: Candidates, clustering: Sequence[Mapping[str, Any]], *, images: int
) -> list[Detections]:
    """Cluster the candidates of every image and class.

    Args:
        clustering: for each class, the arguments of `ops.cluster.cluster`.
        images: how many there are.

    Returns:
        One `Detections` an image, by descending score.
    """
    of_classes = parted(candidates, candidates.classes, parts=len(clustering))
    parts = [
        cluster(own.boxes, own.scores, own.images, **arguments)
        for own, arguments in zip(of_classes, clustering, strict=True)
    ]
    boxes, scores, owners = (torch.cat(column) for column in zip(*parts))
    classes = torch.repeat_interleave(
        torch.arange(len(clustering)), torch.tensor([len(part[1]) for part in parts])
    )
    order = by_image_and_score(owners, scores)
    sizes = torch.bincount(owners, minlength=images).tolist()
    columns = (torch.split(values[order], sizes) for values in (boxes, scores, classes))
    return [Detections(*image) for image in zip(*columns)]
