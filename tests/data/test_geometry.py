"""Where boxes lie that no training sees: their number, the likely reason, and the field to change."""

import pytest

from detectkit.errors import DataError
from tests.data.test_warn import BAR, SQUARE, dataset, told


def moved(box, factor):
    sides, name = box
    return [factor * side for side in sides], name


def test_images_made_smaller_after_labelling():
    """As of 25 boxes 23: on images of a third of the size."""
    data = dataset(50, moved(SQUARE, 0.5), BAR, moved(BAR, 3), moved(BAR, 4))
    warning, gone = told(data)[:2]
    assert warning.startswith(
        "100 of 150 training boxes of bar are outside their image: a0 has 96x64 pixels, and a"
    )
    assert (
        "a box from 120, 0 to 240, 48; boxes reach to 3.3 times the width and 1 times the height" in warning
    )
    assert "were the images made smaller, or cut, after labelling?" in warning
    with pytest.raises(DataError, match="all 50 training boxes of bar are outside their image"):
        told(dataset(50, moved(BAR, 3)))


def test_boxes_that_reach_far_beyond_their_image():
    """They are not lost, but a stump is learnt for the object."""
    data = dataset(50, SQUARE, ([80, 0, 160, 64], 1))
    [warning] = told(data)
    assert warning.startswith(
        "all 50 training boxes of bar are with more than half of their area outside their image: a0 has 96x64"
    )
    assert told(dataset(50, SQUARE, ([80, 0, 110, 64], 1))) == []


def test_images_turned_after_labelling():
    [warning, *_] = told(dataset(50, SQUARE, ([70, 10, 90, 40], 1), size=(64, 96)), enable_auto_resize=True)
    assert "all 50 training boxes of bar are outside their image: " in warning
    assert "were the images turned by a quarter after labelling?" in warning


def test_negative_coordinates():
    [warning, *_] = told(dataset(50, SQUARE, BAR, ([-30, -20, -2, -1], 1)))
    assert "50 of 100 training boxes of bar are outside their image: " in warning
    assert "their coordinates are negative" in warning


def test_shares_of_the_image():
    """Even where the image is made so large that there would be pixels of them."""
    share = ([0.2, 0.25, 0.5, 0.75], 1)
    [warning, *_] = told(dataset(50, SQUARE, BAR, share), enable_auto_resize=True)
    assert warning.startswith(
        "50 of 100 training boxes of bar are between 0 and 1: they are shares of the image"
    )
    assert "multiply x by the width and y by the height" in warning
    with pytest.raises(DataError, match="all 50 training boxes of bar are between 0 and 1"):
        told(dataset(50, share, size=(2, 2)), enable_auto_resize=True)
    with pytest.raises(DataError, match="all 50 training boxes of bar are between 0 and 1"):
        told(dataset(50, ([-0.8, -0.75, 0.5, 0.75], 1)))  # of Pascal VOC, whose pixels count from 1


def test_corners_where_a_size_is_meant():
    """COCO's bbox with x2 and y2: the boxes 50, 30, 80, 50 and 40, 20, 70, 60."""
    data = dataset(50, ([50, 30, 130, 80], 0), ([40, 20, 110, 80], 1))
    [warning] = told(data)
    assert "are the labels x1, y1, x2 and y2, where x, y, width and height are meant?" in warning
    assert "made smaller" not in warning
    assert "made smaller" in told(dataset(50, ([60, 30, 130, 80], 0), ([70, 50, 130, 90], 1)))[0]


def test_a_network_smaller_than_the_image():
    """As 34 of 36 boxes: those on the left are seen, others partly."""
    data = dataset(50, SQUARE, ([90, 0, 110, 20], 0), ([200, 0, 240, 20], 0), BAR, size=(960, 640))
    [warning, *_] = told(data)
    assert warning.startswith(
        "100 of 150 training boxes of square are outside the 96x64 pixels that the network sees (50 of them by more than"
        " half, the others wholly): their images have up to 960x640; enable_auto_resize: true, or a larger output_image"
    )
    assert "in augmentation_config.preprocessing" in warning
    resized = told(data, enable_auto_resize=True)
    assert [line.split(" are ")[0] for line in resized] == [
        "all 150 training boxes of square",
        "all 50 training boxes of bar",
    ]
    assert all("smaller than a grid cell" in line for line in resized)


def test_a_crop_that_cuts_boxes_away():
    [warning, *_] = told(
        dataset(50, SQUARE, BAR),
        crop_left=30,
        crop_right=96,
        crop_top=0,
        crop_bottom=64,
        enable_auto_resize=True,
    )
    assert warning.startswith("all 50 training boxes of square are outside the 96x64 pixels")
    assert "other crop_left, crop_top, crop_right and crop_bottom in augm" in warning
    assert "enable_auto_resize" not in warning  # it is set


def test_labels_of_smaller_images():
    """In percent, in thousandths, or of images that were enlarged: nothing is lost, and all is wrong."""
    boxes = [([3 * at, at, 3 * at + 40, at + 40], at % 2) for at in range(20)]
    for factor, words in ((1, "in percent"), (10, "in thousandths")):
        larger = [moved(box, factor) for box in boxes]
        lines = told(dataset(50, *larger, size=(1920, 1080)), enable_auto_resize=True)
        [corner] = [line for line in lines if "top left" in line]
        assert words in corner and corner.startswith("all 1,000 training boxes lie in the top left ")
    # Few that differ may be there by chance, and those of larger parts are where they should be.
    for few in (boxes[:19] * 2, [*boxes, ([1000, 0, 1100, 40], 0)]):
        assert not [line for line in told(dataset(50, *few, size=(1920, 1080))) if "top left" in line]


def test_each_reason_has_its_count_and_nothing_is_counted_twice():
    outside, cut, small = ([300, 0, 340, 20], 0), ([100, 0, 140, 20], 0), ([0, 0, 8, 8], 0)
    data = dataset(50, SQUARE, outside, cut, small, BAR, size=(192, 64))
    lines = told(data, min_bbox_width=10)
    assert [line.split(" are ")[0] for line in lines] == ["50 of 200 training boxes of square"] * 3
    with pytest.raises(DataError, match="no training box of 150 is left for the network: 50 of 150 training"):
        told(dataset(50, outside, cut, small, size=(192, 64)), min_bbox_width=10)


def test_validation_boxes_are_judged_too():
    lines = told(dataset(50, SQUARE, BAR), dataset(5, SQUARE, moved(BAR, 3)))
    assert lines[0].startswith("all 5 validation boxes of bar are outside their image: ")
    assert lines[1] == "no validation box of class bar: no average precision, and no part in the mAP"
    lines = told(dataset(50, SQUARE, BAR), dataset(5, moved(BAR, 3)))
    assert lines[1].startswith(
        "no validation box of class square, bar: no average precision, and no mAP at all"
    )


def test_many_classes_make_one_sentence():
    data = dataset(50, *(([200, 0, 240, 16], number) for number in range(8)), ([0, 0, 40, 40], 8))
    data.class_names = [f"class{number}" for number in range(9)]
    lost = [line for line in told(data) if "outside their image" in line]
    assert len(lost) == 1 and lost[0].startswith("400 of 450 training boxes (class7 all 50, class6 all 50, ")
    assert " and 4 more classes) are outside" in lost[0]
    data = dataset(50, *(([0, 0, 8, 8], number) for number in range(8)), ([0, 0, 40, 40], 8))
    data.class_names = [f"class{number}" for number in range(9)]
    [small] = [line for line in told(data) if "smaller than a grid cell" in line]
    assert small.startswith("400 of 450 training boxes (class7 all 50, ")
