from __future__ import annotations

import math

import pytest
import torch

from detectkit.ops.losses import bbox_cost, coverage_cost, regularization

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
