"""What a command is to do: an option says it, or else the field of a spec's section that it stands for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from detectkit.errors import UsageError
from detectkit.spec.schema import schema_of, short


class Settings:
    """The options of a command line, and behind those that are not given a section of a spec.

    Args:
        args: the options, by the names of the fields; one that is not given is None.
        section: of a checked spec.
        path: of the section, as `export_config`.
        options: by the name of a field, the option that goes before it.
    """

    def __init__(
        self, args: argparse.Namespace, section: Message, path: str, options: Mapping[str, str]
    ) -> None:
        self._args, self._section, self._path, self._options = args, section, path, options

    def is_given(self, name: str) -> bool:
        """Whether there is the option itself."""
        return getattr(self._args, name) is not None

    def value(self, name: str) -> Any:
        """What is asked for; None where neither says it. Names of enums are as on a command line, in lower case."""
        if self.is_given(name) or not self._is_set(name):
            return getattr(self._args, name)
        value = getattr(self._section, name)
        field = self._field(name)
        if field.enum_type is not None:
            return field.enum_type.values_by_number[value].name.lower()
        return list(value) if field.is_repeated else value

    def title(self, name: str) -> str:
        """What a message calls it: the field where that says it, otherwise the option."""
        if not self.is_given(name) and self._is_set(name):
            return f"{self._path}.{name}"
        return self._options[name]

    def text(self, name: str) -> str:
        """What is asked for, for a message: `--data_type int8`, or `export_config.data_type INT8`."""
        value = self.value(name)
        if isinstance(value, bool):
            return self.title(name)
        if self._field(name).enum_type is not None and not self.is_given(name):
            value = value.upper()
        return f"{self.title(name)} {short(value) if isinstance(value, float) else value}"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Usage errors inside, which name options, name the fields that speak in their place."""
        try:
            yield
        except UsageError as error:
            message = str(error)
            for name, option in self._options.items():
                message = re.sub(rf"(?<![\w-]){re.escape(option)}(?![\w-])", self.title(name), message)
            raise UsageError(message) from error

    def _field(self, name: str) -> FieldDescriptor:
        return schema_of(self._section).fields_by_name[name]

    def _is_set(self, name: str) -> bool:
        if self._field(name).is_repeated:
            return bool(getattr(self._section, name))
        return self._section.HasField(name)
