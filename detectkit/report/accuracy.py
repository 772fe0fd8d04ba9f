"""Precision-recall curves of all models, and the worst mistakes of those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detectkit import page
from detectkit.errors import DetectkitError
from detectkit.page import Html
from detectkit.report import charts
from detectkit.pipeline.products import Role
from detectkit.report.folder import RunFolder
from detectkit.report.models import MOST_CLASSES, ModelRow, class_names, deployed, final_float, percent

if TYPE_CHECKING:
    from detectkit.evaluation.details import Details

# What the average precision and the curves of a protocol are of.
COUNTED = {
    "KITTI": "its moderate objects",
    "COCO": "average precision over the IoUs from 0.5 to 0.95, curves at 0.5",
}


def read_details(run: RunFolder, key: str) -> Details | None:
    """What an evaluation kept; None where it kept nothing that can be read."""
    path = run.file(Role.DETAILS, key)
    if path is None or not path.is_file():
        return None
    from detectkit.evaluation import details  # imports torch, and is only needed here

    try:
        return details.load(path)
    except DetectkitError:
        return None


def curves(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """A chart for each class, a line for each model."""
    kept = [(model, read_details(run, model.key)) for model in found if model.mean is not None]
    lines = [(model, details) for model, details in kept if details is not None]
    if not lines:
        return page.paragraph(_nothing(bool(kept)), style="note")
    names = class_names(found)
    drawn = page.drawings((_of_class(name, lines), "") for name in names[:MOST_CLASSES])
    return "\n".join((_counted(run), drawn, not_drawn(len(names))))


def not_drawn(count: int) -> str:
    """That of so many classes the last have no chart; "" where all have."""
    rest = count - MOST_CLASSES
    return page.paragraph(f"{rest} more classes are not drawn.", style="note") if rest > 0 else ""


def _nothing(is_measured: bool) -> str:
    return (
        "The evaluations have kept no curves (details.npz)."
        if is_measured
        else "No model has been measured yet."
    )


def _counted(run: RunFolder) -> str:
    """How many images, and by which protocol."""
    first = next(iter(run.results.values()))
    kind = f": {COUNTED[first.protocol]}" if first.protocol in COUNTED else ""
    told = f"{first.images:,} validation images, counted as {first.protocol} does{kind}. Behind the names average precision, %."
    return page.paragraph(told, style="note")


def _of_class(name: str, lines: Sequence[tuple[ModelRow, Details]]) -> Html:
    drawn = []
    for model, details in lines:
        if name in details.class_names:
            curve = details.curves[details.class_names.index(name)]
            title = f"{model.title} {percent(model.by_class.get(name))}"
            drawn.append(charts.Line(title, model.color, curve.recall, curve.precision, model.dashes))
    return chart(name, drawn)


def chart(name: str, drawn: Sequence[charts.Line]) -> Html:
    """Precision over recall of a class, a line for each model."""
    return charts.lines(
        drawn,
        title=f"{name}: precision over recall",
        alt=f"Precision over recall of {name}, average precision in %: {', '.join(line.name for line in drawn)}.",
        x_label="recall",
        x_limits=(0, 1),
        y_limits=(0, 1.02),
        key=True,
    )


def mistakes(run: RunFolder, found: Sequence[ModelRow]) -> str:
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


def _of_model(model: ModelRow, details: Details) -> list[str]:
    from detectkit.report import mistakes as own  # imports torch

    worst = own.mistakes(details)
    parts = [page.heading(f"{model.title}: false positives", level=3)]
    parts += _pictures(
        own.figures(details, worst.false_positives),
        f"At any score: {worst.false_positive_count:,}. Those of the highest scores in their class, class by class in turn,"
        " with their score; in blue all labels, of whatever class.",
    )
    parts += [page.heading(f"{model.title}: misses", level=3)]
    parts += _pictures(
        own.figures(details, worst.misses),
        f"Without a detection of their class at any score: {worst.miss_count:,}. The largest, with their size in pixels; in"
        " orange the strongest detections near them, of whatever class.",
    )
    return parts + _left_out(details.left_out)


def _left_out(count: int) -> list[str]:
    told = f"{count:,} detections, the weakest of images with hundreds of them, are not kept and count as not made."
    return [page.paragraph(told, style="note")] if count else []


def _pictures(figures: list[Html], told: str) -> list[str]:
    return [page.paragraph(told, style="note"), *([page.grid(figures, small=True)] if figures else [])]
