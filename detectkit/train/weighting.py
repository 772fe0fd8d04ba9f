"""Weights of classes and objectives in the total cost, adapted after every epoch (TLT DetectNet_v2 auto-weighting)."""

from __future__ import annotations

import torch
from torch import Tensor

from detectkit.heads import OBJECTIVES, GridHead
from detectkit.predict import Predicted
from detectkit.spec import CostFunctionConfig


class ObjectiveWeights:
    """Combines the costs [C, 2] of all classes and objectives into one.

    With `enable_autoweighting`, an objective's weight after an epoch is the share of its target over its summed cost:
    u = weight_target / sum, weight = clamp(u / Σu, min_objective_weight, max_objective_weight), for each class by
    itself and not normalised again after the clamp.
    """

    def __init__(self, config: CostFunctionConfig):
        class_weights = torch.tensor([target.class_weight for target in config.target_classes])
        self.class_weights = class_weights / class_weights.sum()  # [C]
        initial = self._by_objective(config, "initial_weight")
        self.weights = initial / initial.sum(dim=1, keepdim=True)  # [C, 2]
        self.targets = self._by_objective(config, "weight_target").double()
        self.sums = torch.zeros_like(self.targets)
        self._factors: Tensor | None = None  # class weight x objective weight, on the device of the costs
        self.adaptive = config.enable_autoweighting
        self.minimum, self.maximum = config.min_objective_weight, config.max_objective_weight

    @staticmethod
    def _by_objective(config: CostFunctionConfig, field: str) -> Tensor:
        rows = [
            {item.name: getattr(item, field) for item in target.objectives}
            for target in config.target_classes
        ]
        return torch.tensor([[row[name] for name in OBJECTIVES] for row in rows])

    def total(self, costs: Tensor) -> Tensor:
        """Σ class weight x objective weight x cost, of costs [C, 2] on any device."""
        if self._factors is None or self._factors.device != costs.device:
            self._factors = (self.class_weights[:, None] * self.weights).to(costs.device)
        return (costs * self._factors).sum()

    def accumulate(self, costs: Tensor) -> None:
        """Add the unweighted costs [C, 2] of one step to the sums of the epoch, on their device (no waiting for it)."""
        self.sums = self.sums.to(costs.device) + costs.detach()

    def end_epoch(self) -> None:
        """Adapt the weights to the epoch's sums, and start new ones."""
        sums = self.sums.cpu()
        if self.adaptive:
            shares = torch.where(sums > 0, self.targets / sums, 0.0)
            total = shares.sum(dim=1, keepdim=True)
            adapted = (shares / total).clamp(self.minimum, self.maximum).float()
            self.weights, self._factors = torch.where(total > 0, adapted, self.weights), None
        self.sums = torch.zeros_like(sums)

    def state(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "sums": self.sums.cpu()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.weights, self.sums, self._factors = state["weights"], state["sums"], None


def validation_cost(weights: ObjectiveWeights, head: GridHead, predicted: Predicted) -> float:
    """The weighted cost of a batch, without regularisation."""
    targets = head.targets(predicted.prepared)
    return float(weights.total(head.costs(predicted.outputs, targets, predicted.prepared.weights)))
