"""Learning rate as a function of progress."""

from __future__ import annotations

import math
from typing import NamedTuple


def soft_start_annealing(
    progress: float, *, minimum: float, maximum: float, soft_start: float, annealing: float
) -> float:
    """Learning rate at progress in [0, 1] = step / all steps: log-linear up, flat, log-linear down.

    From minimum to maximum until soft_start, maximum until annealing, back to minimum at 1; 0 <= soft_start <=
    annealing <= 1; soft_start 0 begins at maximum, annealing 1 never falls. Source: TLT soft_start_annealing_schedule.
    """
    if progress < soft_start:
        height = progress / soft_start
    elif progress > annealing:
        height = (1 - progress) / (1 - annealing)
    else:
        height = 1.0
    return _between(minimum, maximum, height)


class Plateau(NamedTuple):
    """What `early_stopping_annealing` knows of the validation costs so far; epochs are counted from its start."""

    best_cost: float = math.inf
    best_epoch: int = 0
    annealing_start: int | None = None  # the epoch after which the rate falls
    ended: bool = False  # the rate has fallen, and the cost has stopped to improve again


def observe(plateau: Plateau, cost: float, epoch: int, *, patience: int, annealing_epochs: int) -> Plateau:
    """What is known after a validation that gave `cost` after `epoch` epochs.

    A cost below the best is the new best. Otherwise, when the best is `patience` epochs old, the rate begins to fall and
    `cost` is the new best; when it began to fall `annealing_epochs` ago or longer, the run ends. Source: TLT
    early_stopping_annealing_schedule.
    """
    if cost < plateau.best_cost:
        return plateau._replace(best_cost=cost, best_epoch=epoch)
    if epoch - plateau.best_epoch < patience:
        return plateau
    if plateau.annealing_start is None:
        return Plateau(cost, epoch, annealing_start=epoch)
    return plateau._replace(ended=epoch >= plateau.annealing_start + annealing_epochs)


def early_stopping_annealing(
    position: float,
    *,
    minimum: float,
    maximum: float,
    soft_start_epochs: float,
    annealing_epochs: float,
    annealing_start: float | None,
) -> float:
    """Learning rate at a position in epochs: log-linear up, flat, and from annealing_start on log-linear down.

    From minimum to maximum in soft_start_epochs (0: begins at maximum), and back to minimum in annealing_epochs (0: never
    falls), where it stays. While it still rises when the fall begins, the lower of both counts. Source: TLT
    early_stopping_annealing_schedule.
    """
    height = min(position / soft_start_epochs, 1.0) if soft_start_epochs else 1.0
    if annealing_start is not None and annealing_epochs:
        height = min(height, max(1 - (position - annealing_start) / annealing_epochs, 0.0))
    return _between(minimum, maximum, height)


def _between(minimum: float, maximum: float, height: float) -> float:
    """From minimum at height 0 to maximum at 1, in a straight line of the logarithm."""
    return math.exp(math.log(minimum) + height * (math.log(maximum) - math.log(minimum)))
