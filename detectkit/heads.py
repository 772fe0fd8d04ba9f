"""What makes a detector a *grid* detector: targets, costs and detections, read from the spec.

This is the one seam between spec fields and `detectkit.ops`. B images, C classes, H x W grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detectkit import spec
from detectkit.data.augment import Prepared
from detectkit.ops.cluster import Detections, cluster
from detectkit.ops.decode import decode
from detectkit.ops.losses import bbox_cost, coverage_cost
from detectkit.ops.rasterize import ClassGeometry, Targets, rasterize

OBJECTIVES = ("cov", "bbox")


class GridHead:
    """Reads the sections of an experiment spec that give a grid detector its meaning.

    Args:
        experiment: the spec; `cost_function_config.target_classes` gives the classes in channel order.
        stride: input pixels per grid cell.
        clustering: clustering by class name, when it is not to be that of `postprocessing_config` (an inference
            spec brings its own); the entry "default" serves the classes without one.
    """

    def __init__(
        self,
        experiment: spec.Experiment,
        *,
        stride: int = 16,
        clustering: Mapping[str, spec.ClusteringConfig] | None = None,
    ):
        self.stride = stride
        self.class_names = spec.class_names(experiment)
        preprocessing = experiment.augmentation_config.preprocessing
        self.width, self.height = preprocessing.output_image_width, preprocessing.output_image_height
        objective = experiment.model_config.objective_set.bbox
        self.scale, self.offset = objective.scale, objective.offset
        self.deadzone_radius = experiment.bbox_rasterizer_config.deadzone_radius
        self.geometry = _geometry(experiment.bbox_rasterizer_config, self.class_names)
        costs = experiment.cost_function_config.target_classes
        self.foreground_weight = torch.tensor([target.coverage_foreground_weight for target in costs])
        if clustering is None:
            post = experiment.postprocessing_config.target_class_config
            clustering = {name: post[name].clustering_config for name in self.class_names if name in post}
        self.clustering = [clustering_arguments(_for_class(clustering, name)) for name in self.class_names]

    def targets(self, prepared: Prepared) -> Targets:
        """Rasterise the boxes of a batch into coverage [B, C, H, W] and boxes [B, C, 4, H, W], on its device."""
        return rasterize(
            prepared.boxes,
            prepared.image_index,
            prepared.classes,
            batch_size=len(prepared.images),
            geometry=ClassGeometry(*(values.to(prepared.boxes.device) for values in self.geometry)),
            deadzone_radius=self.deadzone_radius,
            stride=self.stride,
            grid_width=self.width // self.stride,
            grid_height=self.height // self.stride,
            scale=self.scale,
            offset=self.offset,
        )

    def costs(self, outputs: tuple[Tensor, Tensor], targets: Targets, image_weights: Tensor) -> Tensor:
        """Unweighted cost of every class and objective, [C, 2] in the order of `OBJECTIVES`.

        Args:
            outputs: coverage [B, C, H, W] and boxes [B, 4C, H, W] as the detector gives them.
            image_weights: [B], the `source_weight` of each image.
        """
        coverage, bbox = outputs
        mask = image_weights[:, None, None, None]
        weight = self.foreground_weight.to(coverage.device)
        return torch.stack(
            [
                coverage_cost(coverage, targets.coverage, foreground_weight=weight, mask=mask),
                bbox_cost(by_class(bbox), targets.bbox, coverage_norm=targets.coverage_norm, mask=mask),
            ],
            dim=1,
        )

    def candidates(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes [B, C, H, W, 4] in network pixels, clipped to the image, and their coverage [B, C, H, W], on the CPU."""
        coverage, bbox = outputs
        boxes = decode(
            by_class(bbox),
            stride=self.stride,
            scale=self.scale,
            offset=self.offset,
            width=self.width,
            height=self.height,
        )
        return boxes.cpu(), coverage.cpu()

    def detections(self, outputs: tuple[Tensor, Tensor]) -> list[Detections]:
        """Cluster the cells of every image and class into detections, boxes in network pixels."""
        boxes, coverage = self.candidates(outputs)
        return [self._image_detections(boxes[image], coverage[image]) for image in range(len(coverage))]

    def _image_detections(self, boxes: Tensor, coverage: Tensor) -> Detections:
        parts = [
            cluster(boxes[index].reshape(-1, 4), coverage[index].reshape(-1), **arguments)
            for index, arguments in enumerate(self.clustering)
        ]
        classes = [torch.full((len(scores),), index) for index, (_, scores) in enumerate(parts)]
        scores = torch.cat([scores for _, scores in parts])
        order = scores.argsort(descending=True, stable=True)
        return Detections(
            torch.cat([boxes for boxes, _ in parts])[order], scores[order], torch.cat(classes)[order]
        )


def by_class(bbox: Tensor) -> Tensor:
    """[B, 4C, H, W], class-major as the network gives it, to [B, C, 4, H, W]."""
    batch, channels, height, width = bbox.shape
    return bbox.reshape(batch, channels // 4, 4, height, width)


def clustering_arguments(config: spec.ClusteringConfig) -> dict[str, Any]:
    """The keyword arguments of `ops.cluster.cluster` for one class."""
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
    }


def _for_class(clustering: Mapping[str, spec.ClusteringConfig], name: str) -> spec.ClusteringConfig:
    found = clustering.get(name, clustering.get("default"))
    return spec.ClusteringConfig() if found is None else found


def _geometry(config: spec.BboxRasterizerConfig, class_names: Sequence[str]) -> ClassGeometry:
    targets = [config.target_class_config[name] for name in class_names]
    fields = ("cov_center_x", "cov_center_y", "cov_radius_x", "cov_radius_y", "bbox_min_radius")
    return ClassGeometry(*(torch.tensor([getattr(target, field) for target in targets]) for field in fields))
