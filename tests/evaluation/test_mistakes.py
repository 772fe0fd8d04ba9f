"""Doubled and confused detections that a person can count, what they cost, and coverage on and beside objects."""

import numpy as np
import pytest
import torch

from detectkit import spec
from detectkit.data import augment
from detectkit.data.batch import Sample, collate
from detectkit.data.labels import BACKGROUND, DONTCARE, Objects
from detectkit.evaluation import Truth, advice, evaluate, new_scores
from detectkit.evaluation.mistakes import CoverageMeter, mistakes
from detectkit.ops.cluster import Detections
from detectkit.ops.rasterize import ClassGeometry
from detectkit.predict import Latency, Predicted

ACE, KING = 0, 1
HERE, THERE = (0, 0, 20, 20), (40, 0, 60, 20)


def measured(*images, config=None):
    """The mistakes of ace and king; an image is a list of (box, class, score) and one of (box, class)."""
    scores = new_scores(["ace", "king"], config or spec.EvaluationConfig(average_precision_mode="INTEGRATE"))
    for found, labels in images:
        found = sorted(found, key=lambda row: -row[2])
        boxes, classes, values = zip(*found) if found else ((), (), ())
        where, names = zip(*labels) if labels else ((), ())
        detections = Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(values, dtype=torch.float32),
            torch.tensor(classes, dtype=torch.int64),
        )
        truth = torch.tensor(where, dtype=torch.float32).reshape(-1, 4)
        scores.add(detections, Truth(truth, torch.tensor(names, dtype=torch.int64)))
    return mistakes(scores)


def test_a_second_box_on_an_object_costs_what_ap_gains_without_it():
    first = [(HERE, ACE, 0.9), ((0, 0, 10, 20), ACE, 0.8)], [(HERE, ACE)]
    second = [(THERE, ACE, 0.7)], [(THERE, ACE)]
    ace, king = measured(first, second)
    # right, wrong, right: 1/2 at precision 1 and 1/2 at 2/3; without the second one 1.
    assert ace.average_precision == pytest.approx(5 / 6)
    assert (ace.labels, ace.found, ace.detections, ace.doubled) == (2, 2, 3, 1)
    assert ace.doubled_cost == pytest.approx(1 / 6)
    assert (ace.confused, ace.confused_with, ace.confused_cost) == (0, "", 0)
    assert king.average_precision is None and king.detections == 0 and king.coverage is None


@pytest.mark.parametrize(
    ("box", "doubled"),
    [
        ((0, 0, 10, 10), 1),  # a quarter of the object
        ((19, 0, 39, 20), 0),  # beside it: IoU 1 / 39
        ((100, 100, 120, 120), 0),
    ],
)
def test_a_piece_of_a_found_object_is_doubled_and_what_lies_beside_is_not(box, doubled):
    ace, _ = measured(([(HERE, ACE, 0.5), (box, ACE, 0.8)], [(HERE, ACE)]))
    assert ace.found == 1 and ace.doubled == doubled
    assert ace.doubled_cost == pytest.approx(0.5 if doubled else 0)


def test_a_bad_box_on_an_object_that_is_not_found_is_not_doubled():
    ace, _ = measured(([((0, 0, 8, 20), ACE, 0.9), ((0, 0, 6, 20), ACE, 0.8)], [(HERE, ACE)]))
    assert (ace.found, ace.doubled, ace.doubled_cost) == (0, 0, 0)


def test_an_object_under_another_name():
    first = [(HERE, KING, 0.9)], [(HERE, ACE)]
    second = [(HERE, KING, 0.8)], [(HERE, KING)]
    ace, king = measured(first, second)
    assert (ace.confused, ace.confused_with, ace.average_precision) == (1, "king", 0)
    assert ace.confused_cost == pytest.approx(1)  # the king of the first image would find it
    # The king's first detection is wrong: AP 1/2, and 1 without it.
    assert (king.confused, king.average_precision, king.doubled) == (0, 0.5, 0)
    assert king.confused_cost == pytest.approx(0.5)


def test_the_stronger_name_counts_and_a_second_detection_is_not_made_by_correcting():
    first = [(HERE, KING, 0.9), (HERE, ACE, 0.4)], [(HERE, ACE)]
    second = [(THERE, KING, 0.3), (THERE, ACE, 0.5)], [(THERE, ACE)]
    ace, king = measured(first, second)
    assert (ace.confused, ace.found) == (1, 2)  # of the second, ace is the stronger name
    assert ace.average_precision == 1 and ace.confused_cost == 0
    assert king.average_precision is None


def test_a_detection_of_its_own_label_is_never_confused():
    """Two labels at one place, as a rider and his bicycle from the front."""
    ace, king = measured(([(HERE, ACE, 0.9), (HERE, KING, 0.8)], [(HERE, ACE), (HERE, KING)]))
    assert [(item.confused, item.confused_cost) for item in (ace, king)] == [(0, 0)] * 2


def test_sizes_overlaps_and_regions_are_those_of_the_evaluation():
    box = spec.EvaluationConfig.EvaluationBoxConfig(minimum_width=15)
    config = spec.EvaluationConfig(
        evaluation_box_config={"ace": box}, minimum_detection_ground_truth_overlap={"ace": 0.9}
    )
    found = [
        (HERE, ACE, 0.9),
        ((0, 0, 10, 20), ACE, 0.8),
        ((100, 0, 130, 30), ACE, 0.7),
        ((0, 0, 20, 17), KING, 0.6),
    ]
    labels = [(HERE, ACE), ((90, 0, 140, 40), DONTCARE), ((60, 60, 90, 90), BACKGROUND)]
    ace, king = measured((found, labels), config=config)
    # Of ace the second is too small to count, the third is in a region; king's IoU with the ace is 0.85.
    assert (ace.labels, ace.detections, ace.doubled, ace.confused) == (1, 1, 0, 0)
    assert king.detections == 1 and king.confused_cost == 0


def test_average_precision_at_an_easy_overlap():
    config = spec.EvaluationConfig(minimum_detection_ground_truth_overlap={"ace": 0.7, "king": 0.3})
    found = [((0, 0, 20, 12), ACE, 0.8), ((40, 0, 60, 8), KING, 0.8)]  # IoU 0.6 and 0.4
    ace, king = measured((found, [(HERE, ACE), (THERE, KING)]), config=config)
    assert (ace.average_precision, ace.lenient_average_precision) == (0, 1)
    assert (king.average_precision, king.lenient_average_precision) == (1, 1)  # at 0.3


def test_nothing_found_and_nothing_there():
    ace, king = measured(([], []))
    assert (
        ace == king._replace(name="ace")
        and (ace.labels, ace.detections, ace.doubled, ace.confused) == (0,) * 4
    )


LABELS = {"ace": ([8, 8, 24, 24], ACE), "tree": ([64, 0, 80, 32], BACKGROUND)}


@pytest.fixture
def predicted(tiny):
    """One picture of 96 x 64 pixels, 4 x 6 cells of 16; an ace around the corner of four cells, and a tree on two."""
    boxes = np.array([box for box, _ in LABELS.values()], dtype=np.float32)
    classes = np.array([number for _, number in LABELS.values()])
    zeros = np.zeros(len(boxes), np.float32), np.zeros(len(boxes), np.int64)
    sample = Sample(
        image=np.zeros((3, 64, 96), np.uint8),
        reduction=1,
        original_size=(96, 64),
        objects=Objects(boxes, classes, tuple(LABELS), *zeros),
        weight=1.0,
        frame_id="a",
        image_path="a.png",
    )
    batch = collate([sample])
    prepared = augment.prepare(batch, tiny.augmentation_config, generator=None, device="cpu")
    coverage = torch.zeros(1, 2, 4, 6)
    coverage[0, ACE] = 0.5
    coverage[0, ACE, :2, :2] = 0.25  # where the ace is
    coverage[0, ACE, 1, 1] = 0.75  # in its middle, (16, 16)
    coverage[0, KING, :2, 4] = 1  # on the tree
    found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Predicted(batch, prepared, (coverage, torch.zeros(1, 8, 4, 6)), [found], Latency(1.0, 1.0, 1.0))


def geometry(center_y=0.5):
    return ClassGeometry(*(torch.full((2,), value) for value in (0.5, center_y, 0.6, 0.6, 0.7)))


def test_coverage_in_the_middle_of_objects_and_where_no_label_is(predicted):
    result = evaluate([predicted, predicted], ["ace", "king"], spec.EvaluationConfig(), geometry=geometry())
    ace, king = (item.coverage for item in result.mistakes)
    assert (ace.objects, ace.background) == (0.75, 0.5)
    assert (king.objects, king.background) == (None, 0)


def test_coverage_at_the_foot_of_objects(predicted):
    """Where cov_center_y asks for it: the cell that holds the middle of the ace's lower side."""
    predicted.prepared.labels.boxes[0, 3] = (
        40  # from 8: its centre is in the second row, its foot in the third
    )
    predicted.outputs[0][0, ACE, 2, 1] = 0.875
    scores = [
        evaluate([predicted], ["ace", "king"], spec.EvaluationConfig(), geometry=geometry(center_y=at))
        for at in (0.5, 1)
    ]
    assert [found.mistakes[ACE].coverage.objects for found in scores] == [0.75, 0.875]
    predicted.prepared.labels.boxes[0, 3] = 64  # the lower side of the image: its last row of cells
    predicted.outputs[0][0, ACE, 3, 1] = 0.125
    [ace, _] = evaluate([predicted], ["ace", "king"], spec.EvaluationConfig(), geometry=geometry(1)).mistakes
    assert ace.coverage.objects == 0.125


class Distances:
    """A head whose first output is no coverage: how far the sides of a box are from each of 24 points."""

    geometry = None


def test_a_head_without_coverage_is_measured_all_the_same(predicted):
    """Of what is no coverage nothing is read, nor is it judged."""
    predicted = predicted._replace(outputs=(torch.full((1, 24, 4), torch.nan),))
    result = evaluate(
        [predicted] * 50, ["ace", "king"], spec.EvaluationConfig(), geometry=Distances().geometry
    )
    ace, king = result.mistakes
    assert (ace.coverage, king.coverage) == (None, None)
    assert (ace.labels, ace.found) == (50, 0)
    assert advice.findings(result, spec.Experiment()) == []


def test_coverage_without_a_batch():
    assert CoverageMeter(geometry()).result() == [(None, None, ())] * 2
