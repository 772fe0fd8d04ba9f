"""What a network gives, as data: its levels and its outputs. Kept in the header of model files, read by every runtime."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from detectkit.spec.stored import unknown_entries


class Level(NamedTuple):
    """One of the maps that a backbone gives."""

    name: str  # of the layer that makes it
    stride: int  # input pixels a cell
    channels: int


class Output(NamedTuple):
    """One of the maps that a head makes, [B, anchors * C * values, h, w]; not of classes: [B, anchors * values, h, w].

    Its channels are in that order: those of the first anchor come first, and of them those of the first class.
    """

    name: str  # in ONNX files and engines
    layer: str  # that makes it; it stays in floating point
    level: int  # number of the level whose cells it has
    values: int  # an anchor and class, or where it is not of classes an anchor
    known: tuple[float, float] | None = None  # the range of its values, where it follows from what they are
    of_classes: bool = True
    anchors: int = 1  # a cell

    def channels(self, classes: int) -> int:
        """Of the map, in a network of so many classes."""
        return self.anchors * self.values * (classes if self.of_classes else 1)


class Outline(NamedTuple):
    """What a network gives: `outputs` in the order in which it gives them, on `levels`, the finest first."""

    outputs: tuple[Output, ...]
    levels: tuple[Level, ...]
    multiple: int  # of which an image's height and width must be one, in pixels

    @property
    def names(self) -> list[str]:
        """Of the outputs in ONNX files and engines."""
        return [output.name for output in self.outputs]

    def shapes(self, classes: int, height: int, width: int) -> list[tuple[int, int, int]]:
        """Channels, rows and columns of each output, for images of height x width pixels.

        A cell that reaches over the border of the image counts, as with TensorFlow's padding: 300 pixels at a stride of 64
        are 5 cells.
        """
        strides = [self.levels[output.level].stride for output in self.outputs]
        return [
            (output.channels(classes), math.ceil(height / stride), math.ceil(width / stride))
            for output, stride in zip(self.outputs, strides, strict=True)
        ]

    def fits(self, other: Outline, classes: int) -> bool:
        """Whether networks of both give the same shapes, of the same levels; names and ranges may be others."""
        first, second = (
            ([(output.level, output.channels(classes)) for output in outline.outputs],)
            + ([level[1:] for level in outline.levels], outline.multiple)
            for outline in (self, other)
        )
        return first == second

    def content(self) -> dict[str, Any]:
        """For JSON; `parse_outline` reads it."""
        return {
            "outputs": [output._asdict() for output in self.outputs],
            "levels": [level._asdict() for level in self.levels],
            "multiple": self.multiple,
        }


def parse_outline(content: Mapping[str, Any]) -> Outline:
    """The outline that `Outline.content` gave, here or in another version: what has a default may be missing.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    outputs = tuple(_output(entry) for entry in content["outputs"])
    levels = tuple(
        Level(str(entry["name"]), _count(entry["stride"]), _count(entry["channels"]))
        for entry in content["levels"]
    )
    if not outputs or any(output.level >= len(levels) for output in outputs):
        raise ValueError(f"{len(outputs)} outputs on {len(levels)} levels")
    return Outline(outputs, levels, _count(content["multiple"]))


def unknown_in(content: Mapping[str, Any]) -> list[str]:
    """Paths of the entries of an outline that `parse_outline` passes over."""
    parts: Iterable[tuple[str, type[Output] | type[Level]]] = (("outputs", Output), ("levels", Level))
    inside = [
        f"{part}.{name}"
        for part, kind in parts
        for entry in content[part]
        for name in unknown_entries(entry, kind._fields)
    ]
    found = [*unknown_entries(content, Outline._fields), *dict.fromkeys(inside)]
    return [f"outline.{name}" for name in found]


def _output(entry: Mapping[str, Any]) -> Output:
    default = Output._field_defaults
    name, layer, level, values = (entry[field] for field in ("name", "layer", "level", "values"))
    known, of_classes, anchors = (
        entry.get(field, default[field]) for field in ("known", "of_classes", "anchors")
    )
    if known is not None:
        low, high = map(float, known)
        known = (low, high)
    return Output(
        *(str(name), str(layer), _count(level, least=0), _count(values)),
        *(known, bool(of_classes), _count(anchors)),
    )


def _count(value: Any, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} where a number from {least} on is wanted")
    return value
