"""Convert images and labels of KITTI, COCO or Pascal VOC to TFRecord shards, split into folds."""

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
    _print_next(summary, args.output_filename, validation_fold=args.validation_fold or 0)
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


def _print_next(summary: Summary, prefix: str, *, validation_fold: int) -> None:
    """Print what a training spec needs to read these records."""
    names = [shard.name for fold in summary.folds for shard in fold.shards]
    part = next(
        (part for part in ("-fold-", "-shard-") if part in names[0].removeprefix(Path(prefix).name)), ""
    )
    say("next: put this into the dataset_config of your training spec (class names are those in the table):")
    pattern = prefix + (f"{part}*" if part else "")
    say(f'  data_sources {{ tfrecords_path: "{pattern}" image_directory_path: "{summary.image_root}" }}')
    if summary.image_extension:
        say(f'  image_extension: "{summary.image_extension}"')
    filled = [fold.number for fold in summary.folds if fold.frames]
    if len(filled) > 1 and validation_fold in filled:
        say(f"  validation_fold: {validation_fold}")
    say("then: detectkit check -e TRAINING_SPEC")
