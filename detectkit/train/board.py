"""What a run shows while it trains: the scalars and pictures of TLT DetectNet_v2, under the same tags, to every tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from detectkit import spec
from detectkit.data.augment import Prepared
from detectkit.heads.grid import OBJECTIVES, GridHead
from detectkit.ops.rasterize import Targets
from detectkit.trackers import Tracker, training_trackers
from detectkit.train.pictures import pictures
from detectkit.train.state import State


class Board:
    """Builds scalars and pictures for the trackers of `training_config.visualizer`; without any it does nothing.

    Args:
        folder: of the event files, in the results folder.
        head: that of the run.
        first_step: steps done before; above 0 the trackers go on where they were.

    Every method raises OutputError when TensorBoard's files cannot be written.
    """

    def __init__(self, folder: Path, experiment: spec.Experiment, head: GridHead, *, first_step: int):
        self.config = experiment.training_config.visualizer
        self.head = head
        self.trackers: list[Tracker] = training_trackers(experiment, folder, first_step=first_step)

    def step(
        self,
        state: State,
        steps: int,
        *,
        prepared: Prepared,
        targets: Targets,
        outputs: tuple[Tensor, Tensor],
        costs: Tensor,
        regularization: Tensor,
        rate: float,
        teacher_cost: Tensor | None = None,
    ) -> None:
        """Scalars `scalar_logging_frequency` times an epoch, pictures at the start of every
        `infrequent_logging_frequency` epochs; `steps` is the length of an epoch."""
        if not self.trackers:
            return
        number = state.epoch * steps + state.step
        if state.step % max(steps // (self.config.scalar_logging_frequency or 10), 1) == 0:
            others = {"regularization_cost": float(regularization)}
            if teacher_cost is not None:
                others["teacher_cost"] = float(teacher_cost)
            self._scalars({"learning_rate": rate, **self._costs(state, costs, others)}, number)
        is_due = state.step == 0 and state.epoch % (self.config.infrequent_logging_frequency or 1) == 0
        if is_due and self.config.num_images:
            shown = self._pictures(prepared, targets, outputs)
            for tracker in self.trackers:
                tracker.images(shown, number)

    def epoch(self, entry: dict[str, Any], step: int) -> None:
        """What a validation measured, at the number of steps done."""
        if "mean_average_precision" not in entry:
            return
        precisions = {"mean average precision (mAP) (in %)": entry["mean_average_precision"]}
        precisions |= {f"{name}_AP (in %)": value for name, value in entry["average_precision"].items()}
        measured = {"validation_cost": entry["validation_cost"]}
        measured |= {name: 100 * value for name, value in precisions.items() if value is not None}
        self._scalars(measured, step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _scalars(self, values: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.scalars(values, step)

    def _costs(self, state: State, costs: Tensor, others: dict[str, float]) -> dict[str, float]:
        costs = costs.cpu()
        weighted = costs * state.weights.class_weights[:, None] * state.weights.weights
        task = float(weighted.sum())
        values = {"task_cost": task, **others, "total_cost": task + sum(others.values())}
        for row, name in enumerate(self.head.class_names):
            for column, objective in enumerate(OBJECTIVES):
                part = float(weighted[row, column])
                values[f"mean_cost_{name}_{objective}"] = float(costs[row, column])
                values[f"cost_percentage_{name}_{objective}"] = 100 * part / max(task, 1e-12)
                values[f"cost_autoweight_{name}_{objective}"] = float(state.weights.weights[row, column])
        return values

    def _pictures(
        self, prepared: Prepared, targets: Targets, outputs: tuple[Tensor, Tensor]
    ) -> dict[str, list[Image.Image]]:
        thresholds = {name: item.coverage_threshold for name, item in self.config.target_class_config.items()}
        count = self.config.num_images
        return pictures(self.head, prepared, targets, outputs, count=count, thresholds=thresholds)
