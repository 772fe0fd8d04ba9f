"""The backbone that `model_config` asks for: its family, and the choices that all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from detectkit.errors import SpecError
from detectkit.model.base import LAYOUTS, Backbone, first_convolution, initialise, replace
from detectkit.model.darknet import DarkNet
from detectkit.model.efficientnet import LITE_SCALES, EfficientNet, EfficientNetLite
from detectkit.model.googlenet import GoogLeNet
from detectkit.model.mobilenet import MobileNetV1, MobileNetV2
from detectkit.model.resnet import ResNet
from detectkit.model.squeezenet import SqueezeNet
from detectkit.model.vgg import VGG
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, layout_of

FUNCTIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
)  # after the convolutions of all families
KERAS_EPSILON = 1e-3  # of batch normalisation, which TLT's and TensorFlow's networks have
ALPHA = {"leaky_relu": 0.1, "elu": 1.0}  # the functions that have this parameter, and its default


def make_backbone(model_config: ModelConfig, channels: int, strides: Sequence[int] = ()) -> Backbone:
    """A backbone with random weights from torch's global generator, on the default device.

    Args:
        model_config: the choices that an `arch` does not have are not read.
        channels: of the images, 1 or 3.
        strides: of the maps that it shall give, the finest first; with 32 among them it goes as far as torchvision's. Without
            any it gives its last map, where TLT's ends.

    Raises:
        SpecError: `arch`, `num_layers` or `activation` name something that does not exist, or there is no such stride.
    """
    backbone = _family(model_config, strides)
    backbone.arch = model_config.arch
    backbone.depth = NETWORKS[backbone.arch].depth(model_config.num_layers)
    backbone.title = _title(model_config)
    layout = layout_of(model_config)
    if layout != ModelConfig.TORCHVISION:
        _take_layout(backbone, layout)
    if channels != 3:
        _take_channels(first_convolution(backbone), channels)
    # torchvision has vgg in both forms.
    if _chooses_no_batch_norm(model_config) and model_config.arch != "vgg":
        _leave_out_batch_norm(backbone)
        backbone.published = None
    if model_config.HasField("activation"):
        function = _function(model_config.activation)
        replace(backbone, FUNCTIONS, lambda _: function())
    initialise(backbone)
    backbone.give(strides)
    return backbone


def _take_layout(backbone: Backbone, layout: ModelConfig.Layout) -> None:
    backbone.layout = ModelConfig.Layout.Name(layout)
    if layout == ModelConfig.TLT:
        backbone.published = None
    backbone.title += f" in {LAYOUTS[backbone.layout]}'s layout"
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = KERAS_EPSILON


def _title(config: ModelConfig) -> str:
    network = NETWORKS[config.arch]
    title = f"{config.arch} {network.depth(config.num_layers)}" if network.depths else config.arch
    parts = {
        "with a deep stem": network.v1d and config.deep_stem,
        "with average-pooled shortcuts": network.v1d and config.average_pooled_shortcuts,
        "without batch normalisation": _chooses_no_batch_norm(config),
    }
    return " ".join([title, *(part for part, chosen in parts.items() if chosen)])


def _chooses_no_batch_norm(config: ModelConfig) -> bool:
    return NETWORKS[config.arch].batch_norm is None and not config.use_batch_norm


def _family(config: ModelConfig, strides: Sequence[int]) -> Backbone:
    arch, deep = config.arch, 32 in strides
    if arch not in NETWORKS:
        raise SpecError(f'model_config.arch: there is no "{arch}"; use one of: {", ".join(NETWORKS)}')
    depths, depth = NETWORKS[arch].depths, NETWORKS[arch].depth(config.num_layers)
    if depths and depth not in depths:
        choices = ", ".join(map(str, sorted(depths)))
        raise SpecError(f"model_config.num_layers: {arch} has no {depth} layers; use one of: {choices}")
    layout = layout_of(config)
    tlt = layout == ModelConfig.TLT
    match arch:
        case "resnet":
            return ResNet(
                depth,
                pooling=config.use_pooling,
                all_projections=config.all_projections,
                tlt=tlt,
                deep=deep,
                deep_stem=config.deep_stem,
                averaged=config.average_pooled_shortcuts,
            )
        case "vgg":
            return VGG(depth, pooling=config.use_pooling, batch_norm=config.use_batch_norm, deep=deep)
        case "darknet":
            return DarkNet(depth)
        case "mobilenet_v1":
            return MobileNetV1(deep=deep)
        case "mobilenet_v2":
            return MobileNetV2(tlt=tlt, deep=deep)
        case "squeezenet":
            return SqueezeNet()
        case "googlenet":
            return GoogLeNet(tlt=tlt, deep=deep)
        case _ if arch in LITE_SCALES:
            return EfficientNetLite(arch, deep=deep)
        case _:
            return EfficientNet(arch, tensorflow=layout != ModelConfig.TORCHVISION, whole=not strides)


def _take_channels(layer: nn.Conv2d, channels: int) -> None:
    layer.in_channels = channels
    layer.weight = nn.Parameter(layer.weight.new_empty(layer.out_channels, channels, *layer.kernel_size))


def _leave_out_batch_norm(network: nn.Module) -> None:
    """Every normalisation becomes nothing, and every convolution gets a bias."""
    for layer in list(network.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(layer, name, nn.Identity())
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels))


def _function(config: ModelConfig.Activation) -> Callable[[], nn.Module]:
    """A maker of the layer that `activation` asks for."""
    name, parameters = config.activation_type, dict(config.activation_parameters)
    alpha = parameters.pop("alpha", ALPHA[name]) if name in ALPHA else 0.0
    if parameters:
        raise SpecError(
            f'model_config.activation.activation_parameters: {name} has no "{min(parameters)}";'
            f" alpha of {' and '.join(ALPHA)} is the only parameter"
        )
    makers: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "leaky_relu": lambda: nn.LeakyReLU(alpha),
        "elu": lambda: nn.ELU(alpha),
        "swish": nn.SiLU,
        "hard_swish": nn.Hardswish,
    }
    if name not in makers:
        raise SpecError(
            f'model_config.activation.activation_type: there is no "{name}"; use one of: {", ".join(makers)}'
        )
    return makers[name]
