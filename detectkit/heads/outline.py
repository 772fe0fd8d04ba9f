"""What a network gives, as data: its levels and its outputs. Kept in the header of model files, read by every runtime."""

from __future__ import annotations

from typing import NamedTuple


class Level(NamedTuple):
    """One of the maps that a backbone gives."""

    name: str  # of the layer that makes it
    stride: int  # input pixels a cell
    channels: int


class Output(NamedTuple):
    """One of the maps that a head makes, [B, C * values, h, w], class-major."""

    name: str  # in ONNX files and engines
    layer: str  # that makes it; it stays in floating point
    level: int  # number of the level whose cells it has
    values: int  # a class
    known: tuple[float, float] | None = None  # the range of its values, where it follows from what they are


class Outline(NamedTuple):
    """What a network gives: `outputs` in the order in which it gives them, on `levels`, the finest first."""

    outputs: tuple[Output, ...]
    levels: tuple[Level, ...]
    multiple: int  # of which an image's height and width must be one, in pixels
