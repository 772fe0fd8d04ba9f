"""Weights & Biases and ClearML with the real libraries, offline; each part is skipped where its library is missing."""

import json
import logging
import os
import struct
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from detectkit import spec, trackers
from detectkit.console import log
from detectkit.trackers import TensorBoard, training_trackers, wandb_tracker, without_key

KEY = "0123456789abcdef0123456789abcdef01234567"
PICTURE = Image.fromarray(np.full((8, 12, 3), 77, np.uint8))


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The warnings so far."""
    monkeypatch.setattr(log, "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def wandb_config(tiny, monkeypatch, tmp_path):
    """The section of the tiny spec, enabled and offline."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = tiny.training_config.visualizer.wandb_config
    config.enabled, config.mode = True, config.OFFLINE
    return config


def start(experiment, results, *, first_step=0):
    """The one tracker that the spec asks for."""
    (tracker,) = training_trackers(experiment, results / "events", first_step=first_step)
    return tracker


def wait_for(condition):
    """What the condition gives, once it is something: wandb's own process writes on after the run is finished."""
    deadline = time.monotonic() + 60
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def records(folder):
    """What the finished offline run in a folder recorded."""
    (path,) = wait_for(lambda: list(folder.glob("offline-run-*/run-*.wandb")))

    def finished():
        found = list(parsed(path.read_bytes()))
        return found if any(record.WhichOneof("record_type") == "exit" for record in found) else []

    return wait_for(finished)


def parsed(data):
    """The messages in blocks of LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def history(folder):
    """Values by step and key."""
    found = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            values = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            found[values["_step"]] = values
    return found


@pytest.mark.spec_field(
    "WandBConfig.enabled", "WandBConfig.project", "WandBConfig.entity", "WandBConfig.name"
)
@pytest.mark.spec_field("WandBConfig.tags", "WandBConfig.notes", "WandBConfig.wandb_dir", "WandBConfig.mode")
def test_a_wandb_run_is_what_the_spec_says(tiny, wandb_config, tmp_path, warnings):
    wandb_config.project, wandb_config.entity, wandb_config.name = "cells", "lab", "first try"
    wandb_config.tags[:] = ["resnet", "small"]
    wandb_config.notes = "to see whether it works"
    wandb_config.wandb_dir = str(tmp_path / "elsewhere")
    tracker = start(tiny, tmp_path / "results")
    tracker.scalars({"task_cost": 0.5, "bar_AP (in %)": 12.5}, 3)
    tracker.images({"image/bar_preds": [PICTURE, PICTURE]}, 3)
    tracker.scalars({"task_cost": 0.25}, 7)
    tracker.close()
    assert warnings() == []
    folder = tmp_path / "elsewhere" / "wandb"
    (run,) = [record.run for record in records(folder) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.entity, run.display_name) == ("cells", "lab", "first try")
    assert (list(run.tags), run.notes) == (["resnet", "small"], "to see whether it works")
    shown = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert shown["training_config"]["batch_size_per_gpu"] == 4
    found = history(folder)
    assert sorted(found) == [3, 7]
    assert (found[3]["task_cost"], found[3]["bar_AP (in %)"], found[7]["task_cost"]) == (0.5, 12.5, 0.25)
    assert found[3]["image/bar_preds.count"] == 2
    picture, *_ = folder.glob("offline-run-*/files/media/images/image/bar_preds_*.png")
    with Image.open(picture) as image:
        assert image.size == (12, 8) and image.getpixel((5, 5)) == (77, 77, 77)
    wandb_config.enabled = False
    assert training_trackers(tiny, tmp_path, first_step=0) == []


def test_wandb_files_lie_in_the_results(tiny, wandb_config, tmp_path):
    start(tiny, tmp_path / "results").close()
    assert list((tmp_path / "results" / "wandb").glob("offline-run-*"))


@pytest.mark.spec_field("WandBConfig.key")
def test_the_key_opens_the_run_and_is_nowhere_else(tiny, wandb_config, tmp_path):
    wandb_config.key = KEY
    tracker = start(tiny, tmp_path)
    tracker.scalars({"task_cost": 1.0}, 0)
    assert tracker.tracker.run.settings.api_key == KEY
    tracker.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in os.environ.values()
    assert KEY not in spec.dumps(without_key(tiny)) and wandb_config.key == KEY


def test_the_key_is_not_shown_when_wandb_refuses_it(tiny, wandb_config, tmp_path, warnings):
    wandb_config.mode, wandb_config.key = wandb_config.ONLINE, " short secret "
    tracker = start(tiny, tmp_path)
    tracker.scalars({"task_cost": 1.0}, 0)
    tracker.close()
    (warning,) = warnings()
    assert warning.startswith("nothing more is sent to Weights & Biases: ") and "secret" not in warning


@pytest.mark.spec_field("WandBConfig.reinit")
def test_reinit_ends_the_run_that_is_under_way(tiny, wandb_config, tmp_path):
    first = start(tiny, tmp_path)
    same = start(tiny, tmp_path)
    assert same.tracker.run.id == first.tracker.run.id
    wandb_config.reinit = True
    other = start(tiny, tmp_path)
    assert other.tracker.run.id != first.tracker.run.id
    other.close()


def test_a_run_that_goes_on_goes_on_in_wandb(tiny, wandb_config, tmp_path):
    ids = []
    for first_step in (0, 5, 0):
        tracker = start(tiny, tmp_path, first_step=first_step)
        ids.append(tracker.tracker.run.id)
        tracker.close()
    assert ids[1] == ids[0] != ids[2]


def test_an_inference_spec_sends_its_pictures(wandb_config, tmp_path):
    message = spec.Inference()
    message.bbox_handler_config.wandb_config.CopyFrom(wandb_config)
    message.inferencer_config.batch_size = 3
    tracker = wandb_tracker(message.bbox_handler_config.wandb_config, message, tmp_path)
    tracker.images({"images_annotated": [PICTURE]}, 0, captions=["camera.png"])
    tracker.close()
    assert history(tmp_path / "wandb")[0]["images_annotated.captions"] == ["camera.png"]


@pytest.mark.parametrize(("package", "service"), [("wandb", "Weights & Biases"), ("clearml", "ClearML")])
def test_a_package_that_is_missing_is_told_once(tiny, tmp_path, monkeypatch, warnings, package, service):
    monkeypatch.setitem(sys.modules, package, None)
    visualizer = tiny.training_config.visualizer
    if package == "wandb":
        visualizer.wandb_config.enabled = True
    else:
        visualizer.clearml_config.SetInParent()
    tracker = start(tiny, tmp_path)
    tracker.scalars({"task_cost": 1.0}, 0)
    tracker.images({"image/images": [PICTURE]}, 0)
    tracker.close()
    assert warnings() == [
        f"nothing more is sent to {service}: the package {package} is not installed (pip install {package})"
    ]


def test_a_tracker_that_fails_later_is_told_once(tiny, wandb_config, tmp_path, warnings, monkeypatch):
    wandb_config.key = KEY
    tracker = start(tiny, tmp_path)
    run = tracker.tracker.run

    def broken(*_, **__):
        raise ConnectionResetError(f"lost the line for {KEY}\nsecond line")

    monkeypatch.setattr(run, "log", broken)
    tracker.scalars({"task_cost": 1.0}, 0)
    tracker.scalars({"task_cost": 1.0}, 1)
    tracker.close()
    run.finish()
    assert warnings() == ["nothing more is sent to Weights & Biases: lost the line for ***"]


def test_all_trackers_get_the_same(tiny, wandb_config, tmp_path):
    tiny.training_config.visualizer.enabled = True
    both = training_trackers(tiny, tmp_path / "events", first_step=0)
    assert isinstance(both[0], TensorBoard) and len(both) == 2
    for tracker in both:
        tracker.close()


CLEARML = """
import json, logging, sys
from pathlib import Path
import clearml
from google.protobuf import text_format
from detectkit import spec
from detectkit.console import set_up
from detectkit.trackers import training_trackers
import numpy as np
from PIL import Image

set_up(verbose=False)
results, text, offline = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "offline"
experiment = spec.Experiment()
text_format.Parse(text, experiment.training_config.visualizer)
experiment.training_config.visualizer.wandb_config.key = "a secret"
real, given = clearml.Task.init, {}

def recorded(**arguments):  # at the library's border: what is passed on needs a server
    given.update({} if given else arguments)  # the deferred call comes through here too
    return real(**{**arguments, "continue_last_task": False, "reuse_last_task_id": False})

clearml.Task.init = recorded
(tracker,) = training_trackers(experiment, results / "events", first_step=int(sys.argv[4]))
tracker.scalars({"task_cost": 0.5}, 3)
tracker.images({"image/images": [Image.fromarray(np.full((8, 12, 3), 77, np.uint8))] * 2}, 3)
folder = str(tracker.tracker.task.get_offline_mode_folder()) if offline else ""
tracker.close()
print(json.dumps({"given": given, "folder": folder}))
"""


def run_clearml(tmp_path, text, *, offline=True, first_step=0):
    """In a process of its own: the library replaces the output streams, and warns of what it is made of."""
    pytest.importorskip("clearml")
    server = {
        f"CLEARML_{name}_HOST": "http://127.0.0.1:9" for name in ("API", "WEB", "FILES")
    }  # nobody is there
    environment = {
        **os.environ,
        **server,
        "CLEARML_API_ACCESS_KEY": "a",
        "CLEARML_API_SECRET_KEY": "b",
        "CLEARML_CACHE_DIR": str(tmp_path / "cache"),
        "CLEARML_OFFLINE_MODE": str(int(offline)),
        "HOME": str(tmp_path),
    }
    arguments = [str(tmp_path), textwrap.dedent(text), "offline" if offline else "online", str(first_step)]
    return subprocess.run(
        [sys.executable, "-c", CLEARML, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.spec_field("ClearMLConfig.project", "ClearMLConfig.task", "ClearMLConfig.tags")
@pytest.mark.spec_field("ClearMLConfig.reuse_last_task_id", "ClearMLConfig.continue_last_task")
@pytest.mark.spec_field("ClearMLConfig.deferred_init")
def test_a_clearml_task_is_what_the_spec_says(tmp_path):
    text = """clearml_config {
      project: "cells" task: "first try" tags: "resnet" tags: "small"
      reuse_last_task_id: true continue_last_task: true deferred_init: true
    }"""
    result = run_clearml(tmp_path, text)
    assert result.returncode == 0 and "WARNING: nothing" not in result.stderr, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    wanted = {"project_name": "cells", "task_name": "first try", "tags": ["resnet", "small"]}
    wanted |= dict.fromkeys(("reuse_last_task_id", "continue_last_task", "deferred_init"), True)
    assert {name: told["given"][name] for name in wanted} == wanted
    folder = tmp_path / "cache" / "offline" / os.path.basename(told["folder"])
    task = json.loads((folder / "task.json").read_text())
    assert (task["project_name"], task["name"]) == ("cells", "first try")
    assert "first try" in task["configuration"]["spec"]["value"]
    assert "a secret" not in task["configuration"]["spec"]["value"]
    events = [
        event
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        for event in json.loads(line)
        if event["metric"] in ("task_cost", "image/images")
    ]
    cost, *pictures = sorted(events, key=lambda event: event["type"], reverse=True)
    assert (cost["metric"], cost["value"], cost["iter"]) == ("task_cost", 0.5, 3)
    assert [(event["metric"], event["variant"]) for event in pictures] == [("image/images", n) for n in "01"]


def test_a_clearml_task_goes_on(tmp_path):
    (tmp_path / "clearml_id.txt").write_text("0a1b\n")
    result = run_clearml(tmp_path, "clearml_config { }", first_step=5)
    given = json.loads(result.stdout.splitlines()[-1])["given"]
    assert given["continue_last_task"] == "0a1b" and given["deferred_init"] is False
    assert given["project_name"] is None and given["tags"] is None


def test_a_clearml_server_that_does_not_answer_is_done_without(tmp_path):
    result = run_clearml(tmp_path, 'clearml_config { project: "cells" }', offline=False)
    assert result.returncode == 0, result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("WARNING: ")]
    assert (
        warning.startswith("WARNING: nothing more is sent to ClearML: ") and "Connection refused" in warning
    )
    assert json.loads(result.stdout.splitlines()[-1])["given"] == {}


def test_nothing_asked_for_nothing_done(tiny, tmp_path):
    assert training_trackers(tiny, tmp_path / "events", first_step=0) == []
    assert list(tmp_path.iterdir()) == [] and trackers.CONNECT_SECONDS < 60


def test_a_spec_without_an_account_stays_as_it_is():
    """One without a training_config too: that could not be told from an empty one afterwards."""
    for whole in (spec.Experiment(random_seed=3), spec.Inference()):
        assert without_key(whole) == whole
    assert not without_key(spec.Experiment()).HasField("training_config")
