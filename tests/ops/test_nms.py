from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from detectkit.ops.nms import classwise_nms, soft_nms


def bar(*parts: tuple[float, float]) -> Tensor:
    """Boxes of height 1 from x1 to x2, whose IoUs a person can see."""
    return torch.tensor([(x1, 0.0, x2, 1.0) for x1, x2 in parts]).reshape(-1, 4)


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


# (boxes, scores, classes, images); scores are sixteenths, so that many are equal.
rows = st.tuples(
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 16),
    st.integers(0, 2),
    st.integers(0, 2),
)
candidates = st.lists(rows, max_size=30)


def tensors(items: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values = torch.tensor(items, dtype=torch.float64).reshape(-1, 7)
    boxes = torch.cat((values[:, :2], values[:, :2] + values[:, 2:4]), dim=1)
    return boxes, values[:, 4] / 16, values[:, 5].long(), values[:, 6].long()


def test_boxes_of_one_class_and_image_suppress_each_other() -> None:
    # All overlap by 8/12; the second is of another class, the third of another image, the fourth is suppressed.
    boxes = bar((0, 10), (2, 12), (2, 12), (2, 12))
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    classes, images = torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 1, 0])
    assert classwise_nms(boxes, scores, classes, images, iou_threshold=0.5).tolist() == [0, 1, 2]
    assert classwise_nms(boxes, scores, classes, images, iou_threshold=8 / 12 + 1e-6).tolist() == [0, 1, 3, 2]


def test_results_are_cut_image_by_image() -> None:
    boxes = bar((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    scores, images = torch.tensor([0.1, 0.5, 0.4, 0.5, 0.2]), torch.tensor([1, 0, 1, 1, 0])
    kept = classwise_nms(boxes, scores, zeros(5), images, iou_threshold=0.5, at_most=2)
    assert kept.tolist() == [1, 4, 3, 2]
    index, new_scores = soft_nms(
        boxes, scores, zeros(5), images, method="linear", score_threshold=0, at_most=2
    )
    assert index.tolist() == [1, 4, 3, 2] and torch.equal(new_scores, scores[index])


def test_of_equal_scores_the_first_is_the_better_one() -> None:
    boxes, scores = bar((2, 12), (0, 10), (4, 14)), torch.full((3,), 0.5)
    assert classwise_nms(boxes, scores, zeros(3), zeros(3), iou_threshold=0.5).tolist() == [0]
    index, _ = soft_nms(boxes, scores, zeros(3), zeros(3), method="linear", score_threshold=0.4)
    assert index.tolist() == [0]
    # Across classes as well, whichever class is suppressed first.
    classes = torch.tensor([2, 0, 1])
    assert classwise_nms(boxes, scores, classes, zeros(3), iou_threshold=0.5, at_most=2).tolist() == [0, 1]


def test_nothing_to_suppress() -> None:
    none = torch.zeros(0, 4), torch.zeros(0), zeros(0), zeros(0)
    assert classwise_nms(*none, iou_threshold=0.5, at_most=3).shape == (0,)
    index, scores = soft_nms(*none, method="gaussian", score_threshold=0.1)
    assert index.shape == (0,) and index.dtype == torch.int64 and scores.shape == (0,)


@settings(max_examples=100, deadline=None)
@given(candidates, st.sampled_from([0.3, 0.5, 0.7]))
def test_classwise_nms_is_that_of_torchvision(items: list, threshold: float) -> None:
    boxes, scores, classes, images = tensors(items)
    kept = classwise_nms(boxes, scores, classes, images, iou_threshold=threshold)
    theirs = batched_nms(boxes, scores, images * 3 + classes, threshold).tolist()
    # Equal scores come in no stated order there.
    assert kept.tolist() == sorted(theirs, key=lambda i: (images[i], -scores[i], i))


def test_far_boxes_and_many_classes_are_not_rounded() -> None:
    """Boxes of 1 pixel that overlap by a third, at 10,000 pixels and in class 900: moved apart by class, they would not."""
    boxes = bar((10000, 10001), (10000.5, 10001.5))
    kept = classwise_nms(boxes, torch.tensor([0.9, 0.8]), torch.full((2,), 900), zeros(2), iou_threshold=0.34)
    assert kept.tolist() == [0, 1]
    kept = classwise_nms(boxes, torch.tensor([0.9, 0.8]), torch.full((2,), 900), zeros(2), iou_threshold=0.33)
    assert kept.tolist() == [0]


@pytest.mark.parametrize(("side", "expected"), [(5, 0.485225), (8, 0.222430), (10, 0.8 * math.exp(-2))])
def test_gaussian_soft_nms_of_one_neighbour(side: float, expected: float) -> None:
    boxes, scores = bar((0, 10), (0, side)), torch.tensor([0.9, 0.8])  # IoU 0.5, 0.8, 1
    index, new_scores = soft_nms(boxes, scores, zeros(2), zeros(2), method="gaussian", score_threshold=0.001)
    assert index.tolist() == [0, 1] and new_scores.tolist() == pytest.approx([0.9, expected], abs=1e-6)
    assert scores.tolist() == pytest.approx([0.9, 0.8])  # those given are as they were


def test_linear_soft_nms_leaves_those_below_the_threshold() -> None:
    boxes, scores = bar((0, 10), (0, 5), (0, 3), (0, 10)), torch.tensor([0.9, 0.8, 0.7, 0.6])
    index, new_scores = soft_nms(
        boxes, scores, zeros(4), zeros(4), method="linear", iou_threshold=0.3, score_threshold=0
    )
    # By the first: 0.8 (1 - 0.5), and 0.7 as it was (IoU 0.3), and 0. By the third: 0.4 (1 - 0.6).
    assert index.tolist() == [0, 2, 1] and new_scores.tolist() == pytest.approx([0.9, 0.7, 0.16])


def test_soft_nms_is_that_of_effdet() -> None:
    """What effdet 0.4.1 (batched_soft_nms) gives, with IoUs above 0.3 for the linear one and scores above 0.15."""
    boxes = [(0, 0, 10, 10), (0, 1, 10, 11), (2, 0, 12, 10), (0, 0, 10, 5), (20, 20, 30, 30), (0, 0, 10, 10)]
    values = torch.tensor(boxes, dtype=torch.float32), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.95])
    classes = torch.tensor([0, 0, 0, 0, 0, 1])
    index, scores = soft_nms(*values, classes, zeros(6), method="gaussian", score_threshold=0.15)
    assert index.tolist() == [5, 0, 4, 3, 2]
    assert scores.tolist() == pytest.approx([0.95, 0.9, 0.5, 0.36391842, 0.22090405], abs=1e-6)
    index, scores = soft_nms(*values, classes, zeros(6), method="linear", score_threshold=0.15)
    assert index.tolist() == [5, 0, 4, 3] and scores.tolist() == pytest.approx([0.95, 0.9, 0.5, 0.3])


def test_an_unknown_method() -> None:
    with pytest.raises(ValueError, match='"gaussian" or "linear", got \'hard\''):
        soft_nms(bar((0, 1)), torch.ones(1), zeros(1), zeros(1), method="hard", score_threshold=0)


def plain_soft_nms(boxes: Tensor, scores: Tensor, *, method: str, score_threshold: float) -> dict[int, float]:
    """Bodla et al., Figure 3, for one class of one image: new scores by index."""
    left, found = {i: float(score) for i, score in enumerate(scores) if score > score_threshold}, {}
    overlaps = box_iou(boxes, boxes)
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        found[best] = left.pop(best)
        for other in left:
            overlap = float(overlaps[best, other])
            left[other] *= (
                math.exp(-(overlap**2) / 0.5) if method == "gaussian" else 1 - overlap * (overlap > 0.3)
            )
        left = {i: score for i, score in left.items() if score > score_threshold}
    return found


@settings(max_examples=100, deadline=None)
@given(candidates, st.sampled_from(["gaussian", "linear"]), st.sampled_from([0.0, 0.1]))
def test_soft_nms_is_that_of_the_paper_in_each_class_and_image(
    items: list, method: str, threshold: float
) -> None:
    boxes, scores, classes, images = tensors(items)
    index, new_scores = soft_nms(boxes, scores, classes, images, method=method, score_threshold=threshold)
    expected = {}
    for group in (images * 3 + classes).unique():
        rows = torch.nonzero(images * 3 + classes == group).flatten()
        own = plain_soft_nms(boxes[rows], scores[rows], method=method, score_threshold=threshold)
        expected.update({int(rows[i]): score for i, score in own.items()})
    assert dict(zip(index.tolist(), new_scores.tolist())) == pytest.approx(expected, abs=1e-12)
    place = list(zip(images[index].tolist(), (-new_scores).tolist()))
    assert place == sorted(place)
