"""What a pruning does where its spec leaves it open."""

from __future__ import annotations

from detectkit.spec.dataset_pb2 import DatasetConfig
from detectkit.spec.pruning_pb2 import PruningConfig


def chosen_criterion(config: PruningConfig, dataset: DatasetConfig) -> PruningConfig.Criterion:
    """The criterion of a pruning, what AUTO stands for in its place: TAYLOR for a target where there are images to train on.

    Args:
        dataset: whose data sources name the images; whether they are there is not looked at.
    """
    if config.criterion != PruningConfig.AUTO:
        return config.criterion
    return PruningConfig.TAYLOR if has_target(config) and dataset.data_sources else PruningConfig.NORM


def has_target(config: PruningConfig) -> bool:
    """Whether the threshold is to be found for a share of the original."""
    return config.WhichOneof("aim") not in (None, "threshold")
