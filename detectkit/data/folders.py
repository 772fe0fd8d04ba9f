"""The files of a data set's folder, listed once: images, the label files that go with them, and splits by names of folders."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from detectkit.data import readers
from detectkit.data.formats import is_image
from detectkit.errors import DataError
from detectkit.files import files_below, is_hidden

ROLES = ("train", "validation", "test")
ROLE_OF = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
PASSED_OVER = ("__MACOSX", "__pycache__", "$RECYCLE.BIN", "node_modules")
MASKS = re.compile(  # folders of pictures that are labels themselves
    r"(.*/)?(masks?|segmentation(class|object).*|instance|semantic.*|depth.*|disp.*)", re.IGNORECASE
)
PLACES = 4  # named at a time
SAMPLE = 50  # file names of a label file that are looked for

T = TypeVar("T")


class Pairing(NamedTuple):
    """A folder of label files and the one where the images of their names are; paths from the listed folder."""

    labels: str
    images: str
    names: list[str]  # the label files that have an image


class FolderFiles:
    """The files of a folder and of those below it, by the path of their folder from it (empty: itself).

    Hidden files and folders, and what systems put beside files, are passed over.

    Raises:
        DataError: a folder cannot be listed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, list[str]] = defaultdict(list)
        found = files_below(folder, passed_over=lambda place: os.path.basename(place) in PASSED_OVER)
        for file in found:
            below, _, name = file.rpartition("/")
            if not is_hidden(name):
                self.files[below].append(name)

    def ending(self, *extensions: str) -> dict[str, list[str]]:
        """The files of each folder that have one of the extensions, in either case."""
        found = {
            below: [name for name in names if name.lower().endswith(extensions)]
            for below, names in self.files.items()
        }
        return {below: names for below, names in found.items() if names}

    @cached_property
    def images(self) -> dict[str, list[str]]:
        """Those of each folder."""
        found = {below: list(filter(is_image, names)) for below, names in self.files.items()}
        return {below: names for below, names in found.items() if names}

    @cached_property
    def _folders_of(self) -> dict[str, list[str]]:
        """The folders that have an image of a name, which is without its extension."""
        found: dict[str, list[str]] = defaultdict(list)
        for below, names in self.images.items():
            for stem in {stem_of(name) for name in names}:
                found[stem].append(below)
        return found

    def extension(self, below: str) -> str:
        """The commonest ending of the images in a folder and in those below it, with the dot."""
        ends = Counter(
            os.path.splitext(name)[1]
            for place, names in self.images.items()
            if is_in(place, below)
            for name in names
        )
        return max(ends, key=lambda end: ends[end], default="")

    def pairings(self, extension: str) -> list[Pairing]:
        """Give each folder of label files with the folder that has images of their names: that of most, then the nearest.

        Where others have those of the rest, as folders of splits have for a single one of labels, with each of these.
        """
        found = []
        for labels, names in self.ending(extension).items():
            rest = {name: places for name in names if (places := self._folders_of.get(stem_of(name)))}
            while rest:
                counts = Counter(below for places in rest.values() for below in places)
                images = self._nearest(counts, labels, role_of(labels))
                found.append(Pairing(labels, images, [name for name in rest if images in rest[name]]))
                rest = {name: places for name, places in rest.items() if images not in places}
        return found

    def uploaded(self, *extensions: str) -> str:
        """The first label file whose image lacks what Label Studio puts before names; empty: there is none."""
        for below, names in self.ending(*extensions).items():
            for name in names:
                found = readers.UPLOADED.fullmatch(stem_of(name))
                if found and found[1] in self._folders_of:
                    return under(below, name)
        return ""

    def _nearest(self, counts: Counter[str], place: str, role: str | None) -> str:
        """The folder that is meant by files of another one: of those with most of the names that of its split, then the nearest."""
        most = max(counts.values())
        digits = _last_digits(place)
        return max(
            sorted(counts),
            key=lambda below: (
                not MASKS.fullmatch(below),
                counts[below] * 2 >= most,
                role_of(below) == role,
                _alike(below, place),
                _last_digits(below) == digits,
                counts[below],
            ),
        )

    def start_of(self, names: Sequence[str], place: str, role: str | None) -> tuple[str, str] | None:
        """The folder that file names, as a label file in `place` has them, start from, and the one where they lead.

        None: not one of them is there.
        """
        counts: Counter[str] = Counter()
        starts: dict[str, Counter[str]] = defaultdict(Counter)
        for name in names[:SAMPLE]:
            for spelling in readers.spellings(name):
                *above, last = [part for part in spelling.split("/") if part not in ("", ".", "..")] or [""]
                folders = self._folders_of.get(stem_of(last), [])
                for below in folders:
                    parts = below.split("/") if below else []
                    is_whole = bool(above) and parts[-len(above) :] == above
                    counts[below] += 1
                    starts[below]["/".join(parts[: -len(above)]) if is_whole else below] += 1
                if folders:
                    break
        if not counts:
            return None
        below = self._nearest(counts, place, role)
        return starts[below].most_common(1)[0][0], below


def stem_of(name: str) -> str:
    """The name of a file without its extension, as images and labels are matched by."""
    return readers.composed(os.path.splitext(name)[0])


def role_of(path: str) -> str | None:
    """The split that a path is of by the words in its names, the last one first; None: it says nothing."""
    for part in reversed(PurePosixPath(path).parts):
        found = {ROLE_OF[word] for word in re.findall("[a-z]+", part.lower()) if word in ROLE_OF}
        if found == {"train", "validation"}:
            return "train"  # train_val
        if len(found) == 1:
            return found.pop()
    return None


def divided(
    items: Sequence[T], roles: Sequence[str | None], folder: Path
) -> tuple[dict[str, list[T]], list[T]]:
    """Give what each split has, training first, and what is of none beside others that are of one.

    What has no role is trained on where nothing else is; a split that is alone is trained on, whatever it is called.

    Raises:
        DataError: there is nothing to train on.
    """
    known = {role for role in roles if role}
    if "train" not in known:
        if None in roles:
            roles = [role or "train" for role in roles]
        elif len(known) == 1:
            roles = ["train"] * len(items)
        else:
            raise DataError(
                f"{folder} has labels for {' and '.join(sorted(known))}, and none for training: "
                "label the images of train, or rename the folder or file that is to be trained on"
            )
    found = {role: [item for item, own in zip(items, roles) if own == role] for role in ROLES}
    left = [item for item, own in zip(items, roles) if own is None]
    return {role: own for role, own in found.items() if own}, left


def joined(group: Sequence[Pairing], others: Sequence[Pairing], folder: Path) -> tuple[str, str]:
    """The folder of images and the one of label files that hold those of a group, and none of the others.

    Raises:
        DataError: there are no such folders.
    """
    images, labels = shared([each.images for each in group]), shared([each.labels for each in group])
    if any(each.images[len(images) :] != each.labels[len(labels) :] for each in group):
        named = ", ".join(f"{shown(each.labels)} for {shown(each.images)}" for each in group[:PLACES])
        raise DataError(
            f"the labels of one split are in {len(group)} folders of {folder} ({named}): move its images into one folder "
            "and their labels into another, or give a folder that has one of these"
        )
    inside = [each for each in others if is_in(each.images, images) and is_in(each.labels, labels)]
    if inside:
        raise DataError(
            f"{folder}: {shown(images)} has images of one split, and inside it {shown(inside[0].images)} those of "
            "another one: move the first ones into a folder of their own, for instance train"
        )
    return images, labels


def places(counts: Mapping[str, int]) -> str:
    """Folders or files with the number that is in each."""
    named = [f"{shown(place)} ({count})" for place, count in list(counts.items())[:PLACES]]
    return ", ".join(named) + (f" and {len(counts) - PLACES} more" if len(counts) > PLACES else "")


def shared(folders: Sequence[str]) -> str:
    """The innermost folder that all are in, which may be one of them."""
    return "/".join(os.path.commonprefix([folder.split("/") for folder in folders]))


def is_in(folder: str, other: str) -> bool:
    """Whether a folder is another one or inside it."""
    return not other or folder == other or folder.startswith(other + "/")


def under(folder: str, name: str) -> str:
    """The path of something in a folder."""
    return f"{folder}/{name}" if folder else name


def shown(folder: str) -> str:
    """What a folder is called in messages."""
    return folder or "the folder itself"


def require_folder(folder: Path) -> None:
    """Raise DataError where a data set cannot be: what is there, and what to do."""
    if folder.suffix.lower() in ARCHIVES and folder.is_file():
        raise DataError(f"{folder} is an archive: unpack it, and give the folder")
    if folder.is_file():
        raise DataError(f"{folder} is a file: give the folder of the data set, {folder.parent} perhaps")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")


def _alike(folder: str, other: str) -> int:
    """How many folders the beginnings, and how many the ends, of two paths have in common."""
    paths = [folder.split("/"), other.split("/")]
    ends = [path[::-1] for path in paths]
    return len(os.path.commonprefix(paths)) + len(os.path.commonprefix(ends))


def _last_digits(path: str) -> str:
    return re.search(r"\d*$", path)[0]  # type: ignore[index]
