"""What a run tells of an epoch, and at its end: lines for people, records for machines, curves."""

from __future__ import annotations

import math
from typing import Any

from detectkit import draw
from detectkit.console import log
from detectkit.evaluation import Evaluation, advice, rules
from detectkit.files import atomic_write
from detectkit.model.operators import receptive_field
from detectkit.train.run import Run

GRAPHICAL = ("learning_rate", "validation_cost", "cost_scale_exponent")


def report(run: Run, entry: dict[str, Any]) -> None:
    """The epoch's line for people, and its record for machines."""
    line = f"epoch {entry['epoch']}/{run.epochs}: cost {entry['cost']:.6f}"
    kpi: dict[str, Any] = {}
    if "mean_average_precision" in entry:
        values = [f"{name} {_percent(value)}" for name, value in entry["average_precision"].items()]
        line += f", mAP {_percent(entry['mean_average_precision'])} ({', '.join(values)})"
        kpi = {
            "kpi": {"mean average precision": entry["mean_average_precision"]},
            "categorical": {"average_precision": entry["average_precision"]},
        }
    log.info(line)
    run.status.write(
        "Epoch finished.",
        epoch=entry["epoch"],
        max_epoch=run.epochs,
        graphical={"loss": entry["cost"], **{name: entry[name] for name in GRAPHICAL if name in entry}},
        **({"stage": entry["stage"]} if "stage" in entry else {}),
        **kpi,
    )


def conclude(run: Run, entry: dict[str, Any], training: Evaluation, validation: Evaluation | None) -> None:
    """What the end of a run says: whether it has learnt its own images, and what ails it.

    The illnesses are those on the validation images, unless there are none or not even the training images are learnt.

    Args:
        entry: of the last epoch; the mAP on training images is added to it.
        training: what the last network measures on a sample of the training images.
        validation: the same on the validation images, if there are any.
    """
    value = advice.mean_average_precision(training)
    if value is None:
        return
    entry["training_mean_average_precision"] = value
    log.info(f"without augmentation, mAP {_percent(value)} on {training.images} of the training images")
    learning = advice.learning(training, validation, run.experiment, total=len(run.training))
    ailing = training if validation is None or (learning and learning.kind == "not learnt") else validation
    found = [*([learning] if learning else []), *advice.findings(ailing, run.experiment)]
    for finding in found:
        log.warning(finding.text)
    changes = advice.changes(
        ailing,
        run.experiment,
        own={item.name: item.average_precision for item in training.mistakes},
        sees=receptive_field(run.state.detector.backbone),
    )
    for line in rules.told(changes):
        log.info(line)
    run.status.write(
        "Training images measured.",
        kpi={"training mean average precision": value},
        categorical={
            "training_average_precision": {item.name: item.average_precision for item in training.mistakes}
        },
        findings=[finding.entry() for finding in found],
        advice=[item.entry() for item in changes],
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
        values["mean"] = (at, [_or_nan(entry["mean_average_precision"]) for entry in measured])
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
