"""What cleaning works on, and what it finds."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit.data.cleaning_list import Correction, Box, Verb
from detectkit.data.dataset import Frame
from detectkit.data.readers import Label, LabelledImage


class FindingKind(enum.StrEnum):
    """What a finding is, as the list names it."""

    UNREADABLE = "unreadable_image"  # damaged, cut short, or no image at all
    DUPLICATE = "exact_duplicate"  # a file of the same content
    NEAR_DUPLICATE = "near_duplicate"
    LEAK = "leak"  # the same image, or nearly so, is trained on and measured on
    TURNED = "turned_labels"  # they fit the pixels as stored, not as the EXIF orientation turns them
    UNLABELLED = "unlabelled_image"  # among labelled ones
    LEFT_OUT = "left_out"  # a line or file that conversions cannot use
    DEGENERATE = "degenerate_box"  # without area, or too thin to be of anything
    OUTSIDE = "outside"  # wholly outside the image
    PARTLY_OUTSIDE = "partly_outside"
    DOUBLED = "doubled_box"  # two of one class on one object
    TWO_CLASSES = "two_classes"  # on one object
    ODD_SIZE = "odd_size"  # far from those of its class
    ODD_SHAPE = "odd_shape"
    MISSPELT = "misspelt_class"
    MISSING = "missing_label"  # a confident detection that no label touches
    WRONG_CLASS = "wrong_class"  # a confident detection of another class on a label
    BADLY_PLACED = "badly_placed_box"  # a confident detection of the class that fits the label badly


BY_MODEL = (FindingKind.MISSING, FindingKind.WRONG_CLASS, FindingKind.BADLY_PLACED)


class AuditedImage(NamedTuple):
    """An image that is looked at, and its labels."""

    frame: LabelledImage
    part: str  # "training" or "validation"; of a conversion spec the fold
    record: Frame | None = None  # where the image is in a record

    @property
    def name(self) -> str:
        return str(self.frame.image)


class DataFinding(NamedTuple):
    """Something that may be wrong, and what could be done."""

    kind: FindingKind
    image: str  # its path
    text: str  # one line for people
    correction: Correction = Correction(Verb.LOOK)
    sureness: float = 1.0  # 0 to 1; by rules as by a model
    name: str = ""  # class of the label that it is of, as labelled; empty: it is of the image
    box: Box | None = None  # of that label, pixels of the image
    label_file: str = ""
    line: int | None = None  # of the label, counted from 1
    place: int | None = None  # of the label among those of its image
    other: str = ""  # path of an image that it is compared with
    other_box: Box | None = None  # that the box is compared with


def of_label(kind: FindingKind, image: AuditedImage, index: int, text: str, **more: object) -> DataFinding:
    """A finding of one label of an image; `more` are further columns."""
    frame = image.frame
    label = frame.labels[index]
    line = frame.lines[index] if frame.lines else None
    found = DataFinding(
        kind,
        image.name,
        text,
        name=label.name,
        box=label.box,
        label_file=frame.label_file,
        line=line,
        place=index,
    )
    return found._replace(**more)  # type: ignore[arg-type]


def of_image(kind: FindingKind, image: AuditedImage, text: str, **more: object) -> DataFinding:
    """A finding of an image as a whole."""
    return DataFinding(kind, image.name, text, label_file=image.frame.label_file)._replace(**more)  # type: ignore[arg-type]


def labels_of(images: Iterable[AuditedImage]) -> Iterator[tuple[AuditedImage, int, Label]]:
    """Every label, with its image and its index there."""
    for image in images:
        yield from ((image, index, label) for index, label in enumerate(image.frame.labels))


def ranked(findings: Iterable[DataFinding]) -> list[DataFinding]:
    """The surest first; of equal ones as `FindingKind` has them, then by image and line."""
    order = list(FindingKind)
    return sorted(
        findings, key=lambda item: (-item.sureness, order.index(item.kind), item.image, item.line or 0)
    )


def counted(findings: Sequence[DataFinding]) -> list[tuple[FindingKind, int]]:
    """How many there are of each kind, in the order of the kinds."""
    counts = Counter(item.kind for item in findings)
    return [(kind, counts[kind]) for kind in FindingKind if counts[kind]]


def short(path: str) -> str:
    """The name of a file as captions have it."""
    return Path(path).name
