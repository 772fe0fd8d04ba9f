"""Writing files so that a reader sees the old one or the new one, never a part of one; short names of paths."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectkit.errors import OutputError, UsageError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is synced and renamed to `path`.

    When the block fails, the temporary file goes and `path` stays as it was.

    Raises:
        OutputError: the folder or the file cannot be written (no permission, no space).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Say before the work, and not after it, that a file could not be written; nothing is left behind.

    Raises:
        OutputError: no permission, or what should be a folder is a file.
    """
    try:
        folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a results folder with its parents; an existing one is fine.

    Raises:
        OutputError: it cannot be created, or is a file.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error
    return Path(path)


def local_path(path: str) -> str:
    """A path as the system takes it: without file:// before it, and with ~ written out."""
    return os.path.expanduser(path.removeprefix("file://"))


def matching(pattern: str) -> list[str]:
    """The files and folders that match a pattern with `*`, `?`, `[…]` and `**`, sorted.

    What exists as it is written is taken as it is, so that a folder may be called a*b or data[1]; and where `[…]` matches
    nothing, the brackets stand for themselves.
    """
    start, *parts = _parts(local_path(pattern))
    found = [start]
    for part in parts:
        found = list(dict.fromkeys(path for place in found for path in _below(place, part)))
    return sorted(found)


def _parts(path: str) -> list[str]:
    """Where a path starts, `/` or nothing, and the names in it."""
    names = [name for name in path.split(os.sep) if name]
    return [os.sep if path.startswith(os.sep) else "", *names]


def _below(place: str, part: str) -> list[str]:
    """What is called `part` in a folder, or else matches it."""
    path = os.path.join(place, part)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(part):
        return []
    found = glob.glob(os.path.join(glob.escape(place), part), recursive=True)
    return found or glob.glob(os.path.join(glob.escape(place), part.replace("[", "[[]")))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths of different files or folders, each as short as tells it from the others.

    Raises:
        UsageError: one is named twice.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError(f"{path} is named twice")
        seen.add(path.resolve())
    parts = [path.absolute().parts for path in paths]
    return [
        next(
            str(Path(*own[-length:]))
            for length in range(1, len(own) + 1)
            if sum(other[-length:] == own[-length:] for other in parts) == 1
        )
        for own in parts
    ]
