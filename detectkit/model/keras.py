"""Keras's HDF5 files: the weights of every layer, and what the file says of the layers. Nothing in it is run.

A saved model (`model.save("model.h5")` of Keras 2 and 3) has its weights in the group `model_weights` and its layers as
JSON in `model_config`; what Keras 2's `save_weights` writes is the content of that group alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from detectkit.errors import ModelError

# How the owner of a key gets a plain file out of an encrypted one.
DECRYPT = (
    "with your key, TAO 5 writes it as a plain Keras file: tao model detectnet_v2 prune -m MODEL.tlt -k KEY -o MODEL.hdf5"
    " -pth -1 (no filter is below it, so all are kept)"
)
UNREADABLE = (AttributeError, KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
MODELS = ("Functional", "Model", "Sequential")  # classes of layers that are networks themselves


class KerasFile(NamedTuple):
    """What a file holds, by the names of its layers."""

    tensors: dict[
        str, dict[str, Tensor]
    ]  # of each layer with weights, in the order of the network: "kernel", "bias", …
    # The class and the arguments of each layer, as `model_config` has them; empty where the file holds weights alone.
    settings: dict[str, dict[str, Any]]


def read(path: str | os.PathLike[str]) -> KerasFile:
    """The float32 weights of a file, and what it says of its layers.

    Raises:
        ModelError: there is no such file, it is no HDF5 file of Keras, is cut short, of a layout or with values that TLT
            never writes, or points to other files.
    """
    try:
        with h5py.File(path, "r") as file:
            return _content(path, file, os.path.getsize(path))
    except FileNotFoundError as error:
        raise ModelError(f"cannot read {path}: there is no such file") from error
    except UNREADABLE as error:
        if os.path.isfile(path) and not h5py.is_hdf5(path):
            raise ModelError(
                f"{path} is no HDF5 file: it is another kind of file, cut short, or encrypted; {DECRYPT}"
            ) from error
        raise ModelError(f"{path} cannot be read, or is cut short ({_first_line(error)})") from error


def _content(path: str | os.PathLike[str], file: h5py.File, size: int) -> KerasFile:
    root = _at(path, file, "model_weights") if "model_weights" in file else file
    layers = _names(root.attrs, "layer_names")
    if layers is None:
        if "layers" in file:
            raise ModelError(
                f"{path} is a .weights.h5 file of Keras 3, which does not name its layers as the network does: save the"
                ' whole model with model.save("model.h5")'
            )
        raise ModelError(f"{path} holds no weights of Keras: give a model that Keras or TLT has saved")
    tensors = {}
    for layer in layers:
        group, found = _at(path, root, layer), {}
        for name in _names(group.attrs, "weight_names") or []:
            # What is between differs: a second copy of a network in one graph is called conv1_1/kernel:0.
            leaf = name.rpartition("/")[2].partition(":")[0]
            if leaf in found:
                raise _nested(path, layer)
            found[leaf] = _tensor(path, f"{layer}/{leaf}", _at(path, group, name), size)
        if found:
            tensors[layer] = found
    return KerasFile(tensors, _settings(path, file.attrs.get("model_config")))


def _names(attributes: Mapping[str, Any], key: str) -> list[str] | None:
    """A list of names, which Keras splits where it is too long for one attribute; None where there is none."""
    values = [attributes[key]] if key in attributes else []
    while key not in attributes and f"{key}{len(values)}" in attributes:
        values.append(attributes[f"{key}{len(values)}"])
    if not values:
        return None
    # Of a layer without weights it is an empty array of numbers.
    names = [name for value in values for name in np.asarray(value).ravel().tolist()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _at(path: str | os.PathLike[str], group: h5py.Group, name: str) -> Any:
    """What is at a name in the file itself: a link could lead to any other file."""
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ModelError(f"{path} is damaged: {name} is not in it")
        group = group[part]
    return group


def _tensor(path: str | os.PathLike[str], name: str, stored: h5py.Dataset, size: int) -> Tensor:
    if stored.dtype != np.float32:
        raise ModelError(f"{path}: {name} is {stored.dtype}; weights of TLT and Keras are float32")
    # Keras compresses nothing: what is larger than its file is not in it.
    if stored.external or stored.is_virtual or stored.nbytes > size or len(stored.shape) > 4:
        raise ModelError(
            f"{path} is damaged: {name} has the shape {list(stored.shape)} and is not in the file"
        )
    tensor = torch.from_numpy(np.array(stored[()], dtype=np.float32))
    if not tensor.isfinite().all():
        raise ModelError(f"{path}: {name} has values that are not finite: take another checkpoint")
    return tensor


def _settings(path: str | os.PathLike[str], text: str | bytes | None) -> dict[str, dict[str, Any]]:
    if text is None:
        return {}
    network = json.loads(text)["config"]
    layers = network["layers"] if isinstance(network, dict) else network  # Keras 2.2 of a Sequential
    found = {}
    for layer in layers:
        settings = layer["config"]
        if layer["class_name"] in MODELS:
            raise _nested(path, layer.get("name", settings["name"]))
        found[str(settings["name"])] = settings | {"class_name": layer["class_name"]}
    return found


def _nested(path: str | os.PathLike[str], layer: str) -> ModelError:
    return ModelError(
        f"{path}: its layer {layer} is a network itself; TLT saves its networks flat: save the inner one"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
