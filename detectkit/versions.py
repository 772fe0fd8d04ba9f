"""Which versions of what matters are installed, and the processor, found without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from detectkit import __version__

MISSING = "not installed"
# By the name that people know, the distributions that it comes in; the first one found counts.
DISTRIBUTIONS = {
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "protobuf": ("protobuf",),
    "TensorRT": (
        "tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt-rtx",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx-cu12-bindings",
    ),
}
CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str]:
    """Versions by name, detectkit's first; MISSING for what is not there.

    A version has in brackets what it does not say itself: torch's CUDA, and which of its packages TensorRT is.
    """
    return {
        "detectkit": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "torch": _torch(),
        **{name: _version(names) for name, names in DISTRIBUTIONS.items()},
    }


def processor() -> str:
    """The name of the CPU, as its maker calls it where the system tells; else its architecture."""
    try:
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(names: Iterable[str]) -> str:
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"{version} ({name})" if name.startswith(("tensorrt-", "onnxruntime-")) else version
    return MISSING


def _torch() -> str:
    version = _version(["torch"])
    found = importlib.util.find_spec("torch") if version != MISSING else None
    if found is None or found.origin is None:
        return version
    try:
        text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return version
    cuda = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return f"{version} (CUDA {cuda[1]})" if cuda else f"{version} (no CUDA)"
