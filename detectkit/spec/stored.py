"""The specs in files that detectkit has written: another version, with other fields, may have been the writer (docs/formats.md)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from detectkit import __version__
from detectkit.console import log, visible
from detectkit.spec import text as source
from detectkit.spec.schema import schema_of
from detectkit.spec.classes import lists_classes
from detectkit.spec.experiment_pb2 import Experiment

WRITER = "written_by"  # the entry that holds the version of the writer, in files of every kind
NAMED = 8  # unknown fields in one warning


class Stored(NamedTuple):
    """A spec as it was stored, as far as this version knows its fields."""

    spec: Experiment
    unknown: list[str]  # paths of the fields that it does not know, in the order of the text


def read_stored(text: str) -> Stored:
    """Read the resolved spec of a file of detectkit, without judging its values.

    Raises:
        ValueError: it is no text of a spec, or has a value that this version cannot read, such as a name that a choice
            does not have here.
    """
    try:
        fields = source.read(text)
        message = text_format.Parse(text, Experiment(), allow_unknown_field=True)
    except source.Malformed as error:
        raise ValueError(error.problem.message) from error
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error
    if lists_classes(message):  # what is stored stands alone, and makes nobody open a file
        raise ValueError("it has a list of classes, which no resolved spec has")
    unknown = list(dict.fromkeys(_unknown(fields, schema_of(Experiment), "")))
    if fields and not message.ListFields():
        raise ValueError(f"no field of it is known here: {', '.join(unknown[:NAMED])}")
    return Stored(message, unknown)


def _unknown(fields: Iterable[source.Field], schema: Descriptor, path: str) -> Iterator[str]:
    for field in fields:
        here = f"{path}.{field.name}" if path else field.name
        known: FieldDescriptor | None = schema.fields_by_name.get(field.name)
        if known is None:
            yield here
        elif known.message_type is not None:
            for value in field.values:
                yield from _unknown(value.fields or (), known.message_type, here)


def unknown_entries(content: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """The entries of a file of detectkit that this version does not know, sorted."""
    return sorted(set(map(str, content)) - {*known, WRITER})


def warn_of_unknown(path: str | os.PathLike[str], writer: object, names: Sequence[str]) -> None:
    """Say what of a file of another version is passed over, if anything; once in a process, however often it is read.

    Args:
        path: of the file.
        writer: what its entry `WRITER` holds; None: it has none.
        names: of the fields and entries.
    """
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        shown = ", ".join(map(visible, names[:NAMED]))
        _warn(f"{path} was {by(writer)}: not known here, and without effect: {shown}{more}")


@functools.cache
def _warn(line: str) -> None:
    log.warning("%s", line)


def by(writer: object) -> str:
    """In words, who wrote a file and who reads it: "written by detectkit 0.2.0 (this is 0.1.0)".

    Args:
        writer: what the file's entry `WRITER` holds; None: it has none.
    """
    return f"written by {f'detectkit {visible(str(writer))}' if writer else 'another detectkit'} (this is {__version__})"


def other_writer(writer: object) -> str:
    """The end of an error about a file that cannot be read: who wrote it, where that was not this version."""
    return "" if writer == __version__ else f"; it was {by(writer)}"
