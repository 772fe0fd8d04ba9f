"""What a run keeps of a stage: stage.json in its folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from detectkit import __version__
from detectkit.errors import OutputError
from detectkit.files import LOCK, atomic_write, clear_left_behind, locked, make_directory
from detectkit.spec.stored import WRITER, unknown_entries, warn_of_unknown

STAGE_FILE = "stage.json"
HALF_WRITTEN = ".*.tmp"  # the names that `atomic_write` writes under, and `clear` removes under
BEGUN, DONE, FAILED, SKIPPED = "begun", "done", "failed", "skipped"


@dataclasses.dataclass
class StageState:
    """One stage, as far as it has come."""

    name: str
    title: str
    commands: list[list[str]]  # the words after `detectkit`
    status: str  # BEGUN (under way, or cut), DONE, FAILED, SKIPPED (not possible here)
    spec: dict[str, str]  # fingerprint of what it reads of the spec, by section
    reads: dict[str, str | None]  # fingerprint of what it reads, by file, pattern or folder
    writes: list[str]  # files
    error: str | None = None  # why it failed or was skipped
    started: str = ""  # ISO time
    wall_seconds: float = 0.0  # of all its starts that ended in this process
    cpu_seconds: float = 0.0  # of all threads and worker processes
    restarts: int = 0


def read(folder: Path) -> StageState | None:
    """The state in the folder of a stage; None where there is none, or none that can be read."""
    try:
        content = dict(json.loads((folder / STAGE_FILE).read_text(encoding="utf-8")))
        known = {field.name for field in dataclasses.fields(StageState)}
        state = StageState(**{name: value for name, value in content.items() if name in known})
    except (OSError, ValueError, TypeError):
        return None
    warn_of_unknown(folder / STAGE_FILE, content.get(WRITER), unknown_entries(content, known))
    return state


def write(folder: Path, state: StageState) -> None:
    """Raises OutputError."""
    make_directory(folder)
    with atomic_write(folder / STAGE_FILE) as path:
        content = {WRITER: __version__} | dataclasses.asdict(state)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def clear(folder: Path) -> None:
    """Remove the folder of a stage: at once for who looks for it, so that a removal that is cut leaves no half of it.

    Raises:
        OutputError: it cannot be removed. UsageError: another process is at work there.
    """
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        if folder.is_dir():
            with locked(
                folder
            ):  # nobody is at work in it, nor begins to be: a training may be started by hand
                target = folder.resolve() if folder.is_symlink() else None
                folder.rename(gone)
                _remove(gone)
                if target:
                    shutil.rmtree(target)
        elif folder.exists():
            folder.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from error


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds files, but no run has made it."""
    if (folder / STAGE_FILE).exists() or not folder.exists():
        return False
    # What a run that was killed while it wrote STAGE_FILE has left is none of another's.
    return not folder.is_dir() or any(
        not path.match(HALF_WRITTEN) and path.name != LOCK for path in folder.iterdir()
    )


def clear_half_written(folder: Path, *, below: bool = True) -> None:
    """Remove what writing and removing were cut in, in a folder and `below` it; what cannot be removed stays.

    What a process that is at work writes stays too: a training may have been started by hand.
    """
    for place in [Path(place) for place, _, _ in os.walk(folder)] if below else [folder]:
        clear_left_behind(place)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
