"""The ONNX model computes what the detector does, in ONNX Runtime."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from detectkit.deploy.onnx import check_against, to_model, to_onnx
from detectkit.errors import ModelError, UsageError
from detectkit.heads import Level
from detectkit.heads.grid_layers import GridLayers
from detectkit.heads.layers import MaxPool2dSame
from detectkit.model.base import Backbone, Conv2dSame, Convolution
from detectkit.model.detector import Detector, build
from detectkit.spec.model_pb2 import ModelConfig

HEIGHT, WIDTH = 64, 96


def trained(arch: str, depth: int = 0, activation: str = "", channels: int = 3) -> Detector:
    """A detector in training mode, in which no tensor has the value that would hide its absence from the model."""
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True, dropout_rate=0.5)
    if activation:
        config.activation.activation_type = activation
    torch.manual_seed(0)
    return with_statistics(build(config, ["square", "bar"], channels))


def with_statistics(detector: Detector) -> Detector:
    with torch.no_grad():
        detector.normalize.mean.fill_(0.4)
        detector.normalize.std.fill_(0.3)
        for name, weight in detector.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.momentum = 0.9  # one batch moves the statistics to where the outputs are not huge
        detector(torch.rand(4, detector.channels, HEIGHT, WIDTH))
    return detector


def run(model: bytes, images: Tensor) -> tuple[Tensor, Tensor]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = ["output_cov/Sigmoid", "output_bbox/BiasAdd"]
    coverage, bbox = session.run(names, {"images": images.numpy()})
    return torch.from_numpy(coverage), torch.from_numpy(bbox)


class Layers(Backbone):
    """A convolution with batch normalisation, and whatever comes behind it."""

    given = ("rest",)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first = Convolution(3, 8, 3, stride=2, function=nn.ReLU())
        self.rest = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.rest(self.first(images)),)

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def gridded(backbone: Backbone, *, classes: int) -> Detector:
    return Detector(backbone, GridLayers(ModelConfig(), backbone.levels, classes), channels=3)


def small(*layers: nn.Module) -> Detector:
    torch.manual_seed(0)
    return gridded(Layers(*layers), classes=2)


@pytest.mark.parametrize(
    ("arch", "depth", "activation"),
    [
        ("resnet", 10, "elu"),
        ("mobilenet_v1", 0, "leaky_relu"),
        ("mobilenet_v2", 0, ""),  # relu6
        ("squeezenet", 0, "hard_swish"),
        ("googlenet", 0, "swish"),
        ("efficientnet_b0", 0, ""),  # with gates
        ("efficientnet_lite0", 0, ""),  # with TensorFlow's padding
        # tests/compress/test_backbones.py exports these pruned.
        pytest.param("vgg", 16, "", marks=pytest.mark.slow),  # relu
        pytest.param("darknet", 19, "", marks=pytest.mark.slow),  # leaky_relu
    ],
)
def test_outputs_are_those_of_the_detector_in_evaluation_mode(arch: str, depth: int, activation: str) -> None:
    detector = trained(arch, depth, activation)
    model = to_onnx(detector, height=HEIGHT, width=WIDTH)
    nodes = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert "Conv" in nodes and not {"BatchNormalization", "Dropout", "Identity", "Constant"} & set(nodes)
    detector.eval()
    for batch_size in (1, 3):
        images = torch.rand(batch_size, 3, HEIGHT, WIDTH)
        with torch.no_grad():
            coverage, bbox = detector(images)
        got_coverage, got_bbox = run(model, images)
        assert got_coverage.shape == coverage.shape and (got_coverage - coverage).abs().max() < 1e-4
        assert got_bbox.shape == bbox.shape and (got_bbox - bbox).abs().max() < 1e-4
        assert bbox.std() > 1e-2  # there is something to compare


def test_a_grey_detector_becomes_a_file_and_stays_as_it_was() -> None:
    detector = trained("resnet", 10, channels=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    detector.freeze(["backbone.bn1.running_mean"])
    before, modes = copy.deepcopy(detector.state_dict()), [layer.training for layer in detector.modules()]
    model = to_model(detector, height=HEIGHT, width=WIDTH)
    content = model.SerializeToString()

    after = detector.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].stride() == tensor.stride() for name, tensor in before.items())
    assert [layer.training for layer in detector.modules()] == modes and True in modes and False in modes
    assert all(weight.requires_grad for weight in detector.parameters())

    assert content == to_onnx(detector, height=HEIGHT, width=WIDTH)  # equal models are equal files
    assert shapes(onnx.load_from_string(content)) == {
        "images": ["N", 1, 64, 96],
        "output_cov/Sigmoid": ["N", 2, 4, 6],
        "output_bbox/BiasAdd": ["N", 8, 4, 6],
    }
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    with torch.no_grad():
        coverage, bbox = detector.eval()(images)
    got_coverage, got_bbox = run(content, images)
    assert (got_coverage - coverage).abs().max() < 1e-4 and (got_bbox - bbox).abs().max() < 1e-4


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }


def test_names_are_those_of_the_network() -> None:
    detector = trained("resnet", 10)
    graph = to_model(detector, height=HEIGHT, width=WIDTH).graph
    assert all(node.name == node.output[0] for node in graph.node)
    outputs = [node.name for node in graph.node]
    assert outputs[:6] == [
        *("sub", "truediv", "backbone_conv1", "backbone_relu"),
        *("backbone_layer1_0_conv1", "backbone_layer1_0_relu"),
    ]
    assert outputs[-3:] == ["output_cov", "output_cov/Sigmoid", "output_bbox/BiasAdd"]
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    state = detector.state_dict()
    assert {name for name in constants if name.endswith("weight")} == {
        name for name, value in state.items() if name.endswith("weight") and value.dim() == 4
    }
    # Batch normalisation is in the weights: each filter times its scale over its deviation.
    factor = state["backbone.bn1.weight"] / (state["backbone.bn1.running_var"] + 1e-5).sqrt()
    folded = state["backbone.conv1.weight"] * factor[:, None, None, None]
    np.testing.assert_allclose(constants["backbone.conv1.weight"], folded, rtol=1e-6)
    bias = state["backbone.bn1.bias"] - state["backbone.bn1.running_mean"] * factor
    np.testing.assert_allclose(constants["backbone.conv1.bias"], bias, rtol=1e-5, atol=1e-6)


def test_a_normalisation_that_does_nothing_is_not_there() -> None:
    detector = small()
    kinds = [node.op_type for node in to_model(detector, height=HEIGHT, width=WIDTH).graph.node]
    assert kinds == ["Conv", "Relu", "Conv", "Sigmoid", "Conv"]
    detector.normalize.std[1] = 0.5
    kinds = [node.op_type for node in to_model(detector, height=HEIGHT, width=WIDTH).graph.node]
    assert kinds == ["Sub", "Div", "Conv", "Relu", "Conv", "Sigmoid", "Conv"]


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 21, 23])
def test_every_opset_computes_the_same(opset: int) -> None:
    functions = [nn.ReLU6(), nn.ELU(0.7), nn.LeakyReLU(0.3), nn.SiLU(), nn.Hardswish(), nn.Sigmoid()]
    detector = with_statistics(small(nn.MaxPool2d(3, 2, 1), *functions))
    model = to_model(detector, height=HEIGHT, width=WIDTH, opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version <= 11 if opset == 23 else model.ir_version <= 10  # what ONNX Runtime 1.20 reads
    assert check_against(detector, model.SerializeToString(), tolerance=1e-5) < 1e-5


@pytest.mark.parametrize("opset", [12, 1000])
def test_an_opset_that_is_not_there_is_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=f"no opset {opset} to write: use one from 13 to [0-9]+"):
        to_onnx(small(), height=HEIGHT, width=WIDTH, opset=opset)


def test_a_fixed_batch_is_fixed() -> None:
    detector = small()
    model = to_model(detector, height=HEIGHT, width=WIDTH, batch=2)
    assert [shape[0] for shape in shapes(model).values()] == [2, 2, 2]
    assert check_against(detector, model.SerializeToString()) < 1e-5  # on batches of 2
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run(model.SerializeToString(), torch.rand(3, 3, HEIGHT, WIDTH))


@settings(max_examples=25)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    data=st.data(),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    ceil_mode=st.booleans(),
)
def check_pool(
    kernel: int, stride: int, data: st.DataObject, height: int, width: int, ceil_mode: bool
) -> None:
    padding = data.draw(st.integers(0, kernel // 2))
    # What is below 0 tells the border of a pool, which never wins, from zeros.
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    detector = small(nn.Conv2d(8, 8, 1), pool)
    content = to_onnx(detector, height=height, width=width)
    assert check_against(detector, content, tolerance=1e-5) < 1e-5


def test_pools_are_as_wide_as_those_of_torch_and_no_border_wins() -> None:
    check_pool()
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    # 8 x 9 values: one more column is not needed, one more row is.
    model = to_model(small(pool), height=16, width=18)
    assert shapes(model)["output_cov/Sigmoid"] == ["N", 2, 4, 4]
    (node,) = (node for node in model.graph.node if node.op_type == "MaxPool")
    assert {item.name: list(item.ints) for item in node.attribute}["pads"] == [0, 0, 1, 0]


@pytest.mark.parametrize(("height", "width"), [(16, 18), (14, 22)])
def test_means_of_windows_are_those_of_torch(height: int, width: int) -> None:
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    detector = small(nn.Conv2d(8, 8, 1), pool, nn.AvgPool2d(3, 2, ceil_mode=True))
    content = to_onnx(detector, height=height, width=width)
    assert check_against(detector, content, tolerance=1e-5) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 96), (38, 42), (50, 30)])
def test_same_padding_is_plain_pads_of_the_files_size(height: int, width: int) -> None:
    layers = Conv2dSame(8, 8, 5, 2, bias=False), MaxPool2dSame(3, 2)
    detector = small(*layers)
    model = to_model(detector, height=height, width=width)
    pads = [
        {item.name: list(item.ints) for item in node.attribute}["pads"]
        for node in model.graph.node
        if node.op_type in ("Conv", "MaxPool")
    ]
    odd = [side // 2 % 2 for side in (height, width)]  # behind the first convolution, which halves
    assert pads[1] == [1 + odd[0], 1 + odd[1], 2, 2]
    assert check_against(detector, model.SerializeToString(), tolerance=1e-5) < 1e-5


def test_convolutions_of_every_form() -> None:
    layers = (
        nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(2, 1), groups=4),
        nn.Conv2d(16, 8, 1, bias=False),
    )
    detector = small(*layers)
    content = to_onnx(detector, height=40, width=56)
    assert check_against(detector, content, tolerance=1e-5) < 1e-5
    assert list(shapes(onnx.load_from_string(content))["output_cov/Sigmoid"]) == ["N", 2, 9, 30]


class Joined(Backbone):
    """Functions of two values; `function` is what a test tries."""

    levels = (Level("joined", 1, 3),)

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.function(images),)  # type: ignore[operator]

    def blocks(self) -> dict[int, nn.Module]:
        return {}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x + x, x * x], dim=1)[:, :3],  # the slice is what is not known
        lambda x: torch.cat([x, x], dim=2),
        lambda x: torch.cat([x, x], 3),
        lambda x: x + 1,
        lambda x: 2 * x,
        lambda x: x.relu(),
        lambda x: torch.add(x, x, alpha=2),
        lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: nn.functional.interpolate(x, scale_factor=1.5),
        lambda x: nn.functional.interpolate(x, (8, 8)),
        lambda x: x.flatten(0, 1),  # of all images
    ],
)
def test_an_unknown_function_is_refused(function: object) -> None:
    with pytest.raises(ModelError, match="^it is not known what [a-z_]+( in backbone)? does"):
        to_onnx(gridded(Joined(function), classes=2), height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.MaxPool2d(2, dilation=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.GELU(),
    ],
)
def test_an_unknown_layer_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"^it is not known what backbone.rest.0 \([A-Z]"):
        to_onnx(small(layer), height=HEIGHT, width=WIDTH)


def test_functions_of_two_values() -> None:
    def function(x: Tensor) -> Tensor:
        return nn.functional.relu(x * x - x * x * x) / torch.maximum(x + x, torch.minimum(x * x, x))

    detector = gridded(Joined(function), classes=2).eval()
    images = torch.rand(2, 3, 16, 16) + 0.5
    with torch.no_grad():
        coverage, bbox = detector(images)
    got_coverage, got_bbox = run(to_onnx(detector, height=16, width=16), images)
    assert (got_coverage - coverage).abs().max() < 1e-6 and (got_bbox - bbox).abs().max() < 1e-6


def test_values_whose_squares_are_beyond_float_are_no_noise() -> None:
    detector = small()
    with torch.no_grad():
        detector.output_bbox.weight.mul_(1e30)
    assert check_against(detector, to_onnx(detector, height=HEIGHT, width=WIDTH)) < 1e-5


def test_a_model_that_computes_something_else_is_found() -> None:
    detector = small()
    model = to_onnx(detector, height=HEIGHT, width=WIDTH)
    assert check_against(detector.double(), model) < 1e-5
    with torch.no_grad():
        detector.output_bbox.bias[3] += 0.01
    with pytest.raises(
        ModelError, match=r"output_bbox/BiasAdd of 1 random images differs by 0.01 \(allowed: 0.0001"
    ):
        check_against(detector, model)
    assert 0.009 < check_against(detector, model, tolerance=0.02) < 0.011
    with torch.no_grad():
        detector.output_bbox.bias[3] = torch.nan
    with pytest.raises(ModelError, match="^the model itself gives output_bbox/BiasAdd that is not finite"):
        check_against(detector, model)
    with torch.no_grad():
        detector.output_bbox.bias[3] = 0
    broken = onnx.load_from_string(model)
    (bias,) = (value for value in broken.graph.initializer if value.name == "output_bbox.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(np.nan), bias.name))
    with pytest.raises(ModelError, match="differs by nan"):
        check_against(detector, broken.SerializeToString(), tolerance=float("inf"))
    other = gridded(Layers(), classes=3)
    with pytest.raises(
        ModelError, match=r"gives output_cov/Sigmoid \[1, 2, 32, 48\] where PyTorch gives \[1, 3, "
    ):
        check_against(other, model)


def test_a_model_that_cannot_run_is_one_error() -> None:
    detector = small()
    with pytest.raises(ModelError, match="ONNX Runtime [0-9.]+ cannot run the exported model"):
        check_against(detector, b"nonsense")
    model = to_model(detector, height=HEIGHT, width=WIDTH)
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match="cannot run the exported model"):
        check_against(detector, model.SerializeToString())


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 23])
def test_a_pyramid_of_levels_and_outputs(pyramid: Detector, opset: int) -> None:
    """Shared convolutions, weighted sums, resizing, TensorFlow's border of a pool, L2 normalisation, reshaped outputs."""
    model = to_model(pyramid, height=HEIGHT, width=WIDTH, opset=opset)
    assert shapes(model) == {
        "images": ["N", 3, 64, 96],
        "near/Sigmoid": ["N", 6, 32, 48],
        "mid": ["N", 16 * 24, 6],
        "far": ["N", 6, 8, 12],
    }
    assert check_against(pyramid, model.SerializeToString(), tolerance=1e-5, least_sqnr=80) < 1e-5
    kinds = {node.op_type for node in model.graph.node}
    assert {"Resize", "MaxPool", "LpNormalization", "Mul", "Add", "Transpose", "Reshape"} < kinds
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    assert [float(constants[f"sum_1.share{number}"]) for number in (0, 1)] == pytest.approx(
        [0.25, 0.75], abs=1e-4
    )
    assert "sum.weights" not in constants  # the shares are constants of the file
    assert not np.array_equal(constants["shared.weight"], constants["shared_1.weight"])
    assert np.array_equal(constants["predict.weight"], constants["predict_2.weight"])


def test_a_fixed_batch_of_reshaped_outputs(pyramid: Detector) -> None:
    model = to_model(pyramid, height=16, width=32, batch=2)
    assert shapes(model)["mid"] == [2, 32, 6]
    assert check_against(pyramid, model.SerializeToString(), tolerance=1e-5) < 1e-5
