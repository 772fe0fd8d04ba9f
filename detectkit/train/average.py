"""A moving average of the weights, which is what is validated and saved when `ema_decay` is set."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from detectkit.model.detector import Detector


class WeightAverage:
    """A copy of a detector whose weights and statistics follow those of the original slowly.

    After step n the average moves to the original by 1 - d, d the lesser of `decay` and (1 + n) / (10 + n): the random
    start is forgotten within a few steps, also in a short run. Source: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, detector: Detector, decay: float):
        self.detector = copy.deepcopy(detector).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, detector: Detector) -> None:
        """Take in the weights after one more step; whole numbers, such as counts of batches, are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        own: list[Tensor] = []
        new: list[Tensor] = []
        for mine, theirs in zip(
            self.detector.state_dict().values(), detector.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                own.append(mine)
                new.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(own, new, 1 - decay)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "detector": self.detector.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises KeyError, RuntimeError, TypeError or ValueError: it is none of this network."""
        if state["steps"] < 0 or not all(
            bool(value.isfinite().all()) for value in state["detector"].values()
        ):
            raise ValueError("an average of nothing")
        self.steps = state["steps"]
        self.detector.load_state_dict(state["detector"])
