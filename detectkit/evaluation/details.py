"""What was found in every image and what its labels say, in a file: mistakes and agreement without the network."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectkit.data import tfrecord
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import DONTCARE, NO_OBJECTS
from detectkit.errors import DataError
from detectkit.evaluation.voc import Found, Labelled, judge
from detectkit.files import atomic_write
from detectkit.ops.boxes import area
from detectkit.ops.cluster import Detections
from detectkit.ops.metrics import best_overlaps

FILE = "details.npz"
FORMAT = "detectkit.details 1"
MOST_DETECTIONS = 300  # of a class in an image: more are those of a network that has learnt nothing
MOST_POINTS = 200  # of a curve: more than a picture shows
# What numpy and the parts of zipfile raise for files of other software and for damaged ones.
DAMAGES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Location(NamedTuple):
    """Where an image is, see `read_image`."""

    path: str  # the image file, or the shard that holds the image; absolute
    record: int  # number of the record in its shard; -1: `path` is the image file
    name: str  # the frame id of the record
    width: int  # pixels of the file
    height: int


class Curve(NamedTuple):
    """Precision over recall, by descending score."""

    recall: list[float]
    precision: list[float]


class Details(NamedTuple):
    """N images, D detections, T labels; boxes are x1 y1 x2 y2 in pixels of the image files.

    Detections are in the order of the images, in each by descending score, at most `MOST_DETECTIONS` of a class. Labels
    are those of target classes (0 and up) and DontCare regions, as far as they lie in what the network sees.
    """

    class_names: list[str]
    images: list[Location]  # N
    found: Found  # boxes [D, 4] and scores [D] float32, classes and images int64 [D]
    found_counts: Tensor  # bool [D]: of a size that counts, see evaluation_box_config
    truths: Labelled  # boxes [T, 4] float32, classes and images int64 [T]
    truths_count: Tensor  # bool [T]: to be found, of a target class and of a size that counts
    overlaps: list[float]  # by class, the least IoU of a right detection
    curves: list[Curve]  # by class, see `collect.thinned`; without points where nothing was found
    left_out: int  # detections beyond MOST_DETECTIONS

    def detections(self) -> list[Detections]:
        """One an image, as `agreement` takes them."""
        sizes = torch.bincount(self.found.images, minlength=len(self.images)).tolist()
        columns = (
            torch.split(column, sizes) for column in (self.found.boxes, self.found.scores, self.found.classes)
        )
        return [Detections(*image) for image in zip(*columns)]


def errors(details: Details) -> tuple[Found, Labelled]:
    """False positives by falling score, and missed labels by falling area.

    Counted as `evaluation.voc.Scores` does, with the IoU of each class, whatever the protocol: KITTI's difficulties and
    neighbouring classes are not known here. In a DontCare region nothing is wrong.
    """
    wrong = torch.zeros_like(details.found_counts)
    missed = torch.zeros_like(details.truths_count)
    found, truths = details.found, details.truths
    regions = Labelled(*(column[truths.classes == DONTCARE] for column in truths))
    for index, overlap in enumerate(details.overlaps):
        rows = ((found.classes == index) & details.found_counts).nonzero().flatten()
        labels = ((truths.classes == index) & details.truths_count).nonzero().flatten()
        own, wanted = Found(*(column[rows] for column in found)), Labelled(
            *(column[labels] for column in truths)
        )
        hit, neutral = judge(own, wanted, regions, least_overlap=overlap)
        wrong[rows] = ~hit & ~neutral
        # A right detection has claimed the label that it overlaps most.
        claimed, _ = best_overlaps(own.boxes[hit], own.images[hit], wanted.boxes, wanted.images)
        missed[labels] = True
        missed[labels[claimed]] = False
    false_positives = Found(*(column[wrong] for column in found))
    misses = Labelled(*(column[missed] for column in truths))
    by_score = torch.argsort(false_positives.scores, descending=True, stable=True)
    by_area = torch.argsort(area(misses.boxes), descending=True, stable=True)
    return (
        Found(*(column[by_score] for column in false_positives)),
        Labelled(*(column[by_area] for column in misses)),
    )


def read_image(location: Location) -> NDArray[np.uint8]:
    """The image [h, w, 3], RGB.

    Raises:
        DataError: it is gone, damaged, or of another size.
    """
    shard = tfrecord.open_shard(location.path) if location.record >= 0 else None
    if shard is not None and location.record >= len(shard.offsets):
        raise DataError(f"{location.path} has no record {location.record} now: evaluate again")
    size = (location.width, location.height)
    frame = Frame(location.name, location.path, shard, location.record, size, NO_OBJECTS)
    return np.ascontiguousarray(Dataset([frame]).sample(0, channels=3).image.transpose(1, 2, 0))


def save(path: str | os.PathLike[str], details: Details) -> None:
    """Write details to a .npz file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    stored = {
        "format": FORMAT,
        "class_names": details.class_names,
        "images": details.images,
        "overlaps": details.overlaps,
        "curves": details.curves,
        "left_out": details.left_out,
    }
    found, truths = details.found, details.truths
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(stored).encode(), dtype=np.uint8),
            found_boxes=found.boxes.numpy(),
            found_classes=found.classes.numpy(),
            found_images=found.images.numpy(),
            found_scores=found.scores.numpy(),
            found_counts=details.found_counts.numpy(),
            truths_boxes=truths.boxes.numpy(),
            truths_classes=truths.classes.numpy(),
            truths_images=truths.images.numpy(),
            truths_count=details.truths_count.numpy(),
        )


def load(path: str | os.PathLike[str]) -> Details:
    """Read what `save` wrote.

    Raises:
        DataError: it is missing, damaged, or another file.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return _details(json.loads(stored["header"].tobytes()), stored)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except DAMAGES as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is no {FILE} of this detectkit evaluate, or is damaged ({reason}): evaluate again"
        ) from error


def _details(header: dict[str, Any], stored: Any) -> Details:
    """From the two parts of a file; raises one of DAMAGES where they do not fit together."""
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    names, images = list(map(str, header["class_names"])), [Location(*item) for item in header["images"]]
    count, labels = len(stored["found_scores"]), len(stored["truths_classes"])
    found = Found(
        boxes=_column(stored, "found_boxes", np.float32, (count, 4)),
        classes=_numbers(stored, "found_classes", count, range(len(names))),
        images=_numbers(stored, "found_images", count, range(len(images))),
        scores=_column(stored, "found_scores", np.float32, (count,)),
    )
    if (found.images.diff() < 0).any():
        raise ValueError("found_images does not ascend")
    truths = Labelled(
        boxes=_column(stored, "truths_boxes", np.float32, (labels, 4)),
        classes=_numbers(stored, "truths_classes", labels, range(DONTCARE, len(names))),
        images=_numbers(stored, "truths_images", labels, range(len(images))),
    )
    curves = [Curve(*item) for item in header["curves"]]
    if not len(names) == len(curves) == len(header["overlaps"]):
        raise ValueError(f"{len(names)} classes, {len(curves)} curves")
    return Details(
        class_names=names,
        images=images,
        found=found,
        found_counts=_column(stored, "found_counts", np.bool_, (count,)),
        truths=truths,
        truths_count=_column(stored, "truths_count", np.bool_, (labels,)),
        overlaps=list(map(float, header["overlaps"])),
        curves=curves,
        left_out=int(header["left_out"]),
    )


def _column(stored: Any, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> Tensor:
    values = stored[name]
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(f"{name} is {values.dtype} {values.shape}")
    return torch.from_numpy(values)


def _numbers(stored: Any, name: str, count: int, allowed: range) -> Tensor:
    values = _column(stored, name, np.int64, (count,))
    if count and not allowed.start <= int(values.min()) <= int(values.max()) < allowed.stop:
        raise ValueError(f"{name} holds numbers from {int(values.min())} to {int(values.max())}")
    return values
