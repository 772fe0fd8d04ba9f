"""Which filters stay, the network made of them, and the threshold for a wanted size."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detectkit import spec
from detectkit.compress import prune as prune_module
from detectkit.compress.prune import STEPS, Pruner, Width, _short, find_threshold, prune, retained, widths
from detectkit.errors import ModelError, SpecError
from detectkit.heads.grid_layers import GridLayers
from detectkit.model.base import Backbone
from detectkit.model.detector import Detector, gmacs, parameters
from detectkit.spec import PruningConfig
from detectkit.spec.model_pb2 import ModelConfig

FINE = {"granularity": 1, "min_num_filters": 1}
# The norms of the filters of `Small`, each layer's greatest first.
STEM = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05]
BRANCH = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.05, 0.05]
WIDE = [1 - 0.05 * number for number in range(20)]


class Small(Backbone):
    """Two layers of 12 filters that are summed, then one of 20."""

    given = ("wide",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=4, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.branch = nn.Conv2d(12, 12, 3, padding=1)
        self.wide = nn.Conv2d(12, 20, 1, stride=4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = torch.relu(self.bn(self.stem(images)))
        return (self.wide(torch.relu(features + self.branch(features))),)

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def gridded(backbone: Backbone, *, classes: int) -> Detector:
    return Detector(backbone, GridLayers(ModelConfig(), backbone.levels, classes), channels=3)


@pytest.fixture
def small() -> Detector:
    torch.manual_seed(0)
    detector = gridded(Small(), classes=2).eval()
    with torch.no_grad():
        for layer, norms in (("stem", STEM), ("branch", BRANCH), ("wide", WIDE)):
            weight = detector.get_parameter(f"backbone.{layer}.weight")
            weight.copy_(nn.functional.normalize(weight.flatten(1)).reshape(weight.shape))
            weight.mul_(torch.tensor(norms).reshape(-1, 1, 1, 1))
    return detector


def pruner(detector: Detector, **settings: Any) -> Pruner:
    return Pruner(detector, PruningConfig(**settings), spec.Experiment())


def pruned(detector: Detector, sizes: dict[str, Callable[[Detector], float]] | None = None, **settings: Any):
    return prune(detector, PruningConfig(**settings), experiment=spec.Experiment(), sizes=sizes or {})


def kept(detector: Detector, **settings: Any) -> list[int]:
    """Filters of the stem, the branch and the wide layer of a pruned `Small`."""
    found = widths(detector, pruned(detector, **settings).detector)
    return [width.after for width in found if width.layer.startswith("backbone")]


def share(detector: Detector) -> Callable[[Detector], float]:
    return lambda network: parameters(network) / parameters(detector)


# --- retained


@pytest.mark.parametrize(
    ("values", "threshold", "minimum", "granularity", "expected"),
    [
        ([0.5, 1, 0.25, 0.5], 0.5, 1, 1, [1]),  # strictly above
        ([0.5, 1, 0.25, 0.5], 0.25, 1, 1, [0, 1, 3]),
        ([0.5, 1, 0.25, 0.5], 0.75, 2, 1, [0, 1]),  # raised to the minimum; of equals the first
        ([0.5, 1, 0.25, 0.5], 0.75, 16, 1, [0, 1, 2, 3]),  # the minimum is no more than there are
        ([0.5, 1, 0.25, 0.5], 0.25, 1, 2, [0, 1, 2, 3]),  # 3 to 4, one of them not above
        ([0.5, 1, 0.25, 0.5], 0.75, 1, 3, [0, 1, 3]),  # 1 to 3
        ([0.5, 1, 0.25, 0.5], 0.75, 1, 8, [0, 1, 2, 3]),  # 8, but there are 4
        ([0.9, 0.1, 0.8, 0.2, 0.7], 0.5, 1, 4, [0, 2, 3, 4]),  # 0.2 is kept below the threshold
        ([0.9, 0.1, 0.8, 0.2, 0.7], 0.5, 1, 3, [0, 2, 4]),  # 3 is a multiple as it is
        ([0.9, 0.1, 0.8, 0.2, 0.7], 0.85, 3, 2, [0, 2, 3, 4]),  # minimum 3, then 4
        ([0.1, 0.2, 0.3], 5, 2, 1, [1, 2]),  # none above
        ([1, 1, 1, 1], 0.5, 1, 1, [0, 1, 2, 3]),
        ([1, 1, 1, 1], 1, 2, 1, [0, 1]),
        ([0], 0, 1, 8, [0]),
    ],
)
def test_filters_that_stay(
    values: list[float], threshold: float, minimum: int, granularity: int, expected: list[int]
) -> None:
    config = PruningConfig(min_num_filters=minimum, granularity=granularity)
    assert retained(torch.tensor(values), threshold, width=len(values), config=config).tolist() == expected


@pytest.mark.parametrize(
    ("threshold", "minimum", "granularity", "expected"),
    [
        (0.4, 1, 1, [1, 2, 5, 6]),
        (0.6, 1, 1, [1, 5]),
        (0.6, 3, 1, [1, 2, 5, 6]),  # 3 filters are two places
        (0.6, 1, 3, [1, 2, 0, 5, 6, 4]),  # 6 is the first multiple of 3 that is one of 2
        (0.6, 1, 8, range(8)),
    ],
)
def test_channels_a_period_apart_stay_together(
    threshold: float, minimum: int, granularity: int, expected: Sequence[int]
) -> None:
    config = PruningConfig(min_num_filters=minimum, granularity=granularity)
    found = retained(torch.tensor([0.3, 0.9, 0.5, 0.1]), threshold, width=8, config=config)
    assert found.tolist() == sorted(expected)


SHARES = st.floats(0, 1, width=32)


@settings(max_examples=300)
@given(
    values=st.lists(SHARES | st.sampled_from([0.25, 0.5]), min_size=1, max_size=40),
    threshold=SHARES | st.sampled_from([0.25, 0.5]),
    minimum=st.integers(1, 48),
    granularity=st.integers(1, 20),
)
def test_filters_that_stay_are_those_of_the_written_rule(
    values: list[float], threshold: float, minimum: int, granularity: int
) -> None:
    # Count those above; raise to min(minimum, depth); round up to a multiple; cap at depth; take the greatest.
    depth = len(values)
    count = max(sum(value > threshold for value in values), min(minimum, depth))
    while count % granularity:
        count += 1
    best = sorted(range(depth), key=lambda index: (-values[index], index))[: min(count, depth)]
    config = PruningConfig(min_num_filters=minimum, granularity=granularity)
    assert retained(torch.tensor(values), threshold, width=depth, config=config).tolist() == sorted(best)


@settings(max_examples=200)
@given(
    values=st.lists(SHARES, min_size=1, max_size=12),
    copies=st.integers(1, 6),
    threshold=SHARES,
    minimum=st.integers(1, 48),
    granularity=st.integers(1, 20),
)
def test_of_grouped_channels_the_fewest_places_stay_that_fit(
    values: list[float], copies: int, threshold: float, minimum: int, granularity: int
) -> None:
    width = len(values) * copies
    config = PruningConfig(min_num_filters=minimum, granularity=granularity)
    found = retained(torch.tensor(values), threshold, width=width, config=config).tolist()
    places = [index for index in found if index < len(values)]
    assert found == [index + copy * len(values) for copy in range(copies) for index in places]
    wanted = max(copies * sum(value > threshold for value in values), min(minimum, width))
    fits = (
        number
        for number in range(len(values) + 1)
        if number == len(values) or (number * copies >= wanted and number * copies % granularity == 0)
    )
    assert len(places) == next(fits)
    assert places == sorted(sorted(range(len(values)), key=lambda index: -values[index])[: len(places)])


# --- the narrowed network


def test_the_filters_of_a_sum_are_the_same_on_both_sides(small: Detector) -> None:
    network = pruned(small, threshold=0.65, **FINE).detector
    # UNION: above 0.65 are filters 0 to 3 of the stem, 6 to 9 of the branch, and 0 to 6 of the wide one.
    both, wide = [0, 1, 2, 3, 6, 7, 8, 9], list(range(7))
    before, after = small.state_dict(), network.state_dict()
    for name in ("stem.bias", "branch.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        assert torch.equal(after[f"backbone.{name}"], before[f"backbone.{name}"][both])
    assert torch.equal(after["backbone.stem.weight"], before["backbone.stem.weight"][both])
    assert torch.equal(after["backbone.branch.weight"], before["backbone.branch.weight"][both][:, both])
    assert torch.equal(after["backbone.wide.weight"], before["backbone.wide.weight"][wide][:, both])
    assert torch.equal(after["output_cov.weight"], before["output_cov.weight"][:, wide])
    assert torch.equal(after["output_bbox.bias"], before["output_bbox.bias"])
    assert network.backbone.levels[0].channels == 7 and network.get_submodule("backbone.bn").num_features == 8
    assert network(torch.rand(2, 3, 64, 96))[1].shape == (2, 8, 4, 6)


def test_widths_are_those_of_all_convolutions_in_order(small: Detector) -> None:
    assert widths(small, pruned(small, threshold=0.65, **FINE).detector) == [
        Width("backbone.stem", 12, 8),
        Width("backbone.branch", 12, 8),
        Width("backbone.wide", 20, 7),
        Width("output_cov", 2, 2),
        Width("output_bbox", 8, 8),
    ]


def test_the_original_stays_as_it_was_and_shares_nothing(small: Detector) -> None:
    small.freeze(["backbone.wide.weight"])
    before = copy.deepcopy(small)
    network = pruned(small, threshold=0.65, **FINE).detector
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    after = small.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.state_dict().items())
    assert widths(before, small) == [Width(name, same, same) for name, _, same in widths(before, small)]
    assert small.backbone.levels[0].channels == 20 and not small.training and not network.training
    held = [name for name, weight in network.named_parameters() if not weight.requires_grad]
    assert held == [name for name, weight in small.named_parameters() if not weight.requires_grad]
    assert held == ["backbone.wide.weight"]


@pytest.mark.spec_field("PruningConfig.threshold")
def test_fewer_filters_are_above_a_higher_threshold(small: Detector) -> None:
    assert kept(small, threshold=0.01, **FINE) == [12, 12, 20]
    assert kept(small, threshold=0.45, **FINE) == [10, 10, 11]
    assert kept(small, threshold=0.85, **FINE) == [4, 4, 3]


def test_without_an_aim_the_threshold_is_a_tenth(small: Detector) -> None:
    assert kept(small, **FINE) == [10, 10, 18]  # 0.05 is not above it
    assert pruned(small, **FINE).threshold == pytest.approx(0.1)


@pytest.mark.spec_field("PruningConfig.granularity")
def test_widths_are_multiples_of_the_granularity_or_the_whole_layer(small: Detector) -> None:
    assert kept(small, threshold=0.65, granularity=4, min_num_filters=1) == [8, 8, 8]  # from 8 and 7
    assert kept(small, threshold=0.65, granularity=5, min_num_filters=1) == [10, 10, 10]
    assert kept(small, threshold=0.25, granularity=8, min_num_filters=1) == [12, 12, 16]
    for threshold in pruner(small).thresholds()[:-1]:
        assert set(kept(small, threshold=threshold, granularity=8, min_num_filters=1)) <= {8, 12, 16, 20}


@pytest.mark.spec_field("PruningConfig.min_num_filters")
def test_each_layer_keeps_its_minimum(small: Detector) -> None:
    assert kept(small, threshold=0.85, granularity=1, min_num_filters=5) == [5, 5, 5]
    assert kept(small, threshold=0.65, granularity=1, min_num_filters=8) == [8, 8, 8]
    assert kept(small, threshold=0.65, granularity=1, min_num_filters=15) == [12, 12, 15]


# --- excluded layers


@pytest.mark.spec_field("PruningConfig.excluded_layers")
def test_excluded_layers_keep_their_width_and_that_of_their_group(small: Detector) -> None:
    # What is summed with an excluded layer keeps everything too.
    assert kept(small, threshold=0.65, excluded_layers=["backbone.branch"], **FINE) == [12, 12, 7]
    assert kept(small, threshold=0.65, excluded_layers=["backbone.stem"], **FINE) == [12, 12, 7]
    assert kept(small, threshold=0.65, excluded_layers=["backbone.wide"], **FINE) == [8, 8, 20]


def test_excluded_layers_take_fewer_channels_all_the_same(small: Detector) -> None:
    network = pruned(small, threshold=0.65, excluded_layers=["backbone.wide"], **FINE).detector
    assert network.get_parameter("backbone.wide.weight").shape == (20, 8, 1, 1)
    assert network.backbone.levels[0].channels == 20


def test_the_outputs_may_be_excluded_and_are_never_pruned(small: Detector) -> None:
    excluded = {"excluded_layers": ["output_cov", "output_bbox"]}
    assert kept(small, threshold=0.65, **excluded, **FINE) == [8, 8, 7]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("backbone.stm", "backbone.stem"),
        ("branch", "backbone.branch"),
        ("backbone.bn", "backbone.branch"),  # no convolution
    ],
)
def test_an_unknown_layer(small: Detector, name: str, near: str) -> None:
    with pytest.raises(SpecError) as caught:
        pruner(small, excluded_layers=[name])
    assert str(caught.value) == (
        f"excluded_layers (-el): the network has no convolution {name}; did you mean {near}?"
    )


def test_everything_excluded(small: Detector) -> None:
    with pytest.raises(SpecError, match="they leave nothing to prune; exclude fewer"):
        pruner(small, excluded_layers=["backbone.stem", "backbone.wide"])


# --- thresholds and targets


@pytest.mark.parametrize("threshold", [1.0, 7.0])
def test_a_threshold_that_keeps_nothing(small: Detector, threshold: float) -> None:
    with pytest.raises(SpecError) as caught:
        pruned(small, threshold=threshold)
    assert str(caught.value) == (
        f"threshold {threshold:g} (-pth) keeps nothing: the greatest importance of a filter is 1;"
        " lower it, or give a target instead (--target-params 0.5), which finds it"
    )


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_that_say_nothing(small: Detector, value: float) -> None:
    with torch.no_grad():
        for weight in small.parameters():
            weight.fill_(value)
    with pytest.raises(ModelError, match="weights or their gradients are all 0, or not finite"):
        pruner(small)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["stem", "wide"])
def test_a_single_weight_that_is_no_number(small: Detector, layer: str, value: float) -> None:
    with torch.no_grad():
        small.get_parameter(f"backbone.{layer}.weight")[3, 0, 0, 0] = value
    with pytest.raises(ModelError, match="weights or their gradients are all 0, or not finite"):
        pruner(small)


def test_a_layer_of_zeros_keeps_its_minimum(small: Detector) -> None:
    with torch.no_grad():
        small.get_parameter("backbone.wide.weight").zero_()
    assert kept(small, threshold=0, granularity=1, min_num_filters=3) == [12, 12, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_formats_keep_theirs(small: Detector, dtype: torch.dtype) -> None:
    assert all(norm.dtype == torch.float32 for norm in pruner(small.to(dtype)).importance.values())
    result = pruned(small, {"target_params": share(small)}, target_params=0.5, **FINE)
    assert {weight.dtype for weight in result.detector.parameters()} == {dtype}
    assert share(small)(result.detector) <= 0.5
    again = pruned(small, threshold=result.threshold, **FINE).detector  # also in 32 bits, as specs have it
    tensors = result.detector.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.state_dict().items())


def test_thresholds_are_where_a_filter_goes(small: Detector) -> None:
    found = pruner(small, **FINE)
    values = found.thresholds()
    # A sum has the greater value of both sides, and 12 - 2 filters have 1, 0.9, 0.8, 0.7, 0.6 there, twice each.
    expected = {0.0, 0.05, 0.6, 0.7, 0.8, 0.9, 1.0} | set(WIDE)
    assert sorted({round(value, 5) for value in values}) == sorted({round(value, 5) for value in expected})
    assert values == sorted(set(values))
    sizes = [parameters(found.pruned(value).detector) for value in values[:-1]]
    assert sizes == sorted(set(sizes), reverse=True)  # ever smaller
    assert sizes[0] == parameters(small)


@pytest.mark.parametrize("settings", [FINE, {"granularity": 4, "min_num_filters": 3}])
@pytest.mark.parametrize("limit", [1.0, 0.9, 0.55, 0.3, 0.2])
def test_the_threshold_of_a_target_is_the_lowest_that_satisfies_it(
    small: Detector, limit: float, settings: dict[str, int]
) -> None:
    with torch.no_grad():  # no two filters alike
        for weight in small.parameters():
            weight.mul_(1 + 0.01 * torch.rand_like(weight))
    found = pruner(small, **settings)
    size = share(small)
    threshold = find_threshold(found, size, limit, name="target_params")
    fitting = [value for value in found.thresholds()[:-1] if size(found.pruned(value).detector) <= limit]
    expected = found.pruned(fitting[0]).detector
    assert fitting[0] <= threshold < found.thresholds()[found.thresholds().index(fitting[0]) + 1]
    stored = PruningConfig(threshold=float(f"{threshold:.9g}"), **settings)  # printed, and typed in again
    again = prune(small, stored, experiment=spec.Experiment(), sizes={}).detector
    for network in (found.pruned(threshold).detector, again):
        tensors = expected.state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


@pytest.mark.spec_field("PruningConfig.target_params")
def test_a_share_of_the_parameters(small: Detector) -> None:
    result = pruned(small, {"target_params": share(small)}, target_params=0.5, **FINE)
    values = pruner(small, **FINE).thresholds()
    *_, lower, _ = (value for value in values if value <= result.threshold)
    larger = pruned(small, threshold=lower, **FINE).detector
    assert share(small)(result.detector) <= 0.5 < share(small)(larger)


@pytest.mark.spec_field("PruningConfig.target_macs")
def test_a_share_of_the_multiplications(small: Detector) -> None:
    def macs(network: Detector) -> float:
        return gmacs(network, 64, 96) / gmacs(small, 64, 96)

    result = pruned(small, {"target_macs": macs, "target_params": share(small)}, target_macs=0.5, **FINE)
    assert 0.4 < macs(result.detector) <= 0.5
    assert share(small)(result.detector) != pytest.approx(macs(result.detector), abs=1e-3)


def test_a_share_of_anything_that_can_be_measured(small: Detector) -> None:
    sizes = {"target_latency": lambda network: network.backbone.levels[0].channels / 20}
    result = pruned(small, sizes, target_latency=0.6, **FINE)
    assert result.detector.backbone.levels[0].channels == 12
    assert 0.4 <= result.threshold < 0.45  # of the wide layer 8 have 0.4 and less


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Detector]:
    """The networks that `taylor` is asked about: each layer's filters count 1, 2, 3, …, those of the wide one a tenth of it."""
    networks: list[Detector] = []

    def count(network: Detector, experiment: spec.Experiment, *, batches: int) -> dict[str, Tensor]:
        networks.append(network)
        wide = len(network.get_parameter("backbone.wide.weight"))
        both = len(network.get_parameter("backbone.bn.weight"))
        numbers = {name: torch.arange(both) + 1.0 for name in ("backbone.bn", "backbone.branch")}
        return numbers | {"backbone.wide": (torch.arange(wide) + 1.0) / 10}

    monkeypatch.setattr(prune_module, "taylor", count)
    monkeypatch.setattr(prune_module, "renewed", lambda network, *_, **__: network)
    return networks


def test_taylor_comes_to_a_target_in_steps(small: Detector, seen: list[Detector]) -> None:
    """Of equal ratios, and each looks at what the last one has left."""
    size = share(small)
    found = pruned(small, {"target_params": size}, criterion=PruningConfig.TAYLOR, target_params=0.3, **FINE)
    assert found.threshold is None and 0.25 < size(found.detector) <= 0.3
    wanted = [0.3 ** (number / STEPS) for number in range(STEPS)]
    shares = [size(network) for network in seen]
    assert len(shares) == STEPS == 5 and shares[0] == 1
    assert all(0.8 * limit < share <= limit for share, limit in zip(shares, wanted, strict=True))


def test_taylor_compares_the_filters_of_all_layers_as_they_are(small: Detector, seen: list[Detector]) -> None:
    """A threshold of its own does not: then each layer is measured by its greatest."""
    sizes = {"target_params": share(small)}
    found = pruned(small, sizes, criterion=PruningConfig.TAYLOR, target_params=0.8, **FINE)
    *_, last = [width.after for width in widths(small, found.detector) if width.layer.startswith("backbone")]
    assert (
        last < 13 and widths(small, found.detector)[0].after == 12
    )  # the wide layer counts least, and goes first
    seen.clear()
    assert kept(small, criterion=PruningConfig.TAYLOR, threshold=0.5, **FINE) == [6, 6, 10]
    assert len(seen) == 1


def test_a_target_out_of_reach_is_said_before_the_steps(small: Detector, seen: list[Detector]) -> None:
    sizes = {"target_params": share(small)}
    # 11 filters everywhere: 330 + 1100 + 132 parameters, and heads of 120, of 2138.
    with pytest.raises(
        SpecError, match="target_params: 0.1 cannot be reached: the smallest network is 0.787"
    ):
        pruned(
            small, sizes, criterion=PruningConfig.TAYLOR, target_params=0.1, granularity=1, min_num_filters=11
        )
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"granularity": 1, "min_num_filters": 8}, "0.461"),
        ({"granularity": 8, "min_num_filters": 1}, "0.461"),
    ],
)
def test_a_target_out_of_reach_says_what_holds_it(
    small: Detector, settings: dict[str, int], least: str
) -> None:
    # Layers of 12, 12 and 20 filters have 360, 1308 and 260 parameters, of 8: 240, 584 and 72; then come two heads of
    # 2 and 8 filters with 210 and 90: 986 of 2138.
    with pytest.raises(SpecError) as caught:
        pruned(small, {"target_params": share(small)}, target_params=0.25, **settings)
    assert str(caught.value) == (
        f"target_params: 0.25 cannot be reached: the smallest network is {least} of the original; lower"
        " min_num_filters (-nf) or granularity (-pg), or exclude fewer layers"
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.5, 0.0),
        (0.25, 0.5, 0.3),
        (0.25, 0.28125, 0.25),
        (0.123456, 0.2, 0.2 - 0.07),
        (0.99, 1.0, 0.99 + 1e-3),  # 0.99 in 32 bits is a little more, or it would be 0.99
        (2.5, 7.0, 3.0),
        (1e-12, 2e-12, float(np.float32(1e-12))),  # more digits than it tries
    ],
)
def test_the_shortest_number_of_an_interval(low: float, high: float, expected: float) -> None:
    low, high = float(np.float32(low)), float(np.float32(high))
    assert _short(low, high) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=300)
@given(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=2, unique=True).map(sorted))
def test_a_short_number_stays_in_its_interval_when_printed_and_stored(interval: list[float]) -> None:
    low, high = interval
    number = _short(low, high)
    assert low <= number < high
    assert low <= PruningConfig(threshold=float(f"{number:.9g}")).threshold < high
