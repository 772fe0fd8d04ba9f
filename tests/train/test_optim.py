import math

import pytest
import torch
from torch import nn

from detectkit.spec import LearningRateConfig, OptimizerConfig, RegularizerConfig
from detectkit.train import optim


def test_one_adam_step_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    config = OptimizerConfig()
    config.adam.epsilon, config.adam.beta1, config.adam.beta2 = 0.5, 0.9, 0.99
    optimizer = optim.make_optimizer(layer, config)
    optim.set_learning_rate(optimizer, 0.1)
    layer.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # First step: both moments are corrected to the gradient itself, 3 and 3².
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * 3.0 / (3.0 + 0.5))


def test_only_trainable_weights_are_optimised():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    optimizer = optim.make_optimizer(network, OptimizerConfig())
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_learning_rate_reads_the_schedule():
    config = LearningRateConfig()
    schedule = config.soft_start_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate = 1e-6, 1e-2
    schedule.soft_start, schedule.annealing = 0.2, 0.6
    assert optim.learning_rate(config, 0.0) == pytest.approx(1e-6)
    assert optim.learning_rate(config, 0.1) == pytest.approx(1e-4)  # half way in the exponent
    assert optim.learning_rate(config, 0.4) == pytest.approx(1e-2)
    assert optim.learning_rate(config, 0.8) == pytest.approx(math.sqrt(1e-6 * 1e-2))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("NO_REG", 0.0), ("L1", 0.5 * (3 + 4 + 1)), ("L2", 0.5 * (9 + 16 + 1))],
)
def test_regularisation_of_kernels_and_biases_not_of_batch_norm(kind, expected):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -4.0]).reshape(2, 1, 1, 1))
        network[0].bias.copy_(torch.tensor([0.0, 1.0]))
    config = RegularizerConfig(type=kind, weight=0.5)
    cost = optim.regularization_cost(optim.regularized_weights(network), config)
    assert cost.item() == pytest.approx(expected)
