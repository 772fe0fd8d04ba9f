"""The report of one run: what came out, at the top, and below where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from detectkit import page
from detectkit.console import duration
from detectkit.files import atomic_write
from detectkit.page import Html, Section
from detectkit.report import accuracy, changes, cleaning, sections
from detectkit.report.folder import RunFolder, StageOutcome, read
from detectkit.report.models import ModelRow, kept_table, models, rows, verdict, write_table

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write DIR/report.html of a run's folder as far as the run has come, and its table to DIR/report.json.

    What is missing or damaged is told in the page and stops nothing.

    Returns:
        The path of the page.

    Raises:
        UsageError: it is not the folder of a run.
        OutputError: the page cannot be written.
    """
    run = read(Path(folder))
    found = models(run)
    parts = list(_head(run, found))
    text = page.page(f"{run.title}: report of a run", *parts, sections=list(_sections(run, found)))
    path = run.folder / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_table(run, found)
    return path


def summary(folder: Path) -> tuple[list[str], list[list[str]]]:
    """The table of a run for the terminal: headers, and a row for each model.

    Raises:
        UsageError: it is not the folder of a run.
    """
    run = read(Path(folder))
    return rows(kept_table(run) or models(run))


def _head(run: RunFolder, found: Sequence[ModelRow]) -> Iterator[str]:
    """What a person in a hurry reads."""
    failed = next((stage for stage in run.stages if stage.status == "failed"), None)
    if failed is not None:
        reason = failed.error or "no reason is given"
        yield page.paragraph(
            page.joined(page.marked(f"Failed in {failed.name}: ", "bad"), reason), style="lead"
        )
    told = verdict(found)
    yield page.paragraph(told or "No model has been measured yet.", style="lead" if told else "note")
    yield page.paragraph(_progress(run.stages), style="note")


def _progress(stages: Sequence[StageOutcome]) -> str:
    done = sum(stage.status == "done" for stage in stages)
    seconds = sum(stage.wall_seconds or 0 for stage in stages)
    cpu = sum(stage.cpu_seconds or 0 for stage in stages)
    times = f"{duration(seconds)} wall time, {duration(cpu)} CPU time"
    if stages and done == len(stages):
        told = "The one stage is" if done == 1 else f"All {done} stages are"
        return f"{told} done: {times}."
    told = f"{done} of {len(stages)} stages done"
    for status, state in (("skipped", "skipped"), ("begun", "under way, or cut off")):
        names = ", ".join(stage.name for stage in stages if stage.status == status)
        told += f"; {names} {state}" if names else ""
    return f"{told}: {times}."


def _sections(run: RunFolder, found: Sequence[ModelRow]) -> Iterator[Section]:
    """Those that have something to show, in the order in which they are asked for."""
    made: list[tuple[str, str, str | Html]] = [
        ("models", "Models", sections.table(run, found)),
        ("changes", "What to change", changes.changes(run, found)),
        ("curves", "Precision and recall", accuracy.curves(run, found)),
        ("kinds", "Kinds of mistakes", changes.kinds(run, found)),
        ("confusion", "Classes taken for others", changes.confusion(run, found)),
        ("mistakes", "Worst mistakes", accuracy.mistakes(run, found)),
        ("data", "Data", sections.data(run)),
        ("cleaning", "Data cleaning", cleaning.findings(run)),
        ("training", "Training", sections.training(run, found)),
        ("bits", "8 bits", sections.eight_bits(run)),
        ("files", "Files to deploy", sections.files(run)),
        ("stages", "Stages and commands", sections.stages(run)),
        ("environment", "Environment", sections.environment(run)),
        ("spec", "Spec", sections.spec_text(run)),
        ("unread", "What could not be read", sections.problems(run)),
    ]
    for anchor, title, content in made:
        if content:
            yield Section(anchor, title, content)
