"""Write training images, as the network sees them, to TLT's TensorFile (HDF5) for 8-bit calibration."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.console import progress, say
from detectkit.errors import DataError, UsageError


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

    from detectkit.data.inputs import inputs
    from detectkit.data.records import training_frames, validation_frames
    from detectkit.deploy.tensorfile import write_tensorfile

    read = validation_frames if args.use_validation_set else training_frames
    images = read(experiment.dataset_config, spec.class_names(experiment))
    if images is None:
        raise DataError("the spec has no validation_fold or validation_data_source to take images from")
    size = spec.batch_size(experiment)
    available = len(images) // size
    count = available if args.max_batches == -1 else args.max_batches
    if not 1 <= count <= available:
        raise UsageError(f"-m {count}: {len(images)} images make {available} full batches of {size}")
    batches = inputs(images, experiment, order=range(count * size), batch_size=size)
    arrays = (batch.numpy() for batch in progress(batches, total=count, label="writing", unit="batches"))
    say(f"wrote {write_tensorfile(args.output_path, arrays)} batches of {size} images to {args.output_path}")
