"""`enable_qat` in a run: ranges that move and then stand still, files that hold them, runs that are cut."""

import os
import signal

import pytest
import torch

from detectkit import spec
from detectkit.console import log
from detectkit.errors import Interrupted, UsageError
from detectkit.model import checkpoint
from detectkit.train import loop, state as states
from detectkit.train.run import set_up


@pytest.fixture
def rounding(small, monkeypatch):
    monkeypatch.setattr(loop, "plot", lambda run: None)  # half of the time
    small.model_config.arch = "mobilenet_v1"  # half of the layers, which take the time
    small.model_config.use_batch_norm = True
    small.training_config.enable_qat = True
    small.training_config.num_epochs = 4
    small.training_config.ema_decay = 0.5
    small.evaluation_config.first_validation_epoch = 4
    return small


def start(experiment, results):
    return set_up(experiment, results, name="model", device=torch.device("cpu"))


def moving(detector):
    """Ranges and batch-norm statistics."""
    names = ("ranges.", "running_mean", "running_var")
    return {
        name: tensor.clone()
        for name, tensor in detector.state_dict().items()
        if name.startswith(names[0]) or name.endswith(names[1:])
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.spec_field("TrainingConfig.enable_qat")
def test_ranges_move_for_three_quarters_of_the_run_and_are_saved(rounding, tmp_path, monkeypatch):
    run, step, seen = start(rounding, tmp_path), loop.train_step, []

    def watched(run, batch):
        cost = step(run, batch)
        seen.append(moving(run.state.detector))
        return cost

    monkeypatch.setattr(loop, "train_step", watched)
    outcome = loop.train(run)
    stood = [same(before, after) for before, after in zip(seen, seen[1:])]
    assert stood == [False] * 8 + [True] * 3  # of 12 steps, the last three change nothing from the ninth on
    assert outcome.history[-1]["cost"] < outcome.history[0]["cost"]
    loaded = checkpoint.load(outcome.last).detector
    images = torch.rand(1, 3, 64, 96)
    assert loaded.ranges.learned() == run.state.average.detector.ranges.learned()
    # What was validated and saved is the network in 8 bits.
    assert torch.equal(loaded(images)[1], run.state.average.detector(images)[1])
    assert not torch.equal(loaded(images)[1], loaded.plain(images)[1])


def test_a_run_that_is_cut_ends_the_same(rounding, tmp_path, monkeypatch):
    rounding.training_config.num_epochs = 2
    whole = loop.train(start(rounding, tmp_path / "whole"))
    step, cuts = loop.train_step, [(0, 1), (1, 1)]

    def stop(run, batch):
        cost = step(run, batch)
        if cuts and (run.state.epoch, run.state.step) == cuts[0]:
            del cuts[0]
            os.kill(os.getpid(), signal.SIGINT)
        return cost

    monkeypatch.setattr(loop, "train_step", stop)
    for _ in range(2):
        with pytest.raises(Interrupted):
            loop.train(start(rounding, tmp_path / "cut"))
    cut = loop.train(start(rounding, tmp_path / "cut"))
    first, second = (states.read(tmp_path / side / "resume.pt") for side in ("whole", "cut"))
    assert cut.history == whole.history and first["detector"]["ranges.batches"] == 5  # of 6
    assert same(first["detector"], second["detector"])
    assert same(first["average"]["detector"], second["average"]["detector"])


def test_another_enable_qat_is_another_run(rounding, tmp_path):
    loop.save_state(start(rounding, tmp_path))
    rounding.training_config.enable_qat = False
    with pytest.raises(UsageError, match="training_config differ"):
        start(rounding, tmp_path)


def test_rounding_from_a_float_model_and_back(rounding, tmp_path, caplog):
    rounding.training_config.num_epochs = 1
    rounding.training_config.enable_qat = False
    plain = loop.train(start(rounding, tmp_path / "float"))
    rounding.model_config.pretrained_model_file = str(plain.last)
    rounding.training_config.enable_qat = True
    caplog.set_level("INFO", logger=log.name)
    run = start(rounding, tmp_path / "rounded")
    assert run.state.detector.ranges.batches == 0 and "in 8-bit rounding" in caplog.text
    weights = checkpoint.load(plain.last).detector.state_dict()
    assert same(weights, checkpoint.without_ranges(run.state.detector.state_dict()))
    rounded = loop.train(run)
    rounding.model_config.pretrained_model_file = str(rounded.last)
    rounding.training_config.enable_qat = False
    again = start(rounding, tmp_path / "again")
    assert again.state.detector.ranges is None
    assert same(
        again.state.detector.state_dict(), checkpoint.without_ranges(run.state.average.detector.state_dict())
    )


@pytest.mark.parametrize("stages", ["first_stage", "16 bits"])
def test_rounding_with_what_else_changes_a_step(rounding, tmp_path, stages, monkeypatch):
    rounding.training_config.num_epochs = 1
    if stages == "first_stage":
        rounding.training_config.first_stage.num_epochs = 1
        rounding.training_config.first_stage.learning_rate.CopyFrom(rounding.training_config.learning_rate)
    else:
        monkeypatch.setattr("detectkit.train.run.number_format", lambda *_: torch.bfloat16)
        rounding.model_config.training_precision.backend_floatx = spec.ModelConfig.TrainingPrecision.FLOAT16
        rounding.training_config.accumulate_batches = 2
    run = start(rounding, tmp_path)
    assert torch.isfinite(torch.tensor([entry["cost"] for entry in loop.train(run).history])).all()
    learned = run.state.detector.ranges.learned()
    assert len(learned) == 27 and all(low < high for low, high in learned.values())
