"""COCO annotation files: one JSON file for a folder of images."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectkit.console import progress
from detectkit.data import readers, segmentation
from detectkit.data.formats import IMAGE_EXTENSIONS
from detectkit.data.readers import LARGEST, Label, LabelledImage, Reject, Source, box_text
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig, label_name

Id = str | int | float  # whole numbers as a rule
Json = Any  # what a JSON file may hold: objects of other shapes than COCO's too
NO_BOX: tuple[Json, ...] = (None, [], [0, 0, 0, 0])  # of tools that write the outline alone


class Annotations(NamedTuple):
    """One annotation file, its lists not yet judged."""

    path: Path
    images: list[Json]
    annotations: list[Json]
    categories: dict[Id, str]  # id to name, as written


class Listed(NamedTuple):
    """An image as the annotation file lists it."""

    identity: Id
    file_name: str
    size: tuple[object, object]  # width and height, as stated; None: not


def read_folders(config: DatasetExportConfig) -> Source:
    """Read the image folders and annotation files of all folds.

    A crowd is one box, like every object, and called `crowd_label` where that is set. An object without a bbox has the
    box around its segmentation. Ids and numbers in quotes are numbers. An image that is not there under its file_name is
    looked for under its other spellings (`readers.spellings`), below its folder, and with other extensions.

    Raises:
        DataError: a folder is missing, an annotation file is none, two of them disagree on the categories, or an
            image is in two folds.
    """
    source = config.coco_config
    root = Path(source.root_directory_path).expanduser()
    image_root = readers.find_image_root(config.image_directory_path, root, source.img_dir_names)
    files = [_load(root / file) for file in source.annotation_files]
    _require_same_categories(files)
    rejected: list[Reject] = []
    folds = [
        _read_fold(file, image_root, folder, crowd_label=source.crowd_label, rejected=rejected)
        for file, folder in zip(files, source.img_dir_names)
    ]
    folds = [readers.of_different_names(fold, rejected) for fold in folds]
    readers.require_disjoint(folds)
    shards = list(source.num_shards) or [0]
    return Source(
        folds,
        rejected,
        image_root,
        extension=readers.common_extension(folds, embedded=config.embed_images),
        num_shards=shards * len(folds) if len(shards) == 1 else shards,
    )


# Annotation files


def _load(path: Path) -> Annotations:
    content = readers.read_json(path, "annotation_files")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f'{path} is not a COCO annotation file for detection: it has no list "{key}"')
    categories = _categories(content["categories"], path)
    return Annotations(path, content["images"], content["annotations"], categories)


def _categories(entries: list[Json], path: Path) -> dict[Id, str]:
    """Give category id to name; ids may have holes."""
    found: dict[Id, str] = {}
    for number, entry in enumerate(entries):
        identity, original = _id(entry, "id"), _text(entry, "name")
        if identity is None or not original:
            raise DataError(f"{path}: categories[{number}] needs an id and a name")
        try:
            readers.require_visible(original)
        except ValueError as error:
            raise DataError(f"{path}: categories[{number}]: {error}; rename it") from error
        other = found.setdefault(identity, original)
        if label_name(other) != label_name(original):
            raise DataError(f"{path}: category {identity!r} is called {other} and {original}")
    return found


def _require_same_categories(files: Sequence[Annotations]) -> None:
    first = files[0]
    for other in files[1:]:
        for identity in first.categories | other.categories:
            names = [label_name(file.categories.get(identity, "nothing")) for file in (first, other)]
            if names[0] != names[1]:
                raise DataError(
                    f"category {identity!r} is {names[0]} in {first.path} and {names[1]} in {other.path}: "
                    "all annotation files need the same categories"
                )


def _id(entry: Json, key: str) -> Id | None:
    """An identity; a whole number in quotes is that number."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20:
        return int(value) if str(int(value)) == value else value
    return value if isinstance(value, str | int | float) else None


def _text(entry: Json, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) and value.strip() else ""


def _unquoted(value: Json) -> Json:
    """The number that a text is; anything else as it is."""
    try:
        return readers.number("", value) if isinstance(value, str) else value
    except ValueError:
        return value


# Images


def _read_fold(
    file: Annotations, image_root: Path, folder: str, *, crowd_label: str, rejected: list[Reject]
) -> list[LabelledImage]:
    """Read the images of one annotation file in its order; adds what is left out to `rejected`."""
    if not (image_root / folder).is_dir():
        raise DataError(f"there is no folder {image_root / folder}; img_dir_names has {folder}")
    images = _images(file, rejected)
    labels = _labels(file, {image.identity for image in images}, crowd_label, rejected)
    files = _Files(image_root / folder, {image.file_name for image in images})
    found = []
    for image in progress(images, total=len(images), label=f"reading {file.path.name}"):
        name = files.find(image.file_name)
        path = image_root / folder / name
        try:
            size = readers.image_size(path)
            readers.require_size(size, image.size)
        except ValueError as error:
            rejected.append(Reject(str(path), None, str(error)))
        else:
            frame_id = readers.frame_id(folder, name)
            own = tuple(labels.get(image.identity, ()))
            found.append(LabelledImage(frame_id, path, *size[:2], own, size.turned, str(file.path)))
    return found


class _Files:
    """The files of an image folder. They are listed only when one is not there under its file_name.

    Args:
        stated: the file names of all images: one that is stated is not taken for another one.
    """

    def __init__(self, folder: Path, stated: Container[str]):
        self.folder, self.stated = folder, stated

    def find(self, file_name: str) -> str:
        """The path below the folder that is meant; where there is none, the file name."""
        if os.path.lexists(self.folder / file_name):
            return file_name
        for name in readers.spellings(file_name):
            if name not in self.stated and os.path.lexists(self.folder / name):
                return name
            for tail in readers.tails(name, self.folder.name):
                stem, end = os.path.splitext(tail)
                same = [
                    file for file in self._by_name.get(readers.composed(stem), ()) if file not in self.stated
                ]
                if same:
                    return min(
                        same,
                        key=lambda file: (not file.endswith(end), not file.lower().endswith(end.lower())),
                    )
        return file_name.replace("\\", "/")

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return readers.by_name(readers.list_files(self.folder, "img_dir_names"), "", IMAGE_EXTENSIONS)


def _images(file: Annotations, rejected: list[Reject]) -> list[Listed]:
    """Give the images whose id and file are listed once; those of others cannot be told apart."""
    listed: dict[tuple[Id, str], Listed] = {}
    for number, entry in enumerate(file.images):
        identity, name = _id(entry, "id"), _text(entry, "file_name")
        if identity is None or not name:
            rejected.append(Reject(str(file.path), None, f"images[{number}] needs an id and a file_name"))
        elif (identity, name) in listed:
            rejected.append(Reject(str(file.path), None, f"images[{number}], {name}, is listed before"))
        else:
            size = (_unquoted(entry.get("width")), _unquoted(entry.get("height")))
            listed[identity, name] = Listed(identity, name, size)
    ids, names = (Counter(key[part] for key in listed) for part in (0, 1))
    for identity, name in list(listed):
        if ids[identity] > 1 or names[name] > 1:
            twice = f"the id {identity!r}" if ids[identity] > 1 else "this file_name"
            rejected.append(Reject(str(file.path), None, f"{name}: several images have {twice}"))
            del listed[identity, name]
    return list(listed.values())


# Objects


def _labels(
    file: Annotations, images: Container[Id], crowd_label: str, rejected: list[Reject]
) -> dict[Id, list[Label]]:
    """Give the usable objects of each image."""
    found: dict[Id, list[Label]] = {}
    for number, entry in enumerate(file.annotations):
        try:
            image = _id(entry, "image_id")
            if image is None or image not in images:
                raise ValueError(f"no usable image has the id {_shown(entry, 'image_id')}")
            label = _label(entry, file.categories, crowd_label)
        except ValueError as error:
            name = _id(entry, "id")
            which = f"annotations[{number}]" if name is None else f"annotation {name!r}"
            rejected.append(Reject(str(file.path), None, f"{which}: {error}", is_label=True))
        else:
            found.setdefault(image, []).append(label)
    return found


def _label(entry: dict[str, Json], categories: Mapping[Id, str], crowd_label: str) -> Label:
    category = _id(entry, "category_id")
    if category is None or category not in categories:
        raise ValueError(f"no category has the id {_shown(entry, 'category_id')}")
    is_crowd = _unquoted(entry.get("iscrowd")) == 1
    name = crowd_label if is_crowd and crowd_label else categories[category]
    bbox = entry.get("bbox")
    box = segmentation.box(entry.get("segmentation")) if bbox in NO_BOX else _box(bbox)
    return Label(name, truncation=0.0, occlusion=0, alpha=0.0, box=box)


def _box(values: Json) -> tuple[float, float, float, float]:
    """Give x1, y1, x2, y2 for x, y, width, height; ValueError says what is wrong with them."""
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError("it has no bbox of x, y, width and height")
    values = [_unquoted(value) for value in values]
    if not all(isinstance(value, int | float) and abs(value) <= LARGEST for value in values):
        raise ValueError(f"its bbox {values!r:.80} is not four finite numbers of a sensible size")
    x, y, width, height = values
    if width <= 0 or height <= 0:
        raise ValueError(f"its bbox {box_text(*values)}, x, y, width, height, has no area")
    return (float(x), float(y), float(x + width), float(y + height))


def _shown(entry: Json, key: str) -> str:
    return f"{entry.get(key) if isinstance(entry, dict) else None!r:.40}"
