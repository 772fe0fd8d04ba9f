"""COCO annotation files: what becomes a record, what is left out and why, and what stops a conversion."""

import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from detectkit import spec
from detectkit.cli import main
from detectkit.console import log
from detectkit.data import tfrecord
from detectkit.data.coco import read_folders
from detectkit.data.convert import convert
from detectkit.errors import DataError

SPEC_ERROR, DATA_ERROR = 3, 4
CATEGORIES = [{"id": 1, "name": "Car"}, {"id": 18, "name": "Traffic Light"}, {"id": 90, "name": "dog"}]


def box(image, bbox=(1, 2, 30, 38), category=1, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def add_fold(root, name, files, annotations, *, categories=CATEGORIES, **more):
    """A folder of images 64x48 and its annotation file; ids count from 1."""
    for file in files:
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(root / name / file)
    images = [
        {"id": number, "file_name": file, "width": 64, "height": 48}
        for number, file in enumerate(files, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories, **more}
    (root / f"{name}.json").write_text(json.dumps(content))


def change(root, name, **parts):
    path = root / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def settings(root, *names, **changes):
    config = spec.DatasetExportConfig()
    config.coco_config.root_directory_path = str(root)
    config.coco_config.img_dir_names.extend(names)
    config.coco_config.annotation_files.extend(f"{name}.json" for name in names)
    for field, value in changes.items():
        if isinstance(value, list):
            getattr(config.coco_config, field)[:] = value
        else:
            setattr(config.coco_config, field, value)
    return config


@pytest.fixture
def root(tmp_path):
    add_fold(tmp_path / "coco", "train", ["a.jpg", "b.jpg", "c.jpg"], [box(1), box(1, category=18), box(2)])
    return tmp_path / "coco"


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "records" / "data")


def records(summary):
    """Records of each fold by frame id."""
    return [
        {record.frame_id: record for shard in fold.shards for record in tfrecord.read_records(str(shard))}
        for fold in summary.folds
    ]


def reasons(summary):
    return [reject.reason for reject in summary.rejected]


# What becomes a record


@pytest.mark.spec_field(
    "COCOConfig.img_dir_names", "COCOConfig.annotation_files", "COCOConfig.root_directory_path"
)
def test_a_folder_and_a_file_make_a_fold(root, prefix):
    add_fold(root, "val", ["a.jpg", "d.jpg"], [box(2, category=90)])
    summary = convert(settings(root, "val", "train"), prefix)
    assert list(map(sorted, records(summary))) == [["val/a", "val/d"], ["train/a", "train/b", "train/c"]]
    assert [fold.boxes for fold in summary.folds] == [{"dog": 1}, {"car": 2, "trafficlight": 1}]
    assert (summary.image_root, summary.image_extension, summary.rejected) == (root, "jpg", [])


def test_boxes_become_corners_and_everything_else_is_zero(root, prefix):
    change(root, "train", annotations=[box(1, [10.5, 20, 19.75, 20]), box(1, [-5, 40, 100, 30], category=90)])
    record = records(convert(settings(root, "train"), prefix))[0]["train/a"]
    assert record.boxes.tolist() == [[10.5, 20, 30.25, 40], [-5, 40, 95, 70]]
    assert record.names == ["car", "dog"] and (record.width, record.height) == (64, 48)
    assert record.truncation.tolist() == [0, 0] and record.occlusion.tolist() == [0, 0]


def test_images_without_objects_are_kept(root, prefix, caplog):
    change(root, "train", annotations=[])
    log.propagate = True
    summary = convert(settings(root, "train"), prefix)
    assert [record.names for record in records(summary)[0].values()] == [[], [], []]
    assert caplog.messages == [
        "not one label in the label files of 3 images: all of them are taken for images that show no object"
    ]
    change(root, "train", annotations=[box(1)])
    caplog.clear()
    convert(settings(root, "train"), prefix)
    assert caplog.messages == []


@pytest.mark.spec_field("COCOConfig.num_shards")
@pytest.mark.parametrize(
    "num_shards, expected",
    [
        ([], ["-fold-000-of-002", "-fold-001-of-002"]),
        ([0], ["-fold-000-of-002", "-fold-001-of-002"]),
        ([1], ["-fold-000-of-002-shard-00000-of-00001", "-fold-001-of-002-shard-00000-of-00001"]),
        ([0, 2], ["-fold-000-of-002", *(f"-fold-001-of-002-shard-0000{i}-of-00002" for i in (0, 1))]),
    ],
)
def test_one_number_of_shards_or_one_for_each_fold(root, prefix, num_shards, expected):
    add_fold(root, "val", ["d.jpg"], [])
    summary = convert(settings(root, "val", "train", num_shards=num_shards), prefix)
    assert [f"data{part}" for part in expected] == [
        shard.name for fold in summary.folds for shard in fold.shards
    ]


@pytest.mark.spec_field("COCOConfig.crowd_label")
@pytest.mark.parametrize("label, name", [("", "car"), ("DontCare", "dontcare"), ("Some Crowd", "somecrowd")])
def test_crowds(root, prefix, label, name):
    crowd = box(2, iscrowd=1, segmentation={"counts": [3, 5, 2], "size": [48, 64]})
    change(root, "train", annotations=[crowd, box(2, iscrowd=0), box(2)])
    summary = convert(settings(root, "train", crowd_label=label), prefix)
    assert records(summary)[0]["train/b"].names == [name, "car", "car"]


@pytest.mark.spec_field("COCOConfig.val_split")
def test_a_single_file_is_drawn_from(root, prefix):
    folds = convert(settings(root, "train", val_split=34), prefix).folds
    assert [(fold.number, fold.frames) for fold in folds] == [(0, 1), (1, 2)]
    assert [path.name[4:] for fold in folds for path in fold.shards] == [
        "-fold-000-of-002",
        "-fold-001-of-002",
    ]


def test_category_names_lose_spaces_and_capitals_and_are_then_mapped(root, prefix):
    change(
        root, "train", categories=[{"id": 1, "name": "Caf\u00e9 Bar"}, {"id": 18, "name": " Traffic  Light"}]
    )
    config = settings(root, "train")
    assert convert(config, prefix).folds[0].boxes == {"caf\u00e9bar": 2, "trafficlight": 1}
    config.target_class_mapping["Traffic Light"] = "Lamp"
    assert convert(config, prefix).folds[0].boxes == {"caf\u00e9bar": 2, "lamp": 1}


def test_several_ids_of_one_category(root, prefix):
    names = {1: "hot dog", 18: "HotDog", "x": "hotdog"}
    change(root, "train", categories=[{"id": number, "name": name} for number, name in names.items()])
    assert convert(settings(root, "train"), prefix).folds[0].boxes == {"hotdog": 3}


def test_images_in_sub_folders_and_below_another_folder(tmp_path, prefix):
    add_fold(tmp_path / "images", "train", ["x/a.jpg", "y/z/a.jpg", "v1.2.jpg"], [box(2)])
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "train.json").rename(tmp_path / "labels" / "train.json")
    config = settings(tmp_path / "labels", "train")
    config.image_directory_path = str(tmp_path / "images")
    config.embed_images = True
    summary = convert(config, prefix)
    found = records(summary)[0]
    assert sorted(found) == ["train/v1.2", "train/x/a", "train/y/z/a"] and summary.rejected == []
    assert found["train/y/z/a"].image == (tmp_path / "images/train/y/z/a.jpg").read_bytes()


def test_names_of_folders_with_slashes_and_dots(root, prefix):
    summary = convert(settings(root, "./train/", annotation_files=["train.json"]), prefix)
    assert sorted(records(summary)[0]) == ["train/a", "train/b", "train/c"]


@pytest.mark.parametrize(
    "file_name",
    [
        "sub\\x.jpg",
        "train\\sub\\x.jpg",
        "train/sub/x.jpg",
        "C:\\data\\train\\sub\\x.jpg",
        "sub/x.png",
        "sub/x.JPG",
        "sub/x",
        "./sub/x.jpg",
    ],
)
def test_a_file_name_as_other_machines_write_it(root, prefix, file_name):
    (root / "train" / "sub").mkdir()
    Image.new("RGB", (64, 48)).save(root / "train" / "sub" / "x.jpg")
    change(root, "train", images=[{"id": 1, "file_name": file_name}], annotations=[box(1)])
    summary = convert(settings(root, "train"), prefix)
    assert list(records(summary)[0]) == ["train/sub/x"] and summary.rejected == []


def test_a_file_with_a_backslash_in_its_name_is_itself(root, prefix):
    Image.new("RGB", (64, 48)).save(root / "train" / "s\\x.jpg")
    change(root, "train", images=[{"id": 1, "file_name": "s\\x.jpg"}], annotations=[box(1)])
    assert list(records(convert(settings(root, "train"), prefix))[0]) == ["train/s\\x"]


def test_an_image_that_is_listed_is_not_taken_for_another_one(root, prefix):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.jpg"}]
    change(root, "train", images=images, annotations=[box(1, category=18), box(2)])
    summary = convert(settings(root, "train"), prefix)
    assert records(summary)[0]["train/a"].names == ["car"]
    assert reasons(summary) == ["the image is missing"]


@pytest.mark.parametrize(
    "file_name",
    [
        "1a2b3c4d-x%20y.jpg",
        "/data/upload/12/1a2b3c4d-x%20y.jpg",
        "/data/local-files/?d=shots/x%20y.jpg",
        "https://example.com/shots/x%20y.jpg",
        "../../media/upload/12/1a2b3c4d-x y.jpg",
        "..\\media\\upload\\12\\1a2b3c4d-x y.jpg",
    ],
)
def test_a_file_name_as_label_studio_writes_it(root, prefix, file_name):
    """Of an upload, from a folder or from the web, where the images are those that were given to it."""
    Image.new("RGB", (64, 48)).save(root / "train" / "x y.jpg")
    images = [{"id": 1, "file_name": file_name}, {"id": 2, "file_name": "/data/upload/12/1a2b3c4d-a.jpg"}]
    images.append({"id": 3, "file_name": "a.jpg"})
    change(root, "train", images=images, annotations=[box(1), box(2)])
    summary = convert(settings(root, "train"), prefix)
    assert {name: record.names for name, record in records(summary)[0].items()} == {
        "train/x y": ["car"],
        "train/a": [],  # listed itself, so that it is not taken for the upload
    }
    assert reasons(summary) == ["the image is missing"]


def test_numbers_in_quotes(root, prefix):
    entry = {"image_id": "1", "category_id": "18", "bbox": ["1", "2.5", " 30 ", "38"], "iscrowd": "1"}
    images = [{"id": "1", "file_name": "a.jpg", "width": "64", "height": "48"}]
    change(root, "train", images=images, annotations=[entry, entry | {"image_id": 1, "category_id": 1}])
    summary = convert(settings(root, "train", crowd_label="crowd"), prefix)
    record = records(summary)[0]["train/a"]
    assert (summary.rejected, record.names) == ([], ["crowd", "crowd"])
    assert record.boxes.tolist() == [[1, 2.5, 31, 40.5]] * 2


@pytest.mark.parametrize(
    "segmentation",
    [
        [[3, 4, 13, 4, 13, 24, 3, 24]],
        {"size": [48, 64], "counts": [3 * 48 + 4, 20, *[28, 20] * 9, 50 * 48 + 24 + 28 - 28]},
    ],
)
@pytest.mark.parametrize("bbox", [{}, {"bbox": []}, {"bbox": None}, {"bbox": [0.0, 0, 0, 0]}])
def test_a_segmentation_without_a_box(root, prefix, segmentation, bbox):
    entry = {"image_id": 1, "category_id": 1, "segmentation": segmentation, **bbox}
    change(root, "train", annotations=[entry])
    summary = convert(settings(root, "train"), prefix)
    assert summary.rejected == []
    assert records(summary)[0]["train/a"].boxes.tolist() == [[3, 4, 13, 24]]


def test_letters_of_every_script(root, prefix, caplog):
    names = ["Fu\u00dfg\u00e4nger", "\u8f66", "\u0130stanbul", "Cafe\u0301", "CAF\u00c9"]
    change(
        root,
        "train",
        categories=[{"id": number, "name": name} for number, name in enumerate(names)],
        annotations=[box(1, category=number) for number in range(5)],
    )
    boxes = convert(settings(root, "train"), prefix).folds[0].boxes
    assert boxes == {"fu\u00dfg\u00e4nger": 1, "\u8f66": 1, "i\u0307stanbul": 1, "caf\u00e9": 2}
    assert caplog.messages == [
        "labels that are one in the records, with their boxes: caf\u00e9 ('CAF\u00c9' 1, 'Cafe\u0301' 1)"
    ]


def test_no_usable_annotation_stops_the_conversion(root, tmp_path, capsys):
    change(root, "train", annotations=[box(1, [5, 5, 0, 0], id=number) for number in range(4)])
    (tmp_path / "spec.txt").write_text(spec.dumps(settings(root, "train")))
    assert main(["convert", "-d", str(tmp_path / "spec.txt"), "-o", f"{tmp_path}/records/data"]) == DATA_ERROR
    error = capsys.readouterr().err
    assert "not one of 4 labels is usable (4 times: " in error and "has no area" in error
    assert not (tmp_path / "records").exists()


# What is left out


@pytest.mark.parametrize(
    "annotation, reason",
    [
        (box(9), "annotations[0]: no usable image has the id 9"),
        (box("01"), "annotations[0]: no usable image has the id '01'"),
        (box([1]), "annotations[0]: no usable image has the id [1]"),
        (box(1, category=2, id=77), "annotation 77: no category has the id 2"),
        (box(1, category={}, id="x"), "annotation 'x': no category has the id {}"),
        (box(1, [1, 2, 0, 5]), "annotations[0]: its bbox (1, 2, 0, 5), x, y, width, height, has no area"),
        (box(1, [1, 2, 3, -5]), "annotations[0]: its bbox (1, 2, 3, -5), x, y, width, height, has no area"),
        (box(1, [1, 2, float("nan"), 5]), "its bbox [1, 2, nan, 5] is not four finite numbers"),
        (box(1, [1, 2, float("inf"), 5]), "its bbox [1, 2, inf, 5] is not four finite numbers"),
        (box(1, [1, 2, 10**400, 5]), "is not four finite numbers of a sensible size"),
        (box(1, [1, 2, "3px", 5]), "its bbox [1, 2, '3px', 5] is not four finite numbers"),
        (box(1, [1, 2, 3]), "annotations[0]: it has no bbox of x, y, width and height"),
        ({"image_id": 1, "category_id": 1, "segmentation": []}, "it has no bbox of x, y, width and height"),
        (7, "annotations[0]: no usable image has the id None"),
    ],
)
def test_an_annotation_that_is_left_out(root, prefix, annotation, reason):
    change(root, "train", annotations=[annotation, box(1), box(2)])
    summary = convert(settings(root, "train"), prefix)
    [entry] = json.loads(summary.warning_file.read_text())
    assert (entry["file"], entry["line"]) == (str(root / "train.json"), None) and reason in entry["reason"]
    assert {name: record.names for name, record in records(summary)[0].items()} == {
        **{"train/a": ["car"], "train/b": ["car"]},
        "train/c": [],
    }


@pytest.mark.parametrize(
    "entry, reason",
    [
        ({"id": 4, "file_name": "gone.jpg"}, "the image is missing"),
        ({"id": 4, "file_name": "bad\0.jpg"}, "the image is missing"),
        ({"id": 4, "file_name": ""}, "images[3] needs an id and a file_name"),
        ({"file_name": "d.jpg"}, "images[3] needs an id and a file_name"),
        ({"id": [4], "file_name": "d.jpg"}, "images[3] needs an id and a file_name"),
        ("d.jpg", "images[3] needs an id and a file_name"),
        ({"id": 4, "file_name": "empty.jpg"}, "the file is empty"),
        ({"id": 4, "file_name": "text.jpg"}, "not a readable image"),
        ({"id": 1, "file_name": "a.jpg"}, "images[3], a.jpg, is listed before"),
        (
            {"id": 4, "file_name": "d.jpg", "width": 48, "height": 64},
            "the image is 64x48 pixels, but its labels are for 48x64",
        ),
        (
            {"id": 4, "file_name": "d.jpg", "width": "wide", "height": 10**400},
            "the image is 64x48 pixels, but its labels are for 'wide'x1000",
        ),
        ({"id": 4, "file_name": "./a.jpg"}, "a.jpg is listed before, as the same file"),
    ],
)
def test_an_image_that_is_left_out(root, prefix, entry, reason):
    (root / "train" / "empty.jpg").write_bytes(b"")
    (root / "train" / "text.jpg").write_text("<html>")
    Image.new("RGB", (64, 48)).save(root / "train" / "d.jpg")
    images = json.loads((root / "train.json").read_text())["images"]
    change(root, "train", images=[*images, entry])
    summary = convert(settings(root, "train"), prefix)
    [found] = reasons(summary)
    assert reason in found
    assert sorted(records(summary)[0]) == ["train/a", "train/b", "train/c"]
    assert summary.folds[0].boxes == {"car": 2, "trafficlight": 1}


@pytest.mark.parametrize(
    "size", [{}, {"width": 0, "height": 0}, {"width": None}, {"width": 64.0, "height": 48}]
)
def test_a_size_need_not_be_stated(root, prefix, size):
    change(root, "train", images=[{"id": 1, "file_name": "a.jpg", **size}], annotations=[box(1)])
    summary = convert(settings(root, "train"), prefix)
    assert summary.rejected == [] and records(summary)[0]["train/a"].width == 64


@pytest.mark.parametrize(
    "images, reason",
    [
        ([(1, "a.jpg"), (1, "b.jpg"), (3, "c.jpg")], "several images have the id 1"),
        ([(1, "a.jpg"), (2, "a.jpg"), (3, "c.jpg")], "several images have this file_name"),
    ],
)
def test_images_that_cannot_be_told_apart_are_all_left_out(root, prefix, images, reason):
    """Their boxes may be those of the other one, or half of its own."""
    entries = [{"id": number, "file_name": file} for number, file in images]
    change(root, "train", images=entries, annotations=[box(1), box(3)])
    summary = convert(settings(root, "train"), prefix)
    assert list(records(summary)[0]) == ["train/c"] and summary.folds[0].boxes == {"car": 1}
    assert [reason in text for text in reasons(summary)] == [True, True, False]
    assert reasons(summary)[2] == "annotations[0]: no usable image has the id 1"


def test_images_of_other_extensions(root, prefix):
    """Records keep an extension that is not the one of most images; without any, training would not find the image."""
    add_fold(root, "val", ["a.jpg", "d.png", "e.JPG"], [box(2)])
    (root / "val" / "e.JPG").rename(root / "val" / "e")
    images = json.loads((root / "val.json").read_text())["images"]
    change(root, "val", images=[*images[:2], images[2] | {"file_name": "e"}])
    config = settings(root, "val", "train")
    summary = convert(config, prefix)
    assert [reject.file for reject in summary.rejected] == [f"{root}/val/e"]
    assert reasons(summary) == [
        "the name has no extension, which training would look for; rename it, or set embed_images"
    ]
    assert [sorted(fold) for fold in records(summary)] == [
        ["val/a", "val/d"],
        ["train/a", "train/b", "train/c"],
    ]
    assert {name: record.image_format for name, record in records(summary)[0].items()} == {
        "val/a": "",
        "val/d": "png",
    }
    assert (summary.image_extension, summary.others) == ("jpg", 1)
    config.embed_images = True
    summary = convert(config, prefix)
    assert sorted(records(summary)[0]) == ["val/a", "val/d", "val/e"] and summary.rejected == []
    assert records(summary)[0]["val/d"].image_format == "png" and summary.image_extension == ""


def test_two_images_of_one_name(root, prefix):
    add_fold(root, "val", ["a.jpg", "a.png"], [box(1)])
    config = settings(root, "val")
    config.embed_images = True
    summary = convert(config, prefix)
    assert reasons(summary) == ["a.jpg has the same name but for its extension"]
    assert records(summary)[0]["val/a"].names == ["car"]


VALUES = (
    st.none()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["a.jpg", "b.jpg", "", "/", ".."])
    | st.booleans()
)
VALUES |= st.lists(VALUES, max_size=4)
KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "file_name", "name", "width", "height", "iscrowd"]
)
ENTRIES = st.lists(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES, max_size=5)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(images=ENTRIES, annotations=ENTRIES, categories=st.just(CATEGORIES) | ENTRIES)
def test_entries_of_any_shape_give_frames_or_reasons(root, images, annotations, categories):
    change(root, "train", images=images, annotations=annotations, categories=categories)
    try:
        source = read_folders(settings(root, "train"))
    except DataError as error:
        assert "train.json: categor" in str(error)
    else:
        frames = source.folds[0]
        assert len(frames) <= len(images) <= len(frames) + len(source.rejected)
        assert all(label.box[2] > label.box[0] for frame in frames for label in frame.labels)


# What stops a conversion


def no_list(key):
    return lambda root: (root / "train.json").write_text(
        json.dumps({name: [] for name in ("images", "annotations", "categories") if name != key})
    )


def categories(*entries):
    return lambda root: change(root, "train", categories=list(entries))


@pytest.mark.parametrize(
    "damage, words",
    [
        (
            lambda root: (root / "train.json").unlink(),
            "cannot read annotation_files ROOT/train.json: No such file",
        ),
        (
            lambda root: (root / "train.json").write_text("<html>"),
            "ROOT/train.json: not a JSON file (Expecting value",
        ),
        (lambda root: (root / "train.json").write_bytes(b"\xff\xfe\0"), "ROOT/train.json: not a JSON file ("),
        (lambda root: (root / "train.json").write_text("[" * 100_000), "ROOT/train.json: not a JSON file ("),
        (lambda root: (root / "train.json").write_text('{"images": ['), "ROOT/train.json: not a JSON file ("),
        (
            lambda root: (root / "train.json").write_text("[]"),
            'annotation file for detection: it has no list "images"',
        ),
        (
            no_list("images"),
            'ROOT/train.json is not a COCO annotation file for detection: it has no list "images"',
        ),
        (no_list("annotations"), 'it has no list "annotations"'),
        (no_list("categories"), 'it has no list "categories"'),
        (no_list(""), "nothing to convert: the label files list no image"),
        (
            lambda root: (root / "train").rename(root / "t"),
            "there is no folder ROOT/train; img_dir_names has train",
        ),
        (categories({"id": 1}), "ROOT/train.json: categories[0] needs an id and a name"),
        (categories("car"), "categories[0] needs an id and a name"),
        (categories({"id": 1, "name": " "}), "categories[0] needs an id and a name"),
        *(
            (
                categories({"id": 1, "name": f"car{letter}rm"}),
                f"categories[0]: the class name {ascii(f'car{letter}rm')} has the control character {code}; rename it",
            )
            for letter, code in (
                ("\n", "U+000A"),
                ("\0", "U+0000"),
                ("\x1b", "U+001B"),
                ("\x9b", "U+009B"),
                ("\u2028", "U+2028"),
                ("\u202e", "U+202E"),
                ("\ud800", "U+D800"),
            )
        ),
        (categories({"id": 1, "name": "a"}, {"id": 1, "name": "b"}), "category 1 is called a and b"),
    ],
)
def test_what_stops_a_conversion(root, tmp_path, capsys, damage, words):
    (tmp_path / "spec.txt").write_text(spec.dumps(settings(root, "train")))
    damage(root)
    assert main(["convert", "-d", str(tmp_path / "spec.txt"), "-o", f"{tmp_path}/records/data"]) == DATA_ERROR
    error = capsys.readouterr().err
    assert words.replace("ROOT", str(root)) in error and "Traceback" not in error
    assert error.count("error: ") == 1
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "other, words",
    [
        ([{"id": 1, "name": "bus"}], "category 1 is car in ROOT/train.json and bus in ROOT/val.json"),
        (
            [{"id": 1, "name": "car"}],
            "category 18 is trafficlight in ROOT/train.json and nothing in ROOT/val.json",
        ),
        ([*CATEGORIES, {"id": 2, "name": "bus"}], "category 2 is nothing in ROOT/train.json and bus in"),
    ],
)
def test_folds_that_disagree_on_the_categories(root, prefix, other, words):
    add_fold(root, "val", ["d.jpg"], [], categories=other)
    with pytest.raises(DataError) as caught:
        convert(settings(root, "train", "val"), prefix)
    assert words.replace("ROOT", str(root)) in str(caught.value)
    assert not (root.parent / "records").exists()


def test_an_image_in_two_folds(root, prefix):
    config = settings(root, "train", "train")
    with pytest.raises(
        DataError, match="train/a.jpg is in fold 0 and in fold 1: an image may be in one only"
    ):
        convert(config, prefix)


@pytest.mark.spec_field("COCOConfig.num_partitions")
@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, ""),
        ({"num_partitions": 2}, ""),
        ({"num_shards": [3, 5]}, ""),
        (
            {"num_partitions": 3},
            "coco_config.num_partitions: must be the number of img_dir_names, 2 (or left out), got 3",
        ),
        ({"num_partitions": 0}, "coco_config.num_partitions: must be the number of img_dir_names, 2"),
        (
            {"annotation_files": ["a.json"]},
            "coco_config.annotation_files: must be as many as img_dir_names, 2, got 1",
        ),
        (
            {"num_shards": [1, 2, 3]},
            "coco_config.num_shards: must be one value, or one for each of the 2 img_dir_names, got 3 values",
        ),
        ({"img_dir_names": []}, "coco_config.img_dir_names: at least one is needed"),
        ({"annotation_files": [""] * 2}, "coco_config.annotation_files[0]: must not be empty"),
    ],
)
def test_numbers_of_folders_files_and_shards_agree(root, changes, words):
    found = [str(violation) for violation in spec.check(settings(root, "val", "train", **changes))]
    assert (words in found[0]) if words else (found == [])


def test_check_looks_for_the_files(root, tmp_path, capsys):
    (tmp_path / "spec.txt").write_text(spec.dumps(settings(root, "train", "val")))
    add_fold(root, "val", ["d.jpg"], [])
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == 0
    (root / "val.json").unlink()
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == DATA_ERROR
    assert f"coco_config.annotation_files[1]: there is no file {root}/val.json" in capsys.readouterr().err
    (root / "val").rename(root / "valid")
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == DATA_ERROR
    assert f"coco_config.img_dir_names[1]: there is no folder {root}/val" in capsys.readouterr().err


def test_sizes_of_photographs_that_are_turned(root, tmp_path):
    """Those that viewers show are right; those of the pixels as stored are told from other mistakes."""
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (64, 48)).save(root / "train" / name, exif=exif)
    content = json.loads((root / "train.json").read_text())
    content["images"][0] |= {"width": 48, "height": 64}
    (root / "train.json").write_text(json.dumps(content))
    summary = convert(settings(root, "train"), str(tmp_path / "records"))
    (reject,) = [item for item in summary.rejected if "EXIF" in item.reason]
    assert reject.file.endswith("b.jpg") and summary.turned == 1
    assert reject.reason.startswith(
        "the image is 48x64 pixels when its EXIF orientation turns it, as viewers show it, but its labels are for 64x48,"
        " the pixels as stored"
    )
    records = tfrecord.read_records(str(summary.folds[0].shards[0]))
    assert {(r.frame_id, r.width, r.height) for r in records} == {("train/a", 48, 64), ("train/c", 64, 48)}
