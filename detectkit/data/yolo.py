"""YOLO folders: a text file for each image, with class numbers and boxes in shares of the image, and a list of the classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from detectkit.console import log, progress
from detectkit.data import readers, sources
from detectkit.data.listed import ListedImages
from detectkit.data.readers import Label, LabelFile, LabelledImage, Reject, Source, box_text
from detectkit.errors import DataError
from detectkit.files import is_hidden
from detectkit.spec import DatasetExportConfig, YOLOConfig

SIDES = ("x", "y", "width", "height")
LARGEST_LIST = 1 << 20  # characters of a YAML file
SEEN = (0.0, 1.0, 2.0)  # of a keypoint: not labelled, hidden, visible


class ClassList(NamedTuple):
    """The names of the classes by number."""

    file: Path
    names: dict[int, str]  # as written; numbers may have holes
    keypoints: int = 0  # values of the keypoints that follow each box; 0: the file states none


def read_folder(config: DatasetExportConfig) -> Source:
    """Read the images and labels of a YOLO folder: a fold for each folder or list of images, or one of all.

    An image without a label file shows no object; how many there are is said.

    Raises:
        DataError: a folder or list is missing or unusable, there are no images, no label files or no class names, or an
            image is in two folds.
    """
    source = config.yolo_config
    root = Path(source.root_directory_path).expanduser()
    image_root = readers.find_image_root(config.image_directory_path, root, sources.yolo_folders(source))
    classes = find_classes(source)
    _tell_of_doubles(classes)
    labels = _LabelFiles(root, image_root, classes)
    rejected: list[Reject] = []
    folds = []
    for name in source.image_dir_names or [""]:
        is_list = sources.is_list(name)
        images = _listed(root / name, image_root, rejected) if is_list else _below(image_root, name)
        frames = labels.read("" if is_list else name, images, rejected)
        folds.append(readers.of_different_names(frames, rejected))
    labels.tell()
    if not any(map(sources.is_list, source.image_dir_names)):
        rejected.extend(labels.without_image())
    readers.require_disjoint(folds)
    extension = readers.common_extension(folds, embedded=config.embed_images)
    return Source(folds, rejected, image_root, extension, [source.num_shards] * len(folds))


def _tell_of_doubles(classes: ClassList) -> None:
    """Warn of names that several numbers have."""
    numbers: dict[str, list[int]] = {}
    for number, name in classes.names.items():
        numbers.setdefault(name, []).append(number)
    for name, same in numbers.items():
        if len(same) > 1:
            log.warning("%s: numbers %s are called %s, and become one class", classes.file, same, name)


def _below(image_root: Path, folder: str) -> list[str]:
    found = readers.find_images(image_root / folder, ".jpg", field="image_dir_names")
    return [file for same in found.values() for file in same]


def _listed(path: Path, image_root: Path, rejected: list[Reject]) -> list[str]:
    """The images that a text file names, a path a line: from the image root, from the file's folder, or of another machine."""
    lines = [line.strip().strip("\"'") for line in readers.read_text(path, "image_dir_names").splitlines()]
    if not any(lines):
        raise DataError(f"image_dir_names {path} names no image")
    images = ListedImages(image_root, readers.list_files(image_root, "image_dir_names"))
    own = os.path.relpath(path.parent, image_root).replace(os.sep, "/")
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                found[images.find(line, ("", own))] = None
        except ValueError as error:
            rejected.append(Reject(str(path), number, f"{error} ({line!r:.120})"))
    images.tell(str(path))
    return list(found)


# Label files


class _LabelFiles:
    """The label files of images, found in listings of the folders where they may be.

    Args:
        root: where folders of labels start.
        image_root: where folders of images start; labels may be there too.
    """

    def __init__(self, root: Path, image_root: Path, classes: ClassList):
        self.roots = list(dict.fromkeys((image_root, root)))
        self.classes = classes
        self.used: set[str] = set()
        self.images = 0
        self.unlabelled: list[Path] = []
        self.scored = 0  # lines with a column behind the box
        self._listings: dict[Path, dict[str, str]] = {}
        self._folders: dict[tuple[str, str], list[Path]] = {}

    def read(self, folder: str, images: Sequence[str], rejected: list[Reject]) -> list[LabelledImage]:
        """Read the images of a folder below the image root, which are paths below it, and their labels."""
        found = []
        for image in progress(images, total=len(images), label="reading labels"):
            path = self.roots[0] / folder / image
            file = place = self._find(folder, image)
            try:
                content = read_labels(file, self.classes) if file else LabelFile([], [])
                place = str(path)
                found.append(readers.labelled(folder, image, path, content, file))
            except (DataError, ValueError) as error:
                rejected.append(Reject(place, None, str(error)))
                continue
            self.images += 1
            self.scored += sum(label.score is not None for label in content.labels)
            rejected.extend(Reject(file, line, reason, True) for line, reason in content.rejected)
            if not file:
                self.unlabelled.append(path)
        return found

    def tell(self) -> None:
        """Say which images have no label file, and what of the lines is not used.

        Raises:
            DataError: no image has one.
        """
        if self.images and len(self.unlabelled) == self.images:
            places = ", ".join(
                dict.fromkeys(str(place) for found in self._folders.values() for place in found)
            )
            raise DataError(f"not one of {self.images} images has a label file (looked for in {places:.300})")
        if self.unlabelled:
            log.warning(
                "%d of %d images have no label file and are taken for images that show no object (first %s)",
                *(len(self.unlabelled), self.images, self.unlabelled[0]),
            )
        if self.scored:
            log.warning(
                "%d labels have a column behind the box (a score or track), which is not used", self.scored
            )

    def without_image(self) -> Iterator[Reject]:
        """The label files that no image has, in the folders that were searched; other texts are passed over."""
        for folder, listing in self._listings.items():
            files = [os.path.join(folder, name) for name in listing.values()]
            used = self.used.intersection(files)
            for file in sorted(set(files) - used) if used else ():
                if _begins_with_label(file):
                    yield Reject(file, None, "the image is missing")

    def _find(self, folder: str, image: str) -> str:
        """The label file of an image of a folder; empty: there is none."""
        below, name = os.path.split(image)
        stem = readers.composed(os.path.splitext(name)[0])
        places = self._folders.get((folder, below))
        if places is None:
            places = [place for root in self.roots for place in sources.label_folders(root / folder, below)]
            self._folders[folder, below] = places
        for place in places:
            if file := self._listing(place).get(stem):
                path = os.path.join(place, file)
                self.used.add(path)
                return path
        return ""

    def _listing(self, folder: Path) -> dict[str, str]:
        """The text files of a folder by name; none where there is no such folder."""
        listing = self._listings.get(folder)
        if listing is None:
            try:
                names = sorted(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError as error:
                raise DataError(f"cannot list {folder}: {error.strerror or error}") from error
            texts = [name for name in names if name.lower().endswith(".txt") and not is_hidden(name)]
            listing = {readers.composed(name[: -len(".txt")]): name for name in texts}
            self._listings[folder] = listing
        return listing


def _begins_with_label(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            first = file.readline(1 << 16)
        _class_number(first.decode("utf-8").split()[0])
        return len(first.split()) > len(SIDES)
    except (OSError, ValueError, IndexError):
        return False


def read_labels(path: str | Path, classes: ClassList) -> LabelFile:
    """Read the labels of one image, with boxes in shares of it; see `parse_labels`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return parse_labels(Path(path).read_bytes(), classes)
    except OSError as error:
        raise DataError(f"cannot read the label file {path}: {error.strerror or error}") from error


def parse_labels(content: bytes, classes: ClassList) -> LabelFile:
    """Parse the content of a label file; blank lines are ignored, no content is an image without objects.

    A line is the number of the class, counted from 0, then the centre, width and height of the box in shares of the
    image, and perhaps a score. The box of an outline (x1 y1 x2 y2 …, three corners or more) is that around it; keypoints
    behind a box are passed over. Boxes are not clipped. A line is rejected when its class is not in the list, when it has
    pixels, or when the box has no area.
    """
    labels: list[Label] = []
    lines: list[int] = []
    rejected: list[tuple[int | None, str]] = []
    content = content.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            if columns := line.decode("utf-8").split():
                labels.append(_parse(columns, classes))
                lines.append(number)
        except UnicodeDecodeError:
            rejected.append((number, "not UTF-8 text"))
        except ValueError as error:
            rejected.append((number, str(error)))
    return LabelFile(labels, rejected, in_shares=True, lines=tuple(lines))


def _parse(columns: list[str], classes: ClassList) -> Label:
    """Parse the columns of a line; ValueError says what is wrong with it."""
    if len(columns) <= len(SIDES):
        kind = ", separated by blanks, not by commas" if columns[0].count(",") >= len(SIDES) else ""
        raise ValueError(
            f"{len(columns)} columns, but a label has 5: class number, x, y, width and height{kind}"
        )
    name = _class_name(columns, classes)
    values = [readers.number(f"column {place}", text) for place, text in enumerate(columns[1:], start=2)]
    box, rest = _box(values, classes.keypoints)
    return Label(name, 0.0, 0, 0.0, box, score=rest)


def _class_name(columns: Sequence[str], classes: ClassList) -> str:
    number = _class_number(columns[0], columns)
    name = classes.names.get(number)
    if name is None:
        known = f"which has {len(classes.names)} (0 to {max(classes.names)})"
        raise ValueError(
            f"class {number} is not in {classes.file.name}, {known}: correct the number, or the list"
        )
    return name


def _class_number(text: str, columns: Sequence[str] = ()) -> int:
    """Read the number of a class, which some programs write as 2.0."""
    if text.isdecimal() and text.isascii() and len(text) < 10:
        return int(text)
    try:
        value = readers.number("class", text)
    except ValueError as error:
        kind = ": a label of KITTI, which kitti_config reads" if len(columns) in (15, 16) else ""
        raise ValueError(
            f"class is {text!r}, not a number that counts the names of the list from 0{kind}"
        ) from error
    if value < 0 or value != int(value):
        raise ValueError(f"class is {text!r}, not a whole number from 0")
    return int(value)


def _box(values: list[float], keypoints: int) -> tuple[tuple[float, float, float, float], float | None]:
    """Give the box x1, y1, x2, y2 in shares, and what stands behind it (or behind an outline); None: nothing does."""
    count = len(values)
    if count <= 5 or count == 4 + keypoints or _has_keypoints(values):
        x, y, width, height = values[:4]
        _require_shares(values[:4])
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"the box {box_text(*values[:4])}, x, y, width, height, has no area")
        return box, values[4] if count == 5 else None
    outline = values[: count // 2 * 2]
    _require_shares(outline)
    x1, y1, x2, y2 = min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2])
    if x1 == x2 or y1 == y2:
        raise ValueError(f"the outline, from {box_text(x1, y1)} to {box_text(x2, y2)}, has no area")
    return (x1, y1, x2, y2), values[-1] if count % 2 else None


def _has_keypoints(values: list[float]) -> bool:
    """Whether x, y and how it is seen follow a box, time and again: no outline has a 2."""
    seen = values[6::3]
    return len(values) % 3 == 1 and 2.0 in seen and all(value in SEEN for value in seen)


def _require_shares(values: Sequence[float]) -> None:
    if max(values) > readers.FURTHEST:
        raise ValueError(
            f"{box_text(*values[:4])} are pixels, not shares of the image: divide x and width by the width of the image, and y"
            " and height by its height"
        )
    if min(values) < 1 - readers.FURTHEST:
        raise ValueError(f"{box_text(*values[:4])} are not shares of the image, which are from 0 to 1")


# Class names


def find_classes(source: YOLOConfig) -> ClassList:
    """Read the class names from classes_file, or from the one list in the root, beside the images or beside the labels.

    Raises:
        DataError: there is no list, it cannot be used, or lists of one folder differ.
    """
    root = Path(source.root_directory_path).expanduser()
    if source.classes_file:
        return read_classes(root / source.classes_file)
    folders = [root / name for name in source.image_dir_names if not sources.is_list(name)] or [root]
    places = [root, *(place for folder in folders for place in (folder, *sources.label_folders(folder)))]
    for place in dict.fromkeys(places):
        if lists := [read_classes(file) for file in sources.class_lists(place) if _names_classes(file)]:
            for other in lists[1:]:
                if other.names != lists[0].names:
                    both = f"{lists[0].file.name} and {other.file.name}"
                    raise DataError(
                        f"{both} in {place} name the classes differently: say which one counts with classes_file"
                    )
            return lists[0]
    raise DataError(
        f"no list of the classes in {root} (data.yaml, classes.txt or obj.names): write one with a name a line, in the order"
        " of the numbers, and name it with classes_file"
    )


def _names_classes(path: Path) -> bool:
    """Whether a list counts: YAML files of other things may lie beside that of a data set."""
    if path.suffix.lower() not in sources.YAML or path.stem.lower() in ("data", "dataset"):
        return True
    try:
        return "names" in _load(path)
    except DataError:
        return False


def read_classes(path: Path) -> ClassList:
    """Read class names: `names` of a YAML file, or a text with a name a line, which a Darknet .data file may name.

    Raises:
        DataError: the file cannot be read, or does not say the name of each number.
    """
    if path.suffix.lower() in sources.YAML:
        content = _load(path)
        return ClassList(path, _checked(path, _numbered(path, content)), _keypoints(content))
    lines = [line.strip() for line in readers.read_text(path, "classes_file").splitlines()]
    if path.suffix.lower() == ".data":
        stated = next(
            (line.partition("=")[2].strip() for line in lines if line.split("=")[0].strip() == "names"), ""
        )
        tails = [path.parent / stated, path.parent / os.path.basename(stated)]
        file = next((tail for tail in tails if stated and tail.is_file()), None)
        if file is None:
            raise DataError(
                f"{path}: its names = {stated} is no file; name the list of classes with classes_file"
            )
        return read_classes(file)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(
            f"{path}:{lines.index('') + 1}: an empty line between class names, which counts as one: take it out"
        )
    return ClassList(path, _checked(path, dict(enumerate(lines))))


def _load(path: Path) -> dict[object, object]:
    """Load a YAML file, with every value as it is written: `no` is a name too."""
    text = readers.read_text(path, "classes_file")
    if len(text) > LARGEST_LIST:
        raise DataError(f"{path} is too large for a list of classes")
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # makes texts, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        why = " ".join(str(getattr(error, "problem", None) or error).split())
        raise DataError(f"{path}{line}: not a YAML file ({why:.120})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a description of a YOLO data set, which has names")
    return content


def _numbered(path: Path, content: dict[object, object]) -> dict[int, str]:
    """The names of a YAML file by number."""
    names = content.get("names")
    if isinstance(names, list):
        found = dict(enumerate(names))
    elif isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        found = {int(str(key)): name for key, name in names.items()}
    else:
        raise DataError(f"{path}: it needs names, a list of the classes or a mapping of numbers to them")
    if not all(isinstance(name, str) for name in found.values()):
        raise DataError(f"{path}: each of its names must be one text")
    count = content.get("nc")
    if isinstance(names, list) and isinstance(count, str) and count.isdecimal() and int(count) != len(found):
        raise DataError(f"{path}: nc is {count}, but names has {len(found)}: correct one of them")
    return found


def _keypoints(content: dict[object, object]) -> int:
    """The values of all keypoints of an object, of `kpt_shape: [17, 3]`."""
    shape = content.get("kpt_shape")
    if (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, str) and n.isdecimal() for n in shape)
    ):
        return int(shape[0]) * int(shape[1])
    return 0


def _checked(path: Path, names: dict[int, str]) -> dict[int, str]:
    if not names:
        raise DataError(f"{path} names no class")
    for number, name in names.items():
        try:
            readers.require_visible(name)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        if not name.strip():
            raise DataError(f"{path}: class {number} has no name")
    return {number: name.strip() for number, name in names.items()}
