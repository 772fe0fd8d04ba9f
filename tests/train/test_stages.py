"""Heads alone before everything, and the schedule that ends a run early."""

import pytest
import torch

from detectkit.errors import SpecError
from detectkit.model import checkpoint
from detectkit.train.loop import train
from detectkit.train.run import set_up
from detectkit.train.stages import begin

CPU = torch.device("cpu")


def tensors(path):
    return checkpoint.load(path).detector.state_dict()


@pytest.fixture
def two_stages(small):
    """Two epochs of the heads at 0.02, then one of everything at 0.01."""
    soft = small.training_config.first_stage.learning_rate.soft_start_annealing_schedule
    soft.min_learning_rate = soft.max_learning_rate = 0.02
    small.training_config.first_stage.num_epochs = 2
    small.training_config.num_epochs = 1
    return small


@pytest.mark.spec_field("FirstStageConfig.num_epochs")
def test_the_first_stage_trains_the_heads_alone(two_stages, tmp_path):
    two_stages.evaluation_config.first_validation_epoch = 3
    run = set_up(two_stages, tmp_path, name="model", device=CPU)
    start = {name: tensor.clone() for name, tensor in run.state.detector.state_dict().items()}
    history = train(run).history
    assert [entry["stage"] for entry in history] == ["heads", "heads", "everything"]
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.02, 0.02, 0.01])
    heads = tensors(tmp_path / "weights/model.epoch-002.safetensors")
    changed = {name for name in start if not torch.equal(start[name], heads[name])}
    assert {name.split(".")[0] for name in changed} == {"output_cov", "output_bbox"}
    whole = tensors(tmp_path / "weights/model.safetensors")
    changed = {name for name in heads if not torch.equal(heads[name], whole[name])}
    assert "backbone.features.0.0.weight" in changed
    assert "backbone.features.0.1.running_mean" in changed
    assert "mean_average_precision" in history[2] and "mean_average_precision" not in history[1]


def test_the_second_stage_begins_with_a_new_optimizer(two_stages, tmp_path):
    run = set_up(two_stages, tmp_path, name="model", device=CPU)
    first, heads = run.state.optimizer, [run.state.detector.output_cov, run.state.detector.output_bbox]
    assert trained(first) == {id(weight) for head in heads for weight in head.parameters()}
    begin(run.state, run.config, 1)
    assert run.state.optimizer is not first
    assert trained(run.state.optimizer) == {id(weight) for weight in run.state.detector.parameters()}


def trained(optimizer):
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}


def test_each_stage_has_its_own_schedule(two_stages, tmp_path):
    soft = two_stages.training_config.first_stage.learning_rate.soft_start_annealing_schedule
    soft.max_learning_rate, soft.soft_start, soft.annealing = 2.0, 0.5, 0.5
    two_stages.evaluation_config.first_validation_epoch = 3
    history = train(set_up(two_stages, tmp_path, name="model", device=CPU)).history
    # The last of three batches of an epoch: 2/6 and 5/6 of the stage, up and down between 0.02 and 2.
    assert history[0]["learning_rate"] == pytest.approx(0.02 * 100 ** (2 / 3), rel=1e-5)
    assert history[1]["learning_rate"] == pytest.approx(0.02 * 100 ** (1 / 3), rel=1e-5)
    assert history[2]["learning_rate"] == pytest.approx(0.01)


def test_nothing_left_to_train(two_stages, tmp_path):
    run = set_up(two_stages, tmp_path, name="model", device=CPU)
    run.state.detector.freeze(name for name in run.state.detector.state_dict() if name.startswith("output"))
    with pytest.raises(SpecError, match="training_config.first_stage: no weight is left to train"):
        begin(run.state, run.config, 0)


@pytest.fixture
def standstill(small):
    """Steps too small to move any weight: the validation cost stays what it is."""
    small.model_config.freeze_bn = True
    small.training_config.num_epochs = 10
    schedule = small.training_config.learning_rate.early_stopping_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate = 1e-32, 1e-30
    schedule.annealing_epochs, schedule.patience_steps = 1, 2
    return small


@pytest.mark.spec_field("EarlyStoppingAnnealingScheduleConfig.patience_steps")
def test_a_cost_that_stands_still_lets_the_rate_fall_and_then_ends_the_run(standstill, tmp_path, caplog):
    run = set_up(standstill, tmp_path, name="model", device=CPU)
    outcome = train(run)
    history = outcome.history
    assert len({entry["validation_cost"] for entry in history}) == 1
    # Best at 1; no better at 3, so the rate falls in epoch 4 (log-linear: the last batch is at 2/3); no better at 5.
    rates = [1e-30, 1e-30, 1e-30, 1e-30 * 0.01 ** (2 / 3), 1e-32]
    assert [entry["learning_rate"] for entry in history] == pytest.approx(rates, rel=1e-4, abs=0)
    assert outcome.last.exists() and run.finished
    standstill.training_config.num_epochs = 20  # which does not take it up again
    again = set_up(standstill, tmp_path, name="model", device=CPU)
    assert again.finished and again.stopped_early
    assert train(again).history == history


def test_a_falling_cost_keeps_the_rate(standstill, tmp_path):
    schedule = standstill.training_config.learning_rate.early_stopping_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate, schedule.patience_steps = 1e-4, 0.02, 1
    standstill.training_config.num_epochs = 3
    run = set_up(standstill, tmp_path, name="model", device=CPU)
    history = train(run).history
    assert run.finished and not run.stopped_early
    costs = [entry["validation_cost"] for entry in history]
    assert costs == sorted(costs, reverse=True)
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.02] * 3)
