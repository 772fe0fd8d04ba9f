from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from detectkit.ops import matching
from detectkit.ops.anchors import EFFICIENTDET_RATIOS, octave_anchors, pyramid_sizes, tile
from detectkit.ops.coder import SSD_WEIGHTS, encode_boxes
from detectkit.ops.matching import BACKGROUND, IGNORED, Matches, anchor_targets, match


def bar(*parts: tuple[float, float]) -> Tensor:
    """Boxes of height 1 from x1 to x2, whose IoUs a person can see."""
    return torch.tensor([(x1, 0.0, x2, 1.0) for x1, x2 in parts]).reshape(-1, 4)


def one_image(boxes: Tensor, anchors: Tensor, **arguments: object) -> Matches:
    return match(boxes, torch.zeros(len(boxes), dtype=torch.int64), anchors, batch_size=1, **arguments)


ANCHORS = bar((0, 10), (10, 20), (20, 30), (30, 40))


def test_an_anchor_answers_for_the_object_it_overlaps_most() -> None:
    # IoU 8/10 with the first anchor; 5/15 each with the third and the fourth, of which the first is forced.
    found = one_image(bar((0, 8), (25, 35)), ANCHORS)
    assert found.object_index.tolist() == [[0, BACKGROUND, 1, BACKGROUND]]
    assert found.iou[0].tolist() == pytest.approx([0.8, 0, 1 / 3, 1 / 3])
    assert found.matched.tolist() == [True, True]


def test_between_the_thresholds_an_anchor_is_ignored() -> None:
    # IoU 6/10 with the first anchor, 9/10 and 1/19 with the second and third.
    found = one_image(bar((0, 6), (10, 19), (38, 40)), ANCHORS, positive_iou=0.7, negative_iou=0.15)
    assert found.object_index.tolist() == [[0, 1, BACKGROUND, 2]]  # the first and the last are forced
    wide = bar((0, 10), (2, 12))
    found = one_image(bar((0, 10)), wide, positive_iou=0.7, negative_iou=0.4)
    assert found.object_index.tolist() == [[0, IGNORED]]  # 8/12
    found = one_image(bar((0, 10)), wide, positive_iou=0.7, negative_iou=0.7)
    assert found.object_index.tolist() == [[0, BACKGROUND]]
    found = one_image(bar((0, 10)), wide, positive_iou=8 / 12, negative_iou=0.4)
    assert found.object_index.tolist() == [[0, 0]]  # at least


@pytest.mark.parametrize(("clash", "winner"), [("first", 0), ("last", 1)])
def test_of_two_objects_with_one_best_anchor_the_stated_one_gets_it(clash: str, winner: int) -> None:
    # IoUs 0.60 and 0.55 with the first anchor, which is the best of both.
    found = one_image(bar((0, 6), (0, 5.5)), ANCHORS, clash=clash)
    assert found.object_index.tolist() == [[winner] + [BACKGROUND] * 3]
    assert found.matched.tolist() == [winner == 0, winner == 1]
    assert found.iou[0, 0].item() == pytest.approx([0.6, 0.55][winner])


def test_an_unknown_rule_for_clashes() -> None:
    with pytest.raises(ValueError, match='"first" or "last", got \'best\''):
        one_image(bar((0, 6)), ANCHORS, clash="best")


def test_an_object_that_no_anchor_overlaps_takes_none() -> None:
    found = one_image(bar((50, 60), (12, 12)), ANCHORS)  # beyond all of them, and an empty one
    assert found.object_index.tolist() == [[BACKGROUND] * 4]
    assert found.matched.tolist() == [False, False]


def test_a_forced_anchor_is_taken_from_another_object() -> None:
    # The second object overlaps its best anchor by 0.2 only; the first one, by 0.8, loses it.
    found = one_image(bar((0, 8), (0, 2)), ANCHORS[:1], clash="last")
    assert found.object_index.tolist() == [[1]] and found.matched.tolist() == [False, True]


def test_of_equal_anchors_and_of_equal_objects_the_first_counts() -> None:
    twice = torch.cat((ANCHORS, ANCHORS))
    found = one_image(bar((0, 4), (10, 19), (10, 19)), twice)
    assert found.object_index.tolist() == [
        [0, 1, BACKGROUND, BACKGROUND, BACKGROUND, 1, BACKGROUND, BACKGROUND]
    ]
    assert found.matched.tolist() == [True, True, False]


def test_images_do_not_touch_each_other_and_may_be_mixed_or_empty() -> None:
    boxes, images = bar((0, 9), (10, 19), (0, 8), (30, 40)), torch.tensor([2, 0, 0, 2])
    found = match(boxes, images, ANCHORS, batch_size=4)
    assert found.object_index.tolist() == [[2, 1, -1, -1], [-1] * 4, [0, -1, -1, 3], [-1] * 4]
    assert found.iou[1].tolist() == [0] * 4


def test_no_object_at_all() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found = match(torch.zeros(0, 4), none, ANCHORS, batch_size=2)
    assert found.object_index.tolist() == [[BACKGROUND] * 4] * 2 and found.matched.shape == (0,)
    targets = anchor_targets(found, torch.zeros(0, 4), none, ANCHORS)
    assert targets.positives.shape == (0,) and targets.codes.shape == (0, 4)
    assert targets.classes.tolist() == [[BACKGROUND] * 4] * 2


batches = st.lists(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40)), max_size=6
    ),
    min_size=1,
    max_size=3,
)


def tensors(batch: list[list[tuple[int, int, int, int]]]) -> tuple[Tensor, Tensor]:
    rows = [(x, y, x + w, y + h) for own in batch for x, y, w, h in own]
    images = [image for image, own in enumerate(batch) for _ in own]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.tensor(images, dtype=torch.int64)


def grid_anchors() -> Tensor:
    sizes = pyramid_sizes(64, 64, first=3, last=5)
    return tile(octave_anchors(64, 64, sizes, scales=[4] * 3, octaves=3, ratios=EFFICIENTDET_RATIOS))


@settings(max_examples=60, deadline=None)
@given(batches)
def test_matches_are_those_of_torchvision_image_by_image(batch: list) -> None:
    """SSD: the last object wins. Every object overlaps an anchor here, so none is forced at IoU 0."""
    boxes, images = tensors(batch)
    anchors = grid_anchors()
    found = match(boxes, images, anchors, batch_size=len(batch), clash="last")
    for image in range(len(batch)):
        rows = torch.nonzero(images == image).flatten()
        if len(rows):
            theirs = SSDMatcher(0.5)(box_iou(boxes[rows], anchors))
            expected = torch.where(theirs >= 0, rows[theirs.clamp(min=0)], BACKGROUND)
            assert torch.equal(found.object_index[image], expected)
        else:
            assert (found.object_index[image] == BACKGROUND).all()


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from(["first", "last"]), st.sampled_from([(0.5, 0.5), (0.6, 0.3)]))
def test_what_holds_of_every_match(batch: list, clash: str, thresholds: tuple[float, float]) -> None:
    boxes, images = tensors(batch)
    anchors = grid_anchors()
    positive, negative = thresholds
    found = match(
        boxes,
        images,
        anchors,
        batch_size=len(batch),
        positive_iou=positive,
        negative_iou=negative,
        clash=clash,
    )
    overlaps = box_iou(boxes, anchors)
    for image, own in enumerate(found.object_index):
        rows = torch.nonzero(images == image).flatten()
        best = overlaps[rows].argmax(1)
        for anchor in torch.nonzero(own >= 0).flatten().tolist():
            owner = int(own[anchor])
            assert images[owner] == image
            assert found.iou[image, anchor].item() == pytest.approx(overlaps[owner, anchor].item())
            forced = rows[best == anchor].tolist()
            if forced:
                assert owner == (forced[0] if clash == "first" else forced[-1])
            else:
                assert overlaps[owner, anchor] >= positive and owner == rows[overlaps[rows, anchor].argmax()]
        free = own < 0
        highest = overlaps[rows].amax(0) if len(rows) else torch.zeros(len(anchors))
        assert ((highest[free] >= negative) == (own[free] == IGNORED)).all()
        assert (highest[free] < positive).all()
    answered = set(found.object_index[found.object_index >= 0].tolist())
    assert found.matched.tolist() == [row in answered for row in range(len(boxes))]


def test_many_objects_are_matched_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(40, 2, generator=generator) * 50
    boxes = torch.cat((low, low + 1 + torch.rand(40, 2, generator=generator) * 40), dim=1)
    images = torch.randint(0, 2, (40,), generator=generator)
    whole = match(boxes, images, grid_anchors(), batch_size=2)
    for at_once in (1, 100, 1000):
        monkeypatch.setattr(matching, "IN_CACHE", at_once)
        pieces = match(boxes, images, grid_anchors(), batch_size=2)
        assert all(torch.equal(a, b) for a, b in zip(whole, pieces))


def test_targets_are_classes_and_codes_of_the_objects() -> None:
    boxes, classes = bar((10, 19), (0, 8), (30, 40)), torch.tensor([4, 2, 7])
    found = match(boxes, torch.tensor([1, 0, 1]), ANCHORS, batch_size=2, positive_iou=0.85, negative_iou=0.75)
    targets = anchor_targets(found, boxes, classes, ANCHORS, weights=SSD_WEIGHTS)
    assert targets.classes.tolist() == [[2, -1, -1, -1], [-1, 4, -1, 7]]
    assert targets.positives.tolist() == [0, 5, 7]
    expected = encode_boxes(boxes[[1, 0, 2]], ANCHORS[[0, 1, 3]], weights=SSD_WEIGHTS)
    assert torch.equal(targets.codes, expected)
    ignored = Matches(torch.tensor([[IGNORED, 1]]), torch.zeros(1, 2), torch.tensor([False, True, False]))
    assert anchor_targets(ignored, boxes, classes, ANCHORS[:2]).classes.tolist() == [[IGNORED, 2]]


def test_targets_are_those_of_effdet() -> None:
    """What effdet 0.4.1 (AnchorLabeler) gives for these boxes, its numbers in the order x y w h."""
    boxes = torch.tensor([[10.0, 12, 34, 40], [30, 5, 60, 25], [0, 0, 63, 60], [50, 50, 58, 61]])
    images, classes = torch.tensor([0, 0, 2, 2]), torch.tensor([2, 0, 1, 1])
    anchors = grid_anchors()
    targets = anchor_targets(match(boxes, images, anchors, batch_size=3), boxes, classes, anchors)
    positive = targets.classes >= 0
    assert positive.sum(1).tolist() == [10, 0, 43]
    assert torch.nonzero(positive[0]).flatten().tolist() == [117, 118, 127, 162, 164, 189, 234, 236, 243, 308]
    assert targets.classes[0][positive[0]].tolist() == [0, 0, 0, 2, 2, 0, 2, 2, 2, 2]
    assert targets.codes[0].tolist() == pytest.approx([0.03125, 0.09375, -0.06453852, -0.47000363], abs=1e-6)
    expected = [-0.52411739, -0.69765811, 2.04729327, -1.76669107]
    assert targets.codes.double().sum(0).tolist() == pytest.approx(expected, abs=1e-5)
