"""Labelled images as the readers of label files give them and a conversion writes them."""

from __future__ import annotations

import codecs
import json
import math
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from detectkit.console import log, progress
from detectkit.data import sources
from detectkit.data.formats import IMAGE_EXTENSIONS
from detectkit.data.images import UNREADABLE, Size, counted, ending, file_size, reason
from detectkit.errors import DataError
from detectkit.files import files_below, is_hidden
from detectkit.spec import control_character

# What differs from one to the next of reasons that are one: text in quotes, values, names of files, numbers.
VALUES = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\([^()]*\)|\[[^\[\]]*\]|(?<!\S)\S+\.\w{2,4}\b|-?\b\d[\d.]*\b(?! column)"""
)

ABSOLUTE = re.compile(r"[\\/]|\.\.[\\/]|[a-z][a-z0-9]*:", re.IGNORECASE)  # or a URL, or with the drive
UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # a file's name behind what Label Studio puts before it
TEXTS = (".csv", ".json", ".txt", ".xml")  # which may lie beside images
LONGEST = 300  # characters of a reason
FURTHEST = 1.5  # shares of the image: a box may begin or end outside, pixels are beyond
LARGEST = 1e9  # beyond this a number is a mistake, and would not survive the record's float32 and int64


class Label(NamedTuple):
    """One object: the columns of KITTI. Boxes are x1, y1, x2, y2 in pixels, as labelled: they may leave the image."""

    name: str
    truncation: float
    occlusion: int
    alpha: float
    box: tuple[float, float, float, float]
    dimensions: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, width, length in metres
    location: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, y, z in metres, camera coordinates
    rotation_y: float = 0.0
    score: float | None = None


class LabelledImage(NamedTuple):
    """A usable image and its labels."""

    frame_id: str  # path of the image below the image root, without extension
    image: Path
    width: int  # pixels
    height: int
    labels: tuple[Label, ...]
    turned: bool = False  # by its EXIF orientation; width and height are those that viewers show
    label_file: str = ""  # where the labels stand
    lines: tuple[int, ...] = ()  # of each label in it, counted from 1; none where it has no lines of text


class _Reject(NamedTuple):
    file: str
    line: int | None
    reason: str
    is_label: bool = False  # one object of a file whose others may be usable


class Reject(_Reject):
    """A label, label file or image that was left out. `line` counts from 1; None: the file as a whole, or no text lines.

    The reason is cut: it may quote what a file has, which may be all of it.
    """

    __slots__ = ()

    def __new__(cls, file: str, line: int | None, reason: str, is_label: bool = False) -> Reject:
        return super().__new__(
            cls, file, line, reason if len(reason) <= LONGEST else reason[: LONGEST - 1] + "…", is_label
        )


class Source(NamedTuple):
    """All that a conversion spec names, read; label names are those of the label files."""

    folds: list[list[LabelledImage]]
    rejected: list[Reject]
    image_root: Path  # where frame ids start
    extension: str  # of the images, without the dot, but for those whose records keep their own; empty: all of them do
    num_shards: list[int]  # files for each fold; 0: one, whose name has no shard part
    is_partitioned: bool = True  # whether file names have a fold part


class LabelFile(NamedTuple):
    """The content of the one label file of an image."""

    labels: list[Label]
    rejected: list[tuple[int | None, str]]  # line and reason
    size: tuple[float, float] = (0, 0)  # width and height of the image that the file states; 0: it does not
    file_name: str = ""  # of the image, as the file states it; empty: it does not
    in_shares: bool = False  # boxes in shares of the image's width and height, not in pixels
    lines: tuple[int, ...] = ()  # of each label, counted from 1; none where it has no lines of text


def require_visible(name: str) -> None:
    """Raise ValueError for a class name with a control character, which would be taken for more than a letter."""
    found = control_character(name)
    if found:
        raise ValueError(f"the class name {ascii(name)} has the control character {found}")


def reasons(rejected: Iterable[Reject], *, most: int) -> list[str]:
    """Why things were left out, the commonest first, with counts and the first place; behind `most` the rest in one."""
    found = _by_reason(rejected)
    told = [f"{count} times: {reject.reason} (first {place(reject)})" for reject, count in found[:most]]
    if len(found) > most:
        others = sum(count for _, count in found[most:])
        told.append(f"{others} times: {len(found) - most} other reasons")
    return told


def _by_reason(rejected: Iterable[Reject]) -> list[tuple[Reject, int]]:
    """The first of those that were left out for one reason, whatever the values in it, and how many; most first."""
    first: dict[str, Reject] = {}
    counts: Counter[str] = Counter()
    for reject in rejected:
        kind = VALUES.sub("", reject.reason)
        first.setdefault(kind, reject)
        counts[kind] += 1
    return [(first[kind], count) for kind, count in counts.most_common()]


def place(reject: Reject) -> str:
    return reject.file if reject.line is None else f"{reject.file}:{reject.line}"


def frame_id(folder: str, image: str) -> str:
    """Give the path of an image below the image root without its extension, as records name it."""
    return os.path.splitext(PurePosixPath(folder, image))[0]


def box_text(*box: float) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def number(column: str, text: str) -> float:
    """Read a number; ValueError says what is wrong with the text."""
    try:
        value = float(text.replace("_", "?"))  # Python would read 1_0 as ten
    except ValueError as error:
        raise ValueError(f"{column} is {text!r}, not a number") from error
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{column} is {text!r}, not a finite number of a sensible size")
    return value


def is_number(text: str) -> bool:
    try:
        number("", text)
    except ValueError:
        return False
    return True


# Images and folders


def image_size(path: Path) -> Size:
    """Read the size of an image, as viewers show it, from its header.

    Raises:
        ValueError: there is no such image, or it cannot be used; the reason, without the path.
    """
    try:
        return file_size(path)
    except UNREADABLE as error:
        if "\0" in str(path) or not os.path.lexists(path):
            raise ValueError("the image is missing") from error
        is_empty = path.is_file() and path.stat().st_size == 0
        why = "the file is empty" if is_empty else f"not a readable image ({reason(error)})"
        raise ValueError(why) from error


def require_size(size: Size, stated: Sequence[object]) -> None:
    """Raise ValueError when labels are for an image of another width or height; None or 0 states nothing."""
    if any(side not in (None, 0, real) for side, real in zip(stated, size)):
        labelled = "x".join(
            f"{side:g}" if isinstance(side, int | float) and abs(side) <= LARGEST else f"{side!r:.40}"
            for side in stated
        )
        found = f"the image is {size.width}x{size.height} pixels"
        if size.turned and (size.height, size.width) == tuple(stated):
            raise ValueError(
                f"{found} when its EXIF orientation turns it, as viewers show it, but its labels are for {labelled}, the"
                " pixels as stored: label it as a viewer shows it, or take the orientation out of the file"
            )
        raise ValueError(f"{found}, but its labels are for {labelled}")


def labelled(folder: str, image: str, path: Path, content: LabelFile, file: str = "") -> LabelledImage:
    """Give an image of a folder below the image root with its labels, whose boxes are in pixels then.

    Args:
        file: where the labels stand, if that is one of their own.

    Raises:
        ValueError: it cannot be used; the reason, without the path.
    """
    size = image_size(path)
    require_size(size, content.size)
    labels = tuple(content.labels)
    if content.in_shares:
        labels = tuple(label._replace(box=_scaled(label.box, size)) for label in labels)
    place = file, content.lines
    return LabelledImage(frame_id(folder, image), path, *size[:2], labels, size.turned, *place)


def _scaled(box: tuple[float, float, float, float], size: Size) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1 * size.width, y1 * size.height, x2 * size.width, y2 * size.height


def find_image_root(image_directory_path: str, root: Path, folders: Iterable[str]) -> Path:
    """Give the folder where frame ids start: `image_directory_path` when the image folders are there, else the root."""
    images, missing = sources.image_root(image_directory_path, root, folders)
    if missing is not None:
        log.warning("image_directory_path %s has no folder %s; using %s", image_directory_path, missing, root)
    return images


def list_files(folder: Path, field: str) -> list[str]:
    """Give the files of a folder and of those below it, see `detectkit.files.files_below`.

    Raises:
        DataError: one cannot be listed; `field` is what the spec calls the folder.
    """
    try:
        return list(files_below(folder))
    except DataError as error:
        raise DataError(f"{error}; it is root_directory_path with {field}") from error


def by_name(files: Iterable[str], extension: str, others: Collection[str] = ()) -> dict[str, list[str]]:
    """Give the files that have the extension, or one of the others, in either case, by their names without it.

    Hidden files are passed over. Of several files of one name, those with the extension as it is written are first.
    """
    known = {extension.lower(), *others}
    found: dict[str, list[str]] = {}
    for file in files:
        stem, end = os.path.splitext(file)
        if end.lower() in known and not is_hidden(file):
            found.setdefault(composed(stem), []).append(file)
    for same in found.values():
        same.sort(key=lambda file: (not file.endswith(extension), file.lower()))
    return found


def tails(name: str, folder: str) -> list[str]:
    """The name, and what of it is behind the last part that is called as the folder is."""
    parts, last = PurePosixPath(name).parts, PurePosixPath(folder).name
    behind = [place + 1 for place, part in enumerate(parts[:-1]) if part == last]
    return [str(PurePosixPath(*parts[place:])) for place in (0, *behind[-1:])]


def spellings(name: str) -> list[str]:
    """What a tool may mean by the file name that it has written, the name itself first.

    With `/` for `\\`, as Windows writes it; decoded from a URL; without the eight letters that Label Studio puts before
    the names of uploaded files. The last part alone is meant, too, of a path that starts elsewhere.
    """
    found = [name, name.replace("\\", "/")]
    path = found[-1].partition("/local-files/?d=")[2] or found[-1]
    found.append(unquote(path))
    if ABSOLUTE.match(name):
        found.append(found[-1].rpartition("/")[2])
    above, slash, last = found[-1].rpartition("/")
    uploaded = UPLOADED.fullmatch(last)
    if uploaded:
        found.append(above + slash + uploaded[1])
    return list(dict.fromkeys(found))


def composed(name: str) -> str:
    """A name whose letters are composed with their accents: macOS takes them apart, others do not."""
    return unicodedata.normalize("NFC", name)


def find_files(
    folder: Path, extension: str, others: Collection[str] = (), *, field: str, what: str
) -> dict[str, list[str]]:
    """Give the files of a folder that have the extension by name, as `by_name` does; says how many are hidden.

    Raises:
        DataError: there is none, or a folder cannot be listed; `field` is what the spec calls it, `what` the files.
    """
    files = list_files(folder, field)
    found = by_name(files, extension, others)
    if not found:
        has = counted(Counter(map(ending, files))) or "no files"
        raise DataError(f"no {what} in {folder} or below it (it has {has})")
    hidden = sum(map(is_hidden, files))
    if hidden:
        log.info("%s: passed over %d hidden", folder, hidden)
    return found


def read_json(path: Path, field: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it cannot be read, or is none; `field` is what the spec calls it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {field} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {field} {path}: not a JSON file ({error})") from error


def read_text(path: Path, field: str) -> str:
    """Read a text file: UTF-8, or UTF-16 that says so with its first two bytes, as spreadsheets write it.

    Raises:
        DataError: it cannot be read, or is none; `field` is what the spec calls it.
    """
    try:
        content = path.read_bytes()
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {field} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save it as UTF-8 ({field})") from error


# Frames and folds


class FilePairs(NamedTuple):
    """A folder of images and one of label files of the same names, which are paths below them without extensions."""

    image_root: Path
    image_folder: str  # below the image root
    image_extension: str  # with the dot
    images: Mapping[str, list[str]]  # files below the folder by name; the one to take is first
    labels: Path
    label_extension: str
    label_files: Mapping[str, list[str]]
    others: Mapping[str, str]  # files below the image folder by name, whatever their ending
    parse: Callable[[Path], LabelFile]  # raises DataError for a file that is useless

    def listed(self, text: str) -> str:
        """The name that a list has with slashes of either kind, and perhaps with its folder and the ending of the image."""
        if text in self.images:
            return text
        names = [self._stem(composed(tail)) for tail in tails(text.replace("\\", "/"), self.image_folder)]
        return next(filter(self._has, names), names[0])

    def _stem(self, name: str) -> str:
        stem, end = os.path.splitext(name)
        is_file = end.lower() in {self.image_extension.lower(), *IMAGE_EXTENSIONS}
        return stem if is_file and not self._has(name) and self._has(stem) else name

    def read_all(self, rejected: list[Reject]) -> dict[str, LabelledImage]:
        """Read every frame that has a label file; images without one are left out."""
        found = self.read(sorted(self.label_files), rejected)
        used = {frame.image for frame in found.values()} | {Path(reject.file) for reject in rejected}
        for name in sorted(self.images.keys() - self.label_files.keys()):
            if self._path(self.images[name][0]) not in used:
                self._read_frame(name, rejected)
        return found

    def read(self, names: Collection[str], rejected: list[Reject]) -> dict[str, LabelledImage]:
        """Read frames by name, in this order; adds what is left out to `rejected`."""
        tracked = progress(names, total=len(names), label="reading labels")
        found = {name: frame for name in tracked if (frame := self._read_frame(name, rejected))}
        counts = Counter(frame.frame_id for frame in found.values())
        for name, frame in list(found.items()) if len(counts) < len(found) else ():
            if counts[frame.frame_id] > 1:
                reason = f"its image {frame.image} is that of another label file too"
                rejected.append(Reject(str(self._label_path(name)), None, reason))
                del found[name]
        return found

    def extension(self, found: Iterable[LabelledImage]) -> str:
        """What a training spec needs as image_extension; empty: every image has another one, which its record keeps."""
        is_used = any(frame.image.suffix == self.image_extension for frame in found)
        return self.image_extension.removeprefix(".") if is_used else ""

    def _has(self, name: str) -> bool:
        return name in self.images or name in self.label_files

    def _path(self, file: str) -> Path:
        return self.image_root / self.image_folder / file

    def _label_path(self, name: str) -> Path:
        return self.labels / self.label_files.get(name, [name + self.label_extension])[0]

    def _read_frame(self, name: str, rejected: list[Reject]) -> LabelledImage | None:
        label_file = file = self._label_path(name)
        if not self._has(name):
            rejected.append(
                Reject(str(self._path(name + self.image_extension)), None, "the image is missing")
            )
            return None
        try:
            content = self._parse(label_file)
            image, *others = self._images_of(name, content.file_name)
            file = self._path(image)
            size = image_size(file)
            file = label_file
            require_size(size, content.size)
        except ValueError as error:
            rejected.append(Reject(str(file), None, str(error)))
            return None
        rejected.extend(Reject(str(label_file), line, reason, True) for line, reason in content.rejected)
        for other in [
            *map(self._path, others),
            *map(self.labels.joinpath, self.label_files.get(name, [])[1:]),
        ]:
            reason = "the name is that of another file but for the extension, and that one is taken"
            rejected.append(Reject(str(other), None, reason))
        labels = tuple(content.labels)
        place = str(label_file), content.lines
        return LabelledImage(
            frame_id(self.image_folder, image), self._path(image), *size[:2], labels, size.turned, *place
        )

    def _images_of(self, name: str, stated: str) -> list[str]:
        """The image files of a name, the one to take first: what the label file states, where that is there.

        A stated file of another name counts where none has the name, and the other one has no label file of its own.
        """
        same = self.images.get(name, [])
        parts = [part for part in re.split(r"[\\/]", stated) if part]
        if same:
            return sorted(same, key=lambda file: not parts or os.path.basename(file) != parts[-1])
        for start in range(len(parts)):
            stem = composed(os.path.splitext("/".join(parts[start:]))[0])
            if stem in self.images and stem not in self.label_files:
                return sorted(self.images[stem], key=lambda file: os.path.basename(file) != parts[-1])
        return [self.others.get(name, name + self.image_extension)]

    def _parse(self, label_file: Path) -> LabelFile:
        try:
            return self.parse(label_file)
        except DataError as error:
            raise ValueError(str(error) if label_file.exists() else "the label file is missing") from error


class ImageFolder(NamedTuple):
    """Where a spec says that images are."""

    root: Path
    folder: str  # below the root
    extension: str  # with the dot or without


class LabelFolder(NamedTuple):
    """Where a spec says that label files are."""

    path: Path
    extension: str  # with the dot
    field: str  # what the spec calls it


def find_pairs(images: ImageFolder, labels: LabelFolder, parse: Callable[[Path], LabelFile]) -> FilePairs:
    """List the images, of any known extension, and the label files of two folders and of those below them.

    Raises:
        DataError: one cannot be listed, or has none.
    """
    extension = "." + images.extension.removeprefix(".")
    folder = images.root / images.folder
    pictures = find_images(folder, extension, field="image_dir_name")
    below = list_files(folder, "image_dir_name")
    stems = ((composed(stem), end, file) for file in below for stem, end in [os.path.splitext(file)])
    others = {name: file for name, end, file in stems if end.lower() not in TEXTS and name not in pictures}
    what = f"{labels.extension} label files"
    label_files = find_files(labels.path, labels.extension, field=labels.field, what=what)
    return FilePairs(
        images.root,
        images.folder,
        extension,
        pictures,
        labels.path,
        labels.extension,
        label_files,
        others,
        parse,
    )


def find_images(folder: Path, extension: str, *, field: str) -> dict[str, list[str]]:
    """Give the images of a folder by name, of any known extension; raises DataError as `find_files` does."""
    return find_files(folder, extension, IMAGE_EXTENSIONS, field=field, what="images")


def split(
    frames: Sequence[LabelledImage], val_split: float, generator: random.Random
) -> list[list[LabelledImage]]:
    """Draw `val_split` percent of the frames into fold 0; the others are fold 1."""
    shuffled = generator.sample(frames, len(frames))
    count = sources.num_held(len(frames), val_split)
    return [shuffled[:count], shuffled[count:]]


def of_different_names(fold: Sequence[LabelledImage], rejected: list[Reject]) -> list[LabelledImage]:
    """Leave out an image whose name, without extension, is that of an earlier one: records could not tell them apart."""
    found: dict[str, LabelledImage] = {}
    for frame in fold:
        first = found.setdefault(frame.frame_id, frame)
        if first is not frame:
            same = (
                "is listed before, as the same file"
                if first.image == frame.image
                else "has the same name but for its extension"
            )
            reason = f"{first.image.name} {same}"
            rejected.append(Reject(str(frame.image), None, reason))
    return list(found.values())


def common_extension(folds: Iterable[Iterable[LabelledImage]], *, embedded: bool) -> str:
    """The extension of most images, without the dot; empty where records with the images have several."""
    extensions = Counter(frame.image.suffix.removeprefix(".") for fold in folds for frame in fold)
    is_one = len(extensions) == 1 or not embedded
    return max(extensions, key=lambda end: extensions[end], default="") if is_one else ""


def require_disjoint(folds: Sequence[Sequence[LabelledImage]]) -> None:
    """Raise DataError when an image is in two folds: what is trained on would be measured on."""
    fold_of: dict[str, int] = {}
    for number, fold in enumerate(folds):
        for frame in fold:
            first = fold_of.setdefault(frame.frame_id, number)
            if first != number:
                raise DataError(
                    f"{frame.image} is in fold {first} and in fold {number}: an image may be in one only"
                )
