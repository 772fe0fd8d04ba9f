"""Charts in SVG."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from detectkit.report import charts
from detectkit.report.charts import Histogram, Line, Point


def texts(svg):
    """The texts of a chart, after a look at whether it is well formed and has none of matplotlib's own colours."""
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert not re.search("#f0[0-9a-f]{2}0f|http|#000000|font-family", svg)
    return ["".join(item.itertext()).strip() for item in root.iter("text")]


def test_lines_are_named_at_their_ends_in_their_colours():
    series = [
        Line("float", "s0", [1, 2, 3], [0.5, 0.2, 0.1]),
        Line("pruned", "s1", [1, 2, 3], [0.5, 0.3, 0.11]),
    ]
    svg = charts.lines(series, title="Cost", alt='the "cost" <falls>', x_label="epoch", logarithmic=True)
    assert {"Cost", "epoch", "float", "pruned", "1", "2", "3", "0.1", "0.2", "0.5"} <= set(texts(svg))
    assert svg.count("var(--s0)") >= 2 and svg.count("var(--s1)") >= 2  # the line, and its name
    assert 'aria-label="the &quot;cost&quot; &lt;falls&gt;"' in svg
    heights = {name: float(y) for y, name in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(float|pruned)<', svg)}
    assert abs(heights["float"] - heights["pruned"]) > 9  # units: the names do not touch


def test_a_key_has_every_name():
    series = [Line(f"model {at}", "s2", [0, 1], [1, 0.5], "--") for at in range(3)]
    svg = charts.lines(
        series, title="PR", alt="a", x_label="recall", x_limits=(0, 1), y_limits=(0, 1), key=True
    )
    assert [text for text in texts(svg) if text.startswith("model")] == ["model 0", "model 1", "model 2"]


@pytest.mark.parametrize("key", [True, False])
def test_the_names_of_many_lines_stand_below_them(key):
    series = [Line(f"model {at}", f"s{at % 8}", [0, 1, 2], [1, 0.5, at / 30]) for at in range(25)]
    svg = charts.lines(series, title="PR", alt="a", x_label="recall", key=key)
    height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1])
    places = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>model \d+<', svg)
    assert len(set(places)) == 25 and all(float(y) < height for _, y in places)
    columns = {}
    for x, y in places:
        columns.setdefault(x, []).append(float(y))
    assert len(columns) == 2 and min(np.diff(sorted(ys)).min() for ys in columns.values()) > 8  # units
    axis = float(re.search(r'<text[^>]* y="([\d.]+)"[^>]*>recall<', svg)[1])
    assert axis < min(float(y) for _, y in places)


def test_one_point_and_a_faint_line():
    series = [Line("a", "s0", [1], [0.5], faint=True), Line("b", "s0", [1], [0.5])]
    assert "1" in texts(charts.lines(series, title="t", alt="a", x_label="epoch", logarithmic=True))


def test_points_have_their_names():
    points = [
        Point("float", "s0", 60.0, 86.4),
        Point("INT8", "s4", 5.0, 87.1),
        Point("same", "s1", 5.0, 87.1),
    ]
    svg = charts.scatter(points, title="mAP", alt="a", x_label="ms")
    assert {"float", "INT8", "same"} <= set(texts(svg))
    heights = [float(y) for y, _ in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(INT8|same)<', svg)]
    assert abs(heights[0] - heights[1]) > 9


def test_bars_tell_their_counts():
    svg = charts.bars(
        ["car", "dog"], [("training", "s7", [3348, 0]), ("validation", "ink", [5, 1])], title="t", alt="a"
    )
    assert {"car", "dog", "3,348 training", "5 validation", "0", "1"} <= set(texts(svg))


def test_histograms_share_their_axis_and_take_empty_sets():
    rows = [
        Histogram("car", np.array([10.0, 20, 40]), np.array([15.0])),
        Histogram("dog", np.zeros(0), np.zeros(0)),
    ]
    groups = (("training", "s7"), ("validation", "ink"))
    svg = charts.histograms(rows, groups=groups, mark=(16, "cell"), title="t", alt="a", x_label="px")
    assert {"car", "dog", "cell", "training", "validation", "px", "20"} <= set(texts(svg))
    charts.histograms(rows[1:], groups=groups, mark=(16, "cell"), title="t", alt="a", x_label="px")


def test_dots_leave_out_what_is_not_known():
    svg = charts.dots(["car", "dog"], [("float", "s0", [80.0, None])], title="t", alt="a")
    assert {"car", "dog", "float"} <= set(texts(svg))


@pytest.mark.parametrize("name", ["a$b$c", r"$\frac{$", "_hidden", "行人", "a<b>&c", "x" * 200])
def test_names_of_others_are_written_letter_for_letter(name):
    """No formulas, no warnings; what is too long loses its middle."""
    line, point = Line(name, "s0", [0, 1], [1, 0.5]), Point(name, "s0", 1.0, 2.0)
    drawn = [
        charts.bars([name, "b"], [("training", "s7", [1, 2])], title=name, alt="a"),
        charts.dots([name, "b"], [("float", "s0", [1.0, 2.0])], title="t", alt="a"),
        charts.lines([line, line], title=name, alt="a", x_label="x"),
        charts.lines([line], title=name, alt="a", x_label="x", key=True),
        charts.scatter([point, point], title="t", alt="a", x_label="x"),
        charts.histograms(
            [Histogram(name, np.ones(1), np.ones(1))],
            groups=(("training", "s7"), ("validation", "ink")),
            mark=(16, "cell"),
            title="t",
            alt="a",
            x_label="x",
        ),
    ]
    for svg in drawn:
        written = [text.lstrip("\u200b") for text in texts(svg)]
        assert (name if len(name) < 99 else f"{'x' * 13}…{'x' * 12}") in written or (
            f"{'x' * 26}…{'x' * 25}" in written
        )


def test_shares_have_no_room_below_zero():
    zero = [Line("float", "s0", [1, 2], [0.0, 0.0])]
    assert not [text for text in texts(charts.lines(zero, title="t", alt="a", x_label="x")) if "−" in text]
    falls = [Line("float", "s0", [1, 2], [-1.0, 1.0])]
    assert "−1.0" in texts(charts.lines(falls, title="t", alt="a", x_label="x"))


def test_only_positive_values_are_on_a_logarithmic_scale():
    zero = [Line("float", "s0", [1, 2], [0.0, 0.0])]
    assert "0.00" in texts(charts.lines(zero, title="t", alt="a", x_label="x", logarithmic=True))


@pytest.mark.parametrize(
    "heights, wanted",
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.5, 0.5], [0.5, 0.6]),  # the second moves up
        ([0.1, 0.9], [0.1, 0.9]),  # far enough
        ([1.0, 1.0, 0.95], [0.9, 1.0, 0.8]),  # no room above
        ([2.0, float("nan")], [0.9, 1.0]),
    ],
)
def test_names_are_spread(heights, wanted):
    assert charts.spread(heights, 0.1) == pytest.approx(wanted)
