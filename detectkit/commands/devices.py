"""TLT's options for the device, shared by the commands that run a network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from detectkit.errors import UsageError

if TYPE_CHECKING:
    import torch


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=int, default=None, metavar="N", help="1, or 0 for the CPU (a GPU if there is one)"
    )
    parser.add_argument("--gpu_index", type=int, default=0, metavar="I", help="which GPU (0)")


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device that the options name.

    Raises:
        UsageError: a GPU that is not there, or more than one.
    """
    import torch

    count = torch.cuda.device_count()
    if args.gpus is not None and args.gpus not in (0, 1):
        raise UsageError(f"--gpus {args.gpus}: this version runs on one GPU; give --gpus 1")
    if args.gpus == 0 or (args.gpus is None and not count):
        return torch.device("cpu")
    if not 0 <= args.gpu_index < count:
        raise UsageError(f"no GPU {args.gpu_index}: {count} found here; give --gpus 0 to use the CPU")
    return torch.device("cuda", args.gpu_index)
