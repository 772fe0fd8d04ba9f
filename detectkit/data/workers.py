"""Batches of a data set, decoded on worker processes in an order that seed and epoch fix."""

from __future__ import annotations

import copy
import ctypes
import functools
import multiprocessing
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from detectkit.data.batch import Batch, Sample, collate, decode_size
from detectkit.data.dataset import Dataset
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORKER_DIED = ("exited unexpectedly", "is killed by signal")  # how torch says it
MORE_MEMORY = "lower training_config.workers, or give the machine more memory or /dev/shm"


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
        self.target_size = decode_size(augmentation)

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
