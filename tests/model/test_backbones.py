"""All backbones: sizes, names, blocks, the choices that they share, and torchvision's weights in them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import SqueezeExcitation

from detectkit.errors import SpecError
from detectkit.heads.layers import same_border
from detectkit.model.backbones import make_backbone
from detectkit.model.base import Backbone, Conv2dSame, Convolution
from detectkit.model.operators import graph_of, receptive_field
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS

ALL = [(arch, depth) for arch, network in NETWORKS.items() for depth in network.depths or (0,)]
# One of each family, none of them large.
FAMILIES = [
    ("resnet", 10),
    ("vgg", 16),
    ("darknet", 19),
    ("darknet", 53),
    ("mobilenet_v1", 0),
    ("mobilenet_v2", 0),
    ("squeezenet", 0),
    ("googlenet", 0),
    ("efficientnet_b0", 0),
    ("efficientnet_lite0", 0),
]
WITH_VALUES = [
    pair for pair in FAMILIES if pair != ("darknet", 53)
]  # 40 million random numbers, for nothing new
# torchvision's networks: their parameters, as its documentation lists them, and those of the layers behind our last.
# A classifier of 1000 classes behind n channels has 1000 n + 1000; VGG's three layers have 123,642,856.
PUBLISHED = {
    "vgg16": (138_357_544, 123_642_856),
    "vgg19": (143_667_240, 123_642_856),
    "vgg16_bn": (138_365_992, 123_642_856),
    "vgg19_bn": (143_678_248, 123_642_856),
    "squeezenet1_0": (1_248_424, 513_000),
    "googlenet": (6_624_904, 1_025_000),
    "efficientnet_b0": (5_288_548, 1_281_000),
    "efficientnet_b1": (7_794_184, 1_281_000),
    "efficientnet_b2": (9_109_994, 1_409_000),
    "efficientnet_b3": (12_233_232, 1_537_000),
    "efficientnet_b4": (19_341_616, 1_793_000),
    "efficientnet_b5": (30_389_784, 2_049_000),
    "efficientnet_b6": (43_040_704, 2_305_000),
    "efficientnet_b7": (66_347_960, 2_561_000),
}
# As timm 1.0 counts tf_efficientnet_b0 to b7 and lite0 to lite4: in all, and the last convolution and the classifier of it.
TENSORFLOWS = {
    "efficientnet_b0": (5_288_548, 1_693_160),
    "efficientnet_b1": (7_794_184, 1_693_160),
    "efficientnet_b2": (9_109_994, 1_907_432),
    "efficientnet_b3": (12_233_232, 2_129_896),
    "efficientnet_b4": (19_341_616, 2_599_400),
    "efficientnet_b5": (30_389_784, 3_101_672),
    "efficientnet_b6": (43_040_704, 3_636_712),
    "efficientnet_b7": (66_347_960, 4_204_520),
    "efficientnet_lite0": (4_652_008, 1_693_160),
    "efficientnet_lite1": (5_416_680, 1_693_160),
    "efficientnet_lite2": (6_092_072, 1_734_120),
    "efficientnet_lite3": (8_197_096, 1_775_080),
    "efficientnet_lite4": (13_006_568, 1_857_000),
}


def backbone(arch: str, depth: int = 0, channels: int = 3, device: str = "meta", **changes: Any) -> Backbone:
    settings = {"use_batch_norm": True, "use_pooling": True} | changes
    with torch.device(device):
        return make_backbone(ModelConfig(arch=arch, num_layers=depth, **settings), channels)


@functools.cache
def plain(arch: str, depth: int) -> Backbone:
    """With batch normalisation and pools, of three channels, without values, in evaluation mode: not to be changed."""
    return backbone(arch, depth).eval()


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def original(name: str) -> nn.Module:
    """torchvision's network without its classifier, without values."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    for part in ("classifier", "fc", "avgpool", "maxpool4"):
        if hasattr(network, part):
            setattr(network, part, nn.Identity())
    return network


# --- sizes


@pytest.mark.spec_field("ModelConfig.arch", "ModelConfig.num_layers")
@pytest.mark.parametrize(("arch", "depth"), ALL)
def test_stride_and_blocks_are_what_the_spec_promises(arch: str, depth: int) -> None:
    network = plain(arch, depth)
    stride = 32 if arch == "darknet" or arch.startswith("efficientnet_b") else 16  # TLT DetectNet_v2
    with torch.no_grad():
        (features,) = network(torch.empty(2, 3, 3 * 32, 5 * 32, device="meta"))
    (level,) = network.levels
    assert features.shape == (2, level.channels, 96 // stride, 160 // stride)
    assert level.stride == NETWORKS[arch].stride == stride
    assert tuple(network.blocks()) == NETWORKS[arch].blocks
    held = [layer for block in network.blocks().values() for layer in convolutions(block)]
    assert [id(layer) for layer in held] == [id(layer) for layer in convolutions(network)]
    assert network.title == (f"{arch} {depth}" if depth else arch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published_less_the_classifier(name: str) -> None:
    total, behind = PUBLISHED[name]
    if name.startswith("vgg"):
        network = backbone("vgg", int(name[3:5]), use_batch_norm=name.endswith("_bn"))
    else:
        network = plain(name.replace("1_0", ""), 0)
    assert network.published == f"torchvision's {name}"
    assert parameters(network) == total - behind


@pytest.mark.parametrize("arch", TENSORFLOWS)
def test_parameters_up_to_a_stride_of_32_are_timms_less_the_last_convolution(arch: str) -> None:
    config = ModelConfig(arch=arch, layout=ModelConfig.TENSORFLOW)
    with torch.device("meta"):
        network = make_backbone(config, 3, (8, 16, 32))
    total, behind = TENSORFLOWS[arch]
    assert parameters(network) == total - behind
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.eps for layer in norms} == {1e-3}
    strided = [layer for layer in convolutions(network) if layer.stride == (2, 2)]
    assert len(strided) == 5 and all(isinstance(layer, Conv2dSame) for layer in strided)


def test_parameters_of_mobilenet_v2_are_those_of_its_first_fourteen_layers() -> None:
    # torchvision lists 3,504,872: the classifier has 1,281,000, the last convolution 412,160, then blocks 14 to 17:
    # 96->576->160, 160->960->160 twice, 160->960->320.
    block14 = 96 * 576 + 576 * 9 + 576 * 160 + 2 * (576 + 576 + 160)
    block15 = 160 * 960 + 960 * 9 + 960 * 160 + 2 * (960 + 960 + 160)
    block17 = 160 * 960 + 960 * 9 + 960 * 320 + 2 * (960 + 960 + 320)
    behind = 1_281_000 + 320 * 1280 + 2 * 1280 + block14 + 2 * block15 + block17
    assert parameters(plain("mobilenet_v2", 0)) == 3_504_872 - behind


def test_parameters_of_mobilenet_v1_are_those_of_its_first_eleven_blocks() -> None:
    # Keras publishes 4,231,976 trainable ones; classifier 1000 x 1025, block 12: 512 -> 1024, block 13: 1024 -> 1024
    block12 = 512 * 9 + 512 * 1024 + 2 * (512 + 1024)
    block13 = 1024 * 9 + 1024 * 1024 + 2 * (1024 + 1024)
    assert parameters(plain("mobilenet_v1", 0)) == 4_231_976 - 1_025_000 - block12 - block13


@pytest.mark.parametrize(("depth", "published"), [(19, 20_842_376), (53, 41_609_928)])
def test_parameters_of_darknets_are_those_published_less_the_classifier(depth: int, published: int) -> None:
    # timm 0.9 and 1.0 list darknet19 with 20.84 and darknet53 with 41.61 million, 1,025,000 of them the classifier's
    assert parameters(plain("darknet", depth)) == published - 1_025_000


@pytest.mark.parametrize(("arch", "count"), [("efficientnet_lite0", 11), ("efficientnet_lite1", 15)])
def test_parameters_of_efficientnet_lite_by_hand(arch: str, count: int) -> None:
    # Channels and kernels of the blocks of Lite0; Lite1 has one more of each but the first (Liu 2020).
    blocks = [(32, 32, 3, 16), (16, 96, 3, 24), (24, 144, 3, 24), (24, 144, 5, 40), (40, 240, 5, 40)]
    blocks += [(40, 240, 3, 80), (80, 480, 3, 80), (80, 480, 3, 80)]
    blocks += [(80, 480, 5, 112), (112, 672, 5, 112), (112, 672, 5, 112)]
    if count == 15:
        blocks += [(24, 144, 3, 24), (40, 240, 5, 40), (80, 480, 3, 80), (112, 672, 5, 112)]
    total = 27 * 32 + 2 * 32
    for before, wide, size, after in blocks:
        expansion = before * wide + 2 * wide if wide > before else 0
        total += expansion + wide * size**2 + 2 * wide + wide * after + 2 * after
    assert len(blocks) == count and parameters(plain(arch, 0)) == total


# --- TensorFlow's padding


@pytest.mark.parametrize(("size", "zeros"), [(3, (0, 0, 1, 1)), (5, (1, 1, 2, 2))])
def test_same_padding_is_tensorflows_on_even_sides(size: int, zeros: tuple[int, ...]) -> None:
    # TensorFlow: outputs = ceil(side / 2); in all (outputs - 1) * 2 + size - side zeros, the odd one below and on the right
    layer = Convolution(4, 4, size, stride=2, groups=4, function=nn.Identity(), same=True).conv
    assert isinstance(layer, Conv2dSame) and same_border((12, 16), size, 2) == zeros
    assert [sum(zeros[axis::2]) for axis in (0, 1)] == [(6 - 1) * 2 + size - 12, (8 - 1) * 2 + size - 16]
    images = torch.rand(2, 4, 12, 16)
    top, left, bottom, right = zeros
    padded = nn.functional.pad(images, (left, right, top, bottom))
    assert torch.equal(layer(images), nn.functional.conv2d(padded, layer.weight, stride=2, groups=4))
    assert layer(images).shape == (2, 4, 6, 8)
    assert type(Convolution(4, 4, size, function=nn.Identity(), same=True).conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("side", "size", "before", "after"), [(512, 3, 0, 1), (512, 5, 1, 2), (19, 3, 1, 1), (75, 5, 2, 2)]
)
def test_same_padding_goes_by_the_side_of_the_map(side: int, size: int, before: int, after: int) -> None:
    layer = Convolution(1, 1, size, stride=2, function=nn.Identity(), same=True).conv
    assert same_border((side, 8), size, 2)[::2] == (before, after)
    images = torch.rand(1, 1, side, 8)
    padded = nn.functional.pad(images, (*same_border((8, 8), size, 2)[1::2], before, after))
    assert torch.equal(layer(images), nn.functional.conv2d(padded, layer.weight, stride=2))
    assert layer(images).shape[2] == (side + 1) // 2


# --- options


@pytest.mark.spec_field("ModelConfig.use_batch_norm")
@pytest.mark.parametrize(("arch", "depth"), FAMILIES)
def test_without_batch_norm_every_convolution_has_a_bias(arch: str, depth: int) -> None:
    network = backbone(arch, depth, use_batch_norm=False)
    normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert normalised == arch.startswith("efficientnet")  # which always has it
    assert normalised or all(layer.bias is not None for layer in convolutions(network))
    chosen = arch != "squeezenet" and not normalised  # squeezenet never has it
    assert network.title.endswith(" without batch normalisation") == chosen


@pytest.mark.parametrize(("arch", "depth"), WITH_VALUES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_signal_keeps_its_size_from_random_weights(arch: str, depth: int, batch_norm: bool) -> None:
    torch.manual_seed(3)
    network = backbone(arch, depth, device="cpu", use_batch_norm=batch_norm)
    (features,) = network(torch.rand(4, 3, 64, 64))  # batch statistics
    times = 10 if batch_norm else 1000
    assert 1 / times < features.std() < times and features.isfinite().all()


@pytest.mark.parametrize(("arch", "depth"), FAMILIES)
def test_one_channel_changes_the_first_convolution_alone(arch: str, depth: int) -> None:
    grey, colour = backbone(arch, depth, channels=1), plain(arch, depth)
    first = convolutions(colour)[0]
    fewer = parameters(colour) - parameters(grey)
    assert fewer == 2 * first.out_channels * first.kernel_size[0] ** 2
    with torch.no_grad():
        (features,) = grey.eval()(torch.empty(2, 1, 64, 64, device="meta"))
    assert features.shape[1] == grey.levels[0].channels


@pytest.mark.spec_field("ModelConfig.use_pooling")
def test_vgg_with_and_without_pools_has_the_same_tensors() -> None:
    pools, strides = backbone("vgg", 16), backbone("vgg", 16, use_pooling=False)
    assert {name: tensor.shape for name, tensor in pools.state_dict().items()} == {
        name: tensor.shape for name, tensor in strides.state_dict().items()
    }
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in pools.modules()) == 4
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in strides.modules())
    first = [convolutions(block)[0].stride for block in strides.blocks().values()]
    assert first == [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]
    assert sum(layer.stride == (2, 2) for layer in convolutions(strides)) == 4


@pytest.mark.spec_field("ModelConfig.Activation.activation_type")
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("relu6", lambda x: x.clamp(0, 6)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.1 * x)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("swish", lambda x: x / (1 + (-x).exp())),
        ("hard_swish", lambda x: x * (x + 3).clamp(0, 6) / 6),
    ],
)
def test_activation_type_names_the_function(name: str, formula: Callable[[Tensor], Tensor]) -> None:
    function = backbone("resnet", 10, activation=ModelConfig.Activation(activation_type=name)).get_submodule(
        "relu"
    )
    values = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(function(values), formula(values))


@pytest.mark.parametrize(("arch", "depth"), FAMILIES)
def test_activation_takes_the_place_of_every_function(arch: str, depth: int) -> None:
    own = plain(arch, depth)
    other = backbone(arch, depth, activation=ModelConfig.Activation(activation_type="elu"))
    kept = {
        "Conv2d",
        "Conv2dSame",
        "BatchNorm2d",
        "MaxPool2d",
        "MaxPool2dSame",
        "AdaptiveAvgPool2d",
        "Identity",
        "Sigmoid",
        "StochasticDepth",
    }
    before, after = (
        [type(layer).__name__ for layer in network.modules() if not list(layer.children())]
        for network in (own, other)
    )
    assert len(set(before) - kept) == 1 and set(before) & kept == set(after) & kept
    assert after == [name if name in kept else "ELU" for name in before]


@pytest.mark.spec_field("ModelConfig.Activation.activation_parameters")
@pytest.mark.parametrize(("name", "at_minus_1"), [("leaky_relu", -0.3), ("elu", 0.3 * (0.36787944 - 1))])
def test_alpha_is_the_slope_or_the_depth(name: str, at_minus_1: float) -> None:
    activation = ModelConfig.Activation(activation_type=name, activation_parameters={"alpha": 0.3})
    function = backbone("resnet", 10, activation=activation).get_submodule("relu")
    assert function(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([at_minus_1, 2.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "vgg11"}, 'model_config.arch: there is no "vgg11"; use one of: resnet, vgg, darknet'),
        (
            {"arch": "vgg", "num_layers": 11},
            "model_config.num_layers: vgg has no 11 layers; use one of: 16, 19",
        ),
        (
            {"activation": ModelConfig.Activation(activation_type="gelu")},
            'model_config.activation.activation_type: there is no "gelu"; use one of: relu, relu6',
        ),
        (
            {
                "activation": ModelConfig.Activation(
                    activation_type="relu", activation_parameters={"alpha": 1}
                )
            },
            'model_config.activation.activation_parameters: relu has no "alpha"; alpha of leaky_relu and elu is',
        ),
        (
            {"activation": ModelConfig.Activation(activation_type="elu", activation_parameters={"beta": 1})},
            'model_config.activation.activation_parameters: elu has no "beta"',
        ),
    ],
)
def test_what_does_not_exist_is_a_spec_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_backbone(ModelConfig(**settings), 3)
    assert str(caught.value).startswith(message)


# --- the graph


@pytest.mark.parametrize(("arch", "depth"), WITH_VALUES)
def test_a_traced_backbone_computes_the_same(arch: str, depth: int) -> None:
    network = backbone(arch, depth, device="cpu").eval()
    traced = graph_of(network)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(*traced(images), *network(images))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)} <= called


@pytest.mark.parametrize(
    ("arch", "depth", "pooling", "pixels"),
    [
        # conv5_3 of VGG16 sees 196 pixels, conv5_4 of VGG19 252 (Araujo, Norris and Sim, Distill 2019, and by hand)
        ("vgg", 16, True, 196),
        ("vgg", 19, True, 252),
        # 7x7/2: 7; pool 3x3/2: +4; stages of 3x3: 4 x 8, 8 + 3 x 16, 16 + 3 x 32; the last without stride: 4 x 32
        ("resnet", 18, True, 7 + 4 + 4 * 8 + 8 + 3 * 16 + 16 + 3 * 32 + 4 * 32),
        ("resnet", 18, False, 7 + 4 + 3 * 8 + 8 + 3 * 16 + 16 + 3 * 32 + 4 * 32),
        # the 3x3 convolutions of stages 0 to 5: 1, 1, 2, 2, 3, 3 with 2x2 pools between them
        ("darknet", 19, True, 1 + 2 + 1 + 2 * 2 + 2 + 4 * 4 + 4 + 8 * 4 + 8 + 16 * 6 + 16 + 32 * 6),
        # Araujo et al.: 315 and 851 for whole MobileNetV1 and EfficientNet-B0; ours of V1 lacks blocks 12 and 13
        ("mobilenet_v1", 0, True, 315 - 2 * 16 - 2 * 32),
        ("efficientnet_b0", 0, True, 851),
        # 3x3/2: 3; 3x3: +4; 3x3/2, 3x3: +4 +8; 5x5/2, 5x5: +16 +32; 3x3/2, two 3x3: +16 +2x32; three 5x5: +3x64
        ("efficientnet_lite0", 0, True, 3 + 4 + 4 + 8 + 16 + 32 + 16 + 2 * 32 + 3 * 64),
    ],
)
def test_receptive_fields_by_hand(arch: str, depth: int, pooling: bool, pixels: int) -> None:
    assert receptive_field(backbone(arch, depth, use_pooling=pooling)) == pixels


def averaging(network: nn.Module) -> nn.Module:
    """The same network with positive weights, averages for maxima and no gates, so that no path has a gradient of 0."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        for name, child in layer.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(layer, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            if isinstance(child, SqueezeExcitation):
                setattr(layer, name, nn.Identity())
    return network.double().eval()


@pytest.mark.parametrize(("arch", "depth"), [pair for pair in WITH_VALUES if pair != ("vgg", 16)])
def test_receptive_fields_are_where_the_gradient_is(arch: str, depth: int) -> None:
    pixels = receptive_field(plain(arch, depth))
    network = averaging(backbone(arch, depth, device="cpu"))
    # Small, for nothing to reach relu6's limit; a line of cells is enough.
    images = torch.full((1, 3, 32, 1024), 1e-3, dtype=torch.float64, requires_grad=True)
    (features,) = network(images)
    features[0, :, 0, features.shape[3] // 2].sum().backward()
    assert images.grad is not None
    columns = images.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert int(columns[-1] - columns[0]) + 1 == pixels < 1000


# --- torchvision's weights


@pytest.mark.parametrize(
    ("name", "arch", "depth"),
    [
        ("vgg16", "vgg", 16),
        ("vgg16_bn", "vgg", 16),
        ("vgg19_bn", "vgg", 19),
        ("mobilenet_v2", "mobilenet_v2", 0),
        ("squeezenet1_0", "squeezenet", 0),
        ("googlenet", "googlenet", 0),
        ("efficientnet_b0", "efficientnet_b0", 0),
    ],
)
def test_tensors_have_torchvisions_names_and_shapes(name: str, arch: str, depth: int) -> None:
    network = backbone(arch, depth, use_batch_norm=name != "vgg16")
    theirs = {key: tensor.shape for key, tensor in original(name).state_dict().items()}
    ours = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert network.published == f"torchvision's {name}"
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith(network.behind)}


@pytest.mark.parametrize(
    ("arch", "eps", "momentum"),
    [("mobilenet_v2", 1e-5, 0.1), ("googlenet", 1e-3, 0.1), ("efficientnet_lite0", 1e-3, 0.1)],
)
def test_batch_norm_has_the_constants_of_its_weights(arch: str, eps: float, momentum: float) -> None:
    layers = [layer for layer in plain(arch, 0).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in layers} == {(eps, momentum)}


def test_efficientnet_drops_branches_in_training_only() -> None:
    torch.manual_seed(0)
    network = backbone("efficientnet_b0", device="cpu")
    depths = [layer for layer in network.modules() if type(layer).__name__ == "StochasticDepth"]
    assert [layer.p for layer in depths] == pytest.approx([0.2 * unit / 16 for unit in range(16)])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        network.eval()
        assert torch.equal(*network(images), *network(images))
