"""The ranking of layers, and the search for the fewest that must stay float."""

from itertools import combinations
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.onnx import to_model
from detectkit.deploy.placement import eight_bit_layers
from detectkit.deploy.qdq import Runtime
from detectkit.deploy.sensitivity import fewest_float_layers, rank
from detectkit.errors import ModelError
from detectkit.model.detector import build
from detectkit.spec.model_pb2 import ModelConfig

COSTS = st.lists(st.integers(0, 50), min_size=1, max_size=7)


@given(COSTS, st.integers(0, 120))
def test_no_smaller_choice_will_do_where_costs_add_up(costs: list[int], allowed: int) -> None:
    cost = {f"layer{number}": value for number, value in enumerate(costs)}
    measured: list[list[str]] = []

    def drop(layers: list[str]) -> float:
        measured.append(layers)
        return -float(sum(value for layer, value in cost.items() if layer not in layers))

    ranked = sorted(cost, key=lambda layer: -cost[layer])
    found = fewest_float_layers(drop, ranked, floor=-allowed)
    fewest = next(
        size
        for size in range(len(cost) + 1)
        if any(drop(list(choice)) >= -allowed for choice in combinations(cost, size))
    )
    assert len(found) == fewest and drop(found) >= -allowed
    assert found == [layer for layer in ranked if layer in found]


@given(COSTS, st.integers(0, 120), st.randoms(use_true_random=False))
def test_none_of_the_layers_can_be_spared_whatever_the_ranking(
    costs: list[int], allowed: int, random: Random
) -> None:
    cost = {f"layer{number}": value for number, value in enumerate(costs)}

    def drop(layers: list[str]) -> float:
        return -float(sum(value for layer, value in cost.items() if layer not in layers))

    ranked = list(cost)
    random.shuffle(ranked)
    found = fewest_float_layers(drop, ranked, floor=-allowed)
    assert drop(found) >= -allowed
    assert all(drop([other for other in found if other != layer]) < -allowed for layer in found)


def test_few_measurements_and_none_twice() -> None:
    measured: list[tuple[str, ...]] = []

    def points(layers: list[str]) -> float:
        measured.append(tuple(layers))
        return 86.0 if {"layer0", "layer2"} <= set(layers) else 80.0

    ranked = [f"layer{number}" for number in range(64)]
    assert fewest_float_layers(points, ranked, floor=85.5) == ["layer0", "layer2"]
    assert len(set(measured)) == len(measured) <= 2 + 6 + 3


def test_an_accuracy_out_of_reach_is_one_message() -> None:
    with pytest.raises(ModelError, match=r"all 2 convolutions in float the accuracy is 80\.00, below 85\.00"):
        fewest_float_layers(lambda layers: 80.0, ["one", "two"], floor=85.0)


@pytest.mark.parametrize("runtime", ["tensorrt", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_the_layer_that_loses_most_comes_first(runtime: Runtime) -> None:
    torch.manual_seed(0)
    detector = build(ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True), ["square"], 3).eval()
    images = torch.rand(1, 3, 32, 32)
    model = to_model(detector, height=32, width=32)
    table = calibrate(detector, [images], method="minmax")
    bad = "backbone.layer2.0.conv1"
    # Steps so large that every weight becomes 0.
    table = table._replace(weights=table.weights | {f"{bad}.weight": [500.0] * 128})
    found = rank(model, table, images, runtime=runtime, per_channel=False)
    assert sorted(item.layer for item in found) == sorted(eight_bit_layers(model))
    assert found[0].layer == bad and found[0].sqnr < found[1].sqnr
    assert [item.sqnr for item in found] == sorted(item.sqnr for item in found)
