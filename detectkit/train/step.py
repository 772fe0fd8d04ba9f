"""One step up to its cost: a batch through the network, and the terms that the cost is the sum of.

Training, the criterion of pruning that follows the cost, and the measurement of how long a step takes all go this way.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


class Term(abc.ABC):
    """A part of the cost that training makes smaller, with what it learns and remembers."""

    name: str  # of its own in a run; trackers show it with "_cost" behind it
    weight: float = 1.0  # in the cost
    module: nn.Module | None = None  # on the detector's device: what the optimizer moves beside the detector

    @abc.abstractmethod
    def __call__(self, forwarded: Forwarded) -> Tensor:
        """What a batch costs, [], unweighted; called once for each batch that is trained on."""

    def state(self) -> dict[str, Any]:
        """All that changes, `module` too: entries of the resume file of names that no other has, for torch.load with weights_only."""
        return {} if self.module is None else {self.name: self.module.state_dict()}

    def restore(self, content: Mapping[str, Any], path: Path) -> None:
        """Take up what `state` gave.

        Args:
            content: all entries of the resume file.
            path: of that file, for messages.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError or ValueError: it is none of such a term.
            UsageError: it is one of another run.
        """
        if self.module is not None:
            self.module.load_state_dict(content[self.name])


class Task(Term):
    """The costs of the head, in their balance, which takes notice of them."""

    name = "task"

    def __init__(self, balance: Balance) -> None:
        self.balance = balance

    def __call__(self, forwarded: Forwarded) -> Tensor:
        """Their sum as the balance weighs them, []."""
        self.balance.accumulate(forwarded.costs)
        return self.balance.total(forwarded.costs)

    def state(self) -> dict[str, Any]:
        return {"weights": self.balance.state()}

    def restore(self, content: Mapping[str, Any], path: Path) -> None:
        self.balance.restore(content["weights"])


class Regularization(Term):
    """The size of the detector's weights, by `training_config.regularizer`."""

    name = "regularization"

    def __init__(self, weights: list[Tensor], config: RegularizerConfig) -> None:
        self.weights, self.config, self.weight = weights, config, config.weight

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


def weighted(terms: Iterable[Term], forwarded: Forwarded) -> dict[str, Tensor]:
    """What a batch costs by the names of the terms, each [] and weighted."""
    return {term.name: term.weight * term(forwarded) for term in terms}


def total(costs: Mapping[str, Tensor]) -> Tensor:
    """The sum of the weighted costs [] of the terms."""
    cost, *others = costs.values()
    for other in others:
        cost = cost + other
    return cost


def validation_cost(balance: Balance, head: Head[Any], predicted: Predicted) -> float:
    """The weighted cost of a batch, without regularisation."""
    targets = head.targets(predicted.prepared)
    return float(balance.total(head.costs(predicted.outputs, targets, predicted.prepared.weights)))
