"""The walk over a spec's fields, and what the schema itself asks of each: presence, range, choices, from its `(rule)`."""

from __future__ import annotations

import difflib
import json
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from detectkit.console import CONTROL, visible
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.rule_pb2 import rule as rule_option

VISIBLE = "must have no control character (it has {})"
INTERVAL = re.compile(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])$")


class Violation(NamedTuple):
    """A broken rule. `value` is what the spec holds, as text; empty where it holds nothing."""

    path: str
    rule: str
    value: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}" + (f", got {self.value}" if self.value else "")


def rule_of(field: FieldDescriptor) -> Rule:
    """The machine-readable rule of a field of the schema."""
    option: Any = rule_option  # generated stubs give extensions another type than protobuf's own
    found: Rule = field.GetOptions().Extensions[option]
    return found


def schema_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message, under the one type that all of this package uses."""
    return cast(Descriptor, message.DESCRIPTOR)


def fields_of(message: Message) -> list[tuple[FieldDescriptor, Any]]:
    """The fields that are set, with their values."""
    return cast(list[tuple[FieldDescriptor, Any]], message.ListFields())


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def present(message: Message, path: str) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Path, field and value of everything that is set in a message; one for each element of a list or map."""
    for field, value in fields_of(message):
        here = join(path, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted(value):
                yield f"{here}[{quoted(key)}]", field, value[key]
        elif field.is_repeated:
            for index, element in enumerate(value):
                yield f"{here}[{index}]", field, element
        else:
            yield here, field, value


def violations(message: Message, path: str = "", *, is_grid: bool = False) -> Iterator[Violation]:
    """What a message breaks of the schema's own rules. Of a field that does nothing, nothing is asked.

    Args:
        is_grid: it is of a spec whose head is the grid, which asks for more.
    """
    have = {field.name for field, _ in fields_of(message)}
    for field in schema_of(message).fields:
        rule = rule_of(field)
        required = rule.required or (is_grid and rule.required_by_grid)
        if required and field.name not in have and not _has_another(message, field):
            yield Violation(join(path, field.name), _required(field), "")
    for here, field, value in present(message, path):
        rule = rule_of(field)
        if rule.inert:
            continue
        if isinstance(value, Message):
            yield from violations(value, here, is_grid=is_grid)
        else:
            yield from _value(here, value, field, rule)
    yield from _keys(message, path)


def _keys(message: Message, path: str) -> Iterator[Violation]:
    """Keys of maps are names of classes."""
    for field, value in fields_of(message):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted(filter(control_character, map(str, value))):
                yield Violation(join(path, field.name), VISIBLE.format(control_character(key)), quoted(key))


def _has_another(message: Message, field: FieldDescriptor) -> bool:
    """Whether another field of its oneof is set, or has to be asked for in its place: the first speaks for all."""
    choice = field.containing_oneof
    return choice is not None and (
        message.WhichOneof(choice.name) is not None or field.name != choice.fields[0].name
    )


def _required(field: FieldDescriptor) -> str:
    if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
        names = [other.name for other in field.containing_oneof.fields]
        return f"one of {', '.join(names)} is needed"
    if field.message_type is not None and not field.is_repeated:
        return "this section is missing"
    return "at least one is needed" if field.is_repeated else "must be set"


def _value(path: str, value: Any, field: FieldDescriptor, rule: Rule) -> Iterator[Violation]:
    """What a scalar breaks of its rule."""
    shown = show(value, field)
    if isinstance(value, float) and not math.isfinite(value):
        yield Violation(path, "must be a finite number", shown)
    elif isinstance(value, str) and (found := control_character(_in_lines(value, field))):
        yield Violation(path, VISIBLE.format(found), shown)
    elif field.enum_type is not None and value not in field.enum_type.values_by_number:
        names = [f"{known.name} ({known.number})" for known in field.enum_type.values]
        yield Violation(path, f"must be one of {', '.join(names)}", shown)
    elif rule.choices and shown.strip('"') not in rule.choices:
        near = difflib.get_close_matches(shown.strip('"').lower(), rule.choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near and isinstance(value, str) else ""
        yield Violation(path, f"must be one of {', '.join(rule.choices)}{hint}", shown)
    elif rule.range and not _in(value, rule.range):
        yield Violation(path, f"must be in {rule.range}", shown)
    elif rule.required and value == "":
        yield Violation(path, "must not be empty", '""')


def _in_lines(value: str, field: FieldDescriptor) -> str:
    """A text without the ends of its lines, where it may have several: notes are for people alone."""
    return value.replace("\n", "").replace("\t", "") if field.name == "notes" else value


def _in(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `[0, 1)`."""
    match = INTERVAL.match(interval)
    assert match, interval  # the schema's own text
    opening, low, high, closing = match.groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    below = value <= float(high) if closing == "]" else value < float(high)
    return above and below


# Values as text


def show(value: Any, field: FieldDescriptor) -> str:
    """A scalar as a spec writes it."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    return short(value) if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """The shortest text that reads as the same 32-bit number (0.1, not 0.100000001); 64-bit ones as they are."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if math.isfinite(value) and struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    return repr(value)


def control_character(text: str) -> str | None:
    """The first character that a terminal or a line of a file would obey, or not show, as `U+001B`; None: there is none."""
    found = None if text.isprintable() else CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def quoted(text: str) -> str:
    return visible(json.dumps(text, ensure_ascii=False))
