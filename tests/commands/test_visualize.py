from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit.cli import main
from detectkit.data.tfrecord import Record, encode, write_shard

SPEC = """
random_seed: 3
dataset_config {{
  data_sources {{ tfrecords_path: "{root}/records*" image_directory_path: "{root}" }}
  target_class_mapping {{ key: "car" value: "car" }}
}}
augmentation_config {{ preprocessing {{ output_image_width: 96 output_image_height: 64 output_image_channel: {channels} }} }}
postprocessing_config {{ target_class_config {{ key: "car" value {{ clustering_config {{ dbscan_eps: 0.5 }} }} }} }}
model_config {{ arch: "resnet" num_layers: 10 objective_set {{ bbox {{ scale: 35 offset: 0.5 }} cov {{ }} }} }}
evaluation_config {{
  validation_period_during_training: 1 first_validation_epoch: 1
  minimum_detection_ground_truth_overlap {{ key: "car" value: 0.5 }}
  evaluation_box_config {{ key: "car" value {{ maximum_height: 999 maximum_width: 999 }} }}
}}
cost_function_config {{ target_classes {{
  name: "car" class_weight: 1 coverage_foreground_weight: 0.05
  objectives {{ name: "cov" initial_weight: 1 weight_target: 1 }} objectives {{ name: "bbox" initial_weight: 10 weight_target: 10 }}
}} }}
training_config {{
  batch_size_per_gpu: 2 num_epochs: 1
  learning_rate {{ soft_start_annealing_schedule {{ min_learning_rate: 1e-5 max_learning_rate: 1e-3 soft_start: 0.1 annealing: 0.7 }} }}
  regularizer {{ type: NO_REG }} optimizer {{ adam {{ epsilon: 1e-8 beta1: 0.9 beta2: 0.999 }} }}
  cost_scaling {{ initial_exponent: 20 increment: 0.005 decrement: 1 }}
}}
bbox_rasterizer_config {{
  target_class_config {{ key: "car" value {{ cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1 cov_radius_y: 1 bbox_min_radius: 1 }} }}
  deadzone_radius: 0.67
}}
"""


@pytest.fixture(params=[3, 1], ids=["colour", "grey"])
def spec_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three black images with one box each, 32 to 80 by 16 to 48."""
    box = np.array([[32, 16, 80, 48]], dtype=np.float32)
    none = np.zeros(1, np.float32)
    records = [Record(f"f{i}", 96, 64, ["car"], box, none, none.astype(np.int64)) for i in range(3)]
    write_shard(tmp_path / "records", [encode(record) for record in records])
    for record in records:
        Image.new("RGB", (96, 64)).save(tmp_path / f"{record.frame_id}.png")
    path = tmp_path / "train.txt"
    path.write_text(SPEC.format(root=tmp_path, channels=request.param))
    return path


def test_pictures_show_boxes_and_targets(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", "-e", str(spec_file), "-o", str(tmp_path / "out"), "-n", "2"]) == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) == 3 and files[0].startswith("000_f") and files[2] == "overview.png"
    with Image.open(tmp_path / "out" / files[0]) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (64, 96, 3)
    color = pixels[47, 60]  # the outline, at the bottom edge of the box
    assert color.max() == 255
    assert (
        np.abs(pixels[36, 56].astype(int) - 0.62 * color).max() <= 2
    )  # the cell in the middle is fully covered
    assert not pixels[5, 5].any() and not pixels[60, 90].any()
    assert "wrote 2 pictures" in capsys.readouterr().out


def test_asking_for_more_than_there_are(spec_file: Path, tmp_path: Path) -> None:
    assert main(["visualize", "-e", str(spec_file), "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_bad_input_writes_nothing(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", "-e", str(spec_file), "-o", str(tmp_path / "out"), "-n", "0"]) == 2
    (tmp_path / "f1.png").unlink()
    assert main(["visualize", "-e", str(spec_file), "-o", str(tmp_path / "out")]) == 4
    assert "1 of 3 images are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_target_are_grey_and_named(tmp_path: Path) -> None:
    boxes = np.array([[32, 16, 80, 48], [2, 20, 26, 60]], dtype=np.float32)
    none = np.zeros(2, np.float32)
    record = Record("f0", 96, 64, ["car", "DontCare"], boxes, none, none.astype(np.int64))
    write_shard(tmp_path / "records", [encode(record)])
    Image.new("RGB", (96, 64)).save(tmp_path / "f0.png")
    path = tmp_path / "train.txt"
    path.write_text(SPEC.format(root=tmp_path, channels=3))
    assert main(["visualize", "-e", str(path), "-o", str(tmp_path / "out"), "-n", "1"]) == 0
    with Image.open(tmp_path / "out" / "000_f0.png") as image:
        pixels = np.asarray(image)
    assert pixels[59, 10].tolist() == pixels[40, 2].tolist() == [160, 160, 160]
    assert pixels[47, 60].max() == 255  # the car, as ever
    # Its name is black on a grey plate above the box.
    plate = pixels[5:20, 2:26].reshape(-1, 3).tolist()
    assert plate.count([160, 160, 160]) > 50 and [0, 0, 0] in plate
