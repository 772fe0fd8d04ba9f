"""What is done, stale or cut, on commands that need no network: see `FakePlace`."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detectkit.console import StatusLog
from detectkit.errors import DataError, ModelError, OutputError, UsageError
from detectkit.files import locked
from detectkit.pipeline import plan as plans
from detectkit.pipeline import deploying, state as states
from detectkit.pipeline.plan import Action
from detectkit.pipeline.stages import STAGES
from tests.pipeline.conftest import FakePlace

FLOAT = ["convert", "train", "evaluate_float"]
PRUNED = ["prune", "evaluate_pruned", "retrain", "evaluate_retrained"]
INT8 = ["calibrate", "export", "evaluate_int8"]
ALL = [*FLOAT, *PRUNED, *INT8, "latency"]
EVALUATIONS = ["evaluate_float", "evaluate_pruned", "evaluate_retrained", "evaluate_int8"]


def names(steps):
    return [step.stage.name for step in steps]


def of(fake, name):
    return next(step for step in fake.plan() if step.stage.name == name)


@pytest.fixture
def done(fake):
    """A run that has ended."""
    assert fake.run() == ALL
    return fake


def test_a_new_folder_is_all_to_do(fake):
    steps = fake.plan()
    assert names(steps) == ALL and {step.action for step in steps} == {Action.BEGIN}
    assert not fake.folder.exists()


def test_a_second_run_has_nothing_to_do(done):
    assert done.actions() == {} and done.run() == []


@pytest.mark.parametrize("name", ["a*b", "data[1]", "what?"])
def test_a_run_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr("os.fsync", lambda file: None)
    for other in ("aXb", "data1", "whatX"):
        (tmp_path / other / "records").mkdir(parents=True)
        (tmp_path / other / "records" / "tiny-fold-000-of-002").write_text("other")
    (tmp_path / name).mkdir()
    fake = FakePlace(tmp_path / name)
    assert fake.run() == ALL and fake.run() == []
    (tmp_path / "data1/records/tiny-fold-000-of-002").write_text("changed")
    assert fake.actions() == {}
    (fake.labels / "0.txt").write_text("bar 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n")
    assert fake.run(first="convert")[:2] == ["convert", "train"]


@pytest.mark.parametrize("name", ["tiny[1]", "ti*ny", "tiny?"])
def test_a_run_whose_records_have_any_name(fake, name):
    fake.write(change={"records/tiny": f"records/{name}"})
    fake.records = name
    assert fake.run() == ALL and fake.run() == []


def test_a_training_that_was_started_by_hand_is_not_removed_under_it(done):
    with locked(done.folder / "train"), pytest.raises(
        UsageError, match="train: another detectkit run is at work"
    ):
        done.run(first="train")
    assert (done.folder / "train/resume.pt").exists()
    assert done.run(first="train")[0] == "train"


def test_stage_json(done):
    state = done.state("prune")
    assert state["status"] == "done" and state["error"] is None and state["restarts"] == 0
    assert state["title"] == "leaving out filters"
    folder = str(done.folder)
    model, pruned = f"{folder}/train/weights/model-best.safetensors", f"{folder}/prune/pruned.safetensors"
    (command,) = state["commands"]
    assert command == [
        *("prune", "-e", f"{folder}/spec.txt", "-m", model, "-o", pruned, "-r", f"{folder}/prune"),
    ]
    *images, read = state["reads"]  # those to train on judge the filters
    assert len(images) == 2 and images[0].endswith("records/tiny-fold-*") and images[1].endswith("kitti")
    assert read == "train/weights/model-best.safetensors" and state["writes"] == [pruned]
    assert state["wall_seconds"] >= 0 and state["cpu_seconds"] >= 0 and len(state["started"]) == 19


def test_run_json_names_the_stages(done):
    content = json.loads((done.folder / "run.json").read_text())
    assert [name for name, title in content["stages"]] == ALL


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("target_params: 0.6", "target_params: 0.5", [*PRUNED, *INT8, "latency"]),
        ("retraining { num_epochs: 1 }", "retraining { num_epochs: 3 }", [*PRUNED[2:], *INT8, "latency"]),
        ("batches: 3", "batches: 4", [*INT8, "latency"]),
        ("runtime: ONNXRUNTIME", "", [*INT8[1:], "latency"]),
        # The thresholds of clustering are in what DeepStream gets beside the ONNX files.
        ("coverage_threshold: 0.01", "coverage_threshold: 0.02", [*EVALUATIONS, "export", "latency"]),
        ('key: "bar" value: 0.5 }', 'key: "bar" value: 0.6 }', [*EVALUATIONS, "export", "latency"]),
        ("num_epochs: 2", "num_epochs: 3", ["train", "evaluate_float", *PRUNED, *INT8, "latency"]),
    ],
)
def test_a_changed_section_is_done_again_with_what_follows(done, old, new, expected):
    done.write(change={old: new})
    before = done.plan()
    assert set(done.run()) == set(expected)
    assert {step.stage.name for step in before if step.action != Action.NOTHING} >= set(expected)
    assert done.run() == []


def test_what_is_unchanged_in_the_end_is_left(done):
    """What a stage reads is looked at when its turn has come: the same again is no reason to do it again."""
    (done.folder / "prune" / "pruned.safetensors").unlink()
    assert done.actions()["prune"] == "goes on" and done.actions()["retrain"] == "after the others"
    assert done.run() == ["prune"]


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_interval: 1": "checkpoint_interval: 5"},
        {"workers: 0": "workers: 1"},
        {"checkpoint_interval: 1": "visualizer { enabled: true }"},
    ],
)
def test_what_changes_nothing_learned_leaves_a_training_alone(done, change):
    done.write(change=change)
    assert done.actions() == {} and done.run() == []
    new = next(iter(change.values())).split()[0].strip(":")
    assert new in (done.folder / "spec.txt").read_text()


def test_more_epochs_are_trained_on(done):
    done.write(change={"num_epochs: 2": "num_epochs: 4"})
    assert done.actions()["train"] == "goes on"
    assert of(done, "train").why == "training_config.num_epochs was 2, is 4"
    started = done.state("train")["started"]
    assert done.run(last="train") == ["train", "evaluate_float"]
    assert done.state("train")["restarts"] == 1 and done.state("train")["started"] == started
    assert not (done.folder / "prune").exists()  # of the model before: it would be shown beside the new one


def test_fewer_epochs_are_another_training(done):
    done.write(change={"num_epochs: 2": "num_epochs: 1"})
    with pytest.raises(UsageError, match="was not trained on this .training_config.num_epochs was 2, is 1"):
        done.run()
    done.write(change={"retraining { num_epochs: 1": "retraining { num_epochs: 3"})
    done.run()
    done.write()
    assert of(done, "retrain").action == Action.AGAIN


def test_a_default_written_out_is_no_change(done):
    done.write(change={"batches: 3": "batches: 3 tensorrt_version: '10.3.0'"})
    assert done.actions() == {}


def test_another_rate_after_the_training_is_refused(done):
    done.write(change={"max_learning_rate: 1e-3": "max_learning_rate: 2e-3"})
    with pytest.raises(UsageError) as found:
        done.plan()
    assert str(found.value) == (
        f"{done.folder}/train was not trained on this (training_config.learning_rate.soft_start_annealing_schedule"
        ".max_learning_rate was 0.001, is 0.002): use another -r, or --from train to do it again"
    )
    assert done.run(first="train") == ALL[1:]


def test_another_rate_while_it_trains_is_taken_up(done):
    done.change_state("train", status="begun")
    done.write(change={"max_learning_rate: 1e-3": "max_learning_rate: 2e-3"})
    assert done.actions()["train"] == "goes on"


def test_the_network_before_the_pruning_teaches_the_one_after_it(done):
    """Unless the spec says that none does."""
    float_model = "train/weights/model-best.safetensors"
    *_, pruned, teacher = done.state("retrain")["reads"].keys()
    assert (pruned, teacher) == ("prune/pruned.safetensors", float_model)
    assert done.chain.specs["spec_retrain.txt"].training_config.distillation.teacher_model_file == str(
        done.folder / float_model
    )
    none = "distillation { weight: 0 }"
    done.write(change={"retraining { num_epochs: 1": f"retraining {{ num_epochs: 1 {none}"})
    assert set(done.run()) == {*PRUNED[2:], *INT8, "latency"}
    assert list(done.state("retrain")["reads"])[-1] == "prune/pruned.safetensors"


def test_a_teacher_of_the_training_is_read_by_it(fake):
    fake._convert(None)
    (fake.root / "large.safetensors").write_text("1")
    text = f'distillation {{ teacher_model_file: "{fake.root}/large.safetensors" }}'
    fake.write("train", change={"num_epochs: 2": f"num_epochs: 2 {text}"})
    fake.run()
    assert list(fake.state("train")["reads"])[-1] == str(fake.root / "large.safetensors")


def test_retraining_with_another_rate_is_done_again(done):
    """A retraining is short, and only what the spec says of it has changed."""
    schedule = (
        "learning_rate { soft_start_annealing_schedule { min_learning_rate: 1e-5 max_learning_rate: 1e-4 } }"
    )
    done.write(change={"retraining { num_epochs: 1": f"retraining {{ num_epochs: 1 {schedule}"})
    assert of(done, "retrain").action == Action.AGAIN
    assert set(done.run()) == {*PRUNED[2:], *INT8, "latency"}


@pytest.mark.parametrize(
    "change, shown",
    [
        ({"random_seed: 7": "random_seed: 8"}, "random_seed was 7, is 8"),
        (
            {"batch_size_per_gpu: 4": "batch_size_per_gpu: 2"},
            "training_config.batch_size_per_gpu was 4, is 2",
        ),
        ({"num_layers: 10": "num_layers: 18"}, "model_config.num_layers was 10, is 18"),
        (
            {"validation_fold: 0": "validation_fold: 1"},
            "dataset_config.validation_fold was 0, is 1",
        ),
        (
            {"contrast_scale_max: 0.1": "contrast_scale_max: 0.2 hue_rotation_max: 5"},
            "augmentation_config.color_augmentation.hue_rotation_max was not set, is 5;"
            " augmentation_config.color_augmentation.contrast_scale_max was 0.1, is 0.2",
        ),
    ],
)
def test_the_folder_of_another_spec_is_refused(done, change, shown):
    done.write(change=change)
    before = sorted(path.read_bytes() for path in done.folder.rglob("*") if path.is_file())
    with pytest.raises(UsageError) as found:
        done.run()
    assert str(found.value) == (
        f"{done.folder} holds the run of another spec ({shown}): use another -r, or --from train to do it again"
    )
    assert before == sorted(path.read_bytes() for path in done.folder.rglob("*") if path.is_file())
    assert done.run(first="train") == ALL[1:]


def test_many_changes_are_counted(done):
    rectangle = "crop_left: 1 crop_top: 1 crop_right: 90 crop_bottom: 60"
    done.write(change={"output_image_channel: 3": f"output_image_channel: 3 {rectangle}"})
    with pytest.raises(UsageError, match=r"crop_right was not set, is 90; .* and 1 more\)|and 1 more\)"):
        done.plan()


def test_changed_labels_are_refused_after_a_training(done):
    (done.labels / "0.txt").write_text("bar 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n")
    with pytest.raises(UsageError) as found:
        done.plan()
    assert str(found.value) == (
        f"{done.folder}/train was not trained on this ({done.labels} changed): use another -r, or --from convert to do it"
        " again"
    )
    assert done.run(first="convert") == ALL


@pytest.mark.parametrize("pattern", ["ROOT/records/*", "ROOT/./records//tiny*", "ROOT/records/t?ny-fold-*"])
def test_records_are_those_of_the_conversion_however_they_are_named(fake, pattern):
    """Known before the conversion is done again, which would write over those that were trained on."""
    fake.write(change={"ROOT/records/tiny-fold-*": pattern})
    assert fake.run() == ALL
    record = next((fake.root / "records").iterdir())
    before = record.read_bytes()
    (fake.labels / "0.txt").write_text("bar 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n")
    with pytest.raises(UsageError, match=f"train was not trained on this .{fake.labels} changed"):
        fake.run()
    assert record.read_bytes() == before


def test_changed_records_are_refused_after_a_training(fake):
    fake.write("train", "prune")
    fake._convert(None)
    assert fake.run() == ["train", "evaluate_float", *PRUNED, "latency"]
    shard = next((fake.root / "records").iterdir())
    shard.write_text("others")
    with pytest.raises(UsageError) as found:
        fake.run()
    assert str(found.value) == (
        f"{fake.folder}/train was not trained on this ({fake.root}/records/tiny-fold-* changed): use another -r, or"
        " --from train to do it again"
    )


def test_changed_images_are_refused_after_a_training(done):
    (done.images / "0.png").write_text("other pixels")
    with pytest.raises(UsageError, match="was not trained on this .* changed"):
        done.plan()


def test_a_training_without_anything_to_lose_begins_anew(fake):
    """What made it fail was mended: no model and no state is there yet."""
    fake.fails["train"] = DataError("0.png is broken")
    with pytest.raises(DataError):
        fake.run()
    assert fake.state("train")["status"] == "failed" and fake.state("train")["error"] == "0.png is broken"
    (fake.images / "0.png").write_text("whole")
    fake.fails.clear()
    assert fake.run() == ALL  # the conversion has read the size of the picture
    assert fake.state("train")["restarts"] == 0


def test_a_stage_that_failed_is_gone_on_with(fake):
    fake.fails["prune"] = ModelError("no filter is left")
    with pytest.raises(ModelError):
        fake.run()
    assert fake.done == [*FLOAT, "prune"] and fake.state("prune")["error"] == "no filter is left"
    assert (of(fake, "prune").action, of(fake, "prune").why) == (Action.GO_ON, "failed")
    fake.fails.clear()
    assert fake.run() == ALL[3:]
    assert fake.state("prune")["error"] is None and fake.state("prune")["restarts"] == 1


def test_a_stage_that_was_cut_is_gone_on_with(done):
    for name in ("train", "export"):
        done.change_state(name, status="begun", wall_seconds=5.0)
    assert of(done, "train").why == "was cut" and of(done, "export").action == Action.AFTER
    assert done.run() == ["train", "export"]  # what follows reads the same as before
    assert 5 <= done.state("train")["wall_seconds"] < 15


@pytest.mark.parametrize(
    "name", ["convert", "train", "evaluate_float", "retrain", "calibrate", "export", "latency"]
)
def test_what_was_deleted_is_made_again(done, name):
    state = done.state(name)
    path = state["writes"][-1]
    for file in Path(path).parent.glob(Path(path).name):
        file.unlink()
    assert of(done, name).why == f"{path} is missing"
    assert done.run() == [name]
    assert done.run() == []


def test_a_deleted_stage_is_begun(done):
    shutil.rmtree(done.folder / "calibrate")
    assert of(done, "calibrate").action == Action.BEGIN
    assert done.run() == ["calibrate"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}'])
def test_a_broken_state_is_of_no_run_but_of_no_other_either(done, text):
    (done.folder / "calibrate" / "stage.json").write_text(text)
    assert done.run() == ["calibrate"]


def test_files_of_another_are_left_alone(fake):
    (fake.folder / "prune").mkdir(parents=True)
    (fake.folder / "prune" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as found:
        fake.run()
    assert str(found.value) == (
        f"{fake.folder}/prune holds files that no run has made: use another -r, or move them away"
    )
    assert [path.name for path in fake.folder.iterdir()] == ["prune"]


def test_a_file_in_the_place_of_a_folder_is_left_alone(fake):
    fake.folder.mkdir()
    (fake.folder / "prune").write_text("years of work")
    with pytest.raises(UsageError, match="holds files that no run has made"):
        fake.run()


def test_a_state_that_was_being_written_when_all_ended_is_no_file_of_another(fake):
    (fake.folder / "convert").mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = fake.folder / "convert" / f".stage.json.{gone.pid}.tmp"
    left.write_text('{"na')
    assert fake.run() == ALL
    assert not left.exists()


def test_what_another_process_is_writing_in_a_stage_is_left_to_it(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "weights").mkdir()
    for folder in (tmp_path, tmp_path / "weights"):
        for process in (gone.pid, os.getppid()):
            (folder / f".resume.pt.{process}.tmp").touch()
    states.clear_half_written(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".*")} == {
        f".resume.pt.{os.getppid()}.tmp",
        f"weights/.resume.pt.{os.getppid()}.tmp",
    }


@pytest.mark.parametrize("name", ["spec.txt", "spec_retrain.txt"])
def test_a_spec_of_ones_own_is_not_overwritten(fake, name):
    fake.folder.mkdir()
    (fake.folder / name).write_text("# years of work\n" + fake.spec.read_text())
    with pytest.raises(UsageError, match=f"{name} is of no run, and a run would overwrite it"):
        fake.run()
    assert (fake.folder / name).read_text().startswith("# years")


def test_the_spec_of_a_run_that_cannot_be_read(done):
    (done.folder / "spec.txt").write_text("random_seed: yes")
    with pytest.raises(UsageError, match="spec.txt cannot be read as the spec of a run: use another -r"):
        done.run()
    assert done.run(first="train") == ALL[1:]


def test_the_run_goes_on_by_its_own_spec(done):
    done.spec = done.folder / "spec.txt"
    assert done.run() == []


# --from and --until


@pytest.mark.parametrize(
    "first, last, expected",
    [
        (None, "convert", ["convert"]),
        (None, "train", FLOAT),
        (None, "prune", [*FLOAT, "prune", "evaluate_pruned"]),
        (None, "evaluate_float", FLOAT),
        (None, "export", ALL),
        ("prune", None, ALL[3:]),
        ("latency", None, ["latency"]),
        ("retrain", "retrain", ["retrain", "evaluate_retrained"]),
        ("evaluate_float", "train", ["evaluate_float"]),
    ],
)
def test_a_part_of_the_run(fake, first, last, expected):
    if first:
        fake.run()
    assert fake.run(first, last) == expected


def test_until_goes_on_later(fake):
    assert fake.run(last="train") == FLOAT
    assert fake.run() == ALL[3:]


def test_from_keeps_what_is_before_and_clears_what_is_after(done):
    before = done.state("train")
    (done.folder / "retrain" / "left.txt").write_text("left")
    (done.folder / "prune" / "left.txt").write_text("left")
    steps = {step.stage.name: step.action for step in done.plan(first="prune")}
    assert [name for name in ALL if steps[name] == Action.NOTHING] == FLOAT
    assert {steps[name] for name in ALL[3:]} == {Action.AGAIN}
    assert done.run("prune", "prune") == ["prune", "evaluate_pruned"]
    assert not list(done.folder.rglob("left.txt")) and done.state("train") == before
    assert not (done.folder / "retrain").exists()
    assert done.run() == ALL[5:]


@pytest.mark.parametrize(
    "first, last, message",
    [
        ("pruning", None, f"--from pruning: there is no such stage; the stages are {', '.join(ALL)}"),
        (None, "qat", f"--until qat: the spec has no section for it; the stages are {', '.join(ALL)}"),
        ("prune", "train", "--from prune comes after --until train"),
    ],
)
def test_stages_that_cannot_be(fake, first, last, message):
    with pytest.raises(UsageError) as found:
        fake.plan(first, last)
    assert str(found.value) == message


# Specs with fewer and other sections


def test_names_are_distinct_and_every_stage_is_wanted_by_some_spec():
    known = [stage.name for stage in STAGES]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    "sections, more, expected",
    [
        (["train"], "", [*FLOAT[1:], "latency"]),
        (["convert", "train"], "", [*FLOAT, "latency"]),
        (["train", "prune"], "", [*FLOAT[1:], *PRUNED, "latency"]),
        (["train", "calibrate", "export"], "", [*FLOAT[1:], *INT8, "latency"]),
        (["train", "prune", "calibrate"], "", [*FLOAT[1:], *PRUNED, "calibrate", "latency"]),
        (["train"], "export_config { data_type: FP16 }", [*FLOAT[1:], "export", "evaluate_fp16", "latency"]),
        (["train"], "export_config { }", [*FLOAT[1:], "export", "evaluate_fp32", "latency"]),
        (
            ["train"],
            "calibration_config { quantization_aware_training { num_epochs: 1 } } export_config { data_type: INT8 }",
            [*FLOAT[1:], "qat", "evaluate_qat", *INT8, "latency"],
        ),
        (
            ["train"],
            "pruning_config { target_params: 0.5 iterations: 2 }",
            [*FLOAT[1:], "prune", "evaluate_pruned", "latency"],
        ),
    ],
)
def test_a_spec_runs_what_it_has_sections_for(fake, sections, more, expected):
    fake._convert(None)
    fake.write(*sections, more=more)
    assert fake.run() == expected
    assert fake.run() == []


def without_training(fake):
    """The spec starts from a model of its own."""
    model = fake.root / "mine.safetensors"
    model.write_text("weights")
    text = fake.spec.read_text()
    begin = text.index("training_config")
    text = text[:begin] + text[text.index("evaluation_config") :]
    fake.spec.write_text(text.replace("model_config {", f'model_config {{ pretrained_model_file: "{model}"'))
    return model


def test_evaluation_alone(fake):
    fake._convert(None)
    fake.write("train")
    model = without_training(fake)
    assert fake.run() == ["evaluate_float", "latency"]
    assert fake.state("evaluate_float")["commands"][0][3:5] == ["-m", str(model)]
    model.write_text("other weights")
    assert of(fake, "evaluate_float").why == f"{model} changed"
    assert fake.run() == ["evaluate_float", "latency"]


def test_a_model_is_pruned_calibrated_and_exported_without_training(fake):
    fake._convert(None)
    fake.write("train", "calibrate", "export", more="pruning_config { target_params: 0.5 }")
    without_training(fake)
    assert fake.run() == ["evaluate_float", "prune", "evaluate_pruned", *INT8, "latency"]
    pruned = str(fake.folder / "prune" / "pruned.safetensors")
    assert fake.state("calibrate")["commands"][0][3:5] == ["-m", pruned]


def test_without_validation_images_nothing_is_measured(fake):
    fake.write("convert", "train", change={"validation_fold: 0": ""})
    assert fake.run() == ["convert", "train", "latency"]


def test_without_a_best_model_the_last_one_counts(fake):
    fake.write("convert", "train")
    fake.run()
    (fake.folder / "train" / "weights" / "model-best.safetensors").unlink()
    assert fake.run() == ["evaluate_float", "latency"]
    assert fake.state("evaluate_float")["commands"][0][4].endswith("train/weights/model.safetensors")


def test_pruning_in_turns_hangs_on_the_training(fake):
    """It trains itself, so the data and the epochs count."""
    fake._convert(None)
    prune = "pruning_config { target_params: 0.5 iterations: 2 retraining { num_epochs: 1 } }"
    fake.write("train", more=prune)
    fake.run()
    fake.write("train", more=prune.replace("num_epochs: 1", "num_epochs: 2"))
    assert fake.run() == ["prune", "evaluate_pruned", "latency"]
    assert len(fake.state("prune")["reads"]) == 3


# Engines


@pytest.fixture
def machine(monkeypatch):
    """What the machine has; nothing at first."""
    has = {"gpu": False, "tensorrt": True, "ahead": True, "version": "10.9"}
    monkeypatch.setattr(deploying, "has_gpu", lambda: has["gpu"])
    monkeypatch.setattr(deploying, "has_tensorrt", lambda: has["tensorrt"])
    monkeypatch.setattr(deploying, "builds_ahead", lambda: has["ahead"])
    monkeypatch.setattr(plans, "versions", lambda: {"TensorRT": has["version"]})
    return has


ENGINE = "export_config { data_type: INT8 runtime: RUNTIME engine_config { } }"
ENGINE_STAGES = [*FLOAT, *INT8, "engine", "latency"]


@pytest.mark.parametrize(
    "runtime, source, exports",
    [("TENSORRT", "model_int8.onnx", 2), ("ONNXRUNTIME", "model_int8_tensorrt.onnx", 3)],
)
def test_an_engine_is_built_of_what_tensorrt_runs(fake, machine, runtime, source, exports):
    fake.write("convert", "train", "calibrate", more=ENGINE.replace("RUNTIME", runtime))
    assert fake.run() == ENGINE_STAGES
    assert len(fake.state("export")["commands"]) == exports
    assert fake.state("engine")["commands"][0][3:5] == ["-m", str(fake.folder / "export" / source)]
    assert fake.run() == []


def test_what_a_machine_cannot_do_is_skipped_until_it_can(fake, machine):
    fake.write("convert", "train", "calibrate", more=ENGINE.replace("RUNTIME", "TENSORRT"))
    fake.run()
    state = fake.state("evaluate_engine")
    assert (state["status"], state["error"]) == ("skipped", "an engine runs on a GPU, and there is none here")
    assert not any("engine" in path for path in fake.state("latency")["reads"])
    assert fake.actions() == {}
    machine["gpu"] = True
    assert fake.actions() == {"evaluate_engine": "to do", "latency": "again"}
    assert fake.run() == ["evaluate_engine", "latency"]
    assert fake.state("evaluate_engine")["status"] == "done" and fake.run() == []


def test_without_tensorrt_the_rest_is_done(fake, machine):
    machine["tensorrt"] = False
    fake.write("convert", "train", "calibrate", more=ENGINE.replace("RUNTIME", "TENSORRT"))
    assert fake.run() == [name for name in ENGINE_STAGES if name != "engine"]
    assert (
        "TensorRT is not installed" in fake.state("engine")["error"] and fake.count == len(ENGINE_STAGES) - 1
    )
    assert fake.run() == []
    machine["tensorrt"] = True
    assert fake.run() == ["engine"]


def test_an_engine_config_that_is_added_builds_an_engine(fake, machine):
    plain = ENGINE.replace("engine_config { }", "").replace("RUNTIME", "TENSORRT")
    fake.write("convert", "train", "calibrate", more=plain)
    fake.run()
    fake.write("convert", "train", "calibrate", more=ENGINE.replace("RUNTIME", "TENSORRT"))
    assert fake.run() == ["engine"]  # the ONNX file is the same


def test_an_engine_alone_is_built_again_for_what_is_its_own(fake, machine):
    spec = ENGINE.replace("RUNTIME", "TENSORRT")
    fake.write("convert", "train", "calibrate", more=spec)
    fake.run()
    fake.write(
        "convert",
        "train",
        "calibrate",
        more=spec.replace("engine_config { }", "engine_config { max_batch_size: 4 }"),
    )
    assert fake.run() == ["engine"]
    machine["version"] = "10.13"
    assert of(fake, "engine").why == "TensorRT changed"
    assert fake.run() == ["engine"]


def test_a_tensorrt_that_needs_a_gpu_builds_nothing_without_one(fake, machine):
    machine["ahead"] = False
    fake.write("convert", "train", "calibrate", more=ENGINE.replace("RUNTIME", "TENSORRT"))
    assert fake.run()[-1] == "latency"
    assert "builds engines on a GPU" in fake.state("engine")["error"]


# What stages read


def test_the_layers_that_stay_in_float_hang_on_the_images(fake):
    fake._convert(None)
    fake.write("train", "calibrate", more="export_config { data_type: INT8 max_drop: 1 }")
    fake.run()
    assert str(fake.root / "kitti") in fake.state("export")["reads"]


def test_the_retraining_hangs_on_what_pruning_has_left(fake):
    """As its status file says; the others of the run have no such figure."""
    text = "pruning_config { target_params: 0.6 }"
    fake.write("train", more=text)
    fake.run()

    def rate():
        config = fake.chain.specs["spec_retrain.txt"].training_config
        return config.learning_rate.soft_start_annealing_schedule.max_learning_rate

    whole = rate()
    status = StatusLog(fake.folder / "prune" / "status.jsonl")
    status.write("Starting pruning.", status="STARTED")
    assert rate() == whole
    for left, factor in ((0.0, 2), (1.0, 0.5)):
        status.write("Pruning complete.", status="SUCCESS", kpi={"mean_average_precision_left": left})
        assert rate() == pytest.approx(factor * whole)
    with open(fake.folder / "prune" / "status.jsonl", "a") as file:
        file.write('{"kpi": {"mean_average')  # cut by a crash
    assert rate() == pytest.approx(0.5 * whole)


def test_pruning_by_weights_reads_no_images(fake):
    fake._convert(None)
    fake.write("train", more="pruning_config { target_params: 0.5 criterion: NORM }")
    without_training(fake)
    fake.run()
    assert list(fake.state("prune")["reads"]) == [str(fake.root / "mine.safetensors")]


def test_a_conversion_hangs_on_the_validation_fold_where_it_changes_the_others(fake):
    change = {'output_filename: "': 'sample_modifier_config { max_training_samples: 2 } output_filename: "'}
    fake.write("convert", "train", change=change)
    fake.run(last="convert")
    fake.write("convert", "train", change=change | {"validation_fold: 0": "validation_fold: 1"})
    assert fake.actions()["convert"] == "again"  # nothing is trained: no other spec's run is lost


# Another place, another current folder


def test_a_folder_that_was_moved_is_done(done):
    done.folder = done.folder.rename(done.root / "moved")
    assert done.actions() == {} and done.run() == []


def test_from_another_current_folder_it_is_done(done, monkeypatch):
    monkeypatch.chdir(done.root)
    done.folder = Path("run")
    assert done.actions() == {}
    (done.root / "link").symlink_to(done.root / "run")
    done.folder = Path("link")
    assert done.actions() == {}


# Cut between two lines


def test_a_removal_that_is_cut_leaves_no_half(done, monkeypatch):
    def cut(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(states, "_remove", cut)
        with pytest.raises(KeyboardInterrupt):
            done.run(first="latency")
    assert not (done.folder / "latency").exists() and list(done.folder.glob(".latency.*.tmp"))
    assert done.run() == ["latency"]
    assert not list(done.folder.glob(".*.tmp"))


def test_nobody_begins_in_a_folder_while_it_is_removed(done, monkeypatch):
    rename, refused = Path.rename, []

    def meanwhile(path, target):
        with pytest.raises(UsageError, match="another detectkit run is at work there"), locked(path):
            pass
        refused.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", meanwhile)
    assert done.run(first="latency") == ["latency"]
    assert refused == ["latency"]


def test_a_linked_folder_is_cleared_with_what_it_leads_to(done):
    (done.folder / "latency").rename(done.root / "elsewhere")
    (done.folder / "latency").symlink_to(done.root / "elsewhere")
    assert done.run(first="latency") == ["latency"]
    assert not (done.root / "elsewhere").exists() and not (done.folder / "latency").is_symlink()


def test_the_spec_for_8_bits_names_the_best_model_that_there_is(fake):
    """Before the training nobody knows whether a validation makes one."""
    fake._convert(None)
    fake.write("train", more="calibration_config { quantization_aware_training { num_epochs: 1 } }")
    train = fake._train

    def without_best(args):
        train(args)
        (args.results_dir / "weights" / "model-best.safetensors").unlink()

    fake._train = without_best
    fake.run()
    assert "train/weights/model.safetensors" in (fake.folder / "spec_qat.txt").read_text()


def test_the_spec_of_a_run_is_the_last_one_it_was_given(done):
    before = (done.folder / "spec.txt").read_text()
    (done.folder / "spec.txt").write_text(before.replace("epochs", "epochs ", 1) + "# cut")
    assert done.run() == [] and (done.folder / "spec.txt").read_text() == before


def test_a_bug_in_a_stage_is_told(fake):
    fake.fails["prune"] = KeyError("layer1")
    with pytest.raises(KeyError):
        fake.run()
    assert (fake.state("prune")["status"], fake.state("prune")["error"]) == ("failed", "KeyError: 'layer1'")


def test_a_full_disk_under_what_is_printed(fake):
    fake.fails["train"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="cannot write .*/train/output.txt: No space left on device"):
        fake.run()


def test_a_process_that_outlives_the_run_does_not_keep_the_folder(fake):
    reader, writer = os.pipe()
    with locked(fake.folder):
        child = os.fork()
        if not child:
            os.write(writer, b"!")
            signal.pause()
            os._exit(0)
        os.read(reader, 1)
    try:
        with locked(fake.folder):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
