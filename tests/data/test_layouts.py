"""Folders as labelling tools write them: which layout they are taken for, and what is read of their splits."""

import json

import pytest
from PIL import Image

from detectkit.data import foreign, tfrecord
from detectkit.data.convert import convert
from detectkit.data.layouts import class_differences, recognise

KITTI = "{name} 0.00 0 0.00 2.00 3.00 30.00 40.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00\n"
OBJECT = "<object><name>{name}</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"
BOX = (2.0, 3.0, 30.0, 40.0)


def image(path, extension="jpg"):
    """An image of 64x48 pixels; the name has no extension."""
    path = path.with_name(f"{path.name}.{extension}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(path)
    return path


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def kitti(root, images, labels, names, extension="jpg"):
    for name in names:
        image(root / images / name, extension)
        text(root / labels / f"{name}.txt", KITTI.format(name="Car"))


def voc(root, images, labels, names, things="Car"):
    for name in names:
        file = image(root / images / name)
        content = (
            f"<annotation><filename>{file.name}</filename>{SIZE}{OBJECT.format(name=things)}</annotation>"
        )
        text(root / labels / f"{name}.xml", content)


def coco(names, *, categories=((1, "car"),), prefix="", **more):
    """The content of an annotation file with a box of the last category in each image."""
    images = [
        {"id": number, "file_name": f"{prefix}{name}.jpg", "width": 64, "height": 48}
        for number, name in enumerate(names)
    ]
    labels = [
        {
            "id": number,
            "image_id": number,
            "category_id": categories[-1][0],
            "bbox": [2, 3, 28, 37],
            "iscrowd": 0,
        }
        for number in range(len(names))
    ]
    kinds = [{"id": number, "name": name, "supercategory": "none"} for number, name in categories]
    return json.dumps({"images": images, "annotations": labels, "categories": kinds, **more}, indent=2)


def read(layout, tmp_path):
    """The frame ids and class names of each split, as records have them; every label is `BOX`, none is left out."""
    found = {}
    for part in layout.parts:
        summary = convert(part.config, str(tmp_path / "records" / part.role))
        assert summary.rejected == []
        records = [
            record
            for fold in summary.folds
            for shard in fold.shards
            for record in tfrecord.read_records(str(shard))
        ]
        assert all(tuple(box) == pytest.approx(BOX) for record in records for box in record.boxes)
        assert part.role not in found
        found[part.role] = {record.frame_id: record.names for record in records}
    return found


# KITTI


def test_a_kitti_folder(tmp_path):
    kitti(tmp_path / "data", "image_2", "label_2", ["000000", "000001"], extension="png")
    layout = recognise(tmp_path / "data")
    assert (layout.kind, layout.told) == ("kitti", "2 label files of 15 columns: label_2 (2)")
    (part,) = layout.parts
    source = part.config.kitti_config
    assert (source.image_dir_name, source.label_dir_name, source.image_extension) == (
        "image_2",
        "label_2",
        ".png",
    )
    assert not part.config.output_filename and not source.HasField("val_split")
    assert read(layout, tmp_path) == {"train": {"image_2/000000": ["car"], "image_2/000001": ["car"]}}


def test_kitti_as_it_is_unpacked(tmp_path):
    """Both cameras, and images to be tested on a server, whose names are those of the others."""
    kitti(tmp_path / "data", "training/image_2", "training/label_2", ["000000", "000001"])
    for name in ("000000", "000001", "000002"):
        image(tmp_path / "data/training/image_3" / name)
        image(tmp_path / "data/testing/image_2" / name)
    layout = recognise(tmp_path / "data")
    assert read(layout, tmp_path) == {
        "train": {"training/image_2/000000": ["car"], "training/image_2/000001": ["car"]}
    }
    assert layout.told.endswith(
        "; left out, as they have no labels, images in testing/image_2 (3), training/image_3 (3)"
    )


@pytest.mark.parametrize(
    "names, roles",
    [
        (("train", "test"), ["train", "test"]),
        (("Training", "VAL", "Testing"), ["train", "validation", "test"]),
        (("train2017", "valid"), ["train", "validation"]),
        (("my_train_set", "dev"), ["train", "validation"]),
        (("validation",), ["train"]),  # a split that is alone is what there is to train on
        (("a",), ["train"]),
        (("", "test"), ["train", "test"]),
    ],
)
def test_splits_are_folders(tmp_path, names, roles):
    for name in names:
        kitti(tmp_path / "data" / name, "image_2", "label_2", [f"{name}0"])
    layout = recognise(tmp_path / "data")
    assert [part.role for part in layout.parts] == roles
    assert [list(found) for found in read(layout, tmp_path).values()] == [
        [f"{name}/image_2/{name}0".lstrip("/")] for name in names
    ]


def test_labels_of_kitti_beside_the_images(tmp_path):
    kitti(tmp_path / "data", "", "", ["a", "b"])
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {"a": ["car"], "b": ["car"]}}


def test_kitti_of_cvat_with_masks(tmp_path):
    root = tmp_path / "data"
    kitti(root, "default/image_2", "default/label_2", ["a", "b"], extension="png")
    text(root / "label_colors.txt", "255 0 0 car\n")
    for folder in ("instance", "semantic", "semantic_rgb"):
        for name in "ab":
            image(root / "default" / folder / name, "png")
    assert read(recognise(root), tmp_path) == {
        "train": {"default/image_2/a": ["car"], "default/image_2/b": ["car"]}
    }


def test_images_in_folders_of_one_split(tmp_path):
    """Films: the folders of images are those of labels."""
    for film in ("monday", "friday"):
        kitti(tmp_path / "data", f"images/train/{film}", f"annotations/train/{film}", ["0"])
    assert read(recognise(tmp_path / "data"), tmp_path) == {
        "train": {"images/train/monday/0": ["car"], "images/train/friday/0": ["car"]}
    }


def test_kitti_in_the_folders_of_its_archives(tmp_path):
    names = ["000000", "000001"]
    kitti(
        tmp_path / "data",
        "data_object_image_2/training/image_2",
        "data_object_label_2/training/label_2",
        names,
    )
    for name in ("000000", "000001", "000002"):
        image(tmp_path / "data/data_object_image_2/testing/image_2" / name)
    assert read(recognise(tmp_path / "data"), tmp_path) == {
        "train": {f"data_object_image_2/training/image_2/{name}": ["car"] for name in names}
    }


def test_splits_of_images_whose_labels_are_in_one_folder(tmp_path):
    for split in ("train", "test"):
        voc(tmp_path, f"images/{split}", "annotations", [f"{split}0", f"{split}1"])
    layout = recognise(tmp_path)
    assert [(part.role, part.config.voc_config.image_dir_name) for part in layout.parts] == [
        ("train", "images/train"),
        ("test", "images/test"),
    ]
    summary = convert(layout.parts[0].config, str(tmp_path / "records/train"))
    assert summary.folds[1].frames == 2
    assert layout.told == "4 XML files: annotations (4)"


def test_what_is_of_no_split_is_told(tmp_path):
    for name in ("train", "test", "more"):
        kitti(tmp_path / "data", name, name, [name])
    layout = recognise(tmp_path / "data")
    assert [part.role for part in layout.parts] == ["train", "test"]
    assert layout.told.endswith("; left out, as it is of no split: more, with labels of 1 images")


# Pascal VOC


@pytest.mark.parametrize(
    "lists, expected",
    [
        (
            {"train": "a b", "val": "c", "trainval": "a b c", "test": "d"},
            {"train": "ab", "validation": "c", "test": "d"},
        ),
        ({"trainval": "a b c", "test": "d"}, {"train": "abc", "test": "d"}),
        ({"train": "a b", "trainval": "a b c", "test": "d"}, {"train": "abc", "test": "d"}),
        (
            {"train": "a b", "val": "c d", "car_train": "a", "test": "x y"},
            {"train": "ab", "validation": "cd"},
        ),
        ({"default": "a b c d"}, {"train": "abcd"}),  # CVAT
        ({"train": "a b c d"}, {"train": "abcd"}),
        ({"train": "a b c"}, {"train": "abc"}),
    ],
)
def test_lists_of_voc(tmp_path, lists, expected):
    voc(tmp_path / "data", "JPEGImages", "Annotations", "abcd")
    for name, members in lists.items():
        text(
            tmp_path / f"data/ImageSets/Main/{name}.txt", "".join(f"{member}\n" for member in members.split())
        )
    layout = recognise(tmp_path / "data")
    assert layout.kind == "voc"
    found = read(layout, tmp_path)
    assert {role: "".join(sorted(name[-1] for name in names)) for role, names in found.items()} == expected
    assert ("left out, as none of its 2 images has labels: ImageSets/Main/test.txt" in layout.told) == (
        lists.get("test") == "x y"
    )
    assert ("left out, as trainval.txt holds it" in layout.told) == (len(lists) == 3 and "trainval" in lists)
    assert ("left out, labelled images that no list has: 1" in layout.told) == (lists == {"train": "a b c"})


def test_a_voc_set_in_a_folder(tmp_path):
    voc(tmp_path / "data/VOCdevkit/VOC2007", "JPEGImages", "Annotations", "ab")
    text(tmp_path / "data/VOCdevkit/VOC2007/ImageSets/Main/train.txt", "a\n")
    text(tmp_path / "data/VOCdevkit/VOC2007/ImageSets/Main/val.txt", "b\n")
    assert read(recognise(tmp_path / "data"), tmp_path) == {
        "train": {"VOCdevkit/VOC2007/JPEGImages/a": ["car"]},
        "validation": {"VOCdevkit/VOC2007/JPEGImages/b": ["car"]},
    }


def test_a_voc_set_that_can_still_be_split(tmp_path):
    """A list of all images is none that a random split has to keep to."""
    voc(tmp_path, "JPEGImages", "Annotations", "abcd")
    text(tmp_path / "ImageSets/Main/default.txt", "a\nb\nc\nd\n")
    (part,) = recognise(tmp_path).parts
    assert list(part.config.voc_config.image_set_files) == []


def test_voc_of_cvat(tmp_path):
    """Its size has an empty depth, its objects have attributes, and its masks the names of the images."""
    root = tmp_path / "data"
    thing = (
        "<object><name>car</name><truncated>0</truncated><occluded>1</occluded><difficult>0</difficult><bndbox>"
        "<xmin>3.0</xmin><ymin>4.0</ymin><xmax>30.0</xmax><ymax>40.0</ymax></bndbox><attributes><attribute>"
        "<name>rotation</name><value>0.0</value></attribute></attributes></object>"
    )
    image(root / "JPEGImages/a")
    image(root / "SegmentationClass/a", "png")
    image(root / "SegmentationObject/a", "png")
    text(
        root / "Annotations/a.xml",
        "<annotation><folder></folder><filename>a.jpg</filename><source><database>Unknown</database><annotation>Unknown"
        "</annotation><image>Unknown</image></source><size><width>64</width><height>48</height><depth></depth></size>"
        f"<segmented>0</segmented>{thing}</annotation>",
    )
    text(root / "ImageSets/Main/default.txt", "a\n")
    text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,0::\n")
    assert read(recognise(root), tmp_path) == {"train": {"JPEGImages/a": ["car"]}}


def test_voc_of_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        name = f"{split}_jpg.rf.0c3b2a1f9d8e7c6b5a4f3e2d1c0b9a87"
        voc(tmp_path / "data", split, split, [name])
    text(tmp_path / "data/README.roboflow.txt", "Provided by a Roboflow user\n")
    text(tmp_path / "data/README.dataset.txt", "# cars > raw\n")
    layout = recognise(tmp_path / "data")
    assert layout.told == "3 XML files: test (1), train (1), valid (1)"
    assert [(role, len(names)) for role, names in read(layout, tmp_path).items()] == [
        ("train", 1),
        ("validation", 1),
        ("test", 1),
    ]


def test_voc_of_label_studio(tmp_path):
    """The file name has no extension, and white space is between the elements."""
    image(tmp_path / "data/images/1a2b3c4d-street")
    thing = OBJECT.format(name="car").replace("><", ">\n<")
    text(
        tmp_path / "data/Annotations/1a2b3c4d-street.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n<folder>images</folder>\n'
        f"<filename>1a2b3c4d-street</filename>\n<source>\n<database>MyDatabase</database>\n<annotation>COCO2017"
        f"</annotation>\n<image>flickr</image>\n</source>\n{SIZE}\n<segmented>0</segmented>\n{thing}\n</annotation>\n",
    )
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {"images/1a2b3c4d-street": ["car"]}}


def test_voc_of_labelimg_beside_the_images(tmp_path):
    voc(tmp_path / "data", "", "", ["a", "Straße 1"])
    text(tmp_path / "data/Thumbs.db", "")
    text(tmp_path / "data/__MACOSX/._a.xml", "\0")
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {"a": ["car"], "Straße 1": ["car"]}}


# COCO


def test_coco_as_it_is_unpacked(tmp_path):
    """Captions, keypoints and panoptic masks are of other tasks; the images for testing have no labels."""
    root = tmp_path / "data"
    for folder, name in (("train2017", "a"), ("val2017", "b"), ("test2017", "c")):
        image(root / folder / name)
    for task in ("instances", "person_keypoints", "stuff"):
        text(root / f"annotations/{task}_train2017.json", coco(["a"]))
        text(root / f"annotations/{task}_val2017.json", coco(["b"]))
    text(root / "annotations/captions_train2017.json", json.dumps({"images": [], "annotations": []}))
    tested = json.loads(coco(["c"]))
    del tested["annotations"]
    text(root / "annotations/image_info_test2017.json", json.dumps(tested))
    layout = recognise(root)
    assert layout.kind == "coco"
    assert read(layout, tmp_path) == {"train": {"train2017/a": ["car"]}, "validation": {"val2017/b": ["car"]}}
    assert layout.told.endswith(
        "; left out, as it has no labels: annotations/image_info_test2017.json"
        "; left out, as they have no labels, images in test2017 (1)"
    )


def test_splits_of_coco_in_one_folder_of_images(tmp_path):
    for name in "ab":
        image(tmp_path / "data/images" / name)
    text(tmp_path / "data/annotations/train.json", coco(["a"]))
    text(tmp_path / "data/annotations/val.json", coco(["b"]))
    assert read(recognise(tmp_path / "data"), tmp_path) == {
        "train": {"images/a": ["car"]},
        "validation": {"images/b": ["car"]},
    }


def test_coco_of_roboflow(tmp_path):
    """Category 0 is the name of the project, and no label has it."""
    for split in ("train", "valid", "test"):
        image(tmp_path / f"data/{split}/{split}_jpg.rf.0c3b2a1f")
        content = coco([f"{split}_jpg.rf.0c3b2a1f"], categories=((0, "cars-and-more"), (1, "car")))
        text(tmp_path / f"data/{split}/_annotations.coco.json", content)
    assert read(recognise(tmp_path / "data"), tmp_path) == {
        "train": {"train/train_jpg.rf.0c3b2a1f": ["car"]},
        "validation": {"valid/valid_jpg.rf.0c3b2a1f": ["car"]},
        "test": {"test/test_jpg.rf.0c3b2a1f": ["car"]},
    }


@pytest.mark.parametrize("folder", ["images", "images/default"])
def test_coco_of_cvat(tmp_path, folder):
    image(tmp_path / "data" / folder / "a")
    text(tmp_path / "data/annotations/instances_default.json", coco(["a"]))
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {f"{folder}/a": ["car"]}}


@pytest.mark.parametrize(
    "stated, there",
    [
        ("images/1a2b3c4d-street.jpg", "1a2b3c4d-street"),
        ("images\\\\1a2b3c4d-street.jpg", "1a2b3c4d-street"),
        ("/data/upload/1/1a2b3c4d-street.jpg", "1a2b3c4d-street"),
        ("/data/upload/1/1a2b3c4d-street.jpg", "street"),  # exported without images: those that were uploaded
        ("../../label-studio/data/media/upload/1/1a2b3c4d-street.jpg", "1a2b3c4d-street"),
        ("/data/local-files/?d=shots%2Fmy%20street.jpg", "my street"),
        ("https://example.com/shots/my%20street.jpg", "my street"),
        ("D:\\\\shots\\\\street.jpg", "street"),
    ],
)
def test_coco_of_label_studio(tmp_path, stated, there):
    image(tmp_path / "data/images" / there)
    content = coco(["a"], categories=((0, "car"),)).replace("a.jpg", stated)
    text(tmp_path / "data/result.json", content)
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {f"images/{there}": ["car"]}}


# CSV

TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\n{name}.jpg,64,48,car,2,3,30,40\n"


def csv_settings(layout):
    return {
        part.role: (list(part.config.csv_config.csv_files), part.config.csv_config.image_dir_name)
        for part in layout.parts
    }


def test_csv_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        image(tmp_path / split / split)
        text(tmp_path / split / "_annotations.csv", TABLE.format(name=split))
    layout = recognise(tmp_path)
    assert layout.kind == "csv"
    assert csv_settings(layout) == {
        "train": (["train/_annotations.csv"], "train"),
        "validation": (["valid/_annotations.csv"], "valid"),
    }


def test_tables_beside_a_folder_of_images(tmp_path):
    for split in ("train", "test"):
        image(tmp_path / "images" / split)
        text(tmp_path / f"data/{split}_labels.csv", TABLE.format(name=split))
    text(tmp_path / "data/raccoon_labels.csv", TABLE.format(name="test"))
    text(tmp_path / "results.csv", "epoch,loss\n1,0.5\n")  # of a training
    layout = recognise(tmp_path)
    assert csv_settings(layout) == {
        "train": (["data/train_labels.csv"], "images"),
        "test": (["data/test_labels.csv"], "images"),
    }
    assert layout.told.endswith("; left out, as it is of no split: data/raccoon_labels.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_one_table(tmp_path, separator):
    image(tmp_path / "a")
    text(tmp_path / "labels.csv", "\ufeff" + TABLE.format(name="a").replace(",", separator))
    layout = recognise(tmp_path)
    assert csv_settings(layout) == {"train": (["labels.csv"], ".")}
    assert read(layout, tmp_path) == {"train": {"a": ["car"]}}


def test_csv_of_via(tmp_path):
    """Regions as JSON, one of them a rectangle."""
    image(tmp_path / "data/a")
    text(
        tmp_path / "data/via_region_data.csv",
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        'a.jpg,700,"{}",1,0,"{""name"":""rect"",""x"":2,""y"":3,""width"":28,""height"":37}","{""class"":""car""}"\n',
    )
    assert read(recognise(tmp_path / "data"), tmp_path) == {"train": {"a": ["car"]}}


# All of them


def test_few_files_are_opened(tmp_path, monkeypatch):
    opened = []
    head = foreign.head
    monkeypatch.setattr(foreign, "head", lambda path, *size: opened.append(path) or head(path, *size))
    kitti(tmp_path, "image_2", "label_2", [f"{number:06}" for number in range(200)])
    assert len(recognise(tmp_path).parts) == 1
    assert len(opened) <= 16


def test_the_layout_that_is_meant(tmp_path):
    kitti(tmp_path, "images", "labels", ["a"])
    text(tmp_path / "result.json", coco(["a"]))
    assert recognise(tmp_path, "coco").kind == "coco"
    assert recognise(tmp_path, "kitti").kind == "kitti"


def test_classes_of_splits():
    assert class_differences({"train": ["a", "b"], "test": {"b", "a"}}) == []
    assert class_differences({"train": ["a", "b"], "validation": ["a", "c d"]}) == [
        "validation has 'c d', which train has not: a detector cannot learn them",
        "validation has no 'b', which train has: how well they are found is not measured there",
    ]
