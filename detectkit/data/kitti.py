"""KITTI folders and label files: one object a line, 15 columns for a label and 16 for a detection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit.data import readers
from detectkit.data.readers import Label as Label  # what a line of a label file is
from detectkit.data.readers import LabelFile, LabelledImage, Source, box_text
from detectkit.errors import DataError
from detectkit.files import atomic_write
from detectkit.spec import DatasetExportConfig, KITTIConfig

COLUMNS = (
    *("class", "truncation", "occlusion", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
YOLO = "a line of YOLO, with the number of the class and a box or outline in shares of the image: yolo_config reads such files"
FULL_TURN = 2 * math.pi + 0.01  # radians


class RejectedLine(NamedTuple):
    """A line that is not a usable label. Lines count from 1."""

    line: int
    reason: str


def read_labels(path: str | Path, *, strict: bool = False) -> tuple[list[Label], list[RejectedLine]]:
    """Read the labels of one image and the lines that `parse_labels` rejects.

    Raises:
        DataError: the file cannot be read; with `strict`, the first rejected line, as `file:line: reason`.
    """
    labels, rejected = parse_labels(_content(path))
    if strict and rejected:
        raise DataError(f"{path}:{rejected[0].line}: {rejected[0].reason}")
    return labels, rejected


def parse_labels(content: bytes) -> tuple[list[Label], list[RejectedLine]]:
    """Parse the content of a label file; blank lines are ignored, boxes are neither clipped nor rounded.

    A line is rejected when it has not 15 or 16 columns, a column is not the number it should be or out of its range (as
    those of a line are that a blank in the class name has moved), or the box has no area (x2 <= x1 or y2 <= y1). No
    content is an image without objects.
    """
    labels: list[Label] = []
    rejected: list[RejectedLine] = []
    for number, line in _lines(content):
        try:
            label = _parse(line)
            _require_area(label)
        except ValueError as error:
            rejected.append(RejectedLine(number, str(error)))
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


# Folders


def read_folder(config: DatasetExportConfig) -> Source:
    """Read the images and labels of a KITTI folder, a fold for each partition of sequences, or one of all images.

    Raises:
        DataError: a folder or the sequence file is missing or unusable, or there are no images or no label files.
    """
    source = config.kitti_config
    pairs = _pairs(config)
    rejected: list[readers.Reject] = []
    if source.partition_mode == "sequence":
        sequences = _sequences(source, pairs)
        found = pairs.read(sorted(name for names in sequences.values() for name in names), rejected)
        folds = _deal(sequences, found, num_folds=max(source.num_partitions, 1))
    else:
        found = pairs.read_all(rejected)
        folds = [list(found.values())]
    shards = [source.num_shards] * len(folds)
    extension = pairs.extension(found.values())
    return Source(folds, rejected, pairs.image_root, extension, shards, source.num_partitions > 0)


def _pairs(config: DatasetExportConfig) -> readers.FilePairs:
    source = config.kitti_config
    root = Path(source.root_directory_path).expanduser()
    image_root = readers.find_image_root(config.image_directory_path, root, [source.image_dir_name])
    return readers.find_pairs(
        readers.ImageFolder(image_root, source.image_dir_name, source.image_extension),
        readers.LabelFolder(root / source.label_dir_name, ".txt", "label_dir_name"),
        _label_file,
    )


def _label_file(path: Path) -> LabelFile:
    content = _content(path)
    labels, rejected = parse_labels(content)
    left_out = {line for line, _ in rejected}
    lines = tuple(line for line, _ in _lines(content) if line not in left_out)
    return LabelFile(labels, [(line, reason) for line, reason in rejected], lines=lines)


def _sequences(source: KITTIConfig, pairs: readers.FilePairs) -> dict[str, list[str]]:
    """Read the JSON file of sequence name -> frame names; a frame may be in one sequence only."""
    path = Path(source.root_directory_path).expanduser() / source.kitti_sequence_to_frames_file
    sequences = readers.read_json(path, "kitti_sequence_to_frames_file")
    if not isinstance(sequences, dict) or not all(isinstance(names, list) for names in sequences.values()):
        raise DataError(f"{path}: expected one JSON object of sequence name to list of frame names")
    sequences = {
        str(sequence): [pairs.listed(str(name)) for name in names] for sequence, names in sequences.items()
    }
    counts = Counter(name for names in sequences.values() for name in names)
    for name, count in counts.most_common(1):
        if count > 1:
            raise DataError(f"{path}: the frame {name} is listed {count} times; it would be in two folds")
    return sequences


def _deal(
    sequences: Mapping[str, list[str]], found: Mapping[str, LabelledImage], *, num_folds: int
) -> list[list[LabelledImage]]:
    """Deal sequences, longest first, to the folds in turn, and count the folds from the last, as TLT does."""
    ordered = sorted(sequences, key=lambda sequence: (-len(sequences[sequence]), sequence))
    folds: list[list[LabelledImage]] = [[] for _ in range(num_folds)]
    for turn, sequence in enumerate(ordered):
        folds[turn % num_folds].extend(found[name] for name in sequences[sequence] if name in found)
    return folds[::-1]


# Lines


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
        kind = other_format(columns)
        hint = f": {kind}" if kind else ""
        count = "1 column" if len(columns) == 1 else f"{len(columns)} columns"
        raise ValueError(f"{count}, but a label has 15, or 16 with a score{hint}")
    if len(columns) == 16 and not readers.is_number(columns[1]):
        raise ValueError(f"truncation is {columns[1]!r}, not a number: {_blank(columns)}")
    values = list(map(readers.number, COLUMNS[1:], columns[1:]))
    truncation, occlusion, alpha, x1, y1, x2, y2, *rest = values
    _require_ranges(truncation, occlusion, alpha, columns=columns)
    _require_in_place(values[1:], columns)
    readers.require_visible(columns[0])
    if x2 < x1 or y2 < y1:
        needed = "it needs x1 < x2 and y1 < y2, not x, y, width and height"
        raise ValueError(f"the box {box_text(x1, y1, x2, y2)} is reversed: {needed}")
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


def _require_ranges(truncation: float, occlusion: float, alpha: float, *, columns: list[str]) -> None:
    """Raise ValueError for values that KITTI does not know: the columns of such a line are others."""
    fits = _fit(truncation, occlusion, alpha)
    if all(fits):
        return
    known = ("from 0 to 1, or -1", "0, 1, 2, 3 or -1", "an angle from -pi to pi, or -10")
    for name, text, words, is_known in zip(COLUMNS[1:], columns[1:], known, fits):
        if not is_known:
            raise ValueError(f"{name} is {text!r}, not {words}: {_blank(columns)}")


def _fit(truncation: float, occlusion: float, alpha: float) -> tuple[bool, bool, bool]:
    """Whether values are those that KITTI knows: unknown are -1, -1 and -10, as in lines of DontCare.

    Angles of other tools may count from 0 to 2 pi, or up to it to either side.
    """
    return (
        truncation == -1 or 0 <= truncation <= 1,
        occlusion in (-1, 0, 1, 2, 3),
        alpha == -10 or abs(alpha) <= FULL_TURN,
    )


def _require_in_place(values: Sequence[float], columns: list[str]) -> None:
    """Raise ValueError for a line that is a label from the third column on: the second one belongs to the class name.

    No label is one by accident: its box would end left of as many pixels as the object is metres high.
    """
    x1, y1, x2, y2 = values[3:7]
    if y2 > 0 and y1 < y2 and x1 < x2 and all(_fit(*values[:3])):
        raise ValueError(f"a label but for its second column, {columns[1]!r}: {_blank(columns)}")


def _blank(columns: list[str]) -> str:
    """What is said of a line whose columns are not those that they should be."""
    if _is_yolo(columns):  # an outline of seven points has as many
        return YOLO
    if len(columns) < 16:
        return "columns are missing or moved"
    return f"columns are moved, as by a blank in the class name (write {'_'.join(columns[:2])!r:.60})"


def other_format(columns: list[str]) -> str:
    """What a line may be that is no label of KITTI; empty: that cannot be told."""
    text = " ".join(columns)
    count, numeric = len(columns), [readers.is_number(column) for column in columns]
    if text[:1] in ("<", "{", "["):
        return "XML, not text" if text[0] == "<" else "JSON, not text"
    if text.count(",") >= 4 or text.count(";") >= 4:
        return "columns are separated by blanks, not by commas as in CSV"
    if _is_yolo(columns):
        return YOLO
    if count in (5, 6) and all(numeric[1:5]):
        return "a class and a box alone; the others of the 15 columns are 0 where they are not known"
    if count == 8 and all(numeric[1:]):
        return "the seven columns of 3D are missing; write 0 for each"
    if count in (17, 18) and all(map(str.isdecimal, columns[:1])) and not numeric[2]:
        return (
            "a line of KITTI's tracking, with frame and track before the class: a label file is of one image"
        )
    if count in (9, 10) and all(numeric[:8]) and not numeric[8]:
        return "a line of DOTA, with the four corners of a box before the class"
    words = max((place + 1 for place in range(count) if not numeric[place]), default=0)
    if words > 1 and count - words in (14, 15):
        return f"a blank in the class name makes more of them (write {'_'.join(columns[:words])!r:.60})"
    return ""


def _is_yolo(columns: list[str]) -> bool:
    return (
        len(columns) >= 5
        and columns[0].isdecimal()
        and all(
            readers.is_number(column) and 1 - readers.FURTHEST <= float(column) <= readers.FURTHEST
            for column in columns[1:]
        )
    )


def _require_area(label: Label) -> None:
    x1, y1, x2, y2 = label.box
    if x1 == x2 or y1 == y2:
        raise ValueError(f"the box {box_text(*label.box)} has no area: it needs x1 < x2 and y1 < y2")
