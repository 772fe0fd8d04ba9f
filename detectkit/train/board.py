"""What a run shows while it trains: the scalars and pictures of TLT DetectNet_v2, under the same tags, to every tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detectkit import spec
from detectkit.heads import Head
from detectkit.trackers import Tracker, training_trackers
from detectkit.train.state import State
from detectkit.train.step import Forwarded, Task


class Board:
    """Builds scalars and pictures for the trackers of `training_config.visualizer`; without any it does nothing.

    Args:
        folder: of the event files, in the results folder.
        head: that of the run.
        first_step: steps done before; above 0 the trackers go on where they were.

    Every method raises OutputError when TensorBoard's files cannot be written.
    """

    def __init__(self, folder: Path, experiment: spec.Experiment, head: Head[Any], *, first_step: int):
        self.config = experiment.training_config.visualizer
        self.head = head
        self.trackers: list[Tracker] = training_trackers(experiment, folder, first_step=first_step)

    def step(
        self,
        state: State,
        steps: int,
        *,
        forwarded: Forwarded,
        costs: Mapping[str, Tensor],
        rate: float,
    ) -> None:
        """Show a step where it is due: scalars `scalar_logging_frequency` times an epoch, pictures at the start of every
        `infrequent_logging_frequency` epochs.

        Args:
            steps: of an epoch.
            forwarded: the batch, of which the pictures are.
            costs: the weighted costs [] of the terms, by name.
            rate: the learning rate of the step.
        """
        if not self.trackers:
            return
        number = state.epoch * steps + state.step
        if state.step % max(steps // (self.config.scalar_logging_frequency or 10), 1) == 0:
            self._scalars({"learning_rate": rate, **_costs(state, forwarded, costs)}, number)
        is_due = state.step == 0 and state.epoch % (self.config.infrequent_logging_frequency or 1) == 0
        if is_due and self.config.num_images:
            shown = self.head.pictures(
                forwarded.prepared, forwarded.targets, forwarded.outputs, count=self.config.num_images
            )
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


def _costs(state: State, forwarded: Forwarded, costs: Mapping[str, Tensor]) -> dict[str, float]:
    figures = state.balance.figures(forwarded.costs)
    task = figures["task_cost"]
    others = {f"{name}_cost": float(cost.detach()) for name, cost in costs.items() if name != Task.name}
    return {"task_cost": task, **others, "total_cost": task + sum(others.values()), **figures}
