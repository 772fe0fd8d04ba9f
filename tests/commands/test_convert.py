"""`detectkit convert` as a person types it."""

import json

import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit import cli, spec
from detectkit.data.dataset import training_frames, validation_frames

SPEC = """
kitti_config {
  root_directory_path: "ROOT" image_dir_name: "image_2" label_dir_name: "label_2" image_extension: ".png"
  partition_mode: "random" num_partitions: 2 val_split: 25 num_shards: 1
}
"""


@pytest.fixture
def export_spec(tmp_path):
    for folder in ("image_2", "label_2"):
        (tmp_path / "kitti" / folder).mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (64, 48)).save(tmp_path / "kitti" / "image_2" / f"{number}.png")
        (tmp_path / "kitti" / "label_2" / f"{number}.txt").write_text("Car 0 0 0 1 2 30 40 0 0 0 0 0 0 0\n")
    (tmp_path / "spec.txt").write_text(SPEC.replace("ROOT", str(tmp_path / "kitti")))
    return tmp_path / "spec.txt"


def test_prints_counts_and_what_a_training_spec_needs(export_spec, tmp_path, capsys):
    prefix = f"{tmp_path}/records/cars"
    assert cli.main(["convert", "-d", str(export_spec), "-o", prefix]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "6", "8"] in rows and ["images", "2", "6", "8"] in rows
    assert "left out" not in printed
    block = printed.split("table):\n")[1].split("then:")[0]
    config = spec.Experiment()
    text_format.Parse(block, config.dataset_config)
    assert config.dataset_config.data_sources[0].tfrecords_path == f"{prefix}-fold-*"
    assert config.dataset_config.data_sources[0].image_directory_path == str(tmp_path / "kitti")
    assert (config.dataset_config.image_extension, config.dataset_config.validation_fold) == ("png", 0)


def test_names_the_validation_fold_that_was_given(export_spec, tmp_path, capsys):
    arguments = ["convert", "-d", str(export_spec), "-o", f"{tmp_path}/cars", "-f", "1"]
    assert cli.main(arguments) == 0
    assert "  validation_fold: 1\n" in capsys.readouterr().out


def as_coco(root):
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(8)]
    objects = [{"image_id": number, "category_id": 7, "bbox": [1, 2, 29, 38]} for number in range(8)]
    for name, part in (("val", slice(0, 2)), ("train", slice(2, 8))):
        content = {
            "images": images[part],
            "annotations": objects[part],
            "categories": [{"id": 7, "name": "Car"}],
        }
        (root / f"{name}.json").write_text(json.dumps(content))
    return f"""coco_config {{ root_directory_path: "{root}" img_dir_names: ["image_2", "image_2"]
      annotation_files: ["val.json", "train.json"] num_partitions: 2 num_shards: [1, 2] }}"""


def as_voc(root):
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    for number in range(8):
        text = f"<annotation><object><name>Car</name>{box}</object></annotation>"
        (root / "label_2" / f"{number}.xml").write_text(text)
    (root / "val.txt").write_text("0\n1\n")
    (root / "train.txt").write_text("2\n3\n4\n5\n6\n7\n")
    return f"""voc_config {{ root_directory_path: "{root}" image_dir_name: "image_2" annotation_dir_name: "label_2"
      image_extension: "png" image_set_files: ["val.txt", "train.txt"] }}"""


@pytest.mark.parametrize("describe", [as_coco, as_voc])
def test_other_sources(export_spec, tmp_path, capsys, describe):
    """The records that the printed block leads to are those that training reads."""
    export_spec.write_text(describe(tmp_path / "kitti"))
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/records/cars"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["car", "2", "6", "8"] in rows and ["images", "2", "6", "8"] in rows
    config = spec.DatasetConfig()
    text_format.Parse(printed.split("table):\n")[1].split("then:")[0], config)
    assert (config.image_extension, config.validation_fold) == ("png", 0)
    config.target_class_mapping["car"] = "car"
    training, validation = training_frames(config, ["car"]), validation_frames(config, ["car"])
    assert validation is not None and (len(training), len(validation)) == (6, 2)
    assert training.sample(0, channels=3).original_size == (64, 48)


def test_embedded_images_of_several_kinds_need_no_extension(export_spec, tmp_path, capsys):
    root = tmp_path / "kitti"
    text = as_coco(root).replace("num_shards: [1, 2]", "num_shards: 0") + " embed_images: true"
    export_spec.write_text(text)
    for number in (0, 5):
        Image.new("RGB", (64, 48)).save(root / "image_2" / f"{number}.jpg")
    for name in ("val", "train"):
        content = (root / f"{name}.json").read_text()
        (root / f"{name}.json").write_text(content.replace("0.png", "0.jpg").replace("5.png", "5.jpg"))
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/records/cars"]) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed and "image_extension" not in printed


def test_names_the_warning_file_and_lists_it_with_v(export_spec, tmp_path, capsys):
    (tmp_path / "kitti" / "image_2" / "3.png").write_bytes(b"")
    (tmp_path / "kitti" / "label_2" / "5.txt").write_text("Car 0 0 0 30 2 1 40 0 0 0 0 0 0 0\n")
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/cars", "-v"]) == 0
    printed = capsys.readouterr()
    assert f"left out: 2 lines, labels or images; listed in {tmp_path}/cars_warning.json" in printed.out
    assert f"{tmp_path}/kitti/image_2/3.png: the file is empty" in printed.err
    assert f"{tmp_path}/kitti/label_2/5.txt:1: the box (30, 2, 1, 40) is reversed" in printed.err


def test_status_file(export_spec, tmp_path):
    arguments = ["-d", str(export_spec), "-o", f"{tmp_path}/cars", "-r", f"{tmp_path}/results", "-k", "key"]
    assert cli.main(["dataset_convert", *arguments]) == 0
    lines = [json.loads(line) for line in (tmp_path / "results" / "status.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "SUCCESS"]
    assert lines[-1]["kpi"] == {"num_images": 8, "num_objects": 8}


@pytest.mark.parametrize(
    "change, code, message",
    [
        (("label_2", "labels"), 4, "cannot list"),
        (("val_split: 25", "val_split: 101"), 3, "val_split"),
        (("num_partitions: 2", "num_partitions: 3"), 3, "num_partitions"),
        (("image_dir_name", "image_dir"), 3, "image_dir_name"),
    ],
)
def test_exit_codes(export_spec, tmp_path, capsys, change, code, message):
    export_spec.write_text(export_spec.read_text().replace(*change))
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/records/cars"]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_training_spec_in_place_of_an_export_spec(tmp_path, capsys):
    (tmp_path / "spec.txt").write_text("random_seed: 42 training_config { batch_size_per_gpu: 4 }")
    assert cli.main(["convert", "-d", str(tmp_path / "spec.txt"), "-o", f"{tmp_path}/cars"]) == 3
    assert str(tmp_path / "spec.txt") in capsys.readouterr().err
