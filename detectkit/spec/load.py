"""From a file to a judged message, or to one error that lists everything that is wrong with it."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from detectkit.console import log
from detectkit.errors import SpecError
from detectkit.spec import text as source
from detectkit.spec.by_class import expanded
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.dataset_pb2 import DataSource
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.others import is_yaml, network_in_yaml, other_network
from detectkit.spec.postprocessing_pb2 import ClusteringConfig
from detectkit.spec.rules import check
from detectkit.spec.schema import present, schema_of
from detectkit.spec.warn import warnings
from detectkit.stores import allow

Spec: TypeAlias = Experiment | Inference | DatasetExportConfig
AnySpec = TypeVar("AnySpec", bound=Experiment | Inference | DatasetExportConfig)


class Kind(NamedTuple):
    """A kind of spec: what it is called and which commands take it."""

    message: type[Spec]
    name: str
    commands: str


KINDS = (
    Kind(
        Experiment, "training spec", "`detectkit run`, `train`, `evaluate`, `infer`, `visualize` or `prune`"
    ),
    Kind(Inference, "inference spec", "`detectkit infer`"),
    Kind(DatasetExportConfig, "conversion spec", "`detectkit convert -d`"),
)
LARGEST = 4 * 2**20  # bytes; a spec has a few thousand, and one thousand a class where it has many
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
SHOWN = 40  # problems in one error message


def load(path: str | Path) -> Spec:
    """Read and judge a spec of any kind: text or binary, recognised by its top-level fields.

    In a training spec each class has an entry of its own wherever one may be, see `by_class.expanded`. The addresses of
    records in it may be opened from now on, see `detectkit.stores`. Warns about fields that do nothing here. Raises
    SpecError with one line for each problem, `file:line:column: message` for text.
    """
    return expanded(load_written(path))


def load_written(path: str | Path) -> Spec:
    """As `load`, but as it is written: with the list of classes and the entries `default` that it may have."""
    data = _read(Path(path))
    if _is_binary(data):
        message = _judged(str(path), _decode(data, str(path)), None)
    else:
        message = _from_text(_text(data, str(path)), str(path))
    allow(part.tfrecords_path for part in _parts(message) if isinstance(part, DataSource))
    return message


def loads(text: str, name: str = "spec") -> Spec:
    """As `load`, from text; `name` stands for the file in messages."""
    return expanded(_from_text(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), name))


def load_experiment(path: str | Path) -> Experiment:
    """Read a training spec. Raises SpecError, also for a spec of another kind."""
    return _of_kind(path, Experiment)


def load_inference(path: str | Path) -> Inference:
    """Read an inference spec. Raises SpecError, also for a spec of another kind."""
    return _of_kind(path, Inference)


def load_dataset_export(path: str | Path) -> DatasetExportConfig:
    """Read a conversion spec. Raises SpecError, also for a spec of another kind."""
    return _of_kind(path, DatasetExportConfig)


def resolved(message: AnySpec) -> AnySpec:
    """A copy with every default of a section that is there written out: equal specs are equal messages."""
    filled = copy.deepcopy(message)
    for part in _parts(filled):
        for field in schema_of(part).fields:
            if field.has_default_value and not field.containing_oneof and not part.HasField(field.name):
                setattr(part, field.name, field.default_value)
    return filled


def reduced(message: AnySpec) -> AnySpec:
    """A copy without what is at its default, as another version with more fields would have read it: the inverse of `resolved`."""
    kept = copy.deepcopy(message)
    for part in _parts(kept):
        for field in schema_of(part).fields:
            if field.has_default_value and not field.containing_oneof and part.HasField(field.name):
                if getattr(part, field.name) == field.default_value:
                    part.ClearField(field.name)
    return kept


def dumps(message: Spec) -> str:
    """The spec as text, resolved. `loads` reads it back."""
    return text_format.MessageToString(resolved(message), as_utf8=True)


def kind_of(message: Spec) -> Kind:
    """Name and commands of a spec's kind."""
    return next(kind for kind in KINDS if isinstance(message, kind.message))


def _of_kind(path: str | Path, wanted: type[AnySpec]) -> AnySpec:
    message = load(path)
    if isinstance(message, wanted):
        return message
    found, needed = kind_of(message), next(kind for kind in KINDS if kind.message is wanted)
    raise SpecError(
        f"{path}: this is {_a(found.name)}, for {found.commands}; here {_a(needed.name)} is needed"
    )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise SpecError(f"{path}: is a folder; name a spec file in it")
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise SpecError(f"{path}: there is no such file{_neighbour(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > LARGEST:
        raise SpecError(f"{path}: is larger than {LARGEST // 2**20} MiB, the most that a spec may have")
    if not data.strip():
        raise SpecError(f"{path}: the file is empty")
    return data


def _neighbour(path: Path) -> str:
    """A file beside the missing one whose name is near."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _is_binary(data: bytes) -> bool:
    """Whether the bytes hold control characters that no text has. UTF-16 text counts as text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return False
    return CONTROL.search(data) is not None


def _text(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SpecError(f"{name}: the text is in UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        message = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise SpecError(f"{name}:{line}:{column}: {message}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_text(text: str, name: str) -> Spec:
    try:
        fields = source.read(text)
    except source.Malformed as error:
        if text.lstrip().startswith(("{", "[")) and _is_json(text):
            raise SpecError(
                f"{name}:1:1: this is JSON; a spec is protobuf text (`name: value`, `name {{ … }}`)"
            ) from error
        if is_yaml(text):
            network = network_in_yaml(text)
            whose = f"a spec of TAO's {network}" if network else "as the specs of TAO's other networks are"
            raise SpecError(
                f"{name}:1:1: this is YAML, {whose}; detectkit reads those of DetectNet_v2, which are protobuf text"
            ) from error
        raise SpecError(_line(name, error.problem)) from error
    if not fields:
        raise SpecError(f"{name}: the file is empty but for comments")
    kind = _kind(fields, name)
    descriptor = schema_of(kind.message)
    problems = source.judge(fields, descriptor)
    if problems:
        raise SpecError(_lines([_line(name, problem) for problem in problems]))
    message = kind.message()
    try:
        text_format.Merge(text, message)  # Parse would refuse a scalar that is given twice with one value
    except text_format.ParseError as error:
        raise SpecError(_line(name, _parse_problem(error))) from error
    for line in _shortened([_line(name, problem) for problem in source.repeated(fields, descriptor)]):
        log.warning(line)
    return _judged(name, message, fields)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _kind(fields: list[source.Field], name: str) -> Kind:
    """The kind with most of the top-level names."""
    names = [field.name for field in fields]
    other = other_network(fields)
    if other:
        network, sign = other
        message = f"this is a spec of TLT's {network}; detectkit reads those of DetectNet_v2"
        raise SpecError(_line(name, source.Problem(sign.line, sign.column, message)))
    counts = [sum(name in schema_of(kind.message).fields_by_name for name in names) for kind in KINDS]
    if max(counts):
        return KINDS[counts.index(max(counts))]
    first = fields[0]
    known = [known for kind in KINDS for known in schema_of(kind.message).fields_by_name]
    message = f"no spec of detectkit has a field {first.name} here{source.near(first.name, known)}"
    raise SpecError(_line(name, source.Problem(first.line, first.column, message)))


def _parse_problem(error: text_format.ParseError) -> source.Problem:
    """What protobuf's parser says, without its own position and its copy of the line."""
    message = str(error).split(" : ", 1)[-1]
    return source.Problem(error.GetLine() or 1, error.GetColumn() or 1, message.rsplit("': ", 1)[-1])


def _judged(name: str, message: Spec, fields: list[source.Field] | None) -> Spec:
    """The message, if it breaks no rule; warns about what does nothing."""
    text = source.Places(fields or [])
    places = [(*text.position(violation.path), violation) for violation in check(message)]
    if places:
        places.sort(key=lambda place: place[:2])
        raise SpecError(
            _lines(
                [
                    f"{name}:{line}:{column}: {text}" if line else f"{name}: {text}"
                    for line, column, text in places
                ]
            )
        )
    for warning in warnings(message):
        log.warning("%s: %s", name, warning)
    return message


def _line(name: str, problem: source.Problem) -> str:
    return f"{name}:{problem.line}:{problem.column}: {problem.message}"


def _lines(lines: list[str]) -> str:
    return "\n".join(_shortened(lines))


def _shortened(lines: list[str]) -> list[str]:
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def _decode(data: bytes, name: str) -> Spec:
    """The first kind of message that the bytes fit without a rest."""
    for kind in KINDS:
        message = kind.message()
        try:
            message.ParseFromString(data)
        except DecodeError:
            continue
        _convert_min_samples(message)
        if not any(len(UnknownFieldSet(part)) for part in _parts(message)):
            return message
    raise SpecError(f"{name}: this is neither text nor a spec in protobuf's binary form")


def _convert_min_samples(message: Message) -> None:
    """TLT's binary specs hold dbscan_min_samples as a whole number; text specs hold fractions too."""
    number = ClusteringConfig.DBSCAN_MIN_SAMPLES_FIELD_NUMBER
    for part in _parts(message):
        if isinstance(part, ClusteringConfig):
            unknown = UnknownFieldSet(part)
            fields = [unknown[index] for index in range(len(unknown))]
            whole = [field.data for field in fields if (field.field_number, field.wire_type) == (number, 0)]
            if whole:
                part.DiscardUnknownFields()
                part.dbscan_min_samples = whole[-1] - 2**64 if whole[-1] >= 2**63 else whole[-1]


def _parts(message: Message) -> Iterator[Message]:
    """A message and every message in it."""
    yield message
    for _, _, value in present(message, ""):
        if isinstance(value, Message):
            yield from _parts(value)
