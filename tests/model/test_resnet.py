"""Shapes, sizes and names of the residual networks."""

import functools
import itertools

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detectkit.heads import Level
from detectkit.model.backbones import make_backbone
from detectkit.model.base import Backbone
from detectkit.model.resnet import RESNETS
from detectkit.spec.model_pb2 import ModelConfig

# Parameters of torchvision's network less its classifier (fc): 18: 11,689,512 - 513,000, ... 50: 25,557,032 - 2,049,000.
TORCHVISION = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
# By hand: stem 9,536; stages 73,984 + 230,144 + 919,040 + 3,673,088.
# ResNet-200 is 152 with 16 units more in its second stage: 512 -> 128 -> 128 -> 512, the middle one 3x3.
UNIT = 512 * 128 + 128 * 128 * 9 + 128 * 512 + 2 * (128 + 128 + 512)
PARAMETERS = TORCHVISION | {10: 4_905_792, 200: TORCHVISION[152] + 16 * UNIT}


@functools.cache
def resnet(depth: int, *, channels: int = 3, meta: bool = True, **options: bool) -> Backbone:
    """Each is made once; its weights are not to be changed."""
    settings = {"use_batch_norm": True} | options
    with torch.device("meta" if meta else "cpu"):
        return make_backbone(ModelConfig(arch="resnet", num_layers=depth, **settings), channels)


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


OPTIONS = list(itertools.product([False, True], repeat=3))
ALL = [(depth, *options) for depth in (18, 50) for options in OPTIONS]
ALL += [(depth, pooling, True, False) for depth in (10, 34, 101, 152) for pooling in (False, True)]


@pytest.mark.parametrize(("depth", "pooling", "batch_norm", "all_projections"), ALL)
def test_every_depth_and_option_has_a_stride_of_16(
    depth: int, pooling: bool, batch_norm: bool, all_projections: bool
) -> None:
    network = resnet(depth, use_pooling=pooling, use_batch_norm=batch_norm, all_projections=all_projections)
    with torch.no_grad():
        (features,) = network.eval()(torch.empty(2, 3, 48, 80, device="meta"))
    width = 512 if depth < 50 else 2048
    assert features.shape == (2, width, 3, 5)
    assert network.levels == (Level("layer4", 16, width),)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == batch_norm
    assert all(
        (layer.bias is None) == batch_norm for layer in network.modules() if isinstance(layer, nn.Conv2d)
    )


@pytest.mark.parametrize("depth", RESNETS)
def test_parameters_with_pooling_are_torchvisions(depth: int) -> None:
    network = resnet(depth, use_pooling=True)
    assert parameters(network) == PARAMETERS[depth]
    assert network.published == (f"torchvision's resnet{depth}" if depth in TORCHVISION else None)


@pytest.mark.parametrize("depth", RESNETS)
def test_without_pooling_the_first_stage_of_basic_blocks_needs_a_projection(depth: int) -> None:
    projection = 64 * 64 + 2 * 64 if depth < 50 else 0  # bottlenecks have one anyway: 64 -> 256 channels
    assert parameters(resnet(depth)) == PARAMETERS[depth] + projection


@pytest.mark.spec_field("ModelConfig.all_projections")
def test_all_projections_adds_one_to_each_second_unit_of_resnet18() -> None:
    extra = sum(width * width + 2 * width for width in (64, 128, 256, 512))
    assert parameters(resnet(18, all_projections=True)) == PARAMETERS[18] + (64 * 64 + 2 * 64) + extra


def test_without_batch_norm_each_pair_of_scale_and_shift_becomes_one_bias() -> None:
    channels = 64 + 5 * 64 + 5 * 128 + 5 * 256 + 5 * 512  # stem; four convolutions and a projection a stage
    assert parameters(resnet(18, use_batch_norm=False)) == parameters(resnet(18)) - channels


@pytest.mark.parametrize("depth", TORCHVISION)
def test_tensor_names_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        original = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    theirs = {name: tensor.shape for name, tensor in original.items() if not name.startswith("fc.")}
    ours = {name: tensor.shape for name, tensor in resnet(depth, use_pooling=True).state_dict().items()}
    assert ours == theirs


def test_with_pooling_features_up_to_layer3_equal_torchvisions() -> None:
    """Of bottlenecks; tests/model/test_checkpoint.py has ResNet-18."""
    original = torchvision.models.resnet50(weights=None).eval()
    ours = resnet(50, meta=False, use_pooling=True).eval()
    theirs = {name: tensor for name, tensor in original.state_dict().items() if "fc." not in name}
    ours.load_state_dict(theirs)
    seen: list[Tensor] = []
    for network in (original, ours):
        network.layer3.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        with torch.no_grad():
            network(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2)))
    assert seen[0].shape == (2, 1024, 4, 6)
    assert seen[0].std() > 0 and torch.equal(seen[0], seen[1])


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    unit = resnet(50).get_submodule("layer2.0")
    assert (unit.conv1.stride, unit.conv2.stride) == ((1, 1), (2, 2))


# --- v1d


V1D = {"deep_stem": True, "average_pooled_shortcuts": True, "use_pooling": True}


def made(depth: int, *strides: int, **options: bool) -> Backbone:
    with torch.device("meta"):
        config = ModelConfig(arch="resnet", num_layers=depth, use_batch_norm=True, **options)
        return make_backbone(config, 3, strides).eval()


# timm 1.0's resnet18d to resnet200d less their classifiers.
TIMM = {18: 11_195_744, 34: 21_303_904, 50: 23_527_264, 101: 42_519_392, 152: 58_163_040, 200: 62_644_064}


@pytest.mark.parametrize("depth", RESNETS)
def test_parameters_of_v1d_are_timms(depth: int) -> None:
    # The stem's 27 x 32, 288 x 32 and 288 x 64 weights and two normalisations of 32 are 19,232 more than 147 x 64.
    network = made(depth, 8, 16, 32, **V1D)
    assert parameters(network) == PARAMETERS[depth] + 19_232 == TIMM.get(depth, 4_925_024)
    assert network.published == (f"timm's resnet{depth}d" if depth in TIMM else None)
    assert network.title == f"resnet {depth} with a deep stem with average-pooled shortcuts"
    width = 1 if depth < 50 else 4
    assert [level[1:] for level in network.levels] == [(8, 128 * width), (16, 256 * width), (32, 512 * width)]


@pytest.mark.spec_field("ModelConfig.deep_stem")
def test_a_deep_stem_is_three_small_convolutions() -> None:
    network = made(50, deep_stem=True)
    stem = [layer for layer in network.blocks()[0].modules() if isinstance(layer, nn.Conv2d)]
    assert [
        (layer.in_channels, layer.out_channels, *layer.kernel_size, layer.stride[0]) for layer in stem
    ] == [
        (3, 32, 3, 3, 2),
        (32, 32, 3, 3, 1),
        (32, 64, 3, 3, 1),
    ]
    assert network.levels == (Level("layer4", 16, 2048),)
    assert not any(isinstance(layer, nn.AvgPool2d) for layer in network.modules())
    assert network.published is None


@pytest.mark.spec_field("ModelConfig.average_pooled_shortcuts")
def test_a_shortcut_takes_the_mean_of_four_pixels() -> None:
    torch.manual_seed(0)
    network = resnet(10, meta=False, average_pooled_shortcuts=True, use_pooling=True)
    shortcut = network.get_submodule("layer2.0").downsample.eval()
    nn.init.zeros_(shortcut[1].weight)
    shortcut[1].weight.data[0, 0] = 1.0  # the first channel as it is
    maps = torch.zeros(1, 64, 3, 4)
    maps[0, 0] = torch.tensor([[1.0, 3, 0, 0], [5, 7, 0, 8], [6, 2, 0, 1]])
    found = shortcut(maps)[0, 0] * (1 + 1e-5) ** 0.5  # batch normalisation's epsilon
    assert found.tolist() == [
        pytest.approx([4.0, 2.0]),
        pytest.approx([4.0, 0.5]),
    ]  # the last row has no pair
    pools = [name for name, layer in network.named_modules() if isinstance(layer, nn.AvgPool2d)]
    assert pools == ["layer2.0.downsample.0", "layer3.0.downsample.0"]  # a stride of 16
    assert not {(2, 2)} & {
        layer.stride
        for layer in network.modules()
        if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1)
    }


def test_v1d_has_the_choices_of_the_others() -> None:
    network = made(18, all_projections=True, deep_stem=True, average_pooled_shortcuts=True)
    assert (
        sum(isinstance(layer, nn.AvgPool2d) for layer in network.modules()) == 3
    )  # without a pool, layer1 halves
    grey = make_backbone(ModelConfig(arch="resnet", deep_stem=True), 1)
    assert grey.get_parameter("conv1.0.weight").shape == (32, 1, 3, 3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in grey.modules())


# --- training


def test_running_statistics_follow_a_short_training() -> None:
    """After 40 small batches (one epoch of 160 images) they are the data's."""
    torch.manual_seed(4)
    normalization = resnet(10, meta=False).bn1
    for _ in range(40):
        normalization(5 + 3 * torch.randn(4, 64, 16, 16))
    torch.testing.assert_close(normalization.running_mean, torch.full((64,), 5.0), rtol=0.02, atol=0.1)
    torch.testing.assert_close(normalization.running_var, torch.full((64,), 9.0), rtol=0.1, atol=0)


def test_signal_keeps_its_size_from_random_weights() -> None:
    torch.manual_seed(3)
    network = resnet(18, meta=False)
    (features,) = network(torch.rand(4, 3, 64, 64))  # batch statistics
    assert 0.1 < features.std() < 10 and features.isfinite().all()


def test_blocks_cover_every_convolution_once() -> None:
    network = resnet(34)
    named = [layer for block in network.blocks().values() for layer in block.modules()]
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert list(network.blocks()) == [0, 1, 2, 3, 4]
    assert [layer for layer in named if isinstance(layer, nn.Conv2d)] == convolutions
