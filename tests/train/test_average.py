import copy

import pytest
import torch

from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.spec import ModelConfig
from detectkit.train import state as states
from detectkit.train.average import WeightAverage
from detectkit.train.loop import train
from detectkit.train.run import set_up


def detector(value):
    """A network whose every weight and statistic is `value`."""
    made = build(ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True), ["car"], 1)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.fill_(value)
    return made


def test_the_average_by_hand():
    average = WeightAverage(detector(0.0), decay=0.26)
    trained = detector(1.0)
    expected = 0.0
    for decay in (2 / 11, 3 / 12, 0.26, 0.26):  # (1 + n) / (10 + n), at most 0.26
        average.update(trained)
        expected = decay * expected + (1 - decay)
        for name, tensor in average.detector.state_dict().items():
            wanted = expected if tensor.is_floating_point() else 1  # counts of batches are copied
            assert torch.all((tensor - wanted).abs() < 1e-6), name


def test_a_restored_average_goes_on_as_the_first():
    first = WeightAverage(detector(0.0), decay=0.99)
    first.update(detector(1.0))
    second = WeightAverage(detector(5.0), decay=0.99)
    second.restore(copy.deepcopy(first.state()))
    for average in (first, second):
        average.update(detector(2.0))
    pairs = zip(first.detector.state_dict().values(), second.detector.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) and first.steps == second.steps == 2


@pytest.mark.spec_field("TrainingConfig.ema_decay")
def test_the_average_is_saved_and_the_weights_are_trained_on(small, tmp_path):
    small.training_config.num_epochs = 1
    small.model_config.objective_set.cov.prior = 0.5  # a bias of 0, so that little is lost in its last digits
    plain = train(set_up(small, tmp_path / "plain", name="model", device=torch.device("cpu")))
    small.training_config.ema_decay = 0.2
    run = set_up(small, tmp_path / "ema", name="model", device=torch.device("cpu"))
    start = copy.deepcopy(run.state.detector.output_cov.bias)
    averaged = train(run)
    trained = checkpoint.load(plain.last).detector.state_dict()
    saved = checkpoint.load(averaged.last).detector.state_dict()
    resume = states.read(tmp_path / "ema/resume.pt")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in resume["detector"].items())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in resume["average"]["detector"].items())
    # Three steps, of decay 2/11 and then 0.2: the start still weighs 2/11 * 0.2², the end 0.8.
    name = "output_cov.bias"
    between = (saved[name] - 0.8 * trained[name] - 2 / 11 * 0.04 * start) / (1 - 0.8 - 2 / 11 * 0.04)
    low, high = torch.minimum(start, trained[name]), torch.maximum(start, trained[name])
    assert torch.all((between >= low - 1e-6) & (between <= high + 1e-6))
    assert not torch.equal(saved[name], trained[name])
    assert averaged.history[0]["validation_cost"] != plain.history[0]["validation_cost"]
