"""TensorRT's calibration cache: the ranges from which TensorRT up to 10 makes 8-bit engines.

A text file. Its first line has the version of TensorRT and the method, `TRT-100300-EntropyCalibration2`; each other is
`tensor: 3ca14285`, the bits of a big-endian float32: the scale, amax / 127.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import onnx

from detectkit.deploy.placement import FUSED
from detectkit.deploy.scales import SIGNED_LEVELS, ScaleTable, scale_of
from detectkit.errors import ModelError, UsageError
from detectkit.files import atomic_write

TENSORRT = "10.3.0"  # that of JetPack 6.1 and 6.2, where caches live on
LAST_MAJOR = 10
ENTROPY, MINMAX = "EntropyCalibration2", "MinMaxCalibration"
HEADER = re.compile(rb"TRT-(\w+)-(\w+)")
DIGITS = re.compile(r"[0-9a-fA-F]{8}|0")  # TLT pads nothing, which shows at 0 only


def version_number(version: str) -> int:
    """What stands for a version of TensorRT in a cache: 8.5.3 is 8503, 10.3.0 is 100300.

    Args:
        version: of three numbers, or of four as the packages have it, with the build.

    Raises:
        UsageError: it is no version, or one of TensorRT 11 or later, which reads no cache.
    """
    match = re.fullmatch(r"([1-9][0-9]*)\.([0-9]{1,2})\.([0-9]{1,2})(\.[0-9]+)?", version, re.ASCII)
    if not match:
        raise UsageError(f"{version} is no version of TensorRT: give three numbers, as {TENSORRT}")
    major, minor, patch = (int(match[group]) for group in (1, 2, 3))
    if major > LAST_MAJOR:
        raise UsageError(
            f"TensorRT {major} reads no calibration cache (it has no calibrators): give it an ONNX model with the ranges"
            " inside, which detectkit export --data_type int8 --calibration scales.json writes"
        )
    if major < LAST_MAJOR and minor > 9:
        raise UsageError(f"there is no TensorRT {version}: give three numbers, as {TENSORRT}")
    return major * (1000 if major < LAST_MAJOR else 10000) + minor * 100 + patch


def write_cache(
    path: str | os.PathLike[str],
    table: ScaleTable,
    *,
    tensorrt: str = TENSORRT,
    graph: onnx.ModelProto | None = None,
) -> None:
    """Write the ranges of the activations of a table.

    Args:
        tensorrt: the version that is to read it; another one may refuse it.
        graph: the float network: the output of a convolution that runs as one with the activation behind it then gets
            the range of that activation, without which TensorRT 10 may run the convolution in float.

    Raises:
        UsageError: there is no such version, or it reads no caches.
        OutputError: the file cannot be written.
    """
    amaxes = {name: item.amax for name, item in table.tensors.items()}
    if graph is not None:
        amaxes |= {
            name: amaxes[after]
            for name, after in _fused(graph).items()
            if after in amaxes and name not in amaxes
        }
    method = MINMAX if table.method == "minmax" else ENTROPY
    lines = [
        f"TRT-{version_number(tensorrt)}-{method}",
        *(f"{name}: {_digits(amax)}" for name, amax in amaxes.items()),
    ]
    with atomic_write(path) as temporary:
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _digits(amax: float) -> str:
    return struct.pack("!f", scale_of(amax)).hex()


def _fused(model: onnx.ModelProto) -> Mapping[str, str]:
    """The output of the activation behind a convolution, by the output of the convolution that nothing else reads."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {item.name for item in model.graph.output}
    found = {}
    for node in model.graph.node:
        after = readers.get(node.output[0], [])
        if (
            node.op_type == "Conv"
            and len(after) == 1
            and after[0].op_type in FUSED
            and node.output[0] not in outputs
        ):
            found[node.output[0]] = after[0].output[0]
    return found


def read_cache(path: str | os.PathLike[str]) -> dict[str, float]:
    """The amax of each tensor of a cache, 0 or more, whatever version or tool wrote it.

    Raises:
        ModelError: there is no such file, or it is no cache; the message has the line.
    """
    return _ranges(path, _content(path))


def retarget(path: str | os.PathLike[str], version: str, out: str | os.PathLike[str] | None = None) -> None:
    """Write a cache anew for another version of TensorRT: only the version in its first line changes.

    Args:
        out: the file to write; None: the cache itself.

    Raises:
        UsageError: there is no such version, or it reads no caches.
        ModelError: there is no such file, or it is no cache.
        OutputError: the file cannot be written.
    """
    number, content = version_number(version), _content(path)
    _ranges(path, content)
    match = HEADER.match(content)
    assert match  # `_ranges` has looked
    with atomic_write(path if out is None else out) as temporary:
        temporary.write_bytes(b"TRT-%d" % number + content[match.end(1) :])


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: detectkit calibrate writes calibration.cache") from error
    except OSError as error:
        raise ModelError(f"cannot read the calibration cache {path}: {error.strerror}") from error


def _ranges(path: str | os.PathLike[str], content: bytes) -> dict[str, float]:
    header, *lines = content.split(b"\n")
    if not HEADER.fullmatch(header.rstrip()):
        raise ModelError(
            f"{path}, line 1: a calibration cache begins with a line as TRT-{version_number(TENSORRT)}-{ENTROPY}, not"
            f" {_shown(header)}"
        )
    found: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        name, amax = _line(f"{path}, line {number}", line)
        if name in found:
            raise ModelError(f"{path}, line {number}: {name} is there twice; make the cache again")
        found[name] = amax
    if not found:
        raise ModelError(f"{path} has no tensor in it: make the cache again")
    return found


def _line(place: str, line: bytes) -> tuple[str, float]:
    """The name and the amax of a line; names may have colons and blanks in them."""
    try:
        name, _, digits = line.decode().rpartition(":")
    except UnicodeDecodeError as error:
        raise ModelError(f"{place}: no text: {_shown(line)}; make the cache again") from error
    if not name or not DIGITS.fullmatch(digits.strip()):
        raise ModelError(
            f"{place}: must be a tensor, a colon and 8 hexadecimal digits, not {_shown(line)}; make the cache again"
        )
    (scale,) = struct.unpack("!f", bytes.fromhex(digits.strip().zfill(8)))
    if not 0 <= scale < math.inf:
        raise ModelError(f"{place}: {digits.strip()} is {scale:g}, which is no range; make the cache again")
    return name, scale * SIGNED_LEVELS


def _shown(line: bytes) -> str:
    """The beginning of a line for an error."""
    text = line.rstrip(b"\r")
    return (repr(text[:40])[1:] + ("…" if len(text) > 40 else "")) if text else "an empty line"
