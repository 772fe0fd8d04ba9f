"""From a KITTI folder to shards: names, splits, what is left out and why, and nothing half-written."""

import errno
import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit.data import kitti, tfrecord
from detectkit.data.convert import Frame, convert, modify
from detectkit.data.example_pb2 import Example
from detectkit.errors import DataError, OutputError, SpecError, UsageError
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


def test_small_validation_share_still_gives_a_frame(root, prefix):
    assert [fold.frames for fold in convert(settings(root, val_split=1), prefix).folds] == [1, 9]


def test_sequences_are_dealt_longest_first_and_folds_counted_from_the_last(root, prefix):
    sequences = {"b": ["000000"], "long": ["000001", "000002", "000003"], "a": ["000004"]}
    (root / "seq.json").write_text(json.dumps(sequences))
    config = settings(root, partition_mode="sequence", kitti_sequence_to_frames_file="seq.json")
    folds = read(convert(config, prefix))  # long -> last fold, a -> first, b -> last
    assert [sorted(fold) for fold in folds] == [
        ["image_2/000004"],
        [f"image_2/00000{i}" for i in (0, 1, 2, 3)],
    ]


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
        DataError, match="none of 10 images and labels is usable .*000000.png: the file is empty"
    ):
        convert(settings(root), prefix)
    assert files(prefix) == []


def test_wrong_extension_names_what_is_there(root, prefix):
    with pytest.raises(
        DataError, match=r"no .jpg images in .*image_2 \(it has 10 .png\): see image_extension"
    ):
        convert(settings(root, image_extension="jpg"), prefix)


@pytest.mark.parametrize("field", ["root_directory_path", "image_dir_name", "label_dir_name"])
def test_missing_folder(root, prefix, field):
    config = settings(root, **{field: "gone"})
    config.ClearField("image_directory_path")
    with pytest.raises(DataError, match="cannot list .*gone.*No such file"):
        convert(config, prefix)


def test_image_directory_without_the_images_falls_back_to_the_root(root, prefix, caplog):
    config = settings(root)
    config.image_directory_path = str(root / "image_2")
    assert convert(config, prefix).image_root == root
    assert f"has no folder image_2; using {root}" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_partitions": 5}, 'partition_mode "random" needs num_partitions: 2, got 5'),
        ({"partition_mode": "sequence"}, "needs kitti_sequence_to_frames_file"),
        ({"partition_mode": "folds"}, '"random" or "sequence", got "folds"'),
    ],
)
def test_spec_that_cannot_be_done(root, prefix, changes, message):
    with pytest.raises(SpecError, match=message):
        convert(settings(root, **changes), prefix)


def test_coco_is_said_not_to_be_converted(prefix):
    config = DatasetExportConfig()
    config.coco_config.root_directory_path = "/data"
    with pytest.raises(SpecError, match="kitti_config is missing"):
        convert(config, prefix)


@pytest.mark.parametrize("bad", ["", "/"])
def test_prefix_that_is_a_folder(root, tmp_path, bad):
    with pytest.raises(UsageError, match=f"is a folder: give a file prefix, for instance {tmp_path}/data"):
        convert(settings(root), f"{tmp_path}{bad}")


def test_fold_that_does_not_exist(root, prefix):
    with pytest.raises(UsageError, match="there is no fold 2: num_partitions is 2"):
        convert(settings(root), prefix, validation_fold=2)


def test_class_names_are_renamed_in_the_records(root, prefix):
    config = one_fold(root)
    config.target_class_mapping["Car"] = "vehicle"
    assert convert(config, prefix).folds[1].boxes == {"vehicle": 10, "pedestrian": 5}


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


# ------------------------------------------------------------------------------------------------ sample modifier


def frames(*names):
    """One frame for each string, with a box of the class of each letter."""
    return [
        Frame(text, None, 10, 10, tuple(kitti.Label(letter, 0, 0, 0, (0, 0, 1, 1)) for letter in text))
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
        ("max_training_samples: 3", ["cc", "p", "ccp"]),
        (
            'source_to_target_class_mapping { key: "p" value: "c" } filter_samples_containing_only: "c"',
            [],
        ),
    ],
)
def test_sample_modifier(modifier, expected):
    message = text_format.Parse(modifier, DatasetExportConfig.SampleModifierConfig())
    assert [frame.name for frame in modify(frames("cc", "p", "ccp", "ppc"), message, num_folds=1)] == expected


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
