"""`detectkit convert` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit import cli, spec
from detectkit.data import tfrecord
from detectkit.data.records import training_frames, validation_frames

DEMO = (Path(__file__).parents[2] / "specs" / "demo" / "train.txt").read_text()
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


@pytest.mark.parametrize("folder", ["a*b", "data[1]", "what?", 'a "b"', "車"])
def test_what_a_training_spec_needs_finds_its_records_whatever_their_folder_is_called(
    export_spec, tmp_path, capsys, folder
):
    for other in ("aXb", "data1", "whatX"):
        (tmp_path / other).mkdir()
        tfrecord.write_shard(tmp_path / other / "cars[x]-fold-000-of-002", [])
    prefix = tmp_path / folder / "cars[x]"
    assert cli.main(["convert", "-d", str(export_spec), "-o", str(prefix)]) == 0
    block = capsys.readouterr().out.split("table):\n")[1].split("then:")[0]
    config = spec.Experiment()
    text_format.Parse(block, config.dataset_config)
    found = tfrecord.find_shards(config.dataset_config.data_sources[0].tfrecords_path)
    shards = [f"{prefix}-fold-{fold:03d}-of-002-shard-00000-of-00001" for fold in (0, 1)]
    assert found == shards == tfrecord.find_shards(f"{prefix}-fold-*")
    assert len(training_frames(config.dataset_config, ["car"])) == 6


def test_what_a_killed_conversion_left_goes_with_the_next(export_spec, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, others = (tmp_path / f".{name}.{gone.pid}.tmp" for name in ("cars", "cars-more"))
    for folder in (left, others):
        folder.mkdir()
        (folder / "cars-fold-000-of-002").write_text("half")
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/cars"]) == 0
    assert not left.exists() and others.exists()
    assert [path.name for path in tmp_path.glob(".*")] == [others.name]


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


def as_yolo(root):
    for number in range(8):
        (root / "label_2" / f"{number}.txt").unlink()
    (root / "label_2").rename(root / "labels")
    for number in range(8):
        (root / "labels" / f"{number}.txt").write_text(f"0 {15.5 / 64} {21 / 48} {29 / 64} {38 / 48}\n")
        with open(root / ("val.txt" if number < 2 else "train.txt"), "a") as listed:
            listed.write(f"image_2/{number}.png\n")
    (root / "classes.txt").write_text("Car\n")
    return f"""yolo_config {{ root_directory_path: "{root}" image_dir_names: ["val.txt", "train.txt"] }}"""


def as_csv(root):
    rows = [f"{number}.png,1,2,30,40,Car\n" for number in range(8)]
    (root / "val.csv").write_text("".join(rows[:2]))
    (root / "train.csv").write_text("".join(rows[2:]))
    return f"""csv_config {{ root_directory_path: "{root}" csv_files: ["val.csv", "train.csv"] }}"""


@pytest.mark.parametrize("describe", [as_coco, as_voc, as_yolo, as_csv])
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
    assert f"left out: 2 lines, labels or images; listed in {tmp_path}/cars_warning.json" in printed.err
    assert f"{tmp_path}/kitti/image_2/3.png: the file is empty" in printed.err
    assert f"{tmp_path}/kitti/label_2/5.txt:1: the box (30, 2, 1, 40) is reversed" in printed.err


def test_reasons_are_told_with_their_number_and_a_place(export_spec, tmp_path, capsys):
    labels = tmp_path / "kitti" / "label_2"
    for number in (1, 2, 3):
        (labels / f"{number}.txt").write_text(
            f"Car 0 0 0 {30 + number} 2 1 40 0 0 0 0 0 0 0\n0 0.5 0.5 0.1 0.2\n"
        )
    (tmp_path / "kitti" / "image_2" / "7.png").write_bytes(b"")
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/cars"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"WARNING: left out: 7 lines, labels or images; listed in {tmp_path}/cars_warning.json"
    assert told[1].startswith("WARNING:   3 times: the box (31, 2, 1, 40) is reversed: ")
    assert told[1].endswith(f"(first {labels}/1.txt:1)")
    assert told[2].startswith("WARNING:   3 times: 5 columns, ") and "a line of YOLO" in told[2]
    assert told[3] == f"WARNING:   1 times: the file is empty (first {tmp_path}/kitti/image_2/7.png)"


@pytest.mark.parametrize(
    "line, likely",
    [
        (
            "0 0.5 0.5 0.1 0.2",
            "a line of YOLO, with the number of the class and a box or outline in shares of the image: yolo_config reads",
        ),
        ("0 1 Car 0 0 0 1 2 30 40 0 0 0 0 0 0 0", "a line of KITTI's tracking"),
        ("Car,0,0,0,1,2,30,40", "as in CSV"),
        ("Car 0 0 0 40 30 20 20 0 0 0 0 0 0 0", "not x, y, width and height"),
    ],
)
def test_labels_of_another_format(export_spec, tmp_path, capsys, line, likely):
    """Some images have no object: they alone are no data set either."""
    for number in range(5):
        (tmp_path / "kitti" / "label_2" / f"{number}.txt").write_text(f"{line}\n" * 2)
    for number in range(5, 8):
        (tmp_path / "kitti" / "label_2" / f"{number}.txt").write_text("")
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/records/cars"]) == 4
    error = capsys.readouterr().err
    assert "not one of 10 labels is usable (10 times: " in error and likely in error
    assert f"{tmp_path}/kitti/label_2/0.txt:1" in error and error.count("\n") == 1
    assert not (tmp_path / "records").exists()


def test_images_of_another_ending_are_told(export_spec, tmp_path, capsys):
    image = tmp_path / "kitti" / "image_2" / "3.png"
    image.rename(image.with_suffix(".JPG"))
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/cars"]) == 0
    printed = capsys.readouterr()
    assert (
        "1 images have another extension than .png: their records tell it" in printed.out and not printed.err
    )


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


@pytest.mark.spec_field("DatasetExportConfig.output_filename")
def test_the_spec_can_say_where_to_and_the_option_goes_before_it(export_spec, tmp_path, capsys):
    export_spec.write_text(export_spec.read_text() + f'output_filename: "{tmp_path}/inside/cars"')
    assert cli.main(["convert", "-d", str(export_spec)]) == 0
    assert f'tfrecords_path: "{tmp_path}/inside/cars-fold-*"' in capsys.readouterr().out
    assert len(list((tmp_path / "inside").glob("cars-fold-00[01]-of-002-shard-00000-of-00001"))) == 2
    assert cli.main(["convert", "-d", str(export_spec), "-o", f"{tmp_path}/outside/cars"]) == 0
    assert len(list((tmp_path / "outside").iterdir())) == 4 == len(list((tmp_path / "inside").iterdir()))


def test_a_prefix_is_needed_somewhere(export_spec, tmp_path, capsys):
    assert cli.main(["convert", "-d", str(export_spec)]) == 2
    assert capsys.readouterr().err.count("-o is needed: ") == 1


def training_spec(export_spec, tmp_path, *prefixes, more=""):
    """The demo's training spec with a conversion for each prefix; the first one is the spec's own, others repeat it."""
    conversion = export_spec.read_text()
    names = [f'output_filename: "{prefix}"' if prefix else "" for prefix in prefixes]
    sections = "".join(f"dataset_export_config {{ {conversion} {name} {more} }}\n" for name in names)
    (tmp_path / "train.txt").write_text(DEMO + sections)
    return str(tmp_path / "train.txt")


def test_a_training_spec_converts_all_of_its_data_sets(export_spec, tmp_path, capsys):
    path = training_spec(export_spec, tmp_path, f"{tmp_path}/records/a", f"{tmp_path}/records/b")
    assert cli.main(["convert", "-d", path, "-r", f"{tmp_path}/results"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("wrote 2 shards") == 2 and printed.endswith(f"next: detectkit check -e {path}\n")
    for name in ("a", "b"):
        files = sorted((tmp_path / "records").glob(f"{name}-fold-*1"))
        assert [len(list(tfrecord.read_records(str(file)))) for file in files] == [2, 6]
    lines = [json.loads(line) for line in (tmp_path / "results" / "status.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "SUCCESS"]
    assert lines[-1]["kpi"] == {"num_images": 16, "num_objects": 16}


def test_the_validation_fold_of_a_training_spec_is_left_as_it_is(export_spec, tmp_path, capsys):
    limit = "sample_modifier_config { max_training_samples: 1 }"  # the demo's spec validates on fold 0
    path = training_spec(export_spec, tmp_path, f"{tmp_path}/records/a", more=limit)
    assert cli.main(["convert", "-d", path]) == 0
    assert ["images", "2", "1", "3"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert cli.main(["convert", "-d", path, "-f", "1"]) == 0
    assert ["images", "1", "6", "7"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "prefixes, options, code, message",
    [
        ([], [], 3, "train.txt: this training spec has no dataset_export_config"),
        (["a"], ["-o", "b"], 2, "-o is for conversion specs: "),
        (["a", ""], [], 3, "dataset_export_config[1].output_filename: `detectkit convert` needs it"),
        (
            ["a", "./a"],
            [],
            3,
            "dataset_export_config[1].output_filename: './a' is that of dataset_export_config[0]",
        ),
    ],
)
def test_training_specs_that_cannot_be_converted(
    export_spec, tmp_path, capsys, monkeypatch, prefixes, options, code, message
):
    monkeypatch.chdir(tmp_path)
    path = training_spec(export_spec, tmp_path, *prefixes)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["convert", "-d", path, *options]) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_inference_spec_in_place_of_an_export_spec(tmp_path, capsys):
    text = (Path(__file__).parents[2] / "specs" / "demo" / "infer.txt").read_text()
    (tmp_path / "infer.txt").write_text(text)
    assert cli.main(["convert", "-d", str(tmp_path / "infer.txt"), "-o", f"{tmp_path}/cars"]) == 3
    assert "this is an inference spec, for `detectkit infer`; here a conversion" in capsys.readouterr().err
