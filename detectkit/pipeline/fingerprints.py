"""What is in files, as short texts that change with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from detectkit import stores
from detectkit.data.formats import is_image
from detectkit.files import atomic_write, files_below, local_path, matching

RESULTS = {"run.json", "stage.json", "status.jsonl"}  # files in folders that detectkit has written: no data
SETTLED = 2 * 10**9  # nanoseconds; a file changed later than that may change again without its time telling
Key = tuple[int, int]  # size and time of the last change


class Fingerprints:
    """SHA-256 of files, read again only where size or time of change differ from those of the last reading.

    Args:
        cache: where they are kept between two runs; one that cannot be read is begun anew.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self._known: dict[str, tuple[Key, str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads(cache.read_text(encoding="utf-8"))
            self._known = {path: ((size, when), text) for path, (size, when, text) in content.items()}
        self._changed = False
        self._told: dict[str, str | None] | None = None  # by source, see `standing_still`

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Inside, every source is looked at once only: nothing is written meanwhile, and a folder may hold many images."""
        self._told = {}
        try:
            yield
        finally:
            self._told = None

    def of(self, source: str) -> str | None:
        """The fingerprint of a file, of the files of a pattern, or of the images in a folder; None: there are none.

        `source` may be an address such as s3://bucket/part-*; then sizes and what the store tells of the content count.
        """
        if self._told is None:
            return self._look(source)
        if source not in self._told:
            self._told[source] = self._look(source)
        return self._told[source]

    def _look(self, source: str) -> str | None:
        if stores.is_remote(source):
            return _remote(source)
        expanded = local_path(source)
        if os.path.isfile(expanded):
            return self._file(expanded)
        if os.path.isdir(expanded):
            root = os.path.join(expanded, "")
            lines = [f"{path.removeprefix(root)} {self._file(path)}" for path in _images(root)]
        else:
            lines = [f"{os.path.relpath(path, expanded)} {self._file(path)}" for path in _matches(expanded)]
        return _digest("\n".join(lines)) if lines else None

    def save(self) -> None:
        """Keep what is known. Raises OutputError."""
        if not self._changed:
            return
        content = {path: (*key, text) for path, (key, text) in self._known.items()}
        with atomic_write(self.cache) as path:
            path.write_text(json.dumps(content), encoding="utf-8")
        self._changed = False

    def _file(self, path: str) -> str:
        """A file that cannot be read is a matter of the stage that reads it: it may not need it."""
        try:
            return self._content(path)
        except OSError:
            return "unreadable"

    def _content(self, path: str) -> str:
        found = os.stat(path)
        absolute, key = os.path.abspath(path), (found.st_size, found.st_mtime_ns)
        if absolute in self._known and self._known[absolute][0] == key:
            return self._known[absolute][1]
        with open(path, "rb") as file:
            text = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - found.st_mtime_ns > SETTLED:
            self._known[absolute] = (key, text)
            self._changed = True
        return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _matches(pattern: str) -> list[str]:
    return [path for path in matching(pattern) if os.path.isfile(path)]


def _images(folder: str) -> Iterator[str]:
    """The image files below a folder, in an order that does not hang on the file system. Pictures of results are none."""
    files = files_below(
        folder, passed_over=_has_results, fail=lambda error: None
    )  # the stage that reads it says so
    return (os.path.join(folder, file) for file in files if is_image(file))


def _has_results(folder: str) -> bool:
    return any(os.path.lexists(os.path.join(folder, name)) for name in RESULTS)


def _remote(pattern: str) -> str | None:
    """Of files in a store: their names, sizes and what it says of their content."""
    found = stores.find(pattern)
    told = ("size", "ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated")
    lines = [
        " ".join([name, *(str(info[key]) for key in told if key in info)])
        for name, info in sorted(found.items())
    ]
    return _digest("\n".join(lines)) if lines else None
