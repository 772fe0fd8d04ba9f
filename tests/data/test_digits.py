"""The embedded data set: complete, consistent labels, reproducible, and careful with folders."""

import json

import numpy
import pytest
from PIL import Image

from detectkit.data import kitti
from detectkit.data.digits import CLASSES, make_sample_data
from detectkit.errors import OutputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "data"
    assert make_sample_data(path, frames=20)
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def all_labels(folder):
    return {
        path.stem: kitti.read_labels(path, strict=True)[0] for path in sorted(folder.glob("label_2/*.txt"))
    }


def test_images_labels_and_sequences(folder):
    names = [f"{number:06}" for number in range(20)]
    assert sorted(path.name for path in folder.iterdir()) == ["image_2", "label_2", "sequences.json"]
    assert sorted(path.name for path in (folder / "image_2").iterdir()) == [f"{name}.jpg" for name in names]
    assert list(all_labels(folder)) == names
    sequences = json.loads((folder / "sequences.json").read_text())
    assert len(sequences["training"]) == 16 and len(sequences["validation"]) == 4
    assert sorted(sequences["training"] + sequences["validation"]) == names


def test_labels_are_what_the_description_says(folder):
    labels = all_labels(folder)
    everything = [label for found in labels.values() for label in found]
    assert {label.name for label in everything} == set(CLASSES.values())
    assert all(1 <= len(found) <= 5 for found in labels.values())
    for label in everything:
        x1, y1, x2, y2 = label.box
        assert 0 <= x1 < x2 <= 320 and 0 <= y1 < y2 <= 192
        assert y2 - y1 <= 115 and (y2 - y1 >= 38 or label.truncation > 0)
        assert 0 <= label.truncation < 0.5
    assert {label.occlusion for label in everything} == {0, 1}


def test_boxes_hold_bright_digits(folder):
    """Inside a fully visible box there are pixels near full brightness in one channel, and the dark rim."""
    for name, found in all_labels(folder).items():
        pixels = numpy.asarray(Image.open(folder / "image_2" / f"{name}.jpg"))
        assert pixels.shape == (192, 320, 3)
        for label in found:
            x1, y1, x2, y2 = map(int, label.box)
            brightest = pixels[y1:y2, x1:x2].max(axis=2)
            assert (brightest > 230).mean() > 0.15
            assert brightest.min() < 100


def test_same_seed_same_bytes(folder, tmp_path):
    make_sample_data(tmp_path / "again", frames=20)
    assert contents(tmp_path / "again") == contents(folder)
    make_sample_data(tmp_path / "other", frames=20, seed=1)
    assert contents(tmp_path / "other") != contents(folder)


def test_folder_that_already_holds_it(folder):
    before = contents(folder)
    assert make_sample_data(folder, frames=20) is False
    assert contents(folder) == before


def test_empty_folder_is_filled(tmp_path):
    assert make_sample_data(tmp_path, frames=1)
    assert (tmp_path / "image_2" / "000000.jpg").exists()


def test_new_folder_is_open_to_others_as_the_umask_says(folder):
    assert folder.stat().st_mode & 0o777 == (folder / "image_2").stat().st_mode & 0o777


@pytest.mark.parametrize("name", ["notes.md", "sequences.json"])
def test_folder_with_something_else_is_left_alone(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text("mine")
    with pytest.raises(OutputError, match="data holds .*: name a new folder, or remove it first"):
        make_sample_data(tmp_path / "data", frames=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", name]


def test_changed_label_is_not_overwritten(tmp_path):
    make_sample_data(tmp_path, frames=1)
    (tmp_path / "label_2" / "000000.txt").write_text("")
    with pytest.raises(OutputError, match="holds other sample data"):
        make_sample_data(tmp_path, frames=1)


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(OutputError, match="data holds something else"):
        make_sample_data(tmp_path / "data", frames=1)
    with pytest.raises(OutputError, match="cannot write"):
        make_sample_data(tmp_path / "data" / "below", frames=1)
