"""Setting up a training run: from a checked spec to data, network and optimiser, fresh or resumed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detectkit import spec
from detectkit.console import StatusLog, log
from detectkit.data.dataset import Dataset, capped, class_counts
from detectkit.data.overlap import require_separate
from detectkit.data.records import training_frames, validation_frames
from detectkit.data.warn import beside, left_out, misnamed, require_seen, warnings
from detectkit.errors import DataError, ModelError, UsageError
from detectkit.files import atomic_write, clear_left_behind, make_directory
from detectkit.heads import Head, make_head
from detectkit.model import checkpoint, pretrained
from detectkit.model.detector import Detector, build, summary
from detectkit.model.quantization import Ranges
from detectkit.spec.stored import WRITER, other_writer, read_stored, unknown_entries, warn_of_unknown
from detectkit.trackers import without_key
from detectkit.train import optim, state as states
from detectkit.train.average import WeightAverage
from detectkit.train.board import Board
from detectkit.train.precision import cost_scale, number_format
from detectkit.train.stages import Stage, begin, stages
from detectkit.train.state import State
from detectkit.train.step import Regularization, Task, Term
from detectkit.train.teacher import load_teacher

RESUME_FILE = "resume.pt"
SPEC_FILE = "experiment_spec.txt"


@dataclass
class Run:
    """What a training run is made of; all but `state` and `saved_at` stays as it is set up."""

    experiment: spec.Experiment
    results: Path
    name: str
    device: torch.device
    training: Dataset
    validation: Dataset | None
    head: Head[Any]
    state: State
    board: Board
    status: StatusLog
    number_format: torch.dtype
    saved_at: float

    @property
    def config(self) -> spec.TrainingConfig:
        return self.experiment.training_config

    @property
    def steps(self) -> int:
        """Batches of an epoch: the last one is filled up with images of its beginning."""
        return steps_of(len(self.training), self.config.batch_size_per_gpu)

    @property
    def group(self) -> tuple[int, int]:
        """The batches whose gradients are averaged with those of the next batch: the first, and how many."""
        size = self.config.accumulate_batches
        first = self.state.step - self.state.step % size
        return first, min(size, self.steps - first)

    @property
    def stage(self) -> Stage:
        """The stage under way."""
        return stages(self.config)[self.state.stage]

    @property
    def stopped_early(self) -> bool:
        """Whether its schedule has ended the stage under way."""
        return self.stage.early_stopping is not None and self.state.plateau.ended

    @property
    def stage_ended(self) -> bool:
        """Whether the stage under way has no epoch left."""
        return self.stopped_early or self.state.epoch - self.state.stage_start >= self.stage.epochs

    @property
    def finished(self) -> bool:
        """Whether the last stage has no epoch left."""
        return self.stage_ended and self.state.stage == len(stages(self.config)) - 1

    @property
    def epochs(self) -> int:
        """Epochs of all stages, if none ends early from now on."""
        return self.state.stage_start + sum(stage.epochs for stage in stages(self.config)[self.state.stage :])

    @property
    def settles(self) -> bool:
        """Whether the last quarter of the steps has begun, if none ends early from now on."""
        return 4 * (self.state.epoch * self.steps + self.state.step) >= 3 * self.epochs * self.steps

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
        DataError: no usable data, or a target class without a box to train on, or no box that the network sees.
        ModelError: the pretrained file or the saved state does not fit.
        UsageError: `results` holds a run of another spec.
        OutputError: `results` cannot be written.
    """
    watched, experiment = experiment, without_key(experiment)  # a key is for the account alone, not for files
    saved = _saved_state(experiment, results)
    torch.manual_seed(experiment.random_seed)
    training, validation = _open_data(experiment)
    network = _network(experiment, saved, results)
    cell = network.outline.levels[0].stride
    if saved or experiment.model_config.load_graph:  # the first training on these images has said the rest
        require_seen(training, experiment.augmentation_config, stride=cell)
    else:
        _say_labels(experiment, training, validation)
        for doubt in warnings(training, validation, experiment.augmentation_config, stride=cell):
            log.warning(doubt)
    detector = network.to(device).to(memory_format=torch.channels_last)
    head = make_head(experiment, detector.outline)
    dtype = number_format(experiment.model_config.training_precision, device)
    state = _state(experiment, results, detector, head, dtype=dtype, images=len(training))
    if saved:
        _resume(state, saved, experiment, results)
    _say_precision(dtype, experiment, state)
    if detector.ranges is not None:
        log.info("in 8-bit rounding; its ranges and batch-norm statistics stand still in the last quarter")
    steps = steps_of(len(training), experiment.training_config.batch_size_per_gpu)
    make_directory(results)  # not before everything it will hold is known to be usable
    for folder in (results, results / "weights"):
        clear_left_behind(folder)
    _write_spec(results / SPEC_FILE, experiment)
    first_step = state.epoch * steps + state.step
    return Run(
        experiment=experiment,
        results=results,
        name=name,
        device=device,
        training=training,
        validation=validation,
        head=head,
        state=state,
        board=Board(results / "events", watched, head, first_step=first_step),
        status=StatusLog(results / "status.jsonl"),
        number_format=dtype,
        saved_at=time.monotonic(),
    )


def describe(run: Run) -> str:
    """The network in a line: name, parameters, cost, stride, receptive field."""
    detector, head = run.state.detector, run.head
    size = summary(detector, head.height, head.width)
    return (
        f"{detector.backbone.title}: {size.parameters:,} parameters ({size.trainable:,} trained),"
        f" {size.gmacs:.2f} GMACs at {head.width}x{head.height}, stride {', '.join(map(str, size.strides))},"
        f" each cell sees {size.receptive_field} pixels"
    )


def _saved_state(experiment: spec.Experiment, results: Path) -> dict[str, Any] | None:
    """What `results` holds of a run of this spec, if anything."""
    path = results / RESUME_FILE
    if not path.exists():
        return None
    saved = states.read(path)
    try:
        stored = read_stored(saved["spec"])
    except ValueError as error:
        raise states.damaged(path, f"its spec cannot be used{other_writer(saved.get(WRITER))}") from error
    _check_same_run(stored.spec, experiment, results)
    return saved


def _open_data(experiment: spec.Experiment) -> tuple[Dataset, Dataset | None]:
    """The images to train on and those to validate on."""
    class_names = spec.class_names(experiment)
    training = training_frames(experiment.dataset_config, class_names)
    mapping = (
        "compare target_class_mapping with the classes of the records (detectkit check -e SPEC lists them)"
    )
    _check_classes(training, class_names, fix=mapping)
    limit = experiment.training_config.max_boxes_per_image
    read, training = training, capped(training, limit)
    for doubt in left_out(read, training, limit):
        log.warning(doubt)
    _check_classes(
        training, class_names, fix=f"max_boxes_per_image: {limit} leaves larger ones only, raise it"
    )
    validation = validation_frames(experiment.dataset_config, class_names)
    if validation is None:
        log.warning("no validation_fold or validation_data_source: nothing is measured while training")
    else:
        require_separate(training, validation, experiment.dataset_config)
    return training, validation


def _say_labels(experiment: spec.Experiment, training: Dataset, validation: Dataset | None) -> None:
    """Log which labels of the records are of no class, and which names of the spec no record has."""
    labels = training.raw_counts + (validation.raw_counts if validation else Counter[str]())
    for line in beside(experiment.dataset_config, labels):
        log.info(line)
    for doubt in misnamed(experiment, labels):
        log.warning(doubt)


def _network(experiment: spec.Experiment, saved: dict[str, Any] | None, results: Path) -> Detector:
    """The network with the weights to go on from, on the CPU."""
    class_names, model = spec.class_names(experiment), experiment.model_config
    detector = build(model, class_names, experiment.augmentation_config.preprocessing.output_image_channel)
    if saved:
        checkpoint.fill(detector, saved["detector"], results / RESUME_FILE)
        detector.freeze(saved["frozen"])
    elif model.pretrained_model_file:
        _load_pretrained(detector, model, class_names)
    if experiment.training_config.enable_qat and detector.ranges is None:
        detector.ranges = Ranges(detector)
    return detector


def _state(
    experiment: spec.Experiment,
    results: Path,
    detector: Detector,
    head: Head[Any],
    *,
    dtype: torch.dtype,
    images: int,
) -> State:
    """The state before the first step."""
    config = experiment.training_config
    state = State(
        detector,
        _terms(experiment, results, detector, head, dtype=dtype),
        images=images,
        average=WeightAverage(detector, config.ema_decay) if config.ema_decay else None,
        scale=cost_scale(config.cost_scaling, dtype, next(detector.parameters()).device),
    )
    begin(state, config, 0)
    return state


def _terms(
    experiment: spec.Experiment, results: Path, detector: Detector, head: Head[Any], *, dtype: torch.dtype
) -> list[Term]:
    """What the cost is the sum of, in this order."""
    weights = optim.regularized_weights(detector, head=detector.head_layers)
    teacher = load_teacher(experiment, results, detector, number_format=dtype)
    return [
        Task(head.balance()),
        Regularization(weights, experiment.training_config.regularizer),
        *([teacher] if teacher else []),
    ]


def _resume(state: State, saved: dict[str, Any], experiment: spec.Experiment, results: Path) -> None:
    """Put a state back to where it was saved, and name what of it is not known here."""
    path, stored = results / RESUME_FILE, read_stored(saved["spec"])
    unknown = unknown_entries(saved, ("format", *states.PARTS, *state.remembered))
    warn_of_unknown(path, saved.get(WRITER), [*unknown, *stored.unknown])
    _check_same_images(saved["images"], state.images, results)
    config, all_stages = experiment.training_config, stages(experiment.training_config)
    begin(state, config, min(saved["stage"][0], len(all_stages) - 1))
    steps = steps_of(state.images, config.batch_size_per_gpu)
    states.restore(state, saved, path, steps=steps, stages=len(all_stages))
    if spec.is_measured_otherwise(stored.spec, experiment):
        state.best = -1.0
    log.info(f"resuming after epoch {state.epoch}, step {state.step}, from {path}")


def _say_precision(dtype: torch.dtype, experiment: spec.Experiment, state: State) -> None:
    """Log the number format and whether the cost is scaled."""
    asked = experiment.model_config.training_precision.backend_floatx
    emulated = asked == spec.ModelConfig.TrainingPrecision.FLOAT16 and dtype == torch.float32
    why = " (this cpu has no matrix units for bfloat16)" if emulated else ""
    scaling = f"scaled by 2^{float(state.scale.exponent):g}" if state.scale else "not scaled"
    log.info(f"training in {str(dtype).removeprefix('torch.')}{why}, the cost is {scaling}")


def _load_pretrained(detector: Detector, model: spec.ModelConfig, class_names: list[str]) -> None:
    path = Path(model.pretrained_model_file).expanduser()
    if not path.is_file():
        raise ModelError(
            f"model_config.pretrained_model_file: there is no file {path}; correct the path, or leave the field out"
        )
    found = pretrained.load_pretrained(detector, path, class_names, load_graph=model.load_graph)
    log.info(f"{path}: {len(found.loaded)} tensors loaded, {len(found.skipped)} fresh")
    for remark in found.remarks:
        log.warning(f"{path}: {remark}")
    if found.classes:
        log.info(f"with the heads of {', '.join(found.classes)}")
    if found.narrowed and not model.load_graph:
        log.info(
            "this is a pruned network: its widths are taken over; set load_graph: true in model_config to say so"
        )


def _check_classes(training: Dataset, class_names: list[str], *, fix: str) -> None:
    counts, _ = class_counts(training)
    missing = [name for name in class_names if not counts[name]]
    if missing:
        raise DataError(f"no training box of class {', '.join(missing)}: {fix}")


def _check_same_run(before: spec.Experiment, now: spec.Experiment, results: Path) -> None:
    """Refuse to go on with another experiment; say what changed in how it is run and measured."""
    other = spec.another_training(before, now)
    if other:
        raise UsageError(
            f"{results} holds a run of another spec ({', '.join(other)} differ): use another -r, or delete"
            f" {results / RESUME_FILE} to start again"
        )
    changed = spec.changed_sections(before, now)
    if changed:
        log.warning(f"resuming with changed {', '.join(changed)}")


def _check_same_images(before: int, now: int, results: Path) -> None:
    if before != now:
        raise UsageError(
            f"{results} holds a run on {before} images, now there are {now}: use another -r, or delete"
            f" {results / RESUME_FILE} to start again"
        )


def _write_spec(path: Path, experiment: spec.Experiment) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(spec.dumps(experiment), encoding="utf-8")
