"""The splits of a folder whose label files, COCO's JSON or CSV, are each of many images, and the specs that read them."""

from __future__ import annotations

import itertools
import json
import mmap
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit.data import csv
from detectkit.data.folders import SAMPLE, FolderFiles, divided, role_of, under
from detectkit.data.foreign import head
from detectkit.data.parts import Part, Parts, blank
from detectkit.errors import DataError

LISTS = [re.compile(rb'"%s"\s*:\s*\[\s*(\])?' % key) for key in (b"images", b"categories", b"annotations")]
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.){1,1000}")')
OTHER_TASKS = re.compile(
    r"(captions|person_keypoints|panoptic|stuff)_", re.IGNORECASE
)  # beside COCO's instances_
LINES = 2000  # of a table that are looked at
MANY = 50  # JSON or CSV files in a folder: one for each image, as other tools write them


class LabelledFile(NamedTuple):
    """A label file of many images."""

    file: str  # path from the folder
    names: list[str]  # some of its images, as it has them
    has_labels: bool

    @property
    def role(self) -> str | None:
        return role_of(posixpath.splitext(self.file)[0])


class _Place(NamedTuple):
    """A label file, and where its images are."""

    source: LabelledFile
    start: str  # folder that its names start from
    images: str  # where they lead

    @property
    def role(self) -> str | None:
        return self.source.role or role_of(self.images)


# COCO


def annotation_files(files: FolderFiles) -> list[LabelledFile]:
    """Those of COCO, told by their lists; of a folder with a file for each image one is looked at."""
    found = []
    for below, names in files.ending(".json").items():
        chosen = names if len(names) <= MANY else names[:1]
        for name in chosen:
            coco = _annotation_file(files.folder, under(below, name))
            if coco:
                found.append(coco)
    instances = [each for each in found if posixpath.basename(each.file).lower().startswith("instances_")]
    if instances:
        found = [each for each in found if not OTHER_TASKS.match(posixpath.basename(each.file))]
    return found


def _annotation_file(folder: Path, file: str) -> LabelledFile | None:
    path = folder / file
    if not head(path, 1):
        return None
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        images, categories, annotations = (pattern.search(content) for pattern in LISTS)
        if images is None or categories is None:
            return None
        matches = itertools.islice(FILE_NAME.finditer(content), SAMPLE)
        names = [name for match in matches if (name := _text(match[1]))]
        return LabelledFile(file, names, has_labels=annotations is not None and not annotations[1])


def _text(quoted: bytes) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return ""


def coco_parts(files: FolderFiles, found: Sequence[LabelledFile]) -> Parts:
    """Give the splits of COCO's annotation files."""
    groups, used, told = _groups(files, found)
    parts = []
    for role, group in groups.items():
        config = blank(files)
        config.coco_config.root_directory_path = str(files.folder)
        config.coco_config.img_dir_names.extend(each.start for each in group)
        config.coco_config.annotation_files.extend(each.source.file for each in group)
        parts.append(Part(role, config))
    return Parts(parts, used, told)


def _groups(
    files: FolderFiles, found: Sequence[LabelledFile]
) -> tuple[dict[str, list[_Place]], list[str], list[str]]:
    """Give the label files of each split with their images, the folders of these, and what is told of others.

    Raises:
        DataError: no file has labels, their images are not there, or two of one split are of the same images.
    """
    labelled = [each for each in found if each.has_labels]
    told = [f"left out, as it has no labels: {each.file}" for each in found if not each.has_labels]
    if not labelled:
        raise DataError(
            f"{files.folder / found[0].file} has no labels: label its images, and export them again"
        )
    located = [_located(files, each) for each in labelled]
    groups, left = divided(located, [each.role for each in located], files.folder)
    told += [f"left out, as it is of no split: {each.source.file}" for each in left]
    for group in groups.values():
        _require_other_images(files, group)
    return groups, [each.images for each in located], told


def _located(files: FolderFiles, source: LabelledFile) -> _Place:
    place = files.start_of(source.names, posixpath.dirname(source.file), source.role)
    if place is None:
        path = files.folder / source.file
        if not source.names:
            raise DataError(f"{path} lists no images: label some, and export them again")
        raise DataError(
            f"{path} is for images such as {source.names[0]!r:.200}, and none of them is in {files.folder}: "
            "put them there, or export them with the labels"
        )
    return _Place(source, *place)


def _require_other_images(files: FolderFiles, group: Sequence[_Place]) -> None:
    for one, other in itertools.combinations(group, 2):
        if one.start == other.start and set(one.source.names) & set(other.source.names):
            raise DataError(
                f"{files.folder}: {one.source.file} and {other.source.file} are for the same images: move one away, "
                "or name them after their splits (train, val, test)"
            )


# CSV


def tables(files: FolderFiles) -> tuple[list[LabelledFile], str]:
    """The tables of boxes, and what is wrong with the first other one; empty: there is none."""
    found, wrong = [], ""
    for below, names in files.ending(".csv").items():
        for name in names if len(names) <= MANY else names[:1]:
            if not head(files.folder / below / name, 1):
                continue
            try:
                table = csv.read_table(files.folder / below / name, lines=LINES)
            except DataError as error:
                wrong = wrong or str(error)
            else:
                images = list(itertools.islice(table.images, SAMPLE))
                found.append(LabelledFile(under(below, name), images, bool(images)))
    return found, wrong


def csv_parts(files: FolderFiles, found: Sequence[LabelledFile]) -> Parts:
    """Give the splits of tables."""
    groups, used, told = _groups(files, found)
    parts = []
    for role, group in groups.items():
        config = blank(files)
        source = config.csv_config
        source.root_directory_path = str(files.folder)
        source.csv_files.extend(each.source.file for each in group)
        starts = {each.start for each in group}
        if len(starts) > 1:
            raise DataError(
                f"{files.folder}: the images of {' and '.join(each.source.file for each in group)}, which are of one "
                "split, are in several folders: put them into one"
            )
        start = starts.pop()
        source.image_dir_name = start or "."  # empty is the folder of the table
        parts.append(Part(role, config))
    return Parts(parts, used, told)
