from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit.ops.decode import decode, highest


def field(*distances: float, height: int = 1, width: int = 1) -> torch.Tensor:
    return torch.tensor(distances).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, height, width)


def test_distances_are_taken_from_the_corner_of_the_cell_plus_the_offset() -> None:
    boxes = decode(
        field(0.25, 0.5, 1.0, 2.0, height=2, width=3), stride=16, scale=8, offset=0.5, width=99, height=99
    )
    assert boxes.shape == (1, 1, 2, 3, 4)
    assert boxes[0, 0, 1, 2].tolist() == [32.5 - 2, 16.5 - 4, 32.5 + 8, 16.5 + 16]
    assert boxes[0, 0, 0, 0].tolist() == [0, 0, 8.5, 16.5]  # cut to the image on the left and above


def test_boxes_end_at_the_image_and_are_never_crossed() -> None:
    wide = decode(field(-99, 1, 99, 99), stride=16, scale=35, offset=0.5, width=64, height=48)
    assert wide.flatten().tolist() == [64, 0, 64, 48]
    crossed = decode(field(-1, -1, -1, -1), stride=16, scale=8, offset=0.5, width=64, height=48)
    assert crossed.flatten().tolist() == [8.5, 8.5, 8.5, 8.5]


def test_classes_and_images_stay_apart() -> None:
    bbox = torch.zeros(2, 3, 4, 1, 1)
    bbox[1, 2, 2:] = 1
    boxes = decode(bbox, stride=16, scale=10, offset=0.5, width=64, height=64)
    assert boxes[1, 2].flatten().tolist() == [0.5, 0.5, 10.5, 10.5]
    assert boxes[:, :2].unique().tolist() == [0.5]


def test_highest_of_each_image() -> None:
    scores = torch.tensor([[[0.5, 0.5, 0.5], [0.1, 0.9, 0.2]], [[0.0, 0.3, 0.0], [0.0, 0.0, 0.4]]])
    found = highest(scores, 2)
    assert found.sum((1, 2)).tolist() == [2, 2] and found[0, 1, 1] and found[1, 0, 1] and found[1, 1, 2]
    assert highest(scores, 100).all()


def test_of_equal_scores_the_first_are_the_highest() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.5, 0.5, 0.5], [0.1, 0.3, 0.2, 0.2, 0.9], [0.0] * 5])
    found = highest(scores, 3)
    assert [torch.nonzero(own).flatten().tolist() for own in found] == [[0, 2, 3], [1, 2, 4], [0, 1, 2]]
    assert not highest(scores, 0).any()


def test_a_score_that_is_no_number_is_the_lowest() -> None:
    scores = torch.tensor([[torch.nan, 0.2, torch.inf, torch.nan, 0.1, -torch.inf]])
    assert torch.nonzero(highest(scores, 3)[0]).flatten().tolist() == [1, 2, 4]
    assert highest(scores, 5).sum() == 5


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12), st.integers(0, 14))
def test_highest_are_the_first_in_a_stable_order(values: list[float], at_most: int) -> None:
    scores = torch.tensor([values])
    order = torch.argsort(scores[0], descending=True, stable=True)[:at_most]
    assert torch.nonzero(highest(scores, at_most)[0]).flatten().tolist() == order.sort().values.tolist()
