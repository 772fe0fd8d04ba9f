import pytest
import torch

from detectkit.spec import CostFunctionConfig
from detectkit.train.weighting import ObjectiveWeights


def config(**fields):
    """Two classes with class weights 1 and 3, objectives written in either order."""
    made = CostFunctionConfig(min_objective_weight=0.01, max_objective_weight=0.99, **fields)
    for name, weight, order in (("car", 1.0, ("cov", "bbox")), ("dog", 3.0, ("bbox", "cov"))):
        target = made.target_classes.add(name=name, class_weight=weight)
        values = {"cov": (1.0, 1.0), "bbox": (4.0, 10.0)}
        for objective in order:
            initial, aim = values[objective]
            target.objectives.add(name=objective, initial_weight=initial, weight_target=aim)
    return made


def test_initial_weights_are_shares_within_the_class():
    weights = ObjectiveWeights(config())
    assert weights.class_weights.tolist() == [0.25, 0.75]
    assert (
        weights.weights.tolist() == [pytest.approx([0.2, 0.8])] * 2
    )  # cov first, whatever the order in the spec


def test_total_cost():
    costs = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    expected = 0.25 * (0.2 * 1 + 0.8 * 2) + 0.75 * (0.2 * 10 + 0.8 * 20)
    assert float(ObjectiveWeights(config()).total(costs)) == pytest.approx(expected)


def test_weights_after_an_epoch_are_the_shares_of_target_over_cost():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(torch.tensor([[0.5, 1.0], [1.0, 1.0]]))
    weights.accumulate(torch.tensor([[0.5, 1.0], [1.0, 1.0]]))
    weights.end_epoch()
    # car: u = 1/1 and 10/2; dog: u = 1/2 and 10/2
    assert weights.weights[0].tolist() == pytest.approx([1 / 6, 5 / 6])
    assert weights.weights[1].tolist() == pytest.approx([0.5 / 5.5, 5 / 5.5])
    assert not weights.sums.any()


def test_clamped_weights_are_not_normalised_again():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(torch.tensor([[1000.0, 1e-3], [1.0, 1.0]]))
    weights.end_epoch()
    assert weights.weights[0].tolist() == pytest.approx([0.01, 0.99])
    assert float(weights.weights[1].sum()) == pytest.approx(1.0)


def test_an_objective_without_cost_counts_nothing_and_a_class_without_any_keeps_its_weights():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    weights.end_epoch()
    assert weights.weights[0].tolist() == pytest.approx([0.99, 0.01])
    assert weights.weights[1].tolist() == pytest.approx([0.2, 0.8])


def test_without_autoweighting_nothing_changes():
    weights = ObjectiveWeights(config())
    weights.accumulate(torch.tensor([[5.0, 1.0], [1.0, 1.0]]))
    weights.end_epoch()
    assert weights.weights.tolist() == [pytest.approx([0.2, 0.8])] * 2


def test_state_round_trip():
    weights = ObjectiveWeights(config(enable_autoweighting=True))
    weights.accumulate(torch.tensor([[0.5, 1.0], [1.0, 3.0]]))
    other = ObjectiveWeights(config(enable_autoweighting=True))
    other.restore(weights.state())
    for item in (weights, other):
        item.end_epoch()
    assert torch.equal(weights.weights, other.weights)
