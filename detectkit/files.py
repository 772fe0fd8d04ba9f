"""Writing files so that a reader sees the old one or the new one, never a part of one; short names of paths."""

from __future__ import annotations

import contextlib
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
