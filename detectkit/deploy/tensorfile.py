"""TLT's TensorFile: network inputs in HDF5, from which its tools calibrate 8-bit engines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from detectkit.errors import DataError, OutputError
from detectkit.files import atomic_write

KEY = "_tensorfile_array_key_"


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
