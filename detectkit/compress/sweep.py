"""What thresholds leave of a network, from the lowest that takes something out to the smallest network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from detectkit.compress.prune import Pruner, find_threshold
from detectkit.compress.yardstick import Yardstick
from detectkit.errors import SpecError
from detectkit.model.detector import Detector

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # of the parameters that a sweep shows


class Swept(NamedTuple):
    """What one threshold leaves: shares of the original, and seconds an image."""

    threshold: float
    shares: tuple[float, float, float]  # of the parameters, the multiplications and the time
    seconds: float


def sweep(pruner: Pruner, yardstick: Yardstick) -> tuple[float, list[Swept]]:
    """The seconds an image of the original, and what thresholds leave of it, by ascending thresholds.

    Raises:
        SpecError: every network is larger than the first of the shares.
    """
    networks = _networks(pruner, yardstick)
    before, *times = yardstick.seconds(yardstick.original, *networks.values())
    found = []
    for (threshold, network), seconds in zip(networks.items(), times, strict=True):
        shares = yardstick.parameters(network), yardstick.macs(network), seconds / before
        found.append(Swept(threshold, shares, seconds))
    return before, found


def _networks(pruner: Pruner, yardstick: Yardstick) -> Mapping[float, Detector]:
    """The networks of a sweep by their thresholds, ascending."""
    found: dict[float, Detector] = {}
    for share in SHARES:
        try:
            threshold = find_threshold(pruner, yardstick.parameters, share, name="target_params")
        except SpecError:  # smaller than the smallest
            if not found:
                raise
            break
        found.setdefault(threshold, pruner.pruned(threshold).detector)
    return found
