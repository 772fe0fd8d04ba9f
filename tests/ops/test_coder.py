from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from detectkit.ops.coder import SSD_WEIGHTS, UNWEIGHTED, decode_boxes, encode_boxes

ANCHOR, BOX = torch.tensor([[8.0, 0, 40, 32]]), torch.tensor([[20.0, 10, 60, 50]])

rows = st.tuples(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 400), st.floats(1, 400))
pairs = st.lists(st.tuples(rows, rows), min_size=1, max_size=8)


def boxes_of(items: list[tuple[float, float, float, float]]) -> Tensor:
    return torch.tensor([(x, y, x + w, y + h) for x, y, w, h in items], dtype=torch.float64)


def test_published_codes() -> None:
    # Centres (24, 16) and (40, 30), sides 32 and 40: y is 14 of 32 pixels, x is 16, ln 40/32.
    assert encode_boxes(BOX, ANCHOR)[0].tolist() == pytest.approx([0.5, 0.4375, 0.223144, 0.223144], abs=1e-6)


def test_published_codes_of_ssd() -> None:
    anchor, box = torch.tensor([[0.0, 8, 32, 40]]), torch.tensor([[10.0, 20, 50, 60]])
    codes = encode_boxes(box, anchor, weights=SSD_WEIGHTS)
    assert codes[0].tolist() == pytest.approx([4.375, 5, 1.115718, 1.115718], abs=1e-5)


@settings(max_examples=100)
@given(pairs, st.sampled_from([UNWEIGHTED, SSD_WEIGHTS]))
def test_what_is_encoded_is_decoded(items: list, weights: tuple[float, float, float, float]) -> None:
    boxes, anchors = (boxes_of([pair[i] for pair in items]) for i in (0, 1))
    codes = encode_boxes(boxes, anchors, weights=weights)
    decoded = decode_boxes(codes, anchors, weights=weights, largest_growth=None)
    assert torch.allclose(decoded, boxes, rtol=1e-9, atol=1e-9)


@settings(max_examples=50)
@given(pairs, st.sampled_from([UNWEIGHTED, SSD_WEIGHTS]))
def test_codes_and_boxes_are_those_of_torchvision(
    items: list, weights: tuple[float, float, float, float]
) -> None:
    boxes, anchors = (boxes_of([pair[i] for pair in items]) for i in (0, 1))
    coder = BoxCoder(weights)
    codes = encode_boxes(boxes, anchors, weights=weights)
    assert torch.allclose(codes, coder.encode_single(boxes, anchors), rtol=1e-9, atol=1e-9)
    wild = codes * 3
    assert torch.allclose(decode_boxes(wild, anchors, weights=weights), coder.decode_single(wild, anchors))


def test_growth_is_limited() -> None:
    code = torch.tensor([[0.0, 0, 99, 1]])
    assert decode_boxes(code, ANCHOR)[0, [0, 2]].tolist() == pytest.approx([24 - 1000, 24 + 1000])
    assert decode_boxes(code, ANCHOR, largest_growth=math.log(2))[0].tolist() == [-8, -16, 56, 48]
    assert decode_boxes(code, ANCHOR, largest_growth=None)[0, 2] == math.inf


def test_an_empty_box_has_a_finite_code() -> None:
    code = encode_boxes(torch.tensor([[24.0, 16, 24, 16]]), ANCHOR)
    assert code[0].tolist() == pytest.approx([0, 0, math.log(1e-7 / 32), math.log(1e-7 / 32)])


def test_images_share_anchors() -> None:
    codes = torch.zeros(2, 3, 4)
    codes[1, 2, 0] = 1
    anchors = ANCHOR.expand(3, 4)
    assert decode_boxes(codes, anchors)[:, 2].tolist() == [[8, 0, 40, 32], [40, 0, 72, 32]]
    assert decode_boxes(codes[:, :0], anchors[:0]).shape == (2, 0, 4)
