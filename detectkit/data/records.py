"""The records that a dataset_config names, read into data sets: what a spec trains on, and what it measures on."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detectkit.console import log
from detectkit.data import tfrecord
from detectkit.data.dataset import NAMED_FILES, Dataset, Frame, checksums, require_images
from detectkit.data.labels import BACKGROUND, DONTCARE, Objects
from detectkit.errors import DataError
from detectkit.files import local_path
from detectkit.spec import DatasetConfig, DataSource, label_name
from detectkit.stores import is_remote

PART = re.compile(r"(.*)-shard-\d{5}-of-(\d{5})")


class _SourceShard(NamedTuple):
    source: DataSource
    number: int  # of the source
    path: str


def training_frames(
    config: DatasetConfig,
    class_names: Sequence[str],
    *,
    at_most: int | None = None,
    look_for_images: bool = True,
) -> Dataset:
    """Read the records that a spec trains on: those of all sources, without the shards of `validation_fold`.

    Record names are compared as `label_name` gives them with the keys of `target_class_mapping`, which is applied once, and with
    `dontcare_labels`; boxes without area are dropped.

    Args:
        at_most: read so many records only, evenly spaced.
        look_for_images: or else `require_images` is left to the caller.

    Raises:
        DataError: no shards for a pattern, none outside the fold, a damaged shard, missing images.
    """
    shards = _training_shards(config)
    uniform = config.sampling_mode == DatasetConfig.UNIFORM
    return _Reader(config, class_names).read(
        shards, uniform=uniform, at_most=at_most, look_for_images=look_for_images
    )


def validation_frames(
    config: DatasetConfig,
    class_names: Sequence[str],
    *,
    at_most: int | None = None,
    look_for_images: bool = True,
) -> Dataset | None:
    """Read the records that a spec measures on, as `training_frames` does; None: the spec names none.

    They are those of `validation_data_source`, or the shards of all sources with `fold-<3 digits>-of-` for
    `validation_fold` in their path. Nothing else has to be there.

    Raises:
        DataError: no shards for a pattern or the fold, a damaged shard, missing images.
    """
    marker = _fold_marker(config)
    if config.HasField("validation_data_source"):
        shards = _shards([config.validation_data_source])
    elif marker is not None:
        shards = [shard for shard in _shards(config.data_sources) if marker in shard.path]
    else:
        return None
    if not shards:
        raise DataError(
            f"no file of the data sources is called *{marker}*: change validation_fold, or convert anew"
        )
    return _Reader(config, class_names).read(shards, at_most=at_most, look_for_images=look_for_images)


def same_shards(config: DatasetConfig) -> bool:
    """Whether the very files are measured on that are trained on."""
    training = {shard.path for shard in _training_shards(config)}
    return training == {shard.path for shard in _shards([config.validation_data_source])}


def _fold_marker(config: DatasetConfig) -> str | None:
    """What the paths of the shards of the validation fold contain."""
    return f"fold-{config.validation_fold:03d}-of-" if config.HasField("validation_fold") else None


def _training_shards(config: DatasetConfig) -> list[_SourceShard]:
    """Those of all sources, without the validation fold."""
    marker = _fold_marker(config)
    kept = [shard for shard in _shards(config.data_sources) if marker is None or marker not in shard.path]
    if not kept:
        raise DataError(f"every file of the data sources is called *{marker}*: nothing is left to train on")
    return kept


class _Reader:
    """Reads shards into data sets with one naming of images and classes."""

    def __init__(self, config: DatasetConfig, class_names: Sequence[str]):
        self.extension = "." + config.image_extension.lstrip(".")
        self.class_names = class_names
        self._label_name = functools.cache(label_name)  # a few names, many labels
        mapping = {label_name(key): value for key, value in config.target_class_mapping.items()}
        self.numbers = {
            name: class_names.index(value) for name, value in mapping.items() if value in class_names
        }
        self.numbers |= {label_name(name): DONTCARE for name in config.dontcare_labels}

    def read(
        self,
        shards: Sequence[_SourceShard],
        *,
        uniform: bool = False,
        at_most: int | None = None,
        look_for_images: bool = True,
    ) -> Dataset:
        found: list[Frame] = []
        raw: Counter[str] = Counter()
        opened: dict[str, tfrecord.Shard] = {}
        total, records = (None, _records(shards)) if at_most is None else _some_records(shards, at_most)
        for (source, source_number, path), number, record in records:
            if record.image is not None and path not in opened:
                opened[path] = tfrecord.open_shard(path)
            raw.update(record.names)
            embedded = None if record.image is None else opened[path]
            frame = self._frame(record, source, embedded, number=number)
            found.append(frame._replace(source=source_number))
        if not found:
            raise DataError(
                f"there are no records in {', '.join(item.path for item in shards[:NAMED_FILES])}"
            )
        if look_for_images:
            found = require_images(found)
        return Dataset(found, self.class_names, raw_counts=raw, uniform=uniform, total=total)

    def _frame(
        self, record: tfrecord.Record, source: DataSource, shard: tfrecord.Shard | None, *, number: int
    ) -> Frame:
        names = tuple(map(self._label_name, record.names))
        classes = np.array([self.numbers.get(name, BACKGROUND) for name in names], dtype=np.int64)
        objects = Objects(record.boxes, classes, names, record.truncation, record.occlusion)
        widths, heights = (record.boxes[:, 2:] - record.boxes[:, :2]).T
        has_area = (widths > 0) & (heights > 0)
        extension = f".{record.image_format}" if record.image_format else self.extension
        image = os.path.join(os.path.expanduser(source.image_directory_path), record.frame_id + extension)
        return Frame(
            frame_id=record.frame_id,
            path=image if shard is None else shard.path,
            shard=shard,
            number=number,
            size=(record.width, record.height),
            objects=objects if has_area.all() else objects.chosen(has_area),
            weight=source.source_weight or 1.0,
            length=len(record.image or b""),
            checksums=(0, 0) if record.image is None else checksums(record.image),
        )


def _shards(sources: Iterable[DataSource]) -> list[_SourceShard]:
    """The shards of every source; each must have some, and a warning names those that are not there."""
    found: list[_SourceShard] = []
    for number, source in enumerate(sources):
        shards = tfrecord.find_shards(source.tfrecords_path)
        if not shards:
            raise DataError(
                f"no files match tfrecords_path: {source.tfrecords_path}; "
                "correct the pattern, or run detectkit convert"
            )
        _warn_of_missing_shards(shards)
        found += [_SourceShard(source, number, shard) for shard in shards]
    return found


def _warn_of_missing_shards(found: Sequence[str]) -> None:
    """Tell of the shards that others are counted with (-shard-00000-of-00010), and that are on no disk."""
    counted = {(match[1], match[2]) for match in map(PART.fullmatch, found) if match}
    for start, count in sorted(counted):
        parts = [f"{start}-shard-{number:05d}-of-{count}" for number in range(int(count))]
        missing = [part for part in parts if part not in found and not os.path.exists(local_path(part))]
        if missing and not is_remote(start):
            log.warning(
                f"{len(missing)} of the {len(parts)} shards of {start} are not there, nor are their images: {missing[0]} …"
            )


def _records(shards: Iterable[_SourceShard]) -> Iterator[tuple[_SourceShard, int, tfrecord.Record]]:
    """Every record, with its shard and its number in there."""
    for shard in shards:
        for number, record in enumerate(tfrecord.read_records(shard.path)):
            yield shard, number, record


def _some_records(
    shards: Sequence[_SourceShard], at_most: int
) -> tuple[int, Iterator[tuple[_SourceShard, int, tfrecord.Record]]]:
    """How many records there are, and evenly spaced ones of them."""
    opened = [tfrecord.open_shard(shard.path) for shard in shards]
    ends = np.cumsum([len(shard.offsets) for shard in opened])
    total = int(ends[-1])
    count = min(at_most, total)
    chosen = np.arange(count) * total // max(count, 1)

    def read() -> Iterator[tuple[_SourceShard, int, tfrecord.Record]]:
        for number in chosen:
            which = int(np.searchsorted(ends, number, side="right"))
            within = int(number - ends[which] + len(opened[which].offsets))
            yield shards[which], within, tfrecord.read_record(opened[which], within)

    return total, read()
