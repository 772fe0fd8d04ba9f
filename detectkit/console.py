"""What a person sees on the terminal and a machine reads from status.jsonl."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from detectkit.errors import DetectkitError, OutputError

log = logging.getLogger("detectkit")

Item = TypeVar("Item")
# What a terminal obeys instead of showing it: control characters, ends of lines and paragraphs, marks of direction; and what it
# does not show: spaces without width, halves of characters.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
LAID_OUT = "\n\t"  # those of our own lines


def visible(text: str, *, kept: str = "") -> str:
    """A text with its control characters as escapes, `\\x1b`, but for those of `kept`: names of classes and files are
    other people's, and a terminal or a configuration file would obey them."""
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def show_all() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, instead of failing at the end of the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(text: str) -> None:
    """Print on stderr why a command ends."""
    print(f"error: {visible(text, kept=LAID_OUT)}", file=sys.stderr)


class _Formatter(logging.Formatter):
    """One line a message, whatever names it has in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)


def set_up(*, verbose: bool, log_file: Path | None = None) -> None:
    """Send log lines to stderr, and to the end of `log_file` with their time; `verbose` adds debug lines."""
    for old in log.handlers:
        if isinstance(old, logging.FileHandler):
            old.close()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    log.handlers[:] = [handler]
    if log_file:
        to_file = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(_Formatter("%(asctime)s %(levelname)s: %(message)s"))
        log.addHandler(to_file)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def say(text: str) -> None:
    """Print a line of the command's own result on stdout, at once (a pipe would hold it back)."""
    print(visible(text, kept=LAID_OUT), flush=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows under headers in aligned columns; numbers to the right, words to the left."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells)]
    if title:
        say(f"\n{title}")
    say("  ".join(header.ljust(width) for header, width in zip(headers, widths)).rstrip())
    say("  ".join("-" * width for width in widths))
    for row in cells:
        say("  ".join(_align(cell, width) for cell, width in zip(row, widths)).rstrip())


def _align(cell: str, width: int) -> str:
    is_number = cell.replace(".", "").replace("-", "").replace("%", "").replace(",", "").strip().isdigit()
    return cell.rjust(width) if is_number else cell.ljust(width)


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class ProgressBar:
    """A bar with rate and time left on a terminal; on a pipe, a plain line at most every 10 seconds.

    `total` and `advance` count units (images, files). Use it as a context manager.
    """

    def __init__(self, label: str, *, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.start = self.last_line = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                "{task.description}",
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[rate]}"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.add_task(visible(self.label), total=self.total, rate="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int = 1, *, label: str | None = None) -> None:
        """Count `count` more units as done; `label` replaces the text before the bar."""
        self.done += count
        self.label = label or self.label
        now = time.monotonic()
        rate = self.done / max(now - self.start, 1e-9)
        if self.bar:
            text = f"{rate:.1f} {self.unit}/s"
            self.bar.update(0, completed=self.done, description=visible(self.label), rate=text)
        elif now - self.last_line >= 10 and self.done < self.total:
            self.last_line = now
            left = duration((self.total - self.done) / rate)
            line = f"{self.label}: {self.done}/{self.total}, {rate:.1f} {self.unit}/s, {left} left"
            print(visible(line), file=sys.stderr, flush=True)


def progress(items: Iterable[Item], *, total: int, label: str, unit: str = "files") -> Iterator[Item]:
    """Yield the items behind a ProgressBar that counts one unit an item."""
    with ProgressBar(label, total=total, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


class StatusLog:
    """Appends one JSON object a line to status.jsonl, with the keys of TLT's status file.

    Keys: date, time, status (STARTED, RUNNING, SUCCESS, FAILURE), verbosity, message, and whatever the caller adds
    (`kpi`, `categorical`, `graphical`, `epoch`, …). Without a path it writes nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Write a FAILURE record with the text of an error that ends the block."""
        try:
            yield
        except DetectkitError as error:
            with contextlib.suppress(OutputError):  # the disk may be what failed
                self.write(str(error), status="FAILURE")
            raise

    def write(self, message: str, *, status: str = "RUNNING", **payload: Any) -> None:
        if self.path is None:
            return
        now = datetime.datetime.now()
        record = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": "INFO",
            "message": message,
            **payload,
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
