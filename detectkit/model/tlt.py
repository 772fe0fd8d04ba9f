"""TLT's networks in Keras files: what their layers are called there, and their weights in our tensors.

The names are those of TLT DetectNet_v2 (NVIDIA's tao_tensorflow1_backend, core/templates). A convolution there keeps its
bias before batch normalisation, where ours has none: the running mean takes it, which is the same.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detectkit.errors import ModelError
from detectkit.model import keras
from detectkit.model.backbones import KERAS_EPSILON
from detectkit.model.base import Backbone, first_convolution
from detectkit.model.darknet import STAGES_19, UNITS_53
from detectkit.model.detector import Detector
from detectkit.model.googlenet import INCEPTIONS
from detectkit.model.keras import KerasFile
from detectkit.model.mobilenet import SEPARABLE
from detectkit.model.resnet import RESNETS
from detectkit.model.vgg import BLOCKS
from detectkit.spec.networks import NETWORKS

LETTERS = [
    *string.ascii_lowercase,
    *(f"a{letter}" for letter in string.ascii_lowercase),
]  # of the units of a stage
ROUNDING = "_qdq"  # how the layers end that only round
# In the names of what a MobileNet v2 of TLT's classifiers may have, and that of DetectNet_v2 has not.
PROJECTED = "_projected_inputs"
# Keras's names of the tensors of batch normalisation, and torch's.
NORMALISATION = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
EFFICIENTNET_B0 = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage


class Unit(NamedTuple):
    """A convolution and the batch normalisation behind it, by TLT's names and by ours; empty where there is none."""

    convolution: str
    normalisation: str
    ours: str
    norm: str


class Converted(NamedTuple):
    """The weights of a file by the names that they have in a detector's state dict."""

    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]  # empty where the file has none
    channels: int  # of the images that the network takes
    remarks: list[str]  # what differs from the file's network, a sentence each


def convert(path: str | os.PathLike[str], detector: Detector, *, whole: bool) -> Converted:
    """The weights of a file of TLT for a detector; it stays as it is.

    Args:
        whole: the file is a trained detector that must compute the same here; otherwise only the weights of its layers
            are wanted, as TLT does it with a pretrained file.

    Raises:
        ModelError: the file cannot be read, or holds another network than the detector is.
    """
    file, backbone = keras.read(path), detector.backbone
    _check_layout(path, backbone)
    table = list(units(backbone.arch, backbone.depth, batch_norm=_has_batch_norm(backbone)))
    _check_network(path, file, backbone)
    _check_layers(path, file, table, detector.head_layers)
    _check_epsilon(path, file, table)
    remarks = _differences(file, backbone, table)
    if whole and remarks:
        raise ModelError(f"{path}: {remarks[0]}")
    modules, found = dict(backbone.named_modules()), {}
    for unit in table:
        layer, norm = modules.get(unit.ours), modules.get(unit.norm)
        if isinstance(layer, nn.Conv2d) and unit.convolution in file.tensors:
            for name, tensor in _unit(path, file, unit, layer, norm).items():
                found[f"backbone.{name}"] = tensor
    heads = {
        f"{head}.{leaf}": tensor
        for head in detector.head_layers  # which have the same names there
        if all(name in file.tensors for name in detector.head_layers)
        for leaf, tensor in _convolution(path, file, head).items()
    }
    first = next(name for name, layer in modules.items() if layer is first_convolution(backbone))
    return Converted(found, heads, found[f"backbone.{first}.weight"].shape[1], remarks)


def classes(heads: Mapping[str, Tensor]) -> int:
    """How many the heads of a file are for, 0 without any."""
    return len(heads["output_cov.weight"]) if heads else 0


# What a file is


def _check_layout(path: str | os.PathLike[str], backbone: Backbone) -> None:
    if (backbone.arch, backbone.depth) not in KNOWN:
        raise ModelError(
            f"{path}: TLT's DetectNet_v2 has no {backbone.arch}: give model_config the network of the file"
        )
    if backbone.layout != "TLT":
        raise ModelError(f"{path} is a file of TLT, whose networks differ: set layout: TLT in model_config")
    if backbone.arch == "resnet" and isinstance(backbone.get_submodule("maxpool"), nn.MaxPool2d):
        raise ModelError(
            f"{path}: the ResNets of TLT's DetectNet_v2 have no pool: set use_pooling: false in model_config"
        )
    if any(field in backbone.title for field in ("deep stem", "average-pooled")):
        raise ModelError(
            f"{path}: the ResNets of TLT's DetectNet_v2 are not of form v1d: set deep_stem and average_pooled_shortcuts to false"
            " in model_config"
        )


def _check_network(path: str | os.PathLike[str], file: KerasFile, backbone: Backbone) -> None:
    """Refuse a file of another family, depth or choice of batch normalisation."""
    found = _network(file)
    if found is None:
        names = ", ".join(list(file.tensors)[:3]) or "none"
        raise ModelError(
            f"{path} holds no network of TLT's DetectNet_v2; its first layers with weights are: {names}"
        )
    arch, depth = found
    if found != (backbone.arch, backbone.depth):
        fields = f'arch: "{arch}"' + (f", num_layers: {depth}" if depth else "")
        raise ModelError(
            f"{path} holds {_title(*found)}, the spec asks for {backbone.title}: set {fields} in model_config"
        )
    normalises = any(unit.normalisation in file.tensors for unit in units(arch, depth))
    if normalises != _has_batch_norm(backbone):
        kind = "with" if normalises else "without"
        raise ModelError(
            f"{path} holds {_title(*found)} {kind} batch normalisation: set use_batch_norm: {str(normalises).lower()} in"
            " model_config"
        )


def _network(file: KerasFile) -> tuple[str, int] | None:
    """Family and depth of the largest network all of whose convolutions are in a file; projections do not count."""
    sizes = {}
    for arch, depth in KNOWN:
        names = [unit.convolution for unit in units(arch, depth) if not _is_projection(unit)]
        if all(name in file.tensors for name in names):
            sizes[arch, depth] = len(names)
    return max(sizes, key=lambda pair: sizes[pair], default=None)


def _check_layers(
    path: str | os.PathLike[str], file: KerasFile, table: Iterable[Unit], heads: Iterable[str]
) -> None:
    """Refuse a file with layers of its own among those of the network; what is behind them, such as a classifier, may be."""
    known = {name for unit in table for name in (unit.convolution, unit.normalisation)}
    names = list(file.tensors)
    last = max(place for place, name in enumerate(names) if name in known)
    known |= {*heads, *(name for name in names if name.endswith(ROUNDING) or PROJECTED in name)}
    others = [name for name in names[:last] if name not in known]
    if others:
        raise ModelError(
            f"{path} also has the layers {', '.join(others[:3])} among those of its backbone, which TLT's DetectNet_v2 has not"
        )


def _check_epsilon(path: str | os.PathLike[str], file: KerasFile, table: Iterable[Unit]) -> None:
    for unit in table:
        epsilon = file.settings.get(unit.normalisation, {}).get("epsilon", KERAS_EPSILON)
        if abs(epsilon - KERAS_EPSILON) > 1e-8:
            raise ModelError(
                f"{path}: {unit.normalisation} has an epsilon of {epsilon:g}; those of TLT's networks are {KERAS_EPSILON:g}"
            )


def _differences(file: KerasFile, backbone: Backbone, table: Iterable[Unit]) -> list[str]:
    """What makes the detector compute something else than the file's network, with the field to change."""
    modules, found = dict(backbone.named_modules()), {}
    for unit in table:
        layer, stored = modules.get(unit.ours), unit.convolution in file.tensors
        if _is_projection(unit) and stored != isinstance(layer, nn.Conv2d):
            found["all_projections"] = (
                f"its network {'has' if stored else 'lacks'} the projection {unit.convolution}: all_projections:"
                f" {str(stored).lower()} in model_config is its network"
            )
        strides = file.settings.get(unit.convolution, {}).get("strides")
        if strides and isinstance(layer, nn.Conv2d) and tuple(strides) != layer.stride:
            pools = layer.stride != (1, 1)  # ours strides where the file's network has a pool
            found["use_pooling"] = (
                f"its {unit.convolution} has a stride of {strides[0]}, the spec's network one of {layer.stride[0]}:"
                f" use_pooling: {str(pools).lower()} in model_config is its network"
            )
    projected = [name for name in file.tensors if PROJECTED in name]
    if projected:
        found["projected"] = f"its network also has {projected[0]} and its like, which DetectNet_v2's has not"
    rounds = any(name.endswith(ROUNDING) for name in file.tensors)
    if rounds and not any(isinstance(layer, nn.ReLU6) for layer in backbone.modules()):
        found["activation"] = (
            "it was trained with enable_qat, in which TLT makes every activation ReLU6: activation { activation_type:"
            ' "relu6" } in model_config is its network'
        )
    return list(found.values())


# Its tensors


def _unit(
    path: str | os.PathLike[str], file: KerasFile, unit: Unit, layer: nn.Conv2d, norm: nn.Module | None
) -> dict[str, Tensor]:
    """A convolution and its normalisation, by the backbone's names."""
    convolution = _convolution(path, file, unit.convolution, depthwise=layer.groups > 1)
    found = {f"{unit.ours}.weight": convolution["weight"]}
    bias = convolution["bias"]
    if layer.bias is not None:
        found[f"{unit.ours}.bias"] = bias
    if isinstance(norm, nn.BatchNorm2d):
        for theirs, ours in NORMALISATION.items():
            tensor = _stored(path, file, unit.normalisation, theirs, 1)
            if ours == "running_mean" and layer.bias is None:
                if tensor.shape != bias.shape:
                    raise ModelError(
                        f"{path} is damaged: {unit.normalisation} is not as wide as {unit.convolution}"
                    )
                tensor = tensor - bias
            found[f"{unit.norm}.{ours}"] = tensor
        found[f"{unit.norm}.num_batches_tracked"] = torch.tensor(0)
    return found


def _convolution(
    path: str | os.PathLike[str], file: KerasFile, name: str, *, depthwise: bool = False
) -> dict[str, Tensor]:
    """Weight and bias; a bias that the file does not have is 0."""
    stored = file.tensors[name]
    # Keras 2 has another name for it.
    kernel = "depthwise_kernel" if depthwise and "depthwise_kernel" in stored else "kernel"
    weight = _stored(path, file, name, kernel, 4).permute((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    bias = _stored(path, file, name, "bias", 1) if "bias" in stored else weight.new_zeros(len(weight))
    return {"weight": weight.contiguous(), "bias": bias}


def _stored(path: str | os.PathLike[str], file: KerasFile, layer: str, name: str, dimensions: int) -> Tensor:
    tensor = file.tensors.get(layer, {}).get(name)
    if tensor is None:
        raise ModelError(f"{path} lacks {layer}/{name}: it does not hold the whole network")
    if tensor.dim() != dimensions:
        raise ModelError(f"{path} is damaged: {layer}/{name} has the shape {list(tensor.shape)}")
    return tensor


# The names of every network


def units(arch: str, depth: int, *, batch_norm: bool = True) -> Iterator[Unit]:
    """The convolutions of a network in their order.

    Args:
        batch_norm: of vgg, whose layers have other numbers with it.
    """
    match arch:
        case "resnet":
            return _resnet(depth)
        case "vgg":
            return _vgg(depth, batch_norm)
        case "mobilenet_v1":
            return _mobilenet_v1()
        case "mobilenet_v2":
            return _mobilenet_v2()
        case "squeezenet":
            return _squeezenet()
        case "googlenet":
            return _googlenet()
        case "darknet":
            return _darknet_19() if depth == 19 else _darknet_53()
        case _:
            return _efficientnet_b0()


def _resnet(depth: int) -> Iterator[Unit]:
    block, repeats = RESNETS[depth]
    yield Unit("conv1", "bn_conv1", "conv1", "bn1")
    for stage, count in enumerate(repeats, start=1):
        for number in range(count):
            theirs, ours = f"block_{stage}{LETTERS[number]}", f"layer{stage}.{number}"
            for place in range(1, 3 if block.expansion == 1 else 4):
                names = f"{theirs}_conv_{place}", f"{theirs}_bn_{place}"
                yield Unit(*names, f"{ours}.conv{place}", f"{ours}.bn{place}")
            names = f"{theirs}_conv_shortcut", f"{theirs}_bn_shortcut"
            yield Unit(*names, f"{ours}.downsample.0", f"{ours}.downsample.1")


def _is_projection(unit: Unit) -> bool:
    return unit.convolution.endswith("_conv_shortcut")


def _vgg(depth: int, batch_norm: bool) -> Iterator[Unit]:
    place = 0
    for block, count in enumerate(BLOCKS[depth], start=1):
        for number in range(count):
            theirs = f"block_{block}{LETTERS[number]}"
            norm = f"features.{place + 1}" if batch_norm else ""
            yield Unit(f"{theirs}_conv_1", f"{theirs}_bn_1", f"features.{place}", norm)
            place += 3 if batch_norm else 2  # the function, too
        place += 1  # the pool


def _mobilenet_v1() -> Iterator[Unit]:
    yield Unit("conv1", "conv1_bn", "block0.conv", "block0.bn")
    for number in range(1, len(SEPARABLE) + 1):
        for theirs, ours in ((f"conv_dw_{number}", "depthwise"), (f"conv_pw_{number}", "pointwise")):
            yield Unit(theirs, f"{theirs}_bn", f"block{number}.{ours}.conv", f"block{number}.{ours}.bn")


def _mobilenet_v2() -> Iterator[Unit]:
    yield Unit("conv1", "bn_conv1", "features.0.0", "features.0.1")
    for number in range(13):
        theirs, ours = f"block_{number}" if number else "expanded_conv", f"features.{number + 1}.conv"
        names = ["expand"] * (number > 0) + ["depthwise"]
        for place, name in enumerate(names):
            yield Unit(f"{theirs}_{name}", f"{theirs}_{name}_bn", f"{ours}.{place}.0", f"{ours}.{place}.1")
        last = len(names)
        yield Unit(f"{theirs}_project", f"{theirs}_project_bn", f"{ours}.{last}", f"{ours}.{last + 1}")


def _squeezenet() -> Iterator[Unit]:
    yield Unit("conv1", "", "features.0", "")
    parts = {"squeeze_conv": "squeeze", "expand_conv1x1": "expand1x1", "expand_conv3x3": "expand3x3"}
    for number, place in zip(range(2, 10), (3, 4, 5, 7, 8, 9, 10, 12), strict=True):
        for theirs, ours in parts.items():
            yield Unit(f"fire{number}_{theirs}", "", f"features.{place}.{ours}", "")


def _googlenet() -> Iterator[Unit]:
    for theirs, ours in (("conv1", "conv1"), ("conv2_reduce", "conv2"), ("conv2", "conv3")):
        yield Unit(theirs, f"bn_{theirs}", f"{ours}.conv", f"{ours}.bn")
    branches = {
        "1x1": "branch1",
        "3x3_reduce": "branch2.0",
        "3x3": "branch2.1",
        "5x5_reduce": "branch3.0",
        "5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }
    for inception in INCEPTIONS:
        for name, branch in branches.items():
            theirs = f"{inception.replace('inception', 'inception_')}_{name}"
            ours = f"{inception}.{branch}"
            yield Unit(theirs, f"{theirs}_bn", f"{ours}.conv", f"{ours}.bn")


def _darknet(theirs: str, ours: str) -> Unit:
    return Unit(theirs, f"{theirs}_bn", f"{ours}.conv", f"{ours}.bn")


def _darknet_19() -> Iterator[Unit]:
    yield _darknet("conv1", "stage0.conv1")
    for stage, (_, count) in list(enumerate(STAGES_19))[1:]:
        for number in range(1, count + 1):
            yield _darknet(f"b{stage}_conv{number}", f"stage{stage}.conv{number}")


def _darknet_53() -> Iterator[Unit]:
    yield _darknet("conv1", "stage0.conv1")
    for stage, count in list(enumerate(UNITS_53))[1:]:
        yield _darknet(f"conv{stage + 1}", f"stage{stage}.conv1")
        for number in range(1, count + 1):
            for place in (1, 2):
                yield _darknet(f"b{stage}_conv{number}_{place}", f"stage{stage}.unit{number}.conv{place}")


def _efficientnet_b0() -> Iterator[Unit]:
    yield Unit("stem_conv", "stem_bn", "features.0.0", "features.0.1")
    for stage, count in enumerate(EFFICIENTNET_B0, start=1):
        for number in range(count):
            theirs, ours = f"block{stage}{LETTERS[number]}", f"features.{stage}.{number}.block"
            place = 0
            if stage > 1:
                yield Unit(f"{theirs}_expand_conv", f"{theirs}_expand_bn", f"{ours}.0.0", f"{ours}.0.1")
                place = 1
            yield Unit(f"{theirs}_dwconv", f"{theirs}_bn", f"{ours}.{place}.0", f"{ours}.{place}.1")
            yield Unit(f"{theirs}_se_reduce", "", f"{ours}.{place + 1}.fc1", "")
            yield Unit(f"{theirs}_se_expand", "", f"{ours}.{place + 1}.fc2", "")
            last = f"{ours}.{place + 2}"
            yield Unit(f"{theirs}_project_conv", f"{theirs}_project_bn", f"{last}.0", f"{last}.1")
    yield Unit("top_conv", "top_bn", "features.8.0", "features.8.1")


def _known() -> Iterator[tuple[str, int]]:
    for arch, network in NETWORKS.items():
        if network.in_tlt and (not arch.startswith("efficientnet") or arch == "efficientnet_b0"):
            yield from ((arch, depth) for depth in network.depths or (0,))


KNOWN = tuple(_known())  # the families and depths of TLT's DetectNet_v2


def _title(arch: str, depth: int) -> str:
    return f"{arch} {depth}" if depth else arch


def _has_batch_norm(backbone: Backbone) -> bool:
    return any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())
