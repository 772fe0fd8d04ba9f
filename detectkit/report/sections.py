"""The other sections of a run's report, each as HTML; "" where there is nothing to show."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectkit import page, spec
from detectkit.console import duration
from detectkit.errors import DetectkitError
from detectkit.pipeline.products import Role
from detectkit.report import charts
from detectkit.report.folder import RunFolder, StageOutcome, number, read_json, shown
from detectkit.report.models import (
    MOST_CLASSES,
    ModelRow,
    class_names,
    class_rows,
    has_few_classes,
    percent,
    rows,
    timing,
)
from detectkit.report.training import Epoch, history, training_mean

STATES = {"done": "good", "failed": "bad"}
WORST_LAYERS = 10


def table(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """The models in rows, why something is missing, and accuracy over time."""
    if not found:
        return page.paragraph("No model has been measured yet.", style="note")
    headers, cells = rows(found)
    lines = [
        [page.joined(page.swatch(model.color), row[0]), *row[1:]]
        for model, row in zip(found, cells, strict=True)
    ]
    parts = [page.table(headers, lines), *by_class([(model.title, model) for model in found])]
    parts += [page.paragraph(_legend(run, found), style="note")]
    parts += [page.paragraph(f"{model.title}: {model.why}.", style="note") for model in found if model.why]
    over = over_time([(model.title, model.color, model) for model in found])
    charted = [(chart, "") for chart in (over, _dots(found)) if chart]
    return "\n".join((*parts, page.drawings(charted))) if charted else "\n".join(parts)


def by_class(titled: Sequence[tuple[str, ModelRow]]) -> list[str]:
    """The average precision of many classes, which have no column in the table of models."""
    if has_few_classes([model for _, model in titled]):
        return []
    headers, cells = class_rows(titled)
    return [page.folded(f"Average precision of {len(cells)} classes", page.table(headers, cells))]


def _legend(run: RunFolder, found: Sequence[ModelRow]) -> str:
    where = timed_where(run)
    protocols = {results.protocol for results in run.results.values()} - {"VOC"}
    mean = f"mAP: as {', '.join(sorted(protocols))} counts; " if protocols else ""
    told = (
        f"{mean}ms: an image through the network alone{f', on {where}' if where else ''}{_runtimes(found)}; faster: times, than"
        " the float model; agree: detections that are the float model's, at IoU 0.5."
    )
    return (
        told if where else f"{told} Times, parameters and multiplications are measured by the stage latency."
    )


def _runtimes(found: Sequence[ModelRow]) -> str:
    """What the times were measured in, of which models where it is not the same for all."""
    titles: dict[str, list[str]] = {}
    for model in found:
        if model.runtime:
            titles.setdefault(model.runtime, []).append(model.title)
    if len(titles) < 2:
        return "".join(f", in {runtime}" for runtime in titles)
    return "".join(f", {' and '.join(of)} in {runtime}" for runtime, of in titles.items())


def timed_where(run: RunFolder) -> str:
    """The machine that the times of a run are of; "" where there are none."""
    content = timing(run)
    threads, batch = number(content.get("threads")), number(content.get("batch_size"))
    parts = [str(content.get("machine") or "an unknown machine")] if content else []
    parts += [f"{threads:.0f} {'thread' if threads == 1 else 'threads'}"] if threads else []
    parts += [f"{batch:.0f} images at a time"] if batch and batch > 1 else []
    return ", ".join(parts)


def over_time(titled: Sequence[tuple[str, str, ModelRow]]) -> str:
    """Accuracy over time of models (title, colour, itself) as a chart; "" for fewer than two."""
    points = [
        charts.Point(title, color, 1000 * model.seconds, 100 * model.mean)
        for title, color, model in titled
        if model.seconds and model.mean is not None and not model.is_passing
    ]
    if len(points) < 2:
        return ""
    told = ", ".join(f"{point.name} {point.y:.1f} % in {point.x:.1f} ms" for point in points)
    return charts.scatter(
        points, title="mAP %, over the time for an image", alt=f"mAP over time: {told}.", x_label="ms"
    )


def _dots(found: Sequence[ModelRow]) -> str:
    """What becomes of each class from model to model, as a chart; "" for one model or one class."""
    measured = [model for model in found if model.by_class and not model.is_passing]
    names = class_names(measured)
    if len(measured) < 2 or not 1 < len(names) <= MOST_CLASSES:
        return ""
    return charts.dots(
        names,
        [
            (model.title, model.color, [_hundred(model.by_class.get(name)) for name in names])
            for model in measured
        ],
        title="AP % by class",
        alt="Average precision of each class and model, as in the table above.",
    )


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def data(run: RunFolder) -> str:
    """Boxes by class and by size, and a few images."""
    if run.experiment is None:
        return ""
    from detectkit.report import samples  # imports torch

    try:
        found = samples.read(run.experiment)
    except DetectkitError as error:
        return page.paragraph(f"The data cannot be read: {error}", style="note")
    parts = [
        page.paragraph(_told(found.training.images, found.validation.images if found.validation else None))
    ]
    for name, part in (("training", found.training), ("validation", found.validation)):
        if part and part.read < part.images:
            parts.append(
                page.paragraph(
                    f"Counted on {part.read:,} of {part.images:,} {name} images, evenly spaced.", style="note"
                )
            )
    if found.left_out:
        parts.append(page.paragraph(f"{found.left_out} rarer classes are not shown.", style="note"))
    parts.append(page.drawings([(samples.counted(found), ""), (samples.sizes(found), "")]))
    parts += [page.heading("Training images with their labels", level=3)]
    parts += [page.paragraph(samples.key(found, spec.class_names(run.experiment)), style="note")]
    return "\n".join((*parts, page.grid(found.samples, small=False)))


def _told(training: int, validation: int | None) -> str:
    other = "none for validation" if validation is None else f"{validation:,} for validation"
    return f"{training:,} images to train on, {other}."


def training(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """Cost, learning rate and average precision of each training, over its epochs."""
    models = {model.key: model for model in found}
    trained = [(models[item.key], Path(item.path)) for item in run.of(Role.COURSE) if item.key in models]
    courses = [(model.title, model.color, history(path)) for model, path in trained]
    drawn = training_charts([course for course in courses if course[-1]])
    means = [(model.title, training_mean(path)) for model, path in trained]
    measured = [f"{title} {percent(mean)} %" for title, mean in means if mean is not None]
    told = f"On images that it was trained on, without augmentation, mAP: {', '.join(measured)}."
    return drawn + (page.paragraph(told, style="note") if measured else "")


def training_charts(courses: Sequence[tuple[str, str, list[Epoch]]]) -> str:
    """Charts of (title, colour, epochs), one line for each; "" without any."""
    if not courses:
        return ""
    names = list(dict.fromkeys(name for *_, epochs in courses for epoch in epochs for name in epoch.by_class))
    drawn = [_cost(courses), _course(courses, "learning_rate", "Learning rate", scale=1, logarithmic=True)]
    note = ""
    if max(len(_values(epochs, "mean")[0]) for *_, epochs in courses) > 1:
        drawn.append(_course(courses, "mean", "Validation mAP %", scale=100, logarithmic=False))
        drawn += [_class_course(courses, name) for name in names[:MOST_CLASSES] if len(names) > 1]
    else:
        note = page.paragraph(
            "Validated once at most: there is no course of the average precision.", style="note"
        )
    return page.drawings((chart, "") for chart in drawn if chart) + note


def _cost(courses: Sequence[tuple[str, str, list[Epoch]]]) -> str:
    """Training cost as a faint line, validation cost with dots."""
    lines, told = [], []
    for title, color, epochs in courses:
        x, y = _values(epochs, "cost")
        at, measured = _values(epochs, "validation_cost")
        lines.append(charts.Line(title, color, x, y, faint=bool(measured)))
        if measured:
            lines.append(charts.Line(title, color, at, measured, "--" if len(measured) > 1 else "-"))
        told.append(f"{title} from {y[0]:.2g} to {y[-1]:.2g}" if y else title)
    validation = "dashed" if any(line.dashes == "--" for line in lines) else "a dot"
    is_validated = any(line.faint for line in lines)
    title = f"Cost: training thin, validation {validation}" if is_validated else "Training cost"
    return charts.lines(
        lines,
        title=title,
        alt=f"Cost by epoch, {'; '.join(told)}.",
        x_label="epoch",
        logarithmic=True,
    )


def _course(
    courses: Sequence[tuple[str, str, list[Epoch]]],
    field: str,
    title: str,
    *,
    scale: float,
    logarithmic: bool,
) -> str:
    lines = []
    for name, color, epochs in courses:
        x, y = _values(epochs, field)
        if x:
            lines.append(charts.Line(name, color, x, [scale * value for value in y]))
    return _over_epochs(lines, title, logarithmic=logarithmic)


def _class_course(courses: Sequence[tuple[str, str, list[Epoch]]], name: str) -> str:
    lines = []
    for title, color, epochs in courses:
        measured = [(epoch.number, epoch.by_class.get(name)) for epoch in epochs]
        points = [(at, 100 * value) for at, value in measured if value is not None]
        if points:
            lines.append(charts.Line(title, color, [at for at, _ in points], [value for _, value in points]))
    return _over_epochs(lines, f"Validation AP % of {name}", logarithmic=False)


def _over_epochs(lines: list[charts.Line], title: str, *, logarithmic: bool) -> str:
    if not lines:
        return ""
    last = ", ".join(f"{line.name} {line.y[-1]:.3g} after epoch {line.x[-1]:g}" for line in lines)
    return charts.lines(
        lines, title=title, alt=f"{title} by epoch: {last}.", x_label="epoch", logarithmic=logarithmic
    )


def _values(epochs: Sequence[Epoch], field: str) -> tuple[list[float], list[float]]:
    found = [(epoch.number, getattr(epoch, field)) for epoch in epochs]
    known = [(float(at), float(value)) for at, value in found if value is not None]
    return [at for at, _ in known], [value for _, value in known]


def eight_bits(run: RunFolder) -> str:
    """The layers that lose most in 8 bits."""
    contents = [read_json(Path(product.path), []) for product in run.of(Role.LAYERS)]
    content = next(iter(contents), None)
    entries = content.get("layers") if content else None
    known = [item for item in _dicts(entries) if number(item.get("sqnr")) is not None]
    if not content or not known:
        return ""
    worst = sorted(known, key=lambda item: float(item["sqnr"]))[:WORST_LAYERS]
    cells = [
        [
            str(item.get("name")),
            f"{float(item['sqnr']):.1f}",
            _decibels(item.get("weight")),
            _decibels(item.get("weight_per_tensor")),
            page.marked("hurts", "bad") if item.get("hurts") else "",
        ]
        for item in worst
    ]
    hurting = sum(bool(item.get("hurts")) for item in known)
    told = (
        f"Ranges by {content.get('method')}, on {content.get('images')} training images. Signal to noise of each"
        f" convolution's values in 8 bits, dB: 20 is a tenth of noise. {hurting or 'None'} of {len(known)} hurt; these"
        " lose most."
    )
    headers = ["convolution", "dB", "weights alone", "weights, one scale", ""]
    return page.paragraph(told) + page.table(headers, cells)


def _dicts(entries: object) -> list[dict[str, Any]]:
    return [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []


def _decibels(value: object) -> str:
    known = number(value)
    return "-" if known is None else f"{known:.1f}"


def files(run: RunFolder) -> str:
    """What can be taken to another machine."""
    found = [(Path(item.path), item.title) for item in run.of(Role.FILE, Role.LAYERS)]
    cells = [[shown(run, path), _size(path.stat().st_size), title] for path, title in found if path.is_file()]
    return page.table(["file", "size", ""], cells, text=[2]) if cells else ""


def _size(count: int) -> str:
    if count < 2**10:
        return f"{count} B"
    return f"{count / 2**20:.1f} MiB" if count >= 2**18 else f"{count / 2**10:.1f} KiB"


def stages(run: RunFolder) -> str:
    """State and time of each stage, and its commands to copy."""
    cells = [_stage_row(stage) for stage in run.stages]
    headers = ["stage", "state", "wall time", "CPU time", "restarts", ""]
    parts = [page.table(headers, cells, text=[5])]
    parts += [
        page.paragraph(
            page.joined(
                page.marked(stage.name, "bad" if stage.status == "failed" else ""), f": {stage.error}"
            )
        )
        for stage in run.stages
        if stage.error
    ]
    whole = run.info.get("command")
    if isinstance(whole, list) and whole:
        parts += [page.heading("The whole run", level=3), page.code([command_line(list(map(str, whole)))])]
    parts += [page.heading("Stage by stage", level=3)]
    parts += [page.paragraph("A click on a block selects it.", style="note")]
    for stage in run.stages:
        if stage.commands:
            parts += [page.paragraph(f"{stage.name}: {stage.title}")]
            parts += [page.code(command_line(line) for line in stage.commands)]
    return "\n".join(parts)


def command_line(words: Sequence[str]) -> str:
    """A command as it is typed; the words may begin after `detectkit`."""
    return shlex.join(words if words and words[0] == "detectkit" else ["detectkit", *words])


def _stage_row(stage: StageOutcome) -> list[object]:
    state = "under way, or cut" if stage.status == "begun" else stage.status
    return [
        stage.name,
        page.marked(state, STATES.get(stage.status, "note")),
        "-" if stage.wall_seconds is None else duration(stage.wall_seconds),
        "-" if stage.cpu_seconds is None else duration(stage.cpu_seconds),
        stage.restarts or "",
        stage.title if stage.title != stage.name else "",
    ]


def environment(run: RunFolder) -> str:
    """Versions and machine, as run.json says."""
    found = [run.info.get("versions"), run.info.get("machine")]
    cells = [
        [str(name), str(value)] for part in found if isinstance(part, dict) for name, value in part.items()
    ]
    return page.table(["", ""], cells, text=[1]) if cells else ""


def spec_text(run: RunFolder) -> str:
    if not run.spec_text:
        return ""
    title = f"The spec as resolved, {len(run.spec_text.splitlines())} lines ({shown(run, run.folder / 'spec.txt')})"
    return page.folded(title, page.code([run.spec_text.rstrip()], whole=False))


def problems(run: RunFolder) -> str:
    return "\n".join(page.paragraph(problem) for problem in run.problems)
