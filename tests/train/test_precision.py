import itertools
import math
import re

import pytest
import torch

from detectkit.console import set_up as set_up_console
from detectkit.errors import DetectkitError
from detectkit.spec import CostScalingConfig, ModelConfig
from detectkit.train import loop
from detectkit.train.precision import CostScale, cost_scale, number_format
from detectkit.train.run import set_up

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOAT16 = ModelConfig.TrainingPrecision(backend_floatx=ModelConfig.TrainingPrecision.FLOAT16)


def steps(run, count):
    """Train `count` batches and give the costs."""
    return [float(cost) for cost in itertools.islice(loop.epoch_steps(run), count)]


def weights(run):
    return {name: tensor.clone() for name, tensor in run.state.detector.named_parameters()}


@pytest.mark.spec_field(
    "CostScalingConfig.initial_exponent", "CostScalingConfig.increment", "CostScalingConfig.decrement"
)
def test_the_exponent_rises_with_finite_gradients_and_falls_with_others():
    scale = CostScale(CostScalingConfig(initial_exponent=3, increment=0.5, decrement=2), CPU)
    assert float(scale.factor) == 8
    found = []
    for overflow in (0.0, 0.0, 1.0, 0.0):
        scale.update(torch.tensor(overflow))
        found.append(float(scale.exponent))
    assert found == [3.5, 4.0, 2.0, 2.5]


def test_gradients_are_divided_by_what_the_cost_was_multiplied_with():
    scale = CostScale(CostScalingConfig(), CPU)
    weight = torch.tensor([3.0], requires_grad=True)
    (weight.square().sum() * scale.factor).backward()
    assert weight.grad.item() == 6 * 2**20
    scale.unscale([weight.grad])
    assert weight.grad.item() == 6


@pytest.mark.spec_field("CostScalingConfig.enabled")
def test_scaling_by_a_power_of_two_trains_the_same_and_counts_its_steps(small, tmp_path):
    small.training_config.num_epochs = 1
    plain = set_up(small, tmp_path / "plain", name="model", device=CPU)
    small.training_config.cost_scaling.enabled = True
    small.training_config.cost_scaling.increment = 0
    scaled = set_up(small, tmp_path / "scaled", name="model", device=CPU)
    assert steps(plain, 2) == pytest.approx(steps(scaled, 2), rel=1e-5)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(scaled)[name], tensor, rtol=1e-4, atol=1e-6)
    assert plain.state.scale is None and float(scaled.state.scale.exponent) == 20


def test_gradients_that_are_never_finite_end_the_run(small, tmp_path):
    scaling = small.training_config.cost_scaling
    scaling.enabled, scaling.initial_exponent, scaling.decrement = True, 0, 30
    run = set_up(small, tmp_path, name="model", device=CPU)
    for weight in run.state.detector.parameters():
        weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DetectkitError, match="gradients are no longer finite in epoch 1"):
        loop.train(run)


@pytest.mark.spec_field("ModelConfig.TrainingPrecision.backend_floatx")
def test_what_float16_stands_for(small, tmp_path, monkeypatch):
    assert number_format(ModelConfig.TrainingPrecision(), GPU) == torch.float32
    assert number_format(FLOAT16, GPU) == torch.float16
    for found, name in (({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        small.model_config.training_precision.CopyFrom(FLOAT16)
        run = set_up(small, tmp_path / name, name="model", device=CPU)
        assert run.number_format == getattr(torch, name)
        seen = []
        run.state.detector.output_cov.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
        steps(run, 1)
        assert seen == [run.number_format]


def test_float16_always_scales_with_the_values_of_the_section():
    assert cost_scale(CostScalingConfig(), torch.float32, CPU) is None
    assert cost_scale(CostScalingConfig(), torch.bfloat16, CPU) is None
    assert float(cost_scale(CostScalingConfig(), torch.float16, CPU).exponent) == 20
    assert float(cost_scale(CostScalingConfig(initial_exponent=7), torch.float16, CPU).exponent) == 7


def test_a_step_in_float16_that_overflows_moves_nothing_and_the_next_one_does(small, tmp_path):
    """On the CPU, which computes float16 slowly but by the same rules as a GPU."""
    small.training_config.optimizer.sgd.momentum = 0.9
    run = set_up(small, tmp_path, name="model", device=CPU)
    run.number_format = torch.float16
    scaling = CostScalingConfig(initial_exponent=40, increment=0.5, decrement=28)
    run.state.scale = cost_scale(scaling, run.number_format, CPU)
    before = weights(run)
    (cost,) = steps(run, 1)
    assert math.isfinite(cost) and float(run.state.scale.exponent) == 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    steps(run, 1)
    after = weights(run)
    assert float(run.state.scale.exponent) == 12.5
    assert not torch.equal(after["output_cov.weight"], before["output_cov.weight"])
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_a_cost_that_16_bits_cannot_hold_may_fit_32(small, tmp_path):
    run = set_up(small, tmp_path, name="model", device=CPU)
    torch.nn.init.constant_(run.state.detector.output_cov.bias, math.nan)
    for precision, fix in ((torch.float32, "check the labels$"), (torch.float16, "or train in FLOAT32$")):
        run.number_format, run.state.step = precision, 2  # the last batch of the epoch
        with pytest.raises(
            DetectkitError, match=f"no longer a number in epoch 1: lower max_learning_rate.*{fix}"
        ):
            loop.train(run)


def test_the_log_says_what_runs(small, tmp_path, capfd):
    set_up_console(verbose=False)
    small.training_config.cost_scaling.enabled = True
    set_up(small, tmp_path, name="model", device=CPU)
    assert re.search(r"training in float32, the cost is scaled by 2\^20$", capfd.readouterr().err, re.M)
