from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from detectkit.ops.boxes import area, clip, generalized_iou, iou, pairwise_iou, ragged_ranges, take, transform


def boxes_of(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),  # 50 of 150: no pixel is added to a side
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # a shared edge is no overlap
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
        ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),  # empty with itself
        ((8, 0, 2, 10), (0, 0, 10, 10), 0.0),  # crossed sides
    ],
)
def test_iou(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    first, second = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert iou(first, second).tolist() == pytest.approx([expected])
    assert torch.equal(pairwise_iou(first, second), pairwise_iou(second, first).T)


def test_area() -> None:
    assert area(boxes_of((1, 2, 4, 8), (3, 3, 3, 9), (4, 0, 1, 9))).tolist() == [18, 0, 0]


finite = st.floats(-1000, 1000)
boxes = st.lists(st.tuples(finite, finite, st.floats(0.01, 500), st.floats(0.01, 500)), max_size=6).map(
    lambda rows: boxes_of(*((x, y, x + w, y + h) for x, y, w, h in rows))
)


@settings(max_examples=100)
@given(boxes, boxes)
def test_pairwise_iou_is_that_of_torchvision(a: Tensor, b: Tensor) -> None:
    assert torch.allclose(pairwise_iou(a, b), box_iou(a, b), rtol=1e-9, atol=1e-12)


@settings(max_examples=100)
@given(boxes, boxes)
def test_generalized_iou_is_that_of_torchvision(a: Tensor, b: Tensor) -> None:
    assert torch.allclose(
        generalized_iou(a[:, None], b[None]), generalized_box_iou(a, b), rtol=1e-9, atol=1e-12
    )


def test_generalized_iou_of_empty_and_crossed_boxes() -> None:
    whole = boxes_of((0, 0, 10, 10))
    # A point in the box; one 10 further right (20 x 10 around both); crossed sides from 2 to 20 (20 x 10 around both).
    odd = boxes_of((5, 5, 5, 5), (20, 5, 20, 5), (20, 1, 2, 9))
    assert generalized_iou(odd, whole).tolist() == [0, -0.5, -0.5]
    assert generalized_iou(odd[:1], odd[:1]).tolist() == [0]


def test_clip_to_one_size_or_to_a_size_per_box() -> None:
    outside = boxes_of((-5, -6, 50, 60), (30, 30, 90, 20))
    assert clip(outside, 40, 25).tolist() == [[0, 0, 40, 25], [30, 25, 40, 20]]
    widths, heights = torch.tensor([40.0, 100.0]), torch.tensor([25.0, 100.0])
    assert clip(outside, widths, heights).tolist() == [[0, 0, 40, 25], [30, 30, 90, 20]]


def test_transform_scales_shifts_and_flips() -> None:
    scale_and_shift = torch.tensor([[2.0, 0, 1], [0, 3, -1], [0, 0, 1]])
    flip = torch.tensor([[-1.0, 0, 100], [0, 1, 0], [0, 0, 1]])
    box = torch.tensor([[10.0, 20, 30, 60]])
    assert transform(box.expand(2, 4), torch.stack((scale_and_shift, flip))).tolist() == [
        [21, 59, 61, 179],
        [70, 20, 90, 60],
    ]


@settings(max_examples=50)
@given(boxes, st.floats(-math.pi, math.pi))
def test_transform_encloses_the_rotated_corners(before: Tensor, angle: float) -> None:
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s, 5], [s, c, -7], [0, 0, 1]], dtype=torch.float64)
    after = transform(before, turn.expand(len(before), 3, 3))
    for (x1, y1, x2, y2), box in zip(before.tolist(), after.tolist()):
        corners = [(c * x - s * y + 5, s * x + c * y - 7) for x in (x1, x2) for y in (y1, y2)]
        xs, ys = zip(*corners)
        assert box == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-9)


def test_ragged_ranges() -> None:
    owner, index = ragged_ranges(torch.tensor([5, 9, 0]), torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2] and index.tolist() == [5, 6, 0, 1, 2]
    owner, index = ragged_ranges(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert owner.tolist() == index.tolist() == []


def test_take() -> None:
    values, index = torch.rand(3, 4), torch.tensor([2, 0, 2])
    assert torch.equal(take(values, index), values[index])
    assert take(values, index[:0]).shape == (0, 4)
