"""Judge a spec of any kind, and the data it names: count classes and boxes, open a sample of the images."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.console import log, say, table
from detectkit.errors import DataError, ModelError

if TYPE_CHECKING:
    from detectkit.data.dataset import Dataset

SAMPLE = 16  # images opened of each set
NAMED = 12  # labels named that are no target class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="of any kind: training, inference or conversion")
    parser.add_argument(
        "--spec-only", action="store_true", help="judge the text alone: the data and models are elsewhere"
    )


def run(args: argparse.Namespace) -> None:
    path = args.experiment_spec
    message = spec.load(path)
    kind = spec.kind_of(message)
    say(f"{path}: {kind.name}, no rule broken; for {kind.commands}")
    if args.spec_only:
        return
    match message:
        case spec.Experiment():
            _check_data(message)
            say(f"next: detectkit train -e {path} -r RESULTS_DIR")
        case spec.Inference():
            _check_model(message)
            say(f"next: detectkit infer -e {path} -i IMAGES -r RESULTS_DIR")
        case spec.DatasetExportConfig():
            _check_folders(message)
            say(f"next: detectkit convert -d {path} -o PREFIX")


def _check_data(experiment: spec.Experiment) -> None:
    """Print the boxes of each class; raises DataError for unreadable data and for classes without a training box."""
    from detectkit.data.dataset import class_counts, training_frames, validation_frames

    _require_model(experiment.model_config.pretrained_model_file, "model_config.pretrained_model_file")
    names = spec.class_names(experiment)
    training = training_frames(experiment.dataset_config, names)
    validation = validation_frames(experiment.dataset_config, names)
    counts, labels = class_counts(training)
    held_out, more_labels = class_counts(validation) if validation else (Counter[str](), Counter[str]())
    rows = [(name, counts[name], held_out[name]) for name in names]
    images = ("images", len(training), len(validation) if validation else 0)
    table(("class", "training boxes", "validation boxes"), [*rows, images])
    _say_other_labels(experiment, labels + more_labels)
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    opened = sum(_open_sample(dataset, channels) for dataset in (training, validation) if dataset)
    say(f"opened {opened} of {len(training) + len(validation or ())} images: all good")
    empty = [name for name in names if not counts[name]]
    if empty:
        found = ", ".join(sorted(labels)) or "none"
        raise DataError(
            f"no training box of class {', '.join(empty)}; the labels in the records are: {found}. "
            "Correct dataset_config.target_class_mapping, or take the class out"
        )
    if validation and not all(held_out[name] for name in names):
        empty = [name for name in names if not held_out[name]]
        log.warning(
            "no validation box of class %s: no average precision, and no part in the mAP", ", ".join(empty)
        )


def _say_other_labels(experiment: spec.Experiment, labels: Counter[str]) -> None:
    """Name the labels in the records that are no target class, and count their boxes."""
    mapped = {label.lower() for label in experiment.dataset_config.target_class_mapping}
    others = [(label, count) for label, count in labels.most_common() if label not in mapped]
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        listed = ", ".join(f"{label} ({count})" for label, count in others[:NAMED])
        say(f"labels that are not mapped, so background: {listed}{more}")


def _open_sample(dataset: Dataset, channels: int) -> int:
    """Decode images spread evenly over a data set; gives their number. Raises DataError for a bad one."""
    step = max(len(dataset) // SAMPLE, 1)
    indices = range(0, len(dataset), step)[:SAMPLE]
    for index in indices:
        dataset.sample(index, channels=channels)
    return len(indices)


def _check_model(inference: spec.Inference) -> None:
    model = inference.inferencer_config.tlt_config.model
    if not model:
        say("the spec names no detectkit model: give one with -m")
    elif not Path(model).expanduser().is_file():
        log.warning("inferencer_config.tlt_config.model: there is no file %s: give a model with -m", model)


def _require_model(path: str, field: str) -> None:
    if path and not Path(path).expanduser().is_file():
        raise ModelError(f"{field}: there is no file {path}; correct the path, or leave the field out")


def _check_folders(config: spec.DatasetExportConfig) -> None:
    """Raise DataError unless images and labels are there."""
    kitti = config.kitti_config
    root = Path(kitti.root_directory_path).expanduser()
    images = Path(config.image_directory_path).expanduser() / kitti.image_dir_name
    if not config.image_directory_path or not images.is_dir():
        images = root / kitti.image_dir_name
    _count_files("kitti_config.image_dir_name", images, "." + kitti.image_extension.removeprefix("."))
    _count_files("kitti_config.label_dir_name", root / kitti.label_dir_name, ".txt")


def _count_files(field: str, folder: Path, suffix: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{field}: there is no folder {folder}")
    count = sum(file.suffix == suffix for file in folder.iterdir())
    if not count:
        raise DataError(f"{field}: {folder} holds no {suffix} file")
    say(f"{folder}: {count} {suffix} files")
