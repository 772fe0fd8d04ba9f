from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detectkit.ops.anchors import EFFICIENTDET_RATIOS, octave_anchors, pyramid_sizes, tile
from detectkit.ops.coder import SSD_WEIGHTS
from detectkit.ops.losses import (
    bbox_cost,
    correlation_cost,
    coverage_cost,
    focal_cost,
    giou_cost,
    huber_cost,
    mined_cross_entropy_cost,
    regularization,
    smooth_l1_cost,
)
from detectkit.ops.matching import BACKGROUND, IGNORED, Matches, anchor_targets, match

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


@pytest.mark.parametrize(
    ("logit", "yes", "smoothing", "expected"),
    [
        (0, True, 0, 0.0612661),
        (0, False, 0, 0.183798),
        (2, True, 0, 0.00130595),
        (2, False, 0, 1.318645),
        (-4.59512, False, 0, 7.5378e-6),
        (-4.59512, True, 0, 1.134066),
        (2, True, 0.1, 0.00233485),
        (2, False, 0.1, 1.256647),
    ],
)
def test_focal_cost_of_one_answer(logit: float, yes: bool, smoothing: float, expected: float) -> None:
    logits, classes = torch.full((1, 1, 1), float(logit)), torch.tensor([[0 if yes else BACKGROUND]])
    cost = focal_cost(logits, classes, label_smoothing=smoothing)
    assert cost.item() * (2 if yes else 1) == pytest.approx(expected, rel=2e-5)  # over 1 + the positives


def test_focal_cost_of_the_first_step_without_objects() -> None:
    logits = torch.full((1, 49104, 90), -math.log(99))
    cost = focal_cost(logits, torch.full((1, 49104), BACKGROUND))
    assert cost.shape == (90,) and cost.sum().item() == pytest.approx(33.3, abs=0.02)


def some_anchors() -> tuple[Tensor, Tensor]:
    """Logits [3, 50, 4] and classes [3, 50]: about half background, a quarter ignored; the second image is background."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64) * 3
    classes = torch.randint(-2, 4, (3, 50), generator=generator)
    classes[torch.rand(3, 50, generator=generator) < 0.4] = BACKGROUND
    classes[1] = BACKGROUND
    return logits.requires_grad_(), classes


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.25, 2.0), (0.6, 0.0), (0.5, 0.5)])
def test_focal_cost_and_its_gradient_are_those_of_torchvision(alpha: float, gamma: float) -> None:
    logits, classes = some_anchors()
    cost = focal_cost(logits, classes, alpha=alpha, gamma=gamma)
    answers = (classes[..., None] == torch.arange(4)).double()
    each = sigmoid_focal_loss(logits, answers, alpha=alpha, gamma=gamma)
    counted = (classes != IGNORED)[..., None]
    expected = (each * counted).sum((0, 1)) / ((classes >= 0).sum() + 1)
    assert torch.allclose(cost, expected, rtol=1e-9)
    (gradient,) = torch.autograd.grad(cost.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    assert torch.allclose(gradient, theirs, rtol=1e-7, atol=1e-12)
    assert (gradient[classes == IGNORED] == 0).all() and (gradient[classes == BACKGROUND] != 0).any()


def test_focal_cost_weighs_images() -> None:
    logits, classes = some_anchors()
    whole = focal_cost(logits, classes)
    alone = focal_cost(logits, classes, image_weights=torch.tensor([1.0, 0, 0]))
    rest = focal_cost(logits, classes, image_weights=torch.tensor([0, 0.5, 0.5]))
    assert torch.allclose(alone + 2 * rest, whole)
    positives = (classes >= 0).sum()
    own = focal_cost(logits[:1], classes[:1]) * ((classes[:1] >= 0).sum() + 1) / (positives + 1)
    assert torch.allclose(alone, own)


def test_focal_cost_is_finite_where_a_sigmoid_is_0_or_1() -> None:
    logits = torch.tensor([[[500.0, -500, 500]], [[-500, 500, -500]]], requires_grad=True)
    for gamma in (0.5, 1.5):
        cost = focal_cost(logits, torch.tensor([[0], [0]]), gamma=gamma).sum()
        (gradient,) = torch.autograd.grad(cost, logits)
        assert cost.isfinite() and gradient.isfinite().all()
        # Right: 500 for the first class, -500 for the others; 500 more is wrong by 500.
        assert cost.item() == pytest.approx((0.75 * 500 + 0.25 * 500 + 0.75 * 500) / 3)


def test_costs_of_half_precision_are_computed_in_32_bits() -> None:
    logits, classes = some_anchors()
    half = focal_cost(logits.half(), classes)
    assert half.dtype == torch.float32 and torch.allclose(
        half, focal_cost(logits, classes).float(), rtol=1e-2
    )
    assert mined_cross_entropy_cost(logits.half(), classes.clamp(max=2)).dtype == torch.float32


@pytest.mark.parametrize(("error", "expected"), [(0.05, 0.00125), (0.1, 0.005), (0.2, 0.015), (1, 0.095)])
def test_huber_cost_of_one_number(error: float, expected: float) -> None:
    predicted = torch.tensor([[0, 0, -error, 0]], dtype=torch.float64)
    assert huber_cost(predicted, torch.zeros(1, 4)).item() == pytest.approx(expected / 8)  # 4 (1 + 1)


def test_costs_of_boxes_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted, target = (torch.randn(6, 4, generator=generator) for _ in range(2))
    expected = functional.huber_loss(predicted, target, reduction="sum", delta=0.3) / 28
    assert huber_cost(predicted, target, delta=0.3).item() == pytest.approx(expected.item())
    expected = functional.smooth_l1_loss(predicted, target, reduction="sum", beta=0.5) / 6
    assert smooth_l1_cost(predicted, target, beta=0.5).item() == pytest.approx(expected.item())
    weights = torch.tensor([0.0, 0, 0, 0, 2, 0])
    own = functional.smooth_l1_loss(predicted[4], target[4], reduction="sum")
    assert smooth_l1_cost(predicted, target, weights=weights).item() == pytest.approx(own.item() * 2 / 6)
    own = functional.huber_loss(predicted[4], target[4], reduction="sum", delta=0.1)
    assert huber_cost(predicted, target, weights=weights).item() == pytest.approx(own.item() * 2 / 28)


def test_costs_of_boxes_without_objects_are_0() -> None:
    none = torch.zeros(0, 4, requires_grad=True)
    for cost in (huber_cost(none, torch.zeros(0, 4)), smooth_l1_cost(none, torch.zeros(0, 4))):
        cost.backward()
        assert cost.item() == 0


def with_costs(costs: list[float]) -> Tensor:
    """Logits [A, 3] of so much cross entropy to the background, the other two alike."""
    no = -torch.tensor(costs, dtype=torch.float64)  # the logarithm of the probability of the background
    return torch.stack((no, *[((1 - no.exp()) / 2).log()] * 2), dim=1)


def test_mined_cross_entropy_takes_the_worst_of_the_background() -> None:
    # One object; of equal costs the first are taken: 0.9 + 0.5 + 0.5.
    logits = with_costs([0.3, 0.9, 0.5, 0.5, 0.5, 0.1])[None].requires_grad_()
    classes = torch.tensor([[1] + [BACKGROUND] * 5])
    own = functional.cross_entropy(logits[0, :1], torch.tensor([2])).item()
    cost = mined_cross_entropy_cost(logits, classes)
    assert cost.item() == pytest.approx(own + 1.9)
    (gradient,) = torch.autograd.grad(cost, logits)
    assert (gradient[0].abs().sum(1) > 0).tolist() == [True, True, True, True, False, False]
    assert mined_cross_entropy_cost(logits, classes, negatives_per_positive=1).item() == pytest.approx(
        own + 0.9
    )
    # More than there are; and those that are ignored do not count.
    assert mined_cross_entropy_cost(logits, classes, negatives_per_positive=9).item() == pytest.approx(
        own + 2.5
    )
    classes[0, 1] = IGNORED
    assert mined_cross_entropy_cost(logits, classes).item() == pytest.approx(own + 1.5)


def test_mining_is_by_image_and_one_without_objects_has_the_least_negatives() -> None:
    logits = torch.stack((with_costs([0.3, 0.4, 0.2]), with_costs([0.9, 0.8, 0.7]))).requires_grad_()
    classes = torch.tensor([[0, -1, -1], [-1, -1, -1]])
    own = functional.cross_entropy(logits[0, :1], torch.tensor([1])).item()
    assert mined_cross_entropy_cost(logits, classes).item() == pytest.approx(own + 0.4 + 0.2)
    cost = mined_cross_entropy_cost(logits, classes, least_negatives=2)
    assert cost.item() == pytest.approx(own + 0.6 + 1.7)
    weights = torch.tensor([1.0, 0.5])
    cost = mined_cross_entropy_cost(logits, classes, least_negatives=2, image_weights=weights)
    assert cost.item() == pytest.approx(own + 0.6 + 0.85)
    nothing = mined_cross_entropy_cost(logits[1:], classes[1:])
    nothing.backward()
    assert nothing.item() == 0 and (logits.grad == 0).all()


def test_costs_of_ssd_are_those_of_torchvision() -> None:
    """Its own compute_loss, given matches; no two costs are equal, and there are background anchors enough."""
    generator = torch.Generator().manual_seed(4)
    anchors = torch.rand(60, 4, generator=generator) + torch.tensor([0, 0, 2, 2])
    index = torch.randint(-30, 5, (3, 60), generator=generator).clamp(min=-1)
    boxes = [torch.rand(5, 4, generator=generator) + torch.tensor([0, 0, 3, 1]) for _ in range(3)]
    labels = [torch.randint(1, 4, (5,), generator=generator) for _ in range(3)]
    logits, codes = (torch.randn(3, 60, 4, generator=generator) for _ in range(2))

    class Model(torch.nn.Module):
        box_coder, neg_to_pos_ratio = BoxCoder(SSD_WEIGHTS), 3.0
        compute_loss = SSD.compute_loss

    theirs = Model().compute_loss(
        [{"boxes": own, "labels": names} for own, names in zip(boxes, labels)],
        {"bbox_regression": codes, "cls_logits": logits},
        [anchors] * 3,
        list(index),
    )
    flat = torch.where(index >= 0, index + torch.arange(3)[:, None] * 5, BACKGROUND)
    matches = Matches(flat, torch.zeros(3, 60), torch.ones(15, dtype=torch.bool))
    targets = anchor_targets(matches, torch.cat(boxes), torch.cat(labels) - 1, anchors, weights=SSD_WEIGHTS)
    assert mined_cross_entropy_cost(logits, targets.classes).item() == pytest.approx(
        theirs["classification"].item(), rel=1e-5
    )
    cost = smooth_l1_cost(codes.flatten(0, 1)[targets.positives], targets.codes)
    assert cost.item() == pytest.approx(theirs["bbox_regression"].item(), rel=1e-5)


def test_costs_of_efficientdet_are_those_of_effdet() -> None:
    """What effdet 0.4.1 (loss_fn) gives for such maps; its targets are held to in test_matching."""
    logits = (torch.arange(3 * 756 * 3).double().sin() * 2 - 3).float().reshape(3, 756, 3)
    codes = (torch.arange(3 * 756 * 4).double().cos() * 0.5).float().reshape(3 * 756, 4)
    sizes = pyramid_sizes(64, 64, first=3, last=5)
    anchors = tile(octave_anchors(64, 64, sizes, scales=[4] * 3, octaves=3, ratios=EFFICIENTDET_RATIOS))
    boxes = torch.tensor([[10.0, 12, 34, 40], [30, 5, 60, 25], [0, 0, 63, 60], [50, 50, 58, 61]])
    matches = match(boxes, torch.tensor([0, 0, 2, 2]), anchors, batch_size=3)
    targets = anchor_targets(matches, boxes, torch.tensor([2, 0, 1, 1]), anchors)
    assert focal_cost(logits, targets.classes).sum().item() == pytest.approx(1.532436, abs=1e-5)
    smooth = focal_cost(logits, targets.classes, label_smoothing=0.1).sum()
    assert smooth.item() == pytest.approx(1.754941, abs=1e-5)
    assert huber_cost(codes[targets.positives], targets.codes).item() == pytest.approx(0.030326, abs=1e-6)
