"""TensorBoard: the scalars and pictures of TLT DetectNet_v2, under the same tags."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from detectkit import spec
from detectkit.data.augment import Prepared
from detectkit.errors import OutputError
from detectkit.heads import OBJECTIVES
from detectkit.ops.rasterize import Targets
from detectkit.train.state import State


class Board:
    """Writes event files when `training_config.visualizer` is enabled, and does nothing otherwise.

    Every method raises OutputError when the files cannot be written.
    """

    def __init__(self, folder: Path, experiment: spec.Experiment, class_names: list[str], *, first_step: int):
        self.folder = folder
        self.config = experiment.training_config.visualizer
        self.class_names = class_names
        self.writer: Any = None
        if self.config.enabled:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _without_traceback
            with self._written():
                # What a cut run wrote after the state it goes on from is shown once.
                self.writer = SummaryWriter(str(folder), purge_step=first_step)

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
    ) -> None:
        """Scalars `scalar_logging_frequency` times an epoch, pictures at the start of every
        `infrequent_logging_frequency` epochs; `steps` is the length of an epoch."""
        if self.writer is None:
            return
        number = state.epoch * steps + state.step
        with self._written():
            if state.step % max(steps // self.config.scalar_logging_frequency, 1) == 0:
                self._scalars(number, state, costs, float(regularization), rate)
            if state.step == 0 and state.epoch % self.config.infrequent_logging_frequency == 0:
                self._pictures(number, prepared, targets, outputs[0].detach().float())

    def epoch(self, entry: dict[str, Any], step: int) -> None:
        """What a validation measured, at the number of steps done."""
        if self.writer is None or "mean_average_precision" not in entry:
            return
        add = self.writer.add_scalar
        with self._written():
            add("validation_cost", entry["validation_cost"], step)
            add("mean average precision (mAP) (in %)", 100 * entry["mean_average_precision"], step)
            for name, value in entry["average_precision"].items():
                if value is not None:
                    add(f"{name}_AP (in %)", 100 * value, step)
            self.writer.flush()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        if self.writer is not None:
            with self._written():
                self.writer.close()

    def _scalars(self, number: int, state: State, costs: Tensor, regularization: float, rate: float) -> None:
        costs = costs.cpu()
        weighted = costs * state.weights.class_weights[:, None] * state.weights.weights
        task = float(weighted.sum())
        values = {
            "task_cost": task,
            "regularization_cost": regularization,
            "total_cost": task + regularization,
        }
        for row, name in enumerate(self.class_names):
            for column, objective in enumerate(OBJECTIVES):
                values[f"mean_cost_{name}_{objective}"] = float(costs[row, column])
                values[f"cost_percentage_{name}_{objective}"] = (
                    100 * float(weighted[row, column]) / max(task, 1e-12)
                )
                values[f"cost_autoweight_{name}_{objective}"] = float(state.weights.weights[row, column])
        for tag, value in {"learning_rate": rate, **values}.items():
            self.writer.add_scalar(tag, value, number)

    def _pictures(self, number: int, prepared: Prepared, targets: Targets, coverage: Tensor) -> None:
        count = self.config.num_images
        self.writer.add_images("image/images", prepared.images[:count], number)
        for index, name in enumerate(self.class_names):
            shown = self.config.target_class_config
            threshold = shown[name].coverage_threshold if name in shown else 0.0
            predicted = coverage[:count, index : index + 1]
            pictures = {
                "gt": targets.coverage[:count, index : index + 1],
                "pred": predicted * (predicted > threshold),
            }
            for tag, picture in pictures.items():
                self.writer.add_images(f"image/{name}_cov_{tag}", picture, number)
        self.writer.flush()


def _without_traceback(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a failed write in TensorBoard's thread: the writer raises it again in ours."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
