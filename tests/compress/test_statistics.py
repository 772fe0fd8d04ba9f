"""Batch normalisation after channels went: half way to the statistics that are found anew."""

import copy
from types import SimpleNamespace

import pytest
import torch

from detectkit.compress import statistics
from detectkit.compress.importance import training_batches
from detectkit.compress.statistics import renewed
from detectkit.data.augment import prepare
from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.spec import EvaluationConfig, ModelConfig

FIRST = "backbone.bn1"


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True)
        return build(config, ["square", "bar"], 3).eval()


def found(precision):
    """What an evaluation tells of its mAP."""
    return SimpleNamespace(mean_average_precision=precision)


@pytest.fixture
def precisions(monkeypatch):
    """Gives the network the precisions that are named, first by its old statistics, then by the new ones."""

    def make(*values):
        left = list(values)
        monkeypatch.setattr(statistics, "measured", lambda *_, **__: found(left.pop(0)))

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


def test_statistics_go_half_way_to_those_found_anew(network, tiny, precisions, monkeypatch):
    monkeypatch.setattr(statistics, "IMAGES", 16)
    monkeypatch.setattr(statistics, "BATCH_SIZE", 8)
    old = network.get_submodule(FIRST)
    old.running_mean.copy_(torch.arange(64) / 100)
    old.running_var.copy_(1 + torch.arange(64))
    before = copy.deepcopy(network.state_dict())
    precisions(0.4, 0.5)
    found = renewed(network, tiny)
    new = found.get_submodule(FIRST)
    mean, variance = anew(network, tiny, size=8)
    assert torch.allclose(new.running_mean, (old.running_mean + mean) / 2, atol=1e-5)
    assert torch.allclose(new.running_var, (old.running_var * variance).sqrt(), rtol=1e-3)
    assert not new.training and new.momentum == old.momentum
    after = network.state_dict()  # stays as it is, and so does all but the statistics
    assert all(torch.equal(after[name], before[name]) for name in before)
    rest = [name for name in before if "running" not in name]
    assert all(torch.equal(found.state_dict()[name], before[name]) for name in rest)


def test_where_less_is_found_by_them_the_old_ones_stay(network, tiny, precisions):
    for old, new, stays in ((0.5, 0.4, True), (0.4, 0.5, False), (0.0, 0.0, False)):
        precisions(old, new)
        assert (renewed(network, tiny) is network) == stays


def test_it_is_training_images_that_they_are_compared_on(network, tiny, monkeypatch):
    """And the protocol VOC, which needs no other package."""
    monkeypatch.setattr(statistics, "IMAGES", 16)
    tiny.evaluation_config.protocol = EvaluationConfig.COCO
    tiny.dataset_config.validation_fold = 0
    seen = []

    def look(network, experiment, images, *, label):
        seen.append((len(images), images.total, experiment.evaluation_config.protocol))
        return found(0.5)

    monkeypatch.setattr(statistics, "measured", look)
    renewed(network, tiny)
    assert seen == [(16, 18, EvaluationConfig.VOC)] * 2


def test_of_a_network_that_has_learnt_the_old_ones_stay(learnt, tiny):
    """Whole, it finds all by them; and what is found again is the same twice."""
    network = checkpoint.load(learnt).detector
    assert renewed(network, tiny) is network
    layer = network.get_submodule(FIRST)
    layer.running_mean.fill_(50.0)
    layer.running_var.fill_(1e4)
    first, second = (renewed(network, tiny).get_submodule(FIRST) for _ in range(2))
    assert torch.equal(first.running_mean, second.running_mean) and first.running_mean.abs().max() < 26


def test_without_batch_normalisation_nothing_changes(tiny):
    network = build(ModelConfig(arch="squeezenet"), ["square", "bar"], 3).eval()
    assert renewed(network, tiny) is network
