import math

import pytest
import torch
from torch import nn

from detectkit.model.detector import build
from detectkit.spec import CostScalingConfig, LearningRateConfig, OptimizerConfig, RegularizerConfig
from detectkit.train import loop, optim
from detectkit.train.precision import CostScale
from detectkit.train.run import set_up


@pytest.mark.spec_field(
    "AdamOptimizerConfig.epsilon", "AdamOptimizerConfig.beta1", "AdamOptimizerConfig.beta2"
)
def test_two_adam_steps_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    config = OptimizerConfig()
    config.adam.epsilon, config.adam.beta1, config.adam.beta2 = 0.5, 0.9, 0.99
    optimizer = optim.make_optimizer(layer, config)
    optim.set_learning_rate(optimizer, 0.1)
    layer.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # First step: both moments are corrected to the gradient itself, 3 and 3².
    first = 2.0 - 0.1 * 3.0 / (3.0 + 0.5)
    assert layer.weight.item() == pytest.approx(first)
    layer.weight.grad = torch.full((1, 1), 1.0)
    optimizer.step()
    mean = (0.9 * 0.1 * 3 + 0.1 * 1) / (1 - 0.9**2)
    square = (0.99 * 0.01 * 9 + 0.01 * 1) / (1 - 0.99**2)
    assert layer.weight.item() == pytest.approx(first - 0.1 * mean / (math.sqrt(square) + 0.5))


@pytest.mark.spec_field(
    "AdamWOptimizerConfig.epsilon",
    "AdamWOptimizerConfig.beta1",
    "AdamWOptimizerConfig.beta2",
    "AdamWOptimizerConfig.weight_decay",
)
def test_adamw_takes_a_share_of_kernels_alone_off_and_then_does_as_adam():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    config = OptimizerConfig()
    adamw = config.adamw
    adamw.epsilon, adamw.beta1, adamw.beta2, adamw.weight_decay = 0.5, 0.8, 0.99, 0.2
    optimizer = optim.make_optimizer(network, config)
    optim.set_learning_rate(optimizer, 0.1)
    expected = {}
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(2.0)
            kept = 2.0 * (1 - 0.1 * 0.2) if name == "0.weight" else 2.0
            mean, square = 0.8 * 0.2 * 3 / (1 - 0.8**2), 0.99 * 0.01 * 9 / (1 - 0.99**2)
            moved = kept - 0.1 * 3.0 / (3.0 + 0.5)
            decayed = moved * (1 - 0.1 * 0.2) if name == "0.weight" else moved
            expected[name] = decayed - 0.1 * mean / (math.sqrt(square) + 0.5)
    for gradient in (3.0, 0.0):
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    assert {name: weight.item() for name, weight in network.named_parameters()} == pytest.approx(expected)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.spec_field("SgdOptimizerConfig.momentum", "SgdOptimizerConfig.nesterov")
def test_three_steps_of_sgd_by_hand(nesterov):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    config = OptimizerConfig()
    config.sgd.momentum, config.sgd.nesterov = 0.5, nesterov
    optimizer = optim.make_optimizer(layer, config)
    optim.set_learning_rate(optimizer, 0.1)
    for gradient in (1.0, 2.0, 0.0):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    velocity = [1.0, 0.5 * 1 + 2, 0.5 * 2.5]
    steps = [g + 0.5 * v for g, v in zip((1.0, 2.0, 0.0), velocity)] if nesterov else velocity
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * sum(steps))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_scaled_step_with_gradients_that_are_no_numbers_changes_nothing(kind):
    config = OptimizerConfig()
    getattr(config, kind).SetInParent()
    layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
    layers[1].load_state_dict(layers[0].state_dict())
    scale = CostScale(CostScalingConfig(initial_exponent=4), torch.device("cpu"))
    optimizers = [optim.make_optimizer(layer, config) for layer in layers]
    for layer, optimizer, used in zip(layers, optimizers, (scale, None), strict=True):
        optim.set_learning_rate(optimizer, 0.1)
        for gradient in (float("inf"), 1.0, float("nan"), 2.0):
            if used is None and not math.isfinite(gradient):
                continue  # the other one must do as if there had been no such step
            for weight in layer.parameters():
                weight.grad = torch.full_like(weight, gradient)
            if used is not None:
                for weight in layer.parameters():
                    weight.grad *= used.factor
            optim.step(optimizer, clip_norm=0.0, scale=used)
    for weight, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(weight, other)
    assert float(scale.exponent) == pytest.approx(4 - 2 * 1 + 2 * 0.005)


@pytest.mark.spec_field("TrainingConfig.clip_gradient_norm")
def test_gradients_are_scaled_down_to_a_norm_over_all_weights(small, tmp_path):
    small.training_config.clip_gradient_norm = 1e-3
    run = set_up(small, tmp_path, name="model", device=torch.device("cpu"))
    before = [weight.detach().clone() for weight in run.state.detector.parameters()]
    next(loop.epoch_steps(run))
    moved = [weight.detach() - old for weight, old in zip(run.state.detector.parameters(), before)]
    # One step of plain gradients at a rate of 0.01.
    assert math.sqrt(sum(float(step.square().sum()) for step in moved)) == pytest.approx(1e-5, rel=0.01)


def test_scaled_gradients_are_clipped_as_they_are_without_the_scale():
    for scale in (None, CostScale(CostScalingConfig(initial_exponent=10), torch.device("cpu"))):
        layer = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(layer.weight)
        config = OptimizerConfig()
        config.sgd.momentum = 0
        optimizer = optim.make_optimizer(layer, config)
        optim.set_learning_rate(optimizer, 1.0)
        layer.weight.grad = torch.tensor([[3.0, 4.0]]) * (1 if scale is None else 2**10)
        optim.step(optimizer, clip_norm=2.5, scale=scale)
        assert layer.weight.tolist() == [pytest.approx([-1.5, -2.0])]  # half of 3 and 4, whose norm is 5


def test_only_trainable_weights_are_optimised():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    optimizer = optim.make_optimizer(network, OptimizerConfig())
    assert len(optimizer.param_groups[0]["params"]) == 2


@pytest.mark.spec_field(
    "SoftStartAnnealingScheduleConfig.min_learning_rate",
    "SoftStartAnnealingScheduleConfig.max_learning_rate",
    "SoftStartAnnealingScheduleConfig.soft_start",
    "SoftStartAnnealingScheduleConfig.annealing",
)
def test_learning_rate_reads_the_schedule():
    config = LearningRateConfig()
    schedule = config.soft_start_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate = 1e-6, 1e-2
    schedule.soft_start, schedule.annealing = 0.2, 0.6
    assert optim.learning_rate(config, 0.0, epochs=50) == pytest.approx(1e-6)
    assert optim.learning_rate(config, 5.0, epochs=50) == pytest.approx(1e-4)  # half way in the exponent
    assert optim.learning_rate(config, 20.0, epochs=50) == pytest.approx(1e-2)
    assert optim.learning_rate(config, 40.0, epochs=50) == pytest.approx(math.sqrt(1e-6 * 1e-2))


@pytest.mark.spec_field(
    "EarlyStoppingAnnealingScheduleConfig.min_learning_rate",
    "EarlyStoppingAnnealingScheduleConfig.max_learning_rate",
    "EarlyStoppingAnnealingScheduleConfig.soft_start_epochs",
    "EarlyStoppingAnnealingScheduleConfig.annealing_epochs",
)
@pytest.mark.parametrize(
    ("position", "annealing_start", "rate"),
    [(0, None, 1e-6), (2, None, 1e-4), (4, None, 1e-2), (9, None, 1e-2), (9, 8, 1e-3), (10, 8, 1e-4), (13, 8, 1e-6)],
)  # fmt: skip
def test_the_early_stopping_schedule_counts_epochs(position, annealing_start, rate):
    config = LearningRateConfig()
    schedule = config.early_stopping_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate = 1e-6, 1e-2
    schedule.soft_start_epochs, schedule.annealing_epochs = 4, 4
    found = optim.learning_rate(config, position, epochs=50, annealing_start=annealing_start)
    assert found == pytest.approx(rate)


@pytest.mark.spec_field("RegularizerConfig.type", "RegularizerConfig.weight")
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
    cost = config.weight * optim.regularization_cost(optim.regularized_weights(network, head=()), config)
    assert cost.item() == pytest.approx(expected)


def test_biases_of_heads_are_not_regularised(tiny):
    network = build(tiny.model_config, ["square", "bar"], 3)
    found = {id(weight) for weight in optim.regularized_weights(network, head=network.head_layers)}
    assert {id(network.output_cov.weight), id(network.output_bbox.weight)} <= found
    assert not {id(network.output_cov.bias), id(network.output_bbox.bias)} & found
