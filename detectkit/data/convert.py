"""A KITTI folder to TFRecord shards, split into folds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
from PIL import Image

from detectkit.console import log, progress
from detectkit.data import kitti, tfrecord
from detectkit.errors import DataError, OutputError, SpecError, UsageError
from detectkit.spec import DatasetExportConfig, KITTIConfig

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)  # what Pillow raises for a bad file


class Frame(NamedTuple):
    """A usable image and its labels, class names as the records will have them."""

    name: str  # file name without extension
    image: Path
    width: int  # pixels
    height: int
    labels: tuple[kitti.Label, ...]


class Reject(NamedTuple):
    """A line, label file or image that was left out. `line` counts from 1; None means the whole file."""

    file: str
    line: int | None
    reason: str


class Fold(NamedTuple):
    """What one partition holds."""

    number: int
    frames: int  # images, copies of the sample modifier included
    boxes: Counter[str]  # class name in the records -> boxes
    shards: list[Path]


class Summary(NamedTuple):
    """What a conversion wrote."""

    folds: list[Fold]
    rejected: list[Reject]
    warning_file: Path | None  # lists `rejected`; None when nothing was
    image_root: Path  # what a training spec needs as image_directory_path


def convert(
    config: DatasetExportConfig, output_prefix: str, *, validation_fold: int | None = None
) -> Summary:
    """Write `<prefix>[-fold-FFF-of-PPP][-shard-SSSSS-of-NNNNN]` and, if anything was left out, `<prefix>_warning.json`.

    Class names are lower-cased, as TLT does, then renamed by `target_class_mapping`. Boxes stay as labelled, also
    outside the image. Files of an earlier conversion with the same prefix are replaced once everything is written.

    Args:
        validation_fold: the fold that sample_modifier_config leaves alone; None applies it to all.

    Raises:
        SpecError: the spec asks for what cannot be done. UsageError: the prefix or fold makes no sense.
        DataError: a folder is missing or nothing in it is usable. OutputError: the files cannot be written.
    """
    source = _source(config)
    if output_prefix.endswith("/") or Path(output_prefix).is_dir():
        raise UsageError(
            f"{output_prefix} is a folder: give a file prefix, for instance {output_prefix.rstrip('/')}/data"
        )
    if validation_fold is not None and not 0 <= validation_fold < max(source.num_partitions, 1):
        raise UsageError(f"there is no fold {validation_fold}: num_partitions is {source.num_partitions}")
    image_root = _image_root(config, source)
    frames, rejected = _scan(config, source, image_root)
    if not frames:
        examples = "; ".join(f"{reject.file}: {reject.reason}" for reject in rejected[:3])
        raise DataError(
            f"nothing to convert: none of {len(rejected)} images and labels is usable ({examples})"
        )
    folds = _split(source, frames, seed=config.random_seed)
    training = [number for number in range(len(folds)) if number != validation_fold]
    for number in training:
        folds[number] = modify(folds[number], config.sample_modifier_config, num_folds=len(training))
    return _write(config, source, folds, rejected, prefix=Path(output_prefix), image_root=image_root)


def modify(
    frames: Sequence[Frame], modifier: DatasetExportConfig.SampleModifierConfig, *, num_folds: int
) -> list[Frame]:
    """Drop, repeat and cap the frames of one training fold as the sample modifier says.

    Classes are compared after `source_to_target_class_mapping`. A frame goes when all its boxes are of one class of
    `filter_samples_containing_only`. It is repeated `num_duplicates` times when it has more boxes of a class r that is
    not dominant than of some dominant class d times minimum_target_class_imbalance[r] (default 1). Finally the fold is
    cut to max_training_samples // num_folds.
    """
    kept: list[Frame] = []
    for frame in frames:
        names = Counter(
            _mapped(label.name, modifier.source_to_target_class_mapping) for label in frame.labels
        )
        if len(names) == 1 and set(names) <= set(modifier.filter_samples_containing_only):
            continue
        copies = modifier.num_duplicates if _is_rare(names, modifier) else 0
        kept.extend([frame] * (1 + copies))
    if modifier.max_training_samples:
        kept = kept[: modifier.max_training_samples // num_folds]
    return kept


def _is_rare(names: Counter[str], modifier: DatasetExportConfig.SampleModifierConfig) -> bool:
    imbalance = modifier.minimum_target_class_imbalance
    dominant = set(modifier.dominant_target_classes)
    return any(
        names[rare] > names[common] * (imbalance[rare] if rare in imbalance else 1.0)
        for rare in names.keys() - dominant
        for common in dominant
    )


def _mapped(name: str, mapping: Mapping[str, str]) -> str:
    return next((target for source, target in mapping.items() if source.lower() == name), name)


# ---------------------------------------------------------------------------------------------- reading the folder


def _source(config: DatasetExportConfig) -> KITTIConfig:
    """Give the KITTI section after the rules that only a conversion knows."""
    if not config.HasField("kitti_config"):
        raise SpecError(
            "dataset export: kitti_config is missing; KITTI folders are the only source that is converted"
        )
    source = config.kitti_config
    match source.partition_mode:
        case "random" if source.num_partitions != 2:
            raise SpecError(f'partition_mode "random" needs num_partitions: 2, got {source.num_partitions}')
        case "sequence" if not source.kitti_sequence_to_frames_file:
            raise SpecError('partition_mode "sequence" needs kitti_sequence_to_frames_file')
        case "random" | "sequence":
            return source
        case mode:
            raise SpecError(f'kitti_config.partition_mode: "random" or "sequence", got "{mode}"')


def _image_root(config: DatasetExportConfig, source: KITTIConfig) -> Path:
    """Give the folder that frame ids are relative to: image_directory_path where the images are there, else the root."""
    root = Path(source.root_directory_path).expanduser()
    images = Path(config.image_directory_path).expanduser() if config.image_directory_path else root
    if images != root and not (images / source.image_dir_name).is_dir():
        log.warning("image_directory_path %s has no folder %s; using %s", images, source.image_dir_name, root)
        return root
    return images


def _scan(
    config: DatasetExportConfig, source: KITTIConfig, image_root: Path
) -> tuple[list[Frame], list[Reject]]:
    """Read the labels and image headers of all frames, in order of their names."""
    extension = "." + source.image_extension.removeprefix(".")
    images = image_root / source.image_dir_name
    labels = Path(source.root_directory_path).expanduser() / source.label_dir_name
    names = _frame_names(images, extension)
    orphans = _names(labels, ".txt") - names
    if source.partition_mode == "sequence":
        listed = {name for sequence in _sequences(source).values() for name in sequence}
        names, orphans = names & listed, listed - names
    rejected = [
        Reject(str(images / f"{name}{extension}"), None, "the image is missing") for name in sorted(orphans)
    ]
    frames = []
    for name in progress(sorted(names), total=len(names), label="reading labels"):
        frame = _read_frame(name, images / f"{name}{extension}", labels / f"{name}.txt", rejected)
        if frame:
            mapping = config.target_class_mapping
            renamed = [
                item._replace(name=_mapped(item.name.lower(), mapping).lower()) for item in frame.labels
            ]
            frames.append(frame._replace(labels=tuple(renamed)))
    return frames, rejected


def _read_frame(name: str, image: Path, label_file: Path, rejected: list[Reject]) -> Frame | None:
    """Read one frame, adding what is wrong with it to `rejected`; None when the whole frame is unusable."""
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except UNREADABLE as error:
        is_empty = image.is_file() and image.stat().st_size == 0
        reason = "the file is empty" if is_empty else f"not a readable image ({error})"
        rejected.append(Reject(str(image), None, reason))
        return None
    try:
        labels, bad_lines = kitti.read_labels(label_file)
    except DataError as error:
        reason = str(error) if label_file.exists() else "the label file is missing"
        rejected.append(Reject(str(label_file), None, reason))
        return None
    rejected.extend(Reject(str(label_file), line, reason) for line, reason in bad_lines)
    return Frame(name, image, width, height, tuple(labels))


def _frame_names(images: Path, extension: str) -> set[str]:
    names = _names(images, extension)
    if not names:
        others = Counter(path.suffix for path in images.iterdir() if path.is_file())
        found = ", ".join(
            f"{count} {suffix or 'without extension'}" for suffix, count in others.most_common(3)
        )
        raise DataError(
            f"no {extension} images in {images} (it has {found or 'no files'}): see image_extension"
        )
    return names


def _names(folder: Path, extension: str) -> set[str]:
    try:
        return {
            entry.name.removesuffix(extension)
            for entry in os.scandir(folder)
            if entry.name.endswith(extension)
        }
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; it is root_directory_path with image_dir_name or label_dir_name"
        ) from error


def _sequences(source: KITTIConfig) -> dict[str, list[str]]:
    """Read the JSON file of sequence name -> frame names; a frame may be in one sequence only."""
    path = Path(source.root_directory_path).expanduser() / source.kitti_sequence_to_frames_file
    try:
        sequences = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read kitti_sequence_to_frames_file {path}: {error}") from error
    if not isinstance(sequences, dict) or not all(isinstance(names, list) for names in sequences.values()):
        raise DataError(f"{path}: expected one JSON object of sequence name to list of frame names")
    sequences = {str(sequence): [str(name) for name in names] for sequence, names in sequences.items()}
    [(most_listed, count)] = Counter(name for names in sequences.values() for name in names).most_common(
        1
    ) or [("", 0)]
    if count > 1:
        raise DataError(f"{path}: the frame {most_listed} is listed {count} times; it would be in two folds")
    return sequences


# --------------------------------------------------------------------------------------------------- folds, shards


def _split(source: KITTIConfig, frames: list[Frame], *, seed: int) -> list[list[Frame]]:
    """Split into folds, each in shuffled order; the same seed gives the same folds."""
    generator = random.Random(seed)
    if source.partition_mode == "sequence":
        folds = _deal_sequences(_sequences(source), frames, num_folds=max(source.num_partitions, 1))
    else:
        shuffled = generator.sample(frames, len(frames))
        count = int(source.val_split / 100 * len(frames))
        if source.val_split > 0 and len(frames) > 1:
            count = max(count, 1)  # a validation set was asked for
        folds = [shuffled[:count], shuffled[count:]]
    return [generator.sample(fold, len(fold)) for fold in folds]


def _deal_sequences(
    sequences: dict[str, list[str]], frames: list[Frame], *, num_folds: int
) -> list[list[Frame]]:
    """Deal sequences, longest first, to the folds in turn, and count the folds from the last, as TLT does."""
    by_name = {frame.name: frame for frame in frames}
    ordered = sorted(sequences, key=lambda sequence: (-len(sequences[sequence]), sequence))
    folds: list[list[Frame]] = [[] for _ in range(num_folds)]
    for turn, sequence in enumerate(ordered):
        folds[turn % num_folds].extend(by_name[name] for name in sequences[sequence] if name in by_name)
    return folds[::-1]


def _write(
    config: DatasetExportConfig,
    source: KITTIConfig,
    folds: list[list[Frame]],
    rejected: list[Reject],
    *,
    prefix: Path,
    image_root: Path,
) -> Summary:
    """Write everything to a temporary folder beside the prefix and move it into place at the end."""
    summaries = []
    with _staging(prefix) as staging:
        for number, fold in enumerate(folds):
            fold_part = f"-fold-{number:03}-of-{len(folds):03}" if source.num_partitions else ""
            shards = _shards(fold, source.num_shards)
            for name, frames in shards.items():
                tracked = progress(frames, total=len(frames), label=f"writing {prefix.name}{fold_part}{name}")
                records = (
                    _record(frame, source.image_dir_name, embed=config.embed_images) for frame in tracked
                )
                tfrecord.write_shard(staging / f"{prefix.name}{fold_part}{name}", records)
            boxes = Counter(label.name for frame in fold for label in frame.labels)
            paths = [prefix.with_name(f"{prefix.name}{fold_part}{name}") for name in shards]
            summaries.append(Fold(number, len(fold), boxes, paths))
        if rejected:
            lines = json.dumps([reject._asdict() for reject in rejected], indent=2)
            (staging / f"{prefix.name}_warning.json").write_text(lines + "\n", encoding="utf-8")
    warning_file = prefix.with_name(f"{prefix.name}_warning.json") if rejected else None
    return Summary(summaries, rejected, warning_file, image_root)


def _shards(fold: list[Frame], num_shards: int) -> dict[str, list[Frame]]:
    """Cut a fold into shards of nearly the same length, by the name's last part; no shard is empty."""
    if not fold or not num_shards:
        return {"": fold} if fold else {}
    count = min(num_shards, len(fold))
    bounds = [len(fold) * shard // count for shard in range(count + 1)]
    return {f"-shard-{i:05}-of-{count:05}": fold[bounds[i] : bounds[i + 1]] for i in range(count)}


def _record(frame: Frame, image_dir_name: str, *, embed: bool) -> bytes:
    labels = frame.labels
    record = tfrecord.Record(
        frame_id=f"{image_dir_name}/{frame.name}",
        width=frame.width,
        height=frame.height,
        names=[label.name for label in labels],
        boxes=numpy.array([label.box for label in labels], dtype=numpy.float32).reshape(-1, 4),
        truncation=numpy.array([label.truncation for label in labels], dtype=numpy.float32),
        occlusion=numpy.array([label.occlusion for label in labels], dtype=numpy.int64),
        image=_image_bytes(frame.image) if embed else None,
        image_format=frame.image.suffix.removeprefix(".") if embed else "",
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
        with tempfile.TemporaryDirectory(prefix=f".{prefix.name}-", dir=prefix.parent) as folder:
            yield Path(folder)
            written = {entry.name for entry in os.scandir(folder)}
            ours = re.compile(
                re.escape(prefix.name)
                + r"((-fold-\d{3}-of-\d{3}|-shard-\d{5}-of-\d{5})+(\.index)?|_warning.json)"
            )
            for stale in os.listdir(prefix.parent):
                if ours.fullmatch(stale) and stale not in written:
                    (prefix.parent / stale).unlink()
            for name in written:
                os.replace(Path(folder) / name, prefix.parent / name)
    except OSError as error:
        raise OutputError(f"cannot write {prefix}*: {error.strerror or error}") from error
