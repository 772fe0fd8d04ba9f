"""`detectkit init` as a person types it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit import cli, spec
from detectkit.commands import init
from detectkit.data.records import training_frames, validation_frames
from detectkit.propose import measure
from detectkit.propose.choose import Pace

SQUARE = ("square", 10, 10, 74, 74)


@pytest.fixture
def folder(tmp_path, write_kitti, monkeypatch):
    """Ten images of two classes in the current folder, and a machine that takes half a second a step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "pace", lambda experiment, images: Pace(0.5, 0.1, 0.0))
    write_kitti(tmp_path / "shapes", [[SQUARE, ("Bar", 60, 40, 124, 90)]] * 10)
    return tmp_path


def run(*arguments):
    return cli.main(["init", *map(str, arguments)])


def test_writes_a_spec_and_says_why(folder, capsys):
    assert run("shapes", "--minutes", "1") == 0
    printed = capsys.readouterr()
    assert "Bar" in printed.out and "wrote specs/shapes.txt" in printed.out
    assert "next: detectkit run -e specs/shapes.txt" in printed.out
    # 2 steps an epoch of half a second, less 6 validations of 2 images in 0.1 s each: 58.8 seconds.
    assert (
        "epochs" in printed.out
        and "116 steps of 4 images at 500 ms, about 1.0 min; --minutes 1" in printed.out
    )
    # 600 s of 1200 steps, and the validations.
    assert "116 steps of training, and about 1200 are needed: --minutes 11" in printed.err
    assert "8 training images are few" in printed.err
    experiment = spec.load_experiment("specs/shapes.txt")
    assert experiment.training_config.num_epochs == 58
    (config,) = experiment.dataset_export_config
    assert config.kitti_config.root_directory_path == "shapes"
    assert [path.name for path in folder.iterdir()] in (["shapes", "specs"], ["specs", "shapes"])


def test_the_spec_passes_check_and_converts(folder, capsys):
    assert run("shapes", "-o", "mine.txt") == 0
    assert cli.main(["check", "-e", "mine.txt"]) == 0
    assert cli.main(["convert", "-d", "mine.txt"]) == 0
    capsys.readouterr()
    assert cli.main(["check", "-e", "mine.txt"]) == 0
    assert "opened 10 of 10 images" in capsys.readouterr().out


BOXES = [(4, 4, 60, 52), (64, 40, 120, 92)]  # of a cup and a plate in images of 128x96


def write_coco(root, files):
    images = [{"id": n, "file_name": file, "width": 128, "height": 96} for n, file in enumerate(files)]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
    boxes = [(kind, box) for kind, box in enumerate(BOXES, start=1)]
    annotations = [
        {"image_id": n, "category_id": kind, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for n in range(len(files))
        for kind, (x1, y1, x2, y2) in boxes
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "result.json").write_text(json.dumps(content))


def write_voc(root, files):
    (root / "Annotations").mkdir()
    (root / "images").rename(root / "JPEGImages")
    for file in files:
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, (x1, y1, x2, y2) in zip(("cup", "plate"), BOXES)
        )
        (root / "Annotations" / f"{Path(file).stem}.xml").write_text(f"<annotation>{objects}</annotation>")


def write_yolo(root, files):
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("cup\nplate\n")
    for file in files:
        rows = [
            f"{number} {(x1 + x2) / 256} {(y1 + y2) / 192} {(x2 - x1) / 128} {(y2 - y1) / 96}\n"
            for number, (x1, y1, x2, y2) in enumerate(BOXES)
        ]
        (root / "labels" / f"{Path(file).stem}.txt").write_text("".join(rows))


def write_csv(root, files):
    rows = [
        f"{file},128,96,{name},{','.join(map(str, box))}\n"
        for file in files
        for name, box in zip(("cup", "plate"), BOXES)
    ]
    (root / "labels.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n" + "".join(rows))


@pytest.mark.parametrize(
    "kind, write", [("coco", write_coco), ("voc", write_voc), ("yolo", write_yolo), ("csv", write_csv)]
)
def test_every_layout_without_a_split(tmp_path, monkeypatch, capsys, kind, write):
    """A fifth of the images is drawn, and the spec makes records of what was counted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "pace", lambda experiment, images: Pace(0.5, 0.1, 0.0))
    (tmp_path / "d" / "images").mkdir(parents=True)
    files = [f"{number}.jpg" for number in range(20)]
    generator = np.random.default_rng(5)
    for file in files:
        shades = generator.integers(0, 256, (12, 16), dtype=np.uint8)
        Image.fromarray(shades).resize((128, 96)).save(tmp_path / "d" / "images" / file)
    write(tmp_path / "d", files)
    assert run("d", "-o", "d.txt") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{kind}: ") and "20 % of the images, 4, are drawn for validation" in printed
    experiment = spec.load_experiment("d.txt")
    assert spec.class_names(experiment) == ["cup", "plate"]
    assert cli.main(["check", "-e", "d.txt"]) == 0
    assert cli.main(["convert", "-d", "d.txt"]) == 0
    training = training_frames(experiment.dataset_config, ["cup", "plate"])
    validation = validation_frames(experiment.dataset_config, ["cup", "plate"])
    assert [len(training), len(validation)] == [16, 4]
    assert training.frames[0].objects.boxes.ravel().tolist() == pytest.approx(
        [*BOXES[0], *BOXES[1]], abs=0.01
    )


def test_explains(folder, capsys):
    assert run("shapes", "--explain") == 0
    printed = capsys.readouterr().out
    assert "not chosen" in printed and "median side" in printed and "batch of 4" in printed
    assert os.path.exists("specs/shapes.txt")


def test_nothing_is_overwritten_unasked(folder, capsys):
    assert run("shapes", "-o", "mine.txt") == 0
    before = (folder / "mine.txt").read_text()
    assert run("shapes", "-o", "mine.txt", "--classes", "bar") == 6
    assert "mine.txt is there already: give another -o, or --overwrite" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == before
    assert run("shapes", "-o", "mine.txt", "--classes", "bar", "--overwrite") == 0
    assert spec.class_names(spec.load_experiment("mine.txt")) == ["Bar"]


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["nowhere"], 4, "nowhere"),
        (["shapes", "--classes", "bars"], 2, "no label is called 'bars'; is 'Bar' meant?"),
        (["shapes", "--minutes", "0"], 2, "--minutes 0: must be a number above 0"),
        (["shapes", "--minutes", "nan"], 2, "--minutes nan"),
        (["shapes", "--target-latency", "-1"], 2, "--target-latency -1"),
        (["shapes", "--weights", "w.pth"], 5, "--weights w.pth: there is no such file or folder"),
        (
            ["shapes", "-o", "shapes"],
            2,
            "shapes is a folder: name a file in it, for instance shapes/mine.txt",
        ),
        (["shapes", "--format", "coco"], 4, "COCO"),
        (["shapes", "--head", "ssd"], 2, "--head"),
    ],
)
def test_what_cannot_be(folder, capsys, arguments, code, text):
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert text in printed.err and "Traceback" not in printed.err
    assert not os.path.exists("specs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_is_read_only(folder, capsys):
    (folder / "specs").mkdir(mode=0o500)
    assert run("shapes") == 6
    assert "cannot write specs/shapes.txt" in capsys.readouterr().err


def test_output_below_a_file(folder, capsys):
    (folder / "specs").write_text("none")
    assert run("shapes") == 6
    assert "specs" in capsys.readouterr().err


def test_paths_outside_the_current_folder_are_absolute(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert run(folder / "shapes") == 0
    (config,) = spec.load_experiment("specs/shapes.txt").dataset_export_config
    assert config.kitti_config.root_directory_path == str(folder / "shapes")


def test_target_latency_chooses_of_what_was_timed(folder, monkeypatch, capsys):
    assert run("shapes", "--target-latency", "10000") == 0
    assert "the largest within --target-latency 10000 ms: resnet10 at 128x96 takes" in capsys.readouterr().out
    assert run("shapes", "--target-latency", "0.001", "--overwrite") == 0
    assert "none is within --target-latency 0.001 ms" in capsys.readouterr().err


def test_images_of_all_sizes_and_huge_boxes(tmp_path, write_kitti, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_kitti(tmp_path / "d", [[("a", -1e6, -1e6, 1e6, 1e6), ("b", 1, 1, 2, 2)]] * 10)
    for number, size in enumerate([(8, 8), (2000, 10), (10, 2000), (3000, 2000)]):
        Image.new("RGB", size).save(root / "image_2" / f"{number:04d}.png")
    assert run("d", "--minutes", "0.1") == 0
    printed = capsys.readouterr()
    assert "images are 8 to 3000 pixels wide and 8 to 2000 high" in printed.out
    assert "training images are of quite another shape" in printed.err


@pytest.mark.parametrize(
    "name, expected", [("My Data (2)", "My_Data_2"), ("größe", "größe"), ("...", "mine")]
)
def test_the_name_of_a_folder_names_the_spec(tmp_path, name, expected):
    assert init._name(tmp_path / name) == expected


def test_from_a_folder_to_a_trained_detector(tmp_path, write_kitti, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detectkit.propose.choose.MOST_STEPS", {True: 4, False: 4})
    monkeypatch.setattr("detectkit.propose.choose.MOST_EPOCHS", {True: 1, False: 1})
    write_kitti(tmp_path / "d" / "train", [[("a", 0, 0, 64, 64), ("b", 64, 32, 128, 96)]] * 8)
    write_kitti(tmp_path / "d" / "test", [[("a", 0, 0, 64, 64), ("b", 64, 32, 127, 96)]] * 2)
    for file in (tmp_path / "d" / "test" / "image_2").iterdir():
        Image.new("L", (128, 96), 99).save(file)  # else they would be those that are trained on
    assert run("d", "-o", "specs/mine.txt") == 0
    assert cli.main(["run", "-e", "specs/mine.txt", "--until", "train"]) == 0
    assert (tmp_path / "results/mine/train/weights/model-best.safetensors").exists()
    assert "report: results/mine/report.html" in capsys.readouterr().out
