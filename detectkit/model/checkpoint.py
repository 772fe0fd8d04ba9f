"""Model files: safetensors with the spec and the class names in the header, and weights to start from.

A file is data: reading one runs no code. Widths are the shapes of the stored tensors, so a pruned model is a model.
"""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from google.protobuf import text_format
from torch import Tensor, nn

from detectkit.errors import ModelError, SpecError
from detectkit.files import atomic_write
from detectkit.model import header, keras, tlt
from detectkit.model.base import Backbone, Features, computes_the_same, first_convolution
from detectkit.model.detector import Detector, Normalize, build
from detectkit.model.header import HEADER
from detectkit.model.quantization import Ranges
from detectkit.spec.check import class_names as classes_of
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, is_keras, is_of_tlt

RANGES = "ranges."  # how the names of those tensors begin
HEADS = {"output_cov": 1, "output_bbox": 4}  # channels a class

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


class Model(NamedTuple):
    """A loaded model file; the detector is in evaluation mode."""

    detector: Detector
    spec: Experiment  # as resolved when the model was trained
    class_names: list[str]  # in the order of the network's outputs


class Pretrained(NamedTuple):
    """What `load_pretrained` did."""

    loaded: list[str]  # tensors taken from the file
    skipped: list[str]  # tensors that keep their fresh values, in whole or for some classes
    classes: list[str]  # classes whose heads were copied
    narrowed: bool  # the file holds a pruned network, and the detector now has its widths
    remarks: list[str] = []  # what else there is to know of the file, a sentence each


def save(
    path: str | os.PathLike[str], detector: Detector, spec_text: str, class_names: Sequence[str]
) -> None:
    """Write a model file; an existing one is replaced at the end or not at all.

    Args:
        path: by convention *.safetensors.
        detector: any device; its tensors are written as they are.
        spec_text: the resolved experiment spec, as protobuf text.
        class_names: in the order of the outputs.

    Raises:
        OutputError: the file cannot be written.
    """
    description = header.dumps(spec_text, class_names, detector.channels)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    content = safetensors.torch.save(tensors, {HEADER: description})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    experiment: Experiment | None = None,
) -> Model:
    """Read a model file, pruned or not.

    Args:
        path: a model of detectkit, or a Keras file of a detector that TLT has trained (*.hdf5, *.h5).
        experiment: of a Keras file, which has none, the spec that it was trained with; the model's is a copy of it with
            TLT's layout. Of other files it is not read.

    Raises:
        ModelError: not such a model, truncated, of a newer format, or its tensors do not make a network; a Keras file
            without a spec, or that does not hold the network of the spec.
    """
    if is_keras(os.fspath(path)):
        return _load_keras(path, device, experiment)
    stored = _read(path)
    try:
        with torch.device("meta"):
            detector = build(stored.spec.model_config, stored.classes, stored.channels)
    except SpecError as error:
        raise ModelError(f"{path} needs what this detectkit does not have: {error}") from error
    fill(detector, stored.tensors, path)
    detector.eval()
    _check_widths(path, detector, len(stored.classes))
    return Model(detector.to(device), stored.spec, stored.classes)


def _load_keras(
    path: str | os.PathLike[str], device: str | torch.device, experiment: Experiment | None
) -> Model:
    if experiment is None:
        raise ModelError(
            f"{path} is a Keras file, which has neither a spec nor the names of its classes: give the training spec with -e,"
            f" or make a model of it: detectkit export -e SPEC -m {path} -o {Path(path).with_suffix('.safetensors')}"
        )
    spec = Experiment()
    spec.CopyFrom(experiment)
    if NETWORKS[spec.model_config.arch].in_tlt and spec.model_config.layout == ModelConfig.AS_PRETRAINED:
        spec.model_config.layout = ModelConfig.TLT
    names = classes_of(spec)
    with torch.device("meta"):
        detector = build(
            spec.model_config, names, spec.augmentation_config.preprocessing.output_image_channel
        )
    found = tlt.convert(path, detector, whole=True)
    if not found.heads:
        raise ModelError(
            f"{path} is no detector: it lacks the heads {' and '.join(HEADS)}; name it in model_config.pretrained_model_file"
            " to train from its weights"
        )
    _check_channels(path, detector, found.channels)
    classes = len(found.heads["output_cov.weight"])
    if classes != len(names):
        raise ModelError(
            f"{path} detects {classes} classes, the spec {len(names)} ({', '.join(names)}): use the spec that it was trained with"
        )
    fill(
        detector,
        found.backbone | found.heads | Normalize(detector.channels).state_dict(prefix="normalize."),
        path,
    )
    detector.eval()
    _check_widths(path, detector, classes)
    return Model(detector.to(device), spec, names)


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


def fill(detector: Detector, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Narrow a detector to the widths of `tensors` and take them over; `path` is named in errors.

    Raises:
        ModelError: they are the tensors of another network.
    """
    own, found = detector.state_dict(), without_ranges(tensors)
    _same_names(path, own, found, "it does not hold the network that its own spec describes")
    _check_fits(path, own, found)
    narrow(detector, found)
    if len(found) < len(tensors):
        _fill_ranges(detector, tensors, path)


def without_ranges(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those of `detector.ranges`, which a model of quantisation-aware training has."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(RANGES)}


def _fill_ranges(detector: Detector, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    ranges = Ranges(detector)
    own = {f"{RANGES}{name}": tensor for name, tensor in ranges.state_dict().items()}
    new = {name: tensor for name, tensor in tensors.items() if name.startswith(RANGES)}
    _same_names(path, own, new, "its ranges are not those of its network")
    for name, tensor in own.items():
        values = new[name]
        fits = values.shape == tensor.shape and values.dtype == tensor.dtype
        if not (fits and values.isfinite().all() and (values.dim() == 0 or values[0] <= values[1])):
            raise ModelError(f"{path} is damaged: {name} is no range")
    ranges.load_state_dict({name.removeprefix(RANGES): tensor for name, tensor in new.items()}, assign=True)
    detector.ranges = ranges


def narrow(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Give a detector these tensors in the place of its own, and every layer their width."""
    _narrow(detector, tensors)
    detector.load_state_dict(tensors, assign=True)


class _File(NamedTuple):
    spec: Experiment
    classes: list[str]
    channels: int
    tensors: dict[str, Tensor]


def _read(path: str | os.PathLike[str]) -> _File:
    try:
        with open(path, "rb"), safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the file may be replaced or cut while the model is in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{path} is not a detectkit model, or is cut short ({error}): give a .safetensors file of detectkit train"
        ) from error
    return _File(*header.loads(metadata.get(HEADER), path), tensors)


def _same_names(
    path: str | os.PathLike[str], expected: Iterable[str], found: Iterable[str], fix: str
) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        parts = [
            f"{label} {_few(names)}" for label, names in (("lacks", missing), ("also has", extra)) if names
        ]
        raise ModelError(f"{path} {' and '.join(parts)}: {fix}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_fits(path: str | os.PathLike[str], own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        before, after = tensor.shape, new[name].shape
        kept = len(before) == len(after) and before[2:] == after[2:] and tensor.dtype == new[name].dtype
        if not kept or any(not 1 <= size <= limit for size, limit in zip(after, before, strict=True)):
            raise ModelError(
                f"{path}: {name} is {new[name].dtype} {list(after)}, which is no part of {tensor.dtype} {list(before)}"
            )


def _narrow(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Cut every layer down to the widths of `tensors`; what changes shape holds no values yet."""
    changed = {
        name: own.new_empty(tensors[name].shape)
        for name, own in detector.state_dict().items()
        if own.shape != tensors[name].shape
    }
    for name, tensor in changed.items():
        _replace(detector, name, tensor)
    detector.backbone.out_channels = detector.output_cov.in_channels


def _replace(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, and keep the layer's own width in step."""
    owner, _, leaf = name.rpartition(".")
    layer = network.get_submodule(owner)
    old = getattr(layer, leaf)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(layer, leaf, tensor)
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(tensor)
    elif isinstance(layer, nn.Conv2d) and leaf == "weight":
        if 1 < layer.groups == layer.in_channels == layer.out_channels:  # depthwise: a group a channel
            layer.groups = len(tensor)
        layer.out_channels, layer.in_channels = len(tensor), tensor.shape[1] * layer.groups


def _check_widths(path: str | os.PathLike[str], detector: Detector, classes: int) -> None:
    """Send a tiny image through the network: every layer must take what the one before it gives."""
    try:
        with torch.no_grad():
            coverage, bbox = detector(torch.zeros(1, detector.channels, 32, 32))
    except RuntimeError as error:
        raise ModelError(
            f"{path} is damaged: its layers do not fit together ({str(error).splitlines()[0]})"
        ) from error
    if coverage.shape[1] != classes or bbox.shape[1] != 4 * classes:
        raise ModelError(f"{path} is damaged: its heads are not those of {classes} classes")


def _from_detectkit(
    detector: Detector, path: str | os.PathLike[str], class_names: Sequence[str]
) -> Pretrained:
    source = load(path)
    source.detector.ranges = None
    _check_channels(path, detector, source.detector.channels)
    _check_layout(path, detector, source)
    own, new = detector.state_dict(), source.detector.state_dict()
    _same_names(path, own, new, f"give model_config its architecture: {_architecture(source.spec)}")
    heads = [name for name in own if name.partition(".")[0] in HEADS]
    widths = new | {name: new[name].new_empty(len(own[name]), *new[name].shape[1:]) for name in heads}
    _check_fits(path, own, widths)
    narrowed = any(own[name].shape != tensor.shape for name, tensor in widths.items())
    if narrowed:
        _check_layers(path, detector, source)
        _narrow(detector, widths)
        detector.reset_heads()
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
    for head, channels in HEADS.items():
        for name, tensor in detector.get_submodule(head).state_dict().items():
            rows = source.detector.get_submodule(head).state_dict()[name].unflatten(0, (-1, channels))
            tensor.unflatten(0, (-1, channels))[to] = rows[origin].to(tensor.device)
    return same


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
    )
    fields += [f"{field}: {str(getattr(model, field)).lower()}" for field, chosen in choices if chosen]
    return ", ".join(fields)


def _check_layout(path: str | os.PathLike[str], detector: Detector, source: Model) -> None:
    """Refuse the other layout than that of a model, where its network has two: no tensor tells them apart."""
    is_tlt = source.detector.backbone.tlt
    if is_tlt == detector.backbone.tlt:
        return
    config = ModelConfig()
    config.CopyFrom(source.spec.model_config)
    forms = []
    with torch.device("meta"):
        for layout in (ModelConfig.TLT, ModelConfig.TORCHVISION):
            config.layout = layout
            forms.append(build(config, source.class_names, source.detector.channels).backbone)
    if not computes_the_same(*forms):
        of_file, asked = ("TLT", "torchvision") if is_tlt else ("torchvision", "TLT")
        raise ModelError(
            f"{path} has {of_file}'s form of the network, the spec {asked}'s: set layout: {of_file.upper()} in model_config"
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
        _check_channels(path, detector, found.channels)
    classes = len(found.heads["output_cov.weight"]) if found.heads else 0
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
    _check_fits(path, {name: own[name] for name in new}, new)
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
        what = _few(missing) if missing else f"the heads {' and '.join(HEADS)}"
        raise ModelError(
            f"{path} is a pruned network and lacks {what}: give the whole model, and its network in the spec"
        )
    features = heads["output_cov.weight"].shape[1]
    fresh = {f"{head}.weight": own[f"{head}.weight"][:, :1].repeat(1, features, 1, 1) for head in HEADS}
    _narrow(detector, {**own, **fresh, **new})
    detector.reset_heads()
    training = detector.training
    _check_widths(path, detector.eval(), len(own["output_cov.bias"]))
    detector.train(training)


def _check_channels(path: str | os.PathLike[str], detector: Detector, channels: int) -> None:
    if channels != detector.channels:
        raise ModelError(
            f"{path} takes images of {channels} channels, the spec has {detector.channels}: change output_image_channel"
        )


def _from_torchvision(detector: Detector, path: str | os.PathLike[str]) -> Pretrained:
    backbone = detector.backbone
    if backbone.published is None:
        raise ModelError(
            f"{path}: the spec asks for {backbone.title}, which torchvision does not have: give a detectkit model"
            " (.safetensors), or change model_config to the network of the file"
        )
    new = _kept(backbone, _state_dict(path))
    own = backbone.state_dict()
    _check_torchvision(path, backbone, own, new)
    first = f"{_name(backbone, first_convolution(backbone))}.weight"
    if detector.channels == 1 and new[first].dim() == 4:  # the answer to a grey picture in three channels
        new[first] = new[first].sum(1, keepdim=True)
    wrong = [name for name, tensor in new.items() if tensor.shape != own[name].shape]
    if wrong:
        raise ModelError(f"{path} has other shapes in {_few(wrong)}: {_fix(backbone)}")
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
        if name.endswith("downsample.0") and f"{name}.weight" not in new:
            nn.init.dirac_(layer.get_parameter("weight"))


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
    _same_names(path, own.keys() - (optional - new.keys()), new, _fix(backbone))


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
