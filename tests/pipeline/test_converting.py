"""How many images a conversion will give, told before a label is read."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from detectkit.pipeline.converting import count_labels
from detectkit.spec import loads


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images in two folders of YOLO, a list of three of them, and tables of one and of nine rows."""
    for folder, count in (("train/images", 7), ("valid/images", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"{number}.jpg").touch()
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "list.txt").write_text("train/images/0.jpg\n\ntrain/images/1.jpg\ntrain/images/2.jpg\n")
    (tmp_path / "one.csv").write_text("x.jpg,1,2,3,4,car\n")
    (tmp_path / "nine.csv").write_text("x.jpg,1,2,3,4,car\n" * 9)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'yolo_config { root_directory_path: "ROOT" image_dir_names: ["valid/images", "train/images"] }',
            (7, 3),
        ),
        ('yolo_config { root_directory_path: "ROOT" image_dir_names: ["valid/images", "list.txt"] }', (3, 3)),
        ('yolo_config { root_directory_path: "ROOT" image_dir_names: ["none.txt", "train/images"] }', (7, 0)),
        ('yolo_config { root_directory_path: "ROOT" val_split: 20 }', (8, 2)),
        ('csv_config { root_directory_path: "ROOT" csv_files: "nine.csv" val_split: 20 }', (8, 2)),
        ('csv_config { root_directory_path: "ROOT" csv_files: ["one.csv", "nine.csv"] }', (9, 1)),
        ('csv_config { root_directory_path: "ROOT" csv_files: ["one.csv", "none.csv"] }', (0, 10)),
        (
            'csv_config { root_directory_path: "ROOT" csv_files: "nine.csv" image_dir_name: "valid" val_split: 40 }',
            (2, 1),
        ),
        (
            'csv_config { root_directory_path: "ROOT" csv_files: "nine.csv" }',
            (0, 10),
        ),  # its one fold is fold 0
        ('yolo_config { root_directory_path: "ROOT" }', (10, 0)),
        ('kitti_config { root_directory_path: "ROOT" image_dir_name: "train" val_split: 20 }', (6, 1)),
        ('kitti_config { root_directory_path: "ROOT" image_dir_name: "train" }', (7, 0)),
        (
            'voc_config { root_directory_path: "ROOT" image_set_files: "list.txt" image_set_files: "nine.csv" }',
            (9, 3),
        ),
        ('voc_config { root_directory_path: "ROOT" image_dir_name: "valid" val_split: 1 }', (2, 1)),
        (
            'coco_config { root_directory_path: "ROOT" img_dir_names: ["valid", "train"]'
            ' annotation_files: ["a.json", "b.json"] }',
            (7, 3),
        ),
        (  # files of one folder
            'coco_config { root_directory_path: "ROOT" img_dir_names: [".", "."]'
            ' annotation_files: ["one.csv", "nine.csv"] }',
            (9, 1),
        ),
        (
            'coco_config { root_directory_path: "ROOT" img_dir_names: "train" annotation_files: "a" val_split: 50 }',
            (4, 3),
        ),
    ],
)
def test_images_of_all_layouts_are_counted(root: Path, source: str, expected: tuple[int, int]) -> None:
    config = loads(source.replace("ROOT", str(root)))
    experiment = SimpleNamespace(
        dataset_export_config=[config], dataset_config=SimpleNamespace(validation_fold=0)
    )
    chain = SimpleNamespace(experiment=experiment, validates=True)
    assert count_labels(chain) == expected  # type: ignore[arg-type]
