"""Convert images and labels of KITTI, COCO, Pascal VOC, YOLO or CSV to TFRecord shards, split into folds.

A training spec may hold conversions too (dataset_export_config): all of them are done, each to its output_filename.
"""

from __future__ import annotations

import argparse
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detectkit import spec
from detectkit.console import StatusLog, log, say, table
from detectkit.errors import SpecError, UsageError
from detectkit.files import make_directory
from detectkit.spec.schema import quoted

REASONS = 5  # told on the terminal

if TYPE_CHECKING:
    from detectkit.data.convert import ConversionSummary, Fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d",
        "--dataset_export_spec",
        required=True,
        type=Path,
        metavar="SPEC",
        help="a conversion spec, or a training spec with dataset_export_config",
    )
    parser.add_argument(
        "-o",
        "--output_filename",
        metavar="PREFIX",
        help="folder and first part of the shards' names, for a conversion spec (its output_filename)",
    )
    parser.add_argument(
        "-f",
        "--validation_fold",
        type=int,
        metavar="FOLD",
        help="the fold that sample_modifier_config leaves as it is (a training spec's validation_fold)",
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="where status.jsonl goes")


def run(args: argparse.Namespace) -> None:
    path, message = args.dataset_export_spec, spec.load(args.dataset_export_spec)
    conversions = _conversions(message, path, args.output_filename, validation_fold=args.validation_fold)
    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write(f"converting to {', '.join(each.prefix for each in conversions)}", status="STARTED")
    with status.failures():
        summaries = [_convert(each) for each in conversions]
    if isinstance(message, spec.Experiment):
        say(f"next: detectkit check -e {path}")
    else:
        _print_next(summaries[0], conversions[0].prefix, validation_fold=args.validation_fold or 0)
    folds = [fold for summary in summaries for fold in summary.folds]
    images = sum(fold.frames for fold in folds)
    boxes = sum(fold.boxes.total() for fold in folds)
    if not boxes:
        log.warning("not one of the %d images has a box: nothing can be learnt from these records", images)
    kpi = {"num_images": images, "num_objects": boxes}
    shards = sum(len(fold.shards) for fold in folds)
    status.write(f"wrote {shards} shards", status="SUCCESS", kpi=kpi)


class Conversion(NamedTuple):
    """One set of records to write."""

    config: spec.DatasetExportConfig
    prefix: str
    validation_fold: int | None


def _conversions(
    message: spec.Spec, path: Path, prefix: str | None, *, validation_fold: int | None
) -> list[Conversion]:
    """What a spec of either kind asks for; raises SpecError and UsageError before any work."""
    if isinstance(message, spec.Experiment):
        return _of_experiment(message, path, prefix, validation_fold=validation_fold)
    if not isinstance(message, spec.DatasetExportConfig):
        kind = spec.kind_of(message)
        needed = "a conversion spec or a training spec is needed"
        raise SpecError(f"{path}: this is an {kind.name}, for {kind.commands}; here {needed}")
    if not (prefix or message.output_filename):
        raise UsageError(f"-o is needed: {path} has no output_filename")
    return [Conversion(message, prefix or message.output_filename, validation_fold)]


def _of_experiment(
    experiment: spec.Experiment, path: Path, prefix: str | None, *, validation_fold: int | None
) -> list[Conversion]:
    from detectkit.data.sources import num_folds

    configs = experiment.dataset_export_config
    if not configs:
        reason = "this training spec has no dataset_export_config, which says what to convert"
        raise SpecError(f"{path}: {reason}; -d also takes a conversion spec")
    if prefix:
        reason = "each dataset_export_config has its output_filename"
        raise UsageError(f"-o is for conversion specs: {path} is a training spec, in which {reason}")
    places: dict[str, str] = {}
    for index, config in enumerate(configs):
        place = f"dataset_export_config[{index}].output_filename"
        if not config.output_filename:
            raise SpecError(
                f"{path}: {place}: `detectkit convert` needs it, for instance results/records/train"
            )
        other = places.setdefault(os.path.normpath(config.output_filename), place)
        if other != place:
            reason = f"is that of {other}: its records would be replaced"
            raise SpecError(f"{path}: {place}: {config.output_filename!r} {reason}")
    fold = experiment.dataset_config.validation_fold
    if validation_fold is not None or not experiment.dataset_config.HasField("validation_fold"):
        return [Conversion(config, config.output_filename, validation_fold) for config in configs]
    # One of the conversions may be into fewer folds: of other images, which are measured on as they are.
    return [
        Conversion(config, config.output_filename, fold if fold < num_folds(config) else None)
        for config in configs
    ]


def _convert(conversion: Conversion) -> ConversionSummary:
    """Write one set of records, and print what it holds."""
    from detectkit.data.convert import convert
    from detectkit.data.images import TURNED
    from detectkit.data.readers import place, reasons

    prefix = conversion.prefix
    summary = convert(conversion.config, prefix, validation_fold=conversion.validation_fold)
    _print_counts(summary.folds)
    if summary.turned:
        say(f"{summary.turned} {TURNED}: their boxes must be in those pixels")
    if summary.warning_file:
        for reject in summary.rejected:
            log.debug("%s: %s", place(reject), reject.reason)
        # A warning: `detectkit run` keeps what commands say in a file.
        log.warning(
            f"left out: {len(summary.rejected)} lines, labels or images; listed in {summary.warning_file}"
        )
        for told in reasons(summary.rejected, most=REASONS):
            log.warning(f"  {told}")
    if summary.others:
        end = summary.image_extension
        other = f"another extension than .{end}" if end else "another extension than the spec says"
        say(
            f"{summary.others} images have {other}: their records tell it, which detectkit reads and TLT does not"
        )
    shards = sum(len(fold.shards) for fold in summary.folds)
    say(f"wrote {shards} shards and their indexes: {prefix}*")
    return summary


def _print_counts(folds: list[Fold]) -> None:
    names = sorted({name for fold in folds for name in fold.boxes})
    rows = [(name, *_with_total([fold.boxes[name] for fold in folds])) for name in names]
    totals = ("all boxes", *_with_total([fold.boxes.total() for fold in folds]))
    images = ("images", *_with_total([fold.frames for fold in folds]))
    table(["class", *(f"fold {fold.number}" for fold in folds), "total"], [*rows, totals, images])


def _with_total(counts: list[int]) -> list[int]:
    return [*counts, sum(counts)]


def _print_next(summary: ConversionSummary, prefix: str, *, validation_fold: int) -> None:
    """Print what a training spec needs to read these records."""
    names = [shard.name for fold in summary.folds for shard in fold.shards]
    part = next(
        (part for part in ("-fold-", "-shard-") if part in names[0].removeprefix(Path(prefix).name)), ""
    )
    say("next: put this into the dataset_config of your training spec (class names are those in the table):")
    pattern = quoted(glob.escape(prefix) + (f"{part}*" if part else ""))
    images = quoted(str(summary.image_root))
    say(f"  data_sources {{ tfrecords_path: {pattern} image_directory_path: {images} }}")
    if summary.image_extension:
        say(f'  image_extension: "{summary.image_extension}"')
    filled = [fold.number for fold in summary.folds if fold.frames]
    if len(filled) > 1 and validation_fold in filled:
        say(f"  validation_fold: {validation_fold}")
    say("then: detectkit check -e TRAINING_SPEC")
