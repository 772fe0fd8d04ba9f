"""Write training images, as the network sees them, to TLT's TensorFile (HDF5) for 8-bit calibration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit import spec
from detectkit.console import progress, say
from detectkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from detectkit.data.dataset import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--experiment_spec_file", required=True, type=Path, metavar="SPEC")
    parser.add_argument("-o", "--output_path", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "-m", "--max_batches", type=int, default=-1, metavar="N", help="how many batches (all full ones)"
    )
    parser.add_argument("--use_validation_set", action="store_true", help="take validation images instead")


def run(args: argparse.Namespace) -> None:
    experiment = spec.load_experiment(args.experiment_spec_file)

    from detectkit.data.dataset import frames
    from detectkit.deploy.tensorfile import write_tensorfile

    training, validation = frames(experiment.dataset_config, spec.class_names(experiment))
    images = validation if args.use_validation_set else training
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
    from detectkit.data.dataset import decode_size, loader

    config, augmentation = experiment.training_config, experiment.augmentation_config
    batches = loader(
        images,
        batch_size=config.batch_size_per_gpu,
        order=range(count * config.batch_size_per_gpu),
        workers=config.workers,
        channels=augmentation.preprocessing.output_image_channel,
        target_size=decode_size(augmentation),
    )
    for batch in batches:
        yield prepare(batch, augmentation, generator=None, device="cpu").images.numpy()
