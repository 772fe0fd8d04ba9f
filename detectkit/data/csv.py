"""Tables of boxes, a box a row: those of TensorFlow's tutorials, RetinaNet, AutoML, Open Images, VIA, and alike."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectkit.console import log, progress
from detectkit.data import readers
from detectkit.data.listed import ListedImages
from detectkit.data.readers import Label, LabelFile, LabelledImage, Reject, Source, box_text
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig

Box = tuple[float, float, float, float]

DELIMITERS = ",;\t|"
LONGEST_CELL = 1 << 24  # characters
NAMED = 5  # sets of rows
EMPTY = {"", "nan", "na", "n/a", "null", "none"}  # cells of rows that have no box

# Names of columns, without all but letters and digits: the first that a table has is taken.
FILE = tuple(
    "filename file imagefilename imagename imagefile imagepath imgpath filepath path image img imageid imgid frame name".split()
)
CLASS = tuple(
    "class classname label labelname category categoryname objectclass object type name classid labelid categoryid".split()
)
WIDTH = ("imagewidth", "imgwidth", "imwidth", "width")
HEIGHT = ("imageheight", "imgheight", "imheight", "height")
LEFT = ("xmin", "x1", "left", "xtl", "minx", "bboxxmin", "bboxx1", "bboxleft", "boxxmin", "boxx1")
TOP = ("ymin", "y1", "top", "ytl", "miny", "bboxymin", "bboxy1", "bboxtop", "boxymin", "boxy1")
RIGHT = ("xmax", "x2", "right", "xbr", "maxx", "bboxxmax", "bboxx2", "bboxright", "boxxmax", "boxx2")
BOTTOM = ("ymax", "y2", "bottom", "ybr", "maxy", "bboxymax", "bboxy2", "bboxbottom", "boxymax", "boxy2")
X = ("x", "bboxx", "boxx", "colx", *LEFT)
Y = ("y", "bboxy", "boxy", "rowy", *TOP)
CENTRE_X = ("xcenter", "centerx", "xcentre", "centrex", "cx", "xc")
CENTRE_Y = ("ycenter", "centery", "ycentre", "centrey", "cy", "yc")
BOX_WIDTH = ("w", "bboxwidth", "bboxw", "boxwidth", "boxw", "bw", "width")
BOX_HEIGHT = ("h", "bboxheight", "bboxh", "boxheight", "boxh", "bh", "height")
KINDS = (  # of a box, the likeliest first, and the columns of its numbers
    ("corners", (LEFT, TOP, RIGHT, BOTTOM)),
    ("corners", (("x0",), ("y0",), ("x1",), ("y1",))),
    ("size", (X, Y, BOX_WIDTH, BOX_HEIGHT)),
    ("centre", (CENTRE_X, CENTRE_Y, BOX_WIDTH, BOX_HEIGHT)),
)
SIDES = {
    "corners": ("xmin", "ymin", "xmax", "ymax"),
    "size": ("x", "y", "width", "height"),
    "centre": ("x of the centre", "y of the centre", "width", "height"),
}
LIST = ("bbox", "boundingbox")  # x, y, width and height in one cell, as in COCO: [x, y, w, h]
SHAPE, ATTRIBUTES = ("regionshapeattributes",), ("regionattributes",)  # of VIA, in JSON
SET = ("split", "set", "subset", "mluse", "partition", "dataset")
SETS = {"train", "training", "validation", "test", "unassigned"}  # in the first column of AutoML's tables


class Columns(NamedTuple):
    """Which column of a table is what, counted from 0."""

    file: int
    label: int
    box: tuple[
        int, ...
    ]  # of `kind`; for "list" the one column with all four, for "shape" that with a VIA region
    kind: str  # "corners", "size", "centre", "list" or "shape"
    size: tuple[int, ...] = ()  # width and height of the image
    part: int | None = None  # the set that a row is for


class BoxTable(NamedTuple):
    """The rows of a table by the file name that they state; boxes in shares where `in_shares`."""

    path: Path
    images: dict[str, LabelFile]
    rejected: list[Reject]  # rows of no image
    in_shares: bool
    parts: Counter[str]  # rows by the set that a column deals them to; it is not used


def read_tables(config: DatasetExportConfig) -> Source:
    """Read the images that tables name: a fold for each table.

    Images that lie beside named ones and are in no row are left out, as those without a label file are in KITTI.

    Raises:
        DataError: a table cannot be read or has no columns for file, class and box, the image folder is missing, or an
            image is in two tables.
    """
    source = config.csv_config
    root = Path(source.root_directory_path).expanduser()
    image_root = readers.find_image_root(config.image_directory_path, root, [source.image_dir_name])
    tables = [read_table(root / name) for name in source.csv_files]
    below = source.image_dir_name
    files = readers.list_files(image_root / below, "image_dir_name")
    images = ListedImages(image_root, (os.path.join(below, file) for file in files))
    rejected = [reject for table in tables for reject in table.rejected]
    folds = [_read_fold(table, images, below, rejected) for table in tables]
    folds = [readers.of_different_names(fold, rejected) for fold in folds]
    readers.require_disjoint(folds)
    _tell_of_parts(tables)
    rejected.extend(_unnamed(images, [frame.image for fold in folds for frame in fold], rejected))
    extension = readers.common_extension(folds, embedded=config.embed_images)
    return Source(folds, rejected, image_root, extension, [source.num_shards] * len(folds))


def _read_fold(
    table: BoxTable, images: ListedImages, folder: str, rejected: list[Reject]
) -> list[LabelledImage]:
    """Read the images of a table in its order; adds what is left out to `rejected`."""
    own = os.path.relpath(table.path.parent, images.root).replace(os.sep, "/")
    places = (folder,) if folder else (own, "")
    found: dict[str, LabelFile] = {}
    for stated, content in table.images.items():
        try:
            file = images.find(stated, places)
        except ValueError as error:
            rejected.append(Reject(str(images.root / places[0] / stated), None, str(error)))
            continue
        if file in found:  # two spellings of one path
            found[file].labels.extend(content.labels)
            found[file].rejected.extend(content.rejected)
        else:
            found[file] = content
    images.tell(str(table.path))
    images.moved.clear()
    frames = []
    for file, content in progress(found.items(), total=len(found), label=f"reading {table.path.name}"):
        path = images.root / file
        try:
            frames.append(readers.labelled("", file, path, content._replace(in_shares=table.in_shares)))
        except ValueError as error:
            rejected.append(Reject(str(path), None, str(error)))
            continue
        rejected.extend(Reject(str(table.path), line, reason, True) for line, reason in content.rejected)
    return frames


def _tell_of_parts(tables: Iterable[BoxTable]) -> None:
    """Warn of tables whose rows are for several sets."""
    for table in tables:
        if len(table.parts) > 1:
            counts = ", ".join(f"{name:.20} {count}" for name, count in table.parts.most_common(NAMED))
            log.warning(
                "%s deals its rows to sets (%s), which is not used: write a table for each into csv_files",
                *(table.path, counts),
            )


def _unnamed(images: ListedImages, named: Iterable[Path], rejected: Iterable[Reject]) -> list[Reject]:
    """The images that no row names, in the folders of those that one does."""
    used = set(named)
    folders = {path.parent for path in used}
    used |= {Path(reject.file) for reject in rejected}
    others = (images.root / file for file in sorted(images.files))
    reason = "no row of a table names the image"
    return [Reject(str(path), None, reason) for path in others if path.parent in folders and path not in used]


# Tables


def read_table(path: Path, *, lines: float = math.inf) -> BoxTable:
    """Read a table with commas, semicolons, tabs or bars between its columns, with or without a row of their names.

    Boxes are x1, y1, x2, y2 in pixels or in shares of the image. A row without a box is an image without objects. With
    semicolons, numbers may have a decimal comma. A row is rejected that names no class, has a column too many, numbers that
    are none, or a box without an area, and one that says another size of the image than an earlier one.

    Args:
        lines: those behind are not read.

    Raises:
        DataError: the file cannot be read, or has no columns for file name, class and box.
    """
    text = readers.read_text(path, "csv_files")
    start, delimiter, columns, width = _layout(path, text)
    images: dict[str, LabelFile] = {}
    rejected: list[Reject] = []
    parts: Counter[str] = Counter()
    greatest = 0.0
    for line, row in _rows(path, text, delimiter):
        if line > lines:
            break
        if line <= start or not any(row):
            continue
        try:
            cells = _cells(row, width, delimiter)
            stated = _stated(cells, columns)
            if columns.part is not None:
                parts[cells[columns.part]] += 1
        except ValueError as error:
            rejected.append(Reject(str(path), line, str(error), True))
            continue
        try:
            images[stated] = content = _of_size(images.get(stated), _size(cells, columns, delimiter))
            if found := _label(cells, columns, delimiter):
                content.labels.append(found[0])
                greatest = max(greatest, *map(abs, found[1]))
        except ValueError as error:
            images.setdefault(stated, LabelFile([], [])).rejected.append((line, str(error)))
    if not images and not rejected:
        raise DataError(f"csv_files {path} has no rows but that of the column names")
    return BoxTable(path, images, rejected, in_shares=0 < greatest <= readers.FURTHEST, parts=parts)


def _rows(path: Path, text: str, delimiter: str, *, strict: bool = True) -> Iterable[tuple[int, list[str]]]:
    """The rows of a table, with the line where each ends; a quote that does not end would take in the rows behind it."""
    usual = csv.field_size_limit(LONGEST_CELL)  # of the whole process
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict
    )
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a table ({error})") from error
    finally:
        csv.field_size_limit(usual)


def _layout(path: Path, text: str) -> tuple[int, str, Columns, int]:
    """The last line before the boxes, what separates columns, which is what, and how many there are."""
    first: list[str] = []
    for delimiter in DELIMITERS:
        for line, row in _rows(path, text, delimiter, strict=False):
            if not any(row) or re.fullmatch(r"sep=.?", row[0].strip(), re.IGNORECASE):  # for spreadsheets
                continue
            if columns := _named(row):
                return line, delimiter, columns, len(row)
            if columns := _unheaded([cell.strip() for cell in row], delimiter):
                return line - 1, delimiter, columns, len(row)
            first = max(first, row, key=len)
            if not row[0].startswith("#"):  # a comment of VIA
                break
    if not first:
        raise DataError(f"csv_files {path} is empty")
    has = ", ".join(" ".join(cell.split()) or "(nothing)" for cell in first)
    raise DataError(
        f"csv_files {path} needs columns for the file name, the class and the box (filename, class, xmin, ymin, xmax, ymax);"
        f" its first row is: {has:.200}"
    )


def _named(row: Sequence[str]) -> Columns | None:
    """The columns of a row of their names; None: it is none."""
    names = [re.sub(r"[\W_]", "", cell).lower() for cell in row]
    label, file = _first(names, CLASS), _first(names, FILE)
    shape, attributes = _first(names, SHAPE), _first(names, ATTRIBUTES)
    if file is not None and shape is not None and attributes is not None:
        return Columns(file, attributes, (shape,), "shape")
    if file is None or label is None or file == label:
        return None
    size = [_first(names, WIDTH), _first(names, HEIGHT)]
    for kind, sides in KINDS:
        box = [_first(names, side) for side in sides]
        chosen = [place for place in box if place is not None]
        if len(set(chosen)) == 4:
            own = [place for place in size if place is not None and place not in chosen]
            return Columns(
                file, label, tuple(chosen), kind, tuple(own) if len(own) == 2 else (), _first(names, SET)
            )
    place = _first(names, LIST)
    if place is None:
        return None
    own = [side for side in size if side is not None]
    return Columns(file, label, (place,), "list", tuple(own) if len(own) == 2 else (), _first(names, SET))


def _first(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _unheaded(row: Sequence[str], delimiter: str) -> Columns | None:
    """The columns of a table without a row of their names, told by where numbers are; None: it cannot be told."""
    kinds = "".join(
        "-" if cell.lower() in EMPTY else "n" if _is_number(cell, delimiter) else "t" for cell in row
    )
    if re.fullmatch("tnnnn[nt]|t----[-nt]", kinds):  # RetinaNet
        return Columns(0, 5, (1, 2, 3, 4), "corners")
    if re.fullmatch("tt[nt](nn--nn--|n{8})|tt-{9}", kinds) and row[0].lower() in SETS:  # AutoML
        return Columns(1, 2, (3, 4, 7, 8), "corners", part=0)
    if re.fullmatch("t[nt](nn--nn--|n{8})", kinds):
        return Columns(0, 1, (2, 3, 6, 7), "corners")
    if re.fullmatch("tnntnnnn", kinds):  # TensorFlow
        return Columns(0, 3, (4, 5, 6, 7), "corners", (1, 2))
    if re.fullmatch("tnnnntnn", kinds):  # makesense.ai
        return Columns(5, 0, (1, 2, 3, 4), "size", (6, 7))
    return None


def _is_number(text: str, delimiter: str) -> bool:
    try:
        _number("", text, delimiter)
    except ValueError:
        return False
    return True


# Rows


def _cells(row: Sequence[str], width: int, delimiter: str) -> list[str]:
    """The cells of a row that has all columns; those that it lacks at its end are empty."""
    if len(row) > width and any(row[width:]):
        raise ValueError(
            f"{len(row)} columns, but the table has {width}: quote texts with {delimiter!r} in them"
        )
    return [cell.strip() for cell in row] + [""] * (width - len(row))


def _stated(cells: Sequence[str], columns: Columns) -> str:
    if not cells[columns.file]:
        raise ValueError("the row names no image file")
    return cells[columns.file]


def _of_size(content: LabelFile | None, size: tuple[float, float]) -> LabelFile:
    """What is known of an image, with the size that a further row states."""
    if content is None or not any(content.size):
        return LabelFile(content.labels, content.rejected, size) if content else LabelFile([], [], size)
    if any(size) and size != content.size:
        others = f"and {box_text(*content.size)} in an earlier row"
        raise ValueError(f"the image is {box_text(*size)} pixels here, {others}")
    return content


def _label(cells: Sequence[str], columns: Columns, delimiter: str) -> tuple[Label, Sequence[float]] | None:
    """Give the object of a row, and the numbers that it has; None: it has no box. ValueError says what is wrong."""
    if columns.kind == "shape":
        shape = _json(cells[columns.box[0]], "region_shape_attributes")
        if not shape:
            return None
        name, box = _class(_json(cells[columns.label], "region_attributes")), _around(shape)
        values: Sequence[float] = box
    else:
        texts = [cells[place] for place in columns.box]
        if columns.kind == "list":
            texts = re.split(r"[\s,;]+", texts[0].strip("[]() "))
        if all(text.lower() in EMPTY for text in texts):
            return None
        kind = "size" if columns.kind == "list" else columns.kind
        if len(texts) != 4:
            raise ValueError(f"bbox has {len(texts)} numbers, not x, y, width and height")
        values = [_number(side, text, delimiter) for side, text in zip(SIDES[kind], texts)]
        name, box = cells[columns.label], _box(kind, values)
    if not name or name.lower() in ("nan", "null"):
        raise ValueError("the box has no class")
    readers.require_visible(name)
    return Label(name, 0.0, 0, 0.0, box), values


def _box(kind: str, values: Sequence[float]) -> Box:
    a, b, c, d = values
    if kind == "corners":
        if c < a or d < b:
            needed = "it needs xmin < xmax and ymin < ymax, not x, y, width and height"
            raise ValueError(f"the box {box_text(*values)} is reversed: {needed}")
        box = (a, b, c, d)
    else:
        box = (a, b, a + c, b + d) if kind == "size" else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"the box {box_text(*values)}, {', '.join(SIDES[kind])}, has no area")
    return box


def _number(side: str, text: str, delimiter: str) -> float:
    if delimiter != "," and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    return readers.number(side, text)


def _size(cells: Sequence[str], columns: Columns, delimiter: str) -> tuple[float, float]:
    """Width and height of the image as the row states them; 0: it does not."""
    if not columns.size:
        return (0, 0)
    width, height = (cells[place] for place in columns.size)
    if width.lower() in EMPTY or height.lower() in EMPTY:
        return (0, 0)
    return _number("width", width, delimiter), _number("height", height, delimiter)


# Regions of VIA


def _json(text: str, column: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{column} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{column} is no JSON object")
    return content


def _around(shape: Mapping[str, Any]) -> Box:
    """The box around a region of VIA."""
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = (_value(shape, key) for key in ("x", "y", "width", "height"))
        return _box("size", (x, y, width, height))
    if kind in ("circle", "ellipse"):
        x, y = _value(shape, "cx"), _value(shape, "cy")
        rx, ry = (_value(shape, key if kind == "ellipse" else "r") for key in ("rx", "ry"))
        return _box("centre", (x, y, 2 * rx, 2 * ry))
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) > 1:
            xs = [_value({"x": value}, "x") for value in xs]
            ys = [_value({"y": value}, "y") for value in ys]
            return _box("corners", (min(xs), min(ys), max(xs), max(ys)))
    raise ValueError(f"a region of the kind {str(kind)!r:.40} has no box")


def _value(shape: Mapping[str, Any], key: str) -> float:
    value = shape.get(key)
    return readers.number(key, str(value) if isinstance(value, int | float | str) else "")


def _class(attributes: Mapping[str, Any]) -> str:
    """The class among the attributes of a region: the only one, or that which is called so; of a choice what is set."""
    by_name = {re.sub(r"[\W_]", "", key).lower(): value for key, value in attributes.items()}
    place = _first(list(by_name), CLASS)
    if place is None and len(by_name) > 1:
        raise ValueError(f"none of its attributes ({', '.join(map(repr, attributes)):.80}) is called class")
    value = list(by_name.values())[place or 0] if by_name else ""
    if isinstance(value, dict):
        chosen = [key for key, is_set in value.items() if is_set]
        value = chosen[0] if len(chosen) == 1 else ""
    return str(value).strip() if isinstance(value, str | int | float) else ""
