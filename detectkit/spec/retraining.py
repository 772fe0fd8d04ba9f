"""The specs that train a trained network again, made from the spec of the first training."""

from __future__ import annotations

from pathlib import Path

from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.networks import has_tlt_layout
from detectkit.spec.training_pb2 import Retraining

# What was done before the model was there: a spec that starts from the model does not do it again.
BEFORE = ("dataset_export_config", "pruning_config")


def retraining_spec(experiment: Experiment, model: Path, retraining: Retraining | None = None) -> Experiment:
    """The spec that trains a trained model again: its weights and widths are the start, and nothing is frozen.

    Sections for what comes after the training stay, those for what was before it do not.

    Args:
        experiment: with a training_config.
        retraining: what differs from that; nothing if None.
    """
    result = Experiment()
    result.CopyFrom(experiment)
    for name in BEFORE:
        result.ClearField(name)
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
    if retraining is not None and retraining.HasField("learning_rate"):
        training.learning_rate.CopyFrom(retraining.learning_rate)
    return result


def qat_spec(experiment: Experiment, model: Path) -> Experiment:
    """The spec that trains a trained model in 8-bit rounding, as `calibration_config.quantization_aware_training` says.

    Args:
        experiment: with a training_config.
    """
    training = experiment.calibration_config.quantization_aware_training
    result = retraining_spec(experiment, model, training)
    result.training_config.enable_qat = True
    result.calibration_config.ClearField("quantization_aware_training")  # this is it
    return result
