"""What is said of data before a training, with the numbers that a person can count."""

import numpy as np
import pytest

from detectkit import spec
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import BACKGROUND, Objects
from detectkit.data.warn import require_seen, warnings
from detectkit.errors import DataError


def augmentation(**preprocessing):
    config = spec.AugmentationConfig()
    pre = config.preprocessing
    pre.output_image_width, pre.output_image_height = 96, 64
    for name, value in preprocessing.items():
        setattr(pre, name, value)
    return config


def dataset(images, *boxes, size=(96, 64), name="a"):
    """So many images with the same (box, class), of square and bar; `name` begins those of the files."""
    sides = np.array([box for box, _ in boxes], np.float32).reshape(-1, 4)
    classes = np.array([number for _, number in boxes], np.int64)
    zeros = np.zeros(len(boxes), np.float32), np.zeros(len(boxes), np.int64)
    objects = Objects(sides, classes, ("a",) * len(boxes), *zeros)
    frames = [Frame(f"{name}{at}", f"{name}{at}.png", None, 0, size, objects) for at in range(images)]
    return Dataset(frames, ["square", "bar"])


SQUARE, BAR = ([0, 0, 20, 20], 0), ([40, 0, 80, 16], 1)


def told(training, validation=None, **preprocessing):
    return warnings(training, validation, augmentation(**preprocessing), stride=16)


def test_enough_of_all_is_not_spoken_of():
    assert told(dataset(50, SQUARE, BAR), dataset(1, SQUARE, BAR)) == []


def test_few_images():
    [few] = told(dataset(49, SQUARE, BAR))
    assert few.startswith("49 training images are few: ") and "pretrained_model_file" in few


def test_one_box_that_is_seen_is_enough():
    hidden, config = dataset(2500, ([200, 0, 220, 20], 0)), augmentation()
    with pytest.raises(DataError) as full:
        told(hidden)
    with pytest.raises(DataError) as short:
        require_seen(hidden, config, stride=16)
    assert str(short.value) == str(full.value)
    hidden.frames += dataset(1, BAR, name="b").frames
    require_seen(hidden, config, stride=16)
    require_seen(dataset(3), config, stride=16)


def test_a_class_with_three_boxes_beside_one_with_thousands():
    data = dataset(1000, SQUARE, SQUARE)
    data.frames += dataset(3, BAR, name="b").frames
    few, rare = told(data)
    assert few.startswith("too few training boxes to learn a class from: bar 3; label more")
    assert (
        rare.startswith("rare beside the 2,000 training boxes of square: bar 3; ") and "class_weight" in rare
    )
    data.frames += dataset(17, BAR, name="c").frames
    assert told(data) == []  # 20 are enough, and one for 100


def test_boxes_smaller_than_a_cell():
    small, large = ([0, 0, 15, 17], 1), ([40, 0, 56, 16], 1)  # 255 and 256 pixels
    [warning] = told(dataset(50, SQUARE, small, large))
    assert warning.startswith(
        "50 of 100 training boxes of bar are smaller than a grid cell of 16x16 pixels: "
    )
    assert told(dataset(50, SQUARE, small, large, large, large)) == []  # a quarter of them
    halved = told(dataset(50, SQUARE, BAR, size=(192, 128)), enable_auto_resize=True)
    assert [warning[:37] for warning in halved] == [
        "all 50 training boxes of square are s",
        "all 50 training boxes of bar are smal",
    ]


def test_boxes_that_the_network_does_not_see():
    away = ([100, 0, 140, 16], 1)
    [warning] = told(dataset(50, SQUARE, BAR, away, size=(192, 64)))
    assert warning.startswith(
        "50 of 100 training boxes of bar are outside the 96x64 pixels that the network sees"
    )
    assert "enable_auto_resize: true" in warning and "their images have up to 192x64" in warning
    [warning] = told(dataset(50, SQUARE, BAR, BAR, BAR, away, size=(192, 64)))  # however few they are
    assert warning.startswith("50 of 200 training boxes of bar are outside the 96x64 pixels")


def test_a_class_that_the_network_does_not_see_stops_no_training_of_another():
    away = ([100, 0, 140, 16], 1)
    warning, gone = told(dataset(50, SQUARE, away, size=(192, 64)))
    assert gone == "no training box of bar is left for the network: it is not learnt"
    assert warning.startswith(
        "all 50 training boxes of bar are outside the 96x64 pixels that the network sees"
    )
    warning, _ = told(dataset(50, SQUARE, BAR), min_bbox_height=17)
    assert warning.startswith("all 50 training boxes of bar are below min_bbox_width or min_bbox_height: ")
    assert "these are 1 and 17 pixels, and such boxes at most 40 wide and 16 high as the network" in warning
    with pytest.raises(DataError, match="all 100 training boxes of all classes are below min_bbox_width or"):
        told(dataset(50, SQUARE, BAR), min_bbox_height=21)
    unknown = dataset(50, SQUARE, BAR)
    unknown.frames[0] = unknown.frames[0]._replace(size=None)  # not known before it is decoded
    assert len(told(unknown, min_bbox_height=21)) == 1


def test_copies_of_images_count_once():
    data = dataset(50, SQUARE)
    data.frames += dataset(5, BAR, name="b").frames * 5  # as num_duplicates: 4 writes them
    [few] = told(data)
    assert few.startswith("too few training boxes to learn a class from: bar 5; label more")
    [few, _] = told(Dataset(data.frames[:10] * 9 + data.frames[50:], data.class_names))
    assert few.startswith("15 training images are few")
    many = dataset(1000, SQUARE)
    many.frames += dataset(5, BAR, name="b").frames * 2
    [_] = told(many)  # not rare: 10 boxes of 1,000 in the cost


def test_many_classes_are_told_by_the_first_and_their_number():
    data = dataset(50, *(([0, 0, 40, 40], number) for number in range(30)))
    data.class_names = [f"class{number}" for number in range(60)]
    few = told(data)[0]
    assert "learn a class from: class30 0, class31 0, " in few and "class41 0 and 18 more; label more" in few


def test_labels_of_no_class_are_not_counted():
    other = ([100, 0, 101, 1], BACKGROUND)
    assert told(dataset(50, SQUARE, BAR, other, other, other)) == []


def test_classes_without_a_validation_box():
    assert told(dataset(50, SQUARE, BAR), dataset(1, SQUARE)) == [
        "no validation box of class bar: no average precision, and no part in the mAP"
    ]
    assert "class square, bar" in told(dataset(50, SQUARE, BAR), dataset(1))[0]
