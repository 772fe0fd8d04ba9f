"""From a dataset_config to batches of decoded images with their boxes. Decoding happens on workers."""

from __future__ import annotations

import copy
import ctypes
import functools
import io
import multiprocessing
import os
import re
import signal
import stat
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from detectkit.console import log
from detectkit.data import tfrecord
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
from detectkit.errors import DataError
from detectkit.files import local_path
from detectkit.spec import AugmentationConfig, DatasetConfig, DataSource, label_name
from detectkit.stores import is_remote

PART = re.compile(r"(.*)-shard-\d{5}-of-(\d{5})")
PIECE = 4096  # bytes from the middle of an image file
NAMED_FILES = 3  # how many missing files an error names
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORKER_DIED = ("exited unexpectedly", "is killed by signal")  # how torch says it
MORE_MEMORY = "lower training_config.workers, or give the machine more memory or /dev/shm"
BACKGROUND = -1  # class of a label that is no target class
DONTCARE = -2  # class of a label in dontcare_labels: counts neither for nor against


class Objects(NamedTuple):
    """The labels of an image, those of no target class included. n boxes."""

    boxes: NDArray[np.float32]  # [n, 4] x1 y1 x2 y2 in original pixels
    classes: NDArray[np.int64]  # [n], a target class (0 and up), BACKGROUND or DONTCARE
    names: tuple[str, ...]  # n names of the records, as `label_name` gives them
    truncation: NDArray[np.float32]  # [n] 0 whole, 1 outside the image, as KITTI labels
    occlusion: NDArray[np.int64]  # [n] 0 visible, 1 partly, 2 largely hidden, 3 unknown, as KITTI labels

    def chosen(self, index: NDArray[Any]) -> Objects:
        """Those that an index array or mask [n] names."""
        names = tuple(np.array(self.names, dtype=object)[index])
        return Objects(
            self.boxes[index], self.classes[index], names, self.truncation[index], self.occlusion[index]
        )


NO_OBJECTS = Objects(
    np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (), np.zeros(0, np.float32), np.zeros(0, np.int64)
)


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


class Sample(NamedTuple):
    """A decoded image and its labels."""

    image: NDArray[np.uint8]  # [c, h, w], possibly reduced
    reduction: int  # original pixels a pixel of `image`, along each axis
    original_size: tuple[int, int]  # width, height of the image file, upright
    objects: Objects
    weight: float
    frame_id: str
    image_path: str
    turned: bool = False  # by the EXIF orientation of the file
    stretched: str = ""  # how its values were brought to 8 bits, see `images.Decoded`


class Batch(NamedTuple):
    """Samples stacked. B images, N labels in all, see `Objects`."""

    images: Tensor  # uint8 [B, c, h, w]; right of and below an image: its last pixels once more, then 0
    sizes: Tensor  # float32 [B, 2] width, height of the image in pixels of `images`
    original_sizes: Tensor  # float32 [B, 2] width, height of the image file, upright
    boxes: Tensor  # float32 [N, 4] x1 y1 x2 y2 in original pixels
    classes: Tensor  # int64 [N]
    names: list[str]
    truncation: Tensor  # float32 [N]
    occlusion: Tensor  # int64 [N]
    image_index: Tensor  # int64 [N], which of the B images a box is in
    weights: Tensor  # float32 [B]
    frame_ids: list[str]
    image_paths: list[str]
    turned: Sequence[bool] = ()  # B of them, or none
    stretched: Sequence[str] = ()


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


def training_frames(
    config: DatasetConfig,
    class_names: Sequence[str],
    *,
    at_most: int | None = None,
    look_for_images: bool = True,
) -> Dataset:
    """Read the records that a spec trains on: those of all sources, without the shards of `validation_fold`.

    Record names are compared as `label_name` gives them with the keys of `target_class_mapping`, which is applied once, and with
    `dontcare_labels`; boxes without area are dropped.

    Args:
        at_most: read so many records only, evenly spaced.
        look_for_images: or else `require_images` is left to the caller.

    Raises:
        DataError: no shards for a pattern, none outside the fold, a damaged shard, missing images.
    """
    shards = _training_shards(config)
    uniform = config.sampling_mode == DatasetConfig.UNIFORM
    return _Reader(config, class_names).read(
        shards, uniform=uniform, at_most=at_most, look_for_images=look_for_images
    )


def validation_frames(
    config: DatasetConfig,
    class_names: Sequence[str],
    *,
    at_most: int | None = None,
    look_for_images: bool = True,
) -> Dataset | None:
    """Read the records that a spec measures on, as `training_frames` does; None: the spec names none.

    They are those of `validation_data_source`, or the shards of all sources with `fold-<3 digits>-of-` for
    `validation_fold` in their path. Nothing else has to be there.

    Raises:
        DataError: no shards for a pattern or the fold, a damaged shard, missing images.
    """
    marker = _fold_marker(config)
    if config.HasField("validation_data_source"):
        shards = _shards([config.validation_data_source])
    elif marker is not None:
        shards = [shard for shard in _shards(config.data_sources) if marker in shard.path]
    else:
        return None
    if not shards:
        raise DataError(
            f"no file of the data sources is called *{marker}*: change validation_fold, or convert anew"
        )
    return _Reader(config, class_names).read(shards, at_most=at_most, look_for_images=look_for_images)


def require_separate(training: Dataset, validation: Dataset, config: DatasetConfig) -> None:
    """Refuse images that are both trained on and measured on: what is measured on them says nothing of new ones.

    Both have been through `require_images`. Other files and records of the same content, of which public data sets have
    some, are a warning.

    A spec whose validation_data_source names the very shards that are trained on means it, and gets a warning.

    Raises:
        DataError: names some of the images; or one cannot be read.
    """
    trained = {_identity(frame) for frame in training.frames}
    shared = [frame for frame in validation.frames if _identity(frame) in trained]
    if not shared:
        _tell_of_copies(training, validation)
        return
    counted = f"{len(shared)} of the {len(validation)} validation images are among those that are trained on"
    if config.HasField("validation_data_source") and _same_shards(config):
        log.warning(f"{counted}, as the spec says: what is measured says nothing of new images")
        return
    ids = sorted({frame.frame_id for frame in shared})
    named = ", ".join(ids[:NAMED_FILES]) + (", …" if len(ids) > NAMED_FILES else "")
    raise DataError(
        f"{counted} ({named}): what is measured on them says nothing of new images; let validation_fold or"
        " validation_data_source name other records, or convert the data again"
    )


def _identity(frame: Frame) -> tuple[object, ...]:
    """What is the same of two frames that show the same image file, whatever path or shard leads there."""
    return frame.file if frame.shard is None else (frame.frame_id, *_whole(frame))


def _tell_of_copies(training: Dataset, validation: Dataset) -> None:
    copies = _shared(training.frames, validation.frames)
    if copies:
        log.warning(
            f"{len(copies)} of the {len(validation)} validation images are copies of some that are trained on"
            f" ({copies[0].frame_id}): what is measured on them says nothing of new images; take them out of one fold"
        )


def _shared(training: Sequence[Frame], validation: Sequence[Frame]) -> list[Frame]:
    """The validation images that have the content of one that is trained on, whatever path or record leads there."""
    trained, shared = list(training), [frame for frame in validation if frame.length]
    for identity in (_form, _piece, _whole):  # each is dearer, and asked of what those before it have left
        known = set(map(identity, trained)) if shared else set()
        keys = [identity(frame) for frame in shared]
        shared = [frame for frame, key in zip(shared, keys) if key in known]
        left = {_form(frame) for frame in shared}
        trained = [frame for frame in trained if _form(frame) in left]
    return shared


def _form(frame: Frame) -> tuple[object, ...]:
    return frame.size, frame.length


def _piece(frame: Frame) -> tuple[object, ...]:
    """Tells most images apart whose files are as long as each other, as all are of formats that do not compress."""
    if frame.shard is not None:
        return *_form(frame), frame.checksums[0]
    return *_form(frame), google_crc32c.value(_read(frame, frame.length // 2, PIECE))


def _whole(frame: Frame) -> tuple[object, ...]:
    if frame.shard is not None:
        return *_form(frame), frame.checksums[1]
    return *_form(frame), google_crc32c.value(_read(frame, 0, frame.length))


def _checksums(content: bytes) -> tuple[int, int]:
    """What `_piece` and `_whole` compare, of the content of an image file."""
    start = len(content) // 2
    return google_crc32c.value(content[start : start + PIECE]), google_crc32c.value(content)


def _read(frame: Frame, start: int, count: int) -> bytes:
    try:
        with open(frame.path, "rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise DataError(f"cannot read {frame.path}: {error.strerror or error}") from error


def _same_shards(config: DatasetConfig) -> bool:
    """Whether the very files are measured on that are trained on."""
    training = {shard.path for shard in _training_shards(config)}
    return training == {shard.path for shard in _shards([config.validation_data_source])}


def _fold_marker(config: DatasetConfig) -> str | None:
    """What the paths of the shards of the validation fold contain."""
    return f"fold-{config.validation_fold:03d}-of-" if config.HasField("validation_fold") else None


def _training_shards(config: DatasetConfig) -> list[_SourceShard]:
    """Those of all sources, without the validation fold."""
    marker = _fold_marker(config)
    kept = [shard for shard in _shards(config.data_sources) if marker is None or marker not in shard.path]
    if not kept:
        raise DataError(f"every file of the data sources is called *{marker}*: nothing is left to train on")
    return kept


class _Reader:
    """Reads shards into data sets with one naming of images and classes."""

    def __init__(self, config: DatasetConfig, class_names: Sequence[str]):
        self.extension = "." + config.image_extension.lstrip(".")
        self.class_names = class_names
        self._label_name = functools.cache(label_name)  # a few names, many labels
        mapping = {label_name(key): value for key, value in config.target_class_mapping.items()}
        self.numbers = {
            name: class_names.index(value) for name, value in mapping.items() if value in class_names
        }
        self.numbers |= {label_name(name): DONTCARE for name in config.dontcare_labels}

    def read(
        self,
        shards: Sequence[_SourceShard],
        *,
        uniform: bool = False,
        at_most: int | None = None,
        look_for_images: bool = True,
    ) -> Dataset:
        found: list[Frame] = []
        raw: Counter[str] = Counter()
        opened: dict[str, tfrecord.Shard] = {}
        total, records = (None, _records(shards)) if at_most is None else _some_records(shards, at_most)
        for (source, source_number, path), number, record in records:
            if record.image is not None and path not in opened:
                opened[path] = tfrecord.open_shard(path)
            raw.update(record.names)
            embedded = None if record.image is None else opened[path]
            frame = self._frame(record, source, embedded, number=number)
            found.append(frame._replace(source=source_number))
        if not found:
            raise DataError(
                f"there are no records in {', '.join(item.path for item in shards[:NAMED_FILES])}"
            )
        if look_for_images:
            found = require_images(found)
        return Dataset(found, self.class_names, raw_counts=raw, uniform=uniform, total=total)

    def _frame(
        self, record: tfrecord.Record, source: DataSource, shard: tfrecord.Shard | None, *, number: int
    ) -> Frame:
        names = tuple(map(self._label_name, record.names))
        classes = np.array([self.numbers.get(name, BACKGROUND) for name in names], dtype=np.int64)
        objects = Objects(record.boxes, classes, names, record.truncation, record.occlusion)
        widths, heights = (record.boxes[:, 2:] - record.boxes[:, :2]).T
        has_area = (widths > 0) & (heights > 0)
        extension = f".{record.image_format}" if record.image_format else self.extension
        image = os.path.join(os.path.expanduser(source.image_directory_path), record.frame_id + extension)
        return Frame(
            frame_id=record.frame_id,
            path=image if shard is None else shard.path,
            shard=shard,
            number=number,
            size=(record.width, record.height),
            objects=objects if has_area.all() else objects.chosen(has_area),
            weight=source.source_weight or 1.0,
            length=len(record.image or b""),
            checksums=(0, 0) if record.image is None else _checksums(record.image),
        )


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
    frames = [frame._replace(objects=_largest(frame.objects, limit)) for frame in dataset.frames]
    return Dataset(frames, dataset.class_names, raw_counts=dataset.raw_counts, uniform=dataset.uniform)


def _largest(objects: Objects, limit: int) -> Objects:
    target = np.flatnonzero(objects.classes >= 0)
    if len(target) <= limit:
        return objects
    sizes = (objects.boxes[target, 2:] - objects.boxes[target, :2]).prod(axis=1)
    kept = objects.classes < 0
    kept[target[np.argsort(-sizes, kind="stable")[:limit]]] = True
    return objects.chosen(kept)


def class_counts(dataset: Dataset) -> tuple[Counter[str], Counter[str]]:
    """Boxes by target class (those without a box are there with 0), and by class name as in the records."""
    classes = np.concatenate([frame.objects.classes for frame in dataset.frames] or [NO_OBJECTS.classes])
    totals = np.bincount(classes[classes >= 0], minlength=len(dataset.class_names))
    return Counter(dict(zip(dataset.class_names, totals.tolist()))), dataset.raw_counts


def training_order(groups: Sequence[Sequence[int]], batch_size: int, *, seed: int, epoch: int) -> list[int]:
    """The images of an epoch in the order that seed and epoch fix, continued from its start to fill the last batch.

    Of one group, every image once. Of several, as many images in all, the same number from each group: a small one is
    gone through more than once, and of a large one other images come in the next epoch.
    """
    random, count = np.random.default_rng([seed, epoch]), sum(map(len, groups))
    if len(groups) == 1:
        order = random.permutation(groups[0])
    else:
        shares = [
            count * (turn + 1) // len(groups) - count * turn // len(groups) for turn in range(len(groups))
        ]
        drawn = [np.resize(random.permutation(group), share) for group, share in zip(groups, shares)]
        order = random.permutation(np.concatenate(drawn))
    return [int(index) for index in np.resize(order, -(-count // batch_size) * batch_size)]


def loader(
    dataset: Dataset,
    augmentation: AugmentationConfig,
    *,
    batch_size: int,
    order: Sequence[int],
    workers: int,
) -> Iterator[Batch]:
    """Decode the images `order` names, in this order, in batches (the last may be short), on `workers` processes.

    With 0 workers decoding happens in the calling process. The batches do not depend on the number of workers, and
    no global random state is used.

    Args:
        augmentation: gives the channels, and the size towards which large images are reduced.

    Raises:
        DataError: an image cannot be used (the text is the same from a worker), or a worker died.
    """
    fetch = _Fetch(dataset, augmentation)
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    # torch warns of more workers than cores: that is the spec's business.
    with _starting_workers(), warnings.catch_warnings(action="ignore"):
        loaded: DataLoader[Batch | _Sent | _Failure] = DataLoader(
            fetch,  # type: ignore[arg-type]  # a batch an index list: no Dataset of torch's
            sampler=batches,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_set_up_worker,
            generator=torch.Generator(),  # else every pass would move the global random state
            pin_memory=torch.cuda.is_available(),
        )
        items = iter(loaded)
    # Held by a traceback or a reference cycle, torch's iterator may go without a word to its processes.
    # At exit multiprocessing waits for them, and they ignore its signal: only its own finalizers come before that.
    Finalize(items, _kill, (getattr(items, "_workers", []),), exitpriority=0)
    try:
        for item in items:
            if isinstance(item, _Failure):
                raise DataError(item.text)
            batch = _received(item) if isinstance(item, _Sent) else item
            dataset.say_stretched(batch.image_paths, batch.stretched)
            yield batch
    except RuntimeError as error:
        if any(text in str(error) for text in WORKER_DIED):
            raise DataError(f"a loader process died ({error}): {MORE_MEMORY}") from error
        raise


class _Failure(NamedTuple):
    text: str


class _Sent(NamedTuple):
    """A batch on its way from a worker: a tensor goes through shared memory at the cost of a connection, an array does not."""

    images: Tensor
    others: dict[str, Any]  # the other columns of a Batch, with arrays for tensors


class _Fetch:
    """Decodes and stacks one batch; a failure is handed over as a value (torch would wrap its text in a traceback)."""

    def __init__(self, dataset: Dataset, augmentation: AugmentationConfig):
        self.dataset = dataset
        self.channels = augmentation.preprocessing.output_image_channel
        self.target_size = _decode_size(augmentation)

    def __getitem__(self, indices: list[int]) -> Batch | _Sent | _Failure:
        try:
            batch = collate([self._sample(index) for index in indices])
            return batch if get_worker_info() is None else _sent(batch)
        except DataError as error:
            return _Failure(str(error))

    def _sample(self, index: int) -> Sample:
        return self.dataset.sample(index, channels=self.channels, target_size=self.target_size)


def _sent(batch: Batch) -> _Sent:
    """A batch that torch's queue can send. It would lose, and await for ever, one that cannot be sent."""
    try:
        batch.images.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DataError(f"no shared memory is left for a loader process ({error}): {MORE_MEMORY}") from error
    try:
        _open_socket()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(
            f"a loader process cannot open a socket below {folder} ({error}): set TMPDIR to a folder with a short path"
            " that can be written, or training_config.workers to 0"
        ) from error
    others = batch._asdict()
    del others["images"]
    return _Sent(
        batch.images,
        {name: value.numpy() if isinstance(value, Tensor) else value for name, value in others.items()},
    )


def _received(sent: _Sent) -> Batch:
    others: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in sent.others.items()
    }
    return Batch(images=sent.images, **others)


@functools.cache
def _open_socket() -> None:
    """Have this process open the socket that shared memory is handed over by, as the first tensor sent does."""
    ForkingPickler.dumps(torch.zeros(1).share_memory_())  # type: ignore[no-untyped-call]


class _Flag:
    """What torch needs of multiprocessing.Event, without its lock, in which a process may be killed."""

    def __init__(self) -> None:
        self._value = RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return bool(self._value.value)


def _context() -> BaseContext:
    """How torch starts its workers: as it would, but that none of them, killed at any moment, can stop this process."""
    context = copy.copy(multiprocessing.get_context())
    setattr(context, "Event", _Flag)
    return context


def _as_it_is(item: Any) -> Any:
    return item


@contextmanager
def _starting_workers() -> Iterator[None]:
    """Guards the signals while loader processes start.

    Those that stop a run wait meanwhile, so that none hits a process before it ignores them. torch's SIGCHLD handler,
    which would raise in the middle of whatever the main process does, is taken out again: the death of a process is
    noticed where its batch is waited for.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    on_child_exit = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGCHLD) is not on_child_exit:
            signal.signal(signal.SIGCHLD, on_child_exit)


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _set_up_worker(_: int) -> None:
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:  # they are for the main process, which ends its workers
        signal.signal(number, signal.SIG_IGN)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; see `Batch` for how images of different sizes are padded."""
    height, width = (max(sample.image.shape[axis] for sample in samples) for axis in (1, 2))
    images = np.zeros((len(samples), samples[0].image.shape[0], height, width), dtype=np.uint8)
    for target, sample in zip(images, samples):
        h, w = sample.image.shape[1:]
        target[:, :h, :w] = sample.image
        # Bilinear sampling at an image's edge reaches half a pixel over it, and must not find black there.
        target[:, h : h + 1, :w] = target[:, h - 1 : h, :w]
        target[:, : h + 1, w : w + 1] = target[:, : h + 1, w - 1 : w]
    objects = [sample.objects for sample in samples]
    counts = torch.tensor([len(item.names) for item in objects])
    original = torch.tensor([sample.original_size for sample in samples], dtype=torch.float32)
    return Batch(
        images=torch.from_numpy(images),
        sizes=original / torch.tensor([[sample.reduction] for sample in samples]),
        original_sizes=original,
        boxes=torch.from_numpy(np.concatenate([item.boxes for item in objects])),
        classes=torch.from_numpy(np.concatenate([item.classes for item in objects])),
        names=[name for item in objects for name in item.names],
        truncation=torch.from_numpy(np.concatenate([item.truncation for item in objects])),
        occlusion=torch.from_numpy(np.concatenate([item.occlusion for item in objects])),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        weights=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        frame_ids=[sample.frame_id for sample in samples],
        image_paths=[sample.image_path for sample in samples],
        turned=[sample.turned for sample in samples],
        stretched=[sample.stretched for sample in samples],
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
    size, name = _decode_size(augmentation), "the image"
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


def _decode_size(config: AugmentationConfig) -> tuple[int, int] | None:
    """The (width, height) towards which images may be reduced while they are decoded; None: decode them in full.

    An image much larger than the network's input would otherwise be resampled with holes.
    """
    pre = config.preprocessing
    if not pre.enable_auto_resize or has_crop(pre):
        return None
    return pre.output_image_width, pre.output_image_height


def has_crop(pre: AugmentationConfig.Preprocessing) -> bool:
    """Whether the spec cuts a rectangle from the image (crop_* all 0: it does not)."""
    return pre.crop_right > pre.crop_left and pre.crop_bottom > pre.crop_top


def _name(frame: Frame) -> str:
    return frame.path if frame.shard is None else f"{frame.path} (record {frame.number}, {frame.frame_id})"


class _SourceShard(NamedTuple):
    source: DataSource
    number: int  # of the source
    path: str


def _shards(sources: Iterable[DataSource]) -> list[_SourceShard]:
    """The shards of every source; each must have some, and a warning names those that are not there."""
    found: list[_SourceShard] = []
    for number, source in enumerate(sources):
        shards = tfrecord.find_shards(source.tfrecords_path)
        if not shards:
            raise DataError(
                f"no files match tfrecords_path: {source.tfrecords_path}; "
                "correct the pattern, or run detectkit convert"
            )
        _warn_of_missing_shards(shards)
        found += [_SourceShard(source, number, shard) for shard in shards]
    return found


def _warn_of_missing_shards(found: Sequence[str]) -> None:
    """Tell of the shards that others are counted with (-shard-00000-of-00010), and that are on no disk."""
    counted = {(match[1], match[2]) for match in map(PART.fullmatch, found) if match}
    for start, count in sorted(counted):
        parts = [f"{start}-shard-{number:05d}-of-{count}" for number in range(int(count))]
        missing = [part for part in parts if part not in found and not os.path.exists(local_path(part))]
        if missing and not is_remote(start):
            log.warning(
                f"{len(missing)} of the {len(parts)} shards of {start} are not there, nor are their images: {missing[0]} …"
            )


def _records(shards: Iterable[_SourceShard]) -> Iterator[tuple[_SourceShard, int, tfrecord.Record]]:
    """Every record, with its shard and its number in there."""
    for shard in shards:
        for number, record in enumerate(tfrecord.read_records(shard.path)):
            yield shard, number, record


def _some_records(
    shards: Sequence[_SourceShard], at_most: int
) -> tuple[int, Iterator[tuple[_SourceShard, int, tfrecord.Record]]]:
    """How many records there are, and evenly spaced ones of them."""
    opened = [tfrecord.open_shard(shard.path) for shard in shards]
    ends = np.cumsum([len(shard.offsets) for shard in opened])
    total = int(ends[-1])
    count = min(at_most, total)
    chosen = np.arange(count) * total // max(count, 1)

    def read() -> Iterator[tuple[_SourceShard, int, tfrecord.Record]]:
        for number in chosen:
            which = int(np.searchsorted(ends, number, side="right"))
            within = int(number - ends[which] + len(opened[which].offsets))
            yield shards[which], within, tfrecord.read_record(opened[which], within)

    return total, read()


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
