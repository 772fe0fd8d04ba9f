"""What filters count: their statistics, how a layer's are made comparable, and how tied layers agree."""

import copy

import pytest
import torch
from torch import nn

from detectkit.compress.graph import Group, Member
from detectkit.compress.importance import (
    batch_norm_scales,
    importance,
    joint_slope,
    mean_costs,
    norms,
    taylor,
)
from detectkit.compress.prune import Pruner
from detectkit.data.augment import prepare
from detectkit.data.records import training_frames
from detectkit.data.workers import loader, training_order
from detectkit.errors import ModelError
from detectkit.heads.grid import GridHead
from detectkit.model.detector import build
from detectkit.spec import Experiment, ModelConfig, PruningConfig, class_names


def detector(arch="mobilenet_v2", channels=3, **choices):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = ModelConfig(**{"arch": arch, "use_batch_norm": True} | choices)
        return build(config, ["square", "bar"], channels).eval()


def group_of(pruner, layer):
    """The importance of the group that begins with a layer."""
    return next(values for group, values in pruner.importance.items() if group.members[0].layer == layer)


def group(width, *members, period=None):
    return Group(width, period or width, members=[Member(*member) for member in members])


def close(values, expected):
    return torch.allclose(values, torch.tensor(expected), rtol=1e-5, atol=1e-7)


# Statistics


def test_the_norm_of_a_filter():
    """Of a depthwise convolution it is that of each channel's kernel."""
    layers = {"conv": nn.Conv2d(2, 3, (1, 2)), "deep": nn.Conv2d(2, 2, (1, 2), groups=2), "act": nn.ReLU()}
    network = nn.ModuleDict(layers)
    with torch.no_grad():
        for layer in (network["conv"], network["deep"]):
            layer.bias.fill_(100)
        # Filters, each of two channels of 1 x 2 pixels.
        network["conv"].weight.copy_(
            torch.tensor([[[[3, 0]], [[0, 4]]], [[[1, -1]], [[1, 1]]], [[[0, 0]]] * 2])
        )
        network["deep"].weight.copy_(torch.tensor([[[[6.0, -8.0]]], [[[0.0, 2.0]]]]))
    found = norms(network)
    assert list(found) == ["conv", "deep"]
    assert found["conv"].tolist() == [5, 2, 0]
    assert found["deep"].tolist() == [10, 2]
    assert not found["conv"].requires_grad


def test_the_scale_of_a_batch_normalisation():
    network = detector("resnet", num_layers=10)
    with torch.no_grad():
        network.backbone.bn1.weight.fill_(0.5)[:3] = torch.tensor([-2.0, 0.0, 1.0])
    found = batch_norm_scales(network)
    assert found["backbone.bn1"][:4].tolist() == [2, 0, 1, 0.5] and not found["backbone.bn1"].requires_grad
    assert found.keys() == {
        name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }


@pytest.mark.parametrize(
    ("choices", "title"),
    [
        ({"arch": "squeezenet"}, "squeezenet"),
        (
            {"arch": "resnet", "num_layers": 10, "use_batch_norm": False},
            "resnet 10 without batch normalisation",
        ),
    ],
)
def test_without_batch_normalisation_there_is_no_scale(choices, title):
    with pytest.raises(ModelError) as error:
        batch_norm_scales(detector(**choices))
    text = f"criterion: BATCH_NORM_SCALE needs batch normalisation ({title}): use NORM or TAYLOR"
    assert str(error.value) == text


def test_gates_have_no_batch_normalisation_and_count_by_their_norms():
    network = detector("efficientnet_b0")
    gate = network.get_submodule("backbone.features.2.0.block.2.fc1")
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None].expand_as(gate.weight))
        network.get_submodule("backbone.features.2.0.block.1.1").weight.copy_(torch.arange(96) - 48)
    pruner = Pruner(network, PruningConfig(criterion=PruningConfig.BATCH_NORM_SCALE), Experiment())
    assert close(group_of(pruner, "backbone.features.2.0.block.2.fc1"), [0.25, 0.5, 0.75, 1.0])
    # Two batch normalisations, of the expansion (all 1) and of the depthwise convolution, have a say; the gate's
    # second convolution does not.
    assert close(group_of(pruner, "backbone.features.2.0.block.0.0"), [1.0] * 96)
    config = PruningConfig(
        criterion=PruningConfig.BATCH_NORM_SCALE, equalization_criterion=PruningConfig.INTERSECTION
    )
    least = group_of(Pruner(network, config, Experiment()), "backbone.features.2.0.block.0.0")
    assert close(least, [abs(number - 48) / 48 for number in range(96)])


# Normalised and combined


@pytest.mark.spec_field("PruningConfig.normalizer")
@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (PruningConfig.MAX, [1.0, 0.4, 0.0]),  # 5, 2 and 0 over 5
        (PruningConfig.L2, [2.7854301, 1.1141720, 0.0]),  # times 3 over the root of 5² + 2²
    ],
)
def test_statistics_of_a_layer_are_made_comparable(normalizer, expected):
    statistics = {"conv": torch.tensor([5.0, 2.0, 0.0])}
    config = PruningConfig(normalizer=normalizer)
    assert close(importance(group(3, ("conv", 0)), statistics, config), expected)
    thousandfold = {"conv": 1000 * statistics["conv"]}
    assert close(importance(group(3, ("conv", 0)), thousandfold, config), expected)


def test_n_equal_filters_have_the_root_of_n():
    config = PruningConfig(normalizer=PruningConfig.L2)
    assert close(importance(group(16, ("a", 0)), {"a": torch.full((16,), 0.1)}, config), [4.0] * 16)


@pytest.mark.parametrize("normalizer", PruningConfig.Normalizer.values())
def test_a_layer_of_zeros_counts_nothing(normalizer):
    config = PruningConfig(normalizer=normalizer)
    assert importance(group(4, ("a", 0)), {"a": torch.zeros(4)}, config).tolist() == [0] * 4


@pytest.mark.spec_field("PruningConfig.equalization_criterion")
@pytest.mark.parametrize(
    ("criterion", "two", "three"),
    [
        (PruningConfig.UNION, [1.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]),
        (PruningConfig.INTERSECTION, [0.25, 0.5, 0.25, 0.0], [0.25, 0.5, 0.25, 0.0]),
        (PruningConfig.ARITHMETIC_MEAN, [0.625, 0.5, 0.625, 0.5], [0.5833333, 0.6666667, 0.75, 0.6666667]),
        (PruningConfig.GEOMETRIC_MEAN, [0.5, 0.5, 0.5, 0.0], [0.5, 0.6299605, 0.6299605, 0.0]),
    ],
)
def test_tied_layers_agree(criterion, two, three):
    statistics = {
        "a": torch.tensor([4.0, 2.0, 1.0, 0.0]),  # 1, 0.5, 0.25, 0
        "b": torch.tensor([2.0, 4.0, 8.0, 8.0]),  # 0.25, 0.5, 1, 1
        "c": torch.tensor([0.1, 0.2, 0.2, 0.2]),  # 0.5, 1, 1, 1
    }
    config = PruningConfig(equalization_criterion=criterion)
    assert close(importance(group(4, ("a", 0), ("b", 0)), statistics, config), two)
    assert close(importance(group(4, ("a", 0), ("b", 0), ("c", 0)), statistics, config), three)


def test_what_is_dead_in_one_layer_is_nothing_in_the_geometric_mean():
    """A threshold of 0 drops it."""
    statistics = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 1.0])}
    config = PruningConfig(equalization_criterion=PruningConfig.GEOMETRIC_MEAN)
    assert importance(group(2, ("a", 0), ("b", 0)), statistics, config).tolist() == [1, 0]


def test_union_is_the_default():
    statistics = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
    assert close(importance(group(2, ("a", 0), ("b", 0)), statistics, PruningConfig()), [1.0, 1.0])


def test_layers_without_a_statistic_do_not_count():
    config = PruningConfig(equalization_criterion=PruningConfig.INTERSECTION)
    found = importance(group(2, ("conv", 0), ("norm", 0)), {"conv": torch.tensor([4.0, 1.0])}, config)
    assert close(found, [1.0, 0.25])


def test_a_part_of_a_layer_is_measured_by_the_whole():
    """Batch normalisation behind a concatenation: channels 1 and 2 of its four are the group's."""
    statistics = {"norm": torch.tensor([8.0, 4.0, 2.0, 1.0])}
    assert close(importance(group(2, ("norm", 1)), statistics, PruningConfig()), [0.5, 0.25])


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (PruningConfig.UNION, [1.0, 0.5]),
        (PruningConfig.INTERSECTION, [0.25, 0.0]),
        (PruningConfig.ARITHMETIC_MEAN, [0.625, 0.25]),
        (PruningConfig.GEOMETRIC_MEAN, [0.5, 0.0]),
    ],
)
def test_channels_a_period_apart_agree_too(criterion, expected):
    statistics = {"grouped": torch.tensor([4.0, 2.0, 1.0, 0.0])}  # 1 and 0.25, 0.5 and 0
    config = PruningConfig(equalization_criterion=criterion)
    assert close(importance(group(4, ("grouped", 0), period=2), statistics, config), expected)


def test_the_slopes_of_tied_layers_are_summed_in_the_unit_of_the_cost():
    """3-4-5, and no layer is measured by its own greatest."""
    statistics = {"a": torch.tensor([3.0, 0.0, 1.0, 9.0]), "b": torch.tensor([4.0, 2.0])}
    found = joint_slope(group(2, ("a", 0), ("b", 0), ("c", 0)), statistics)
    assert close(found, [5.0, 2.0])
    assert close(joint_slope(group(4, ("a", 0), period=2), statistics), [10**0.5, 9.0])  # 3 and 1, 0 and 9


@pytest.mark.spec_field("PruningConfig.criterion")
def test_the_criterion_chooses_the_statistic(tiny):
    network = detector("resnet", num_layers=10)
    unit = network.get_submodule("backbone.layer1.0")
    with torch.no_grad():
        unit.conv1.weight.copy_(torch.arange(64)[:, None, None, None].expand_as(unit.conv1.weight) / 1000)
        unit.bn1.weight.copy_(1 - torch.arange(64) / 64)
        unit.conv2.weight[:, :32] = 0  # what is made of the first half is not looked at
    found = {}
    for criterion in PruningConfig.Criterion.values():
        config = PruningConfig(criterion=criterion, calibration_batches=1)
        found[criterion] = group_of(Pruner(network, config, tiny), "backbone.layer1.0.conv1")
    assert close(found[PruningConfig.NORM], [number / 63 for number in range(64)])
    assert close(found[PruningConfig.BATCH_NORM_SCALE], [1 - number / 64 for number in range(64)])
    assert found[PruningConfig.TAYLOR][:32].tolist() == [0] * 32
    assert found[PruningConfig.TAYLOR][32:].min() > 0 and found[PruningConfig.TAYLOR].max() == 1


# The cost of training images


class Gated:
    """Multiplies each channel of a network by a gate of 1 for each image, through hooks.

    A convolution without bias has a batch normalisation behind it, whose channels have the gates.
    """

    def __init__(self, network, images):
        self.network = copy.deepcopy(network)
        self.gates = {}
        for name, layer in self.network.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) and layer.bias is not None:
                self.gates[name] = torch.ones(images, len(layer.bias), 1, 1, requires_grad=True)
                layer.register_forward_hook(lambda _, __, values, name=name: values * self.gates[name])

    def costs(self, experiment, prepared):
        """By class and objective, [2, 2]."""
        head = GridHead(experiment, self.network.outline)
        costs = head.costs(self.network(prepared.images), head.targets(prepared), prepared.weights)
        return torch.stack(list(costs.values()), dim=1)


def training_batches(experiment, count):
    frames = training_frames(experiment.dataset_config, class_names(experiment))
    size, augmentation = experiment.training_config.batch_size_per_gpu, experiment.augmentation_config
    order = training_order(frames.groups(), size, seed=experiment.random_seed, epoch=0)[: size * count]
    for batch in loader(frames, augmentation, batch_size=size, order=order, workers=0):
        yield prepare(batch, augmentation, generator=None, device="cpu")


@pytest.mark.parametrize("arch", ["mobilenet_v2", "squeezenet", "efficientnet_b0", "efficientnet_lite0"])
def test_taylor_is_the_gradient_of_a_gate(arch, tiny):
    """The root of its mean square over the images, of costs that count alike; squeezenet has no batch normalisation."""
    network = detector(arch)
    gated, drawn = Gated(network, images=4), list(training_batches(tiny, 2))
    costs = [gated.costs(tiny, prepared) for prepared in drawn]
    mean = sum(costs).detach() / 2
    assert mean.min() > 0 and mean.max() > 3 * mean.min()
    squares = {name: 0 for name in gated.gates}
    for cost in costs:
        gradients = torch.autograd.grad((cost / mean).sum(), list(gated.gates.values()))
        for name, gradient in zip(squares, gradients, strict=True):
            squares[name] = squares[name] + (4 * gradient.flatten(1)).square().sum(0)
    found = taylor(network, tiny, batches=2)
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        expected = (square / 8).sqrt()
        assert expected.max() > 0, name
        assert torch.allclose(found[name], expected, rtol=1e-3, atol=1e-4 * float(expected.max())), name


def test_taylor_is_the_slope_of_the_costs(tiny):
    """By differences on one image: the channel that counts most in a layer, made 2 % stronger and weaker."""
    network = detector(activation=ModelConfig.Activation(activation_type="swish"))  # has a slope everywhere
    tiny.training_config.batch_size_per_gpu = 1
    found = taylor(network, tiny, batches=1)
    (prepared,) = training_batches(tiny, 1)
    with torch.no_grad():
        whole = Gated(network, images=1).costs(tiny, prepared)
    for name in ("backbone.features.0.1", "backbone.features.7.conv.3", "output_cov", "output_bbox"):
        gated, best = Gated(network, images=1), int(found[name].argmax())
        costs = []
        for gate in (0.98, 1.02):
            with torch.no_grad():
                gated.gates[name][0, best] = gate
                costs.append(float((gated.costs(tiny, prepared) / whole).sum()))
        assert abs(costs[1] - costs[0]) / 0.04 == pytest.approx(float(found[name][best]), rel=0.01), name


def test_costs_that_classes_share_count_as_one_more(tiny, monkeypatch):
    """A head with a cost for each class and one for all: the gradient of a gate behind it."""

    class Head(GridHead):
        def costs(self, outputs, targets, image_weights):
            found = super().costs(outputs, targets, image_weights)
            return {"bbox": found["bbox"].sum(), "cov": found["cov"]}

    monkeypatch.setattr("detectkit.compress.importance.make_head", Head)
    network = detector()
    means = mean_costs(network, tiny, batches=2)
    assert {name: tuple(cost.shape) for name, cost in means.items()} == {"bbox": (), "cov": (2,)}
    gated, squares = Gated(network, images=4), 0
    for prepared in training_batches(tiny, 2):
        costs = gated.costs(tiny, prepared)
        cost = costs[:, 1].sum() / means["bbox"] + (costs[:, 0] / means["cov"]).sum()
        gate = gated.gates["backbone.features.0.1"]
        squares = squares + (4 * torch.autograd.grad(cost, gate)[0].flatten(1)).square().sum(0)
    found = taylor(network, tiny, batches=2)["backbone.features.0.1"]
    assert torch.allclose(found, (squares / 8).sqrt(), rtol=1e-3)


def test_a_class_without_a_box_counts_by_its_coverage_alone(tiny):
    """Its box cost is 0, and stays out."""
    network = detector()
    for key in list(tiny.dataset_config.target_class_mapping):
        if key == "bar":
            del tiny.dataset_config.target_class_mapping[key]
    found = taylor(network, tiny, batches=1)
    assert all(values.isfinite().all() for values in found.values())
    assert found["output_cov"].min() > 0
    assert found["output_bbox"][:4].min() > 0 and found["output_bbox"][4:].max() == 0


def test_taylor_leaves_the_detector_as_it_is_and_gives_the_same_twice(tiny):
    network = detector(dropout_rate=0.5)
    first = taylor(network, tiny, batches=2)
    network.train().backbone.features[0].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    trained = {name: weight.requires_grad for name, weight in network.named_parameters()}
    random = torch.get_rng_state()
    second = taylor(network, tiny, batches=2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {name: weight.requires_grad for name, weight in network.named_parameters()} == trained
    assert all(weight.grad is None for weight in network.parameters())
    assert all(layer.training for layer in network.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.spec_field("PruningConfig.calibration_batches")
@pytest.mark.parametrize(("batches", "seen"), [(1, [4]), (3, [4, 4, 4]), (100, [4, 4, 4, 4, 4])])
def test_the_number_of_batches(batches, seen, tiny):
    """18 pictures in batches of 4 are five batches, which are gone through twice: for the costs, and for their slopes."""
    network, sizes = detector(), []
    network.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    config = PruningConfig(criterion=PruningConfig.TAYLOR, calibration_batches=batches)
    pruner = Pruner(network, config, tiny)
    assert sizes == 2 * seen
    statistics = taylor(network, tiny, batches=batches)
    for group, values in pruner.importance.items():
        assert torch.equal(values, importance(group, statistics, config))


def test_the_seed_draws_the_batches(tiny):
    network = detector()
    first = taylor(network, tiny, batches=1)["output_cov"]
    tiny.random_seed += 1
    assert not torch.equal(taylor(network, tiny, batches=1)["output_cov"], first)
