"""Detections in KITTI files against labels in KITTI files."""

import logging

import pytest
import torch

from detectkit.data import kitti
from detectkit.errors import DataError
from detectkit.evaluation import Truth, evaluate_files
from detectkit.evaluation.voc import Scores
from detectkit.ops.cluster import Detections

LEFT, RIGHT, AWAY = [0, 0, 20, 20], [40, 0, 60, 20], [70, 40, 90, 60]


@pytest.fixture
def folders(tmp_path):
    """Folders for detections and labels, and a writer of a label file from rows of (name, box)."""
    for name in ("found", "truth"):
        (tmp_path / name).mkdir()

    def label(stem, *rows):
        text = "".join(f"{name} 0 0 0 {' '.join(map(str, box))} 0 0 0 0 0 0 0\n" for name, box in rows)
        (tmp_path / "truth" / f"{stem}.txt").write_text(text)

    return tmp_path / "found", tmp_path / "truth", label


def test_files_measure_as_the_same_boxes_in_memory(tiny, folders):
    found, truth, label = folders
    scores = Scores(["square", "bar"], tiny.evaluation_config)
    generator = torch.Generator().manual_seed(2)
    for number in range(20):
        corner = torch.tensor([[x, y] for x in (0, 50, 100) for y in (0, 50)])
        boxes = torch.cat((corner, corner + 20 + torch.randint(160, (6, 2), generator=generator) / 8), dim=1)
        label(number, *(("Square", box) for box in boxes.tolist()))
        near = boxes.repeat(3, 1) + torch.randint(-64, 65, (18, 4), generator=generator) / 8
        confidence = torch.rand(18, generator=generator)
        rows = [("square", box, score) for box, score in zip(near.tolist(), confidence.tolist())]
        kitti.write_detections(found / f"{number}.txt", rows)
    for number in sorted(range(20), key=str):  # files come in the order of their names
        read = kitti.read_detections(found / f"{number}.txt")
        names, _ = kitti.read_labels(truth / f"{number}.txt")
        found_boxes, boxes = (
            torch.tensor([line.box for line in part], dtype=torch.float64) for part in (read, names)
        )
        confidence = torch.tensor([line.score for line in read], dtype=torch.float64)
        scores.add(
            Detections(found_boxes, confidence, torch.zeros(len(read), dtype=torch.int64)),
            Truth(boxes, torch.zeros(len(names), dtype=torch.int64)),
        )
    result = evaluate_files(found, truth, tiny)
    assert result.images == 20 and result.cost is None and result.latency is None
    assert result.classes == scores.results()
    assert 0.2 < result.classes[0].average_precision < 0.9


def test_names_go_through_the_mapping_and_others_are_left_out(tiny, folders):
    found, truth, label = folders
    tiny.dataset_config.target_class_mapping["quadrat"] = "square"
    label("a", ("Quadrat", LEFT), ("square", RIGHT), ("DontCare", AWAY))
    rows = [("square", LEFT, 0.9), ("quadrat", RIGHT, 0.8), ("person", AWAY, 0.9)]
    kitti.write_detections(found / "a.txt", rows)
    square, bar = evaluate_files(found, truth, tiny).classes
    assert (square.ground_truth, square.detections, square.true_positives) == (2, 2, 2)
    assert (bar.ground_truth, bar.detections) == (0, 0)


def test_a_label_called_like_a_class_but_not_mapped_is_background(tiny, folders):
    found, truth, label = folders
    del tiny.dataset_config.target_class_mapping["bar"]
    tiny.dataset_config.target_class_mapping["rod"] = "bar"
    label("a", ("bar", LEFT), ("rod", RIGHT))
    kitti.write_detections(found / "a.txt", [("bar", LEFT, 0.9), ("rod", RIGHT, 0.8)])
    bar = evaluate_files(found, truth, tiny).classes[1]
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (1, 2, 1)


def test_detections_of_unknown_names_are_told_once(tiny, folders, logged):
    found, truth, label = folders
    for stem in "ab":
        label(stem, ("square", LEFT))
        rows = [("person", LEFT, 0.9), ("Dog", LEFT, 0.9), ("Square", LEFT, 0.9)]
        kitti.write_detections(found / f"{stem}.txt", rows)
    assert evaluate_files(found, truth, tiny).classes[0].detections == 2
    assert logged.text.count("detections of Dog, person are left out") == 1


def test_a_class_of_two_words_is_found_in_files(tiny, folders):
    found, truth, label = folders
    tiny.cost_function_config.target_classes[0].name = "red square"
    tiny.dataset_config.target_class_mapping["square"] = "red square"
    label("a", ("square", LEFT))
    kitti.write_detections(found / "a.txt", [("red square", LEFT, 0.9)])
    assert evaluate_files(found, truth, tiny).classes[0].true_positives == 1


def test_a_label_mapped_away_from_the_class_of_its_name(tiny, folders):
    found, truth, label = folders
    tiny.dataset_config.target_class_mapping["bar"] = "square"
    tiny.dataset_config.target_class_mapping["rod"] = "bar"
    label("a", ("bar", LEFT))
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9), ("bar", LEFT, 0.9)])
    square, bar = evaluate_files(found, truth, tiny).classes
    assert (square.ground_truth, square.true_positives) == (1, 1)
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (0, 1, 0)


@pytest.fixture
def logged(caplog, monkeypatch):
    """What the package's own logger takes down, whether the console was set up before or not."""
    log = logging.getLogger("detectkit")
    monkeypatch.setattr(log, "propagate", False)
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def test_an_image_without_a_detection_file_has_no_detections(tiny, folders, logged):
    found, truth, label = folders
    label("a", ("square", LEFT))
    label("b", ("square", LEFT))
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9)])
    result = evaluate_files(found, truth, tiny)
    assert "1 of 2 images have no file" in logged.text and "b.txt" in logged.text
    assert result.images == 2 and result.classes[0].recall == 0.5


def test_files_in_sub_folders_are_paired_by_their_paths(tiny, folders, logged):
    found, truth, label = folders
    for folder in (found, truth):
        (folder / "cam" / "deep").mkdir(parents=True)
    for stem, place in (("0", LEFT), ("cam/0", RIGHT), ("cam/deep/0", AWAY)):
        label(stem, ("square", place))
        kitti.write_detections(found / f"{stem}.txt", [("square", place, 0.9)])
    result = evaluate_files(found, truth, tiny)
    assert result.images == 3 and result.classes[0].average_precision == 1 and not logged.text


def test_what_has_no_other_file_is_told_from_both_sides(tiny, folders, logged):
    found, truth, label = folders
    for folder in (found, truth):
        (folder / "cam").mkdir()
    for stem in ("a", "cam/b", "cam/.hidden"):
        label(stem, ("square", LEFT))
    for stem in ("a", "b", "cam/c"):
        kitti.write_detections(found / f"{stem}.txt", [("square", LEFT, 0.9)])
    assert evaluate_files(found, truth, tiny).classes[0].recall == 0.5
    assert f"1 of 2 images have no file in {found}, such as cam/b.txt" in logged.text
    assert f"2 of 3 detection files are left out: {truth} has no file for them, such as b.txt" in logged.text


def test_files_of_one_name_but_for_the_ending_are_told(tiny, folders, logged):
    found, truth, label = folders
    label("a", ("square", LEFT))
    (truth / "a.TXT").write_text("")
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9)])
    assert evaluate_files(found, truth, tiny).images == 1
    assert f"{truth}: 1 files are left out that are another one's but for the ending: a.TXT" in logged.text


def test_files_that_cannot_be_measured(tiny, folders):
    found, truth, label = folders
    with pytest.raises(DataError, match="holds no label files"):
        evaluate_files(found, truth, tiny)
    label("a", ("square", LEFT))
    with pytest.raises(DataError, match=r"holds no detection file .* a\.txt"):
        evaluate_files(found, truth, tiny)
    (found / "a.txt").write_text((truth / "a.txt").read_text())
    with pytest.raises(DataError, match=r"a\.txt:1: 15 columns"):
        evaluate_files(found, truth, tiny)


def test_label_lines_that_cannot_be_used_are_told_and_counted(tiny, folders, logged):
    found, truth, label = folders
    label("a", ("square", LEFT))
    label("b", ("square", LEFT), ("square", [5, 5, 5, 9]), ("bar", RIGHT))
    with (truth / "a.txt").open("a") as file:
        file.write("square 0 0\n")
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9)])
    kitti.write_detections(found / "b.txt", [("square", LEFT, 0.9)])
    result = evaluate_files(found, truth, tiny)
    assert result.rejected == 2 and result.classes[0].ground_truth == 2
    assert "a.txt:2: 3 columns" in logged.text and "b.txt:2: the box" in logged.text


def test_dontcare_labels_are_regions(tiny, folders):
    found, truth, label = folders
    label("a", ("square", LEFT), ("Ignore", AWAY))
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.8), ("square", AWAY, 0.9)])
    assert evaluate_files(found, truth, tiny).classes[0].average_precision == 0.5
    tiny.dataset_config.dontcare_labels.append("ignore")
    square = evaluate_files(found, truth, tiny).classes[0]
    assert (square.average_precision, square.detections) == (1, 1)
