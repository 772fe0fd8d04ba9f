"""KITTI's counting against values worked out by hand; the protocol as a whole: tests/evaluation/test_kitti.py."""

import pytest
import torch

from detectkit.ops.kitti import average_precisions, count, overlapping, thresholds


def boxes(*columns):
    """Boxes 10 high and from x1 to x2 wide."""
    return torch.tensor([[x1, 0, x2, 10] for x1, x2 in columns], dtype=torch.float64).reshape(-1, 4)


def counted(found, scores, truth, *, small=(), ignored=(), region=(), overlap=0.5):
    """Counts in one image; the detections that are too small or in a region, and the ignored truths, by number."""
    found, truth = boxes(*found), boxes(*truth)
    groups = torch.zeros(len(found), dtype=torch.int64), torch.zeros(len(truth), dtype=torch.int64)
    masks = [torch.zeros(len(of), dtype=torch.bool) for of in (found, truth, found)]
    for mask, numbers in zip(masks, (small, ignored, region)):
        mask[list(numbers)] = True
    pairs = overlapping(found, groups[0], truth, groups[1], iou_threshold=overlap)
    result = count(pairs, torch.tensor(scores), ignored_det=masks[0], ignored_gt=masks[1], in_region=masks[2])
    return [column[-1].item() for column in (result.true, result.missed, result.false)]


A, B = (0, 10), (100, 110)


@pytest.mark.parametrize(
    ("found", "truth", "options", "expected"),
    [
        ([A, B], [A, B], {}, [2, 0, 0]),
        ([A, A], [A], {}, [1, 0, 1]),
        ([A], [A, B], {}, [1, 1, 0]),
        ([(0, 5)], [A], {}, [0, 1, 1]),  # an IoU of exactly the threshold is not above it
        ([], [A], {}, [0, 1, 0]),
        ([A], [], {}, [0, 0, 1]),
        ([], [], {}, [0, 0, 0]),
        ([A], [A], {"ignored": [0]}, [0, 0, 0]),  # of an object that need not be found
        ([A, A], [A], {"ignored": [0]}, [0, 0, 1]),  # it takes up only one
        ([A], [A], {"small": [0]}, [0, 0, 0]),  # found by what does not count: neither found nor missed
        ([B], [A], {"small": [0]}, [0, 1, 0]),
        ([A, (0, 8)], [A], {"small": [0]}, [1, 0, 0]),  # a large enough one is taken before a small one
        ([A, B], [A], {"region": [0, 1]}, [1, 0, 0]),  # right in a region is right
        # The first label takes the detection that overlaps it most, though the second has no other.
        ([(3, 13)], [A, (4, 14)], {}, [1, 1, 0]),
        ([(3, 13), A], [A, (4, 14)], {}, [2, 0, 0]),
    ],
)
def test_counts_of_all_detections(found, truth, options, expected):
    assert counted(found, [0.5] * len(found), truth, **options) == expected


def test_counts_at_each_score():
    """Scores -1, -2 and -3, of which the second is wrong: right ones give the thresholds, and the rank alone matters."""
    found, truth = boxes(A, (50, 60), B), boxes(A, B)
    groups = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    pairs = overlapping(found, groups[0], truth, groups[1], iou_threshold=0.5)
    none = torch.zeros(3, dtype=torch.bool)
    result = count(
        pairs, torch.tensor([-1.0, -2.0, -3.0]), ignored_det=none, ignored_gt=none[:2], in_region=none
    )
    assert result.scores.tolist() == [-1, -3, -torch.inf]
    assert result.true.tolist() == [1, 2, 2] and result.missed.tolist() == [1, 0, 0]
    assert result.false.tolist() == [0, 1, 1] and result.ground_truth == 2
    assert result.precision.tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    assert result.recall.tolist() == [0.5, 1, 1]


def test_images_are_kept_apart():
    found, truth = boxes(A, A, B), boxes(B, A)
    pairs = overlapping(found, torch.tensor([7, 3, 3]), truth, torch.tensor([7, 3]), iou_threshold=0.5)
    assert (pairs.det.tolist(), pairs.gt.tolist(), pairs.overlap.tolist()) == ([1], [1], [1])


@pytest.mark.parametrize(
    "right, objects, expected", [(80, 80, 41), (400, 400, 41), (200, 400, 21), (5, 5, 5)]
)
def test_thresholds_are_where_recall_is_nearest_to_fortieths(right, objects, expected):
    scores = torch.arange(right, 0, -1).double()  # the i-th right detection has recall i / objects
    sampled = thresholds(scores, objects)
    assert len(sampled) == expected and sampled[0] == right and sampled[-1] == 1
    recalls = (right + 1 - sampled) / objects
    nearest = torch.arange(expected) / 40 if objects > 40 else (torch.arange(expected) + 1) / objects
    assert (recalls - nearest).abs().max() <= 1 / objects + 1e-9


def test_average_precisions_by_hand():
    # The first 21 recalls (0 to 0.5) reach precision 1, those to 0.75 reach 0.5, the others none.
    precision = torch.tensor([0.9, *[1.0] * 20, *[0.4] * 9, 0.5], dtype=torch.float64)
    over_11, over_40 = average_precisions(precision)
    assert over_11 == pytest.approx((6 + 2 * 0.5) / 11)
    assert over_40 == pytest.approx((20 + 10 * 0.5) / 40)
    assert average_precisions(torch.ones(41, dtype=torch.float64)) == (1, 1)
    assert average_precisions(torch.ones(0, dtype=torch.float64)) == (0, 0)
