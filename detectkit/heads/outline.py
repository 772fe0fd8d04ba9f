"""What a network gives, as data: its levels and its outputs. Kept in the header of model files, read by every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Level(NamedTuple):
    """One of the maps that a backbone gives."""

    name: str  # of the layer that makes it
    stride: int  # input pixels a cell
    channels: int


class Output(NamedTuple):
    """One of the maps that a head makes, [B, C * values, h, w], class-major; not of classes: [B, values, h, w]."""

    name: str  # in ONNX files and engines
    layer: str  # that makes it; it stays in floating point
    level: int  # number of the level whose cells it has
    values: int  # a class, or in all
    known: tuple[float, float] | None = None  # the range of its values, where it follows from what they are
    of_classes: bool = True

    def channels(self, classes: int) -> int:
        """Of the map, in a network of so many classes."""
        return self.values * (classes if self.of_classes else 1)


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
        """Channels, rows and columns of each output, for images of height x width pixels."""
        return [
            (
                output.channels(classes),
                height // self.levels[output.level].stride,
                width // self.levels[output.level].stride,
            )
            for output in self.outputs
        ]

    def content(self) -> dict[str, Any]:
        """For JSON; `parse_outline` reads it."""
        return {
            "outputs": [output._asdict() for output in self.outputs],
            "levels": [level._asdict() for level in self.levels],
            "multiple": self.multiple,
        }


def parse_outline(content: Mapping[str, Any]) -> Outline:
    """The outline that `Outline.content` gave. Raises KeyError, TypeError or ValueError: it is none."""
    outputs = tuple(_output(entry) for entry in content["outputs"])
    levels = tuple(
        Level(str(entry["name"]), _count(entry["stride"]), _count(entry["channels"]))
        for entry in content["levels"]
    )
    if not outputs or any(output.level >= len(levels) for output in outputs):
        raise ValueError(f"{len(outputs)} outputs on {len(levels)} levels")
    return Outline(outputs, levels, _count(content["multiple"]))


def _output(entry: Mapping[str, Any]) -> Output:
    known: Sequence[Any] | None = entry["known"]
    if known is not None:
        low, high = map(float, known)
    return Output(
        name=str(entry["name"]),
        layer=str(entry["layer"]),
        level=_count(entry["level"], least=0),
        values=_count(entry["values"]),
        known=None if known is None else (low, high),
        of_classes=bool(entry["of_classes"]),
    )


def _count(value: Any, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} where a number from {least} on is wanted")
    return value
