"""Writing files so that a reader sees the old one or the new one, never a part of one; locks, listings, patterns, short names."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from detectkit.errors import DataError, OutputError, UsageError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system that knows none


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is synced and renamed to `path`.

    When the block fails, the temporary file goes and `path` stays as it was. What a process that was killed left of
    writing `path` goes too.

    Raises:
        OutputError: the folder or the file cannot be written (no permission, no space).
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_behind(path.parent.absolute()).pop(path.name, []):
            _remove(left)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which goes at the end. Those of processes that were killed go before.

    Raises:
        OSError: it cannot be made.
    """
    clear_left_behind(path.parent, path.name)
    folder = _temporary(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_left_behind(folder: Path, name: str | None = None) -> None:
    """Remove what `atomic_write` and `staging_folder` were killed in, in a folder: of one name, or of all."""
    for left_name, paths in _found_left_behind(folder).items():
        for path in paths if name in (None, left_name) else ():
            _remove(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@functools.cache
def _left_behind(folder: Path) -> dict[str, list[Path]]:
    """Looked for once, at the first file that is written to a folder: it may hold many."""
    return _found_left_behind(folder)


def _found_left_behind(folder: Path) -> dict[str, list[Path]]:
    """The temporary files and folders, by the name they were for, whose processes are gone."""
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            name, number, ending = ([""] * 3 + entry.name.rsplit(".", 2))[-3:]
            if (
                name.startswith(".")
                and ending == "tmp"
                and number.isdecimal()
                and not _is_running(int(number))
            ):
                found.setdefault(name[1:], []).append(Path(entry.path))
    return found


def _is_running(process: int) -> bool:
    """Whether another process has this number; this one has not begun to write yet."""
    if os.name != "posix":
        return True  # there is no question to a process without harm
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder of results for this process alone, until the block or the process ends.

    A folder that was not there goes again when the block has put nothing into it.

    Raises:
        UsageError: another process is at work there. OutputError: it cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    path = make_directory(folder) / LOCK
    with _opened(path) as file:
        _lock(file, path)
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            with contextlib.suppress(OSError):
                if _is_at(path, file):  # the folder may have been moved, and another one locked in its place
                    path.unlink()
                for place in made:
                    place.rmdir()  # not where there is something in it


def _lock(file: TextIO, path: Path) -> None:
    busy = UsageError(
        f"{path.parent}: another detectkit run is at work there; wait until it has ended, or use another -r"
    )
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise busy from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
    if not _is_at(path, file):
        raise busy  # it was removed meanwhile, by one that ended, and another one may hold a new one


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether an open file is the one that a path names."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Hold a folder for a moment: others that want it wait. A process that is killed lets go."""
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _let_go() -> None:
    """In a process that this one has forked, such as a loader of images: it may outlive this one for some seconds."""
    for file in _held:
        file.close()


_held: set[TextIO] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _opened(path: Path) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


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


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def files_below(
    folder: str | os.PathLike[str],
    *,
    passed_over: Callable[[str], bool] = lambda place: False,
    fail: Callable[[OSError], object] = _cannot_list,
) -> Iterator[str]:
    """The files of a folder and of those below it, as paths from it with `/`, in a settled order.

    Links are followed, also where several lead to one folder, but not back to a folder that they are in. Hidden folders
    are not entered; hidden files are among the files.

    Args:
        passed_over: says of the path of a folder that it is not entered either.
        fail: takes the error of a folder that cannot be listed, which then counts as an empty one.

    Raises:
        DataError: a folder cannot be listed, unless `fail` does something else.
    """
    for below, names in _walk(os.fspath(folder), passed_over, fail):
        yield from (below + name for name in names)


def is_hidden(path: str) -> bool:
    """Whether a file or folder is hidden by its name, as macOS's companions `._NAME` are too."""
    return os.path.basename(path).startswith(".")


def _walk(
    folder: str, passed_over: Callable[[str], bool], fail: Callable[[OSError], object]
) -> Iterator[tuple[str, list[str]]]:
    """Folders, as paths from the one that is given which end with `/` or are empty, and the names of their files."""
    places: list[tuple[str, frozenset[str]]] = [("", frozenset())]  # and the real paths of what each is in
    while places:
        below, above = places.pop()
        place = os.path.join(folder, below) if below else folder
        try:
            with os.scandir(place or os.curdir) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            fail(error)
            continue
        yield below, [name for name, is_folder in found if not is_folder]
        above |= {os.path.realpath(place)}
        for name in (name for name, is_folder in reversed(found) if is_folder and not is_hidden(name)):
            inner = os.path.join(place, name)
            if os.path.realpath(inner) not in above and not passed_over(inner):
                places.append((f"{below}{name}/", above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def matching(pattern: str) -> list[str]:
    """The files and folders that match a pattern with `*`, `?`, `[…]` and `**`, sorted.

    What exists as it is written is taken as it is, so that a folder may be called a*b or data[1]; and where `[…]` matches
    nothing, the brackets stand for themselves. `**` follows links as `files_below` does.
    """
    start, *parts = _parts(local_path(pattern))
    found = [start]
    for left, part in zip(reversed(range(len(parts))), parts, strict=True):
        below = (path for place in found for path in _below(place, part, only_folders=left > 0))
        found = list(dict.fromkeys(below))
    return sorted(found)


def literal_start(pattern: str) -> str:
    """What all paths of a pattern begin with; `[[]`, `[*]` and `[?]` stand for these characters themselves."""
    found = re.match(r"(?:[^*?[]|\[[*?[]\])*", pattern)
    return re.sub(r"\[([*?[])\]", r"\1", found[0] if found else "")


def _parts(path: str) -> list[str]:
    """Where a path starts, `/` or nothing, and the names in it."""
    names = [name for name in path.split(os.sep) if name]
    return [os.sep if path.startswith(os.sep) else "", *names]


def _below(place: str, part: str, *, only_folders: bool) -> Iterable[str]:
    """What is called `part` in a folder, or else matches it; files are of no use where more parts follow."""
    path = os.path.join(place, part)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(part):
        return []
    if part == "**":
        return _all_below(place, only_folders=only_folders)
    begin, end = os.path.join(glob.escape(place), ""), os.sep if only_folders else ""
    found = glob.glob(begin + part + end)
    if not found and "[" in part:
        found = glob.glob(begin + part.replace("[", "[[]") + end)
    return [path.removesuffix(end) for path in found]


def _all_below(place: str, *, only_folders: bool) -> Iterator[str]:
    """A folder, those below it and perhaps their files, but for hidden ones and for what cannot be listed."""
    for below, names in _walk(place, lambda folder: False, lambda error: None):
        inner = os.path.join(place, below.removesuffix("/")) if below else place
        if inner or only_folders:  # the current folder has no name
            yield inner
        if not only_folders:
            yield from (os.path.join(place, below, name) for name in names if not is_hidden(name))


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
