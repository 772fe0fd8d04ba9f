"""Labelled images of KITTI, COCO, Pascal VOC, YOLO or CSV to TFRecord shards, split into folds."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy

from detectkit.console import log, progress
from detectkit.data import cleaning_list, coco, csv, kitti, likeness, readers, sources, tfrecord, voc, yolo
from detectkit.data.digits import make_sample_data
from detectkit.data.readers import LabelledImage, Reject, Source, reasons
from detectkit.errors import DataError, OutputError, UsageError
from detectkit.files import in_turn, staging_folder
from detectkit.spec import DatasetExportConfig, label_name
from detectkit.spec.by_class import DEFAULT

NAMED = 12  # labels named that meet, and classes that no label has
REASONS = 3  # named in an error


class Fold(NamedTuple):
    """What one partition holds."""

    number: int
    frames: int  # images, copies of the sample modifier included
    boxes: Counter[str]  # class name in the records -> boxes
    shards: list[Path]


class ConversionSummary(NamedTuple):
    """What a conversion wrote."""

    folds: list[Fold]
    rejected: list[Reject]
    warning_file: Path | None  # lists `rejected`; None when nothing was
    image_root: Path  # what a training spec needs as image_directory_path
    image_extension: str  # and as image_extension; empty: every record has that of its image
    others: int = 0  # images of other extensions, which their records keep
    turned: int = 0  # images that their EXIF orientation turns


def convert(
    config: DatasetExportConfig, output_prefix: str, *, validation_fold: int | None = None
) -> ConversionSummary:
    """Write `<prefix>[-fold-FFF-of-PPP][-shard-SSSSS-of-NNNNN]` and, if anything was left out, `<prefix>_warning.json`.

    Class names are lower-cased and lose white space, as in TLT, then renamed by `target_class_mapping`; labels that
    meet so, and names of the spec that no label has, are told. Boxes stay as labelled, also outside the image. The data
    set of `sample_config` is made where it is missing. Files of an earlier conversion with the same prefix are replaced
    once everything is written; where that is cut, readers refuse what is there until a conversion ends.

    Args:
        validation_fold: the fold that sample_modifier_config leaves alone; None applies it to all.

    Raises:
        UsageError: the prefix or fold makes no sense. OutputError: the files cannot be written, or the folder of
            `sample_config` holds something else.
        DataError: a folder or label file is missing or broken as a whole, no label is usable of those that there are,
            or nothing is left to write.
    """
    if output_prefix.endswith("/") or Path(output_prefix).is_dir():
        raise UsageError(
            f"{output_prefix} is a folder: give a file prefix, for instance {output_prefix.rstrip('/')}/data"
        )
    num_folds = sources.num_folds(config)
    if validation_fold is not None and not 0 <= validation_fold < num_folds:
        raise UsageError(f"there is no fold {validation_fold}: the spec makes {num_folds}, counted from 0")
    generator = random.Random(config.random_seed)
    source = split_as_asked(config, read(config, generator))
    if config.cleaning_file:
        source = cleaning_list.apply_list(source, Path(config.cleaning_file).expanduser())
    if not config.embed_images:
        folds = [_with_extension(fold, source.rejected) for fold in source.folds]
        source = source._replace(folds=folds)
    _require_usable(source)
    folds = [generator.sample(fold, len(fold)) for fold in source.folds]
    mapping = _mapping(config.target_class_mapping)
    _tell_of_labels(config, Counter(label.name for fold in folds for frame in fold for label in frame.labels))
    folds = [[_renamed(frame, mapping) for frame in fold] for fold in folds]
    folds = _modified(folds, config.sample_modifier_config, validation_fold)
    return _write(config, source, folds, prefix=Path(output_prefix))


def read(config: DatasetExportConfig, generator: random.Random) -> Source:
    """Read all that a conversion spec names, dealt to folds; nothing is renamed, left out by the spec or written.

    The data set of `sample_config` is made where it is missing.

    Args:
        generator: draws the folds of a random split.

    Raises:
        DataError: a folder or label file is missing or broken as a whole. OutputError: the folder of `sample_config`
            holds something else.
    """
    source = _read(config)
    if not sources.is_drawn(config):
        return source
    folds = readers.split(source.folds[0], sources.val_split(config), generator)
    return source._replace(folds=folds, num_shards=source.num_shards * 2)


def _read(config: DatasetExportConfig) -> Source:
    """Read the folds that a spec names, or the one that is dealt to two at random."""
    match config.WhichOneof("convert_config_type"):
        case "coco_config":
            return coco.read_folders(config)
        case "voc_config":
            return voc.read_folder(config)
        case "yolo_config":
            return yolo.read_folder(config)
        case "csv_config":
            return csv.read_tables(config)
        case "sample_config":
            make_sample_data(Path(config.sample_config.root_directory_path).expanduser())
            return kitti.read_folder(sources.as_kitti(config))
        case _:
            return kitti.read_folder(config)


def split_as_asked(config: DatasetExportConfig, source: Source) -> Source:
    """The source with its near-duplicates in one fold, where keep_near_duplicates_together asks for it."""
    if not config.keep_near_duplicates_together or not all(source.folds):
        return source
    if not sources.is_drawn(config):
        log.warning("keep_near_duplicates_together does nothing: the split is not drawn at random")
        return source
    found = likeness.keep_together(source.folds)
    if found.groups:
        log.info(
            "%d images are in groups of near-duplicates (%d): %d changed folds, and fold 0 has %d of %d images",
            *(found.images, found.groups, found.moved, len(found.folds[0]), sum(map(len, found.folds))),
        )
    else:
        log.info("no near-duplicates: the split stays as it was drawn")
    return source._replace(folds=found.folds)


def _with_extension(fold: Sequence[LabelledImage], rejected: list[Reject]) -> list[LabelledImage]:
    """Leave out the images whose names have no extension, without which records do not find them."""
    reason = "the name has no extension, which training would look for; rename it, or set embed_images"
    rejected.extend(Reject(str(frame.image), None, reason) for frame in fold if not frame.image.suffix)
    return [frame for frame in fold if frame.image.suffix]


def _require_usable(source: Source) -> None:
    """Raise DataError where nothing is left, or no label is of those that there are: files of another format, as a rule.

    Where there are no labels at all, which may be meant, warn.
    """
    if not any(source.folds):
        count = len(source.rejected)
        raise DataError(
            f"nothing to convert: none of {count} images and labels is usable ({_reasons(source.rejected)})"
            if count
            else "nothing to convert: the label files list no image"
        )
    labels = [reject for reject in source.rejected if reject.is_label]
    if any(frame.labels for fold in source.folds for frame in fold):
        return
    if labels:
        raise DataError(f"not one of {len(labels)} labels is usable ({_reasons(labels)})")
    log.warning(
        "not one label in the label files of %d images: all of them are taken for images that show no object",
        sum(map(len, source.folds)),
    )


def _reasons(rejected: Iterable[Reject]) -> str:
    return "; ".join(reasons(rejected, most=REASONS))


# Names of classes


def _tell_of_labels(config: DatasetExportConfig, labels: Counter[str]) -> None:
    """Warn of labels, as written, that have one name in the records, and of names in the spec that no label has."""
    spellings: dict[str, list[str]] = {}
    for label in sorted(labels):
        spellings.setdefault(label_name(label), []).append(label)
    meeting = [
        f"{name} ({', '.join(f'{label!r} {labels[label]}' for label in same)})"
        for name, same in spellings.items()
        if len(same) > 1
    ]
    if meeting:
        log.warning("labels that are one in the records, with their boxes: %s", _few(meeting))
    mapping, modifier = _mapping(config.target_class_mapping), config.sample_modifier_config
    _tell_of_absent("target_class_mapping", config.target_class_mapping, spellings)
    names = {mapping.get(name, name) for name in spellings}
    aliases = modifier.source_to_target_class_mapping
    _tell_of_absent("source_to_target_class_mapping", aliases, names)
    names |= {label_name(target) for target in aliases.values()}
    for field in ("filter_samples_containing_only", "dominant_target_classes"):
        _tell_of_absent(field, getattr(modifier, field), names)
    imbalance = set(modifier.minimum_target_class_imbalance) - {DEFAULT}
    _tell_of_absent("minimum_target_class_imbalance", imbalance, names)


def _tell_of_absent(field: str, wanted: Iterable[str], names: Collection[str]) -> None:
    absent = sorted(name for name in wanted if label_name(name) not in names)
    if absent:
        log.warning("%s: no label is called %s", field, _few(map(repr, absent)))


def _few(texts: Iterable[str]) -> str:
    named = list(texts)
    return ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")


def _mapping(names: Mapping[str, str]) -> dict[str, str]:
    """Give a class mapping with names as the records have them."""
    return {label_name(source): label_name(target) for source, target in names.items()}


def _renamed(frame: LabelledImage, mapping: Mapping[str, str]) -> LabelledImage:
    """Give a frame with class names as the records have them."""
    names = [label_name(label.name) for label in frame.labels]
    labels = [label._replace(name=mapping.get(name, name)) for label, name in zip(frame.labels, names)]
    return frame._replace(labels=tuple(labels))


# Sample modifier


def _modified(
    folds: list[list[LabelledImage]],
    modifier: DatasetExportConfig.SampleModifierConfig,
    validation_fold: int | None,
) -> list[list[LabelledImage]]:
    """Apply the sample modifier to the folds that are trained on."""
    training = [number for number, fold in enumerate(folds) if fold and number != validation_fold]
    changed = {number: modify(folds[number], modifier, num_folds=len(training)) for number in training}
    if training and not any(changed.values()):
        raise DataError(
            "sample_modifier_config leaves no frame: correct filter_samples_containing_only or max_training_samples"
        )
    return [changed.get(number, fold) for number, fold in enumerate(folds)]


def modify(
    frames: Sequence[LabelledImage], modifier: DatasetExportConfig.SampleModifierConfig, *, num_folds: int
) -> list[LabelledImage]:
    """Drop, repeat and cap the frames of one training fold as the sample modifier says.

    Classes are compared after `source_to_target_class_mapping`, in lower case. A frame goes when all its boxes are of one
    class of `filter_samples_containing_only`. It is repeated `num_duplicates` times when it has more boxes of a class r
    that is not dominant than of some dominant class d times minimum_target_class_imbalance[r] (or its entry `default`, or 1).
    Finally the fold is cut to max_training_samples // num_folds.
    """
    left_out = set(map(label_name, modifier.filter_samples_containing_only))
    mapping = _mapping(modifier.source_to_target_class_mapping)
    kept: list[LabelledImage] = []
    for frame in frames:
        names = Counter(mapping.get(label.name, label.name) for label in frame.labels)
        if len(names) == 1 and set(names) <= left_out:
            continue
        copies = modifier.num_duplicates if _is_rare(names, modifier) else 0
        kept.extend([frame] * (1 + copies))
    if modifier.max_training_samples:
        kept = kept[: modifier.max_training_samples // num_folds]
    return kept


def _is_rare(names: Counter[str], modifier: DatasetExportConfig.SampleModifierConfig) -> bool:
    imbalance = {label_name(name): factor for name, factor in modifier.minimum_target_class_imbalance.items()}
    others = imbalance.get(DEFAULT, 1.0)
    dominant = set(map(label_name, modifier.dominant_target_classes))
    return any(
        names[rare] > names[common] * imbalance.get(rare, others)
        for rare in names.keys() - dominant
        for common in dominant
    )


# Writing


def _write(
    config: DatasetExportConfig, source: Source, folds: list[list[LabelledImage]], *, prefix: Path
) -> ConversionSummary:
    """Write everything to a temporary folder beside the prefix and move it into place at the end."""
    summaries = []
    with _staging(prefix) as staging:
        for number, fold in enumerate(folds):
            fold_part = f"-fold-{number:03}-of-{len(folds):03}" if source.is_partitioned else ""
            shards = {
                f"{prefix.name}{fold_part}{part}": frames
                for part, frames in _shards(fold, source.num_shards[number]).items()
            }
            for name, frames in shards.items():
                tracked = progress(frames, total=len(frames), label=f"writing {name}")
                records = (
                    _record(frame, embed=config.embed_images, extension=source.extension) for frame in tracked
                )
                tfrecord.write_shard(staging / name, records)
            boxes = Counter(label.name for frame in fold for label in frame.labels)
            summaries.append(Fold(number, len(fold), boxes, list(map(prefix.with_name, shards))))
        if source.rejected:
            entries = [
                {key: getattr(each, key) for key in ("file", "line", "reason")} for each in source.rejected
            ]
            lines = json.dumps(entries, indent=2)
            (staging / f"{prefix.name}_warning.json").write_text(lines + "\n", encoding="utf-8")
    warning_file = prefix.with_name(f"{prefix.name}_warning.json") if source.rejected else None
    kept = [] if config.embed_images else [frame for fold in source.folds for frame in fold]
    return ConversionSummary(
        summaries,
        source.rejected,
        warning_file,
        source.image_root,
        source.extension,
        others=sum(_extension(frame) != source.extension for frame in kept),
        turned=len({frame.image for fold in folds for frame in fold if frame.turned}),
    )


def _shards(fold: list[LabelledImage], num_shards: int) -> dict[str, list[LabelledImage]]:
    """Cut a fold into shards of nearly the same length, by the name's last part; no shard is empty."""
    if not fold or not num_shards:
        return {"": fold} if fold else {}
    count = min(num_shards, len(fold))
    bounds = [len(fold) * shard // count for shard in range(count + 1)]
    return {f"-shard-{i:05}-of-{count:05}": fold[bounds[i] : bounds[i + 1]] for i in range(count)}


def _extension(frame: LabelledImage) -> str:
    return frame.image.suffix.removeprefix(".")


def _record(frame: LabelledImage, *, embed: bool, extension: str) -> bytes:
    """Serialise a frame; its image's extension is told where it is not the one of the whole set."""
    labels = frame.labels
    record = tfrecord.Record(
        frame_id=frame.frame_id,
        width=frame.width,
        height=frame.height,
        names=[label.name for label in labels],
        boxes=numpy.array([label.box for label in labels], dtype=numpy.float32).reshape(-1, 4),
        truncation=numpy.array([label.truncation for label in labels], dtype=numpy.float32),
        occlusion=numpy.array([label.occlusion for label in labels], dtype=numpy.int64),
        image=_image_bytes(frame.image) if embed else None,
        image_format=_extension(frame) if embed or _extension(frame) != extension else "",
    )
    world = [(*label.dimensions, *label.location, label.rotation_y) for label in labels]
    columns = {f"target/world_bbox_{key}": [row[i] for row in world] for i, key in enumerate("hwlxyz")}
    columns["target/world_bbox_rot_y"] = [row[6] for row in world]
    columns["target/observation_angle"] = [label.alpha for label in labels]
    return tfrecord.encode(record, columns)


def _image_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _staging(prefix: Path) -> Iterator[Path]:
    """Give a temporary folder; when the block ends well, its files replace those of an earlier conversion."""
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(prefix) as folder:
            yield folder
            with in_turn(prefix.parent):
                _switch(prefix, folder)
    except OSError as error:
        raise OutputError(f"cannot write {prefix}*: {error.strerror or error}") from error


def _switch(prefix: Path, folder: Path) -> None:
    """Let the files of a folder take the places of an earlier conversion's: a mark is there until it is done."""
    written = sorted(entry.name for entry in os.scandir(folder))
    # A shard that is called as the prefix alone has an index; another file of that name has none.
    is_whole = prefix.is_file() and prefix.with_name(f"{prefix.name}.index").is_file()
    mark = sources.unfinished(prefix)
    mark.write_text("detectkit convert replaces the files beside this one; if it was cut, run it again\n")
    _sync(mark)
    _sync(prefix.parent)
    for stale in sources.written(prefix):
        if stale.name not in written and (sources.has_parts(prefix, stale.name) or is_whole):
            stale.unlink()
    for name in written:
        os.replace(folder / name, prefix.with_name(name))
    _sync(prefix.parent)
    mark.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
