"""Images with their labels before they are decoded (`Frame`, `Dataset`), those of a folder, and the decoding of one."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectkit.console import log
from detectkit.data import tfrecord
from detectkit.data.batch import Sample, decode_size
from detectkit.data.formats import IMAGE_EXTENSIONS
from detectkit.data.images import (
    STRETCHED,
    Decoded,
    Size,
    counted,
    decode,
    list_images,
    open_image,
    upright_size,
)
from detectkit.data.labels import NO_OBJECTS, Objects
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig

PIECE = 4096  # bytes from the middle of an image file
NAMED_FILES = 3  # how many missing files an error names


class Frame(NamedTuple):
    """An image of a data set, not yet decoded, and its labels."""

    frame_id: str
    path: str  # the image file, or the shard that holds it
    shard: tfrecord.Shard | None  # set when the image is in a record
    number: int  # of the record in its shard
    size: tuple[int, int] | None  # width, height as the record says; None: not known before decoding
    objects: Objects
    weight: float = 1.0  # source_weight
    source: int = 0  # number of its data source
    length: int = 0  # bytes of the image file, see `require_images`
    file: tuple[int, int] = (0, 0)  # device and inode of an image file, see `require_images`
    checksums: tuple[int, int] = (0, 0)  # of an image in a record: of a piece, and of all of it


class Dataset:
    """Labelled images.

    Args:
        raw_counts: the boxes by class name as in the records, before any mapping.
        uniform: training draws equally from every source, not in proportion to their sizes.
        total: images that there are, where `frames` are a sample of them.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        class_names: Sequence[str] = (),
        *,
        raw_counts: Counter[str] | None = None,
        uniform: bool = False,
        total: int | None = None,
    ):
        self.frames = list(frames)
        self.total = len(self.frames) if total is None else total
        self.class_names = list(class_names)
        self.raw_counts = Counter() if raw_counts is None else raw_counts
        self.uniform = uniform
        self.said_stretched = False

    def __len__(self) -> int:
        return len(self.frames)

    def groups(self) -> list[list[int]]:
        """The numbers of the images, in the groups that training draws from equally."""
        if not self.uniform:
            return [list(range(len(self)))]
        members: dict[int, list[int]] = {}
        for number, frame in enumerate(self.frames):
            members.setdefault(frame.source, []).append(number)
        return list(members.values())

    def say_stretched(self, paths: Sequence[str], stretched: Sequence[str]) -> None:
        """Warn, once in the life of a data set, of the first image whose values were brought to 8 bits by a guess."""
        named = [pair for pair in zip(paths, stretched) if pair[1]]
        if named and not self.said_stretched:
            self.said_stretched = True
            log.warning(STRETCHED, *named[0])

    def sample(self, index: int, *, channels: int, target_size: tuple[int, int] | None = None) -> Sample:
        """Decode an image to 3 (RGB) or 1 channel; with a `target_size`, reduced towards it, never below.

        Raises:
            DataError: the image cannot be read, or has not the size that its record says.
        """
        frame = self.frames[index]
        encoded = None
        if frame.shard is not None:
            encoded = tfrecord.read_record(frame.shard, frame.number).image
        with open_image(frame.path if encoded is None else io.BytesIO(encoded), name=_name(frame)) as image:
            _require_recorded_size(frame, upright_size(image))
            decoded = decode(image, channels=channels, target_size=target_size, name=_name(frame))
        return _sample(decoded, frame)


def _require_recorded_size(frame: Frame, size: Size) -> None:
    if frame.size is None or size[:2] == frame.size:
        return
    wanted, found = (f"{side[0]}x{side[1]}" for side in (frame.size, size))
    if size.turned and frame.size == size[1::-1]:
        raise DataError(
            f"{_name(frame)} is {found} pixels when its EXIF orientation turns it, as viewers show it; its record says"
            f" {wanted}, the pixels as stored: convert the data again, or where the labels are for the stored pixels,"
            " take the orientation out of the file"
        )
    raise DataError(f"{_name(frame)} is {found} pixels, its record says {wanted}: convert the data again")


def _name(frame: Frame) -> str:
    return frame.path if frame.shard is None else f"{frame.path} (record {frame.number}, {frame.frame_id})"


def _sample(decoded: Decoded, frame: Frame) -> Sample:
    return Sample(
        decoded.pixels,
        decoded.reduction,
        (decoded.size.width, decoded.size.height),
        frame.objects,
        frame.weight,
        frame.frame_id,
        frame.path,
        decoded.size.turned,
        decoded.stretched,
    )


def sample_from_image(
    image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8],
    *,
    channels: int,
    augmentation: AugmentationConfig,
) -> Sample:
    """One image without labels: a file, a PIL image, or a uint8 array [h, w, 3], [h, w, 1] or [h, w].

    Raises:
        DataError: it cannot be read, or the array is not such an image.
    """
    size, name = decode_size(augmentation), "the image"
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_require_image(image))
    if isinstance(image, Image.Image):
        decoded = decode(image.copy(), channels=channels, target_size=size, name=name)
    else:
        name = os.fspath(image)
        with open_image(name, name=name) as file:
            decoded = decode(file, channels=channels, target_size=size, name=name)
    return _sample(decoded, Frame(Path(name).stem, name, None, 0, None, NO_OBJECTS))


def _require_image(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array [h, w, 3], [h, w, 4] or [h, w]. Raises DataError for one that is no image."""
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        raise DataError(f"an image array must be uint8 [h, w, 3], not {array.dtype} {list(array.shape)}")
    if array.dtype != np.uint8:
        raise DataError(
            f"an image array must be uint8 [h, w, 3] with values of 0 to 255, not {array.dtype} {list(array.shape)}:"
            " scale it by the range of your camera, the same for all images, and round it"
        )
    return array[:, :, 0] if array.shape[2:] == (1,) else array


def image_files(path: str | os.PathLike[str], *, without: Collection[Path] = ()) -> Dataset:
    """The images of a folder and its sub-folders (sorted by path), or one image, without labels.

    Their frame ids are paths below the folder, without extension.

    Args:
        without: folders that are passed over, as hidden files and folders are.

    Raises:
        DataError: there is no such folder or file, no image in it, or a sub-folder that cannot be listed.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root} does not exist: give a folder of images or an image file")
    if root.is_file():
        return Dataset([Frame(root.stem, str(root), None, 0, None, NO_OBJECTS)])
    files, others = list_images(root, without=without)
    if not files:
        found = f" (it has {counted(others)})" if others else ""
        raise DataError(
            f"there are no images in {root}: files must end in {', '.join(IMAGE_EXTENSIONS)}{found}"
        )
    if others:
        log.info("%s: passed over %s", root, counted(others))
    ids = [os.path.splitext(file.relative_to(root).as_posix())[0] for file in files]
    return Dataset(
        [Frame(name, str(file), None, 0, None, NO_OBJECTS) for name, file in zip(ids, files, strict=True)]
    )


def capped(dataset: Dataset, limit: int) -> Dataset:
    """The data set with at most `limit` boxes of target classes an image, the largest ones; 0: as it is."""
    if not limit:
        return dataset
    frames = [frame._replace(objects=frame.objects.largest(limit)) for frame in dataset.frames]
    return Dataset(frames, dataset.class_names, raw_counts=dataset.raw_counts, uniform=dataset.uniform)


def class_counts(dataset: Dataset) -> tuple[Counter[str], Counter[str]]:
    """Boxes by target class (those without a box are there with 0), and by class name as in the records."""
    classes = np.concatenate([frame.objects.classes for frame in dataset.frames] or [NO_OBJECTS.classes])
    totals = np.bincount(classes[classes >= 0], minlength=len(dataset.class_names))
    return Counter(dict(zip(dataset.class_names, totals.tolist()))), dataset.raw_counts


def is_there(frame: Frame) -> bool:
    """Whether the image is in the record, or a file."""
    return frame.shard is not None or os.path.isfile(frame.path)


def require_images(found: Sequence[Frame]) -> list[Frame]:
    """The frames with what the system tells of their image files: every one is looked for once, before any work.

    Raises:
        DataError: names a few that are not there.
    """
    looked_for = [frame if frame.shard else frame._replace(**_looked_for(frame.path)) for frame in found]
    missing = sorted({frame.path for frame in looked_for if frame.length < 0})
    if missing:
        named = ", ".join(missing[:NAMED_FILES]) + (", …" if len(missing) > NAMED_FILES else "")
        raise DataError(
            f"{len(missing)} of {len(found)} images are missing: {named}; "
            "check image_directory_path and image_extension in dataset_config"
        )
    return looked_for


def _looked_for(path: str) -> dict[str, Any]:
    """`length` and `file` of a frame; length -1: there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return {"length": -1}
    is_file = stat.S_ISREG(status.st_mode)
    return {"length": status.st_size if is_file else -1, "file": (status.st_dev, status.st_ino)}


def checksums(content: bytes) -> tuple[int, int]:
    """Of the content of an image file: of `PIECE` bytes from its middle, and of all of it."""
    start = len(content) // 2
    return google_crc32c.value(content[start : start + PIECE]), google_crc32c.value(content)
