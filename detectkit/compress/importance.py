"""How much each channel matters, by the weights of the layers that make it or by what the cost would miss.

n output channels of a layer or group. Statistics have 32 bits, as the thresholds of a spec, whatever the weights have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detectkit import spec
from detectkit.compress.graph import Group
from detectkit.console import progress
from detectkit.data.batch import Batch
from detectkit.data.records import training_frames
from detectkit.data.workers import loader, training_order
from detectkit.errors import ModelError
from detectkit.heads import Head, make_head
from detectkit.model.detector import Detector
from detectkit.model.operators import Channels, Values, graph_of, kind_of
from detectkit.spec import PruningConfig
from detectkit.train import step

TINY = 1e-30  # keeps the quotients of a layer without weights finite


def norms(detector: Detector) -> dict[str, Tensor]:
    """The L2 norm [n] of each filter of every convolution, bias left out (TLT)."""
    return {
        name: torch.linalg.vector_norm(layer.weight.detach().float(), dim=(1, 2, 3)).cpu()
        for name, layer in detector.named_modules()
        if isinstance(layer, nn.Conv2d)
    }


def batch_norm_scales(detector: Detector) -> dict[str, Tensor]:
    """The size [n] of the scale of each channel of every batch normalisation (Liu et al. 2017, network slimming).

    Raises:
        ModelError: there is none.
    """
    scales = {
        name: layer.weight.detach().float().abs().cpu()
        for name, layer in detector.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    if not scales:
        raise ModelError(
            f"criterion: BATCH_NORM_SCALE needs batch normalisation ({detector.backbone.title}): use NORM or TAYLOR"
        )
    return scales


def taylor(detector: Detector, experiment: spec.Experiment, *, batches: int) -> dict[str, Tensor]:
    """What the cost would change by without a channel, to first order (Molchanov et al. 2019).

    Each channel has a gate of 1 behind its layer: behind the batch normalisation where a convolution has one, for that is
    what pruning takes away. The statistic [n] is the root of the mean over training images of the squared gradient of
    the gate. Batch normalisation stays as it is in detection.

    The cost is the sum over objectives, and over classes where each has a cost of its own, of each cost divided by its mean
    over these images, so that all count alike, as the classes do in mAP: by the weights of the spec, a box cost a hundredth of that of coverage would not be
    seen, and what makes the boxes would go.

    Args:
        experiment: its training images are taken without augmentation; it gives targets and costs their meaning.
        batches: at most so many of `batch_size_per_gpu` images, drawn with `random_seed`.

    Raises:
        DataError: no training images, or one that cannot be read.
    """
    mean = mean_costs(detector, experiment, batches=batches)
    head = make_head(experiment, detector.outline)
    network = copy.deepcopy(detector).eval().requires_grad_(False)
    shares = {name: torch.where(cost > 0, 1 / cost, 0) for name, cost in mean.items()}
    gates = _Gates(network)
    squares: dict[str, Tensor] = {}
    images = 0
    for costs in _costs(network, head, experiment, batches):
        slopes = gates.slopes(
            torch.stack([(shares[name] * cost).sum() for name, cost in costs.items()]).sum()
        )
        images += len(next(iter(slopes.values())))
        for name, slope in slopes.items():
            squares[name] = squares.get(name, 0) + slope.square().sum(0)
    return {name: (square / images).sqrt().cpu() for name, square in squares.items()}


@torch.no_grad()
def mean_costs(detector: Detector, experiment: spec.Experiment, *, batches: int) -> dict[str, Tensor]:
    """The costs of the head by objective on training images, unweighted; arguments and errors as in `taylor`.

    As of `Head.costs`: each [C], or [] where classes share it.
    """
    head = make_head(experiment, detector.outline)
    found = list(_costs(copy.deepcopy(detector).eval(), head, experiment, batches))
    return {name: torch.stack([costs[name] for costs in found]).mean(0) for name in found[0]}


def _costs(
    network: Detector, head: Head[Any], experiment: spec.Experiment, batches: int
) -> Iterator[dict[str, Tensor]]:
    """The costs of training batches by objective."""
    count, drawn = training_batches(experiment, batches, size=spec.batch_size(experiment))
    for batch in progress(drawn, total=count, label="weighing filters", unit="batches"):
        yield step.forward(network, head, batch, experiment.augmentation_config).costs


class _Gates:
    """Multiplies what the gated layers of a network give, image by image and channel by channel, by 1."""

    def __init__(self, network: Detector) -> None:
        self.open: list[tuple[str, Tensor]] = []  # since the last slopes
        for name in _gated(network):
            network.get_submodule(name).register_forward_hook(partial(self._multiply, name))

    def slopes(self, cost: Tensor) -> dict[str, Tensor]:
        """The slope [B, n] of the cost of each of the images that it is the mean of, by the name of the layer."""
        gradients = torch.autograd.grad(cost, [gate for _, gate in self.open])
        found: dict[str, Tensor] = {}
        for (name, _), gradient in zip(self.open, gradients, strict=True):  # a layer may be used twice
            found[name] = found.get(name, 0) + len(gradient) * gradient.flatten(1)
        self.open.clear()
        return found

    def _multiply(self, name: str, _layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        gate = output.new_ones(*output.shape[:2], 1, 1).requires_grad_()
        self.open.append((name, gate))
        return output * gate


def _gated(network: nn.Module) -> list[str]:
    """The batch normalisations, and the convolutions without one behind them."""
    nodes = graph_of(network).graph.nodes
    norms = [node for node in nodes if kind_of(node).values is Values.NORMALISED]
    before = {source.target for node in norms for source in node.all_input_nodes}
    ends = [node.target for node in nodes if kind_of(node).channels is Channels.MADE]
    return list(
        dict.fromkeys([name for name in ends if name not in before] + [node.target for node in norms])
    )


def training_batches(experiment: spec.Experiment, limit: int, *, size: int) -> tuple[int, Iterator[Batch]]:
    """How many batches of `size` training images there are, at most `limit`, and they themselves, drawn with `random_seed`."""
    config = experiment.training_config
    frames = training_frames(experiment.dataset_config, spec.class_names(experiment))
    order = training_order(frames.groups(), size, seed=experiment.random_seed, epoch=0)[: limit * size]
    batches = loader(
        frames, experiment.augmentation_config, batch_size=size, order=order, workers=config.workers
    )
    return len(order) // size, batches


def importance(group: Group, statistics: Mapping[str, Tensor], config: PruningConfig) -> Tensor:
    """The importance [group.period] of the channels of a group: the members' statistics, normalised and combined.

    Args:
        statistics: [n] by layer name; members without an entry do not count.
    """
    rows = []
    for layer, first in group.members:
        if layer in statistics:
            rows.append(_normalized(statistics[layer], config)[first : first + group.width])
    values = torch.stack(rows).reshape(-1, group.period)
    match config.equalization_criterion:
        case PruningConfig.INTERSECTION:
            return values.amin(0)
        case PruningConfig.ARITHMETIC_MEAN:
            return values.mean(0)
        case PruningConfig.GEOMETRIC_MEAN:
            return values.log().mean(0).exp()
        case _:
            return values.amax(0)


def joint_slope(group: Group, statistics: Mapping[str, Tensor]) -> Tensor:
    """What the cost would change by without each of the channels [group.period] of a group, where `statistics` are of `taylor`.

    The root of the sum of the members' squares. They are all in the unit of the cost, so that groups compare as they are.

    Args:
        statistics: [n] by layer name; members without an entry do not count.
    """
    rows = [
        statistics[layer][first : first + group.width]
        for layer, first in group.members
        if layer in statistics
    ]
    return torch.stack(rows).reshape(-1, group.period).square().sum(0).sqrt()


def _normalized(values: Tensor, config: PruningConfig) -> Tensor:
    l2 = config.normalizer == PruningConfig.L2
    size = torch.linalg.vector_norm(values) / len(values) if l2 else values.max()
    return values / size.clamp_min(TINY)
