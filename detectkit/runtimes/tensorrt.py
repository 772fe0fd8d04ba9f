"""TensorRT: which of its libraries is here, what differs between them, and engines running on a GPU."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from detectkit.console import log
from detectkit.errors import ModelError
from detectkit.files import atomic_write
from detectkit.model import header
from detectkit.model.checkpoint import outline_in
from detectkit.model.header import INPUT
from detectkit.runtimes import Network
from detectkit.spec.stored import WRITER, unknown_entries, warn_of_unknown

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
# Their Python modules. The parts of TensorRT for RTX that pip installs without its front package have a third name.
MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT for RTX"}
INSTALL = "pip install 'detectkit[tensorrt]' installs TensorRT for RTX"
OLDEST = 10  # of the major versions of TensorRT
# The library's "info" is what our debug lines are; its "verbose" are thousands.
LEVELS = {
    "INTERNAL_ERROR": logging.DEBUG,
    "ERROR": logging.DEBUG,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
}
DATA_TYPES = ("fp32", "fp16", "int8")


class Library(NamedTuple):
    """One of NVIDIA's libraries: TensorRT 10, TensorRT 11 or TensorRT for RTX. All differences are in here."""

    name: str  # TENSORRT or RTX
    version: str  # three numbers
    trt: Any  # its Python module
    log: Any  # the one logger that its objects may have in a process, see `take_errors`

    @property
    def title(self) -> str:
        """For people, with the version."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def strongly_typed(self) -> bool:
        """Whether the numbers have the types that the ONNX model gives them; there are no flags and no calibrators."""
        return self.name == RTX or int(self.version.split(".")[0]) >= 11

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds without a GPU, for those that it is told, and chooses the kernels where the engine runs."""
        return self.name == RTX

    def take_errors(self) -> list[str]:
        """What the library has reported as errors since the last call."""
        found = list(self.log.errors)
        self.log.errors.clear()
        return found


@functools.cache
def library(name: str | None = None) -> Library:
    """The TensorRT library of this machine.

    Args:
        name: TENSORRT or RTX. If None TensorRT where both are there, but without a GPU the one that needs none.

    Raises:
        ModelError: there is none that can be used; the message has the reason and how to install one.
    """
    reasons = []
    order = (TENSORRT, RTX) if torch.cuda.is_available() else (RTX, TENSORRT)
    for wanted in order if name is None else (name,):
        for module in MODULES[wanted]:
            try:
                trt = importlib.import_module(module)
            except ModuleNotFoundError:
                continue
            except (
                ImportError,
                OSError,
                RuntimeError,
            ) as error:  # its own libraries, or those of CUDA, are missing
                reasons.append(f"{module}: {error}")
                continue
            version = ".".join(re.findall(r"\d+", trt.__version__)[:3])
            if wanted == RTX or int(version.split(".")[0]) >= OLDEST:
                return Library(wanted, version, trt, _make_log(trt))
            reasons.append(f"TensorRT {version} is too old, {OLDEST} is the oldest that can be used")
    missing = " or ".join(TITLES[item] for item in ((name,) if name else MODULES))
    raise ModelError(
        f"there is no {missing} here ({'; '.join(reasons) or 'not installed'}): {INSTALL}, TensorRT itself comes with"
        " JetPack and NVIDIA's containers, or by pip install tensorrt --extra-index-url https://pypi.nvidia.com"
    )


def _make_log(trt: Any) -> Any:
    """A logger that sends the library's lines to ours; errors are kept, to become the text of an exception."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # its bindings ask for this form
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(message.strip())
            log.log(LEVELS.get(severity.name, logging.NOTSET + 1), "%s: %s", trt.__name__, message.strip())

    return Log()


class Sidecar(NamedTuple):
    """What an engine's file cannot say of itself, because DeepStream and others read it: `<engine>.json`."""

    header: dict[str, Any]  # see detectkit.model.header
    builder: str  # TENSORRT or RTX
    version: str
    data_type: str  # of DATA_TYPES
    targets: list[str]  # GPUs that it is for, as sm86
    batch: tuple[int, int, int]  # smallest, best and largest
    height: int
    width: int


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(engine)}.json")


def save_sidecar(engine: str | os.PathLike[str], sidecar: Sidecar) -> Path:
    """Write the file beside an engine; gives its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = sidecar_path(engine)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(sidecar._asdict(), indent=2) + "\n", encoding="utf-8")
    return path


def load_sidecar(engine: str | os.PathLike[str]) -> Sidecar:
    """Read the file beside an engine.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = sidecar_path(engine)
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        unknown = unknown_entries(content, Sidecar._fields)
        found = Sidecar(**{name: value for name, value in content.items() if name in Sidecar._fields})
        low, best, high = (int(size) for size in found.batch)
        if found.builder not in MODULES or not 1 <= low <= best <= high:
            raise ValueError(f"builder {found.builder}, batch {found.batch}")
        if not isinstance(found.header, dict):
            raise ValueError("its header is none")
        found = found._replace(batch=(low, best, high), height=int(found.height), width=int(found.width))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing, which has the classes and the spec of {engine}: detectkit engine writes both, keep them"
            " together"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}): run detectkit engine again") from error
    warn_of_unknown(path, found.header.get(WRITER), unknown)
    return found


def load_engine(path: str | os.PathLike[str], device: str | torch.device) -> Network:
    """An engine of `detectkit engine`, with the spec and classes that are in the file beside it.

    Args:
        device: a GPU. Batches of any size can be given, see `pieces`.

    Raises:
        ModelError: no GPU, no such library, an engine of another version, or one that is not detectkit's.
    """
    file, device = Path(path), torch.device(device)
    try:
        plan = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    if device.type != "cuda" or not torch.cuda.is_available():
        reason = "the CPU was asked for" if torch.cuda.is_available() else "there is none here"
        raise ModelError(
            f"{file} is a TensorRT engine, which runs on an NVIDIA GPU, and {reason}: give the ONNX model that it was"
            " built from"
        )
    sidecar = load_sidecar(file)
    stored = header.loads(json.dumps(sidecar.header), sidecar_path(file))
    outline = outline_in(stored, sidecar_path(file))
    forward = _Forward(library(sidecar.builder), plan, sidecar, outline.names, file, device)
    expected = [
        (stored.channels, sidecar.height, sidecar.width),
        *outline.shapes(len(stored.classes), sidecar.height, sidecar.width),
    ]
    found = [forward.shape(name)[1:] for name in (INPUT, *outline.names)]
    if found != expected:
        raise ModelError(
            f"{sidecar_path(file)} is of another engine: {file} takes and gives {found}, not the {expected} of"
            f" {len(stored.classes)} classes; run detectkit engine again"
        )
    return Network(
        forward=forward,
        spec=stored.spec,
        class_names=stored.classes,
        channels=stored.channels,
        outline=outline,
        size=(sidecar.height, sidecar.width),
        kind="engine",
        file=file,
    )


class _Forward:
    """Runs an engine on the images of a GPU, in torch's memory; see `detectkit.runtimes.Forward`."""

    def __init__(
        self,
        library: Library,
        plan: bytes,
        sidecar: Sidecar,
        outputs: list[str],
        file: Path,
        device: torch.device,
    ):
        self.maker, self.outputs, self.file = library, outputs, file
        self.smallest, _, self.largest = sidecar.batch
        with torch.cuda.device(device):
            self.runtime = library.trt.Runtime(library.log)
            self.engine = self.runtime.deserialize_cuda_engine(plan)
            if self.engine is None:
                self._fail(
                    f"cannot be loaded by {library.title}; it was built with version {sidecar.version} for"
                    f" {', '.join(sidecar.targets)}: run detectkit engine on this machine"
                )
            self.context = self.engine.create_execution_context()
            # On the default stream TensorRT waits more often than it must.
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        names = {self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)}
        if names != {INPUT, *outputs} or self.context is None:
            self._fail(
                f"takes and gives {', '.join(sorted(names))}, not {INPUT} and {' and '.join(outputs)}: build it from a model that was"
                " exported without --nms"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; -1 for the batch if it is dynamic."""
        return tuple(self.engine.get_tensor_shape(name))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, c, H, W] to the maps of the outputs, on the GPU of the images."""
        found = [self._maps(piece) for piece in pieces(images, self.smallest, self.largest)]
        return tuple(torch.cat(maps)[: len(images)] for maps in zip(*found, strict=True))

    def _maps(self, images: Tensor) -> list[Tensor]:
        images = images.float().contiguous()
        self.context.set_input_shape(INPUT, tuple(images.shape))
        maps = {
            name: torch.empty(tuple(self.context.get_tensor_shape(name)), device=images.device)
            for name in self.outputs
        }
        for name, tensor in {INPUT: images, **maps}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        # torch's stream waits for ours before the memory of any of these tensors can get another use.
        current = torch.cuda.current_stream(images.device)
        self.stream.wait_stream(current)
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            self._fail("cannot be run")
        current.wait_stream(self.stream)
        return list(maps.values())

    def _fail(self, what: str) -> NoReturn:
        reasons = "; ".join(self.maker.take_errors())
        raise ModelError(f"{self.file} {what}" + (f" ({reasons})" if reasons else ""))


def pieces(images: Tensor, smallest: int, largest: int) -> list[Tensor]:
    """A batch [B, ...] cut into batches that an engine takes; zeros fill the last one up where it is too small."""
    cut = list(torch.split(images, largest))
    missing = max(0, smallest - len(cut[-1]))
    cut[-1] = pad(cut[-1], (0, 0) * (images.dim() - 1) + (0, missing))
    return cut
