"""Pascal VOC folders: an XML file for each image, and lists of image names for each set."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from detectkit.data import readers
from detectkit.data.readers import Label, LabelFile, Source, box_text
from detectkit.errors import DataError
from detectkit.spec import DatasetExportConfig

MEMBERSHIP = re.compile(
    r"(.*\S)\s+(?:-1|0|1)"
)  # a line of a class's list: name, and whether the class is there
PIECE = 64  # bytes of XML that are parsed at a time: too few for a declaration of entities and their use


def read_folder(config: DatasetExportConfig) -> Source:
    """Read the images and XML files of a VOC folder: a fold for each image set, or one of all images.

    Raises:
        DataError: a folder or list is missing or unusable, there are no images or XML files, or an image is in two sets.
    """
    source = config.voc_config
    root = Path(source.root_directory_path).expanduser()
    image_root = readers.find_image_root(config.image_directory_path, root, [source.image_dir_name])
    pairs = readers.find_pairs(
        readers.ImageFolder(image_root, source.image_dir_name, source.image_extension),
        readers.LabelFolder(root / source.annotation_dir_name, ".xml", "annotation_dir_name"),
        partial(read_labels, difficult_label=source.difficult_label),
    )
    rejected: list[readers.Reject] = []
    if source.image_set_files:
        sets = [read_list(root / file) for file in source.image_set_files]
        listed = [list(dict.fromkeys(map(pairs.listed, names))) for names in sets]
        folds = [list(pairs.read(names, rejected).values()) for names in listed]
        readers.require_disjoint(folds)
    else:
        folds = [list(pairs.read_all(rejected).values())]
    shards = [source.num_shards] * len(folds)
    extension = pairs.extension(frame for fold in folds for frame in fold)
    return Source(folds, rejected, image_root, extension, shards)


def read_labels(path: Path, *, difficult_label: str = "") -> LabelFile:
    """Read the objects of one XML file.

    VOC counts pixels from 1 and includes the last one: xmin, ymin, xmax, ymax are x1 = xmin - 1, y1 = ymin - 1, x2 =
    xmax, y2 = ymax. An object without bndbox but with a polygon has the box around that. Parts of objects are not read;
    `truncated` and `occluded` are 0 or 1.

    Args:
        difficult_label: the name of difficult objects; empty: their own.

    Raises:
        DataError: the file cannot be read, is not well-formed, declares a document type, is no annotation, or has
            objects in other elements.
    """
    try:
        tree = _parse(path.read_bytes())
        size = _size(tree)
    except OSError as error:
        raise DataError(f"cannot read the label file {path}: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"not a usable XML file: {error}") from error
    if tree.tag != "annotation":
        raise DataError(f"not an annotation of Pascal VOC: it begins with <{tree.tag}>")
    _require_at_top(tree)
    labels: list[Label] = []
    rejected: list[tuple[int | None, str]] = []
    for number, element in enumerate(tree.findall("object"), start=1):
        try:
            labels.append(_label(element, difficult_label))
        except ValueError as error:
            rejected.append((None, f"object {number}: {error}"))
    return LabelFile(labels, rejected, size, tree.findtext("filename", "").strip())


def _require_at_top(tree: ElementTree.Element) -> None:
    """Refuse objects in other elements: without them the image would pass for one that shows nothing."""
    count = sum(1 for _ in tree.iter("object"))
    found = sum(1 for element in tree.findall("object") for _ in element.iter("object"))
    if found < count:
        raise DataError(f"{count - found} of its {count} objects are inside other elements than <annotation>")


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of a file that declares nothing: declared entities can grow without bound, or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which is refused")


def _parse(content: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder())
    for start in range(0, len(content), PIECE):
        parser.feed(content[start : start + PIECE])
    tree: ElementTree.Element = parser.close()
    return tree


def _size(tree: ElementTree.Element) -> tuple[float, float]:
    """Give width and height of the image as the file states them; 0 where it does not."""
    width, height = (_number(tree, f"size/{side}") for side in ("width", "height"))
    return (readers.number("width", width or "0"), readers.number("height", height or "0"))


def _label(element: ElementTree.Element, difficult_label: str) -> Label:
    """Read one object; ValueError says what is wrong with it."""
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("it has no name")
    readers.require_visible(name)
    if element.find(".//object") is not None:
        raise ValueError("another object is inside it")
    is_renamed = bool(difficult_label) and _is_set(element, "difficult")
    return Label(
        difficult_label if is_renamed else name,
        truncation=float(_is_set(element, "truncated")),
        occlusion=int(_is_set(element, "occluded")),
        alpha=0.0,
        box=_box(element),
    )


def _is_set(element: ElementTree.Element, tag: str) -> bool:
    """Whether a mark is 1; `Unspecified`, nothing and no mark at all are 0."""
    text = element.findtext(tag, "").strip().lower()
    return text == "true" or (text.replace(".", "").isdecimal() and float(text) != 0)


def _box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    bounds, polygon = element.find("bndbox"), element.find("polygon")
    if bounds is not None:
        sides = ("xmin", "ymin", "xmax", "ymax")
        xmin, ymin, xmax, ymax = (readers.number(side, _number(bounds, side)) for side in sides)
    elif polygon is not None:
        xmin, ymin, xmax, ymax = _around(polygon)
    else:
        raise ValueError("it has no bndbox")
    if xmax <= xmin - 1 or ymax <= ymin - 1:
        reason = "has no area: xmax and ymax are too small, or width and height"
        raise ValueError(f"the box {box_text(xmin, ymin, xmax, ymax)} {reason}")
    return (xmin - 1, ymin - 1, xmax, ymax)


def _around(polygon: ElementTree.Element) -> tuple[float, float, float, float]:
    """The pixels that a polygon reaches: its points are x1, y1, x2, y2 and so on, or pt with x and y."""
    values: dict[str, list[float]] = {"x": [], "y": []}
    for corner in polygon.iter():
        axis = corner.tag[:1]
        if axis in values and not corner.tag[1:].strip("0123456789"):
            values[axis].append(readers.number(f"{corner.tag} of its polygon", _number(corner, ".")))
    if len(values["x"]) < 2 or len(values["x"]) != len(values["y"]):
        raise ValueError("it has no bndbox, and its polygon has no points of x and y")
    return min(values["x"]), min(values["y"]), max(values["x"]), max(values["y"])


def _number(parent: ElementTree.Element, tag: str) -> str:
    """The text of a number; some tools write it in quotes."""
    return parent.findtext(tag, "").strip().strip("\"'").strip()


def read_list(path: Path) -> list[str]:
    """Read the image names of a set, or of a class's list (name and -1, 0 or 1), which names the same images.

    Raises:
        DataError: it cannot be read, or names no image.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read image_set_files {path}: {reason}") from error
    if not lines:
        raise DataError(f"image_set_files {path} names no image")
    pairs = [MEMBERSHIP.fullmatch(line) for line in lines]
    return list(dict.fromkeys(pair[1] for pair in pairs if pair) if all(pairs) else dict.fromkeys(lines))
