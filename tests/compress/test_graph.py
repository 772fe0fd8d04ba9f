"""Groups of channels: of small networks by hand, of all backbones against Torch-Pruning, and by what a cut changes."""

import copy
from collections.abc import Callable, Iterator

import pytest
import safetensors.torch
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from detectkit import spec
from detectkit.compress.graph import Group, Wiring, is_depthwise, wiring
from detectkit.compress.prune import Pruner, retained
from detectkit.errors import ModelError
from detectkit.heads import Level
from detectkit.heads.grid_layers import GridLayers
from detectkit.heads.layers import L2Normalisation, MaxPool2dSame, WeightedSum
from detectkit.model import checkpoint
from detectkit.model.base import Backbone
from detectkit.model.detector import Detector, build
from detectkit.spec import ModelConfig, PruningConfig
from detectkit.spec.networks import NETWORKS


def readings(network: nn.Module, found: Wiring) -> Iterator[tuple[str, int, Group]]:
    """The convolutions that look across channels, with each group that they take and its first input channel."""
    for name, groups in found.takes.items():
        layer, first = network.get_submodule(name), 0
        if isinstance(layer, nn.Conv2d) and not is_depthwise(layer):
            for group in groups:
                yield name, first, group
                first += group.width


# By hand


class Net(nn.Module):
    """Layers by name, and a function of them and the image."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, image: Tensor) -> Tensor:
        return self.run(self, image)


def conv(before, after, groups=1):
    return nn.Conv2d(before, after, 1, groups=groups)


def told(network, channels=3):
    """A line a group: layers that give it > layers that take it: width; +n where it begins at their channel n."""
    found, lines = wiring(network, channels), []
    for group in found.groups:
        takers = [(name, first) for name, first, other in readings(network, found) if other is group]
        gives, takes = (
            " ".join(f"{name}+{first}" if first else name for name, first in side)
            for side in (group.members, takers)
        )
        period = f" by {group.period}" if group.period < group.width else ""
        lines.append(f"{gives} > {takes}: {group.width}{period}{' fixed' * group.fixed}")
    return lines


def test_a_chain():
    layers = {"stem": conv(3, 8), "norm": nn.BatchNorm2d(8), "head": conv(8, 2)}
    net = Net(lambda n, x: n.head(functional.relu(n.norm(n.stem(x)))), **layers)
    assert told(net) == [" > stem: 3 fixed", "stem norm > head: 8", "head > : 2 fixed"]


def test_a_residual_sum_ties_both_sides():
    def run(net, image):
        start = net.norm(net.stem(image))
        return net.head(start + net.two(net.one(start)))

    layers = {"stem": conv(3, 8), "norm": nn.BatchNorm2d(8), "one": conv(8, 4), "two": conv(4, 8)}
    net = Net(run, **layers, head=conv(8, 2))
    assert told(net) == [
        " > stem: 3 fixed",
        "stem norm two > one head: 8",
        "one > two: 4",
        "head > : 2 fixed",
    ]


@pytest.mark.parametrize(
    "join", [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, lambda a, b: a - b]
)
def test_whatever_joins_value_by_value_ties(join):
    net = Net(lambda n, x: n.head(join(n.one(x), n.two(x))), one=conv(3, 8), two=conv(3, 8), head=conv(8, 2))
    assert told(net) == [" > one two: 3 fixed", "one two > head: 8", "head > : 2 fixed"]


def test_a_chain_of_sums_is_one_group():
    def run(net, image):
        value = net.stem(image)
        for layer in (net.one, net.two):
            value = value + layer(value)
        value += net.three(image)
        return net.head(value)

    names = {"stem": conv(3, 8), "one": conv(8, 8), "two": conv(8, 8), "three": conv(3, 8)}
    assert told(Net(run, **names, head=conv(8, 2))) == [
        " > stem three: 3 fixed",
        "stem one two three > one two head: 8",
        "head > : 2 fixed",
    ]


def test_behind_a_concatenation_groups_have_places():
    def run(net, image):
        both = net.norm(torch.cat([net.one(image), net.two(image)], 1))
        return net.head(net.other(image) * torch.sigmoid(net.mix(both)))

    layers = {"one": conv(3, 8), "two": conv(3, 4), "norm": nn.BatchNorm2d(12), "other": conv(3, 6)}
    assert told(Net(run, **layers, mix=conv(12, 6), head=conv(6, 2))) == [
        " > one two other: 3 fixed",
        "one norm > mix: 8",
        "two norm+8 > mix+8: 4",
        "other mix > head: 6",
        "head > : 2 fixed",
    ]


def test_a_value_twice_in_a_concatenation():
    def run(net, image):
        one, two = net.one(image), net.two(image)
        return net.head(torch.cat(tensors=(one, two, one), dim=1))

    assert told(Net(run, one=conv(3, 8), two=conv(3, 4), head=conv(20, 2))) == [
        " > one two: 3 fixed",
        "one > head head+12: 8",
        "two > head+8: 4",
        "head > : 2 fixed",
    ]


def test_a_concatenation_with_the_image():
    net = Net(lambda n, x: n.head(torch.cat([n.one(x), x], dim=1)), one=conv(3, 8), head=conv(11, 2))
    assert told(net) == [" > one head+8: 3 fixed", "one > head: 8", "head > : 2 fixed"]


def test_concatenations_of_equal_parts_are_tied_part_by_part():
    def run(net, image):
        first = torch.cat([net.a(image), net.b(image)], 1)
        return net.head(first + torch.cat([net.c(image), net.d(image)], 1))

    layers = {"a": conv(3, 8), "b": conv(3, 4), "c": conv(3, 8), "d": conv(3, 4)}
    assert told(Net(run, **layers, head=conv(12, 2))) == [
        " > a b c d: 3 fixed",
        "a c > head: 8",
        "b d > head+8: 4",
        "head > : 2 fixed",
    ]


def test_a_concatenation_that_is_added_to_a_wide_convolution_keeps_all():
    def run(net, image):
        both = torch.cat([net.a(image), net.b(image)], 1)
        return net.head(net.after(both + net.wide(image)))

    layers = {"a": conv(3, 8), "b": conv(3, 4), "wide": conv(3, 12), "after": conv(12, 6)}
    assert told(Net(run, **layers, head=conv(6, 2))) == [
        " > a b wide: 3 fixed",
        "a > after: 8 fixed",
        "b > after+8: 4 fixed",
        "wide > : 12 fixed",
        "after > head: 6",
        "head > : 2 fixed",
    ]


def test_a_depthwise_convolution_gives_what_it_takes():
    net = Net(lambda n, x: n.head(n.deep(n.stem(x))), stem=conv(3, 8), deep=conv(8, 8, 8), head=conv(8, 2))
    assert is_depthwise(net.deep) and not is_depthwise(net.stem) and not is_depthwise(conv(1, 1))
    assert told(net) == [" > stem: 3 fixed", "stem deep > head: 8", "head > : 2 fixed"]


def test_a_depthwise_convolution_behind_a_concatenation():
    def run(net, image):
        return net.head(net.deep(torch.cat([net.one(image), net.two(image)], 1)))

    assert told(Net(run, one=conv(3, 8), two=conv(3, 4), deep=conv(12, 12, 12), head=conv(12, 2))) == [
        " > one two: 3 fixed",
        "one deep > head: 8",
        "two deep+8 > head+8: 4",
        "head > : 2 fixed",
    ]


def test_a_grouped_convolution_repeats_on_both_sides():
    net = Net(lambda n, x: n.head(n.mid(n.stem(x))), stem=conv(3, 12), mid=conv(12, 24, 3), head=conv(24, 2))
    assert told(net) == [" > stem: 3 fixed", "stem > mid: 12 by 4", "mid > head: 24 by 8", "head > : 2 fixed"]


def test_grouped_convolutions_of_one_value_repeat_at_the_common_divisor():
    def run(net, image):
        value = net.stem(image)
        return net.head(net.two(value) + net.three(value))

    layers = {"stem": conv(3, 12), "two": conv(12, 12, 2), "three": conv(12, 12, 3)}
    assert told(Net(run, **layers, head=conv(12, 2))) == [  # 12 / 2 and 12 / 3: 6 and 4
        " > stem: 3 fixed",
        "stem > two three: 12 by 2",
        "two three > head: 12 by 2",
        "head > : 2 fixed",
    ]


def test_a_grouped_convolution_behind_a_concatenation_fixes_it():
    def run(net, image):
        return net.head(net.mid(torch.cat([net.one(image), net.two(image)], 1)))

    found = told(Net(run, one=conv(3, 8), two=conv(3, 4), mid=conv(12, 6, 2), head=conv(6, 2)))
    assert found[1].endswith(" fixed") and found[2].endswith(" fixed")
    assert found[3:] == ["mid > head: 6 by 3", "head > : 2 fixed"]


def test_a_layer_that_gives_many_channels_for_each_takes_all_or_none():
    net = Net(lambda n, x: n.head(n.mid(n.stem(x))), stem=conv(3, 4), mid=conv(4, 8, 4), head=conv(8, 2))
    assert told(net) == [" > stem: 3 fixed", "stem > mid: 4 by 1", "mid > head: 8 by 2", "head > : 2 fixed"]


def test_a_layer_that_is_used_twice_ties_what_it_takes_and_gives():
    def run(net, image):
        return net.head(torch.cat([net.same(net.one(image)), net.same(net.two(image))], 1))

    assert told(Net(run, one=conv(3, 8), two=conv(3, 8), same=conv(8, 4), head=conv(8, 2))) == [
        " > one two: 3 fixed",
        "one two > same: 8",
        "same > head head+4: 4",
        "head > : 2 fixed",
    ]


def test_a_layer_that_takes_what_it_gives():
    def run(net, image):
        return net.head(net.same(net.same(net.stem(image))))

    assert told(Net(run, stem=conv(3, 8), same=conv(8, 8), head=conv(8, 2))) == [
        " > stem: 3 fixed",
        "stem same > same head: 8",
        "head > : 2 fixed",
    ]


def test_a_batch_normalisation_that_is_shared():
    def run(net, image):
        return net.head(torch.cat([net.norm(net.one(image)), net.norm(net.two(image))], 1))

    assert told(Net(run, one=conv(3, 8), two=conv(3, 8), norm=nn.BatchNorm2d(8), head=conv(16, 2))) == [
        " > one two: 3 fixed",
        "one norm two > head head+8: 8",
        "head > : 2 fixed",
    ]


def test_squeeze_and_excitation():
    def run(net, image):
        value = net.stem(image)
        gate = net.sigmoid(net.up(net.act(net.down(net.pool(value)))))
        return net.head(gate * value)

    layers = {"pool": nn.AdaptiveAvgPool2d(1), "act": nn.SiLU(), "sigmoid": nn.Sigmoid()}
    net = Net(run, **layers, stem=conv(3, 8), down=conv(8, 2), up=conv(2, 8), head=conv(8, 2))
    assert told(net) == [
        " > stem: 3 fixed",
        "stem up > down head: 8",
        "down > up: 2",
        "head > : 2 fixed",
    ]


def test_one_channel_for_all_is_a_group_of_its_own():
    def run(net, image):
        value = net.stem(image)
        return net.head(net.gate(value) * value + net.offset)

    net = Net(run, stem=conv(3, 8), gate=conv(8, 1), head=conv(8, 2))
    net.offset = nn.Parameter(torch.zeros(()))
    assert told(net) == [
        " > stem: 3 fixed",
        "stem > gate head: 8",
        "gate > : 1",
        "head > : 2 fixed",
    ]


def test_a_constant_of_every_channel_keeps_them():
    net = Net(lambda n, x: n.head(n.stem(x) / n.scale), stem=conv(3, 8), head=conv(8, 2))
    net.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
    assert told(net) == [" > stem: 3 fixed", "stem > head: 8 fixed", "head > : 2 fixed"]


def test_what_goes_out_is_kept():
    def run(net, image):
        value = net.stem(image)
        return net.head(value), value

    assert told(Net(run, stem=conv(1, 8), head=conv(8, 2)), channels=1) == [
        " > stem: 1 fixed",
        "stem > head: 8 fixed",
        "head > : 2 fixed",
    ]


def test_what_is_reshaped_and_goes_out_is_kept():
    def run(net, image):
        value = net.stem(image)
        return torch.cat([net.one(value).flatten(2), net.two(value).permute(0, 2, 3, 1).flatten(1, 2)], 1)

    assert told(Net(run, stem=conv(3, 8), one=conv(8, 2), two=conv(8, 4))) == [
        " > stem: 3 fixed",
        "stem > one two: 8",
        "one > : 2 fixed",
        "two > : 4 fixed",
    ]


def test_a_convolution_of_reshaped_channels_is_one_error():
    net = Net(
        lambda n, x: n.head(n.stem(x).unflatten(1, (2, 4)).flatten(1, 2)), stem=conv(3, 8), head=conv(8, 2)
    )
    with pytest.raises(
        ModelError, match="^cannot prune: head reads channels that were reshaped or transposed"
    ):
        wiring(net, 3)


@pytest.mark.parametrize(
    ("run", "layer", "named"),
    [
        (lambda n, x: functional.pixel_shuffle(n.stem(x), 2), None, "pixel_shuffle"),
        (lambda n, x: n.last(torch.flatten(n.stem(x), 1)), nn.Linear(8, 2), r"last \(Linear\("),
        (lambda n, x: n.last(n.stem(x)), nn.Linear(8, 2), r"last \(Linear\("),
        (lambda n, x: n.last(n.stem(x)), nn.ConvTranspose2d(8, 2, 1), r"last \(ConvTranspose2d\("),
        (lambda n, x: torch.cat([n.stem(x), x], 2), None, "cat"),
        (lambda n, x: torch.cat([n.stem(x), x]), None, "cat"),
        (lambda n, x: n.stem(x)[:, :4], None, "getitem"),
    ],
)
def test_what_is_not_known_is_one_error(run, layer, named):
    net = Net(run, stem=conv(3, 8), **({} if layer is None else {"last": layer}))
    with pytest.raises(ModelError, match=f"^it is not known what {named}"):
        wiring(net, 3)


# Against Torch-Pruning

ALL = [(arch, depth) for arch, network in NETWORKS.items() for depth in network.depths or (0,)]
QUICK = {
    *(("resnet", 10), ("resnet", 18), ("resnet", 50), ("vgg", 16), ("darknet", 19), ("darknet", 53)),
    *(("mobilenet_v1", 0), ("mobilenet_v2", 0), ("squeezenet", 0), ("googlenet", 0), ("efficientnet_b0", 0)),
    ("efficientnet_lite0", 0),
}
CHOICES = [
    {"use_pooling": True},
    {"all_projections": True},
    {"use_batch_norm": False},
    {"use_pooling": True, "all_projections": True, "use_batch_norm": False},
]


def detector(arch, depth, **choices):
    """Without values."""
    config = ModelConfig(**{"arch": arch, "num_layers": depth, "use_batch_norm": True} | choices)
    with torch.device("meta"):
        return build(config, ["car", "bus"], 3)


def ours(network, found, group, channel):
    """What goes with a channel of a group: (layer, "out" or "in", its channel there)."""
    gives = {(layer, "out", first + channel) for layer, first in group.members}
    takes = readings(network, found)
    return gives | {(name, "in", first + channel) for name, first, other in takes if other is group}


def theirs(network, graph, group, channel):
    """The same of Torch-Pruning, beginning with the first layer of the group."""
    names = {layer: name for name, layer in network.named_modules()}
    scales = {layer.scale: name for layer, name in names.items() if isinstance(layer, L2Normalisation)}
    names |= scales
    root, found = network.get_submodule(group.members[0].layer), set()
    prune = torch_pruning.prune_conv_out_channels
    for dependency, channels in graph.get_pruning_group(root, prune, idxs=[channel]):
        layer = dependency.target.module
        across = isinstance(layer, nn.Conv2d) and not is_depthwise(layer)
        side = "in" if across and graph.is_in_channel_pruning_fn(dependency.handler) else "out"
        # Of parameters that are no layer's it knows no better than that the last axis may be one of channels.
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) or layer in scales:
            found |= {(names[layer], side, number) for number in channels}
    return found


def both(network):
    """Our groups and Torch-Pruning's: what goes with the first and with the last channel of each."""
    found = wiring(network, 3)
    image = torch.zeros(1, 3, 64, 64, device="meta")
    graph = torch_pruning.DependencyGraph().build_dependency(network, [image], verbose=False)
    prunable = [group for group in found.groups if not group.fixed]
    ends = [(group, channel) for group in prunable for channel in (0, group.width - 1)]
    return [ours(network, found, *end) for end in ends], [theirs(network, graph, *end) for end in ends]


@pytest.mark.parametrize(
    ("arch", "depth"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in QUICK)) for pair in ALL]
)
def test_every_backbone_has_the_groups_of_torch_pruning(arch, depth):
    network = detector(arch, depth)
    found, expected = both(network)
    assert found == expected
    pruned = {layer for group in found for layer, side, _ in group if side == "out"}
    layers = {
        name for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))
    }
    assert layers - pruned == {"output_cov", "output_bbox"}


@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
@pytest.mark.parametrize("depth", [10, 18, 50])
def test_every_resnet_has_the_groups_of_torch_pruning(depth, choices):
    found, expected = both(detector("resnet", depth, **choices))
    assert found == expected and len(found) > 10


@pytest.mark.parametrize("arch", ["mobilenet_v2", "efficientnet_b0", "googlenet", "darknet"])
def test_other_functions_and_no_batch_normalisation(arch):
    activation = ModelConfig.Activation(activation_type="elu")
    found, expected = both(detector(arch, 0, activation=activation, use_batch_norm=False))
    assert found == expected and len(found) > 10


def test_the_groups_of_resnet10():
    """A shortcut with a projection ties its stage: the convolution that ends a unit, and the projection."""
    lines = told(detector("resnet", 10))
    assert lines[:4] == [
        " > backbone.conv1: 3 fixed",
        "backbone.conv1 backbone.bn1 > backbone.layer1.0.conv1 backbone.layer1.0.downsample.0: 64",
        "backbone.layer1.0.conv1 backbone.layer1.0.bn1 > backbone.layer1.0.conv2: 64",
        "backbone.layer1.0.conv2 backbone.layer1.0.bn2 backbone.layer1.0.downsample.0 backbone.layer1.0.downsample.1"
        " > backbone.layer2.0.conv1 backbone.layer2.0.downsample.0: 64",
    ]
    assert lines[-2:] == ["output_cov > : 2 fixed", "output_bbox > : 8 fixed"] and len(lines) == 12


def test_a_pyramid_has_the_groups_of_torch_pruning(pyramid):
    """A convolution of all levels with a normalisation for each, weighted sums, resizing, L2 normalisation."""
    found, expected = both(pyramid.to("meta"))
    assert found == expected
    assert told(pyramid) == [
        " > fine.conv: 3 fixed",
        "fine.conv fine.bn mid.conv mid.bn unit > mid.conv shared: 8",
        "shared norms.0 norms.1 norms.2 > predict: 8",
        "predict > : 6 fixed",
    ]


# Against zeros


class Drawn(Backbone):
    """A network of steps (what, which value, which other, channels), and at last a convolution of all values.

    Values are counted from the newest, over and over; what does not fit becomes a convolution of the first value.
    """

    given = ("last",)

    def __init__(self, steps: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.stem, self.layers = _normalised(nn.Conv2d(3, 8, 3, padding=1)), nn.ModuleList()
        self.norms, self.weighted, self.pool = nn.ModuleList(), WeightedSum(2), MaxPool2dSame(3, 2, 1)
        self.plan: list[tuple[str, int, int, int]] = []  # what, layer, one, two
        widths = [8]
        for what, one, two, after in steps:
            one, two = (len(widths) - 1 - number % len(widths) for number in (one, two))
            before, layer = widths[one], max(len(self.layers) - 1, 0)
            if what == "resize" or (what in ("add", "gate", "weighted") and widths[two] == before):
                after = before
            elif what == "cat":
                after = before + widths[two]
            elif what in ("again", "level") and self.layers and self.layers[layer][0].in_channels == before:
                after = self.layers[layer][0].out_channels
                if what == "level":
                    two = len(self.norms)
                    self.norms.append(nn.BatchNorm2d(after))
            else:
                after, layer = before if what == "depthwise" else after, len(self.layers)
                groups = {"depthwise": before, "grouped": 2}.get(what, 1)
                what = "layer"
                self.layers.append(_normalised(nn.Conv2d(before, after, 3, padding=1, groups=groups)))
            self.plan.append((what, layer, one, two))
            widths.append(after)
        self.last = nn.Conv2d(sum(widths), 8, 1)

    def blocks(self) -> dict[int, nn.Module]:
        return {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        values = [self.stem(images)]
        for what, layer, one, two in self.plan:
            first, second = values[one], values[two]
            match what:
                case "add":
                    values.append(first + second)
                case "gate":
                    values.append(first * torch.sigmoid(second))
                case "cat":
                    values.append(torch.cat([first, second], 1))
                case "weighted":
                    values.append(self.weighted(first, second))
                case "resize":
                    values.append(self.pool(functional.interpolate(first, scale_factor=2)))
                case "level":  # the same convolution, with a normalisation of its own
                    values.append(functional.relu(self.norms[two](self.layers[layer][0](first))))
                case _:
                    values.append(self.layers[layer](first))
        return (self.last(torch.cat(values, 1)),)


def gridded(backbone: Backbone, *, classes: int) -> Detector:
    return Detector(backbone, GridLayers(ModelConfig(), backbone.levels, classes), channels=3)


def _normalised(layer: nn.Conv2d) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())


def drawn_detector(steps, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = gridded(Drawn(steps), classes=2).eval()
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):  # a dropped channel shall be far from 0
                nn.init.normal_(layer.weight)
                nn.init.uniform_(layer.bias, 1, 2)
    return made.requires_grad_(False)


def zeroed(detector, found, kept):
    """A copy in which every convolution reads the dropped channels with weights of 0."""
    copied = copy.deepcopy(detector)
    for name, first, group in readings(detector, found):
        layer = copied.get_submodule(name)
        # [convolution's group, filters, its input channels, height, width]
        weight = layer.weight.unflatten(0, (layer.groups, -1))
        for channel in set(range(group.width)) - set(kept[group].tolist()):
            place, column = divmod(first + channel, weight.shape[2])
            weight[place, :, column] = 0
    return copied


STEPS = st.tuples(
    st.sampled_from(
        ["conv", "add", "cat", "depthwise", "grouped", "again", "gate", "weighted", "resize", "level"]
    ),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([4, 8, 12]),
)


@settings(max_examples=100)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=7),
    seed=st.integers(0, 1000),
    share=st.floats(0.1, 0.95),
    granularity=st.integers(1, 3),
)
def test_a_cut_changes_no_more_than_zeros_would(steps, seed, share, granularity):
    before = drawn_detector(steps, seed)
    config = PruningConfig(granularity=granularity, min_num_filters=1)
    pruner = Pruner(before, config, spec.Experiment())
    thresholds = pruner.thresholds()
    threshold = thresholds[int(share * (len(thresholds) - 1))]
    kept = {group: torch.arange(group.width) for group in pruner.wiring.groups}
    for group, values in pruner.importance.items():
        kept[group] = retained(values, threshold, width=group.width, config=config)
    after = pruner.pruned(threshold).detector
    for name, groups in pruner.wiring.gives.items():
        assert len(after.get_submodule(name).weight) == sum(len(kept[group]) for group in groups)
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    for got, wanted in zip(after(images), zeroed(before, pruner.wiring, kept)(images), strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


class Scaled(nn.Module):
    """Unit vectors over the channels, and the same convolution on two levels, with a normalisation for each."""

    given = ("sum",)

    def __init__(self) -> None:
        super().__init__()
        self.levels = (Level("unit", 1, 8),)
        self.stem, self.unit = _normalised(nn.Conv2d(3, 8, 3, padding=1)), L2Normalisation(8)
        self.shared, self.pool = nn.Conv2d(8, 8, 1, bias=False), nn.MaxPool2d(2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def blocks(self) -> dict[int, nn.Module]:
        return {}

    def widths_changed(self) -> None:
        """There is nothing to forget."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.unit(self.stem(images))
        fine, coarse = (norm(self.shared(level)) for norm, level in zip(self.norms, (fine, self.pool(fine))))
        return (fine + functional.interpolate(coarse, scale_factor=2),)


def test_channels_of_zeros_are_cut_from_all_levels_at_once(tmp_path):
    torch.manual_seed(0)
    before = gridded(Scaled(), classes=2).eval().requires_grad_(False)
    norms, kept = (before.backbone.stem[1], *before.backbone.norms), [1, 2, 4, 7]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(0.1, 0.5)
        for values in (norm.weight, norm.bias):
            values[[channel for channel in range(8) if channel not in kept]] = 0
    before.backbone.unit.scale.copy_(torch.arange(8.0))
    config = PruningConfig(granularity=1, min_num_filters=1, criterion=PruningConfig.BATCH_NORM_SCALE)
    after = Pruner(before, config, spec.Experiment()).pruned(0).detector
    assert after.backbone.unit.scale.tolist() == kept
    assert after.backbone.shared.weight.shape == (4, 4, 1, 1)
    assert [norm.num_features for norm in after.backbone.norms] == [4, 4]
    assert set(after.state_dict()) == set(before.state_dict())  # one tensor for both levels
    checkpoint.save(tmp_path / "model.safetensors", after, spec.dumps(spec.Experiment()), ["car", "bus"])
    loaded = gridded(Scaled(), classes=2).eval()
    checkpoint.fill(loaded, safetensors.torch.load_file(tmp_path / "model.safetensors"), "model.safetensors")
    images = torch.rand(2, 3, 8, 8)
    for got, read, wanted in zip(after(images), loaded(images), before(images), strict=True):
        assert wanted.std() > 1e-3 and torch.equal(got, read)
        torch.testing.assert_close(got, wanted)
