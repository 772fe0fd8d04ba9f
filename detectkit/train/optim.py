"""The optimiser, the learning rate and the regulariser of `training_config`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from detectkit.ops.losses import regularization
from detectkit.ops.schedule import soft_start_annealing
from detectkit.spec import LearningRateConfig, OptimizerConfig, RegularizerConfig


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Adam over the trainable weights; the rate is set before every step."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    adam = config.adam
    return Adam(weights, lr=0.0, betas=(adam.beta1, adam.beta2), eps=adam.epsilon, fused=True)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(config: LearningRateConfig, progress: float) -> float:
    """The rate at `progress` in [0, 1), the share of all steps that are done."""
    schedule = config.soft_start_annealing_schedule
    return soft_start_annealing(
        progress,
        minimum=schedule.min_learning_rate,
        maximum=schedule.max_learning_rate,
        soft_start=schedule.soft_start,
        annealing=schedule.annealing,
    )


def regularized_weights(network: nn.Module) -> list[Tensor]:
    """Kernels and biases of all convolutions, heads included; batch normalisation is not regularised (TLT)."""
    return [
        weight for layer in network.modules() if isinstance(layer, nn.Conv2d) for weight in layer.parameters()
    ]


def regularization_cost(weights: list[Tensor], config: RegularizerConfig) -> Tensor:
    """`weight` x sum of |w| or of w²; 0 for NO_REG."""
    powers = {RegularizerConfig.L1: 1, RegularizerConfig.L2: 2}
    if config.type not in powers or not config.weight:
        return torch.zeros(())
    return regularization(weights, power=powers[config.type], weight=config.weight)
