"""Whole runs of a small network: killed, cut, failed and gone on with; by hand they give the same."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from detectkit import report
from detectkit.cli import main
from detectkit.files import locked
from detectkit.train import loop

USAGE, DATA, MODEL, OUTPUT = 2, 4, 5, 6
SMALL = {'arch: "resnet" num_layers: 10 use_batch_norm: true': 'arch: "squeezenet"'}
STAGES = [
    *("convert", "train", "evaluate_float", "prune", "evaluate_pruned", "retrain", "evaluate_retrained"),
    *("calibrate", "export", "evaluate_int8", "latency"),
]
MODELS = (
    *("train/weights/model.safetensors", "train/weights/model-best.safetensors", "prune/pruned.safetensors"),
    *("retrain/weights/model.safetensors", "retrain/weights/model-best.safetensors"),
    *("export/model.onnx", "export/model_int8.onnx", "calibrate/scales.json"),
)
RUN = "import sys; from detectkit.cli import main; sys.stdout = sys.stderr = open(output, 'a'); sys.exit(main(argv))"


def command(place, *options):
    return ["run", "-e", str(place.spec), "-r", str(place.folder), *options]


def models(folder):
    """What is deployed, and what it was made from."""
    return {name: (folder / name).read_bytes() for name in MODELS}


def weights(path):
    """Arrays by name, of a model file of either kind."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def same_weights(one, other):
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


@pytest.fixture
def without_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    monkeypatch.setattr(report, "summary", lambda folder: ([], []))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, draw):
    """A run that has ended; a test that changes it brings it back."""
    place = draw(tmp_path_factory.mktemp("finished"))
    place.write(change=SMALL | {"batches: 3": "batches: 2"})
    assert main(command(place)) == 0
    return place


@pytest.fixture
def trained(tmp_path, draw, without_report):
    """A run that is to end after its training."""
    place = draw(tmp_path)
    place.write("convert", "train", change=SMALL)
    return place


def test_every_stage_is_done_and_the_report_written(finished):
    assert [name for name in STAGES if finished.state(name)["status"] == "done"] == STAGES
    assert (finished.folder / "report.html").stat().st_size > 10_000
    assert "wrote" in (finished.folder / "prune" / "output.txt").read_text()
    assert finished.state("train")["cpu_seconds"] > 0


def test_the_second_run_imports_no_torch(finished, capsys):
    words = [sys.executable, "-X", "importtime", "-m", "detectkit", *command(finished)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0
    assert "nothing to do: all 11 stages are done, and nothing they read has changed" in result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "detectkit.pipeline.plan" in imported
    assert not imported & {"torch", "torchvision", "matplotlib", "onnx", "onnxruntime", "scipy", "sklearn"}


def test_by_hand_the_stages_give_the_same(finished, tmp_path):
    """Each stage's own command line, in another folder."""
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()

    def elsewhere(text):
        return text.replace(str(finished.folder), str(by_hand))

    for name in ("spec.txt", "spec_retrain.txt"):
        (by_hand / name).write_text(elsewhere((finished.folder / name).read_text()))
    for name in ("train", "prune", "retrain", "calibrate", "export", "evaluate_int8"):
        for words in finished.state(name)["commands"]:
            assert main([elsewhere(word) for word in words]) == 0
    for name in MODELS[:-1]:
        assert same_weights(finished.folder / name, by_hand / name)
    for name in ("calibrate/scales.json", "evaluate_int8/results.json"):
        one, other = (
            json.loads(elsewhere((folder / name).read_text())) for folder in (finished.folder, by_hand)
        )
        for value in (one, other):
            value.pop("latency_ms", None)
        assert {key: one[key] for key in one if "latency" not in key} == {
            key: other[key] for key in other if "latency" not in key
        }


def test_a_destroyed_model_fails_the_stage_that_reads_it(finished, without_report, capsys):
    model = finished.folder / "train" / "weights" / "model-best.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert main(command(finished)) == MODEL
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert str(model) in error
    state = finished.state("evaluate_float")
    assert state["status"] == "failed" and f"error: {state['error']}" == error
    model.write_bytes(content)
    assert main(command(finished)) == 0
    assert finished.state("evaluate_float")["status"] == "done"
    assert "1 of 11 stages done" in capsys.readouterr().out


def test_two_runs_in_one_folder(finished, capsys):
    with locked(finished.folder):
        assert main(command(finished)) == USAGE
    expected = "another detectkit run is at work there; wait until it has ended, or use another -r"
    assert capsys.readouterr().err == f"error: {finished.folder}: {expected}\n"


@pytest.mark.parametrize("name", ["a_file", "a_file/run"])
def test_a_folder_that_cannot_be(finished, tmp_path, capsys, name):
    (tmp_path / "a_file").write_text("")
    assert main(["run", "-e", str(finished.spec), "-r", str(tmp_path / name)]) == OUTPUT
    assert capsys.readouterr().err.startswith(f"error: cannot create the folder {tmp_path / name}: ")


def test_a_corrupt_image_fails_the_training_until_it_is_mended(trained, capsys):
    image = sorted(trained.images.iterdir())[0]
    content = image.read_bytes()
    image.write_bytes(content[:-2000])
    assert main(command(trained)) == DATA
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(image) in error
    state = trained.state("train")
    assert state["status"] == "failed" and f"error: {state['error']}" == error
    image.write_bytes(content)
    assert main(command(trained)) == 0
    assert trained.state("train")["status"] == "done"


def test_interrupted_training_goes_on(trained, monkeypatch, capsys):
    """As if it had not been: and from the start again, it is the same once more."""
    last = trained.folder / "train" / "weights" / "model.safetensors"
    note = loop.report

    def interrupt(run, entry):
        os.kill(os.getpid(), signal.SIGINT)
        note(run, entry)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "report", interrupt)
        assert main(command(trained, "--until", "train")) == 130
    assert "everything is saved: the same command goes on from here" in capsys.readouterr().err
    assert trained.state("train")["status"] == "begun" and not last.exists()
    assert main(command(trained, "--until", "train")) == 0
    state = trained.state("train")
    assert state["status"] == "done" and state["restarts"] == 1
    weights_cut = last.read_bytes()
    assert main(command(trained, "--from", "train", "--until", "train")) == 0
    assert trained.state("train")["restarts"] == 0
    assert last.read_bytes() == weights_cut

    trained.write("convert", "train", change=SMALL | {"num_epochs: 2": "num_epochs: 3"})
    assert main(command(trained, "--until", "train")) == 0
    assert trained.state("train")["restarts"] == 1
    history = (trained.folder / "train" / "status.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history if '"epoch"' in line] == [1, 2, 3]


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of so many MiB, or gives the disk another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(mib):
        again = "remount," if os.path.ismount(place) else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{again}size={mib}m", "tmpfs", str(place)]
        with contextlib.suppress(OSError):
            if subprocess.run(words, capture_output=True).returncode == 0:
                return place
        pytest.skip("a small disk cannot be mounted here")

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing(trained, small_disk, capsys):
    trained.folder = small_disk(8) / "run"  # a model of 3 MiB, and a state of three times that
    assert main(command(trained)) == OUTPUT
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.endswith("No space left on device") and str(trained.folder) in error
    small_disk(64)
    assert main(command(trained)) == 0
    assert trained.state("train")["status"] == "done"


# Killed


@pytest.fixture(scope="module")
def start():
    """Starts a run in a process of its own, which has imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    rooms = ("train", "evaluate", "prune", "calibrate", "export", "latency")
    heavy = (
        "train.loop",
        "compress.prune",
        "deploy.calibrate",
        "deploy.export",
        "deploy.latency",
        "report.single",
    )
    context.set_forkserver_preload(
        [f"detectkit.{name}" for name in (*(f"commands.{room}" for room in rooms), *heavy)]
    )

    def process(place):
        values = {"argv": command(place), "output": str(place.root / "killed.txt")}
        started = context.Process(target=exec, args=(RUN, values))
        started.start()
        return started

    return process


def under_way(place):
    """The stage that is being done, if any."""
    for name in STAGES:
        with contextlib.suppress(OSError, ValueError):
            if place.state(name)["status"] == "begun":
                return name
    return None


def kill(process):
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def finish(place, start):
    process = start(place)
    process.join()
    assert process.exitcode == 0, (place.root / "killed.txt").read_text()[-2000:]


def check_same(place, before):
    assert models(place.folder) == before
    assert not list(place.folder.rglob(".*.tmp"))
    assert [name for name in STAGES if place.state(name)["status"] == "done"] == STAGES


def kill_at(place, start, seconds):
    """Kill a run after so many seconds; gives the stage that was under way."""
    process = start(place)
    process.join(seconds)
    killed = process.exitcode is None and kill(process)
    return under_way(place) if killed else "ended"


def kill_in(place, start, name, seconds):
    """Kill a run so many seconds after a stage has begun; gives whether it was still under way."""
    process = start(place)
    while process.exitcode is None and under_way(place) != name:
        time.sleep(0.005)
    process.join(seconds)
    return process.exitcode is None and kill(process) and under_way(place) == name


@pytest.mark.slow
def test_killed_at_random_moments(finished, start):
    before = models(finished.folder)
    shutil.rmtree(finished.folder)
    generator = random.Random(5)
    assert any([kill_in(finished, start, name, generator.uniform(0, 2)) for name in ("train", "retrain")])
    finish(finished, start)
    check_same(finished, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_ten_times(finished, start, seed):
    """Over the whole duration of a run that nobody cuts."""
    before = models(finished.folder)
    shutil.rmtree(finished.folder)
    begin = time.monotonic()
    finish(finished, start)
    took = time.monotonic() - begin
    check_same(finished, before)
    shutil.rmtree(finished.folder)
    generator = random.Random(seed)
    moments = sorted(generator.uniform(0, took) for _ in range(10))
    gaps = [later - earlier for earlier, later in zip([0.0, *moments], moments)]
    cut = [kill_at(finished, start, gap) for gap in gaps]
    finish(finished, start)
    check_same(finished, before)
    print(seed, cut)
    assert cut.count("ended") <= 2  # what was cut in the midst of a stage takes longer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_in_each_stage(finished, start, seed):
    before = models(finished.folder)
    seconds = {name: finished.state(name)["wall_seconds"] for name in STAGES}
    shutil.rmtree(finished.folder)
    generator = random.Random(seed)
    cut = {name: kill_in(finished, start, name, generator.uniform(0, 0.8) * seconds[name]) for name in STAGES}
    finish(finished, start)
    check_same(finished, before)
    print(cut)
    assert sum(cut.values()) >= 9  # a stage may be quicker the second time
