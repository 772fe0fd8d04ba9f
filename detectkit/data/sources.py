"""What a conversion reads and writes, told from its spec: no label is read, and nothing heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from detectkit.errors import DataError
from detectkit.files import literal_start, local_path, matching
from detectkit.spec import DatasetExportConfig, YOLOConfig

PARTS = re.compile(r"((-fold-\d{3}-of-\d{3}|-shard-\d{5}-of-\d{5})+(\.index)?|_warning\.json)")
UNFINISHED = ".unfinished"
IMAGES, LABELS = "images", "labels"  # folders of YOLO
YAML = (".yaml", ".yml")
CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
CASES = (str.capitalize, str.upper, str.lower)


def as_kitti(config: DatasetExportConfig) -> DatasetExportConfig:
    """The conversion of the KITTI folder that `sample_config` makes."""
    result = DatasetExportConfig()
    result.CopyFrom(config)
    source = result.kitti_config  # takes the place of sample_config
    source.root_directory_path = config.sample_config.root_directory_path
    source.image_dir_name, source.label_dir_name, source.image_extension = "image_2", "label_2", ".jpg"
    # Its two sequences share no digit: "validation", the shorter one, becomes fold 0.
    source.partition_mode, source.kitti_sequence_to_frames_file = "sequence", "sequences.json"
    source.num_partitions, source.num_shards = 2, config.sample_config.num_shards
    return result


def num_folds(config: DatasetExportConfig) -> int:
    """The folds that a conversion makes, counted from 0."""
    if is_drawn(config) or config.HasField("sample_config"):
        return 2
    return len(fold_names(config)) or max(config.kitti_config.num_partitions, 1)


def fold_names(config: DatasetExportConfig) -> list[str]:
    """The lists, tables, annotation files or folders that are a fold each; none where folds are told otherwise."""
    match config.WhichOneof("convert_config_type"):
        case "coco_config":
            return list(config.coco_config.annotation_files)
        case "voc_config":
            return list(config.voc_config.image_set_files)
        case "yolo_config":
            return list(config.yolo_config.image_dir_names)
        case "csv_config":
            return list(config.csv_config.csv_files)
        case _:
            return []


def is_drawn(config: DatasetExportConfig) -> bool:
    """Whether the images are dealt to two folds at random: those of a whole folder, or of the one list with val_split."""
    if config.HasField("sample_config"):
        return False
    if names := fold_names(config):
        return len(names) == 1 and val_split(config) > 0
    return config.WhichOneof("convert_config_type") in ("voc_config", "yolo_config") or (
        config.kitti_config.partition_mode == "random"
    )


def val_split(config: DatasetExportConfig) -> float:
    """The share of the images, in percent, that is drawn into fold 0."""
    kind = config.WhichOneof("convert_config_type") or "kitti_config"
    return float(getattr(config, kind).val_split)


def num_held(count: int, share: float) -> int:
    """How many of so many images `share` percent are: one at least, where they are asked for and one is left."""
    held = int(share / 100 * count)
    return max(held, 1) if share > 0 and count > 1 else held


def image_root(image_directory_path: str, root: Path, folders: Iterable[str]) -> tuple[Path, str | None]:
    """The folder where frame ids start: `image_directory_path` when the image folders are there, else the root.

    Returns:
        It, and the image folder for lack of which the path does not count; None: it counts, or is empty.
    """
    images = Path(image_directory_path).expanduser() if image_directory_path else root
    missing = next((folder for folder in folders if not (images / folder).is_dir()), None)
    return (root, missing) if missing is not None and images != root else (images, None)


def reads(config: DatasetExportConfig) -> list[Path]:
    """The files and folders that a conversion depends on: label files, images, lists of frames.

    None for `sample_config`, whose folder the conversion makes itself.
    """
    start = root_folder(config)
    match config.WhichOneof("convert_config_type"):
        case "sample_config":
            return []
        case "coco_config":
            others = list(config.coco_config.annotation_files)
        case "voc_config":
            others = [config.voc_config.annotation_dir_name, *config.voc_config.image_set_files]
        case "yolo_config":
            images = image_folders(config)
            return list(dict.fromkeys([*images, *_beside_yolo_images(config.yolo_config, images)]))
        case "csv_config":
            others = list(config.csv_config.csv_files)
        case _:
            source = config.kitti_config
            by_sequence = source.partition_mode == "sequence"
            others = [source.label_dir_name, *[source.kitti_sequence_to_frames_file] * by_sequence]
    return list(dict.fromkeys([*image_folders(config), *(start / name for name in others)]))


def is_list(name: str) -> bool:
    """Whether an entry of YOLO's image_dir_names is a text file that lists images, not a folder."""
    return name.lower().endswith(".txt")


def yolo_folders(source: YOLOConfig) -> list[str]:
    """The folders of images of a YOLO source: the root itself where none is named, or a list, whose images lie below it."""
    names = ["" if is_list(name) else name for name in source.image_dir_names]
    return list(dict.fromkeys(names)) or [""]


def label_folders(folder: Path, below: str = "") -> list[Path]:
    """Where the label files of a YOLO folder of images may be, the likeliest place first.

    In the path of the images the last part `images` becomes `labels`, or is followed by it; else there is `labels` in the
    folder, in the images' own one, or beside. Last comes the images' own folder.

    Args:
        below: of the images, from the folder.
    """
    place = folder / below
    parts = place.parts
    found = []
    last = max((number for number, part in enumerate(parts) if part.lower() == IMAGES), default=None)
    if last is not None:
        word = next(case(LABELS) for case in CASES if case(IMAGES) == parts[last] or case is CASES[-1])
        before, behind = parts[:last], parts[last + 1 :]
        found = [Path(*before, name, *behind) for name in (word, LABELS)]
        found.append(Path(*before, parts[last], LABELS, *behind))
    found += [folder / LABELS / below, folder.parent / LABELS / below, place / LABELS, place.parent / LABELS]
    return list(dict.fromkeys([*found, place]))


def _beside_yolo_images(source: YOLOConfig, images: Iterable[Path]) -> list[Path]:
    """The folders of labels that are there, the lists of images, and the list of classes."""
    root = Path(source.root_directory_path).expanduser()
    lists = [name for name in source.image_dir_names if is_list(name)]
    folders = [*images, *(root / folder for folder in yolo_folders(source))]
    places = [place for folder in folders for place in label_folders(folder)[:-1]]
    there = [place for place in places if place.is_dir()]
    classes = [root / source.classes_file] if source.classes_file else class_lists(root)
    return [*there, *(root / name for name in lists), *classes]


def class_lists(folder: Path) -> list[Path]:
    """The files of a folder that may name YOLO's classes, YAML first."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
    described = [name for name in names if name.lower().endswith(YAML)]
    return [folder / name for name in [*described, *(name for name in names if name.lower() in CLASS_LISTS)]]


def written(prefix: str | Path) -> list[Path]:
    """The files that a conversion with this prefix has left: shards, their indexes, the list of what was left out."""
    prefix = Path(prefix)
    names = [path.name for path in prefix.parent.iterdir()] if prefix.parent.is_dir() else []
    whole = {prefix.name, f"{prefix.name}.index"}  # with neither folds nor shards
    return [prefix.with_name(name) for name in sorted(names) if name in whole or has_parts(prefix, name)]


def has_parts(prefix: Path, name: str) -> bool:
    """Whether a file of the prefix's folder is named as those of a conversion are, with its fold or shard."""
    return name.startswith(prefix.name) and PARTS.fullmatch(name.removeprefix(prefix.name)) is not None


def unfinished(prefix: Path) -> Path:
    """The file that is there while the files of a conversion take the places of older ones, and after a cut in that."""
    return prefix.with_name(f".{prefix.name}{UNFINISHED}")


def require_whole(pattern: str, found: Iterable[str]) -> None:
    """Raise DataError where files, those of the pattern or any in its folder, are a mixture of two conversions."""
    files = [Path(file) for file in found]
    folder, name = os.path.split(local_path(pattern))
    folders = {file.parent for file in files} or {Path(place) for place in matching(folder)}
    begin = literal_start(name)
    for mark in (mark for folder in sorted(folders) for mark in folder.glob(f".*{UNFINISHED}")):
        prefix = mark.with_name(mark.name[1:].removesuffix(UNFINISHED))
        is_meant = begin.startswith(prefix.name) or prefix.name.startswith(begin)
        if any(file.parent == prefix.parent and _is_of(prefix, file.name) for file in files) or (
            not files and is_meant
        ):
            raise DataError(
                f"{prefix}* is partly of one conversion and partly of another: "
                "detectkit convert was cut while it replaced them; run it again"
            )


def _is_of(prefix: Path, name: str) -> bool:
    return name == prefix.name or has_parts(prefix, name)


def root_folder(config: DatasetExportConfig) -> Path:
    """The folder that the names of a conversion spec start from."""
    kind = config.WhichOneof("convert_config_type") or "kitti_config"
    return Path(getattr(config, kind).root_directory_path).expanduser()


def image_folders(config: DatasetExportConfig) -> list[Path]:
    """The folders of images: one for each fold of COCO and YOLO, else a single one."""
    folders = _image_folders(config)
    images_root, _ = image_root(config.image_directory_path, root_folder(config), folders)
    return [images_root / folder for folder in folders]


def _image_folders(config: DatasetExportConfig) -> list[str]:
    match config.WhichOneof("convert_config_type"):
        case "coco_config":
            return list(config.coco_config.img_dir_names)
        case "voc_config":
            return [config.voc_config.image_dir_name]
        case "yolo_config":
            return yolo_folders(config.yolo_config)
        case "csv_config":
            return [config.csv_config.image_dir_name]
        case _:
            return [config.kitti_config.image_dir_name]
