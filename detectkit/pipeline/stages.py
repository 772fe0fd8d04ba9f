"""The stages of a run, in their order: when a spec wants them, what they read, what they do, what they write.

To add one (a search), add one entry to STAGES: its name is that of its folder and of `--from` and `--until`.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from detectkit.data import sources
from detectkit.spec import (
    DataSource,
    Experiment,
    ExportConfig,
    PruningConfig,
    chosen_criterion,
    has_teacher,
    qat_spec,
    retraining_spec,
)

Command = list[str]  # the words after `detectkit`

DATA = ("dataset_config", "augmentation_config", "cost_function_config")
MEASURING = ("evaluation_config", "postprocessing_config")
TRAINING = (
    "random_seed",
    *DATA,
    "model_config",
    "training_config",
    "bbox_rasterizer_config",
    "loss_mask_label_filter",
)
SPEC, RETRAIN_SPEC, QAT_SPEC = "spec.txt", "spec_retrain.txt", "spec_qat.txt"


class Chain(NamedTuple):
    """One spec and the folder of its run: where everything is."""

    experiment: Experiment
    folder: Path

    def path(self, *parts: str) -> str:
        return str(self.folder.joinpath(*parts))

    @property
    def trains(self) -> bool:
        return self.experiment.HasField("training_config")

    @property
    def validates(self) -> bool:
        return self.experiment.dataset_config.WhichOneof("dataset_split_type") is not None

    @property
    def prunes(self) -> bool:
        return self.experiment.HasField("pruning_config")

    @property
    def prunes_in_turns(self) -> bool:
        """Whether the pruning itself trains again, after each of its turns."""
        return self.prunes and self.experiment.pruning_config.iterations > 1

    @property
    def judges_by_images(self) -> bool:
        """Whether pruning looks at what the cost of training images would lose."""
        experiment = self.experiment
        criterion = chosen_criterion(experiment.pruning_config, experiment.dataset_config)
        return self.prunes and criterion == PruningConfig.TAYLOR

    @property
    def retrains(self) -> bool:
        """Whether the pruned network is trained again by a stage of its own."""
        return self.prunes and self.trains and not self.prunes_in_turns

    @property
    def calibrates(self) -> bool:
        return self.experiment.HasField("calibration_config")

    @property
    def trains_in_8_bits(self) -> bool:
        return self.experiment.calibration_config.HasField("quantization_aware_training")

    @property
    def exports(self) -> bool:
        return self.experiment.HasField("export_config")

    @property
    def data_type(self) -> str:
        """fp32, fp16 or int8, of the file that is deployed."""
        return ExportConfig.DataType.Name(self.experiment.export_config.data_type).lower()

    @property
    def builds_engine(self) -> bool:
        return self.experiment.export_config.HasField("engine_config")

    @property
    def specs(self) -> dict[str, Experiment]:
        """The specs that the stages are given, by file name."""
        found = {SPEC: self.experiment}
        if self.retrains:
            found[RETRAIN_SPEC] = self.retraining
        if self.trains_in_8_bits:
            found[QAT_SPEC] = self.training_in_8_bits
        return found

    @property
    def retraining(self) -> Experiment:
        config = self.experiment.pruning_config.retraining
        teacher = Path(self.float_model)
        return retraining_spec(self.experiment, Path(self.pruned), config, kept=self.kept, teacher=teacher)

    @property
    def kept(self) -> float | None:
        """The share of mAP that pruning has left, as it has written down; None: it is not done, or has not measured."""
        path = Path(self.path("prune", "status.jsonl"))
        for line in reversed(path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
            try:
                share = json.loads(line)["kpi"]["mean_average_precision_left"]
            except (ValueError, LookupError, TypeError):  # of another kind, or cut by a crash
                continue
            return float(share)
        return None

    @property
    def training_in_8_bits(self) -> Experiment:
        return qat_spec(self.experiment, Path(self.final))

    @property
    def float_model(self) -> str:
        given = self.experiment.model_config.pretrained_model_file
        return self._best("train") if self.trains else os.path.expanduser(given)

    @property
    def pruned(self) -> str:
        return self.path("prune", "pruned.safetensors")

    @property
    def retrained(self) -> str:
        return self._best("retrain")

    @property
    def in_8_bits(self) -> str:
        """The last model of quantisation-aware training: only then its ranges have settled."""
        return self.path("qat", "weights", "model.safetensors")

    @property
    def final(self) -> str:
        """The model in float that is deployed."""
        if self.retrains:
            return self.retrained
        return self.pruned if self.prunes else self.float_model

    @property
    def deployed(self) -> str:
        """The model that is calibrated and exported."""
        return self.in_8_bits if self.trains_in_8_bits else self.final

    @property
    def scales(self) -> str:
        return self.path("calibrate", "scales.json")

    @property
    def onnx(self) -> str:
        """The file that is deployed."""
        suffix = "" if self.data_type == "fp32" else f"_{self.data_type}"
        return self.path("export", f"model{suffix}.onnx")

    @property
    def engine_source(self) -> str:
        """What the engine is built of: an 8-bit file for ONNX Runtime has another graph than TensorRT needs."""
        is_for_onnxruntime = self.experiment.export_config.runtime == ExportConfig.ONNXRUNTIME
        if self.data_type == "int8" and is_for_onnxruntime:
            return self.path("export", "model_int8_tensorrt.onnx")
        return self.onnx

    @property
    def engine(self) -> str:
        return self.path("engine", "model.engine")

    @property
    def models(self) -> list[str]:
        """What the times are compared of, the float model first; of two files of one network, one."""
        found = [self.float_model]
        found += [self.pruned] if self.prunes else []
        found += [self.retrained] if self.retrains else []
        found += [self.onnx] if self.exports and self.data_type != "fp32" else []
        found += [self.engine] if self.builds_engine and _runs_engines(self) is None else []
        return found

    def _best(self, stage: str) -> str:
        """The model of the best validation; the last one, where a spec does not validate."""
        best, last = (self.path(stage, "weights", f"model{part}.safetensors") for part in ("-best", ""))
        if os.path.exists(best):
            return best
        return last if os.path.exists(last) or not self.validates else best


def has_tensorrt() -> bool:
    """Whether one of its Python packages is installed, without loading it."""
    return importlib.util.find_spec("tensorrt") is not None or builds_ahead()


def builds_ahead() -> bool:
    """Whether the TensorRT is there that builds engines without a GPU: TensorRT for RTX."""
    return any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, without asking its driver."""
    places = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu")  # Linux, WSL, Jetson
    return any(os.path.exists(place) for place in places)


# What stages read


def _sources(chain: Chain, *, training: bool, validation: bool) -> list[str]:
    """Record patterns and image folders."""
    config = chain.experiment.dataset_config
    apart = config.HasField("validation_data_source")
    named: list[DataSource] = list(config.data_sources) if training or not apart else []
    named += [config.validation_data_source] if validation and apart else []
    found = [part for source in named for part in (source.tfrecords_path, source.image_directory_path)]
    return list(dict.fromkeys(part for part in found if part))


def _all_data(chain: Chain) -> list[str]:
    pretrained = [chain.experiment.model_config.pretrained_model_file] if chain.trains else []
    found = _sources(chain, training=True, validation=True) + [path for path in pretrained if path]
    return found + _teacher(chain.experiment)


def _retraining_data(chain: Chain) -> list[str]:
    return [*_sources(chain, training=True, validation=True), chain.pruned, *_teacher(chain.retraining)]


def _qat_data(chain: Chain) -> list[str]:
    teacher = _teacher(chain.training_in_8_bits)
    return [*_sources(chain, training=True, validation=True), chain.final, *teacher]


def _pruning_data(chain: Chain) -> list[str]:
    data = _sources(chain, training=True, validation=chain.prunes_in_turns) if _looks(chain) else []
    teacher = _teacher(chain.retraining) if chain.prunes_in_turns else []
    return list(dict.fromkeys([*data, chain.float_model, *teacher]))


def _teacher(experiment: Experiment) -> list[str]:
    """The file of the network that teaches in a training."""
    config = experiment.training_config.distillation
    return [os.path.expanduser(config.teacher_model_file)] if has_teacher(config) else []


def _looks(chain: Chain) -> bool:
    """Whether pruning looks at images: to judge the filters, or because it trains in turns."""
    return chain.judges_by_images or chain.prunes_in_turns


def _calibration_data(chain: Chain) -> list[str]:
    return [*_sources(chain, training=True, validation=False), chain.deployed]


def _exported(chain: Chain) -> list[str]:
    found = list(dict.fromkeys([chain.deployed, chain.final]))
    if chain.data_type != "int8":
        return found
    # Which layers stay in float is found on images.
    tries = chain.experiment.export_config.HasField("max_drop")
    found += _sources(chain, training=True, validation=True) if tries else []
    return found + ([chain.scales] if chain.calibrates else [])


def _labels(chain: Chain) -> list[str]:
    found = [path for config in chain.experiment.dataset_export_config for path in sources.reads(config)]
    return [str(path / "**") if path.is_dir() else str(path) for path in found]


# What stages read of the spec


def _sections(*names: str) -> Callable[[Chain], Experiment]:
    """A spec with these sections alone."""
    return lambda chain: only(chain.experiment, names)


def only(experiment: Experiment, names: Iterable[str]) -> Experiment:
    """A copy with these top-level fields alone."""
    kept = Experiment()
    kept.CopyFrom(experiment)
    for field in Experiment.DESCRIPTOR.fields:
        if field.name not in names:
            kept.ClearField(field.name)
    return kept


def _conversion(chain: Chain) -> Experiment:
    """The validation fold counts where the other folds are changed."""
    kept = only(chain.experiment, ("dataset_export_config",))
    config = chain.experiment.dataset_config
    modifies = any(part.HasField("sample_modifier_config") for part in kept.dataset_export_config)
    if modifies and config.HasField("validation_fold"):
        kept.dataset_config.validation_fold = config.validation_fold
    return kept


def _pruning_spec(chain: Chain) -> Experiment:
    """Without what comes after it; data and training only where pruning looks at images."""
    kept = only(chain.experiment, ("pruning_config", *(TRAINING if _looks(chain) else ())))
    if not chain.prunes_in_turns:
        kept.pruning_config.ClearField("retraining")
    return kept


def _retraining(chain: Chain) -> Experiment:
    return only(chain.retraining, TRAINING)


def _training_in_8_bits(chain: Chain) -> Experiment:
    return only(chain.training_in_8_bits, TRAINING)


def _calibration_spec(chain: Chain) -> Experiment:
    kept = only(chain.experiment, (*DATA, "calibration_config"))
    kept.calibration_config.ClearField("quantization_aware_training")
    return kept


def _export_spec(chain: Chain) -> Experiment:
    """Clustering and data are in the files too, for what deploys them; what the engine is like is not."""
    kept = only(chain.experiment, (*DATA, *MEASURING, "export_config"))
    kept.export_config.ClearField("engine_config")
    return kept


def _engine_spec(chain: Chain) -> Experiment:
    kept = Experiment()
    kept.export_config.engine_config.CopyFrom(chain.experiment.export_config.engine_config)
    return kept


# What stages do


def _convert(chain: Chain) -> list[Command]:
    return [["convert", "-d", chain.path(SPEC), "-r", chain.path("convert")]]


def _train(chain: Chain) -> list[Command]:
    return [["train", "-e", chain.path(SPEC), "-r", chain.path("train")]]


def _prune(chain: Chain) -> list[Command]:
    command = ["prune", "-e", chain.path(SPEC), "-m", chain.float_model, "-o", chain.pruned]
    return [[*command, "-r", chain.path("prune")]]


def _retrain(chain: Chain) -> list[Command]:
    return [["train", "-e", chain.path(RETRAIN_SPEC), "-r", chain.path("retrain")]]


def _qat(chain: Chain) -> list[Command]:
    return [["train", "-e", chain.path(QAT_SPEC), "-r", chain.path("qat")]]


def _calibrate(chain: Chain) -> list[Command]:
    return [["calibrate", "-e", chain.path(SPEC), "-m", chain.deployed, "-o", chain.path("calibrate")]]


def _export(chain: Chain) -> list[Command]:
    """In 32 bits always, as what to fall back on; then as the spec says."""
    start = ["export", "-e", chain.path(SPEC), "-m"]
    in_float = [*start, chain.final, "-o", chain.path("export", "model.onnx"), "--data_type", "fp32"]
    if chain.data_type == "fp32":
        return [in_float]
    ranges = ["--calibration", chain.scales] if chain.data_type == "int8" and chain.calibrates else []
    commands = [[*in_float, "--no-gen_ds_config"], [*start, chain.deployed, "-o", chain.onnx, *ranges]]
    if chain.builds_engine and chain.engine_source != chain.onnx:
        commands += [[*start, chain.deployed, "-o", chain.engine_source, *ranges, "--runtime", "tensorrt"]]
    return commands


def _engine(chain: Chain) -> list[Command]:
    return [["engine", "-e", chain.path(SPEC), "-m", chain.engine_source, "-o", chain.engine]]


def _latency(chain: Chain) -> list[Command]:
    return [["latency", *chain.models, "-r", chain.path("latency")]]


# What stages write


def _exports(chain: Chain) -> list[str]:
    found = [chain.path("export", "model.onnx"), chain.onnx]
    return list(dict.fromkeys(found + ([chain.engine_source] if chain.builds_engine else [])))


def _records(chain: Chain) -> list[str]:
    found = []
    for config in chain.experiment.dataset_export_config:
        found.append(f"{glob.escape(config.output_filename)}*")
        if config.HasField("sample_config"):
            found.append(os.path.join(config.sample_config.root_directory_path, "sequences.json"))
    return found


def _trained(stage: str) -> Callable[[Chain], list[str]]:
    return lambda chain: [chain.path(stage, "weights", "model.safetensors")]


# What hinders stages, and what they tell


def _nothing(chain: Chain) -> None:
    return None


def _builds_engines(chain: Chain) -> str | None:
    if not has_tensorrt():
        return "TensorRT is not installed: pip install 'detectkit[tensorrt]' mends that"
    if not has_gpu() and not builds_ahead():
        return "this TensorRT builds engines on a GPU, and there is none here; TensorRT for RTX builds them anywhere"
    return None


def _runs_engines(chain: Chain) -> str | None:
    return _builds_engines(chain) or (
        None if has_gpu() else "an engine runs on a GPU, and there is none here"
    )


def _precision(name: str) -> Callable[[Chain], str | None]:
    """mAP in the results of an evaluation."""

    def told(chain: Chain) -> str | None:
        content = json.loads(Path(chain.path(name, "results.json")).read_text(encoding="utf-8"))
        mean = content["mean_average_precision"]
        return (
            "mAP - %: no labelled box in the images measured" if mean is None else f"mAP {100 * mean:.2f} %"
        )

    return told


class Stage(NamedTuple):
    """One step of a run."""

    name: str
    title: str
    wanted: Callable[[Chain], bool]
    commands: Callable[[Chain], list[Command]]
    spec: Callable[[Chain], Experiment]  # what it reads of the spec
    reads: Callable[[Chain], list[str]]  # files, patterns of files, folders of images
    writes: Callable[[Chain], list[str]]  # files and patterns without which it has to be done again
    impossible: Callable[[Chain], str | None] = _nothing  # why it cannot be done on this machine
    tools: tuple[str, ...] = ()  # of `versions`; another version is a reason to do it again
    trains: bool = False  # goes on where it was, also after changes that a training allows
    is_kept: bool = False  # never begun anew unasked
    tells: Callable[[Chain], str | None] = _nothing  # its outcome in a few words
    measures: bool = False  # belongs to the stage before it, see --until


def _evaluation(
    of: str,
    wanted: Callable[[Chain], bool],
    model: Callable[[Chain], str],
    impossible: Callable[[Chain], str | None] = _nothing,
) -> Stage:
    """A model measured on the validation images."""
    name = f"evaluate_{of}"
    return Stage(
        name,
        f"accuracy of {of}",
        lambda chain: wanted(chain) and chain.validates,
        lambda chain: [["evaluate", "-e", chain.path(SPEC), "-m", model(chain), "-r", chain.path(name)]],
        _sections(*DATA, *MEASURING, "bbox_rasterizer_config", "model_config"),
        lambda chain: [*_sources(chain, training=False, validation=True), model(chain)],
        lambda chain: [chain.path(name, "results.json")],
        impossible,
        tells=_precision(name),
        measures=True,
    )


STAGES = (
    Stage(
        "convert",
        "labels to records",
        lambda chain: bool(chain.experiment.dataset_export_config),
        _convert,
        _conversion,
        _labels,
        _records,
    ),
    Stage(
        "train",
        "training in float",
        lambda chain: chain.trains,
        _train,
        _sections(*TRAINING),
        _all_data,
        _trained("train"),
        trains=True,
        is_kept=True,
    ),
    _evaluation("float", lambda chain: True, lambda chain: chain.float_model),
    Stage(
        "prune",
        "leaving out filters",
        lambda chain: chain.prunes,
        _prune,
        _pruning_spec,
        _pruning_data,
        lambda chain: [chain.pruned],
    ),
    _evaluation("pruned", lambda chain: chain.prunes, lambda chain: chain.pruned),
    Stage(
        "retrain",
        "training what is left",
        lambda chain: chain.retrains,
        _retrain,
        _retraining,
        _retraining_data,
        _trained("retrain"),
        trains=True,
    ),
    _evaluation("retrained", lambda chain: chain.retrains, lambda chain: chain.retrained),
    Stage(
        "qat",
        "training in 8-bit rounding",
        lambda chain: chain.trains_in_8_bits,
        _qat,
        _training_in_8_bits,
        _qat_data,
        _trained("qat"),
        trains=True,
    ),
    _evaluation("qat", lambda chain: chain.trains_in_8_bits, lambda chain: chain.in_8_bits),
    Stage(
        "calibrate",
        "ranges for 8 bits",
        lambda chain: chain.calibrates,
        _calibrate,
        _calibration_spec,
        _calibration_data,
        lambda chain: [chain.scales],
    ),
    Stage(
        "export",
        "ONNX files",
        lambda chain: chain.exports,
        _export,
        _export_spec,
        _exported,
        _exports,
    ),
    *(
        _evaluation(
            name,
            lambda chain, name=name: chain.exports and chain.data_type == name,  # type: ignore[misc]
            lambda chain: chain.onnx,
        )
        for name in ("fp32", "fp16", "int8")
    ),
    Stage(
        "engine",
        "TensorRT engine",
        lambda chain: chain.builds_engine,
        _engine,
        _engine_spec,
        lambda chain: [chain.engine_source],
        lambda chain: [chain.engine],
        _builds_engines,
        tools=("TensorRT",),
    ),
    _evaluation("engine", lambda chain: chain.builds_engine, lambda chain: chain.engine, _runs_engines),
    Stage(
        "latency",
        "times side by side",
        lambda chain: True,
        _latency,
        _sections(),
        lambda chain: chain.models,
        lambda chain: [chain.path("latency", "latency.json")],
        measures=True,
    ),
)
