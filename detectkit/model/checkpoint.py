"""Model files: safetensors with the spec, the class names and the outputs in the header.

A file is data: reading one runs no code. Widths are the shapes of the stored tensors, so a pruned model is a model.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from detectkit.errors import ModelError, SpecError
from detectkit.files import atomic_write
from detectkit.heads import Outline
from detectkit.model import header, tlt
from detectkit.model.detector import Detector, Normalize, build
from detectkit.model.header import HEADER, Header
from detectkit.model.quantization import Ranges
from detectkit.spec.classes import class_names as classes_of
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, is_keras
from detectkit.spec.stored import other_writer

RANGES = "ranges."  # how the names of those tensors begin


class Model(NamedTuple):
    """A loaded model file; the detector is in evaluation mode."""

    detector: Detector
    spec: Experiment  # as resolved when the model was trained
    class_names: list[str]  # in the order of the network's outputs


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
    description = header.dumps(spec_text, class_names, detector.channels, detector.outline)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    content = header.seal(safetensors.torch.save(tensors, {HEADER: description}))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    experiment: Experiment | None = None,
) -> Model:
    """Read a model file, pruned or not.

    What the network gives has the names and ranges of this version's layers; those that the file has do not count.

    Args:
        path: a model of detectkit, or a Keras file of a detector that TLT has trained (*.hdf5, *.h5).
        experiment: of a Keras file, which has none, the spec that it was trained with; the model's is a copy of it with
            TLT's layout. Of other files it is not read.

    Raises:
        ModelError: not such a model, truncated, damaged, of a newer format, with weights that are not finite, or its
            tensors do not make a network; a Keras file without a spec, or that does not hold the network of the spec.
    """
    if is_keras(os.fspath(path)):
        return _load_keras(path, device, experiment)
    stored = _read(path)
    described, classes = stored.header, len(stored.header.classes)
    detector = build_described(described, path)
    try:
        fill(detector, stored.tensors, path)
        detector.eval()
        _check_runs(path, detector, classes)
        if described.outline is not None and not described.outline.fits(detector.outline, classes):
            raise ModelError(
                f"{path} is damaged: the outputs that it describes are not those of its weights; copy it again, or make it again"
            )
    except ModelError as error:
        raise ModelError(f"{error}{other_writer(described.writer)}") from error
    return Model(detector.to(device), described.spec, described.classes)


def build_described(described: Header, path: str | os.PathLike[str]) -> Detector:
    """The network that the header of a file describes, with all its channels and without weights (on the device "meta").

    Raises:
        ModelError: this version has no such network; `path` is named in it.
    """
    try:
        with torch.device("meta"):
            return build(described.spec.model_config, described.classes, described.channels)
    except SpecError as error:
        raise ModelError(
            f"{path} needs what this detectkit does not have: {error}{other_writer(described.writer)}"
        ) from error


def outline_in(described: Header, path: str | os.PathLike[str]) -> Outline:
    """What a network gives by the header of its file; without an outline in it, what the network of its spec gives.

    Raises:
        ModelError: it has none, and this version has no such network; `path` is named in it.
    """
    return described.outline or build_described(described, path).outline


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
            f"{path} is no detector: it lacks the heads {' and '.join(detector.head_layers)}; name it in model_config.pretrained_model_file"
            " to train from its weights"
        )
    check_channels(path, detector, found.channels)
    classes = tlt.classes(found.heads)
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
    _check_runs(path, detector, classes)
    return Model(detector.to(device), spec, names)


def fill(detector: Detector, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Narrow a detector to the widths of `tensors` and take them over; `path` is named in errors.

    Raises:
        ModelError: they are the tensors of another network.
    """
    own, found = detector.state_dict(), without_ranges(tensors)
    check_names(path, own, found, "it does not hold the network that its own spec describes")
    check_fits(path, own, found)
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
    check_names(path, own, new, "its ranges are not those of its network")
    for name, tensor in own.items():
        values = new[name]
        fits = values.shape == tensor.shape and values.dtype == tensor.dtype
        if not (fits and values.isfinite().all() and (values.dim() == 0 or values[0] <= values[1])):
            raise ModelError(f"{path} is damaged: {name} is no range")
    ranges.load_state_dict({name.removeprefix(RANGES): tensor for name, tensor in new.items()}, assign=True)
    detector.ranges = ranges


def narrow(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Give a detector these tensors in the place of its own, and every layer their width."""
    cut_to(detector, tensors)
    detector.load_state_dict(tensors, assign=True)


class _File(NamedTuple):
    header: Header
    tensors: dict[str, Tensor]


def _read(path: str | os.PathLike[str]) -> _File:
    try:
        with open(path, "rb") as raw, safetensors.safe_open(path, framework="pt") as file:
            found = header.loads((file.metadata() or {}).get(HEADER), path)
            with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header.check_seal(content, path)
            # Copies: the file may be replaced or cut while the model is in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{path} is not a detectkit model, or is cut short ({error}): give a .safetensors file of detectkit train"
        ) from error
    check_finite(path, without_ranges(tensors))
    return _File(found, tensors)


def check_finite(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file with a weight that is no number: it would detect nothing, and say nothing."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {name} has values that are not finite: take another checkpoint")


def check_names(
    path: str | os.PathLike[str], expected: Iterable[str], found: Iterable[str], fix: str
) -> None:
    """Refuse a file that lacks tensors or has others than expected; `fix` says in the error what to do."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        parts = [
            f"{label} {few(names)}" for label, names in (("lacks", missing), ("also has", extra)) if names
        ]
        raise ModelError(f"{path} {' and '.join(parts)}: {fix}")


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_fits(path: str | os.PathLike[str], own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no part of the network's own: of another type, another kernel, or wider."""
    for name, tensor in own.items():
        before, after = tensor.shape, new[name].shape
        kept = len(before) == len(after) and before[2:] == after[2:] and tensor.dtype == new[name].dtype
        if not kept or any(not 1 <= size <= limit for size, limit in zip(after, before, strict=True)):
            raise ModelError(
                f"{path}: {name} is {new[name].dtype} {list(after)}, which is no part of {tensor.dtype} {list(before)}"
            )


def cut_to(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Cut every layer down to the widths of `tensors`; what changes shape holds no values yet."""
    changed = {
        name: own.new_empty(tensors[name].shape)
        for name, own in detector.state_dict().items()
        if own.shape != tensors[name].shape
    }
    for name, tensor in changed.items():
        _replace(detector, name, tensor)
    detector.backbone.widths_changed()


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


def check_widths(path: str | os.PathLike[str], detector: Detector, classes: int) -> tuple[Tensor, ...]:
    """Send a tiny black image through the network: every layer must take what the one before it gives; gives the maps."""
    try:
        outline = detector.outline
        # The least that is a multiple and has a cell of each level.
        side = outline.multiple * math.ceil(outline.levels[-1].stride / outline.multiple)
        with torch.no_grad():
            maps: tuple[Tensor, ...] = detector(torch.zeros(1, detector.channels, side, side))
    except RuntimeError as error:
        raise ModelError(
            f"{path} is damaged: its layers do not fit together ({str(error).splitlines()[0]})"
        ) from error
    if [tuple(values.shape[1:]) for values in maps] != outline.shapes(classes, side, side):
        raise ModelError(f"{path} is damaged: its heads are not those of {classes} classes")
    return maps


def _check_runs(path: str | os.PathLike[str], detector: Detector, classes: int) -> None:
    """Refuse a network whose layers do not fit together, or that gives what is no number."""
    if not all(bool(values.isfinite().all()) for values in check_widths(path, detector, classes)):
        raise ModelError(f"{path}: its maps of a black image are not finite: take another checkpoint")


def check_channels(path: str | os.PathLike[str], detector: Detector, channels: int) -> None:
    """Refuse a file whose network takes images of another number of channels."""
    if channels != detector.channels:
        raise ModelError(
            f"{path} takes images of {channels} channels, the spec has {detector.channels}: change output_image_channel"
        )
