from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detectkit.ops.losses import bbox_cost, correlation_cost, coverage_cost, giou_cost, regularization

WEIGHTS = torch.tensor([0.05, 0.25])


def test_coverage_cost_of_one_cell_of_each_kind() -> None:
    predicted = torch.full((1, 2, 1, 2), 0.5)
    target = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    cost = coverage_cost(predicted, target, foreground_weight=WEIGHTS)
    # One foreground (0.05) and one background cell (0.95); two background cells (0.75).
    assert cost.tolist() == pytest.approx([0.5 * math.log(2), 0.75 * math.log(2)], rel=1e-4)


def test_coverage_of_exactly_one_half_is_background() -> None:
    half, more = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.5625)
    weight = WEIGHTS[:1]
    assert coverage_cost(half, half, foreground_weight=weight).item() == pytest.approx(
        0.95 * math.log(2), rel=1e-4
    )
    assert coverage_cost(half, more, foreground_weight=weight).item() == pytest.approx(
        0.05 * math.log(2), rel=1e-4
    )


def test_certain_and_wrong_is_finite() -> None:
    target = torch.tensor([[[[1.0, 0.0]]]])
    cost = coverage_cost(1 - target, target, foreground_weight=torch.tensor([0.5]))
    assert cost.item() == pytest.approx(0.5 * -math.log(1e-5), rel=1e-3)
    assert coverage_cost(target, target, foreground_weight=WEIGHTS[:1]).abs().item() < 1e-4


def test_mask_multiplies_the_cost_of_images_classes_or_cells() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, target = (torch.rand(3, 2, 4, 5, generator=generator) for _ in range(2))
    plain = coverage_cost(predicted, target, foreground_weight=WEIGHTS)
    for shape in ((3, 1, 1, 1), (1, 2, 1, 1), (3, 2, 4, 5)):
        halved = coverage_cost(predicted, target, foreground_weight=WEIGHTS, mask=torch.full(shape, 0.5))
        assert torch.allclose(halved, plain / 2)
    first = torch.tensor([3.0, 0, 0]).reshape(3, 1, 1, 1)
    alone = coverage_cost(predicted[:1], target[:1], foreground_weight=WEIGHTS)
    assert torch.allclose(coverage_cost(predicted, target, foreground_weight=WEIGHTS, mask=first), alone)


def test_focal_gamma_multiplies_by_a_power_of_the_error() -> None:
    predicted, target = torch.tensor([[[[0.9, 0.2]]]]), torch.tensor([[[[0.5, 1.0]]]])
    weight = torch.tensor([0.25])
    cost = coverage_cost(predicted, target, foreground_weight=weight, focal_gamma=2)
    soft = 0.75 * 0.4**2 * -(0.5 * math.log(0.9) + 0.5 * math.log(0.1))
    missed = 0.25 * 0.8**2 * -math.log(0.2)
    assert cost.item() == pytest.approx((soft + missed) / 2, rel=1e-3)
    right = target.clone().requires_grad_()
    coverage_cost(right, target, foreground_weight=weight, focal_gamma=0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert right.grad is not None and right.grad.isfinite().all()


def test_bbox_cost_is_a_mean_over_all_cells_and_sides() -> None:
    predicted, target = torch.zeros(1, 2, 4, 2, 2), torch.zeros(1, 2, 4, 2, 2)
    predicted[0, 0, :, 0, 0] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    predicted[0, 1] = 100  # weighs nothing: no box owns these cells
    norm = torch.zeros(1, 2, 2, 2)
    norm[0, 0, 0, 0] = 0.25
    assert bbox_cost(predicted, target, coverage_norm=norm).tolist() == [10 * 0.25 / 16, 0]
    mask = torch.full((1, 1, 1, 1), 2.0)
    assert bbox_cost(predicted, target, coverage_norm=norm, mask=mask).tolist() == [20 * 0.25 / 16, 0]


def test_half_precision_predictions_are_costed_in_32_bits() -> None:
    half = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float16)
    assert coverage_cost(half, torch.zeros(1, 1, 2, 2), foreground_weight=WEIGHTS[:1]).dtype == torch.float32
    assert bbox_cost(half[:, :, None], half[:, :, None], coverage_norm=half).dtype == torch.float32


def test_costs_have_gradients() -> None:
    predicted = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    coverage_cost(predicted, torch.ones(1, 1, 1, 1), foreground_weight=torch.tensor([1.0])).sum().backward()
    assert predicted.grad is not None and predicted.grad.item() == pytest.approx(-2, rel=1e-3)  # -1/p


def test_regularization() -> None:
    parameters = [torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])]
    assert regularization(parameters, power=1, weight=0.5).item() == 3
    assert regularization(parameters, power=2, weight=0.5).item() == 7
    assert regularization([], power=2, weight=0.5).item() == 0
    with pytest.raises(ValueError, match="power"):
        regularization(parameters, power=3, weight=0.5)


def distances(boxes: Tensor, anchor: tuple[float, float], scale: float) -> Tensor:
    """Boxes [N, 4] as the distances [1, 1, 4, 1, N] of N cells with the same anchor."""
    x, y = anchor
    left, top, right, bottom = boxes.unbind(1)
    return (torch.stack((x - left, y - top, right - x, bottom - y)) / scale)[None, None, :, None]


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Boxes that are the same, within each other, overlap, and lie apart."""
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(2, count, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 1 + 50 * torch.rand(2, count, 2, generator=generator)), dim=2)
    boxes[1, 0] = boxes[0, 0]
    boxes[1, 1] = boxes[0, 1] + torch.tensor([-9.0, -9.0, 9.0, 9.0])
    return boxes[0], boxes[1]


@pytest.mark.parametrize("scale", [1.0, 35.0, 1000.0])
@pytest.mark.parametrize("anchor", [(0.5, 0.5), (200.5, -40.0)])
def test_giou_cost_is_that_of_torchvision_at_any_anchor_and_scale(
    anchor: tuple[float, float], scale: float
) -> None:
    predicted, target = pairs(50)
    expected = generalized_box_iou_loss(predicted.double(), target.double(), reduction="mean", eps=0)
    cost = giou_cost(
        distances(predicted.double(), anchor, scale),
        distances(target.double(), anchor, scale),
        coverage_norm=torch.ones(1, 1, 1, 50),
    )
    assert cost.item() == pytest.approx(expected.item(), rel=1e-9)


def test_giou_cost_weighs_cells_and_is_a_mean_over_all() -> None:
    # 10 x 10 against 10 x 10 moved by 5: 50 / 150 - 0; against 10 x 10 moved by 20: 0 - 100 / 300.
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 4)
    predicted = target + torch.tensor([[5.0, 0.0] * 2, [20.0, 0.0] * 2, [0.0, 0.0] * 2, [99.0, 0.0] * 2])
    norm = torch.tensor([0.5, 0.25, 1.0, 0.0]).reshape(1, 1, 1, 4)
    maps = distances(predicted, (0.5, 0.5), 35), distances(target, (0.5, 0.5), 35)
    expected = (0.5 * 2 / 3 + 0.25 * 4 / 3) / 4
    assert giou_cost(*maps, coverage_norm=norm).item() == pytest.approx(expected, rel=1e-5)
    mask = torch.tensor([0.0, 2.0, 1.0, 1.0])
    assert giou_cost(*maps, coverage_norm=norm, mask=mask).item() == pytest.approx(2 / 12, rel=1e-5)
    half = maps[0].half(), maps[1]
    assert giou_cost(*half, coverage_norm=norm).dtype == torch.float32


@pytest.mark.parametrize(
    ("box", "cost"),
    [
        ((4.0, 4.0, 4.0, 4.0), 1.0),  # a point in the target: no overlap, nothing around it
        ((5.0, 0.0, 5.0, 20.0), 1.0),  # a line in it
        ((8.0, 2.0, 3.0, 18.0), 1 + 5 / 10),  # crossed by half the target's width
        ((8.0, 12.0, 3.0, 2.0), 1 + 5 / 10 + 10 / 20),  # both ways, which is no box either
        ((30.0, 0.0, 20.0, 20.0), 1 + 400 / 600 + 1),  # crossed and outside: 30 x 20 is around both
        ((0.0, 0.0, 10.0, 20.0), 0.0),
    ],
)
def test_giou_cost_of_degenerate_predictions(box: tuple[float, ...], cost: float) -> None:
    target = distances(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), (0.5, 0.5), 35)
    predicted = distances(torch.tensor([box]), (0.5, 0.5), 35).requires_grad_()
    value = giou_cost(predicted, target, coverage_norm=torch.ones(1, 1, 1, 1))
    value.sum().backward()
    assert value.item() == pytest.approx(cost, abs=1e-5)
    assert predicted.grad is not None and predicted.grad.isfinite().all()


def test_giou_cost_of_cells_without_a_box_is_nothing() -> None:
    for predicted in (
        torch.zeros(1, 1, 4, 2, 2),
        torch.full((1, 1, 4, 2, 2), -1e-30),
        torch.randn(1, 1, 4, 2, 2),
    ):
        predicted.requires_grad_()
        cost = giou_cost(predicted, torch.zeros(1, 1, 4, 2, 2), coverage_norm=torch.zeros(1, 1, 2, 2))
        cost.sum().backward()
        assert cost.item() == 0
        assert predicted.grad is not None and predicted.grad.abs().max() == 0


def test_giou_cost_alone_leads_from_anywhere_to_the_target() -> None:
    target = distances(torch.tensor([[10.0, 20.0, 60.0, 50.0]] * 64), (32.5, 32.5), 35)
    start = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    crossed = (start[:, :, :2] + start[:, :, 2:] < 0).any(2)
    predicted = start.clone().requires_grad_()
    for step in range(250):
        cost = giou_cost(predicted, target, coverage_norm=torch.ones(1, 1, 1, 64)).sum()
        (gradient,) = torch.autograd.grad(cost, predicted)
        predicted.data -= 0.1 * 0.98**step * gradient.sign()
    assert 30 < crossed.sum() < 64
    assert (predicted - target).abs().max() < 0.1


def channel(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2)


@pytest.mark.parametrize(
    "student, cost", [((2, 4, 6, 8), 0), ((4, 3, 2, 1), 2), ((1, 3, 2, 4), 0.2), ((7, 7, 7, 7), 0.5)]
)
def test_features_cost_what_is_missing_of_their_correlation(student: tuple[float, ...], cost: float) -> None:
    """1 - Pearson's correlation; a map without any is half of what a map of noise costs at worst."""
    assert float(correlation_cost(channel(*student), channel(1, 2, 3, 4))) == pytest.approx(cost, abs=1e-6)


def test_the_cost_of_features_is_that_of_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(2, 5, 3, 4, generator=generator).double() for _ in range(2))
    rows = [torch.stack((a.flatten(), b.flatten())) for a, b in zip(first.unbind(1), second.unbind(1))]
    wanted = 1 - torch.stack([torch.corrcoef(pair)[0, 1] for pair in rows]).mean()
    torch.testing.assert_close(correlation_cost(first, second), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(correlation_cost(5 * first - 3, second), wanted, rtol=1e-6, atol=0)
