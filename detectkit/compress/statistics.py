"""Statistics of batch normalisation that suit a network of which channels were taken away."""

from __future__ import annotations

import copy

import torch
from torch import nn

from detectkit import spec
from detectkit.compress.importance import mean_costs, training_batches
from detectkit.data import augment
from detectkit.model.detector import Detector

# Enough that what a batch happens to show averages out; and a batch large enough for statistics of its own.
IMAGES, BATCH_SIZE = 96, 16
SHARES = (0.0, 0.5, 1.0)  # of what is found anew, that are tried


def suited(detector: Detector, experiment: spec.Experiment, *, batches: int) -> Detector:
    """A narrowed network with the statistics of batch normalisation of the least cost; the one that is given stays as it is.

    A layer that has lost inputs gives less variance. By the statistics of the whole network its outputs are too small; by
    those found anew on images they are as large as they were, what is noise in them too. So both are tried, and what is half
    way between: means in a straight line, variances in one of their logarithms. Costs are compared class by class and
    objective by objective, as shares of the cost by the old statistics.

    Args:
        experiment: its training images are taken without augmentation.
        batches: that the costs are compared on, see `taylor`.

    Raises:
        DataError: no training images, or one that cannot be read.
    """
    if not _layers(detector):
        return detector
    anew = _found_anew(detector, experiment)
    networks = [_between(detector, anew, share) for share in SHARES]
    costs = torch.stack(
        [mean_costs(network, experiment, batches=batches) for network in networks]
    )  # [S, C, 2]
    shares = torch.where(costs[0] > 0, costs / costs[0], 0).sum((1, 2))
    return networks[int(shares.nan_to_num(torch.inf).argmin())]


@torch.no_grad()
def _found_anew(detector: Detector, experiment: spec.Experiment) -> Detector:
    """The network with the mean statistics of batches of training images."""
    network = copy.deepcopy(detector).eval()
    device = next(network.parameters()).device
    for layer in _layers(network):
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    _, drawn = training_batches(experiment, -(-IMAGES // BATCH_SIZE), size=BATCH_SIZE)
    for batch in drawn:
        prepared = augment.prepare(batch, experiment.augmentation_config, generator=None, device=device)
        network(prepared.images.contiguous(memory_format=torch.channels_last))
    return network


def _between(one: Detector, other: Detector, share: float) -> Detector:
    """The first network, its statistics moved by a share of the way towards those of the other."""
    result = copy.deepcopy(one)
    for layer, new in zip(_layers(result), _layers(other), strict=True):
        assert layer.running_mean is not None and layer.running_var is not None
        assert new.running_mean is not None and new.running_var is not None
        layer.running_mean.lerp_(new.running_mean, share)
        layer.running_var.pow_(1 - share).mul_(new.running_var.pow(share))
    return result


def _layers(network: Detector) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
