"""What `detectkit doctor` looks at: the checks, in their order, and how one is carried out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from detectkit.doctor import machine, packages, runtimes
from detectkit.doctor.lines import Diagnosis as Diagnosis
from detectkit.doctor.lines import first_line


class Check(NamedTuple):
    """Something to look at; `find` gives a line for each thing that there is to say."""

    title: str
    find: Callable[[Path], Iterator[Diagnosis]]  # from the folder of the results
    fix: str  # where `find` itself fails
    for_training: bool = False  # such a failure is then a fault, else a note


def examine(check: Check, folder: Path) -> Iterator[Diagnosis]:
    """What a check finds, as it finds it; an exception, whatever it is, becomes a line."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of packages on each other
            yield from check.find(folder)
    except Exception as error:
        grade = "fault" if check.for_training else "note"
        yield Diagnosis(grade, f"{check.title}: {type(error).__name__}: {first_line(error)}", check.fix)


INSTALL_AGAIN = "install detectkit again, as its README says"
CHECKS = (
    Check("packages", packages.packages, INSTALL_AGAIN, for_training=True),
    Check("extras", packages.extras, INSTALL_AGAIN),
    Check("generated code", packages.generated_code, packages.GENERATE, for_training=True),
    Check("CPU", machine.cpu, "install torch again: pip install --force-reinstall torch torchvision"),
    Check("memory", machine.memory, "see how much memory there is with free -h"),
    Check("GPU", machine.gpus, "see what nvidia-smi says; --gpus 0 uses the CPU"),
    Check("training", runtimes.training, INSTALL_AGAIN, for_training=True),
    Check("ONNX Runtime", runtimes.onnx_runtime, runtimes.REINSTALL_RUNTIME),
    Check(
        "TensorRT",
        runtimes.tensorrt,
        "pip install --force-reinstall what `detectkit --version` shows for TensorRT",
    ),
    Check("shared memory", machine.shared_memory, f"see df -h {machine.SHARED_MEMORY}"),
    Check("disk", machine.disk, "name another folder with -r", for_training=True),
    Check(
        "decoder",
        machine.decoder,
        "install Pillow again: pip install --force-reinstall pillow",
        for_training=True,
    ),
)
