"""How fast a spec's network learns and finds on this machine, measured on random images. Imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from detectkit import spec
from detectkit.data import augment
from detectkit.data.dataset import Batch, sample_from_image, training_frames, validation_frames
from detectkit.data.formats import is_image
from detectkit.errors import DataError
from detectkit.files import files_below
from detectkit.heads import make_head
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, build, parameters
from detectkit.predict import default_device
from detectkit.spec import Experiment
from detectkit.train import optim, step
from detectkit.train.precision import number_format

STEPS, SECONDS = 6, 12.0  # of each measurement, at most; libraries choose their kernels in the first ones
BOXES = 3  # of each random image
DECODED = 5  # images


class Speed(NamedTuple):
    """Of a network at the size and batch of its spec; times are seconds an image, on whatever the training would run."""

    parameters: int
    learning: float
    finding: float  # without clustering
    decoding: float  # of an image file, on one core


def measure(experiment: Experiment, images: Path | None) -> Speed:
    """Take a few steps of a training that is thrown away; seconds, half a minute with a large network on a busy machine.

    Args:
        images: a folder to take image files from, to see how long they take to decode; none is no error.

    Raises:
        SpecError, ModelError: there is no such network.
    """
    device = default_device()
    detector = _network(experiment).to(device).to(memory_format=torch.channels_last)
    head = make_head(experiment, detector.outline)
    size = spec.batch_size(experiment)
    batch = _random_batch(experiment, size)
    balance = head.balance()
    optimizer = optim.make_optimizer(detector, experiment.training_config.optimizer)
    dtype = number_format(experiment.model_config.training_precision, device)
    augmentation = experiment.augmentation_config

    def learn() -> None:
        drawn = torch.Generator().manual_seed(0)
        forwarded = step.forward(detector, head, batch, augmentation, generator=drawn, number_format=dtype)
        cost = balance.total(forwarded.costs)
        cost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(cost.detach())  # waits for a GPU

    @torch.inference_mode()
    def find() -> None:
        prepared = augment.prepare(batch, augmentation, generator=None, device=device)
        for maps in detector(prepared.images.contiguous(memory_format=torch.channels_last)):
            maps.cpu()

    with torch.random.fork_rng():
        learning = _seconds(learn)
        detector.eval()
        finding = _seconds(find)
    return Speed(parameters(detector), learning / size, finding / size, _decoding(experiment, images))


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
    if path.suffix == ".safetensors" and path.is_file():  # it may be a pruned one
        with torch.random.fork_rng(devices=[]):
            return checkpoint.load(path).detector
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    with torch.random.fork_rng(devices=[]):
        return build(experiment.model_config, spec.class_names(experiment), channels)


def _random_batch(experiment: Experiment, size: int) -> Batch:
    """Noise of the network's size, each with some boxes of the first class."""
    pre = experiment.augmentation_config.preprocessing
    width, height = pre.output_image_width, pre.output_image_height
    generator = torch.Generator().manual_seed(0)
    shape = (size, pre.output_image_channel, height, width)
    sides = torch.tensor([float(width), float(height)])
    corners = torch.rand(size * BOXES, 2, generator=generator) * 0.7
    boxes = torch.cat([corners, corners + 0.25], dim=1) * sides.repeat(2)
    count = len(boxes)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        sizes=sides.expand(size, 2),
        original_sizes=sides.expand(size, 2),
        boxes=boxes,
        classes=torch.zeros(count, dtype=torch.int64),
        names=[spec.class_names(experiment)[0]] * count,
        truncation=torch.zeros(count),
        occlusion=torch.zeros(count, dtype=torch.int64),
        image_index=torch.arange(size).repeat_interleave(BOXES),
        weights=torch.ones(size),
        frame_ids=[""] * size,
        image_paths=[""] * size,
    )


def _seconds(work: Callable[[], None]) -> float:
    """Of the quickest time."""
    times: list[float] = []
    while len(times) < STEPS and sum(times) < SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _decoding(experiment: Experiment, images: Path | None) -> float:
    """Seconds an image; 0 where there is none to try."""
    files = filter(is_image, files_below(images, fail=lambda error: None)) if images else ()
    paths = (os.path.join(images or "", file) for file in files)
    times: list[float] = []
    for path, _ in zip(paths, range(DECODED), strict=False):
        start = time.perf_counter()
        try:
            sample_from_image(
                path,
                channels=experiment.augmentation_config.preprocessing.output_image_channel,
                augmentation=experiment.augmentation_config,
            )
        except DataError:  # the training will say so
            continue
        times.append(time.perf_counter() - start)
    return min(times, default=0.0)
