"""Convert a KITTI folder of images and label files to TFRecord shards, split into folds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.console import StatusLog, log, say, table
from detectkit.files import make_directory

if TYPE_CHECKING:
    from detectkit.data.convert import Fold, Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--dataset_export_spec", required=True, type=Path, metavar="SPEC", help="a conversion spec"
    )
    parser.add_argument(
        "-o",
        "--output_filename",
        required=True,
        metavar="PREFIX",
        help="folder and first part of the shards' names",
    )
    parser.add_argument(
        "-f",
        "--validation_fold",
        type=int,
        metavar="FOLD",
        help="the fold that sample_modifier_config leaves as it is",
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="where status.jsonl goes")


def run(args: argparse.Namespace) -> None:
    config = spec.load_dataset_export(args.dataset_export_spec)

    from detectkit.data.convert import convert

    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write(f"converting to {args.output_filename}", status="STARTED")
    with status.failures():
        summary = convert(config, args.output_filename, validation_fold=args.validation_fold)
    _print_counts(summary.folds)
    if summary.warning_file:
        for reject in summary.rejected:
            place = reject.file if reject.line is None else f"{reject.file}:{reject.line}"
            log.debug("%s: %s", place, reject.reason)
        say(f"left out: {len(summary.rejected)} lines, labels or images; listed in {summary.warning_file}")
    shards = [shard for fold in summary.folds for shard in fold.shards]
    say(f"wrote {len(shards)} shards and their indexes: {args.output_filename}*")
    _print_next(config, summary, args.output_filename)
    images = sum(fold.frames for fold in summary.folds)
    boxes = sum(fold.boxes.total() for fold in summary.folds)
    if not boxes:
        log.warning("not one of the %d images has a box: nothing can be learnt from these records", images)
    kpi = {"num_images": images, "num_objects": boxes}
    status.write(f"wrote {len(shards)} shards", status="SUCCESS", kpi=kpi)


def _print_counts(folds: list[Fold]) -> None:
    names = sorted({name for fold in folds for name in fold.boxes})
    rows = [(name, *_with_total([fold.boxes[name] for fold in folds])) for name in names]
    totals = ("all boxes", *_with_total([fold.boxes.total() for fold in folds]))
    images = ("images", *_with_total([fold.frames for fold in folds]))
    table(["class", *(f"fold {fold.number}" for fold in folds), "total"], [*rows, totals, images])


def _with_total(counts: list[int]) -> list[int]:
    return [*counts, sum(counts)]


def _print_next(config: spec.DatasetExportConfig, summary: Summary, prefix: str) -> None:
    """Print what a training spec needs to read these records."""
    source = config.kitti_config
    part = "-fold-*" if source.num_partitions else "-shard-*" if source.num_shards else ""
    say("next: put this into the dataset_config of your training spec (class names are those in the table):")
    say(f'  data_sources {{ tfrecords_path: "{prefix}{part}" image_directory_path: "{summary.image_root}" }}')
    say(f'  image_extension: "{source.image_extension.removeprefix(".")}"')
    if len(summary.folds) > 1 and summary.folds[0].frames:
        say("  validation_fold: 0")
    say("then: detectkit check -e TRAINING_SPEC")
