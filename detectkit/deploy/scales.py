"""The scale table: the range of every tensor of a network, from which all 8-bit networks are made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx

from detectkit.errors import ModelError
from detectkit.files import atomic_write
from detectkit.ops.quantize import SMALLEST_SCALE

FORMAT = 1
SIGNED_LEVELS, UNSIGNED_LEVELS = 127, 255
METHODS = ("mse", "minmax", "entropy", "percentile")  # what `calibrate` measures by
ORIGINS = (*METHODS, "qat", "cache")  # what else a table comes from
LARGEST = 3.4028234663852886e38  # of float32
SAME = 1e-3  # of the largest weight: how far apart those of one filter may be, as folding rounds
NAMED = 3  # how many names an error gives
AGAIN = "run detectkit calibrate again"


class Range(NamedTuple):
    """The values of a tensor."""

    amax: float  # 0 or more: what the largest of the 8-bit values stands for; beyond it values are cut off
    low: float  # the smallest and the largest value seen
    high: float
    sqnr: float | None  # signal to noise of the values rounded to 8 bits, dB; None: not measured

    @property
    def unsigned(self) -> bool:
        """Whether no value is negative, so that all 256 levels may go to one side of zero."""
        return self.low >= 0


class ScaleTable(NamedTuple):
    """The ranges of a network. Names are those in its ONNX file."""

    tensors: dict[str, Range]  # of activations, input and outputs included
    weights: dict[
        str, list[float]
    ]  # amax by output channel, of each convolution with its batch norm folded in
    method: str  # one of ORIGINS
    images: int  # how many the ranges were seen on
    # The mean of each channel of what the 8-bit convolutions read, which tells what rounding a weight does to their
    # results on average. Empty where it is not known, and where training has seen to it.
    means: Mapping[str, list[float]] = MappingProxyType({})


def scale_of(amax: float, levels: int = SIGNED_LEVELS) -> float:
    """What one step of the integers stands for: `amax` / `levels`, a positive float32 in any case.

    Where there is nothing but zeros (amax 0: a dead channel) every scale is exact. It is that of amax 1, and not a
    tiny one, with which the bias of the channel would not fit 32 bits.

    Args:
        amax: 0 or more.
        levels: 127 (SIGNED_LEVELS) or 255 (UNSIGNED_LEVELS).
    """
    return max(amax / levels, SMALLEST_SCALE) if amax > 0 else 1 / levels


def save_table(path: str | os.PathLike[str], table: ScaleTable) -> None:
    """Write a table as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(dump_table(table), encoding="utf-8")


def load_table(path: str | os.PathLike[str]) -> ScaleTable:
    """Read a table that `save_table` wrote.

    Raises:
        ModelError: there is no such file, or it is no scale table, or a range in it cannot be one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: detectkit calibrate writes scales.json") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ModelError(f"cannot read the scale table {path}: {reason}") from error
    return parse_table(text, path)


def dump_table(table: ScaleTable) -> str:
    """The JSON text of a table, one tensor a line."""
    tensors = {name: item._asdict() for name, item in table.tensors.items()}
    return (
        f'{{\n"format": {FORMAT},\n"method": {json.dumps(table.method)},\n"images": {table.images},\n'
        f'"tensors": {_one_a_line(tensors)},\n"weights": {_one_a_line(table.weights)},\n'
        f'"means": {_one_a_line(table.means)}\n}}\n'
    )


def _one_a_line(items: Mapping[str, Any]) -> str:
    lines = (f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in items.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def parse_table(text: str, path: str | os.PathLike[str]) -> ScaleTable:
    """A table from its JSON text.

    Args:
        path: where the text is from, named in errors.

    Raises:
        ModelError: it is no scale table, or a range in it cannot be one.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no scale table: it is not JSON ({error}); {AGAIN}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ModelError(f"{path} is no scale table: it has no format; {AGAIN}")
    if content["format"] != FORMAT:
        raise ModelError(
            f"{path} has format {content['format']}, this version reads format {FORMAT}: {AGAIN}"
        )
    try:
        return _table(content)
    except _Unusable as error:
        raise ModelError(f"{path}: {error}; {AGAIN}") from error


class _Unusable(Exception):
    """What is wrong with the content of a table."""


def _table(content: dict[str, Any]) -> ScaleTable:
    method, images = (_entry(content, "the table", key) for key in ("method", "images"))
    if method not in ORIGINS:
        raise _Unusable(f"method must be one of {', '.join(ORIGINS)}, not {method!r}")
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        raise _Unusable(f"images must be a whole number, not {images!r}")
    return ScaleTable(
        tensors=_items(content, "tensors", _range),
        weights=_items(content, "weights", _amaxes),
        method=method,
        images=images,
        means=_items(content, "means", _numbers) if content.get("means") else {},
    )


def _items(content: dict[str, Any], key: str, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    items = _entry(content, "the table", key)
    if not isinstance(items, dict) or not items:
        raise _Unusable(f"{key} must be a map with an entry for each name")
    return {name: read(name, value) for name, value in items.items()}


def _range(name: str, value: Any) -> Range:
    numbers = {key: _entry(value, name, key) for key in Range._fields}
    sqnr = numbers.pop("sqnr")
    amax, low, high = (_number(f"{name}: {key}", number) for key, number in numbers.items())
    if amax < 0:
        raise _Unusable(f"{name}: amax must be 0 or more, not {amax:g}")
    if low > high:
        raise _Unusable(f"{name}: low {low:g} is above high {high:g}")
    return Range(amax, low, high, None if sqnr is None else _number(f"{name}: sqnr", sqnr))


def _numbers(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value:
        raise _Unusable(f"{name}: must be a list of one number a channel")
    return [_number(f"{name}: channel {channel}", number) for channel, number in enumerate(value)]


def _amaxes(name: str, value: Any) -> list[float]:
    numbers = _numbers(name, value)
    if min(numbers) < 0:
        raise _Unusable(
            f"{name}: channel {numbers.index(min(numbers))} must be 0 or more, not {min(numbers):g}"
        )
    return numbers


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise _Unusable(f"{name} must be a number, not {value!r}")
    return float(value)


def _entry(values: Any, name: str, key: str) -> Any:
    if not isinstance(values, dict) or key not in values:
        raise _Unusable(f"{name} has no {key}")
    return values[key]


def check_table(table: ScaleTable, model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Hold a table to the network that it is for.

    Every tensor and weight of the table must be in the network, with as many channels, and the input and the weight of
    each of its convolutions in the table. The largest weights of the filters tell another training of the network.

    Args:
        model: the float network.
        path: of the table, named in errors.

    Raises:
        ModelError: the table is of another network.
    """
    graph = model.graph
    tensors = {item.name for item in graph.input} | {name for node in graph.node for name in node.output}
    weights = {item.name: item.dims[0] for item in graph.initializer if item.dims}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    read = list(dict.fromkeys(node.input[0] for node in convolutions))
    filters = list(dict.fromkeys(node.input[1] for node in convolutions))
    unknown = [name for name in table.tensors if name not in tensors]
    unknown += [name for name in table.weights if name not in weights]
    missing = [name for name in read if name not in table.tensors]
    missing += [name for name in filters if name not in table.weights]
    if unknown or missing:
        text = f"it has no range of {_named(missing)}"
        if unknown:
            text = f"the network does not have {_named(unknown)}"
        raise ModelError(f"{path} is of another network: {text}; run detectkit calibrate on this one")
    for name in filters:
        _check_channels(name, table.weights[name], weights[name], path)
    for tensor in graph.initializer:
        if tensor.name in filters:
            _check_filters(tensor, table.weights[tensor.name], path)
    inputs = {node.input[0]: _channels_in(node, graph) for node in convolutions}
    for name, values in table.means.items():
        _check_channels(name, values, inputs.get(name, 0), path)


def _check_channels(name: str, values: Sequence[float], wanted: int, path: str | os.PathLike[str]) -> None:
    if len(values) != wanted:
        raise ModelError(
            f"{path} is of another network: {name} has {len(values)} channels there and {wanted} in the network"
            " (pruned since?); run detectkit calibrate on this one"
        )


def _check_filters(tensor: onnx.TensorProto, values: Sequence[float], path: str | os.PathLike[str]) -> None:
    weight = onnx.numpy_helper.to_array(tensor)
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    others = int((np.abs(largest - values) > SAME * largest.max()).sum())
    if others:
        raise ModelError(
            f"{path} is of another training of this network: {tensor.name} has other largest weights in {others} of"
            f" {len(weight)} filters; run detectkit calibrate on this model"
        )


def _channels_in(convolution: onnx.NodeProto, graph: onnx.GraphProto) -> int:
    """How many channels a convolution reads."""
    weight = next(item for item in graph.initializer if item.name == convolution.input[1])
    groups = next((item.i for item in convolution.attribute if item.name == "group"), 1)
    return int(weight.dims[1] * groups)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
