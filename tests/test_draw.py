from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit import draw
from detectkit.draw import (
    annotate,
    class_colors,
    curves,
    cut,
    heat_map,
    jpeg,
    outlined,
    overlay,
    precision_recall,
    rgb,
    sheet,
    spotlit,
    titled,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def black(width: int = 60, height: int = 40, channels: int = 3) -> np.ndarray:
    return np.zeros((height, width, channels), dtype=np.uint8)


def test_a_box_lies_on_its_outermost_pixels() -> None:
    image = np.asarray(annotate(black(), [[10, 5, 20, 15]], labels=[""], colors=[RED], line_width=1))
    rows, columns = np.nonzero(image[:, :, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 10, 19)
    assert image[10, 15].tolist() == [0, 0, 0]  # not filled
    assert len(rows) == 2 * 10 + 2 * 8


def test_line_width_grows_inwards() -> None:
    image = np.asarray(annotate(black(), [[10, 5, 20, 15]], labels=[""], colors=[RED], line_width=3))
    assert image[10, 12].tolist() == [255, 0, 0] and image[10, 13].tolist() == [0, 0, 0]
    assert image[10, 9].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "box", [[0, 0, 60, 40], [50, 30, 50, 30], [-9, -9, 99, 99], [59, 39, 60, 40]], ids=str
)
def test_labels_at_every_edge(box: list[float]) -> None:
    image = annotate(black(), [box], labels=["0.93"], colors=[BLUE])
    assert image.size == (60, 40) and np.asarray(image).any()


def test_the_image_is_left_alone_and_grey_is_welcome() -> None:
    for image in (black(), black(channels=1), black()[:, :, 0]):
        result = annotate(image, [[1, 1, 9, 9]], labels=["a"], colors=[RED])
        assert result.mode == "RGB" and not image.any()


def test_no_boxes() -> None:
    assert not np.asarray(annotate(black(), np.zeros((0, 4)), labels=[], colors=[])).any()


def test_colors_are_distinct_and_stable() -> None:
    colors = class_colors(12)
    assert len(set(colors)) == 12 and colors[:3] == class_colors(3)
    distances = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colors[:5]) for b in colors[:i]]
    assert min(distances) > 120


def test_overlay_tints_the_cells_that_are_covered() -> None:
    coverage = np.zeros((2, 2, 3), dtype=np.float32)
    coverage[0, 0, 1], coverage[1, 1, 2] = 1.0, 0.5
    image = np.asarray(overlay(black(60, 40), coverage, colors=[RED, BLUE]))
    assert image[10, 30].tolist() == [158, 0, 0]  # 0.62 of 255
    assert image[30, 50].tolist() == [0, 0, 79]
    assert image[10, 10].tolist() == [0, 0, 0]


def test_sheet_fills_rows() -> None:
    tiles = [Image.fromarray(black(10, 8)) for _ in range(5)]
    result = sheet(tiles, columns=3, gap=2)
    assert result.size == (34, 18)
    assert result.getpixel((33, 17)) == (255, 255, 255) and result.getpixel((0, 10)) == (0, 0, 0)
    assert sheet(tiles[:1], columns=3).size == (10, 8)


def test_curves_write_a_png(tmp_path: Path) -> None:
    series = {"training": ([1, 2, 3], [0.5, 0.2, 0.1]), "validation": ([2], [0.3])}
    curves(tmp_path / "loss", series, title="Cost", x_label="epoch", y_label="cost", logarithmic=True)
    precision_recall(tmp_path / "pr.png", {"car": ([0, 0.5, 1], [1, 0.9, 0.2])}, title="Precision and recall")
    curves(tmp_path / "empty.png", {}, title="Nothing yet", x_label="epoch", y_label="AP")
    for name in ("loss", "pr.png", "empty.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.size == (960, 600)


@pytest.mark.parametrize("count", [11, 20, 80])
def test_the_names_of_many_lines_stand_beside_the_axes(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    series = {f"a class of number {number}": ([0, 1], [1, number / count]) for number in range(count)}
    precision_recall(tmp_path / "pr.png", series, title="Precision and recall")
    (figure,) = figures
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(series)
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    assert all(
        axes.get_window_extent().x1 < box.x0 and box.x1 < figure.bbox.x1 and box.y0 > 0 for box in boxes
    )
    assert axes.get_window_extent().width > 700  # pixels
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == count


def test_names_of_any_script_are_drawn_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(draw.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(draw, "_said", set())
    assert draw.writable("Пешеход Fußgänger ποδήλατο") == "Пешеход Fußgänger ποδήλατο"
    assert not said
    assert draw.writable("车 0.93") == "? 0.93" and draw.writable("자전거") == "???"
    curves(
        tmp_path / "a.png",
        {"车": ([0, 1], [1, 0]), "_a$b$": ([0, 1], [1, 0])},
        title="行人 $",
        x_label="x",
        y_label="y",
    )
    assert said == ["pictures have ? for 车 and other letters that their font lacks"]
    pictures = [
        np.asarray(annotate(black(200, 60), [[5, 30, 90, 50]], labels=[text], colors=[BLUE]))
        for text in ("Пешеход", "Кошка 12", "车", "?", "人")
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[2], pictures[3]) and np.array_equal(pictures[2], pictures[4])


def test_labels_grow_with_images_that_are_larger_than_a_screen() -> None:
    def plate(width: int, height: int) -> int:
        """Rows of the label's plate, which is above its box."""
        box = [width // 2, height // 2, width // 2 + 9, height // 2 + 9]
        image = np.asarray(annotate(black(width, height), [box], labels=["car"], colors=[BLUE]))
        return int(np.flatnonzero(image[: height // 2, width // 2, 2]).size)

    assert plate(1920, 1080) == plate(960, 700)
    small, large = plate(1920, 1080) / 1080, plate(4000, 3000) / 3000
    assert large == pytest.approx(small, rel=0.15)
    assert draw.screens(4000, 3000) == pytest.approx(3000 / 1080) and draw.screens(640, 480) == 1


def test_lines_grow_with_images_that_are_larger_than_a_screen() -> None:
    for size, width in (((640, 480), 2), ((4000, 3000), 6)):
        image = np.asarray(annotate(black(*size), [[10, 10, 200, 200]], labels=[""], colors=[RED]))
        assert np.flatnonzero(image[100, :100, 0]).tolist() == list(range(10, 10 + width))


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        curves(tmp_path / "none" / "a.png", {}, title="", x_label="", y_label="")


def test_a_heat_map_has_a_rectangle_a_cell() -> None:
    values = np.array([[0.0, 0.5, 1.0], [2.0, -1.0, 0.25]], dtype=np.float32)
    image = np.asarray(heat_map(values, size=(30, 20), limits=(0.0, 1.0)))
    cells = image.reshape(2, 10, 3, 10, 3)
    assert (cells == cells[:, :1, :, :1]).all()  # of one colour each
    light = image[::10, ::10].astype(int).sum(axis=2)
    assert light[0, 0] < light[1, 2] < light[0, 1] < light[0, 2]
    assert light[1, 0] == light[0, 2] and light[1, 1] == light[0, 0]  # outside the limits


def test_a_diverging_heat_map_is_black_in_the_middle_blue_below_and_red_above() -> None:
    image = np.asarray(
        heat_map(np.array([[-2.0, 0.0, 2.0]], np.float32), size=(3, 1), limits=(-4, 4), diverging=True)
    )
    below, middle, above = image[0].astype(int)
    assert below[2] > 200 > below[0] and above[0] > 200 > above[2] and middle.max() <= 4


def test_a_map_without_differences() -> None:
    assert (
        np.asarray(heat_map(np.zeros((2, 2), np.float32), size=(4, 4), limits=(0.0, 0.0)))
        .reshape(-1, 3)
        .max()
        < 10
    )


def test_outlines_are_as_opaque_as_they_are_strong() -> None:
    boxes, strengths = [[10, 5, 20, 15], [12, 5, 30, 15], [40, 8, 40, 30]], [1.0, 0.5, 1.0]
    image = np.asarray(outlined(Image.fromarray(black()), boxes, strengths, color=RED))
    assert image[5, 10].tolist() == [255, 0, 0] and image[14, 29].tolist() == [128, 0, 0]
    assert image[5, 19].tolist() == [255, 0, 0]  # the stronger one lies on top
    assert not image[:, 31:].any()  # no area, no outline


def test_a_spotlight_shows_what_is_in_its_ellipse() -> None:
    white = Image.new("RGB", (60, 40), "white")
    image = np.asarray(spotlit(white, [[10, 10, 30, 30], [40, 10, 50, 30]], [1.0, 0.5]))[:, :, 0]
    assert image[20, 20] == 255 and image[11, 11] == 51  # a fifth in the box's corner, outside the ellipse
    assert image[20, 45] == pytest.approx((255 + 51) / 2, abs=1)


def test_a_title_is_written_into_the_corner() -> None:
    image = np.asarray(titled(Image.new("RGB", (60, 40), "red"), "top"))
    assert image[0, 0].tolist() == [0, 0, 0] and (image[:14, :30] > 200).all(axis=2).any()
    assert image[30:, 30:].reshape(-1, 3).tolist() == [[255, 0, 0]] * 300


@pytest.mark.parametrize(
    "focus, shape, moved",
    [
        ([40, 40, 60, 60], (100, 100), [30, 30, 70, 70]),  # 50 of the image about the box, twice as large
        ([0, 0, 20, 20], (100, 100), [0, 0, 40, 40]),  # at the corner
        (
            [10, 5, 100, 95],
            (100, 100),
            [5, 5, 95, 95],
        ),  # 2.5 times 90 is more than the image: all of its height
        ([0, 40, 180, 60], (56, 100), [0, 22, 100, 33]),  # longer than the image is high: no square
        ([50, 50, 50, 50], (100, 100), [50, 50, 50, 50]),  # no area: `least` of the image
    ],
)
def test_a_cut_shows_the_surroundings_of_a_box(
    focus: list[float], shape: tuple[int, int], moved: list[int]
) -> None:
    image = np.zeros((100, 180, 3), dtype=np.uint8)
    part, (box,) = cut(image, focus, [focus], context=2.5, least=20, side=100)
    assert part.shape == (*shape, 3)
    assert np.rint(box).tolist() == moved


def test_colours_and_jpeg() -> None:
    assert rgb("#ff6a00") == (255, 106, 0)
    content = jpeg(Image.fromarray(black()), quality=80)
    assert content[:2] == b"\xff\xd8" and len(content) < 1000
