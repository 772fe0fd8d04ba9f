"""Batch normalisation after channels went: statistics found anew, those half way, and the choice between them."""

import copy

import pytest
import torch

from detectkit.compress import statistics
from detectkit.compress.importance import training_batches
from detectkit.compress.statistics import suited
from detectkit.data.augment import prepare
from detectkit.model.detector import build
from detectkit.spec import ModelConfig

FIRST = "backbone.bn1"


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True)
        return build(config, ["square", "bar"], 3).eval()


@pytest.fixture
def costs(monkeypatch):
    """Makes each of the networks that are tried cost what it is given, and keeps them."""

    def make(*values):
        tried, left = [], list(values)
        monkeypatch.setattr(
            statistics,
            "mean_costs",
            lambda network, *_, **__: tried.append(network) or torch.tensor(left.pop(0)),
        )
        return tried

    return make


def anew(network, experiment, size):
    """Mean and variance of what comes to the first batch normalisation: the means over batches of the training images."""
    _, drawn = training_batches(experiment, 2, size=size)
    inputs = []
    layer = copy.deepcopy(network).get_submodule("backbone.conv1")
    for batch in drawn:
        prepared = prepare(batch, experiment.augmentation_config, generator=None, device="cpu")
        with torch.no_grad():
            inputs.append(layer(network.normalize(prepared.images)).transpose(0, 1).flatten(1))
    means, variances = zip(*((values.mean(1), values.var(1)) for values in inputs))
    return sum(means) / len(means), sum(variances) / len(variances)


def test_old_new_and_half_way_are_tried(network, tiny, costs, monkeypatch):
    monkeypatch.setattr(statistics, "IMAGES", 16)
    monkeypatch.setattr(statistics, "BATCH_SIZE", 8)
    before = copy.deepcopy(network.state_dict())
    tried = costs([[4.0, 4.0], [4.0, 4.0]], [[1.0, 4.0], [4.0, 4.0]], [[4.0, 2.0], [4.0, 8.0]])
    found = suited(network, tiny, batches=1)
    assert found is tried[1] and not found.get_submodule(FIRST).training  # 3.25, of 4 and 4.5
    mean, variance = anew(network, tiny, size=8)
    old, half, new = (part.get_submodule(FIRST) for part in tried)
    assert torch.equal(old.running_mean, before[f"{FIRST}.running_mean"])
    assert torch.allclose(new.running_mean, mean, atol=1e-5)
    assert torch.allclose(new.running_var, variance, rtol=1e-4)
    assert torch.allclose(half.running_mean, (old.running_mean + new.running_mean) / 2, atol=1e-6)
    assert torch.allclose(half.running_var, (old.running_var * new.running_var).sqrt(), rtol=1e-4)
    after = network.state_dict()  # stays as it is, and so does all but the statistics
    assert all(torch.equal(after[name], before[name]) for name in before)
    rest = [name for name in before if "running" not in name]
    assert all(torch.equal(found.state_dict()[name], before[name]) for name in rest)


def test_each_class_and_objective_is_compared_with_its_own_cost(network, tiny, costs):
    """A small cost that doubles weighs more than a large one that falls by a tenth; one that was 0 is left out."""
    tried = costs([[100.0, 0.1], [1.0, 0.0]], [[90.0, 0.2], [1.0, 5.0]], [[100.0, 0.1], [1.0, 9.0]])
    assert suited(network, tiny, batches=1) is tried[0]
    tried = costs([[100.0, 0.1], [1.0, 0.0]], [[float("nan"), 0.01], [1.0, 0.0]], [[99.0, 0.1], [1.0, 9.0]])
    assert suited(network, tiny, batches=1) is tried[2]


def test_of_real_costs_the_least_is_taken(network, tiny):
    """Statistics that are wrong by far are found again."""
    layer = network.get_submodule(FIRST)
    layer.running_mean.fill_(50.0)
    layer.running_var.fill_(1e4)
    found = suited(network, tiny, batches=2).get_submodule(FIRST)
    assert found.running_mean.abs().max() < 26 and found.running_var.max() < 1e4


def test_a_network_without_batch_normalisation_stays_as_it_is(tiny):
    network = build(ModelConfig(arch="squeezenet"), ["square", "bar"], 3).eval()
    assert suited(network, tiny, batches=1) is network
