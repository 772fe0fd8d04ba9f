from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detectkit.ops.anchors import (
    EFFICIENTDET_RATIOS,
    AnchorGrid,
    default_boxes,
    even_scales,
    octave_anchors,
    percent_scales,
    pyramid_sizes,
    tile,
)
from detectkit.ops.boxes import pairwise_iou

SSD300 = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
SSD300_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD300_STEPS = [8, 16, 32, 64, 100, 300]


def efficientdet(width: int, height: int, scale: float = 4, last: int = 7) -> tuple[AnchorGrid, ...]:
    sizes = pyramid_sizes(width, height, first=3, last=last)
    return octave_anchors(
        width, height, sizes, scales=[scale] * len(sizes), octaves=3, ratios=EFFICIENTDET_RATIOS
    )


def test_published_anchors_of_the_first_cell() -> None:
    anchors = tile(efficientdet(512, 512))
    published = [  # y1 x1 y2 x2
        (-12, -12, 20, 20),
        (-7.2, -18.4, 15.2, 26.4),
        (-18.4, -7.2, 26.4, 15.2),
        (-16.1587, -16.1587, 24.1587, 24.1587),
        (-10.1111, -24.2222, 18.1111, 32.2222),
        (-24.2222, -10.1111, 32.2222, 18.1111),
        (-21.3984, -21.3984, 29.3984, 29.3984),
        (-13.7789, -31.5578, 21.7789, 39.5578),
        (-31.5578, -13.7789, 39.5578, 21.7789),
        (-12, -4, 20, 28),
    ]
    assert torch.allclose(anchors[:10], torch.tensor(published)[:, [1, 0, 3, 2]], atol=1e-4)
    assert anchors.dtype == torch.float32


@pytest.mark.parametrize(
    ("side", "last", "count"),
    [
        (128, 7, 3069),
        (384, 7, 27621),
        (512, 7, 49104),
        (640, 7, 76725),
        (768, 7, 110484),
        (896, 7, 150381),
        (1024, 7, 196416),
        (1280, 7, 306900),
        (1536, 7, 441936),
        (1536, 8, 442260),
    ],
)
def test_published_counts(side: int, last: int, count: int) -> None:
    assert tile(efficientdet(side, side, last=last)).shape == (count, 4)


def test_levels_begin_where_published_ones_do() -> None:
    grids = efficientdet(512, 512)
    counts = torch.tensor([grid.rows * grid.columns * len(grid.shapes) for grid in grids])
    assert counts.cumsum(0).tolist() == [36864, 46080, 48384, 48960, 49104]
    # The first of each level is centred in a cell of stride 8, 16, 32, 64, 128.
    anchors = tile(grids)
    assert [anchors[i].tolist() for i in (36864, 48960)] == [[-24, -24, 40, 40], [-192, -192, 320, 320]]


def test_a_rectangular_input_of_no_whole_number_of_cells() -> None:
    assert pyramid_sizes(100, 60, first=3, last=5) == [(8, 13), (4, 7), (2, 4)]
    grids = octave_anchors(100, 60, [(2, 4)], scales=[2], octaves=1, ratios=[(1, 1)])
    # Cells are 25 by 30 pixels, and so are the anchors, twice.
    assert tile(grids).tolist() == [
        [12.5 + 25 * column - 25, 15 + 30 * row - 30, 12.5 + 25 * column + 25, 15 + 30 * row + 30]
        for row in range(2)
        for column in range(4)
    ]


def test_each_level_has_its_scale() -> None:
    grids = octave_anchors(64, 64, [(8, 8), (4, 4)], scales=[2, 3], octaves=2, ratios=[(1, 1), (2, 0.5)])
    assert grids[0].shapes[:2].tolist() == [[16, 16], [32, 8]]
    assert grids[0].shapes[2].tolist() == pytest.approx([16 * 2**0.5] * 2)
    assert grids[1].shapes[0].tolist() == [48, 48]
    with pytest.raises(ValueError):
        octave_anchors(64, 64, [(8, 8), (4, 4)], scales=[2], octaves=2, ratios=[(1, 1)])


@pytest.mark.parametrize(("scale", "overlap"), [(2, 0.391), (3, 0.532), (4, 0.620), (5, 0.681)])
def test_overlap_of_an_object_between_four_cells(scale: float, overlap: float) -> None:
    """An object of an anchor's own size whose centre is half a stride away from that of the cell, both ways."""
    anchor = tile(octave_anchors(8, 8, [(1, 1)], scales=[scale], octaves=1, ratios=[(1, 1)]))
    assert pairwise_iou(anchor + 4, anchor).item() == pytest.approx(overlap, abs=1e-3)


def torchvision_boxes(generator: DefaultBoxGenerator, width: int, height: int, sizes) -> torch.Tensor:
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    return generator(images, [torch.zeros(1, 1, *size) for size in sizes])[0]


def test_default_boxes_of_ssd300_are_those_of_torchvision() -> None:
    scales = percent_scales(6, first=0.07, smallest=0.15, largest=0.9)
    assert scales == pytest.approx([0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05])
    grids = default_boxes(300, 300, SSD300, scales=scales, ratios=SSD300_RATIOS, steps=SSD300_STEPS)
    generator = DefaultBoxGenerator(SSD300_RATIOS, scales=scales, steps=SSD300_STEPS)
    boxes = tile(grids)
    assert boxes.shape == (8732, 4)
    assert torch.allclose(boxes, torchvision_boxes(generator, 300, 300, SSD300), atol=1e-4)
    sizes = [(21, 21), (30.741, 30.741), (29.698, 14.849), (14.849, 29.698)]
    assert torch.allclose(grids[0].shapes.float(), torch.tensor(sizes), atol=1e-3)
    sizes = [(261, 261), (286.732, 286.732), (300, 184.555), (184.555, 300)]  # 369.11 is cut
    assert torch.allclose(grids[5].shapes.float(), torch.tensor(sizes), atol=1e-3)


def test_default_boxes_of_ssd300_for_pascal_voc() -> None:
    scales = percent_scales(6, first=0.1, smallest=0.2, largest=0.9)
    assert [round(scale * 300) for scale in scales] == [30, 60, 111, 162, 213, 264, 315]
    grids = default_boxes(300, 300, SSD300, scales=scales, ratios=SSD300_RATIOS, steps=SSD300_STEPS)
    assert [grid.rows * grid.columns * len(grid.shapes) for grid in grids] == [5776, 2166, 600, 150, 36, 4]
    sizes = [(30, 30), (42.426, 42.426), (42.426, 21.213), (21.213, 42.426)]
    assert torch.allclose(grids[0].shapes.float(), torch.tensor(sizes), atol=1e-3)
    assert tile(grids)[0].tolist() == pytest.approx([-11, -11, 19, 19], abs=1e-5)


def test_default_boxes_of_ssdlite_are_those_of_torchvision() -> None:
    sizes, ratios = [(n, n) for n in (20, 10, 5, 3, 2, 1)], [[2, 3]] * 6
    scales = even_scales(6, smallest=0.2, largest=0.95)
    assert scales == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0])
    grids = default_boxes(320, 320, sizes, scales=scales, ratios=ratios)
    boxes = tile(grids)
    assert boxes.shape == (3234, 4)
    generator = DefaultBoxGenerator(ratios, min_ratio=0.2, max_ratio=0.95)
    assert torch.allclose(boxes, torchvision_boxes(generator, 320, 320, sizes), atol=1e-4)
    expected = [(64, 64), (84.66, 84.66), (90.51, 45.25), (45.25, 90.51), (110.85, 36.95), (36.95, 110.85)]
    assert torch.allclose(grids[0].shapes.float(), torch.tensor(expected), atol=1e-2)


@pytest.mark.parametrize("clip", [True, False])
def test_default_boxes_of_a_rectangular_input_are_those_of_torchvision(clip: bool) -> None:
    sizes, ratios = [(6, 10), (3, 5)], [[2], [2, 3]]
    grids = default_boxes(160, 96, sizes, scales=[0.3, 0.8, 1.0], ratios=ratios, clip=clip)
    generator = DefaultBoxGenerator(ratios, scales=[0.3, 0.8, 1.0], clip=clip)
    assert torch.allclose(tile(grids), torchvision_boxes(generator, 160, 96, sizes), atol=1e-4)


def test_one_level_has_two_scales() -> None:
    assert even_scales(1, smallest=0.2, largest=0.9) == [0.2, 0.9]
    with pytest.raises(ValueError, match="1 levels need 2 scales, got 1"):
        default_boxes(8, 8, [(1, 1)], scales=[0.5], ratios=[[]])
