"""What a conversion reads and writes, told from its spec: no label is read, and nothing heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from detectkit.errors import DataError
from detectkit.files import literal_start, local_path, matching
from detectkit.spec import DatasetExportConfig

PARTS = re.compile(r"((-fold-\d{3}-of-\d{3}|-shard-\d{5}-of-\d{5})+(\.index)?|_warning\.json)")
UNFINISHED = ".unfinished"


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
    match config.WhichOneof("convert_config_type"):
        case "coco_config":
            return len(config.coco_config.img_dir_names)
        case "voc_config":
            return len(config.voc_config.image_set_files) or 2
        case "sample_config":
            return 2
        case _:
            return max(config.kitti_config.num_partitions, 1)


def is_drawn(config: DatasetExportConfig) -> bool:
    """Whether the images are dealt to two folds at random."""
    match config.WhichOneof("convert_config_type"):
        case "voc_config":
            return not config.voc_config.image_set_files
        case "yolo_config":
            return not config.yolo_config.image_dir_names
        case "csv_config":
            return len(config.csv_config.csv_files) == 1
        case "coco_config" | "sample_config":
            return False
        case _:
            return config.kitti_config.partition_mode == "random"


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
    root = _root(config)
    match config.WhichOneof("convert_config_type"):
        case "sample_config":
            return []
        case "coco_config":
            others = list(config.coco_config.annotation_files)
        case "voc_config":
            others = [config.voc_config.annotation_dir_name, *config.voc_config.image_set_files]
        case _:
            source = config.kitti_config
            by_sequence = source.partition_mode == "sequence"
            others = [source.label_dir_name, *[source.kitti_sequence_to_frames_file] * by_sequence]
    folders = _image_folders(config)
    images_root, _ = image_root(config.image_directory_path, root, folders)
    images = [images_root / folder for folder in folders]
    return list(dict.fromkeys([*images, *(root / name for name in others)]))


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


def _root(config: DatasetExportConfig) -> Path:
    kind = config.WhichOneof("convert_config_type") or "kitti_config"
    return Path(getattr(config, kind).root_directory_path).expanduser()


def _image_folders(config: DatasetExportConfig) -> list[str]:
    match config.WhichOneof("convert_config_type"):
        case "coco_config":
            return list(config.coco_config.img_dir_names)
        case "voc_config":
            return [config.voc_config.image_dir_name]
        case _:
            return [config.kitti_config.image_dir_name]
