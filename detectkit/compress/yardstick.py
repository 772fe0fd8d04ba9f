"""How large and how slow a network is beside the one that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from detectkit import spec
from detectkit.compress.prune import Size
from detectkit.console import log
from detectkit.model.detector import Detector, gmacs, parameters

MARGIN = 0.03  # times of the same network differ by so much: a target is aimed at from below
Seconds = Callable[..., list[float]]  # of networks: seconds an image of each


class Yardstick:
    """How large networks are beside the original, at the input size of a spec.

    Args:
        seconds: of each of some networks on one image, measured side by side, see `deploy.stopwatch`.
    """

    def __init__(self, original: Detector, experiment: spec.Experiment, seconds: Seconds) -> None:
        pre = experiment.augmentation_config.preprocessing
        self.original, self.seconds = original, seconds
        self.height, self.width = pre.output_image_height, pre.output_image_width
        self._shares: dict[object, float] = {}  # of the time, by the shapes of a network

    @property
    def sizes(self) -> dict[str, Size]:
        """Shares by the name of the target, see `compress.prune.prune`."""
        return {"target_params": self.parameters, "target_macs": self.macs, "target_latency": self.latency}

    def parameters(self, network: Detector) -> float:
        """The share of the parameters."""
        return parameters(network) / parameters(self.original)

    def macs(self, network: Detector) -> float:
        """The share of the multiplications."""
        return self.gmacs(network) / self._gmacs

    def latency(self, network: Detector) -> float:
        """The share of the time and a margin, so that it also holds when it is measured again.

        Networks of the same widths have the same: it is measured once.
        """
        shapes = tuple(weight.shape for weight in network.parameters())
        if shapes not in self._shares:
            before, after = self.seconds(self.original, network)
            self._shares[shapes] = after / before
            log.info(
                f"{self.parameters(network):.4f} of the parameters take {after / before:.4f} of the time"
            )
        return self._shares[shapes] * (1 + MARGIN)

    def gmacs(self, network: Detector) -> float:
        """1e9 multiplications an image."""
        return gmacs(network, self.height, self.width)

    @cached_property
    def _gmacs(self) -> float:
        return self.gmacs(self.original)
