"""Pruning and training in turns: what is lost in one turn is learnt again before the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from detectkit import spec
from detectkit.compress.accuracy import what_is_left
from detectkit.compress.prune import Size, prune
from detectkit.console import log
from detectkit.errors import UsageError
from detectkit.model import checkpoint
from detectkit.model.checkpoint import Model
from detectkit.model.detector import Detector
from detectkit.spec import PruningConfig
from detectkit.spec.schema import short
from detectkit.train.loop import train
from detectkit.train.run import describe, set_up


def save_pruned(path: Path, model: Model, config: PruningConfig) -> None:
    """Write a model file that also tells how it was pruned.

    Raises:
        OutputError: the file cannot be written.
    """
    experiment = spec.Experiment()
    experiment.CopyFrom(model.spec)
    experiment.pruning_config.CopyFrom(config)
    checkpoint.save(path, model.detector, spec.dumps(experiment), model.class_names)


def prune_and_retrain(
    model: Model,
    experiment: spec.Experiment,
    config: PruningConfig,
    results: Path,
    *,
    sizes: Mapping[str, Size],
    teacher: Path,
) -> Model:
    """Prune and train `config.iterations` times, each in a folder `iteration_N` of `results`, where the model is.

    A target is approached in equal ratios; a threshold is the same every time. A run that was cut goes on where it was.

    Args:
        experiment: how to train, where `config.retraining` does not say it.
        sizes: see `prune`; shares of the network that this begins with.
        teacher: the file of that network, which teaches in all turns unless the spec says otherwise.

    Returns:
        The model after the last training: the best of its validation, if there was one.

    Raises:
        UsageError: `results` holds another pruning.
        SpecError, ModelError, DataError, OutputError, Interrupted: as pruning and training do.
    """
    device = next(model.detector.parameters()).device
    for number in range(1, config.iterations + 1):
        folder, turn = results / f"iteration_{number}", turn_of(config, number)
        turn.criterion = spec.chosen_criterion(
            config, experiment.dataset_config
        )  # a file tells what was done
        log.info(f"turn {number} of {config.iterations}, in {folder}")
        file = folder / "pruned.safetensors"
        if file.exists():
            _check_same(file, model, turn)
            log.info(f"{file} is there already")
        else:
            pruned = prune(model.detector, turn, experiment=experiment, sizes=sizes)
            if pruned.threshold is not None:
                log.info(f"pruned at threshold {short(pruned.threshold)}")
            save_pruned(file, model._replace(detector=pruned.detector), turn)
        left = what_is_left(model.detector, checkpoint.load(file, device).detector, experiment)
        if left is not None:
            log.info(f"mAP {100 * left.after:.2f} is left of {100 * left.before:.2f}")
        kept = left.share if left is not None else None
        again = spec.retraining_spec(experiment, file, config.retraining, kept=kept, teacher=teacher)
        run = set_up(again, folder, name="model", device=device)
        log.info(describe(run))
        with run.status.failures():
            outcome = train(run)
        model = checkpoint.load(outcome.best or outcome.last, device)
    return model


def turn_of(config: PruningConfig, number: int) -> PruningConfig:
    """What is done in one turn of `config.iterations`, counted from 1."""
    turn = PruningConfig()
    turn.CopyFrom(config)
    for name in ("iterations", "retraining"):  # another retraining goes on with the same pruned file
        turn.ClearField(name)
    aim = config.WhichOneof("aim")
    if aim and aim != "threshold":
        setattr(turn, aim, math.pow(getattr(config, aim), number / config.iterations))
    return turn


def _check_same(file: Path, model: Model, turn: PruningConfig) -> None:
    """Refuse a file that was not made of this model in this way."""
    found = checkpoint.load(file)
    wanted = spec.resolved(spec.Experiment(pruning_config=turn)).pruning_config
    for other, is_same in (
        ("pruning_config", found.spec.pruning_config == wanted),
        ("model", _is_left_of(model.detector, found.detector)),
    ):
        if not is_same:
            raise UsageError(
                f"{file} was pruned with another {other}: use another -r, or delete {file.parent} and what follows it"
            )


def _is_left_of(network: Detector, narrowed: Detector) -> bool:
    """Whether the layers of the outputs have no tensor, and no value in one, that the network has not: pruning only takes away."""
    layers = dict.fromkeys(output.layer for output in network.outline.outputs)
    before, after = (
        [each.get_submodule(layer).state_dict() for layer in layers] for each in (network, narrowed)
    )
    return all(
        one.keys() == other.keys() and all(torch.isin(other[name], one[name].cpu()).all() for name in one)
        for one, other in zip(before, after, strict=True)
    )
