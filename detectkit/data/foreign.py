"""Label files that are not read, known by what they hold, and what to choose instead in the tools that write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from detectkit.data.folders import FolderFiles

HEAD = 65536  # bytes of a file that are looked at
LOOKED_AT = 3  # files of each folder and ending
ROBOFLOW = "in Roboflow, export the version as COCO, Pascal VOC or YOLO"
CVAT = "in CVAT, export the task as COCO 1.0, Pascal VOC 1.1 or Ultralytics YOLO Detection 1.0, with `Save images`"


class Foreign(NamedTuple):
    """A format that is known, and not read."""

    name: str
    endings: tuple[str, ...]  # behind which a name may go on, as those of shards do
    marks: tuple[bytes, ...]  # regular expressions; a file of the format has them all in its head
    instead: str


FORMATS = (
    Foreign(
        "LabelMe's JSON",
        (".json",),
        (rb'"shapes"\s*:', rb'"imagePath"\s*:'),
        "LabelMe's script labelme2voc.py (examples/bbox_detection) makes Pascal VOC of it",
    ),
    Foreign("CVAT for images 1.1", (".xml",), (rb"<annotations>", rb"<image\s"), CVAT),
    Foreign("CVAT for video 1.1", (".xml",), (rb"<annotations>", rb"<track\s|<meta>"), CVAT),
    Foreign("Datumaro's JSON", (".json",), (rb'"categories"\s*:', rb'"items"\s*:'), CVAT),
    Foreign(
        "VGG Image Annotator's JSON",
        (".json",),
        (rb'"shape_attributes"\s*:|"_via_',),
        "in VIA, choose Annotation, Export Annotations (COCO format)",
    ),
    Foreign(
        "Label Studio's own JSON",
        (".json",),
        (rb'"(from_name|rectanglelabels|original_width)"\s*:',),
        "in Label Studio, export as COCO, YOLO with Images or Pascal VOC XML",
    ),
    Foreign(
        "Label Studio's own CSV",
        (".csv", ".tsv"),
        (rb"rectanglelabels",),
        "in Label Studio, export as COCO, YOLO with Images or Pascal VOC XML",
    ),
    Foreign(
        "Supervisely's JSON",
        (".json",),
        (rb'"classTitle"\s*:|"tags"\s*:\s*\[', rb'"objects"\s*:'),
        "in Supervisely, run the app Export to COCO or Export to Pascal VOC",
    ),
    Foreign("CreateML's JSON", (".json",), (rb'"annotations"\s*:', rb'"coordinates"\s*:'), ROBOFLOW),
    Foreign(
        "TensorFlow's TFRecord",
        (".tfrecord", ".tfrecords", ".record"),
        (),
        "give the images and label files that it was made of, or export them again as COCO, Pascal VOC or YOLO",
    ),
)


def found_in(files: FolderFiles) -> str:
    """What the label files are that are not read, the commonest ones, with what to do; empty: none is known."""
    for form in FORMATS:
        for below, all_names in files.files.items():
            names = [name for name in all_names if any(end in name.lower() for end in form.endings)]
            known = [name for name in names[:LOOKED_AT] if _is_of(form, files.folder / below / name)]
            if known:
                count = len(names) if len(known) == len(names[:LOOKED_AT]) else len(known)
                example = files.folder / below / known[0]
                what = "a file" if count == 1 else f"{count} files"
                return f"{what} of {form.name}, which is not read ({example}): {form.instead}"
    return ""


def _is_of(form: Foreign, path: Path) -> bool:
    if not form.marks:
        return True
    content = head(path)
    return all(re.search(mark, content) for mark in form.marks)


def head(path: Path, size: int = HEAD) -> bytes:
    """The first bytes of a file; none where it cannot be read, or is a pipe."""
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""
