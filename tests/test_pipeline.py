"""The whole way from labels to measured detections, each step on the files that the one before it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detectkit import spec
from detectkit.cli import main

SPECS = Path(__file__).parent.parent / "specs"


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_labels_to_measured_detections(
    tiny: spec.Experiment, tiny_root: Path, write_spec: Callable[[spec.Spec], Path], tmp_path: Path
) -> None:
    kitti = tiny_root / "kitti"
    export = spec.DatasetExportConfig(image_directory_path=str(kitti))
    source = export.kitti_config
    source.root_directory_path, source.image_dir_name, source.label_dir_name = (
        str(kitti),
        "image_2",
        "label_2",
    )
    source.image_extension, source.partition_mode = ".png", "random"
    source.num_partitions, source.val_split, source.num_shards = 2, 25, 2
    run("convert", "-d", write_spec(export), "-o", tmp_path / "records" / "tiny")
    shards = {
        f"tiny-fold-{fold:03d}-of-002-shard-{shard:05d}-of-00002" for fold in (0, 1) for shard in (0, 1)
    }
    assert shards <= names(tmp_path / "records")

    tiny.dataset_config.data_sources[0].tfrecords_path = str(tmp_path / "records" / "tiny-fold-*")
    experiment = write_spec(tiny)
    run("check", "-e", experiment)
    run("visualize", "-e", experiment, "-o", tmp_path / "seen", "-n", 2)
    assert len(names(tmp_path / "seen")) == 3 and "overview.png" in names(tmp_path / "seen")

    run("train", "-e", experiment, "-r", tmp_path / "train", "--gpus", 0)
    assert {"cost.png", "average_precision.png", "status.jsonl"} <= names(tmp_path / "train")
    weights = tmp_path / "train" / "weights"
    assert {"model.safetensors", "model-best.safetensors"} <= names(weights)
    status = [json.loads(line) for line in (tmp_path / "train" / "status.jsonl").read_text().splitlines()]
    assert status[0]["status"] == "STARTED" and status[-1]["status"] == "SUCCESS"

    model = weights / "model.safetensors"
    run("evaluate", "-e", experiment, "-m", model, "-r", tmp_path / "evaluation", "--gpus", 0)
    measured = results(tmp_path / "evaluation")
    assert measured["images"] == 6 and set(measured["classes"]) == {"square", "bar"}

    run(
        "infer", "-e", experiment, "-m", model, "-i", kitti / "image_2", "-r", tmp_path / "found", "--gpus", 0
    )
    assert names(tmp_path / "found" / "labels") == names(kitti / "label_2")
    assert names(tmp_path / "found" / "images_annotated") == names(kitti / "image_2")

    files = ("--detections", tmp_path / "found" / "labels", "--labels", kitti / "label_2")
    run("evaluate", "-e", experiment, *files, "-r", tmp_path / "files")
    measured = results(tmp_path / "files")
    lines = [path.read_text().splitlines() for path in (tmp_path / "found" / "labels").iterdir()]
    assert measured["images"] == 24
    assert sum(item["detections"] for item in measured["classes"].values()) == sum(map(len, lines))
    assert all(item["ground_truth"] == 24 for item in measured["classes"].values())


@pytest.mark.slow
def test_the_demo_learns_its_digits(tmp_path: Path) -> None:
    for name in ("convert", "train"):
        text = (SPECS / "demo" / f"{name}.txt").read_text()
        (tmp_path / f"{name}.txt").write_text(text.replace("results/demo", str(tmp_path)))
    experiment = tmp_path / "train.txt"
    run("sample-data", "-o", tmp_path / "data")
    run("convert", "-d", tmp_path / "convert.txt", "-o", tmp_path / "records" / "digits")
    run("train", "-e", experiment, "-r", tmp_path / "train")
    model = tmp_path / "train" / "weights" / "model-best.safetensors"
    run("evaluate", "-e", experiment, "-m", model, "-r", tmp_path / "evaluation")
    assert results(tmp_path / "evaluation")["mean_average_precision"] >= 0.90
