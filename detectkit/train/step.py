"""One step up to its cost: a batch through the network, and the terms that the cost is the sum of.

Training, the criterion of pruning that follows the cost, and the measurement of how long a step takes all go this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from detectkit.data import augment
from detectkit.data.augment import Prepared
from detectkit.data.batch import Batch
from detectkit.heads import Balance, Head, Maps
from detectkit.model.detector import Detector
from detectkit.predict import Predicted
from detectkit.spec import AugmentationConfig, RegularizerConfig
from detectkit.train import optim


class Forwarded(NamedTuple):
    """A batch that has gone through a network."""

    prepared: Prepared
    images: Tensor  # [B, c, H, W], channels last, as the network has seen them
    targets: Any  # of the head
    outputs: Maps
    features: Maps  # of the backbone's levels, before dropout
    costs: dict[str, Tensor]  # of the head, unweighted


class Term(Protocol):
    """A part of the cost that training makes smaller, weighted."""

    @property
    def name(self) -> str:
        """As trackers show it, with "_cost" behind it."""

    def __call__(self, forwarded: Forwarded) -> Tensor:
        """What a batch costs, []."""


class Task:
    """The costs of the head, in their balance."""

    name = "task"

    def __init__(self, balance: Balance) -> None:
        self.balance = balance

    def __call__(self, forwarded: Forwarded) -> Tensor:
        """The weighted sum, []."""
        return self.balance.total(forwarded.costs)


class Regularization:
    """The size of the weights, as `training_config.regularizer` weighs it."""

    name = "regularization"

    def __init__(self, weights: list[Tensor], config: RegularizerConfig) -> None:
        self.weights, self.config = weights, config

    def __call__(self, forwarded: Forwarded) -> Tensor:
        """The same for every batch, []."""
        return optim.regularization_cost(self.weights, self.config)


def forward(
    detector: Detector,
    head: Head[Any],
    batch: Batch,
    augmentation: AugmentationConfig,
    *,
    generator: torch.Generator | None = None,
    number_format: torch.dtype = torch.float32,
) -> Forwarded:
    """Send a batch through a network, on its device and in its mode.

    Args:
        generator: of the augmentation; without one there is none.
        number_format: of the network.
    """
    device, is_short = next(detector.parameters()).device, number_format != torch.float32
    prepared = augment.prepare(batch, augmentation, generator=generator, device=device)
    targets = head.targets(prepared)
    images = prepared.images.contiguous(memory_format=torch.channels_last)
    with (
        features_of(detector) as features,
        torch.autocast(device.type, dtype=number_format if is_short else None, enabled=is_short),
    ):
        outputs = detector(images)
    costs = head.costs(outputs, targets, prepared.weights)
    return Forwarded(prepared, images, targets, outputs, tuple(features), costs)


@contextmanager
def features_of(detector: Detector) -> Iterator[list[Tensor]]:
    """Collects the maps of the backbone's levels [B, n, h, w], before dropout, of a run in this block."""
    found: list[Tensor] = []
    # A network in 8-bit rounding runs its backbone layer by layer, never as a whole.
    hook = detector.dropout.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms [] of a cost."""
    cost, *others = terms.values()
    for other in others:
        cost = cost + other
    return cost


def validation_cost(balance: Balance, head: Head[Any], predicted: Predicted) -> float:
    """The weighted cost of a batch, without regularisation."""
    targets = head.targets(predicted.prepared)
    return float(balance.total(head.costs(predicted.outputs, targets, predicted.prepared.weights)))
