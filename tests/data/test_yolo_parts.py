"""Folders of YOLO labels as tools write them: their splits, the folders or lists that are read, and the class names."""

import pytest

from detectkit.data.layouts import recognise
from detectkit.errors import DataError
from tests.data.test_layouts import image, read, text

LABEL = f"0 0.25 {21.5 / 48} 0.4375 {37 / 48}\n"
ROBOFLOW = """train: ../train/images
val: ../valid/images
test: ../test/images

nc: 2
names: ['car', 'bus']

roboflow:
  workspace: someone
  project: cars
  version: 1
"""


def yolo(root, images, labels, names, content=LABEL):
    for name in names:
        image(root / images / name)
        text(root / labels / f"{name}.txt", content)


def settings(layout):
    """Of each split: root below the given folder, class names, folders or lists of images."""
    sources = {part.role: part.config for part in layout.parts}
    assert all(
        config.image_directory_path == config.yolo_config.root_directory_path for config in sources.values()
    )
    return {
        role: (config.yolo_config.classes_file, *config.yolo_config.image_dir_names)
        for role, config in sources.items()
    }


def frames(layout, tmp_path_factory):
    """The frame ids of each split, read."""
    found = read(layout, tmp_path_factory.mktemp("records"))
    assert all(names == ["car"] for own in found.values() for names in own.values())
    return {role: sorted(own) for role, own in found.items()}


def root_of(layout):
    (part,) = layout.parts
    return part.config.yolo_config.root_directory_path


def test_roboflow(tmp_path, tmp_path_factory):
    for split in ("train", "valid", "test"):
        yolo(tmp_path, f"{split}/images", f"{split}/labels", [f"{split}_jpg.rf.0c3b2a1f"])
    text(tmp_path / "data.yaml", ROBOFLOW)
    text(tmp_path / "README.roboflow.txt", "cars - v1 raw\n")
    layout = recognise(tmp_path)
    assert layout.kind == "yolo"
    assert layout.told == (
        "3 label files of class and box: test/labels (1), train/labels (1), valid/labels (1); class names in data.yaml"
    )
    assert settings(layout) == {
        "train": ("data.yaml", "train/images"),
        "validation": ("data.yaml", "valid/images"),
        "test": ("data.yaml", "test/images"),
    }
    assert frames(layout, tmp_path_factory) == {
        "train": ["train/images/train_jpg.rf.0c3b2a1f"],
        "validation": ["valid/images/valid_jpg.rf.0c3b2a1f"],
        "test": ["test/images/test_jpg.rf.0c3b2a1f"],
    }


def test_roboflow_without_all_splits(tmp_path, tmp_path_factory):
    """The file names three, whatever there is."""
    yolo(tmp_path, "train/images", "train/labels", "ab")
    text(tmp_path / "data.yaml", ROBOFLOW)
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("../data.yaml",)}
    assert root_of(layout) == str(tmp_path / "train")
    assert frames(layout, tmp_path_factory) == {"train": ["images/a", "images/b"]}
    assert "; left out, as it is not there: ../valid/images of data.yaml" in layout.told


def test_darknet_of_roboflow(tmp_path):
    for split, names in (("train", "car\nbus\n"), ("valid", "car\n")):
        yolo(tmp_path, split, split, [split])
        text(tmp_path / split / "_darknet.labels", names)
    assert settings(recognise(tmp_path)) == {
        "train": ("train/_darknet.labels", "train"),
        "validation": ("valid/_darknet.labels", "valid"),
    }


@pytest.mark.parametrize(
    "paths",
    [
        "path: ../datasets/cars  # root\ntrain: images/train  # 2 images\nval: images/val\ntest:  # optional\n",
        "train: /content/cars/images/train\nval: C:\\cars\\images\\val\n",
        "train:\n  - images/train\nval: ['images/val']\n",
        "nc: 2\n",
    ],
)
def test_folders_of_images_and_labels(tmp_path, tmp_path_factory, paths):
    for split in ("train", "val"):
        yolo(tmp_path, f"images/{split}", f"labels/{split}", [split])
        text(tmp_path / f"labels/{split}.cache", "\0")  # of a training
    text(tmp_path / "cars.yaml", f"{paths}names:\n  0: car\n  1: bus\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {
        "train": ("cars.yaml", "images/train"),
        "validation": ("cars.yaml", "images/val"),
    }
    assert frames(layout, tmp_path_factory) == {
        "train": ["images/train/train"],
        "validation": ["images/val/val"],
    }


def test_the_file_says_which_folder_is_which(tmp_path):
    for folder in ("old", "new", "test"):
        yolo(tmp_path, f"images/{folder}", f"labels/{folder}", [folder])
    text(tmp_path / "data.yaml", "train: images/old\nval: images/new\nnames: [car]\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {
        "train": ("data.yaml", "images/old"),
        "validation": ("data.yaml", "images/new"),
    }
    assert layout.told.endswith("; left out, as data.yaml does not name them: images in images/test (1)")


def test_a_split_without_labels_is_left_out(tmp_path):
    for split in ("train", "val"):
        yolo(tmp_path, f"images/{split}", f"labels/{split}", [split])
    image(tmp_path / "images/test/a")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [car]\n")
    layout = recognise(tmp_path)
    assert [part.role for part in layout.parts] == ["train", "validation"]
    assert layout.told.endswith(
        "class names in data.yaml; left out, as they have no labels, images in images/test (1)"
    )


def test_one_folder_is_not_two_splits(tmp_path):
    yolo(tmp_path, "images/train", "labels/train", "ab")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [car]\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("data.yaml",)}
    assert (
        "left out, as it is that of another split, too: images/train of data.yaml for validation"
        in layout.told
    )


def test_cvat(tmp_path, tmp_path_factory):
    """YOLO 1.1: lists of images whose paths begin in another folder."""
    yolo(tmp_path, "obj_train_data", "obj_train_data", "ab")
    text(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    text(tmp_path / "obj.names", "car\n")
    text(
        tmp_path / "obj.data",
        "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("../obj.names",)}
    yolo(tmp_path, "obj_valid_data", "obj_valid_data", "cd")
    text(tmp_path / "valid.txt", "data/obj_valid_data/c.jpg\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("obj.names", "train.txt"), "validation": ("obj.names", "valid.txt")}
    assert frames(layout, tmp_path_factory) == {
        "train": ["obj_train_data/a", "obj_train_data/b"],
        "validation": ["obj_valid_data/c"],
    }
    assert layout.told.endswith(
        "lists of images: train.txt, valid.txt; left out, labelled images that no list has: 1"
    )


def test_cvat_in_folders(tmp_path):
    """Ultralytics YOLO 1.0."""
    yolo(tmp_path, "images/train", "labels/train", "ab")
    text(tmp_path / "train.txt", "images/train/a.jpg\nimages/train/b.jpg\n")
    text(tmp_path / "data.yaml", "path: .\ntrain: train.txt\nnames:\n  0: car\n")
    assert settings(recognise(tmp_path)) == {"train": ("data.yaml",)}


def test_label_studio(tmp_path, tmp_path_factory):
    yolo(tmp_path, "images", "labels", ["1a2b3c4d-a", "5e6f7a8b-b"])
    text(tmp_path / "classes.txt", "bus\ncar\n")
    text(
        tmp_path / "notes.json",
        '{"categories": [{"id": 0, "name": "bus"}], "info": {"contributor": "Label Studio"}}',
    )
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("classes.txt",)}
    assert root_of(layout) == str(tmp_path)
    (tmp_path / "classes.txt").write_text("car\nbus\n")
    assert frames(layout, tmp_path_factory) == {"train": ["images/1a2b3c4d-a", "images/5e6f7a8b-b"]}


@pytest.mark.parametrize("labels, classes", [("", "classes.txt"), ("labels", "labels/classes.txt")])
def test_labelimg(tmp_path, tmp_path_factory, labels, classes):
    """Beside the images, or in a folder of its own, with the class names."""
    yolo(tmp_path, "images" if labels else "", labels, "ab")
    text(tmp_path / classes, "car\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": (classes,)}
    folder = "images/" if labels else ""
    assert frames(layout, tmp_path_factory) == {"train": [f"{folder}a", f"{folder}b"]}


def test_images_without_labels_elsewhere_are_not_read(tmp_path):
    """They would be taken for images that show no object."""
    yolo(tmp_path, "images", "labels", "ab")
    image(tmp_path / "unlabelled/c")
    text(tmp_path / "classes.txt", "car\n")
    layout = recognise(tmp_path)
    assert settings(layout) == {"train": ("classes.txt", "images")}
    assert layout.told.endswith("; left out, as they have no labels, images in unlabelled (1)")


@pytest.mark.parametrize(
    "label",
    [
        "0 0.1 0.1 0.5 0.1 0.5 0.6\n",  # an outline
        "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 0.3 0.3 0.2 0.2 0.1 0.15\n",  # of as many columns as KITTI has, nearly
        "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 0.3 0.3 0.2 0.2 0.1 0.1\n" + LABEL,
        "3.0 0.5 0.5 0.2 0.2\n",
        "0 120 80 60 40\n",  # pixels, which reading tells
        "\ufeff\r\n0 0.5 0.5 0.2 0.2\r\n",
        "",
    ],
)
def test_lines(tmp_path, label):
    yolo(tmp_path, "", "", "abc", label)
    text(tmp_path / "classes.txt", "car\n")
    assert recognise(tmp_path).kind == "yolo"


def test_no_class_names(tmp_path):
    yolo(tmp_path, "images", "labels", "ab")
    with pytest.raises(DataError, match=r"labels of YOLO and no names .* write them into classes\.txt"):
        recognise(tmp_path)


def test_labels_that_are_not_looked_for(tmp_path):
    yolo(tmp_path, "pictures", "boxes", "ab")
    text(tmp_path / "classes.txt", "car\n")
    with pytest.raises(DataError, match="pictures has the images of boxes, whose labels .* rename them so"):
        recognise(tmp_path)
