"""How fast a spec's network learns and finds on this machine, measured on a few black images. Imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from detectkit import spec
from detectkit.data.dataset import sample_from_image
from detectkit.data.formats import is_image
from detectkit.data.records import training_frames, validation_frames
from detectkit.errors import DataError
from detectkit.files import files_below
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, build, parameters
from detectkit.predict import default_device
from detectkit.spec import Experiment

STEPS, SECONDS = 6, 8.0  # of each measurement, at most; libraries choose their kernels in the first ones
LEARNING = 3.5  # times that a step of training takes what finding takes: 2.9 to 5.6, by network
DECODED = 5  # images


class Speed(NamedTuple):
    """Of a network at the size and batch of its spec; times are seconds an image, on whatever the training would run."""

    parameters: int
    learning: float
    finding: float  # without clustering
    decoding: float  # of an image file, on one core


def measure(experiment: Experiment, images: Path | None) -> Speed:
    """Time a few passes through the network; seconds with a large network on a busy machine.

    Args:
        images: a folder to take image files from, to see how long they take to decode; none is no error.

    Raises:
        SpecError, ModelError: there is no such network.
    """
    device = default_device()
    detector = _network(experiment).to(device).to(memory_format=torch.channels_last).eval()
    pre, size = experiment.augmentation_config.preprocessing, spec.batch_size(experiment)
    shape = (size, pre.output_image_channel, pre.output_image_height, pre.output_image_width)
    batch = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def find() -> None:
        for maps in detector(batch):
            maps.cpu()  # waits for a GPU

    finding = min(_seconds(find)) / size
    return Speed(parameters(detector), LEARNING * finding, finding, _decoding(experiment, images))


def count_records(experiment: Experiment) -> tuple[int, int]:
    """Images to train on and to measure on, by the indexes of their records.

    Raises:
        DataError: there are no records.
    """
    names = spec.class_names(experiment)
    try:
        training = training_frames(experiment.dataset_config, names, at_most=1).total
    except DataError:
        if experiment.HasField("training_config"):
            raise
        training = 0  # a spec that only measures needs none
    validation = validation_frames(experiment.dataset_config, names, at_most=1)
    return training, validation.total if validation else 0


def _network(experiment: Experiment) -> Detector:
    path = Path(experiment.model_config.pretrained_model_file).expanduser()
    with torch.random.fork_rng(devices=[]):
        if path.suffix == ".safetensors" and path.is_file():  # it may be a pruned one
            return checkpoint.load(path).detector
        channels = experiment.augmentation_config.preprocessing.output_image_channel
        return build(experiment.model_config, spec.class_names(experiment), channels)


def _seconds(step: Callable[[], object]) -> list[float]:
    """Of a few steps."""
    times: list[float] = []
    while len(times) < STEPS and sum(times) < SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def _decoding(experiment: Experiment, images: Path | None) -> float:
    """Seconds an image; 0 where there is none to try."""
    augmentation = experiment.augmentation_config
    channels = augmentation.preprocessing.output_image_channel
    files = filter(is_image, files_below(images, fail=lambda error: None)) if images else iter(())
    times: list[float] = []
    for file, _ in zip(files, range(DECODED), strict=False):
        start = time.perf_counter()
        try:
            sample_from_image(os.path.join(str(images), file), channels=channels, augmentation=augmentation)
        except DataError:  # the training will say so
            continue
        times.append(time.perf_counter() - start)
    return min(times, default=0.0)
