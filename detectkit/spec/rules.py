"""The rules that tie the fields of a spec together; those of single fields are in the schema."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.message import Message

from detectkit.errors import SpecError
from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.by_class import DEFAULT, LABELS, TARGETS, class_entries, entry_of, own_labels
from detectkit.spec.calibration_pb2 import CalibrationConfig
from detectkit.spec.classes import class_names, label_name, lists_classes, nearest
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import COCOConfig, DatasetExportConfig, KITTIConfig
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.export_pb2 import ExportConfig
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.label_filter_pb2 import ObjectiveLabelFilter
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, is_grid
from detectkit.spec.pruning_pb2 import PruningConfig
from detectkit.spec.schema import (
    VISIBLE,
    Violation,
    control_character,
    join,
    quoted,
    rule_of,
    schema_of,
    short,
    show,
    violations,
)
from detectkit.spec.training_pb2 import (
    EarlyStoppingAnnealingScheduleConfig,
    LearningRateConfig,
    Retraining,
)

ACTIVATION_PARAMETERS = {"leaky_relu": ("alpha",), "elu": ("alpha",)}
LABEL_LIMITS = (
    ("min_width", "max_width"),
    ("min_height", "max_height"),
    ("crop_left", "crop_right"),
    ("crop_top", "crop_bottom"),
)
PICTURES = "training_config.visualizer.target_class_config"  # a class needs no entry there
RESERVED = f"must not be {quoted(DEFAULT)}, which is the entry for the classes that have none of their own"
NAMED = 20  # names in one message, and classes that one section lacks
TENSORRT_VERSION = re.compile(r"\d+(\.\d+){1,3}")


def check(message: Experiment | Inference | DatasetExportConfig) -> list[Violation]:
    """Every broken rule of a spec, empty if it is good. Looks at the message, and at the class_file that it may name."""
    is_of_grid = isinstance(message, Experiment) and is_grid(message.model_config)
    found = list(violations(message, is_grid=is_of_grid))
    match message:
        case Experiment():
            found += _experiment(message)
        case Inference():
            found += _inference(message)
        case DatasetExportConfig():
            found += _dataset_export(message)
    return found


def has_batch_norm(model: ModelConfig) -> bool:
    """Whether the network has batch normalisation: some have a choice, the others always or never."""
    network = NETWORKS.get(model.arch)
    always = network.batch_norm if network else None
    return model.use_batch_norm if always is None else always


# Training specs


def _experiment(spec: Experiment) -> Iterator[Violation]:
    if spec.HasField("augmentation_config"):
        yield from _augmentation(spec.augmentation_config)
    if spec.HasField("model_config"):
        yield from _model(spec.model_config)
        yield from _stride(spec)
    if spec.HasField("training_config"):
        yield from _training(spec)
    elif not spec.model_config.pretrained_model_file:
        yield Violation("training_config", "this section is missing", "")
    if spec.HasField("cost_function_config"):
        yield from _cost(spec.cost_function_config, is_of_grid=is_grid(spec.model_config))
    if spec.HasField("evaluation_config"):
        yield from _evaluation(spec.evaluation_config)
    if spec.HasField("dataset_config"):
        yield from _mapping(spec)
    if spec.HasField("pruning_config"):
        yield from _pruning(spec)
    if spec.HasField("calibration_config"):
        yield from _calibration(spec)
    if spec.HasField("export_config"):
        yield from _export(spec)
    yield from _conversions(spec)
    try:
        names = class_names(spec)
    except SpecError as error:
        yield Violation("cost_function_config.class_file", str(error), "")
        return  # without names, nothing can be said of what each of them has
    yield from _class_list(spec, names)
    yield from _class_sets(spec, names)
    yield from _loss_mask(spec.loss_mask_label_filter, names)


def _ordered(path: str, message: Message, *names: str) -> Iterator[Violation]:
    """Pairs of fields of which the first must not exceed the second."""
    for low, high in zip(names[::2], names[1::2]):
        least, greatest = getattr(message, low), getattr(message, high)
        fields = schema_of(message).fields_by_name
        is_missing = rule_of(fields[high]).required and not message.HasField(high)
        if least > greatest and not is_missing:
            limit = show(greatest, fields[high])
            yield Violation(join(path, low), f"must be at most {high} ({limit})", show(least, fields[low]))


def _augmentation(config: AugmentationConfig) -> Iterator[Violation]:
    path = "augmentation_config.spatial_augmentation"
    yield from _ordered(path, config.spatial_augmentation, "zoom_min", "zoom_max")
    pre = config.preprocessing
    if any((pre.crop_left, pre.crop_top, pre.crop_right, pre.crop_bottom)):
        for low, high in (("crop_left", "crop_right"), ("crop_top", "crop_bottom")):
            least, greatest = getattr(pre, low), getattr(pre, high)
            if least >= greatest:
                yield Violation(
                    f"augmentation_config.preprocessing.{high}", f"must exceed {low} ({least})", str(greatest)
                )


def _model(config: ModelConfig) -> Iterator[Violation]:
    network = NETWORKS.get(config.arch)
    if network and network.depths and config.num_layers > 0 and config.num_layers not in network.depths:
        depths = ", ".join(map(str, sorted(network.depths)))
        yield Violation(
            "model_config.num_layers", f"must be one of {depths} for {config.arch}", str(config.num_layers)
        )
    for index, block in enumerate(config.freeze_blocks):
        if math.isfinite(block) and block != round(block):
            yield Violation(f"model_config.freeze_blocks[{index}]", "must be a whole number", short(block))
    for name in ("load_graph", "freeze_pretrained_layers"):
        if getattr(config, name) and not config.pretrained_model_file:
            rule = "needs pretrained_model_file, the model to start from; the spec names none"
            yield Violation(f"model_config.{name}", rule, "")
    if config.HasField("activation"):
        yield from _activation(config.activation)
    bbox = config.objective_set.bbox
    if bbox.HasField("loss_ratios") and bbox.loss_ratios.l1 == bbox.loss_ratios.giou == 0:
        path = "model_config.objective_set.bbox.loss_ratios"
        yield Violation(path, "l1 or giou must exceed 0", "0 and 0")


def _activation(config: ModelConfig.Activation) -> Iterator[Violation]:
    kind = config.activation_type
    known = ACTIVATION_PARAMETERS.get(kind, ())
    for name in sorted(config.activation_parameters):
        if name not in known:
            rule = f"{kind} takes {', '.join(known) or 'no parameter'}"
            path = f"model_config.activation.activation_parameters[{quoted(name)}]"
            yield Violation(path, rule, short(config.activation_parameters[name]))


def _stride(spec: Experiment) -> Iterator[Violation]:
    """The network's input is whole cells."""
    network = NETWORKS.get(spec.model_config.arch)
    for name in ("output_image_width", "output_image_height"):
        size = getattr(spec.augmentation_config.preprocessing, name)
        if network and size % network.stride:
            rule = f"must be a multiple of {network.stride}, the stride of {spec.model_config.arch}"
            multiple = max(round(size / network.stride), 1) * network.stride
            path = f"augmentation_config.preprocessing.{name}"
            yield Violation(path, f"{rule} (for instance {multiple})", str(size))


def _training(spec: Experiment) -> Iterator[Violation]:
    config, path = spec.training_config, "training_config"
    if config.HasField("learning_rate"):
        yield from _learning_rate(f"{path}.learning_rate", config.learning_rate, config.num_epochs, spec)
    if config.first_stage.HasField("learning_rate"):
        rate, epochs = config.first_stage.learning_rate, config.first_stage.num_epochs
        yield from _learning_rate(f"{path}.first_stage.learning_rate", rate, epochs, spec)
    if config.optimizer.sgd.nesterov and config.optimizer.sgd.momentum == 0:
        yield Violation(f"{path}.optimizer.sgd.nesterov", "needs a momentum above 0", "")
    taught = config.HasField("distillation") and config.distillation.weight > 0
    if taught and not config.distillation.teacher_model_file:
        yield Violation(f"{path}.distillation.teacher_model_file", "must name a trained model", '""')


def _learning_rate(
    path: str, config: LearningRateConfig, epochs: int, spec: Experiment
) -> Iterator[Violation]:
    """One schedule; `epochs` is the length of its stage."""
    match config.WhichOneof("learning_rate"):
        case "soft_start_annealing_schedule":
            soft = config.soft_start_annealing_schedule
            pairs = ("min_learning_rate", "max_learning_rate", "soft_start", "annealing")
            yield from _ordered(f"{path}.soft_start_annealing_schedule", soft, *pairs)
        case "early_stopping_annealing_schedule":
            path += ".early_stopping_annealing_schedule"
            early = config.early_stopping_annealing_schedule
            yield from _ordered(path, early, "min_learning_rate", "max_learning_rate")
            yield from _early_stopping(path, early, epochs, spec)
        case _:
            kinds = "soft_start_annealing_schedule { … } or early_stopping_annealing_schedule { … }"
            yield Violation(path, f"needs {kinds}", "")


def _early_stopping(
    path: str, schedule: EarlyStoppingAnnealingScheduleConfig, epochs: int, spec: Experiment
) -> Iterator[Violation]:
    """The validation cost must be known, and often enough."""
    data, period = spec.dataset_config, spec.evaluation_config.validation_period_during_training
    if spec.HasField("dataset_config") and data.WhichOneof("dataset_split_type") is None:
        rule = "needs validation images: set dataset_config.validation_fold or validation_data_source"
        yield Violation(path, rule, "")
    patience, here = schedule.patience_steps, f"{path}.patience_steps"
    if spec.HasField("evaluation_config") and patience < period:
        rule = f"must be at least evaluation_config.validation_period_during_training ({period})"
        yield Violation(here, rule, str(patience))
    elif patience > epochs > 0:
        yield Violation(here, f"must be at most the epochs of its stage ({epochs})", str(patience))


def _cost(config: CostFunctionConfig, *, is_of_grid: bool) -> Iterator[Violation]:
    path = "cost_function_config"
    if not (config.target_classes or config.class_names or config.class_file):
        yield Violation(f"{path}.target_classes", "at least one is needed, or class_names, or class_file", "")
    counts = Counter(target.name for target in config.target_classes)
    for name, count in counts.items():
        if count > 1:
            yield Violation(
                f"{path}.target_classes", f"class {quoted(name)} must stand once", f"{count} times"
            )
    for index, target in enumerate(config.target_classes if is_of_grid else ()):
        yield from _objectives(
            f"{path}.target_classes[{index}].objectives", target, config.enable_autoweighting
        )
    if config.enable_autoweighting:
        yield from _ordered(path, config, "min_objective_weight", "max_objective_weight")
        if config.max_objective_weight == 0:
            rule = "must exceed 0 with enable_autoweighting, or nothing is learnt"
            yield Violation(f"{path}.max_objective_weight", rule, "0")


def _objectives(
    path: str, target: CostFunctionConfig.TargetClass, autoweighting: bool
) -> Iterator[Violation]:
    """Both objectives once, with weights of which one at least is above 0."""
    names = sorted(objective.name for objective in target.objectives)
    if names and names != ["bbox", "cov"]:
        rule = f'must be "cov" and "bbox", once each (class {quoted(target.name)})'
        yield Violation(path, rule, ", ".join(map(quoted, names)))
    for field in ("initial_weight", *(["weight_target"] if autoweighting else [])):
        total = sum(getattr(objective, field) for objective in target.objectives)
        if names and total <= 0:
            yield Violation(
                path, f"the sum of {field} must exceed 0 (class {quoted(target.name)})", short(total)
            )


def _evaluation(config: EvaluationConfig) -> Iterator[Violation]:
    if config.protocol != EvaluationConfig.COCO and not config.minimum_detection_ground_truth_overlap:
        yield Violation(
            "evaluation_config.minimum_detection_ground_truth_overlap", "at least one is needed", ""
        )
    for name in sorted(config.evaluation_box_config):
        path = f"evaluation_config.evaluation_box_config[{quoted(name)}]"
        pairs = ("minimum_height", "maximum_height", "minimum_width", "maximum_width")
        yield from _ordered(path, config.evaluation_box_config[name], *pairs)


def _mapping(spec: Experiment) -> Iterator[Violation]:
    """Two spellings of one label must agree; no class is nameless."""
    config = spec.dataset_config
    path, mapping = LABELS, config.target_class_mapping
    if not mapping and not lists_classes(spec):
        yield Violation(path, "at least one is needed", "")
    for label, target in mapping.items():
        if not target:
            yield Violation(f"{path}[{quoted(label)}]", "must name a target class", '""')
    yield from _agreeing(path, mapping.items())
    labels = set(map(label_name, mapping))
    for index, label in enumerate(config.dontcare_labels):
        if label_name(label) in labels:
            rule = "must not be a label of target_class_mapping too"
            yield Violation(f"dataset_config.dontcare_labels[{index}]", rule, quoted(label))


def _pruning(spec: Experiment) -> Iterator[Violation]:
    config, path = spec.pruning_config, "pruning_config"
    if config.normalizer == PruningConfig.MAX and 1 <= config.threshold < math.inf:
        rule = "must be below 1 with normalizer MAX: no normalised statistic is above 1, so nothing would be kept"
        yield Violation(f"{path}.threshold", rule, short(config.threshold))
    if config.criterion == PruningConfig.BATCH_NORM_SCALE and not has_batch_norm(spec.model_config):
        rule = "must be NORM or TAYLOR, as the network of model_config has no batch normalisation"
        yield Violation(f"{path}.criterion", rule, "BATCH_NORM_SCALE")
    if config.HasField("retraining"):
        yield from _retraining(f"{path}.retraining", config.retraining, spec)


def _retraining(path: str, config: Retraining, spec: Experiment) -> Iterator[Violation]:
    """What differs from training_config must fit what does not."""
    if not spec.HasField("training_config"):
        yield Violation(path, "needs training_config, which says the rest", "")
        return
    epochs = config.num_epochs or spec.training_config.num_epochs
    own = config.HasField("learning_rate")
    rate = config.learning_rate if own else spec.training_config.learning_rate
    if own or config.num_epochs:
        here = path if own else f"{path}.num_epochs, with training_config"
        yield from _learning_rate(f"{here}.learning_rate", rate, epochs, spec)


def _calibration(spec: Experiment) -> Iterator[Violation]:
    config, path = spec.calibration_config, "calibration_config"
    if not TENSORRT_VERSION.fullmatch(config.tensorrt_version):
        rule = 'must be a version such as "10.3.0"'
        yield Violation(f"{path}.tensorrt_version", rule, quoted(config.tensorrt_version))
    if config.HasField("quantization_aware_training"):
        inner = f"{path}.quantization_aware_training"
        yield from _retraining(inner, config.quantization_aware_training, spec)
        if config.HasField("method"):
            rule = "must be left out with quantization_aware_training, which learns the ranges"
            yield Violation(f"{path}.method", rule, CalibrationConfig.Method.Name(config.method))


def _export(spec: Experiment) -> Iterator[Violation]:
    config, path = spec.export_config, "export_config"
    is_int8 = config.data_type == ExportConfig.INT8
    is_onnxruntime = config.runtime == ExportConfig.ONNXRUNTIME
    if is_int8 and not (spec.HasField("calibration_config") or spec.training_config.enable_qat):
        rule = "needs calibration_config, or training_config.enable_qat, for the ranges"
        yield Violation(f"{path}.data_type", rule, "INT8")
    if config.gen_ds_config and config.nms:
        yield Violation(f"{path}.nms", "must be left out with gen_ds_config: DeepStream clusters itself", "")
    if config.gen_ds_config and is_int8 and is_onnxruntime:
        rule = "must be TENSORRT with gen_ds_config: DeepStream runs on it"
        yield Violation(f"{path}.runtime", rule, "ONNXRUNTIME")
    if config.nms and config.HasField("engine_config"):
        yield Violation(f"{path}.nms", "must be left out with engine_config: it is for ONNX Runtime", "")
    engine = config.engine_config
    sizes = ("min_batch_size", "opt_batch_size", "max_batch_size")
    given = [name for name in sizes if getattr(engine, name)]
    for low, high in zip(given, given[1:]):
        yield from _ordered(f"{path}.engine_config", engine, low, high)
    for name in given:
        if config.static_batch_size not in (0, getattr(engine, name)):
            rule = f"must be static_batch_size ({config.static_batch_size}), or left out"
            yield Violation(f"{path}.engine_config.{name}", rule, str(getattr(engine, name)))


def _conversions(spec: Experiment) -> Iterator[Violation]:
    """Each by its own rules."""
    for index, config in enumerate(spec.dataset_export_config):
        for violation in _dataset_export(config):
            yield violation._replace(path=f"dataset_export_config[{index}].{violation.path}")


def _loss_mask(config: ObjectiveLabelFilter, names: list[str]) -> Iterator[Violation]:
    for index, entry in enumerate(config.objective_label_filter_configs):
        path = f"loss_mask_label_filter.objective_label_filter_configs[{index}]"
        kind = entry.label_filter.WhichOneof("label_filter_params")
        if kind is None:
            kinds = [field.name for field in schema_of(entry.label_filter).fields]
            yield Violation(f"{path}.label_filter", f"needs one of {', '.join(kinds)}", "")
        elif kind != "source_class_label_filter":
            yield from _limits(f"{path}.label_filter.{kind}", getattr(entry.label_filter, kind))
        for place, name in enumerate(entry.target_class_names):
            if name not in names:
                rule = f"must be a class of cost_function_config ({_near(name, names)})"
                yield Violation(f"{path}.target_class_names[{place}]", rule, quoted(name))


def _limits(path: str, label_filter: Message) -> Iterator[Violation]:
    """Pairs of limits of a label filter; a greatest value of 0 is no limit."""
    fields = schema_of(label_filter).fields_by_name
    for low, high in LABEL_LIMITS:
        if high in fields and getattr(label_filter, high):
            yield from _ordered(path, label_filter, low, high)


def _class_list(spec: Experiment, names: list[str]) -> Iterator[Violation]:
    """A list of classes has each once, and target_classes beside it no other; no class is called as the entry for the rest."""
    config, is_list = spec.cost_function_config, lists_classes(spec)
    field = "class_file" if config.class_file else "class_names"
    path = f"cost_function_config.{field}"
    if config.class_file and config.class_names:
        yield Violation(
            path, "must be left out with class_names: keep one of them", quoted(config.class_file)
        )
    for name, count in Counter(names if is_list else ()).items():
        if count > 1:
            yield Violation(path, f"class {quoted(name)} must stand once", f"{count} times")
        if not name:
            yield Violation(path, "must not be empty", '""')
        if config.class_file and (found := control_character(name)):
            yield Violation(path, VISIBLE.format(found), quoted(name))
    yield from _one_label(spec, path, dict.fromkeys(names if is_list else ()))
    if config.HasField("class_file") and not config.class_file:
        yield Violation("cost_function_config.class_file", "must not be empty", '""')
    if is_list and DEFAULT in names:
        yield Violation(path, RESERVED, quoted(DEFAULT))
    for index, target in enumerate(config.target_classes):
        here = f"{TARGETS}[{index}].name"
        if target.name == DEFAULT and not is_list:
            rule = f"{RESERVED}, of class_names or class_file: one of them is missing"
            yield Violation(here, rule, quoted(DEFAULT))
        elif is_list and target.name not in (*names, DEFAULT):
            yield Violation(
                here, f"must be one of {field} ({_near(target.name, names)})", quoted(target.name)
            )


def _one_label(spec: Experiment, path: str, names: Iterable[str]) -> Iterator[Violation]:
    """Names of a list that are one label in records, where no mapping says which class that is."""
    mapped, first = set(map(label_name, spec.dataset_config.target_class_mapping)), dict[str, str]()
    for name in names:
        label = label_name(name)
        before = first.setdefault(label, name)
        if before != name and label not in mapped:
            rule = f"must not have the label of class {quoted(before)}, {quoted(label)}: say in {LABELS} whose it is"
            yield Violation(path, rule, quoted(name))


def _class_sets(spec: Experiment, names: list[str]) -> Iterator[Violation]:
    """Every target class needs a label that maps to it, and an entry, or the one for the rest, in every section that has one
    a class."""
    wanted = dict.fromkeys(name for name in names if name not in ("", DEFAULT))
    labelled = {*spec.dataset_config.target_class_mapping.values(), *own_labels(spec)}
    missing = [name for name in wanted if labelled and name not in labelled]
    yield from _lacking(LABELS, "must map a label to", "", missing, labelled)
    for path, entries in class_entries(spec).items():
        if path == TARGETS and not entries and is_grid(spec.model_config):
            yield Violation(path, f"must have an entry {quoted(DEFAULT)}, for the classes of the list", "")
        elif path != PICTURES and entries:
            missing = [name for name in wanted if entry_of(entries, name) is None]
            misspelt = nearest(DEFAULT, sorted(entries - wanted.keys()))
            if missing and misspelt:  # one mistake, not one a class
                rule = f"must have an entry for {len(missing)} more classes of cost_function_config, or {quoted(DEFAULT)}"
                yield Violation(path, f"{rule} (is that meant?)", quoted(misspelt))
                continue
            instead = f", or {quoted(DEFAULT)}"
            yield from _lacking(path, "must have an entry for", instead, missing, entries)
        if DEFAULT in entries and path != TARGETS:
            yield from _mistaken(path, sorted(entries - {*wanted, DEFAULT}), list(wanted))


def _lacking(
    path: str, what: str, instead: str, missing: list[str], entries: set[str]
) -> Iterator[Violation]:
    """The classes that a section says nothing of."""
    for name in missing[:NAMED]:
        rule = f"{what} class {quoted(name)} of cost_function_config{instead}"
        yield Violation(path, rule, _near(name, entries))
    if len(missing) > NAMED:
        rule = f"{what} {len(missing) - NAMED} more classes of cost_function_config"
        yield Violation(path, rule, "")


def _mistaken(path: str, unknown: list[str], names: list[str]) -> Iterator[Violation]:
    """Entries for no class, where a class whose name is misspelt would be served by `default` and nobody be told."""
    for name in unknown[:NAMED] if names else ():
        rule = f"must be a class of cost_function_config beside the entry {quoted(DEFAULT)} ({_near(name, names)})"
        yield Violation(f"{path}[{quoted(name)}]", rule, "")


def _near(name: str, names: Iterable[str]) -> str:
    """The names there are, and which of them may be meant."""
    known = sorted(names)
    near = nearest(name, known)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(map(quoted, known[:NAMED])) + more + (f" (is {quoted(near)} meant?)" if near else "")


# Inference and conversion specs


def _inference(spec: Inference) -> Iterator[Violation]:
    config = spec.bbox_handler_config
    entries = config.classwise_bbox_handler_config
    path = "bbox_handler_config.classwise_bbox_handler_config"
    targets = list(spec.inferencer_config.target_classes)
    for name in targets:
        if entries and entry_of(entries, name) is None:
            rule = f"must have an entry for class {quoted(name)}, or {quoted(DEFAULT)}"
            yield Violation(path, rule, _near(name, entries))
    for index, name in enumerate(config.postproc_classes):
        if targets and name not in targets:
            rule = "must be one of inferencer_config.target_classes"
            yield Violation(f"bbox_handler_config.postproc_classes[{index}]", rule, quoted(name))
    for name, count in Counter(targets).items():
        if count > 1:
            rule = f"class {quoted(name)} must stand once"
            yield Violation("inferencer_config.target_classes", rule, f"{count} times")


def _dataset_export(spec: DatasetExportConfig) -> Iterator[Violation]:
    yield from _agreeing("target_class_mapping", _named(spec.target_class_mapping))
    modifier = spec.sample_modifier_config
    path = "sample_modifier_config.source_to_target_class_mapping"
    yield from _agreeing(path, _named(modifier.source_to_target_class_mapping))
    match spec.WhichOneof("convert_config_type"):
        case "kitti_config":
            yield from _kitti(spec.kitti_config)
        case "coco_config":
            yield from _coco(spec.coco_config)
        case "voc_config":
            if len(spec.voc_config.image_set_files) > 1 and spec.voc_config.val_split:
                rule = "must be left out with several image_set_files, which say what is in each fold"
                yield Violation("voc_config.val_split", rule, f"{spec.voc_config.val_split:g}")
        case "yolo_config":
            if len(spec.yolo_config.image_dir_names) > 1 and spec.yolo_config.val_split:
                rule = "must be left out with several image_dir_names, which say what is in each fold"
                yield Violation("yolo_config.val_split", rule, f"{spec.yolo_config.val_split:g}")
        case "csv_config":
            if len(spec.csv_config.csv_files) > 1 and spec.csv_config.val_split:
                rule = "must be left out with several csv_files, which say what is in each fold"
                yield Violation("csv_config.val_split", rule, f"{spec.csv_config.val_split:g}")
        case "sample_config":
            pass
        case _:
            others = "coco_config, voc_config, yolo_config or csv_config"
            yield Violation("kitti_config", f"this section is missing (or {others})", "")


def _named(mapping: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A mapping onto labels, which are named as the records have them."""
    return ((label, label_name(target)) for label, target in mapping.items())


def _agreeing(path: str, mapping: Iterable[tuple[str, str]]) -> Iterator[Violation]:
    """Labels are compared as `label_name` gives them, so two spellings of one must agree."""
    spellings: dict[str, set[str]] = {}
    for label, target in mapping:
        spellings.setdefault(label_name(label), set()).add(target)
    for label, targets in spellings.items():
        if len(targets) > 1:
            classes = ", ".join(map(quoted, sorted(targets)))
            rule = f"label {quoted(label)}, in lower case and without spaces, must have one class"
            yield Violation(path, rule, classes)


def _kitti(config: KITTIConfig) -> Iterator[Violation]:
    if config.partition_mode == "sequence" and not config.kitti_sequence_to_frames_file:
        path = "kitti_config.kitti_sequence_to_frames_file"
        yield Violation(path, 'partition_mode "sequence" needs it', "")
    elif config.partition_mode == "random" and config.num_partitions != 2:
        rule = 'partition_mode "random" makes 2 partitions'
        yield Violation("kitti_config.num_partitions", rule, str(config.num_partitions))


def _coco(config: COCOConfig) -> Iterator[Violation]:
    """One annotation file and one folder of images make a fold."""
    folders = len(config.img_dir_names)
    files = len(config.annotation_files)
    if folders and files and files != folders:
        rule = f"must be as many as img_dir_names, {folders}"
        yield Violation("coco_config.annotation_files", rule, str(files))
    if folders and config.HasField("num_partitions") and config.num_partitions != folders:
        rule = f"must be the number of img_dir_names, {folders} (or left out)"
        yield Violation("coco_config.num_partitions", rule, str(config.num_partitions))
    if folders and len(config.num_shards) not in (0, 1, folders):
        rule = f"must be one value, or one for each of the {folders} img_dir_names"
        yield Violation("coco_config.num_shards", rule, f"{len(config.num_shards)} values")
    if folders > 1 and config.val_split:
        rule = "must be left out with several annotation_files, each of which is a fold"
        yield Violation("coco_config.val_split", rule, f"{config.val_split:g}")
