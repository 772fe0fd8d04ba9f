"""The stage that makes records of labels."""

from __future__ import annotations

import glob
import itertools
import os
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
    kind = config.WhichOneof("convert_config_type")
    if kind == "sample_config":
        held = int(SAMPLE_IMAGES * SAMPLE_VALIDATION)
        return [held, SAMPLE_IMAGES - held]
    if kind == "csv_config":
        return _folds_of_tables(config)
    is_listed = kind == "coco_config"  # a folder a fold
    if kind == "yolo_config" and config.yolo_config.image_dir_names:
        counts, is_listed = [_count_yolo(config, name) for name in config.yolo_config.image_dir_names], True
    else:
        counts = [_count_images(path) for path in _folders(config)]
    if is_listed and not sources.is_drawn_from_a_list(config):
        return counts
    total, number = sum(counts), max(sources.num_folds(config), 1)
    return _split(total, getattr(config, kind or "kitti_config").val_split, number)


def _split(total: int, share: float, number: int) -> list[int]:
    if number == 2 and share:
        held = round(total * share / 100)
        return [held, total - held]
    return [total // number] * number


def _count_yolo(config: DatasetExportConfig, name: str) -> int:
    """Images of a folder, or of a list: its lines."""
    source = config.yolo_config
    root = Path(source.root_directory_path).expanduser()
    if not sources.is_list(name):
        images, _ = sources.image_root(config.image_directory_path, root, sources.yolo_folders(source))
        return _count_images(images / name)
    try:
        return sum(1 for line in (root / name).read_bytes().splitlines() if line.strip())
    except OSError:
        return 0


def _folds_of_tables(config: DatasetExportConfig) -> list[int]:
    """The images below the folder, dealt to the tables by their length: they are not read."""
    folder, *tables = sources.reads(config)
    total = _count_images(folder)
    if len(tables) == 1:
        return _split(total, config.csv_config.val_split, 2)
    sizes = [table.stat().st_size if table.is_file() else 0 for table in tables]
    return [round(total * size / max(sum(sizes), 1)) for size in sizes]


def _folders(config: DatasetExportConfig) -> list[Path]:
    return [path for path in sources.reads(config) if path.is_dir()]


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
