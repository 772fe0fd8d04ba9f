"""Boxes around segmentations, compared with those of pycocotools."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from detectkit.data.segmentation import box

NONE = "it has no bbox of x, y, width and height, and no segmentation"


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0.01, 1)
)
def test_masks(seed, height, width, share):
    """Packed and as lists of runs, of any shape: the box that pycocotools gives."""
    pixels = numpy.random.default_rng(seed).random((height, width)) < share
    pixels[height // 2, width // 3] = True
    packed = mask.encode(numpy.asfortranarray(pixels.astype(numpy.uint8)))
    x, y, w, h = mask.toBbox(packed).tolist()
    assert box({"size": [height, width], "counts": packed["counts"].decode()}) == (x, y, x + w, y + h)
    flat = pixels.ravel(order="F")
    changes = numpy.flatnonzero(numpy.diff(flat.astype(int))) + 1
    runs = numpy.diff([0, *changes, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    assert box({"size": [height, width], "counts": runs}) == (x, y, x + w, y + h)


@pytest.mark.parametrize(
    "segmentation, expected",
    [
        ([[10, 20, 30.5, 20, 30.5, 40, 10, 40]], (10, 20, 30.5, 40)),
        ([[10, 20, 30, 40, 12, 41], [2, 3, 4, 5, 6, 1]], (2, 1, 30, 41)),
        ([5, 6, 9, 6, 9, 8], (5, 6, 9, 8)),  # one polygon, not in a list of its own
        ([["5", "6.5", "9", "6", "9", "8"]], (5, 6, 9, 8)),
        ([[-5, 6, 9, 6, 9, 8]], (-5, 6, 9, 8)),
    ],
)
def test_polygons(segmentation, expected):
    assert box(segmentation) == expected


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        (None, NONE),
        ([], NONE),
        ("polygon", NONE),
        ([[]], "has no area"),
        ([[1, 2, 1, 9]], "has no area"),
        ([[1, 2, 3]], "is no list of polygons"),
        ([[1, 2, 3, 4], None], "is no list of polygons"),
        ([[1, 2, None, 4]], "None in its segmentation is not a sensible number"),
        ([[1, 2, float("nan"), 4]], "nan in its segmentation is not a sensible number"),
        ([[1, 2, "wide", 4]], "a value of its segmentation is 'wide', not a number"),
        ({}, "no usable size and counts"),
        ({"size": [4, 4]}, "no usable size and counts"),
        ({"size": [4, 0], "counts": [1, 2]}, "no usable size and counts"),
        ({"size": [4, 4], "counts": [1, -2]}, "no usable size and counts"),
        ({"size": [4, 4], "counts": [1.5, 2]}, "no usable size and counts"),
        ({"size": [4, 4], "counts": [16]}, "is empty or larger than its size"),
        ({"size": [4, 4], "counts": [1, 16]}, "is empty or larger than its size"),
        ({"size": [4, 4], "counts": "~~"}, "are not packed as COCO's"),
        ({"size": [4, 4], "counts": "o" * 99}, "are not packed as COCO's"),
    ],
)
def test_what_has_no_box(segmentation, reason):
    with pytest.raises(ValueError, match=reason):
        box(segmentation)


@given(text=st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_any_text_of_runs_gives_a_box_or_a_reason(text):
    try:
        x1, y1, x2, y2 = box({"size": [9, 7], "counts": text})
    except ValueError as error:
        assert "it has no bbox" in str(error)
    else:
        assert 0 <= x1 < x2 <= 7 and 0 <= y1 < y2 <= 9
