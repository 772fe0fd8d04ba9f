"""What makes a detector a *grid* detector: targets, costs and detections, read from the spec.

This is the one seam between spec fields and `detectkit.ops`. B images, C classes, H x W grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from detectkit import spec
from detectkit.data.augment import Labels, Prepared
from detectkit.data.labels import DONTCARE
from detectkit.heads.clustering import (
    ClassClustering,
    clustered,
    clustering_arguments,
    lowest_score,
    of_class,
    spec_clustering,
)
from detectkit.heads.head import Candidates, Maps
from detectkit.heads.outline import Outline
from detectkit.heads.pictures import pictures
from detectkit.heads.weighting import OBJECTIVES, ObjectiveWeights
from detectkit.ops.cluster import Detections
from detectkit.ops.decode import decode, highest
from detectkit.ops.losses import bbox_cost, coverage_cost, giou_cost
from detectkit.ops.rasterize import ClassGeometry, Targets, rasterize, touched


class GridHead:
    """Reads the sections of an experiment spec that give a grid detector its meaning.

    Args:
        experiment: the spec; `cost_function_config.target_classes` gives the classes in channel order.
        outline: of the network.
        clustering: see `heads.make_head`.
    """

    def __init__(
        self,
        experiment: spec.Experiment,
        outline: Outline,
        *,
        clustering: Mapping[str, ClassClustering] | None = None,
    ):
        self.stride = outline.levels[0].stride  # input pixels a grid cell
        self.class_names = spec.class_names(experiment)
        preprocessing = experiment.augmentation_config.preprocessing
        self.width, self.height = preprocessing.output_image_width, preprocessing.output_image_height
        objective = experiment.model_config.objective_set.bbox
        self.scale, self.offset = objective.scale, objective.offset
        ratios = objective.loss_ratios
        self.giou_share = ratios.giou / (ratios.l1 + ratios.giou)
        self.deadzone_radius = experiment.bbox_rasterizer_config.deadzone_radius
        self.geometry = _geometry(experiment.bbox_rasterizer_config, self.class_names)
        costs = experiment.cost_function_config.target_classes
        self.foreground_weight = torch.tensor([target.coverage_foreground_weight for target in costs])
        self.focal_gamma = experiment.cost_function_config.coverage_focal_gamma
        self.loss_mask = LossMask(experiment, self.class_names)
        if clustering is None:
            clustering = spec_clustering(experiment.postprocessing_config)
        self.clustering = [clustering_arguments(of_class(clustering, name)) for name in self.class_names]
        self._cost_config = experiment.cost_function_config
        shown = experiment.training_config.visualizer.target_class_config
        # Of cells whose boxes are drawn; 0 for the classes without one.
        self._drawn_above = {name: entry.coverage_threshold for name, entry in shown.items()}

    def targets(self, prepared: Prepared) -> Targets:
        """Rasterise the boxes of a batch into coverage [B, C, H, W] and boxes [B, C, 4, H, W], on its device."""
        labels = prepared.labels
        targets = rasterize(
            labels.boxes,
            labels.image_index,
            labels.classes,
            batch_size=len(prepared.images),
            geometry=ClassGeometry(*(values.to(labels.boxes.device) for values in self.geometry)),
            deadzone_radius=self.deadzone_radius,
            stride=self.stride,
            grid_width=self.width // self.stride,
            grid_height=self.height // self.stride,
            scale=self.scale,
            offset=self.offset,
        )
        return targets._replace(mask=self.loss_mask.of(prepared, targets.coverage, stride=self.stride))

    def coverage(self, targets: Targets) -> Tensor:
        """That of the targets, [B, C, H, W]."""
        return targets.coverage

    def costs(self, outputs: Maps, targets: Targets, image_weights: Tensor) -> dict[str, Tensor]:
        """Unweighted cost of every class, [C], by objective.

        Args:
            outputs: coverage [B, C, H, W] and boxes [B, 4C, H, W] as the detector gives them.
            image_weights: [B], the `source_weight` of each image.
        """
        coverage, boxes = outputs[0], by_class(outputs[1])
        mask = box_mask = image_weights[:, None, None, None]
        if targets.mask is not None:
            mask, box_mask = (mask * factors for factors in targets.mask.unbind(2))
        weight = self.foreground_weight.to(coverage.device)
        box_cost = bbox_cost(boxes, targets.bbox, coverage_norm=targets.coverage_norm, mask=box_mask)
        if self.giou_share:
            giou = giou_cost(boxes, targets.bbox, coverage_norm=targets.coverage_norm, mask=box_mask)
            box_cost = (1 - self.giou_share) * box_cost + self.giou_share * giou
        cost = coverage_cost(
            coverage, targets.coverage, foreground_weight=weight, focal_gamma=self.focal_gamma, mask=mask
        )
        return {"cov": cost, "bbox": box_cost}

    def balance(self) -> ObjectiveWeights:
        """A new balance of the costs, with the initial weights of the spec."""
        return ObjectiveWeights(self._cost_config)

    def boxes(self, outputs: Maps) -> Tensor:
        """The box of every cell, [B, C, H, W, 4] in network pixels, clipped to the image."""
        return decode(
            by_class(outputs[1]),
            stride=self.stride,
            scale=self.scale,
            offset=self.offset,
            width=self.width,
            height=self.height,
        )

    def candidates(self, outputs: Maps, *, lowest: float, at_most: int | None = None) -> Candidates:
        """The boxes of the cells of more coverage than `lowest`; see `Head`."""
        coverage = outputs[0]
        is_candidate = coverage > lowest
        if at_most is not None:
            is_candidate &= highest(coverage, at_most)
        images, classes, _, _ = is_candidate.nonzero(as_tuple=True)
        columns = self.boxes(outputs)[is_candidate], coverage[is_candidate], classes, images
        return Candidates(*(column.cpu() for column in columns))

    def detections(self, outputs: Maps) -> list[Detections]:
        """Cluster the cells of every image and class into detections, boxes in network pixels."""
        found = self.candidates(outputs, lowest=lowest_score(self.clustering))
        return clustered(found, self.clustering, images=len(outputs[0]))

    def pictures(
        self, prepared: Prepared, targets: Targets, outputs: Maps, *, count: int
    ) -> dict[str, list[Image.Image]]:
        """See `heads.pictures`."""
        return pictures(self, prepared, targets, outputs, count=count, thresholds=self._drawn_above)


class LossMask:
    """Regions whose cost is multiplied by a factor: `loss_mask_label_filter` and `dontcare_labels` of a spec."""

    def __init__(self, experiment: spec.Experiment, class_names: Sequence[str]):
        config = experiment.loss_mask_label_filter
        self.multiplier, self.preserve = config.mask_multiplier, config.preserve_ground_truth
        self.filters = [
            (entry.label_filter, _outputs(entry, class_names))
            for entry in config.objective_label_filter_configs
        ]
        self.has_dontcare = len(experiment.dataset_config.dontcare_labels) > 0

    def of(self, prepared: Prepared, coverage: Tensor, *, stride: int) -> Tensor | None:
        """Factors [B, C, 2, H, W] in the order of `OBJECTIVES` for targets of a coverage [B, C, H, W]; None: all 1."""
        if not self.filters and not self.has_dontcare:
            return None
        batch_size, classes, height, width = coverage.shape
        grid = {"batch_size": batch_size, "stride": stride, "grid_width": width, "grid_height": height}
        mask = coverage.new_ones(batch_size, classes, len(OBJECTIVES), height, width)
        if self.filters:
            labels = _joined(prepared.labels, prepared.others)
            masked = touched(labels.boxes, labels.image_index, self._chosen(labels, classes), **grid)
            masked = masked.reshape(mask.shape)
            if self.preserve:
                masked &= coverage[:, :, None] == 0
            mask = torch.where(masked, self.multiplier, mask)
        if self.has_dontcare:
            others = prepared.others
            dontcare = (others.classes == DONTCARE)[:, None]
            region = touched(others.boxes, others.image_index, dontcare, **grid)
            mask = mask.masked_fill((region & (coverage == 0))[:, :, None], 0)
        return mask

    def _chosen(self, labels: Labels, classes: int) -> Tensor:
        """Which labels mask which outputs, bool [N, 2C]: an output is a class and objective."""
        device = labels.boxes.device
        own = labels.classes[:, None] == torch.arange(classes, device=device)
        chosen = torch.zeros(*own.shape, len(OBJECTIVES), dtype=torch.bool, device=device)
        for label_filter, outputs in self.filters:
            fits = _fits(labels, label_filter)[:, None]
            if not label_filter.HasField("source_class_label_filter"):
                fits = fits & own
            chosen |= fits[:, :, None] & outputs.to(device)
        return chosen.flatten(1)


def _outputs(
    entry: spec.ObjectiveLabelFilter.ObjectiveLabelFilterConfig, class_names: Sequence[str]
) -> Tensor:
    """The outputs that an entry masks, bool [C, 2]."""
    names, objectives = entry.target_class_names or class_names, entry.objective_names or OBJECTIVES
    return torch.tensor(
        [[name in names and objective in objectives for objective in OBJECTIVES] for name in class_names]
    )


def _fits(labels: Labels, label_filter: spec.LabelFilter) -> Tensor:
    """The labels that a filter names, bool [N]; a limit of 0 is none."""
    if label_filter.HasField("source_class_label_filter"):
        wanted = set(map(spec.label_name, label_filter.source_class_label_filter.source_class_names))
        return torch.tensor(
            [name in wanted for name in labels.names], dtype=torch.bool, device=labels.boxes.device
        )
    left, top, right, bottom = labels.boxes.unbind(1)
    if label_filter.HasField("bbox_crop_label_filter"):
        crop = label_filter.bbox_crop_label_filter
        fits = (right > crop.crop_left) & (bottom > crop.crop_top)
        return fits & (left < (crop.crop_right or math.inf)) & (top < (crop.crop_bottom or math.inf))
    size = label_filter.bbox_dimensions_label_filter
    width, height = right - left, bottom - top
    fits = (width >= size.min_width) & (height >= size.min_height)
    return fits & (width <= (size.max_width or math.inf)) & (height <= (size.max_height or math.inf))


def _joined(first: Labels, second: Labels) -> Labels:
    boxes, classes, images = (torch.cat(column) for column in zip(first[:3], second[:3]))
    return Labels(boxes, classes, images, first.names + second.names)


def by_class(bbox: Tensor) -> Tensor:
    """[B, 4C, H, W], class-major as the network gives it, to [B, C, 4, H, W]."""
    batch, channels, height, width = bbox.shape
    return bbox.reshape(batch, channels // 4, 4, height, width)


def _geometry(config: spec.BboxRasterizerConfig, class_names: Sequence[str]) -> ClassGeometry:
    targets = [config.target_class_config[name] for name in class_names]
    fields = ("cov_center_x", "cov_center_y", "cov_radius_x", "cov_radius_y", "bbox_min_radius")
    return ClassGeometry(*(torch.tensor([getattr(target, field) for target in targets]) for field in fields))
