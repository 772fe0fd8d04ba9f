"""The specs that NVIDIA's tutorial of the Transfer Learning Toolkit prints, run on a folder laid out like KITTI.

tests/spec/kitti_*.txt are its blocks with straight quotes and "similarly for …" filled in. All fields stay as printed but
paths, and what would take hours: image size, batch size and number of epochs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageDraw

from detectkit import spec
from detectkit.cli import main
from detectkit.model import checkpoint

TESTS = Path(__file__).parent
KITTI = TESTS.parent / "specs" / "kitti"
IMAGES, LABELS = "data_object_image_2/training/image_2", "training/label_2"
WIDTH, HEIGHT = 192, 64
OBJECTS = {"Car": (52, 30, "red"), "Cyclist": (26, 40, "blue"), "Pedestrian": (18, 44, "yellow")}
FRAMES = 10

# The tutorial's second model_config; what pruning would have made is the trained model here.
RETRAIN = """model_config {
pretrained_model_file: "/path/to/the/pruned/model"
num_layers: 18
use_batch_norm: true
load_graph: true
objective_set {
bbox {
scale: 35.0
offset: 0.5
}
cov {
}
}
training_precision {
backend_floatx: FLOAT32
}
arch: "resnet"
}
"""

# Its blocks as a browser shows them.
CURLY = "kitti_config {\nroot_directory_path: “/path/to/kitti/root/”\nimage_dir_name: “data_object_image_2/training/image_2”\n}\n"
SLASHES = """evaluation_config {
minimum_detection_ground_truth_overlap {
key: "car"
value: 0.7
}
// similarly for pedestrian and cyclist
// use “value: 0.5” for both classes
}
"""


def draw_frame(root: Path, number: int) -> None:
    """A picture with one object of each class, and KITTI's label file of it, which also has what is no target."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "grey")
    lines = ["Van 0.00 0 1.55 0.00 0.00 12.00 9.00 1.5 1.6 3.7 1.8 1.5 8.4 0.01"]
    generator = np.random.default_rng(number)
    for column, (label, (width, height, color)) in enumerate(OBJECTS.items()):
        x = 64 * column + int(generator.integers(0, 64 - width))
        y = int(generator.integers(9, HEIGHT - height))
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        lines.append(
            f"{label} 0.00 0 1.55 {x}.00 {y}.00 {x + width}.00 {y + height}.00 1.5 1.6 3.7 1.8 1.5 8.4 0.01"
        )
    lines.append("DontCare -1 -1 -10 150.00 0.00 160.00 8.00 -1 -1 -1 -1000 -1000 -1000 -10")
    image.save(root / IMAGES / f"{number:06}.png")
    (root / LABELS / f"{number:06}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KITTI folder with ten small pictures, and a file of ImageNet's ResNet18 (its names and shapes)."""
    folder = tmp_path_factory.mktemp("kitti")
    for name in (IMAGES, LABELS):
        (folder / name).mkdir(parents=True)
    for number in range(FRAMES):
        draw_frame(folder, number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    return folder


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def change(text: str, **fields: object) -> str:
    """A spec with other values of some fields, each of which it must have."""
    for field, value in fields.items():
        shown = json.dumps(value) if isinstance(value, str) else value
        text, count = re.subn(rf"\b{field}: \S+", f"{field}: {shown}", text)
        assert count > 0, field
    return text


def small(text: str, root: Path) -> str:
    """A training spec of the tutorial, made to run here."""
    return change(
        text,
        tfrecords_path=f"{root}/tfrecords/*",
        image_directory_path=str(root),
        output_image_width=WIDTH,
        output_image_height=HEIGHT,
        batch_size_per_gpu=4,
        num_epochs=1,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def detect(root: Path, model: Path) -> Path:
    """The folder of what the inference spec finds in all pictures."""
    text = (KITTI / "infer.txt").read_text()
    text = change(text, model=str(model), image_width=WIDTH, image_height=HEIGHT)
    # A network of one epoch is sure of nothing: show what it would else keep to itself.
    infer = write(root / "infer.txt", change(text, dbscan_confidence_threshold=0))
    run("infer", "-e", infer, "-i", root / IMAGES, "-r", root / "found", "-k", "key", "--gpus", 0)
    return root / "found"


def test_the_blocks_of_the_tutorial_run_from_conversion_to_inference(root: Path) -> None:
    export = (TESTS / "spec" / "kitti_convert.txt").read_text()
    export = change(export, root_directory_path=f"{root}/", image_directory_path=f"{root}/")
    run("convert", "-d", write(root / "convert.txt", export), "-o", root / "tfrecords" / "kitti_trainval")
    shards = [path for path in (root / "tfrecords").iterdir() if "fold-000-of-002" in path.name]
    assert shards

    printed = (TESTS / "spec" / "kitti_train.txt").read_text()
    train = change(small(printed, root), pretrained_model_file=str(root / "resnet18.pth"))
    experiment = write(root / "train.txt", train)
    run("check", "-e", experiment)
    run("train", "-e", experiment, "-r", root / "trained", "-k", "key", "--gpus", 0)
    trained = root / "trained" / "weights" / "model.safetensors"
    first = checkpoint.load(trained, "cpu")
    assert first.class_names == ["car", "pedestrian", "cyclist"]
    # freeze_blocks: 0: the first convolution is that of the pretrained file.
    pretrained = torch.load(root / "resnet18.pth", weights_only=True)["conv1.weight"]
    assert any(torch.equal(values, pretrained) for values in first.detector.state_dict().values())

    run("evaluate", "-e", experiment, "-m", trained, "-r", root / "evaluated", "-k", "key", "--gpus", 0)
    measured = results(root / "evaluated")
    assert measured["images"] == FRAMES * 20 // 100
    assert {name: item["ground_truth"] for name, item in measured["classes"].items()} == {
        "car": 2,
        "pedestrian": 2,
        "cyclist": 2,
    }

    pruned = root / "pruned.safetensors"
    run("prune", "-pm", trained, "-o", pruned, "-eq", "intersection", "-pth", 0.95, "-k", "key", "--gpus", 0)
    narrow = checkpoint.load(pruned, "cpu").detector
    assert narrow.outline.levels[0].channels < first.detector.outline.levels[0].channels

    start, stop = printed.index("model_config {"), printed.index("training_config {")
    retrain = change(
        small(printed[:start] + RETRAIN + printed[stop:], root), pretrained_model_file=str(pruned)
    )
    experiment = write(root / "retrain.txt", retrain)
    run("train", "-e", experiment, "-r", root / "retrained", "-k", "key", "--gpus", 0)
    retrained = root / "retrained" / "weights" / "model.safetensors"
    last = checkpoint.load(retrained, "cpu")
    assert last.class_names == first.class_names
    assert last.detector.outline.levels == narrow.outline.levels

    found = detect(root, retrained)
    names = [f"{number:06}" for number in range(FRAMES)]
    assert sorted(path.stem for path in (found / "labels").iterdir()) == names
    assert sorted(path.stem for path in (found / "images_annotated").iterdir()) == names
    lines = [line.split() for path in (found / "labels").iterdir() for line in path.read_text().splitlines()]
    assert {line[0] for line in lines} <= {"car", "cyclist", "pedestrian"} and {
        len(line) for line in lines
    } <= {16}


def without_paths(message: spec.Experiment) -> spec.Experiment:
    source = message.dataset_config.data_sources[0]
    source.tfrecords_path = source.image_directory_path = message.model_config.pretrained_model_file = ""
    return message


def test_the_training_spec_that_ships_is_the_one_of_the_tutorial() -> None:
    shipped = spec.load_experiment(KITTI / "train.txt")
    printed = spec.load_experiment(TESTS / "spec" / "kitti_train.txt")
    assert without_paths(shipped) == without_paths(printed)


def test_the_retraining_spec_that_ships_is_the_one_of_the_tutorial() -> None:
    shipped = spec.load_experiment(KITTI / "retrain.txt")
    text = (TESTS / "spec" / "kitti_train.txt").read_text()
    start, stop = text.index("model_config {"), text.index("training_config {")
    printed = spec.loads(text[:start] + RETRAIN + text[stop:])
    assert isinstance(printed, spec.Experiment)
    assert without_paths(shipped) == without_paths(printed)


def test_the_conversion_spec_that_ships_is_the_one_of_the_tutorial() -> None:
    shipped = spec.load_dataset_export(KITTI / "convert.txt")
    printed = spec.load_dataset_export(TESTS / "spec" / "kitti_convert.txt")
    for message in (shipped, printed):
        message.image_directory_path = message.kitti_config.root_directory_path = ""
    assert shipped == printed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (CURLY, '2:22: curly quote “: type straight quotes " instead (2 lines have them)'),
        (SLASHES, "6:1: '//' does not start a comment here: use '#'"),
    ],
    ids=["curly quotes", "slashes"],
)
def test_what_a_browser_shows_is_refused_in_plain_words(
    text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "spec.txt", text)
    assert main(["check", "-e", str(path)]) == 3
    assert capsys.readouterr().err == f"error: {path}:{error}\n"
