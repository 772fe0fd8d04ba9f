"""ONNX models in ONNX Runtime, and what detectkit writes into them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import Tensor

from detectkit.console import log
from detectkit.errors import ModelError
from detectkit.heads.outline import Outline
from detectkit.model import header
from detectkit.model.checkpoint import outline_in
from detectkit.model.header import HEADER, INPUT, Header
from detectkit.runtimes import Network

SCALES = "detectkit.scales"  # metadata: the table of scales of an 8-bit model, as JSON
DATA_TYPE = "detectkit.data_type"  # metadata: fp32, fp16 or int8

# ONNX Runtime's errors have no base of their own.
FAILURES = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotFound,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)
CUDA = "CUDAExecutionProvider"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
# What an input may hold.
NUMBERS: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def add_header(
    model: onnx.ModelProto,
    *,
    spec_text: str,
    class_names: Sequence[str],
    channels: int,
    outline: Outline,
    data_type: str = "fp32",
    scales: str | None = None,
) -> None:
    """Write into an ONNX model what makes it a detectkit model; changes it in place, other metadata stay.

    Args:
        spec_text: the resolved experiment spec, as protobuf text.
        class_names: in the order of the outputs.
        channels: of the images, 1 or 3.
        outline: what the network gives.
        data_type: fp32, fp16 or int8.
        scales: the table of scales of an 8-bit model, as JSON.
    """
    new = {HEADER: header.dumps(spec_text, class_names, channels, outline), DATA_TYPE: data_type}
    if scales is not None:
        new[SCALES] = scales
    onnx.helper.set_model_props(model, metadata(model) | new)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of an ONNX model by key."""
    return {item.key: item.value for item in model.metadata_props}


def read_header(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Header:
    """What `add_header` wrote.

    Args:
        path: of the model, named in errors.

    Raises:
        ModelError: another software's model, or a damaged one.
    """
    return _header(metadata(model), path)


def _header(properties: dict[str, str], path: str | os.PathLike[str]) -> Header:
    if HEADER not in properties:
        raise ModelError(
            f"{path} is an ONNX model without a detectkit spec and class names: give one of detectkit export"
        )
    return header.loads(properties[HEADER], path)


def make_session(
    model: bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """An onnxruntime.InferenceSession.

    Args:
        model: its content, or its file.
        threads: on the CPU; as many as torch uses if None.
        device: with a GPU it runs there if this ONNX Runtime can, else on the CPU after a warning.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Idle threads wait in a busy loop for the next work: good within a run, but after it they take the others' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors; what is worth a user's while is raised
    source = model if isinstance(model, bytes) else os.fspath(model)
    device = torch.device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (CUDA, {"device_id": device.index or 0}))
    # Its own fallback to the CPU is for any ValueError, and prints.
    session = onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    if device.type == "cuda" and CUDA not in session.get_providers():
        log.warning("this ONNX Runtime cannot use the GPU and runs on the CPU: install onnxruntime-gpu")
    return session


def load_onnx(path: str | os.PathLike[str], device: str | torch.device) -> Network:
    """An ONNX model of `detectkit export` with its spec and classes; one image of zeros tries it out.

    Its numbers may be of 32 or 16 bits, quantised inside or not, and its batch dynamic or fixed: see `Network.forward`.

    Args:
        device: see `make_session`; images come from there, and maps go there.

    Raises:
        ModelError: unreadable, damaged, another software's, with weights that are not finite, or not runnable by this
            ONNX Runtime.
    """
    file, device = Path(path), torch.device(device)
    try:
        # For the system's own words; ONNX Runtime opens it again, and the weights beside it.
        content = file.read_bytes()
        header.check_seal(content, file)
        session = make_session(file, device=device)
        stored = _header(session.get_modelmeta().custom_metadata_map, file)
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    except FAILURES as error:
        raise ModelError(
            f"{file} is no ONNX model that ONNX Runtime {onnxruntime.__version__} can run, or is damaged"
            f" ({_reason(error)}): export it again"
        ) from error
    _check_finite(onnx.load_from_string(content), file)
    outline = outline_in(stored, file)
    forward, size = _forward(session, stored, outline, file)
    _try_out(forward, stored, outline, size or _size_of(stored), file)
    return Network(
        forward=forward,
        spec=stored.spec,
        class_names=stored.classes,
        channels=stored.channels,
        outline=outline,
        size=size,
        kind="onnx",
        file=file,
    )


def _check_finite(model: onnx.ModelProto, file: Path) -> None:
    """Refuse weights that are no numbers; those beside the file show in the maps of `_try_out`."""
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS and not external_data_helper.uses_external_data(tensor):
            if not np.isfinite(numpy_helper.to_array(tensor).astype(np.float32)).all():
                raise ModelError(
                    f"{file}: {tensor.name} has values that are not finite: export another checkpoint"
                )


class _Forward:
    """Runs a session on batches of any size.

    Args:
        outputs: the names of those that are wanted.
        number: what its input holds.
        batch: the only number of images that it takes; None: any.
    """

    def __init__(
        self, session: Any, outputs: list[str], number: type[np.floating[Any]], batch: int | None
    ) -> None:
        self.session, self.outputs, self.number, self.batch = session, outputs, number, batch

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, c, H, W] to the maps of the outputs, float32 on the device of the images.

        A session of a fixed batch N takes the images in groups of N, the last filled up with zeros.
        """
        values = images.detach().cpu().contiguous().numpy().astype(self.number, copy=False)
        step = self.batch or len(values)
        groups = [self._maps(values[start : start + step]) for start in range(0, len(values), step)]
        found = (torch.from_numpy(np.concatenate(maps)) for maps in zip(*groups, strict=True))
        return tuple(maps.to(images.device) for maps in found)

    def _maps(self, values: NDArray[np.floating[Any]]) -> list[NDArray[np.float32]]:
        count = len(values)
        if self.batch and count < self.batch:
            values = np.concatenate([values, values[:1].repeat(self.batch - count, axis=0) * 0])
        found = self.session.run(self.outputs, {INPUT: values})
        return [maps[:count].astype(np.float32, copy=False) for maps in found]


def _forward(
    session: Any, stored: Header, outline: Outline, file: Path
) -> tuple[_Forward, tuple[int, int] | None]:
    """The session as a function, and the (height, width) that it is bound to."""
    inputs = {item.name: item for item in session.get_inputs()}
    missing = set(outline.names) - {item.name for item in session.get_outputs()}
    if list(inputs) != [INPUT] or missing:
        raise ModelError(
            f"{file} is not as detectkit export writes it: its input must be {INPUT}, among its outputs must be"
            f" {' and '.join(outline.names)}"
        )
    number, shape = NUMBERS.get(inputs[INPUT].type), inputs[INPUT].shape
    if number is None or len(shape) != 4 or shape[1] not in (stored.channels, None):
        raise ModelError(
            f"{file} takes {inputs[INPUT].type} {shape}: it must take float images [N, {stored.channels}, height, width]"
        )
    batch, _, height, width = (side if isinstance(side, int) else None for side in shape)
    return _Forward(session, outline.names, number, batch), (height, width) if height and width else None


def _size_of(stored: Header) -> tuple[int, int]:
    """Height and width of the images that the model was trained with."""
    preprocessing = stored.spec.augmentation_config.preprocessing
    return preprocessing.output_image_height, preprocessing.output_image_width


def _try_out(forward: _Forward, stored: Header, outline: Outline, size: tuple[int, int], file: Path) -> None:
    """Send one image of zeros through the network: its maps must be those of the outline."""
    height, width = size
    try:
        found = forward(torch.zeros(1, stored.channels, height, width))
    except FAILURES as error:
        raise ModelError(
            f"{file} cannot run in ONNX Runtime {onnxruntime.__version__} ({_reason(error)}): export it again"
        ) from error
    classes, shapes = len(stored.classes), [tuple(maps.shape) for maps in found]
    if shapes != [(1, *shape) for shape in outline.shapes(classes, height, width)]:
        raise ModelError(
            f"{file} is damaged: its maps {' and '.join(map(str, shapes))} are not those of {classes} classes"
        )
    if not all(maps.isfinite().all() for maps in found):
        raise ModelError(f"{file}: its maps of a black image are not finite: export another checkpoint")


def _reason(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without its number and the file, which ours begins with."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?", "", line)
