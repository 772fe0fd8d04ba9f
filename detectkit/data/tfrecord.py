"""Detection records in TFRecord files, without TensorFlow.

A record is framed as length (8 bytes, little endian), masked CRC-32C of the length, data, masked CRC-32C of the data.
The data is a tf.train.Example with the features that TLT's dataset converter writes: frame/id, frame/width,
frame/height, target/object_class, target/truncation, target/occlusion, target/coordinates_{x1,y1,x2,y2} and others
that are carried along. Ours on top: frame/encoded and frame/format, the image file's bytes and its extension.

Beside a shard lies `<shard>.index`, one line `offset length` a record (the form NVIDIA DALI uses), so that a record is
read by its number. A record that does not embed its image may have frame/format too: images of one set may have several
extensions. Paths are local, or addresses in a store (s3://bucket/shard).
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import google_crc32c
import numpy
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from detectkit import stores
from detectkit.console import log
from detectkit.data import sources
from detectkit.data.example_pb2 import Example, Feature
from detectkit.errors import DataError
from detectkit.files import local_path, matching

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
FRAMING = HEADER.size + FOOTER.size
NOT_SHARDS = (".index", ".json", ".jsonl", ".txt")
LARGEST = 2**30  # bytes of a record: protobuf cannot read twice as many
MOST_BOXES = 30_000  # in an image: crowds have as many, and more would take minutes a step


Value = TypeVar("Value")
Opened = IO[bytes] | stores.RemoteFile
Span = tuple[int, int]  # offset and length of a record in its shard, bytes, framing included


class Record(NamedTuple):
    """One image and its objects; n objects."""

    frame_id: str  # path of the image below the data source's image directory, without extension
    width: int  # pixels
    height: int
    names: list[str]  # n class names
    boxes: NDArray[numpy.float32]  # [n, 4] x1 y1 x2 y2 in pixels, may leave the image
    truncation: NDArray[numpy.float32]  # [n]
    occlusion: NDArray[numpy.int64]  # [n]
    image: bytes | None = None  # the image file, when the record embeds it
    image_format: str = ""  # its extension without the dot: "jpg"; empty: that of the data set


class Shard(NamedTuple):
    """A TFRecord file and where its records are. Holds no open file: it can be pickled and used after a fork."""

    path: str
    offsets: NDArray[numpy.int64]  # [records] start of the framing, bytes
    lengths: NDArray[numpy.int64]  # [records] framing included, bytes


def encode(record: Record, columns: Mapping[str, Sequence[float]] | None = None) -> bytes:
    """Serialise a record; `columns` are further float features, one value an object."""
    floats = {
        f"target/coordinates_{axis}": record.boxes[:, i] for i, axis in enumerate(("x1", "y1", "x2", "y2"))
    }
    example = Example()
    feature = example.features.feature
    for name, value in {"frame/width": record.width, "frame/height": record.height}.items():
        feature[name].int64_list.value.append(value)
    feature["frame/id"].bytes_list.value.append(record.frame_id.encode())
    feature["target/object_class"].bytes_list.value.extend(name.encode() for name in record.names)
    feature["target/occlusion"].int64_list.value.extend(record.occlusion.tolist())
    for name, values in {**floats, "target/truncation": record.truncation, **(columns or {})}.items():
        feature[name].float_list.value.extend(map(float, values))
    if record.image is not None:
        feature["frame/encoded"].bytes_list.value.append(record.image)
    if record.image_format:
        feature["frame/format"].bytes_list.value.append(record.image_format.encode())
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """Parse a record.

    Raises:
        ValueError: not a tf.train.Example, or not one of a detection data set; says what is missing.
    """
    try:
        feature = Example.FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("not a tf.train.Example") from error
    encoded = feature["target/object_class"].bytes_list.value
    if len(encoded) > MOST_BOXES:
        raise ValueError(
            f"it has {len(encoded)} boxes, and an image may have {MOST_BOXES}: cut it into smaller ones"
        )
    names = [name.decode() for name in encoded]
    boxes = [_floats(feature, f"target/coordinates_{axis}", len(names)) for axis in ("x1", "y1", "x2", "y2")]
    record = Record(
        frame_id=_first("frame/id", feature["frame/id"].bytes_list.value).decode(),
        width=_first("frame/width", feature["frame/width"].int64_list.value),
        height=_first("frame/height", feature["frame/height"].int64_list.value),
        names=names,
        boxes=numpy.stack(boxes, axis=1),
        truncation=_floats(feature, "target/truncation", len(names), optional=True),
        occlusion=_occlusion(feature, len(names)),
        image=next(iter(feature["frame/encoded"].bytes_list.value), None),
        image_format=b"".join(feature["frame/format"].bytes_list.value).decode(),
    )
    if record.width < 1 or record.height < 1 or not numpy.isfinite(record.boxes).all():
        raise ValueError("the image size or a box is not a sensible number")
    return record


def write_shard(path: str | Path, records: Iterable[bytes]) -> int:
    """Write the serialised records to a local shard and its index beside it; give the number of records.

    Raises:
        OSError: the disk is full, no permission. What was written so far stays: write to a temporary folder.
    """
    offset, count = 0, 0
    with open(path, "wb") as shard, open(f"{path}.index", "w", encoding="ascii") as index:
        for data in records:
            length = struct.pack("<Q", len(data))
            framed = (length, FOOTER.pack(_masked_crc(length)), data, FOOTER.pack(_masked_crc(data)))
            size = sum(shard.write(part) for part in framed)
            index.write(f"{offset} {size}\n")
            offset, count = offset + size, count + 1
        shard.flush()
        os.fsync(shard.fileno())
    return count


def find_shards(pattern: str) -> list[str]:
    """Expand a pattern (local, see `detectkit.files.matching`, or an address) to the sorted shards.

    Index, warning and status files are left out.

    Raises:
        DataError: the store behind an address cannot be listed, or a conversion was cut while it replaced the shards.
    """
    if stores.is_remote(pattern):
        found = list(stores.find(pattern))
    else:
        found = [path for path in matching(pattern) if os.path.isfile(path)]
        sources.require_whole(pattern, found)
    return sorted(path for path in found if not path.endswith(NOT_SHARDS))


def open_shard(path: str) -> Shard:
    """Find the records of a shard by its index file, or by walking it when there is none or it does not fit.

    Raises:
        DataError: the file cannot be read, or is cut short or broken (names the record).
    """
    size = _size(path)
    spans = _read_index(path)
    if spans is None or not _fits(spans, size):
        spans = list(_walk(path, size))
        _check_index(path, spans)
    table = numpy.array(spans, dtype=numpy.int64).reshape(-1, 2)
    return Shard(path, table[:, 0], table[:, 1])


def read_record(shard: Shard, number: int) -> Record:
    """Read a record by its number, from 0.

    Raises:
        DataError: the record is cut short, fails its checksum, or is not a detection record (file and number); or it is
            somewhere else than the index has said.
    """
    offset, length = int(shard.offsets[number]), int(shard.lengths[number])
    framed = _read_range(shard.path, offset, length)
    try:
        return _record(framed, shard.path, number)
    except DataError:
        if _is_misled(shard):
            raise DataError(
                f"{shard.path}.index does not fit its shard: delete it, or convert the data again"
            ) from None
        raise


def read_records(path: str) -> Iterator[Record]:
    """Read all records of a shard in order; raises as `read_record` does, and where the index lists more of them."""
    spans = []
    with _open(path) as file:
        for number, (offset, length) in enumerate(_headers(file, path, _size(path))):
            file.seek(-HEADER.size, os.SEEK_CUR)
            yield _record(file.read(length), path, number)
            spans.append((offset, length))
    _check_index(path, spans)


def _record(framed: bytes, path: str, number: int) -> Record:
    """Check the framing of one record and decode it."""
    data = framed[HEADER.size : -FOOTER.size]
    whole = len(framed) >= FRAMING and HEADER.unpack_from(framed) == (len(data), _masked_crc(framed[:8]))
    if not whole or FOOTER.unpack_from(framed, len(framed) - FOOTER.size)[0] != _masked_crc(data):
        raise DataError(_broken(path, number, "fails its checksum"))
    try:
        return decode(data)
    except ValueError as error:
        raise DataError(f"{path}: record {number} cannot be used: {error}; convert the data again") from error


def _walk(path: str, size: int) -> Iterator[Span]:
    with _open(path) as file:
        yield from _headers(file, path, size)


def _headers(file: Opened, path: str, size: int) -> Iterator[Span]:
    """Yield (offset, length) of each record, leaving the file behind the record's header."""
    offset, number = 0, 0
    while offset < size:
        file.seek(offset)
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise DataError(_broken(path, number, "is cut short"))
        length, crc = HEADER.unpack(header)
        if crc != _masked_crc(header[:8]):
            raise DataError(_broken(path, number, "has a length that fails its checksum"))
        if offset + length + FRAMING > size:
            raise DataError(_broken(path, number, "is cut short"))
        if length > LARGEST:
            reason = f"has {length >> 20} MiB, more than the {LARGEST >> 20} that a record may have"
            raise DataError(
                f"{path}: record {number} {reason}: leave its image out, or convert without embed_images"
            )
        yield offset, length + FRAMING
        offset, number = offset + length + FRAMING, number + 1


def _broken(path: str, number: int, what: str) -> str:
    return (
        f"{path}: record {number} {what}: the file is damaged or not a TFRecord file; convert the data again"
    )


def _read_index(path: str) -> list[Span] | None:
    """What the index file lists, nothing where it is damaged; None: there is none."""
    try:
        with _open(f"{path}.index") as file:
            lines = file.read().splitlines()
    except DataError:
        return None
    try:
        return [(int(offset), int(length)) for offset, length in map(bytes.split, lines)]
    except ValueError:
        return []


def _fits(spans: Sequence[Span], size: int) -> bool:
    """Whether they follow each other from the start of a file to its end."""
    ends = [offset + length for offset, length in spans]
    return [0, *ends] == [*(offset for offset, _ in spans), size]


def _check_index(path: str, found: list[Span]) -> None:
    """Compare the index, where there is one, with the records that were found.

    Raises:
        DataError: it lists these and more: the end of the shard is missing.
    """
    listed = _read_index(path)
    if listed is None or listed == found:
        return
    if len(listed) > len(found) and listed[: len(found)] == found:
        raise DataError(
            f"{path} is cut short: it has {len(found)} records, and its index lists {len(listed)}; convert the data again"
        )
    _warn_of_index(path)


@functools.cache
def _warn_of_index(path: str) -> None:
    """Once: a shard is read more than once."""
    log.warning(
        "%s.index does not fit its shard, and is not used: delete it, or convert the data again", path
    )


def _is_misled(shard: Shard) -> bool:
    """Whether the shard is whole, and its records are elsewhere than was read from its index."""
    try:
        found = list(_walk(shard.path, _size(shard.path)))
    except DataError:
        return False
    return found != list(zip(shard.offsets.tolist(), shard.lengths.tolist(), strict=True))


def _open(path: str) -> Opened:
    if stores.is_remote(path):
        return stores.open_file(path)
    try:
        return open(local_path(path), "rb")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _size(path: str) -> int:
    if stores.is_remote(path):
        return stores.size(path)
    try:
        return os.path.getsize(local_path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read_range(path: str, offset: int, length: int) -> bytes:
    """Read bytes without keeping anything open, so that forked workers do not share a file position."""
    if stores.is_remote(path):
        return stores.read_range(path, offset, length)
    try:
        with open(local_path(path), "rb") as file:
            file.seek(offset)
            return file.read(length)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord stores it (checksums of data that holds checksums are weak)."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _first(name: str, values: Sequence[Value]) -> Value:
    if not values:
        raise ValueError(f"it has no {name}")
    return values[0]


def _floats(
    feature: Mapping[str, Feature], name: str, count: int, *, optional: bool = False
) -> NDArray[numpy.float32]:
    values = feature[name].float_list.value
    if optional and not values:
        return numpy.zeros(count, dtype=numpy.float32)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} objects")
    return numpy.array(values, dtype=numpy.float32)


def _occlusion(feature: Mapping[str, Feature], count: int) -> NDArray[numpy.int64]:
    values = feature["target/occlusion"].int64_list.value or [0] * count
    if len(values) != count:
        raise ValueError(f"target/occlusion has {len(values)} values for {count} objects")
    return numpy.array(values, dtype=numpy.int64)
