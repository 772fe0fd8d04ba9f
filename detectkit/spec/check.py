"""The rules that a spec must keep: ranges from the schema, and those that tie fields together."""

from __future__ import annotations

import difflib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.dataset_pb2 import DatasetConfig
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.rule_pb2 import rule as rule_option
from detectkit.spec.training_pb2 import TrainingConfig

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


def warnings(message: Experiment | Inference | DatasetExportConfig) -> list[str]:
    """One sentence for each thing in a spec that does nothing here, or is likely not meant."""
    found = list(_without_effect(message))
    match message:
        case Experiment():
            found += _experiment_warnings(message)
        case Inference():
            known = set(message.inferencer_config.target_classes)
            entries = message.bbox_handler_config.classwise_bbox_handler_config
            if known:
                path = "bbox_handler_config.classwise_bbox_handler_config"
                found += _unknown_classes(path, set(entries) - {"default"}, known)
    return found


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
                yield f"{here}[{_quoted(key)}]", field, value[key]
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield f"{here}[{index}]", field, element
        else:
            yield here, field, value


def _fields(message: Message, path: str) -> Iterator[Violation]:
    """What a message breaks of the schema's own rules."""
    have = {field.name for field, _ in fields_of(message)}
    for field in schema_of(message).fields:
        if field.name not in have and rule_of(field).required:
            yield Violation(join(path, field.name), _required(field), "")
    for here, field, value in present(message, path):
        rule = rule_of(field)
        if isinstance(value, Message):
            if not (rule.inert or rule.later):
                yield from _fields(value, here)
        else:
            yield from _value(here, value, field, rule)


def _required(field: FieldDescriptor) -> str:
    if field.message_type is not None and not field.is_repeated:
        return "this section is missing"
    return "at least one is needed" if field.is_repeated else "must be set"


def _value(path: str, value: Any, field: FieldDescriptor, rule: Rule) -> Iterator[Violation]:
    """What a scalar breaks of its rule."""
    shown = show(value, field)
    if isinstance(value, float) and not math.isfinite(value):
        yield Violation(path, "must be a finite number", shown)
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
        nearest = max(round(value / rule.multiple_of), 1) * rule.multiple_of
        yield Violation(path, f"must be a multiple of {rule.multiple_of} (for instance {nearest})", shown)
    elif rule.required and value == "":
        yield Violation(path, "must not be empty", '""')


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
        return _quoted(value)
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    """The shortest text that reads as the same 32-bit number (0.1, not 0.100000001); 64-bit ones as they are."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if math.isfinite(value) and struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _without_effect(message: Message) -> Iterator[str]:
    """One sentence for each field that does nothing here or not yet, however often it is set."""
    places: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for path, field, reason in _effectless(message, ""):
        places.setdefault(field.full_name, []).append(path)
        reasons[field.full_name] = reason
    for name, paths in places.items():
        more = f" (and in {len(paths) - 1} more places)" if len(paths) > 1 else ""
        yield f"{paths[0]}{more} {reasons[name]}"


def _effectless(message: Message, path: str) -> Iterator[tuple[str, FieldDescriptor, str]]:
    for here, field, value in present(message, path):
        rule = rule_of(field)
        is_message = isinstance(value, Message)
        if not is_message and not field.is_repeated and value == field.default_value:
            continue
        if rule.inert:
            yield here, field, f"has no effect: {rule.inert}"
        elif rule.later:
            yield here, field, f"has no effect in this version: {rule.later}"
        elif is_message:
            yield from _effectless(value, here)


# Training specs


def _experiment(spec: Experiment) -> Iterator[Violation]:
    if spec.HasField("augmentation_config"):
        yield from _augmentation(spec.augmentation_config)
    if spec.HasField("model_config"):
        yield from _model(spec.model_config)
    if spec.HasField("training_config"):
        yield from _training(spec.training_config)
    if spec.HasField("cost_function_config"):
        yield from _cost(spec.cost_function_config)
    if spec.HasField("evaluation_config"):
        yield from _evaluation(spec.evaluation_config)
    if spec.HasField("dataset_config"):
        yield from _mapping(spec.dataset_config)
    yield from _class_sets(spec)


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
    if network:
        if network.depths and config.num_layers > 0 and config.num_layers not in network.depths:
            depths = ", ".join(map(str, sorted(network.depths)))
            yield Violation(
                "model_config.num_layers", f"{config.arch} has {depths} layers", str(config.num_layers)
            )
        for index, block in enumerate(config.freeze_blocks):
            if block not in network.blocks and block >= 0 and math.isfinite(block):
                first, last = network.blocks[0], network.blocks[-1]
                rule = f"must be a whole number from {first} to {last} for {config.arch}"
                yield Violation(f"model_config.freeze_blocks[{index}]", rule, _short(block))
    if config.load_graph and not config.pretrained_model_file:
        yield Violation(
            "model_config.load_graph", "needs pretrained_model_file, the model to retrain", "true"
        )


def _training(config: TrainingConfig) -> Iterator[Violation]:
    path = "training_config.learning_rate"
    kind = config.learning_rate.WhichOneof("learning_rate")
    if kind == "soft_start_annealing_schedule":
        schedule = config.learning_rate.soft_start_annealing_schedule
        pairs = ("min_learning_rate", "max_learning_rate", "soft_start", "annealing")
        yield from _ordered(f"{path}.{kind}", schedule, *pairs)
    elif config.HasField("learning_rate"):
        yield Violation(path, "needs soft_start_annealing_schedule { … }", "")


def _cost(config: CostFunctionConfig) -> Iterator[Violation]:
    path = "cost_function_config"
    counts = Counter(target.name for target in config.target_classes)
    for name, count in counts.items():
        if count > 1:
            yield Violation(
                f"{path}.target_classes", f"class {_quoted(name)} must stand once", f"{count} times"
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
        rule = f'must be "cov" and "bbox", once each (class {_quoted(target.name)})'
        yield Violation(path, rule, ", ".join(map(_quoted, names)))
    for field in ("initial_weight", *(["weight_target"] if autoweighting else [])):
        total = sum(getattr(objective, field) for objective in target.objectives)
        if names and total <= 0:
            yield Violation(
                path, f"the sum of {field} must exceed 0 (class {_quoted(target.name)})", _short(total)
            )


def _evaluation(config: EvaluationConfig) -> Iterator[Violation]:
    for name in sorted(config.evaluation_box_config):
        path = f"evaluation_config.evaluation_box_config[{_quoted(name)}]"
        pairs = ("minimum_height", "maximum_height", "minimum_width", "maximum_width")
        yield from _ordered(path, config.evaluation_box_config[name], *pairs)


def _mapping(config: DatasetConfig) -> Iterator[Violation]:
    """Label names are compared in lower case, so two spellings of one must agree; no class is nameless."""
    path = "dataset_config.target_class_mapping"
    spellings: dict[str, set[str]] = {}
    for label, target in config.target_class_mapping.items():
        spellings.setdefault(label.lower(), set()).add(target)
        if not target:
            yield Violation(f"{path}[{_quoted(label)}]", "must name a target class", '""')
    for label, targets in spellings.items():
        if len(targets) > 1:
            classes = ", ".join(map(_quoted, sorted(targets)))
            yield Violation(path, f"label {_quoted(label)}, in lower case, must have one class", classes)


def _class_sets(spec: Experiment) -> Iterator[Violation]:
    """Every target class needs a label that maps to it and an entry in every section that has one a class."""
    names = dict.fromkeys(name for name in class_names(spec) if name)
    targets = set(spec.dataset_config.target_class_mapping.values())
    for name in names:
        if targets and name not in targets:
            rule = f"must map a label to class {_quoted(name)} of cost_function_config"
            yield Violation("dataset_config.target_class_mapping", rule, _near(name, targets))
    for path, entries in _class_sections(spec):
        for name in names:
            if entries and name not in entries:
                rule = f"must have an entry for class {_quoted(name)} of cost_function_config"
                yield Violation(path, rule, _near(name, entries))


def _class_sections(spec: Experiment) -> list[tuple[str, set[str]]]:
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
    near = _nearest(name, known)
    return ", ".join(map(_quoted, known)) + (f" (is {_quoted(near)} meant?)" if near else "")


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name nearest to a name, letter case aside."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return lower[near[0]] if near else None


def _experiment_warnings(spec: Experiment) -> Iterator[str]:
    names = set(class_names(spec))
    for path, entries in _class_sections(spec):
        yield from _unknown_classes(path, entries, names)
    mapping = spec.dataset_config.target_class_mapping
    for target in sorted(set(mapping.values()) - names):
        labels = ", ".join(sorted(label for label in mapping if mapping[label] == target))
        yield (
            f"dataset_config.target_class_mapping: {_quoted(target)} is no class of cost_function_config, "
            f"so boxes of {labels} are background{_meant(target, names)}"
        )
    if spec.dataset_config.WhichOneof("dataset_split_type") is None:
        yield "dataset_config: neither validation_fold nor validation_data_source is set, so nothing is validated"
    model = spec.model_config
    if model.freeze_blocks and not model.pretrained_model_file:
        yield "model_config.freeze_blocks: without pretrained_model_file these blocks keep their random start"
    angle = spec.augmentation_config.spatial_augmentation.rotate_rad_max
    if angle > math.pi:
        yield (
            f"augmentation_config.spatial_augmentation.rotate_rad_max: {_short(angle)} radians are more than half a "
            f"turn; {_short(angle)} degrees would be {math.radians(angle):.4f}"
        )


def _unknown_classes(path: str, entries: set[str], names: set[str]) -> Iterator[str]:
    """Entries for classes that are not detected."""
    for name in sorted(entries - names):
        yield f"{path}[{_quoted(name)}] has no effect: there is no such class{_meant(name, names)}"


def _meant(name: str, names: Iterable[str]) -> str:
    near = _nearest(name, sorted(names))
    return f" (is {_quoted(near)} meant?)" if near else ""


# Inference and conversion specs


def _inference(spec: Inference) -> Iterator[Violation]:
    config = spec.bbox_handler_config
    entries = config.classwise_bbox_handler_config
    path = "bbox_handler_config.classwise_bbox_handler_config"
    targets = list(spec.inferencer_config.target_classes)
    for name in targets:
        if entries and name not in entries and "default" not in entries:
            yield Violation(
                path, f'must have an entry for class {_quoted(name)}, or "default"', _near(name, entries)
            )
    for index, name in enumerate(config.postproc_classes):
        if targets and name not in targets:
            rule = "must be one of inferencer_config.target_classes"
            yield Violation(f"bbox_handler_config.postproc_classes[{index}]", rule, _quoted(name))
    for name, count in Counter(targets).items():
        if count > 1:
            rule = f"class {_quoted(name)} must stand once"
            yield Violation("inferencer_config.target_classes", rule, f"{count} times")


def _dataset_export(spec: DatasetExportConfig) -> Iterator[Violation]:
    kind = spec.WhichOneof("convert_config_type")
    if kind is None:
        yield Violation("kitti_config", "this section is missing", "")
    elif kind != "kitti_config":
        return
    elif (
        spec.kitti_config.partition_mode == "sequence" and not spec.kitti_config.kitti_sequence_to_frames_file
    ):
        yield Violation(
            "kitti_config.kitti_sequence_to_frames_file", 'partition_mode "sequence" needs it', ""
        )
    elif spec.kitti_config.partition_mode == "random" and spec.kitti_config.num_partitions != 2:
        rule = 'partition_mode "random" makes 2 partitions'
        yield Violation("kitti_config.num_partitions", rule, str(spec.kitti_config.num_partitions))
