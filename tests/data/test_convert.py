"""From label files to shards: names, splits, what is left out and why, and nothing half-written."""

import errno
import glob
import json
import os
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy
import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit import spec
from detectkit.cli import main
from detectkit.data import sources, tfrecord
from detectkit.data.convert import convert, modify
from detectkit.data.digits import make_sample_data
from detectkit.data.example_pb2 import Example
from detectkit.data.readers import LONGEST, Label, LabelledImage
from detectkit.data.records import training_frames
from detectkit.errors import DataError, OutputError, UsageError
from detectkit.spec import DatasetExportConfig

CAR = "Car 0.5 1 -1.57 10.5 20 30.25 40 1.5 1.6 3.9 1 2 8.4 0.01\n"
PERSON = CAR.replace("Car", "Pedestrian")


def settings(root, **changes):
    config = DatasetExportConfig(image_directory_path=str(root))
    source = config.kitti_config
    source.root_directory_path, source.image_dir_name, source.label_dir_name = str(root), "image_2", "label_2"
    source.partition_mode, source.num_partitions, source.num_shards, source.val_split = "random", 2, 2, 20
    for name, value in changes.items():
        setattr(source, name, value)
    return config


def add_frame(root, name, labels=CAR, mode="RGB", extension="png", size=(64, 48)):
    for folder in ("image_2", "label_2"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(root / "image_2" / f"{name}.{extension}")
    (root / "label_2" / f"{name}.txt").write_bytes(labels if isinstance(labels, bytes) else labels.encode())


@pytest.fixture
def root(tmp_path):
    """Ten frames, each with a car, every other one with a pedestrian too."""
    for number in range(10):
        add_frame(tmp_path / "kitti", f"{number:06}", CAR + PERSON * (number % 2))
    return tmp_path / "kitti"


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "records" / "data")


def one_fold(root, **changes):
    return settings(root, val_split=0, num_shards=0, **changes)


def read(summary):
    """Frame ids of every fold."""
    return [
        [r.frame_id for shard in fold.shards for r in tfrecord.read_records(str(shard))]
        for fold in summary.folds
    ]


def files(prefix):
    folder, name = prefix.rsplit("/", 1)
    return sorted(path.name.removeprefix(name) for path in Path(folder).glob("*"))


def test_names_and_counts(root, prefix):
    summary = convert(settings(root), prefix)
    names = [f"-fold-00{f}-of-002-shard-0000{s}-of-00002" for f in (0, 1) for s in (0, 1)]
    assert files(prefix) == sorted([*names, *(f"{name}.index" for name in names)])
    assert [fold.frames for fold in summary.folds] == [2, 8]
    total = summary.folds[0].boxes + summary.folds[1].boxes
    assert total == {"car": 10, "pedestrian": 5}
    assert summary.rejected == [] and summary.warning_file is None


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"num_shards": 0}, ["-fold-000-of-002", "-fold-001-of-002"]),
        ({"num_shards": 1, "val_split": 0}, ["-fold-001-of-002-shard-00000-of-00001"]),
        ({"num_shards": 20, "val_split": 80}, [f"-fold-001-of-002-shard-0000{i}-of-00002" for i in range(2)]),
    ],
)
@pytest.mark.spec_field("KITTIConfig.num_shards")
def test_name_parts(root, prefix, changes, expected):
    convert(settings(root, **changes), prefix)
    assert [name for name in files(prefix) if "index" not in name][-len(expected) :] == expected
    assert all((root.parent / "records" / f"data{name}").stat().st_size > 0 for name in files(prefix))


def test_record_holds_what_the_label_says(root, prefix):
    shard = convert(one_fold(root), prefix).folds[1].shards[0]
    record = next(r for r in tfrecord.read_records(str(shard)) if r.frame_id == "image_2/000001")
    assert (record.width, record.height, record.names) == (64, 48, ["car", "pedestrian"])
    numpy.testing.assert_array_equal(record.boxes, [[10.5, 20, 30.25, 40]] * 2)
    assert record.truncation.tolist() == [0.5, 0.5] and record.occlusion.tolist() == [1, 1]
    assert record.image is None


def test_columns_of_tlt_are_all_there(root, prefix):
    shard = tfrecord.open_shard(str(convert(one_fold(root), prefix).folds[1].shards[0]))
    data = Path(shard.path).read_bytes()[12 : int(shard.lengths[0]) - 4]
    feature = Example.FromString(data).features.feature
    world = {key: feature[f"target/world_bbox_{key}"].float_list.value[0] for key in "hwlxyz"}
    assert world == pytest.approx({"h": 1.5, "w": 1.6, "l": 3.9, "x": 1, "y": 2, "z": 8.4})
    assert feature["target/world_bbox_rot_y"].float_list.value[0] == pytest.approx(0.01)
    assert feature["target/observation_angle"].float_list.value[0] == pytest.approx(-1.57)


@pytest.mark.spec_field("DatasetExportConfig.random_seed")
def test_random_split_is_random_seeded_and_complete(root, prefix):
    first, again = (read(convert(settings(root), prefix)) for _ in range(2))
    assert first == again
    assert sorted(first[0] + first[1]) == [f"image_2/{i:06}" for i in range(10)]
    other = settings(root)
    other.random_seed = 7
    assert read(convert(other, prefix)) != first
    validation = set()
    for seed in range(6):
        other.random_seed = seed
        validation.update(read(convert(other, prefix))[0])
    assert len(validation) > 4  # TLT always takes the first two by name


@pytest.mark.spec_field("KITTIConfig.val_split")
def test_the_validation_share_is_in_percent(root, prefix):
    shares = {share: convert(settings(root, val_split=share), prefix).folds for share in (0, 30, 50, 99, 100)}
    assert {share: [fold.frames for fold in folds] for share, folds in shares.items()} == {
        **{0: [0, 10], 30: [3, 7]},
        **{50: [5, 5], 99: [9, 1], 100: [10, 0]},
    }


def test_small_validation_share_still_gives_a_frame(root, prefix):
    assert [fold.frames for fold in convert(settings(root, val_split=1), prefix).folds] == [1, 9]


@pytest.mark.spec_field("KITTIConfig.partition_mode", "KITTIConfig.kitti_sequence_to_frames_file")
def test_sequences_are_dealt_longest_first_and_folds_counted_from_the_last(root, prefix):
    sequences = {"b": ["000000"], "long": ["000001", "000002", "000003"], "a": ["000004"]}
    (root / "seq.json").write_text(json.dumps(sequences))
    config = settings(root, partition_mode="sequence", kitti_sequence_to_frames_file="seq.json")
    folds = read(convert(config, prefix))  # long -> last fold, a -> first, b -> last
    assert [sorted(fold) for fold in folds] == [
        ["image_2/000004"],
        [f"image_2/00000{i}" for i in (0, 1, 2, 3)],
    ]


@pytest.mark.spec_field("KITTIConfig.num_partitions")
def test_sequences_without_partitions_give_one_file(root, prefix):
    (root / "seq.json").write_text(json.dumps({"a": ["000004", "000009"], "b": ["000005"]}))
    changes = {"partition_mode": "sequence", "kitti_sequence_to_frames_file": "seq.json", "num_partitions": 0}
    summary = convert(settings(root, num_shards=0, **changes), prefix)
    assert files(prefix) == ["", ".index"]
    assert [fold.frames for fold in summary.folds] == [3]


def test_frame_of_a_sequence_without_image_is_listed(root, prefix):
    (root / "seq.json").write_text(json.dumps({"a": ["000004", "gone"]}))
    config = settings(
        root, partition_mode="sequence", kitti_sequence_to_frames_file="seq.json", num_partitions=1
    )
    summary = convert(config, prefix)
    assert [(r.file, r.reason) for r in summary.rejected] == [
        (f"{root}/image_2/gone.png", "the image is missing")
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot read kitti_sequence_to_frames_file"),
        ("[1]", "expected one JSON object"),
        ('{"a": "000001"}', "expected one JSON object"),
        ('{"a": ["000001"], "b": ["000001"]}', "the frame 000001 is listed 2 times"),
        (None, "cannot read kitti_sequence_to_frames_file"),
        ("{}", "nothing to convert"),
    ],
)
def test_bad_sequence_file(root, prefix, content, message):
    if content is not None:
        (root / "seq.json").write_text(content)
    config = settings(root, partition_mode="sequence", kitti_sequence_to_frames_file="seq.json")
    with pytest.raises(DataError, match=message):
        convert(config, prefix)
    assert files(prefix) == []


def test_box_outside_the_image_is_kept_as_labelled(tmp_path, prefix):
    add_frame(tmp_path / "k", "a", CAR.replace("10.5 20", "-40 -8.5").replace("30.25", "900"))
    shard = convert(one_fold(tmp_path / "k"), prefix).folds[1].shards[0]
    assert next(tfrecord.read_records(str(shard))).boxes.tolist() == [[-40, -8.5, 900, 40]]


@pytest.mark.parametrize(
    "line, reason",
    [
        (CAR.replace("30.25", "5"), "is reversed"),
        (CAR.replace("30.25", "10.5"), "has no area"),
        (" ".join(CAR.split()[:14]), "14 columns"),
        (CAR.replace("30.25", "wide"), "x2 is 'wide', not a number"),
        (b"caf\xe9" + CAR[3:].encode(), "not UTF-8"),
    ],
)
def test_bad_line_is_listed_and_its_frame_stays(root, prefix, line, reason):
    add_frame(root, "bad", PERSON.encode() + (line if isinstance(line, bytes) else line.encode()))
    summary = convert(settings(root), prefix)
    assert sum(fold.frames for fold in summary.folds) == 11
    assert (summary.folds[0].boxes + summary.folds[1].boxes)["pedestrian"] == 6
    [entry] = json.loads(summary.warning_file.read_text())
    assert str(summary.warning_file) == f"{prefix}_warning.json"
    assert entry["file"] == f"{root}/label_2/bad.txt" and entry["line"] == 2 and reason in entry["reason"]


def test_score_column_and_empty_file_are_fine(root, prefix):
    add_frame(root, "score", CAR.strip() + " 0.9")
    add_frame(root, "empty", "")
    summary = convert(one_fold(root), prefix)
    assert summary.folds[1].frames == 12 and summary.folds[1].boxes["car"] == 11
    assert summary.rejected == []


def break_missing_label(root):
    (root / "label_2" / "000003.txt").unlink()


def break_missing_image(root):
    (root / "image_2" / "000003.png").unlink()


def break_zero_bytes(root):
    (root / "image_2" / "000003.png").write_bytes(b"")


def break_header(root):
    path = root / "image_2" / "000003.png"
    path.write_bytes(path.read_bytes()[:20])


def break_kind(root):
    (root / "image_2" / "000003.png").write_text("<html>404</html>")


def break_link(root):
    (root / "image_2" / "000003.png").unlink()
    (root / "image_2" / "000003.png").symlink_to(root / "gone.png")


def break_label_folder(root):
    (root / "label_2" / "000003.txt").unlink()
    (root / "label_2" / "000003.txt").mkdir()


@pytest.mark.parametrize(
    "damage, file, reason",
    [
        (break_missing_label, "label_2/000003.txt", "the label file is missing"),
        (break_missing_image, "image_2/000003.png", "the image is missing"),
        (break_zero_bytes, "image_2/000003.png", "the file is empty"),
        (break_header, "image_2/000003.png", "not a readable image"),
        (break_kind, "image_2/000003.png", "not a readable image"),
        (break_link, "image_2/000003.png", "not a readable image"),
        (break_label_folder, "label_2/000003.txt", "Is a directory"),
    ],
)
def test_unusable_frame_is_left_out_and_listed(root, prefix, damage, file, reason):
    damage(root)
    summary = convert(settings(root), prefix)
    assert "image_2/000003" not in sum(read(summary), [])
    assert sum(fold.frames for fold in summary.folds) == 9
    [entry] = json.loads((root.parent / "records" / "data_warning.json").read_text())
    assert entry["file"] == f"{root}/{file}" and entry["line"] is None and reason in entry["reason"]


@pytest.mark.parametrize(
    "mode, extension", [("I;16", "png"), ("L", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png")]
)
@pytest.mark.spec_field("KITTIConfig.image_extension")
def test_size_of_any_kind_of_image_is_read(tmp_path, prefix, mode, extension):
    add_frame(tmp_path / "k", "a", mode=mode, extension=extension, size=(33, 21))
    summary = convert(one_fold(tmp_path / "k", image_extension=extension), prefix)
    record = next(tfrecord.read_records(str(summary.folds[1].shards[0])))
    assert (record.width, record.height) == (33, 21)


def test_only_the_header_is_read(tmp_path, prefix):
    """A JPEG that is cut after its header has a size; the loader is who notices."""
    add_frame(tmp_path / "k", "a", extension="jpg", size=(300, 200))
    path = tmp_path / "k" / "image_2" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    summary = convert(one_fold(tmp_path / "k", image_extension=".jpg"), prefix)
    assert summary.folds[1].frames == 1 and summary.rejected == []


def test_nothing_usable(root, prefix):
    for path in (root / "image_2").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"none of 10 images and labels is usable \(10 times: the file is empty \(first .*000000.png\)\)",
    ):
        convert(settings(root), prefix)
    assert files(prefix) == []


def test_no_image_names_what_is_there(root, prefix):
    for path in (root / "image_2").iterdir():
        path.rename(path.with_suffix(".mp4"))
    with pytest.raises(DataError, match=r"no images in .*image_2 or below it \(it has 10 .mp4\)"):
        convert(settings(root, image_extension="jpg"), prefix)


def test_no_label_file_names_what_is_there(root, prefix):
    for path in (root / "label_2").iterdir():
        path.rename(path.with_suffix(".xml"))
    with pytest.raises(DataError, match=r"no .txt label files in .*label_2 or below it \(it has 10 .xml\)"):
        convert(settings(root), prefix)


@pytest.mark.parametrize("field", ["root_directory_path", "image_dir_name", "label_dir_name"])
def test_missing_folder(root, prefix, field):
    config = settings(root, **{field: "gone"})
    config.ClearField("image_directory_path")
    with pytest.raises(DataError, match="cannot list .*gone.*No such file"):
        convert(config, prefix)


@pytest.mark.spec_field(
    "KITTIConfig.root_directory_path",
    "KITTIConfig.image_dir_name",
    "KITTIConfig.label_dir_name",
    "DatasetExportConfig.image_directory_path",
)
def test_images_and_labels_in_different_places(root, tmp_path, prefix):
    """Images below image_directory_path, labels below root_directory_path; frame ids start at the former."""
    pictures = tmp_path / "elsewhere" / "pictures"
    pictures.mkdir(parents=True)
    (root / "image_2").rename(pictures / "left")
    (root / "label_2").rename(root / "text")
    config = one_fold(root, image_dir_name="left", label_dir_name="text")
    config.image_directory_path = str(pictures)
    summary = convert(config, prefix)
    assert summary.image_root == pictures
    assert sorted(read(summary)[1]) == [f"left/{number:06}" for number in range(10)]
    assert summary.folds[1].boxes == {"car": 10, "pedestrian": 5}


def test_image_directory_without_the_images_falls_back_to_the_root(root, prefix, caplog):
    config = settings(root)
    config.image_directory_path = str(root / "image_2")
    assert convert(config, prefix).image_root == root
    assert f"has no folder image_2; using {root}" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_partitions": 5},
            'kitti_config.num_partitions: partition_mode "random" makes 2 partitions, got 5',
        ),
        ({"partition_mode": "sequence"}, 'sequence_to_frames_file: partition_mode "sequence" needs it'),
        ({"partition_mode": "folds"}, 'partition_mode: must be one of random, sequence, got "folds"'),
    ],
)
def test_spec_that_cannot_be_done(root, changes, message):
    [found] = spec.check(settings(root, **changes))
    assert str(found).endswith(message)


def test_spec_without_a_source():
    [found] = spec.check(DatasetExportConfig())
    assert "this section is missing (or coco_config, voc_config, yolo_config or csv_config)" in str(found)


@pytest.mark.parametrize("bad", ["", "/"])
def test_prefix_that_is_a_folder(root, tmp_path, bad):
    with pytest.raises(UsageError, match=f"is a folder: give a file prefix, for instance {tmp_path}/data"):
        convert(settings(root), f"{tmp_path}{bad}")


def test_fold_that_does_not_exist(root, prefix):
    with pytest.raises(UsageError, match="there is no fold 2: the spec makes 2, counted from 0"):
        convert(settings(root), prefix, validation_fold=2)


@pytest.mark.spec_field("DatasetExportConfig.target_class_mapping")
def test_class_names_are_renamed_in_the_records(root, prefix):
    config = one_fold(root)
    config.target_class_mapping["Car"] = "vehicle"
    assert convert(config, prefix).folds[1].boxes == {"vehicle": 10, "pedestrian": 5}


@pytest.mark.spec_field("DatasetExportConfig.embed_images")
def test_embedded_images(root, prefix):
    config = one_fold(root)
    config.embed_images = True
    record = next(tfrecord.read_records(str(convert(config, prefix).folds[1].shards[0])))
    assert record.image == (root / f"{record.frame_id}.png").read_bytes()
    assert record.image_format == "png"


def test_another_conversion_replaces_the_files_and_no_others(root, prefix):
    (root / "label_2" / "000003.txt").unlink()
    convert(settings(root, num_shards=3), prefix)
    records = root.parent / "records"
    mine = [records / name for name in ("data-fold-notes", "database-fold-000-of-002", "data.txt")]
    for path in mine:
        path.write_text("mine")
    (root / "label_2" / "000003.txt").write_text("")
    convert(settings(root, num_shards=0), prefix)
    shards = {f"data-fold-00{i}-of-002{end}" for i in (0, 1) for end in ("", ".index")}
    assert {path.name for path in records.iterdir()} == shards | {path.name for path in mine}


@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_what_was_there(root, prefix, monkeypatch, before):
    if before:
        convert(settings(root), prefix)
    existing = files(prefix)
    write, calls = tfrecord.write_shard, []

    def fail_at_the_third(path, records):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, records)

    monkeypatch.setattr(tfrecord, "write_shard", fail_at_the_third)
    with pytest.raises(OutputError, match="cannot write .*data.*: No space left on device"):
        convert(settings(root, num_shards=3), prefix)
    assert files(prefix) == existing


def test_output_below_a_file(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        convert(settings(root), f"{tmp_path}/file/data")


# ------------------------------------------------------------------------------------------ endings and sub-folders


def test_images_of_several_endings_are_found_and_read_again(tmp_path, prefix):
    """The record says how its image ends where that is not what the spec says."""
    for number, end in enumerate(("png", "PNG", "jpg", "JPEG", "bmp", "png")):
        add_frame(tmp_path / "k", f"{number}", extension=end)
    summary = convert(one_fold(tmp_path / "k"), prefix)
    assert summary.rejected == [] and (summary.image_extension, summary.others) == ("png", 4)
    config = spec.DatasetConfig(image_extension="png")
    config.data_sources.add(tfrecords_path=f"{prefix}-fold-*", image_directory_path=str(tmp_path / "k"))
    frames = training_frames(config, ["car"])
    endings = sorted(Path(frame.path).name for frame in frames.frames)
    assert endings == ["0.png", "1.PNG", "2.jpg", "3.JPEG", "4.bmp", "5.png"]
    assert {frames.sample(number, channels=3).original_size for number in range(6)} == {(64, 48)}


def test_no_image_has_the_ending_of_the_spec(root, prefix):
    summary = convert(one_fold(root, image_extension="jpg"), prefix)
    assert (summary.folds[1].frames, summary.image_extension, summary.others) == (10, "", 10)
    formats = {record.image_format for record in tfrecord.read_records(str(summary.folds[1].shards[0]))}
    assert formats == {"png"}


def test_two_images_of_one_name(root, prefix):
    Image.new("RGB", (64, 48)).save(root / "image_2" / "000003.jpg")
    Image.new("RGB", (64, 48)).save(root / "image_2" / "000004.bmp")
    summary = convert(one_fold(root), prefix)
    assert summary.folds[1].frames == 10 and summary.others == 0
    assert [(reject.file, reject.reason) for reject in summary.rejected] == [
        (
            f"{root}/image_2/{name}",
            "the name is that of another file but for the extension, and that one is taken",
        )
        for name in ("000003.jpg", "000004.bmp")
    ]


def test_sub_folders(tmp_path, prefix):
    """Beside images at the top, and below others; the companions that macOS makes are no images."""
    root = tmp_path / "k"
    for name in ("top", "cam/0", "cam/1", "more/cam/0"):
        for folder in ("image_2", "label_2"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        add_frame(root, name)
    add_frame(root, "cam/2")
    (root / "label_2/cam/2.txt").unlink()
    for path in (root / "image_2/cam/._0.png", root / "label_2/cam/._0.txt", root / "image_2/._top.png"):
        path.write_bytes(b"\0\5\x16\7")
    (root / "image_2/loop").symlink_to(root / "image_2")
    summary = convert(one_fold(root), prefix)
    assert sorted(read(summary)[1]) == [f"image_2/{name}" for name in ("cam/0", "cam/1", "more/cam/0", "top")]
    assert [(reject.file, reject.reason) for reject in summary.rejected] == [
        (f"{root}/label_2/cam/2.txt", "the label file is missing")
    ]


def test_a_linked_folder_of_labels_and_images_is_read_under_each_name(tmp_path, prefix):
    root = tmp_path / "k"
    for folder in ("image_2", "label_2"):
        (root / folder / "left").mkdir(parents=True)
        (root / folder / "right").symlink_to("left")
    add_frame(root, "left/0")
    summary = convert(one_fold(root), prefix)
    assert sorted(read(summary)[1]) == ["image_2/left/0", "image_2/right/0"] and summary.rejected == []


def test_a_linked_folder_of_labels_alone_is_left_out_with_a_reason(tmp_path, prefix):
    root = tmp_path / "k"
    for folder in ("image_2", "label_2"):
        (root / folder / "left").mkdir(parents=True)
    (root / "label_2" / "right").symlink_to("left")
    add_frame(root, "left/0")
    summary = convert(one_fold(root), prefix)
    assert read(summary)[1] == ["image_2/left/0"]
    assert [(reject.file, reject.reason) for reject in summary.rejected] == [
        (f"{root}/image_2/right/0.png", "the image is missing")
    ]


def test_hidden_images_and_labels_are_none_and_told(root, prefix, caplog):
    for number in range(5):
        add_frame(root, f".{number}")
    caplog.set_level("INFO", "detectkit")
    summary = convert(one_fold(root), prefix)
    assert len(read(summary)[1]) == 10 and summary.rejected == []
    assert {f"{root}/{folder}: passed over 5 hidden" for folder in ("image_2", "label_2")} <= set(
        caplog.messages
    )


def test_reasons_are_of_a_length_that_can_be_read(root, prefix):
    (root / "label_2" / "000000.txt").write_text("x" * 3_000_000 + " 1\n" + CAR)
    (root / "label_2" / "000001.txt").write_text(CAR.replace("0.5", "1." * 1_000_000))
    reasons = {Path(reject.file).name: reject.reason for reject in convert(one_fold(root), prefix).rejected}
    assert all(len(reason) <= LONGEST for reason in reasons.values())
    assert reasons["000001.txt"].startswith("truncation is '1.1.1.") and reasons["000001.txt"].endswith("…")


def test_a_sequence_names_frames_in_sub_folders_with_either_slash_and_ending(tmp_path, prefix):
    root = tmp_path / "k"
    for folder in ("image_2", "label_2"):
        (root / folder / "cam").mkdir(parents=True)
    for name in ("cam/0", "cam/1", "v1.2"):
        add_frame(root, name)
    (root / "seq.json").write_text(json.dumps({"a": ["cam\\0", "cam/1.png"], "b": ["v1.2"]}))
    config = settings(root, partition_mode="sequence", kitti_sequence_to_frames_file="seq.json")
    summary = convert(config, prefix)
    assert [sorted(fold) for fold in read(summary)] == [["image_2/v1.2"], ["image_2/cam/0", "image_2/cam/1"]]
    assert summary.rejected == []


def test_names_of_files_as_macos_and_others_write_them(tmp_path, prefix):
    """An accent of its own in one folder, with its letter in the other."""
    root = tmp_path / "k"
    add_frame(root, "Stra\u00dfe M\u00fcnchen")
    (root / "image_2" / "Stra\u00dfe M\u00fcnchen.png").rename(
        root / "image_2" / "Stra\u00dfe Mu\u0308nchen.png"
    )
    (root / "label_2" / "Stra\u00dfe M\u00fcnchen.txt").rename(
        root / "label_2" / "Stra\u00dfe M\u00fcnchen.TXT"
    )
    summary = convert(one_fold(root), prefix)
    assert read(summary)[1] == ["image_2/Stra\u00dfe Mu\u0308nchen"] and summary.rejected == []


# ------------------------------------------------------------------------------------------------ names of classes


@pytest.mark.parametrize(
    "labels, expected, told",
    [
        (["A", "a", "a"], {"a": 3}, ["a ('A' 1, 'a' 2)"]),
        (
            ["Stra\u00dfe", "STRA\u1e9eE"],
            {"stra\u00dfe": 2},
            ["stra\u00dfe ('STRA\u1e9eE' 1, 'Stra\u00dfe' 1)"],
        ),
        (["M\u00fcll", "Mu\u0308ll"], {"m\u00fcll": 2}, ["'Mu\u0308ll' 1", "'M\u00fcll' 1"]),
        (["\u8f66", "\u7269"], {"\u8f66": 1, "\u7269": 1}, []),
        (
            ["\u0410", "\u0430", "A"],
            {"\u0430": 2, "a": 1},
            ["'\u0410' 1, '\u0430' 1"],
        ),  # Cyrillic; A is Latin
        (["\u0130stop", "istop"], {"i\u0307stop": 1, "istop": 1}, []),
    ],
)
def test_labels_that_meet_are_told(tmp_path, prefix, caplog, labels, expected, told):
    add_frame(tmp_path / "k", "a", "".join(CAR.replace("Car", name) for name in labels))
    assert convert(one_fold(tmp_path / "k"), prefix).folds[1].boxes == expected
    meeting = [text for text in caplog.messages if "labels that are one in the records" in text]
    assert len(meeting) == bool(told) and all(text in meeting[0] for text in told)


def test_names_in_the_spec_that_no_label_has(root, prefix, caplog):
    config = one_fold(root)
    config.target_class_mapping["CAR"] = "Vehicle"
    config.target_class_mapping["hot dog"] = "food"
    config.sample_modifier_config.source_to_target_class_mapping["Vehicle"] = "thing"
    config.sample_modifier_config.source_to_target_class_mapping["car"] = (
        "thing"  # it is called vehicle by now
    )
    config.sample_modifier_config.filter_samples_containing_only.extend(["thing", "bus"])
    config.sample_modifier_config.dominant_target_classes.append("trucks")
    config.sample_modifier_config.minimum_target_class_imbalance.update({"Pedestrians": 2, "default": 3})
    convert(config, prefix)
    assert caplog.messages == [
        "target_class_mapping: no label is called 'hot dog'",
        "source_to_target_class_mapping: no label is called 'car'",
        "filter_samples_containing_only: no label is called 'bus'",
        "dominant_target_classes: no label is called 'trucks'",
        "minimum_target_class_imbalance: no label is called 'Pedestrians'",
    ]


# ------------------------------------------------------------------------------------------------------- switch-over

STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "open", "shutil.rmtree", "fcntl.flock"}


def killed_at(count, config, prefix):
    """Whether a conversion, in a process of its own, is killed before it does so many things with files and is not done."""
    process = os.fork()
    if process == 0:
        steps = iter(range(count))

        def step(event, arguments):
            if event in STEPS and any("records" in str(argument) for argument in arguments):
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        try:
            convert(config, prefix)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1] != 0


def folds_of(prefix):
    """Frames of each fold as a training would find them, and how many records there are."""
    shards = tfrecord.find_shards(f"{prefix}-fold-*")
    records = [
        (shard.split("-fold-")[1][:3], r.frame_id) for shard in shards for r in tfrecord.read_records(shard)
    ]
    return sorted(records)


def test_a_conversion_over_an_older_one_that_is_killed_at_any_step(root, prefix):
    """What is there is the old set or the new one, or is refused; the next conversion makes the new one of it."""
    older, newer = settings(root, num_shards=3, val_split=50), settings(root, num_shards=2, val_split=20)
    newer.random_seed = 7
    (root.parent / "records").mkdir()
    convert(newer, prefix)
    new, names = folds_of(prefix), files(prefix)
    convert(older, prefix)
    old = folds_of(prefix)
    seen = []
    for count in range(200):
        is_killed = killed_at(count, newer, prefix)
        try:
            seen.append({str(old): "old", str(new): "new"}[str(folds_of(prefix))])
        except DataError as error:
            assert "was cut while it replaced them; run it again" in str(error)
            seen.append("refused")
        if not is_killed:
            break
        if seen[-1] != "old":
            convert(newer, prefix)
            assert folds_of(prefix) == new and files(prefix) == names
            convert(older, prefix)
            assert folds_of(prefix) == old
    assert not is_killed and seen[-1] == "new" and seen.count("refused") > 5
    assert seen == sorted(seen, key=["old", "refused", "new"].index)
    assert files(prefix) == names  # what the killed ones left is gone


def test_records_without_folds_go_when_there_are_folds(root, prefix):
    (root / "seq.json").write_text(json.dumps({"a": ["000004"], "b": ["000005"]}))
    changes = {"partition_mode": "sequence", "kitti_sequence_to_frames_file": "seq.json"}
    convert(settings(root, num_shards=0, num_partitions=0, **changes), prefix)
    assert files(prefix) == ["", ".index"]
    convert(settings(root, num_shards=0), prefix)
    assert files(prefix) == [f"-fold-00{fold}-of-002{end}" for fold in (0, 1) for end in ("", ".index")]


def test_other_records_beside_a_cut_conversion_are_read(root, tmp_path, prefix):
    convert(settings(root), prefix)
    convert(settings(root), f"{prefix}2")
    sources.unfinished(Path(prefix)).write_text("")
    assert len(tfrecord.find_shards(f"{prefix}2-fold-*")) == 4
    for pattern in (f"{prefix}-fold-*", f"{prefix}*", f"{tmp_path}/rec*/data-fold-*", f"{prefix}-fold-007*"):
        with pytest.raises(DataError, match=f"{prefix}. is partly of one conversion"):
            tfrecord.find_shards(pattern)


@pytest.mark.parametrize("name", ["data", "a*b", "data[1]"])
def test_a_cut_conversion_is_found_by_each_way_to_write_its_pattern(tmp_path, name):
    """It has written no shard yet: the mark alone tells."""
    folder = tmp_path / name
    folder.mkdir()
    sources.unfinished(folder / name).write_text("")
    for pattern in (f"{folder}/{name}-fold-*", f"{glob.escape(f'{folder}/{name}')}-fold-*"):
        for begin in ("", "file://"):
            with pytest.raises(DataError, match="is partly of one conversion"):
                tfrecord.find_shards(begin + pattern)


@pytest.mark.parametrize("other", ["aXb", "ac", "data"])
def test_the_mark_of_another_prefix_says_nothing(tmp_path, other):
    sources.unfinished(tmp_path / other).write_text("")
    assert tfrecord.find_shards(f"{glob.escape(f'{tmp_path}/a*b')}-fold-*") == []


# ------------------------------------------------------------------------------------------------ sample modifier


def frames(*names):
    """One frame for each string, with a box of the class of each letter."""
    return [
        LabelledImage(text, None, 10, 10, tuple(Label(letter, 0, 0, 0, (0, 0, 1, 1)) for letter in text))
        for text in names
    ]


@pytest.mark.parametrize(
    "modifier, expected",
    [
        ("", ["cc", "p", "ccp", "ppc"]),
        ('filter_samples_containing_only: "c"', ["p", "ccp", "ppc"]),
        ('filter_samples_containing_only: ["c", "p"]', ["ccp", "ppc"]),
        ('dominant_target_classes: "c" num_duplicates: 2', ["cc", "p", "p", "p", "ccp", "ppc", "ppc", "ppc"]),
        (
            'dominant_target_classes: "c" num_duplicates: 1 minimum_target_class_imbalance { key: "p" value: 2 }',
            ["cc", "p", "p", "ccp", "ppc"],
        ),
        (
            'dominant_target_classes: "c" num_duplicates: 1 minimum_target_class_imbalance { key: "default" value: 2 }',
            ["cc", "p", "p", "ccp", "ppc"],
        ),
        ("max_training_samples: 3", ["cc", "p", "ccp"]),
        (
            'source_to_target_class_mapping { key: "p" value: "c" } filter_samples_containing_only: "c"',
            [],
        ),
    ],
)
@pytest.mark.spec_field(
    "DatasetExportConfig.SampleModifierConfig.filter_samples_containing_only",
    "DatasetExportConfig.SampleModifierConfig.dominant_target_classes",
    "DatasetExportConfig.SampleModifierConfig.minimum_target_class_imbalance",
    "DatasetExportConfig.SampleModifierConfig.num_duplicates",
    "DatasetExportConfig.SampleModifierConfig.max_training_samples",
    "DatasetExportConfig.SampleModifierConfig.source_to_target_class_mapping",
)
def test_sample_modifier(modifier, expected):
    message = text_format.Parse(modifier, DatasetExportConfig.SampleModifierConfig())
    assert [
        frame.frame_id for frame in modify(frames("cc", "p", "ccp", "ppc"), message, num_folds=1)
    ] == expected


@pytest.mark.parametrize(
    "modifier, expected",
    [
        ('filter_samples_containing_only: "C"', ["p", "ccp", "ppc"]),
        ('dominant_target_classes: ["C"] num_duplicates: 1', ["cc", "p", "p", "ccp", "ppc", "ppc"]),
        (
            'dominant_target_classes: "c" num_duplicates: 1 minimum_target_class_imbalance { key: "P" value: 2 }',
            ["cc", "p", "p", "ccp", "ppc"],
        ),
        (
            'source_to_target_class_mapping { key: "P" value: "C" } filter_samples_containing_only: "c"',
            [],
        ),
    ],
)
def test_classes_of_the_sample_modifier_are_compared_in_lower_case(modifier, expected):
    message = text_format.Parse(modifier, DatasetExportConfig.SampleModifierConfig())
    kept = modify(frames("cc", "p", "ccp", "ppc"), message, num_folds=1)
    assert [frame.frame_id for frame in kept] == expected


def test_the_mapping_of_the_sample_modifier_does_not_reach_the_records(root, prefix):
    config = one_fold(root)
    config.sample_modifier_config.source_to_target_class_mapping["pedestrian"] = "car"
    config.sample_modifier_config.filter_samples_containing_only.append("person")
    assert convert(config, prefix).folds[1].boxes == {"car": 10, "pedestrian": 5}


def test_a_cap_is_for_all_training_frames_also_when_a_fold_is_empty(root, prefix):
    config = one_fold(root)
    config.sample_modifier_config.max_training_samples = 4
    assert [fold.frames for fold in convert(config, prefix).folds] == [0, 4]


@pytest.mark.parametrize(
    "modifier",
    [
        'filter_samples_containing_only: "car" filter_samples_containing_only: "vehicle"',
        "max_training_samples: 1",
    ],
)
def test_nothing_left_by_the_sample_modifier(root, prefix, modifier):
    config = settings(root)
    config.target_class_mapping["pedestrian"] = "car"
    text_format.Parse(modifier, config.sample_modifier_config)
    with pytest.raises(DataError, match="sample_modifier_config leaves no frame"):
        convert(config, prefix)
    assert files(prefix) == []


def test_frame_without_boxes_is_not_filtered():
    message = DatasetExportConfig.SampleModifierConfig(filter_samples_containing_only=["c"])
    assert len(modify(frames(""), message, num_folds=1)) == 1


@pytest.mark.parametrize("fold, expected", [(0, [2, 4]), (None, [2, 2])])
def test_validation_fold_is_left_alone(root, prefix, fold, expected):
    config = settings(root)
    config.sample_modifier_config.max_training_samples = 4
    assert [fold.frames for fold in convert(config, prefix, validation_fold=fold).folds] == expected


def test_duplicates_are_counted(root, prefix):
    config = one_fold(root)
    config.sample_modifier_config.dominant_target_classes.append("pedestrian")
    config.sample_modifier_config.num_duplicates = 1
    summary = convert(config, prefix)  # the five frames with a car and no pedestrian come twice
    assert summary.folds[1].frames == 15
    assert Counter(Counter(read(summary)[1]).values()) == {1: 5, 2: 5}


# --------------------------------------------------------------------------------- the same pictures, five times

PICTURES = {
    "000": [("Car", (1, 2, 30, 40)), ("Red Cell", (0, 0, 12.5, 8.25))],
    "001": [],
    "002": [("Car", (-3, -2, 70, 50))],
    "003": [("Red Cell", (5, 5, 6, 6)), ("Red Cell", (7, 7, 20, 21)), ("Car", (3, 4, 5, 6))],
    "004": [("Car", (9, 9, 19, 19)), ("Car", (10, 10, 20, 20))],
    "005": [("DontCare", (0, 0, 64, 48))],
    "006": [("Red Cell", (5.5, 5, 16, 16))],
    "007": [("Car", (1, 1, 2, 2)), ("DontCare", (30, 30, 40, 40))],
}
SETS = {"validation": ["000", "005", "001"], "training": ["002", "003", "004", "006", "007"]}


def describe_kitti(root):
    (root / "labels").mkdir()
    for name, objects in PICTURES.items():
        lines = [
            f"{label.replace(' ', '')} 0 0 0 {' '.join(map(str, box))} 0 0 0 0 0 0 0\n"
            for label, box in objects
        ]
        (root / "labels" / f"{name}.txt").write_text("".join(lines))
    (root / "sequences.json").write_text(json.dumps(SETS))
    return """kitti_config { root_directory_path: "ROOT" image_dir_name: "pictures" label_dir_name: "labels"
      partition_mode: "sequence" kitti_sequence_to_frames_file: "sequences.json" num_shards: 2 }"""


def describe_coco(root):
    ids = {"Car": 1, "Red Cell": 4, "DontCare": 90}
    for part, names in SETS.items():
        annotations = [
            {"image_id": int(name), "category_id": ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for name in names
            for label, (x1, y1, x2, y2) in PICTURES[name]
        ]
        content = {
            "images": [{"id": int(name), "file_name": f"{name}.png"} for name in names],
            "annotations": annotations,
            "categories": [{"id": number, "name": label} for label, number in ids.items()],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return """coco_config { root_directory_path: "ROOT" img_dir_names: ["pictures", "pictures"]
      annotation_files: ["validation.json", "training.json"] num_shards: 2 }"""


def describe_voc(root):
    (root / "labels").mkdir()
    for name, objects in PICTURES.items():
        elements = [
            f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for label, (x1, y1, x2, y2) in objects
        ]
        (root / "labels" / f"{name}.xml").write_text(f"<annotation>{''.join(elements)}</annotation>")
    for part, names in SETS.items():
        (root / f"{part}.txt").write_text("\n".join(names))
    return """voc_config { root_directory_path: "ROOT" image_dir_name: "pictures" annotation_dir_name: "labels"
      image_extension: "png" image_set_files: ["validation.txt", "training.txt"] num_shards: 2 }"""


def describe_yolo(root):
    (root / "labels").mkdir()
    names = ["Car", "Red Cell", "DontCare"]
    for name, objects in PICTURES.items():
        rows = [
            f"{names.index(label)} {(x1 + x2) / 128} {(y1 + y2) / 96} {(x2 - x1) / 64} {(y2 - y1) / 48}\n"
            for label, (x1, y1, x2, y2) in objects
        ]
        (root / "labels" / f"{name}.txt").write_text("".join(rows))
    (root / "data.yaml").write_text(f"nc: 3\nnames: {names}\n")
    for part, listed in SETS.items():
        (root / f"{part}.txt").write_text("".join(f"./pictures/{name}.png\n" for name in listed))
    return """yolo_config { root_directory_path: "ROOT" image_dir_names: ["validation.txt", "training.txt"] num_shards: 2 }"""


def describe_csv(root):
    for part, names in SETS.items():
        rows = ["filename,class,xmin,ymin,xmax,ymax"]
        for name in names:
            rows += [f"{name}.png,{label},{','.join(map(str, box))}" for label, box in PICTURES[name]]
            rows += [f"{name}.png,,,,,"] * (not PICTURES[name])
        (root / f"{part}.csv").write_text("\n".join(rows))
    return """csv_config { root_directory_path: "ROOT" csv_files: ["validation.csv", "training.csv"]
      image_dir_name: "pictures" num_shards: 2 }"""


def record_bytes(root, describe, more):
    """Every record of each fold, as it lies in the file, in order of the frame ids; and the shards' names."""
    for name in PICTURES:
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(root / "pictures" / f"{name}.png")
    text = describe(root).replace("ROOT", str(root))
    summary = convert(spec.loads(text + more), str(root / "records" / "data"), validation_fold=0)
    folds = []
    for fold in summary.folds:
        opened = [tfrecord.open_shard(str(shard)) for shard in fold.shards]
        content = [(Path(shard.path).read_bytes(), shard.offsets, shard.lengths) for shard in opened]
        folds.append(
            sorted(data[at : at + size] for data, starts, sizes in content for at, size in zip(starts, sizes))
        )
    return folds, [shard.name for fold in summary.folds for shard in fold.shards]


@pytest.mark.parametrize("describe", [describe_coco, describe_voc, describe_yolo, describe_csv])
@pytest.mark.parametrize(
    "more, expected",
    [
        ("", 5),
        ("embed_images: true target_class_mapping { key: 'Red Cell' value: 'cell' }", 5),
        ("sample_modifier_config { filter_samples_containing_only: 'car' }", 3),
        ("sample_modifier_config { dominant_target_classes: ['car', 'dontcare'] num_duplicates: 2 }", 9),
        (
            "sample_modifier_config { dominant_target_classes: 'car' num_duplicates: 1"
            " minimum_target_class_imbalance { key: 'Red Cell' value: 2 } }",
            6,
        ),
        ("sample_modifier_config { dominant_target_classes: 'redcell' num_duplicates: 1 }", 8),
        (
            "sample_modifier_config { filter_samples_containing_only: 'thing'"
            " source_to_target_class_mapping { key: 'Red Cell' value: 'thing' } }",
            4,
        ),
    ],
)
def test_all_descriptions_of_the_same_pictures_give_the_same_records(tmp_path, describe, more, expected):
    folds, names = record_bytes(tmp_path / "kitti", describe_kitti, more)
    assert record_bytes(tmp_path / "other", describe, more) == (folds, names)
    assert [len(fold) for fold in folds] == [3, expected]
    assert names == [f"data-fold-00{f}-of-002-shard-0000{s}-of-00002" for f in (0, 1) for s in (0, 1)]


@pytest.mark.parametrize(
    "describe", [describe_kitti, describe_coco, describe_voc, describe_yolo, describe_csv]
)
def test_a_cap_takes_a_random_part_of_every_source(tmp_path, describe):
    more = "sample_modifier_config {{ max_training_samples: 2 }} random_seed: {}"
    drawn = [record_bytes(tmp_path / str(seed), describe, more.format(seed))[0] for seed in range(6)]
    assert {len(folds[1]) for folds in drawn} == {2}
    assert len({record for folds in drawn for record in folds[1]}) > 2


# The sample data set


@pytest.mark.spec_field("SampleConfig.root_directory_path", "SampleConfig.num_shards")
def test_sample_data_is_made_and_converted_by_sequence(tmp_path, prefix, monkeypatch):
    """Of ten pictures every fifth is for validation: 2 and 8."""
    monkeypatch.setattr("detectkit.data.convert.make_sample_data", partial(make_sample_data, frames=10))
    root = tmp_path / "digits"
    config = DatasetExportConfig()
    config.sample_config.root_directory_path, config.sample_config.num_shards = str(root), 2
    summary = convert(config, prefix)
    assert [fold.frames for fold in summary.folds] == [2, 8]
    assert [len(fold.shards) for fold in summary.folds] == [2, 2]
    assert sorted(read(summary)[0]) == ["image_2/000000", "image_2/000005"]
    assert (summary.image_root, summary.image_extension) == (root, "jpg")
    # As the KITTI folder that it is, and without being drawn anew.
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    other = convert(sources.as_kitti(config), prefix)
    assert read(convert(config, prefix)) == read(other) == read(summary)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")} == before


def test_sample_data_does_not_replace_other_files(tmp_path, prefix):
    (tmp_path / "mine.txt").write_text("mine")
    config = DatasetExportConfig()
    config.sample_config.root_directory_path = str(tmp_path)
    with pytest.raises(OutputError, match="holds something else"):
        convert(config, prefix)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def turn(path, orientation=6):
    """Have a file say that its stored pixels are to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def test_photographs_are_recorded_as_viewers_show_them(root, prefix, tmp_path, capsys):
    for number in (2, 3, 4):
        turn(root / "image_2" / f"{number:06}.png")
    turn(root / "image_2" / "000005.png", orientation=1)
    summary = convert(one_fold(root), prefix)
    sizes = {
        r.frame_id[-1]: (r.width, r.height) for r in tfrecord.read_records(str(summary.folds[1].shards[0]))
    }
    assert sizes == {str(at): (48, 64) if at in (2, 3, 4) else (64, 48) for at in range(10)}
    assert summary.turned == 3 and not summary.rejected
    (tmp_path / "spec.txt").write_text(text_format.MessageToString(one_fold(root)))
    assert main(["convert", "-d", str(tmp_path / "spec.txt"), "-o", prefix]) == 0
    told = "3 images are turned by their EXIF orientation, as viewers show them: their boxes must be in those pixels"
    assert told in capsys.readouterr().out
