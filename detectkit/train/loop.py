"""The training loop: from a checked spec to model files, resumable at every step.

Everything random in a step follows from (seed, epoch, step), so a run that was cut and goes on ends with the same
weights as one that was not.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectkit import evaluation, spec
from detectkit.console import ProgressBar, log
from detectkit.data.batch import Batch
from detectkit.data.dataset import Dataset
from detectkit.data.inputs import spread
from detectkit.data.workers import loader, training_order
from detectkit.errors import DetectkitError, Interrupted
from detectkit.evaluation import Evaluation
from detectkit.model import checkpoint
from detectkit.ops.schedule import observe
from detectkit.predict import Predictor
from detectkit.train import optim, state as states, step
from detectkit.train.report import conclude, plot, report
from detectkit.train.run import RESUME_FILE, Run
from detectkit.train.stages import begin, stages

CHECK_STEPS = 20  # the cost is looked at this often; looking waits for the GPU
SAVE_SECONDS = 300  # the state is saved when the last time is longer ago
TRAINING_SAMPLE = 100  # training images measured at the end: seconds, and enough to tell 45 % mAP from 80
LEAST_EXPONENT = -64  # a cost that must be scaled to less than this has no gradients


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
    done = run.state.epoch * run.steps + run.state.step
    images = max(run.steps * run.epochs - done, 0) * run.config.batch_size_per_gpu
    with closing(run.board), StopRequest() as stop, ProgressBar("training", total=images, unit="img") as bar:
        while not run.finished:
            _train_epoch(run, stop, bar)
            if stop.requested and not run.finished:
                _interrupted(run)
    if not run.weights_file().exists():  # the spec now ends at or before the epoch that was reached
        save_model(run, run.weights_file())
    best = run.weights_file("-best")
    return Outcome(run.weights_file(), best if run.state.best >= 0 else None, run.state.history)


def _train_epoch(run: Run, stop: StopRequest, bar: ProgressBar) -> None:
    """Train to the end of the epoch under way, or to the step in which a stop is requested."""
    for cost in epoch_steps(run):
        bar.advance(run.config.batch_size_per_gpu, label=f"epoch {run.state.epoch + 1}/{run.epochs}")
        if run.state.step % CHECK_STEPS == 0:
            _require_finite(run, cost)
        if run.group[0] != run.state.step and run.state.step < run.steps:
            continue  # the weights have not moved yet; gradients are not saved
        if stop.requested:
            break
        if run.state.step < run.steps and time.monotonic() - run.saved_at > SAVE_SECONDS:
            _require_finite(run, cost)
            save_state(run)
    if run.state.step == run.steps:
        end_epoch(run)


def epoch_steps(run: Run) -> Iterator[Tensor]:
    """Train on the rest of the epoch under way, one batch an iteration; gives the total cost of each."""
    state, batch_size = run.state, run.config.batch_size_per_gpu
    order = training_order(
        run.training.groups(), batch_size, seed=run.experiment.random_seed, epoch=state.epoch
    )
    batches = _loader(run, run.training, order[state.step * batch_size :])
    run.state.detector.train()
    for batch in batches:
        cost = train_step(run, batch)
        state.step += 1
        state.cost_sum = state.cost_sum.to(cost.device) + cost
        yield cost


def train_step(run: Run, batch: Batch) -> Tensor:
    """Forward and backward, and the optimizer's step after the last batch of its group; gives the total cost."""
    state = run.state
    if run.config.enable_qat and run.settles and not state.detector.settled:
        state.detector.settle()
    rate = current_rate(run)
    optim.set_learning_rate(state.optimizer, rate)
    seeds = np.random.SeedSequence([run.experiment.random_seed, state.epoch, state.step]).generate_state(2)
    torch.manual_seed(int(seeds[1]))  # of dropout and its kind
    forwarded = step.forward(
        state.detector,
        run.head,
        batch,
        run.experiment.augmentation_config,
        generator=torch.Generator().manual_seed(int(seeds[0])),
        number_format=run.number_format,
    )
    costs = step.weighted(state.terms, forwarded)
    total = step.total(costs)
    _descend(run, total)
    run.board.step(state, run.steps, forwarded=forwarded, costs=costs, rate=rate)
    return total.detach()


def current_rate(run: Run) -> float:
    """The learning rate of the next batch."""
    state = run.state
    position = ((state.epoch - state.stage_start) * run.steps + state.step) / run.steps
    return optim.learning_rate(
        run.stage.learning_rate,
        position,
        epochs=run.stage.epochs,
        annealing_start=state.plateau.annealing_start,
    )


def _descend(run: Run, cost: Tensor) -> None:
    """Add the gradients of a batch to those of its group; after the last of them, move the weights."""
    state = run.state
    first, size = run.group
    if state.step == first:
        state.optimizer.zero_grad(set_to_none=True)
    scaled = cost if state.scale is None else cost * state.scale.factor
    (scaled if size == 1 else scaled / size).backward()  # type: ignore[no-untyped-call]
    if state.step == first + size - 1:
        optim.step(state.optimizer, clip_norm=run.config.clip_gradient_norm, scale=state.scale)
        if state.average:
            state.average.update(state.detector)


def end_epoch(run: Run) -> None:
    """Adapt the weights, validate, log, and write what is due."""
    state = run.state
    _require_finite(run, state.cost_sum)
    entry = _entry(run)
    _adapt_weights(run)
    state.epoch, state.step, state.cost_sum = state.epoch + 1, 0, torch.zeros(())
    result = validate(run) if run.validation is not None and validation_due(run) else None
    if result:
        entry["mean_average_precision"] = result.mean_average_precision
        entry["average_precision"] = {item.name: item.average_precision for item in result.classes}
        entry["validation_cost"] = result.cost
    state.history.append(entry)
    run.board.epoch(entry, state.epoch * run.steps)
    report(run, entry)
    if result:
        _observe(run, result)
    finished = run.finished
    if run.stage_ended and not finished:
        begin(state, run.config, state.stage + 1)
        log.info("the backbone is trained from now on, too")
    due = finished or state.epoch % (run.config.checkpoint_interval or 10) == 0
    if due:
        save_model(run, run.weights_file("" if finished else f".epoch-{state.epoch:03d}"))
    if finished:
        conclude(run, entry, measure_training(run), result)
    if due or time.monotonic() - run.saved_at > SAVE_SECONDS:
        plot(run)
        save_state(run)


def _adapt_weights(run: Run) -> None:
    starved = run.state.balance.end_epoch()
    if run.experiment.model_config.load_graph:
        return  # trained again: what has been learnt before does not fall
    for number, objective in starved:
        log.warning(
            "%s: its %s cost has hardly fallen since the first epoch, and auto-weighting gives it less than a hundredth of the"
            " class's weight: set cost_function_config.min_objective_weight: 0.1, or equal weight_targets (docs/tuning.md)",
            run.head.class_names[number],
            objective,
        )


def _entry(run: Run) -> dict[str, Any]:
    """What is known of the epoch that ends before it is validated."""
    state = run.state
    entry: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "cost": float(state.cost_sum) / run.steps,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
    }
    if len(stages(run.config)) > 1:
        entry["stage"] = run.stage.name
    if state.scale:
        entry["cost_scale_exponent"] = float(state.scale.exponent)
        if entry["cost_scale_exponent"] < LEAST_EXPONENT:
            raise DetectkitError(
                f"the gradients are no longer finite in epoch {entry['epoch']}, however small the cost is made: lower"
                " max_learning_rate, or check the labels"
            )
    return entry


def _observe(run: Run, result: Evaluation) -> None:
    """Keep the best model, and let an early-stopping schedule see the cost."""
    state, schedule = run.state, run.stage.early_stopping
    mean = result.mean_average_precision
    if mean is not None and mean > state.best:
        state.best = mean
        save_model(run, run.weights_file("-best"))
    if schedule is None:
        return
    assert result.cost is not None
    before, since = state.plateau, state.epoch - state.stage_start
    patience, annealing = schedule.patience_steps, schedule.annealing_epochs
    state.plateau = observe(before, result.cost, since, patience=patience, annealing_epochs=annealing)
    lapse = f"the validation cost has not been below {before.best_cost:.6f} for {since - before.best_epoch} epochs"
    if state.plateau.ended:
        log.info(f"{lapse}: {'the run' if run.finished else 'the stage'} ends after epoch {state.epoch}")
    elif state.plateau.annealing_start != before.annealing_start:
        log.info(f"{lapse}: the learning rate falls in the next {annealing} epochs")


def _require_finite(run: Run, cost: Tensor) -> None:
    if not torch.isfinite(cost):
        wider = ", or train in FLOAT32" if run.number_format == torch.float16 else ""
        raise DetectkitError(
            f"the cost is no longer a number in epoch {run.state.epoch + 1}: lower max_learning_rate, or check the"
            f" labels{wider}"
        )


def validation_due(run: Run) -> bool:
    """At `first_validation_epoch`, then every `validation_period_during_training`, and after the last epoch."""
    config, epoch = run.experiment.evaluation_config, run.state.epoch
    since = epoch - config.first_validation_epoch
    return epoch == run.epochs or (since >= 0 and since % config.validation_period_during_training == 0)


def validate(run: Run) -> Evaluation:
    """Measure the network on the validation images as `evaluate` would: in float32, costs with the initial weights."""
    assert run.validation is not None
    return _measure(run, run.validation, range(len(run.validation)))


def measure_training(run: Run) -> Evaluation:
    """The same of at most TRAINING_SAMPLE training images, without augmentation."""
    return _measure(run, run.training, sample(run.training, TRAINING_SAMPLE))


def sample(images: Dataset, most: int) -> list[int]:
    """At most `most` image numbers, ascending and evenly spread, the same ones every time.

    Where a class is missing there, the first image of each class is among them.
    """
    count, total = min(most, len(images)), len(images)
    held = [{number for number in frame.objects.classes.tolist() if number >= 0} for frame in images.frames]
    first: dict[int, int] = {}
    for image, classes in enumerate(held):
        for number in classes:
            first.setdefault(number, image)
    chosen = spread(count, total)
    if first.keys() <= {number for image in chosen for number in held[image]}:
        return chosen
    needed = sorted(set(first.values()))[:count]
    return sorted({*needed, *spread(count - len(needed), total)})


def _measure(run: Run, frames: Dataset, order: Sequence[int]) -> Evaluation:
    detector = run.state.result.eval()
    predictor = Predictor(
        detector,
        run.head,
        augmentation=run.experiment.augmentation_config,
        channels=run.channels,
        device=run.device,
    )
    batches = _loader(run, frames, order)
    balance = run.head.balance()
    return evaluation.evaluate(
        predictor.batches(batches),
        run.head.class_names,
        run.experiment.evaluation_config,
        geometry=run.head.geometry,
        cost=lambda predicted: step.validation_cost(balance, run.head, predicted),
    )


def save_model(run: Run, path: Path) -> None:
    checkpoint.save(path, run.state.result, spec.dumps(run.experiment), run.head.class_names)


def save_state(run: Run) -> None:
    states.save(run.results / RESUME_FILE, run.state, spec.dumps(run.experiment))
    run.saved_at = time.monotonic()


def _loader(run: Run, frames: Dataset, order: Sequence[int]) -> Iterator[Batch]:
    return loader(
        frames,
        run.experiment.augmentation_config,
        batch_size=run.config.batch_size_per_gpu,
        order=order,
        workers=run.config.workers,
    )


def _interrupted(run: Run) -> None:
    _require_finite(run, run.state.cost_sum)
    save_state(run)
    where = f"epoch {run.state.epoch + 1}, step {run.state.step} of {run.steps}"
    raise Interrupted(f"stopped in {where}; everything is saved: the same command goes on from here")
