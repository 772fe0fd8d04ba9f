"""The table of operators, and how networks are read by it."""

import math

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from detectkit.errors import ModelError
from detectkit.model.base import Conv2dSame
from detectkit.heads.layers import MaxPool2dSame
from detectkit.model.operators import (
    KINDS,
    Values,
    axis_of,
    border_of,
    graph_of,
    kind_of,
    layer_of,
    onnx_operators,
    operands,
    receptive_field,
    resized_by,
    window_of,
)


def test_names_and_forms_are_there_once() -> None:
    names = [kind.name for kind in KINDS]
    forms = [form for kind in KINDS for form in kind.forms]
    assert len(set(names)) == len(names) and len(set(forms)) == len(forms)
    layers = [form for form in forms if isinstance(form, type)]
    below = [
        (one, other) for one in layers for other in layers if one is not other and issubclass(one, other)
    ]
    assert below == []  # else the order of the table would matter


def test_what_is_written_as_one_operator_is_one_of_onnx() -> None:
    written = onnx_operators(lambda kind: True)
    assert written <= {schema.name for schema in onnx.defs.get_all_schemas()}
    assert onnx_operators(lambda kind: kind.values is Values.FUSED) == {"Relu", "Clip"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.limits != (-math.inf, math.inf)])
def test_functions_stay_within_their_limits(kind) -> None:
    values = torch.linspace(-50, 50, 1001)
    for form in kind.forms:
        if kind.name == "softmax":
            run = form(dim=0) if isinstance(form, type) else lambda x: torch.softmax(x, 0)
        else:
            run = form() if isinstance(form, type) else form
        found = run(values)
        assert kind.limits[0] == pytest.approx(float(found.min()), abs=1e-9) and found.max() <= kind.limits[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values is Values.PICKED])
def test_what_is_picked_is_among_what_was_there(kind) -> None:
    arguments = {
        "max_pool": [nn.MaxPool2d(2)],
        "resize": [nn.Upsample(scale_factor=3)],
        "concatenate": [lambda x: torch.cat([x, x], 1)],
        "reshape": [lambda x: x.flatten(1)],
        "transpose": [lambda x: x.permute(0, 2, 3, 1)],
    }
    (run,) = arguments[kind.name]
    maps = torch.randn(1, 2, 4, 4)
    assert set(run(maps).flatten().tolist()) <= set(maps.flatten().tolist())


class Net(nn.Module):
    """A layer, and a function of it."""

    def __init__(self, layer: nn.Module, run=lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, images):
        return self.run(self.layer, images)


def read(layer, run=lambda layer, x: layer(x)):
    """The first node that takes the image."""
    return list(graph_of(Net(layer, run)).graph.nodes)[1]


def test_windows() -> None:
    skewed = read(nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(2, 1)))
    assert window_of(skewed) == ((3, 5), (2, 1), (2, 1)) and border_of(skewed, (8, 8)) == (1, 3, 1, 3)
    for layer in (Conv2dSame(3, 4, 3, 2), MaxPool2dSame(3, 2)):
        node = read(layer)
        assert window_of(node) == ((3, 3), (2, 2), (1, 1))
        assert border_of(node, (8, 9)) == (0, 1, 1, 1)
    for layer in (nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True)):
        node = read(layer)
        assert window_of(node) == ((2, 2), (2, 2), (1, 1)) and border_of(node, (7, 7)) == (0, 0, 0, 0)
    assert window_of(read(nn.Sigmoid())) is None


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: layer(x),
        lambda layer, x: functional.interpolate(x, scale_factor=2),
        lambda layer, x: functional.interpolate(x, None, 2.0, "nearest"),
    ],
)
def test_a_resize_repeats_pixels(run) -> None:
    node = read(nn.Upsample(scale_factor=2), run)
    assert kind_of(node).name == "resize" and resized_by(node) == 2
    assert resized_by(read(nn.MaxPool2d(2))) == 1


@pytest.mark.parametrize(
    ("layers", "pixels"),
    [
        # 3x3/2: 3; twice as large: a step of one pixel again; 3x3: +2, not +4
        ((nn.Conv2d(3, 3, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1)), 5),
        # 3 pixels of an image of twice the size are of 2 of its own
        ((nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1)), 2),
        ((MaxPool2dSame(3, 2, 1), nn.Conv2d(3, 3, 3, dilation=2)), 3 + 2 * 2 * 2),
        ((nn.AvgPool2d(2), nn.Conv2d(3, 3, 3)), 2 + 2 * 2),
    ],
)
def test_a_resize_makes_the_next_window_smaller(layers, pixels) -> None:
    assert receptive_field(nn.Sequential(*layers)) == pixels


def test_operands_are_in_order_and_as_often_as_they_are_taken() -> None:
    def run(layer, images):
        value = layer(images)
        return torch.cat([value, images, value], dim=1)

    *_, join, _ = graph_of(Net(nn.ReLU(), run)).graph.nodes
    assert [node.name for node in operands(join)] == ["layer", "images", "layer"] and layer_of(join) is None


@pytest.mark.parametrize(
    ("layer", "run", "named"),
    [
        (nn.GELU(), lambda layer, x: layer(x), r"layer \(GELU\(approximate='none'\)\)"),
        (nn.MaxPool2d(2, return_indices=True), lambda layer, x: layer(x), r"layer \(MaxPool2d\(.*\)\)"),
        (
            nn.Sequential(Net(nn.ReLU(), lambda layer, x: x.tanh())),
            lambda layer, x: layer(x),
            "tanh in layer.0",
        ),
        (nn.ReLU(), lambda layer, x: x + 1, "add"),
        (nn.ReLU(), lambda layer, x: functional.interpolate(x, (2, 2)), "interpolate"),
    ],
)
def test_what_is_not_known_is_named_with_its_layer(layer, run, named) -> None:
    with pytest.raises(ModelError, match=f"^it is not known what {named} does: use an operator that "):
        read(layer, run)


@pytest.mark.parametrize(
    "run", [lambda _, x: x.reshape(x.shape[0], -1, 9), lambda _, x: x.view(x.size(0), -1)]
)
def test_a_reshape_by_the_number_of_images_is_told_the_way(run) -> None:
    with pytest.raises(
        ModelError, match=r"(getattr_1|size) asks a tensor for its shape.*: use flatten\(.*unflatten\("
    ):
        read(nn.ReLU(), run)


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: layer(x),
        lambda _, x: torch.softmax(x, -1),
        lambda _, x: functional.softmax(x, dim=-1),
        lambda _, x: x.softmax(-1),
    ],
)
def test_a_softmax_has_an_axis(run) -> None:
    node = read(nn.Softmax(-1), run)
    assert kind_of(node).name == "softmax" and axis_of(node) == -1
    with pytest.raises(ModelError, match="what layer"):
        read(nn.Softmax())


def test_a_layer_with_the_name_of_a_method_is_no_such() -> None:
    network = Net(nn.ReLU(), lambda _, x: network.flatten(x))
    network.flatten = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"what flatten \(Linear"):
        graph_of(network)
