"""The list of `detectkit clean` with what a person decided on each finding, and a conversion that goes by it.

A CSV file, a finding a row. `suggestion` is what could be done; nothing is done where `decision` is empty.
"""

from __future__ import annotations

import csv
import enum
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit.console import log
from detectkit.data.readers import Label, LabelledImage, Reject, Source, box_text, composed, number
from detectkit.errors import DataError
from detectkit.spec import control_character

COLUMNS = (
    *("kind", "image", "label_file", "line", "class", "box", "sureness", "suggestion", "decision", "text"),
)
NEEDED = ("kind", "image", "class", "box", "suggestion", "decision")
SEPARATORS = ",;\t"  # spreadsheets write what their language has
ACCEPT = "accept"
NAMED = 12  # decisions that fit nothing, each in a line
NEAR = 0.01  # pixels: a box of the list is that of a label

Box = tuple[float, float, float, float]  # x1 y1 x2 y2, pixels of the file


class Verb(enum.StrEnum):
    """What can be done about a finding."""

    LOOK = "look"  # only ever a suggestion: a person has to see what
    KEEP = "keep"  # it is right as it is
    DROP_IMAGE = "drop image"
    DROP_LABEL = "drop label"
    RENAME = "rename to"  # a class
    REPLACE_BOX = "replace box with"  # x1 y1 x2 y2
    ADD_LABEL = "add label"  # of the row's class and box


ORDER = (Verb.RENAME, Verb.REPLACE_BOX, Verb.ADD_LABEL, Verb.DROP_LABEL, Verb.DROP_IMAGE)
DONE = dict(
    zip(
        ORDER,
        (
            "{} labels renamed",
            "{} boxes replaced",
            "{} labels added",
            "{} labels left out",
            "{} images left out",
        ),
    )
)


class Correction(NamedTuple):
    """Something to do, as the list has it: its text is `rename to rbc`."""

    verb: Verb
    name: str = ""  # of the class to rename to
    box: Box | None = None  # to replace the row's with

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, self.name, box_cell(self.box))))


class ListedFinding(NamedTuple):
    """A finding of the list."""

    line: int  # of the file, counted from 1
    kind: str
    image: str  # path of the image
    name: str  # class of the label; empty: it is of the image
    box: Box | None
    suggestion: str
    decision: str
    correction: Correction | None  # that was decided on; None: nothing was


def box_cell(box: Box | None) -> str:
    """A box as the list has it, four numbers with blanks between them; empty for none."""
    return "" if box is None else " ".join(f"{value:.10g}" for value in box)


def read_list(path: Path) -> list[ListedFinding]:
    """Read a list, in whatever order its columns are, with `,`, `;` or tabs between them.

    Raises:
        DataError: it cannot be read, a column is missing, or `file:line: reason` for a decision that is none.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read cleaning_file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: save it as `CSV UTF-8`") from error
    header, separator = _header(text, path)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found = []
    try:
        next(rows)
        for cells in rows:
            if any(map(str.strip, cells)):
                found.append(_row(dict(zip(header, cells)), rows.line_num))
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}:{rows.line_num}: {error}") from error
    return found


def _header(text: str, path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    first = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=first.count)
    names = [cell.strip().strip('"').strip().lower() for cell in first.split(separator)]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(
            f"{path} is no list of `detectkit clean`: its first line has no column {', '.join(missing)}"
        )
    return names, separator


def _row(cells: dict[str, str], line: int) -> ListedFinding:
    """Raises ValueError for what is no box or no decision."""
    values = {name: cells.get(name, "").strip() for name in NEEDED}
    box = _box(values["box"]) if values["box"] else None
    row = ListedFinding(
        line,
        values["kind"],
        values["image"],
        values["class"],
        box,
        values["suggestion"],
        values["decision"],
        None,
    )
    return row._replace(correction=_decided(row))


def _decided(row: ListedFinding) -> Correction | None:
    if not row.decision:
        return None
    is_accepted = row.decision.lower() == ACCEPT
    correction = parse_correction(row.suggestion if is_accepted else row.decision)
    if correction.verb == Verb.LOOK:
        raise ValueError(
            f"decision {row.decision!r:.60}: this finding has no correction of its own; write {_verbs()}"
        )
    is_of_label = correction.verb not in (Verb.KEEP, Verb.DROP_IMAGE)
    if is_of_label and not (row.name and row.box):
        raise ValueError(f"decision {row.decision!r:.60}: the row has no class and box of a label")
    return correction


def parse_correction(text: str) -> Correction:
    """Read an correction; ValueError says what is wrong with the text."""
    words = " ".join(text.split())
    for verb in Verb:
        if words.lower() == verb or words.lower().startswith(f"{verb} "):
            rest = words[len(verb) :].strip()
            if verb == Verb.RENAME and rest:
                if found := control_character(rest):
                    raise ValueError(f"the class name {ascii(rest)} has the control character {found}")
                return Correction(verb, name=rest)
            if verb == Verb.REPLACE_BOX and rest:
                return Correction(verb, box=_box(rest))
            if not rest and verb not in (Verb.RENAME, Verb.REPLACE_BOX):
                return Correction(verb)
    raise ValueError(f"decision {words!r:.60} is none; write {ACCEPT}, {_verbs()}, or nothing")


def _verbs() -> str:
    return "keep, drop image, drop label, rename to CLASS, replace box with X1 Y1 X2 Y2 or add label"


def _box(text: str) -> Box:
    values = [number("a side of the box", part) for part in text.split()]
    if len(values) != 4 or not (values[0] < values[2] and values[1] < values[3]):
        raise ValueError(f"the box {text!r:.60} is not X1 Y1 X2 Y2 with X1 < X2 and Y1 < Y2")
    return values[0], values[1], values[2], values[3]


# What a conversion does with it


class _Edited:
    """An image while decisions are carried out. A label is known by what it was at first, whatever became of it."""

    def __init__(self, frame: LabelledImage):
        self.frame = frame
        self.dropped: ListedFinding | None = None
        self.added: list[Label] = []
        self.now: list[Label | None] = list(frame.labels)
        self.said: list[set[Verb]] = [set() for _ in frame.labels]

    def carry_out(self, row: ListedFinding, correction: Correction) -> int | None:
        """Do it; the index of the label that it is of, -1 where it is of none, None where nothing fits."""
        if correction.verb == Verb.DROP_IMAGE:
            self.dropped = row
            return -1
        assert row.box is not None  # see `_decided`
        if correction.verb == Verb.ADD_LABEL:
            self.added.append(Label(row.name, truncation=0.0, occlusion=0, alpha=0.0, box=row.box))
            return -1
        index = self._find(row.name, row.box, correction.verb)
        if index is None:
            return None
        self.said[index].add(correction.verb)
        label = self.now[index]
        assert label is not None
        match correction.verb:
            case Verb.RENAME:
                self.now[index] = label._replace(name=correction.name)
            case Verb.REPLACE_BOX:
                self.now[index] = label._replace(box=correction.box or label.box)
            case _:
                self.now[index] = None
        return index

    def _find(self, name: str, box: Box, verb: Verb) -> int | None:
        for index, label in enumerate(self.frame.labels):
            is_same = label.name == name and all(abs(a - b) <= NEAR for a, b in zip(label.box, box))
            if is_same and self.now[index] is not None and verb not in self.said[index]:
                return index
        return None

    def result(self) -> LabelledImage:
        labels = (*filter(None, self.now), *self.added)
        return self.frame._replace(
            labels=labels, lines=self.frame.lines if labels == self.frame.labels else ()
        )


def apply_list(source: Source, path: Path) -> Source:
    """A source with what was decided on: what is left out joins `rejected`; the rest is told, with counts.

    Decisions that fit nothing any more are told with their line, and do nothing.

    Raises:
        DataError: as `read_list`.
    """
    rows = [row for row in read_list(path) if row.correction and row.correction.verb != Verb.KEEP]
    images = {_key(frame.image): _Edited(frame) for fold in source.folds for frame in fold}
    done: Counter[Verb] = Counter()
    idle: list[ListedFinding] = []
    rejected = list(source.rejected)
    for row, correction in _in_order(rows):
        edited = images.get(_key(row.image))
        index = None if edited is None else edited.carry_out(row, correction)
        if edited is None or index is None:
            idle.append(row)
            continue
        done[correction.verb] += 1
        if correction.verb in (Verb.DROP_LABEL, Verb.DROP_IMAGE):
            rejected.append(_reject(edited.frame, index, row, path))
    _tell(done, idle, images.keys(), path)
    folds = [
        [edited.result() for frame in fold if not (edited := images[_key(frame.image)]).dropped]
        for fold in source.folds
    ]
    return source._replace(folds=folds, rejected=rejected)


def _in_order(rows: Sequence[ListedFinding]) -> Iterator[tuple[ListedFinding, Correction]]:
    """What changes labels before what drops them: of one label both may have been decided."""
    for verb in ORDER:
        yield from ((row, row.correction) for row in rows if row.correction and row.correction.verb == verb)


def _key(image: str | Path) -> str:
    return composed(os.path.abspath(os.path.expanduser(image)))


def _reject(frame: LabelledImage, index: int, row: ListedFinding, path: Path) -> Reject:
    reason = f"{row.kind.replace('_', ' ')}: left out by {path.name}"
    if index < 0:
        return Reject(str(frame.image), None, reason)
    line = frame.lines[index] if frame.lines else None
    return Reject(frame.label_file or str(frame.image), line, reason, is_label=True)


def _tell(done: Counter[Verb], idle: Sequence[ListedFinding], images: Iterable[str], path: Path) -> None:
    told = [DONE[verb].format(done[verb]) for verb in ORDER if done[verb]]
    log.info("%s: %s", path, ", ".join(told) or "no decision of it changes anything")
    known = set(images)
    for row in idle[:NAMED]:
        why = (
            "no such image is read"
            if _key(row.image) not in known
            else f"it has no such label {_label_text(row)}"
        )
        log.warning("%s:%d: %s does nothing to %s: %s", path, row.line, row.correction, row.image, why)
    if len(idle) > NAMED:
        log.warning("%s: %d more decisions do nothing", path, len(idle) - NAMED)


def _label_text(row: ListedFinding) -> str:
    return f"{row.name} {box_text(*row.box)}" if row.box else row.name
