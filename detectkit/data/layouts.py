"""Which layout a folder of labelled images has, and the conversion specs that read its splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detectkit.data import file_parts, foreign, kitti, readers
from detectkit.data.folders import ARCHIVES, FolderFiles, Pairing, is_in, places, require_folder, shown, under
from detectkit.data.images import counted
from detectkit.data.parts import Part as Part  # what a layout consists of
from detectkit.data.parts import Parts, kitti_parts, voc_parts
from detectkit.data.yolo_parts import class_files, yolo_parts
from detectkit.errors import DataError, UsageError

NAMES = {"kitti": "KITTI", "coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}
LABELS = (".txt", ".xml", ".json", ".csv")
OPENED = 16  # label files of a folder that have a line
LOOKED_AT = 500  # of which this many are looked at
NOT_VOC = re.compile(rb"<annotations[\s>]")


class Layout(NamedTuple):
    """What a folder was recognised as."""

    kind: str  # "kitti", "coco", "voc", "yolo" or "csv"
    told: str  # what it was recognised by, and what of it is left out: one line for people
    parts: tuple[Part, ...]  # train first


class _Seen(NamedTuple):
    """What speaks for a layout."""

    kind: str
    what: str  # 12 XML files: Annotations (12)
    build: Callable[[], Parts]


def recognise(folder: Path, kind: str | None = None) -> Layout:
    """Tell the layout of a folder from the names of its files and a few label files, and where its splits are.

    Splits are told by the names of folders, label files and lists: train or training; val, valid, validation or dev;
    test or testing. Images without labels, and label files that are of no split beside others that are, are in no part
    and told.

    Args:
        kind: the layout that is meant, of `NAMES`; needed where a folder holds several.

    Raises:
        UsageError: there is no such kind, or the folder holds several layouts.
        DataError: there is no such folder, or it holds no layout that is read; the message says what it holds.
    """
    if kind is not None and kind not in NAMES:
        raise UsageError(f"there is no layout {kind!r}: choose one of {', '.join(NAMES)}")
    folder = folder.expanduser()
    require_folder(folder)
    files = FolderFiles(folder)
    seen = _seen(files, kind)
    meant = [each for each in seen if kind in (None, each.kind)]
    if not meant:
        raise DataError(_why_not(files, kind, seen))
    if len(meant) > 1:
        both = " and ".join(f"{NAMES[each.kind]} ({each.what})" for each in meant)
        raise UsageError(
            f"{folder} holds {len(meant)} layouts, {both}: say which one with --format "
            + " or --format ".join(each.kind for each in meant)
        )
    parts, used, told = meant[0].build()
    told += _unlabelled(files, used)
    return Layout(meant[0].kind, "; ".join([meant[0].what, *told]), tuple(parts))


def class_differences(classes: Mapping[str, Collection[str]]) -> list[str]:
    """What is told of classes that some splits have and others have not, a line each.

    Args:
        classes: the labels of each split, by its role.
    """
    train = set(classes.get("train", ()))
    told = []
    for role, names in classes.items():
        more, less = sorted(set(names) - train), sorted(train - set(names))
        if more:
            told.append(f"{role} has {_quoted(more)}, which train has not: a detector cannot learn them")
        if less:
            told.append(
                f"{role} has no {_quoted(less)}, which train has: how well they are found is not measured there"
            )
    return told


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# What a folder holds


def _seen(files: FolderFiles, kind: str | None) -> list[_Seen]:
    """The layouts that a folder holds. A kind that is meant is taken for that of labels without a line, too."""
    found = []
    texts = _texts(files, kind)
    for name, what, build in (
        ("kitti", "label files of 15 columns", kitti_parts),
        ("yolo", "label files of class and box", yolo_parts),
    ):
        if texts[name]:
            found.append(_Seen(name, _count(what, texts[name]), partial(build, files, texts[name])))
    xml = [each for each in files.pairings(".xml") if _is_voc(files.folder / each.labels, each.names)]
    if xml:
        found.append(_Seen("voc", _count("XML files", xml), partial(voc_parts, files, xml)))
    coco = file_parts.annotation_files(files)
    if coco:
        what = "annotation files: " + ", ".join(each.file for each in coco)
        found.append(_Seen("coco", what, partial(file_parts.coco_parts, files, coco)))
    tables, _ = file_parts.tables(files)
    if tables:
        what = "tables of boxes: " + ", ".join(each.file for each in tables)
        found.append(_Seen("csv", what, partial(file_parts.csv_parts, files, tables)))
    return found


def _count(what: str, pairings: Sequence[Pairing]) -> str:
    counts: Counter[str] = Counter()
    for each in pairings:
        counts[each.labels] += len(each.names)
    total = sum(counts.values())
    return f"{total} {what if total > 1 else what.replace('files', 'file')}: {places(counts)}"


def _is_voc(folder: Path, names: Sequence[str]) -> bool:
    contents = (foreign.head(folder / name) for name in names[:OPENED])
    return any(b"<annotation" in content and not NOT_VOC.search(content) for content in contents)


def _texts(files: FolderFiles, kind: str | None) -> dict[str, list[Pairing]]:
    """Folders of text files that have images, by what their lines are; those without a line are of the kind of the others."""
    found: dict[str, list[Pairing]] = {"kitti": [], "yolo": [], "": [], "other": []}
    for pairing in files.pairings(".txt"):
        found[_kind_of_texts(files.folder / pairing.labels, pairing.names)].append(pairing)
    known = [each for each in ("kitti", "yolo") if found[each]]
    if found[""] and (kind in ("kitti", "yolo") or len(known) == 1 or class_files(files)):
        own = kind if kind in ("kitti", "yolo") else known[0] if len(known) == 1 else "yolo"
        found[own] = sorted(found[own] + found.pop(""))
    return found


def _kind_of_texts(folder: Path, names: Sequence[str]) -> str:
    """What most of the first label files with a line are."""
    kinds: Counter[str] = Counter()
    for name in names[:LOOKED_AT]:
        lines = foreign.head(folder / name, 4096).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        first = next((line for line in lines if line.strip()), b"")
        if first:
            kinds[_kind_of_line(first)] += 1
        if sum(kinds.values()) == OPENED:
            break
    return kinds.most_common(1)[0][0] if kinds else ""


def _kind_of_line(line: bytes) -> str:
    columns = line.decode("utf-8", errors="replace").split()
    if kitti.parse_labels(line)[0]:
        return "kitti"
    is_numbers = len(columns) >= 5 and all(map(readers.is_number, columns))
    if is_numbers and columns[0].replace(".", "", 1).isdecimal():
        return "yolo"
    return "kitti" if len(columns) in (15, 16) else "other"


def _unlabelled(files: FolderFiles, used: Collection[str]) -> list[str]:
    """What is told of folders of images that no part reads."""
    counts = {
        below: len(names)
        for below, names in files.images.items()
        if not any(is_in(below, place) for place in used)
    }
    return [f"left out, as they have no labels, images in {places(counts)}"] if counts else []


# Why it is none


def _why_not(files: FolderFiles, kind: str | None, seen: Sequence[_Seen]) -> str:
    """What a folder holds that has no layout, or not that which is meant, and what to do."""
    folder = files.folder
    wanted = f"no labels of {NAMES[kind]} in {folder}" if kind else f"no labelled images in {folder}"
    if seen:
        others = " and ".join(f"{NAMES[each.kind]} ({each.what})" for each in seen)
        return f"{wanted}: it holds {others}; leave --format out"
    known = foreign.found_in(files)
    if known:
        return f"{folder} has {known}"
    names = [(below, name) for below, own in files.files.items() for name in own]
    if not names:
        return f"{folder} is empty: put images and their labels into it"
    images = sum(map(len, files.images.values()))
    archives = [name for _, name in names if name.lower().endswith(ARCHIVES)]
    if archives and not images:
        return f"{wanted}, but the archive {archives[0]}: unpack it"
    labels = [(below, name) for below, name in names if name.lower().endswith(LABELS)]
    ends = counted(Counter(os.path.splitext(name)[1].lower() for _, name in labels))
    if not images and labels:
        return (
            f"{wanted}: it has label files ({ends}) and no images: "
            "put these beside them, or into a folder images beside that of the labels"
        )
    if not images:
        return f"{wanted}: it has {counted(Counter(os.path.splitext(name)[1] or 'without an ending' for _, name in names))}"
    return f"{wanted}: {_unmatched(files, '1 image' if images == 1 else f'{images} images', ends)}"


def _unmatched(files: FolderFiles, images: str, ends: str) -> str:
    """Why the labels of a folder that has images are none of them."""
    for pairing in files.pairings(".txt"):
        path = files.folder / under(pairing.labels, pairing.names[0])
        content = foreign.head(path, 4096)
        columns = content.decode("utf-8", errors="replace").partition("\n")[0].split()
        if not content.strip():
            return (
                f"the {len(pairing.names)} label files in {shown(pairing.labels)} are empty: label the images"
            )
        reason = kitti.other_format(columns) or f"{len(columns)} columns"
        return f"{path} is neither a label file of KITTI nor one of YOLO ({reason})"
    _, wrong = file_parts.tables(files)
    if wrong:
        return wrong
    uploaded = files.uploaded(*LABELS)
    if uploaded:
        return (
            f"{uploaded} has the name of an image but for the letters that Label Studio puts before it: "
            "export the labels with their images, or take these letters out of the names of the label files"
        )
    if ends:
        return (
            f"it has {images}, and none of its text files ({ends}) is a label file with the name of an image: "
            "give the label files the names of their images"
        )
    return f"it has {images} and no labels: label them, and put the label files beside them or into a folder of their own"
