"""Starting a detector from pretrained weights: of a detectkit model, of TLT, or of a torchvision classifier."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from google.protobuf import text_format
from torch import Tensor, nn

from detectkit.errors import ModelError
from detectkit.model import checkpoint, keras, tlt
from detectkit.model.base import LAYOUTS, Backbone, Features, computes_the_same, first_convolution
from detectkit.model.checkpoint import (
    Model,
    check_channels,
    check_finite,
    check_fits,
    check_names,
    check_widths,
    cut_to,
    few,
)
from detectkit.model.detector import Detector, build
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, is_keras, is_of_tlt

# What torch.load(weights_only=True) raises on bytes that are not its own, besides refusing code.
UNREADABLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class Pretrained(NamedTuple):
    """What `load_pretrained` did."""

    loaded: list[str]  # tensors taken from the file
    skipped: list[str]  # tensors that keep their fresh values, in whole or for some classes
    classes: list[str]  # classes whose heads were copied
    narrowed: bool  # the file holds a pruned network, and the detector now has its widths
    remarks: list[str] = []  # what else there is to know of the file, a sentence each


def load_pretrained(
    detector: Detector,
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    load_graph: bool = False,
) -> Pretrained:
    """Start a detector from the weights of a detectkit model, of TLT or of a torchvision classifier; changes it in place.

    A detectkit model (*.safetensors) gives its normalisation, its widths, its backbone, and the heads of the classes
    of the same name. A torchvision file gives the backbone and the normalisation that it expects; projections that it
    lacks start as the identity, and layers behind the backbone's last are left out. The file may hold the whole
    network, or its `features` alone. A Keras file of TLT gives the widths and the backbone, and with `load_graph` the
    heads, if they are for as many classes: their names are not in it.

    With `detector.freeze_pretrained`, what came from the file is frozen. Optimizers must be made afterwards.

    Args:
        detector: as `build` made it.
        path: *.safetensors, *.hdf5, *.h5, or torch.save of a state dict.
        class_names: of the detector, in the order of its outputs.
        load_graph: take the heads of a Keras file too, as TLT does with it.

    Raises:
        ModelError: unreadable, of another network than the spec asks for, pruned and with another activation or
            pooling, or freezing it leaves nothing to train.
    """
    if Path(path).suffix == ".safetensors":
        report = _from_detectkit(detector, path, class_names)
    elif is_keras(os.fspath(path)):
        report = _from_keras(detector, path, class_names, heads=load_graph)
    elif is_of_tlt(os.fspath(path)):
        raise ModelError(f"{path} is encrypted: {keras.DECRYPT}")
    else:
        report = _from_torchvision(detector, path)
    if detector.freeze_pretrained:
        _freeze(detector, report, path)
    return report


def _freeze(detector: Detector, report: Pretrained, path: str | os.PathLike[str]) -> None:
    detector.freeze(set(report.loaded) - set(report.skipped))
    if not any(weight.requires_grad for weight in detector.parameters()):
        raise ModelError(
            f"{path} holds every layer of this network: freeze_pretrained_layers: true leaves nothing to train"
        )


def _from_detectkit(
    detector: Detector, path: str | os.PathLike[str], class_names: Sequence[str]
) -> Pretrained:
    source = checkpoint.load(path)
    source.detector.ranges = None
    check_channels(path, detector, source.detector.channels)
    _check_layout(path, detector, source)
    own, new = detector.state_dict(), source.detector.state_dict()
    check_names(path, own, new, f"give model_config its architecture: {_architecture(source.spec)}")
    heads = [f"{layer}.{leaf}" for layer, leaf, *_ in _by_class(detector)]
    widths = new | {name: new[name].new_empty(len(own[name]), *new[name].shape[1:]) for name in heads}
    check_fits(path, own, widths)
    narrowed = any(own[name].shape != tensor.shape for name, tensor in widths.items())
    if narrowed:
        _check_layers(path, detector, source)
        cut_to(detector, widths)
        detector.layers.reset()
    for name, tensor in detector.state_dict().items():
        if name not in heads:
            tensor.copy_(new[name])
    classes = _copy_classes(detector, source, class_names)
    loaded = [name for name in own if classes or name not in heads]
    return Pretrained(loaded, heads if len(classes) < len(class_names) else [], classes, narrowed)


def _copy_classes(detector: Detector, source: Model, class_names: Sequence[str]) -> list[str]:
    """Copy the head channels of the classes that both have; gives their names."""
    same = [name for name in class_names if name in source.class_names]
    to = [list(class_names).index(name) for name in same]
    origin = [source.class_names.index(name) for name in same]
    for layer, leaf, anchors, values in _by_class(detector):
        tensor = detector.get_submodule(layer).state_dict()[leaf]
        rows = source.detector.get_submodule(layer).state_dict()[leaf].unflatten(0, (anchors, -1, values))
        tensor.unflatten(0, (anchors, -1, values))[:, to] = rows[:, origin].to(tensor.device)
    return same


def _by_class(detector: Detector) -> list[tuple[str, str, int, int]]:
    """The tensors of a head whose rows are those of classes: layer, name in it, anchors, rows of an anchor and class."""
    found = {output.layer: output for output in detector.outline.outputs if output.of_classes}
    return [
        (layer, leaf, output.anchors, output.values)
        for layer, output in found.items()
        for leaf in detector.get_submodule(layer).state_dict()
    ]


def _architecture(experiment: Experiment) -> str:
    """The fields that decide which tensors a network has."""
    model = experiment.model_config
    network = NETWORKS[model.arch]
    fields = [f'arch: "{model.arch}"']
    if network.depths:
        fields += [f"num_layers: {network.depth(model.num_layers)}"]
    choices = (
        ("use_pooling", network.pooling),
        ("use_batch_norm", network.batch_norm is None),
        ("all_projections", network.projections),
        ("deep_stem", network.v1d and model.deep_stem),
        ("average_pooled_shortcuts", network.v1d and model.average_pooled_shortcuts),
    )
    fields += [f"{field}: {str(getattr(model, field)).lower()}" for field, chosen in choices if chosen]
    return ", ".join(fields)


def _check_layout(path: str | os.PathLike[str], detector: Detector, source: Model) -> None:
    """Refuse another layout than that of a model, where its network differs in them: no tensor tells them apart."""
    theirs, asked = source.detector.backbone.layout, detector.backbone.layout
    if theirs == asked:
        return
    config = ModelConfig()
    config.CopyFrom(source.spec.model_config)
    forms = []
    with torch.device("meta"):
        for layout in (theirs, asked):
            config.layout = getattr(ModelConfig, layout)
            forms.append(build(config, source.class_names, source.detector.channels).backbone)
    if not computes_the_same(*forms):
        raise _other_layout(path, theirs, asked)


def _other_layout(path: str | os.PathLike[str], theirs: str, asked: str) -> ModelError:
    return ModelError(
        f"{path} has {LAYOUTS[theirs]}'s form of the network, the spec {LAYOUTS[asked]}'s: set layout: {theirs} in model_config"
    )


def _check_layers(path: str | os.PathLike[str], detector: Detector, source: Model) -> None:
    """Refuse another activation or pooling than that of a pruned network: no tensor tells them apart."""
    config = source.spec.model_config
    with torch.device("meta"):
        whole = build(config, source.class_names, source.detector.channels)
    if not computes_the_same(whole.backbone, detector.backbone):
        text = text_format.MessageToString(config.activation, as_one_line=True)
        activation = f"activation {{ {text} }}" if config.HasField("activation") else "no activation"
        raise ModelError(
            f"{path} is a pruned network and stays what it is: give model_config {_architecture(source.spec)}, {activation}"
        )


def _from_keras(
    detector: Detector, path: str | os.PathLike[str], class_names: Sequence[str], *, heads: bool
) -> Pretrained:
    found = tlt.convert(path, detector, whole=False)
    new, remarks = dict(found.backbone), list(found.remarks)
    first = f"{_name(detector, first_convolution(detector.backbone))}.weight"
    if detector.channels == 1 and found.channels == 3:  # the answer to a grey picture in three channels
        new[first] = new[first].sum(1, keepdim=True)
    else:
        check_channels(path, detector, found.channels)
    classes = tlt.classes(found.heads)
    taken = heads and classes == len(class_names)
    if taken:
        new |= found.heads
    elif found.heads:
        why = (
            f"the spec has {len(class_names)}"
            if heads
            else "load_graph: true in model_config takes them over"
        )
        remarks.append(f"its heads, of {classes} classes, are left out: {why}")
    own = detector.state_dict()
    check_fits(path, {name: own[name] for name in new}, new)
    narrowed = any(own[name].shape != tensor.shape for name, tensor in new.items())
    if narrowed:
        _take_widths(path, detector, new, found.heads)
    _project_as_identity(detector.backbone, {name.removeprefix("backbone.") for name in new})
    for name, tensor in detector.state_dict().items():
        if name in new:
            tensor.copy_(new[name])
    skipped = [name for name in own if name not in new and not name.startswith("normalize.")]
    return Pretrained(list(new), skipped, list(class_names) if taken else [], narrowed, remarks)


def _take_widths(
    path: str | os.PathLike[str], detector: Detector, new: Mapping[str, Tensor], heads: Mapping[str, Tensor]
) -> None:
    """Give a detector the widths of a pruned Keras file, of whose backbone all is needed."""
    own = detector.state_dict()
    missing = [name for name in own if name.startswith("backbone.") and name not in new]
    if missing or not heads:
        what = few(missing) if missing else f"the heads {' and '.join(detector.head_layers)}"
        raise ModelError(
            f"{path} is a pruned network and lacks {what}: give the whole model, and its network in the spec"
        )
    features = heads["output_cov.weight"].shape[1]
    fresh = {name: own[name][:, :1].repeat(1, features, 1, 1) for name in heads if name.endswith(".weight")}
    cut_to(detector, {**own, **fresh, **new})
    detector.layers.reset()
    training = detector.training
    check_widths(path, detector.eval(), len(own["output_cov.bias"]))
    detector.train(training)


def _from_torchvision(detector: Detector, path: str | os.PathLike[str]) -> Pretrained:
    backbone = detector.backbone
    if backbone.published is None:
        raise ModelError(
            f"{path}: the spec asks for {backbone.title}, which torchvision does not have: give a detectkit model"
            " (.safetensors), or change model_config to the network of the file"
        )
    tensors = _state_dict(path)
    for layout, names in backbone.told_by.items():
        if layout != backbone.layout and any(name in tensors for name in names):
            raise _other_layout(path, layout, backbone.layout)
    new = _kept(backbone, tensors)
    own = backbone.state_dict()
    _check_torchvision(path, backbone, own, new)
    check_finite(path, new)
    first = f"{_name(backbone, first_convolution(backbone))}.weight"
    if detector.channels == 1 and new[first].dim() == 4:  # the answer to a grey picture in three channels
        new[first] = new[first].sum(1, keepdim=True)
    wrong = [name for name, tensor in new.items() if tensor.shape != own[name].shape]
    if wrong:
        raise ModelError(f"{path} has other shapes in {few(wrong)}: {_fix(backbone)}")
    _project_as_identity(backbone, new)
    for name, tensor in new.items():
        own[name].copy_(tensor)
    _normalise_as(detector, backbone)
    loaded = [f"backbone.{name}" for name in own if name in new]
    fresh = [name for name in detector.state_dict() if name not in loaded]
    return Pretrained(loaded, [name for name in fresh if not name.startswith("normalize.")], [], False)


def _project_as_identity(backbone: Backbone, new: Container[str]) -> None:
    """Projections that a file does not have change nothing at first."""
    for name, layer in backbone.named_modules():
        if ".downsample." in name and isinstance(layer, nn.Conv2d) and f"{name}.weight" not in new:
            nn.init.dirac_(layer.weight)


def _kept(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a torchvision file that are not behind our last layer; its `features` may have been saved alone."""
    alone = isinstance(backbone, Features) and all(name[:1].isdigit() for name in tensors)
    named = {
        f"features.{name}" if alone else backbone.named_here(name): tensor for name, tensor in tensors.items()
    }
    return {name: tensor for name, tensor in named.items() if not name.startswith(backbone.behind)}


def _check_torchvision(
    path: str | os.PathLike[str], backbone: Backbone, own: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> None:
    # Projections are ours where strides differ; files before torch 0.4 do not count batches.
    optional = {name for name in own if ".downsample." in name or name.endswith(".num_batches_tracked")}
    check_names(path, own.keys() - (optional - new.keys()), new, _fix(backbone))


def _fix(backbone: Backbone) -> str:
    return (
        f"the spec asks for {backbone.title}, {backbone.published}: give its weights, or set arch,"
        " num_layers and use_batch_norm in model_config to those of the file"
    )


def _name(network: nn.Module, layer: nn.Module) -> str:
    return next(str(name) for name, other in network.named_modules() if other is layer)


def _normalise_as(detector: Detector, backbone: Backbone) -> None:
    """Give images the mean and deviation that the weights expect; grey ones, their average over the colours."""
    for buffer, values in ((detector.normalize.mean, backbone.mean), (detector.normalize.std, backbone.std)):
        colours = torch.tensor(values).reshape(-1, 1, 1)
        buffer.copy_(colours if detector.channels == 3 else colours.mean(0, keepdim=True))


def _state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file of torch.save; only tensors and plain containers are read, never code."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    try:
        with file, warnings.catch_warnings(action="ignore"):  # the error says it all
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ModelError(
            f"{path} is not a file of weights, or is cut short, or holds code, which is never run: use a detectkit"
            " model (.safetensors), or the state dict of a torchvision network written by torch.save (.pth)"
        ) from error
    named = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not named or not content:
        raise ModelError(f"{path} holds no state dict: save model.state_dict() of a torchvision network")
    return dict(content)
