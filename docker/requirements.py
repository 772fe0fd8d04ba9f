"""Prints what an image needs from setup.cfg, for pip: `requirements.py setup.cfg RUNTIME TENSORRT EXTRAS`."""

import configparser
import sys

TENSORRT = {"none": [], "rtx": [], "10": ["tensorrt-cu13 == 10.*"], "11": ["tensorrt-cu13 == 11.*"]}


def requirements(setup: str, runtime: str, tensorrt: str, extras: str) -> list[str]:
    """Lines of a requirements file; SystemExit with one line where the build arguments make no image."""
    if runtime not in ("cpu", "cuda"):
        sys.exit(f"RUNTIME is cpu or cuda, not {runtime}")
    if tensorrt not in TENSORRT:
        sys.exit(f"TENSORRT is {', '.join(TENSORRT)}, not {tensorrt}")
    if tensorrt in ("10", "11") and runtime != "cuda":
        sys.exit(
            f"TENSORRT={tensorrt} builds and runs engines on a GPU only: give RUNTIME=cuda with it, or TENSORRT=rtx"
        )
    options = configparser.ConfigParser()
    options.read(setup, encoding="utf-8")
    known = options["options.extras_require"]
    wanted = extras.replace(",", " ").split() + ["tensorrt"] * (
        tensorrt == "rtx"
    )  # that extra is TensorRT for RTX
    if unknown := [extra for extra in wanted if extra not in known]:
        sys.exit(f"EXTRAS are {', '.join(known)}, not {unknown[0]}")
    blocks = [options["options"]["install_requires"], *(known[extra] for extra in wanted)]
    return [line for block in blocks for line in block.strip().splitlines()] + TENSORRT[tensorrt]


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
