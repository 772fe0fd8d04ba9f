"""Several runs side by side: what differs between their specs, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit import page, spec
from detectkit.errors import UsageError
from detectkit.files import atomic_write, short_names
from detectkit.page import Section
from detectkit.pipeline.products import Role
from detectkit.report import accuracy, charts
from detectkit.report.folder import RunFolder, read
from detectkit.report.models import (
    MOST_CLASSES,
    ModelRow,
    class_names,
    deployed,
    final_float,
    models,
    percent,
    rows,
    verdict,
)
from detectkit.report.sections import by_class, over_time, timed_where, training_charts
from detectkit.report.training import Epoch, history

DASHES = ("-", "--", "-.", ":")
LONG = 60  # letters of a value
UNSET = "not set"


class Compared(NamedTuple):
    """One of the runs."""

    run: RunFolder
    name: str  # short, told from the others'
    color: str  # of the page
    dashes: str
    models: list[ModelRow]

    @property
    def last(self) -> ModelRow | None:
        """The model that the run was made for."""
        return deployed(self.models) or final_float(self.models)


def compare_reports(folders: Sequence[Path], output: Path) -> Path:
    """Write a page that puts runs side by side.

    Args:
        folders: of at least two runs, as `write_report` reads them.
        output: the page.

    Raises:
        UsageError: one is not the folder of a run, one is named twice, or there are fewer than two.
        OutputError: the page cannot be written.
    """
    if len(folders) < 2:
        raise UsageError("give the folders of two or more runs")
    names = short_names(folders)
    runs = [read(folder) for folder in folders]
    compared = [
        Compared(run, name, charts.SERIES[at % len(charts.SERIES)], DASHES[at % len(DASHES)], models(run))
        for at, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    text = page.page(
        f"{len(runs)} runs side by side",
        *(_verdict(item) for item in compared),
        sections=list(_sections(compared)),
    )
    with atomic_write(output) as path:
        path.write_text(text, encoding="utf-8")
    return output


def _verdict(item: Compared) -> str:
    told = verdict(item.models) or "no model has been measured yet"
    return page.paragraph(page.joined(page.swatch(item.color), page.marked(item.name, "name"), f": {told}"))


def _sections(compared: Sequence[Compared]) -> Iterator[Section]:
    made = [
        ("models", "Models", _table(compared)),
        ("specs", "Specs", _differences(compared)),
        ("curves", "Precision and recall", _curves(compared)),
        ("training", "Training", _training(compared)),
    ]
    for anchor, title, content in made:
        if content:
            yield Section(anchor, title, content)


def _table(compared: Sequence[Compared]) -> str:
    """A row for each run and model, over all classes that any of them has."""
    together = [model for item in compared for model in item.models]
    if not together:
        return ""
    names = {name: None for name in class_names(together)}
    cells: list[list[str]] = []
    headers: list[str] = []
    for item in compared:
        # Every run gets the columns of all classes.
        own = [model._replace(by_class={**names, **model.by_class}) for model in item.models]
        headers, found = rows(own) if own else (headers, [])
        cells += [[page.joined(page.swatch(item.color), item.name), *row] for row in found]
    titled = [
        (f"{item.name}, {model.title}", item.color, model) for item in compared for model in item.models
    ]
    chart = over_time(titled)
    parts = [
        page.table(["run", *headers], cells),
        *by_class([(title, model) for title, _, model in titled]),
        page.paragraph(_legend(compared), style="note"),
        *([page.drawings([(chart, "")])] if chart else []),
    ]
    return "\n".join(parts)


def _legend(compared: Sequence[Compared]) -> str:
    told = "ms: an image through the network alone; faster: times, than the float model of its run; agree: with that one."
    places = {item.name: timed_where(item.run) for item in compared}
    timed = {name: place for name, place in places.items() if place}
    if len(set(timed.values())) > 1:
        each = "; ".join(f"{name} on {place}" for name, place in timed.items())
        return f"{told} The times are of different machines or settings: {each}."
    return f"{told} Times on {next(iter(timed.values()))}, of each run by itself." if timed else told


def _differences(compared: Sequence[Compared]) -> str:
    """Field by field: a row for each that is not the same in all specs."""
    known = [(item.name, item.run.experiment) for item in compared if item.run.experiment is not None]
    if len(known) < 2:
        return page.paragraph("Fewer than two of the runs have a spec that can be read.", style="note")
    (first, own), *others = known
    changes = [spec.field_changes(own, other) for _, other in others]
    before = {path: value for found in changes for path, value, _ in found}
    now = [{path: value for path, _, value in found} for found in changes]
    cells = [
        [path, _short(value), *(_short(found.get(path, value)) for found in now)]
        for path, value in before.items()
    ]
    if not cells:
        return page.paragraph("Nothing: their specs are the same.")
    told = page.paragraph("The fields that differ, defaults included.", style="note")
    return told + page.table(["field", first, *(name for name, _ in others)], cells)


def _short(value: str) -> str:
    return (value if len(value) <= LONG else value[: LONG - 1] + "…") or UNSET


def _curves(compared: Sequence[Compared]) -> str:
    """A chart for each class, a line for the last model of each run."""
    drawn: dict[str, list[charts.Line]] = {}
    for item in compared:
        details = accuracy.read_details(item.run, item.last.key) if item.last else None
        if details is None or item.last is None:
            continue
        for name, curve in zip(details.class_names, details.curves, strict=True):
            title = f"{item.name}, {item.last.title} {percent(item.last.by_class.get(name))}"
            line = charts.Line(title, item.color, curve.recall, curve.precision, item.dashes)
            drawn.setdefault(name, []).append(line)
    if not drawn:
        return ""
    shown = list(drawn.items())[:MOST_CLASSES]
    told = page.paragraph("Behind the names average precision, %.", style="note")
    made = page.drawings((accuracy.chart(name, lines), "") for name, lines in shown)
    return "\n".join((told, made, accuracy.not_drawn(len(drawn))))


def _training(compared: Sequence[Compared]) -> str:
    """The course of the same training of each run over each other."""
    courses: dict[str, list[tuple[str, str, list[Epoch]]]] = {}
    for item in compared:
        for product in item.run.of(Role.COURSE):
            epochs = history(Path(product.path))
            courses.setdefault(product.title, []).extend([(item.name, item.color, epochs)] if epochs else [])
    parts = []
    for title, same in courses.items():
        shown = training_charts(same)
        parts += [page.heading(title, level=3), shown] if shown else []
    return "\n".join(parts)
