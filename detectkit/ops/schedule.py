"""Learning rate as a function of progress."""

from __future__ import annotations

import math


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
    return math.exp(math.log(minimum) + height * (math.log(maximum) - math.log(minimum)))
