"""What estimates of stages are made of."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PER_DETECTED = 0.003  # seconds of clustering and matching in an image
PER_MIB = 1 / 300  # seconds of writing
TABLES = 0.15  # MiB of what a stage leaves beside its models


class Estimate(NamedTuple):
    """What a stage may take."""

    seconds: float
    mib: float  # that it writes
    freed: float = 0.0  # MiB that go before
    leaves: float = 1.0  # share of the network that the stages after it have


class Basis(NamedTuple):
    """What estimates are computed from. Times are seconds an image, see `pipeline.speed`."""

    training: int  # images to train on
    validation: int
    mib: float  # of the spec's network, its weights in float32
    learning: float  # of that network
    finding: float  # of it, without clustering
    share: float = 1.0  # of that network that earlier stages have left

    @property
    def measuring(self) -> float:
        """Seconds of a pass over the validation images."""
        return self.validation * (self.finding * self.share + PER_DETECTED)


def size_mib(folder: Path) -> float:
    """Of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
