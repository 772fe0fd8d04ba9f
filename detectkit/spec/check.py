"""The rules that a spec must keep: ranges from the schema, and those that tie fields together."""

from __future__ import annotations

import difflib
import json
import math
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from detectkit.console import CONTROL, visible
from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.calibration_pb2 import CalibrationConfig
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import COCOConfig, DatasetExportConfig, KITTIConfig
from detectkit.spec.dataset_pb2 import DatasetConfig
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.export_pb2 import ExportConfig
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.label_filter_pb2 import ObjectiveLabelFilter
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS
from detectkit.spec.pruning_pb2 import PruningConfig
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.rule_pb2 import rule as rule_option
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
VISIBLE = "must have no control character (it has {})"
NAMED = 20  # names in one message, and classes that one section lacks
TENSORRT_VERSION = re.compile(r"\d+(\.\d+){1,3}")
INTERVAL = re.compile(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])$")


class Violation(NamedTuple):
    """A broken rule. `value` is what the spec holds, as text; empty where it holds nothing."""

    path: str
    rule: str
    value: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}" + (f", got {self.value}" if self.value else "")


def check(message: Experiment | Inference | DatasetExportConfig) -> list[Violation]:
    """Every broken rule of a spec, empty if it is good. Looks at the message alone, not at files."""
    found = list(_fields(message, ""))
    match message:
        case Experiment():
            found += _experiment(message)
        case Inference():
            found += _inference(message)
        case DatasetExportConfig():
            found += _dataset_export(message)
    return found


def class_names(experiment: Experiment) -> list[str]:
    """The target classes in the order of the network's outputs."""
    return [target.name for target in experiment.cost_function_config.target_classes]


def has_batch_norm(model: ModelConfig) -> bool:
    """Whether the network has batch normalisation: some have a choice, the others always or never."""
    network = NETWORKS.get(model.arch)
    always = network.batch_norm if network else None
    return model.use_batch_norm if always is None else always


# Walking over messages


def rule_of(field: FieldDescriptor) -> Rule:
    """The machine-readable rule of a field of the schema."""
    option: Any = rule_option  # generated stubs give extensions another type than protobuf's own
    found: Rule = field.GetOptions().Extensions[option]
    return found


def schema_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message, under the one type that all of this package uses."""
    return cast(Descriptor, message.DESCRIPTOR)


def fields_of(message: Message) -> list[tuple[FieldDescriptor, Any]]:
    """The fields that are set, with their values."""
    return cast(list[tuple[FieldDescriptor, Any]], message.ListFields())


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def present(message: Message, path: str) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Path, field and value of everything that is set in a message; one for each element of a list or map."""
    for field, value in fields_of(message):
        here = join(path, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted(value):
                yield f"{here}[{quoted(key)}]", field, value[key]
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield f"{here}[{index}]", field, element
        else:
            yield here, field, value


def _fields(message: Message, path: str) -> Iterator[Violation]:
    """What a message breaks of the schema's own rules. Of a field that does nothing, nothing is asked."""
    have = {field.name for field, _ in fields_of(message)}
    for field, entries in fields_of(message):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in entries:
                if visible(key) != key:
                    yield Violation(
                        join(path, field.name),
                        "must have no control characters in a name",
                        visible(quoted(key)),
                    )
    for field in schema_of(message).fields:
        if field.name not in have and rule_of(field).required:
            yield Violation(join(path, field.name), _required(field), "")
    for here, field, value in present(message, path):
        rule = rule_of(field)
        if rule.inert:
            continue
        if isinstance(value, Message):
            yield from _fields(value, here)
        else:
            yield from _value(here, value, field, rule)
    yield from _keys(message, path)


def _keys(message: Message, path: str) -> Iterator[Violation]:
    """Keys of maps are names of classes."""
    for field, value in fields_of(message):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted(filter(control_character, map(str, value))):
                yield Violation(join(path, field.name), VISIBLE.format(control_character(key)), quoted(key))


def _required(field: FieldDescriptor) -> str:
    if field.message_type is not None and not field.is_repeated:
        return "this section is missing"
    return "at least one is needed" if field.is_repeated else "must be set"


def _value(path: str, value: Any, field: FieldDescriptor, rule: Rule) -> Iterator[Violation]:
    """What a scalar breaks of its rule."""
    shown = show(value, field)
    if isinstance(value, float) and not math.isfinite(value):
        yield Violation(path, "must be a finite number", shown)
    elif isinstance(value, str) and control_character(value):
        yield Violation(path, VISIBLE.format(control_character(value)), shown)
    elif field.enum_type is not None and value not in field.enum_type.values_by_number:
        names = [f"{known.name} ({known.number})" for known in field.enum_type.values]
        yield Violation(path, f"must be one of {', '.join(names)}", shown)
    elif rule.choices and shown.strip('"') not in rule.choices:
        near = difflib.get_close_matches(shown.strip('"').lower(), rule.choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near and isinstance(value, str) else ""
        yield Violation(path, f"must be one of {', '.join(rule.choices)}{hint}", shown)
    elif rule.range and not _in(value, rule.range):
        yield Violation(path, f"must be in {rule.range}", shown)
    elif rule.multiple_of and value % rule.multiple_of:
        multiple = _nearest_multiple(value, rule.multiple_of)
        yield Violation(path, f"must be a multiple of {rule.multiple_of} (for instance {multiple})", shown)
    elif rule.required and value == "":
        yield Violation(path, "must not be empty", '""')
    elif isinstance(value, str) and _obeyed(value, field):
        yield Violation(path, "must have no control characters", visible(shown))


def _obeyed(value: str, field: FieldDescriptor) -> bool:
    """Whether a terminal, or a file with a name a line, would obey a part of a text; notes may have several lines."""
    kept = "\n\t" if field.name == "notes" else ""
    return visible(value, kept=kept) != value


def _nearest_multiple(value: int, step: int) -> int:
    return max(round(value / step), 1) * step


def _in(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `[0, 1)`."""
    match = INTERVAL.match(interval)
    assert match, interval  # the schema's own text
    opening, low, high, closing = match.groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    below = value <= float(high) if closing == "]" else value < float(high)
    return above and below


def show(value: Any, field: FieldDescriptor) -> str:
    """A scalar as a spec writes it."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    return short(value) if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """The shortest text that reads as the same 32-bit number (0.1, not 0.100000001); 64-bit ones as they are."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if math.isfinite(value) and struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    return repr(value)


def label_name(text: str) -> str:
    """Give a label name as the records have it: in lower case and without white space, as TLT's are.

    Letters of every script stay; those that are a letter and an accent are composed.
    """
    return unicodedata.normalize("NFC", "".join(text.split()).lower())


def control_character(text: str) -> str | None:
    """The first character that a terminal or a line of a file would obey, or not show, as `U+001B`; None: there is none."""
    found = None if text.isprintable() else CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def quoted(text: str) -> str:
    return visible(json.dumps(text, ensure_ascii=False))


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
        yield from _cost(spec.cost_function_config)
    if spec.HasField("evaluation_config"):
        yield from _evaluation(spec.evaluation_config)
    if spec.HasField("dataset_config"):
        yield from _mapping(spec.dataset_config)
    if spec.HasField("pruning_config"):
        yield from _pruning(spec)
    if spec.HasField("calibration_config"):
        yield from _calibration(spec)
    if spec.HasField("export_config"):
        yield from _export(spec)
    yield from _conversions(spec)
    yield from _class_sets(spec)
    yield from _loss_mask(spec.loss_mask_label_filter, class_names(spec))


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
    """The network's input is whole grid cells. The schema already asks for multiples of 16, the least stride."""
    network = NETWORKS.get(spec.model_config.arch)
    for name in ("output_image_width", "output_image_height"):
        size = getattr(spec.augmentation_config.preprocessing, name)
        if network and size % 16 == 0 and size % network.stride:
            rule = f"must be a multiple of {network.stride}, the stride of {spec.model_config.arch}"
            multiple = _nearest_multiple(size, network.stride)
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


def _cost(config: CostFunctionConfig) -> Iterator[Violation]:
    path = "cost_function_config"
    counts = Counter(target.name for target in config.target_classes)
    for name, count in counts.items():
        if count > 1:
            yield Violation(
                f"{path}.target_classes", f"class {quoted(name)} must stand once", f"{count} times"
            )
    for index, target in enumerate(config.target_classes):
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


def _mapping(config: DatasetConfig) -> Iterator[Violation]:
    """Label names are compared in lower case, so two spellings of one must agree; no class is nameless."""
    path = "dataset_config.target_class_mapping"
    spellings: dict[str, set[str]] = {}
    for label, target in config.target_class_mapping.items():
        spellings.setdefault(label.lower(), set()).add(target)
        if not target:
            yield Violation(f"{path}[{quoted(label)}]", "must name a target class", '""')
    for label, targets in spellings.items():
        if len(targets) > 1:
            classes = ", ".join(map(quoted, sorted(targets)))
            yield Violation(path, f"label {quoted(label)}, in lower case, must have one class", classes)
    for index, label in enumerate(config.dontcare_labels):
        if label.lower() in spellings:
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


def _class_sets(spec: Experiment) -> Iterator[Violation]:
    """Every target class needs a label that maps to it and an entry in every section that has one a class."""
    names = dict.fromkeys(name for name in class_names(spec) if name)
    targets = set(spec.dataset_config.target_class_mapping.values())
    sections = [("dataset_config.target_class_mapping", targets), *class_sections(spec)]
    for path, entries in sections:
        what = "map a label to" if path.startswith("dataset_config") else "have an entry for"
        missing = [name for name in names if entries and name not in entries]
        for name in missing[:NAMED]:
            rule = f"must {what} class {quoted(name)} of cost_function_config"
            yield Violation(path, rule, _near(name, entries))
        if len(missing) > NAMED:
            rule = f"must {what} {len(missing) - NAMED} more classes of cost_function_config"
            yield Violation(path, rule, "")


def class_sections(spec: Experiment) -> list[tuple[str, set[str]]]:
    """The sections with an entry for each class. An absent or empty one is judged by the schema."""
    evaluation = spec.evaluation_config
    return [
        ("bbox_rasterizer_config.target_class_config", set(spec.bbox_rasterizer_config.target_class_config)),
        ("postprocessing_config.target_class_config", set(spec.postprocessing_config.target_class_config)),
        (
            "evaluation_config.minimum_detection_ground_truth_overlap",
            set(evaluation.minimum_detection_ground_truth_overlap),
        ),
        ("evaluation_config.evaluation_box_config", set(evaluation.evaluation_box_config)),
    ]


def _near(name: str, names: Iterable[str]) -> str:
    """The names there are, and which of them may be meant."""
    known = sorted(names)
    near = nearest(name, known)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(map(quoted, known[:NAMED])) + more + (f" (is {quoted(near)} meant?)" if near else "")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name nearest to a name, letter case aside."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return lower[near[0]] if near else None


# Inference and conversion specs


def _inference(spec: Inference) -> Iterator[Violation]:
    config = spec.bbox_handler_config
    entries = config.classwise_bbox_handler_config
    path = "bbox_handler_config.classwise_bbox_handler_config"
    targets = list(spec.inferencer_config.target_classes)
    for name in targets:
        if entries and name not in entries and "default" not in entries:
            yield Violation(
                path, f'must have an entry for class {quoted(name)}, or "default"', _near(name, entries)
            )
    for index, name in enumerate(config.postproc_classes):
        if targets and name not in targets:
            rule = "must be one of inferencer_config.target_classes"
            yield Violation(f"bbox_handler_config.postproc_classes[{index}]", rule, quoted(name))
    for name, count in Counter(targets).items():
        if count > 1:
            rule = f"class {quoted(name)} must stand once"
            yield Violation("inferencer_config.target_classes", rule, f"{count} times")


def _dataset_export(spec: DatasetExportConfig) -> Iterator[Violation]:
    yield from _agreeing("target_class_mapping", spec.target_class_mapping)
    modifier = spec.sample_modifier_config
    path = "sample_modifier_config.source_to_target_class_mapping"
    yield from _agreeing(path, modifier.source_to_target_class_mapping)
    match spec.WhichOneof("convert_config_type"):
        case "kitti_config":
            yield from _kitti(spec.kitti_config)
        case "coco_config":
            yield from _coco(spec.coco_config)
        case "voc_config":
            if spec.voc_config.image_set_files and spec.voc_config.val_split:
                rule = "must be left out with image_set_files, which say what is in each fold"
                yield Violation("voc_config.val_split", rule, f"{spec.voc_config.val_split:g}")
        case "sample_config":
            pass
        case _:
            yield Violation("kitti_config", "this section is missing (or coco_config, or voc_config)", "")


def _agreeing(path: str, mapping: Mapping[str, str]) -> Iterator[Violation]:
    """Labels are compared as the records have them, so two spellings of one must agree."""
    spellings: dict[str, set[str]] = {}
    for label, target in mapping.items():
        spellings.setdefault(label_name(label), set()).add(label_name(target))
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
