"""The splits of a folder in one of YOLO's layouts: data.yaml, lists of images, or folders; and the file of its class names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from detectkit.data import sources
from detectkit.data.folders import (
    ROLES,
    FolderFiles,
    Pairing,
    divided,
    is_in,
    places,
    role_of,
    shared,
    shown,
    under,
)
from detectkit.data.foreign import head
from detectkit.data.formats import is_image
from detectkit.data.parts import Part, Parts, blank, of_no_split, pairing_role
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig

HAS_NAMES = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)
STATED = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
LONGEST_YAML = 1 << 22  # bytes
LONGEST_LIST = 1 << 26  # bytes of a list of images


def class_files(files: FolderFiles) -> list[str]:
    """The files of class names, the outermost ones first, and data.yaml before text."""
    found = []
    for below, names in files.files.items():
        depth = below.count("/") + bool(below)
        for name in names:
            if name.lower().endswith(sources.YAML) and HAS_NAMES.search(head(files.folder / below / name)):
                found.append((depth, 0, int(name.lower() != "data.yaml"), under(below, name)))
            elif name.lower() in sources.CLASS_LISTS or name.lower().endswith(".names"):
                found.append((depth, 1, int(name.lower() not in sources.CLASS_LISTS), under(below, name)))
    return [file for *_, file in sorted(found)]


def yolo_parts(files: FolderFiles, pairings: Sequence[Pairing]) -> Parts:
    """Give the splits: those that data.yaml names, else those of lists (train.txt), else by the names of folders.

    Raises:
        DataError: there are no class names, nothing to train on, or labels are where they are not looked for.
    """
    lists = class_files(files)
    if not lists:
        raise DataError(
            f"{files.folder} has labels of YOLO and no names for their class numbers: "
            "write them into classes.txt in that folder, one a line, that of class 0 first"
        )
    for pairing in pairings:
        _require_reachable(files, pairing)
    classes = lists[0]
    told = [f"class names in {classes}"]
    chosen = _by_yaml(files, classes, pairings, told) or _by_lists(files, classes, told)
    if chosen:
        groups, _ = divided(list(chosen.values()), list(chosen), files.folder)
        splits = {role: [place for own in group for place in own] for role, group in groups.items()}
        told += _unnamed(files, splits, pairings)
    else:
        own, left = divided(pairings, list(map(pairing_role, pairings)), files.folder)
        splits = {role: _folders(files, group) for role, group in own.items()}
        told += of_no_split(left)
    used = [each.images for each in pairings]
    if len(splits) == 1 and _is_all(files, splits["train"], pairings):
        root = shared([*used, *(each.labels for each in pairings)])
        if any(is_in(place, root) and place not in used for place in files.images):
            # What has no labels there would be taken for images that show no object.
            return Parts([Part("train", _config(files, "", classes, _folders(files, pairings)))], used, told)
        return Parts([Part("train", _config(files, root, classes, []))], used, told)
    parts = [Part(role, _config(files, "", _own_list(lists, own[0]), own)) for role, own in splits.items()]
    return Parts(parts, used, told)


def _config(files: FolderFiles, root: str, classes: str, own: Sequence[str]) -> DatasetExportConfig:
    config = blank(files, root)
    config.yolo_config.root_directory_path = str(files.folder / root)
    config.yolo_config.classes_file = posixpath.relpath(classes, root or ".")
    config.yolo_config.image_dir_names.extend(own)
    return config


def _own_list(lists: Sequence[str], place: str) -> str:
    """The class names of a split: those of the whole set, or where each split has its own, that which is nearest to it."""
    if "/" not in lists[0]:
        return lists[0]
    return max(lists, key=lambda file: len(shared([posixpath.dirname(file), place])))


def _require_reachable(files: FolderFiles, pairing: Pairing) -> None:
    """Refuse labels that reading would not find: it looks beside the images, and in `labels` for `images`."""
    if files.folder / pairing.labels not in sources.label_folders(files.folder / pairing.images):
        raise DataError(
            f"{files.folder}: {shown(pairing.images)} has the images of {shown(pairing.labels)}, whose labels are of "
            "YOLO: these are looked for beside the images, or in a folder labels for a folder images; rename them so"
        )


def _folders(files: FolderFiles, group: Sequence[Pairing]) -> list[str]:
    """The folders of images of a split: one that holds them all and no other images, else each."""
    each = sorted({pairing.images for pairing in group})
    whole = shared(each)
    return [whole] if all(place in each for place in files.images if is_in(place, whole)) else each


def _folders_above(files: FolderFiles) -> set[str]:
    """All folders that have files in them or below them."""
    return {
        "/".join(place.split("/")[:depth]) for place in files.files for depth in range(place.count("/") + 2)
    }


def _is_all(files: FolderFiles, own: Sequence[str], pairings: Sequence[Pairing]) -> bool:
    """Whether a split that is alone has all labelled images, so that no list is needed."""
    listed = _listed(files, own)
    if listed:
        return len(listed) >= sum(len(files.images[place]) for place in {each.images for each in pairings})
    return all(any(is_in(each.images, place) for place in own) for each in pairings)


def _listed(files: FolderFiles, own: Iterable[str]) -> set[str]:
    """The images that lists among folders and lists name."""
    return {line for place in own if place.endswith(".txt") for line in image_list(files.folder / place)}


def _unnamed(
    files: FolderFiles, splits: Mapping[str, Sequence[str]], pairings: Sequence[Pairing]
) -> list[str]:
    """What is told of labelled images that no split has: neither data.yaml nor a list names them."""
    named = [place for own in splits.values() for place in own]
    others = {
        each.images: len(each.names)
        for each in pairings
        if not any(is_in(each.images, place) for place in named)
    }
    listed = len(_listed(files, named))
    if listed:
        count = sum(others.values()) - listed
        return [f"left out, labelled images that no list has: {count}"] if count > 0 else []
    return [f"left out, as data.yaml does not name them: images in {places(others)}"] if others else []


# data.yaml


def _by_yaml(
    files: FolderFiles, classes: str, pairings: Sequence[Pairing], told: list[str]
) -> dict[str, list[str]]:
    """The folders and lists that data.yaml names for each split, of those that are there and have labels."""
    if not classes.lower().endswith(sources.YAML):
        return {}
    stated = _stated_splits(files.folder / classes)
    below, known = posixpath.dirname(classes), _folders_above(files)
    all_files = {under(place, name) for place, names in files.files.items() for name in names}
    found: dict[str, list[str]] = {}
    for role, names in stated.items():
        for name in names:
            place = _place(name, below, known, all_files)
            if place is None:
                told.append(f"left out, as it is not there: {name} of {classes}")
            elif any(place in others for others in found.values()):
                told.append(f"left out, as it is that of another split, too: {name} of {classes} for {role}")
            elif place not in known or any(is_in(each.images, place) for each in pairings):
                found.setdefault(role, []).append(place)
    return found


def _place(name: str, below: str, known: set[str], all_files: set[str]) -> str | None:
    """The folder or list that data.yaml means, whatever machine it was written on: the longest end of its path that is there."""
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".", "..")]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        for place in (under(below, end), end):
            if place in known or (place in all_files and place.lower().endswith(".txt")):
                return place
    return None if parts else below


def _stated_splits(path: Path) -> dict[str, list[str]]:
    """The paths that data.yaml has for each split; none where it cannot be read, which reading the class names tells."""
    try:
        content = yaml.load(
            head(path, LONGEST_YAML), Loader=yaml.BaseLoader
        )  # texts, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    found: dict[str, list[str]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        values = value if isinstance(value, list) else [value]
        stated = [
            each.strip() for each in values if isinstance(each, str) and each.strip() not in ("", "null", "~")
        ]
        if key in STATED:
            found.setdefault(STATED[key], []).extend(stated)
    return found


# Lists of images


def _by_lists(files: FolderFiles, classes: str, told: list[str]) -> dict[str, list[str]]:
    """The lists of images that are named after splits, in the folder itself or beside the class names."""
    found: dict[str, list[str]] = {}
    for below in dict.fromkeys(("", posixpath.dirname(classes))):
        for name in files.files.get(below, []):
            word = re.fullmatch(r"[\W\d_]*([a-z]+)[\W\d_]*\.txt", name.lower())
            role = role_of(word[1]) if word else None
            if role and role not in found and image_list(files.folder / below / name):
                found[role] = [under(below, name)]
    if found:
        told.append("lists of images: " + ", ".join(place for role in ROLES for place in found.get(role, [])))
    return found if "train" in found else {}


def image_list(path: Path) -> list[str]:
    """The images that a text file names, one a line; none where it is no such list."""
    lines = [
        line.strip() for line in head(path, LONGEST_LIST).decode("utf-8-sig", errors="replace").splitlines()
    ]
    lines = list(filter(None, lines))
    return lines if lines and is_image(lines[0]) else []
