"""Networks ready to run, whatever runs them: PyTorch, ONNX Runtime or TensorRT."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from detectkit.errors import ModelError
from detectkit.heads.outline import Outline
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.networks import ENCRYPTED_FILES, KERAS_FILES

Forward = Callable[[Tensor], tuple[Tensor, ...]]

ENGINES = (".engine", ".plan", ".trt")
SUFFIXES = (".safetensors", *KERAS_FILES, ".onnx", *ENGINES)


class Network(NamedTuple):
    """A network on its device, with what its file says of it."""

    forward: Forward  # images [B, c, H, W] float32 in [0, 1] to the maps of `outline.outputs`
    spec: Experiment  # as resolved when the model was trained
    class_names: list[str]  # in the order of the outputs
    channels: int  # of the images, 1 or 3
    outline: Outline  # what it gives
    size: tuple[int, int] | None  # (height, width) of the only images that it takes; None: any
    kind: str  # "model", "onnx" or "engine"
    file: Path


def load(
    path: str | os.PathLike[str], device: str | torch.device, *, experiment: Experiment | None = None
) -> Network:
    """A network from its file: *.safetensors, TLT's *.hdf5, *.onnx, or a TensorRT engine (*.engine, *.plan, *.trt).

    Args:
        device: where its images are and its maps shall be; an ONNX model computes there too if ONNX Runtime can.
        experiment: of a file of TLT, which holds none, the spec that it was trained with; of others it is not read.

    Raises:
        ModelError: the file is of no such kind, is damaged, is not detectkit's, or cannot run here.
    """
    file, device = Path(path), torch.device(device)
    match kind(file):
        case "model":
            return _load_model(file, device, experiment)
        case "onnx":
            from detectkit.runtimes.onnx import load_onnx

            return load_onnx(file, device)
        case _:
            from detectkit.runtimes.tensorrt import load_engine

            return load_engine(file, device)


def kind(path: str | os.PathLike[str]) -> str:
    """What a model file is by its name: "model", "onnx" or "engine".

    Raises:
        ModelError: none of them, or a folder.
    """
    file = Path(path)
    if file.is_dir():
        inside = sorted(
            item for item in (*file.glob("*"), *file.glob("weights/*")) if item.suffix.lower() in SUFFIXES
        )
        example = inside[0] if inside else file / "weights/model.safetensors"
        raise ModelError(f"{file} is a folder: name the model file in it, such as {example}")
    suffix = file.suffix.lower()
    if suffix in ENCRYPTED_FILES:
        from detectkit.model.keras import DECRYPT

        raise ModelError(f"{file} is encrypted: {DECRYPT}")
    if suffix not in SUFFIXES:
        raise ModelError(
            f"{file} is no model file by its name: give a .safetensors model of detectkit train, an .onnx model,"
            f" a TensorRT engine ({', '.join(ENGINES)}), or with -e an .hdf5 of TLT"
        )
    if suffix in ENGINES:
        return "engine"
    return "onnx" if suffix == ".onnx" else "model"


def _load_model(file: Path, device: torch.device, experiment: Experiment | None) -> Network:
    from detectkit.model import checkpoint

    model = checkpoint.load(file, device, experiment=experiment)
    detector = model.detector.to(memory_format=torch.channels_last)
    return Network(
        forward=detector,
        spec=model.spec,
        class_names=model.class_names,
        channels=detector.channels,
        outline=detector.outline,
        size=None,
        kind="model",
        file=file,
    )
