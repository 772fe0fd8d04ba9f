"""The text of a spec with its lines and columns: what protobuf's own parser cannot tell.

`read` splits a text into fields, `judge` holds them against the schema and finds every unknown field, unknown enum
name, wrong type and repeated field at once; `Places` finds the line of a path such as `a.b[0].c["car"].d`.
protobuf's parser stays the one that makes the message.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<slashes>//)
      | (?P<word>[A-Za-z0-9_.+-]+)
      | (?P<symbol>[{}<>\[\]:;,])
      | (?P<other>.)""",
    re.VERBOSE,
)
CURLY_QUOTES = "“”„‟‘’‚‛«»″′"
CLOSERS = {"{": "}", "<": ">", "[": "]"}
WHOLE_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)$")
NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[fF]?$|[+-]?(inf|infinity|nan)f?$", re.IGNORECASE
)
TRUE = ("true", "True", "t", "1")
BOOLEANS = (*TRUE, "false", "False", "f", "0")
DEEPEST = 32
ESCAPE = re.compile(r"\\(.)")
KNOWN_ESCAPE = re.compile(r"[abfnrtv\\'\"?0-7xXuU]")
STEP = re.compile(r'([A-Za-z_]\w*)(?:\[(?:(\d+)|"((?:[^"\\]|\\.)*)")\])?')
KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of at least 0",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: 'text in quotes, like "car"',
}


class Problem(NamedTuple):
    """What is wrong at a line and column, both counted from 1."""

    line: int
    column: int
    message: str


class Malformed(Exception):
    """The text has no structure that could be judged: `problem` says where and why."""

    def __init__(self, line: int, column: int, message: str):
        super().__init__(message)
        self.problem = Problem(line, column, message)


class Token(NamedTuple):
    kind: str
    text: str
    line: int
    column: int


class Value(NamedTuple):
    """A scalar as it is written, or the fields of a block (then `text` is empty)."""

    text: str
    fields: list[Field] | None
    line: int
    column: int


class Field(NamedTuple):
    """A field's name and its values: one, or those of a `[…, …]` list."""

    name: str
    values: list[Value]
    line: int
    column: int


def read(text: str) -> list[Field]:
    """Split a spec into its fields. Raises Malformed where the text is not `name: value` and `name { … }`."""
    return _Reader(list(_tokens(text))).fields(None, depth=0)


def _tokens(text: str) -> Iterator[Token]:
    line, start = 1, 0
    for match in TOKEN.finditer(text):
        kind, word = str(match.lastgroup), match.group()
        column = match.start() - start + 1
        if kind in ("slashes", "other"):
            raise Malformed(line, column, _stray(word, text))
        if kind != "space":
            yield Token(kind, word, line, column)
        if "\n" in word:
            line += word.count("\n")
            start = match.start() + word.rindex("\n") + 1


def _stray(character: str, text: str) -> str:
    """Why a character cannot stand where it stands."""
    if character == "//":
        return "'//' does not start a comment here: use '#'"
    if character in CURLY_QUOTES:
        lines = sum(any(quote in line for quote in CURLY_QUOTES) for line in text.split("\n"))
        more = f" ({lines} lines have them)" if lines > 1 else ""
        return f'curly quote {character}: type straight quotes " instead{more}'
    if character in "\"'":
        return f"the text that starts with {character} is not closed on its line"
    name = unicodedata.name(character, f"character number {ord(character)}").lower()
    dash = ": type - instead" if "dash" in name or "minus" in name else ""
    shown = character if character.isprintable() else f"U+{ord(character):04X}"
    return f"unexpected {shown} ({name}){dash}"


class _Reader:
    """Walks over the tokens once."""

    def __init__(self, tokens: list[Token]):
        last = tokens[-1] if tokens else Token("end", "", 1, 1)
        self.tokens = [*tokens, Token("end", "", last.line, last.column + len(last.text))]
        self.at = 0

    def peek(self) -> Token:
        return self.tokens[self.at]

    def skip(self, *symbols: str) -> bool:
        """Step over one of the symbols, if it comes next."""
        found = self.peek().kind == "symbol" and self.peek().text in symbols
        self.at += found
        return found

    def fields(self, opener: Token | None, *, depth: int) -> list[Field]:
        """The fields up to the end of the block that `opener` opened (None: of the file)."""
        found: list[Field] = []
        if opener and depth > DEEPEST:
            raise Malformed(opener.line, opener.column, f"more than {DEEPEST} blocks inside each other")
        while not (opener and self.skip(CLOSERS[opener.text])):
            if self.peek().kind == "end":
                if opener:
                    raise Malformed(opener.line, opener.column, f"this {opener.text} is never closed")
                break
            found.append(self.field(depth))
        return found

    def field(self, depth: int) -> Field:
        name = self.peek()
        if name.kind != "word" or not re.match("[A-Za-z_]", name.text):
            raise Malformed(name.line, name.column, f"expected the name of a field, got {_shown(name)}")
        self.at += 1
        colon = self.skip(":")
        first = self.peek()
        if not colon and not (first.kind == "symbol" and first.text in "{<["):
            raise Malformed(
                first.line, first.column, f"expected ':' or '{{' after {name.text}, got {_shown(first)}"
            )
        values = self.list(depth) if self.skip("[") else [self.value(name, depth)]
        self.skip(";", ",")
        return Field(name.text, values, name.line, name.column)

    def list(self, depth: int) -> list[Value]:
        """The values of a list after its `[`."""
        opener = self.tokens[self.at - 1]
        values: list[Value] = []
        while not self.skip("]"):
            if self.peek().kind == "end":
                raise Malformed(opener.line, opener.column, "this [ is never closed")
            comma = self.peek()
            if values and not self.skip(","):
                raise Malformed(
                    comma.line, comma.column, f"expected ',' or ']' in the list, got {_shown(comma)}"
                )
            values.append(self.value(opener, depth))
        return values

    def value(self, owner: Token, depth: int) -> Value:
        token = self.peek()
        if self.skip("{", "<"):
            self.refuse_blank(token, owner)
            return Value("", self.fields(token, depth=depth + 1), token.line, token.column)
        if token.kind not in ("word", "string"):
            raise Malformed(
                token.line, token.column, f"expected a value after {owner.text}, got {_shown(token)}"
            )
        self.at += 1
        text = token.text
        while token.kind == "string" and self.peek().kind == "string":  # adjacent strings are one
            text = text[:-1] + self.peek().text[1:-1] + text[-1]
            self.at += 1
        return Value(text, None, token.line, token.column)

    def refuse_blank(self, opener: Token, owner: Token) -> None:
        """Raise Malformed for `<FIXME>` or `<your folder>`, which a reader was to replace by a value."""
        end = self.at
        while opener.text == "<" and self.tokens[end].kind == "word":
            end += 1
        if end > self.at and self.tokens[end].text == ">":
            words = " ".join(token.text for token in self.tokens[self.at : end])
            raise Malformed(
                opener.line, opener.column, f"put a value for {owner.text} in the place of <{words}>"
            )


def _shown(token: Token) -> str:
    return "the end of the file" if token.kind == "end" else token.text


def judge(fields: list[Field], descriptor: Descriptor) -> list[Problem]:
    """Every unknown field, unknown enum name, wrong type and repeated field, in the order of the text."""
    return sorted(_judge(fields, descriptor))


def _judge(fields: list[Field], descriptor: Descriptor) -> Iterator[Problem]:
    seen: dict[str, Field] = {}
    for field in fields:
        schema = descriptor.fields_by_name.get(field.name)
        if schema is None:
            yield Problem(field.line, field.column, unknown_field(field.name, descriptor))
            continue
        yield from _repeated(field, schema, seen)
        for value in field.values:
            yield from _judge_value(value, schema)


def _repeated(field: Field, schema: FieldDescriptor, seen: dict[str, Field]) -> Iterator[Problem]:
    """Fields that may stand once, and members of a oneof, that stand twice."""
    if schema.is_repeated:
        return
    oneof = schema.containing_oneof
    first = seen.setdefault(oneof.name if oneof else field.name, field)
    if len(field.values) != 1:
        yield Problem(field.line, field.column, f"{field.name} takes one value, not a list")
    elif first is not field and first.name == field.name:
        if _same(first.values[0], field.values[0], schema):  # `repeated` warns of it
            return
        yield Problem(field.line, field.column, f"{field.name} is given {_lines([first, field])}: keep one")
    elif first is not field:
        message = f"{field.name} and {first.name} (line {first.line}) exclude each other: keep one"
        yield Problem(field.line, field.column, message)


def _same(first: Value, second: Value, schema: FieldDescriptor) -> bool:
    """Whether two scalars are one value, however they are written."""
    if first.fields is not None or second.fields is not None:
        return False
    return first.text == second.text or _meaning(first.text, schema) == _meaning(second.text, schema)


def _meaning(text: str, schema: FieldDescriptor) -> object:
    """The value of a scalar; what the field does not take stands for itself."""
    if schema.enum_type is not None:
        known = schema.enum_type.values_by_name.get(text)
        return known.number if known else _whole(text) if WHOLE_NUMBER.match(text) else text
    if not _fits(text, schema):
        return text
    if schema.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text[1:-1]
    if schema.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return text in TRUE
    return _whole(text) if WHOLE_NUMBER.match(text) else float(text.lower().rstrip("f" * (text[-1] in "fF")))


def _judge_value(value: Value, schema: FieldDescriptor) -> Iterator[Problem]:
    if schema.message_type is not None:
        if value.fields is None:
            message = f"{schema.name} is a block: write {schema.name} {{ … }}"
            yield Problem(value.line, value.column, message)
        else:
            yield from _judge(value.fields, schema.message_type)
    elif value.fields is not None:
        yield Problem(value.line, value.column, f"{schema.name} takes {_kind(schema)}, got a block")
    elif schema.enum_type is not None:
        if value.text not in schema.enum_type.values_by_name and not WHOLE_NUMBER.match(value.text):
            yield Problem(
                value.line,
                value.column,
                f"{schema.name} takes {_kind(schema)}, got {value.text}{near(value.text, schema.enum_type.values_by_name)}",
            )
    elif schema.cpp_type == FieldDescriptor.CPPTYPE_STRING and _bad_escape(value.text):
        message = (
            f"{_bad_escape(value.text)} means nothing in text: write \\\\ for a backslash, or / in paths"
        )
        yield Problem(value.line, value.column, message)
    elif not _fits(value.text, schema):
        yield Problem(value.line, value.column, f"{schema.name} takes {_kind(schema)}, got {value.text}")


def _kind(schema: FieldDescriptor) -> str:
    """What a scalar field takes, in words."""
    if schema.enum_type is not None:
        return "one of " + ", ".join(value.name for value in schema.enum_type.values)
    return KINDS[schema.cpp_type]


def _fits(text: str, schema: FieldDescriptor) -> bool:
    if schema.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text[0] in "\"'"
    if schema.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return text in BOOLEANS
    if schema.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32):
        unsigned = schema.cpp_type == FieldDescriptor.CPPTYPE_UINT32
        low, high = (0, 2**32) if unsigned else (-(2**31), 2**31)
        return bool(WHOLE_NUMBER.match(text)) and len(text) < 20 and low <= _whole(text) < high
    return bool(NUMBER.match(text) or WHOLE_NUMBER.match(text))


def _bad_escape(text: str) -> str:
    """The first backslash of a text, with what follows it, that stands for no character."""
    for escape in ESCAPE.findall(text):
        if not KNOWN_ESCAPE.match(escape):
            return f"\\{escape}"
    return ""


def _whole(text: str) -> int:
    digits = text.lstrip("+-")
    base = 16 if digits[:2].lower() == "0x" else 10
    return int(text, base)


@functools.lru_cache(maxsize=1000)
def unknown_field(name: str, descriptor: Descriptor) -> str:
    """Say that a message has no such field, and which one may be meant."""
    return f"unknown field {name} in {descriptor.name}{near(name, descriptor.fields_by_name)}"


def near(name: str, names: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name.lower(), {known.lower(): known for known in names}, n=1)
    exact = {known.lower(): known for known in names}
    return f"; did you mean {exact[near[0]]}?" if near else ""


class Places:
    """Where the paths of a text's fields stand: an index, as a spec of thousands of classes may break as many rules."""

    def __init__(self, fields: list[Field]) -> None:
        self.fields = fields
        self.indices: dict[int, dict[tuple[str, str], list[tuple[Field, Value]]]] = {}

    def position(self, path: str) -> tuple[int, int]:
        """Line and column of a path such as `a.b[0].c["car"].d`, or of as much of it as the text holds (0, 0: nothing)."""
        found, fields = (0, 0), self.fields
        for name, index, key in STEP.findall(path):
            steps = self._index(fields).get((name, key), [])
            chosen = steps[int(index or 0) : int(index or 0) + 1]
            if not chosen:
                break
            field, value = chosen[0]
            found = (field.line, field.column) if len(field.values) == 1 else (value.line, value.column)
            fields = value.fields or []
            if key:
                fields = _value_of_entry(fields)
        return found

    def _index(self, fields: list[Field]) -> dict[tuple[str, str], list[tuple[Field, Value]]]:
        """The values of the fields of a block by their names, and those of map entries by name and key."""
        if id(fields) not in self.indices:
            index: dict[tuple[str, str], list[tuple[Field, Value]]] = {}
            for field in fields:
                for value in field.values:
                    index.setdefault((field.name, ""), []).append((field, value))
                    if _key(value):
                        index.setdefault((field.name, _key(value)), []).append((field, value))
            self.indices[id(fields)] = index
        return self.indices[id(fields)]


def _key(entry: Value) -> str:
    """The key of a map entry's block, without its quotes."""
    keys = [field.values[0].text for field in entry.fields or () if field.name == "key" and field.values]
    return keys[0][1:-1] if keys else ""


def _value_of_entry(fields: list[Field]) -> list[Field]:
    values = [field.values[0] for field in fields if field.name == "value" and field.values]
    return (values[0].fields or []) if values else []


def repeated(fields: list[Field], descriptor: Descriptor) -> Iterator[Problem]:
    """What is given more than once and does no harm: a scalar with one value, and map entries of one key.

    Of the latter protobuf keeps the last one. One problem for each field or key, where it stands last.
    """
    scalars: dict[str, list[Field]] = {}
    entries: dict[tuple[str, str], list[Value]] = {}
    for field in fields:
        schema = descriptor.fields_by_name[field.name]
        if schema.message_type is None:
            if not schema.is_repeated:
                scalars.setdefault(field.name, []).append(field)
            continue
        for value in field.values:
            if schema.message_type.GetOptions().map_entry:
                entries.setdefault((field.name, _key(value)), []).append(value)
            yield from repeated(value.fields or [], schema.message_type)
    for name, given in scalars.items():
        if len(given) > 1:
            message = f"{name} is given {_lines(given)}, each time with the same value: one is enough"
            yield Problem(given[-1].line, given[-1].column, message)
    for (name, key), values in entries.items():
        if len(values) > 1:
            message = f'{name}["{key}"] is given {_lines(values)}: the last one counts'
            yield Problem(values[-1].line, values[-1].column, message)


def _lines(given: Sequence[Field] | Sequence[Value]) -> str:
    """Where something stands that is given more than once."""
    if len(given) > 2:
        return f"{len(given)} times, from line {given[0].line} to line {given[-1].line}"
    first, last = given[0].line, given[1].line
    return f"on lines {first} and {last}" if first != last else f"twice on line {first}"
