"""What a data set holds is counted as a person would count it."""

import json

import numpy as np
import pytest
from PIL import Image

from detectkit.data.layouts import recognise
from detectkit.errors import DataError
from detectkit.propose.count import count, nearest_overlap


def test_images_boxes_and_sizes(tmp_path, write_kitti):
    images = [[("Car", 0, 0, 64, 48), ("car", 64, 48, 128, 96)], [("Truck", 32, 24, 64, 48)], []]
    write_kitti(tmp_path / "d" / "train", images)
    write_kitti(tmp_path / "d" / "val", [[("Car", 0, 0, 12.8, 9.6)]])
    contents = count(recognise(tmp_path / "d"))
    assert contents.names == ["Car", "Truck"]  # "Car" 2, "car" 1
    assert contents.spellings["Car"] == {"Car": 2, "car": 1}
    train, validation = contents.portions["train"], contents.portions["validation"]
    assert (len(train.images), train.empty, train.counts(contents.names)) == (3, 1, [2, 1])
    assert train.images_with(contents.names) == [1, 1]
    assert train.boxes.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.25, 0.25]]
    assert validation.boxes[0] == pytest.approx([0.1, 0.1])
    assert train.sizes.tolist() == [[128, 96]] * 3
    assert (contents.drawn, contents.images) == (0, 4)


def test_boxes_are_measured_inside_the_image(tmp_path, write_kitti):
    write_kitti(tmp_path / "d", [[("a", -64, -48, 64, 48)], [("a", 200, 0, 300, 50)]] * 5)
    contents = count(recognise(tmp_path / "d"))
    boxes = np.concatenate([portion.boxes for portion in contents.portions.values()])
    assert sorted(map(tuple, boxes.tolist())) == [(0, 50 / 96)] * 5 + [(0.5, 0.5)] * 5


def test_regions_to_be_ignored_are_no_class(tmp_path, write_kitti):
    write_kitti(tmp_path / "d", [[("DontCare", 0, 0, 64, 48), ("a", 0, 0, 64, 48)]] * 5)
    contents = count(recognise(tmp_path / "d"))
    assert (contents.names, contents.ignored) == (["a"], 5)
    assert sum(len(portion.boxes) for portion in contents.portions.values()) == 5


def test_without_a_split_a_fifth_is_drawn_that_leaves_every_class_a_training_box(tmp_path, write_kitti):
    images = [[("common", 0, 0, 64, 48)] for _ in range(20)]
    for number in range(0, 20, 4):
        images[number].append((f"rare{number}", 64, 0, 128, 48))
    write_kitti(tmp_path / "d", images)
    contents = count(recognise(tmp_path / "d"))
    assert [len(contents.portions[role].images) for role in ("train", "validation")] == [16, 4]
    assert all(contents.train.counts(contents.names))
    assert contents.readings[0].config.kitti_config.val_split == 20
    assert contents.seed == contents.readings[0].config.random_seed


def test_a_single_file_of_coco_is_drawn_from(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{number}.jpg")
    images = [{"id": n, "file_name": f"images/{n}.jpg", "width": 64, "height": 48} for n in range(10)]
    annotations = [{"id": n, "image_id": n, "category_id": 3, "bbox": [0, 0, 32, 24]} for n in range(10)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cup"}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    contents = count(recognise(tmp_path))
    assert {role: len(portion.images) for role, portion in contents.portions.items()} == {
        "validation": 2,
        "train": 8,
    }
    assert contents.names == ["cup"]


@pytest.mark.parametrize(
    "images, text",
    [
        ([[]] * 3, "not one box in the labels of 3 images: label some objects first"),
        ([[("DontCare", 0, 0, 9, 9)]] * 2, "not one box in the labels of 2 images"),
        (
            [[("a", 9, 9, 9, 20)]] * 2,
            "not one box in the labels of 2 images: 2 times: the box (9, 9, 9, 20) has no area",
        ),
    ],
)
def test_nothing_labelled(tmp_path, write_kitti, images, text):
    write_kitti(tmp_path / "d", images)
    with pytest.raises(DataError) as error:
        count(recognise(tmp_path / "d", "kitti"))
    assert text in str(error.value)


def test_nearest_overlap():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [0, 5, 10, 15], [50, 50, 60, 60]], dtype=float)
    # 0 and 1: 100 of 200; 1 and 2: 100 of 200; 0 and 2: 50 of 150, of another class
    assert nearest_overlap(boxes, np.array([0, 0, 1, 0])).tolist() == [0.5, 0.5, 0, 0]
    assert nearest_overlap(boxes, np.array([0, 0, 0, 0])).tolist() == [0.5, 0.5, 0.5, 0]
    assert nearest_overlap(boxes[:1], np.array([0])).tolist() == [0]
    assert nearest_overlap(np.zeros((3, 4)), np.zeros(3, np.int64)).tolist() == [0, 0, 0]


def test_images_of_another_split_in_the_same_folder_are_not_left_out(tmp_path):
    """One folder of images, and a table a split: what is left out is the one image that no table names."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{number}.jpg")
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    for name, numbers in (("train_labels.csv", range(3)), ("test_labels.csv", range(3, 5))):
        rows = [f"{number}.jpg,64,48,a,1,1,20,20" for number in numbers]
        (tmp_path / name).write_text("\n".join([head, *rows, ""]))
    contents = count(recognise(tmp_path))
    assert [len(contents.portions[role].images) for role in ("train", "test")] == [3, 2]
    assert {reject.file for reject in contents.rejected} == {str(tmp_path / "images" / "5.jpg")}
