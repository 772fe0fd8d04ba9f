"""What a model file says of itself, whatever its format: the spec it was trained with, its classes, channels and outputs.

Safetensors models, ONNX models and the files beside engines all hold this one JSON text, under the key `HEADER`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from detectkit import __version__
from detectkit.console import visible
from detectkit.errors import ModelError
from detectkit.heads.outline import Outline, parse_outline, unknown_in
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.rules import check
from detectkit.spec.schema import control_character
from detectkit.spec.stored import WRITER, other_writer, read_stored, unknown_entries, warn_of_unknown

FORMAT = 1  # of a file that older versions must not read, because what they do not know of it matters, it is one more
ENTRIES = ("format", "checksum", "classes", "channels", "outline", "spec")
HEADER = "detectkit"  # one metadata key, so that equal models are equal files
UNSEALED = "0" * 64  # in the place of the checksum, while it is made; and in files that have none
# As JSON in an ONNX file, as JSON in JSON in a safetensors file.
CHECKSUM = re.compile(rb'"checksum\\?": \\?"(.{64})', re.DOTALL)  # a damaged one is none either
# The sections of the spec that a model is run by. Of another release's other sections nothing is asked.
JUDGED = ("augmentation_config.preprocessing", "model_config", "postprocessing_config", "evaluation_config")
NAMED = 3  # broken rules in one error

INPUT = "images"  # of an exported network


class Header(NamedTuple):
    """What one needs to know of a network to feed it and to read its maps."""

    spec: Experiment  # as resolved when the model was trained
    classes: list[str]  # in the order of the network's outputs
    channels: int  # of the images, 1 or 3
    outline: (
        Outline | None
    )  # what the network gives; None, in a file of an older detectkit: that of the spec's network
    writer: object  # what the entry `WRITER` holds; None: it has none


def dumps(spec_text: str, classes: Sequence[str], channels: int, outline: Outline) -> str:
    """The header as JSON.

    Args:
        spec_text: the resolved experiment spec, as protobuf text.
        classes: in the order of the network's outputs.
        channels: of the images, 1 or 3.
        outline: what the network gives.
    """
    header = {"format": FORMAT, WRITER: __version__, "checksum": UNSEALED, "classes": list(classes)}
    return json.dumps(header | {"channels": channels, "outline": outline.content(), "spec": spec_text})


def seal(content: bytes) -> bytes:
    """A file with a header of `dumps` in it, and in that the checksum of all its bytes: SHA-256, with zeros in its own place."""
    found = CHECKSUM.search(content)
    assert found and found[1] == UNSEALED.encode(), "the file has no header without a checksum"
    sealed = bytearray(content)
    sealed[slice(*found.span(1))] = _checksum(content, found).encode()
    return bytes(sealed)


def check_seal(content: bytes | mmap.mmap, path: str | os.PathLike[str]) -> None:
    """Refuse a file that is not as it was written; one of an older detectkit, without a checksum, passes.

    Raises:
        ModelError: at least one bit of it is another.
    """
    found = CHECKSUM.search(content)
    if found and found[1] not in (UNSEALED.encode(), _checksum(content, found).encode()):
        raise ModelError(
            f"{path} is damaged, or was changed after it was written: its checksum is another; copy it again, or make it"
            " again"
        )


def _checksum(content: bytes | mmap.mmap, place: re.Match[bytes]) -> str:
    digest = hashlib.sha256()
    with memoryview(content) as view:
        digest.update(view[: place.start(1)])
        digest.update(UNSEALED.encode())
        digest.update(view[place.end(1) :])
    return digest.hexdigest()


def loads(text: str | None, path: str | os.PathLike[str]) -> Header:
    """Read what `dumps` wrote, in this version or in another; warns of what this one does not know.

    Args:
        text: None where the file has none.
        path: of the file that holds it, named in errors.

    Raises:
        ModelError: there is none or it is no header, it is of a newer format, it is damaged, or its spec breaks a rule
            that matters where the model runs.
    """
    try:
        header = json.loads(text or "")
        version, writer = int(header["format"]), header.get(WRITER)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a detectkit model: it holds weights without a spec and class names;"
            " give a model file of detectkit train or detectkit export"
        ) from error
    if version > FORMAT:
        raise ModelError(
            f"{path} was written by a newer detectkit (model format {version}; this one reads up to {FORMAT}): upgrade"
            f"{other_writer(writer)}"
        )
    try:
        stored = read_stored(str(header["spec"]))
        found = Header(
            stored.spec,
            [str(name) for name in header["classes"]],
            int(header["channels"]),
            parse_outline(header["outline"]) if "outline" in header else None,
            writer,
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged: its description cannot be read ({error}){other_writer(writer)}"
        ) from error
    if not found.classes or found.channels not in (1, 3):
        raise ModelError(
            f"{path} is damaged: {len(found.classes)} classes, {found.channels} image channels{other_writer(writer)}"
        )
    _judge(found, path)
    of_outline = [] if found.outline is None else unknown_in(header["outline"])
    warn_of_unknown(path, writer, [*unknown_entries(header, ENTRIES), *of_outline, *stored.unknown])
    return found


def _judge(found: Header, path: str | os.PathLike[str]) -> None:
    """Hold names and spec to the rules of a spec file; sections that are not there are asked for where they are used."""
    for name in found.classes:
        if found_in := control_character(name):
            raise ModelError(
                f'{path}: the class name "{visible(name)}" has a control character in it ({found_in})'
            )
    if found.spec.HasField("cost_function_config") and not found.spec.cost_function_config.target_classes:
        raise ModelError(f"{path} is damaged: its spec has no target_classes{other_writer(found.writer)}")
    broken = [
        str(violation)
        for violation in check(found.spec)
        if violation.value and violation.path.startswith(JUDGED)
    ]
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ModelError(
            f"{path} is damaged: in its spec {'; '.join(broken[:NAMED])}{more}{other_writer(found.writer)}"
        )
