"""The specs that train a trained network again, made from the spec of the first training."""

from __future__ import annotations

from pathlib import Path

from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.networks import has_tlt_layout
from detectkit.spec.phases import without
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.training_pb2 import DistillationConfig, LearningRateConfig, Retraining, TrainingConfig

SOFT_START = 0.05  # of the run, at most: the weights are no strangers to their rate


def retraining_spec(
    experiment: Experiment,
    model: Path,
    retraining: Retraining | None = None,
    *,
    kept: float | None = None,
    teacher: Path | None = None,
) -> Experiment:
    """The spec that trains a trained model again: its weights and widths are the start, and nothing is frozen.

    Sections for what comes after the training stay, those for what was before it do not.

    Args:
        experiment: with a training_config.
        retraining: what differs from that; what it does not say is as in the first training.
        kept: the share of mAP that pruning has left; where it is given, the training is as long as `_lengthen` says, and
            the rate starts and rises as `_ease` says, unless `retraining` says it.
        teacher: of a pruned network, the one before the pruning: it teaches, unless the spec has another teacher, or a weight of 0.
    """
    result = without(experiment, Rule.CONVERTING, Rule.PRUNING)
    config = result.model_config
    if has_tlt_layout(config):
        config.layout = config.TLT  # which the name of the file said
    config.pretrained_model_file, config.load_graph = str(model), True
    config.freeze_pretrained_layers = False
    config.ClearField("freeze_blocks")
    training = result.training_config
    training.ClearField("first_stage")
    if retraining is not None and retraining.num_epochs:
        training.num_epochs = retraining.num_epochs
    elif kept is not None:
        _lengthen(result, kept)
    if retraining is not None and retraining.HasField("learning_rate"):
        training.learning_rate.CopyFrom(retraining.learning_rate)
    elif kept is not None:
        _ease(training.learning_rate, kept, training.num_epochs)
    _teach(training, retraining, teacher)
    return result


def has_teacher(config: DistillationConfig) -> bool:
    """Whether one is named, and counts."""
    return bool(config.teacher_model_file) and config.weight > 0


def teacher_files(experiment: Experiment) -> dict[str, str]:
    """The model files that a spec names as teachers, of this training and of later ones, by field."""
    retraining = experiment.pruning_config.retraining
    in_8_bits = experiment.calibration_config.quantization_aware_training
    sections = {
        "training_config": experiment.training_config.distillation,
        "pruning_config.retraining": retraining.distillation,
        "calibration_config.quantization_aware_training": in_8_bits.distillation,
    }
    return {
        f"{path}.distillation.teacher_model_file": config.teacher_model_file
        for path, config in sections.items()
        if has_teacher(config)
    }


def _teach(training: TrainingConfig, retraining: Retraining | None, teacher: Path | None) -> None:
    config = DistillationConfig()
    own = retraining is not None and retraining.HasField("distillation")
    config.CopyFrom(retraining.distillation if retraining is not None and own else training.distillation)
    training.ClearField("distillation")
    if teacher is not None and not config.teacher_model_file:
        config.teacher_model_file = str(teacher)
    if has_teacher(config):
        training.distillation.CopyFrom(config)


def _lengthen(experiment: Experiment, kept: float) -> None:
    """Give the training after a pruning more epochs by the share that is lost: twice as many where nothing is left.

    A network that is measured after its last epoch only, still is.

    Args:
        experiment: changed in place.
        kept: the share of mAP that is left; more than all counts as all.
    """
    training, evaluation = experiment.training_config, experiment.evaluation_config
    epochs = training.num_epochs
    training.num_epochs = round(epochs * (2 - min(kept, 1)))
    if evaluation.first_validation_epoch == epochs:
        evaluation.first_validation_epoch = training.num_epochs


def _ease(rate: LearningRateConfig, kept: float, epochs: int) -> None:
    """Make the rate of a first training that of the training after a pruning.

    The rise is at most `SOFT_START` of the run. The greatest rate is twice what it was where nothing is left, half of it
    where all is: what is left would be undone by more, and what is lost is learnt anew.

    Args:
        rate: changed in place.
        kept: the share of mAP that is left; more than all counts as all.
    """
    name = rate.WhichOneof("learning_rate")
    if name is None:
        return
    schedule = getattr(rate, name)
    greatest = 2 ** (1 - 2 * min(kept, 1)) * schedule.max_learning_rate
    schedule.max_learning_rate = max(float(f"{greatest:.3g}"), schedule.min_learning_rate)
    if name == "soft_start_annealing_schedule":
        schedule.soft_start = min(schedule.soft_start, SOFT_START)
    else:
        schedule.soft_start_epochs = min(schedule.soft_start_epochs, int(SOFT_START * epochs))


def qat_spec(experiment: Experiment, model: Path) -> Experiment:
    """The spec that trains a trained model in 8-bit rounding, as `calibration_config.quantization_aware_training` says.

    Args:
        experiment: with a training_config.
    """
    training = experiment.calibration_config.quantization_aware_training
    # Nothing was lost yet, so a teacher is there if it is asked for.
    teacher = model if training.HasField("distillation") else None
    result = retraining_spec(experiment, model, training, teacher=teacher)
    result.training_config.enable_qat = True
    result.calibration_config.ClearField("quantization_aware_training")  # this is it
    return result
