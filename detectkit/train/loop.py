"""The training loop: from a checked spec to model files, resumable at every step.

Everything random in a step follows from (seed, epoch, step), so a run that was cut and goes on ends with the same
weights as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectkit import draw, evaluation, spec
from detectkit.console import ProgressBar, log
from detectkit.data import augment
from detectkit.data.dataset import Batch, Dataset, loader, training_order
from detectkit.errors import DetectkitError, Interrupted
from detectkit.evaluation import Evaluation
from detectkit.files import atomic_write
from detectkit.model import checkpoint
from detectkit.predict import Predictor
from detectkit.train import optim, state as states
from detectkit.train.run import RESUME_FILE, Run
from detectkit.train.weighting import ObjectiveWeights, validation_cost

CHECK_STEPS = 20  # the cost is looked at this often; looking waits for the GPU
SAVE_SECONDS = 300  # the state is saved when the last time is longer ago


class Outcome(NamedTuple):
    """What a finished run left behind."""

    last: Path
    best: Path | None  # the model of the best validation, where there was one
    history: list[dict[str, Any]]


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("stopping after this step; once more to stop at once and lose what is not saved")


def train(run: Run) -> Outcome:
    """Train until the spec's last epoch, from where `run.state` stands.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the same command goes on from there.
        DetectkitError: unreadable images, no space for results, a cost that is no longer a number.
    """
    total = run.steps * run.config.num_epochs
    done = run.state.epoch * run.steps + run.state.step
    images = max(total - done, 0) * run.config.batch_size_per_gpu
    with closing(run.board), StopRequest() as stop, ProgressBar("training", total=images, unit="img") as bar:
        while run.state.epoch < run.config.num_epochs:
            _train_epoch(run, stop, bar)
            if stop.requested and run.state.epoch < run.config.num_epochs:
                _interrupted(run)
    if not run.weights_file().exists():  # the spec now ends at or before the epoch that was reached
        save_model(run, run.weights_file())
    best = run.weights_file("-best")
    return Outcome(run.weights_file(), best if run.state.best >= 0 else None, run.state.history)


def _train_epoch(run: Run, stop: StopRequest, bar: ProgressBar) -> None:
    """Train to the end of the epoch under way, or to the step in which a stop is requested."""
    for cost in epoch_steps(run):
        bar.advance(
            run.config.batch_size_per_gpu, label=f"epoch {run.state.epoch + 1}/{run.config.num_epochs}"
        )
        if run.state.step % CHECK_STEPS == 0:
            _require_finite(run, cost)
        if run.state.step < run.steps and (stop.requested or time.monotonic() - run.saved_at > SAVE_SECONDS):
            _require_finite(run, cost)
            save_state(run)
        if stop.requested:
            break
    if run.state.step == run.steps:
        end_epoch(run)


def epoch_steps(run: Run) -> Iterator[Tensor]:
    """Train on the rest of the epoch under way, one step an iteration; gives the total cost of each."""
    state, batch_size = run.state, run.config.batch_size_per_gpu
    order = training_order(len(run.training), batch_size, seed=run.experiment.random_seed, epoch=state.epoch)
    batches = _loader(run, run.training, order[state.step * batch_size :])
    run.state.detector.train()
    for batch in batches:
        cost = train_step(run, batch)
        state.step += 1
        state.cost_sum = state.cost_sum.to(cost.device) + cost
        yield cost


def train_step(run: Run, batch: Batch) -> Tensor:
    """One forward, backward and optimiser step; gives the total cost."""
    state, config = run.state, run.config
    progress = (state.epoch * run.steps + state.step) / (run.steps * config.num_epochs)
    rate = optim.learning_rate(config.learning_rate, progress)
    optim.set_learning_rate(state.optimizer, rate)
    seed = np.random.SeedSequence([run.experiment.random_seed, state.epoch, state.step]).generate_state(1)[0]
    prepared = augment.prepare(
        batch,
        run.experiment.augmentation_config,
        generator=torch.Generator().manual_seed(int(seed)),
        device=run.device,
    )
    targets = run.head.targets(prepared)
    outputs = forward(run, prepared.images.contiguous(memory_format=torch.channels_last))
    costs = run.head.costs(outputs, targets, prepared.weights)
    task_cost = state.weights.total(costs)
    regularization = optim.regularization_cost(run.regularized, config.regularizer)
    total = task_cost + regularization
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.weights.accumulate(costs)
    run.board.step(
        state,
        run.steps,
        prepared=prepared,
        targets=targets,
        outputs=outputs,
        costs=costs.detach(),
        regularization=regularization.detach(),
        rate=rate,
    )
    return total.detach()


def forward(run: Run, images: Tensor) -> tuple[Tensor, Tensor]:
    """The network in the precision of the run; bfloat16 has the range of float32, so costs need no scaling."""
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.bfloat16):
        outputs: tuple[Tensor, Tensor] = run.state.detector(images)
    return outputs


def end_epoch(run: Run) -> None:
    """Adapt the weights, validate, log, and write what is due."""
    state = run.state
    _require_finite(run, state.cost_sum)
    mean_cost = float(state.cost_sum) / run.steps
    rate = state.optimizer.param_groups[0]["lr"]
    entry: dict[str, Any] = {"epoch": state.epoch + 1, "cost": mean_cost, "learning_rate": rate}
    state.weights.end_epoch()
    state.epoch, state.step, state.cost_sum = state.epoch + 1, 0, torch.zeros(())
    result = validate(run) if run.validation is not None and validation_due(run) else None
    if result:
        entry["mean_average_precision"] = result.mean_average_precision
        entry["average_precision"] = {item.name: item.average_precision for item in result.classes}
        entry["validation_cost"] = result.cost
    state.history.append(entry)
    run.board.epoch(entry, state.epoch * run.steps)
    report(run, entry)
    if result and result.mean_average_precision > state.best:
        state.best = result.mean_average_precision
        save_model(run, run.weights_file("-best"))
    finished = state.epoch == run.config.num_epochs
    due = finished or state.epoch % run.config.checkpoint_interval == 0
    if due:
        save_model(run, run.weights_file("" if finished else f".epoch-{state.epoch:03d}"))
    if due or result:
        plot(run)
    if due or time.monotonic() - run.saved_at > SAVE_SECONDS:
        save_state(run)


def _require_finite(run: Run, cost: Tensor) -> None:
    if not torch.isfinite(cost):
        raise DetectkitError(
            f"the cost is no longer a number in epoch {run.state.epoch + 1}: lower max_learning_rate, or check the labels"
        )


def validation_due(run: Run) -> bool:
    """At `first_validation_epoch`, then every `validation_period_during_training`, and after the last epoch."""
    config, epoch = run.experiment.evaluation_config, run.state.epoch
    since = epoch - config.first_validation_epoch
    return epoch == run.config.num_epochs or (
        since >= 0 and since % config.validation_period_during_training == 0
    )


def validate(run: Run) -> Evaluation:
    """Measure the network on the validation images as `evaluate` would: in float32, costs with the initial weights."""
    assert run.validation is not None
    run.state.detector.eval()
    predictor = Predictor(
        run.state.detector,
        run.head,
        augmentation=run.experiment.augmentation_config,
        channels=run.channels,
        device=run.device,
    )
    batches = _loader(run, run.validation, list(range(len(run.validation))))
    weights = ObjectiveWeights(run.experiment.cost_function_config)
    return evaluation.evaluate(
        predictor.batches(batches),
        run.head.class_names,
        run.experiment.evaluation_config,
        cost=lambda predicted: validation_cost(weights, run.head, predicted),
    )


def save_model(run: Run, path: Path) -> None:
    checkpoint.save(path, run.state.detector, spec.dumps(run.experiment), run.head.class_names)


def save_state(run: Run) -> None:
    states.save(run.results / RESUME_FILE, run.state, spec.dumps(run.experiment))
    run.saved_at = time.monotonic()


def report(run: Run, entry: dict[str, Any]) -> None:
    """The epoch's line for people, and its record for machines."""
    line = f"epoch {entry['epoch']}/{run.config.num_epochs}: cost {entry['cost']:.6f}"
    kpi: dict[str, Any] = {}
    if "mean_average_precision" in entry:
        values = [f"{name} {_percent(value)}" for name, value in entry["average_precision"].items()]
        line += f", mAP {_percent(entry['mean_average_precision'])} ({', '.join(values)})"
        kpi = {"kpi": {"mean average precision": entry["mean_average_precision"]}}
    log.info(line)
    run.status.write(
        "Epoch finished.",
        epoch=entry["epoch"],
        max_epoch=run.config.num_epochs,
        graphical={"loss": entry["cost"], "learning_rate": entry["learning_rate"]},
        **kpi,
    )


def plot(run: Run) -> None:
    """Write the curves of the run so far: cost, and average precision where it was measured."""
    history = run.state.history
    epochs = [entry["epoch"] for entry in history]
    measured = [entry for entry in history if "mean_average_precision" in entry]
    at = [entry["epoch"] for entry in measured]
    costs = {"training": (epochs, [entry["cost"] for entry in history])}
    if measured:
        costs["validation"] = (at, [entry["validation_cost"] for entry in measured])
        values = {
            name: (at, [_or_nan(entry["average_precision"][name]) for entry in measured])
            for name in run.head.class_names
        }
        values["mean"] = (at, [entry["mean_average_precision"] for entry in measured])
        with atomic_write(run.results / "average_precision.png") as path:
            draw.curves(
                path,
                values,
                title="validation",
                x_label="epoch",
                y_label="average precision",
                y_limits=(0, 1.02),
            )
    with atomic_write(run.results / "cost.png") as path:
        draw.curves(path, costs, title="cost", x_label="epoch", y_label="cost", logarithmic=True)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _loader(run: Run, frames: Dataset, order: list[int]) -> Iterator[Batch]:
    return loader(
        frames,
        run.experiment.augmentation_config,
        batch_size=run.config.batch_size_per_gpu,
        order=order,
        workers=run.config.workers,
    )


def _interrupted(run: Run) -> None:
    save_state(run)
    where = f"epoch {run.state.epoch + 1}, step {run.state.step} of {run.steps}"
    raise Interrupted(f"stopped in {where}; everything is saved: the same command goes on from here")
