"""The optimiser, the learning rate and the regulariser of `training_config`."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

from detectkit.ops.losses import regularization
from detectkit.ops.schedule import early_stopping_annealing, soft_start_annealing
from detectkit.spec import LearningRateConfig, OptimizerConfig, RegularizerConfig, SgdOptimizerConfig
from detectkit.train.precision import CostScale


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer of the spec, else Adam, over the trainable weights; the rate is set before every step."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    match config.WhichOneof("optimizer"):
        case "sgd":
            return _sgd(weights, config.sgd)
        case "adamw":
            adamw = config.adamw
            kernels = [weight for weight in weights if weight.ndim > 1]
            others = [weight for weight in weights if weight.ndim <= 1]
            decays = ((kernels, adamw.weight_decay), (others, 0.0))
            groups = [{"params": group, "weight_decay": decay} for group, decay in decays if group]
            return AdamW(groups, lr=0.0, betas=(adamw.beta1, adamw.beta2), eps=adamw.epsilon, fused=True)
        case _:
            adam = config.adam
            return Adam(weights, lr=0.0, betas=(adam.beta1, adam.beta2), eps=adam.epsilon, fused=True)


def _sgd(weights: list[nn.Parameter], config: SgdOptimizerConfig) -> SGD:
    optimizer = SGD(weights, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.momentum:
        for weight in weights:  # torch would leave them without values when the first step is left out
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(
    config: LearningRateConfig, position: float, *, epochs: int, annealing_start: int | None = None
) -> float:
    """The rate at `position` in epochs, of `epochs` in all; both are counted from the start of the stage.

    Args:
        annealing_start: the epoch after which the rate of an early-stopping schedule falls, if that was reached.
    """
    if config.WhichOneof("learning_rate") == "early_stopping_annealing_schedule":
        early = config.early_stopping_annealing_schedule
        return early_stopping_annealing(
            position,
            minimum=early.min_learning_rate,
            maximum=early.max_learning_rate,
            soft_start_epochs=early.soft_start_epochs,
            annealing_epochs=early.annealing_epochs,
            annealing_start=annealing_start,
        )
    schedule = config.soft_start_annealing_schedule
    return soft_start_annealing(
        position / epochs,
        minimum=schedule.min_learning_rate,
        maximum=schedule.max_learning_rate,
        soft_start=schedule.soft_start,
        annealing=schedule.annealing,
    )


def step(optimizer: Optimizer, *, clip_norm: float, scale: CostScale | None) -> None:
    """Move the weights by their gradients.

    Args:
        clip_norm: gradients of a greater norm, over all weights, are scaled down to it; 0: never.
        scale: what the gradients were multiplied with; when they are not finite, weights and optimizer stay as they are.
    """
    weights = [
        weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
    ]
    if scale is not None:
        scale.unscale([weight.grad for weight in weights])
    if scale is not None or clip_norm:
        norm = clip_grad_norm_(weights, clip_norm or math.inf)
    if scale is None:
        optimizer.step()
        return
    overflow = (~torch.isfinite(norm)).float()
    # Fused optimizers look at it on the device (as with torch.amp.GradScaler).
    setattr(optimizer, "found_inf", overflow)
    optimizer.step()
    scale.update(overflow)


def regularized_weights(network: nn.Module, *, head: Collection[str]) -> list[Tensor]:
    """Kernels of all convolutions, and biases of those of the backbone (TLT); batch normalisation is not regularised.

    Neither are the biases of the head, unlike TLT's: that of coverage has to reach the share of cells that are covered.

    Args:
        head: the names of the layers of the head.
    """
    return [
        weight
        for layer_name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
        for name, weight in layer.named_parameters()
        if name != "bias" or layer_name.partition(".")[0] not in head
    ]


def regularization_cost(weights: list[Tensor], config: RegularizerConfig) -> Tensor:
    """The sum of |w| or of w², which counts `weight` times; 0 where it does not count."""
    powers = {RegularizerConfig.L1: 1, RegularizerConfig.L2: 2}
    if config.type not in powers or not config.weight:
        return torch.zeros(())
    return regularization(weights, power=powers[config.type], weight=1.0)
