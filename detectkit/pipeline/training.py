"""The stages that train, each with a spec of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detectkit.pipeline.basis import PER_MIB, Basis, Estimate
from detectkit.pipeline.chain import SPEC, Chain, RunStage, teacher
from detectkit.pipeline.products import NETWORKS, Product, Role
from detectkit.spec import Experiment, Rule, TrainingConfig, batch_size, has_teacher, only, qat_spec

LEARNED = (Rule.DATA, Rule.TRAINING, Rule.RESUMABLE)  # phases of the fields that a trained network hangs on
QAT_SPEC = "spec_qat.txt"
STARTING, PLOT = 1.5, 0.7  # seconds: of a training, and of the curves that go with a checkpoint
EIGHT_BITS = 2.0  # forward passes that one in 8-bit rounding takes
FIGURES, EVENTS = 0.2, 1.0  # MiB


def training(
    name: str,
    title: str,
    *,
    model: Product,
    course: str,
    wanted: Callable[[Chain], bool],
    experiment: Callable[[Chain], Experiment],
    spec_file: str,
    slower: float = 1.0,
    is_kept: bool = False,
) -> RunStage:
    """A stage that trains.

    Args:
        model: what it makes, without its path: of a network the model of the best validation, else the last one.
        course: title of its curves in the report.
        experiment: the spec that it trains by, which lies in `spec_file` in the folder of the run.
        slower: times that a step takes what one of the spec's network takes.
    """

    def makes(chain: Chain) -> list[Product]:
        last = chain.path(name, "weights", "model.safetensors")
        path = _best(last, chain.validates) if model.role in NETWORKS else last
        status = chain.path(name, "status.jsonl")
        return [model._replace(path=path), Product(model.key, course, Role.COURSE, status)]

    def reads(chain: Chain) -> list[str]:
        found = experiment(chain)
        start = found.model_config.pretrained_model_file
        return [*chain.sources(), *([start] if start else []), *teacher(found)]

    return RunStage(
        name=name,
        title=title,
        wanted=wanted,
        commands=lambda chain: [["train", "-e", chain.path(spec_file), "-r", chain.path(name)]],
        spec=lambda chain: only(experiment(chain), *LEARNED),
        reads=reads,
        writes=lambda chain: [chain.path(name, "weights", "model.safetensors")],
        takes=lambda chain, basis: _takes(experiment(chain), basis, slower),
        makes=makes,
        specs=lambda chain: {spec_file: experiment(chain)},
        trains=True,
        is_kept=is_kept,
    )


def _best(last: str, validates: bool) -> str:
    """The model of the best validation; the last one, where there is none, or will be none."""
    best = last.replace("model.safetensors", "model-best.safetensors")
    return best if os.path.exists(best) or validates and not os.path.exists(last) else last


def num_epochs(config: TrainingConfig) -> int:
    """Of all its stages."""
    return config.num_epochs + (config.first_stage.num_epochs if config.HasField("first_stage") else 0)


def epochs_take(experiment: Experiment, epochs: int, basis: Basis, slower: float = 1.0) -> Estimate:
    """So many epochs of training what earlier stages have left of the network, without what comes before the first."""
    config, measured = experiment.training_config, experiment.evaluation_config
    weights = basis.mib * basis.share
    period = max(measured.validation_period_during_training, 1)
    validates = experiment.dataset_config.WhichOneof("dataset_split_type") is not None
    passes = (max(epochs - measured.first_validation_epoch, 0) // period + 1) * validates
    kept = -(-epochs // (config.checkpoint_interval or 10))  # the last one is the model itself
    # Weights, gradients' moments of Adam, and the average of the weights
    moments = {"sgd": 1}.get(config.optimizer.WhichOneof("optimizer") or "", 2)
    resume = weights * (1 + moments + bool(config.ema_decay))
    size = batch_size(experiment)
    images = -(-basis.training // size) * size
    # A teacher takes what the network of the spec takes.
    taught = basis.finding if has_teacher(config.distillation) else 0.0
    learning = images * (basis.learning * basis.share * slower + taught)
    seconds = epochs * learning + passes * basis.measuring * slower
    seconds += kept * PLOT + (kept * (weights + resume) + passes * weights) * PER_MIB
    mib = kept * weights + resume + weights * bool(passes) + FIGURES
    return Estimate(seconds, mib + (EVENTS if config.visualizer.enabled else 0.0))


def _takes(experiment: Experiment, basis: Basis, slower: float) -> Estimate:
    found = epochs_take(experiment, num_epochs(experiment.training_config), basis, slower)
    return found._replace(seconds=STARTING + found.seconds)


TRAIN = training(
    "train",
    "training in float",
    model=Product("float", "float", Role.NETWORK, ""),
    course="Training",
    wanted=lambda chain: chain.trains,
    experiment=lambda chain: chain.experiment,
    spec_file=SPEC,
    is_kept=True,
)

QAT = training(
    "qat",
    "training in 8-bit rounding",
    # The last model, not the best: only then have its ranges settled.
    model=Product("qat", "QAT", Role.ROUNDED, ""),
    course="Training in 8 bits",
    wanted=lambda chain: chain.experiment.calibration_config.HasField("quantization_aware_training"),
    experiment=lambda chain: qat_spec(chain.experiment, Path(chain.last(*NETWORKS, before="qat"))),
    spec_file=QAT_SPEC,
    slower=EIGHT_BITS,
)
