"""YOLO folders: what becomes a record, what is left out and why, and what stops a conversion."""

import logging
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectkit import spec
from detectkit.data import sources
from detectkit.data.convert import convert, read
from detectkit.data.yolo import ClassList, find_classes, parse_labels, read_classes
from detectkit.errors import DataError

SIZE = (200, 100)
LINE = "1 0.5 0.5 0.2 0.4\n"  # from 80, 30 to 120, 70 pixels
CLASSES = ClassList(Path("classes.txt"), {0: "Car", 1: "Traffic light"})


def add_image(root, file, labels=None, *, label_file=None, size=SIZE):
    """An image, and its label file in `labels` for `images`."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    if labels is not None:
        place = root / (label_file or f"{file.rsplit('.', 1)[0].replace('images', 'labels')}.txt")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(labels if isinstance(labels, bytes) else labels.encode())


def settings(root, **changes):
    config = spec.DatasetExportConfig()
    config.yolo_config.root_directory_path = str(root)
    for field, value in changes.items():
        if isinstance(value, list):
            getattr(config.yolo_config, field)[:] = value
        else:
            setattr(config.yolo_config, field, value)
    return config


def source(root, **changes):
    return read(settings(root, **changes), random.Random(0))


def frames(found):
    """Labels of each fold by frame id: name and box."""
    return [
        {f.frame_id: [(label.name, *label.box) for label in f.labels] for f in fold} for fold in found.folds
    ]


def told(found):
    return [(reject.file.rsplit("/", 1)[-1], reject.line, reject.reason) for reject in found.rejected]


@pytest.fixture
def root(tmp_path):
    """As Roboflow exports: a folder for each set, and data.yaml."""
    for number in range(4):
        add_image(tmp_path / "d", f"train/images/{number}.jpg", LINE)
    add_image(tmp_path / "d", "valid/images/9.jpg", "0 0.5 0.5 1 1")
    (tmp_path / "d" / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['Car', 'Traffic light']\n"
    )
    return tmp_path / "d"


BOX = ("Traffic light", 80, 30, 120, 70)


# What becomes a record


@pytest.mark.spec_field(
    "YOLOConfig.root_directory_path", "YOLOConfig.image_dir_names", "YOLOConfig.num_shards"
)
def test_a_folder_makes_a_fold(root, tmp_path):
    config = settings(root, image_dir_names=["valid/images", "train/images"], num_shards=2)
    assert frames(read(config, random.Random(0))) == [
        {"valid/images/9": [("Car", 0, 0, 200, 100)]},
        {f"train/images/{number}": [BOX] for number in range(4)},
    ]
    summary = convert(config, str(tmp_path / "records" / "data"))
    assert [fold.boxes for fold in summary.folds] == [{"car": 1}, {"trafficlight": 4}]
    assert [len(fold.shards) for fold in summary.folds] == [1, 2]
    assert (summary.image_extension, summary.image_root, summary.rejected) == ("jpg", root, [])


@pytest.mark.spec_field("YOLOConfig.val_split")
@pytest.mark.parametrize("val_split, expected", [(0, [0, 5]), (1, [1, 4]), (40, [2, 3])])
def test_random_folds_of_all_images(root, val_split, expected):
    found = source(root, val_split=val_split)
    assert [len(fold) for fold in found.folds] == expected


@pytest.mark.parametrize(
    "image, labels",
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/a.jpg", "images/labels/a.txt"),
        ("images/b/images/c/a.jpg", "images/b/labels/c/a.txt"),
        ("Images/a.jpg", "Labels/a.txt"),
        ("Images/a.jpg", "labels/a.txt"),
        ("train/a.jpg", "train/labels/a.txt"),
        ("JPEGImages/a.jpg", "labels/a.txt"),
        ("train/a.jpg", "train/a.txt"),
        ("a.jpg", "a.txt"),
    ],
)
def test_where_label_files_are(tmp_path, image, labels):
    add_image(tmp_path, image, LINE, label_file=labels)
    (tmp_path / "classes.txt").write_text("Car\nTraffic light\n")
    folder = image.rpartition("/")[0]
    found = source(tmp_path, image_dir_names=[folder or "."])
    assert frames(found) == [{image[:-4]: [BOX]}] and found.rejected == []


def test_a_label_keeps_its_file_and_line(tmp_path):
    """Blank lines and those that are left out count."""
    (tmp_path / "classes.txt").write_text("Car\nBus\n")
    add_image(tmp_path, "images/a.png", f"{LINE}\n9 0.5 0.5 0.1 0.1\n{LINE}")
    add_image(tmp_path, "images/b.png")
    (labelled,), (bare,) = (
        [
            frame
            for fold in source(tmp_path, val_split=50).folds
            for frame in fold
            if frame.frame_id == f"images/{name}"
        ]
        for name in "ab"
    )
    assert (labelled.label_file, labelled.lines) == (str(tmp_path / "labels" / "a.txt"), (1, 4))
    assert (bare.label_file, bare.lines) == ("", ())


@pytest.mark.parametrize("labels", ["marks/train/labels", "pictures/train/labels"])
def test_images_may_be_elsewhere_than_labels(tmp_path, labels):
    add_image(tmp_path, "pictures/train/images/a.jpg", LINE, label_file=f"{labels}/a.txt")
    (tmp_path / "marks").mkdir(exist_ok=True)
    (tmp_path / "marks" / "classes.txt").write_text("Car\nTraffic light\n")
    config = settings(tmp_path / "marks", image_dir_names=["train/images"])
    config.image_directory_path = str(tmp_path / "pictures")
    found = read(config, random.Random(0))
    assert frames(found) == [{"train/images/a": [BOX]}] and found.image_root == tmp_path / "pictures"
    assert tmp_path / labels in sources.reads(config)


def test_the_labels_of_a_list_are_found_as_those_of_a_folder(tmp_path):
    add_image(tmp_path, "pictures/a.jpg", LINE, label_file="labels/a.txt")
    (tmp_path / "train.txt").write_text("pictures/a.jpg\n")
    (tmp_path / "classes.txt").write_text("Car\nTraffic light\n")
    assert frames(source(tmp_path, image_dir_names=["train.txt"])) == [{"pictures/a": [BOX]}]


def test_labels_beside_images_come_last(tmp_path):
    add_image(tmp_path, "images/a.jpg", LINE)
    (tmp_path / "images" / "a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "classes.txt").write_text("Car\nTraffic light\n")
    assert frames(source(tmp_path, image_dir_names=["images"])) == [{"images/a": [BOX]}]


def test_names_with_blanks_capitals_and_accents(tmp_path):
    """macOS takes letters and accents apart, in one of two file names."""
    composed = unicodedata.normalize("NFC", "Straße é 車")
    apart = unicodedata.normalize("NFD", composed)
    add_image(tmp_path, f"images/{apart}.JPG", LINE, label_file=f"labels/{composed}.txt")
    add_image(tmp_path, "images/A b.Jpeg", LINE)
    (tmp_path / "classes.txt").write_text("Fußgänger\n車 rot\n", encoding="utf-8-sig")
    found = source(tmp_path, image_dir_names=["images"])
    assert {labels[0][0] for labels in frames(found)[0].values()} == {"車 rot"}
    assert len(found.folds[0]) == 2 and found.rejected == []


def test_boxes_are_shares_of_the_image_as_viewers_turn_it(tmp_path):
    add_image(tmp_path, "images/a.jpg", LINE)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "classes.txt").write_text("Car\nTraffic light\n")
    found = source(tmp_path, image_dir_names=["images"])
    assert frames(found) == [{"images/a": [("Traffic light", 40, 60, 60, 140)]}]
    assert (found.folds[0][0].width, found.folds[0][0].turned) == (100, True)


# Lists of images


@pytest.mark.parametrize(
    "listed, is_moved",
    [
        ("train/images/0.jpg", False),
        ("./train/images/0.jpg\r", False),
        ("ROOT/train/images/0.jpg", False),
        ("../d/train/images/0.jpg", True),
        ("data/train/images/0.jpg", True),
        (r"C:\Users\me\My data\train\images\0.jpg", True),
        ("/home/me/project/IMAGES/0.JPG", True),
        ("/home/me/0.png", True),
    ],
)
def test_a_list_may_be_of_another_machine(root, caplog, listed, is_moved):
    (root / "train.txt").write_text(listed.replace("ROOT", str(root)) + "\n\n")
    with caplog.at_level(logging.INFO):
        found = source(root, image_dir_names=["train.txt"])
    assert frames(found) == [{"train/images/0": [BOX]}] and found.rejected == []
    assert ("1 paths are of another place" in caplog.text) == is_moved


def test_a_list_begins_at_the_root_or_at_its_own_folder(root):
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text(
        "../train/images/1.jpg\ntrain/images/2.jpg\ntrain/images/2.jpg\n"
    )
    found = source(root, image_dir_names=["lists/train.txt"])
    assert sorted(frames(found)[0]) == ["train/images/1", "train/images/2"]


def test_what_a_list_names_in_vain(root):
    for folder in ("a", "b"):
        add_image(root, f"{folder}/same.jpg", LINE)
    (root / "train.txt").write_text("train/images/0.jpg\nelsewhere/same.jpg\nnone.jpg\n")
    found = source(root, image_dir_names=["train.txt"])
    assert list(frames(found)[0]) == ["train/images/0"]
    assert told(found) == [
        (
            "train.txt",
            2,
            "several images may be 'elsewhere/same.jpg': a/same.jpg, b/same.jpg ('elsewhere/same.jpg')",
        ),
        ("train.txt", 3, "the image is missing ('none.jpg')"),
    ]


@pytest.mark.parametrize(
    "content, why", [(b"\n", "names no image"), (b"a\n\xff\n", ":2: not UTF-8 text"), (None, "No such")]
)
def test_a_list_that_is_none(root, content, why):
    if content is not None:
        (root / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=why):
        source(root, image_dir_names=["train.txt"])


def test_an_image_in_two_folds_stops(root):
    (root / "val.txt").write_text("train/images/0.jpg")
    with pytest.raises(DataError, match="is in fold 0 and in fold 1"):
        source(root, image_dir_names=["val.txt", "train/images"])


# What is left out, and what is told


def test_images_without_a_label_file_show_no_object(root, caplog):
    add_image(root, "train/images/empty.jpg", "")
    add_image(root, "train/images/none.jpg")
    found = source(root, image_dir_names=["train/images"])
    assert [frames(found)[0][f"train/images/{name}"] for name in ("empty", "none")] == [[], []]
    assert "1 of 6 images have no label file and are taken for images that show no object" in caplog.text
    assert "none.jpg" in caplog.text and found.rejected == []


def test_a_label_file_without_an_image(root):
    (root / "train" / "labels" / "gone.txt").write_text(LINE)
    (root / "train" / "labels" / "README.txt").write_text("Exported by a tool\n")
    found = source(root, image_dir_names=["train/images"])
    assert told(found) == [("gone.txt", None, "the image is missing")]


def test_not_one_label_file(tmp_path):
    add_image(tmp_path, "images/a.jpg")
    (tmp_path / "classes.txt").write_text("car")
    with pytest.raises(DataError, match=r"not one of 1 images has a label file \(looked for in .*labels"):
        source(tmp_path, image_dir_names=["images"])


def test_an_image_that_does_not_open_and_one_of_the_same_name(root):
    (root / "train" / "images" / "0.jpg").write_bytes(b"")
    add_image(root, "train/images/1.png")
    found = source(root, image_dir_names=["train/images"])
    assert told(found) == [
        ("0.jpg", None, "the file is empty"),
        ("1.png", None, "1.jpg has the same name but for its extension"),
    ]


def test_pixels_stop_a_conversion_with_the_line_and_the_fix(tmp_path):
    add_image(tmp_path, "images/a.jpg", "0 100 50 40 40\n1 20 20 10 10\n")
    (tmp_path / "classes.txt").write_text("Car\nTraffic light\n")
    with pytest.raises(
        DataError, match=r"not one of 2 labels is usable .* are pixels, not shares .*labels/a.txt:1\)"
    ):
        convert(settings(tmp_path, image_dir_names=["images"]), str(tmp_path / "records" / "x"))


def test_a_column_behind_the_box_is_told(root, caplog):
    add_image(root, "train/images/0.jpg", "1 0.5 0.5 0.2 0.4 0.93\n")
    assert frames(source(root, image_dir_names=["train/images"]))[0]["train/images/0"] == [BOX]
    assert "1 labels have a column behind the box (a score or track), which is not used" in caplog.text


# Lines


@pytest.mark.parametrize(
    "line, box, behind",
    [
        ("1 0.5 0.5 0.2 0.4", (0.4, 0.3, 0.6, 0.7), None),
        ("1.000000e+00\t0.5  0.5 2e-1 0.4 \r", (0.4, 0.3, 0.6, 0.7), None),
        ("1 0.5 0.5 0.2 0.4 0.75", (0.4, 0.3, 0.6, 0.7), 0.75),
        ("1 1 0.5 0.2 0.4", (0.9, 0.3, 1.1, 0.7), None),  # reaches out of the image
        ("1 0.1 0.2 0.5 0.1 0.3 0.6", (0.1, 0.1, 0.5, 0.6), None),  # an outline of three corners
        ("1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6", (0.1, 0.1, 0.5, 0.6), None),  # a turned box, or an outline
        ("1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 0.9", (0.1, 0.1, 0.5, 0.6), 0.9),  # and its score
        ("1 0.5 0.5 0.2 0.4 0.4 0.4 2 0 0 0", (0.4, 0.3, 0.6, 0.7), None),  # two keypoints
    ],
)
def test_boxes_of_lines(line, box, behind):
    [label] = parse_labels(line.encode(), CLASSES).labels
    assert label.name == "Traffic light" and label.box == pytest.approx(box)
    assert label.score == behind


def test_keypoints_that_the_list_of_classes_states(tmp_path):
    """Two keypoints of x and y look like an outline of four corners."""
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 2]\nnames:\n  0: hand\n")
    classes = read_classes(tmp_path / "data.yaml")
    [label] = parse_labels(b"0 0.5 0.5 0.2 0.4 0.9 0.9 0.1 0.1", classes).labels
    assert label.box == pytest.approx((0.4, 0.3, 0.6, 0.7))


@pytest.mark.parametrize(
    "line, why",
    [
        (
            "2 0.5 0.5 0.2 0.4",
            "class 2 is not in classes.txt, which has 2 (0 to 1): correct the number, or the list",
        ),
        ("-1 0.5 0.5 0.2 0.4", "class is '-1', not a whole number from 0"),
        ("0.5 0.5 0.5 0.2 0.4", "class is '0.5', not a whole number from 0"),
        ("nan 0.5 0.5 0.2 0.4", "class is 'nan', not a number that counts the names of the list from 0"),
        ("car 0.5 0.5 0.2 0.4", "class is 'car', not a number that counts the names of the list from 0"),
        ("Car 0 0 0 1 2 3 4 0 0 0 0 0 0 0", "a label of KITTI, which kitti_config reads"),
        ("0 0.5 0.5 0.2", "4 columns, but a label has 5: class number, x, y, width and height"),
        ("0,0.5,0.5,0.2,0.4", "separated by blanks, not by commas"),
        ("0 0.5 x 0.2 0.4", "column 3 is 'x', not a number"),
        ("0 0.5 1e400 0.2 0.4", "column 3 is '1e400', not a finite number of a sensible size"),
        ("0 0.5 nan 0.2 0.4", "column 3 is 'nan', not a finite number of a sensible size"),
        ("0 100 50 40 40", "(100, 50, 40, 40) are pixels, not shares of the image"),
        ("0 10 10 50 10 30 60", "(10, 10, 50, 10) are pixels, not shares of the image"),
        ("0 -3 0.5 0.2 0.4", "(-3, 0.5, 0.2, 0.4) are not shares of the image, which are from 0 to 1"),
        ("0 0.5 0.5 0 0.4", "the box (0.5, 0.5, 0, 0.4), x, y, width, height, has no area"),
        ("0 0.5 0.5 -0.2 0.4", "has no area"),
        ("0 0.1 0.2 0.1 0.3 0.1 0.4", "the outline, from (0.1, 0.2) to (0.1, 0.4), has no area"),
    ],
)
def test_lines_that_are_no_labels(line, why):
    found = parse_labels(f"\n{LINE}{line}\n".encode(), CLASSES)
    assert len(found.labels) == 1
    [(number, reason)] = found.rejected
    assert number == 3 and why in reason


def test_bytes_that_are_no_text():
    assert parse_labels(b"\xef\xbb\xbf1 0.5 0.5 0.2 0.4\n\xff\xfe 1", CLASSES).rejected == [
        (2, "not UTF-8 text")
    ]


@given(st.binary(max_size=60) | st.text("0123456789.-e \n\tnaif", max_size=60).map(str.encode))
def test_any_content_is_read_or_rejected(content):
    found = parse_labels(content, CLASSES)
    for label in found.labels:
        x1, y1, x2, y2 = label.box
        assert x1 < x2 and y1 < y2 and max(map(abs, label.box)) < 3


# Class names


@pytest.mark.spec_field("YOLOConfig.classes_file")
def test_the_list_that_the_spec_names_counts(root):
    (root / "names.txt").write_text("bus\ntram\n")
    found = source(root, image_dir_names=["train/images"], classes_file="names.txt")
    assert frames(found)[0]["train/images/0"][0][0] == "tram"


def test_a_name_of_several_numbers_is_told(root, caplog):
    (root / "data.yaml").write_text("names: [Car, Car, Bus]")
    assert frames(source(root, image_dir_names=["train/images"]))[0]["train/images/0"][0][0] == "Car"
    assert "data.yaml: numbers [0, 1] are called Car, and become one class" in caplog.text


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("data.yaml", "names: [cat, dog]", {0: "cat", 1: "dog"}),
        ("data.yml", "nc: 2\nnames: ['cat', \"dog\"]", {0: "cat", 1: "dog"}),
        ("coco8.yaml", "names:\n  0: cat\n  2: dog", {0: "cat", 2: "dog"}),
        (
            "data.yaml",
            "names:\n- no\n- 7\n- Straße",
            {0: "no", 1: "7", 2: "Straße"},
        ),  # a plain YAML reader gives False
        ("classes.txt", "\ufeffcat\r\ntraffic light \r\n\r\n", {0: "cat", 1: "traffic light"}),
        ("obj.names", "cat\ndog", {0: "cat", 1: "dog"}),
        ("_darknet.labels", "cat\ndog", {0: "cat", 1: "dog"}),
    ],
)
def test_lists_of_classes(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "other.yaml").write_text("key: value")
    (tmp_path / ".data.yaml").write_text("names: [x]")
    found = find_classes(settings(tmp_path).yolo_config)
    assert (found.file.name, found.names) == (name, expected)


def test_the_list_beside_the_labels_counts_where_the_root_has_none(tmp_path):
    """As labelImg writes it."""
    add_image(tmp_path, "images/a.jpg", LINE)
    (tmp_path / "labels" / "classes.txt").write_text("Car\nTraffic light\n")
    found = source(tmp_path, image_dir_names=["images"])
    assert frames(found) == [{"images/a": [BOX]}] and found.rejected == []


def test_the_list_that_darknet_names(tmp_path):
    (tmp_path / "obj.data").write_text("classes = 2\ntrain  = data/train.txt\nnames = data/obj.names\n")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    assert read_classes(tmp_path / "obj.data").names == {0: "cat", 1: "dog"}
    (tmp_path / "obj.names").unlink()
    with pytest.raises(
        DataError, match="names = data/obj.names is no file; name the list of classes with classes_file"
    ):
        read_classes(tmp_path / "obj.data")


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("data.yaml", "nc: 3\nnames: [a, b]", "nc is 3, but names has 2: correct one of them"),
        ("data.yaml", "nc: 3\n", "it needs names, a list of the classes or a mapping of numbers to them"),
        ("data.yaml", "names: [a, [b]]", "each of its names must be one text"),
        ("data.yaml", "names: [a, '']", "class 1 has no name"),
        ("data.yaml", "names: []", "names no class"),
        ("data.yaml", "names: {a: 0, b: 1}", "a mapping of numbers to them"),
        ("data.yaml", "path: x\nnames: [a, b", "data.yaml:2: not a YAML file"),
        ("data.yaml", "- a\n- b", "not a description of a YOLO data set, which has names"),
        ("data.yaml", "[" * 5000, "not a YAML file"),
        ("data.yaml", "names: [\0]", "not a YAML file .*in .<unicode string>., position"),  # in one line
        ("data.yaml", 'names: ["a\\x07"]', "has the control character"),
        ("data.yaml", b"names: [\xff]", "data.yaml:1: not UTF-8 text"),
        (
            "classes.txt",
            "cat\n\ndog\n",
            "classes.txt:2: an empty line between class names, which counts as one: take it out",
        ),
        ("classes.txt", "\n", "names no class"),
        (
            "readme.md",
            "none",
            r"no list of the classes in .* \(data.yaml, classes.txt or obj.names\): write one",
        ),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=why):
        find_classes(settings(tmp_path).yolo_config)


def test_lists_that_differ(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a, b]")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert find_classes(settings(tmp_path).yolo_config).names == {0: "a", 1: "b"}
    (tmp_path / "classes.txt").write_text("b\na\n")
    with pytest.raises(
        DataError, match="data.yaml and classes.txt in .* name the classes differently: say which"
    ):
        find_classes(settings(tmp_path).yolo_config)
