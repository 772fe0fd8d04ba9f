"""Detect objects in images: KITTI label files and annotated images, in the pixels of the images."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import add_device_arguments, add_spec_argument, choose_device
from detectkit.console import ProgressBar, log, say
from detectkit.errors import DataError, SpecError, UsageError

if TYPE_CHECKING:
    from detectkit.trackers import Tracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, required=False, help="an inference or a training spec (the one in the model)")
    parser.add_argument(
        "-i", "--image_dir", required=True, type=Path, metavar="IMAGES", help="a folder, or one image"
    )
    parser.add_argument(
        "-r", "--results_dir", required=True, type=Path, metavar="DIR", help="where results go"
    )
    parser.add_argument(
        "-m", "--model_path", type=Path, metavar="MODEL", help="instead of the one in the spec"
    )
    parser.add_argument("-b", "--batch_size", type=int, metavar="N", help="instead of the one in the spec")
    parser.add_argument("--verbosity", action="store_true", dest="verbose", help=argparse.SUPPRESS)
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    given = spec.load(args.experiment_spec) if args.experiment_spec else None
    if isinstance(given, spec.DatasetExportConfig):
        raise SpecError(
            f"{args.experiment_spec} is a conversion spec: infer takes an inference or a training spec"
        )

    from detectkit.data.dataset import image_files
    from detectkit.data.images import LARGE, TURNED
    from detectkit.detect.folder import detect_images
    from detectkit.detect.predictor import images_at_once, load_predictor
    from detectkit.detect.write import result_folders, result_format

    predictor, message = load_predictor(given, args.model_path, choose_device(args))
    form = result_format(message, predictor.class_names)
    at_once = images_at_once(message) if args.batch_size is None else args.batch_size
    if at_once < 1:
        raise UsageError(f"-b must be at least 1, got {at_once}")
    own = [args.results_dir / name for name in ("images_annotated", "wandb")]  # of an earlier call
    images = image_files(args.image_dir, without=own)
    skipped: list[DataError] = []
    folders = result_folders(args.results_dir, form)
    results = detect_images(images, predictor, form, folders, batch_size=at_once, skipped=skipped)
    deep = sum("/" in frame.frame_id for frame in images.frames)
    if deep:
        log.info(f"{deep} of {len(images)} images are in sub-folders: their results are in sub-folders too")
    found = reduced = 0
    with (
        ProgressBar("detecting", total=len(images), unit="images") as bar,
        _tracker(message, args.results_dir) as tracker,
    ):
        for number, result in enumerate(results):
            found += result.detections
            reduced += result.reduced
            if tracker and result.picture:
                tracker.images({"images_annotated": [result.picture]}, number, captions=[result.name])
            bar.advance()
    places = (
        " and ".join(str(folder) for folder in folders.values()) or "nothing: the spec turns both outputs off"
    )
    say(f"{found} detections in {len(images) - len(skipped)} images")
    if len(skipped) < len(images):
        say(f"wrote {places}")
    if predictor.seen.turned:
        say(f"{predictor.seen.turned} {TURNED}: boxes and annotated images are in those pixels")
    predictor.seen.warn_of_larger()
    if reduced:
        say(f"{reduced} annotated pictures are reduced: the images have more than {LARGE:,} pixels")
    if skipped:
        raise DataError(f"{len(skipped)} of {len(images)} images were skipped; the first: {skipped[0]}")


@contextlib.contextmanager
def _tracker(message: spec.Inference | spec.Experiment, results: Path) -> Iterator[Tracker | None]:
    """Weights & Biases, where an inference spec asks for it."""
    from detectkit.trackers import wandb_tracker

    if isinstance(message, spec.Experiment) or not message.bbox_handler_config.wandb_config.enabled:
        yield None
        return
    with contextlib.closing(
        wandb_tracker(message.bbox_handler_config.wandb_config, message, results)
    ) as tracker:
        yield tracker
