"""The images that lists and tables name, also by paths of another machine."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectkit.console import log
from detectkit.data.formats import IMAGE_EXTENSIONS, is_image
from detectkit.data.readers import composed

SEPARATORS = re.compile(r"[\\/]+")
NAMED = 3  # files named where several are meant


class ListedImages:
    """The images of a folder and of those below it, found by what a list or table says of them.

    Args:
        root: the folder.
        files: paths below it; what is no image is passed over.
    """

    def __init__(self, root: Path, files: Iterable[str]):
        self.root = root
        self._place = _parts(os.path.abspath(root))
        self._files: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}  # by the name of the file, and by that without its ending
        for file in filter(is_image, files):
            name = composed(file)
            self._files[name] = file
            for key in dict.fromkeys((_key(name), _stem(_key(name)))):
                self._by_name.setdefault(key, []).append(file)
        self.moved: list[tuple[str, str]] = []  # what was said, and the file that its last parts fit

    @property
    def files(self) -> list[str]:
        """The images, as paths below the root."""
        return list(self._files.values())

    def find(self, stated: str, folders: Sequence[str] = ("",)) -> str:
        """The path, below the root, of the image that is meant.

        It is looked for below each of the folders, then as a path that begins with the root. A path of another machine is
        that of the image whose last parts are most like its own; case, and the ending, may differ.

        Raises:
            ValueError: there is none, or several fit as well.
        """
        parts = _parts(stated.strip())
        if parts[: len(self._place)] == self._place:
            parts, folders = parts[len(self._place) :], ("",)
        path = composed("/".join(parts))
        candidates = [posixpath.normpath(posixpath.join(composed(folder), path)) for folder in folders]
        for candidate in candidates:
            if file := self._files.get(candidate):
                return file
        for candidate in candidates:  # a file that is no image is said to be none by what opens it
            if not candidate.startswith("..") and os.path.isfile(self.root / candidate):
                return candidate
        return self._alike(stated, parts)

    def _alike(self, stated: str, parts: list[str]) -> str:
        """The one image whose path has the most last parts of the stated one."""
        name = composed(parts[-1]) if parts else ""
        same = self._by_name.get(name.lower()) or self._by_name.get(_stem(name.lower()), [])
        ranked: dict[tuple[int, bool], list[str]] = {}
        for file in same:
            ranked.setdefault((_shared(file, parts), posixpath.basename(composed(file)) == name), []).append(
                file
            )
        best = ranked[max(ranked)] if ranked else []
        if not best:
            raise ValueError("the image is missing")
        if len(best) > 1:
            named = ", ".join(best[:NAMED])
            raise ValueError(f"several images may be {stated!r:.80}: {named}" + ", …" * (len(best) > NAMED))
        if len(parts) > 1:
            self.moved.append((stated, best[0]))
        return best[0]

    def tell(self, where: str) -> None:
        """Say how many paths were found by their last parts alone."""
        if self.moved:
            stated, file = self.moved[0]
            log.info(
                "%s: %d paths are of another place; the images are taken whose last parts are the same (%s is %s)",
                where,
                len(self.moved),
                stated,
                self.root / file,
            )


def _parts(path: str) -> list[str]:
    return [part for part in SEPARATORS.split(path) if part not in ("", ".")]


def _key(path: str) -> str:
    return posixpath.basename(path).lower()


def _stem(name: str) -> str:
    """A name in lower case without the ending of an image."""
    stem, end = os.path.splitext(name)
    return stem if end in IMAGE_EXTENSIONS else name


def _shared(file: str, parts: list[str]) -> int:
    """How many folders, from the last one, a file and a path have in common."""
    count = 0
    for own, other in zip(file.split("/")[-2::-1], parts[-2::-1]):
        if composed(own).lower() != composed(other).lower():
            break
        count += 1
    return count
