"""Which layers of an 8-bit file stay in float, so that it keeps an accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from detectkit.deploy.export import ExportSource, Target, accuracy, float_model, int8_model, sample_images
from detectkit.deploy.scales import ScaleTable
from detectkit.deploy.sensitivity import Sensitivity, fewest_float_layers, rank

RANKED_ON = 16  # training images that say which layers hurt


class FloatLayers(NamedTuple):
    """The choice, and what it was made from."""

    chosen: list[str]
    ranked: list[Sensitivity]  # every layer that can be in 8 bits, the worst first


def choose_float_layers(
    source: ExportSource,
    target: Target,
    ranges: ScaleTable,
    *,
    drop: float,
    device: str | torch.device,
    tell: Callable[[str], None],
) -> FloatLayers:
    """The fewest layers that stay in float so that mAP on the validation images falls by at most `drop` points.

    Args:
        ranges: that the layers in 8 bits are rounded by.
        device: where accuracy is measured.
        tell: is given a line for each measurement, as it is made; they take long.

    Raises:
        DataError: the spec has no validation images, or no class has a labelled box in them.
        ModelError: the accuracy is not kept even with all of them in float.
    """
    target = target._replace(batch=None)
    model = float_model(source, target)
    whole = accuracy(model, source, target, device)
    floor = whole - drop
    tell(f"mAP {whole:.2f} % in float; asked for: {floor:.2f} %")
    images = sample_images(source, RANKED_ON)
    ranked = rank(model, ranges, images, runtime=target.runtime, per_channel=target.per_channel)

    def measure(names: list[str]) -> float:
        points = accuracy(int8_model(model, ranges, target, names), source, target, device)
        tell(f"mAP {points:.2f} % in 8 bits, {len(names)} of {len(ranked)} layers in float")
        return points

    chosen = fewest_float_layers(measure, [layer for layer, _ in ranked], floor=floor)
    return FloatLayers(chosen, ranked)
