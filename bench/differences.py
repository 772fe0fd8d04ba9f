"""How two files differ, in words: in what is in them, value by value and bit by bit.

What follows from another difference (a checksum), belongs to the clock or to a version, or is an entry of a header that only the
newer file has, is told too, as meant.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray
from onnx import numpy_helper

HEADER = "detectkit"  # the metadata key of models
FOLLOWS = "checksum"  # the entry of a header that every other difference changes
# In names of entries of JSON files.
CLOCK = re.compile(r"seconds|started|finished|latency|\b(ms|date|time)\b")
# What texts say of the clock: whole lines of tables of times, and in others times of day, durations, rates.
TIMED = re.compile(r".*(\bms\b|ONNX Runtime).*")
PASSING = re.compile(
    r"(\d+-)?\d+[-/]\d\d[ T]\d\d:\d\d(:\d\d)?|[\d.,]+.(ms|s|min|h|images/s)\b|\d+:\d\d(:\d\d)?|[\d.]+x faster"
)


class Difference(NamedTuple):
    """One of two files. The text does not name them, so that the same one of several files can be counted."""

    text: str
    is_meant: bool = False


TIMES = Difference("times", is_meant=True)


def differences(before: Path, after: Path) -> list[Difference]:
    """What differs in two files; empty where they have the same bytes.

    Models, tables and pages are read; of files of other kinds the bytes are compared.
    """
    missing = [side for side, path in (("before", before), ("after", after)) if not path.exists()]
    if missing:
        return [Difference(f"is not there {' and '.join(missing)}")]
    if before.read_bytes() == after.read_bytes():
        return []
    found = list(READERS.get(before.suffix, _bytes)(before, after))
    return found or [Difference("bytes alone, in nothing that is read", is_meant=True)]


def _bytes(before: Path, after: Path) -> Iterator[Difference]:
    one, other = before.read_bytes(), after.read_bytes()
    at = next(
        (at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other))
    )
    yield Difference(f"bytes: {len(one)} and {len(other)}, the first other one is number {at}")


# Values


def arrays(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> Iterator[Difference]:
    """Of arrays by name: names, shapes, types, then values, bit by bit."""
    yield from _names("tensor", before, after)
    both = [name for name in before if name in after]
    shaped = [name for name in both if before[name].shape != after[name].shape]
    if shaped:
        name = shaped[0]
        sizes = f"{list(before[name].shape)} and {list(after[name].shape)}"
        yield Difference(f"shapes of {len(shaped)} of {len(both)} tensors: {name} is {sizes}")
    typed = [name for name in both if before[name].dtype != after[name].dtype]
    if typed:
        name = typed[0]
        types = f"{before[name].dtype} and {after[name].dtype}"
        yield Difference(f"types of {len(typed)} of {len(both)} tensors: {name} is {types}")
    rest = [name for name in both if name not in shaped and name not in typed]
    changed = [name for name in rest if before[name].tobytes() != after[name].tobytes()]
    if changed:
        name = changed[0]
        yield Difference(
            f"values of {len(changed)} of {len(both)} tensors: {name}, {_largest(before[name], after[name])}"
        )


def _largest(one: NDArray[Any], other: NDArray[Any]) -> str:
    if one.dtype.kind not in "fiu":
        return f"{int(np.sum(one != other))} of {one.size} values"
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return f"{int(np.sum(apart > 0))} of {one.size} values, at most {apart.max():.3g} apart"


def _names(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    for word, names in (("gone", gone), ("new", new)):
        if names:
            yield Difference(
                f"{len(names)} {kind}s {word}: {', '.join(names[:3])}{', …' if names[3:] else ''}"
            )


def _safetensors(before: Path, after: Path) -> Iterator[Difference]:
    yield from _metadata(*map(_safetensors_metadata, (before, after)))
    yield from arrays(*map(safetensors.numpy.load_file, (before, after)))


def _safetensors_metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _npz(before: Path, after: Path) -> Iterator[Difference]:
    with np.load(before) as one, np.load(after) as other:
        found = [dict(file) for file in (one, other)]
    headers = [json.loads(file.pop("header").tobytes()) if "header" in file else {} for file in found]
    yield from _contents(*headers)
    yield from arrays(*found)


# Headers


def _metadata(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    """Of the metadata of models: an entry that only the newer file has is meant, one that is gone is not."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield Difference(f"new in the metadata: {name}", is_meant=True)
        elif name not in after:
            yield Difference(f"gone from the metadata: {name}")
        elif name == HEADER:
            yield from _header(json.loads(before[name]), json.loads(after[name]))
        elif before[name] != after[name]:
            yield from _lines(f"metadata {name}", before[name], after[name])


def _header(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield Difference(f"new in the header: {name}", is_meant=True)
        elif name not in after:
            yield Difference(f"gone from the header: {name}")
        elif name == FOLLOWS and before[name] != after[name]:
            yield Difference(f"another {name} in the header, which follows", is_meant=True)
        elif isinstance(before[name], str) and isinstance(after[name], str):
            yield from _lines(f"header {name}", before[name], after[name])
        elif before[name] != after[name]:
            yield Difference(f"header {name}: {before[name]} and {after[name]}")


# Networks


def _onnx(before: Path, after: Path) -> Iterator[Difference]:
    one, other = onnx.load(before), onnx.load(after)
    yield from _metadata(*({item.key: item.value for item in model.metadata_props} for model in (one, other)))
    for name in (
        "ir_version",
        "opset_import",
        "functions",
        "producer_name",
        "producer_version",
        "doc_string",
    ):
        values = [_told(getattr(model, name)) for model in (one, other)]
        if values[0] != values[1]:
            yield Difference(f"{name}: {values[0]} and {values[1]}", is_meant=name == "producer_version")
    for name in ("input", "output", "value_info", "sparse_initializer", "quantization_annotation"):
        yield from _messages(name, getattr(one.graph, name), getattr(other.graph, name))
    if one.graph.name != other.graph.name:
        yield Difference(f"the graph's name: {one.graph.name} and {other.graph.name}")
    yield from _nodes(one.graph.node, other.graph.node)
    weights = [
        {item.name: numpy_helper.to_array(item) for item in model.graph.initializer} for model in (one, other)
    ]
    yield from arrays(*weights)
    if list(weights[0]) != list(weights[1]) and weights[0].keys() == weights[1].keys():
        yield Difference("the weights are in another order")


def _told(value: Any) -> Any:
    """A field of a model as a value that can be compared and printed."""
    return value if isinstance(value, (int, str)) else [" ".join(str(item).split()) for item in value]


def _messages(kind: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Difference]:
    texts = [[" ".join(str(item).split()) for item in items] for items in (before, after)]
    if texts[0] == texts[1]:
        return
    if sorted(texts[0]) == sorted(texts[1]):
        yield Difference(f"{kind}: the same {len(texts[0])} in another order")
        return
    gone, new = ([text for text in mine if text not in theirs] for mine, theirs in (texts, texts[::-1]))
    yield Difference(f"{kind}: {len(gone)} gone, {len(new)} new: {_short(gone)} and {_short(new)}")


def _nodes(before: Sequence[onnx.NodeProto], after: Sequence[onnx.NodeProto]) -> Iterator[Difference]:
    """Of the nodes of a graph, in order, with their attributes."""
    texts = [[node.SerializeToString(deterministic=True) for node in nodes] for nodes in (before, after)]
    if texts[0] == texts[1]:
        return
    if sorted(texts[0]) == sorted(texts[1]):
        yield Difference(f"nodes: the same {len(before)} in another order")
        return
    pairs = zip(before, after, texts[0], texts[1])  # noqa: B905
    first = next(((one, other) for one, other, text, theirs in pairs if text != theirs), None)
    numbers = f"{len(before)} and {len(after)} nodes"
    if first is None:
        yield Difference(f"nodes: {numbers}, the first {min(len(before), len(after))} are the same")
    else:
        yield Difference(f"nodes: {numbers}, the first other one: {_node(first[0])} and {_node(first[1])}")


def _node(node: onnx.NodeProto) -> str:
    attributes = ", ".join(f"{item.name}={_attribute(item)}" for item in node.attribute)
    named = f" {node.name}" if node.name else ""
    return f"{node.op_type}{named}({', '.join(node.input)}; {attributes}) -> {', '.join(node.output)}"


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value).tolist()
    return _short([str(value)])


def _short(texts: Sequence[str], length: int = 100) -> str:
    if not texts:
        return "none"
    return texts[0] if len(texts[0]) <= length else f"{texts[0][:length]}…"


# Texts


def _text(before: Path, after: Path) -> Iterator[Difference]:
    yield from _lines("text", before.read_text(), after.read_text())


def _lines(kind: str, before: str, after: str) -> Iterator[Difference]:
    """The first other line, and how many there are; those that tell times are meant."""
    if before == after:
        return
    timeless = _timeless(before), _timeless(after)
    if timeless[0] == timeless[1]:
        yield Difference(f"{kind}: times", is_meant=True)
        return
    compared = difflib.unified_diff(*(text.splitlines() for text in timeless), lineterm="", n=0)
    changes = [line for line in compared if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    gone, new = ([line[1:].strip() for line in changes if line[0] == sign] for sign in "-+")
    yield Difference(f"{kind}: {len(gone)} lines gone, {len(new)} new: {_short(gone)} and {_short(new)}")


def _timeless(text: str) -> str:
    return PASSING.sub("…", TIMED.sub("…", text))


def _json(before: Path, after: Path) -> Iterator[Difference]:
    yield from _contents(json.loads(before.read_text()), json.loads(after.read_text()))


def _json_lines(before: Path, after: Path) -> Iterator[Difference]:
    yield from _contents(
        *([json.loads(line) for line in path.read_text().splitlines()] for path in (before, after))
    )


def _contents(before: Any, after: Any) -> Iterator[Difference]:
    """Of what two JSON files hold: an entry that only the newer one has is meant, as in headers."""
    found = list(_values("", before, after))
    real = [item.text for item in found if not item.is_meant]
    new = [item.text for item in found if item.is_meant and item != TIMES]
    if real:
        yield Difference(f"{len(real)} other values: {real[0]}")
    if new:
        yield Difference(f"{len(new)} new entries: {new[0]}", is_meant=True)
    if TIMES in found:
        yield TIMES


def _values(path: str, before: Any, after: Any) -> Iterator[Difference]:
    """Of the values of nested lists and dictionaries, one by one."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before | after:
            inner = f"{path}.{name}".lstrip(".")
            if name in before and name in after:
                yield from _values(inner, before[name], after[name])
            else:
                yield Difference(f"{inner} is gone") if name in before else Difference(inner, is_meant=True)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _values(f"{path}[{number}]", one, other)
    else:
        texts = [json.dumps(value, ensure_ascii=False) for value in (before, after)]  # nan is itself here
        if texts[0] != texts[1]:
            is_text = isinstance(before, str) and isinstance(after, str)
            is_time = CLOCK.search(path) or (is_text and _timeless(before) == _timeless(after))
            yield TIMES if is_time else Difference(f"{path} is {_short(texts[:1])} and {_short(texts[1:])}")


class _Page(HTMLParser):
    """The rows of the tables of a page, and its other texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._in_cell = self._is_silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True
        self._is_silent = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        self._is_silent = False

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if self._in_cell:
            self.rows[-1][-1] += text
        elif text and not self._is_silent:
            self.texts.append(text)


def _html(before: Path, after: Path) -> Iterator[Difference]:
    one, other = _Page(before.read_text()), _Page(after.read_text())
    tables = ["\n".join(" | ".join(row) for row in page.rows) for page in (one, other)]
    texts = ["\n".join(page.texts) for page in (one, other)]
    yield from _lines("tables", *tables)
    yield from _lines("other text", *texts)
    if tables[0] == tables[1] and texts[0] == texts[1]:
        yield Difference("the page's markup or pictures, not its words")


READERS: dict[str, Callable[[Path, Path], Iterator[Difference]]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".npz": _npz,
    ".json": _json,
    ".jsonl": _json_lines,
    ".txt": _text,
    ".cache": _text,
    ".html": _html,
}
