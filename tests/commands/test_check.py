from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit import cli
from detectkit.data.tfrecord import Record, encode, write_shard

SPECS = Path(__file__).parents[1] / "spec"
NAMES = {"a": ["car", "pedestrian", "cyclist"], "b": ["car", "dontcare"]}


def write_data(root, names):
    """Two frames in the training fold, one in the validation fold, each an image of 64x48 pixels."""
    (root / "image_2").mkdir(parents=True)
    for stem, labels in names.items():
        Image.new("RGB", (64, 48)).save(root / "image_2" / f"{stem}.png")
        boxes = np.tile(np.float32([4, 4, 20, 30]), (len(labels), 1))
        zeros = np.zeros(len(labels), np.float32)
        record = Record(f"image_2/{stem}", 64, 48, labels, boxes, zeros, zeros.astype(np.int64))
        for fold in (0, 1) if stem == "a" else (1,):
            write_shard(root / f"t-{stem}-fold-{fold:03}-of-002", [encode(record)])


@pytest.fixture
def training_spec(tmp_path):
    text = (SPECS / "kitti_train.txt").read_text()
    text = text.replace("/path/to/your/tfrecords/*", f"{tmp_path}/data/t-*").replace(
        "/path/to/kitti/root", f"{tmp_path}/data"
    )
    text = text.replace('pretrained_model_file: "/path/to/pretrained/model"', "").replace(
        "freeze_blocks: 0", ""
    )
    (tmp_path / "train.txt").write_text(text)
    return tmp_path / "train.txt"


def test_counts_boxes_and_opens_images(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "1"] in rows and ["cyclist", "1", "1"] in rows and ["images", "2", "1"] in rows
    assert "labels that are not mapped, so background: dontcare (1)" in printed
    assert "opened 3 of 3 images: all good" in printed
    assert f"next: detectkit train -e {training_spec}" in printed


def test_a_class_without_a_box_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", {"a": ["car", "pedestrian"], "b": ["bicycle"]})
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    error = capsys.readouterr().err
    assert (
        "no training box of class cyclist; the labels in the records are: bicycle, car, pedestrian" in error
    )


def test_a_class_without_a_validation_box_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", {"a": ["car", "pedestrian"], "b": ["cyclist"]})
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    error = capsys.readouterr().err
    assert "no validation box of class cyclist: no average precision, and no part in the mAP" in error


def test_a_broken_image_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    (tmp_path / "data" / "image_2" / "b.png").write_bytes(b"")
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "b.png" in capsys.readouterr().err


def test_spec_only_needs_no_data(capsys):
    for name in ("train", "infer", "convert"):
        assert cli.main(["check", "-e", str(SPECS / f"kitti_{name}.txt"), "--spec-only"]) == 0
    assert capsys.readouterr().out.count("no rule broken") == 3


def test_missing_data_and_models_are_named(capsys, training_spec):
    assert cli.main(["check", "-e", str(SPECS / "kitti_train.txt")]) == 5
    assert "pretrained_model_file: there is no file /path/to/pretrained/model" in capsys.readouterr().err
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "no files match tfrecords_path" in capsys.readouterr().err
    assert cli.main(["check", "-e", str(SPECS / "kitti_infer.txt")]) == 0
    assert "there is no file /workspace" in capsys.readouterr().err


def test_conversion_folders(tmp_path, capsys):
    text = (SPECS / "kitti_convert.txt").read_text().replace("/path/to/kitti/root", str(tmp_path))
    (tmp_path / "convert.txt").write_text(text)
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    assert "kitti_config.image_dir_name: there is no folder" in capsys.readouterr().err
    for folder, name in (("data_object_image_2/training/image_2", "0.png"), ("training/label_2", "0.txt")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text("")
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 0
    assert "1 .png files" in capsys.readouterr().out


def test_a_broken_spec_is_refused(tmp_path, capsys):
    (tmp_path / "spec.txt").write_text("training_config { num_epoch: 3 }")
    assert cli.main(["check", "-e", str(tmp_path / "spec.txt")]) == 3
    assert (
        "spec.txt:1:19: unknown field num_epoch in TrainingConfig; did you mean num_epochs?"
        in capsys.readouterr().err
    )
