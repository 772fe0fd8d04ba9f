from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit import cli
from detectkit.data.tfrecord import Record, encode, write_shard

SPECS = Path(__file__).parents[1] / "spec"
NAMES = {"a": ["car", "pedestrian", "cyclist"], "b": ["car", "dontcare"]}


def write_data(root, names):
    """Two frames in the training fold, one in the validation fold, each an image of 64x48 pixels."""
    (root / "image_2").mkdir(parents=True)
    for stem, labels in names.items():
        write_frame(root, stem, labels, fold=1)
        if stem == "a":
            write_frame(root, "held_out", labels, fold=0)


def write_frame(root, stem, labels, *, fold):
    Image.new("RGB", (64, 48), (sum(stem.encode()) % 256, 0, 0)).save(root / "image_2" / f"{stem}.png")
    boxes = np.tile(np.float32([4, 4, 20, 30]), (len(labels), 1))
    zeros = np.zeros(len(labels), np.float32)
    record = Record(f"image_2/{stem}", 64, 48, labels, boxes, zeros, zeros.astype(np.int64))
    write_shard(root / f"t-{stem}-fold-{fold:03}-of-002", [encode(record)])


@pytest.fixture
def training_spec(tmp_path):
    text = (SPECS / "kitti_train.txt").read_text()
    text = text.replace("/path/to/your/tfrecords/*", f"{tmp_path}/data/t-*").replace(
        "/path/to/kitti/root", f"{tmp_path}/data"
    )
    text = text.replace('pretrained_model_file: "/path/to/pretrained/model"', "").replace(
        "freeze_blocks: 0", ""
    )
    (tmp_path / "train.txt").write_text(text)
    return tmp_path / "train.txt"


def test_counts_boxes_and_opens_images(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "1"] in rows and ["cyclist", "1", "1"] in rows and ["images", "2", "1"] in rows
    assert "labels that are not mapped, so background: dontcare (1)" in printed
    assert "opened 3 of 3 images: all good" in printed
    assert f"next: detectkit train -e {training_spec}" in printed


def test_labels_that_do_not_count_are_told_apart(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES | {"c": ["misc", "DontCare"]})
    text = training_spec.read_text().replace(
        "validation_fold: 0", 'validation_fold: 0 dontcare_labels: "dontcare"'
    )
    training_spec.write_text(text)
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed = capsys.readouterr().out
    assert "labels that count neither for nor against: dontcare (2)\n" in printed
    assert "labels that are not mapped, so background: misc (1)\n" in printed


def test_labels_that_no_record_has_are_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    mask = 'objective_label_filter_configs { label_filter { source_class_label_filter { source_class_names: ["Car", "tram"] } } }'
    text = training_spec.read_text().replace(
        "validation_fold: 0", 'validation_fold: 0 dontcare_labels: ["DontCare", "ignore"]'
    )
    training_spec.write_text(f"{text}\nloss_mask_label_filter {{ {mask} }}\n")
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "in the records" in line]
    assert [line.removeprefix("WARNING: ") for line in warnings] == [
        "dataset_config.dontcare_labels: no label in the records is called ignore",
        "loss_mask_label_filter, source_class_names: no label in the records is called tram",
    ]


def test_a_class_that_the_cap_on_boxes_leaves_out_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    training_spec.write_text(
        training_spec.read_text().replace("training_config {", "training_config { max_boxes_per_image: 1")
    )
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "or raise max_boxes_per_image: 1" in capsys.readouterr().err


def test_a_class_without_a_box_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", {"a": ["car", "pedestrian"], "b": ["bicycle"]})
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    error = capsys.readouterr().err
    assert (
        "no training box of class cyclist; the labels in the records are: bicycle, car, pedestrian" in error
    )


def test_a_class_without_a_validation_box_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", {"a": ["car", "pedestrian"], "b": ["cyclist"]})
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    error = capsys.readouterr().err
    assert "no validation box of class cyclist: no average precision, and no part in the mAP" in error


def test_a_crop_that_leaves_nothing_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    crop = "preprocessing { scale_width: 2 crop_left: 127 crop_right: 200 crop_top: 48 crop_bottom: 60"
    training_spec.write_text(training_spec.read_text().replace("preprocessing {", crop))
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    error = capsys.readouterr().err
    assert "crop_left 127 and crop_top 48 leave nothing of" in error and "which is 128x48 there" in error
    training_spec.write_text(training_spec.read_text().replace("crop_top: 48", "crop_top: 47"))
    assert cli.main(["check", "-e", str(training_spec)]) == 4  # something is left, but no object
    error = capsys.readouterr().err
    assert "leave nothing" not in error
    assert (
        "all 4 training boxes of all classes are outside the 1248x384 pixels that the network sees" in error
    )


def test_a_broken_image_is_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    (tmp_path / "data" / "image_2" / "b.png").write_bytes(b"")
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "b.png" in capsys.readouterr().err


def test_spec_only_needs_no_data(capsys):
    for name in ("train", "infer", "convert"):
        assert cli.main(["check", "-e", str(SPECS / f"kitti_{name}.txt"), "--spec-only"]) == 0
    assert capsys.readouterr().out.count("no rule broken") == 3


def test_what_stands_for_several_classes_is_told(training_spec, tmp_path, capsys):
    """The data are judged by the classes of the list, which is a file beside the spec."""
    write_data(tmp_path / "data", NAMES)
    text = training_spec.read_text()
    (tmp_path / "names.txt").write_text("car\npedestrian\ncyclist\n")
    cost = text.index("cost_function_config")
    text = text[:cost] + text[cost:].replace('name: "car"', 'name: "default"')
    start, stop = text.index('  target_classes {\n    name: "pedestrian"'), text.rindex("}")
    text = f'{text[:start]}  class_file: "{tmp_path}/names.txt"\n{text[stop:]}'
    training_spec.write_text(text)
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "cost_function_config.target_classes: the entry default serves all 3 classes" in told
    assert ["cyclist", "1", "1"] in [line.split() for line in told]


def test_missing_data_and_models_are_named(capsys, training_spec):
    assert cli.main(["check", "-e", str(SPECS / "kitti_train.txt")]) == 5
    assert "pretrained_model_file: there is no file /path/to/pretrained/model" in capsys.readouterr().err
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "no files match tfrecords_path" in capsys.readouterr().err
    assert cli.main(["check", "-e", str(SPECS / "kitti_infer.txt")]) == 0
    assert "there is no file /workspace" in capsys.readouterr().err


def test_an_address_that_is_not_opened_is_one_thing_beside_the_others(capsys, training_spec, tmp_path):
    text = training_spec.read_text().replace(
        "model_config {", 'model_config { pretrained_model_file: "none.pth"'
    )
    training_spec.write_text(text.replace(f"{tmp_path}/data/t-*", "ftp://127.0.0.1/t-*"))
    assert cli.main(["check", "-e", str(training_spec)]) == 5
    error = capsys.readouterr().err
    lines = error[error.index("error: ") :].splitlines()
    assert lines[0] == "error: 2 things are wrong:"
    assert lines[1].startswith("- model_config.pretrained_model_file: there is no file none.pth")
    assert lines[2].startswith("- ftp://127.0.0.1/t-* is not opened: addresses begin with s3://")


def test_records_of_a_conversion_that_was_cut_are_one_thing_beside_the_others(
    capsys, training_spec, tmp_path
):
    write_data(tmp_path / "data", NAMES)
    (tmp_path / "data" / ".t-a.unfinished").touch()
    training_spec.write_text(
        training_spec.read_text().replace(
            "model_config {", 'model_config { pretrained_model_file: "none.pth"'
        )
    )
    assert cli.main(["check", "-e", str(training_spec)]) == 5
    error = capsys.readouterr().err
    lines = error[error.index("error: ") :].splitlines()
    assert lines[0] == "error: 2 things are wrong:" and "there is no file none.pth" in lines[1]
    assert "t-a* is partly of one conversion and partly of another" in lines[2]


@pytest.mark.parametrize(
    "section, text",
    [
        ("training_config", "\ntraining_config {"),
        ("pruning_config.retraining", "pruning_config { retraining { "),
    ],
)
def test_a_teacher_that_is_not_there_is_named(training_spec, tmp_path, capsys, section, text):
    """Also that of a training which comes after others."""
    write_data(tmp_path / "data", NAMES)
    content = training_spec.read_text()
    taught = 'distillation { teacher_model_file: "none.safetensors" }'
    if section == "training_config":
        content = content.replace(text, text + taught, 1)
    else:
        content += f"{text}{taught} }} }}"
    training_spec.write_text(content)
    assert cli.main(["check", "-e", str(training_spec)]) == 5
    assert f"{section}.distillation.teacher_model_file: there is no file" in capsys.readouterr().err


def test_a_teacher_is_looked_for_before_the_records_are_made(training_spec, capsys):
    text = 'pruning_config { retraining { distillation { teacher_model_file: "none.safetensors" } } }'
    training_spec.write_text(training_spec.read_text() + text)
    conversion = (
        'dataset_export_config { sample_config { root_directory_path: "drawn" } output_filename: "records" }'
    )
    training_spec.write_text(training_spec.read_text() + conversion)
    assert cli.main(["check", "-e", str(training_spec)]) == 5
    assert "teacher_model_file: there is no file none.safetensors" in capsys.readouterr().err


def test_conversion_folders(tmp_path, capsys):
    text = (SPECS / "kitti_convert.txt").read_text().replace("/path/to/kitti/root", str(tmp_path))
    (tmp_path / "convert.txt").write_text(text)
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    assert "kitti_config.image_dir_name: there is no folder" in capsys.readouterr().err
    for folder, name in (("data_object_image_2/training/image_2", "0.png"), ("training/label_2", "0.txt")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text("")
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 0
    assert "1 .png files" in capsys.readouterr().out


def test_a_yolo_folder_is_looked_at(tmp_path, capsys):
    text = 'yolo_config { root_directory_path: "%s" image_dir_names: ["val.txt", "train/images"] }' % tmp_path
    (tmp_path / "convert.txt").write_text(text)
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    error = capsys.readouterr().err
    assert f"yolo_config.image_dir_names[0]: there is no file {tmp_path}/val.txt" in error
    assert f"yolo_config.image_dir_names[1]: there is no folder {tmp_path}/train/images" in error
    assert "no list of the classes" in error
    (tmp_path / "train" / "images").mkdir(parents=True)
    (tmp_path / "train" / "images" / "0.png").write_text("")
    (tmp_path / "val.txt").write_text("train/images/0.png")
    (tmp_path / "data.yaml").write_text(f"names: [{', '.join('abcdefghij')}]")
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    assert f"no label files in a folder `labels` for {tmp_path}/train/images" in capsys.readouterr().err
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "0.txt").write_text("")
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/train/images: 1 .png files\n{tmp_path}/train/labels: 1 .txt files\n" in printed
    assert f"{tmp_path}/data.yaml: 10 classes (0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h, …)" in printed


def test_tables_are_looked_at(tmp_path, capsys):
    text = 'csv_config { root_directory_path: "%s" csv_files: ["a.csv", "b.csv"] }' % tmp_path
    (tmp_path / "convert.txt").write_text(text)
    (tmp_path / "a.csv").write_text(
        "a.png,1,2,30,40,car\na.png,1,2,30,50,bus\nb.png,1,2,30,40,car\nc.png,,,,,\n"
    )
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    error = capsys.readouterr().err
    assert f"cannot read csv_files {tmp_path}/b.csv" in error and "no images in" in error
    (tmp_path / "b.csv").write_text("filename;class;xmin;ymin;xmax;ymax\nd.png;car;0;0;5,5;6\n")
    (tmp_path / "a.png").write_text("")
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 0
    printed = capsys.readouterr().out
    assert (
        f"{tmp_path}/a.csv: 3 images, 3 boxes (car 2, bus 1)\n{tmp_path}/b.csv: 1 images, 1 boxes (car 1)\n"
        in printed
    )


def test_a_spec_that_makes_its_records_is_judged_before_they_are_there(training_spec, tmp_path, capsys):
    export = f'kitti_config {{ root_directory_path: "{tmp_path}" image_dir_name: "data/image_2" label_dir_name: "labels" }}'
    text = (
        training_spec.read_text()
        + f'dataset_export_config {{ {export} output_filename: "{tmp_path}/data/t" }}'
    )
    training_spec.write_text(text)
    write_data(tmp_path / "data", {"a": ["car"]})
    for shard in (tmp_path / "data").glob("t-*"):
        shard.unlink()
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert "label_dir_name: there is no folder" in capsys.readouterr().err
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("car 0 0 0 4 4 20 30 0 0 0 0 0 0 0\n")
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/data/image_2: 2 .png files\n{tmp_path}/labels: 1 .txt files\n" in printed
    assert f"{tmp_path}/data/t-*: not there yet, so boxes are not counted" in printed
    assert f"next: detectkit run -e {training_spec}" in printed


def test_a_broken_spec_is_refused(tmp_path, capsys):
    (tmp_path / "spec.txt").write_text("training_config { num_epoch: 3 }")
    assert cli.main(["check", "-e", str(tmp_path / "spec.txt")]) == 3
    assert (
        "spec.txt:1:19: unknown field num_epoch in TrainingConfig; did you mean num_epochs?"
        in capsys.readouterr().err
    )


def test_what_a_spec_of_tlt_does_differently_here(capsys):
    assert cli.main(["check", "--from-tlt", str(SPECS / "kitti_train.txt")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "10 things in it, written for TLT, differ here:" in printed
    assert sum(line.startswith("- ") for line in printed) == 10
    assert any("INTEGRATE is the whole area under the curve" in line for line in printed)
    for name in ("infer", "convert"):
        assert cli.main(["check", "--from-tlt", str(SPECS / f"kitti_{name}.txt")]) == 0
    printed = capsys.readouterr().out
    assert (
        "encrypted models of TLT are not read" in printed
        and "TAO takes the first names in the alphabet, TLT 2 does not: either way" in printed
    )


@pytest.mark.parametrize(
    "name, given, text, obstacle",
    [
        (
            "train",
            "/path/to/pretrained/model",
            "/m/resnet18.tlt",
            "pretrained_model_file: encrypted files of TLT",
        ),
        (
            "train",
            "/path/to/pretrained/model",
            "/m/resnet18.etlt",
            "pretrained_model_file: encrypted files of T",
        ),
        ("infer", 'model: "', 'model: "/m/model.hdf5" #', "tlt_config.model: a Keras file has neither"),
        (
            "infer",
            "tlt_config{\n    model",
            "tensorrt_config{\n    trt_engine",
            "trt_engine: an engine of TLT",
        ),
    ],
)
def test_what_stops_a_run_of_a_spec_of_tlt_comes_first(tmp_path, capsys, name, given, text, obstacle):
    """Not somewhere among what is only different."""
    content = (SPECS / f"kitti_{name}.txt").read_text()
    (tmp_path / "spec.txt").write_text(content.replace(given, text, 1))
    cli.main(["check", "--from-tlt", str(tmp_path / "spec.txt")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "1 thing in it stops a run here, and must be changed:" and obstacle in printed[2]
    assert printed[3].endswith("in it, written for TLT, differ here:") and obstacle not in "".join(
        printed[3:]
    )


def test_a_spec_that_does_nothing_else_here(tmp_path, capsys):
    text = 'kitti_config { root_directory_path: "/d" image_dir_name: "i" label_dir_name: "l" %s }'
    sequences = 'partition_mode: "sequence" kitti_sequence_to_frames_file: "/d/s.json"'
    (tmp_path / "convert.txt").write_text(text % sequences)
    assert cli.main(["check", "--from-tlt", str(tmp_path / "convert.txt")]) == 0
    assert "nothing in it does something else here than in TLT" in capsys.readouterr().out


def test_a_spec_is_given_once(capsys):
    path = str(SPECS / "kitti_train.txt")
    assert cli.main(["check", "-e", path, "--from-tlt", path]) == 2
    assert cli.main(["check"]) == 2
    assert "one of the arguments -e" in capsys.readouterr().err


def test_class_lists(tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    command = ["check", "-e", str(SPECS / "kitti_train.txt"), "--spec-only", "--classes", str(labels)]
    labels.write_bytes(b"\xef\xbb\xbfcar\r\npedestrian\r\ncyclist\r\n")
    assert cli.main(command) == 0
    assert "the 3 classes of the spec, in the order of the network's outputs" in capsys.readouterr().out
    labels.write_text("car;cyclist;pedestrian")
    assert cli.main(command) == 3
    assert 'output 2 of the network is "pedestrian", the list has "cyclist" there' in capsys.readouterr().err


def test_photographs_that_are_turned_are_counted(training_spec, tmp_path, capsys):
    """Records of the pixels as stored, as TLT makes them, are told from other ones that do not fit."""
    write_data(tmp_path / "data", NAMES)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(tmp_path / "data" / "image_2" / "b.png", exif=exif)
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed = capsys.readouterr().out
    assert "opened 3 of 3 images: all good" in printed
    assert "1 of those images are turned by their EXIF orientation, as viewers show them" in printed
    Image.new("RGB", (64, 48)).save(tmp_path / "data" / "image_2" / "b.png", exif=exif)
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    error = capsys.readouterr().err
    assert (
        "b.png is 48x64 pixels when its EXIF orientation turns it, as viewers show it; its record says 64x48"
        in error
    )
    assert "convert the data again" in error and "take the orientation out of the file" in error


def test_values_of_more_than_eight_bits_are_told(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    Image.fromarray(np.full((48, 64), 4000, np.uint16)).save(tmp_path / "data" / "image_2" / "b.png")
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    assert "b.png holds values up to 4000, which are taken for 12 bits" in capsys.readouterr().err


def test_all_that_is_wrong_is_told_at_once(training_spec, tmp_path, capsys):
    """Weights, images, a teacher and a class without boxes; and the boxes that the records allow to count."""
    write_data(tmp_path / "data", {"a": ["car", "pedestrian"], "b": ["car"]})
    (tmp_path / "data" / "image_2" / "b.png").unlink()
    text = training_spec.read_text().replace(
        "model_config {", 'model_config { pretrained_model_file: "none.pth"'
    )
    text = text.replace(
        "\ntraining_config {", '\ntraining_config { distillation { teacher_model_file: "t.safetensors" }'
    )
    training_spec.write_text(text)
    assert cli.main(["check", "-e", str(training_spec)]) == 5  # as of the first
    printed, error = capsys.readouterr()
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "1"] in rows and ["cyclist", "0", "0"] in rows and ["images", "2", "1"] in rows
    assert "opened 2 of 3 images\n" in printed and "next:" not in printed
    lines = error[error.index("error: ") :].splitlines()
    assert lines[0] == "error: 4 things are wrong:"
    starts = [
        "- model_config.pretrained_model_file: there is no file none.pth",
        "- training_config.distillation.teacher_model_file: there is no file t.safetensors",
        "- no training box of class cyclist",
        "- 1 of 2 images are missing: ",
    ]
    assert [line[: len(start)] for line, start in zip(lines[1:], starts, strict=True)] == starts


def test_records_of_one_part_are_counted_where_the_other_has_none(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    for shard in (tmp_path / "data").glob("t-*-fold-000-*"):
        shard.unlink()
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    printed, error = capsys.readouterr()
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "-"] in rows and ["images", "2", "-"] in rows
    assert "no file of the data sources is called *fold-000-of-*" in error


def test_all_bad_images_of_the_sample_are_named(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    for name in ("a", "b"):
        (tmp_path / "data" / "image_2" / f"{name}.png").write_bytes(b"no picture")
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    printed, error = capsys.readouterr()
    assert "opened 3 of 3 images, 2 of them bad" in printed
    assert "error: 2 things are wrong:" in error and "a.png" in error and "b.png" in error


def test_images_that_are_bad_are_named_beside_those_that_are_missing(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES)
    (tmp_path / "data" / "image_2" / "a.png").unlink()
    (tmp_path / "data" / "image_2" / "b.png").write_bytes(b"no picture")
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    printed, error = capsys.readouterr()
    assert "opened 2 of 3 images, 1 of them bad\n" in printed
    assert "error: 2 things are wrong:" in error
    assert "- 1 of 2 images are missing: " in error and "b.png: it is no image of the formats" in error


def test_one_problem_of_several_parts_is_told_once(training_spec, tmp_path, capsys):
    assert cli.main(["check", "-e", str(training_spec)]) == 4
    assert capsys.readouterr().err.startswith(f"error: no files match tfrecords_path: {tmp_path}/data/t-*; ")


def test_folders_of_a_conversion_that_are_missing_are_told_at_once(tmp_path, capsys):
    text = (SPECS / "kitti_convert.txt").read_text().replace("/path/to/kitti/root", str(tmp_path))
    (tmp_path / "convert.txt").write_text(text)
    assert cli.main(["check", "-e", str(tmp_path / "convert.txt")]) == 4
    error = capsys.readouterr().err
    assert "2 things are wrong:" in error
    assert "image_dir_name: there is no folder" in error and "label_dir_name: there is no folder" in error


def test_boxes_that_no_training_sees_are_not_all_good(training_spec, tmp_path, capsys):
    """As of images that were made smaller after they were labelled."""
    write_data(tmp_path / "data", NAMES)
    for stem, names in NAMES.items():
        boxes = np.tile(np.float32([100, 80, 140, 120]), (len(names), 1))
        boxes[0] = [4, 4, 20, 30]
        zeros = np.zeros(len(names), np.float32)
        record = Record(f"image_2/{stem}", 64, 48, names, boxes, zeros, zeros.astype(np.int64))
        write_shard(tmp_path / "data" / f"t-{stem}-fold-001-of-002", [encode(record)])
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed, error = capsys.readouterr()
    assert "opened 3 of 3 images\n" in printed and "all good" not in printed
    assert (
        "2 of 4 training boxes (pedestrian all 1, cyclist all 1) are outside their image: image_2/a has"
        in error
    )
    assert "were the images made smaller, or cut, after labelling?" in error
    assert "no training box of pedestrian, cyclist is left for the network: they are not learnt" in error


def test_labels_without_area_and_beyond_the_cap_are_counted(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES | {"c": ["car"] * 4})
    boxes = np.float32([[4, 4, 20, 30], [4, 4, 10, 10], [30, 30, 20, 20], [30, 4, 20, 30]])
    zeros = np.zeros(4, np.float32)
    record = Record("image_2/c", 64, 48, ["car"] * 4, boxes, zeros, zeros.astype(np.int64))
    write_shard(tmp_path / "data" / "t-c-fold-001-of-002", [encode(record)])
    training_spec.write_text(
        training_spec.read_text().replace("training_config {", "training_config { max_boxes_per_image: 3")
    )
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed, error = capsys.readouterr()
    assert "WARNING: 2 of 9 labels in the records have no area (x2 is not above x1, or y2" in error
    assert "max_boxes_per_image" not in error and "all good" not in printed
    training_spec.write_text(
        training_spec.read_text().replace("max_boxes_per_image: 3", "max_boxes_per_image: 1")
    )
    cli.main(["check", "-e", str(training_spec)])
    assert "max_boxes_per_image: 1 leaves out 3 of 7 labels" in capsys.readouterr().err


def test_mapping_keys_that_no_record_has(training_spec, tmp_path, capsys):
    """A key with a blank meets the records, out of which conversion takes them."""
    write_data(tmp_path / "data", NAMES | {"c": ["hotdog", "hotdog", "truk", "misc"]})
    keys = {"hot dog": "car", "Truck": "car", "zebra": "car", "Car": "car"}
    mapping = "".join(
        f'target_class_mapping {{ key: "{key}" value: "{name}" }} ' for key, name in keys.items()
    )
    training_spec.write_text(
        training_spec.read_text().replace("validation_fold: 0", f"validation_fold: 0 {mapping}")
    )
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed, error = capsys.readouterr()
    [line] = [line for line in error.splitlines() if "in the records" in line]
    assert line == (
        "WARNING: dataset_config.target_class_mapping: no label in the records is called"
        ' Truck (is "truk" meant, which 1 have?), zebra'
    )
    assert "labels that meet in car: car (3), hotdog (2)\n" in printed
    assert "labels that are not mapped, so background: dontcare (1), truk (1), misc (1)" in printed


def test_labels_that_meet_and_labels_that_miss_by_a_letter(training_spec, tmp_path, capsys):
    write_data(tmp_path / "data", NAMES | {"c": ["V an", "van", "person_sitting", "personsitting"]})
    keys = {"van": "car", "person_sitting": "pedestrian"}
    mapping = "".join(
        f'target_class_mapping {{ key: "{key}" value: "{name}" }} ' for key, name in keys.items()
    )
    training_spec.write_text(
        training_spec.read_text().replace("validation_fold: 0", f"validation_fold: 0 {mapping}")
    )
    assert cli.main(["check", "-e", str(training_spec)]) == 0
    printed, error = capsys.readouterr()
    assert "labels that meet in car: car (3), V an (1), van (1)\n" in printed
    assert "labels that meet in pedestrian: pedestrian (2), person_sitting (1)\n" in printed
    assert (
        'target_class_mapping: the 1 labels "personsitting" in the records are background, and "person_sitting" is mapped:'
        " map both if they are one" in error
    )
