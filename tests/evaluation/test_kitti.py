"""KITTI's official evaluation, on scenes whose figures a person can work out."""

import pytest
import torch

from detectkit import spec
from detectkit.data import kitti
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.evaluation import Truth, evaluate_files, new_scores
from detectkit.evaluation.kitti import DIFFICULTIES
from detectkit.ops.cluster import Detections

CLASSES = ["car", "pedestrian"]
LEVELS = [difficulty.name for difficulty in DIFFICULTIES]
CAR, PERSON, AWAY = [0, 0, 80, 50], [100, 0, 130, 60], [200, 0, 280, 50]


def scores(**options):
    overlaps = {"car": 0.7, "pedestrian": 0.5}
    config = spec.EvaluationConfig(
        protocol="KITTI", minimum_detection_ground_truth_overlap=overlaps, **options
    )
    return new_scores(CLASSES, config)


def detections(*rows):
    """From rows of box, score, class name."""
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float64).reshape(-1, 4)
    numbers = [CLASSES.index(name) for _, _, name in rows]
    return Detections(boxes, torch.tensor([score for _, score, _ in rows]), torch.tensor(numbers).long())


def truth(*rows, **other):
    """From rows of name, box and, if any, occlusion and truncation; `other` gives the classes of names that are none."""
    rows = [(*row, 0, 0.0)[:4] if len(row) == 2 else row for row in rows]
    numbers = {name: number for number, name in enumerate(CLASSES)} | other
    return Truth(
        torch.tensor([row[1] for row in rows], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([numbers.get(row[0], BACKGROUND) for row in rows]).long(),
        tuple(row[0] for row in rows),
        torch.tensor([row[3] for row in rows], dtype=torch.float32),
        torch.tensor([row[2] for row in rows]).long(),
    )


def measured(found, labels, **options):
    """The result of the cars of one image."""
    collected = scores(**options)
    collected.add(found, labels)
    return collected.result(0)


def counts(result):
    return result.ground_truth, result.detections, result.true_positives


def test_average_precisions_by_hand():
    """80 cars, 40 of them found; after the 20th (recall 1/4) come 20 wrong detections."""
    collected = scores()
    for number in range(80):
        rows = [(CAR, 100.0 - number, "car")] if number < 40 else []
        rows += [(AWAY, 80.5, "car")] if 40 <= number < 60 else []
        collected.add(detections(*rows), truth(("car", CAR)))
    result = collected.result(0)
    # Precision is 1 to recall 1/4 and 40 / 60 from there to 1/2, whatever lies between: later is better.
    for level in LEVELS:
        assert result.figures[f"AP40_{level}"] == pytest.approx((10 + 10 * 2 / 3) / 40)
        assert result.figures[f"AP11_{level}"] == pytest.approx((3 + 3 * 2 / 3) / 11)
    assert result.average_precision == result.figures["AP40_moderate"]
    assert counts(result) == (80, 60, 40)
    assert (result.precision, result.recall, result.threshold) == (pytest.approx(2 / 3), 0.5, 61)
    assert len(result.precision_curve) == len(result.recall_curve) == 21
    assert result.recall_curve[10] == 0.25
    assert collected.result(1).figures == {f"AP{n}_{level}": None for n in (11, 40) for level in LEVELS}


@pytest.mark.parametrize(
    ("height", "occlusion", "truncation", "sought"),
    [
        (40, 0, 0.15, LEVELS),
        (39.9, 0, 0.0, LEVELS[1:]),
        (25, 1, 0.3, LEVELS[1:]),
        (24.9, 0, 0.0, []),
        (50, 1, 0.0, LEVELS[1:]),
        (50, 2, 0.0, LEVELS[2:]),
        (50, 3, 0.0, []),
        (50, 0, 0.16, LEVELS[1:]),
        (50, 0, 0.31, LEVELS[2:]),
        (50, 0, 0.5, LEVELS[2:]),
        (50, 0, 0.51, []),
    ],
)
def test_difficulties(height, occlusion, truncation, sought):
    labels = truth(("car", [0, 0, 60, height], occlusion, truncation))
    result = measured(detections(([0, 0, 60, height], 0.5, "car")), labels)
    assert [level for level in LEVELS if result.figures[f"AP40_{level}"] is not None] == sought
    # An object that is not looked for is no mistake to find.
    assert result.detections == result.true_positives == ("moderate" in sought)


NEUTRAL = {
    "van": ([("van", AWAY)], [(AWAY, 0.9, "car")]),
    "two on a van": ([("van", AWAY)], [(AWAY, 0.9, "car"), (AWAY, 0.8, "car")]),
    "cyclist": ([("cyclist", AWAY)], [(AWAY, 0.9, "car")]),
    "dontcare": ([("dontcare", [190, 0, 300, 60], -1, -1.0)], [(AWAY, 0.9, "car"), (AWAY, 0.8, "car")]),
    "dontcare of another name": ([("ignore", [190, 0, 300, 60])], [(AWAY, 0.9, "car")]),
    "partly in dontcare": ([("dontcare", [200, 0, 256, 50], -1, -1.0)], [(AWAY, 0.9, "car")]),
    "low": ([], [([200, 0, 280, 24], 0.9, "car")]),
    "pedestrian": ([], [(AWAY, 0.9, "pedestrian")]),
}


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("van", 0),
        ("two on a van", 1),
        ("cyclist", 1),
        ("dontcare", 0),
        ("dontcare of another name", 0),
        ("partly in dontcare", 1),  # exactly 0.7 of it: not more
        ("low", 0),
        ("pedestrian", 0),
    ],
)
def test_what_counts_neither_for_nor_against(case, wrong):
    labels, found = NEUTRAL[case]
    result = measured(detections((CAR, 0.5, "car"), *found), truth(("car", CAR), *labels, ignore=DONTCARE))
    assert counts(result) == (1, 1 + wrong, 1)


def test_the_neighbour_of_a_pedestrian_sits():
    collected = scores()
    labels = truth(("pedestrian", PERSON), ("person_sitting", CAR), ("van", AWAY))
    found = [(PERSON, 0.9, "pedestrian"), (CAR, 0.8, "pedestrian"), (AWAY, 0.7, "pedestrian")]
    collected.add(detections(*found), labels)
    assert counts(collected.result(1)) == (1, 2, 1)


def test_a_van_that_is_mapped_to_car_is_a_car():
    assert counts(measured(detections((AWAY, 0.9, "car")), truth(("van", AWAY), van=0))) == (1, 1, 1)


def test_box_limits_are_in_pixels_of_the_files():
    limits = {"car": spec.EvaluationConfig.EvaluationBoxConfig(maximum_width=70)}
    labels = truth(("car", CAR), ("car", [200, 0, 260, 50]))
    found = detections((CAR, 0.9, "car"), ([200, 0, 260, 50], 0.8, "car"))
    assert counts(measured(found, labels)) == (2, 2, 2)
    assert counts(measured(found, labels, evaluation_box_config=limits)) == (1, 1, 1)


def test_ties_and_any_numbers_as_scores():
    rows = [(CAR, -5.0, "car"), (AWAY, -5.0, "car"), (PERSON, -1e6, "car")]
    result = measured(detections(*rows), truth(("car", CAR), ("car", AWAY)))
    assert counts(result) == (2, 3, 2) and result.threshold == -5
    assert result.precision == result.recall == 1


# Files


@pytest.fixture
def kitti_spec(tiny):
    """A spec for cars and pedestrians under KITTI's protocol."""
    for target, name in zip(tiny.cost_function_config.target_classes, CLASSES, strict=True):
        target.name = name
    mapping = tiny.dataset_config.target_class_mapping
    mapping.clear()
    mapping.update({"car": "car", "pedestrian": "pedestrian"})
    overlaps = tiny.evaluation_config.minimum_detection_ground_truth_overlap
    overlaps.clear()
    overlaps.update({"car": 0.7, "pedestrian": 0.5})
    tiny.evaluation_config.protocol = spec.EvaluationConfig.KITTI
    return tiny


def test_files_as_the_benchmark_has_them(kitti_spec, tmp_path):
    for name in ("found", "truth"):
        (tmp_path / name).mkdir()
    for number in range(82):
        rows = [
            ("car", [10, 20, 110.25, 70.5], 0.5),
            ("Car", [300, 20, 400, 70], 0.4),
        ]  # the second on DontCare
        kitti.write_detections(tmp_path / "found" / f"{number:06d}.txt", rows if number < 41 else rows[1:])
        (tmp_path / "truth" / f"{number:06d}.txt").write_text(
            "Car 0.00 1 -1.58 10.00 20.00 110.00 70.00 1.5 1.6 3.7 1.8 1.5 8.4 0.01\n"
            "Van 0.00 0 0.20 210.00 20.00 310.00 70.00 1.5 1.6 3.7 1.8 1.5 8.4 0.01\n"
            "DontCare -1 -1 -10 290.00 10.00 410.00 80.00 -1 -1 -1 -1000 -1000 -1000 -10\n"
        )
    result = evaluate_files(tmp_path / "found", tmp_path / "truth", kitti_spec)
    car, pedestrian = result.classes
    assert (result.protocol, result.images, result.rejected) == ("KITTI", 82, 0)
    assert car.figures["AP40_easy"] is None  # partly hidden
    assert car.figures["AP40_moderate"] == pytest.approx(20 / 40)
    assert car.figures["AP11_hard"] == pytest.approx(6 / 11)
    assert counts(car) == (82, 41, 41) and pedestrian.average_precision is None
    assert result.mean_average_precision == pytest.approx(0.5)
    assert result.mean_figures["AP40_hard"] == pytest.approx(0.5) and result.mean_figures["AP40_easy"] is None


def test_without_dontcare_labels_its_regions_are_kittis_alone(kitti_spec, tmp_path):
    for name in ("found", "truth"):
        (tmp_path / name).mkdir()
    rows = [("car", AWAY, 0.5)]
    kitti.write_detections(tmp_path / "found" / "a.txt", rows)
    line = " ".join(map(str, AWAY))
    (tmp_path / "truth" / "a.txt").write_text(f"DontCare -1 -1 -10 {line} -1 -1 -1 -1000 -1000 -1000 -10\n")
    folders = tmp_path / "found", tmp_path / "truth"
    config = kitti_spec.evaluation_config

    def wrong(protocol):
        config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
        return evaluate_files(*folders, kitti_spec).classes[0].detections

    assert (wrong("KITTI"), wrong("VOC")) == (0, 1)
    kitti_spec.dataset_config.dontcare_labels.append("DontCare")
    assert (wrong("KITTI"), wrong("VOC")) == (0, 0)
