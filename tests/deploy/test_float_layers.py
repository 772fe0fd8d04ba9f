"""The choice of the layers that stay in float, with an accuracy that counts them."""

import pytest
import torch

from detectkit.deploy import float_layers
from detectkit.deploy.export import ExportSource, Target
from detectkit.deploy.float_layers import choose_float_layers
from detectkit.deploy.sensitivity import Sensitivity
from detectkit.errors import ModelError

LAYERS = ("first", "second", "third")


@pytest.fixture
def choose(monkeypatch):
    """Chooses among three layers in 8 bits, of which two cost points of mAP: `second` 3, `third` 1."""
    cost = {"first": 0.0, "second": 3.0, "third": 1.0}
    monkeypatch.setattr(float_layers, "float_model", lambda *_: frozenset(LAYERS))
    monkeypatch.setattr(float_layers, "int8_model", lambda model, ranges, target, names: frozenset(names))
    monkeypatch.setattr(
        float_layers,
        "accuracy",
        lambda kept, *_: 80.0 - sum(cost[name] for name in LAYERS if name not in kept),
    )
    monkeypatch.setattr(float_layers, "sample_images", lambda source, count: torch.zeros(count))
    ranked = [Sensitivity("second", 10.0), Sensitivity("third", 20.0), Sensitivity("first", 30.0)]
    monkeypatch.setattr(float_layers, "rank", lambda *_, **__: ranked)

    def call(drop):
        told = []
        source = ExportSource(None, None, ["square"])
        found = choose_float_layers(
            source, Target("int8", batch=2), None, drop=drop, device="cpu", tell=told.append
        )
        assert found.ranked == ranked
        return found.chosen, told

    return call


@pytest.mark.parametrize(
    "drop, chosen", [(4, []), (3.5, ["second"]), (1, ["second"]), (0.5, ["second", "third"])]
)
def test_as_few_layers_as_keep_the_accuracy(choose, drop, chosen):
    found, told = choose(drop)
    assert found == chosen
    assert told[0] == f"mAP 80.00 % in float; asked for: {80 - drop:.2f} %"
    assert "mAP 76.00 % in 8 bits, 0 of 3 layers in float" in told


def test_an_accuracy_that_no_choice_keeps(choose, monkeypatch):
    measured = iter([80.0, 70.0, 70.0, 70.0, 70.0, 70.0])
    monkeypatch.setattr(float_layers, "accuracy", lambda *_: next(measured))
    with pytest.raises(ModelError):
        choose(1)
