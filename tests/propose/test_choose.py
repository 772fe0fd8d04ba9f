"""What is chosen, by counts that a person can check."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detectkit import spec
from detectkit.data.layouts import Layout
from detectkit.data.readers import LabelledImage
from detectkit.errors import DataError, UsageError
from detectkit.propose import choose
from detectkit.propose.choose import Candidate, Pace, Start
from detectkit.propose.count import Contents, Portion, Reading

LITE = Start("efficientnet_lite0", 0, "lite.pth")
MOBILE = Start("mobilenet_v2", 0, "mobile.pth")


def portion(boxes, *, images=100, size=(640, 480), nearest=0.0):
    """Images of one size, and boxes as (class number, width, height in pixels), one an image, in turns."""
    kinds, widths, heights = (np.array(column) for column in zip(*boxes)) if boxes else ([], [], [])
    shares = np.array(list(zip(widths, heights)), dtype=float).reshape(-1, 2) / size
    return Portion(
        [LabelledImage(str(n), Path(f"{n}.jpg"), *size, ()) for n in range(images)],
        np.tile(np.array(size, float), (images, 1)),
        shares,
        np.array(kinds, dtype=np.int64),
        np.full(len(boxes), nearest) if np.isscalar(nearest) else np.array(nearest),
        np.arange(len(boxes)) % images,
    )


def contents(train, names=("cat",), *, drawn=0.0, **others):
    config = spec.DatasetExportConfig()
    config.kitti_config.root_directory_path = "data/pets"
    readings = [Reading(role, config, Path("data/pets"), "jpg", []) for role in ("train", *others)]
    portions = {"train": train, **others}
    spellings = {name: Counter({name: int((train.classes == n).sum())}) for n, name in enumerate(names)}
    return Contents(
        Layout("kitti", "label files", ()), readings, portions, list(names), spellings, 0, drawn, 42
    )


def test_classes_without_a_training_box_are_left_out():
    found = contents(portion([(0, 9, 9)] * 5), ("cat", "dog"))
    choice = choose.classes(found)
    assert (
        choice.value == ["cat"]
        and choice.why == "all that have a box to train on; dog has none; 5 boxes to train on"
    )
    with pytest.raises(DataError, match="no training image has a box of dog"):
        choose.classes(found, ["dog"])


def test_wanted_classes():
    found = contents(portion([(0, 9, 9)] * 5 + [(1, 9, 9)] * 3), ("Red Car", "dog"))
    choice = choose.classes(found, [" red car"])
    assert choice.value == ["Red Car"] and "boxes of dog are background; 5 boxes" in choice.why
    with pytest.raises(UsageError, match="no label is called 'dogs'; is 'dog' meant?"):
        choose.classes(found, ["dogs"])


@pytest.mark.parametrize(
    "others, role, text",
    [
        (
            {"validation": portion([(0, 9, 9)] * 7, images=20)},
            "validation",
            "as found: 20 images to measure on; with 7 boxes",
        ),
        (
            {"test": portion([(0, 9, 9)] * 8, images=30)},
            "test",
            "the 30 test images are measured after the last epoch only",
        ),
        ({"test": portion([(0, 9, 9)]), "validation": portion([(0, 9, 9)])}, "validation", "as found"),
        ({}, "", "nothing is measured"),
    ],
)
def test_split(others, role, text):
    choice = choose.split(contents(portion([(0, 90, 90)] * 100), **others), ["cat"])
    assert choice.value == role and text in choice.why


def test_a_draw_keeps_images_together_that_look_alike_unless_a_class_is_in_few_of_them():
    train, held = portion([(0, 9, 9)] * 90 + [(1, 9, 9)] * 3), portion([(0, 9, 9)] * 20 + [(1, 9, 9)])
    found = contents(train, ("cat", "dog"), drawn=20.0, validation=held)
    assert choose.keeps_together(found, ["cat"]) and not choose.keeps_together(found, ["cat", "dog"])
    assert (
        "20 % of the images, 100, are drawn for validation, image by image; dog has 1 boxes"
        in choose.split(found, ["cat", "dog"]).why
    )


@pytest.mark.parametrize(
    "size, box, expected",
    [
        ((640, 480), (105, 101), (416, 320)),  # 4.2 cells: as blood cells' red ones
        ((640, 480), (40, 40), (512, 384)),  # 1.6 cells: as platelets
        ((1920, 1080), (400, 300), (480, 288)),  # 133,120 pixels in 16:9: 486x274
        ((1080, 1920), (300, 400), (288, 480)),
        ((640, 640), (100, 100), (352, 352)),
        ((320, 192), (48, 48), (320, 192)),  # as large as the images are, with 3 cells
        ((96, 64), (28, 28), (192, 128)),  # twice that: 1.75 cells, and 3.5
        ((4000, 100), (300, 90), (736, 192)),  # no wider than four times its height
        ((30, 20), (2, 2), (544, 352)),  # 1.9 cells at 448x288
    ],
)
def test_input_follows_the_shape_of_the_images_and_the_size_of_objects(size, box, expected):
    found = contents(portion([(0, *box)] * 10, size=size))
    assert choose.input_sizes(found, ["cat"]).value == expected
    assert expected[0] % 32 == expected[1] % 32 == 0


def test_the_smallest_class_decides_and_is_named():
    found = contents(portion([(0, 200, 200)] * 50 + [(1, 40, 40)] * 5), ("cat", "mouse"))
    choice = choose.input_sizes(found, ["cat", "mouse"])
    # The root of 40 * 512 / 640 * 40 * 384 / 480 is 32 pixels, two cells.
    assert choice.value == (512, 384)
    assert choice.why == (
        "images are 1.33 times as wide as high, the smallest class, mouse, is 2.0 cells of 16 pixels wide (1.6 at 416x320)"
    )
    assert choice.others == ("416x320: the smallest class, mouse, is 1.6 cells wide",)
    assert choose.smaller((512, 384)) == (416, 320) and choose.smaller((320, 192)) == (320, 192)


def test_start():
    assert choose.start([]).value == Start("resnet", 10, "") and choose.start([]).value.title == "resnet10"
    choice = choose.start([MOBILE, LITE])
    assert choice.value == MOBILE and choice.others == ("efficientnet_lite0: its weights are there too",)


def test_the_largest_within_a_latency():
    large, usual = (512, 384), (416, 320)
    timed = [
        Candidate(MOBILE, large, 0.060),
        Candidate(LITE, large, 0.090),
        Candidate(MOBILE, usual, 0.030),
        Candidate(LITE, usual, 0.045),
    ]
    # A quarter takes 0.43 of the time of MobileNetV2, 0.33 of that of EfficientNet-Lite0.
    assert choose.within(timed, 0.040)[0].value == LITE
    assert choose.within(timed, 0.027)[0].value == MOBILE and choose.within(timed, 0.027)[1] == large
    assert choose.within(timed, 0.016)[0].value == LITE and choose.within(timed, 0.016)[1] == usual
    choice, size, holds = choose.within(timed, 0.002)
    assert (choice.value, size, holds) == (MOBILE, usual, False)
    assert choice.why.startswith(
        "none is within --target-latency 2 ms: mobilenet_v2 at 416x320 takes 30.0 ms here"
    )


@pytest.mark.parametrize(
    "names, mirrored",
    [
        (["raspberry_pi_3", "esp8266"], True),
        (["turn left", "turn right"], False),
        (["arrowLeft"], False),
        (["Right-arrow"], False),
        (["bright", "cleft"], True),
        (["7", "cat"], False),
        (["a"], False),
        (["10h", "ks"], False),
        (["nine", "queen"], False),
        (["ace of spades"], False),
        (["car", "truck"], True),
        (["f16"], True),
        (["letterbox"], True),
        (["letter_b"], False),
    ],
)
def test_no_mirroring_where_names_say_so(names, mirrored):
    assert choose.mirrors(names).value is mirrored


@pytest.mark.parametrize(
    "images, seconds, minutes, pretrained, expected",
    [
        (120, 0.5, 10, True, 40),  # 30 steps of half a second: 600 s are 40 epochs
        (120, 0.5, 60, True, 67),  # 2000 steps are enough
        (120, 0.5, 60, False, 134),
        (120, 0.5, 0.1, True, 1),
        (10, 0.1, 30, True, 667),
        (100_000, 0.1, 60, True, 1),
        (100_000, 0.1, 6000, True, 20),  # of many images 20 epochs
        (1, 0.5, 1, True, 120),
    ],
)
def test_epochs_from_seconds_a_step(images, seconds, minutes, pretrained, expected):
    choice = choose.epochs(images, 0, Pace(seconds, 0.1, 0), minutes, pretrained=pretrained)
    assert choice.value == expected


def test_validation_takes_of_the_minutes():
    pace = Pace(0.5, 0.1, 0)
    assert choose.passes("validation", 50, pace, 10) == 6  # half a minute of ten
    assert choose.passes("validation", 250, pace, 10) == 1  # a quarter of them
    assert choose.passes("test", 50, pace, 10) == 1
    # 600 s less 6 passes over 50 images of 0.1 s, 30 s: 38 epochs of 15 s.
    assert choose.epochs(120, 300, pace, 10, pretrained=True).value == 38
    choice = choose.epochs(120, 50, pace, 10, pretrained=True)  # 5 s: 39.7
    assert (
        choice.value == 39 and choice.why == "1,170 steps of 4 images at 500 ms, about 9.8 min; --minutes 10"
    )
    assert choice.others[1] == "40 epochs are 1200 steps, about 10 min"


def test_too_few_minutes_and_a_busy_machine_are_told():
    assert list(choose.hurried(120, 0, 40, Pace(0.5, 0.1, 0.5), 10)) == []
    short, busy = choose.hurried(120, 0, 10, Pace(0.5, 0.1, 3.2), 2)
    assert short == "300 steps of training, and about 1200 are needed: --minutes 10, or a faster machine"
    assert "busy (3.2 processes a core), so a step took 500 ms" in busy


@pytest.mark.parametrize(
    "images, measured, step", [(4000, 1000, 2.476), (120, 0, 0.5), (119, 30, 0.7), (7, 3, 0.01)]
)
def test_the_minutes_that_are_advised_are_enough(images, measured, step):
    """4000 images are 1000 steps: 1200 need two epochs of 41.3 minutes each, and those that are measured."""
    pace = Pace(step, 0.3, 0)
    least = choose.epochs(images, measured, pace, 0.001, pretrained=True)
    assert (
        least.value == 1 and "one epoch is the least, though it takes more than --minutes 0.001" in least.why
    )
    (advice,) = choose.hurried(images, measured, 1, pace, 0.001)
    minutes = int(advice.partition("--minutes ")[2].split(",")[0])
    if images == 4000:
        assert minutes == 88  # 2 * 1000 * 2.476 s + 1000 * 0.3 s
    enough = choose.epochs(images, measured, pace, minutes, pretrained=True)
    assert list(choose.hurried(images, measured, enough.value, pace, minutes)) == []


def test_clustering_gives_way_to_crowds():
    sparse = contents(portion([(0, 9, 9)] * 100, nearest=[0.5] * 2 + [0.0] * 98))
    assert choose.overlap(sparse, ["cat"]) == (
        0.45,
        "2.0 % of the boxes overlap one of their class by an IoU of more than 0.45",
        (),
    )
    crowd = contents(portion([(0, 9, 9)] * 100, nearest=[0.52] * 20 + [0.0] * 80))
    assert choose.overlap(crowd, ["cat"]).value == 0.55
    doubled = contents(portion([(0, 9, 9)] * 100, nearest=[0.95] * 20 + [0.0] * 80))
    assert choose.overlap(doubled, ["cat"]).value == 0.45
    dense = contents(portion([(0, 9, 9)] * 100, nearest=0.8))
    assert choose.overlap(dense, ["cat"]).value == 0.6


def test_names_that_may_be_one():
    def told(**counts):
        boxes = [(number, 9, 9) for number, count in enumerate(counts.values()) for _ in range(count)]
        return list(choose.alike(contents(portion(boxes), list(counts))))

    assert told(platelet=100, platelets=3) == [
        "may be one class: 'platelet' 100, 'platelets' 3; if so, name the label in target_class_mapping of dataset_config"
    ]
    assert len(told(stop_sign=50, StopSign=50)) == 1  # letters and digits alone are the same
    assert len(told(raccoon=100, racoon=4)) == 1
    assert told(raccoon=100, racoon=90) == []  # both are meant
    assert told(board_1=100, board_2=4) == []
    assert told(cat=100, car=4) == []


def test_spellings_of_one_name():
    found = contents(portion([(0, 9, 9)] * 5))._replace(spellings={"Car": Counter({"Car": 4, "car": 1})})
    assert list(choose.alike(found)) == [
        "labels that are one class, as letter case and blanks do not count: 'Car' 4, 'car' 1"
    ]


def proposal(found, names, size=(416, 320)):
    return choose.Proposal(
        "specs/pets.txt",
        "data/pets",
        found,
        choose.Choice(list(names), "every label that there is"),
        choose.split(found, names),
        choose.Choice(size, "images are square"),
        choose.start([]),
        choose.mirrors(names),
        choose.Choice(40, "1,200 steps"),
        1,
        choose.rate(pretrained=False),
        choose.overlap(found, names),
    )


def doubts(found, names, **more):
    return "\n".join(choose.doubts(proposal(found, names, **more)))


def test_doubts():
    train = portion([(0, 100, 100)] * 3000 + [(1, 100, 100)] * 25 + [(2, 3, 3)] * 3, images=4000)
    names = ["cat", "dog", "ant"]
    text = doubts(contents(train, names, test=portion([(0, 9, 9)] * 50 + [(1, 9, 9)] * 9)), names)
    assert "too few boxes to learn a class from, which are kept: ant 3; label 20 at least" in text
    assert "rare beside 3,000 boxes: dog 25" in text
    assert "few boxes to measure on: dog 9; each is 10 points" in text
    assert "test has no 'ant', which train has: how well they are found is not measured there" in text
    assert "the test images also set the rate of the training after pruning" in text
    # 3 x 3 pixels of 640x480 are 0.12 cells of 16 at 416x320.
    assert "smaller than a cell of 16 pixels at 416x320, in the median: ant 0.1 cells" in text


def test_doubts_of_few_images_empty_ones_and_doubled_labels():
    train = portion([(0, 100, 100)] * 10, images=40, nearest=[0.95] * 4 + [0.0] * 6)
    text = doubts(contents(train, validation=portion([(0, 9, 9)] * 20)), ["cat"])
    assert "40 training images are few" in text
    assert "30 of 40 training images have no box" in text
    assert "4 boxes lie on another one of their class" in text
    assert (
        doubts(contents(portion([(0, 99, 99)] * 100), validation=portion([(0, 99, 99)] * 20)), ["cat"]) == ""
    )


def test_doubts_of_shapes():
    wide = portion([(0, 100, 100)] * 100)
    sizes = np.array(wide.sizes)
    sizes[:30] = (300, 900)
    text = doubts(contents(wide._replace(sizes=sizes), validation=wide), ["cat"])
    assert "30 of 100 training images are of quite another shape than 416x320: they are stretched" in text
