"""From images to detections with any forward callable: the one path of validation, evaluate, infer and the Python API."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detectkit.console import log
from detectkit.data import augment
from detectkit.data.augment import Prepared
from detectkit.data.batch import Batch, collate, has_crop
from detectkit.data.dataset import sample_from_image
from detectkit.data.images import STRETCHED, TURNED
from detectkit.errors import ModelError
from detectkit.heads import ClassClustering, Head, make_head
from detectkit.ops.boxes import area, clip, transform
from detectkit.ops.cluster import Detections
from detectkit.runtimes import Forward, Network, load
from detectkit.spec import AugmentationConfig, Experiment, class_names, spec_to_use


class Latency(NamedTuple):
    """Seconds an image, of one batch."""

    preprocessing: float
    network: float
    clustering: float


class Predicted(NamedTuple):
    """One batch on its way from pixels to detections."""

    batch: Batch
    prepared: Prepared
    outputs: tuple[Tensor, ...]  # maps, as the network's outline describes them
    detections: list[Detections]  # one an image, in network pixels
    latency: Latency

    def in_original_pixels(self) -> list[Detections]:
        """The detections in the pixels of the image files, clipped to them; those wholly in the padding are dropped."""
        return [move(found) for move, found in zip(self.placements(), self.detections, strict=True)]

    def placements(self) -> list[Callable[[Detections], Detections]]:
        """For each image what brings detections from network pixels to those of its file, as `in_original_pixels` does."""
        inverse = torch.linalg.inv(self.prepared.matrices.cpu().double()).float()
        sizes = self.batch.original_sizes.tolist()
        return [
            partial(_moved, matrix=matrix, size=size) for matrix, size in zip(inverse, sizes, strict=True)
        ]


class Seen:
    """Counts, on their way to the network, the images that a person may see otherwise than it does."""

    def __init__(self, preprocessing: AugmentationConfig.Preprocessing):
        self._preprocessing = preprocessing
        self.images = self.turned = self.larger = 0
        self._largest = ""  # the first larger one, in words

    def count(self, batch: Batch) -> None:
        self.images += len(batch.image_paths)
        self.turned += sum(batch.turned)
        for path, size in zip(batch.image_paths, batch.original_sizes.tolist(), strict=True):
            if self._is_cut(*size):
                self.larger += 1
                self._largest = self._largest or f"{path} is {size[0]:g}x{size[1]:g}"

    def _is_cut(self, width: float, height: float) -> bool:
        pre = self._preprocessing
        if pre.enable_auto_resize or has_crop(pre):
            return False
        scaled = width * (pre.scale_width or 1), height * (pre.scale_height or 1)
        return scaled[0] > pre.output_image_width or scaled[1] > pre.output_image_height

    def warn_of_larger(self) -> None:
        """Say how many images were looked at in part, if any."""
        pre = self._preprocessing
        if self.larger:
            log.warning(
                f"{self.larger} of {self.images} images are larger than the {pre.output_image_width}x{pre.output_image_height}"
                f" pixels that the network sees ({self._largest}): only their top left part was looked at; set"
                " augmentation_config.preprocessing.enable_auto_resize: true in the spec (-e), or cut the images in parts"
            )


class Predictor:
    """A network with all that stands between image files and detections.

    Args:
        forward: images [B, c, H, W] in [0, 1] on `device` to maps, as `Detector.forward`.
        head: decoding and clustering.
        augmentation: of the spec; its preprocessing is applied, its augmentation never.
        channels: of the images, 1 or 3.
        device: where preprocessing and `forward` run.
    """

    def __init__(
        self,
        forward: Forward,
        head: Head[Any],
        *,
        augmentation: AugmentationConfig,
        channels: int = 3,
        device: str | torch.device = "cpu",
    ):
        self.forward, self.head, self.augmentation = forward, head, augmentation
        self.channels, self.device = channels, torch.device(device)
        self.seen = Seen(augmentation.preprocessing)  # of all batches so far
        self._said: set[str] = set()

    @property
    def class_names(self) -> list[str]:
        """Names by the class number of a detection."""
        return self.head.class_names

    @torch.inference_mode()
    def batches(self, batches: Iterable[Batch]) -> Iterator[Predicted]:
        """Run every batch; images an iteration come as the loader gave them, each exactly once."""
        for batch in batches:
            self.seen.count(batch)
            start = time.perf_counter()
            prepared = augment.prepare(batch, self.augmentation, generator=None, device=self.device)
            prepared_at = self._now()
            outputs = self.forward(prepared.images.contiguous(memory_format=torch.channels_last))
            network_at = self._now()
            detections = self.head.detections(outputs)
            stages = (prepared_at - start, network_at - prepared_at, self._now() - network_at)
            latency = Latency(*(seconds / len(batch.images) for seconds in stages))
            yield Predicted(batch, prepared, outputs, detections, latency)

    def predict(
        self, images: Sequence[str | os.PathLike[str] | Image.Image | np.ndarray]
    ) -> list[Detections]:
        """Detect in images: files, PIL images or uint8 arrays [h, w, 3] (RGB).

        Files and PIL images whose EXIF data has an orientation are turned by it, and so are their boxes:
        `PIL.ImageOps.exif_transpose` gives the picture that they fit.

        Returns:
            One `Detections` an image: boxes [N, 4] x1 y1 x2 y2 in the pixels of that image, scores [N], classes [N]
            (see `class_names`), by descending score.

        Raises:
            DataError: an image that cannot be read.
            TypeError: one image instead of a list.
        """
        is_array = isinstance(images, np.ndarray) and images.ndim < 4
        if is_array or isinstance(images, (str, os.PathLike, Image.Image)):
            raise TypeError("predict takes a list of images: give [image]")
        found: list[Detections] = []
        for image in images:
            sample = sample_from_image(image, channels=self.channels, augmentation=self.augmentation)
            for predicted in self.batches([collate([sample])]):
                found += predicted.in_original_pixels()
            if sample.stretched and self._is_news("stretched"):
                log.warning(STRETCHED, sample.image_path, sample.stretched)
        if self.seen.turned and self._is_news("turned"):
            log.warning(f"{self.seen.turned} {TURNED}: the boxes are in those pixels")
        if self.seen.larger and self._is_news("larger"):
            self.seen.warn_of_larger()
        return found

    def _is_news(self, what: str) -> bool:
        """Whether something is told for the first time: `predict` may be called for every image of a camera."""
        is_news = what not in self._said
        self._said.add(what)
        return is_news

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _moved(found: Detections, matrix: Tensor, size: Sequence[float]) -> Detections:
    """Detections moved by a matrix [3, 3] and clipped to an image of `size` (width, height)."""
    boxes = clip(transform(found.boxes, matrix.expand(len(found.boxes), 3, 3)), *size)
    kept = area(boxes) > 0
    return Detections(boxes[kept], found.scores[kept], found.classes[kept])


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    *,
    experiment: Experiment | None = None,
) -> Predictor:
    """A model file as a `Predictor`, by default with the preprocessing and clustering it was trained with.

    Args:
        path: a .safetensors model, TLT's .hdf5 with its spec as `experiment`, an .onnx model of `detectkit export`, or a TensorRT engine of `detectkit engine`.
        experiment: take preprocessing and clustering from this spec instead.

    Raises:
        ModelError: the file is not a usable model, or not one for the classes, channels and image size of `experiment`.
    """
    device = default_device() if device is None else device
    network = load(path, device, experiment=experiment)
    return make_predictor(network, spec_to_use(experiment, network.spec, network.file), device)


def make_predictor(
    network: Network,
    experiment: Experiment,
    device: str | torch.device,
    *,
    clustering: Mapping[str, ClassClustering] | None = None,
) -> Predictor:
    """A network with the preprocessing and clustering of a spec.

    Args:
        device: that the network was loaded on.
        clustering: instead of the spec's, by class name, see `heads.make_head`.

    Raises:
        ModelError: the network is not for the classes, channels and image size of `experiment`.
    """
    _check_fits(network, experiment)
    return Predictor(
        network.forward,
        make_head(experiment, network.outline, clustering=clustering),
        augmentation=experiment.augmentation_config,
        channels=network.channels,
        device=device,
    )


def _check_fits(network: Network, experiment: Experiment) -> None:
    wanted, names = class_names(experiment), network.class_names
    if wanted != names:
        raise ModelError(
            f"{network.file} detects {', '.join(names)}; the spec is for {', '.join(wanted)} (in this order):"
            " use the spec that it was trained with"
        )
    asked = experiment.augmentation_config.preprocessing
    if asked.output_image_channel != network.channels:
        raise ModelError(
            f"{network.file} takes images of {network.channels} channels; the spec's output_image_channel is"
            f" {asked.output_image_channel}: use the spec that it was trained with"
        )
    if network.size and network.size != (asked.output_image_height, asked.output_image_width):
        height, width = network.size
        raise ModelError(
            f"{network.file} is bound to images of {width}x{height}; the spec's are"
            f" {asked.output_image_width}x{asked.output_image_height}: use the spec that it was exported with, or export again"
        )
