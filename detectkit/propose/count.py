"""What a data set holds, counted: images, boxes of each class, their sizes, and how they overlap."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectkit.data import convert
from detectkit.data.layouts import Layout
from detectkit.data.readers import LabelledImage, Reject, reasons
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig, label_name

TRAIN, VALIDATION, TEST = "train", "validation", "test"
DRAWN = 20.0  # percent of the images of a data set without a split, for validation
SEEDS = range(42, 62)  # of that draw: the first whose training images have every class
ASSURED = 5  # images with a class: that all of so many are drawn for validation has a chance of 1 in 3125
DONTCARE = "dontcare"  # what KITTI calls regions that count neither for nor against
MOST = 1000  # boxes of an image whose overlaps are looked at
REASONS = 3  # named in an error
LISTS = {  # of which each is a fold
    "coco_config": "annotation_files",
    "voc_config": "image_set_files",
    "yolo_config": "image_dir_names",
    "csv_config": "csv_files",
}


class Reading(NamedTuple):
    """One conversion of the spec to be, and what it found."""

    role: str  # "train", "validation" or "test"
    config: DatasetExportConfig  # without output_filename; with its val_split, where one is drawn
    image_root: Path
    extension: str  # of the images, without the dot; empty: every record has that of its own
    rejected: list[Reject]


class Portion(NamedTuple):
    """The images of one role, m of them, and their n boxes, those of regions to be ignored left out."""

    images: list[LabelledImage]
    sizes: NDArray[np.float64]  # [m, 2] width and height in pixels, as viewers show them
    boxes: NDArray[np.float64]  # [n, 2] width and height inside the image, as shares of it
    classes: NDArray[np.int64]  # [n] an index of `Contents.names`
    nearest: NDArray[
        np.float64
    ]  # [n] greatest IoU with another box of its class in its image; 0: there is none
    places: NDArray[np.int64]  # [n] an index of `images`

    @property
    def empty(self) -> int:
        """Images without a box."""
        return len(self.images) - len(np.unique(self.places))

    def counts(self, names: Sequence[str]) -> list[int]:
        """Boxes of each class."""
        found: list[int] = np.bincount(self.classes, minlength=len(names)).tolist()
        return found

    def images_with(self, names: Sequence[str]) -> list[int]:
        """Images with a box of each class."""
        return [len(np.unique(self.places[self.classes == number])) for number in range(len(names))]


class Contents(NamedTuple):
    """A data set, counted."""

    layout: Layout
    readings: list[Reading]
    portions: dict[str, Portion]  # by role; what is measured on may be missing
    names: list[str]  # of classes, as most of their labels spell them, in the order of the records' names
    spellings: dict[str, Counter[str]]  # of each class, with the boxes of each
    ignored: int  # boxes of regions called dontcare
    drawn: float  # percent drawn for validation; 0: the split is as found
    seed: int  # of the draw

    @property
    def train(self) -> Portion:
        return self.portions[TRAIN]

    @property
    def images(self) -> int:
        return sum(len(portion.images) for portion in self.portions.values())

    @property
    def rejected(self) -> list[Reject]:
        """What is not used. Splits may share a folder: an image that another split has is not among it."""
        used = {str(frame.image) for portion in self.portions.values() for frame in portion.images}
        return [reject for reading in self.readings for reject in reading.rejected if reject.file not in used]


def count(layout: Layout) -> Contents:
    """Read all that a layout names. Where it names nothing to measure on, a part of the training images is drawn for that.

    Raises:
        DataError: a folder or file cannot be read, or not one label is usable.
    """
    is_split = any(part.role != TRAIN for part in layout.parts)
    readings, folds, drawn = [], dict[str, list[LabelledImage]](), 0.0
    for part in layout.parts:
        config = DatasetExportConfig()
        config.CopyFrom(part.config)
        drawn = DRAWN if not is_split and _draw(config) else 0.0
        source = convert.read(config, random.Random(config.random_seed))
        readings.append(
            Reading(part.role, config, source.image_root, source.extension, list(source.rejected))
        )
        if drawn:
            folds[VALIDATION], folds[TRAIN] = source.folds
        else:
            folds[part.role] = [frame for fold in source.folds for frame in fold]
    _require_labels(folds, readings)
    contents = _counted(layout, readings, folds, drawn=drawn)
    return _redrawn(contents) if contents.drawn else contents


def _draw(config: DatasetExportConfig) -> bool:
    """Have a conversion draw a part of its images for validation; gives whether it can: several lists are a fold each."""
    kind = config.WhichOneof("convert_config_type") or "kitti_config"
    section = getattr(config, kind)
    if kind in LISTS and len(getattr(section, LISTS[kind])) > 1:
        return False
    section.val_split = DRAWN
    return True


def _redrawn(contents: Contents) -> Contents:
    """The same with a draw that leaves a box of every class to train on, if the first one has not, and another has."""
    names, (reading, *_) = contents.names, contents.readings
    for seed in SEEDS:
        if seed != reading.config.random_seed:
            reading.config.random_seed = seed
            source = convert.read(reading.config, random.Random(seed))
            folds = dict(zip((VALIDATION, TRAIN), source.folds))
            contents = _counted(contents.layout, contents.readings, folds, drawn=contents.drawn)
        if all(contents.train.counts(names)):
            break
    return contents._replace(seed=reading.config.random_seed)


def _require_labels(folds: dict[str, list[LabelledImage]], readings: Sequence[Reading]) -> None:
    frames = [frame for fold in folds.values() for frame in fold]
    if any(label_name(label.name) != DONTCARE for frame in frames for label in frame.labels):
        return
    told = "; ".join(reasons((reject for each in readings for reject in each.rejected), most=REASONS))
    if not frames:
        raise DataError(f"not one image with its labels is usable{f': {told}' if told else ''}")
    raise DataError(
        f"not one box in the labels of {len(frames)} images{f': {told}' if told else ': label some objects first'}"
    )


def _counted(
    layout: Layout, readings: list[Reading], folds: dict[str, list[LabelledImage]], *, drawn: float
) -> Contents:
    spellings: dict[str, Counter[str]] = {}
    for frame in (frame for fold in folds.values() for frame in fold):
        for label in frame.labels:
            spellings.setdefault(label_name(label.name), Counter())[label.name] += 1
    ignored = spellings.pop(DONTCARE, Counter())
    order = sorted(spellings)
    numbers = {name: number for number, name in enumerate(order)}
    names = [spellings[name].most_common(1)[0][0] for name in order]
    return Contents(
        layout,
        readings,
        {role: _portion(fold, numbers) for role, fold in folds.items()},
        names,
        dict(zip(names, (spellings[name] for name in order))),
        ignored.total(),
        drawn,
        readings[0].config.random_seed,
    )


def _portion(images: list[LabelledImage], numbers: dict[str, int]) -> Portion:
    sizes = np.array([(frame.width, frame.height) for frame in images], dtype=np.float64).reshape(-1, 2)
    boxes, classes = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
    overlaps, places = [np.zeros(0)], [np.zeros(0, np.int64)]
    for place, frame in enumerate(images):
        labels = [label for label in frame.labels if label_name(label.name) in numbers]
        if labels:
            corners = np.array([label.box for label in labels], dtype=np.float64)
            corners = corners.clip(0, np.tile(sizes[place], 2))
            kinds = np.array([numbers[label_name(label.name)] for label in labels], dtype=np.int64)
            boxes.append((corners[:, 2:] - corners[:, :2]) / sizes[place])
            classes.append(kinds)
            overlaps.append(nearest_overlap(corners, kinds))
            places.append(np.full(len(labels), place))
    return Portion(
        images,
        sizes,
        np.concatenate(boxes),
        np.concatenate(classes),
        np.concatenate(overlaps),
        np.concatenate(places),
    )


def nearest_overlap(boxes: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The greatest IoU of each box with another one of its class; 0 where there is none, and behind the first 1000 boxes.

    Args:
        boxes: [n, 4] x1 y1 x2 y2, of one image.
        classes: [n].

    Returns:
        [n].
    """
    found = np.zeros(len(boxes))
    if len(boxes) < 2:
        return found
    looked, kinds = boxes[:MOST], classes[:MOST]
    low = np.maximum(looked[:, None, :2], looked[None, :, :2])
    high = np.minimum(looked[:, None, 2:], looked[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = (looked[:, 2:] - looked[:, :2]).prod(axis=1)
    union = areas[:, None] + areas - common
    shares = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    shares[kinds[:, None] != kinds] = 0
    np.fill_diagonal(shares, 0)
    found[:MOST] = shares.max(axis=1)
    return found
