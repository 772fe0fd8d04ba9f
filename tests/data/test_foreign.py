"""Folders that hold no layout, two, or one that is not read: one message each, that says what to do."""

import json
import os

import pytest

from detectkit.data.layouts import recognise
from detectkit.errors import DataError, UsageError
from tests.data.test_layouts import TABLE, coco, image, kitti, text, voc

LABELME = {
    "version": "5.3.1",
    "shapes": [{"label": "car", "points": [[2, 3], [30, 40]]}],
    "imagePath": "a.jpg",
}
LABEL_STUDIO = [
    {"id": 1, "annotations": [{"result": [{"original_width": 64, "value": {"rectanglelabels": ["car"]}}]}]}
]
LABEL_STUDIO_MIN = [{"image": "/data/upload/1/a.jpg", "label": [{"x": 1, "rectanglelabels": ["car"]}]}]
SUPERVISELY = {"description": "", "tags": [], "size": {"height": 48}, "objects": [{"classTitle": "car"}]}
VIA = {"a.jpg123": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect", "x": 2}}]}}
VIA_PROJECT = {"_via_settings": {}, "_via_img_metadata": {}}
CREATEML = [{"image": "a.jpg", "annotations": [{"label": "car", "coordinates": {"x": 16, "y": 20}}]}]
DATUMARO = {"info": {}, "categories": {"label": {"labels": []}}, "items": [{"id": "a", "annotations": []}]}
CVAT = '<?xml version="1.0"?>\n<annotations>\n<version>1.1</version>\n<meta></meta>\n<{} id="0" name="a.jpg"></{}></annotations>'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", json.dumps(LABELME), r"LabelMe's JSON.*labelme2voc\.py"),
        (
            "annotations.xml",
            CVAT.format("image", "image"),
            "CVAT for images 1.1.*in CVAT, export the task as COCO 1.0",
        ),
        ("annotations.xml", CVAT.format("track", "track"), "CVAT for video 1.1.*in CVAT, export"),
        (
            "project-1.json",
            json.dumps(LABEL_STUDIO),
            "Label Studio's own JSON.*in Label Studio, export as COCO",
        ),
        ("project-1.json", json.dumps(LABEL_STUDIO_MIN), "Label Studio's own JSON"),
        ("ann/a.jpg.json", json.dumps(SUPERVISELY), "Supervisely's JSON.*Export to COCO"),
        ("via_region_data.json", json.dumps(VIA), r"VGG Image Annotator's JSON.*\(COCO format\)"),
        ("via_project.json", json.dumps(VIA_PROJECT), "VGG Image Annotator's JSON"),
        ("train/_annotations.createml.json", json.dumps(CREATEML), "CreateML's JSON.*in Roboflow, export"),
        ("annotations/default.json", json.dumps(DATUMARO), "Datumaro's JSON.*in CVAT, export"),
        ("train/cars.tfrecord", "\x08", "TensorFlow's TFRecord"),
        ("train.record", "\x08", "TensorFlow's TFRecord"),
        ("train.tfrecord-00000-of-00010", "\x08", "TensorFlow's TFRecord"),
    ],
)
def test_formats_that_are_not_read(tmp_path, name, content, message):
    image(tmp_path / "a")
    text(tmp_path / name, content)
    with pytest.raises(DataError, match=f"a file of {message}") as raised:
        recognise(tmp_path)
    assert f"({tmp_path / name})" in str(raised.value) and "\n" not in str(raised.value)


def refused(folder, kind=None, error=DataError):
    with pytest.raises(error) as raised:
        recognise(folder, kind)
    return str(raised.value)


def test_what_is_no_folder(tmp_path):
    text(tmp_path / "set.zip", "PK")
    text(tmp_path / "set/data.yaml", "names: [car]\n")
    assert (
        refused(tmp_path / "set.zip") == f"{tmp_path}/set.zip is an archive: unpack it, and give the folder"
    )
    assert refused(tmp_path / "set/data.yaml").endswith(
        f"give the folder of the data set, {tmp_path}/set perhaps"
    )
    assert refused(tmp_path / "none") == f"there is no folder {tmp_path}/none"


def test_a_folder_with_nothing_to_read(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is empty: put images and their labels into it"
    text(tmp_path / ".DS_Store", "")
    text(tmp_path / "__MACOSX/._a.jpg", "")
    assert refused(tmp_path) == f"{tmp_path} is empty: put images and their labels into it"
    text(tmp_path / "set.zip", "PK")
    assert refused(tmp_path).endswith("but the archive set.zip: unpack it")


def test_images_without_labels(tmp_path):
    image(tmp_path / "train/a")
    image(tmp_path / "train/b", "png")
    assert "has 2 images and no labels: label them" in refused(tmp_path)
    text(tmp_path / "README.txt", "cars\n")
    assert "it has 2 images, and none of its text files (1 .txt) is a label file" in refused(tmp_path)


def test_labels_without_images(tmp_path):
    voc(tmp_path, "images", "labels", "ab")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert "it has label files (2 .xml) and no images: put these beside them" in refused(tmp_path)


def test_names_that_do_not_fit(tmp_path):
    kitti(tmp_path, "images", "labels", "ab")
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name("frame_" + path.name))
    assert "none of its text files (2 .txt) is a label file with the name of an image" in refused(tmp_path)


def test_labels_of_label_studio_without_its_images(tmp_path):
    image(tmp_path / "images/street")
    text(tmp_path / "labels/1a2b3c4d-street.txt", "0 0.5 0.5 0.1 0.1\n")
    assert "labels/1a2b3c4d-street.txt has the name of an image but for the letters" in refused(tmp_path)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("a car on a street", "5 columns"),
        ("car 2 3 30 40", "a class and a box alone"),
        ("0 1 car 0 0 0 2 3 30 40 0 0 0 0 0 0 0", "KITTI's tracking"),
        ("2 3 30 3 30 40 2 40 car 0", "a line of DOTA"),
        ("", "are empty: label the images"),
    ],
)
def test_text_files_of_something_else(tmp_path, line, reason):
    image(tmp_path / "a")
    text(tmp_path / "a.txt", line)
    assert reason in refused(tmp_path)


def test_a_table_of_something_else(tmp_path):
    image(tmp_path / "a")
    text(tmp_path / "labels.csv", "image,label\na.jpg,car\n")
    assert f"{tmp_path}/labels.csv needs columns for the file name, the class and the box" in refused(
        tmp_path
    )


def test_two_layouts(tmp_path):
    voc(tmp_path, "images", "annotations", "ab")
    text(tmp_path / "data/train_labels.csv", TABLE.format(name="a"))
    assert refused(tmp_path, error=UsageError) == (
        f"{tmp_path} holds 2 layouts, Pascal VOC (2 XML files: annotations (2)) and CSV (tables of boxes: "
        "data/train_labels.csv): say which one with --format voc or --format csv"
    )


def test_a_layout_that_is_not_there(tmp_path):
    voc(tmp_path, "images", "annotations", "ab")
    assert refused(tmp_path, "yolo") == (
        f"no labels of YOLO in {tmp_path}: it holds Pascal VOC (2 XML files: annotations (2)); leave --format out"
    )
    assert refused(tmp_path, "labelme", UsageError) == (
        "there is no layout 'labelme': choose one of kitti, coco, voc, yolo, csv"
    )


def test_nothing_to_train_on(tmp_path):
    kitti(tmp_path, "val", "val", "a")
    kitti(tmp_path, "test", "test", "b")
    assert "has labels for test and validation, and none for training" in refused(tmp_path)


def test_splits_inside_one_another(tmp_path):
    """The images of the inner one would be trained on."""
    voc(tmp_path, "", "", "ab")
    voc(tmp_path, "test", "test", "c")
    assert "the folder itself has images of one split, and inside it test those of another one" in refused(
        tmp_path
    )


def test_several_folders_for_one_split(tmp_path):
    for camera in ("left", "right"):
        kitti(tmp_path, f"{camera}/images", f"{camera}/boxes", "a")
    assert "of one split are in 2 folders" in refused(tmp_path)
    for year in ("VOC2007", "VOC2012"):
        voc(tmp_path / "VOCdevkit", f"{year}/JPEGImages", f"{year}/Annotations", [year])
        text(tmp_path / f"VOCdevkit/{year}/ImageSets/Main/train.txt", f"{year}\n")
    assert refused(tmp_path / "VOCdevkit").endswith(
        "has several VOC folders (VOC2007, VOC2012): give one of them"
    )


def test_coco_whose_images_are_elsewhere(tmp_path):
    text(tmp_path / "annotations/train.json", coco(["a"]))
    assert f"{tmp_path}/annotations/train.json is for images such as 'a.jpg', and none of them" in refused(
        tmp_path
    )
    text(tmp_path / "annotations/train.json", coco([]))
    assert "has no labels: label its images" in refused(tmp_path)


def test_two_files_for_the_same_images(tmp_path):
    image(tmp_path / "images/a")
    for name in ("result", "result-2"):
        text(tmp_path / f"{name}.json", coco(["a"]))
    assert "result-2.json and result.json are for the same images: move one away" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "\0\0", '{"images": [', '"images": [], "categories": []', "[" * 10000]
)
def test_broken_files_are_no_layout(tmp_path, content):
    image(tmp_path / "a")
    for name in ("a.json", "a.csv", "a.xml", "b.txt", "data.yaml"):
        text(tmp_path / name, content)
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_cannot_be_read(tmp_path):
    """A pipe would be waited for, and a link leads nowhere."""
    image(tmp_path / "a")
    for number, name in enumerate(("a.json", "a.csv", "a.xml", "a.txt", "train.txt", "data.yaml")):
        os.mkfifo(tmp_path / name)
        os.symlink(tmp_path / "nothing", tmp_path / f"{number}{name}")
    assert str(tmp_path) in refused(tmp_path)
