"""The rasteriser against printed values and against a cell-by-cell, box-by-box version of the same rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from detectkit.ops.decode import decode
from detectkit.ops.rasterize import ClassGeometry, Targets, rasterize, touched


def geometry(
    radius: float, *, min_radius: float = 1.0, center: tuple[float, float] = (0.5, 0.5), classes: int = 1
) -> ClassGeometry:
    values = (*center, radius, radius, min_radius)
    return ClassGeometry(*(torch.full((classes,), value, dtype=torch.float64) for value in values))


def paint(
    boxes: list[tuple[float, float, float, float]],
    shape: ClassGeometry,
    *,
    deadzone_radius: float,
    width: int = 8,
    height: int = 6,
    stride: int = 16,
    where: list[tuple[int, int]] | None = None,
    batch_size: int = 1,
) -> Targets:
    places = torch.tensor(where if where is not None else [(0, 0)] * len(boxes), dtype=torch.int64).reshape(
        -1, 2
    )
    return rasterize(
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        places[:, 0],
        places[:, 1],
        batch_size=batch_size,
        geometry=shape,
        deadzone_radius=deadzone_radius,
        stride=stride,
        grid_width=width,
        grid_height=height,
        scale=35.0,
        offset=0.5,
    )


def test_one_box() -> None:
    targets = paint([(10, 8, 90, 72)], geometry(0.4), deadzone_radius=0.67)
    side = [0, 0, 0.3125, 0.4375, 0, 0, 0, 0]
    zero = [0.0] * 8
    rows = [zero, side, [0, 0, 1, 1, 0.25, 0, 0, 0], side, zero, zero]
    assert targets.coverage[0, 0].tolist() == rows
    assert torch.equal(targets.coverage_norm[0, 0], targets.coverage[0, 0] / 5)  # 4 * 1.25 * 1.0 cells
    assert targets.bbox[0, 0, :, 2, 2].tolist() == pytest.approx([0.6429, 0.7, 1.6429, 1.1286], abs=5e-5)
    assert targets.bbox[0, 0, :, 2, 3].tolist() == pytest.approx([1.1, 0.7, 1.1857, 1.1286], abs=5e-5)
    assert torch.equal((targets.bbox != 0).any(2), targets.coverage > 0)


def test_deadzone_of_the_lower_box_erases_part_of_the_upper_one() -> None:
    expected = [
        [0.0] * 8,
        [0, 0, 0.375, 0.375, 0, 0, 0, 0],
        [0, 0.375, 1, 1, 0.375, 0, 0, 0],
        [0, 0.375, 1, 1, 0.375, 1, 0.75, 0],
        [0, 0, 0.375, 0.375, 0, 0.75, 0.4375, 0],
        [0.0] * 8,
    ]
    boxes = [(0.0, 0.0, 96.0, 96.0), (48.0, 32.0, 128.0, 90.0)]
    for order in (boxes, boxes[::-1]):
        assert paint(order, geometry(0.5), deadzone_radius=1.0).coverage[0, 0].tolist() == expected


def test_ellipse_around_a_corner_takes_three_samples_of_four_cells() -> None:
    targets = paint([(16, 16, 48, 48)], geometry(0.5, min_radius=0.1), deadzone_radius=1.0, width=4, height=4)
    assert targets.coverage[0, 0, 1:3, 1:3].tolist() == [[0.1875, 0.1875], [0.1875, 0.1875]]
    assert targets.coverage.sum() == 0.75
    assert torch.equal(targets.coverage_norm, targets.coverage)  # an area below one cell counts as one


def test_images_and_classes_do_not_touch_each_other() -> None:
    boxes = [(0.0, 0.0, 96.0, 96.0), (48.0, 32.0, 128.0, 90.0), (48.0, 32.0, 128.0, 90.0)]
    where = [(0, 1), (1, 1), (0, 0)]
    together = paint(boxes, geometry(0.5, classes=2), deadzone_radius=1.0, where=where, batch_size=2)
    for box, (image, kind) in zip(boxes, where):
        alone = paint([box], geometry(0.5), deadzone_radius=1.0)
        for whole, single in zip(together[:3], alone[:3]):
            assert torch.equal(whole[image, kind], single[0, 0])
    assert together.coverage[1, 0].sum() == 0


def test_no_boxes() -> None:
    targets = paint([], geometry(0.5, classes=3), deadzone_radius=1.0, batch_size=2)
    assert [tuple(t.shape) for t in targets[:3]] == [(2, 3, 6, 8), (2, 3, 6, 8), (2, 3, 4, 6, 8)]
    assert all(t.abs().sum() == 0 for t in targets[:3])


def test_boxes_outside_the_grid_paint_nothing_and_empty_boxes_have_the_minimum_radius() -> None:
    outside = [(-99.0, -99.0, -60.0, -60.0), (300.0, 300.0, 340.0, 340.0)]
    assert paint(outside, geometry(0.5), deadzone_radius=1.0).coverage.sum() == 0
    point = paint([(32.0, 32.0, 32.0, 32.0)], geometry(0.5), deadzone_radius=0.0)
    assert point.coverage[0, 0, 1:3, 1:3].tolist() == [[13 / 16] * 2] * 2  # quarter of a unit circle


def test_off_centre_ellipse_reaches_to_the_nearer_side() -> None:
    targets = paint([(0, 0, 128, 64)], geometry(1.0, center=(0.75, 0.5)), deadzone_radius=0.0, height=4)
    covered = targets.coverage[0, 0].amax(0)
    assert (covered > 0).tolist() == [False] * 4 + [True] * 4  # cells 6 - 2 .. 6 + 2


def test_every_cell_of_a_box_decodes_to_the_box() -> None:
    box = (10.0, 8.0, 90.0, 72.0)
    targets = paint([box], geometry(0.4), deadzone_radius=0.67)
    decoded = decode(targets.bbox, stride=16, scale=35.0, offset=0.5, width=128, height=96)
    cells = decoded[targets.coverage > 0]
    assert torch.allclose(cells, torch.tensor(box, dtype=torch.float64).expand_as(cells))


def literal(
    boxes: list[tuple[float, float, float, float]],
    shape: ClassGeometry,
    *,
    deadzone_radius: float,
    width: int,
    height: int,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The rule for one image and class in plain loops."""
    coverage, norm = torch.zeros(height, width).double(), torch.zeros(height, width).double()
    bbox = torch.zeros(4, height, width).double()
    center_x, center_y, radius_x, radius_y, least = (float(values[0]) for values in shape)
    for box in sorted(boxes, key=lambda corners: corners[3]):
        x1, y1, x2, y2 = (value / stride for value in box)
        cx, cy = x1 + center_x * (x2 - x1), y1 + center_y * (y2 - y1)
        sx = cx - x1 if center_x < 0.5 else x2 - cx
        sy = cy - y1 if center_y < 0.5 else y2 - cy
        a, b = max(radius_x * sx, 0.1), max(radius_y * sy, 0.1)
        if a < least:
            a, b = least, b / a * least
        if b < least:
            a, b = a / b * least, least
        dx = max((1 - deadzone_radius) * a + deadzone_radius * sx, a)
        dy = max((1 - deadzone_radius) * b + deadzone_radius * sy, b)
        for row in range(height):
            for column in range(width):
                q = c = 0.0
                for n in range(4):
                    for m in range(4):
                        x, y = column - cx + (m + 0.5) / 4, row - cy + (n + 0.5) / 4
                        q += ((x / dx) ** 2 + (y / dy) ** 2 < 1) / 16
                        c += ((x / a) ** 2 + (y / b) ** 2 < 1) / 16
                if q > 0 and q >= coverage[row, column]:
                    coverage[row, column] = norm[row, column] = 0
                    bbox[:, row, column] = 0
                if c > 0 and c >= coverage[row, column]:
                    coverage[row, column], norm[row, column] = c, c / max(4 * a * b, 1)
                    ax, ay = column * stride + 0.5, row * stride + 0.5
                    distances = (ax - box[0], ay - box[1], box[2] - ax, box[3] - ay)
                    bbox[:, row, column] = torch.tensor(distances, dtype=torch.float64) / 35
    return coverage, norm, bbox


@st.composite
def scenes(draw: st.DrawFn) -> list[tuple[float, float, float, float]]:
    coordinate = st.integers(-40, 200).map(float) | st.floats(-40, 200, width=32)
    size = st.integers(0, 120).map(float) | st.floats(0, 120, width=32)
    corners = draw(st.lists(st.tuples(coordinate, coordinate, size, size), max_size=5))
    return [(x, y, x + w, y + h) for x, y, w, h in corners]


@settings(max_examples=40)
@given(
    scenes(),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.2, 0.5, 1.0, 1.7]),
    st.tuples(*[st.sampled_from([0.2, 0.5, 0.9])] * 2),
)
def test_like_the_literal_loops(
    boxes: list[tuple[float, float, float, float]],
    radius: float,
    deadzone: float,
    least: float,
    center: tuple[float, float],
) -> None:
    shape = geometry(radius, min_radius=least, center=center)
    targets = paint(boxes, shape, deadzone_radius=deadzone, width=10, height=9)
    expected = literal(boxes, shape, deadzone_radius=deadzone, width=10, height=9, stride=16)
    for got, wanted in zip(targets, expected):
        assert torch.allclose(got[0, 0], wanted, rtol=1e-12, atol=1e-12)


def reached(boxes: list[tuple[float, ...]], chosen: list[list[bool]] | None = None, **options: Any) -> Tensor:
    """`touched` for boxes of one image on a grid of 5 x 4 cells."""
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return touched(
        corners,
        options.get("images", torch.zeros(len(boxes), dtype=torch.int64)),
        torch.ones(len(boxes), 1, dtype=torch.bool) if chosen is None else torch.tensor(chosen),
        batch_size=options.get("batch_size", 1),
        stride=16,
        grid_width=5,
        grid_height=4,
    )


def test_cells_count_if_one_of_their_25_samples_is_in_a_box() -> None:
    # Samples lie 1.6 pixels into a cell, and every 3.2 pixels from there. From 14.5: after the last sample of the first
    # column, at 14.4; to 33.7: after the first sample of the third, at 33.6. To 16: the second row stays out.
    (plane,) = reached([(14.5, 0.0, 33.7, 16.0)])[0]
    assert plane.int().tolist() == [[0, 1, 1, 0, 0], [0] * 5, [0] * 5, [0] * 5]
    # A sample on the left side is in, one on the right side is not.
    assert reached([(14.4, 0.0, 33.6, 3.0)])[0, 0, 0].tolist() == [True, True, False, False, False]
    assert not reached([(2.0, 2.0, 4.0, 60.0)]).any()  # between two columns of samples
    assert not reached([(20.0, 20.0, 20.0, 60.0), (9.0, 9.0, 3.0, 3.0), (-9.0, -9.0, -1.0, 70.0)]).any()
    assert reached([(-99.0, -99.0, 999.0, 999.0)]).all()
    assert not reached([]).any()


def test_choices_and_images_stay_apart() -> None:
    boxes = [(0.0, 0.0, 16.0, 16.0), (0.0, 0.0, 16.0, 16.0), (64.0, 48.0, 80.0, 64.0)]
    chosen = [[True, False, False], [True, True, False], [False, True, False]]
    found = reached(boxes, chosen, images=torch.tensor([0, 0, 1]), batch_size=2)
    assert found.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 3, 4]]


@st.composite
def masked_scenes(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes [N, 4] in tenths of pixels, of which some cross their sides, images [N] of 2, and 3 choices [N, 3]."""
    count = draw(st.integers(0, 6))
    corner = st.integers(-200, 1000)
    boxes = [
        (x, y, x + w, y + h)
        for x, y, w, h in draw(
            st.lists(st.tuples(corner, corner, *[st.integers(-30, 600)] * 2), min_size=count, max_size=count)
        )
    ]
    images = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    chosen = draw(st.lists(st.tuples(*[st.booleans()] * 3), min_size=count, max_size=count))
    return (
        np.array(boxes, dtype=np.int64).reshape(-1, 4),
        np.array(images, dtype=np.int64),
        np.array(chosen, dtype=bool).reshape(-1, 3),
    )


@settings(max_examples=60)
@given(masked_scenes(), st.sampled_from([8, 16, 32]))
def test_touched_cells_like_25_samples_one_by_one(
    scene: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], stride: int
) -> None:
    boxes, images, chosen = scene
    width, height = 7, 5
    expected = np.zeros((2, 3, height, width), dtype=bool)
    # In hundredths of a pixel: sample n of a cell is at (n + 0.5) / 5 of it, a whole number of them for these strides.
    samples = np.array([stride * 100 * (2 * n + 1) // 10 for n in range(5)])
    for box, image, choice in zip(boxes * 10, images, chosen):
        for row in range(height):
            for column in range(width):
                x, y = column * stride * 100 + samples, row * stride * 100 + samples
                inside_x = (box[0] <= x) & (x < box[2])
                inside_y = (box[1] <= y) & (y < box[3])
                if (inside_y[:, None] & inside_x).any():
                    expected[image, choice, row, column] = True
    found = touched(
        torch.from_numpy(boxes) / 10.0,
        torch.from_numpy(images),
        torch.from_numpy(chosen),
        batch_size=2,
        stride=stride,
        grid_width=width,
        grid_height=height,
    )
    assert found.shape == expected.shape
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_on_the_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 300
    boxes = torch.cat((corner, corner + 1 + torch.rand(200, 2, generator=generator) * 100), dim=1)
    image, kind = torch.arange(200) % 4, torch.arange(200) // 4 % 3
    options = dict(
        batch_size=4, deadzone_radius=0.7, stride=16, grid_width=20, grid_height=20, scale=35, offset=0.5
    )
    shape = geometry(0.5, classes=3)
    on_cpu = rasterize(boxes, image, kind, geometry=shape, **options)  # type: ignore[arg-type]
    on_gpu = rasterize(boxes.cuda(), image.cuda(), kind.cuda(), geometry=shape, **options)  # type: ignore[arg-type]
    for cpu, gpu in zip(on_cpu[:3], on_gpu[:3]):
        assert (
            gpu.is_cuda and (gpu.cpu() - cpu).abs().gt(1e-5).float().mean() < 1e-3
        )  # a sample on the rim may differ
    assert math.isfinite(float(on_gpu.bbox.sum()))
    chosen = torch.rand(200, 6, generator=generator) < 0.5
    grid = dict(batch_size=4, stride=16, grid_width=20, grid_height=20)
    region = touched(boxes.cuda(), image.cuda(), chosen.cuda(), **grid)
    assert region.is_cuda and torch.equal(region.cpu(), touched(boxes, image, chosen, **grid))
