"""Tables of boxes: what becomes a record, what is left out and why, and what stops a conversion."""

import json
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectkit import spec
from detectkit.data.convert import convert, read
from detectkit.data.csv import read_table
from detectkit.errors import DataError

SIZE = (200, 100)
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"  # of TensorFlow's object detection
BOX = ("Car", 80, 30, 120, 70)


def add_image(root, file, size=SIZE):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / file)


def settings(root, tables=("t.csv",), **changes):
    config = spec.DatasetExportConfig()
    config.csv_config.root_directory_path = str(root)
    config.csv_config.csv_files[:] = tables
    for field, value in changes.items():
        setattr(config.csv_config, field, value)
    return config


def source(root, tables=("t.csv",), **changes):
    return read(settings(root, tables, **changes), random.Random(0))


def frames(found):
    """Labels of all folds by frame id: name and box."""
    return {
        f.frame_id: [(label.name, *label.box) for label in f.labels] for fold in found.folds for f in fold
    }


def told(found):
    return [(reject.file.rsplit("/", 1)[-1], reject.line, reject.reason) for reject in found.rejected]


def table(path, content, encoding="utf-8"):
    """What a table has: labels by file name, and whether they are in shares."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return read_table(path)


def labels(found):
    return {name: [(label.name, *label.box) for label in one.labels] for name, one in found.images.items()}


@pytest.fixture
def root(tmp_path):
    """As Roboflow exports: a folder for each set, and its table in it."""
    for part, names in (("train", "abcd"), ("valid", "xy")):
        rows = [f"{name}.jpg,200,100,Car,80,30,120,70\n" for name in names]
        for name in names:
            add_image(tmp_path / "d", f"{part}/{name}.jpg")
        (tmp_path / "d" / part / "_annotations.csv").write_text(HEADER + "".join(rows))
    return tmp_path / "d"


# What becomes a record


@pytest.mark.spec_field("CSVConfig.root_directory_path", "CSVConfig.csv_files", "CSVConfig.num_shards")
def test_a_table_makes_a_fold(root, tmp_path):
    config = settings(root, ["valid/_annotations.csv", "train/_annotations.csv"], num_shards=2)
    summary = convert(config, str(tmp_path / "records" / "data"))
    assert [(fold.frames, fold.boxes) for fold in summary.folds] == [(2, {"car": 2}), (4, {"car": 4})]
    assert [len(fold.shards) for fold in summary.folds] == [2, 2]
    assert (summary.image_extension, summary.image_root, summary.rejected) == ("jpg", root, [])
    assert frames(read(config, random.Random(0)))["valid/x"] == [BOX]


@pytest.mark.spec_field("CSVConfig.val_split")
@pytest.mark.parametrize("val_split, expected", [(0, [4]), (1, [1, 3]), (50, [2, 2])])
def test_a_single_table_is_split(root, val_split, expected):
    found = source(root, ["train/_annotations.csv"], val_split=val_split)
    assert [len(fold) for fold in found.folds] == expected


@pytest.mark.spec_field("CSVConfig.image_dir_name")
def test_images_are_in_the_folder_that_the_spec_names(root):
    add_image(root, "other/a.jpg", (400, 100))
    (root / "t.csv").write_text("file,label,x1,y1,x2,y2\na.jpg,Car,80,30,120,70\n")
    found = source(root, image_dir_name="other")
    assert frames(found) == {"other/a": [BOX]} and found.folds[0][0].width == 400


@pytest.mark.parametrize(
    "stated, is_moved",
    [
        ("train/a.jpg", False),
        ("./train/a.jpg", False),
        (r"train\a.jpg", False),
        ("ROOT/train/a.jpg", False),
        ("a.jpg", False),
        ("a", False),  # as Open Images names them
        ("A.JPG", False),
        ("/content/data/train/a.jpg", True),
        ("gs://bucket/a.png", True),
    ],
)
def test_how_a_table_may_name_an_image(root, caplog, stated, is_moved):
    (root / "t.csv").write_text(HEADER + f"{stated.replace('ROOT', str(root))},200,100,Car,80,30,120,70\n")
    with caplog.at_level(logging.INFO):
        assert frames(source(root)) == {"train/a": [BOX]}
    assert ("1 paths are of another place" in caplog.text) == is_moved


def test_a_table_begins_with_its_own_folder(root):
    """Both sets may have an image of one name."""
    add_image(root, "valid/a.jpg", (400, 100))
    (root / "valid" / "_annotations.csv").write_text(HEADER + "a.jpg,400,100,Car,80,30,120,70\n")
    found = source(root, ["valid/_annotations.csv", "train/_annotations.csv"])
    assert [sorted(frame.frame_id for frame in fold) for fold in found.folds] == [
        ["valid/a"],
        [f"train/{name}" for name in "abcd"],
    ]


def test_two_spellings_of_a_path_are_one_image(root):
    (root / "t.csv").write_text(
        HEADER + "train/a.jpg,200,100,Car,80,30,120,70\n./train/a.jpg,,,Bus,0,0,9,9\n"
    )
    assert frames(source(root)) == {"train/a": [BOX, ("Bus", 0, 0, 9, 9)]}


def test_boxes_in_shares(root):
    """One may reach out of its image."""
    rows = "train/a.jpg,200,100,Car,0.25,0.5,0.75,1\ntrain/b.jpg,200,100,Car,-0.125,0,1.25,1.0\n"
    (root / "t.csv").write_text(HEADER + rows)
    assert frames(source(root)) == {
        "train/a": [("Car", 50, 50, 150, 100)],
        "train/b": [("Car", -25, 0, 250, 100)],
    }


@pytest.mark.parametrize(
    "content",
    [
        "TRAIN,train/a.jpg,Car,80,30,,,120,70,,\nTEST,train/b.jpg,Car,80,30,,,120,70,,\n",
        "split,image,label,x1,y1,x2,y2\nTRAIN,train/a.jpg,Car,80,30,120,70\nTEST,train/b.jpg,Car,80,30,120,70\n",
    ],
)
def test_a_column_that_deals_rows_to_sets_is_told(root, caplog, content):
    (root / "t.csv").write_text(content)
    assert frames(source(root)) == {"train/a": [BOX], "train/b": [BOX]}
    assert "t.csv deals its rows to sets (TRAIN 1, TEST 1), which is not used" in caplog.text


# Columns


@pytest.mark.parametrize(
    "header, row",
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a b.jpg,200,100,Car,80,30,120,70"),
        ("Image_Path,Label,X_Min,Y_Min,X_Max,Y_Max", "a b.jpg,Car,80,30,120,70"),
        ("image,name,left,top,right,bottom", "a b.jpg,Car,80,30,120,70"),
        ("name,label,x1,y1,x2,y2", "a b.jpg,Car,80,30,120,70"),
        ("IMAGE ID,Category,bbox_x1,bbox_y1,bbox_x2,bbox_y2", "a b.jpg,Car,80,30,120,70"),
        ("file,class,x0,y0,x1,y1", "a b.jpg,Car,80,30,120,70"),
        ("frame,xmin,xmax,ymin,ymax,class_id", "a b.jpg,80,120,30,70,Car"),
        ("filename,class,x,y,w,h", "a b.jpg,Car,80,30,40,40"),
        ("filename,class,x,y,width,height", "a b.jpg,Car,80,30,40,40"),
        ("filename,width,height,class,x,y,w,h", "a b.jpg,200,100,Car,80,30,40,40"),
        ("class,left,top,width,height,image", "Car,80,30,40,40,a b.jpg"),
        (
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
            "Car,80,30,40,40,a b.jpg,200,100",
        ),
        ("filename,class,x_center,y_center,width,height", "a b.jpg,Car,100,50,40,40"),
        (",filename,class,xmin,ymin,xmax,ymax", "0,a b.jpg,Car,80,30,120,70"),  # pandas writes its index
        (
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded",
            "a b.jpg,xclick,Car,1,80,120,30,70,0",
        ),
    ],
)
def test_names_of_columns(tmp_path, header, row):
    found = table(tmp_path / "t.csv", f"{header}\n{row}\n")
    assert labels(found) == {"a b.jpg": [BOX]}
    size = found.images["a b.jpg"].size
    assert size == ((200, 100) if "200" in row else (0, 0)) and found.rejected == []


@pytest.mark.parametrize(
    "row",
    [
        "a b.jpg,80,30,120,70,Car",  # RetinaNet
        "TRAIN,a b.jpg,Car,80,30,,,120,70,,",  # AutoML
        "UNASSIGNED,a b.jpg,Car,80,30,120,30,120,70,80,70",
        "gs://bucket/a b.jpg,Car,80,30,,,120,70,,",
        "a b.jpg,200,100,Car,80,30,120,70",  # TensorFlow
        "Car,80,30,40,40,a b.jpg,200,100",  # makesense.ai
    ],
)
def test_tables_without_names_of_columns(tmp_path, row):
    [(name, found)] = labels(table(tmp_path / "t.csv", row + "\n")).items()
    assert name.endswith("a b.jpg") and found == [BOX]


@pytest.mark.parametrize("first", ["e.jpg,,,,,", "e.jpg,,,,,Car", "TEST,e.jpg,,,,,,,,,"])
def test_the_first_image_may_show_nothing(tmp_path, first):
    others = {"e": "a.jpg,80,30,120,70,Car", "T": "TEST,a.jpg,Car,80,30,,,120,70,,"}
    found = table(tmp_path / "t.csv", f"{first}\n{others[first[0]]}\n")
    assert labels(found) == {"e.jpg": [], "a.jpg": [BOX]}


def test_regions_of_via(tmp_path):
    def row(shape, attributes, number=0):
        cells = [json.dumps(each).replace('"', '""') for each in (shape, attributes)]
        return f'a.jpg,1234,"{{}}",5,{number},"{cells[0]}","{cells[1]}"\n'

    rect = {"name": "rect", "x": 80, "y": 30, "width": 40, "height": 40}
    polygon = {"name": "polygon", "all_points_x": [80, 120, 100], "all_points_y": [30, 40, 70]}
    circle = {"name": "circle", "cx": 100, "cy": 50, "r": 20}
    ellipse = {"name": "ellipse", "cx": 100, "cy": 50, "rx": 20, "ry": 20}
    content = (
        "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        + row(rect, {"whatever": "Car"})
        + row(polygon, {"colour": "red", "Class": "Car"})
        + row(circle, {"type": {"Car": True, "Bus": False}})
        + row(ellipse, {"type": "Car"})
        + row({"name": "point", "cx": 1, "cy": 2}, {"type": "Car"})
        + row(rect, {"colour": "red", "kind": "Car"})
        + row(rect, {})
        + "e.jpg,99,{},0,0,{},{}\n"
    )
    found = table(tmp_path / "t.csv", content)
    assert labels(found) == {"a.jpg": [BOX] * 4, "e.jpg": []}
    assert found.images["a.jpg"].rejected == [
        (6, "a region of the kind 'point' has no box"),
        (7, "none of its attributes ('colour', 'kind') is called class"),
        (8, "the box has no class"),
    ]


# Text


@pytest.mark.parametrize(
    "content, encoding",
    [
        ("filename,class,xmin,ymin,xmax,ymax\nä b.jpg,Fußgänger 車,80.5,30,120,70\n", "utf-8-sig"),
        ("filename,class,xmin,ymin,xmax,ymax\r\n\r\nä b.jpg,Fußgänger 車,80.5,30,120,70", "utf-16"),
        ("filename;class;xmin;ymin;xmax;ymax\nä b.jpg;Fußgänger 車;80,5;30;120;70\n", "utf-8"),
        (
            '"filename";"class";"xmin";"ymin";"xmax";"ymax"\n"ä b.jpg";"Fußgänger 車";"80,5";"30";"120";"70"\n',
            "utf-8",
        ),
        ("sep=;\nfilename;class;xmin;ymin;xmax;ymax\nä b.jpg;Fußgänger 車;80,5;30;120,0;70\n", "utf-8"),
        ("filename\tclass\txmin\tymin\txmax\tymax\nä b.jpg\tFußgänger 車\t80.5\t30\t120\t70\n", "utf-8"),
        ("filename|class|xmin|ymin|xmax|ymax\nä b.jpg|Fußgänger 車|80.5|30|120|70\n", "utf-8"),
        (
            '"filename", "class", "xmin","ymin","xmax","ymax"\n"ä b.jpg", "Fußgänger 車","80.5","30","120","70"\n',
            "utf-8",
        ),
        (
            "filename , class , xmin , ymin , xmax , ymax\n ä b.jpg , Fußgänger 車 , 80.5 , 30 , 120 , 70 \n",
            "utf-8",
        ),
        ("ä b.jpg;80,5;30;120;70;Fußgänger 車\n", "utf-8"),
    ],
)
def test_separators_quotes_and_encodings(tmp_path, content, encoding):
    found = table(tmp_path / "t.csv", content, encoding)
    assert labels(found) == {"ä b.jpg": [("Fußgänger 車", 80.5, 30, 120, 70)]} and found.rejected == []


def test_quoted_names_may_have_separators_and_line_ends(tmp_path):
    content = (
        HEADER
        + '"a, b.jpg",200,100,"Car","80","30","120","70"\n"c\nd.jpg",200,100,Car,80,30,120,70\n"e.jpg",1,1\n'
    )
    found = table(tmp_path / "t.csv", content)
    assert labels(found) == {"a, b.jpg": [BOX], "c\nd.jpg": [BOX], "e.jpg": []}


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NULL", "None"])
def test_a_row_without_a_box_is_an_image_without_objects(tmp_path, empty):
    found = table(tmp_path / "t.csv", HEADER + f"a.jpg,200,100,No finding{f',{empty}' * 4}\n\n,,,,,,,\n")
    assert labels(found) == {"a.jpg": []} and found.rejected == []


# What is left out


@pytest.mark.parametrize(
    "row, why",
    [
        ("a.jpg,200,100,,80,30,120,70", "the box has no class"),
        ("a.jpg,200,100,Car,80,30,120,x", "ymax is 'x', not a number"),
        ("a.jpg,200,100,Car,80,30,120,", "ymax is '', not a number"),
        ("a.jpg,200,100,Car,80,30,120,1e400", "ymax is '1e400', not a finite number of a sensible size"),
        (
            "a.jpg,200,100,Car,80,30,40,40",
            "the box (80, 30, 40, 40) is reversed: it needs xmin < xmax and ymin < ymax",
        ),
        ("a.jpg,200,100,Car,80,30,80,70", "the box (80, 30, 80, 70), xmin, ymin, xmax, ymax, has no area"),
        (
            "a.jpg,640,480,Car,80,30,120,70",
            "the image is (640, 480) pixels here, and (200, 100) in an earlier row",
        ),
        ("a.jpg,wide,100,Car,80,30,120,70", "width is 'wide', not a number"),
        ("a.jpg,200,100,C\x07,80,30,120,70", "has the control character"),
    ],
)
def test_rows_that_are_no_labels(root, row, why):
    row = row.replace("a.jpg", "train/a.jpg")
    (root / "t.csv").write_text(HEADER + f"train/a.jpg,200,100,Car,80,30,120,70\n{row}\n")
    found = source(root)
    assert frames(found) == {"train/a": [BOX]}
    [(file, line, reason)] = [entry for entry in told(found) if entry[0] == "t.csv"]
    assert line == 3 and why in reason


@pytest.mark.parametrize(
    "row, why",
    [
        (",200,100,Car,80,30,120,70", "the row names no image file"),
        ("a, b.jpg,200,100,Car,80,30,120,70", "9 columns, but the table has 8: quote texts with ',' in them"),
    ],
)
def test_rows_of_no_image(tmp_path, row, why):
    found = table(tmp_path / "t.csv", f"{HEADER}{row}\nb.jpg,200,100,Car,80,30,120,70\n")
    assert list(found.images) == ["b.jpg"]
    assert [(reject.line, reject.reason) for reject in found.rejected] == [(2, why)]


def test_images_that_are_missing_broken_of_another_size_or_not_named(root):
    add_image(root, "train/more.jpg")
    add_image(root, "preview.jpg")  # in no folder of the table's images
    (root / "train" / "b.jpg").write_bytes(b"")
    rows = [
        f"{name}.jpg,{w},100,Car,80,30,120,70\n"
        for name, w in (("a", 200), ("b", 200), ("c", 640), ("gone", 200))
    ]
    (root / "t.csv").write_text(HEADER + "".join(f"train/{row}" for row in rows))
    found = source(root)
    assert list(frames(found)) == ["train/a"]
    assert told(found) == [
        ("gone.jpg", None, "the image is missing"),
        ("b.jpg", None, "the file is empty"),
        ("c.jpg", None, "the image is 200x100 pixels, but its labels are for 640x100"),
        ("d.jpg", None, "no row of a table names the image"),
        ("more.jpg", None, "no row of a table names the image"),
    ]


def test_a_file_that_is_no_image(root):
    (root / "train" / "a.gif").write_text("moving")
    (root / "t.csv").write_text(HEADER + "train/a.gif,200,100,Car,80,30,120,70\n../d.csv,,,Car,1,2,3,4\n")
    [other, gif] = told(source(root))
    assert gif[0] == "a.gif" and gif[2].startswith("not a readable image")
    assert other == ("d.csv", None, "the image is missing")


def test_an_image_in_two_tables_stops(root):
    with pytest.raises(DataError, match="is in fold 0 and in fold 1: an image may be in one only"):
        source(root, ["train/_annotations.csv", "train/_annotations.csv"])


@pytest.mark.parametrize(
    "content, why",
    [
        ("", "is empty"),
        (HEADER, "has no rows but that of the column names"),
        (
            "filename,cat,dog\na.jpg,1,0\n",
            r"needs columns for the file name, the class and the box .* filename, cat, dog",
        ),
        (
            "filename,xmin,ymin,xmax,ymax\na.jpg,1,2,3,4\n",
            "needs columns for the file name, the class and the box",
        ),
        ("a.jpg 80 30 120 70 Car\n", "its first row is: a.jpg 80 30 120 70 Car"),
        ('"two\nlines",5\n', "its first row is: two lines, 5"),
        (
            b"filename,class,xmin,ymin,xmax,ymax\nstra\xdfe.jpg,Car,1,2,3,4\n",
            "t.csv:2: not UTF-8 text; save it as UTF-8",
        ),
        (HEADER + '"' + "a" * (1 << 24) + 'a"\n', "t.csv:2: not a table"),
        (
            HEADER + '"a.jpg,1,1,Car,1,2,3,4\nb.jpg,1,1,Car,1,2,3,4\n',
            "t.csv:3: not a table .unexpected end of data",
        ),
        (HEADER + '"a.jpg,1,1,Car,1,2,3,4\n"b.jpg",1,1,Car,1,2,3,4\n', "t.csv:3: not a table"),
        (None, "cannot read csv_files .*t.csv: No such file"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, why):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=why):
        read_table(tmp_path / "t.csv")


@given(content=st.text('ab.jpg,;"\n\r\t 0129-x', max_size=80))
def test_any_rows_are_read_or_rejected(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    path.write_text(HEADER + content)
    try:
        found = read_table(path)
    except DataError:
        return
    for one in found.images.values():
        assert all(label.box[0] < label.box[2] and label.box[1] < label.box[3] for label in one.labels)


@pytest.mark.parametrize("cell", ['"[80, 30, 40.0, 40.0]"', '"80 30 40 40"', '"(80,30,40,40)"'])
def test_a_box_in_one_column(tmp_path, cell):
    """As Kaggle's wheat heads have them."""
    found = table(
        tmp_path / "t.csv", f"image_id,width,height,bbox,class\na,200,100,{cell},Car\nb,200,100,[],\n"
    )
    assert labels(found) == {"a": [BOX], "b": []} and found.images["a"].size == (200, 100)


def test_a_box_in_one_column_that_has_no_four_numbers(tmp_path):
    found = table(tmp_path / "t.csv", 'image,bbox,class\na,"[1, 2, 3]",Car\n')
    assert found.images["a"].rejected == [(2, "bbox has 3 numbers, not x, y, width and height")]
