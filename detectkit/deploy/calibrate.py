"""From images to the scale table: what range each value of a network has, and how much 8 bits take from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from detectkit.deploy.scales import Range, ScaleTable
from detectkit.errors import DataError, ModelError
from detectkit.model.detector import Detector
from detectkit.model.graph import folded, measured, quantizable, tensor_name
from detectkit.model.header import INPUT
from detectkit.ops.quantize import (
    channel_amax,
    decibels,
    entropy_amax,
    fake_quantize,
    mse_amax,
    percentile_amax,
    sqnr,
)

BINS = 2048  # at least half of them up to the largest magnitude seen
SAMPLE = 2**16  # values of a tensor that are counted in each batch: one takes as long as 10 for the extremes
HURTS = 20.0  # dB: errors of a tenth of the values


def calibrate(detector: Detector, batches: Iterable[Tensor], *, method: str = "mse") -> ScaleTable:
    """The ranges of all values that 8-bit networks store, over some images.

    The extremes are those of all values; the histograms behind the other methods count an evenly spread part of each
    batch. What is kept does not grow with the number of batches.

    Args:
        detector: in any mode; it stays as it is.
        batches: images [B, c, H, W] in [0, 1] as the network gets them, H and W multiples of the detector's stride.
        method: one of `scales.METHODS`. mse, entropy and percentile (99.99 %): see `ops.quantize`; minmax: all values.
            Images get 1 by any, and outputs the greatest of the range that is known of them.

    Raises:
        DataError: there is no batch.
        ModelError: the network gives values that are not finite.
    """
    known = {output.name: output.known for output in detector.outline.outputs} | {INPUT: (0.0, 1.0)}
    graph = folded(detector).to(memory_format=torch.channels_last)
    read = {node.all_input_nodes[0] for node in quantizable(graph)}
    names = {node: tensor_name(node) for node in measured(graph)}
    seen = {node: _Seen(name, known.get(name)) for node, name in names.items()}
    observer, images = _Observer(graph, seen), 0
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            observer.number = number
            observer.run(batch.float().cpu().contiguous(memory_format=torch.channels_last))
            images += len(batch)
    if images == 0:
        raise DataError("there are no images to calibrate with")
    return ScaleTable(
        tensors={item.name: item.range(method) for item in seen.values()},
        weights=_weight_amaxes(graph),
        method=method,
        images=images,
        means={item.name: item.means() for node, item in seen.items() if node in read},
    )


def table_of(detector: Detector) -> ScaleTable:
    """The ranges that a detector learned in quantisation-aware training (`detector.ranges` is not None).

    Their signal to noise is not known, and `images` is 0.
    """
    assert detector.ranges is not None, "the detector has learned no ranges"
    return ScaleTable(
        tensors={
            name: Range(max(abs(low), abs(high)), low, high, None)
            for name, (low, high) in detector.ranges.learned().items()
        },
        weights=_weight_amaxes(folded(detector)),
        method="qat",
        images=0,
    )


class Layer(NamedTuple):
    """What 8 bits take from a convolution. All ratios are of signal to quantisation noise, in dB."""

    name: str  # of the convolution in the detector, as `export --max-drop` gives it
    input: str  # the tensor that it reads
    range: Range  # of that
    weight: float  # with a scale for each output channel
    weight_per_tensor: float  # with one scale
    sqnr: float | None  # input and weight (by channel) together; None: that of the input is not known
    hurts: bool  # sqnr below HURTS


def layer_report(table: ScaleTable, graph: fx.GraphModule) -> list[Layer]:
    """The convolutions that get 8 bits, the worst first.

    Args:
        table: of this network.
        graph: the network, as `folded` gives it.
    """
    layers = [_layer(table, graph, node) for node in quantizable(graph)]
    return sorted(layers, key=lambda layer: layer.weight if layer.sqnr is None else layer.sqnr)


def _layer(table: ScaleTable, graph: fx.GraphModule, node: fx.Node) -> Layer:
    source, parameter = tensor_name(node.all_input_nodes[0]), f"{node.target}.weight"
    weight, amax = graph.get_parameter(parameter).detach(), torch.tensor(table.weights[parameter])
    signal = _power(weight)
    by_channel = decibels(signal, _power(fake_quantize(weight, amax, axis=0) - weight))
    by_tensor = decibels(signal, _power(fake_quantize(weight, amax.max()) - weight))
    values = table.tensors[source]
    together = None
    if values.sqnr is not None:
        together = decibels(1.0, 10 ** (-values.sqnr / 10) + 10 ** (-by_channel / 10))
    hurts = together is not None and together < HURTS
    return Layer(str(node.target), source, values, by_channel, by_tensor, together, hurts)


def _power(values: Tensor) -> float:
    return float(values.double().square().sum())


def _weight_amaxes(graph: fx.GraphModule) -> dict[str, list[float]]:
    """The ranges of the weights of all convolutions by output channel, by their names in the ONNX file."""
    return {
        f"{name}.weight": channel_amax(layer.weight).tolist()
        for name, layer in graph.named_modules()
        if isinstance(layer, nn.Conv2d)
    }


class _Observer(fx.Interpreter):
    """Runs a network and shows each value that is in `seen` as it comes, before a later layer writes over it."""

    def __init__(self, graph: fx.GraphModule, seen: Mapping[fx.Node, _Seen]) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # torch would add it to the text of our errors
        self.seen, self.number = seen, 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.seen:
            self.seen[n].add(value, self.number)
        return value


class _Seen:
    """The extremes of a tensor's values, the means of its channels, and a histogram of the magnitudes."""

    def __init__(self, name: str, known: tuple[float, float] | None = None) -> None:
        self.name, self.known, self.low, self.high = name, known, math.inf, -math.inf
        self.counts, self.width = torch.zeros(BINS, dtype=torch.float64), 0.0
        self.sums, self.rows = (
            torch.zeros((), dtype=torch.float64),
            0,
        )  # by channel, and how many values that are

    def add(self, values: Tensor, number: int) -> None:
        """Add the values of a batch, whose `number` says which of them are counted."""
        # As they lie in memory: a copy of all would take longer than all the rest.
        laid = values.movedim(1, -1) if values.dim() == 4 else values
        flat = (laid if laid.is_contiguous() else values).flatten()
        low, high = (float(extreme) for extreme in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"{self.name} has values that are not finite on the images to calibrate with:"
                " evaluate the model first, or take another checkpoint"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        self.sums = self.sums + laid.reshape(-1, laid.shape[-1]).sum(0).double()
        self.rows += laid.numel() // laid.shape[-1]
        step = _step(len(flat))
        sample = flat[number % step :: step].abs()
        if self.width > 0:
            self.counts += torch.histc(sample, BINS, min=0, max=self.width * BINS)
        else:
            self.counts[0] += len(sample)

    def means(self) -> list[float]:
        """Of each channel."""
        found: list[float] = (self.sums / self.rows).tolist()
        return found

    def _widen(self, magnitude: float) -> None:
        """Make the histogram reach up to a magnitude: by powers of two, which floats hold without rounding."""
        if self.width == 0:
            self.width = magnitude / BINS
        while self.width * BINS < magnitude:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.width *= 2

    def range(self, method: str) -> Range:
        """The range of the values by one of `scales.METHODS`."""
        magnitude = max(abs(self.low), abs(self.high))
        if magnitude == 0:
            return Range(0.0, self.low, self.high, None)
        if self.known:
            known = max(map(abs, self.known))
            return Range(known, self.low, self.high, self._sqnr(known))
        search = {"entropy": entropy_amax, "percentile": percentile_amax, "mse": mse_amax}
        found = magnitude if method == "minmax" else search[method](self.counts, self.width)
        amax = min(found, magnitude) or magnitude  # 0: none of the values that are counted is more than 0
        return Range(amax, self.low, self.high, self._sqnr(amax))

    def _sqnr(self, amax: float) -> float | None:
        ratio = sqnr(self.counts, self.width, amax)
        return ratio if math.isfinite(ratio) else None


def _step(count: int) -> int:
    """From one counted value to the next: with no factor in common with the tensor's sides, so that none is left out."""
    step = max(round(count / SAMPLE), 1)
    while math.gcd(step, count) > 1:
        step += 1
    return step
