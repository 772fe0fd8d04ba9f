"""What a network finds on a sample of the validation images, and how much of it a pruning has left."""

from __future__ import annotations

from typing import NamedTuple

from detectkit import spec
from detectkit.console import log
from detectkit.data.dataset import Dataset
from detectkit.data.records import validation_frames
from detectkit.errors import DataError, DetectkitError
from detectkit.evaluation import Evaluation, evaluate, require_package
from detectkit.evaluation.predictions import predictions
from detectkit.heads import make_head
from detectkit.model.detector import Detector
from detectkit.predict import Predictor

IMAGES = 100  # of a sample: seconds on a CPU, and mAP to a few points


class Left(NamedTuple):
    """Mean average precision, 0 to 1, as `evaluation_config` says, of two networks on the same images."""

    images: int
    before: float
    after: float

    @property
    def share(self) -> float | None:
        """What is left of what there was; None: there was nothing."""
        return self.after / self.before if self.before else None


def what_is_left(before: Detector, after: Detector, experiment: spec.Experiment) -> Left | None:
    """Measure both on at most `IMAGES` validation images, evenly spaced; None, with the reason logged, where that is impossible.

    It is where there are no such images, or no class has a labelled box in them.
    """
    try:
        images = _sample(experiment)
        label = "measuring what is left"
        precisions = [
            measured(network, experiment, images, label=label).required_mean() for network in (before, after)
        ]
    except DetectkitError as error:
        log.info(f"what is left of the accuracy was not measured: {error}")
        return None
    return Left(len(images), *precisions)


def _sample(experiment: spec.Experiment) -> Dataset:
    require_package(experiment.evaluation_config)
    names = spec.class_names(experiment)
    found = validation_frames(experiment.dataset_config, names, at_most=IMAGES)
    if found is None:
        raise DataError("the spec has no validation_fold or validation_data_source")
    return found


def measured(network: Detector, experiment: spec.Experiment, images: Dataset, *, label: str) -> Evaluation:
    """What a network finds on images, as `evaluation_config` says.

    Raises:
        DataError: an image cannot be read.
    """
    predictor = Predictor(
        network,
        make_head(experiment, network.outline),
        augmentation=experiment.augmentation_config,
        channels=network.channels,
        device=next(network.parameters()).device,
    )
    found = predictions(predictor, experiment, images=images, label=label)
    return evaluate(found, predictor.class_names, experiment.evaluation_config)
