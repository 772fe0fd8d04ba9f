"""What networks find on a sample of the validation images: how much of it a pruning has left."""

from __future__ import annotations

from collections.abc import Sequence

from detectkit import spec
from detectkit.data.dataset import Dataset, validation_frames
from detectkit.errors import DataError
from detectkit.evaluation import evaluate, require_package
from detectkit.evaluation.images import predictions
from detectkit.heads import GridHead
from detectkit.model.detector import Detector
from detectkit.predict import Predictor

IMAGES = 100  # of a sample: seconds on a CPU, and mAP to a few points


def sample(experiment: spec.Experiment) -> Dataset:
    """At most `IMAGES` validation images, evenly spaced.

    Raises:
        DataError: the spec names none, or they are not there.
        DetectkitError: its protocol needs a package that is not installed.
    """
    require_package(experiment.evaluation_config)
    names = spec.class_names(experiment)
    found = validation_frames(experiment.dataset_config, names, at_most=IMAGES)
    if found is None:
        raise DataError("the spec has no validation_fold or validation_data_source")
    return found


def precisions(networks: Sequence[Detector], experiment: spec.Experiment, images: Dataset) -> list[float]:
    """The mean average precision, 0 to 1, of each network on the same images, as `evaluation_config` says.

    Raises:
        DataError: an image cannot be read.
    """
    return [_precision(network, experiment, images) for network in networks]


def _precision(network: Detector, experiment: spec.Experiment, images: Dataset) -> float:
    predictor = Predictor(
        network,
        GridHead(experiment, stride=network.stride),
        augmentation=experiment.augmentation_config,
        channels=network.channels,
        device=next(network.parameters()).device,
    )
    found = predictions(predictor, experiment, images=images, label="measuring what is left")
    return evaluate(found, predictor.class_names, experiment.evaluation_config).mean_average_precision
