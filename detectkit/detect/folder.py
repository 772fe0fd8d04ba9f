"""Detect in every image of a data set, past those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from detectkit.console import log
from detectkit.data.batch import Batch
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.workers import loader
from detectkit.detect.write import ImageResult, ResultFormat, write_results
from detectkit.errors import DataError
from detectkit.predict import Predictor


def detect_images(
    images: Dataset,
    predictor: Predictor,
    form: ResultFormat,
    folders: Mapping[str, Path],
    *,
    batch_size: int,
    skipped: list[DataError],
) -> Iterator[ImageResult]:
    """Detect in all images and write their files below `folders`; results come in the order of the images.

    Args:
        images: without labels, as `image_files` gives them.
        folders: where results go, see `result_folders`.
        skipped: gets the errors of the images that cannot be read, which are warned of and passed over.

    Raises:
        DataError: two images would be labelled in one file; or the loading fails, and not for an image.
        OutputError: a file cannot be written.
    """
    _require_own_names(images.frames)

    def load(order: Sequence[int], workers: int) -> Iterator[Batch]:
        return loader(images, predictor.augmentation, batch_size=batch_size, order=order, workers=workers)

    batches = _readable(load, len(images), batch_size, skipped)
    return write_results(predictor.batches(batches), form, folders)


def _readable(
    load: Callable[[Sequence[int], int], Iterator[Batch]],
    count: int,
    batch_size: int,
    skipped: list[DataError],
) -> Iterator[Batch]:
    """Batches of images 0 to `count` without those that cannot be read, which go to `skipped` with a warning.

    Args:
        load: the batches of an order of images on a number of workers; raises DataError at a batch it cannot give.
    """
    start = 0
    while start < count:
        try:
            for batch in load(range(start, count), 1):
                yield batch
                start += batch_size
        except DataError:  # in the batch from `start`: take its images one by one, then go on behind them
            stop, before = min(start + batch_size, count), len(skipped)
            for index in range(start, stop):
                try:
                    yield from load([index], 0)
                except DataError as error:
                    log.warning(f"skipped: {error}")
                    skipped.append(error)
            if len(skipped) == before:
                raise  # of the loading, not of an image
            start = stop


def _require_own_names(frames: Sequence[Frame]) -> None:
    """One label file an image: no two images may differ in their extension only."""
    seen: dict[str, str] = {}
    for frame in frames:
        first = seen.setdefault(frame.frame_id, frame.path)
        if first != frame.path:
            raise DataError(
                f"{first} and {frame.path} would both be labelled in {frame.frame_id}.txt: rename or remove one"
            )
