"""The layers that torch does not have, by hand."""

import pytest
import torch

from detectkit.heads.layers import L2Normalisation, MaxPool2dSame, WeightedSum, same_border


def test_the_border_of_a_pool_is_below_and_on_the_right_and_never_wins() -> None:
    maps = -torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)  # a border of zeros would win
    found = MaxPool2dSame(3, 2, 1)(maps)
    assert found.tolist() == [[[[-1.0, -3.0], [-9.0, -11.0]]]]  # windows begin at the first row and column


@pytest.mark.parametrize(("height", "width", "kernel"), [(8, 12, 3), (6, 6, 2), (16, 8, 5)])
def test_a_pool_of_stride_2_is_tensorflows(height: int, width: int, kernel: int) -> None:
    maps = torch.randn(2, 3, height, width)
    found = MaxPool2dSame(kernel, 2, kernel // 2)(maps)
    more = kernel - 2  # rows and columns of border in all; the greater part is below
    padded = torch.nn.functional.pad(maps, (more // 2, more - more // 2) * 2, value=-torch.inf)
    assert torch.equal(found, torch.nn.functional.max_pool2d(padded, kernel, 2))
    assert found.shape == (2, 3, height // 2, width // 2)


def test_a_pool_of_an_odd_side_begins_in_the_border() -> None:
    # EfficientDet-Lite0 at 320 pixels: 5 cells at a stride of 64 are 3 at 128, and the middle one is not on the edge
    maps = torch.arange(25.0).reshape(1, 1, 5, 5)
    found = MaxPool2dSame(3, 2)(maps)
    assert found.tolist() == [[[[6.0, 8.0, 9.0], [16.0, 18.0, 19.0], [21.0, 23.0, 24.0]]]]


@pytest.mark.parametrize(
    ("sides", "kernel", "stride", "dilation", "border"),
    [
        ((512, 512), 3, 2, 1, (0, 0, 1, 1)),
        ((512, 19), 3, 2, 1, (0, 1, 1, 1)),
        ((512, 512), 5, 2, 1, (1, 1, 2, 2)),
        ((19, 19), 3, 1, 6, (6, 6, 6, 6)),
        ((7, 8), 1, 2, 1, (0, 0, 0, 0)),
        ((8, 9), (3, 1), (1, 2), 1, (1, 0, 1, 0)),
    ],
)
def test_same_border_by_hand(
    sides: tuple[int, int], kernel: int, stride: int, dilation: int, border: tuple[int, ...]
) -> None:
    assert same_border(sides, kernel, stride, dilation) == border


def test_shares_by_relu_and_by_softmax() -> None:
    fast, soft = WeightedSum(3), WeightedSum(3, softmax=True)
    for layer in (fast, soft):
        layer.weights.data = torch.tensor([1.0, 3.0, -2.0])
    assert fast.shares().tolist() == pytest.approx([0.25, 0.75, 0.0], abs=1e-4)
    assert soft.shares().tolist() == pytest.approx([0.1185, 0.8756, 0.0059], abs=1e-4)
    maps = [torch.full((1, 2, 1, 1), value) for value in (4.0, 8.0, 100.0)]
    assert fast(*maps).flatten().tolist() == pytest.approx([7.0, 7.0], abs=1e-3)
    with pytest.raises(ValueError, match="shorter"):
        fast(*maps[:2])
    fast(*maps).sum().backward()
    assert fast.weights.grad is not None and fast.weights.grad[2] == 0  # cut off, as a ReLU is


def test_the_vector_of_a_cell_gets_length_1_and_each_channel_its_scale() -> None:
    layer = L2Normalisation(2, scale=20)
    layer.scale.data[1] = 10
    maps = torch.tensor([[3.0, 4.0], [0.0, 0.0]])[:, :, None, None]
    assert layer(maps).flatten(1).tolist() == [pytest.approx([12.0, 8.0]), [0.0, 0.0]]
