"""Half precision: what is in 16 bits, what stays in 32, and how near the maps are."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from detectkit.deploy.half import half
from detectkit.deploy.onnx import check_against, to_model
from detectkit.errors import ModelError
from detectkit.heads import Output, Outline
from detectkit.model.detector import Detector, Normalize, build
from detectkit.spec.model_pb2 import ModelConfig

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def network(arch: str) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, num_layers=10 if arch == "resnet" else 0, use_batch_norm=True)
    detector = build(config, ["square", "bar"], 3)
    with torch.no_grad():
        detector.normalize.mean.fill_(0.45)
        detector.normalize.std.fill_(0.25)
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0  # one batch, and no value is huge
        detector.train()(torch.rand(4, 3, 64, 96))
    return detector.eval()


@pytest.mark.parametrize("arch", ["resnet", "efficientnet_b0"])
def test_maps_stay_near_and_the_file_is_half(arch: str) -> None:
    detector = network(arch)
    model = to_model(detector, height=64, width=96)
    found = half(model)
    assert found.ByteSize() < 0.53 * model.ByteSize()
    assert 0 < check_against(detector, found.SerializeToString(), tolerance=3e-2) < 3e-2


def test_all_is_in_16_bits_but_the_ends() -> None:
    model = to_model(network("resnet"), height=64, width=96)
    before = model.SerializeToString()
    found = half(model)
    assert model.SerializeToString() == before
    assert {value.data_type for value in found.graph.initializer} == {HALF}
    assert [value.name for value in found.graph.input] == ["images"]
    assert [value.name for value in found.graph.output] == ["output_cov/Sigmoid", "output_bbox/BiasAdd"]
    typed = onnx.shape_inference.infer_shapes(found, strict_mode=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*typed.graph.input, *typed.graph.output, *typed.graph.value_info)
    }
    assert {name for name, kind in types.items() if kind == FLOAT} == {
        *("images", "output_cov/float", "output_cov/Sigmoid", "output_bbox/BiasAdd")
    }
    # Every value of the 32-bit model has its name here too.
    names = {node.name for node in found.graph.node}
    assert {node.name for node in model.graph.node} <= names
    assert names - {node.name for node in model.graph.node} == {
        *("images/half", "output_cov/float", "output_bbox/BiasAdd/half")
    }
    assert all(node.name == node.output[0] for node in found.graph.node)


def test_weights_are_rounded_once() -> None:
    model = to_model(network("resnet"), height=64, width=96)
    wide = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    for value in half(model).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(value), wide[value.name].astype(np.float16))
    assert len(wide) > 20


class Ends(nn.Module):
    """A network whose outputs are a function of two convolutions."""

    def __init__(self, run) -> None:
        super().__init__()
        self.normalize, self.channels, self.ranges, self.run = Normalize(3), 3, None, run
        self.outline = Outline((Output("one", "a", 0, 1), Output("two", "b", 0, 1)), (), multiple=1)
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def plain(self, images):
        return self.run(self, images)


def read_again(net, images):
    scores = torch.sigmoid(net.a(images))
    return scores, net.b(scores)


def itself_and_its_sigmoid(net, images):
    return torch.sigmoid(values := net.a(images)), net.b(images) + values


def sigmoid_and_what_it_is_of(net, images):
    return torch.sigmoid(values := net.a(images)), values


def sigmoid_of_an_output_behind_it(net, images):
    return (values := net.a(images)), torch.sigmoid(values).flatten(2)


@pytest.mark.parametrize(
    "run",
    [read_again, itself_and_its_sigmoid, sigmoid_and_what_it_is_of, sigmoid_of_an_output_behind_it],
)
def test_an_output_may_be_read_by_another(run) -> None:
    torch.manual_seed(0)
    network = Ends(run).eval()
    found = half(to_model(network, height=8, width=8))
    assert 0 < check_against(network, found.SerializeToString(), tolerance=5e-3) < 5e-3
    made = {node.output[0]: node for node in found.graph.node}
    assert made["one"].op_type == ("Cast" if run is sigmoid_of_an_output_behind_it else "Sigmoid")
    assert all(node.name == name for name, node in made.items())
    if run is read_again:  # in 32 bits for who takes it, in 16 for the network
        assert made["one/half"].op_type == "Sigmoid" and list(made["two/half"].input)[0] == "one/half"


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_a_weight_that_is_too_large_is_named(value: float) -> None:
    detector = network("resnet")
    with torch.no_grad():
        detector.output_bbox.weight[3, 2] = value
    with pytest.raises(ModelError, match=r"output_bbox.weight has a value of .*float16 ends at 65504"):
        half(to_model(detector, height=64, width=96))


def test_a_quantised_model_is_refused() -> None:
    model = to_model(network("resnet"), height=64, width=96)
    scale, zero = helper.make_tensor("scale", FLOAT, [], [0.01]), helper.make_tensor(
        "zero", TensorProto.INT8, [], [0]
    )
    model.graph.initializer.extend([scale, zero])
    model.graph.node[0].input[0] = "rounded"
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
        *model.graph.node,
    ]
    graph = helper.make_graph(
        nodes, "quantised", model.graph.input, model.graph.output, initializer=model.graph.initializer
    )
    quantised = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    with pytest.raises(ModelError, match="a quantised model cannot be made 16-bit"):
        half(quantised)


def test_a_pyramid_resizes_by_factors_of_32_bits(pyramid: Detector) -> None:
    found = half(to_model(pyramid, height=16, width=32))
    factors = [tensor for tensor in found.graph.initializer if tensor.name.endswith(".factors")]
    assert len(factors) == 2 and {tensor.data_type for tensor in factors} == {FLOAT}
    assert 0 < check_against(pyramid, found.SerializeToString(), tolerance=2e-2) < 2e-2
