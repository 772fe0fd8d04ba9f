"""Charts as <svg> for a page: text stays text, and colours are those of the page, by day and by night."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectkit.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = tuple(f"s{number}" for number in range(8))  # the colours of `page.STYLE` for lines and points
# What matplotlib draws in, and the page's variable that takes its place. No chart uses these colours for anything else.
INKS = {name: f"#f0{number:02x}0f" for number, name in enumerate((*SERIES, "ink", "muted", "line", "paper"))}
SIZE = (5.0, 3.1)  # inches: 360 units wide, about the pixels of a column of the page
FEW = 15  # values of a line that still get a dot each
GAP = 0.075  # between direct labels, of the height of the axes
FONT, TITLE, TICKS = 10.5, 11.5, 9.5  # units
EARLY = 0.7  # of the axes: a line that ends before is named where it ends
MANY = 10  # lines of a chart: the names of more do not fit beside it
LONG, LONG_TITLE = 26, 52  # letters that there is room for beside a chart, and above it


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    color: str  # of SERIES
    x: Sequence[float]
    y: Sequence[float]
    dashes: str = "-"  # a line style of matplotlib
    faint: bool = False  # thinner, without a label


class Point(NamedTuple):
    """A named point of a scatter chart."""

    name: str
    color: str
    x: float
    y: float


class Histogram(NamedTuple):
    """How the values of two sets are spread."""

    name: str
    first: NDArray[np.float64]
    second: NDArray[np.float64]


def lines(
    series: Sequence[Line],
    *,
    title: str,
    alt: str,
    x_label: str,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
    key: bool = False,
) -> Html:
    """Lines over one pair of axes, named at their right ends, in a corner where `key`, or below where they are many."""
    named = [line for line in series if not line.faint and len(line.x)]
    is_many = len(named) > MANY
    figure, axes = _axes(title, x_label, height=SIZE[1] + 0.1 * (len(named) + 1) * is_many)
    for line in series:
        color = INKS[line.color]
        axes.plot(
            line.x,
            line.y,
            label="_" if line.faint else _label(line.name, LONG if is_many else LONG_TITLE),
            color=color,
            linestyle=line.dashes,
            linewidth=0.9 if line.faint else 1.8,
            alpha=0.55 if line.faint else 1,
            marker="o" if len(line.x) <= FEW and not key and not line.faint else None,
            markersize=3.5,
        )
    if x_limits is not None:
        axes.set_xlim(x_limits)
    if y_limits is not None:
        axes.set_ylim(y_limits)
    if logarithmic and any(value > 0 for line in series for value in line.y):
        _logarithmic(axes, "y")
    else:
        axes.locator_params(axis="y", nbins=5)
        _no_negatives(axes, series)
    _whole_ticks(axes, [value for line in series for value in line.x], limited=x_limits is not None)
    if is_many:
        figure.legend(
            frameon=False,
            loc="outside lower left",
            ncols=2,
            handlelength=1.7,
            labelspacing=0.25,
            fontsize=TICKS,
            labelcolor=INKS["ink"],
        )
    elif key and series:
        axes.legend(
            frameon=False,
            loc="upper right" if _is_low(series) else "lower left",
            handlelength=1.7,
            labelspacing=0.25,
            fontsize=FONT,
            labelcolor=INKS["ink"],
        )
    elif len(named) > 1:
        _name_ends(axes, named)
    return svg(figure, alt)


def scatter(points: Sequence[Point], *, title: str, alt: str, x_label: str) -> Html:
    """Points with their names beside them; x, which is positive, is on a logarithmic scale where it spans much."""
    figure, axes = _axes(title, x_label)
    for point in points:
        axes.plot([point.x], [point.y], "o", color=INKS[point.color], markersize=7)
    low, high = min(point.x for point in points), max(point.x for point in points)
    if high > 4 * low:
        _logarithmic(axes, "x")
        axes.set_xlim(low / 1.6, high * 2.6)
    else:
        axes.set_xlim(0, high * 1.35)
    axes.margins(y=0.35)  # room for the names
    axes.locator_params(axis="y", nbins=5)
    transform = axes.transData + axes.transAxes.inverted()
    places = [transform.transform((point.x, point.y)) for point in points]
    heights = _beside(places)
    for point, place, height in zip(points, places, heights, strict=True):
        axes.text(
            *(place[0] + 0.025, height, _label(point.name)),
            transform=axes.transAxes,
            va="center",
            color=INKS[point.color],
            fontsize=FONT,
        )
    return svg(figure, alt)


def bars(
    names: Sequence[str], groups: Sequence[tuple[str, str, Sequence[int]]], *, title: str, alt: str
) -> Html:
    """Horizontal bars of counts: for each name one of each group (its title, its colour, its counts)."""
    figure, axes = _axes(title, "", height=0.75 + (0.2 * len(groups) + 0.14) * len(names))
    thickness = 0.8 / len(groups)
    longest = max((count for _, _, counts in groups for count in counts), default=0) or 1
    for number, (group, color, counts) in enumerate(groups):
        at = np.arange(len(names)) + (number - (len(groups) - 1) / 2) * thickness
        axes.barh(at, counts, height=thickness * 0.9, color=INKS[color])
        for place, count in zip(at, counts, strict=True):
            named = f"{count:,} {group}" if place == at[0] else f"{count:,}"
            axes.text(count + longest * 0.012, place, named, va="center", color=INKS[color], fontsize=FONT)
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INKS["ink"], labelsize=FONT)
    axes.set_xlim(0, longest * 1.3)
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return svg(figure, alt)


def dots(
    names: Sequence[str],
    groups: Sequence[tuple[str, str, Sequence[float | None]]],
    *,
    title: str,
    alt: str,
) -> Html:
    """A row for each name with a dot for each group (its title, its colour, its values), on one scale."""
    figure, axes = _axes(title, "", height=1.1 + 0.42 * len(names))
    for number, (group, color, values) in enumerate(groups):
        known = [(value, row) for row, value in enumerate(values) if value is not None]
        offset = 0.5 * (number / max(len(groups) - 1, 1) - 0.5)  # equal values do not hide each other
        axes.plot(
            [value for value, _ in known],
            [row + offset for _, row in known],
            "o",
            color=INKS[color],
            markersize=5.5,
            label=group,
        )
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INKS["ink"], labelsize=FONT)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.margins(x=0.04)
    axes.xaxis.grid(color=INKS["line"], linewidth=0.7)
    axes.yaxis.grid(False)
    figure.legend(
        frameon=False,
        loc="outside lower left",
        ncols=min(len(groups), 4),
        handletextpad=0,
        columnspacing=0.9,
        fontsize=FONT,
        labelcolor=INKS["ink"],
    )
    return svg(figure, alt)


def histograms(
    rows: Sequence[Histogram],
    *,
    groups: tuple[tuple[str, str], tuple[str, str]],
    mark: tuple[float, str],
    title: str,
    alt: str,
    x_label: str,
) -> Html:
    """The spread of positive values on a logarithmic scale, a pair of axes for each row, all with the same x.

    Args:
        groups: the title and the colour of the first (filled) and the second (a line) of each row.
        mark: a value to draw a line at, and its name.
    """
    figure = _figure((SIZE[0], 0.75 + 0.78 * len(rows)))
    every = np.concatenate([np.concatenate((row.first, row.second)) for row in rows] or [np.ones(1)])
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 10.0)
    low, high = min(low, mark[0]) / 1.15, max(high, mark[0]) * 1.15
    edges = np.geomspace(low, high, 36)
    all_axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, row) in enumerate(zip(all_axes, rows, strict=True)):
        _style(axes)
        _spread(axes, row, edges, (groups[0][1], groups[1][1]))
        axes.set_title(_label(row.name), loc="left", fontsize=FONT, color=INKS["ink"], pad=-2, y=0.88)
        axes.axvline(mark[0], color=INKS["muted"], linewidth=0.8, linestyle=":")
        if number == 0:
            axes.text(
                *(mark[0], 1.0, f" {mark[1]}"),
                transform=axes.get_xaxis_transform(),
                va="top",
                color=INKS["muted"],
                fontsize=TICKS,
            )
            for place, (name, color) in zip((0.95, 0.68), groups):
                axes.text(
                    1,
                    place,
                    name,
                    transform=axes.transAxes,
                    ha="right",
                    va="top",
                    color=INKS[color],
                    fontsize=FONT,
                )
    _logarithmic(all_axes[-1], "x")
    all_axes[-1].set_xlabel(x_label)
    figure.suptitle(title, x=0.005, ha="left", fontsize=TITLE, fontweight="bold", color=INKS["ink"])
    return svg(figure, alt)


def svg(figure: Figure, alt: str) -> Html:
    """The figure as an element of a page that fills its column; `alt` says what it shows to who cannot see it."""
    import matplotlib

    content = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "detectkit", "path.simplify": True}),
        warnings.catch_warnings(),
    ):
        # The browser has a font for the letters that matplotlib's own has not.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return Html(_inline(content.getvalue(), alt))


def _inline(text: str, alt: str) -> str:
    """matplotlib's file as an element: without what a browser does not need, with the page's font and colours."""
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None  # matplotlib always writes one
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text[text.index(">") + 1 :]
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # not referred to, and the same in every chart
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for name, color in INKS.items():
        text = text.replace(color, f"var(--{name})")
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(alt)}" stroke-linejoin="round">'
    return head + text


def _label(text: str, most: int = LONG) -> str:
    """A name of others as matplotlib writes it letter for letter, without its middle where it is long."""
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[most // 2 + 1 - most :]}"
    # Between two $ it would read a formula, and a name with _ in front would not be in a key.
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # heavy, and only needed here
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _axes(title: str, x_label: str, *, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    figure = _figure((SIZE[0], height))
    axes = figure.subplots()
    _style(axes)
    axes.set_title(
        _label(title, LONG_TITLE), loc="left", fontsize=TITLE, fontweight="bold", color=INKS["ink"], pad=8
    )
    axes.set_xlabel(x_label)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INKS["muted"])
    axes.tick_params(colors=INKS["muted"], labelsize=TICKS, length=0, which="both")
    axes.xaxis.label.set(color=INKS["muted"], fontsize=FONT)
    axes.yaxis.grid(color=INKS["line"], linewidth=0.7)
    axes.set_axisbelow(True)


def _logarithmic(axes: Axes, name: str) -> None:
    """Ticks at 1, 2, 5 of each power of ten, written as numbers; fewer where the scale is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * max(low, 1e-12) else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _no_negatives(axes: Axes, series: Sequence[Line]) -> None:
    """No room for values below 0 where there are none."""
    low, high = axes.get_ylim()
    if low < 0 and all(value >= 0 for line in series for value in line.y):
        axes.set_ylim(bottom=-0.03 * high)


def _whole_ticks(axes: Axes, values: Sequence[float], *, limited: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if values and not limited and all(float(value).is_integer() for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        axes.set_xlim(0, max(values) * 1.01)


def _is_low(series: Sequence[Line]) -> bool:
    """Whether a curve of precision over recall passes through the corner where the key is as a rule."""
    return any(x < 0.5 and y < 0.4 for line in series for x, y in list(zip(line.x, line.y))[1:-1])


def _name_ends(axes: Axes, named: Sequence[Line]) -> None:
    """The names of the lines at the right edge, at the heights of their last points as far as there is room."""
    axes.autoscale_view()
    transform = axes.transData + axes.transAxes.inverted()
    ends = [transform.transform((line.x[-1], line.y[-1])) for line in named]
    early = [float(x) < EARLY for x, _ in ends]
    late = iter(spread([float(y) for (_, y), is_early in zip(ends, early) if not is_early], GAP))
    for line, (x, y), is_early in zip(named, ends, early, strict=True):
        place = (float(x) + 0.025, float(y)) if is_early else (1.02, next(late))
        axes.text(
            *(*place, _label(line.name)),
            transform=axes.transAxes,
            va="center",
            color=INKS[line.color],
            fontsize=FONT,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] that are at least `gap` apart, in the same order, and near the ones given (NaN: at the end)."""
    order = np.argsort(np.nan_to_num(np.asarray(heights, dtype=float), nan=2.0), kind="stable")
    placed = np.clip(np.nan_to_num(np.asarray(heights, dtype=float)[order], nan=1.0), 0, 1)
    for at in range(1, len(placed)):
        placed[at] = max(placed[at], placed[at - 1] + gap)
    if len(placed) and placed[-1] > 1:
        placed[-1] = 1
        for at in range(len(placed) - 2, -1, -1):
            placed[at] = min(placed[at], placed[at + 1] - gap)
    result = np.empty(len(placed))
    result[order] = placed
    return [float(value) for value in result]


def _beside(places: Iterable[Any]) -> list[float]:
    """Heights of the names of points: only those of points that are near each other along x move apart."""
    points = [(float(x), float(y)) for x, y in places]
    heights = [y for _, y in points]
    order = sorted(range(len(points)), key=lambda at: points[at])
    group: list[int] = []
    for at in [*order, -1]:
        if group and (at < 0 or points[at][0] - points[group[-1]][0] > 0.25):
            for member, height in zip(group, spread([heights[one] for one in group], GAP), strict=True):
                heights[member] = height
            group = []
        group.append(at)
    return heights


def _spread(axes: Axes, row: Histogram, edges: NDArray[np.float64], colors: tuple[str, str]) -> None:
    """Shares of the values in each bin: the first filled, the second as a line."""
    for values, color, is_filled in zip((row.first, row.second), colors, (True, False)):
        if len(values):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(
                shares,
                edges,
                color=INKS[color],
                fill=is_filled,
                alpha=0.45 if is_filled else 1,
                linewidth=1.4,
            )
    axes.set_ylim(bottom=0)
    axes.margins(y=0.25)
    axes.yaxis.set_visible(False)
