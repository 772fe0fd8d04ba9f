import pytest
import torch

from detectkit import spec
from detectkit.data.augment import prepare
from detectkit.data.records import training_frames
from detectkit.data.workers import loader
from detectkit.heads.grid import GridHead
from detectkit.heads.weighting import OBJECTIVES, ObjectiveWeights
from detectkit.model.detector import outline_of
from detectkit.ops.rasterize import Targets
from detectkit.spec import CostFunctionConfig

OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)


def named(costs):
    """Costs by objective, of a row for each class."""
    return dict(zip(OBJECTIVES, torch.tensor(costs).T, strict=True))


def config(*, minimum=0.01, **fields):
    """Two classes with class weights 1 and 3, objectives written in either order."""
    made = CostFunctionConfig(min_objective_weight=minimum, max_objective_weight=0.99, **fields)
    for name, weight, order in (("car", 1.0, ("cov", "bbox")), ("dog", 3.0, ("bbox", "cov"))):
        target = made.target_classes.add(name=name, class_weight=weight)
        values = {"cov": (1.0, 1.0), "bbox": (4.0, 10.0)}
        for objective in order:
            initial, aim = values[objective]
            target.objectives.add(name=objective, initial_weight=initial, weight_target=aim)
    return made


@pytest.mark.spec_field(
    "CostFunctionConfig.TargetClass.class_weight",
    "CostFunctionConfig.TargetClass.Objective.initial_weight",
    "CostFunctionConfig.TargetClass.Objective.name",
)
def test_initial_weights_are_shares_within_the_class():
    weights = ObjectiveWeights(config())
    assert weights.class_weights.tolist() == [0.25, 0.75]
    assert (
        weights.weights.tolist() == [pytest.approx([0.2, 0.8])] * 2
    )  # cov first, whatever the order in the spec


def test_total_cost():
    costs = named([[1.0, 2.0], [10.0, 20.0]])
    expected = 0.25 * (0.2 * 1 + 0.8 * 2) + 0.75 * (0.2 * 10 + 0.8 * 20)
    assert float(ObjectiveWeights(config()).total(costs)) == pytest.approx(expected)


@pytest.mark.spec_field(
    "CostFunctionConfig.enable_autoweighting", "CostFunctionConfig.TargetClass.Objective.weight_target"
)
def test_weights_after_an_epoch_are_the_shares_of_target_over_cost():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(named([[0.5, 1.0], [1.0, 1.0]]))
    weights.accumulate(named([[0.5, 1.0], [1.0, 1.0]]))
    weights.end_epoch()
    # car: u = 1/1 and 10/2; dog: u = 1/2 and 10/2
    assert weights.weights[0].tolist() == pytest.approx([1 / 6, 5 / 6])
    assert weights.weights[1].tolist() == pytest.approx([0.5 / 5.5, 5 / 5.5])
    assert not weights.sums.any()
    total = weights.total(named([[1.0, 1.0], [0.0, 2.0]]))
    assert float(total) == pytest.approx(0.25 * 1 + 0.75 * 2 * 5 / 5.5)  # the new weights, at once


@pytest.mark.spec_field("CostFunctionConfig.min_objective_weight", "CostFunctionConfig.max_objective_weight")
def test_clamped_weights_are_not_normalised_again():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(named([[1000.0, 1e-3], [1.0, 1.0]]))
    weights.end_epoch()
    assert weights.weights[0].tolist() == pytest.approx([0.01, 0.99])
    assert float(weights.weights[1].sum()) == pytest.approx(1.0)


def test_epochs_of_few_steps_are_weighed_by_the_last_two_hundred():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    for cost in (1.0, 3.0):
        for _ in range(50):
            weights.accumulate(named([[cost, 1.0], [1.0, 1.0]]))
        weights.end_epoch()
    # Three quarters of the first epoch's sums are left beside the second's: 0.75 * 50 + 150 of cov, 0.75 * 50 + 50 of bbox.
    cov, bbox = 1 / 187.5, 10 / 87.5
    assert weights.weights[0].tolist() == pytest.approx([cov / (cov + bbox), bbox / (cov + bbox)])
    for _ in range(200):
        weights.accumulate(named([[5.0, 1.0], [1.0, 1.0]]))
    weights.end_epoch()  # an epoch this long stands for itself, as in TLT
    assert weights.weights[0].tolist() == pytest.approx([0.2 / 10.2, 10 / 10.2])


def test_an_objective_that_gets_a_hundredth_and_does_not_fall_starves():
    learnt, stuck = (ObjectiveWeights(config(minimum=1e-4, enable_autoweighting=True)) for _ in range(2))
    fixed = ObjectiveWeights(config())
    fixed.weights[0] = torch.tensor([0.001, 0.999])  # as the spec wants it
    found = []
    for epoch in range(8):
        for _ in range(40):
            learnt.accumulate(named([[0.5**epoch, 1e-6], [1.0, 1.0]]))
            stuck.accumulate(named([[0.5, 1e-6], [1.0, 1.0]]))
            fixed.accumulate(named([[0.5, 1e-6], [1.0, 1.0]]))
        found.append([weights.end_epoch() for weights in (learnt, stuck, fixed)])
    assert [after for _, after, _ in found] == [
        [],
        [],
        [],
        [],
        [(0, "cov")],
        [],
        [],
        [],
    ]  # after 200 steps, once
    assert not any(before or without for before, _, without in found)


def test_an_objective_without_cost_counts_nothing_and_a_class_without_any_keeps_its_weights():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(named([[2.0, 0.0], [0.0, 0.0]]))
    weights.end_epoch()
    assert weights.weights[0].tolist() == pytest.approx(
        [0.2, 0.8]
    )  # one step says nothing of a class without boxes in it
    for _ in range(200):
        weights.accumulate(named([[2.0, 0.0], [0.0, 0.0]]))
    weights.end_epoch()
    assert weights.weights[0].tolist() == pytest.approx([0.99, 0.01])
    assert weights.weights[1].tolist() == pytest.approx([0.2, 0.8])


def test_without_autoweighting_nothing_changes():
    weights = ObjectiveWeights(config())
    weights.accumulate(named([[5.0, 1.0], [1.0, 1.0]]))
    weights.end_epoch()
    assert weights.weights.tolist() == [pytest.approx([0.2, 0.8])] * 2


def test_state_round_trip():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(named([[0.5, 1.0], [1.0, 3.0]]))
    other = ObjectiveWeights(config(enable_autoweighting=True))
    other.restore(weights.state())
    for item in (weights, other):
        item.end_epoch()
    assert torch.equal(weights.weights, other.weights)


@pytest.mark.spec_field("CostFunctionConfig.TargetClass.coverage_foreground_weight")
def test_covered_cells_weigh_the_foreground_weight_and_the_others_the_rest(tiny):
    tiny.cost_function_config.target_classes[0].coverage_foreground_weight = 0.2
    tiny.cost_function_config.target_classes[1].coverage_foreground_weight = 0.9
    head = GridHead(tiny, OUTLINE)
    shape = (1, 2, head.height // 16, head.width // 16)
    covered = torch.zeros(shape)
    covered[:, :, 0, :3] = 1.0  # 3 of the 24 cells of each class
    boxes = torch.zeros(1, 2, 4, *shape[2:])
    targets = Targets(coverage=covered, bbox=boxes, coverage_norm=covered)
    half = torch.full(shape, 0.5)
    costs = head.costs((half, boxes.flatten(1, 2)), targets, torch.ones(1))
    log = 0.693137  # -ln(0.5 + 1e-5), of a cell that is covered or not
    wanted = [log * (3 * 0.2 + 21 * 0.8) / 24, log * (3 * 0.9 + 21 * 0.1) / 24]
    assert costs["cov"].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.spec_field("CostFunctionConfig.TargetClass.name")
def test_the_names_of_the_classes_give_the_outputs_their_order(tiny):
    first, second = tiny.cost_function_config.target_classes
    maps = []
    for names in (("square", "bar"), ("bar", "square")):
        first.name, second.name = names
        dataset = training_frames(tiny.dataset_config, spec.class_names(tiny))
        batches = loader(dataset, tiny.augmentation_config, batch_size=2, order=[0, 1], workers=0)
        prepared = prepare(next(batches), tiny.augmentation_config, generator=None, device="cpu")
        head = GridHead(tiny, OUTLINE)
        assert head.class_names == list(names)
        maps.append(head.targets(prepared).coverage)
    assert maps[0].any() and not torch.equal(maps[0][:, 0], maps[0][:, 1])
    assert torch.equal(maps[0], maps[1].flip(1))


@pytest.mark.spec_field("CostFunctionConfig.coverage_focal_gamma")
def test_cells_that_are_nearly_right_cost_less_with_a_focal_gamma(tiny):
    plain = GridHead(tiny, OUTLINE)
    tiny.cost_function_config.coverage_focal_gamma = 2.0
    focal = GridHead(tiny, OUTLINE)
    shape = (1, 2, plain.height // 16, plain.width // 16)
    nothing = torch.zeros(1, 2, 4, *shape[2:])
    targets = Targets(coverage=torch.zeros(shape), bbox=nothing, coverage_norm=torch.zeros(shape))
    outputs = torch.full(shape, 0.1), nothing.flatten(1, 2)
    before, after = (head.costs(outputs, targets, torch.ones(1)) for head in (plain, focal))
    assert after["cov"].tolist() == pytest.approx((before["cov"] / 100).tolist())
