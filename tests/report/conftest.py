"""Folders of runs, made by hand as `detectkit run` leaves them."""

import json
import shutil

import pytest

from detectkit import spec
from detectkit.cli import main

STAGES = ["convert", "train", "evaluate_float", "prune", "evaluate_pruned", "retrain", "evaluate_retrained"]
STAGES += ["calibrate", "export", "evaluate_int8", "engine", "evaluate_engine", "latency"]

# What each of them makes, as run.json tells it: key, title, role, path.
PRODUCTS = [
    ("float", "float", "network", "train/weights/model.safetensors"),
    ("float", "Training", "course", "train/status.jsonl"),
    ("pruned", "pruned", "passing", "prune/pruned.safetensors"),
    ("retrained", "retrained", "network", "retrain/weights/model.safetensors"),
    ("retrained", "Retraining", "course", "retrain/status.jsonl"),
    ("layers", "what each layer loses in 8 bits", "layers", "calibrate/layers.json"),
    ("int8", "INT8", "deployed", "export/model_int8.onnx"),
    ("engine", "engine", "deployed", "engine/model.engine"),
    ("model.engine", "TensorRT", "file", "engine/model.engine"),
    *((name[9:], "accuracy", "results", f"{name}/results.json") for name in STAGES if "evaluate" in name),
    *((name[9:], "detections", "details", f"{name}/details.npz") for name in STAGES if "evaluate" in name),
    ("latency", "times", "times", "latency/latency.json"),
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def stage(folder, name, *, status="done", error=None, commands=(), wall=60.0, restarts=0):
    content = {
        "name": name,
        "title": f"the stage {name}",
        "status": status,
        "error": error,
        "commands": commands,
    }
    times = {
        "started": "2026-11-22T12:00:00",
        "wall_seconds": wall,
        "cpu_seconds": 2 * wall,
        "restarts": restarts,
    }
    write(folder / name / "stage.json", content | times)


def results(folder, key, mean, *, measured="", classes=("square", "bar")):
    values = {name: {"average_precision": mean} for name in classes}
    content = {"measured": str(measured), "images": 6, "mean_average_precision": mean, "classes": values}
    write(folder / f"evaluate_{key}" / "results.json", content)
    stage(folder, f"evaluate_{key}")


def epochs(folder, name, count):
    lines = []
    for number in range(1, count + 1):
        graphical = {"loss": 0.1 / number, "learning_rate": 1e-3 / number, "validation_cost": 0.2 / number}
        value = 0.5 + 0.4 * number / count
        entry = {"message": "Epoch finished.", "epoch": number, "graphical": graphical}
        entry["kpi"] = {"mean average precision": value}
        entry["categorical"] = {"average_precision": {"square": value, "bar": None}}
        lines.append(json.dumps(entry))
    write(folder / name / "status.jsonl", "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def whole_run(tiny_root, tiny_text, learnt, learnt_onnx, tmp_path_factory):
    """A run with every stage; its float and 8-bit models are measured for real, the figures of the others are made up."""
    root = tmp_path_factory.mktemp("whole_run")
    folder = root / "run"
    message = spec.loads(tiny_text)
    write(folder / "spec.txt", spec.dumps(message))
    about = {"spec": "specs/tiny.txt", "command": ["detectkit", "run", "-e", "specs/tiny.txt"]}
    planned = [[name, f"the stage {name}"] for name in STAGES]
    products = [dict(zip(("key", "title", "role", "path"), item)) for item in PRODUCTS]
    about |= {"versions": {"torch": "2.9"}, "machine": {"cpu": "z80"}}
    write(folder / "run.json", about | {"stages": planned, "products": products})
    for name in STAGES:
        stage(folder, name, commands=[["explain", f"a path/{name}"]])
    files = {"float": "train/weights/model.safetensors", "int8": "export/model_int8.onnx"}
    for key, source in (("float", learnt), ("int8", learnt_onnx)):
        target = folder / files[key]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        out = folder / f"evaluate_{key}"
        code = main(
            ["evaluate", "-e", str(folder / "spec.txt"), "-m", str(target), "-r", str(out), "--gpus", "0"]
        )
        assert code == 0
    results(folder, "pruned", 0.25, measured=folder / "prune/pruned.safetensors")
    results(folder, "retrained", 0.875, measured=folder / "retrain/model.safetensors")
    stage(
        folder, "evaluate_engine", status="skipped", error="an engine runs on a GPU, and there is none here"
    )
    write(folder / "engine" / "model.engine", "x" * 2**20)
    for name, count in (("train", 6), ("retrain", 4)):
        epochs(folder, name, count)
    layers = [{"name": f"conv{at}", "sqnr": 30.0 + at, "weight": 40.0, "hurts": at == 0} for at in range(12)]
    write(folder / "calibrate" / "layers.json", {"method": "mse", "images": 8, "layers": layers})
    entries = [
        (folder / files["float"], 0.040, 1_000_000),
        (folder / "prune/pruned.safetensors", 0.020, 100_000),
        (folder / "retrain/model.safetensors", 0.020, 100_000),
        (folder / files["int8"], 0.010, None),
    ]
    models = [
        {"model": str(path), "seconds_per_image": time, "parameters": count, "gmacs": 0.5, "size_mib": 1.0}
        for path, time, count in entries
    ]
    latency = {"batch_size": 1, "machine": "z80", "threads": 2, "models": models}
    write(folder / "latency" / "latency.json", latency)
    return folder


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of the whole run that a test may change."""
    return shutil.copytree(whole_run, tmp_path / "run")
