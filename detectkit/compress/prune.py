"""Narrower layers: which filters stay at a threshold, the network made of them, and the threshold for a wanted size.

The rules are those of TLT's pruning (tlt prune, magnet).
"""

from __future__ import annotations

import bisect
import copy
import difflib
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detectkit import spec
from detectkit.compress.graph import Group, wiring
from detectkit.compress.importance import batch_norm_scales, importance, joint_slope, norms, taylor
from detectkit.compress.statistics import renewed
from detectkit.console import log
from detectkit.errors import ModelError, SpecError
from detectkit.model import checkpoint
from detectkit.model.detector import Detector
from detectkit.spec import PruningConfig

Size = Callable[[Detector], float]  # in any unit; falls as layers get narrower


STEPS = 5  # of criterion TAYLOR on the way to a target


class Width(NamedTuple):
    """Filters of a convolution."""

    layer: str
    before: int
    after: int


class Pruned(NamedTuple):
    """A narrowed network."""

    detector: Detector
    threshold: float | None  # None: of several steps


def prune(
    detector: Detector, config: PruningConfig, *, experiment: spec.Experiment, sizes: Mapping[str, Size]
) -> Pruned:
    """Narrow a network as `pruning_config` says, once; the one that is given stays as it is.

    By criterion TAYLOR a target is approached in `STEPS` equal ratios, and each step judges what the last one has left: to
    first order only a small step is foreseen. At the end batch normalisation gets statistics that suit what is left (`renewed`). The other criteria look at each filter by itself, so that steps change nothing.

    Args:
        experiment: for criterion TAYLOR, whose training images it takes.
        sizes: the share of the original that a network is, by the name of the target, such as "target_params".

    Raises:
        SpecError: a layer to exclude that is not there, a threshold that keeps nothing, a target out of reach.
        ModelError: a network that the criterion does not fit, or whose weights are all 0 or not finite.
        DataError: criterion TAYLOR cannot read the training images.
    """
    pruner = Pruner(detector, config, experiment)
    aim = config.WhichOneof("aim") or "threshold"
    if aim == "threshold":
        return pruner.pruned(config.threshold)
    size, limit = sizes[aim], float(getattr(config, aim))
    if not pruner.in_steps:
        return pruner.pruned(find_threshold(pruner, size, limit, name=aim))
    _check_reach(pruner, size, limit, name=aim)
    for number in range(1, STEPS):
        threshold = find_threshold(pruner, size, math.pow(limit, number / STEPS), name=aim)
        pruner = Pruner(pruner.pruned(threshold).detector, config, experiment)
    found = pruner.pruned(find_threshold(pruner, size, limit, name=aim)).detector
    return Pruned(renewed(found, experiment), None)


class Pruner:
    """The importance of the filters of a network; arguments and errors as in `prune`."""

    def __init__(self, detector: Detector, config: PruningConfig, experiment: spec.Experiment) -> None:
        if detector.ranges is not None:
            log.info(
                "the ranges of 8-bit rounding are left out: they are those of the whole network; enable_qat finds new ones"
            )
            detector = copy.deepcopy(detector)
            detector.ranges = None
        self.detector, self.config = detector, config
        self.criterion = spec.chosen_criterion(config, experiment.dataset_config)
        # A threshold is a person's: it needs statistics between 0 and 1. A target finds its own.
        self.in_steps = spec.has_target(config) and self.criterion == PruningConfig.TAYLOR
        self._outline = copy.deepcopy(detector).to("meta")
        self.wiring = wiring(detector, detector.channels)
        excluded = self._excluded()
        chosen, plain = self._statistics(experiment), norms(detector)
        self.importance: dict[Group, Tensor] = {}  # of the groups that can lose channels
        for group in self.wiring.groups:
            layers = {member.layer for member in group.members}
            if not group.fixed and not layers & excluded:
                # Gates have no batch normalisation.
                statistics = chosen if layers & chosen.keys() else plain
                if self.in_steps:
                    self.importance[group] = joint_slope(group, statistics)
                else:
                    self.importance[group] = importance(group, statistics, config)
        if not self.importance:
            raise SpecError("excluded_layers (-el): they leave nothing to prune; exclude fewer")
        values = torch.cat([torch.zeros(1), *self.importance.values()])
        if not (values.isfinite().all() and values.any()):
            raise ModelError("cannot prune: weights or their gradients are all 0, or not finite; train anew")
        self._thresholds: list[float] = sorted(set(values.tolist()))

    def thresholds(self) -> list[float]:
        """Where the set of kept filters changes, ascending, from 0 to the greatest importance."""
        return self._thresholds

    def kept(self, threshold: float) -> dict[Group, Tensor]:
        """The indices of the channels that stay of every group, ascending.

        Raises:
            SpecError: no channel is above the threshold.
        """
        greatest = self._thresholds[-1]
        if threshold >= greatest:
            raise SpecError(
                f"threshold {threshold:g} (-pth) keeps nothing: the greatest importance of a filter is {greatest:g};"
                " lower it, or give a target instead (--target-params 0.5), which finds it"
            )
        kept = {group: torch.arange(group.width) for group in self.wiring.groups}
        for group, values in self.importance.items():
            kept[group] = retained(values, threshold, width=group.width, config=self.config)
        return kept

    def pruned(self, threshold: float) -> Pruned:
        """The network of the filters that stay at a threshold."""
        kept = self.kept(threshold)
        outputs = {name: _indices(groups, kept) for name, groups in self.wiring.gives.items()}
        inputs = {name: _indices(groups, kept) for name, groups in self.wiring.takes.items()}
        return Pruned(self._narrowed(inputs, outputs), threshold)

    def _narrowed(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Detector:
        tensors = {}
        for name, tensor in self.detector.state_dict().items():
            layer = name.rpartition(".")[0]
            if layer in outputs and tensor.dim():
                tensor = tensor.index_select(0, outputs[layer].to(tensor.device))
            else:
                tensor = tensor.clone()
            # The kernels of a grouped convolution see one group each, and all groups keep the same places.
            if tensor.dim() == 4 and tensor.shape[1] > 1:
                taken = inputs[layer][inputs[layer] < tensor.shape[1]]
                tensor = tensor.index_select(1, taken.to(tensor.device))
            tensors[name] = tensor
        network = copy.deepcopy(self._outline)
        checkpoint.narrow(network, tensors)
        return network

    def _statistics(self, experiment: spec.Experiment) -> Mapping[str, Tensor]:
        match self.criterion:
            case PruningConfig.BATCH_NORM_SCALE:
                return batch_norm_scales(self.detector)
            case PruningConfig.TAYLOR:
                return taylor(self.detector, experiment, batches=self.config.calibration_batches)
            case _:
                return norms(self.detector)

    def _excluded(self) -> set[str]:
        layers = self.detector.named_modules()
        convolutions = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
        for name in self.config.excluded_layers:
            if name not in convolutions:
                near = difflib.get_close_matches(name, convolutions, n=1, cutoff=0)
                raise SpecError(
                    f"excluded_layers (-el): the network has no convolution {name}; did you mean {near[0]}?"
                )
        return set(self.config.excluded_layers)


def widths(before: Detector, after: Detector) -> list[Width]:
    """Of all convolutions, in the order of the layers."""
    convolutions = {name: layer for name, layer in after.named_modules() if isinstance(layer, nn.Conv2d)}
    original = dict(before.named_parameters())
    return [
        Width(name, len(original[f"{name}.weight"]), layer.out_channels)
        for name, layer in convolutions.items()
    ]


def retained(values: Tensor, threshold: float, *, width: int, config: PruningConfig) -> Tensor:
    """The indices of the channels that a group keeps, ascending (TLT).

    Those above the threshold are counted, the count is raised to `min_num_filters` and to a multiple of `granularity`,
    and as many of the greatest importance are kept: some of them may be below the threshold.

    Args:
        values: importance [period]; channels a period apart share it.
        width: channels of the group, a multiple of the period.
    """
    copies = width // len(values)
    count = max(int((values > threshold).sum()) * copies, config.min_num_filters)
    step = math.lcm(config.granularity, copies)
    places = min(-(-count // step) * step, width) // copies
    best = torch.sort(values, descending=True, stable=True).indices[:places].sort().values
    return (torch.arange(copies)[:, None] * len(values) + best).flatten()


def find_threshold(pruner: Pruner, size: Size, limit: float, *, name: str) -> float:
    """The lowest threshold whose network is no larger than `limit`, as short a number as gives the same network.

    Args:
        size: as in `prune`.
        name: of the target, for the error.

    Raises:
        SpecError: every network is larger.
    """
    values = pruner.thresholds()
    index = bisect.bisect_left(
        values, -limit, hi=len(values) - 1, key=lambda value: -size(pruner.pruned(value).detector)
    )
    if index == len(values) - 1:
        _check_reach(pruner, size, limit, name=name)
    return _short(values[index], values[index + 1])


def _check_reach(pruner: Pruner, size: Size, limit: float, *, name: str) -> None:
    least = size(pruner.pruned(pruner.thresholds()[-2]).detector)
    if least > limit:
        raise SpecError(
            f"{name}: {limit:g} cannot be reached: the smallest network is {least:.3g} of the original; lower"
            " min_num_filters (-nf) or granularity (-pg), or exclude fewer layers"
        )


def _short(low: float, high: float) -> float:
    """The number of the fewest digits from `low` to below `high`, also when it is stored in 32 bits."""
    for digits in range(9):
        value = math.ceil(low * 10.0**digits) / 10.0**digits
        if low <= np.float32(value) < high:
            return value
    return low


def _indices(groups: list[Group], kept: Mapping[Group, Tensor]) -> Tensor:
    """The channels that are kept of a concatenation of groups."""
    parts, first = [], 0
    for group in groups:
        parts.append(kept[group] + first)
        first += group.width
    return torch.cat(parts)
