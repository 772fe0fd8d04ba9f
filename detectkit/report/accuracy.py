"""Precision-recall curves of all models, and the worst mistakes of those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detectkit import page
from detectkit.errors import DetectkitError
from detectkit.page import Html
from detectkit.report import charts
from detectkit.report.folder import EVALUATE, Run
from detectkit.report.models import Model, class_names, deployed, final_float, percent

if TYPE_CHECKING:
    from detectkit.evaluation.details import Details

MOST = 12  # classes with a chart of their own


def read_details(run: Run, key: str) -> Details | None:
    """What an evaluation kept; None where it kept nothing that can be read."""
    path = run.folder / f"{EVALUATE}{key}" / "details.npz"
    if not path.is_file():
        return None
    from detectkit.evaluation import details  # imports torch, and is only needed here

    try:
        return details.load(path)
    except DetectkitError:
        return None


def curves(run: Run, found: Sequence[Model]) -> str:
    """A chart for each class, a line for each model."""
    kept = [(model, read_details(run, model.key)) for model in found if model.mean is not None]
    lines = [(model, details) for model, details in kept if details is not None]
    if not lines:
        return page.paragraph(_nothing(bool(kept)), style="note")
    names = class_names(found)
    drawn = [(_chart(name, lines), "") for name in names[:MOST]]
    more = [] if len(names) <= MOST else [page.paragraph(f"{len(names) - MOST} more classes are not drawn.")]
    return "\n".join((_counted(run), page.drawings(drawn), *more))


def _nothing(is_measured: bool) -> str:
    return (
        "The evaluations have kept no curves (details.npz)."
        if is_measured
        else "No model has been measured yet."
    )


def _counted(run: Run) -> str:
    """How many images, and by which protocol."""
    first = next(iter(run.results.values()))
    return page.paragraph(
        f"{first.images} validation images, counted as {first.protocol} does; average precision in %.",
        style="note",
    )


def _chart(name: str, lines: Sequence[tuple[Model, Details]]) -> Html:
    drawn = []
    for model, details in lines:
        if name in details.class_names:
            curve = details.curves[details.class_names.index(name)]
            title = f"{model.kind.title} {percent(model.by_class.get(name))}"
            drawn.append(
                charts.Line(title, model.kind.color, curve.recall, curve.precision, model.kind.dashes)
            )
    return charts.lines(
        drawn,
        title=f"{name}: precision over recall",
        alt=f"Precision over recall of {name}. Average precision in %: {', '.join(line.name for line in drawn)}.",
        x_label="recall",
        x_limits=(0, 1),
        y_limits=(0, 1.02),
        key=True,
    )


def mistakes(run: Run, found: Sequence[Model]) -> str:
    """Pictures of the final float model's mistakes, and of the one that is deployed."""
    parts = []
    for model in (final_float(found), deployed(found)):
        details = read_details(run, model.key) if model else None
        if model and details:
            parts += _of_model(model, details)
    if not parts:
        return ""
    from detectkit.report.mistakes import DETECTED, LABELLED

    key = page.joined(page.swatch(DETECTED), "detected\u2003", page.swatch(LABELLED), "labelled")
    return "\n".join((page.paragraph(key, style="note"), *parts))


def _of_model(model: Model, details: Details) -> list[str]:
    from detectkit.report import mistakes as own  # imports torch

    worst = own.mistakes(details)
    parts = [page.heading(f"{model.kind.title}: false positives", level=3)]
    parts += _pictures(
        own.figures(details, worst.false_positives),
        f"{worst.false_positive_count} detections are no labelled object of their class, at any score; those of the"
        " highest scores, with their score.",
    )
    parts += [page.heading(f"{model.kind.title}: misses", level=3)]
    parts += _pictures(
        own.figures(details, worst.misses),
        f"{worst.miss_count} labels have no detection at any score; the largest, with their size in pixels, and detections that"
        " come near.",
    )
    return parts


def _pictures(figures: list[Html], told: str) -> list[str]:
    return [page.paragraph(told, style="note"), *([page.grid(figures, small=True)] if figures else [])]
