"""Doing the stages of a run that are not done."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from detectkit import spec
from detectkit.console import duration, log
from detectkit.errors import DetectkitError, Interrupted, OutputError
from detectkit.files import atomic_write
from detectkit.pipeline import state as states
from detectkit.pipeline.chain import SPEC, Chain
from detectkit.pipeline.fingerprints import Fingerprints
from detectkit.pipeline.plan import RUN_FILE, Action, PlannedStage, look
from detectkit.pipeline.products import to_json
from detectkit.pipeline.state import StageState

FINGERPRINTS, OUTPUT, REPORT = ".fingerprints.json", "output.txt", "report.html"
REPORT_SHARE = 0.1  # of the time, at most, goes into making the report while the run is under way

Execute = Callable[[list[str]], None]
Report = Callable[[Path], object]


class Runner:
    """One run in its folder.

    Args:
        execute: runs a command line, given the words after `detectkit`, and raises what it raises.
        report: writes the report of a folder.
        about: what run.json says of the run besides its stages.
    """

    def __init__(self, chain: Chain, execute: Execute, report: Report, about: dict[str, object]):
        self.chain, self.execute, self.report, self.about = chain, execute, report, about
        self.prints = Fingerprints(chain.folder / FINGERPRINTS)
        self._reported = -float("inf")
        self._report_seconds = 0.0

    def run(self, steps: Sequence[PlannedStage]) -> int:
        """Do what a plan says is not done; gives how many stages were done.

        A stage is looked at again when its turn has come: what those before it wrote may be what it has read already.

        Raises:
            DetectkitError: of the stage that failed; what is done so far is kept, the same run goes on with it.
        """
        if all(step.action == Action.NOTHING for step in steps) and self._is_told():
            return 0
        states.clear_half_written(self.chain.folder, below=False)
        self._write_about()  # first: a folder with specs and without it is not one of a run, see `plan`
        self._write_specs()
        count = 0
        for step in steps:
            again = step.action == Action.AGAIN and not step.why  # asked for by --from
            now = look(self.chain, step.stage, self.prints, forced=again)
            if now.action == Action.NOTHING:
                continue
            count += self._do(now)
        self._write_report(now=True)
        self.prints.save()
        return count

    def _do(self, step: PlannedStage) -> bool:
        """Do a stage; gives whether it was possible."""
        chain, stage = self.chain, step.stage
        if step.action == Action.AGAIN:
            self._clear(step)
        elif step.action == Action.GO_ON and step.state and step.state.spec != step.spec:
            self._clear(step, own=False)  # more epochs: what follows will be of another model
        went_on = step.state if step.action == Action.GO_ON else None
        states.clear_half_written(step.folder)
        state = StageState(
            name=stage.name,
            title=stage.title,
            commands=stage.commands(chain),
            status=states.BEGUN,
            spec=step.spec,
            reads=step.reads,
            writes=stage.writes(chain),
            started=went_on.started if went_on else datetime.datetime.now().isoformat(timespec="seconds"),
            wall_seconds=went_on.wall_seconds if went_on else 0.0,
            cpu_seconds=went_on.cpu_seconds if went_on else 0.0,
            restarts=went_on.restarts + 1 if went_on else 0,
        )
        reason = stage.impossible(chain)
        if reason:
            state.status, state.error = states.SKIPPED, reason
            states.write(step.folder, state)
            log.warning(f"{stage.name}: skipped: {reason}")
            return False
        states.write(step.folder, state)
        self._write_specs()  # which model is the best, a later one may name, is known only now
        self.prints.save()
        log.info(f"{stage.name}: {stage.title}" + (f" ({step.why})" if step.why else ""))
        # What the commands print is kept; log lines and progress bars stay on the terminal.
        with self._timed(step.folder, state), _kept(step.folder / OUTPUT) as file, contextlib.redirect_stdout(
            file
        ):
            for command in state.commands:
                self.execute(command)
        # A pattern's files, and which of two models is the best, are known only now.
        state.status, state.writes = states.DONE, stage.writes(chain)
        states.write(step.folder, state)
        self._write_about()
        told = stage.tells(chain)
        log.info(f"{stage.name}: done in {duration(state.wall_seconds)}" + (f", {told}" if told else ""))
        self._write_report()
        return True

    def _clear(self, step: PlannedStage, *, own: bool = True) -> None:
        """Remove what was made from what a stage makes, and its `own`."""
        if own:
            log.info(f"{step.stage.name} is done again" + (f": {step.why}" if step.why else ""))
        names = [step.stage.name]
        for stage in self.chain.wanted:
            folders = [str(self.chain.folder / name) + os.sep for name in names]
            if any(source.startswith(folder) for source in stage.reads(self.chain) for folder in folders):
                names.append(stage.name)
        for name in reversed(names if own else names[1:]):
            states.clear(self.chain.folder / name)

    @contextlib.contextmanager
    def _timed(self, folder: Path, state: StageState) -> Iterator[None]:
        """Add the time of the block to the state, and write it down with the error if one ends the block."""
        wall, cpu = time.monotonic(), _cpu_seconds()
        before = state.wall_seconds, state.cpu_seconds
        try:
            yield
        except BaseException as error:
            state.wall_seconds = before[0] + time.monotonic() - wall
            state.cpu_seconds = before[1] + _cpu_seconds() - cpu
            failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
            if failed:
                kind = "" if isinstance(error, DetectkitError) else f"{type(error).__name__}: "
                state.status, state.error = states.FAILED, f"{kind}{error}"
            with contextlib.suppress(OutputError):  # the disk may be what failed
                states.write(folder, state)
                self.prints.save()
                if failed:  # who has stopped it waits for the end: a container for ten seconds
                    self._write_report(now=True)
            raise
        state.wall_seconds = before[0] + time.monotonic() - wall
        state.cpu_seconds = before[1] + _cpu_seconds() - cpu

    def _write_about(self) -> None:
        """What the run is, and what it makes: which of two models is the best is known only when a training is done."""
        stages = [[stage.name, stage.title] for stage in self.chain.wanted]
        made = {"stages": stages, "products": to_json(self.chain.products, self.chain.folder)}
        _write(self.chain.folder / RUN_FILE, json.dumps(self.about | made, indent=2) + "\n")

    def _write_specs(self) -> None:
        """The specs of the stages, which have no key of an account: see `commands.run`."""
        for name, experiment in self.chain.specs.items():
            _write(self.chain.folder / name, spec.dumps(experiment))

    def _is_told(self) -> bool:
        """Whether the folder has this very spec, and a report of all that is done."""
        folder = self.chain.folder
        try:
            told = (folder / REPORT).stat().st_mtime_ns
            done = [path.stat().st_mtime_ns for path in folder.glob(f"*/{states.STAGE_FILE}")]
        except OSError:
            return False
        text = spec.dumps(self.chain.experiment)
        return told >= max(done, default=0) and _holds(folder / SPEC, text)

    def _write_report(self, *, now: bool = False) -> None:
        """Make the report, if the last one is long ago beside what it took, or `now`."""
        start = time.monotonic()
        if not now and start - self._reported < self._report_seconds / REPORT_SHARE:
            return
        self.report(self.chain.folder)
        self._reported = time.monotonic()
        self._report_seconds = self._reported - start


def _opened(path: Path) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[TextIO]:
    """A file for what is printed; a full disk is told with its name."""
    try:
        with _opened(path) as file:
            yield file
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # of what is done meanwhile
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _write(path: Path, text: str) -> None:
    if _holds(path, text):
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _cpu_seconds() -> float:
    """Of all threads of this process, and of the worker processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)
