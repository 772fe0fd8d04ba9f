"""Setting up a training run: from a checked spec to data, network and optimiser, fresh or resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from torch import Tensor

from detectkit import spec
from detectkit.console import StatusLog, log
from detectkit.data.dataset import Dataset, class_counts, training_frames, validation_frames
from detectkit.errors import DataError, ModelError, UsageError
from detectkit.files import atomic_write, make_directory
from detectkit.heads import GridHead
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, build, summary
from detectkit.train import optim, state as states
from detectkit.train.board import Board
from detectkit.train.state import State
from detectkit.train.weighting import ObjectiveWeights

RESUME_FILE = "resume.pt"
SPEC_FILE = "experiment_spec.txt"
# What may change between two halves of a run; any other change makes it another run.
MEASURING = ("evaluation_config", "postprocessing_config")
CHANGEABLE_TRAINING = (
    *("num_epochs", "learning_rate", "regularizer"),
    *("checkpoint_interval", "visualizer", "workers"),
)


@dataclass
class Run:
    """What a training run is made of; all but `state` stays as it is set up."""

    experiment: spec.Experiment
    results: Path
    name: str
    device: torch.device
    training: Dataset
    validation: Dataset | None
    head: GridHead
    state: State
    regularized: list[Tensor]
    board: Board
    status: StatusLog
    bfloat16: bool
    saved_at: float

    @property
    def config(self) -> spec.TrainingConfig:
        return self.experiment.training_config

    @property
    def steps(self) -> int:
        """Steps of an epoch: the last batch is filled up with images of its beginning."""
        return steps_of(len(self.training), self.config.batch_size_per_gpu)

    @property
    def channels(self) -> int:
        return self.state.detector.channels

    def weights_file(self, suffix: str = "") -> Path:
        return self.results / "weights" / f"{self.name}{suffix}.safetensors"


def steps_of(images: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-images // batch_size)


def set_up(experiment: spec.Experiment, results: Path, *, name: str, device: torch.device) -> Run:
    """Open the data, build or load the network, and take up the state that `results` holds, if any.

    Raises:
        DataError: no usable data, or a target class without a box to train on.
        ModelError: the pretrained file or the saved state does not fit.
        UsageError: `results` holds a run of another spec.
        OutputError: `results` cannot be written.
    """
    saved = states.read(results / RESUME_FILE) if (results / RESUME_FILE).exists() else None
    if saved:
        trained_with = text_format.Parse(saved["spec"], spec.Experiment())
        _check_same_run(trained_with, experiment, results)
    torch.manual_seed(experiment.random_seed)
    class_names = spec.class_names(experiment)
    training = training_frames(experiment.dataset_config, class_names)
    validation = validation_frames(experiment.dataset_config, class_names)
    _check_classes(training, class_names)
    if validation is None:
        log.warning("no validation_fold or validation_data_source: nothing is measured while training")
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    detector = build(experiment.model_config, class_names, channels)
    if saved:
        checkpoint.fill(detector, saved["detector"], results / RESUME_FILE)
    elif experiment.model_config.pretrained_model_file:
        _load_pretrained(detector, experiment.model_config, class_names)
    detector = detector.to(device).to(memory_format=torch.channels_last)
    state = State(
        detector,
        optim.make_optimizer(detector, experiment.training_config.optimizer),
        ObjectiveWeights(experiment.cost_function_config),
        images=len(training),
    )
    if saved:
        _check_same_images(saved["images"], len(training), results)
        states.restore(state, saved)
        if set(MEASURING) & set(_changed_sections(trained_with, experiment)):
            state.best = -1.0  # measured otherwise: not comparable
        log.info(f"resuming after epoch {state.epoch}, step {state.step}, from {results / RESUME_FILE}")
    steps = steps_of(len(training), experiment.training_config.batch_size_per_gpu)
    make_directory(results)  # not before everything it will hold is known to be usable
    _write_spec(results / SPEC_FILE, experiment)
    return Run(
        experiment=experiment,
        results=results,
        name=name,
        device=device,
        training=training,
        validation=validation,
        head=GridHead(experiment, stride=detector.stride),
        state=state,
        regularized=optim.regularized_weights(detector),
        board=Board(results / "events", experiment, class_names, first_step=state.epoch * steps + state.step),
        status=StatusLog(results / "status.jsonl"),
        bfloat16=_use_bfloat16(experiment.model_config.training_precision, device),
        saved_at=time.monotonic(),
    )


def describe(run: Run) -> str:
    """The network in a line: name, parameters, cost, stride."""
    model, head = run.experiment.model_config, run.head
    size = summary(run.state.detector, head.height, head.width)
    return (
        f"{model.arch} {model.num_layers}: {size.parameters:,} parameters ({size.trainable:,} trained),"
        f" {size.gmacs:.2f} GMACs at {head.width}x{head.height}, stride {size.stride}"
    )


def _use_bfloat16(precision: spec.ModelConfig.TrainingPrecision, device: torch.device) -> bool:
    """Whether FLOAT16 is asked for and the device computes in bfloat16; emulating it would be slower than float32."""
    if precision.backend_floatx != spec.ModelConfig.TrainingPrecision.FLOAT16:
        return False
    if device.type == "cuda":
        able = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    else:
        found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        able = any(found.get(unit) for unit in ("amx_bf16", "avx512_bf16", "bf16"))
    log.info(
        "training in bfloat16" if able else f"this {device.type} has no bfloat16 units: training in float32"
    )
    return able


def _load_pretrained(detector: Detector, model: spec.ModelConfig, class_names: list[str]) -> None:
    path = Path(model.pretrained_model_file).expanduser()
    if not path.is_file():
        raise ModelError(
            f"model_config.pretrained_model_file: there is no file {path}; correct the path, or leave the field out"
        )
    found = checkpoint.load_pretrained(detector, path, class_names)
    log.info(f"{path}: {len(found.loaded)} tensors loaded, {len(found.skipped)} fresh")
    if found.classes:
        log.info(f"with the heads of {', '.join(found.classes)}")
    if found.narrowed and not model.load_graph:
        log.info("this is a pruned network: its widths are taken over, as load_graph: true would say")


def _check_classes(training: Dataset, class_names: list[str]) -> None:
    counts, _ = class_counts(training)
    missing = [name for name in class_names if not counts[name]]
    if missing:
        raise DataError(
            f"no training box of class {', '.join(missing)}: compare target_class_mapping with the classes of the"
            " records (detectkit check -e SPEC lists them)"
        )


def _check_same_run(before: spec.Experiment, now: spec.Experiment, results: Path) -> None:
    """Refuse to go on with another experiment; say what changed in how it is run and measured."""
    other = _changed_sections(_without_changeable(before), _without_changeable(now))
    if other:
        raise UsageError(
            f"{results} holds a run of another spec ({', '.join(other)} differ): use another -r, or delete"
            f" {results / RESUME_FILE} to start again"
        )
    changed = _changed_sections(before, now)
    if changed:
        log.warning(f"resuming with changed {', '.join(changed)}")


def _check_same_images(before: int, now: int, results: Path) -> None:
    if before != now:
        raise UsageError(
            f"{results} holds a run on {before} images, now there are {now}: use another -r, or delete"
            f" {results / RESUME_FILE} to start again"
        )


def _changed_sections(before: spec.Experiment, now: spec.Experiment) -> list[str]:
    before, now = spec.resolved(before), spec.resolved(now)
    names = [field.name for field in spec.Experiment.DESCRIPTOR.fields]
    return [name for name in names if getattr(before, name) != getattr(now, name)]


def _without_changeable(experiment: spec.Experiment) -> spec.Experiment:
    kept = spec.Experiment()
    kept.CopyFrom(experiment)
    for name in MEASURING:
        kept.ClearField(name)
    for name in CHANGEABLE_TRAINING:
        kept.training_config.ClearField(name)
    return kept


def _write_spec(path: Path, experiment: spec.Experiment) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(spec.dumps(experiment), encoding="utf-8")
