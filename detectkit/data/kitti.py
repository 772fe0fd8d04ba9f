"""KITTI label files: one object a line, 15 columns for a label and 16 for a detection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit.errors import DataError
from detectkit.files import atomic_write

COLUMNS = (
    *("class", "truncation", "occlusion", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
LARGEST = 1e9  # beyond this a number is a mistake, and would not survive the record's float32 and int64


class Label(NamedTuple):
    """One line of a label file. Boxes are x1, y1, x2, y2 in pixels, as written: they may leave the image."""

    name: str
    truncation: float
    occlusion: int
    alpha: float
    box: tuple[float, float, float, float]
    dimensions: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, width, length in metres
    location: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, y, z in metres, camera coordinates
    rotation_y: float = 0.0
    score: float | None = None


class Reject(NamedTuple):
    """A line that is not a usable label. Lines count from 1."""

    line: int
    reason: str


def read_labels(path: str | Path, *, strict: bool = False) -> tuple[list[Label], list[Reject]]:
    """Read the labels of one image and the lines that `parse_labels` rejects.

    Raises:
        DataError: the file cannot be read; with `strict`, the first rejected line, as `file:line: reason`.
    """
    labels, rejected = parse_labels(_content(path))
    if strict and rejected:
        raise DataError(f"{path}:{rejected[0].line}: {rejected[0].reason}")
    return labels, rejected


def parse_labels(content: bytes) -> tuple[list[Label], list[Reject]]:
    """Parse the content of a label file; blank lines are ignored, boxes are neither clipped nor rounded.

    A line is rejected when it has not 15 or 16 columns, a column is not the number it should be, or the box has no
    area (x2 <= x1 or y2 <= y1). No content is an image without objects.
    """
    labels: list[Label] = []
    rejected: list[Reject] = []
    for number, line in _lines(content):
        try:
            label = _parse(line)
            _require_area(label)
        except ValueError as error:
            rejected.append(Reject(number, str(error)))
        else:
            labels.append(label)
    return labels, rejected


def read_detections(path: str | Path) -> list[Label]:
    """Read the detections of one image: 16 columns, the last one the score. A box may be empty, not reversed.

    Raises:
        DataError: the file cannot be read, or `file:line: reason` for a line that is not a detection.
    """
    detections = []
    for number, line in _lines(_content(path)):
        try:
            detection = _parse(line)
            if detection.score is None:
                raise ValueError("15 columns, but a detection has 16: the last one is its score")
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        detections.append(detection)
    return detections


def write_detections(path: str | Path, rows: Iterable[tuple[str, Sequence[float], float]]) -> None:
    """Write rows of (class name, box x1 y1 x2 y2 in pixels, score) as 16 columns, three decimals as TLT writes them.

    No rows give an empty file. White space in a class name becomes `_` (see `file_name`).
    """
    lines = []
    for name, (x1, y1, x2, y2), score in rows:
        zeros = " ".join(["0.00"] * 7)
        lines.append(
            f"{file_name(name)} 0.00 0 0.00 {x1:.3f} {y1:.3f} {x2:.3f} {y2:.3f} {zeros} {score:.3f}\n"
        )
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def file_name(name: str) -> str:
    """Give the class name as it stands in a label file, where white space separates columns."""
    return "_".join(name.split())


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the label file {path}: {error.strerror or error}") from error


def _lines(content: bytes) -> list[tuple[int, bytes]]:
    """Number the lines that are not blank, from 1."""
    content = content.removeprefix(b"\xef\xbb\xbf")  # editors on Windows begin a file with this mark
    return [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]


def _parse(line: bytes) -> Label:
    """Parse one line; ValueError says what is wrong with it."""
    try:
        columns = line.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    if len(columns) not in (15, 16):
        raise ValueError(f"{len(columns)} columns, but a label has 15, or 16 with a score")
    truncation, occlusion, alpha, x1, y1, x2, y2, *rest = map(_number, COLUMNS[1:], columns[1:])
    if occlusion != int(occlusion):
        raise ValueError(f"occlusion is {columns[2]!r}, not a whole number")
    if x2 < x1 or y2 < y1:
        raise ValueError(f"the box {_text(x1, y1, x2, y2)} is reversed: it needs x1 < x2 and y1 < y2")
    return Label(
        columns[0],
        truncation,
        int(occlusion),
        alpha,
        box=(x1, y1, x2, y2),
        dimensions=(rest[0], rest[1], rest[2]),
        location=(rest[3], rest[4], rest[5]),
        rotation_y=rest[6],
        score=rest[7] if len(rest) == 8 else None,
    )


def _number(column: str, text: str) -> float:
    try:
        value = float(text.replace("_", "?"))  # Python would read 1_0 as ten
    except ValueError as error:
        raise ValueError(f"{column} is {text!r}, not a number") from error
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{column} is {text!r}, not a finite number of a sensible size")
    return value


def _require_area(label: Label) -> None:
    x1, y1, x2, y2 = label.box
    if x1 == x2 or y1 == y2:
        raise ValueError(f"the box {_text(*label.box)} has no area: it needs x1 < x2 and y1 < y2")


def _text(*box: float) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
