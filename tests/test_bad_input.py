"""Bad input as a user meets it: one clear message that names the file and the fix, an exit code by kind, no remains."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from google.protobuf import text_format
from PIL import Image

from detectkit import spec
from detectkit.cli import main
from detectkit.data import tfrecord
from detectkit.deploy.onnx import to_model
from detectkit.files import locked
from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.runtimes.onnx import add_header

USAGE_ERROR, SPEC_ERROR, DATA_ERROR, MODEL_ERROR, OUTPUT_ERROR, STOPPED = 2, 3, 4, 5, 6, 130

BEGUN = ["experiment_spec.txt", "status.jsonl"]  # what a run leaves that met its first bad image in training

Capture = pytest.CaptureFixture[str]


class Place:
    """A folder of its own for one test: data to damage, a spec to spoil, and where results would go."""

    def __init__(self, folder: Path, data: Path, experiment: spec.Experiment):
        self.folder, self.data, self.experiment = folder, data, experiment
        self.spec, self.results = folder / "train.txt", folder / "results"
        self.images, self.labels = data / "kitti/image_2", data / "kitti/label_2"
        self.write()

    def write(self) -> None:
        """Write the spec as it stands in `experiment`."""
        self.spec.write_text(written(self.experiment))

    def replace(self, old: str, new: str) -> int:
        """Change the spec's text at one place; gives its line."""
        text = self.spec.read_text()
        assert old in text
        self.spec.write_text(text.replace(old, new, 1))
        return text[: text.index(old)].count("\n") + 1

    def export_spec(self) -> Path:
        """A conversion spec for the data."""
        path = self.folder / "convert.txt"
        path.write_text(
            f'kitti_config {{ root_directory_path: "{self.data}/kitti" image_dir_name: "image_2"'
            ' label_dir_name: "label_2" image_extension: ".png" partition_mode: "random" num_partitions: 2'
            " val_split: 25 num_shards: 1 }"
        )
        return path

    def convert(self) -> int:
        return main(["convert", "-d", str(self.export_spec()), "-o", str(self.results / "again")])

    def train(self) -> int:
        return main(["train", "-e", str(self.spec), "-r", str(self.results)])

    def evaluate(self, model: Path) -> int:
        return main(["evaluate", "-e", str(self.spec), "-m", str(model), "-r", str(self.results)])

    def infer(self, model: Path) -> int:
        arguments = ["-e", str(self.spec), "-m", str(model), "-i", str(self.images), "-r", str(self.results)]
        return main(["infer", *arguments])

    def check(self) -> int:
        return main(["check", "-e", str(self.spec)])

    def record(self, fold: int) -> Path:
        """The only shard of a fold."""
        return next(path for path in self.data.glob(f"records/tiny-fold-{fold:03}*") if not path.suffix)


def written(experiment: spec.Experiment) -> str:
    """The spec as a person writes it: defaults left out."""
    return text_format.MessageToString(experiment, as_utf8=True)


@pytest.fixture
def place(tmp_path: Path, tiny_root: Path, tiny: spec.Experiment) -> Place:
    data = tmp_path / "data"
    shutil.copytree(tiny_root, data)
    text = written(tiny).replace(str(tiny_root), str(data))
    experiment = spec.loads(text)
    assert isinstance(experiment, spec.Experiment)
    experiment.training_config.num_epochs = 1
    return Place(tmp_path, data, experiment)


@pytest.fixture
def model(place: Place) -> Path:
    """A model file for the spec, not trained."""
    return save_model(place.folder / "model.safetensors", place.experiment)


def save_model(path: Path, experiment: spec.Experiment) -> Path:
    names = spec.class_names(experiment)
    detector = build(experiment.model_config, names, 3)
    checkpoint.save(path, detector, spec.dumps(experiment), names)
    return path


def complaint(captured: Capture) -> str:
    """The one error message of a command that failed."""
    error = captured.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    return error[error.index("error: ") :]


def remains(folder: Path) -> list[str]:
    """Every file below a results folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# Spec files

SPOILT = [
    ("random_seed: 7", "random_seed: “7”", "curly quote “: type straight quotes"),
    ("random_seed: 7", "// seven", "'//' does not start a comment here: use '#'"),
    ("num_epochs:", "num_epoch:", "unknown field num_epoch in TrainingConfig; did you mean num_epochs?"),
    ("INTEGRATE", "INTEGRATED", "got INTEGRATED; did you mean INTEGRATE?"),
    ("mode: INTEGRATE", "mode: 7", "average_precision_mode: must be one of SAMPLE (0), INTEGRATE (1), got 7"),
    ("num_layers: 10", 'num_layers: "10"', 'num_layers takes a whole number, got "10"'),
    ("deadzone_radius: 0.67", "deadzone_radius: nan", "bbox_rasterizer_config.deadzone_radius: "),
    ("hflip_probability: 0.5", "hflip_probability: 1.5", "spatial_augmentation.hflip_probability: "),
    (
        "output_image_width: 96",
        "output_image_width: 100",
        "must be a multiple of 16, the stride of resnet (for instance 96), got 100",
    ),
]


@pytest.mark.parametrize(("old", "new", "words"), SPOILT)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_spoilt_line_of_a_spec(
    place: Place, capsys: Capture, command: str, old: str, new: str, words: str
) -> None:
    line = place.replace(old, new)
    assert getattr(place, command)() == SPEC_ERROR
    message = complaint(capsys)
    assert message.startswith(f"error: {place.spec}:{line}:") and words in message
    assert not place.results.exists()


def binary(place: Place) -> None:
    place.spec.write_bytes(bytes(range(256)))


def no_file(place: Place) -> None:
    place.spec.rename(place.folder / "trian.txt")


def empty(place: Place) -> None:
    place.spec.write_text("")


def no_overlap_of_a_class(place: Place) -> None:
    del place.experiment.evaluation_config.minimum_detection_ground_truth_overlap["bar"]
    place.write()


def no_objective(place: Place) -> None:
    del place.experiment.cost_function_config.target_classes[1].objectives[0]
    place.write()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_file, "there is no such file; did you mean"),
        (empty, "the file is empty"),
        (binary, "neither text nor a spec in protobuf's binary form"),
        (no_overlap_of_a_class, 'must have an entry for class "bar"'),
        (no_objective, 'must be "cov" and "bbox", once each (class "bar")'),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_spec_that_is_none_or_lacks_something(
    place: Place, capsys: Capture, command: str, spoil: Callable[[Place], None], words: str
) -> None:
    spoil(place)
    assert getattr(place, command)() == SPEC_ERROR
    message = complaint(capsys)
    assert str(place.spec) in message and words in message
    assert not place.results.exists()


def run(place: Place, command: str, model: Path) -> int:
    """Run a command, with the model if it takes one."""
    method = getattr(place, command)
    return int(method(model) if command in ("evaluate", "infer") else method())


@pytest.mark.parametrize("command", ["check", "train", "evaluate"])
def test_a_pattern_without_files(place: Place, capsys: Capture, model: Path, command: str) -> None:
    place.replace("records/tiny-fold-*", "record/tiny-fold-*")
    assert run(place, command, model) == DATA_ERROR
    assert f"no files match tfrecords_path: {place.data}/record/tiny-fold-*; correct" in complaint(capsys)
    assert not place.results.exists()


# Labels and images on their way into records

LINE = "square 0 0 0 {} 0 0 0 0 0 0 0\n"
REJECTED = [
    ("square 0 0 0 1 2 30 40 0 0 0 0 0 0\n", "14 columns, but a label has 15, or 16 with a score"),
    (LINE.format("1 two 30 40"), "y1 is 'two', not a number"),
    (
        LINE.format("30 2 1 40"),
        "the box (30, 2, 1, 40) is reversed: it needs x1 < x2 and y1 < y2, not x, y, width and height",
    ),
]


@pytest.mark.parametrize(("line", "reason"), REJECTED)
def test_a_label_line_that_is_left_out(place: Place, capsys: Capture, line: str, reason: str) -> None:
    file = place.labels / "003.txt"
    file.write_text(LINE.format("1 2 30 40") + line)
    assert place.convert() == 0
    listing = place.results / "again_warning.json"
    assert f"left out: 1 lines, labels or images; listed in {listing}" in capsys.readouterr().err
    assert json.loads(listing.read_text()) == [{"file": str(file), "line": 2, "reason": reason}]


@pytest.mark.parametrize(("line", "reason"), REJECTED)
def test_a_label_line_that_is_left_out_of_a_measurement(
    place: Place, capsys: Capture, line: str, reason: str
) -> None:
    file = place.labels / "003.txt"
    file.write_text(LINE.format("1 2 30 40") + line)
    found = place.folder / "found"
    found.mkdir()
    for label in place.labels.iterdir():
        (found / label.name).write_text(LINE.format("1 2 30 40").replace("\n", " 0.5\n"))
    arguments = ["--detections", str(found), "--labels", str(place.labels), "-r", str(place.results)]
    assert main(["evaluate", "-e", str(place.spec), *arguments]) == 0
    assert f"WARNING: {file}:2: {reason}" in capsys.readouterr().err
    (found / "003.txt").write_text(line)
    assert main(["evaluate", "-e", str(place.spec), *arguments]) == DATA_ERROR
    assert f"{found / '003.txt'}:1: " in complaint(capsys)


def test_a_box_outside_its_image_is_converted_and_trained_on(place: Place, capsys: Capture) -> None:
    (place.labels / "003.txt").write_text(LINE.format("-20 -5 30 400") + LINE.format("500 500 600 600"))
    assert place.convert() == 0
    place.experiment.dataset_config.data_sources[0].tfrecords_path = f"{place.results}/again-fold-*"
    place.write()
    assert place.train() == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "the image is missing"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"P" * 99), "not a readable image"),
    ],
)
def test_an_image_that_is_left_out(
    place: Place, capsys: Capture, damage: Callable[[Path], None], reason: str
) -> None:
    image = place.images / "003.png"
    damage(image)
    assert place.convert() == 0
    [rejected] = json.loads((place.results / "again_warning.json").read_text())
    assert rejected["file"] == str(image) and reason in rejected["reason"]
    for path in place.images.iterdir():
        path.write_bytes(b"")
    shutil.rmtree(place.results)
    capsys.readouterr()
    assert place.convert() == DATA_ERROR
    message = complaint(capsys)
    assert "nothing to convert: none of 24 images and labels is usable" in message and "000.png" in message
    assert not place.results.exists()


def test_labels_without_a_single_box(place: Place, capsys: Capture) -> None:
    for path in place.labels.iterdir():
        path.write_text("")
    assert place.convert() == 0
    assert "WARNING: not one of the 24 images has a box" in capsys.readouterr().err
    shutil.copytree(place.results, place.data / "records", dirs_exist_ok=True)
    place.replace("records/tiny-fold-*", "records/again-fold-*")
    for command in (place.check, place.train):
        shutil.rmtree(place.results, ignore_errors=True)
        assert command() == DATA_ERROR
        assert "no training box of class square, bar" in complaint(capsys)
        assert not place.results.exists()


# Data that little can be learnt from: the run ends with a model, and says so


def train_again(place: Place, capsys: Capture) -> str:
    """Convert what the labels say now and train on it for an epoch; what it tells, to its end."""
    assert place.convert() == 0
    shutil.copytree(place.results, place.data / "records", dirs_exist_ok=True)
    place.replace("records/tiny-fold-*", "records/again-fold-*")
    capsys.readouterr()
    assert place.train() == 0
    assert checkpoint.load(place.results / "weights/model.safetensors").class_names == ["square", "bar"]
    told = capsys.readouterr().err
    assert "without augmentation, mAP" in told
    return told


def test_ten_images(place: Place, capsys: Capture) -> None:
    for folder in (place.images, place.labels):
        for path in sorted(folder.iterdir())[10:]:
            path.unlink()
    told = train_again(place, capsys)
    assert re.search(r"WARNING: [78] training images are few: ", told)  # a quarter is held out
    assert "it has not learnt its own images: mAP" in told


def test_a_class_with_three_boxes_beside_one_with_hundreds(place: Place, capsys: Capture) -> None:
    for path in place.labels.iterdir():
        path.write_text("".join(LINE.format(f"{8 * at} 20 {8 * at + 24} 44") for at in range(30)))
    training = [path for path in place.labels.iterdir() if path.stem in trained_on(place)]
    for path in sorted(training)[:3]:
        path.write_text(path.read_text() + LINE.format("10 2 50 18").replace("square", "bar"))
    told = train_again(place, capsys)
    assert "too few training boxes to learn a class from: bar 3; label more" in told
    assert "rare beside the 540 training boxes of square: bar 3; " in told
    assert "no validation box of class bar: no average precision" in told


def trained_on(place: Place) -> set[str]:
    """The stems of the pictures that are not in fold 0."""
    records = tfrecord.read_records(str(place.record(1)))
    return {record.frame_id.rpartition("/")[2] for record in records}


def test_boxes_smaller_than_a_cell(place: Place, capsys: Capture) -> None:
    lines = LINE.format("20 20 24 25") + LINE.format("60 30 63 33").replace("square", "bar")
    for path in place.labels.iterdir():
        path.write_text(lines)
    told = train_again(place, capsys)
    for name in ("square", "bar"):
        assert f"all 18 training boxes of {name} are smaller than a grid cell of 16x16 pixels" in told


def test_boxes_that_are_all_below_the_least_size(place: Place, capsys: Capture) -> None:
    place.experiment.augmentation_config.preprocessing.min_bbox_height = 29
    place.write()
    for command in (place.check, place.train):
        assert command() == DATA_ERROR
        assert (
            "all 36 training boxes of all classes are below min_bbox_width or min_bbox_height"
            in complaint(capsys)
        )
        assert not place.results.exists()
    place.experiment.augmentation_config.preprocessing.min_bbox_height = 17
    place.write()
    for command in (place.check, place.train):  # squares of 28 pixels are left
        assert command() == 0
        assert (
            "WARNING: all 18 training boxes of bar are below min_bbox_width or min" in capsys.readouterr().err
        )


def test_training_images_without_objects_and_a_rare_class(place: Place, capsys: Capture) -> None:
    training = sorted(path for path in place.labels.iterdir() if path.stem in trained_on(place))
    for path in training:
        path.write_text("".join(LINE.format(f"{3 * at} 20 {3 * at + 24} 44") for at in range(24)))
    for path in training[:4]:
        path.write_text("")
    for path in training[4:7]:
        path.write_text(path.read_text() + LINE.format("10 2 50 18").replace("square", "bar"))
    place.experiment.training_config.num_epochs = 2
    assert place.experiment.cost_function_config.enable_autoweighting
    place.write()
    told = train_again(place, capsys)
    assert "too few training boxes to learn a class from: bar 3; label more" in told
    assert "rare beside the 336 training boxes of square: bar 3; " in told
    assert "it has not learnt its own images: mAP" in told


def test_validation_images_without_objects(place: Place, capsys: Capture) -> None:
    for path in place.labels.iterdir():
        if path.stem not in trained_on(place):
            path.write_text("")
    told = train_again(place, capsys)
    assert "no validation box of class square, bar: no average precision, and no mAP at all" in told


def test_no_boxes_to_measure_on(place: Place, capsys: Capture, model: Path) -> None:
    for path in place.labels.iterdir():
        path.write_text("")
    assert place.convert() == 0
    place.replace(f"{place.data}/records/tiny-fold-*", f"{place.results}/again-fold-*")
    capsys.readouterr()
    assert place.evaluate(model) == 0
    captured = capsys.readouterr()
    assert "no class has a labelled box that counts in these 6 images" in captured.err
    assert "mAP - %" in captured.out and "0.00" not in captured.out


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_class_without_boxes(place: Place, capsys: Capture, model: Path, command: str) -> None:
    place.replace('key: "bar"', 'key: "bars"')
    assert run(place, command, model) == DATA_ERROR
    message = complaint(capsys)
    assert "no training box of class bar" in message and "target_class_mapping" in message
    assert not place.results.exists()


# Images and records in training, evaluation and inference


def as_jpeg(place: Place) -> None:
    """Turn the data's images into JPEG files."""
    for path in place.images.glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    place.replace('image_extension: "png"', 'image_extension: "jpg"')


@pytest.mark.parametrize("command", ["train", "evaluate", "infer"])
def test_a_jpeg_that_is_cut_short(place: Place, capsys: Capture, model: Path, command: str) -> None:
    as_jpeg(place)
    for path in place.images.iterdir():
        path.write_bytes(path.read_bytes()[:-400])
    assert run(place, command, model) == DATA_ERROR
    message = complaint(capsys)
    assert re.search(
        rf"cannot read the image {place.images}/\d+.jpg: image file is truncated .*; replace it", message
    )
    assert remains(place.results) == (BEGUN if command == "train" else [])


@pytest.mark.parametrize("command", ["train", "evaluate", "infer"])
def test_a_png_without_bytes(place: Place, capsys: Capture, model: Path, command: str) -> None:
    for path in place.images.iterdir():
        path.write_bytes(b"")
    assert run(place, command, model) == DATA_ERROR
    message = complaint(capsys)
    assert re.search(rf"cannot read the image {place.images}/\d+.png: it is empty; replace it", message)
    assert remains(place.results) == (BEGUN if command == "train" else [])


@pytest.mark.parametrize("command", ["check", "train", "evaluate"])
def test_an_image_that_is_missing(place: Place, capsys: Capture, model: Path, command: str) -> None:
    images = 18 if b"image_2/003" in place.record(1).read_bytes() else 6
    (place.images / "003.png").unlink()
    assert run(place, command, model) == DATA_ERROR
    message = complaint(capsys)
    assert f"1 of {images} images are missing: {place.images}/003.png; check image_directory_path" in message
    assert not place.results.exists()


def test_no_images_to_infer_on(place: Place, capsys: Capture, model: Path) -> None:
    shutil.rmtree(place.images)
    assert place.infer(model) == DATA_ERROR
    assert f"{place.images} does not exist: give a folder of images or an image file" in complaint(capsys)
    place.images.mkdir()
    assert place.infer(model) == DATA_ERROR
    assert f"there are no images in {place.images}" in complaint(capsys)
    assert not place.results.exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_image_of_another_size_than_its_record(
    place: Place, capsys: Capture, model: Path, command: str
) -> None:
    for path in place.images.iterdir():
        Image.new("RGB", (90, 64)).save(path)
    assert run(place, command, model) == DATA_ERROR
    assert ".png is 90x64 pixels, its record says 96x64: convert the data again" in complaint(capsys)


def test_images_of_every_kind_are_trained_on_measured_and_annotated(place: Place, model: Path) -> None:
    pixels = np.asarray(Image.open(place.images / "000.png").convert("L"))
    Image.fromarray(pixels.astype(np.uint16) * 257).save(place.images / "000.png")
    Image.fromarray(pixels).save(place.images / "001.png")
    Image.open(place.images / "002.png").convert("CMYK").save(place.folder / "cmyk.jpg")
    shutil.move(place.folder / "cmyk.jpg", place.images / "002.png")
    assert (
        place.convert() == 0 and place.train() == 0 and place.evaluate(model) == 0 and place.infer(model) == 0
    )
    assert len(list((place.results / "labels").iterdir())) == 24
    assert len(list((place.results / "images_annotated").iterdir())) == 24


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "words"), [(cut, "is cut short"), (flip, "fails its checksum")])
@pytest.mark.parametrize(
    ("command", "fold"),  # evaluate opens no training records
    [("check", 0), ("check", 1), ("train", 0), ("train", 1), ("evaluate", 0)],
)
def test_a_damaged_record_file(
    place: Place,
    capsys: Capture,
    model: Path,
    command: str,
    damage: Callable[[Path], None],
    words: str,
    fold: int,
) -> None:
    shard = place.record(fold)
    damage(shard)
    assert run(place, command, model) == DATA_ERROR
    message = complaint(capsys)
    assert re.search(rf"{shard}: record \d+ {words}: .*convert the data again", message)
    assert not place.results.exists()


# Model files


def text_file(path: Path) -> None:
    path.write_text("a model" * 100)


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def newer(path: Path) -> None:
    content = path.read_bytes()
    [size] = struct.unpack_from("<Q", content)
    header = content[8 : 8 + size].replace(b'\\"format\\": 1', b'\\"format\\": 2')
    assert header != content[8 : 8 + size]
    path.write_bytes(content[:8] + header + content[8 + size :])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, ""),
        (text_file, "is not a detectkit model"),
        (foreign, "is not a detectkit model: it holds weights without a spec and class names"),
        (half, "is cut short"),
        (newer, "was written by a newer detectkit (model format 2; this one reads up to 1): upgrade"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "infer", "train"])
def test_a_file_that_is_no_usable_model(
    place: Place, capsys: Capture, model: Path, command: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(model)
    place.experiment.model_config.pretrained_model_file = str(model)
    place.write()
    assert run(place, command, model) == MODEL_ERROR
    message = complaint(capsys)
    assert str(model) in message and words in message
    assert not place.results.exists()


def save_onnx(path: Path, experiment: spec.Experiment) -> Path:
    """A model for the spec, not trained, as ONNX for 96x64 images; smaller than any that `detectkit train` makes."""
    names = spec.class_names(experiment)
    experiment.model_config.arch, experiment.model_config.num_layers = "squeezenet", 0
    network = build(experiment.model_config, names, 3)
    exported = to_model(network, height=64, width=96)
    add_header(
        exported, spec_text=spec.dumps(experiment), class_names=names, channels=3, outline=network.outline
    )
    onnx.save(exported, path)
    return path


def without_metadata(path: Path) -> None:
    exported = onnx.load(path)
    del exported.metadata_props[:]
    onnx.save(exported, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "No such file"),
        (text_file, "is no ONNX model that ONNX Runtime"),
        (half, "or is damaged (Protobuf parsing failed.): export it again"),
        (
            without_metadata,
            "is an ONNX model without a detectkit spec and class names: give one of detectkit export",
        ),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_an_onnx_file_that_is_no_usable_model(
    place: Place, capsys: Capture, command: str, damage: Callable[[Path], None], words: str
) -> None:
    model = save_onnx(place.folder / "model.onnx", place.experiment)
    damage(model)
    assert run(place, command, model) == MODEL_ERROR
    message = complaint(capsys)
    assert str(model) in message and words in message
    assert not place.results.exists()


@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_an_onnx_model_of_another_size(place: Place, capsys: Capture, command: str) -> None:
    model = save_onnx(place.folder / "model.onnx", place.experiment)
    place.experiment.augmentation_config.preprocessing.output_image_width = 128
    place.write()
    assert run(place, command, model) == MODEL_ERROR
    assert f"{model} is bound to images of 96x64; the spec's are 128x64: use the spec" in complaint(capsys)
    assert not place.results.exists()


@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_an_engine_where_it_cannot_run(place: Place, capsys: Capture, command: str) -> None:
    text_file(place.folder / "model.engine")
    assert run(place, command, place.folder / "model.engine") == MODEL_ERROR
    assert f"{place.folder}/model.engine" in complaint(capsys)
    assert not place.results.exists()


@pytest.mark.parametrize("command", ["evaluate", "infer"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights", "is a folder: name the model file in it, such as {}/weights/model.safetensors"),
        ("model.pt", "is no model file by its name: give a .safetensors model of detectkit train"),
        (
            "model.tlt",
            "is encrypted: with your key, TAO 5 writes it as a plain Keras file: tao model detectnet_v2",
        ),
    ],
)
def test_a_model_path_that_names_no_model_file(
    place: Place, capsys: Capture, model: Path, command: str, name: str, words: str
) -> None:
    (place.folder / "weights").mkdir()
    shutil.copy(model, place.folder / "weights")
    assert run(place, command, place.folder / name) == MODEL_ERROR
    assert f"{place.folder / name} {words.format(place.folder)}" in complaint(capsys)
    assert not place.results.exists()


def with_other_classes(place: Place) -> Path:
    text = spec.dumps(place.experiment).replace('"bar"', '"disc"')
    other = spec.loads(text)
    assert isinstance(other, spec.Experiment)
    return save_model(place.folder / "other.safetensors", other)


@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_a_model_of_other_classes(place: Place, capsys: Capture, command: str) -> None:
    other = with_other_classes(place)
    assert run(place, command, other) == MODEL_ERROR
    assert (
        f"{other} detects square, disc; the spec is for square, bar (in this order): use the spec"
        in complaint(capsys)
    )
    assert not place.results.exists()


def test_a_model_of_other_classes_is_a_start(place: Place, capsys: Capture) -> None:
    place.experiment.model_config.pretrained_model_file = str(with_other_classes(place))
    place.write()
    assert place.train() == 0
    assert "with the heads of square" in capsys.readouterr().err


def test_a_saved_state_that_is_cut_short(place: Place, capsys: Capture) -> None:
    assert place.train() == 0
    half(place.results / "resume.pt")
    before = remains(place.results)
    capsys.readouterr()
    assert place.train() == MODEL_ERROR
    assert f"{place.results}/resume.pt is damaged and cannot be resumed from: delete it" in complaint(capsys)
    assert remains(place.results) == before


# Writing results


def test_two_trainings_in_one_folder(place: Place, capsys: Capture) -> None:
    with locked(place.results):
        assert place.train() == USAGE_ERROR
    assert f"{place.results}: another detectkit run is at work there; wait" in complaint(capsys)
    assert not place.results.exists()


def start(place: Place, *, largest_file: int | None = None) -> subprocess.Popen[str]:
    """Train in another process, which can be given a limit that acts as a full disk does."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file})); "
    code = "import sys; from detectkit.cli import main; sys.exit(main())"
    arguments = ["train", "-e", str(place.spec), "-r", str(place.results)]
    return subprocess.Popen(
        [sys.executable, "-c", (limit if largest_file else "") + code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("size", "file"), [(10_000, "events"), (2**20, "model-best.safetensors"), (30 * 2**20, "resume.pt")]
)
def test_a_disk_that_fills_up_while_results_are_written(place: Place, size: int, file: str) -> None:
    place.experiment.training_config.visualizer.enabled = file == "events"
    place.write()
    process = start(place, largest_file=size)
    output = process.communicate()[0]
    assert process.returncode == OUTPUT_ERROR, output
    assert "Traceback" not in output
    [full] = re.findall("^error: cannot write (.*): File too large$", output, re.MULTILINE)
    assert Path(full).name == file
    for model in place.results.rglob("*.safetensors"):
        checkpoint.load(model)
    left = [path for path in place.results.rglob("*") if path.is_file() and path.parent.name != "events"]
    assert {path.suffix for path in left} <= {
        ".jsonl",
        ".png",
        ".safetensors",
        ".txt",
    }  # no state, none temporary
    last = json.loads((place.results / "status.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE" and file in last["message"]


def test_stopped_with_ctrl_c_and_taken_up_again(place: Place, capsys: Capture) -> None:
    place.experiment.training_config.num_epochs = 4
    place.experiment.training_config.workers = 1
    place.experiment.training_config.checkpoint_interval = 100  # no state is saved but by the stop
    place.write()
    process = start(place)
    status, deadline = place.results / "status.jsonl", time.monotonic() + 240
    while not (status.exists() and '"epoch": 1' in status.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    output = process.communicate()[0]
    assert process.returncode == STOPPED and "Traceback" not in output, output
    assert "everything is saved: the same command goes on from here" in output
    assert (place.results / "resume.pt").exists() and not (
        place.results / "weights/model.safetensors"
    ).exists()
    assert place.train() == 0
    assert "resuming after epoch" in capsys.readouterr().err


def test_ctrl_c_in_a_conversion(place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tfrecord.write_shard

    def interrupted(*arguments: object) -> int:
        write(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(tfrecord, "write_shard", interrupted)
    assert place.convert() == STOPPED
    assert "error: interrupted" in complaint(capsys)
    assert remains(place.results) == []


def test_results_below_a_file(place: Place, capsys: Capture, model: Path) -> None:
    place.results.write_text("a file")
    for command in (place.train, place.convert, lambda: place.infer(model), lambda: place.evaluate(model)):
        assert command() == OUTPUT_ERROR
        assert str(place.results) in complaint(capsys)
    assert place.results.read_text() == "a file"
