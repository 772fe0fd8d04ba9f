"""Pruning and training in turns on the six pictures of fold 0; a run that is killed ends as one that is not."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format

from detectkit import spec
from detectkit.cli import main
from detectkit.compress import retrain
from detectkit.compress.retrain import prune_and_retrain, save_pruned, turn_of
from detectkit.deploy.stopwatch import Stopwatch
from detectkit.errors import Interrupted, UsageError
from detectkit.heads import Outline, Output
from detectkit.model import checkpoint
from detectkit.model.detector import build, parameters
from detectkit.spec import PruningConfig
from detectkit.train import loop
from detectkit.train.run import set_up


@pytest.fixture(scope="module")
def experiment(tiny_text):
    """Two turns to a quarter of the parameters, one epoch of three batches each."""
    text = tiny_text.replace("fold-*", "fold-000*").replace("validation_fold: 0\n", "")
    text = text.replace("batch_size_per_gpu: 4", "batch_size_per_gpu: 2").replace(
        "num_epochs: 2", "num_epochs: 1"
    )
    return spec.loads(text + "pruning_config { target_params: 0.25 iterations: 2 }")


def share_of(model):
    """Sizes of networks as shares of the parameters of a model."""
    return {"target_params": lambda network: parameters(network) / parameters(model.detector)}


@pytest.fixture(scope="module")
def turns(learnt):
    """Prunes a model, that of `learnt` itself or after a turn, and trains it again."""

    def run(experiment, model, results, config=None):
        config, sizes = config or experiment.pruning_config, share_of(model)
        return prune_and_retrain(model, experiment, config, results, sizes=sizes, teacher=learnt)

    return run


@pytest.fixture(scope="module")
def model(learnt):
    return checkpoint.load(learnt)


@pytest.fixture(scope="module")
def whole(turns, experiment, model, tmp_path_factory):
    """The results folder of an unbroken run."""
    results = tmp_path_factory.mktemp("whole")
    turns(experiment, model, results)
    return results


def final(results):
    return checkpoint.load(results / "iteration_2/weights/model.safetensors").detector


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_turns_of_a_target_have_equal_ratios():
    config = PruningConfig(target_params=0.25, iterations=2, granularity=4)
    assert [turn_of(config, number).target_params for number in (1, 2)] == [0.5, 0.25]
    assert turn_of(config, 1) == PruningConfig(target_params=0.5, granularity=4)
    config = PruningConfig(target_latency=0.1, iterations=3)
    shares = [turn_of(config, number).target_latency for number in (1, 2, 3)]
    assert shares == pytest.approx([0.464159, 0.215443, 0.1], rel=1e-5)
    assert config.target_latency == pytest.approx(0.1)  # stays as it is


def test_turns_of_a_threshold_are_alike():
    for config in (PruningConfig(threshold=0.3, iterations=2), PruningConfig(iterations=2)):
        before = config.threshold
        assert [turn_of(config, number).threshold for number in (1, 2)] == [before, before]
        assert not turn_of(config, 1).HasField("iterations")


def prune_by(path, model, capsys):
    code = main(["prune", "-e", str(path), "-m", str(model), "-o", "out", "-pth", "0.95", "--gpus", "0"])
    return code, *capsys.readouterr()


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """In an own folder, without measuring times."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Stopwatch, "seconds", lambda self, *networks: [1.0 for _ in networks])


def test_prune_writes_the_retraining_into_the_spec(quick, tiny, learnt, write_spec, capsys):
    tiny.pruning_config.retraining.num_epochs = 7
    assert prune_by(write_spec(tiny), learnt, capsys)[0] == 0
    found = spec.load_experiment("out_retrain.txt")
    assert found.training_config.num_epochs == 7 and not found.HasField("pruning_config")
    assert found.model_config.pretrained_model_file == "out.safetensors"
    stored = checkpoint.load("out.safetensors").spec  # it still tells how it was pruned
    assert stored.pruning_config.retraining.num_epochs == 7


def test_a_spec_that_trains_nothing_has_none_for_retraining(quick, tiny, learnt, write_spec, capsys):
    tiny.ClearField("training_config")
    tiny.model_config.pretrained_model_file = str(learnt)
    path = write_spec(tiny)
    code, out, _ = prune_by(path, learnt, capsys)
    assert code == 0 and not Path("out_retrain.txt").exists() and Path("out.safetensors").exists()
    assert out.endswith(
        "wrote out.safetensors; the spec has no training_config, so there is none for retraining\n"
        f"next: detectkit evaluate -e {path} -m out.safetensors\n"
    )
    tiny.pruning_config.iterations = 3
    code, _, error = prune_by(write_spec(tiny), learnt, capsys)
    assert code == 2 and error.endswith(
        "error: pruning_config.iterations is 3: the spec has no training_config for the training between\n"
    )


@pytest.mark.spec_field("Retraining.num_epochs")
def test_turns_are_trained_as_the_retraining_says(turns, experiment, model, tmp_path, monkeypatch):
    """Two epochs where the first training had one; a changed retraining does not prune again."""
    config = PruningConfig(target_params=0.5, iterations=1)
    config.retraining.num_epochs = 2
    outcomes = []

    def watched(run):
        if outcomes:
            outcomes.append(run.epochs)
        else:
            outcomes.append(loop.train(run))
        return outcomes[0]

    monkeypatch.setattr(retrain, "train", watched)
    turns(experiment, model, tmp_path, config)
    assert [entry["epoch"] for entry in outcomes[0].history] == [1, 2]
    config.retraining.num_epochs = 3
    turns(experiment, model, tmp_path, config)
    assert outcomes[1] == 3


def test_a_pruned_file_tells_how_it_was_pruned(model, tmp_path):
    save_pruned(tmp_path / "a.safetensors", model, PruningConfig(target_macs=0.5, granularity=4))
    stored = checkpoint.load(tmp_path / "a.safetensors").spec
    assert stored.pruning_config.WhichOneof("aim") == "target_macs"
    assert (stored.pruning_config.target_macs, stored.pruning_config.granularity) == (0.5, 4)
    assert stored.model_config == model.spec.model_config
    assert not model.spec.HasField("pruning_config")  # stays as it is


@pytest.mark.spec_field("PruningConfig.iterations")
def test_the_network_gets_narrower_and_learns_in_every_turn(model, whole):
    before = model.detector
    for number, least, most in ((1, 0.48, 0.5), (2, 0.23, 0.25)):
        folder = whole / f"iteration_{number}"
        pruned = checkpoint.load(folder / "pruned.safetensors").detector
        trained = checkpoint.load(folder / "weights/model.safetensors").detector
        assert least < parameters(pruned) / parameters(model.detector) <= most
        shapes = [weight.shape for weight in pruned.parameters()]
        assert shapes == [weight.shape for weight in trained.parameters()] and not equal(pruned, trained)
        # What is pruned in a turn is what was trained in the one before.
        assert torch.equal(pruned.output_bbox.bias, before.output_bbox.bias)
        assert not torch.equal(trained.output_bbox.bias, before.output_bbox.bias)
        before = trained
    assert sorted(path.name for path in whole.iterdir()) == ["iteration_1", "iteration_2"]
    coverage, _ = final(whole)(torch.zeros(1, 3, 64, 96))
    assert coverage.shape == (1, 2, 4, 6)


def test_what_is_there_is_not_done_again(turns, experiment, model, whole, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    monkeypatch.setattr(retrain, "prune", lambda *_, **__: pytest.fail("pruned"))
    again = turns(experiment, model, whole)
    assert equal(again.detector, final(whole))
    assert files == {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ({"granularity": 16}, "iteration_1/pruned"),
        ({"target_params": 0.3}, "iteration_1/pruned"),
        ({"iterations": 3}, "iteration_1/pruned"),  # to 0.63 in the first turn
        ({"threshold": 0.5}, "iteration_1/pruned"),
    ],
)
def test_another_pruning_in_the_same_folder_is_refused(turns, experiment, model, whole, change, file):
    other = spec.Experiment()
    other.CopyFrom(experiment)
    for name, value in change.items():
        setattr(other.pruning_config, name, value)
    with pytest.raises(UsageError, match=f"{file}.* was pruned with another pruning_config: use another -r"):
        turns(other, model, whole)


def test_another_model_in_the_same_folder_is_refused(turns, experiment, model, whole):
    with pytest.raises(
        UsageError, match="iteration_1/pruned.* was pruned with another model: use another -r"
    ):
        turns(experiment, model._replace(detector=final(whole)), whole)


class TwoLayers(torch.nn.Module):
    """A network whose output is made by a block without a bias: depthwise, then by point."""

    outline = Outline((Output("map", "block", 0, 1),), (), multiple=1)

    def __init__(self, *kept):
        super().__init__()
        depthwise = torch.nn.Conv2d(len(kept), len(kept), 3, groups=len(kept), bias=False)
        self.block = torch.nn.Sequential(depthwise, torch.nn.Conv2d(len(kept), 2, 1, bias=False))
        values = torch.arange(4.0)[list(kept)]
        with torch.no_grad():
            self.block[0].weight.copy_(values[:, None, None, None].expand(-1, 1, 3, 3))
            self.block[1].weight.copy_((10 + values)[None, :, None, None].expand(2, -1, 1, 1))


def test_what_is_left_of_a_network_is_known_by_whatever_its_outputs_are_made_by():
    network = TwoLayers(0, 1, 3)
    assert retrain._is_left_of(network, TwoLayers(0, 3)) and retrain._is_left_of(network, network)
    assert not retrain._is_left_of(network, TwoLayers(0, 2))
    network.block.add_module("2", torch.nn.BatchNorm2d(2))
    assert not retrain._is_left_of(network, TwoLayers(0, 3))


def test_another_training_in_the_same_folder_is_refused(turns, experiment, model, whole):
    other = spec.Experiment()
    other.CopyFrom(experiment)
    other.training_config.batch_size_per_gpu = 3
    with pytest.raises(UsageError, match="training_config differ"):
        turns(other, model, whole)


EVERYTHING = """
  ema_decay: 0.9
  first_stage {
    num_epochs: 1
    learning_rate {
      soft_start_annealing_schedule { min_learning_rate: 1e-3 max_learning_rate: 1e-2 soft_start: 0 annealing: 0.5 }
    }
  }
"""


def test_a_pruned_model_with_frozen_layers_is_trained_in_two_stages_and_resumed(
    experiment, tmp_path, monkeypatch
):
    changed = spec.loads(spec.dumps(experiment))
    changed.training_config.MergeFrom(text_format.Parse(EVERYTHING, spec.TrainingConfig()))
    changed.model_config.freeze_bn, changed.model_config.freeze_blocks[:] = True, [0, 1]
    torch.manual_seed(0)
    original = build(changed.model_config, ["square", "bar"], 3).eval()
    pruned = retrain.prune(original, PruningConfig(threshold=0.95), experiment=changed, sizes={}).detector
    held = {name for name, weight in pruned.named_parameters() if not weight.requires_grad}
    assert held == {name for name, weight in original.named_parameters() if not weight.requires_grad}
    file = tmp_path / "pruned.safetensors"
    save_pruned(file, checkpoint.Model(pruned, changed, ["square", "bar"]), PruningConfig(threshold=0.95))
    changed.model_config.pretrained_model_file = str(file)  # a spec of one's own, that freezes

    def run(results):
        run = set_up(changed, results, name="model", device=torch.device("cpu"))
        weights = {id(weight) for weight in run.state.detector.parameters()}
        assert {id(weight) for weight in run.state.terms[1].weights} <= weights
        return loop.train(run), run.state

    _, whole = run(tmp_path / "whole")
    train_step = loop.train_step

    def stop(run, batch):
        if (run.state.epoch, run.state.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, batch)

    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(Interrupted, match="epoch 2, step 2 of 3"):
        run(tmp_path / "cut")
    outcome, state = run(tmp_path / "cut")
    assert [entry["stage"] for entry in outcome.history] == ["heads", "everything"]
    assert equal(state.detector, whole.detector) and equal(state.average.detector, whole.average.detector)
    assert equal(checkpoint.load(outcome.last).detector, whole.average.detector)
    before = pruned.state_dict()
    still = {
        name for name, tensor in state.detector.state_dict().items() if torch.equal(tensor, before[name])
    }
    statistics = {name for name in before if name.rpartition(".")[2] in ("running_mean", "running_var")}
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    assert len(held) == 4 and still == held | statistics | counts | {"normalize.mean", "normalize.std"}


def start(path, model, results):
    command = [sys.executable, "-m", "detectkit", "prune", "-e", path, "-m", model, "-r", results]
    return subprocess.Popen(
        [*map(str, command), "-o", str(results / "out"), "--gpus", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("iteration_1/resume.pt", marks=pytest.mark.slow),
        "iteration_2/pruned.safetensors",
    ],
)
def test_a_run_that_is_killed_and_started_again_ends_as_one_that_was_not(
    turns, experiment, model, learnt, whole, tmp_path, caplog, moment
):
    path, results = tmp_path / "spec.txt", tmp_path / "cut"
    path.write_text(spec.dumps(experiment))
    process = start(path, learnt, results)
    wait_for(results / moment, process)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -9, output
    assert not (results / "iteration_2/weights/model.safetensors").exists()
    with caplog.at_level(logging.INFO, "detectkit"):
        last = turns(experiment, model, results)
    assert f"{results / 'iteration_1/pruned.safetensors'} is there already" in caplog.text
    assert equal(last.detector, final(whole)) and equal(final(results), final(whole))
    assert list(results.rglob(".*.tmp")) == []
