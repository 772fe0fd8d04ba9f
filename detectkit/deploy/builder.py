"""What is set on a TensorRT builder, which differs from one library to the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from detectkit.console import log
from detectkit.deploy.cache import HEADER, MINMAX
from detectkit.errors import UsageError
from detectkit.runtimes.tensorrt import Library

AMPERE = 80  # the oldest GPUs that an engine of TensorRT for RTX is built for unless others are named


def target_number(name: str) -> int:
    """The compute capability that a name as sm86 stands for, 86.

    Raises:
        UsageError: it is no such name.
    """
    match = re.fullmatch(r"(?:sm_?)?([0-9]{2,3})", name.strip().lower(), re.ASCII)
    if not match:
        raise UsageError(f"--target {name}: name GPUs by compute capability, as sm86")
    return int(match[1])


def set_targets(library: Library, config: Any, names: Sequence[str]) -> list[str]:
    """Tell the library which GPUs the engine is for; gives their names."""
    wanted = sorted({target_number(name) for name in names})
    if not library.ahead_of_time:
        return _set_compatibility(library, config, wanted)
    known = {
        int(name[2:]): value
        for name, value in library.trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [number for number in wanted if number not in known]
    if unknown:
        raise UsageError(
            f"--target {_names(unknown)}: {library.title} builds for {_names(sorted(known))}; leave it out for all from"
            f" sm{AMPERE} on"
        )
    # The default of the library is the same, but asks for the GPU of this machine in some versions.
    wanted = wanted or [number for number in sorted(known) if number >= AMPERE]
    config.num_compute_capabilities = len(wanted)
    for index, number in enumerate(wanted):
        config.set_compute_capability(known[number], index)
    return [f"sm{number}" for number in wanted]


def _set_compatibility(library: Library, config: Any, wanted: list[int]) -> list[str]:
    """TensorRT builds for the GPU here, or for all from Ampere on; gives the names of those asked for."""
    major, minor = torch.cuda.get_device_capability()
    here = 10 * major + minor
    if wanted in ([], [here]):
        return [f"sm{here}"]
    if min(here, *wanted) < AMPERE:
        raise UsageError(
            f"--target {_names(wanted)}: {library.title} builds for the GPU of this machine, sm{here}, or for several from"
            f" sm{AMPERE} on: build on a machine with that GPU"
        )
    config.hardware_compatibility_level = library.trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return [f"sm{number}" for number in wanted]


def _names(numbers: Sequence[int]) -> str:
    return ", ".join(f"sm{number}" for number in numbers)


def allow_types(trt: Any, config: Any, data_type: str, *, calibration: bytes | None, strict: bool) -> None:
    """TensorRT 10: which types beside 32 bits its layers may take, and the calibration cache of an int8 engine."""
    if data_type == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    if data_type == "fp16" or (data_type == "int8" and not strict):
        config.set_flag(trt.BuilderFlag.FP16)
    if calibration is not None:
        config.int8_calibrator = _calibrator(trt, calibration)


def _calibrator(trt: Any, cache: bytes) -> Any:
    """A calibrator that has no images, only what a calibration found before."""
    header = HEADER.match(cache)
    is_minmax = header is not None and header[2] == MINMAX.encode()
    base: Any = trt.IInt8MinMaxCalibrator if is_minmax else trt.IInt8EntropyCalibrator2

    class CacheOnly(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # its bindings ask for this form

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, content: Any) -> None:
            pass

    return CacheOnly()


def set_timing_cache(library: Library, config: Any, content: bytes | None) -> Any:
    if content is None:
        return None
    if library.ahead_of_time:
        log.warning(
            f"--timing-cache is not used: {library.title} measures nothing here, it chooses its kernels where the engine"
            " runs"
        )
        return None
    times = config.create_timing_cache(content)
    if not config.set_timing_cache(times, ignore_mismatch=False):
        raise UsageError("--timing-cache is of another TensorRT or GPU: remove the file, or name another one")
    return times
