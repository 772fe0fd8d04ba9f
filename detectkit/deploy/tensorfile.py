"""TLT's TensorFile: network inputs in HDF5, from which its tools calibrate 8-bit engines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from detectkit.errors import DataError, OutputError
from detectkit.files import atomic_write

KEY = "_tensorfile_array_key_"
NUMBERS = "biuf"  # the kinds of NumPy's types
LARGEST = 2**33  # bytes of a batch in memory
ANEW = "write it anew with detectkit calibration_tensorfile"


def write_tensorfile(path: str | os.PathLike[str], batches: Iterable[NDArray[np.float32]]) -> int:
    """Write batches [N, c, H, W] in [0, 1], all of one shape, each as a gzip data set in a group of its own.

    The root has the attributes `count`, the number of batches, and `shape`, that of one (TLT calibration_tensorfile).

    Returns:
        The number of batches.

    Raises:
        OutputError: the file exists already, or cannot be written.
        DataError: batches of several shapes, or none.
    """
    if Path(path).exists():
        raise OutputError(f"{path} exists: remove it, or name another file")
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        shape: tuple[int, ...] | None = None
        count = 0
        for batch in batches:
            if shape not in (None, batch.shape):
                raise DataError(f"the batches of {path} must have one shape, not {shape} and {batch.shape}")
            shape = batch.shape
            group = file.create_group(f"{KEY}_{count}")
            group.create_dataset(KEY, data=batch, compression="gzip")
            count += 1
        if shape is None:
            raise DataError(f"there is no batch to write to {path}")
        file.attrs["count"], file.attrs["shape"] = count, shape
    return count


def read_tensorfile(
    path: str | os.PathLike[str], channels: int, height: int, width: int
) -> tuple[int, Iterator[NDArray[np.float32]]]:
    """Read a TensorFile, ours or TLT's, one batch at a time.

    Args:
        channels, height, width: that its images must have.

    Returns:
        The number of batches, and the batches [N, channels, height, width] float32 in [0, 1].

    Raises:
        DataError: there is no such file, it is no TensorFile, its images have another shape or other values, or a part
            of it is missing: what only a batch can show as soon as that is read.
    """
    try:
        with h5py.File(path, "r") as file:
            count, shape = int(file.attrs["count"]), tuple(int(size) for size in file.attrs["shape"])
            if len(shape) != 4 or min(shape) < 1 or shape[1:] != (channels, height, width):
                raise DataError(
                    f"{path} holds batches of the shape {_sizes(shape)}, the network takes N x {channels} x {height} x {width},"
                    " N at least 1: write one with this spec"
                )
            if 4 * math.prod(shape) > LARGEST:
                raise DataError(
                    f"{path} holds batches of {shape[0]} images, more than {LARGEST >> 30} GiB each: write it with fewer a batch"
                )
            missing = next((number for number in range(count) if f"{KEY}_{number}/{KEY}" not in file), None)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} is no TensorFile, or was cut short ({error}): {ANEW}") from error
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no TensorFile: it lacks count or shape; {ANEW}") from error
    if count < 1 or missing is not None:
        held = "it has no batch" if missing is None else f"batch {missing} of {count} is missing"
        raise DataError(f"{path} was cut short: {held}; {ANEW}")
    return count, _batches(path, count, shape)


def _batches(
    path: str | os.PathLike[str], count: int, shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    with h5py.File(path, "r") as file:
        for number in range(count):
            try:
                batch = _batch(path, number, file[f"{KEY}_{number}/{KEY}"], shape)
            except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                raise DataError(f"{path}: batch {number} cannot be read ({error}): {ANEW}") from error
            if not (batch.min() >= 0 and batch.max() <= 1):  # true of no NaN
                raise DataError(
                    f"{path}: batch {number} has values from {batch.min():g} to {batch.max():g}; images for detectkit"
                    f" lie in [0, 1]: {ANEW}"
                )
            yield batch


def _batch(
    path: str | os.PathLike[str], number: int, stored: Any, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    is_here = isinstance(stored, h5py.Dataset) and not (stored.external or stored.is_virtual)
    if not is_here or stored.dtype.kind not in NUMBERS:
        raise DataError(f"{path}: batch {number} has no numbers in it: {ANEW}")
    if stored.shape != shape:
        raise DataError(
            f"{path}: batch {number} has the shape {_sizes(stored.shape or ())}, not {_sizes(shape)}"
        )
    return np.asarray(stored[:], dtype=np.float32)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of no size"
