"""What a conversion reads and writes, told from its spec."""

import subprocess
import sys

import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit.data import sources
from detectkit.data.convert import convert
from detectkit.spec import DatasetExportConfig


def parsed(text):
    return text_format.Parse(text, DatasetExportConfig())


SAMPLE = 'sample_config { root_directory_path: "r" num_shards: 3 }'


@pytest.mark.parametrize(
    "text, expected, folds",
    [
        ('kitti_config { root_directory_path: "r" image_dir_name: "i" label_dir_name: "l" }', "r/i r/l", 2),
        ('kitti_config { root_directory_path: "r" }', "r", 2),
        (
            'kitti_config { root_directory_path: "r" image_dir_name: "i" partition_mode: "sequence" num_partitions: 5'
            ' kitti_sequence_to_frames_file: "s.json" }',
            "r/i r r/s.json",
            5,
        ),
        (
            'coco_config { root_directory_path: "r" img_dir_names: ["a", "b", "c"] annotation_files: ["x", "y", "z"] }',
            "r/a r/b r/c r/x r/y r/z",
            3,
        ),
        ('voc_config { root_directory_path: "r" }', "r/JPEGImages r/Annotations", 2),
        (
            'voc_config { root_directory_path: "r" image_set_files: ["x", "y", "z"] }',
            "r/JPEGImages r/Annotations r/x r/y r/z",
            3,
        ),
        ('yolo_config { root_directory_path: "r" }', "r", 2),
        (
            'yolo_config { root_directory_path: "r" classes_file: "c.txt" image_dir_names: ["a/images", "b", "l/c.txt"] }',
            "r/a/images r/b r r/l/c.txt r/c.txt",
            3,
        ),
        ('csv_config { root_directory_path: "r" csv_files: "t.csv" image_dir_name: "i" }', "r/i r/t.csv", 1),
        ('csv_config { root_directory_path: "r" csv_files: ["t", "u", "v"] }', "r r/t r/u r/v", 3),
        (SAMPLE, "", 2),
    ],
)
def test_what_is_read_and_how_many_folds_are_made(text, expected, folds):
    config = parsed(text)
    assert [str(path) for path in sources.reads(config)] == expected.split()
    assert sources.num_folds(config) == folds


def test_the_labels_and_classes_of_yolo_are_read_where_they_are(tmp_path):
    config = parsed(
        f'yolo_config {{ root_directory_path: "{tmp_path}" image_dir_names: ["images/train", "val"] }}'
    )
    for folder in ("images/train", "labels/train", "val/labels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("names: [a]")
    found = [str(path.relative_to(tmp_path)) for path in sources.reads(config)]
    assert found == ["images/train", "val", "labels/train", "val/labels", "labels", "data.yaml"]


def test_images_are_where_image_directory_path_has_them(tmp_path):
    config = parsed('kitti_config { root_directory_path: "r" image_dir_name: "i" label_dir_name: "l" }')
    config.image_directory_path = str(tmp_path)
    assert [str(path) for path in sources.reads(config)] == ["r/i", "r/l"]
    (tmp_path / "i").mkdir()
    assert [str(path) for path in sources.reads(config)] == [f"{tmp_path}/i", "r/l"]


def test_the_sample_data_set_is_a_kitti_folder():
    config = sources.as_kitti(parsed(SAMPLE + " embed_images: true"))
    assert [str(path) for path in sources.reads(config)] == ["r/image_2", "r/label_2", "r/sequences.json"]
    assert (config.kitti_config.num_shards, config.embed_images) == (3, True)


@pytest.mark.parametrize("shards, partitions", [(0, 0), (2, 2)])
def test_what_was_written_is_found_and_nothing_else(tmp_path, shards, partitions):
    for folder in ("image_2", "label_2"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "image_2" / f"{number}.png")
        (tmp_path / "label_2" / f"{number}.txt").write_text("Car 0 0 0 1 2 3 4 0 0 0 0 0 0 0\n")
    (tmp_path / "image_2" / "0.png").write_bytes(b"")  # goes into the list of what was left out
    sequences = '{"a": ["0", "1"], "b": ["2", "3"]}'
    (tmp_path / "s.json").write_text(sequences)
    config = parsed(
        f'kitti_config {{ root_directory_path: "{tmp_path}" image_dir_name: "image_2" label_dir_name: "label_2"'
        f' partition_mode: "sequence" kitti_sequence_to_frames_file: "s.json" num_partitions: {partitions}'
        f" num_shards: {shards} }}"
    )
    prefix = tmp_path / "records" / "data"
    convert(config, str(prefix))
    written = {path.name for path in prefix.parent.iterdir()}
    for other in ("data2", "data-fold-1", "other-fold-000-of-002", "data.txt"):
        (prefix.parent / other).write_text("")
    assert {path.name for path in sources.written(prefix)} == written
    assert "data_warning.json" in written and len(written) == (3 if shards == 0 else 7)
    assert sources.written(tmp_path / "nowhere" / "data") == []


def test_it_is_told_without_heavy_imports():
    code = "import sys; import detectkit.data.sources; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"
