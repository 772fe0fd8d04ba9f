"""What of a proposal hangs on this machine and on files: which weights are there, how long a step takes, which network is
quick enough. Imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from detectkit import spec
from detectkit.console import log
from detectkit.data.batch import Batch, collate, decode_size
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import BACKGROUND, Objects
from detectkit.data.readers import LabelledImage
from detectkit.deploy.stopwatch import Stopwatch
from detectkit.errors import DataError, ModelError
from detectkit.heads import make_head
from detectkit.model import pretrained
from detectkit.model.detector import Detector, build
from detectkit.pipeline.basis import PER_DETECTED
from detectkit.pipeline.speed import LEARNING
from detectkit.predict import default_device
from detectkit.propose.choose import Candidate, Pace, Start
from detectkit.spec import Experiment, ModelConfig, label_name
from detectkit.train import optim, step
from detectkit.train.average import WeightAverage

# Whose ImageNet weights are known to start well here, the best first.
KNOWN = (Start("mobilenet_v2", 0, ""), Start("efficientnet_lite0", 0, ""), Start("efficientnet_lite1", 0, ""))
FILES = (".pth", ".pt")
FEWEST, STEPS, SECONDS = (
    2,
    6,
    1.5,
)  # steps that are timed after a first one, and the time from which on there are no more


def find_weights(path: Path) -> list[Start]:
    """The backbones whose ImageNet weights a file is, or a folder has, the best first.

    Raises:
        ModelError: there is no such file or folder, or none in it is of a backbone that is known to start well here.
    """
    if not path.exists():
        raise ModelError(f"--weights {path}: there is no such file or folder")
    files = (
        sorted(file for file in path.iterdir() if file.suffix in FILES and file.is_file())
        if path.is_dir()
        else [path]
    )
    found: list[Start] = []
    reasons = []
    for known in KNOWN:
        for file in files:
            try:
                _try(known, file)
            except ModelError as error:
                reasons.append(str(error))
                continue
            found.append(known._replace(weights=str(file)))
            break
    if not found:
        names = ", ".join(known.arch for known in KNOWN)
        why = f"it is of none of {names}" if files else f"it has no file {' or '.join(FILES)}"
        told = f" ({reasons[0]})" if len(files) == 1 else ""
        raise ModelError(
            f"--weights {path}: {why}{told}; other networks: leave --weights out, and name arch and"
            " pretrained_model_file in the spec"
        )
    return found


def _try(start: Start, file: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        pretrained.load_pretrained(build(_model(start), ["object"], 3), file, ["object"])


def _model(start: Start) -> ModelConfig:
    config = ModelConfig(arch=start.arch, num_layers=start.num_layers, use_batch_norm=True)
    config.objective_set.bbox.scale = 35.0
    config.objective_set.cov.SetInParent()
    return config


def pace(experiment: Experiment, images: Sequence[LabelledImage]) -> Pace:
    """Time a few steps of the training that a spec asks for, on images of its own, decoded and augmented; a second or three.

    Weights start at random: that changes no time.

    Raises:
        DataError: not one of a few images can be decoded.
    """
    device, config = default_device(), experiment.training_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.random_seed)
        names = spec.class_names(experiment)
        detector = build(experiment.model_config, names, 3).to(device).to(memory_format=torch.channels_last)
        head = make_head(experiment, detector.outline)
        weights = optim.regularized_weights(detector, head=detector.head_layers)
        terms = [step.Task(head.balance()), step.Regularization(weights, config.regularizer)]
        optimizer, average = optim.make_optimizer(detector, config.optimizer), WeightAverage(detector, 0.995)
        optim.set_learning_rate(optimizer, 1e-5)
        times: list[float] = []
        batches, generator = _batches(experiment, images), torch.Generator().manual_seed(0)
        detector.train()
        while len(times) <= FEWEST or (len(times) <= STEPS and sum(times[1:]) < SECONDS):
            begin = time.perf_counter()
            batch = next(batches)
            optimizer.zero_grad(set_to_none=True)
            augmentation = experiment.augmentation_config
            forwarded = step.forward(detector, head, batch, augmentation, generator=generator)
            cost = step.total(step.weighted(terms, forwarded))
            cost.backward()  # type: ignore[no-untyped-call]
            optim.step(optimizer, clip_norm=config.clip_gradient_norm, scale=None)
            average.update(detector)
            float(cost.detach())  # waits for a GPU
            times.append(time.perf_counter() - begin)
    seconds = min(
        times[1:]
    )  # the first one warms up; what else the machine did makes a step longer, never shorter
    finding = seconds / spec.batch_size(experiment) / LEARNING + PER_DETECTED
    return Pace(seconds, finding, _load())


def _load() -> float:
    """Processes a core that ran or waited in the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def _batches(experiment: Experiment, images: Sequence[LabelledImage]) -> Iterator[Batch]:
    """Batches of images spread over all of them, without end; those that cannot be decoded are told, and passed over."""
    augmentation, size = experiment.augmentation_config, spec.batch_size(experiment)
    numbers = {label_name(name): number for number, name in enumerate(spec.class_names(experiment))}
    chosen = images[:: max(len(images) // (STEPS * size), 1)][: STEPS * size]
    dataset = Dataset([_frame(image, numbers) for image in chosen])
    samples, bad = [], 0
    for turn in range(2**20):
        try:
            target = decode_size(augmentation)
            samples.append(dataset.sample(turn % len(dataset), channels=3, target_size=target))
            bad = 0
        except DataError as error:
            bad += 1
            if bad == len(dataset):
                raise
            if turn < len(dataset):
                log.warning("%s", error)
        if len(samples) == size:
            yield collate(samples)
            samples = []


def _frame(image: LabelledImage, numbers: dict[str, int]) -> Frame:
    names = tuple(label_name(label.name) for label in image.labels)
    boxes = np.array([label.box for label in image.labels], dtype=np.float32).reshape(-1, 4)
    classes = np.array([numbers.get(name, BACKGROUND) for name in names], dtype=np.int64)
    truncation = np.zeros(len(names), np.float32)
    objects = Objects(boxes, classes, names, truncation, np.zeros(len(names), np.int64))
    return Frame(image.frame_id, str(image.image), None, 0, (image.width, image.height), objects)


def latencies(
    starts: Sequence[Start], sizes: Sequence[tuple[int, int]], class_names: Sequence[str]
) -> list[Candidate]:
    """Time networks as they would be deployed on this machine, untrained and whole, in ONNX Runtime, one image at once.

    Args:
        sizes: width and height of the inputs; each of the networks is timed at each.
    """
    found = []
    for width, height in sizes:
        networks = [_network(start, class_names) for start in starts]
        seconds = Stopwatch(networks[0], height, width).seconds(*networks)
        found += [Candidate(start, (width, height), time) for start, time in zip(starts, seconds)]
    return found


def _network(start: Start, class_names: Sequence[str]) -> Detector:
    with torch.random.fork_rng(devices=[]):
        return build(_model(start), class_names, 3).eval()
