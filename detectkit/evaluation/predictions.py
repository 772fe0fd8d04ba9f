"""The images that a spec is measured on, sent through a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectkit import spec
from detectkit.console import progress
from detectkit.data.dataset import Dataset
from detectkit.data.records import training_frames, validation_frames
from detectkit.data.workers import loader
from detectkit.errors import DataError
from detectkit.predict import Predicted, Predictor


def measured_images(
    experiment: spec.Experiment, class_names: Sequence[str], *, training: bool = False
) -> Dataset:
    """The validation images of a spec.

    Args:
        training: the training images instead.

    Raises:
        DataError: the spec has no such images.
    """
    read = training_frames if training else validation_frames
    images = read(experiment.dataset_config, class_names)
    if images is None:
        raise DataError("the spec has no validation_fold or validation_data_source to measure on")
    return images


def predictions(
    predictor: Predictor,
    experiment: spec.Experiment,
    *,
    images: Dataset | None = None,
    label: str = "evaluating",
) -> Iterator[Predicted]:
    """Every image once, in their order and in batches of the spec's size, under a progress bar.

    Args:
        images: the validation images of the spec if None, see `measured_images`.
        label: of the progress bar.

    Raises:
        DataError: the spec has no such images, or one cannot be read.
    """
    if images is None:
        images = measured_images(experiment, predictor.class_names)
    batch_size = spec.batch_size(experiment)
    batches = loader(
        images,
        experiment.augmentation_config,
        batch_size=batch_size,
        order=range(len(images)),
        workers=experiment.training_config.workers,
    )
    count = -(-len(images) // batch_size)
    return progress(predictor.batches(batches), total=count, label=label, unit="batches")
