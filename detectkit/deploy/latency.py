"""How long networks take on this machine, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch

from detectkit.console import log
from detectkit.deploy.export import image_size
from detectkit.deploy.onnx import to_onnx
from detectkit.errors import ModelError
from detectkit.model.detector import Detector
from detectkit.runtimes import Network
from detectkit.runtimes.onnx import CUDA, FAILURES, NUMBERS, make_session

FEWEST_ROUNDS = 5  # of which a median leaves out the two slowest


class Deployed(NamedTuple):
    """A network ready to be timed."""

    runtime: str  # what runs it, with its version and CPU or GPU
    run: Callable[[], object]  # once on one batch


def latencies(
    runs: Sequence[Callable[[], object]], *, rounds: int = 30, time_limit: float = 60.0
) -> list[float]:
    """Median seconds that each function takes.

    They take turns, in alternating order, so that whatever else the machine does slows down all of them alike: the times
    of one call can be compared, those of two calls less so.

    Args:
        runs: each runs a network on one batch, see `onnx_run` and `deployed`.
        rounds: turns of each.
        time_limit: seconds after which no new round begins, once there have been 5.
    """
    turns: list[tuple[Callable[[], object], list[float]]] = [(run, []) for run in runs]
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > time_limit:
            break
        for run, times in turns if number % 2 == 0 else reversed(turns):
            run()  # the first run sets up its memory; later the others have taken the caches and cores
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    # A low quantile would flatter the quicker network on a busy machine: only its runs fit between two interruptions.
    return [statistics.median(times) for _, times in turns]


def onnx_run(model: bytes, *, batch_size: int, threads: int | None = None) -> Callable[[], object]:
    """A function that runs a model in ONNX Runtime on the CPU, on the same random images every time.

    Args:
        model: of one input [N, c, H, W], as `to_onnx` makes them.
        batch_size: images N.
        threads: as many as torch uses if None.
    """
    return _session_run(make_session(model, threads=threads), batch_size)


def deployed(
    network: Network, device: str | torch.device, *, batch_size: int = 1, size: tuple[int, int] | None = None
) -> Deployed:
    """A network as it would be deployed on this machine: PyTorch's through ONNX Runtime, the others as they are.

    On a GPU that ONNX Runtime cannot use, that of a .safetensors model is PyTorch.

    Args:
        device: that the network was loaded on.
        batch_size: images that go through it at once. A file of a fixed batch takes them in as many turns as it needs.
        size: (height, width) of the images; those of the network or its spec if None.

    Raises:
        ModelError: the network cannot be exported, or cannot run on so many images.
    """
    device = torch.device(device)
    size = size or network.size or image_size(network.spec)
    on_gpu = device.type == "cuda" and CUDA in onnxruntime.get_available_providers()
    try:
        if network.kind == "engine" or (network.kind == "model" and device.type == "cuda" and not on_gpu):
            found = Deployed(_title(network), _forward_run(network, batch_size, size, device))
        else:
            session = make_session(_content(network, size), device=device if on_gpu else "cpu")
            _warn_of_fixed_batch(session, batch_size, network.file)
            found = Deployed(_session_title(session), _session_run(session, batch_size, size))
        found.run()
    except (*FAILURES, MemoryError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            reason = "out of GPU memory"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "give fewer at once, or export it again" if batch_size > 1 else "export it again"
        raise ModelError(
            f"{network.file} cannot be run on {batch_size} images at once ({reason}): {fix}"
        ) from error
    return found


def _content(network: Network, size: tuple[int, int]) -> bytes | Path:
    """An ONNX model: of a .safetensors model the content, else the file."""
    if not isinstance(network.forward, Detector):
        return network.file
    return to_onnx(network.forward, height=size[0], width=size[1])


def _warn_of_fixed_batch(session: Any, batch_size: int, file: Path) -> None:
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int) and batch_size % batch:
        log.warning(
            f"{file} takes {batch} images at a time, no fewer: its time for {batch_size} is that for more"
        )


def _session_run(session: Any, batch_size: int, size: tuple[int, int] | None = None) -> Callable[[], object]:
    """Runs a session on random images [batch_size, c, H, W], of `size` (H, W) where the model leaves it open."""
    (images,) = session.get_inputs()
    batch, channels, *sides = images.shape
    if not all(isinstance(side, int) for side in sides):
        assert size is not None  # models of a free size come from files, see `deployed`
        sides = list(size)
    step = batch if isinstance(batch, int) else batch_size
    shape = (step, channels, *sides)
    values = np.random.default_rng(0).random(shape, dtype=np.float32).astype(NUMBERS[images.type], copy=False)
    feed, turns = {images.name: values}, -(-batch_size // step)

    def run() -> None:
        for _ in range(turns):
            session.run(None, feed)

    return run


def _forward_run(
    network: Network, batch_size: int, size: tuple[int, int], device: torch.device
) -> Callable[[], object]:
    """Runs a network on random images on the device; a run ends when its maps are on the CPU."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, network.channels, *size, generator=generator)
    images = images.to(device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        for maps in network.forward(images):
            maps.cpu()  # waits for a GPU

    return run


def _session_title(session: Any) -> str:
    where = "GPU" if CUDA in session.get_providers() else "CPU"
    return f"ONNX Runtime {onnxruntime.__version__} ({where})"


def _title(network: Network) -> str:
    """What runs a network that runs on a GPU without ONNX Runtime."""
    if network.kind == "model":
        return f"PyTorch {torch.__version__} (GPU)"
    from detectkit.runtimes.tensorrt import library, load_sidecar

    return f"{library(load_sidecar(network.file).builder).title} (GPU)"
