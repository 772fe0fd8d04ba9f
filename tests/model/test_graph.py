"""The folded graph computes the same with fewer nodes, and names what 8 bits are for."""

import copy
import operator

import pytest
import torch
from torch import fx, nn

from detectkit.errors import ModelError
from detectkit.heads.outline import Outline, Output
from detectkit.model.detector import Detector, Normalize, build
from detectkit.model.graph import eight_bit_convolutions, ends, folded, gates, measured, tensor_name, trace
from detectkit.spec.model_pb2 import ModelConfig

QUICK = [
    *[("resnet", 10), ("mobilenet_v2", 0), ("squeezenet", 0), ("googlenet", 0), ("efficientnet_b0", 0)],
    ("efficientnet_lite0", 0),
]
SLOW = [("vgg", 16), ("darknet", 19), ("darknet", 53), ("mobilenet_v1", 0), ("resnet", 50)]


def make(arch: str, depth: int = 0, *, batch_norm: bool = True) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=batch_norm, dropout_rate=0.1)
    return build(config, ["square", "bar"], 3)


def without_weights(arch: str, depth: int = 0) -> Detector:
    """Quickly made, to look at its nodes."""
    with torch.device("meta"):
        detector = make(arch, depth)
    detector.normalize = Normalize(3)
    return detector


def names(nodes: list[fx.Node]) -> list[str]:
    return [tensor_name(node) for node in nodes]


def with_statistics(detector: Detector) -> Detector:
    with torch.no_grad():
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.1)
                layer.momentum = 1.0
        detector.train()(torch.rand(4, 3, 64, 96))
    return detector


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 10), ("efficientnet_b0", 0)])
def test_folded_computes_what_the_detector_does_in_evaluation_mode(arch: str, depth: int) -> None:
    detector = with_statistics(make(arch, depth))
    before, images = copy.deepcopy(detector.state_dict()), torch.rand(2, 3, 64, 96)
    graph = folded(detector)
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not any(isinstance(layer, (nn.BatchNorm2d, nn.Dropout)) for layer in graph.modules())
    assert {value.dtype for value in graph.parameters()} == {torch.float32}
    with torch.no_grad():
        for found, expected in zip(graph(images), detector.eval()(images), strict=True):
            assert expected.std() > 1e-3
            assert (found - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))


def test_a_convolution_with_a_normalisation_for_each_level_is_folded_into_copies(pyramid: Detector) -> None:
    graph, images = folded(pyramid), torch.rand(2, 3, 64, 96)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in graph.modules())
    copies = [
        str(node.target) for node in graph.graph.nodes if str(node.target).startswith(("shared", "predict"))
    ]
    assert copies == [f"{name}{number}" for number in ("", "_1", "_2") for name in ("shared", "predict")]
    assert [name for name, _ in pyramid.named_modules() if name.startswith("shared")] == ["shared"]
    with torch.no_grad():
        for found, expected in zip(graph(images), pyramid.plain(images), strict=True):
            assert expected.std() > 1e-2 and (found - expected).abs().max() < 1e-5


def test_a_pyramid_has_one_name_for_a_value_traced_or_folded(pyramid: Detector) -> None:
    whole, short = trace(pyramid), folded(pyramid)
    found = names(measured(whole))
    assert found == names(measured(short)) and len(set(found)) == len(found)
    assert {"near/Sigmoid", "mid", "far", "interpolate", "sum_1", "unit"} < set(found)
    wanted = ["fine_conv", "mid_conv", "shared", "shared_1", "shared_2"]  # all but what makes the outputs
    for graph in (whole, short):
        assert names(eight_bit_convolutions(graph)) == wanted
        assert {"predict", "permute"} <= {node.name for node in ends(graph)}
        assert "relu" not in {node.name for node in ends(graph)}


class Numbered(nn.Module):
    """Has a layer whose name a copy of the other would get."""

    def __init__(self) -> None:
        super().__init__()
        self.outline = Outline((Output("one", "conv", 0, 1), Output("two", "conv", 0, 1)), (), multiple=1)
        self.conv, self.conv_1 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def plain(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(images), self.conv(self.conv_1(images))


def test_a_name_that_a_layer_has_is_not_given_to_a_copy() -> None:
    graph = folded(Numbered())
    layers = {name for name, _ in graph.named_children()}
    assert layers == {"conv", "conv_1", "conv_2"}


def test_trace_shares_the_layers() -> None:
    detector = make("resnet", 10)
    graph = trace(detector)
    assert graph.get_parameter("backbone.conv1.weight") is detector.get_parameter("backbone.conv1.weight")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found, expected = graph.eval()(images), detector.eval()(images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_measured_values_of_a_residual_network() -> None:
    detector = make("resnet", 10)
    unit = [f"backbone_layer1_0_{name}" for name in ("relu", "conv2", "downsample_0")]
    for graph in (trace(detector), folded(detector)):
        found = names(measured(graph))
        # conv1 and layer1.0.conv1 are read by a ReLU only; the other two feed the sum.
        assert found[:6] == ["images", "backbone_relu", *unit, "add"]
        assert found[6] == "backbone_layer1_0_relu_1"
        assert found[-3:] == ["output_cov", "output_cov/Sigmoid", "output_bbox/BiasAdd"]
        assert len(found) == 1 + 1 + 4 * 5 + 3  # image, first convolution, four units with projections, heads


def test_a_normalisation_is_measured_if_it_does_something() -> None:
    detector = make("resnet", 10, batch_norm=False)
    assert names(measured(trace(detector)))[:2] == names(measured(folded(detector)))[:2]
    assert names(measured(trace(detector)))[:2] == ["images", "backbone_relu"]
    assert not [node for node in folded(detector).graph.nodes if node.op == "get_attr"]
    detector.normalize.mean.fill_(0.5)
    for graph in (trace(detector), folded(detector)):
        assert names(measured(graph))[:3] == ["images", "truediv", "backbone_relu"]
    targets = [node.target for node in folded(detector).graph.nodes]
    assert operator.sub in targets and operator.truediv in targets


@pytest.mark.parametrize(
    ("arch", "depth"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_every_backbone_has_one_name_for_a_value_traced_or_folded(arch: str, depth: int) -> None:
    detector = make(arch, depth)
    whole, short = trace(detector), folded(detector)
    found = names(measured(whole))
    assert found == names(measured(short)) and len(set(found)) == len(found) > 10
    assert found == names(measured(trace(detector.eval())))
    convolutions = names(eight_bit_convolutions(whole))
    assert convolutions == names(eight_bit_convolutions(short))
    total = sum(isinstance(layer, nn.Conv2d) for layer in detector.modules())
    in_gates = [node for node in gates(whole) if isinstance(layer_of(whole, node), nn.Conv2d)]
    assert len(in_gates) == (32 if arch == "efficientnet_b0" else 0)  # 16 blocks, two each
    assert len(convolutions) == total - 2 - len(in_gates)
    last = {str(node.target) for node in ends(whole) if isinstance(layer_of(whole, node), nn.Conv2d)}
    assert last == {output.layer for output in detector.outline.outputs}


def layer_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def test_gates_stay_in_floating_point() -> None:
    graph = folded(make("efficientnet_b0"))
    found = names(eight_bit_convolutions(graph))
    assert found[:3] == [
        *("backbone_features_0_0", "backbone_features_1_0_block_0_0", "backbone_features_1_0_block_2_0")
    ]
    assert not [name for name in found if "fc1" in name or "fc2" in name or "output" in name]
    assert {"backbone_features_1_0_block_1_avgpool", "backbone_features_1_0_block_1_fc1"} <= {
        node.name for node in gates(graph)
    }
    assert "mul" not in {node.name for node in gates(graph)}  # what the gate lets through has all pixels


def test_relu6_is_fused_and_other_functions_are_not() -> None:
    found = names(measured(trace(without_weights("mobilenet_v2"))))
    assert "backbone_features_0_0" not in found and "backbone_features_0_2" in found
    found = names(measured(trace(without_weights("darknet", 19))))
    assert {"backbone_stage0_conv1_conv", "backbone_stage0_conv1_function"} <= set(found)


class Twice(nn.Module):
    """Reads a convolution behind and before its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        result: torch.Tensor = self.bn(features) + features
        return result


def test_what_cannot_be_folded_is_not() -> None:
    detector = make("resnet", 10)
    detector.backbone.conv1 = nn.Sequential(Twice(), detector.backbone.conv1)
    with pytest.raises(
        ModelError, match=r"backbone.conv1.0.bn cannot be folded into .*conv1.0.conv: others read that too"
    ):
        folded(detector)
    detector.backbone.conv1 = nn.Sequential(nn.MaxPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(
        ModelError, match="backbone.conv1.1 cannot be folded: normalise what a convolution gives"
    ):
        folded(detector)
