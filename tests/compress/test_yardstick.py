"""The sizes of networks beside the original, with times that a test gives."""

import pytest

from detectkit.compress import yardstick as module
from detectkit.compress.yardstick import MARGIN, Yardstick
from detectkit.model import checkpoint
from detectkit.model.detector import parameters


def test_the_original_is_counted_once(tiny, learnt, monkeypatch):
    network = checkpoint.load(learnt).detector
    counted = []
    monkeypatch.setattr(module, "gmacs", lambda found, *size: counted.append((found, size)) or 2.0)
    yardstick = Yardstick(network, tiny, lambda *_: pytest.fail("measured"))
    others = [object(), object()]
    assert [yardstick.macs(other) for other in others] == [1, 1]
    assert sorted(map(id, (found for found, _ in counted))) == sorted(map(id, (network, *others)))
    assert {size for _, size in counted} == {(64, 96)}


def test_networks_of_the_same_widths_are_timed_once_and_aimed_at_from_below(tiny, learnt):
    original, same = (checkpoint.load(learnt).detector for _ in range(2))
    timed = []

    def seconds(*networks):
        timed.append(networks)
        return [0.5, 0.25]

    yardstick = Yardstick(original, tiny, seconds)
    assert yardstick.latency(same) == yardstick.latency(original) == 0.5 * (1 + MARGIN)
    assert timed == [(original, same)]
    assert yardstick.parameters(same) == parameters(same) / parameters(original) == 1
    assert set(yardstick.sizes) == {"target_params", "target_macs", "target_latency"}
