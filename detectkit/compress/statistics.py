"""Statistics of batch normalisation for a network of which channels were taken away."""

from __future__ import annotations

import copy

import torch
from torch import nn

from detectkit import spec
from detectkit.compress.accuracy import measured
from detectkit.compress.importance import training_batches
from detectkit.data import augment
from detectkit.data.records import training_frames
from detectkit.model.detector import Detector

# Enough that what a batch happens to show averages out; and a batch large enough for statistics of its own.
IMAGES, BATCH_SIZE = 96, 16
SHARE = 0.5  # of the way from the old statistics to those found anew


def renewed(detector: Detector, experiment: spec.Experiment) -> Detector:
    """A narrowed network with statistics of batch normalisation that suit it; the one that is given stays as it is.

    A layer that has lost inputs gives less variance. By the statistics of the whole network its outputs are too small; by
    those found anew on images they are as large as they were, what is noise in them too. Half way between is mostly better
    than either: means in a straight line, variances in one of their logarithms. Where it is not, by the mean average
    precision on training images, the old statistics stay. Costs would not tell: they rise where no box is lost.

    Args:
        experiment: as many as `IMAGES` of its training images are taken, without augmentation.

    Raises:
        DataError: no training images, or one that cannot be read.
    """
    if not _layers(detector):
        return detector
    result = _between(detector, _found_anew(detector, experiment))
    images = training_frames(experiment.dataset_config, spec.class_names(experiment), at_most=IMAGES)
    by_voc = spec.Experiment()
    by_voc.CopyFrom(experiment)
    by_voc.evaluation_config.protocol = spec.EvaluationConfig.VOC  # needs no other package
    old, new = (
        measured(network, by_voc, images, label="comparing statistics").mean_average_precision
        for network in (detector, result)
    )
    # Both are None where none of these images has a label.
    return detector if old is not None and new is not None and old > new else result


def _between(one: Detector, other: Detector) -> Detector:
    """The first network, its statistics moved towards those of the other."""
    result = copy.deepcopy(one)
    for layer, new in zip(_layers(result), _layers(other), strict=True):
        assert layer.running_mean is not None and layer.running_var is not None
        assert new.running_mean is not None and new.running_var is not None
        layer.running_mean.lerp_(new.running_mean, SHARE)
        layer.running_var.pow_(1 - SHARE).mul_(new.running_var.pow(SHARE))
    return result


@torch.no_grad()
def _found_anew(detector: Detector, experiment: spec.Experiment) -> Detector:
    """The network with the mean statistics of batches of training images."""
    network = copy.deepcopy(detector).eval()
    device = next(network.parameters()).device
    for layer in _layers(network):
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    _, drawn = training_batches(experiment, IMAGES // BATCH_SIZE, size=BATCH_SIZE)
    for batch in drawn:
        prepared = augment.prepare(batch, experiment.augmentation_config, generator=None, device=device)
        network(prepared.images.contiguous(memory_format=torch.channels_last))
    return network


def _layers(network: Detector) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
