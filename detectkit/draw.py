"""Pictures for people: boxes and coverage over images, contact sheets, curves."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from detectkit.console import log

Color = tuple[int, int, int]

GOLDEN_RATIO = 0.618034  # steps of this size round the colour circle never come close to an earlier one
FEW = 25  # values of a curve that still get a dot each
FADED = 0.62  # how opaque full coverage is
DIVERGING = ("#9fdcff", "#1f50e0", "black", "#e03a1f", "#ffd29f")
AMBIENT = 0.2  # brightness outside every spotlight
SCREEN = 1920, 1080  # pixels of what people look at images on
MANY = 10  # lines of a chart: beyond this they need more than matplotlib's colours, and their names a place of their own
ROWS = 36  # of names beside a chart
LONGEST = 28  # letters of them
DASHES = ("-", "--", ":", "-.")
UNKNOWN = "?"  # in the place of a letter that no font has


def class_colors(count: int) -> list[Color]:
    """Bright colours that are easy to tell apart; the first ones do not depend on `count`."""
    hues = ((0.33 + index * GOLDEN_RATIO) % 1 for index in range(count))
    values = (colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 1.0, 1.0) for index, hue in enumerate(hues))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in values]


def annotate(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    *,
    labels: Sequence[str],
    colors: Sequence[Color],
    line_width: int | None = None,
) -> Image.Image:
    """Draw boxes with their labels on a copy of an image.

    Args:
        image: [h, w, 3] RGB, or [h, w] or [h, w, 1] grey.
        boxes: [N, 4] x1 y1 x2 y2 in pixels, edges of the box (its outline lies on the outermost pixels inside).
        labels: N texts, "" for none.
        colors: N colours, RGB.
        line_width: in pixels; None: as much as can be seen when the whole picture is.
    """
    canvas = _picture(image)
    draw = ImageDraw.Draw(canvas)
    font = _font(canvas)
    line_width = line_width or round(2 * screens(*canvas.size))
    corners = []
    for box, color in zip(np.asarray(boxes, dtype=float).reshape(-1, 4), colors, strict=True):
        left, top = math.floor(box[0]), math.floor(box[1])
        right, bottom = max(left, math.ceil(box[2]) - 1), max(top, math.ceil(box[3]) - 1)
        draw.rectangle((left, top, right, bottom), outline=color, width=line_width)
        corners.append((left, top))
    for position, label, color in zip(corners, labels, colors, strict=True):  # on top of all outlines
        if label:
            _tag(draw, label, position=position, color=color, font=font)
    return canvas


def rgb(color: str) -> Color:
    """A colour written as "#rrggbb"."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def jpeg(image: Image.Image, *, quality: int) -> bytes:
    """The picture as the content of a JPEG file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, optimize=True)
    return content.getvalue()


def cut(
    image: NDArray[np.uint8],
    focus: Sequence[float],
    boxes: ArrayLike,
    *,
    context: float,
    least: float,
    side: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The surroundings of a box, square where the image lets them be, and boxes [N, 4] moved into their pixels.

    Args:
        image: [h, w, 3] RGB.
        focus: the box x1 y1 x2 y2 in the middle, where the edges of the image let it be.
        context: side of what is cut out, times the larger side of the box.
        least: smallest side of what is cut out, pixels of the image.
        side: the larger side of the result, pixels.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = focus
    longest = max(right - left, bottom - top)
    wanted = max(min(max(context * longest, least), height, width), longest)
    x1, x2 = _within((left + right) / 2, wanted, width)
    y1, y2 = _within((top + bottom) / 2, wanted, height)
    scale = side / max(x2 - x1, y2 - y1)
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    part = Image.fromarray(image[y1:y2, x1:x2]).resize(size, Image.Resampling.LANCZOS)
    moved = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) - (x1, y1, x1, y1)) * scale
    return np.asarray(part), moved


def _within(center: float, length: float, limit: int) -> tuple[int, int]:
    """Begin and end of a stretch about `center` of at most this length that lies in [0, limit] and is not empty."""
    whole = min(max(1, round(length)), limit)
    begin = min(max(0, round(center - whole / 2)), limit - whole)
    return begin, begin + whole


def screens(width: int, height: int) -> float:
    """By how much a picture of this size is made smaller to be seen whole; 1 for all that a screen has room for."""
    return max(1.0, width / SCREEN[0], height / SCREEN[1])


def _font(canvas: Image.Image) -> ImageFont.FreeTypeFont:
    size = max(10, min(22, canvas.height // 30))
    return _font_of(round(size * screens(*canvas.size)))


@functools.lru_cache(maxsize=16)
def _font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: it has Greek, Cyrillic and more, Pillow's own has not."""
    found = importlib.util.find_spec("matplotlib")  # does not import it
    assert found is not None and found.origin is not None  # a dependency
    path = os.path.join(os.path.dirname(found.origin), "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def writable(text: str) -> str:
    """The text with `?` for the letters that the font has not (Chinese, Japanese, Korean …), which is said once."""
    if text.isascii():
        return text
    missing = {letter for letter in text if not letter.isascii() and not _has_glyph(letter)}
    if missing:
        _say_missing("".join(sorted(missing)))
    return "".join(UNKNOWN if letter in missing else letter for letter in text)


@functools.cache
def _has_glyph(letter: str) -> bool:
    """Whether the font draws something else than its sign for letters that it has not."""
    font = _font_of(20)
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


_said: set[str] = set()


def _say_missing(letters: str) -> None:
    if not _said:
        _said.add(letters)
        log.warning("pictures have %s for %s and other letters that their font lacks", UNKNOWN, letters[:20])


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image).convert("RGB")


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    *,
    position: tuple[int, int],
    color: Color,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write text on a plate above the position, or below it where the image ends."""
    text = writable(text)
    _, _, width, height = (math.ceil(edge) for edge in draw.textbbox((2, 1), text, font=font))
    left = max(0, min(position[0], round(draw.im.size[0]) - width - 2))
    top = position[1] - height - 2 if position[1] >= height + 2 else position[1]
    draw.rectangle((left, top, left + width + 1, top + height + 1), fill=color)
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text((left + 2, top + 1), text, fill=(0, 0, 0) if luma > 128 else (255, 255, 255), font=font)


def overlay(
    image: NDArray[np.uint8], coverage: NDArray[np.float32], *, colors: Sequence[Color]
) -> Image.Image:
    """Tint an image (as for `annotate`) with coverage maps [C, H, W] in [0, 1] that span it, in C colours.

    Cells stay visible as squares. Where classes overlap, the later one lies on top.
    """
    canvas = _picture(image)
    for values, color in zip(coverage, colors, strict=True):
        cells = Image.fromarray(np.rint(values.clip(0, 1) * FADED * 255).astype(np.uint8))
        mask = cells.resize(canvas.size, Image.Resampling.NEAREST)
        canvas.paste(Image.new("RGB", canvas.size, color), mask=mask)
    return canvas


def heat_map(
    values: NDArray[np.float32],
    *,
    size: tuple[int, int],
    limits: tuple[float, float],
    diverging: bool = False,
) -> Image.Image:
    """A map [H, W] as a picture of `size` (width, height) in which every cell is a rectangle of one colour.

    Args:
        limits: the values of the darkest and the brightest colour; those outside look the same.
        diverging: the middle of the limits is black, below is blue, above is red.
    """
    from matplotlib import colormaps  # heavy, and only needed here
    from matplotlib.colors import LinearSegmentedColormap

    low, high = limits
    parts = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
    colormap = LinearSegmentedColormap.from_list("", DIVERGING) if diverging else colormaps["inferno"]
    colors = colormap(parts, bytes=True)[:, :, :3]
    return Image.fromarray(np.ascontiguousarray(colors)).resize(size, Image.Resampling.NEAREST)


def titled(image: Image.Image, text: str) -> Image.Image:
    """The picture with a text in its upper left corner."""
    result = image.copy()
    _tag(ImageDraw.Draw(result), text, position=(0, 0), color=(0, 0, 0), font=_font(result))
    return result


def outlined(image: Image.Image, boxes: ArrayLike, strengths: ArrayLike, *, color: Color) -> Image.Image:
    """The picture with boxes [N, 4] in one colour, the more opaque the nearer their strengths [N] are to 1."""

    def outline(draw: ImageDraw.ImageDraw, box: Sequence[float], level: int) -> None:
        left, top, right, bottom = box
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=level)

    result = image.copy()
    result.paste(Image.new("RGB", image.size, color), mask=_strongest(image.size, boxes, strengths, outline))
    return result


def spotlit(image: Image.Image, boxes: ArrayLike, strengths: ArrayLike) -> Image.Image:
    """The picture seen through the ellipses in boxes [N, 4], as bright as their strengths [N] in [0, 1] say."""

    def ellipse(draw: ImageDraw.ImageDraw, box: Sequence[float], level: int) -> None:
        draw.ellipse(tuple(box), fill=level)

    light = _strongest(image.size, boxes, strengths, ellipse)
    dark = image.point(lambda value: value * AMBIENT)
    return Image.composite(image, dark, light)


def _strongest(
    size: tuple[int, int],
    boxes: ArrayLike,
    strengths: ArrayLike,
    shape: Callable[[ImageDraw.ImageDraw, Sequence[float], int], None],
) -> Image.Image:
    """A mask of shapes in boxes that have an area, one a box; where they overlap the strongest shows."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    corners, levels = np.asarray(boxes, dtype=float).reshape(-1, 4), np.asarray(strengths, dtype=float)
    for number in np.argsort(levels, kind="stable"):
        left, top, right, bottom = corners[number].tolist()
        if right > left and bottom > top:
            level = round(255 * min(max(float(levels[number]), 0), 1))
            shape(draw, (left, top, right, bottom), level)
    return mask


def sheet(images: Sequence[Image.Image], *, columns: int, gap: int = 4) -> Image.Image:
    """Put images of one size (that of the first) side by side, in rows, on white."""
    width, height = images[0].size
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(image, (column * (width + gap), row * (height + gap)))
    return canvas


def curves(
    path: str | os.PathLike[str] | BinaryIO,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> None:
    """Write a PNG of lines over one pair of axes, one (x values, y values) a name.

    Short series have dots on their values; an axis of whole numbers (epochs) has whole ticks. `logarithmic` is the
    scale of y. The names of many lines stand beside the axes, and the picture is wider.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # heavy, and only needed here
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    many = len(series) > MANY
    columns = math.ceil(len(series) / ROWS) if many else 0
    height = max(5.0, 0.8 + 0.165 * math.ceil(len(series) / columns)) if many else 5.0
    figure = Figure(figsize=(8 + 2.4 * columns, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, (x, y)) in enumerate(series.items()):
        has_dots = np.size(x) == 1 if many else np.size(x) <= FEW
        axes.plot(
            x,
            y,
            label=_name(name, number),
            linewidth=1.1 if many else 1.8,
            marker="o" if has_dots else None,
            markersize=4,
            **(_distinct(number, len(series)) if many else {}),
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(writable(title), parse_math=False)
    if logarithmic:
        axes.set_yscale("log")
    if all(np.asarray(x).dtype.kind in "iu" for x, _ in series.values()):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if many:
        legend = figure.legend(
            frameon=False, loc="outside right upper", ncols=columns, fontsize=8, labelspacing=0.3
        )
    else:
        legend = axes.legend(*axes.get_legend_handles_labels(), frameon=False)  # of no series: no warning
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png")


def _name(name: str, number: int) -> str:
    """A name as a legend shows it: with its number where letters are lost, without its middle where it is long."""
    text = writable(name)
    if text != name:
        text = f"{number}: {text}"
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[LONGEST // 2 + 1 - LONGEST :]}"
    return f"\u200b{text}" if text.startswith("_") else text  # matplotlib leaves out names with _ in front


def _distinct(number: int, count: int) -> dict[str, Any]:
    """Colour and dashes of one of many lines on white: neighbours in the legend differ in hue, all others in either."""
    hue = number * GOLDEN_RATIO % 1
    color = colorsys.hsv_to_rgb(hue, 1.0, 0.55 if 0.1 < hue < 0.55 else 0.85)  # green and yellow are light
    return {"color": color, "linestyle": DASHES[number * len(DASHES) // count]}


def precision_recall(
    path: str | os.PathLike[str] | BinaryIO,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
) -> None:
    """Write a PNG of precision over recall, one (recall values, precision values) a name; see `curves`."""
    curves(path, series, title=title, x_label="recall", y_label="precision", y_limits=(0, 1.02))
