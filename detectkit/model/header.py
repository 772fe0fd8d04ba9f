"""What a model file says of itself, whatever its format: the spec it was trained with, its classes, its channels.

Safetensors models, ONNX models and the files beside engines all hold this one JSON text, under the key `HEADER`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf import text_format

from detectkit.errors import ModelError
from detectkit.spec.experiment_pb2 import Experiment

FORMAT = 1
HEADER = "detectkit"  # one metadata key, so that equal models are equal files

# The input of an exported network, and its two outputs by TLT's names, which its DeepStream parsers ask for.
INPUT = "images"
OUTPUTS = ("output_cov/Sigmoid", "output_bbox/BiasAdd")


class Header(NamedTuple):
    """What one needs to know of a network to feed it and to read its maps."""

    spec: Experiment  # as resolved when the model was trained
    classes: list[str]  # in the order of the network's outputs
    channels: int  # of the images, 1 or 3


def dumps(spec_text: str, classes: Sequence[str], channels: int) -> str:
    """The header as JSON.

    Args:
        spec_text: the resolved experiment spec, as protobuf text.
        classes: in the order of the network's outputs.
        channels: of the images, 1 or 3.
    """
    header = {"format": FORMAT, "classes": list(classes), "channels": channels, "spec": spec_text}
    return json.dumps(header)


def loads(text: str | None, path: str | os.PathLike[str]) -> Header:
    """Read what `dumps` wrote.

    Args:
        text: None where the file has none.
        path: of the file that holds it, named in errors.

    Raises:
        ModelError: there is none or it is no header, it is of a newer format, or it is damaged.
    """
    try:
        header = json.loads(text or "")
        version = int(header["format"])
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a detectkit model: it holds weights without a spec and class names;"
            " give a model file of detectkit train or detectkit export"
        ) from error
    if version > FORMAT:
        raise ModelError(
            f"{path} was written by a newer detectkit (model format {version}; this one reads up to {FORMAT}): upgrade"
        )
    try:
        experiment = text_format.Parse(str(header["spec"]), Experiment())
        found = Header(experiment, [str(name) for name in header["classes"]], int(header["channels"]))
    except (KeyError, OverflowError, TypeError, ValueError, text_format.ParseError) as error:
        raise ModelError(f"{path} is damaged: its description cannot be read ({error})") from error
    if not found.classes or found.channels not in (1, 3):
        raise ModelError(f"{path} is damaged: {len(found.classes)} classes, {found.channels} image channels")
    return found
