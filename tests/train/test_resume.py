"""Everything at once, cut again and again: the run ends as one that was never cut."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from detectkit import __version__
from detectkit.errors import Interrupted, ModelError, UsageError
from detectkit.model import checkpoint
from detectkit.train import loop, state as states
from detectkit.train.run import set_up

EVERYTHING = """
  num_epochs: 7
  checkpoint_interval: 100
  ema_decay: 0.9
  accumulate_batches: 2
  clip_gradient_norm: 5
  cost_scaling { enabled: true }
  optimizer { sgd { momentum: 0.9 nesterov: true } }
  first_stage {
    num_epochs: 1
    learning_rate {
      soft_start_annealing_schedule { min_learning_rate: 1e-3 max_learning_rate: 1e-2 soft_start: 0 annealing: 0.5 }
    }
  }
  learning_rate {
    early_stopping_annealing_schedule {
      min_learning_rate: 1e-3 max_learning_rate: 0.5 soft_start_epochs: 1 annealing_epochs: 1 patience_steps: 1
    }
  }
"""


@pytest.fixture
def everything(small):
    small.training_config.ClearField("optimizer")
    small.training_config.MergeFrom(text_format.Parse(EVERYTHING, type(small.training_config)()))
    small.model_config.dropout_rate = 0.3
    small.augmentation_config.spatial_augmentation.hflip_probability = 0.5
    return small


def run(experiment, results):
    return loop.train(set_up(experiment, results, name="model", device=torch.device("cpu")))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_of_every_kind_of_state_that_is_cut_ends_the_same(everything, tmp_path, monkeypatch):
    whole = run(everything, tmp_path / "whole")
    step, cuts = loop.train_step, [(0, 0), (1, 1), (2, 2)]

    def stop(run, batch):
        cost = step(run, batch)
        if cuts and (run.state.epoch, run.state.step) == cuts[0]:
            del cuts[0]
            os.kill(os.getpid(), signal.SIGINT)
        return cost

    monkeypatch.setattr(loop, "train_step", stop)
    # Not before the second batch of the pair, not before the second batch of the pair, at the end of the epoch.
    for where in ("epoch 1, step 2 of 3", "epoch 2, step 2 of 3", "epoch 4, step 0 of 3"):
        with pytest.raises(Interrupted, match=where):
            run(everything, tmp_path / "cut")
    cut = run(everything, tmp_path / "cut")
    assert cut.history == whole.history
    assert [entry["stage"] for entry in cut.history][:2] == ["heads", "everything"]
    first, second = (states.read(tmp_path / side / "resume.pt") for side in ("whole", "cut"))
    assert same(first["detector"], second["detector"])
    assert same(first["average"]["detector"], second["average"]["detector"])
    assert first["average"]["steps"] == second["average"]["steps"] == 2 * len(whole.history)
    assert (
        first["plateau"] == second["plateau"] and first["plateau"][2] is not None
    )  # the rate has begun to fall
    assert first["cost_scale_exponent"] == second["cost_scale_exponent"] > 20
    saved = checkpoint.load(cut.last).detector.state_dict()
    assert same(saved, second["average"]["detector"]) and not same(saved, second["detector"])


def test_what_makes_another_run(everything, tmp_path):
    everything.training_config.ClearField("first_stage")
    everything.training_config.num_epochs = 1
    run(everything, tmp_path)
    changes = ["ema_decay: 0.5", "accumulate_batches: 3", "max_boxes_per_image: 9", "optimizer { adam { } }"]
    for change in changes:
        other = type(everything)()
        other.CopyFrom(everything)
        other.training_config.MergeFrom(text_format.Parse(change, type(other.training_config)()))
        with pytest.raises(UsageError, match="training_config differ"):
            run(other, tmp_path)


def test_what_may_change_in_a_run(everything, tmp_path):
    everything.training_config.ClearField("first_stage")
    everything.training_config.num_epochs = 1
    first = run(everything, tmp_path)
    everything.training_config.num_epochs = 2
    everything.training_config.clip_gradient_norm = 1
    everything.training_config.cost_scaling.enabled = False
    second = run(everything, tmp_path).history
    assert second[: len(first.history)] == first.history
    assert "cost_scale_exponent" in second[0] and "cost_scale_exponent" not in second[1]


def test_how_to_prune_may_change_and_the_best_model_stays_the_best(everything, tmp_path):
    everything.training_config.ClearField("first_stage")
    everything.training_config.num_epochs = 1
    everything.pruning_config.threshold = 0.2
    first = run(everything, tmp_path)
    (entry,) = first.history
    everything.pruning_config.target_macs = 0.5
    again = set_up(everything, tmp_path, name="model", device=torch.device("cpu"))
    assert again.state.best == entry["mean_average_precision"]
    everything.evaluation_config.minimum_detection_ground_truth_overlap["square"] = 0.25
    again = set_up(everything, tmp_path, name="model", device=torch.device("cpu"))
    assert again.state.best == -1  # measured otherwise


def test_what_is_said_of_the_data_is_said_in_the_first_training_alone(small, tmp_path, caplog):
    def told(experiment, results):
        caplog.clear()
        outcome = run(experiment, results)
        return "6 training images are few" in caplog.text, outcome

    small.training_config.num_epochs = 1
    said, outcome = told(small, tmp_path / "first")
    assert said
    small.training_config.num_epochs = 2
    said, _ = told(small, tmp_path / "first")  # goes on
    assert not said
    small.model_config.pretrained_model_file = str(outcome.last)
    assert told(small, tmp_path / "other")[0]
    small.model_config.load_graph = True
    assert not told(small, tmp_path / "again")[0]


@pytest.fixture(scope="module")
def kept():
    """The content of a state file by the class of experiment, made once: see `finished`."""
    return {}


@pytest.fixture
def finished(everything, kept, tmp_path):
    """The folder of a run of one epoch, and its spec."""
    everything.training_config.ClearField("first_stage")
    everything.training_config.num_epochs = 1
    if "state" not in kept:
        run(everything, tmp_path)
        kept["state"] = (tmp_path / "resume.pt").read_bytes()
    (tmp_path / "resume.pt").write_bytes(kept["state"])
    return tmp_path, everything


def rewrite(path, change):
    """Change a state and give it the checksum of what it is then."""
    content = states.read(path)
    change(content)
    states.write(path, content)


def test_a_bit_that_is_another_one_is_noticed_wherever_it_is(finished):
    path = finished[0] / "resume.pt"
    whole = path.read_bytes()
    assert states.read(path)["position"] == [1, 0]
    random = np.random.default_rng(0)
    for place in (0, 100, len(whole) - 33, len(whole) - 1, *random.integers(0, len(whole), 20).tolist()):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(changed)
        with pytest.raises(
            ModelError, match="resume.pt (is damaged and cannot be resumed from: delete it|has format)"
        ):
            states.read(path)


def test_a_state_of_another_version_is_told(finished):
    path = finished[0] / "resume.pt"
    rewrite(path, lambda content: content.update(format=2))
    with pytest.raises(ModelError, match="has format 2, this version reads 4"):
        states.read(path)


def test_a_state_of_a_newer_version_goes_on_and_what_is_not_known_is_named(finished, caplog):
    results, experiment = finished

    def newer(content):
        text = content["spec"].replace("training_config {", "training_config { momentum_of_means: 1", 1)
        content.update(written_by="0.9.1", compass=[1, 2], spec=text)

    rewrite(results / "resume.pt", newer)
    assert set_up(experiment, results, name="model", device=torch.device("cpu")).state.epoch == 1
    told = [line for line in caplog.messages if "without effect" in line]
    start = f"{results / 'resume.pt'} was written by detectkit 0.9.1 (this is {__version__}): "
    assert told == [f"{start}not known here, and without effect: compass, training_config.momentum_of_means"]


def test_a_state_whose_spec_cannot_be_read_says_who_wrote_it(finished):
    results, experiment = finished
    rewrite(results / "resume.pt", lambda content: content.update(written_by="0.9.1", spec="a {"))
    with pytest.raises(ModelError, match="its spec cannot be used; it was written by detectkit 0.9.1"):
        set_up(experiment, results, name="model", device=torch.device("cpu"))


def test_a_state_from_before_there_was_a_checksum_goes_on_and_gets_one(finished):
    results, experiment = finished
    path = results / "resume.pt"
    content = states.read(path)
    torch.save(content | {"format": 3}, path)
    assert set_up(experiment, results, name="model", device=torch.device("cpu")).state.epoch == 1
    torch.save(content, path)
    with pytest.raises(ModelError, match="resume.pt is damaged"):
        states.read(path)


BROKEN = {
    "position": [[-(10**9), 0], [1, -1], [1], [1.0, 0], "ab", None],
    "stage": [[0, 2], [-1, 0], [0, -3], [], None],
    "history": [[], [{}], [{"epoch": 2, "cost": 1.0, "learning_rate": 1.0}], [7], None],
    "plateau": [
        [],
        [float("nan"), 0, None, False],
        [1.0, -1, None, False],
        [1.0, 0, "x", False],
        [1.0, 0, None, 1],
    ],
    "detector": [{"a": 1}, {"a": torch.tensor([float("nan")])}, []],
    "frozen": [[1], None],
    "cost_sum": [torch.zeros(3), 0.0],
    "best": [float("nan"), "high"],
    "cost_scale_exponent": [float("inf"), 3],
    "spec": [7, None],
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_part_of_a_state_that_cannot_be_is_named(finished, part):
    path = finished[0] / "resume.pt"
    whole = path.read_bytes()
    changes = [lambda content, value=value: content.update({part: value}) for value in BROKEN[part]]
    for change in (*changes, lambda content: content.pop(part)):
        path.write_bytes(whole)
        rewrite(path, change)
        with pytest.raises(
            ModelError, match=rf"resume.pt is damaged \(its .*{part}.* cannot be used\) .* delete it"
        ):
            states.read(path)


def test_a_state_that_is_none_of_this_run(finished):
    results, experiment = finished
    path = results / "resume.pt"
    whole = path.read_bytes()

    def forget(content):
        content["optimizer"]["state"] = {0: {"momentum_buffer": torch.zeros(7, 7)}}

    changes = [
        lambda content: content.update(position=[1, 3]),  # an epoch has three steps
        lambda content: content.update(position=[10**9, 0]),  # its history has one epoch
        lambda content: content.update(stage=[1, 0]),  # there is one stage
        lambda content: content.update(spec="no spec"),
        lambda content: content.update(average=None),
        lambda content: content["average"].update(steps=-10),
        lambda content: content["average"]["detector"].popitem(),
        lambda content: content["weights"].pop("past"),
        lambda content: content["weights"].update(weights=torch.zeros(5, 2)),
        lambda content: content["weights"].update(steps="many"),
        lambda content: content["optimizer"].clear(),
        lambda content: content["optimizer"]["param_groups"][0]["params"].pop(),
        forget,
    ]
    for change in changes:
        path.write_bytes(whole)
        rewrite(path, change)
        with pytest.raises(ModelError, match="resume.pt is damaged"):
            set_up(experiment, results, name="model", device=torch.device("cpu"))


def test_settings_of_the_optimizer_are_those_of_the_spec(finished):
    results, experiment = finished
    rewrite(
        results / "resume.pt",
        lambda content: content["optimizer"]["param_groups"][0].update(momentum=-4.0, nesterov="?"),
    )
    again = set_up(experiment, results, name="model", device=torch.device("cpu"))
    (group,) = again.state.optimizer.param_groups
    assert group["momentum"] == pytest.approx(0.9) and group["nesterov"] is True


def test_what_a_killed_training_left_goes(finished):
    results, experiment = finished
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (results / "weights").mkdir(exist_ok=True)
    left = [
        results / f".resume.pt.{gone.pid}.tmp",
        results / f"weights/.model.epoch-001.safetensors.{gone.pid}.tmp",
    ]
    for path in left:
        path.write_text("half")
    set_up(experiment, results, name="model", device=torch.device("cpu"))
    assert not any(path.exists() for path in left)
