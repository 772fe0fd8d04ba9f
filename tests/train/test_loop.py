"""Real training runs on the tiny experiment, and what is left of them when they are cut."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectkit.console import set_up as set_up_console
from detectkit.errors import DataError, DetectkitError, Interrupted, ModelError, OutputError, UsageError
from detectkit.files import atomic_write
from detectkit.model import checkpoint
from detectkit.spec import load_experiment
from detectkit.train import loop
from detectkit.train.loop import StopRequest, train
from detectkit.train.run import describe, set_up

CPU = torch.device("cpu")


def run(experiment, results, name="model"):
    return train(set_up(experiment, Path(results), name=name, device=CPU))


def weights(path):
    return checkpoint.load(path).detector.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.spec_field("TrainingConfig.num_epochs", "TrainingConfig.checkpoint_interval")
@pytest.mark.spec_field(
    "EvaluationConfig.validation_period_during_training", "EvaluationConfig.first_validation_epoch"
)
def test_a_run_learns_and_leaves_its_files(tiny, tmp_path):
    tiny.training_config.num_epochs = 20
    tiny.training_config.checkpoint_interval = 10
    tiny.training_config.visualizer.enabled = True
    tiny.evaluation_config.validation_period_during_training = 5
    tiny.evaluation_config.first_validation_epoch = 5
    outcome = run(tiny, tmp_path)
    assert outcome.history[-1]["cost"] < 0.5 * outcome.history[0]["cost"]
    validated = [entry["epoch"] for entry in outcome.history if "mean_average_precision" in entry]
    assert validated == [5, 10, 15, 20]  # every 5th from the 5th
    assert outcome.history[-1]["mean_average_precision"] > 0.7
    assert outcome.last == tmp_path / "weights/model.safetensors"
    assert outcome.best == tmp_path / "weights/model-best.safetensors"
    checkpoints = sorted(path.name for path in (tmp_path / "weights").glob("*.epoch-*"))
    assert checkpoints == ["model.epoch-010.safetensors"]  # every 10th, the last under its own name
    for name in ("cost.png", "average_precision.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    *records, ending = [json.loads(line) for line in (tmp_path / "status.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 21))
    assert records[0]["graphical"]["loss"] == outcome.history[0]["cost"]
    measured_classes = {
        record["epoch"]: record["categorical"] for record in records if "categorical" in record
    }
    assert list(measured_classes) == validated
    assert measured_classes[20] == {"average_precision": outcome.history[-1]["average_precision"]}
    assert "epoch" not in ending and ending["message"] == "Training images measured."
    measured = outcome.history[-1]["training_mean_average_precision"]
    assert ending["kpi"] == {"training mean average precision": measured} and 0.7 < measured <= 1
    assert ["training_mean_average_precision" in entry for entry in outcome.history] == [False] * 19 + [True]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = events.Tags()
    wanted = {
        "task_cost",
        "regularization_cost",
        "total_cost",
        "learning_rate",
        "validation_cost",
        "square_AP (in %)",
    }
    assert wanted | {"mean_cost_bar_cov", "cost_autoweight_square_bbox"} <= set(tags["scalars"])
    assert {"image/images", "image/square_cov_gt", "image/square_cov_pred"} <= set(tags["images"])
    measured = events.Scalars("mean average precision (mAP) (in %)")[-1].value
    assert measured == pytest.approx(100 * outcome.history[-1]["mean_average_precision"])


@pytest.mark.spec_field("Experiment.random_seed")
def test_the_seed_alone_changes_the_weights_and_workers_do_not(small, tmp_path):
    small.training_config.num_epochs = 1
    small.augmentation_config.spatial_augmentation.hflip_probability = 0.5
    first = weights(run(small, tmp_path / "a").last)
    small.training_config.workers = 2
    assert equal(first, weights(run(small, tmp_path / "b").last))
    small.random_seed = 8
    assert not equal(first, weights(run(small, tmp_path / "c").last))


def start(spec_path, results):
    command = [sys.executable, "-m", "detectkit", "train", "-e", str(spec_path), "-r", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


STAGES = """
  num_epochs: 4
  ema_decay: 0.9
  accumulate_batches: 2
  first_stage {
    num_epochs: 1
    learning_rate {
      soft_start_annealing_schedule { min_learning_rate: 1e-4 max_learning_rate: 1e-3 soft_start: 0 annealing: 0.5 }
    }
  }
"""


@pytest.fixture(scope="module")
def unbroken(tiny_text, tiny_root, tmp_path_factory):
    """A spec as a person writes it, without the defaults, and the results of its run."""
    text = tiny_text.replace("num_epochs: 2", STAGES).replace('"resnet" num_layers: 10', '"mobilenet_v2"')
    text = text.replace("checkpoint_interval: 1", "checkpoint_interval: 2").replace("fold-*", "fold-000*")
    text = text.replace("batch_size_per_gpu: 4", "batch_size_per_gpu: 2")
    text = text.replace("during_training: 1", "during_training: 5")  # every validation draws curves
    source = f'tfrecords_path: "{tiny_root}/records/*fold-000*" image_directory_path: "{tiny_root}/kitti"'
    path = tmp_path_factory.mktemp("unbroken") / "spec.txt"
    path.write_text(text.replace("validation_fold: 0", f"validation_data_source {{ {source} }}"))
    run(load_experiment(path), path.parent)
    return path, path.parent


@pytest.mark.parametrize("cut", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_cut_and_started_again_ends_with_the_same_weights(unbroken, tmp_path, cut, capfd):
    path, whole_results = unbroken
    process = start(path, tmp_path / "cut")
    wait_for(tmp_path / "cut/resume.pt", process)
    process.send_signal(cut)
    output = process.communicate()[0]
    assert process.returncode == {signal.SIGKILL: -9}.get(cut, 130), output
    assert not (tmp_path / "cut/weights/model.safetensors").exists()
    set_up_console(verbose=False)
    run(load_experiment(path), tmp_path / "cut")
    assert "resuming after epoch" in capfd.readouterr().err
    for name in ("model", "model-best"):
        broken, whole = (
            weights(results / f"weights/{name}.safetensors") for results in (tmp_path / "cut", whole_results)
        )
        assert equal(broken, whole)
    assert list((tmp_path / "cut").glob("**/.*.tmp")) == []


def test_stopping_in_the_middle_of_an_epoch_saves_the_step_once(small, tmp_path, monkeypatch):
    whole = weights(run(small, tmp_path / "whole").last)
    step, save, saved = loop.train_step, loop.save_state, []

    def stop_at_second(run, batch):
        cost = step(run, batch)
        if (run.state.epoch, run.state.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return cost

    def note(run):
        save(run)
        saved.append((run.state.epoch, run.state.step))

    monkeypatch.setattr(loop, "train_step", stop_at_second)
    monkeypatch.setattr(loop, "save_state", note)
    with pytest.raises(Interrupted, match="epoch 2, step 2 of 3"):
        run(small, tmp_path / "cut")
    assert saved == [(1, 0), (1, 2)]  # after the first epoch, and where it was stopped
    monkeypatch.undo()
    assert equal(whole, weights(run(small, tmp_path / "cut").last))


def test_a_second_signal_interrupts_at_once():
    set_up_console(verbose=False)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_a_finished_run_has_nothing_left_to_do(small, tmp_path):
    first = run(small, tmp_path)
    again = run(small, tmp_path)
    assert again.history == first.history


def test_results_of_another_spec_are_refused(small, tmp_path):
    run(small, tmp_path)
    small.model_config.arch = "mobilenet_v1"
    with pytest.raises(UsageError, match="model_config differ"):
        run(small, tmp_path)


def test_resuming_the_same_spec_with_more_epochs_and_other_data(small, tmp_path, caplog):
    run(small, tmp_path)
    small.training_config.num_epochs = 3
    assert [entry["epoch"] for entry in run(small, tmp_path).history] == [1, 2, 3]
    small.training_config.batch_size_per_gpu = 3
    with pytest.raises(UsageError, match="training_config differ"):
        run(small, tmp_path)
    small.training_config.batch_size_per_gpu = 2
    small.dataset_config.ClearField("dataset_split_type")  # the held-out fold is now trained on
    with pytest.raises(UsageError, match="dataset_config differ"):
        run(small, tmp_path)


def test_fewer_epochs_than_done_still_leave_a_model(small, tmp_path):
    small.training_config.num_epochs = 3
    first = run(small, tmp_path)
    first.last.unlink()
    small.training_config.num_epochs = 2
    assert run(small, tmp_path).last.exists()


def test_the_state_is_saved_within_a_long_epoch(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    saved = []
    monkeypatch.setattr(loop, "save_state", lambda run: saved.append((run.state.epoch, run.state.step)))
    run(small, tmp_path)
    assert saved == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_damaged_state_names_the_file(small, tmp_path):
    run(small, tmp_path)
    state = tmp_path / "resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ModelError, match="resume.pt is damaged"):
        run(small, tmp_path)


def test_a_disk_that_is_full_keeps_the_last_state(small, tmp_path, monkeypatch):
    small.training_config.num_epochs = 3
    write = loop.save_state
    with_space = 1

    def fill_disk(run):
        if run.state.epoch > with_space:
            monkeypatch.setattr(Path, "write_bytes", full)
        write(run)

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(loop, "save_state", fill_disk)
    with pytest.raises(OutputError, match="resume.pt.*No space left"):
        run(small, tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.glob("**/.*.tmp")) == []
    assert run(small, tmp_path).history[-1]["epoch"] == 3


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(OutputError, match="cannot write"), atomic_write(target) as path:
        path.write_text("half")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_cost_that_is_no_number_stops_the_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.optim, "learning_rate", lambda *config, **position: float("inf"))
    with pytest.raises(DetectkitError, match="no longer a number in epoch 1"):
        run(small, tmp_path)


@pytest.mark.spec_field("TrainingConfig.max_boxes_per_image")
def test_only_the_largest_boxes_are_trained_on(small, tmp_path):
    small.training_config.max_boxes_per_image = 1
    with pytest.raises(DataError, match="no training box of class bar: max_boxes_per_image: 1 leaves larger"):
        set_up(small, tmp_path, name="model", device=CPU)
    small.dataset_config.target_class_mapping["bar"] = "square"
    del small.cost_function_config.target_classes[1]
    run = set_up(small, tmp_path, name="model", device=CPU)
    kept = [frame.objects.boxes for frame in run.training.frames]
    assert [((boxes[:, 2:] - boxes[:, :2]).tolist()) for boxes in kept] == [
        [[28, 28]]
    ] * 6  # bars are 40 x 16
    assert run.validation is not None
    assert [len(frame.objects.boxes) for frame in run.validation.frames] == [2] * 6


def test_a_class_without_boxes_is_an_error_before_any_work(small, tmp_path):
    del small.dataset_config.target_class_mapping["bar"]
    small.dataset_config.target_class_mapping["barr"] = "bar"
    with pytest.raises(DataError, match="no training box of class bar"):
        set_up(small, tmp_path, name="model", device=CPU)


@pytest.mark.spec_field("ModelConfig.pretrained_model_file")
def test_sixteen_bits_and_pretrained_weights(tiny, tmp_path):
    tiny.training_config.num_epochs = 1
    tiny.model_config.objective_set.cov.prior = 0.5  # a fresh network has far to go
    first = run(tiny, tmp_path / "a")
    tiny.model_config.pretrained_model_file = str(first.last)
    tiny.model_config.training_precision.backend_floatx = tiny.model_config.training_precision.FLOAT16
    second = run(tiny, tmp_path / "b")
    assert second.history[0]["cost"] < first.history[0]["cost"]


def test_the_network_is_described(tiny, tmp_path):
    text = describe(set_up(tiny, tmp_path, name="model", device=CPU))
    # ResNet10 of torchvision's blocks: 4,905,... counted layer by layer in tests/model
    assert text.startswith("resnet 10: 4,9") and "at 96x64, stride 16" in text


def test_labels_and_boxes_that_are_left_out_are_counted_at_the_start(tiny, tmp_path, caplog):
    """As detectkit check says it, for who has not asked it."""
    caplog.set_level("INFO", "detectkit")
    mapping = tiny.dataset_config.target_class_mapping
    del mapping["bar"]
    mapping["squares"] = "bar"
    mapping["Square"] = "bar"
    del mapping["square"]
    mapping["bar"] = "square"
    tiny.augmentation_config.preprocessing.min_bbox_height = 20
    tiny.training_config.max_boxes_per_image = 1
    tiny.evaluation_config.ClearField("minimum_detection_ground_truth_overlap")
    with pytest.raises(DataError, match="max_boxes_per_image: 1 leaves larger ones only"):
        set_up(tiny, tmp_path / "out", name="model", device=CPU)
    assert "max_boxes_per_image: 1 leaves out 18 of 36 labels, the smallest of an image" in caplog.text
    tiny.training_config.max_boxes_per_image = 0
    set_up(tiny, tmp_path / "out", name="model", device=CPU)
    assert "target_class_mapping: no label in the records is called squares" in caplog.text
    assert "all 18 training boxes of square are below min_bbox_width or min_bbox_height" in caplog.text
