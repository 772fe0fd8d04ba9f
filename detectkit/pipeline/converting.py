"""The stage that makes records of labels."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectkit.data import sources
from detectkit.data.formats import is_image
from detectkit.errors import UsageError
from detectkit.files import files_below
from detectkit.pipeline.basis import PER_MIB, Basis, Estimate, size_mib
from detectkit.pipeline.chain import SPEC, Chain, RunStage
from detectkit.spec import DatasetExportConfig, Experiment, Rule, only

SAMPLE_IMAGES, SAMPLE_VALIDATION = 1000, 0.2  # of `sample_config`
PER_LABEL, PER_DRAWING = 0.003, 0.008  # seconds of converting, and of drawing a picture
RECORD, DRAWN = 0.0006, 0.02  # MiB, of an image


def count_labels(chain: Chain) -> tuple[int, int]:
    """Images to train on and to measure on, of conversions that are still to be done."""
    training, validation = 0, 0
    fold = chain.experiment.dataset_config.validation_fold
    for config in chain.experiment.dataset_export_config:
        folds = _folds(config)
        held = folds[fold] if chain.validates and fold < len(folds) else 0
        training, validation = training + sum(folds) - held, validation + held
    return training, validation


def _folds(config: DatasetExportConfig) -> list[int]:
    """Images of each fold of a conversion, about; all that there are, were nothing left out."""
    if config.HasField("sample_config"):
        held = int(SAMPLE_IMAGES * SAMPLE_VALIDATION)
        return [held, SAMPLE_IMAGES - held]
    names = sources.fold_names(config)
    match config.WhichOneof("convert_config_type"):
        case "yolo_config" if names:
            counts = [_count_yolo(config, name) for name in names]
        case "voc_config" if names:
            counts = [_count_lines(sources.root_folder(config) / name) for name in names]
        case "coco_config" | "csv_config":
            counts = _by_length(
                sources.image_folders(config), [sources.root_folder(config) / name for name in names]
            )
        case _:
            total, number = sum(map(_count_images, sources.image_folders(config))), sources.num_folds(config)
            counts = [total] if sources.is_drawn(config) else [total // number] * number
    if not sources.is_drawn(config):
        return counts
    held = sources.num_held(counts[0], sources.val_split(config))
    return [held, counts[0] - held]


def _count_yolo(config: DatasetExportConfig, name: str) -> int:
    """Images of a folder, or of a list."""
    if sources.is_list(name):
        return _count_lines(sources.root_folder(config) / name)
    folders = sources.yolo_folders(config.yolo_config)
    images, _ = sources.image_root(config.image_directory_path, sources.root_folder(config), folders)
    return _count_images(images / name)


def _count_lines(path: Path) -> int:
    try:
        return sum(1 for line in path.read_bytes().splitlines() if line.strip())
    except OSError:
        return 0


def _by_length(folders: Sequence[Path], files: Sequence[Path]) -> list[int]:
    """The images of each file's folder, dealt to the files that share it by their length: they are not read."""
    places = [*folders] * len(files) if len(folders) == 1 else folders
    lengths = [file.stat().st_size if file.is_file() else 0 for file in files]
    totals: Counter[Path] = Counter()
    for place, length in zip(places, lengths):
        totals[place] += length
    images = {place: _count_images(place) for place in totals}
    return [
        (
            round(images[place] * length / totals[place])
            if totals[place]
            else images[place] // places.count(place)
        )
        for place, length in zip(places, lengths)
    ]


def _folders(config: DatasetExportConfig) -> list[Path]:
    return [path for path in dict.fromkeys(sources.image_folders(config)) if path.is_dir()]


def _count_images(folder: Path) -> int:
    return sum(map(is_image, files_below(folder, fail=lambda error: None)))


def _takes(chain: Chain, basis: Basis) -> Estimate:
    seconds = mib = 0.0
    for config in chain.experiment.dataset_export_config:
        count = sum(_folds(config))
        drawn = count if config.HasField("sample_config") else 0
        embedded = sum(map(size_mib, _folders(config))) if config.embed_images else 0.0
        seconds += PER_LABEL * count + PER_DRAWING * drawn + PER_MIB * embedded
        mib += RECORD * count + DRAWN * drawn + embedded
    return Estimate(seconds, mib)


def label_files(chain: Chain) -> list[str]:
    """The label files and images of all conversions, as patterns."""
    found = [path for config in chain.experiment.dataset_export_config for path in sources.reads(config)]
    return [str(path / "**") if path.is_dir() else str(path) for path in found]


def cleaning_files(chain: Chain) -> list[str]:
    """The lists of decisions that conversions go by.

    Raises:
        UsageError: one is in the folder of a stage.
    """
    configs = chain.experiment.dataset_export_config
    found = [os.path.expanduser(config.cleaning_file) for config in configs if config.cleaning_file]
    for path, stage in itertools.product(found, ("clean", "suggest")):
        if Path(path).absolute().is_relative_to(Path(chain.path(stage)).absolute()):
            raise UsageError(
                f"cleaning_file {path} is in a folder that is emptied when the stage is done again: copy it beside the spec"
            )
    return found


def _records(chain: Chain) -> list[str]:
    found = []
    for config in chain.experiment.dataset_export_config:
        found.append(f"{glob.escape(config.output_filename)}*")
        if config.HasField("sample_config"):
            found.append(os.path.join(config.sample_config.root_directory_path, "sequences.json"))
    return found


def _spec(chain: Chain) -> Experiment:
    """The validation fold counts where the other folds are changed."""
    kept = only(chain.experiment, Rule.CONVERTING)
    config = chain.experiment.dataset_config
    modifies = any(part.HasField("sample_modifier_config") for part in kept.dataset_export_config)
    if modifies and config.HasField("validation_fold"):
        kept.dataset_config.validation_fold = config.validation_fold
    return kept


CONVERT = RunStage(
    name="convert",
    title="labels to records",
    wanted=lambda chain: bool(chain.experiment.dataset_export_config),
    commands=lambda chain: [["convert", "-d", chain.path(SPEC), "-r", chain.path("convert")]],
    spec=_spec,
    reads=lambda chain: [*label_files(chain), *cleaning_files(chain)],
    writes=_records,
    takes=_takes,
)
