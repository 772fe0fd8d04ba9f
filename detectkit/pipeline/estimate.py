"""What the stages of a run may take, before they are begun: seconds and MiB, right within a factor of about two.

A stage that was done before in the same folder takes what it took then. The times of the others follow from how long
a training step and a forward pass of the network take here, and from how many images there are; the rest are
constants, measured on an idle machine of two cores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf import text_format

from detectkit.data import sources
from detectkit.data.formats import is_image
from detectkit.errors import DataError
from detectkit.files import files_below
from detectkit.pipeline import state as states
from detectkit.pipeline.plan import TRAINED_WITH, Action, Step
from detectkit.pipeline.stages import Chain, has_gpu
from detectkit.spec import DatasetExportConfig, Experiment, TrainingConfig, batch_size, has_teacher

MIB = 2**20
NOTICED = 0.01  # seconds; what took less was not measured
UNKNOWN_SHARE = 0.5  # of the network that is left by a threshold
SAMPLE_IMAGES, SAMPLE_VALIDATION = 1000, 0.2  # of `sample_config`
PRUNING_STEPS, LEFT_IMAGES = (
    5,
    100,
)  # of a pruning by images; of those on which it measures what is left, at most
# Seconds
PER_LABEL, PER_DRAWING = 0.003, 0.008  # of converting; of drawing a picture of `sample_config`
PER_DETECTED = 0.003  # clustering and matching in one image
EVALUATION, TRAINING, PLOT, TIMING, EXPORT = 1.0, 1.5, 0.7, 0.7, 0.6  # fixed parts
ENGINE, ENGINE_AHEAD = 60.0, 5.0  # of building with kernels tried on a GPU, and ahead of time without one
WRITTEN = 1 / 300  # a MiB
FINDING_RANGES = 4.0  # forward passes an image of a calibration
EIGHT_BITS = 2.0  # forward passes that one in 8-bit rounding takes
ROUNDS, PRUNING_SECONDS = 60, 3.0  # runs of each network in `latency`; prune compares two networks so long
LAYERS = 20  # that --max-drop tries in float
# MiB
PER_RECORD, PER_DRAWN, MEASURED, FIGURES, EVENTS = 0.0006, 0.02, 0.15, 0.2, 1.0


class Estimate(NamedTuple):
    """What a stage may take."""

    seconds: float
    mib: float  # that it writes
    freed: float = 0.0  # MiB that go before


class Basis(NamedTuple):
    """What estimates are computed from. Times are seconds an image, see `pipeline.speed`."""

    training: int  # images to train on
    validation: int
    mib: float  # of the network's weights in float32
    learning: float
    finding: float

    @property
    def measuring(self) -> float:
        """Seconds of a pass over the validation images."""
        return self.validation * (self.finding + PER_DETECTED)


def estimates(chain: Chain, steps: Sequence[Step]) -> list[Estimate]:
    """Of each step of a plan; what is done takes nothing. Nothing is written; some seconds of computing.

    Raises:
        DetectkitError: the network or the data that a stage would be told of cannot be read.
    """
    found = [_from_before(chain, step) for step in steps]
    if any(estimate is None for estimate in found):
        basis = _basis(chain)
        found = [
            estimate or _computed(chain, step, basis) for estimate, step in zip(found, steps, strict=True)
        ]
    return [estimate for estimate in found if estimate is not None]


def _from_before(chain: Chain, step: Step) -> Estimate | None:
    """By what the stage took when it was done in this folder; None: it was not."""
    state = step.state
    if (
        step.action == Action.NOTHING
        or (state and state.status == states.SKIPPED)
        or (state is None and step.why)
    ):
        return Estimate(0.0, 0.0)
    if state is None or state.status != states.DONE or state.wall_seconds < NOTICED:
        return None
    mib = size_mib(step.folder)
    freed = 0.0 if step.action == Action.BEGIN else mib
    if not step.stage.trains:
        return Estimate(state.wall_seconds, mib, freed)
    before, now = _epochs_before(step.folder), _epochs(_spec(chain, step).training_config)
    if not before or not now:
        return Estimate(state.wall_seconds, mib, freed)
    part = now - before if step.action == Action.GO_ON else now
    return Estimate(state.wall_seconds * max(part, 0) / before, mib, freed)


def _spec(chain: Chain, step: Step) -> Experiment:
    """That a training is given."""
    match step.stage.name:
        case "retrain":
            return chain.retraining
        case "qat":
            return chain.training_in_8_bits
        case _:
            return chain.experiment


def size_mib(folder: Path) -> float:
    """Of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB


def _epochs_before(folder: Path) -> int:
    """That the training in a folder was to have; 0: unknown."""
    found = Experiment()
    try:
        text_format.Parse((folder / TRAINED_WITH).read_text(encoding="utf-8"), found)
    except (OSError, text_format.ParseError):
        return 0
    return _epochs(found.training_config)


def _epochs(config: TrainingConfig) -> int:
    return config.num_epochs + (config.first_stage.num_epochs if config.HasField("first_stage") else 0)


def _epochs_done(folder: Path) -> int:
    """Of a training that was cut."""
    done = 0
    try:
        lines = (folder / "status.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines:
            done = json.loads(line).get("epoch", done)
    except (OSError, ValueError):
        pass
    return done


# What it is computed from


def _basis(chain: Chain) -> Basis:
    from detectkit.pipeline import speed  # imports torch

    images = next(_image_folders(chain), None)
    measured = speed.measure(chain.experiment, images)
    try:
        training, validation = speed.count_records(chain.experiment)
    except DataError:
        if not chain.experiment.dataset_export_config:
            raise
        training, validation = _count_labels(chain)
    workers = chain.experiment.training_config.workers if chain.trains else 0
    decoding = measured.decoding / max(min(workers, os.cpu_count() or 1), 1)
    return Basis(
        training,
        validation,
        measured.parameters * 4 / MIB,
        measured.learning + decoding,
        measured.finding + decoding,
    )


def _image_folders(chain: Chain) -> Iterator[Path]:
    named = [source.image_directory_path for source in chain.experiment.dataset_config.data_sources]
    named.append(chain.experiment.dataset_config.validation_data_source.image_directory_path)
    for name in named:
        path = Path(name).expanduser()
        if name and path.is_dir():
            yield path


def _count_labels(chain: Chain) -> tuple[int, int]:
    """Images to train on and to measure on, of conversions that are still to be done."""
    training, validation = 0, 0
    fold = chain.experiment.dataset_config.validation_fold
    for config in chain.experiment.dataset_export_config:
        folds = _folds(config)
        held = folds[fold] if chain.validates and fold < len(folds) else 0
        training, validation = training + sum(folds) - held, validation + held
    return training, validation


def _folds(config: DatasetExportConfig) -> list[int]:
    """Images of each fold of a conversion, about; all that there are, were nothing left out."""
    kind = config.WhichOneof("convert_config_type")
    if kind == "sample_config":
        held = int(SAMPLE_IMAGES * SAMPLE_VALIDATION)
        return [held, SAMPLE_IMAGES - held]
    counts = [_count_images(path) for path in sources.reads(config) if path.is_dir()]
    if kind == "coco_config":  # a folder a fold
        return counts
    total, number = sum(counts), max(sources.num_folds(config), 1)
    split = config.voc_config.val_split if kind == "voc_config" else config.kitti_config.val_split
    if number == 2 and split:
        held = round(total * split / 100)
        return [held, total - held]
    return [total // number] * number


def _count_images(folder: Path) -> int:
    return sum(map(is_image, files_below(folder, fail=lambda error: None)))


# What each stage may take


def _computed(chain: Chain, step: Step, basis: Basis) -> Estimate:
    name = step.stage.name
    if name.startswith("evaluate_"):
        return _evaluation(chain, name, basis)
    if step.stage.trains:
        return _training(chain, step, basis)
    of: dict[str, Callable[[Chain, Basis], Estimate]] = {
        "convert": _conversion,
        "prune": _pruning,
        "calibrate": _calibration,
        "export": _export,
        "engine": _engine,
        "latency": _latency,
    }
    return of[name](chain, basis) if name in of else Estimate(0.0, 0.0)


def _share(chain: Chain) -> float:
    """Of the network that pruning leaves."""
    if not chain.prunes:
        return 1.0
    aim = chain.experiment.pruning_config.WhichOneof("aim")
    return UNKNOWN_SHARE if aim in (None, "threshold") else getattr(chain.experiment.pruning_config, aim)


def _network_mib(chain: Chain, basis: Basis) -> float:
    """Of the network that is deployed, in float32."""
    return basis.mib * _share(chain)


def _conversion(chain: Chain, basis: Basis) -> Estimate:
    seconds = mib = 0.0
    for config in chain.experiment.dataset_export_config:
        count = sum(_folds(config))
        drawn = count if config.HasField("sample_config") else 0
        embedded = (
            sum(size_mib(path) for path in sources.reads(config) if path.is_dir())
            if config.embed_images
            else 0
        )
        seconds += PER_LABEL * count + PER_DRAWING * drawn + WRITTEN * embedded
        mib += PER_RECORD * count + PER_DRAWN * drawn + embedded
    return Estimate(seconds, mib)


def _evaluation(chain: Chain, name: str, basis: Basis) -> Estimate:
    share = 1.0 if name == "evaluate_float" else _share(chain)
    return Estimate(EVALUATION + basis.validation * (basis.finding * share + PER_DETECTED), MEASURED)


def _training(chain: Chain, step: Step, basis: Basis) -> Estimate:
    experiment = _spec(chain, step)
    share = 1.0 if step.stage.name == "train" else _share(chain)
    factor = share * (EIGHT_BITS if step.stage.name == "qat" else 1.0)
    epochs = _epochs(experiment.training_config)
    left = max(epochs - _epochs_done(step.folder), 0) if step.action == Action.GO_ON else epochs
    passes, written, mib = _of_training(experiment, left, basis.mib * share)
    size = batch_size(experiment)
    images = -(-basis.training // size) * size
    each = basis.learning * factor + _teaching(experiment, basis)
    seconds = left * images * each + passes * basis.measuring * factor
    freed = size_mib(step.folder) if step.action == Action.AGAIN else 0.0
    return Estimate(TRAINING + seconds + written * WRITTEN, mib, freed)


def _teaching(experiment: Experiment, basis: Basis) -> float:
    """Seconds an image that a teacher takes, as if it were the network of the spec."""
    return basis.finding if has_teacher(experiment.training_config.distillation) else 0.0


def _of_training(experiment: Experiment, epochs: int, weights: float) -> tuple[int, float, float]:
    """Validations, MiB that are written, and MiB that stay, of a training of so many epochs."""
    config, measured = experiment.training_config, experiment.evaluation_config
    period = max(measured.validation_period_during_training, 1)
    validates = experiment.dataset_config.WhichOneof("dataset_split_type") is not None
    passes = (max(epochs - measured.first_validation_epoch, 0) // period + 1) * validates
    kept = -(-epochs // (config.checkpoint_interval or 10))  # the last one is the model itself
    # Weights, gradients' moments of Adam, and the average of the weights
    moments = {"sgd": 1}.get(config.optimizer.WhichOneof("optimizer") or "", 2)
    resume = weights * (1 + moments + bool(config.ema_decay))
    events = EVENTS if config.visualizer.enabled else 0.0
    written = kept * (weights + resume + PLOT / WRITTEN) + passes * weights
    return passes, written, kept * weights + resume + weights * bool(passes) + FIGURES + events


def _pruning(chain: Chain, basis: Basis) -> Estimate:
    config, share = chain.experiment.pruning_config, _share(chain)
    seconds = 2 * EXPORT + min(PRUNING_SECONDS, 400 * basis.finding) + 1.0
    mib = basis.mib * share
    if chain.judges_by_images:
        # In each of its steps what the costs are, and what each image says of each filter.
        seconds += (
            2 * PRUNING_STEPS * config.calibration_batches * batch_size(chain.experiment) * basis.learning
        )
    if config.WhichOneof("aim") == "target_latency":
        # Networks are exported and timed until one fits.
        seconds *= 8 * (PRUNING_STEPS if chain.judges_by_images else 1)
    if chain.validates:
        seconds += 2 * LEFT_IMAGES * basis.finding
    if config.iterations > 1:
        retraining = config.retraining.num_epochs or chain.experiment.training_config.num_epochs
        _, written, kept = _of_training(chain.experiment, retraining, mib)
        each = retraining * (basis.training * basis.learning + basis.measuring) + written * WRITTEN
        taught = retraining * basis.training * _teaching(chain.retraining, basis)
        seconds += config.iterations * (each * (1 + share) / 2 + taught)
        mib += config.iterations * kept
    return Estimate(seconds, mib + MEASURED)


def _calibration(chain: Chain, basis: Basis) -> Estimate:
    config = chain.experiment.calibration_config
    images = (config.batches or 10) * (config.batch_size or batch_size(chain.experiment))
    learned = chain.trains_in_8_bits and not config.HasField("method")
    looked_at = 0 if learned else min(images, basis.training)
    return Estimate(1.0 + looked_at * FINDING_RANGES * basis.finding * _share(chain), MEASURED)


def _export(chain: Chain, basis: Basis) -> Estimate:
    weights = _network_mib(chain, basis)
    seconds, mib = EXPORT, weights
    if chain.data_type != "fp32":
        part = 0.25 if chain.data_type == "int8" else 0.5
        count = 2 if chain.builds_engine and chain.engine_source != chain.onnx else 1
        seconds, mib = seconds + count * EXPORT, mib + part * weights + (count - 1) * weights
    if chain.data_type == "int8" and chain.experiment.export_config.max_drop:
        seconds += LAYERS * basis.measuring * _share(chain)
    return Estimate(seconds, mib)


def _engine(chain: Chain, basis: Basis) -> Estimate:
    return Estimate(ENGINE if has_gpu() else ENGINE_AHEAD, _network_mib(chain, basis))


def _latency(chain: Chain, basis: Basis) -> Estimate:
    share = _share(chain)
    each = [1.0, *[share] * (len(chain.models) - 1)]
    return Estimate(TIMING * len(each) + min(ROUNDS * basis.finding * sum(each), 60.0), 0.01)
