"""Segmentations as COCO has them, of which a detector needs the box around: polygons, and masks by the lengths of runs."""

from __future__ import annotations

from typing import Any

from detectkit.data.readers import LARGEST, number

Box = tuple[float, float, float, float]


def box(segmentation: Any) -> Box:
    """Give x1, y1, x2, y2 in pixels of what is around a segmentation; a pixel of a mask is 1 wide and 1 high.

    Polygons are lists of x, y, x, y and so on. A mask has a `size` of height and width, and `counts`: the lengths of the
    runs of 0 and 1 in turn, column by column, as a list or packed into a text.

    Raises:
        ValueError: there is none, or it is no segmentation, or an empty one.
    """
    if isinstance(segmentation, dict):
        return _of_mask(segmentation.get("counts"), segmentation.get("size"))
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no bbox of x, y, width and height, and no segmentation")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points = [[_number(value) for value in polygon] for polygon in polygons if isinstance(polygon, list)]
    if len(points) < len(polygons) or any(len(polygon) % 2 for polygon in points):
        raise ValueError("it has no bbox, and its segmentation is no list of polygons")
    xs = [x for polygon in points for x in polygon[0::2]]
    ys = [y for polygon in points for y in polygon[1::2]]
    if not xs or min(xs) == max(xs) or min(ys) == max(ys):
        raise ValueError("it has no bbox, and its segmentation has no area")
    return min(xs), min(ys), max(xs), max(ys)


def _number(value: Any) -> float:
    if isinstance(value, str):
        return number("a value of its segmentation", value)
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"it has no bbox, and {value!r:.40} in its segmentation is not a sensible number")
    return float(value)


def _of_mask(counts: Any, size: Any) -> Box:
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    sides = isinstance(size, list) and len(size) == 2 and all(_is_whole(side) and side > 0 for side in size)
    if not sides or not isinstance(runs, list) or not all(_is_whole(run) and run >= 0 for run in runs):
        raise ValueError("it has no bbox, and its segmentation has no usable size and counts")
    height, width = size
    start, left, right, top, bottom = 0, width, 0, height, 0
    for place, run in enumerate(runs):
        end = start + run
        if place % 2 and run:  # the pixels from start to end, down one column after the other
            is_one = start // height == (end - 1) // height
            left, right = min(left, start // height), max(right, (end - 1) // height + 1)
            top = min(top, start % height if is_one else 0)
            bottom = max(bottom, (end - 1) % height + 1 if is_one else height)
        start = end
    if start > height * width or left >= right:
        raise ValueError("it has no bbox, and the mask of its segmentation is empty or larger than its size")
    return float(left), float(top), float(right), float(bottom)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and abs(value) <= LARGEST


def _unpacked(text: str) -> list[int]:
    """The runs in a text: 5 bits a letter, the low ones first, bit 6 for more; from the fourth on less the one before last."""
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("it has no bbox, and the counts of its segmentation are not packed as COCO's")
        value, shift = value | (bits & 31) << shift, shift + 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
