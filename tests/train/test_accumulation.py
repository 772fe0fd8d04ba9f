"""Gradients averaged over several batches."""

import itertools

import pytest
import torch

from detectkit.train import loop
from detectkit.train.run import set_up

CPU = torch.device("cpu")


def steps(run, count):
    """Train `count` batches."""
    return len(list(itertools.islice(loop.epoch_steps(run), count)))


def weights(run):
    return {name: tensor.detach().clone() for name, tensor in run.state.detector.named_parameters()}


@pytest.mark.spec_field("TrainingConfig.accumulate_batches", "TrainingConfig.batch_size_per_gpu")
def test_three_batches_of_two_step_as_one_of_six(small, tmp_path):
    small.model_config.freeze_bn = True  # else every batch is normalised by itself
    small.training_config.batch_size_per_gpu = 6
    large = set_up(small, tmp_path / "large", name="model", device=CPU)
    before = weights(large)
    assert large.steps == steps(large, 10) == 1
    small.training_config.batch_size_per_gpu, small.training_config.accumulate_batches = 2, 3
    accumulated = set_up(small, tmp_path / "accumulated", name="model", device=CPU)
    assert accumulated.steps == steps(accumulated, 10) == 3
    found, wanted = weights(accumulated), weights(large)
    assert not torch.equal(wanted["output_cov.weight"], before["output_cov.weight"])
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-7)


def test_what_is_left_at_the_end_of_an_epoch_is_a_step_of_its_own(small, tmp_path):
    small.model_config.freeze_bn = True
    small.training_config.accumulate_batches = 2
    pairs = set_up(small, tmp_path / "pairs", name="model", device=CPU)
    start = weights(pairs)
    states, groups = [], []
    for _ in loop.epoch_steps(pairs):
        states.append(weights(pairs))
        groups.append(pairs.group)
    moved = [
        not torch.equal(after["output_cov.bias"], before["output_cov.bias"])
        for before, after in zip([start, *states], states)
    ]
    assert moved == [False, True, True]
    assert groups[:2] == [(0, 2), (2, 1)]  # the group of the next batch: its first batch, and how many
    small.training_config.accumulate_batches = 1
    single = set_up(small, tmp_path / "single", name="model", device=CPU)
    single.state.step = 2
    single.state.detector.load_state_dict(states[1], strict=False)
    assert steps(single, 1) == 1
    found = weights(single)
    assert all(torch.equal(found[name], tensor) for name, tensor in states[2].items())


def test_schedules_count_batches(small, tmp_path):
    soft = small.training_config.learning_rate.soft_start_annealing_schedule
    soft.min_learning_rate, soft.max_learning_rate, soft.soft_start = 1e-4, 1e-2, 0.5
    soft.annealing = 0.9
    rates = {}
    for size in (1, 3):
        small.training_config.accumulate_batches = size
        run = set_up(small, tmp_path / str(size), name="model", device=CPU)
        rates[size] = [loop.current_rate(run) for _ in loop.epoch_steps(run)]
    assert rates[1] == rates[3]
    # After 1, 2 and 3 of six batches: 1/3, 2/3 and all of the way up.
    assert rates[1] == pytest.approx([1e-4 * 100 ** (1 / 3), 1e-4 * 100 ** (2 / 3), 1e-2], rel=1e-5)
