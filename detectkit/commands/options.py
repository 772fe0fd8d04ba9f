"""Options shared by commands, by TLT's names: the spec, the device, and those that have nothing to do here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit.errors import UsageError

if TYPE_CHECKING:
    import torch


SPEC_OPTIONS = ("-e", "--experiment_spec_file", "--experiment_spec")  # TLT's commands differ in the long name


def add_spec_argument(parser: argparse.ArgumentParser, *, help: str, required: bool = True) -> None:
    """`-e`, as `args.experiment_spec`."""
    parser.add_argument(
        *SPEC_OPTIONS, dest="experiment_spec", required=required, type=Path, metavar="SPEC", help=help
    )


def add_ignored_argument(
    parser: argparse.ArgumentParser,
    *names: str,
    reason: str,
    metavar: str | None = None,
    help: str = argparse.SUPPRESS,
) -> None:
    """An option of TLT that changes nothing: when given, `args.ignored` gets a line with the reason.

    Args:
        metavar: of its value; without one, it is a flag.
        help: without it, `--help` leaves the option out.
    """
    parser.set_defaults(ignored=[])
    action = parser.add_argument(
        *names,
        action=_Ignored,
        dest=argparse.SUPPRESS,
        nargs=0 if metavar is None else None,
        metavar=metavar,
        help=help,
    )
    assert isinstance(action, _Ignored)
    action.reason = reason


class _Ignored(argparse.Action):
    reason = ""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.ignored = [*namespace.ignored, f"{option_string}: {self.reason}"]


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
