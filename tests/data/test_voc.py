"""Pascal VOC folders: what becomes a record, what is left out and why, and what stops a conversion."""

import json
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from detectkit import spec
from detectkit.cli import main
from detectkit.data import tfrecord
from detectkit.data.convert import convert
from detectkit.data.voc import read_labels
from detectkit.errors import DataError

DATA_ERROR = 4
BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def thing(name="Car", box=BOX, more=""):
    return f"<object><name>{name}</name><pose>Unspecified</pose>{more}{box}</object>"


def annotation(*objects, size=SIZE):
    return (
        f"<annotation><folder>VOC2007</folder><filename>x.jpg</filename>{size}{''.join(objects)}</annotation>"
    )


def add_image(root, name, content, *, images="JPEGImages", labels="Annotations", extension="jpg"):
    for path in (root / images / f"{name}.{extension}", root / labels / f"{name}.xml"):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / images / f"{name}.{extension}")
    (root / labels / f"{name}.xml").write_text(content, encoding="utf-8")


def settings(root, **changes):
    config = spec.DatasetExportConfig()
    config.voc_config.root_directory_path = str(root)
    for field, value in changes.items():
        if isinstance(value, list):
            getattr(config.voc_config, field)[:] = value
        else:
            setattr(config.voc_config, field, value)
    return config


@pytest.fixture
def root(tmp_path):
    """Ten images with a car each."""
    for number in range(10):
        add_image(tmp_path / "voc", f"{number:06}", annotation(thing()))
    return tmp_path / "voc"


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "records" / "data")


def records(summary):
    """Records of each fold by frame id."""
    return [
        {record.frame_id: record for shard in fold.shards for record in tfrecord.read_records(str(shard))}
        for fold in summary.folds
    ]


def labels(tmp_path, content, **more):
    path = tmp_path / "a.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path, **more)


# What becomes a record


@pytest.mark.spec_field("VOCConfig.val_split")
@pytest.mark.parametrize("val_split, expected", [(0, [0, 10]), (1, [1, 9]), (30, [3, 7])])
def test_random_folds(root, prefix, val_split, expected):
    summary = convert(settings(root, val_split=val_split), prefix)
    assert [fold.frames for fold in summary.folds] == expected
    names = sorted(name for fold in records(summary) for name in fold)
    assert names == [f"JPEGImages/{number:06}" for number in range(10)]
    assert (summary.image_extension, summary.image_root, summary.rejected) == ("jpg", root, [])


@pytest.mark.spec_field("VOCConfig.image_set_files", "VOCConfig.num_shards")
def test_a_list_makes_a_fold(root, prefix):
    """The lists of VOC's Main folder, and one of a class, where -1, 0 and 1 say whether it is in the image."""
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text("000003\n000001\r\n\n000001\n")
    (root / "ImageSets" / "car_train.txt").write_text("000000 -1\n000002  1\n000004  0\n000009  1\n")
    files = ["ImageSets/val.txt", "ImageSets/car_train.txt"]
    summary = convert(settings(root, image_set_files=files, num_shards=2), prefix)
    assert [sorted(fold) for fold in records(summary)] == [
        [f"JPEGImages/00000{number}" for number in numbers] for numbers in ((1, 3), (0, 2, 4, 9))
    ]
    assert [shard.name for fold in summary.folds for shard in fold.shards] == [
        f"data-fold-00{fold}-of-002-shard-0000{shard}-of-00002" for fold in (0, 1) for shard in (0, 1)
    ]


def test_names_of_a_list_may_have_spaces_and_folders(root, prefix):
    add_image(root, "street 1", annotation())
    add_image(root, "more/street 7", annotation())
    (root / "list.txt").write_text("\ufeffstreet 1\nmore/street 7\n", encoding="utf-8")
    summary = convert(settings(root, image_set_files=["list.txt"]), prefix)
    assert sorted(records(summary)[0]) == ["JPEGImages/more/street 7", "JPEGImages/street 1"]
    assert summary.folds[0].shards[0].name == "data-fold-000-of-001"


@pytest.mark.spec_field(
    "VOCConfig.root_directory_path",
    "VOCConfig.image_dir_name",
    "VOCConfig.annotation_dir_name",
    "VOCConfig.image_extension",
)
@pytest.mark.parametrize("extension", ["png", ".png"])
def test_folders_of_other_names(tmp_path, prefix, extension):
    root = tmp_path / "cells"
    add_image(root, "a", annotation(thing()), images="pictures", labels="xml", extension="png")
    add_image(root, "b", annotation(thing()), images="pictures", labels="xml", extension="jpg")
    config = settings(
        root, image_dir_name="pictures", annotation_dir_name="xml", image_extension=extension, val_split=0
    )
    summary = convert(config, prefix)
    assert [sorted(fold) for fold in records(summary)] == [[], ["pictures/a", "pictures/b"]]
    assert [record.image_format for _, record in sorted(records(summary)[1].items())] == ["", "jpg"]
    assert (summary.image_extension, summary.others, summary.rejected) == ("png", 1, [])


@pytest.mark.parametrize(
    "bounds, expected",
    [
        (("2", "3", "30", "40"), (1, 2, 30, 40)),  # pixels 2 to 30, counted from 1: 29 of them
        (("1", "1", "64", "48"), (0, 0, 64, 48)),  # the whole image
        (("5", "6", "5", "6"), (4, 5, 5, 6)),  # one pixel
        (("0", "-3", "70.5", "1e2"), (-1, -4, 70.5, 100)),
        ((" 2.25\n", "3", "30", "40"), (1.25, 2, 30, 40)),
    ],
)
def test_pixel_numbers_become_edges(tmp_path, bounds, expected):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), bounds)
    box = "<bndbox>" + "".join(f"<{side}>{text}</{side}>" for side, text in sides) + "</bndbox>"
    content = labels(tmp_path, annotation(thing(box=box)))
    assert [label.box for label in content.labels] == [expected] and content.rejected == []


@pytest.mark.parametrize(
    "more, truncation, occlusion",
    [
        ("", 0, 0),
        ("<truncated>1</truncated><occluded>0</occluded>", 1, 0),
        ("<truncated>0</truncated><occluded>1</occluded>", 0, 1),
        ("<truncated>Unspecified</truncated><occluded/>", 0, 0),
        ("<truncated> 1 </truncated><occluded>True</occluded>", 1, 1),
        ("<truncated>0.0</truncated><occluded>.</occluded>", 0, 0),
    ],
)
def test_marks(tmp_path, more, truncation, occlusion):
    [label] = labels(tmp_path, annotation(thing(more=more))).labels
    assert (label.truncation, label.occlusion) == (truncation, occlusion)


@pytest.mark.spec_field("VOCConfig.difficult_label")
@pytest.mark.parametrize("label, names", [("", ["car", "busstop"]), ("DontCare", ["car", "dontcare"])])
def test_difficult_objects(root, prefix, label, names):
    easy, hard = ("<difficult>0</difficult>", "<difficult>1</difficult>")
    add_image(root, "d", annotation(thing(more=easy), thing("Bus Stop", more=hard)))
    found = records(convert(settings(root, difficult_label=label), prefix))
    assert found[1]["JPEGImages/d"].names == names


def test_parts_and_names_of_their_own_are_not_objects(tmp_path):
    part = f"<part><name>head</name>{BOX}</part>"
    content = labels(tmp_path, annotation(f"<object>{part}<name>person</name>{BOX}</object>"))
    assert [label.name for label in content.labels] == ["person"]


def test_the_image_is_the_one_of_the_xml_file_s_name(root, prefix):
    """Files that were renamed still hold the old name, here x.jpg."""
    assert len(records(convert(settings(root), prefix))[1]) == 10


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_a_size_need_not_be_stated(root, prefix, size):
    add_image(root, "s", annotation(thing(), size=size))
    summary = convert(settings(root), prefix)
    assert records(summary)[1]["JPEGImages/s"].width == 64 and summary.rejected == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    declared = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>\n"
    content = labels(tmp_path, (declared + annotation(thing("Caf\u00e9"))).encode(encoding))
    assert [label.name for label in content.labels] == ["Caf\u00e9"]


def test_embedded_images(root, prefix):
    config = settings(root)
    config.embed_images = True
    record = records(convert(config, prefix))[1]["JPEGImages/000004"]
    assert record.image == (root / "JPEGImages/000004.jpg").read_bytes() and record.image_format == "jpg"


# Which image


@pytest.mark.parametrize(
    "stated, expected",
    [
        ("000003.jpg", "000003.jpg"),
        ("000003.PNG", "000003.PNG"),
        ("pictures\\\\000003.PNG", "000003.PNG"),
        ("C:\\\\data\\\\000003.PNG", "000003.PNG"),
        ("/home/me/000003.PNG", "000003.PNG"),
        ("other.png", "000003.jpg"),
        ("", "000003.jpg"),
    ],
)
def test_of_several_images_of_a_name_the_stated_one_is_taken(root, prefix, stated, expected):
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "000003.PNG")
    stated = stated.replace("\\\\", "\\")
    add = annotation(thing()).replace("x.jpg", stated)
    (root / "Annotations" / "000003.xml").write_text(add)
    summary = convert(settings(root), prefix)
    taken = expected.split(".")[1].removeprefix("jpg")  # the usual one is not told
    assert records(summary)[1]["JPEGImages/000003"].image_format == taken
    [reject] = summary.rejected
    assert reject.file.startswith(f"{root}/JPEGImages/000003.") and not reject.file.endswith(expected)


def test_mixed_endings(root, prefix):
    """As a public data set has them, with lists."""
    for number, end in ((1, "JPG"), (2, "png"), (3, "jpeg"), (4, "PNG")):
        path = root / "JPEGImages" / f"00000{number}.jpg"
        path.rename(path.with_suffix(f".{end}"))
    names = [f"00000{number}" for number in range(10)]
    (root / "val.txt").write_text("\n".join(names[:3]))
    (root / "train.txt").write_text("\n".join(f"{name}.jpg" for name in names[3:]))
    summary = convert(settings(root, image_set_files=["val.txt", "train.txt"]), prefix)
    assert [fold.frames for fold in summary.folds] == [3, 7] and summary.rejected == []
    formats = {name[-1]: record.image_format for fold in records(summary) for name, record in fold.items()}
    assert formats == dict.fromkeys("056789", "") | {"1": "JPG", "2": "png", "3": "jpeg", "4": "PNG"}


def test_an_image_of_a_format_that_is_not_read_is_not_said_to_be_missing(root, prefix):
    for number, end in ((1, "jfif"), (2, "gif"), (3, "HEIC")):
        path = root / "JPEGImages" / f"00000{number}.jpg"
        path.rename(path.with_suffix(f".{end}"))
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "000004.gif")
    summary = convert(settings(root, image_extension="png"), prefix)
    assert sum(fold.frames for fold in summary.folds) == 10  # what is in a file counts, and these are JPEG
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "000002.gif")
    [reject] = convert(settings(root), prefix).rejected
    assert reject.file.endswith("000002.gif") and "no image of the formats BMP, JPEG" in reject.reason


def test_lists_name_images_in_sub_folders_only(tmp_path, prefix):
    root = tmp_path / "voc"
    for name in ("cam/0", "cam/1"):
        add_image(root, name, annotation(thing()))
    for lines in ("cam/0\ncam\\1\n", "./cam/0.jpg\n/data/JPEGImages/cam/1.jpg\n"):
        (root / "list.txt").write_text(lines)
        summary = convert(settings(root, image_set_files=["list.txt"]), prefix)
        assert sorted(records(summary)[0]) == ["JPEGImages/cam/0", "JPEGImages/cam/1"]
        assert summary.rejected == []


def test_images_of_endings_that_are_no_images(root, prefix):
    """A file is what is in it; of what cannot be read, or found again, the reason names the file that is there."""
    for name, kind in (("a.jfif", "JPEG"), ("b.gif", "GIF"), ("c", "PNG")):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / name, format=kind)
        (root / "Annotations" / name).with_suffix(".xml").write_text(annotation(thing()))
    (root / "JPEGImages" / "d.json").touch()
    (root / "Annotations" / "d.xml").write_text(annotation(thing()))
    summary = convert(settings(root), prefix)
    assert sorted(records(summary)[1])[10:] == ["JPEGImages/a"]
    gif, missing, nameless = summary.rejected
    assert gif.file.endswith("JPEGImages/b.gif") and gif.reason.startswith(
        "not a readable image (it is no image of the formats BMP,"
    )
    assert missing.file.endswith("JPEGImages/d.jpg") and missing.reason == "the image is missing"
    assert nameless.file.endswith("JPEGImages/c") and nameless.reason.startswith("the name has no extension")


def test_the_stated_image_where_none_has_the_name(root, prefix):
    """Only one that no other XML file is of; one that two are of is left out, as their boxes may be of either."""
    for name, stated in (("a", "cam/7.png"), ("b", "000002.jpg"), ("c", "8.png"), ("d", "x\\8.png")):
        (root / "Annotations" / f"{name}.xml").write_text(annotation(thing()).replace("x.jpg", stated))
    (root / "JPEGImages" / "cam").mkdir()
    for name in ("cam/7.png", "8.png"):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / name)
    summary = convert(settings(root), prefix)
    assert sorted(records(summary)[1])[10:] == ["JPEGImages/cam/7"]
    twice = f"its image {root}/JPEGImages/8.png is that of another label file too"
    assert [(reject.file, reject.reason) for reject in summary.rejected] == [
        (f"{root}/JPEGImages/b.jpg", "the image is missing"),
        (f"{root}/Annotations/c.xml", twice),
        (f"{root}/Annotations/d.xml", twice),
        (f"{root}/Annotations/8.xml", "the label file is missing"),
    ]


@pytest.mark.parametrize(
    "points, expected",
    [
        ("<x1>11</x1><y1>6</y1><x2>30</x2><y2>7</y2><x3>20</x3><y3>40</y3>", (10, 5, 30, 40)),
        (
            "<pt><x>11</x><y>6</y></pt><pt><x>30.5</x><y>7</y></pt><pt><x>20</x><y>40</y></pt>",
            (10, 5, 30.5, 40),
        ),
        ("<username>me</username><pt><x>'11'</x><y>6</y></pt><pt><x>30</x><y>40</y></pt>", (10, 5, 30, 40)),
    ],
)
def test_a_polygon_without_a_box(tmp_path, points, expected):
    content = labels(tmp_path, annotation(thing(box=f"<polygon>{points}</polygon>")))
    assert [label.box for label in content.labels] == [expected] and content.rejected == []


def test_numbers_in_quotes(tmp_path):
    content = labels(
        tmp_path, annotation(thing(box=BOX.replace(">30<", '>"30"<')), size=SIZE.replace(">64<", ">'64'<"))
    )
    assert [label.box for label in content.labels] == [(1, 2, 30, 40)] and content.size == (64, 48)


# What is left out


@pytest.mark.parametrize(
    "element, reason",
    [
        ("<object/>", "object 2: it has no name"),
        (thing(more=thing()), "object 2: another object is inside it"),
        (thing(""), "object 2: it has no name"),
        (thing(box=""), "object 2: it has no bndbox"),
        (thing(box=BOX.replace(">30<", ">one<")), "object 2: xmax is 'one', not a number"),
        (thing(box=BOX.replace(">30<", "><")), "object 2: xmax is '', not a number"),
        (thing(box=BOX.replace("<xmax>30</xmax>", "")), "object 2: xmax is '', not a number"),
        (thing(box=BOX.replace(">30<", ">nan<")), "object 2: xmax is 'nan', not a finite number"),
        (thing(box=BOX.replace(">30<", ">1<")), "object 2: the box (2, 3, 1, 40) has no area"),
        (thing(box=BOX.replace(">40<", ">-7<")), "object 2: the box (2, 3, 30, -7) has no area"),
        (
            thing(box="<polygon><x1>3</x1><y1>4</y1></polygon>"),
            "object 2: it has no bndbox, and its polygon has no",
        ),
        (thing(box="<polygon><x1>3</x1><y1>b</y1></polygon>"), "y1 of its polygon is 'b', not a number"),
        (thing("traffic\nlight"), r"the class name 'traffic\nlight' has the control character U+000A"),
        (thing("car&#155;"), r"the class name 'car\x9b' has the control character U+009B"),
        (thing("\u202ecar"), r"the class name '\u202ecar' has the control character U+202E"),
    ],
)
def test_an_object_that_is_left_out(root, prefix, element, reason):
    add_image(root, "bad", annotation(thing(), element, thing("Dog")))
    summary = convert(settings(root), prefix)
    [entry] = json.loads(summary.warning_file.read_text())
    assert (entry["file"], entry["line"]) == (f"{root}/Annotations/bad.xml", None)
    assert reason in entry["reason"]
    assert records(summary)[1]["JPEGImages/bad"].names == ["car", "dog"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not a usable XML file: no element found"),
        (b"<annotation><object>", "not a usable XML file: no element found"),
        (b"<annotation></object>", "not a usable XML file: mismatched tag: line 1"),
        (b"\xff\xd8\xff\xe0", "not a usable XML file: not well-formed"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "not a usable XML file: unknown encoding"),
        (
            annotation(f"<objects>{thing()}{thing()}</objects>", thing()).encode(),
            "2 of its 3 objects are inside other elements than <annotation>",
        ),
        (b"<html></html>", "not an annotation of Pascal VOC: it begins with <html>"),
        (
            annotation(size=SIZE.replace("64", "63")).encode(),
            "the image is 64x48 pixels, but its labels are for 63x48",
        ),
        (annotation(size=SIZE.replace("64", "wide")).encode(), "width is 'wide', not a number"),
        (b"<!DOCTYPE annotation><annotation/>", "it declares a document type, which is refused"),
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "it declares a document type, which is refused",
        ),
        (b"<annotation>&x;</annotation>", "not a usable XML file: undefined entity"),
        (None, "the label file is missing"),
    ],
)
def test_a_file_that_is_left_out(root, prefix, content, reason):
    file = root / "Annotations" / "000003.xml"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    summary = convert(settings(root), prefix)
    [reject] = summary.rejected
    assert (reject.file, reject.line) == (str(file), None) and reason in reject.reason
    assert sum(fold.frames for fold in summary.folds) == 9


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp037"])
def test_entities_that_would_grow_without_bound(tmp_path, encoding):
    """A thousand million times "lol" from a thousand bytes, in encodings that hide it from a search too."""
    levels = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
    text = f"<!DOCTYPE a [<!ENTITY l0 'lol'>{levels}]><annotation>&l9;</annotation>"
    declaration = f"<?xml version='1.0' encoding='{encoding}'?>"
    begin = time.monotonic()
    with pytest.raises(DataError, match="not a usable XML file"):
        labels(tmp_path, (declaration + text).encode(encoding))
    assert time.monotonic() - begin < 1


def test_elements_nested_without_end(tmp_path):
    depth = 100_000
    content = labels(tmp_path, annotation("<object>" * depth + "</object>" * depth))
    assert content.labels == [] and content.rejected == [(None, "object 1: it has no name")]


@pytest.mark.parametrize(
    "damage, file, reason",
    [
        (lambda image: image.unlink(), "JPEGImages/000003.jpg", "the image is missing"),
        (lambda image: image.write_bytes(b""), "JPEGImages/000003.jpg", "the file is empty"),
        (lambda image: image.write_text("<html>"), "JPEGImages/000003.jpg", "not a readable image"),
    ],
)
@pytest.mark.parametrize("files", [[], ["list.txt"]])
def test_an_image_that_is_left_out(root, prefix, damage, file, reason, files):
    (root / "list.txt").write_text("".join(f"00000{number}\n" for number in range(10)))
    damage(root / "JPEGImages" / "000003.jpg")
    summary = convert(settings(root, image_set_files=files), prefix)
    [reject] = summary.rejected
    assert reject.file == f"{root}/{file}" and reason in reject.reason
    assert sum(fold.frames for fold in summary.folds) == 9


PIECES = st.sampled_from(
    [
        "<annotation>",
        "</annotation>",
        "<object>",
        "</object>",
        "<name>",
        "</name>",
        BOX,
        SIZE,
        "<xmin>",
        "1",
        "&#0;",
    ]
)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=60) | st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts).encode())
)
def test_any_bytes_give_labels_or_one_reason(tmp_path, content):
    try:
        found = labels(tmp_path, content).labels
    except DataError as error:
        assert str(error)
    else:
        assert all(label.name and label.box[2] > label.box[0] for label in found)


# What stops a conversion


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda root: (root / "a.txt").unlink(), "cannot read image_set_files"),
        (lambda root: (root / "a.txt").write_bytes(b"\xff\xfe"), "cannot read image_set_files"),
        (lambda root: (root / "a.txt").write_text(" \n"), "/a.txt names no image"),
        (
            lambda root: [(root / name).write_text(f"no {name}\n") for name in ("a.txt", "b.txt")],
            "nothing to convert: none of 2 images and labels is usable",
        ),
        (lambda root: (root / "b.txt").write_text("000001\n"), "000001.jpg is in fold 0 and in fold 1"),
        (
            lambda root: (root / "Annotations").rename(root / "xml"),
            "Annotations: No such file or directory; it is root_directory_path with annotation_dir_name",
        ),
        (
            lambda root: (root / "JPEGImages").rename(root / "images"),
            "JPEGImages: No such file or directory; it is root_directory_path with image_dir_name",
        ),
        (
            lambda root: [path.rename(path.with_suffix(".mp4")) for path in (root / "JPEGImages").iterdir()],
            "no images in",
        ),
    ],
)
def test_what_stops_a_conversion(root, tmp_path, capsys, damage, words):
    (root / "a.txt").write_text("000001\n")
    (root / "b.txt").write_text("000002\n")
    config = settings(root, image_set_files=["a.txt", "b.txt"])
    (tmp_path / "spec.txt").write_text(spec.dumps(config))
    damage(root)
    assert main(["convert", "-d", str(tmp_path / "spec.txt"), "-o", f"{tmp_path}/records/data"]) == DATA_ERROR
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("error: ") == 1
    assert not (tmp_path / "records").exists()


def test_a_share_beside_lists_is_a_contradiction(root):
    [found] = spec.check(settings(root, image_set_files=["a.txt", "b.txt"], val_split=10))
    assert str(found) == (
        "voc_config.val_split: must be left out with several image_set_files, which say what is in each fold, got 10"
    )
    assert spec.check(settings(root, image_set_files=["a.txt"])) == []
    assert spec.check(settings(root, image_set_files=["a.txt"], val_split=10)) == []
    assert spec.check(settings(root, val_split=10)) == []


def test_a_single_list_is_drawn_from(root, tmp_path):
    (root / "eight.txt").write_text("".join(f"{number:06}\n" for number in range(8)))
    config = settings(root, image_set_files=["eight.txt"], val_split=25)
    folds = convert(config, str(tmp_path / "data")).folds
    assert [(fold.number, fold.frames) for fold in folds] == [(0, 2), (1, 6)]


def test_check_looks_for_the_files(root, tmp_path, capsys):
    (tmp_path / "spec.txt").write_text(spec.dumps(settings(root, image_set_files=["a.txt"])))
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == DATA_ERROR
    assert f"voc_config.image_set_files[0]: there is no file {root}/a.txt" in capsys.readouterr().err
    (root / "a.txt").write_text("000001\n")
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == 0
    assert f"{root}/JPEGImages: 10 .jpg files" in capsys.readouterr().out
    (root / "Annotations").rename(root / "labels")
    assert main(["check", "-e", str(tmp_path / "spec.txt")]) == DATA_ERROR
    assert "voc_config.annotation_dir_name: there is no folder" in capsys.readouterr().err


def test_sizes_of_photographs_that_are_turned(root, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (0, 1):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / f"{number:06}.jpg", exif=exif)
    upright = "<size><width>48</width><height>64</height></size>"
    (root / "Annotations" / "000000.xml").write_text(annotation(thing(), size=upright))
    summary = convert(settings(root, val_split=20), str(tmp_path / "records"))
    (reject,) = summary.rejected
    assert reject.file.endswith("000001.xml") and "EXIF orientation turns it" in reject.reason
    assert summary.turned == 1 and sum(fold.frames for fold in summary.folds) == 9
