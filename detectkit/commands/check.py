"""Judge a spec of any kind, and the data it names: count classes and boxes, open a sample of the images."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS
from detectkit.console import log, say, table
from detectkit.errors import DataError, DetectkitError, ModelError

if TYPE_CHECKING:
    from detectkit.data.dataset import Dataset

SAMPLE = 16  # images opened of each set
NAMED = 8  # classes of labels


class Problems:
    """What is wrong, gathered, so that a person mends all of it at once."""

    def __init__(self) -> None:
        self._found: list[DetectkitError] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keeps an error for later, and the same one once."""
        try:
            yield
        except DetectkitError as error:
            self._found.append(error)

    def require_none(self) -> None:
        """Raise them as one error, of the kind of the first; one that was met several times is one thing."""
        texts = dict.fromkeys(map(str, self._found))
        if len(texts) == 1:
            raise self._found[0]
        if texts:
            lines = [f"- {text}" for text in texts]
            raise type(self._found[0])("\n".join((f"{len(lines)} things are wrong:", *lines)))


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
    written = spec.load_written(path)
    message = spec.expanded(written)
    kind = spec.kind_of(message)
    say(f"{path}: {kind.name}, no rule broken; for {kind.commands}")
    if not args.from_tlt:  # for which what stops a run comes first
        _say_shared(written)
    problems = Problems()
    if args.classes:
        with problems.gathered():
            classes = spec.compare_classes(message, spec.read_class_list(args.classes), str(args.classes))
            say(
                f"{args.classes}: the {len(classes)} classes of the spec, in the order of the network's outputs"
            )
    if args.from_tlt:
        _say_differences(message)
        _say_shared(written)
    elif not args.spec_only:
        _check(message, problems)
    problems.require_none()
    if not (args.from_tlt or args.spec_only):
        say(_next(message, path))


def _say_shared(written: spec.Spec) -> None:
    for section, words in spec.shared_entries(written).items():
        say(f"{section}: {words}")


def _check(message: spec.Spec, problems: Problems) -> None:
    """The data and the models that a spec names."""
    match message:
        case spec.Experiment():
            _check_chain(message, problems)
        case spec.Inference():
            _check_model(message)
        case spec.DatasetExportConfig():
            _check_folders(message, problems)


def _next(message: spec.Spec, path: Path) -> str:
    match message:
        case spec.Experiment():
            return f"next: detectkit {'run' if _is_chain(message) else 'train'} -e {path} -r RESULTS_DIR"
        case spec.Inference():
            return f"next: detectkit infer -e {path} -i IMAGES -r RESULTS_DIR"
        case spec.DatasetExportConfig():
            return f"next: detectkit convert -d {path}" + ("" if message.output_filename else " -o PREFIX")


def _say_differences(message: spec.Spec) -> None:
    """What stops a run first, then the rest."""
    obstacles, differences = spec.obstacles(message), spec.differences(message)
    if not (obstacles or differences):
        say("nothing in it does something else here than in TLT")
        return
    _say_things(
        obstacles, "in it", ("stops a run here, and must be changed", "stop a run here, and must be changed")
    )
    _say_things(differences, "in it, written for TLT,", ("differs here", "differ here"))
    say("docs/from-tlt.md lists the differences that no field shows")


def _say_things(lines: Sequence[str], where: str, verbs: tuple[str, str]) -> None:
    if lines:
        noun, verb = ("thing", verbs[0]) if len(lines) == 1 else ("things", verbs[1])
        say(f"{len(lines)} {noun} {where} {verb}:")
        for line in lines:
            say(f"- {line}")


def _is_chain(experiment: spec.Experiment) -> bool:
    """Whether a spec asks for more than a training."""
    more = spec.only(
        experiment, spec.Rule.CLEANING, spec.Rule.CONVERTING, spec.Rule.PRUNING, spec.Rule.DEPLOYING
    )
    return more.ByteSize() > 0


def _check_chain(experiment: spec.Experiment, problems: Problems) -> None:
    """The models of a spec, what its conversions read, and its records, if they are made already."""
    from detectkit.data.tfrecord import find_shards

    _check_models(experiment, problems)
    for config in experiment.dataset_export_config:
        _check_folders(config, problems)
    sources = [*experiment.dataset_config.data_sources, experiment.dataset_config.validation_data_source]
    patterns = [source.tfrecords_path for source in sources if source.tfrecords_path]
    missing = []
    for pattern in patterns:
        with problems.gathered():
            missing += [] if find_shards(pattern) else [pattern]
    if experiment.dataset_export_config and missing:
        say(f"{missing[0]}: not there yet, so boxes are not counted; detectkit convert -d and run make them")
    else:
        _check_data(experiment, problems)


def _check_data(experiment: spec.Experiment, problems: Problems) -> None:
    """Print the boxes of each class, as far as there are records, and what will be hard to learn from them.

    Unreadable data, a class without a training box, and no box at all that the network sees are problems.
    """
    from detectkit.data.dataset import capped, require_images
    from detectkit.data.images import TURNED
    from detectkit.data.overlap import require_separate
    from detectkit.data.records import training_frames, validation_frames
    from detectkit.evaluation import require_package

    with problems.gathered():
        require_package(experiment.evaluation_config)
    config, names = experiment.dataset_config, spec.class_names(experiment)
    training = validation = read = None
    with problems.gathered():
        read = training_frames(config, names, look_for_images=False)
        training = capped(read, experiment.training_config.max_boxes_per_image)
    with problems.gathered():
        validation = validation_frames(config, names, look_for_images=False)
    _print_counts(experiment, training, validation)
    is_seen = bool(read and training) and _judge(experiment, read, training, validation, problems)
    parts = [part for part in (training, validation) if part]
    whole = []
    for part in parts:
        with problems.gathered():
            part.frames = require_images(part.frames)
            whole.append(part)
    if training and validation and len(whole) == 2:
        with problems.gathered():
            require_separate(training, validation, config)
    opened = [_open_sample(experiment, part, problems, is_whole=part in whole) for part in parts]
    tried, good, turned = map(sum, zip(*opened)) if opened else (0, 0, 0)
    if tried:
        told = f", {tried - good} of them bad" if good < tried else ": all good" if is_seen else ""
        say(f"opened {tried} of {sum(map(len, parts))} images{told}")
        if turned:
            say(f"{turned} of those {TURNED}: their boxes must be in those pixels")


def _print_counts(experiment: spec.Experiment, training: Dataset | None, validation: Dataset | None) -> None:
    """Boxes by class, and by the names in the records where they are not those of a class."""
    from detectkit.data.dataset import class_counts
    from detectkit.data.warn import beside, joined, misnamed

    parts = [part for part in (training, validation) if part]
    if not parts:
        return
    labels = sum((part.raw_counts for part in parts), Counter[str]())
    columns = [class_counts(part)[0] if part else None for part in (training, validation)]
    rows = [
        (name, *("-" if counts is None else counts[name] for counts in columns))
        for name in spec.class_names(experiment)
    ]
    images = ("images", *("-" if part is None else len(part) for part in (training, validation)))
    table(("class", "training boxes", "validation boxes"), [*rows, images])
    for line in (*joined(experiment.dataset_config, labels), *beside(experiment.dataset_config, labels)):
        say(line)
    for doubt in misnamed(experiment, labels):
        log.warning(doubt)


def _judge(
    experiment: spec.Experiment,
    read: Dataset,
    training: Dataset,
    validation: Dataset | None,
    problems: Problems,
) -> bool:
    """Say whether there is enough to learn from; gives whether the network sees all of it.

    Args:
        read: all that there is to train on; `training` has what max_boxes_per_image leaves of it.
    """
    from detectkit.data.dataset import class_counts
    from detectkit.data.warn import left_out, scarce, unseen
    from detectkit.model.detector import outline_of

    limit = experiment.training_config.max_boxes_per_image
    counts, labels = class_counts(training)
    empty = [name for name in training.class_names if not counts[name]]
    with problems.gathered():
        if empty:
            found = ", ".join(sorted(labels)) or "none"
            raise DataError(
                f"no training box of class {', '.join(empty)}; the labels in the records are: {found}. "
                "Correct dataset_config.target_class_mapping, or take the class out"
                + (f", or raise max_boxes_per_image: {limit}" if limit else "")
            )
    augmentation = experiment.augmentation_config
    lost, hidden = left_out(read, training, limit), None
    with problems.gathered():
        channels = augmentation.preprocessing.output_image_channel
        finest, *_ = outline_of(experiment.model_config, training.class_names, channels).levels
        hidden = unseen(training, validation, augmentation, stride=finest.stride)
    for doubt in (*scarce(training), *lost, *(hidden or ())):
        log.warning(doubt)
    return not lost and hidden == []


def _open_sample(
    experiment: spec.Experiment, dataset: Dataset, problems: Problems, *, is_whole: bool
) -> tuple[int, int, int]:
    """Decode images spread evenly over those that are there: how many, how many are good, and how many EXIF turns.

    A bad one is a problem.
    """
    from detectkit.data.dataset import is_there

    preprocessing = experiment.augmentation_config.preprocessing
    there = [number for number, frame in enumerate(dataset.frames) if is_whole or is_there(frame)]
    indices = there[:: max(len(there) // SAMPLE, 1)][:SAMPLE]
    good = turned = 0
    for index in indices:
        with problems.gathered():
            sample = dataset.sample(index, channels=preprocessing.output_image_channel)
            _require_crop_inside(preprocessing, sample.image_path, *sample.original_size)
            dataset.say_stretched([sample.image_path], [sample.stretched])
            turned += sample.turned
            good += 1
    return len(indices), good, turned


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


def _check_models(experiment: spec.Experiment, problems: Problems) -> None:
    """Those that trainings start from or learn from must be there."""
    start = {"model_config.pretrained_model_file": experiment.model_config.pretrained_model_file}
    for field, path in (start | spec.teacher_files(experiment)).items():
        with problems.gathered():
            if path and not Path(path).expanduser().is_file():
                raise ModelError(
                    f"{field}: there is no file {path}; correct the path, or leave the field out"
                )


def _check_folders(config: spec.DatasetExportConfig, problems: Problems) -> None:
    """Images and labels must be there."""
    match config.WhichOneof("convert_config_type"):
        case "kitti_config":
            kitti = config.kitti_config
            root, images = _roots(config, kitti.root_directory_path, [kitti.image_dir_name])
            extension = "." + kitti.image_extension.removeprefix(".")
            with problems.gathered():
                _count_images("kitti_config.image_dir_name", images / kitti.image_dir_name, extension)
            with problems.gathered():
                _count_files("kitti_config.label_dir_name", root / kitti.label_dir_name, ".txt")
        case "voc_config":
            voc = config.voc_config
            root, images = _roots(config, voc.root_directory_path, [voc.image_dir_name])
            extension = "." + voc.image_extension.removeprefix(".")
            with problems.gathered():
                _count_images("voc_config.image_dir_name", images / voc.image_dir_name, extension)
            with problems.gathered():
                _count_files("voc_config.annotation_dir_name", root / voc.annotation_dir_name, ".xml")
            _check_files("voc_config.image_set_files", root, voc.image_set_files, problems)
        case "coco_config":
            coco = config.coco_config
            root, images = _roots(config, coco.root_directory_path, coco.img_dir_names)
            for index, name in enumerate(coco.img_dir_names):
                with problems.gathered():
                    _require_folder(f"coco_config.img_dir_names[{index}]", images / name)
            _check_files("coco_config.annotation_files", root, coco.annotation_files, problems)
        case "yolo_config":
            _check_yolo(config, problems)
        case "csv_config":
            _check_tables(config, problems)


def _check_yolo(config: spec.DatasetExportConfig, problems: Problems) -> None:
    from detectkit.data import sources, yolo

    source = config.yolo_config
    root, images = _roots(config, source.root_directory_path, sources.yolo_folders(source))
    for index, name in enumerate(source.image_dir_names or [""]):
        with problems.gathered():
            field = f"yolo_config.image_dir_names[{index}]"
            if not sources.is_list(name):
                _count_images(field, images / name, ".jpg")
                _count_yolo_labels(field, images / name, root / name)
            elif not (root / name).is_file():
                raise DataError(f"{field}: there is no file {root / name}")
    with problems.gathered():
        classes = yolo.find_classes(source)
        names = ", ".join(f"{number} {name}" for number, name in list(classes.names.items())[:NAMED])
        more = ", …" * (len(classes.names) > NAMED)
        say(f"{classes.file}: {len(classes.names)} classes ({names}{more})")


def _count_yolo_labels(field: str, *folders: Path) -> None:
    """Count the label files in the first place that has some."""
    from detectkit.data.readers import list_files
    from detectkit.data.sources import label_folders

    places = [place for folder in folders for place in label_folders(folder) if place.is_dir()]
    for place in places:
        count = sum(file.lower().endswith(".txt") for file in list_files(place, field))
        if count:
            say(f"{place}: {count} .txt files")
            return
    raise DataError(f"{field}: no label files in a folder `labels` for {folders[0]}, or beside the images")


def _check_tables(config: spec.DatasetExportConfig, problems: Problems) -> None:
    from detectkit.data import csv

    source = config.csv_config
    root, images = _roots(config, source.root_directory_path, [source.image_dir_name])
    for name in source.csv_files:
        with problems.gathered():
            table = csv.read_table(root / name)
            counts = Counter(label.name for content in table.images.values() for label in content.labels)
            named = ", ".join(f"{label} {count}" for label, count in counts.most_common(NAMED))
            more = ", …" * (len(counts) > NAMED)
            say(f"{table.path}: {len(table.images)} images, {counts.total()} boxes ({named}{more})")
    with problems.gathered():
        _count_images("csv_config.image_dir_name", images / source.image_dir_name, ".jpg")


def _roots(config: spec.DatasetExportConfig, root: str, folders: Sequence[str]) -> tuple[Path, Path]:
    """Where labels and where images start."""
    from detectkit.data.readers import find_image_root

    path = Path(root).expanduser()
    return path, find_image_root(config.image_directory_path, path, folders)


def _check_files(field: str, root: Path, names: Sequence[str], problems: Problems) -> None:
    for index, name in enumerate(names):
        with problems.gathered():
            if not (root / name).is_file():
                raise DataError(f"{field}[{index}]: there is no file {root / name}")


def _require_folder(field: str, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{field}: there is no folder {folder}")


def _count_files(field: str, folder: Path, suffix: str) -> None:
    from detectkit.data.readers import find_files

    _require_folder(field, folder)
    found = find_files(folder, suffix, field=field, what=f"{suffix} files")
    say(f"{folder}: {len(found)} {suffix} files")


def _count_images(field: str, folder: Path, suffix: str) -> None:
    from detectkit.data.readers import find_images

    _require_folder(field, folder)
    files = [file for same in find_images(folder, suffix, field=field).values() for file in same]
    counts = Counter(Path(file).suffix for file in files)
    say(f"{folder}: {', '.join(f'{count} {end} files' for end, count in counts.most_common())}")
