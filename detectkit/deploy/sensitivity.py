"""Which convolutions lose most in 8 bits, and the fewest that must stay float to keep an accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from detectkit.deploy.placement import eight_bit_layers
from detectkit.deploy.qdq import Runtime, quantize
from detectkit.deploy.scales import ScaleTable
from detectkit.errors import ModelError
from detectkit.model.header import INPUT
from detectkit.ops.quantize import decibels
from detectkit.runtimes.onnx import make_session


class Sensitivity(NamedTuple):
    """What a convolution costs when it alone is in 8 bits."""

    layer: str  # as `eight_bit_layers` names it
    sqnr: float  # signal to noise of the output maps against the float network's, dB, of the worst of them


def rank(
    model: onnx.ModelProto,
    table: ScaleTable,
    images: Tensor,
    *,
    runtime: Runtime,
    per_channel: bool = True,
) -> list[Sensitivity]:
    """Every convolution that can run in 8 bits, the most sensitive first.

    Each in turn is the only one, as `quantize` places it for the runtime; ONNX Runtime computes the maps of both.

    Args:
        model: the float network.
        table: its ranges.
        images: [N, c, H, W] float32 in [0, 1], of the network's size; a few that are like those to come.
        runtime: as of `quantize`.
        per_channel: likewise.

    Raises:
        ModelError: as `quantize`.
    """
    exact = _maps(model, images)
    layers = eight_bit_layers(model)
    found = []
    for layer in layers:
        others = [other for other in layers if other != layer]
        alone = quantize(model, table, runtime=runtime, per_channel=per_channel, float_layers=others)
        maps = _maps(alone, images)
        worst = min(_sqnr(one, other) for one, other in zip(exact, maps, strict=True))
        found.append(Sensitivity(layer, worst))
    return sorted(found, key=lambda item: item.sqnr)


def fewest_float_layers(
    measure: Callable[[list[str]], float], ranked: Sequence[str], *, floor: float
) -> list[str]:
    """The fewest layers that have to stay float for an accuracy, found with few measurements.

    First the shortest beginning of the ranking that will do, by bisection; then each layer of it, the least sensitive
    first, is given up if the accuracy holds without it. Where accuracy never falls when a layer becomes float, none of
    the layers that are left can be spared; where the ranking is in the order of what they cost, and costs add up, no
    smaller choice will do.

    Args:
        measure: the accuracy with these layers in float and the others in 8 bits; takes long.
        ranked: layers, the most sensitive first.
        floor: what the accuracy must not be below, in the unit of `measure`.

    Returns:
        The layers, in the order of the ranking.

    Raises:
        ModelError: the accuracy is below even with all of them in float.
    """
    known: dict[tuple[str, ...], float] = {}

    def holds(layers: Sequence[str]) -> bool:
        key = tuple(layers)
        if key not in known:
            known[key] = measure(list(layers))
        return known[key] >= floor

    if holds([]):
        return []
    if not holds(ranked):
        raise ModelError(
            f"with all {len(ranked)} convolutions in float the accuracy is {known[tuple(ranked)]:.2f}, below"
            f" {floor:.2f}: allow a greater drop, or calibrate with more images like those that are measured"
        )
    too_few, enough = 0, len(ranked)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if holds(ranked[:middle]) else (middle, enough)
    kept = list(ranked[:enough])
    for layer in reversed(ranked[:enough]):
        without = [other for other in kept if other != layer]
        if holds(without):
            kept = without
    return kept


def _maps(model: onnx.ModelProto, images: Tensor) -> list[NDArray[np.float32]]:
    session = make_session(model.SerializeToString())
    maps: list[NDArray[np.float32]] = session.run(None, {INPUT: images.numpy()})
    return maps


def _sqnr(exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    noise = np.square(exact.astype(np.float64) - rounded).sum()
    return decibels(float(np.square(exact, dtype=np.float64).sum()), float(noise))
