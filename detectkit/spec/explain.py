"""The reference of every field, from the schema's own comments: on the terminal and as docs/spec.md."""

from __future__ import annotations

import difflib
import functools
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorSet

from detectkit.errors import UsageError
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.networks import NETWORKS, Architecture
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.schema import join, rule_of, schema_of, show

SCHEMA = Path(__file__).with_name("schema.binpb")
EDITION = (12,)  # where protoc keeps the comment at the head of a file
PACKAGE = "detectkit.spec."
WIDTH = 100  # of text on the terminal
ROOTS = {
    "Training spec": schema_of(Experiment),
    "Inference spec": schema_of(Inference),
    "Conversion spec": schema_of(DatasetExportConfig),
}
ARCH = "detectkit.spec.ModelConfig.arch"
TYPES = {
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_UINT32: "uint32",
    FieldDescriptor.CPPTYPE_FLOAT: "float",
    FieldDescriptor.CPPTYPE_DOUBLE: "double",
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_STRING: "string",
}


class Place(NamedTuple):
    """A field, the message it belongs to, and its path from the top of a spec of one kind."""

    kind: str
    path: str
    field: FieldDescriptor
    owner: Descriptor


def explain(path: str = "") -> str:
    """The documentation of a field or section; without a path, of the top-level sections.

    `path` is a full path (`training_config.learning_rate`, indices and class names in brackets are skipped), the end
    of one (`beta1`, `bbox.scale`), or the name of a message (`ClusteringConfig`). Raises UsageError for a path that
    is not there, or that ends several fields.
    """
    if not path.strip():
        return _sections()
    plain = _plain(path)
    for descriptor in messages():
        if _name(descriptor) == plain.removeprefix(PACKAGE):
            return _message_text(descriptor)
    exact = [place for place in places() if place.path == plain]
    if exact:  # training and conversion specs share a few names
        return "\n\n".join(_field_text(place) for place in exact)
    found = [place for place in places() if place.path.endswith("." + plain)]
    fields = {place.field.full_name for place in found}
    if not fields:
        raise UsageError(_unknown(path, plain))
    if len(fields) > 1:
        listed = "\n".join(f"  {_bracketed(place)}" for place in found)
        raise UsageError(f"{path} is the name of {len(fields)} fields; give one of these paths:\n{listed}")
    return _field_text(found[0])


def markdown() -> str:
    """The reference of all fields, one chapter a schema file, as Markdown."""
    lines = [
        "# Spec reference",
        "",
        "Generated from the comments of `proto/detectkit/spec/`; `detectkit explain PATH` prints the same.",
        "",
        "A field is optional unless it is marked required: in every spec, or where the head is the grid (`objective_set`). An unset field has its default.",
    ]
    for name, descriptor in ROOTS.items():
        lines.append(f"- {name}: [{_name(descriptor)}](#{_name(descriptor).lower()})")
    for file in _files():
        lines += ["", f"## {comments().get(file.name, file.name).rstrip('.')}"]
        for descriptor in _nested(file.message_types_by_name.values()):
            lines += ["", *_message_markdown(descriptor)]
    return "\n".join(lines) + "\n"


def _plain(path: str) -> str:
    """A path without indices, class names and the `key`/`value` of map entries."""
    return re.sub(r"\.value\b", "", re.sub(r"\[[^\]]*\]", "", path.strip())).strip(".")


# Walking over the schema


@functools.cache
def places() -> tuple[Place, ...]:
    """Every field of every kind of spec, with its path."""
    return tuple(place for kind, root in ROOTS.items() for place in _below(kind, root, ""))


def _below(kind: str, descriptor: Descriptor, path: str) -> Iterator[Place]:
    for field in descriptor.fields:
        here = join(path, field.name)
        yield Place(kind, here, field, descriptor)
        inner = inner_message(field)
        if inner is not None:
            yield from _below(kind, inner, here)


def value_field(field: FieldDescriptor) -> FieldDescriptor | None:
    """The value of a map's entries; None for a field that is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else None


def inner_message(field: FieldDescriptor) -> Descriptor | None:
    """The message in a field, also where the field is a list or a map of them."""
    return (value_field(field) or field).message_type


def _files() -> list[FileDescriptor]:
    """The schema's files in the order in which the kinds of specs use them, without the rules themselves."""
    files = {root.file.name: root.file for root in ROOTS.values()}
    for place in places():
        files.setdefault(place.owner.file.name, place.owner.file)
    return list(files.values())


def _nested(descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Messages, each followed by those declared in it; map entries left out."""
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from _nested(descriptor.nested_types)


def messages() -> list[Descriptor]:
    return [descriptor for file in _files() for descriptor in _nested(file.message_types_by_name.values())]


def _name(descriptor: Descriptor | EnumDescriptor) -> str:
    return descriptor.full_name.removeprefix(PACKAGE)


@functools.cache
def comments() -> dict[str, str]:
    """The comment of every message, field, enum and value by full name, and of every file by its own."""
    schema = FileDescriptorSet.FromString(SCHEMA.read_bytes())
    found: dict[str, str] = {}
    for file in schema.file:
        names: dict[tuple[int, ...], str] = {EDITION: file.name}
        for index, message in enumerate(file.message_type):
            names |= _numbered(message, (4, index), file.package)
        for location in file.source_code_info.location:
            if tuple(location.path) in names:
                comment = "".join([*location.leading_detached_comments[:1], location.leading_comments])
                found[names[tuple(location.path)]] = " ".join(comment.split())
    return found


def _numbered(message: DescriptorProto, path: tuple[int, ...], parent: str) -> dict[tuple[int, ...], str]:
    """Full names by the path of numbers under which protoc keeps comments."""
    name = f"{parent}.{message.name}"
    names = {path: name}
    for index, field in enumerate(message.field):
        names[*path, 2, index] = f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        names |= _numbered(nested, (*path, 3, index), name)
    for index, enum in enumerate(message.enum_type):
        names |= _numbered_values(enum, (*path, 4, index), name)
    return names


def _numbered_values(
    enum: EnumDescriptorProto, path: tuple[int, ...], parent: str
) -> dict[tuple[int, ...], str]:
    name = f"{parent}.{enum.name}"
    values = {(*path, 2, index): f"{name}.{value.name}" for index, value in enumerate(enum.value)}
    return {path: name} | values


# Facts about a field


def _type(field: FieldDescriptor) -> str:
    """A field's type in words: `float`, `list of string`, `map of class to float`."""
    value = value_field(field)
    if value is not None:
        return f"map from {'class' if rule_of(field).by_class else 'string'} to {_type(value)}"
    if field.message_type is not None:
        name = _name(field.message_type)
    elif field.enum_type is not None:
        name = " or ".join(value.name for value in field.enum_type.values)
    else:
        name = TYPES[field.cpp_type]
    return f"list of {name}" if field.is_repeated else name


def _default(field: FieldDescriptor) -> str:
    """The value of an unset field; empty where there is none: required fields, sections, lists, maps, choices."""
    if (
        field.is_repeated
        or field.message_type is not None
        or rule_of(field).required
        or (field.containing_oneof and not field.has_default_value)
    ):
        return ""
    return show(field.default_value, field)


def _required(rule: Rule) -> str:
    return "required" if rule.required else "required by the grid" if rule.required_by_grid else ""


def _range(field: FieldDescriptor) -> str:
    rule = rule_of(field)
    parts = [f"in {rule.range}"] if rule.range else []
    parts += [f"one of {', '.join(rule.choices)}"] if rule.choices else []
    return ", ".join(parts)


def _facts(field: FieldDescriptor) -> list[str]:
    """Type, default, range and unit, as far as there are any."""
    rule = rule_of(field)
    facts = [_type(field), _required(rule), _range(field), rule.unit]
    default = _default(field)
    if default:
        facts.insert(1, f"default {default}")
    if field.containing_oneof:
        others = [other.name for other in field.containing_oneof.fields if other is not field]
        facts.append(f"excludes {', '.join(others)}" if others else "")
    if rule.phase in (Rule.RESUMABLE, Rule.RUNNING):
        facts.append("may change in a resumed training")
    return [fact for fact in facts if fact]


def _status(field: FieldDescriptor) -> str:
    """What a field fails to do, empty for most."""
    reason = rule_of(field).inert
    return f"Has no effect: {reason}." if reason else ""


def _comment(field: FieldDescriptor) -> str:
    """What the schema says of a field; for every map by class, that it takes an entry for the classes without one."""
    by_class = "The entry `default` serves every class without one of its own." * rule_of(field).by_class
    return " ".join(filter(None, (comments().get(field.full_name, ""), by_class)))


# Text for the terminal


def _sections() -> str:
    lines = []
    for name, root in ROOTS.items():
        lines += [f"{name}: {comments()[root.full_name]}", *_field_list(root), ""]
    return "\n".join(
        [*lines, "`detectkit explain PATH` tells more, for instance training_config.learning_rate."]
    )


def _field_list(descriptor: Descriptor) -> list[str]:
    """One line a field: name and first sentence."""
    width = max((len(field.name) for field in descriptor.fields), default=0)
    return [f"  {field.name:{width}}  {_first_sentence(_comment(field))}" for field in descriptor.fields]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _message_text(descriptor: Descriptor) -> str:
    lines = [
        _name(descriptor),
        *_wrapped(comments().get(descriptor.full_name, "")),
        "",
        *_field_list(descriptor),
    ]
    paths = [_bracketed(place) for place in places() if inner_message(place.field) is descriptor]
    return "\n".join([*lines, "", *_stands(paths)])


def _field_text(place: Place) -> str:
    """A field's documentation, and all the places where it stands."""
    field, owner = place.field, place.owner
    stands = [other for other in places() if other.field.full_name == field.full_name]
    lines = [
        _bracketed(place),
        f"  {' · '.join(_facts(field))}",
        "",
        *_wrapped(_comment(field)),
        *_wrapped(_status(field)),
    ]
    if field.enum_type is not None:
        lines += ["", *_enum_lines(field.enum_type)]
    if field.full_name == ARCH:
        lines += ["", *_network_lines()]
    inner = inner_message(field)
    if inner is not None:
        about = f"{_name(inner)}: {comments().get(inner.full_name, '')}"
        lines += ["", *_wrapped(about, indent=""), *_field_list(inner)]
    lines += ["", f"This is field {field.number} of {_name(owner)} ({owner.file.name})."]
    return "\n".join([*lines, *_stands([_bracketed(place) for place in stands])])


def _enum_lines(enum: EnumDescriptor) -> list[str]:
    """Each value with its comment beside it."""
    width = max(len(value.name) for value in enum.values)
    lines = []
    for value in enum.values:
        about = _wrapped(comments().get(f"{enum.full_name}.{value.name}", ""), indent=" " * (width + 4))
        first = f"  {value.name:{width}}  {about[0].strip() if about else ''}"
        lines += [first.rstrip(), *about[1:]]
    return lines


def _network_rows() -> list[tuple[str, ...]]:
    """Under their titles, what the other fields of `model_config` can mean for each backbone."""
    rows: list[tuple[str, ...]] = [("arch", "num_layers", "stride", "freeze_blocks", "choices")]
    names: dict[Architecture, list[str]] = {}
    for name, network in NETWORKS.items():
        names.setdefault(network, []).append(name)
    for network, alike in names.items():
        depths = ", ".join(f"{depth}{' (default)' * (not at)}" for at, depth in enumerate(network.depths))
        batch_norm = {None: "use_batch_norm", True: "always batch norm", False: "never batch norm"}
        choices = ["use_pooling"] * network.pooling + ["all_projections"] * network.projections
        choices += ["deep_stem", "average_pooled_shortcuts"] * network.v1d
        blocks = f"{network.blocks[0]} to {network.blocks[-1]}"
        row = (
            " to ".join(dict.fromkeys((alike[0], alike[-1]))),
            depths or "one depth",
            str(network.stride),
            blocks,
        )
        rows.append((*row, ", ".join([*choices, batch_norm[network.batch_norm]])))
    return rows


def _network_lines() -> list[str]:
    rows = _network_rows()
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [f"  {'  '.join(cell.ljust(width) for cell, width in zip(row, widths))}".rstrip() for row in rows]


def _wrapped(text: str, *, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _stands(paths: list[str]) -> list[str]:
    return ["It stands at:", *(f"  {path}" for path in dict.fromkeys(paths))] if paths else []


def _bracketed(place: Place) -> str:
    """A place's path with `[…]` behind lists and maps, as a spec nests them."""
    fields = {other.path: other.field for other in places() if other.kind == place.kind}
    names = place.path.split(".")
    shown = []
    for end, name in enumerate(names[:-1], start=1):
        field = fields[".".join(names[:end])]
        shown.append(f'{name}["…"]' if value_field(field) else f"{name}[…]" if field.is_repeated else name)
    return ".".join([*shown, names[-1]])


def _unknown(path: str, plain: str) -> str:
    """Why there is no such path: the nearest message, whole path or last name."""
    known = {place.path: place for place in places()}
    titles = [_name(descriptor) for descriptor in messages()]
    near = difflib.get_close_matches(plain, titles, n=1, cutoff=0.75)
    near = near or [
        _bracketed(known[name]) for name in difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
    ]
    if not near:
        leaves = {name.rpartition(".")[2] for name in known}
        names = difflib.get_close_matches(plain.rpartition(".")[2], leaves, n=1)
        near = [_bracketed(known[name]) for name in known if name.rpartition(".")[2] in names][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ": `detectkit explain` lists the sections"
    return f"the spec has no {path}{hint}"


# Markdown


def _message_markdown(descriptor: Descriptor) -> list[str]:
    lines = [f"### {_name(descriptor)}", "", comments().get(descriptor.full_name, "")]
    if descriptor.fields:
        lines += ["", "| Field | No. | Type | Default | Range, unit | Meaning |", "|---|---|---|---|---|---|"]
        lines += [_row(field) for field in descriptor.fields]
    if ARCH in (field.full_name for field in descriptor.fields):
        lines += _networks_markdown()
    for enum in descriptor.enum_types:
        values = [
            f"- `{value.name}` ({value.number}): {comments().get(f'{enum.full_name}.{value.name}', '')}"
            for value in enum.values
        ]
        lines += [
            "",
            f"`{enum.name}`: {comments().get(enum.full_name, '')}",
            "",
            *[value.rstrip(": ") for value in values],
        ]
    return lines


def _networks_markdown() -> list[str]:
    titles, *rows = _network_rows()
    lines = [titles, ("---",) * len(titles), *rows]
    text = "What the backbones have; `num_layers` of one depth need not be set:"
    return ["", text, "", *(f"| {' | '.join(line)} |" for line in lines)]


def _row(field: FieldDescriptor) -> str:
    rule = rule_of(field)
    inner = inner_message(field)
    kind = (
        _type(field).replace(_name(inner), f"[{_name(inner)}](#{_name(inner).lower().replace('.', '')})")
        if inner
        else _type(field)
    )
    default = _required(rule) or (f"`{_default(field)}`" if _default(field) else "")
    status = f"**{_status(field)}**" if _status(field) else ""
    limits = ", ".join(filter(None, [_range(field), rule.unit]))
    cells = [
        f"`{field.name}`",
        str(field.number),
        kind,
        default,
        limits,
        f"{_comment(field)} {status}".strip(),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
