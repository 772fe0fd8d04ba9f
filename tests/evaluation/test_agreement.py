"""How far two networks find the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detectkit.evaluation.agreement import agreement
from detectkit.ops.cluster import Detections


def found(*rows):
    """Detections of rows x1 y1 x2 y2 class, the first with the highest score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Detections(table[:, :4], torch.linspace(1, 0.5, len(rows)), table[:, 4].long())


NOTHING = found()


def test_the_same_detections_agree_wholly():
    same = [found((0, 0, 10, 10, 0), (20, 0, 30, 10, 1)), NOTHING]
    result = agreement(same, same)
    assert (result.pairs, result.first, result.second) == (2, 2, 2)
    assert result.share == 1 and result.mean_iou == 1


def test_share_counts_what_only_one_has_found():
    # One pair of three detections and one: 2 · 1 / (3 + 1).
    three = found((0, 0, 10, 10, 0), (50, 0, 60, 10, 0), (80, 0, 90, 10, 0))
    result = agreement([three], [found((0, 0, 10, 8, 0))])
    assert result.share == 0.5 and result.mean_iou == pytest.approx(0.8)


@pytest.mark.parametrize(("width", "pairs"), [(5.0, 1), (4.9, 0)])
def test_an_overlap_of_exactly_one_half_is_enough(width, pairs):
    result = agreement([found((0, 0, 10, 10, 0))], [found((0, 0, width, 10, 0))])
    assert result.pairs == pairs


def test_another_class_is_no_pair():
    result = agreement([found((0, 0, 10, 10, 0))], [found((0, 0, 10, 10, 1))])
    assert result.share == 0 and result.mean_iou is None


def test_another_image_is_no_pair():
    box = found((0, 0, 10, 10, 0))
    assert agreement([box, NOTHING], [NOTHING, box]).pairs == 0


def test_nothing_agrees_with_nothing():
    assert agreement([NOTHING], [NOTHING]).share == 1


def test_the_best_pair_is_made_first_and_each_detection_is_in_one():
    # One box overlaps two by 0.8 and 0.9, which compete for it.
    result = agreement([found((0, 0, 10, 10, 0))], [found((0, 0, 8, 10, 0), (0, 0, 9, 10, 0))])
    assert result.pairs == 1 and result.mean_iou == pytest.approx(0.9)


def test_different_numbers_of_images_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        agreement([NOTHING], [])


BOXES = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 12)] * 2, st.integers(0, 1)).map(
        lambda row: (row[0], row[1], row[0] + row[2], row[1] + row[3], row[4])
    ),
    max_size=6,
)


@given(BOXES, BOXES)
def test_exchanging_the_networks_changes_no_more_than_the_order(rows, others):
    one, other = found(*rows), found(*others)
    forth, back = agreement([one], [other]), agreement([other], [one])
    assert (forth.first, forth.second) == (back.second, back.first)
    assert 0 <= forth.share <= 1
    possible = (box_iou(one.boxes, other.boxes) >= 0.5) & (one.classes[:, None] == other.classes[None])
    # Greedy pairs are at least half of the most that can be made, and none is made where none can be.
    assert forth.pairs <= min(int(possible.any(1).sum()), int(possible.any(0).sum()))
    assert (forth.pairs > 0) == bool(possible.any())
