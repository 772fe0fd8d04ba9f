"""How long networks take beside each other, in ONNX Runtime on the CPU of this machine."""

from __future__ import annotations

from functools import cached_property

from detectkit.console import progress
from detectkit.deploy.latency import latencies, onnx_run
from detectkit.deploy.onnx import to_onnx
from detectkit.model.detector import Detector

ROUNDS, SECONDS = 100, 3.0  # of a comparison of two networks, at most


class Stopwatch:
    """Times networks made of an original, which is exported once.

    Args:
        height: of the images, in pixels.
        width: likewise.
    """

    def __init__(self, original: Detector, height: int, width: int) -> None:
        self.original, self.height, self.width = original, height, width

    def seconds(self, *networks: Detector) -> list[float]:
        """Seconds an image of each, compared side by side."""
        shown = progress(networks, total=len(networks), label="exporting", unit="networks")
        models = [self._original if network is self.original else self._onnx(network) for network in shown]
        limit = SECONDS * len(networks) / 2
        runs = [onnx_run(model, batch_size=1) for model in models]
        return latencies(runs, rounds=ROUNDS, time_limit=limit)

    def _onnx(self, network: Detector) -> bytes:
        return to_onnx(network, height=self.height, width=self.width)

    @cached_property
    def _original(self) -> bytes:
        return self._onnx(self.original)
