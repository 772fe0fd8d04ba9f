"""The splits of a folder in the layouts that have a label file for each image, and the conversion specs that read them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from detectkit.data import voc
from detectkit.data.folders import FolderFiles, Pairing, divided, joined, role_of, shown, stem_of, under
from detectkit.data.formats import is_image
from detectkit.data.foreign import head
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig


class Part(NamedTuple):
    """One split of a data set. What has no splits is `train` alone."""

    role: str  # train, validation or test
    config: DatasetExportConfig  # reads it: has neither output_filename nor val_split


class Parts(NamedTuple):
    """What a folder holds in one layout."""

    parts: list[Part]  # train first
    used: list[str]  # folders of images that are read or told of, with what is below them
    told: list[str]  # what was found besides, and what is left out and why


def pairing_role(pairing: Pairing) -> str | None:
    return role_of(pairing.labels) or role_of(pairing.images)


def blank(files: FolderFiles, root: str = "") -> DatasetExportConfig:
    """A conversion whose images start in the folder, or in one below it."""
    return DatasetExportConfig(image_directory_path=str(files.folder / root))


# KITTI


def kitti_parts(files: FolderFiles, pairings: Sequence[Pairing]) -> Parts:
    """Give the splits of KITTI folders: a folder of images and one of label files each."""
    groups, left = divided(pairings, list(map(pairing_role, pairings)), files.folder)
    parts, used = [], []
    for role, group in groups.items():
        images, labels = joined(group, [each for each in pairings if each not in group], files.folder)
        config = blank(files)
        source = config.kitti_config
        source.root_directory_path = str(files.folder)
        source.image_dir_name, source.label_dir_name = images, labels
        source.image_extension = files.extension(images)
        parts.append(Part(role, config))
        used.append(images)
    return Parts(parts, [*used, *(each.images for each in left)], of_no_split(left))


def of_no_split(left: Sequence[Pairing]) -> list[str]:
    """What is told of folders of labels that are of no split."""
    return [
        f"left out, as it is of no split: {shown(each.labels)}, with labels of {len(each.names)} images"
        for each in left
    ]


# Pascal VOC


class _Set(NamedTuple):
    """A list of image names."""

    file: str  # path from the folder
    word: str  # what it is called: train, val, trainval, test
    names: list[str]


def voc_parts(files: FolderFiles, pairings: Sequence[Pairing]) -> Parts:
    """Give the splits of VOC folders: by their lists of images, else a folder for each split."""
    for pairing in pairings:
        sets, told = _image_sets(files, pairing)
        if not sets:
            continue
        if len(pairings) > 1:
            roots = ", ".join(sorted({posixpath.dirname(each.labels) or "." for each in pairings}))
            raise DataError(f"{files.folder} has several VOC folders ({roots}): give one of them")
        return _parts_by_lists(files, pairing, sets, told)
    groups, left = divided(pairings, list(map(pairing_role, pairings)), files.folder)
    parts, used = [], []
    for role, group in groups.items():
        images, labels = joined(group, [each for each in pairings if each not in group], files.folder)
        parts.append(Part(role, _voc_config(files, images, labels)))
        used.append(images)
    return Parts(parts, [*used, *(each.images for each in left)], of_no_split(left))


def _voc_config(files: FolderFiles, images: str, labels: str) -> DatasetExportConfig:
    config = blank(files)
    source = config.voc_config
    source.root_directory_path = str(files.folder)
    source.image_dir_name, source.annotation_dir_name = images, labels
    source.image_extension = files.extension(images)
    return config


def _parts_by_lists(files: FolderFiles, pairing: Pairing, sets: Sequence[_Set], told: list[str]) -> Parts:
    groups, _ = divided(sets, [role_of(each.word) for each in sets], files.folder)
    parts = []
    for role, (first, *_) in groups.items():
        config = _voc_config(files, pairing.images, pairing.labels)
        if len(groups) > 1 or len(first.names) < len(pairing.names):
            config.voc_config.image_set_files.append(first.file)
        parts.append(Part(role, config))
    listed = {_bare(name) for each in sets for name in each.names}
    others = sum(stem_of(name) not in listed for name in pairing.names)
    if others:
        told.append(f"left out, labelled images that no list has: {others}")
    names = ", ".join(f"{each.file} ({len(each.names)})" for each in sets)
    return Parts(parts, [pairing.images], [f"lists of images: {names}", *told])


def _image_sets(files: FolderFiles, pairing: Pairing) -> tuple[list[_Set], list[str]]:
    """The lists that say what is trained on, validated and tested, and what is told of others."""
    above = posixpath.dirname(pairing.labels)
    place = next(
        (
            place
            for place in (under(above, "ImageSets/Main"), under(above, "ImageSets"))
            if place in files.files
        ),
        "",
    )
    found: dict[str, _Set] = {}
    told = []
    labelled = set(map(stem_of, pairing.names))
    for name in files.files.get(place, []) if place else []:
        word = re.fullmatch(r"[\W\d_]*([a-z]+)[\W\d_]*\.txt", name.lower())
        if word is None or role_of(word[1]) is None or not head(files.folder / place / name).strip():
            continue
        names = voc.read_list(files.folder / place / name)
        if any(_bare(each) in labelled for each in names):
            found[word[1]] = _Set(under(place, name), word[1], names)
        else:
            told.append(f"left out, as none of its {len(names)} images has labels: {under(place, name)}")
    both = {"train", "val"} <= found.keys()
    dropped = [word for word in found if word == "trainval"] if both else []
    if "trainval" in found and not both:
        dropped = [word for word in found if role_of(word) != "test" and word != "trainval"]
        told += [f"left out, as trainval.txt holds it: {found[word].file}" for word in dropped]
    return [each for word, each in found.items() if word not in dropped], told


def _bare(name: str) -> str:
    """The name of an image in a list without its folder, and without its extension where it has one."""
    last = posixpath.basename(name.replace("\\", "/"))
    return stem_of(last) if is_image(last) else stem_of(last + ".jpg")
