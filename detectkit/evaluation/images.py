"""The images that a spec is measured on, sent through a network."""

from __future__ import annotations

from collections.abc import Iterator

from detectkit.console import progress
from detectkit.data.dataset import loader, training_frames, validation_frames
from detectkit.errors import DataError
from detectkit.predict import Predicted, Predictor
from detectkit.spec import Experiment


def predictions(
    predictor: Predictor, experiment: Experiment, *, training: bool = False, label: str = "evaluating"
) -> Iterator[Predicted]:
    """Every validation image of a spec once, in batches of its size, under a progress bar.

    Args:
        training: take the training images instead.
        label: of the progress bar.

    Raises:
        DataError: the spec has no such images, or one cannot be read.
    """
    read = training_frames if training else validation_frames
    images = read(experiment.dataset_config, predictor.class_names)
    if images is None:
        raise DataError("the spec has no validation_fold or validation_data_source to measure on")
    config = experiment.training_config
    batches = loader(
        images,
        experiment.augmentation_config,
        batch_size=config.batch_size_per_gpu,
        order=range(len(images)),
        workers=config.workers,
    )
    count = -(-len(images) // config.batch_size_per_gpu)
    return progress(predictor.batches(batches), total=count, label=label, unit="batches")
