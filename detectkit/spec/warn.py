"""What a spec says in vain: fields that do nothing here, and settings that are likely not meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from detectkit.spec.by_class import DEFAULT, TARGETS, class_entries
from detectkit.spec.classes import class_names, nearest
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.dataset_pb2 import DatasetConfig
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.export_pb2 import ExportConfig
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.label_filter_pb2 import ObjectiveLabelFilter
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, Architecture, is_grid
from detectkit.spec.postprocessing_pb2 import ClusteringConfig, PostProcessingConfig
from detectkit.spec.pruning import chosen_criterion, has_target
from detectkit.spec.pruning_pb2 import PruningConfig
from detectkit.spec.rules import NAMED
from detectkit.spec.schema import present, quoted, rule_of, short


def warnings(message: Experiment | Inference | DatasetExportConfig) -> list[str]:
    """One sentence for each thing in a spec that does nothing here, or is likely not meant."""
    found = list(_without_effect(message))
    match message:
        case Experiment():
            found += _experiment(message)
        case Inference():
            found += _inference(message)
        case DatasetExportConfig():
            found += _dataset_export(message)
    return found


def _without_effect(message: Message) -> Iterator[str]:
    """One sentence for each field that does nothing here, however often it is set."""
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
        elif is_message:
            yield from _effectless(value, here)


# Training specs


def _experiment(spec: Experiment) -> Iterator[str]:
    names = set(class_names(spec))
    for path, entries in class_entries(spec).items():
        if DEFAULT not in entries:
            yield from _unknown_classes(path, entries, names)
        elif names <= entries:
            entry = f"{path}, the entry {DEFAULT}," if path == TARGETS else f"{path}[{quoted(DEFAULT)}]"
            yield f"{entry} has no effect: every class has an entry of its own"
    yield from _dataset(spec.dataset_config, names)
    yield from _model(spec.model_config)
    yield from _evaluation(spec.evaluation_config)
    yield from _confidence(spec.postprocessing_config)
    yield from _pruning(spec.pruning_config, spec.dataset_config)
    yield from _export(spec.export_config)
    if spec.HasField("loss_mask_label_filter"):
        yield from _loss_mask(spec.loss_mask_label_filter)
    for index, config in enumerate(spec.dataset_export_config):
        yield from (f"dataset_export_config[{index}].{text}" for text in _dataset_export(config))
    angle = spec.augmentation_config.spatial_augmentation.rotate_rad_max
    if angle > math.pi:
        yield (
            f"augmentation_config.spatial_augmentation.rotate_rad_max: {short(angle)} radians are more than half a "
            f"turn; {short(angle)} degrees would be {math.radians(angle):.4f}"
        )


def _dataset(config: DatasetConfig, names: set[str]) -> Iterator[str]:
    mapping = config.target_class_mapping
    unknown = sorted(set(mapping.values()) - names)
    for target in unknown[:NAMED]:
        labels = ", ".join(sorted(label for label in mapping if mapping[label] == target))
        yield (
            f"dataset_config.target_class_mapping: {quoted(target)} is no class of cost_function_config, "
            f"so boxes of {labels} are background{_meant(target, names)}"
        )
    if len(unknown) > NAMED:
        yield f"dataset_config.target_class_mapping: so are those of {len(unknown) - NAMED} more targets"
    if config.WhichOneof("dataset_split_type") is None:
        yield "dataset_config: neither validation_fold nor validation_data_source is set, so nothing is validated"


def _model(config: ModelConfig) -> Iterator[str]:
    if config.freeze_blocks and not config.pretrained_model_file:
        yield "model_config.freeze_blocks: without pretrained_model_file these blocks keep their random start"
    network = NETWORKS.get(config.arch)
    if network:
        for name, reason in _choices_without_effect(config, network):
            yield f"model_config.{name} has no effect: {config.arch} {reason}"


def _choices_without_effect(config: ModelConfig, network: Architecture) -> Iterator[tuple[str, str]]:
    """Fields that choose between forms that this network does not have, and why."""
    if config.num_layers and not network.depths:
        yield "num_layers", "has one depth"
    if config.use_pooling and not network.pooling:
        yield "use_pooling", "has one form"
    if config.all_projections and not network.projections:
        yield "all_projections", "has no projections to choose"
    if config.HasField("use_batch_norm") and network.batch_norm not in (None, config.use_batch_norm):
        yield "use_batch_norm", f"{'always' if network.batch_norm else 'never'} has batch normalisation"
    for name in ("deep_stem", "average_pooled_shortcuts"):
        if getattr(config, name) and not network.v1d:
            yield name, "has no form v1d, resnet has"
    if config.layout == ModelConfig.TLT and not network.in_tlt:
        yield "layout", "is no network of TLT"
    if config.layout == ModelConfig.TENSORFLOW and not network.in_tensorflow:
        yield "layout", "has no form of TensorFlow to choose"
    last = network.blocks[-1] + (0 if is_grid(config) else network.more_blocks)
    unknown = [block for block in config.freeze_blocks if block not in range(network.blocks[0], last + 1)]
    if unknown:
        named = ", ".join(map(short, unknown))
        yield "freeze_blocks", f"has blocks {network.blocks[0]} to {last} and no {named}"


def _evaluation(config: EvaluationConfig) -> Iterator[str]:
    """What one way of counting reads and another does not."""
    path, protocol = "evaluation_config", EvaluationConfig.PROTOCOL.Name(config.protocol)
    if config.protocol == EvaluationConfig.COCO and config.minimum_detection_ground_truth_overlap:
        reason = "protocol COCO averages over the overlaps 0.5, 0.55 .. 0.95"
        yield f"{path}.minimum_detection_ground_truth_overlap has no effect: {reason}"
    if config.protocol != EvaluationConfig.VOC and config.HasField("average_precision_mode"):
        yield f"{path}.average_precision_mode has no effect: protocol {protocol} has its own recalls"


def _confidence(config: PostProcessingConfig) -> Iterator[str]:
    entries = config.target_class_config
    for name in sorted(entries):
        threshold = entries[name].confidence_config.confidence_threshold
        if threshold > 1 and entries[name].clustering_config.clustering_algorithm == ClusteringConfig.NMS:
            path = f"postprocessing_config.target_class_config[{quoted(name)}].confidence_config"
            yield (
                f"{path}.confidence_threshold: {short(threshold)} is more than the confidence of any detection of "
                "NMS, which is at most 1"
            )


def _pruning(config: PruningConfig, dataset: DatasetConfig) -> Iterator[str]:
    criterion = chosen_criterion(config, dataset)
    is_set = config.calibration_batches != PruningConfig().calibration_batches
    if is_set and criterion != PruningConfig.TAYLOR:
        name = PruningConfig.Criterion.Name(criterion)
        yield f"pruning_config.calibration_batches has no effect: criterion {name} looks at no images"
    if has_target(config) and criterion == PruningConfig.TAYLOR:
        for name in ("equalization_criterion", "normalizer"):
            if getattr(config, name):
                yield (
                    f"pruning_config.{name} has no effect: on the way to a target, criterion TAYLOR compares filters in the unit"
                    " of the cost; criterion: NORM heeds it"
                )


def _export(config: ExportConfig) -> Iterator[str]:
    if config.data_type != ExportConfig.INT8:
        data_type = ExportConfig.DataType.Name(config.data_type)
        for name in ("per_tensor", "max_drop", "runtime"):
            if getattr(config, name):
                yield f"export_config.{name} has no effect: it is for data_type INT8, and this is {data_type}"


def _loss_mask(config: ObjectiveLabelFilter) -> Iterator[str]:
    path = "loss_mask_label_filter"
    if not config.objective_label_filter_configs:
        yield f"{path} has no effect: it has no objective_label_filter_configs"
    for index, entry in enumerate(config.objective_label_filter_configs):
        label_filter = entry.label_filter
        if label_filter.HasField("source_class_label_filter"):
            if not label_filter.source_class_label_filter.source_class_names:
                here = (
                    f"{path}.objective_label_filter_configs[{index}].label_filter.source_class_label_filter"
                )
                yield f"{here} has no effect: it names no label"


# Inference specs


def _inference(spec: Inference) -> Iterator[str]:
    known = set(spec.inferencer_config.target_classes)
    path = "bbox_handler_config.classwise_bbox_handler_config"
    entries = spec.bbox_handler_config.classwise_bbox_handler_config
    if known:
        yield from _unknown_classes(path, set(entries) - {DEFAULT}, known)
    for name in sorted(entries):
        handler = entries[name]
        is_mean = handler.confidence_model == "mean_cov"
        if is_mean and handler.clustering_config.clustering_algorithm == ClusteringConfig.NMS:
            yield f'{path}[{quoted(name)}].confidence_model has no effect: "mean_cov" is for clusters of DBSCAN'


# Conversion specs


def _dataset_export(spec: DatasetExportConfig) -> Iterator[str]:
    kind = spec.WhichOneof("convert_config_type")
    share = getattr(getattr(spec, kind or "kitti_config"), "val_split", 0)
    if 0 < share < 1:
        yield f"{kind}.val_split: {short(share)} is in percent; a share of {short(share)} is {short(100 * share)}"


# Class names


def _unknown_classes(path: str, entries: set[str], names: set[str]) -> Iterator[str]:
    """Entries for classes that are not detected."""
    unknown = sorted(entries - names)
    for name in unknown[:NAMED]:
        yield f"{path}[{quoted(name)}] has no effect: there is no such class{_meant(name, names)}"
    if len(unknown) > NAMED:
        yield f"{path}: {len(unknown) - NAMED} more entries have no effect: there are no such classes"


def _meant(name: str, names: Iterable[str]) -> str:
    near = nearest(name, sorted(names))
    return f" (is {quoted(near)} meant?)" if near else ""
