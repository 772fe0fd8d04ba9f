"""Labelled images as the readers of KITTI, COCO and Pascal VOC give them and a conversion writes them."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from detectkit.console import log, progress
from detectkit.data import sources
from detectkit.data.images import UNREADABLE, Size, file_size, reason
from detectkit.errors import DataError

LARGEST = 1e9  # beyond this a number is a mistake, and would not survive the record's float32 and int64


class Label(NamedTuple):
    """One object: the columns of KITTI. Boxes are x1, y1, x2, y2 in pixels, as labelled: they may leave the image."""

    name: str
    truncation: float
    occlusion: int
    alpha: float
    box: tuple[float, float, float, float]
    dimensions: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, width, length in metres
    location: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, y, z in metres, camera coordinates
    rotation_y: float = 0.0
    score: float | None = None


class Frame(NamedTuple):
    """A usable image and its labels."""

    frame_id: str  # path of the image below the image root, without extension
    image: Path
    width: int  # pixels
    height: int
    labels: tuple[Label, ...]
    turned: bool = False  # by its EXIF orientation; width and height are those that viewers show


class Reject(NamedTuple):
    """A label, label file or image that was left out. `line` counts from 1; None: the file as a whole, or no text lines."""

    file: str
    line: int | None
    reason: str


class Source(NamedTuple):
    """All that a conversion spec names, read; label names are those of the label files."""

    folds: list[list[Frame]]
    rejected: list[Reject]
    image_root: Path  # where frame ids start
    extension: str  # of all images, without the dot; empty: they have several
    num_shards: list[int]  # files for each fold; 0: one, whose name has no shard part
    is_partitioned: bool = True  # whether file names have a fold part


class LabelFile(NamedTuple):
    """The content of the one label file of an image."""

    labels: list[Label]
    rejected: list[tuple[int | None, str]]  # line and reason
    size: tuple[float, float] = (0, 0)  # width and height of the image that the file states; 0: it does not


def class_name(text: str) -> str:
    """Give a label name as the records have it: in lower case and without white space, as TLT does."""
    return "".join(text.split()).lower()


def frame_id(folder: str, image: str) -> str:
    """Give the path of an image below the image root without its extension, as records name it."""
    return os.path.splitext(PurePosixPath(folder, image))[0]


def box_text(*box: float) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def number(column: str, text: str) -> float:
    """Read a number; ValueError says what is wrong with the text."""
    try:
        value = float(text.replace("_", "?"))  # Python would read 1_0 as ten
    except ValueError as error:
        raise ValueError(f"{column} is {text!r}, not a number") from error
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{column} is {text!r}, not a finite number of a sensible size")
    return value


# Images and folders


def image_size(path: Path) -> Size:
    """Read the size of an image, as viewers show it, from its header.

    Raises:
        ValueError: there is no such image, or it cannot be used; the reason, without the path.
    """
    try:
        return file_size(path)
    except UNREADABLE as error:
        if "\0" in str(path) or not os.path.lexists(path):
            raise ValueError("the image is missing") from error
        is_empty = path.is_file() and path.stat().st_size == 0
        why = "the file is empty" if is_empty else f"not a readable image ({reason(error)})"
        raise ValueError(why) from error


def require_size(size: Size, stated: Sequence[object]) -> None:
    """Raise ValueError when labels are for an image of another width or height; None or 0 states nothing."""
    if any(side not in (None, 0, real) for side, real in zip(stated, size)):
        labelled = "x".join(f"{side:g}" if isinstance(side, int | float) else repr(side) for side in stated)
        found = f"the image is {size.width}x{size.height} pixels"
        if size.turned and (size.height, size.width) == tuple(stated):
            raise ValueError(
                f"{found} when its EXIF orientation turns it, as viewers show it, but its labels are for {labelled}, the"
                " pixels as stored: label it as a viewer shows it, or take the orientation out of the file"
            )
        raise ValueError(f"{found}, but its labels are for {labelled}")


def find_image_root(image_directory_path: str, root: Path, folders: Iterable[str]) -> Path:
    """Give the folder where frame ids start: `image_directory_path` when the image folders are there, else the root."""
    images, missing = sources.image_root(image_directory_path, root, folders)
    if missing is not None:
        log.warning("image_directory_path %s has no folder %s; using %s", image_directory_path, missing, root)
    return images


def list_names(folder: Path, extension: str, field: str) -> set[str]:
    """Give the names, without extension, of the files of a folder.

    Raises:
        DataError: it cannot be listed; `field` is what the spec calls it.
    """
    try:
        entries = os.listdir(folder)
    except OSError as error:
        reason = f"{error.strerror}; it is root_directory_path with {field}"
        raise DataError(f"cannot list {folder}: {reason}") from error
    return {name.removesuffix(extension) for name in entries if name.endswith(extension)}


def list_images(folder: Path, extension: str) -> set[str]:
    """Give the names, without extension, of the images of a folder.

    Raises:
        DataError: it cannot be listed, or has no such image; says what it has.
    """
    names = list_names(folder, extension, "image_dir_name")
    if not names:
        others = Counter(path.suffix for path in folder.iterdir() if path.is_file())
        found = ", ".join(f"{count} {end or 'without extension'}" for end, count in others.most_common(3))
        raise DataError(
            f"no {extension} images in {folder} (it has {found or 'no files'}): see image_extension"
        )
    return names


def read_json(path: Path, field: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it cannot be read, or is none; `field` is what the spec calls it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {field} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {field} {path}: not a JSON file ({error})") from error


# Frames and folds


class Pairs(NamedTuple):
    """A folder of images and one of label files of the same names."""

    image_root: Path
    image_folder: str  # below the image root
    image_extension: str  # with the dot
    labels: Path
    label_extension: str
    parse: Callable[[Path], LabelFile]  # raises DataError for a file that is useless

    def image(self, name: str) -> Path:
        return self.image_root / self.image_folder / f"{name}{self.image_extension}"

    def missing_images(self, names: Iterable[str]) -> list[Reject]:
        """What is said of labels whose images are not there."""
        return [Reject(str(self.image(name)), None, "the image is missing") for name in sorted(names)]

    def read(self, names: Collection[str], rejected: list[Reject]) -> dict[str, Frame]:
        """Read frames by name, in this order; adds what is left out to `rejected`."""
        tracked = progress(names, total=len(names), label="reading labels")
        return {name: frame for name in tracked if (frame := self._read_frame(name, rejected))}

    def _read_frame(self, name: str, rejected: list[Reject]) -> Frame | None:
        image, label_file = self.image(name), self.labels / f"{name}{self.label_extension}"
        file = image
        try:
            size = image_size(image)
            file = label_file
            content = self._parse(label_file)
            require_size(size, content.size)
        except ValueError as error:
            rejected.append(Reject(str(file), None, str(error)))
            return None
        rejected.extend(Reject(str(label_file), line, reason) for line, reason in content.rejected)
        labels = tuple(content.labels)
        return Frame(str(PurePosixPath(self.image_folder, name)), image, *size[:2], labels, size.turned)

    def _parse(self, label_file: Path) -> LabelFile:
        try:
            return self.parse(label_file)
        except DataError as error:
            raise ValueError(str(error) if label_file.exists() else "the label file is missing") from error


def split(frames: Sequence[Frame], val_split: float, generator: random.Random) -> list[list[Frame]]:
    """Draw `val_split` percent of the frames into fold 0; the others are fold 1."""
    shuffled = generator.sample(frames, len(frames))
    count = int(val_split / 100 * len(frames))
    if val_split > 0 and len(frames) > 1:
        count = max(count, 1)  # a validation set was asked for
    return [shuffled[:count], shuffled[count:]]


def require_disjoint(folds: Sequence[Sequence[Frame]]) -> None:
    """Raise DataError when an image is in two folds: what is trained on would be measured on."""
    fold_of: dict[str, int] = {}
    for number, fold in enumerate(folds):
        for frame in fold:
            first = fold_of.setdefault(frame.frame_id, number)
            if first != number:
                raise DataError(
                    f"{frame.image} is in fold {first} and in fold {number}: an image may be in one only"
                )
