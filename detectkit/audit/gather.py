"""The images and labels that a spec names, as its conversions read them, or else from its records."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from detectkit.audit.findings import AuditedImage
from detectkit.audit.images import TRAINING, VALIDATION
from detectkit.data import sources
from detectkit.data.convert import read, split_as_asked
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.readers import Label, LabelledImage, Reject
from detectkit.data.records import training_frames, validation_frames
from detectkit.errors import SpecError
from detectkit.spec import DatasetConfig, DatasetExportConfig, Experiment, Spec, class_names, label_name

SHARD = re.compile(r"-shard-\d{5}-of-\d{5}")
REGIONS = "dontcare"  # KITTI's label of what was not looked at


class Gathered(NamedTuple):
    """All that is looked through."""

    images: list[AuditedImage]
    rejected: list[Reject]  # what the conversions leave out by themselves
    neutral: frozenset[str]  # labels, as `label_name` gives them, that mark regions and not objects
    classes: dict[str, str]  # label, as `label_name` gives it, to target class


def gather(message: Spec) -> Gathered:
    """Read what a training spec or a conversion spec names. Decisions of an earlier cleaning are not carried out.

    Raises:
        SpecError: it is an inference spec. DataError: a folder, a label file or a record cannot be read.
    """
    match message:
        case DatasetExportConfig():
            parts = list(_converted(message, None))
            classes = _mapping(message)
            neutral = {REGIONS}
        case Experiment():
            configs = message.dataset_export_config
            parts = [part for config in configs for part in _converted(config, message)] or list(
                _recorded(message)
            )
            target = _mapping(message.dataset_config)
            classes = dict(target)
            for config in configs:
                renamed = {name: label_name(other) for name, other in _mapping(config).items()}
                classes |= {name: target[other] for name, other in renamed.items() if other in target}
            neutral = {REGIONS, *map(label_name, message.dataset_config.dontcare_labels)}
        case _:
            raise SpecError("an inference spec names no labels: give a training spec or a conversion spec")
    images = [image for found, _ in parts for image in found]
    rejected = [reject for _, left_out in parts for reject in left_out]
    return Gathered(images, rejected, frozenset(neutral), classes)


def _mapping(config: DatasetExportConfig | DatasetConfig) -> dict[str, str]:
    return {label_name(name): target for name, target in config.target_class_mapping.items()}


def _converted(
    config: DatasetExportConfig, experiment: Experiment | None
) -> Iterator[tuple[list[AuditedImage], list[Reject]]]:
    source = split_as_asked(config, read(config, random.Random(config.random_seed)))
    images = [
        AuditedImage(frame, _part(config, number, experiment))
        for number, fold in enumerate(source.folds)
        for frame in fold
    ]
    yield images, source.rejected


def _part(config: DatasetExportConfig, fold: int, experiment: Experiment | None) -> str:
    """Whether a fold of a conversion is measured on; without a training spec the first of several is."""
    held = 0
    if experiment is not None:
        dataset = experiment.dataset_config
        if dataset.HasField("validation_data_source"):
            pattern = SHARD.sub("*", dataset.validation_data_source.tfrecords_path)
            return (
                VALIDATION if any(fnmatchcase(name, pattern) for name in _names(config, fold)) else TRAINING
            )
        held = dataset.validation_fold if dataset.HasField("validation_fold") else -1
    return VALIDATION if fold == held else TRAINING


def _names(config: DatasetExportConfig, fold: int) -> list[str]:
    """What the first file of a fold may be called, by whether the conversion makes folds and shards."""
    folds = ("", f"-fold-{fold:03}-of-{sources.num_folds(config):03}")
    return [
        f"{config.output_filename}{part}{shard}" for part in folds for shard in ("", "-shard-00000-of-00001")
    ]


def _recorded(experiment: Experiment) -> Iterator[tuple[list[AuditedImage], list[Reject]]]:
    names, config = class_names(experiment), experiment.dataset_config
    yield _of_records(training_frames(config, names, look_for_images=False), TRAINING), []
    held = validation_frames(config, names, look_for_images=False)
    if held is not None:
        yield _of_records(held, VALIDATION), []


def _of_records(dataset: Dataset, part: str) -> list[AuditedImage]:
    """Each image once, though a conversion may have copied it."""
    found: dict[tuple[int, str, str], AuditedImage] = {}
    for frame in dataset.frames:
        key = frame.source, frame.frame_id, frame.path if frame.shard is None else ""
        found.setdefault(key, AuditedImage(_labelled(frame), part, frame))
    return list(found.values())


def _labelled(frame: Frame) -> LabelledImage:
    objects = frame.objects
    labels = tuple(
        Label(name, truncation=0.0, occlusion=0, alpha=0.0, box=(box[0], box[1], box[2], box[3]))
        for name, box in zip(objects.names, objects.boxes.tolist(), strict=True)
    )
    path = frame.path if frame.shard is None else f"{frame.path} (record {frame.number}, {frame.frame_id})"
    return LabelledImage(frame.frame_id, Path(path), *(frame.size or (0, 0)), labels)
