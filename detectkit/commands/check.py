"""Judge a spec of any kind, and the data it names: count classes and boxes, open a sample of the images."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS
from detectkit.console import log, say, table
from detectkit.errors import DataError, ModelError

if TYPE_CHECKING:
    from detectkit.data.dataset import Dataset

SAMPLE = 16  # images opened of each set
NAMED = 12  # labels named that are no target class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        *SPEC_OPTIONS,
        dest="experiment_spec",
        type=Path,
        metavar="SPEC",
        help="of any kind: training, inference or conversion",
    )
    which.add_argument(
        "--from-tlt",
        type=Path,
        metavar="SPEC",
        help="list what this spec, written for TLT, does differently here",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="LABELS",
        help="compare with the class names in a text file (labels.txt)",
    )
    parser.add_argument(
        "--spec-only", action="store_true", help="judge the text alone: the data and models are elsewhere"
    )


def run(args: argparse.Namespace) -> None:
    path = args.experiment_spec or args.from_tlt
    message = spec.load(path)
    kind = spec.kind_of(message)
    say(f"{path}: {kind.name}, no rule broken; for {kind.commands}")
    if args.classes:
        classes = spec.compare_classes(message, spec.read_class_list(args.classes), str(args.classes))
        say(f"{args.classes}: the {len(classes)} classes of the spec, in the order of the network's outputs")
    if args.from_tlt:
        _say_differences(message)
        return
    if args.spec_only:
        return
    match message:
        case spec.Experiment():
            _check_chain(message)
            say(f"next: detectkit {'run' if _is_chain(message) else 'train'} -e {path} -r RESULTS_DIR")
        case spec.Inference():
            _check_model(message)
            say(f"next: detectkit infer -e {path} -i IMAGES -r RESULTS_DIR")
        case spec.DatasetExportConfig():
            _check_folders(message)
            say(f"next: detectkit convert -d {path}" + ("" if message.output_filename else " -o PREFIX"))


def _say_differences(message: spec.Spec) -> None:
    differences = spec.differences(message)
    if not differences:
        say("nothing in it does something else here than in TLT")
        return
    noun = "thing" if len(differences) == 1 else "things"
    say(f"{len(differences)} {noun} in it, written for TLT, differ here:")
    for difference in differences:
        say(f"- {difference}")
    say("docs/from-tlt.md lists the differences that no field shows")


def _is_chain(experiment: spec.Experiment) -> bool:
    """Whether a spec asks for more than a training."""
    sections = ("pruning_config", "calibration_config", "export_config")
    return bool(experiment.dataset_export_config) or any(map(experiment.HasField, sections))


def _check_chain(experiment: spec.Experiment) -> None:
    """The models of a spec, what its conversions read, and its records, if they are made already."""
    from detectkit.data.tfrecord import find_shards

    _require_models(experiment)
    for config in experiment.dataset_export_config:
        _check_folders(config)
    sources = [*experiment.dataset_config.data_sources, experiment.dataset_config.validation_data_source]
    patterns = [source.tfrecords_path for source in sources if source.tfrecords_path]
    missing = [pattern for pattern in patterns if not find_shards(pattern)]
    if experiment.dataset_export_config and missing:
        say(f"{missing[0]}: not there yet, so boxes are not counted; detectkit convert -d and run make them")
    else:
        _check_data(experiment)


def _check_data(experiment: spec.Experiment) -> None:
    """Print the boxes of each class, and what will be hard to learn from them.

    Raises:
        DataError: unreadable data, a class without a training box, or none at all that the network sees.
    """
    from detectkit.data.dataset import (
        capped,
        class_counts,
        require_separate,
        training_frames,
        validation_frames,
    )
    from detectkit.data.images import TURNED
    from detectkit.data.warn import warnings
    from detectkit.evaluation import require_package

    require_package(experiment.evaluation_config)
    names = spec.class_names(experiment)
    limit = experiment.training_config.max_boxes_per_image
    training = capped(training_frames(experiment.dataset_config, names), limit)
    validation = validation_frames(experiment.dataset_config, names)
    counts, labels = class_counts(training)
    held_out, more_labels = class_counts(validation) if validation else (Counter[str](), Counter[str]())
    rows = [(name, counts[name], held_out[name]) for name in names]
    images = ("images", len(training), len(validation) if validation else 0)
    table(("class", "training boxes", "validation boxes"), [*rows, images])
    _say_other_labels(experiment, labels + more_labels)
    _warn_of_absent_labels(experiment, labels + more_labels)
    if validation:
        require_separate(training, validation, experiment.dataset_config)
    preprocessing = experiment.augmentation_config.preprocessing
    turned = [
        is_turned
        for each in (training, validation)
        if each
        for is_turned in _open_sample(each, preprocessing)
    ]
    say(f"opened {len(turned)} of {len(training) + len(validation or ())} images: all good")
    if any(turned):
        say(f"{sum(turned)} of those {TURNED}: their boxes must be in those pixels")
    empty = [name for name in names if not counts[name]]
    if empty:
        found = ", ".join(sorted(labels)) or "none"
        raise DataError(
            f"no training box of class {', '.join(empty)}; the labels in the records are: {found}. "
            "Correct dataset_config.target_class_mapping, or take the class out"
            + (f", or raise max_boxes_per_image: {limit}" if limit else "")
        )
    stride = spec.NETWORKS[experiment.model_config.arch].stride
    for doubt in warnings(training, validation, experiment.augmentation_config, stride=stride):
        log.warning(doubt)


def _say_other_labels(experiment: spec.Experiment, labels: Counter[str]) -> None:
    """Name the labels in the records that are no target class, and count their boxes."""
    mapped = {label.lower() for label in experiment.dataset_config.target_class_mapping}
    neutral = {label.lower() for label in experiment.dataset_config.dontcare_labels}
    others = [item for item in labels.most_common() if item[0] not in mapped]
    _say_labels("labels that count neither for nor against", [item for item in others if item[0] in neutral])
    _say_labels(
        "labels that are not mapped, so background", [item for item in others if item[0] not in neutral]
    )


def _warn_of_absent_labels(experiment: spec.Experiment, labels: Counter[str]) -> None:
    """Name the labels that the spec treats apart and that no record has."""
    filters = [
        item.label_filter.source_class_label_filter
        for item in experiment.loss_mask_label_filter.objective_label_filter_configs
    ]
    named = {
        "dataset_config.dontcare_labels": experiment.dataset_config.dontcare_labels,
        "loss_mask_label_filter, source_class_names": [
            name for item in filters for name in item.source_class_names
        ],
    }
    for field, names in named.items():
        absent = [name for name in names if name.lower() not in labels]
        if absent:
            log.warning("%s: no label in the records is called %s", field, ", ".join(absent))


def _say_labels(title: str, labels: list[tuple[str, int]]) -> None:
    if labels:
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        say(f"{title}: {', '.join(f'{label} ({count})' for label, count in labels[:NAMED])}{more}")


def _open_sample(dataset: Dataset, preprocessing: spec.AugmentationConfig.Preprocessing) -> list[bool]:
    """Decode images spread evenly over a data set; gives whether EXIF turns them. Raises DataError for a bad one."""
    step = max(len(dataset) // SAMPLE, 1)
    turned: list[bool] = []
    for index in range(0, len(dataset), step)[:SAMPLE]:
        sample = dataset.sample(index, channels=preprocessing.output_image_channel)
        _require_crop_inside(preprocessing, sample.image_path, *sample.original_size)
        dataset.say_stretched([sample.image_path], [sample.stretched])
        turned.append(sample.turned)
    return turned


def _require_crop_inside(
    preprocessing: spec.AugmentationConfig.Preprocessing, image: str, width: int, height: int
) -> None:
    """Raise DataError where nothing of an image is left by the crop, which cuts from the scaled image."""
    scaled = width * (preprocessing.scale_width or 1), height * (preprocessing.scale_height or 1)
    if preprocessing.crop_left >= scaled[0] or preprocessing.crop_top >= scaled[1]:
        raise DataError(
            f"augmentation_config.preprocessing: crop_left {preprocessing.crop_left} and crop_top"
            f" {preprocessing.crop_top} leave nothing of {image}, which is {scaled[0]:g}x{scaled[1]:g} there"
        )


def _check_model(inference: spec.Inference) -> None:
    model = inference.inferencer_config.tlt_config.model
    if not model:
        say("the spec names no detectkit model: give one with -m")
    elif not Path(model).expanduser().is_file():
        log.warning("inferencer_config.tlt_config.model: there is no file %s: give a model with -m", model)


def _require_models(experiment: spec.Experiment) -> None:
    """Raise ModelError unless those that trainings start from or learn from are there."""
    _require_model(experiment.model_config.pretrained_model_file, "model_config.pretrained_model_file")
    for field, path in spec.teacher_files(experiment).items():
        _require_model(path, field)


def _require_model(path: str, field: str) -> None:
    if path and not Path(path).expanduser().is_file():
        raise ModelError(f"{field}: there is no file {path}; correct the path, or leave the field out")


def _check_folders(config: spec.DatasetExportConfig) -> None:
    """Raise DataError unless images and labels are there."""
    match config.WhichOneof("convert_config_type"):
        case "kitti_config":
            kitti = config.kitti_config
            root, images = _roots(config, kitti.root_directory_path, [kitti.image_dir_name])
            extension = "." + kitti.image_extension.removeprefix(".")
            _count_images("kitti_config.image_dir_name", images / kitti.image_dir_name, extension)
            _count_files("kitti_config.label_dir_name", root / kitti.label_dir_name, ".txt")
        case "voc_config":
            voc = config.voc_config
            root, images = _roots(config, voc.root_directory_path, [voc.image_dir_name])
            extension = "." + voc.image_extension.removeprefix(".")
            _count_images("voc_config.image_dir_name", images / voc.image_dir_name, extension)
            _count_files("voc_config.annotation_dir_name", root / voc.annotation_dir_name, ".xml")
            _require_files("voc_config.image_set_files", root, voc.image_set_files)
        case "coco_config":
            coco = config.coco_config
            root, images = _roots(config, coco.root_directory_path, coco.img_dir_names)
            for index, name in enumerate(coco.img_dir_names):
                _require_folder(f"coco_config.img_dir_names[{index}]", images / name)
            _require_files("coco_config.annotation_files", root, coco.annotation_files)


def _roots(config: spec.DatasetExportConfig, root: str, folders: Sequence[str]) -> tuple[Path, Path]:
    """Where labels and where images start."""
    from detectkit.data.frames import find_image_root

    path = Path(root).expanduser()
    return path, find_image_root(config.image_directory_path, path, folders)


def _require_files(field: str, root: Path, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not (root / name).is_file():
            raise DataError(f"{field}[{index}]: there is no file {root / name}")


def _require_folder(field: str, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{field}: there is no folder {folder}")


def _count_files(field: str, folder: Path, suffix: str) -> None:
    from detectkit.data.frames import by_name, files_below, require_some

    _require_folder(field, folder)
    files = list(files_below(folder, field))
    found = by_name(files, suffix)
    require_some(found, files, folder, f"{suffix} files")
    say(f"{folder}: {len(found)} {suffix} files")


def _count_images(field: str, folder: Path, suffix: str) -> None:
    from detectkit.data.frames import list_images

    _require_folder(field, folder)
    files = [file for same in list_images(folder, suffix, field).values() for file in same]
    counts = Counter(Path(file).suffix for file in files)
    say(f"{folder}: {', '.join(f'{count} {end} files' for end, count in counts.most_common())}")
