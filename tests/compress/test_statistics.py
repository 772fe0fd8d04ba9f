"""Batch normalisation after channels went: half way to the statistics that are found anew."""

import copy

import pytest
import torch

from detectkit.compress import statistics
from detectkit.compress.importance import training_batches
from detectkit.compress.statistics import renewed
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
    """Makes the network cost what it is given, first by its old statistics, then by the new ones."""

    def make(*values):
        left = [torch.as_tensor(value) for value in values]
        monkeypatch.setattr(statistics, "mean_costs", lambda *_, **__: left.pop(0))

    return make


def anew(network, experiment, size):
    """Mean and variance of what comes to the first batch normalisation: the means over two batches of training images."""
    _, drawn = training_batches(experiment, 2, size=size)
    inputs = []
    for batch in drawn:
        prepared = prepare(batch, experiment.augmentation_config, generator=None, device="cpu")
        with torch.no_grad():
            values = network.get_submodule("backbone.conv1")(network.normalize(prepared.images))
        inputs.append(values.transpose(0, 1).flatten(1))
    means, variances = zip(*((values.mean(1), values.var(1)) for values in inputs))
    return sum(means) / 2, sum(variances) / 2


def test_statistics_go_half_way_to_those_found_anew(network, tiny, costs, monkeypatch):
    monkeypatch.setattr(statistics, "IMAGES", 16)
    monkeypatch.setattr(statistics, "BATCH_SIZE", 8)
    old = network.get_submodule(FIRST)
    old.running_mean.copy_(torch.arange(64) / 100)
    old.running_var.copy_(1 + torch.arange(64))
    before = copy.deepcopy(network.state_dict())
    costs(5.0, 4.9)
    found = renewed(network, tiny, batches=1)
    new = found.get_submodule(FIRST)
    mean, variance = anew(network, tiny, size=8)
    assert torch.allclose(new.running_mean, (old.running_mean + mean) / 2, atol=1e-5)
    assert torch.allclose(new.running_var, (old.running_var * variance).sqrt(), rtol=1e-3)
    assert not new.training and new.momentum == old.momentum
    after = network.state_dict()  # stays as it is, and so does all but the statistics
    assert all(torch.equal(after[name], before[name]) for name in before)
    rest = [name for name in before if "running" not in name]
    assert all(torch.equal(found.state_dict()[name], before[name]) for name in rest)


def test_where_they_cost_more_the_old_ones_stay(network, tiny, costs):
    """By the mean ratio of the costs of classes and objectives; one that was 0 counts as it was."""
    for old, new, stays in (
        (2.0, 2.0, True),
        ([[100.0, 1.0]], [[50.0, 1.6]], True),  # (0.5 + 1.6) / 2
        ([[100.0, 1.0]], [[50.0, 1.4]], False),
        ([[100.0, 0.0]], [[99.0, 9.0]], False),
        (1.0, float("nan"), True),
    ):
        costs(old, new)
        assert (renewed(network, tiny, batches=1) is network) == stays


def test_statistics_that_are_wrong_by_far_are_found_again(network, tiny):
    """By real costs, and the same twice."""
    layer = network.get_submodule(FIRST)
    layer.running_mean.fill_(50.0)
    layer.running_var.fill_(1e4)
    first, second = (renewed(network, tiny, batches=2).get_submodule(FIRST) for _ in range(2))
    assert first.running_mean.abs().max() < 26 and first.running_var.max() < 1e4
    assert torch.equal(first.running_mean, second.running_mean)


def test_without_batch_normalisation_nothing_changes(tiny):
    network = build(ModelConfig(arch="squeezenet"), ["square", "bar"], 3).eval()
    assert renewed(network, tiny, batches=1) is network
