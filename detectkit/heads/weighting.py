"""The grid's balance of costs: weights of classes and objectives in the total cost, adapted after every epoch (TLT DetectNet_v2 auto-weighting)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detectkit.spec import CostFunctionConfig

OBJECTIVES = ("cov", "bbox")  # of the grid
MEMORY = 200  # steps: costs summed over fewer are mostly noise
STARVED = 0.01  # of the weight of its class: an objective that gets less may never learn
EPOCHS_TO_FALL = (
    5  # in which a cost that is being learnt has fallen below this part of that of the first epoch:
)
STANDING_STILL = 0.7


class ObjectiveWeights:
    """Combines the costs of all classes and objectives into one; it is a `heads.Balance`.

    With `enable_autoweighting`, an objective's weight after an epoch is the share of its target over its summed cost:
    u = weight_target / sum, weight = clamp(u / Σu, min_objective_weight, max_objective_weight), for each class by
    itself and not normalised again after the clamp. Sums of an epoch of less than `MEMORY` steps are noise (TLT uses
    them): what is left of the memory holds those of the epochs before. Until it is full, a class of which an objective
    has had no cost yet keeps its weights: it has not been seen.
    """

    def __init__(self, config: CostFunctionConfig):
        class_weights = torch.tensor([target.class_weight for target in config.target_classes])
        self.class_weights = class_weights / class_weights.sum()  # [C]
        initial = self._by_objective(config, "initial_weight")
        self.weights = initial / initial.sum(dim=1, keepdim=True)  # [C, 2]
        self.targets = self._by_objective(config, "weight_target").double()
        self.sums = torch.zeros_like(self.targets)  # of the epoch under way
        self.steps = 0
        self.past = torch.zeros_like(self.targets)  # of the epochs before, fading
        self.first = torch.zeros_like(self.targets)  # mean costs of the first epoch
        self.epochs = self.all_steps = 0
        self.warned = torch.zeros_like(self.targets, dtype=torch.bool)
        self._factors: Tensor | None = None  # class weight x objective weight, on the device of the costs
        self.class_names = [target.name for target in config.target_classes]
        self.adaptive = config.enable_autoweighting
        self.minimum, self.maximum = config.min_objective_weight, config.max_objective_weight

    @staticmethod
    def _by_objective(config: CostFunctionConfig, field: str) -> Tensor:
        rows = [
            {item.name: getattr(item, field) for item in target.objectives}
            for target in config.target_classes
        ]
        return torch.tensor([[row[name] for name in OBJECTIVES] for row in rows])

    def total(self, costs: Mapping[str, Tensor]) -> Tensor:
        """Σ class weight x objective weight x cost, of the costs [C] of the objectives on any device."""
        stacked = _stacked(costs)
        if self._factors is None or self._factors.device != stacked.device:
            self._factors = (self.class_weights[:, None] * self.weights).to(stacked.device)
        return (stacked * self._factors).sum()

    def accumulate(self, costs: Mapping[str, Tensor]) -> None:
        """Add the unweighted costs of one step to the sums of the epoch, on their device (no waiting for it)."""
        stacked = _stacked(costs).detach()
        self.sums = self.sums.to(stacked.device) + stacked
        self.steps += 1

    def figures(self, costs: Mapping[str, Tensor]) -> dict[str, float]:
        """Of a step, by TLT's tags: the weighted sum, and of every class and objective cost, share and weight."""
        unweighted = _stacked(costs).detach().cpu()
        weighted = unweighted * self.class_weights[:, None] * self.weights
        task = float(weighted.sum())
        values = {"task_cost": task}
        for row, name in enumerate(self.class_names):
            for column, objective in enumerate(OBJECTIVES):
                part = float(weighted[row, column])
                values[f"mean_cost_{name}_{objective}"] = float(unweighted[row, column])
                values[f"cost_percentage_{name}_{objective}"] = 100 * part / max(task, 1e-12)
                values[f"cost_autoweight_{name}_{objective}"] = float(self.weights[row, column])
        return values

    def end_epoch(self) -> list[tuple[int, str]]:
        """Adapt the weights to the costs of the last steps, and start the sums of a new epoch.

        Returns:
            class number and objective of what has begun to starve: auto-weighting gives it less than `STARVED`, and its cost
            stands still. Each is named once.
        """
        sums = self.sums.cpu()
        mean = sums / max(self.steps, 1)
        self.first = mean if self.epochs == 0 else self.first
        self.past = self.past * max(1 - self.steps / MEMORY, 0.0) + sums
        self.epochs, self.all_steps = self.epochs + 1, self.all_steps + self.steps
        self.sums, self.steps = torch.zeros_like(sums), 0
        if not self.adaptive:
            return []
        starved = (self.weights < STARVED) & (mean > STANDING_STILL * self.first) & ~self.warned
        self._adapt()
        if self.epochs < EPOCHS_TO_FALL or self.all_steps < MEMORY:
            return []
        self.warned |= starved
        return [(row, OBJECTIVES[column]) for row, column in starved.nonzero().tolist()]

    def _adapt(self) -> None:
        shares = torch.where(self.past > 0, self.targets / self.past, 0.0)
        total = shares.sum(dim=1, keepdim=True)
        adapted = (shares / total).clamp(self.minimum, self.maximum).float()
        seen = (self.past > 0).all(dim=1, keepdim=True) | (self.all_steps >= MEMORY)
        self.weights, self._factors = torch.where((total > 0) & seen, adapted, self.weights), None

    def state(self) -> dict[str, Any]:
        tensors = {"weights": self.weights, "sums": self.sums.cpu(), "past": self.past, "first": self.first}
        counts = {"steps": self.steps, "epochs": self.epochs, "all_steps": self.all_steps}
        return {**tensors, **counts, "warned": self.warned}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises KeyError, TypeError or ValueError: it is none of such weights."""
        own = self.state()
        for name, value in own.items():
            is_sound = state[name].shape == value.shape if isinstance(value, Tensor) else state[name] >= 0
            if not is_sound:
                raise ValueError(f"{name} of other objectives")
        self.weights, self.sums, self._factors = state["weights"], state["sums"], None
        self.past, self.first, self.warned = state["past"], state["first"], state["warned"]
        self.steps, self.epochs, self.all_steps = state["steps"], state["epochs"], state["all_steps"]


def _stacked(costs: Mapping[str, Tensor]) -> Tensor:
    """[C, 2] in the order of `OBJECTIVES`."""
    return torch.stack([costs[name] for name in OBJECTIVES], dim=1)
