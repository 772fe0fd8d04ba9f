"""One fault a test, with the number of findings; none on clean data."""

import shutil

import numpy as np
import pytest
from PIL import Image

from detectkit import spec
from detectkit.audit.findings import FindingKind
from detectkit.audit.gather import gather
from detectkit.audit.look import look
from tests.audit.conftest import SIZE


def test_clean_data_has_no_finding(folder):
    assert folder.find() == []


def test_every_kind_can_be_left_out_and_every_choice_is_a_kind():
    from detectkit.spec.schema import rule_of, schema_of

    field = schema_of(spec.DataCleaningConfig).fields_by_name["ignored_kinds"]
    assert list(rule_of(field).choices) == list(FindingKind)


# Images


def test_an_image_cut_short_is_unreadable(folder):
    path = folder.images / "03.png"
    path.write_bytes(path.read_bytes()[:-2000])
    (found,) = folder.find()
    assert (
        found.kind == "unreadable_image"
        and found.image == str(path)
        and str(found.correction) == "drop image"
    )


def test_what_is_no_image_is_told_as_conversions_leave_it_out(folder):
    (folder.images / "03.png").write_bytes(b"hello")
    (folder.images / "04.png").write_bytes(b"")
    assert folder.kinds() == {"unreadable_image": 2}


def test_a_copy_in_the_same_part_is_a_duplicate(folder):
    folds = {image.frame.frame_id: image.part for image in gather(folder.export()).images}
    name = next(frame for frame, part in folds.items() if part == "training").removeprefix("image_2/")
    shutil.copy(folder.images / f"{name}.png", folder.images / "copy.png")
    shutil.copy(folder.labels / f"{name}.txt", folder.labels / "copy.txt")
    (found,) = folder.find()
    assert found.kind in ("exact_duplicate", "leak") and found.sureness == 1
    assert {found.image, found.other} == {str(folder.images / f"{name}.png"), str(folder.images / "copy.png")}


def test_an_image_on_both_sides_is_a_leak_of_the_one_that_is_trained_on(folder):
    parts = {image.frame.image.stem: image.part for image in gather(folder.export()).images}
    held = next(name for name, part in parts.items() if part == "validation")
    trained = next(name for name, part in parts.items() if part == "training")
    with Image.open(folder.images / f"{held}.png") as image:
        image.resize((200, 150)).resize(SIZE).save(folder.images / f"{trained}.png")
    (found,) = folder.find()
    assert found.kind == "leak" and found.image == str(folder.images / f"{trained}.png")
    assert f"{held}.png (0 of 64 bits differ): that one is in validation, this one in training" in found.text


def test_of_copies_the_one_of_most_labels_is_kept(folder, tmp_path):
    shutil.copy(folder.images / "00.png", folder.images / "01.png")
    folder.add("01", ("bar", 20, 100, 60, 116))
    images = [image._replace(part="training") for image in gather(folder.export()).images]
    (found,) = look(gather(folder.export())._replace(images=images), spec.DataCleaningConfig())
    assert found.kind == "exact_duplicate" and found.image.endswith("00.png")


@pytest.mark.spec_field("DataCleaningConfig.near_duplicate_distance")
def test_near_duplicates_differ_in_at_most_so_many_bits(folder):
    with Image.open(folder.images / "00.png") as image:
        pixels = np.asarray(image).copy()
    pixels[:60, :60] = 255
    Image.fromarray(pixels).save(folder.images / "01.png")
    found = folder.find(spec.DataCleaningConfig(near_duplicate_distance=16))
    (bits,) = [int(item.text.split("(")[1].split()[0]) for item in found]
    assert 0 < bits <= 16
    assert folder.find(spec.DataCleaningConfig(near_duplicate_distance=bits - 1)) == []


def test_images_without_labels_among_labelled_ones(folder):
    folder.write("02", [])
    (folder.labels / "05.txt").unlink()
    assert folder.kinds() == {"unlabelled_image": 2}


def test_where_many_images_have_no_label_it_is_meant(folder):
    for number in range(10):
        folder.write(f"{number:02d}", [])
    assert folder.kinds() == {}


def test_labels_that_fit_the_stored_pixels(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # 160 x 120 as stored, 120 x 160 as shown
    with Image.open(folder.images / "07.png") as image:
        image.save(folder.images / "07.png", exif=exif)
    folder.write("07", [("square", 125, 10, 153, 40)])
    (found,) = folder.find()
    assert found.kind == "turned_labels" and "fit the 160x120 pixels as stored" in found.text


def test_labels_that_fit_the_turned_image_are_right(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder.images / "07.png") as image:
        image.save(folder.images / "07.png", exif=exif)
    folder.write("07", [("square", 50, 125, 78, 155)])
    assert folder.find() == []


# Boxes


def test_a_box_outside_names_file_and_line(folder):
    folder.add("04", ("bar", 200, 10, 240, 26))
    (found,) = folder.find()
    assert (found.kind, found.line, str(found.correction)) == ("outside", 3, "drop label")
    assert found.label_file == str(folder.labels / "04.txt") and found.box == (200, 10, 240, 26)


def test_a_box_partly_outside_is_offered_its_inner_part(folder):
    folder.add("04", ("bar", 150, 90, 190, 106))
    (found,) = folder.find()
    assert (found.kind, str(found.correction)) == ("partly_outside", "replace box with 150 90 160 106")
    assert found.text.startswith("75% of bar")


def test_a_pixel_outside_is_rounding(folder):
    folder.add("04", ("bar", 121, 100, 161, 116))
    assert folder.find() == []


def test_degenerate_boxes(folder):
    folder.add("04", ("bar", 110, 100, 111, 116), ("bar", 20, 100, 20, 110), ("bar", 90, 100, 80, 110))
    assert [(item.kind, item.line) for item in folder.find()] == [
        ("degenerate_box", 4),
        ("degenerate_box", 5),
        ("degenerate_box", 3),
    ]


def test_a_line_that_conversions_leave_out(folder):
    path = folder.labels / "04.txt"
    path.write_text(path.read_text() + "bar 1 2\n")
    (found,) = folder.find()
    assert (found.kind, found.line) == ("left_out", 3)


@pytest.mark.spec_field("DataCleaningConfig.duplicate_box_iou")
def test_doubled_boxes_overlap_more_than_so_much(folder):
    folder.write("04", [("square", 20, 20, 48, 50), ("square", 20, 20, 48, 49), ("bar", 80, 80, 120, 96)])
    (found,) = folder.find()
    assert (found.kind, found.line, found.other_box) == ("doubled_box", 2, (20, 20, 48, 50))
    assert found.text == "square is labelled twice: IoU 0.97 with another (line 1)"
    assert folder.kinds(duplicate_box_iou=0.98) == {}


def test_two_classes_on_one_object(folder):
    folder.write("04", [("square", 20, 20, 60, 36), ("bar", 20, 20, 60, 36)])
    assert folder.kinds() == {"two_classes": 1}


def test_regions_may_overlap(folder):
    folder.add("04", ("DontCare", 20, 20, 48, 50), ("DontCare", 20, 20, 48, 50))
    assert folder.kinds() == {}


@pytest.mark.spec_field("DataCleaningConfig.outlier_deviations")
def test_sizes_and_shapes_far_from_their_class(folder):
    folder.add("04", ("square", 5, 5, 155, 118), ("bar", 120, 30, 136, 110))
    assert folder.kinds() == {"odd_size": 1, "odd_shape": 1}
    # 150 x 113 for 28 x 30: 3.0 in the logarithm of the area, of which 0.3 is a deviation; 16 x 80 for 40 x 16: 2.5, of 0.2.
    assert folder.kinds(outlier_deviations=11) == {"odd_shape": 1}
    assert folder.kinds(outlier_deviations=13) == {}


def test_what_the_border_cuts_may_be_small(folder):
    folder.add("04", ("square", 0, 60, 3, 90), ("square", 157, 60, 160, 90))
    assert folder.kinds() == {}


def test_of_few_boxes_nothing_is_usual(folder):
    folder.add("04", ("ball", 5, 60, 10, 65), ("ball", 20, 60, 100, 118))
    assert folder.kinds() == {}


@pytest.mark.spec_field("DataCleaningConfig.ignored_kinds")
def test_kinds_that_are_ignored(folder):
    folder.add("04", ("bar", 200, 10, 240, 26), ("bar", 150, 90, 190, 106))
    assert folder.kinds() == {"outside": 1, "partly_outside": 1}
    assert folder.kinds(ignored_kinds=["outside"]) == {"partly_outside": 1}


# Records


def test_without_conversions_the_records_are_looked_through(tiny):
    gathered = gather(tiny)
    close = spec.DataCleaningConfig(near_duplicate_distance=4)  # all pictures are a square and a bar on grey
    assert len(gathered.images) == 24 and look(gathered, close) == []
    assert sum(image.part == "validation" for image in gathered.images) == 6


@pytest.mark.parametrize("files", ["test-fold-*", "test-fold-001-of-002-shard-00003-of-00009", "test*"])
def test_validation_images_of_a_conversion_of_their_own(folder, tmp_path, tiny, files):
    """The name of its records begins with that of the training records, and a bracket in a folder's is no pattern."""
    held = tmp_path / "held"
    shutil.copytree(tmp_path / "kitti", held)
    for part in ("image_2", "label_2"):
        for path in sorted((held / part).iterdir())[5:]:
            path.unlink()
    message = spec.Experiment()
    message.CopyFrom(tiny)
    for root, output in ((tmp_path / "kitti", "r[1]/te"), (held, "r[1]/test")):
        config = message.dataset_export_config.add()
        config.CopyFrom(folder.export())
        config.kitti_config.root_directory_path, config.kitti_config.val_split = str(root), 0
        config.output_filename = f"{tmp_path}/{output}"
    message.dataset_config.validation_data_source.tfrecords_path = f"{tmp_path}/r[[]1]/{files}"
    parts = [image.part for image in gather(message).images]
    assert parts == ["training"] * 40 + ["validation"] * 5
