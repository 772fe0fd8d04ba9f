"""The flat list of operators: names, shapes and numbers that a writer needs."""

import numpy as np
import pytest
import torch
from torch import nn

from detectkit.deploy.half import half
from detectkit.deploy.ir import operators
from detectkit.deploy.onnx import check_against, to_model
from detectkit.errors import ModelError


def told(network, height=16, width=32):
    return [
        f"{' '.join(item.inputs)} > {item.kind} {item.output}: {' '.join(map(str, item.shape))}"
        for item in operators(network, height=height, width=width)
    ]


def test_the_operators_of_a_pyramid(pyramid):
    assert told(pyramid) == [
        " > images images: 3 16 32",
        "images normalize.mean > subtract sub: 3 16 32",
        "sub normalize.std > divide truediv: 3 16 32",
        "truediv fine.conv.weight fine.conv.bias > convolution fine_conv: 8 8 16",
        "fine_conv > relu fine_function: 8 8 16",
        "fine_function mid.conv.weight mid.conv.bias > convolution mid_conv: 8 4 8",
        "mid_conv > relu6 mid_function: 8 4 8",
        "mid_function > max_pool coarse: 8 2 4",
        "fine_function unit.scale > l2_normalisation unit: 8 8 16",
        "mid_function > resize interpolate: 8 8 16",
        "unit interpolate sum.shares > weighted_sum sum_1: 8 8 16",
        "coarse > resize up: 8 4 8",
        "sum_1 > max_pool coarse_1: 8 4 8",
        "mid_function up coarse_1 down.shares > weighted_sum down: 8 4 8",
        "sum_1 shared.weight shared.bias > convolution shared: 8 8 16",
        "shared > relu relu: 8 8 16",
        "relu predict.weight predict.bias > convolution predict: 6 8 16",
        "down shared_1.weight shared_1.bias > convolution shared_1: 8 4 8",
        "shared_1 > relu relu_1: 8 4 8",
        "relu_1 predict_1.weight predict_1.bias > convolution predict_1: 6 4 8",
        "coarse shared_2.weight shared_2.bias > convolution shared_2: 8 2 4",
        "shared_2 > relu relu_2: 8 2 4",
        "relu_2 predict_2.weight predict_2.bias > convolution far: 6 2 4",
        "predict > sigmoid near/Sigmoid: 6 8 16",
        "predict_1 > transpose permute: 4 8 6",
        "permute > reshape mid: 32 6",
    ]


def test_attributes_and_constants(pyramid):
    found = {item.output: item for item in operators(pyramid, height=16, width=32)}
    window = {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1)}
    assert found["fine_conv"].attributes == window | {"dilation": (1, 1), "groups": 1}
    assert found["coarse"].attributes == window | {"pads": (0, 0, 1, 1)}
    assert found["up"].attributes == found["interpolate"].attributes == {"factor": 2}
    assert found["permute"].attributes == {"order": (0, 2, 3, 1)}
    assert found["fine_conv"].layer == "fine.conv" and found["interpolate"].layer == ""
    shares = found["sum_1"].constants["sum.shares"]  # 0.5 and 1.5 of 2
    assert shares == pytest.approx([0.25, 0.75], abs=1e-4) and shares.dtype == np.float32
    assert found["down"].constants["down.shares"] == pytest.approx(
        torch.tensor([0.0, 1.0, -1.0]).softmax(0).numpy()
    )
    assert found["sub"].constants["normalize.mean"].tolist() == [[[pytest.approx(0.4)]]] * 3
    # One convolution, and a batch normalisation for each level, in the weights of its copy.
    first, second = (found[name].constants[f"{name}.weight"] for name in ("shared", "shared_1"))
    weight = pyramid.shared.weight.detach().numpy()
    for copied, norm in ((first, pyramid.norms[0]), (second, pyramid.norms[1])):
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
        np.testing.assert_allclose(copied, weight * factor[:, None, None, None], rtol=1e-5)


class Changed(nn.Module):
    """A network with another last step."""

    def __init__(self, network, step):
        super().__init__()
        self.network, self.step = network, step
        self.normalize, self.channels, self.outline = network.normalize, 3, network.outline

    def plain(self, images):
        first, *others = self.network(images)
        return self.step(first), *others


@pytest.mark.parametrize(
    ("step", "kind", "shape", "order"),
    [
        (lambda x: x.flatten(1), "reshape", (6 * 8 * 16,), None),
        (lambda x: x.unflatten(1, (2, 3)), "reshape", (2, 3, 8, 16), None),
        (lambda x: x.reshape(-1, 6, 128), "reshape", (6, 128), None),
        (lambda x: x.transpose(1, 3), "transpose", (16, 8, 6), (0, 3, 2, 1)),
        (lambda x: torch.permute(x, (0, -1, 1, 2)), "transpose", (16, 6, 8), (0, 3, 1, 2)),
    ],
)
def test_forms_of_reshaping(pyramid, step, kind, shape, order):
    (found,) = (
        item
        for item in operators(Changed(pyramid, step), height=16, width=32)
        if item.output == "near/Sigmoid"
    )
    assert (found.kind, found.shape, found.attributes.get("order")) == (kind, shape, order)


@pytest.mark.parametrize("axis", [1, -1])
def test_shares_of_classes(pyramid, axis):
    """As of SSD: by anchor those of the classes, in the file as in PyTorch."""
    network = Changed(
        pyramid, lambda x: x.flatten(2).unflatten(1, (3, 2)).permute(0, 3, 1, 2).flatten(1, 2).softmax(axis)
    )
    *_, found = (item for item in operators(network, height=16, width=32) if item.kind == "softmax")
    assert found.attributes == {"axis": axis % 3} and found.shape == (3 * 8 * 16, 2)
    model = to_model(network, height=16, width=32)
    assert check_against(network, model.SerializeToString()) < 1e-5
    assert check_against(network, half(model).SerializeToString(), tolerance=2e-2) > 0


@pytest.mark.parametrize(
    "step",
    [lambda x: x.permute(1, 0, 2, 3), lambda x: x.flatten(0, 1), lambda x: torch.softmax(x, dim=-4)],
)
def test_images_stay_apart(pyramid, step):
    with pytest.raises(ModelError, match="^it is not known what (permute|flatten|softmax)"):
        operators(Changed(pyramid, step), height=16, width=32)


def test_what_no_output_needs_is_left_out(pyramid):
    def step(maps):
        torch.sigmoid(maps.flatten(1))
        return maps

    networks = Changed(pyramid, step), pyramid
    one, other = ([item.kind for item in operators(network, height=16, width=32)] for network in networks)
    assert one == other


def test_the_network_stays_as_it_was(pyramid):
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    operators(pyramid, height=16, width=32)
    after = pyramid.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
