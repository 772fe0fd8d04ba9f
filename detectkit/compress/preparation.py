"""What a pruning begins with: a spec that fits the model, a criterion, and a teacher for the retraining."""

from __future__ import annotations

from pathlib import Path

import torch

from detectkit import spec
from detectkit.console import log
from detectkit.data.records import training_frames
from detectkit.errors import DataError, ModelError
from detectkit.model.base import computes_the_same
from detectkit.model.checkpoint import Model
from detectkit.model.detector import build
from detectkit.spec import PruningConfig
from detectkit.train.teacher import read_teacher


def check_spec(path: Path, model: Model, experiment: spec.Experiment) -> None:
    """Refuse a spec of another model: what is pruned with it could not be retrained with it.

    Args:
        path: of the model.

    Raises:
        ModelError: says what the spec asks for and what the model is.
    """
    wanted, fix = spec.class_names(experiment), "use the spec that it was trained with"
    if wanted != model.class_names:
        raise ModelError(
            f"{path} detects {', '.join(model.class_names)}; the spec is for {', '.join(wanted)} (in this order): {fix}"
        )
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    if channels != model.detector.channels:
        raise ModelError(
            f"{path} takes images of {model.detector.channels} channels, the spec has {channels}: {fix}"
        )
    with torch.device("meta"):
        own, network = (
            build(config, wanted, channels).backbone
            for config in (model.spec.model_config, experiment.model_config)
        )
    if own.layout != network.layout:
        fix = f"set layout: {own.layout} in model_config"
    if not computes_the_same(own, network):
        other = ", with another use_pooling, all_projections or activation"
        raise ModelError(
            f"{path} is {own.title}, the spec asks for {network.title}{other if own.title == network.title else ''}: {fix}"
        )


def choose_criterion(experiment: spec.Experiment, config: PruningConfig, *, by_weights: bool) -> None:
    """Put what AUTO stands for here in its place, and say what it is.

    Args:
        by_weights: something is asked for that only goes with NORM, or is only worth that.
    """
    if config.criterion != PruningConfig.AUTO:
        return
    config.criterion = spec.chosen_criterion(config, experiment.dataset_config)
    if by_weights:
        config.criterion = PruningConfig.NORM
    if config.criterion == PruningConfig.NORM:
        return log.info("criterion NORM, as TLT's: filters are judged by their weights")
    try:
        training_frames(experiment.dataset_config, spec.class_names(experiment), at_most=1)
    except DataError as error:
        config.criterion = PruningConfig.NORM
        return log.warning(
            f"criterion NORM, which looks at no images and leaves less: those to train on cannot be read ({error})"
        )
    log.info(
        "criterion TAYLOR: filters are judged by what the cost of training images would lose (NORM, TLT's, by their weights)"
    )


def with_teacher(
    experiment: spec.Experiment,
    config: PruningConfig,
    model: Model,
    *,
    path: Path,
    output: Path,
    is_given: bool,
) -> spec.Experiment:
    """The spec, if its teacher can teach the pruned network; a teacher of the past that is gone is left out of it.

    Args:
        path: of the model.
        output: where the pruned one will be.
        is_given: the spec is not the model's own.

    Raises:
        ModelError: the teacher that the given spec names is not there, or of other cells or images.
    """
    again = spec.retraining_spec(experiment, output, config.retraining, teacher=path)
    teacher = Path(again.training_config.distillation.teacher_model_file or path).expanduser()
    if teacher == path:
        return experiment
    if is_given or teacher.is_file():
        read_teacher(teacher, experiment, model.detector)
        return experiment
    log.info(f"{teacher}, which taught {path}, is not there any more: that is the teacher now")
    without = spec.Experiment()
    without.CopyFrom(experiment)
    without.training_config.ClearField("distillation")
    config.retraining.ClearField("distillation")
    return without
