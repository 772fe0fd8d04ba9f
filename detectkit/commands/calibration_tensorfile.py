"""Write training images, as the network sees them, to TLT's TensorFile (HDF5) for 8-bit calibration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.console import progress, say
from detectkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from detectkit.data.dataset import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec")
    parser.add_argument(
        "-o", "--output_path", required=True, type=Path, metavar="FILE", help="the HDF5 file to write"
    )
    parser.add_argument(
        "-m", "--max_batches", type=int, default=-1, metavar="N", help="how many batches (all full ones)"
    )
    parser.add_argument("--use_validation_set", action="store_true", help="take validation images instead")


def run(args: argparse.Namespace) -> None:
    experiment = spec.load_experiment(args.experiment_spec)

    from detectkit.data.dataset import training_frames, validation_frames
    from detectkit.deploy.tensorfile import write_tensorfile

    read = validation_frames if args.use_validation_set else training_frames
    images = read(experiment.dataset_config, spec.class_names(experiment))
    if images is None:
        raise DataError("the spec has no validation_fold or validation_data_source to take images from")
    size = experiment.training_config.batch_size_per_gpu
    available = len(images) // size
    count = available if args.max_batches == -1 else args.max_batches
    if not 1 <= count <= available:
        raise UsageError(f"-m {count}: {len(images)} images make {available} full batches of {size}")
    batches = progress(_batches(experiment, images, count), total=count, label="writing", unit="batches")
    say(f"wrote {write_tensorfile(args.output_path, batches)} batches of {size} images to {args.output_path}")


def _batches(experiment: spec.Experiment, images: Dataset, count: int) -> Iterator[Any]:
    """The first `count` batches without augmentation, [N, c, H, W] in [0, 1]."""
    from detectkit.data.augment import prepare
    from detectkit.data.dataset import loader

    config, augmentation = experiment.training_config, experiment.augmentation_config
    batches = loader(
        images,
        augmentation,
        batch_size=config.batch_size_per_gpu,
        order=range(count * config.batch_size_per_gpu),
        workers=config.workers,
    )
    for batch in batches:
        yield prepare(batch, augmentation, generator=None, device="cpu").images.numpy()
