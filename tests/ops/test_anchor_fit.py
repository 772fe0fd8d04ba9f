from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectkit.ops import anchor_fit
from detectkit.ops.anchor_fit import (
    AnchorCoverage,
    anchor_coverage,
    best_iou,
    fit_default_boxes,
    fit_octaves,
    fit_ratios,
    improve_means,
    shape_iou,
    shape_means,
    worth,
)
from detectkit.ops.anchors import (
    EFFICIENTDET_RATIOS,
    AnchorGrid,
    default_boxes,
    octave_anchors,
    pyramid_sizes,
    tile,
)
from detectkit.ops.boxes import pairwise_iou

SHAPES = torch.tensor([(10, 10), (12, 8), (40, 40), (36, 44)], dtype=torch.float64)


def seed(number: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def objects(
    count: int, sides: tuple[float, float], ratios: tuple[float, ...] = (1,), size: int = 256
) -> Tensor:
    """Boxes anywhere in the image, with areas of squares of these sides, and with these ratios in turn."""
    place, side = torch.rand(count, 2, generator=seed()) * size, torch.rand(count, generator=seed(2))
    side = sides[0] + side * (sides[1] - sides[0])
    ratio = torch.tensor(ratios)[torch.arange(count) % len(ratios)].sqrt()
    half = torch.stack((side * ratio, side / ratio), dim=1) / 2
    return torch.cat((place - half, place + half), dim=1)


def efficientdet(size: int = 256, scale: float = 4, octaves: int = 3, ratios=EFFICIENTDET_RATIOS):
    sizes = pyramid_sizes(size, size, first=3, last=7)
    return octave_anchors(size, size, sizes, scales=[scale] * 5, octaves=octaves, ratios=ratios)


def test_iou_of_shapes_with_one_centre() -> None:
    overlaps = shape_iou(SHAPES, SHAPES[[0, 2]])
    assert overlaps[1].tolist() == pytest.approx([0.6897, 0.06], abs=1e-4)
    assert overlaps[3].tolist() == pytest.approx([0.0631, 0.8257], abs=1e-4)
    means = torch.tensor([(11, 9), (38, 42)], dtype=torch.float64)
    assert shape_iou(SHAPES, means).amax(1).mean().item() == pytest.approx(0.865379, abs=1e-6)


def test_k_means_ends_where_the_mean_is_worse() -> None:
    # The means (11, 9) and (38, 42) have a mean IoU of 0.865, those before 0.879.
    assert torch.equal(improve_means(SHAPES, SHAPES[[0, 2]]), SHAPES[[0, 2]])
    far = torch.tensor([(4, 4), (90, 90)], dtype=torch.float64)
    assert improve_means(SHAPES, far).tolist() == [[11, 9], [38, 42]]
    # A mean that no shape is nearest to stays where it is.
    far = torch.tensor([(4, 4), (90, 90), (1e4, 1)], dtype=torch.float64)
    assert improve_means(SHAPES, far).tolist() == [[11, 9], [38, 42], [1e4, 1]]


def test_means_are_of_the_best_start_and_the_same_again() -> None:
    found = shape_means(SHAPES, 2, seed())
    assert shape_iou(SHAPES, found).amax(1).mean().item() >= 0.8788
    assert torch.equal(found, shape_means(SHAPES, 2, seed()))
    assert len(shape_means(SHAPES, 9, seed())) == 4


def test_ratios_are_those_of_the_boxes() -> None:
    boxes = objects(300, (10, 200), (0.5, 1, 3))
    assert fit_ratios(boxes, 3, seed()) == pytest.approx([0.5, 1, 3], rel=1e-3)
    assert len(fit_ratios(objects(5, (10, 20)), 3, seed())) <= 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-20, 200), st.integers(-20, 120), st.integers(0, 150), st.integers(0, 150)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_best_iou_is_that_over_all_anchors(rows: list, ssd: bool) -> None:
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float32)
    sizes = pyramid_sizes(180, 100, first=4, last=6)
    grids = (
        default_boxes(
            180, 100, sizes, scales=[0.2, 0.4, 0.7, 1], ratios=[[2], [2, 3], [2]], steps=[16, 32, 64]
        )
        if ssd
        else octave_anchors(180, 100, sizes, scales=[3, 4, 2], octaves=2, ratios=EFFICIENTDET_RATIOS)
    )
    found, level = best_iou(boxes, grids)
    by_level = torch.stack([pairwise_iou(boxes, tile([grid])).amax(1) for grid in grids]).double()
    assert torch.allclose(found, by_level.amax(0), atol=1e-5)
    assert torch.allclose(by_level.gather(0, level[None])[0], found, atol=1e-5)


def test_best_iou_of_many_boxes_comes_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = objects(50, (5, 200))
    whole = best_iou(boxes, efficientdet())
    monkeypatch.setattr(anchor_fit, "AT_ONCE", 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, best_iou(boxes, efficientdet())))


@pytest.mark.parametrize(("scale", "smallest"), [(4, 22.6), (3, 17.0), (2, 11.3)])
def test_how_small_a_square_an_anchor_covers(scale: float, smallest: float) -> None:
    """A square within the smallest anchor has half of its area from sides of scale * 8 / sqrt(2) pixels on."""
    centre = 100.0  # of a cell of stride 8
    for side, covered in ((smallest - 0.3, False), (smallest + 0.3, True)):
        boxes = torch.tensor([[centre - side / 2, centre - side / 2, centre + side / 2, centre + side / 2]])
        iou, level = best_iou(boxes, efficientdet(scale=scale, octaves=1, ratios=[(1, 1)]))
        assert (iou.item() >= 0.5) is covered and level.item() == 0


def test_coverage_by_size() -> None:
    boxes = torch.tensor(
        [
            (90, 90, 110, 110),  # 20 pixels about the centre of a cell: 400 / 1024
            (96, 96, 104, 104),
            (84, 84, 116, 116),  # 32: an anchor; medium, as the bound is
            (40, 40, 140, 140),
            (0, 0, 256, 256),
        ],
        dtype=torch.float32,
    )
    found = anchor_coverage(boxes, efficientdet())
    assert found == AnchorCoverage(objects=(2, 1, 2), covered=(0, 1, 2)) and found.share == 0.6
    found = anchor_coverage(boxes, efficientdet(), threshold=0.39, sizes=[10])
    assert found == AnchorCoverage(objects=(1, 4), covered=(0, 4))
    assert anchor_coverage(boxes[:0], efficientdet()) == AnchorCoverage((0, 0, 0), (0, 0, 0))
    assert AnchorCoverage((0, 0, 0), (0, 0, 0)).share == 1


def test_worth_is_of_overlap_less_a_price() -> None:
    grid = AnchorGrid(1, 1, 8, 8, torch.tensor([[8.0, 8], [2, 2]], dtype=torch.float64))
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 2, 8]])  # IoUs 1 and 0.25
    assert worth(boxes, [grid]) == pytest.approx((1 + 0.5) / 2 + 0.2 * 1.25 / 2 - 0.02)


def test_small_objects_get_small_anchors() -> None:
    boxes = objects(400, (12, 40))
    before = anchor_coverage(boxes, efficientdet())
    fit = fit_octaves(boxes, 256, 256, pyramid_sizes(256, 256, first=3, last=7), generator=seed())
    after = anchor_coverage(boxes, efficientdet(256, *fit))
    assert before.share < 0.65 and after.share > 0.85 and fit.scale <= 2.5
    again = fit_octaves(boxes, 256, 256, pyramid_sizes(256, 256, first=3, last=7), generator=seed())
    assert fit == again


def test_lying_objects_get_lying_anchors() -> None:
    boxes = objects(400, (30, 200), (5, 6, 7))
    fit = fit_octaves(boxes, 256, 256, pyramid_sizes(256, 256, first=3, last=7), generator=seed())
    assert all(4.9 < x / y < 7.1 and x * y == pytest.approx(1, abs=2e-3) for x, y in fit.ratios)
    assert anchor_coverage(boxes, efficientdet(256, *fit)).share == 1
    assert anchor_coverage(boxes, efficientdet()).share < 0.5


def test_fitted_default_boxes_cover_what_published_ones_do_not() -> None:
    sizes = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    boxes = objects(400, (12, 60), (1, 3), size=300)
    published = default_boxes(
        300,
        300,
        sizes,
        scales=[0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    )
    fit = fit_default_boxes(boxes, 300, 300, sizes, generator=seed())
    fitted = default_boxes(300, 300, sizes, scales=fit.scales, ratios=fit.ratios)
    assert anchor_coverage(boxes, fitted).share > anchor_coverage(boxes, published).share + 0.05
    assert list(fit.scales) == sorted(fit.scales) and len(fit.scales) == 7 and fit.scales[-1] == 1
    assert fit.scales[0] >= 12 / 300 and len(set(fit.ratios)) == 1
    assert fit == fit_default_boxes(boxes, 300, 300, sizes, generator=seed())


def test_default_boxes_of_one_level() -> None:
    fit = fit_default_boxes(objects(50, (20, 60)), 256, 256, [(16, 16)], generator=seed())
    assert len(fit.scales) == 2 and len(fit.ratios) == 1 and 24 / 256 <= fit.scales[0] <= 128 / 256


def test_boxes_without_area_do_not_count() -> None:
    flat = torch.tensor([[5.0, 5, 5, 90], [5, 5, 5, 5]])
    boxes = objects(50, (20, 60))
    sizes = pyramid_sizes(256, 256, first=3, last=7)
    for fit in (fit_octaves, fit_default_boxes):
        fit(torch.cat((flat, boxes)), 256, 256, sizes, generator=seed())
        for none in (flat, flat[:0]):
            with pytest.raises(ValueError, match="no box has an area"):
                fit(none, 256, 256, sizes, generator=seed())
