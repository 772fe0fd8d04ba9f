"""The argument tree of `detectkit`: its commands, and from a command line to the module that runs it.

Only the module of the chosen command is imported, so that `--help` answers at once. A command that runs other command
lines in this process uses it too: `module, args = parse(["train", "-e", "spec.txt", ...])`, then `module.run(args)`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from detectkit.commands.options import add_ignored_argument
from detectkit.errors import UsageError

COMMANDS = {
    "init": "a spec that fits a folder of labelled images",
    "check": "judge a spec, and count the boxes of its data",
    "explain": "what a field of the spec means, its default and range",
    "sample-data": "make a small data set with labels, to try things out",
    "run": "the whole chain of one spec, from the data to the engine, with its report",
    "report": "one HTML page of a run, or of several side by side",
    "clean": "what is wrong with images and labels, as a page and a list to decide in",
    "convert": "KITTI, COCO, Pascal VOC, YOLO or CSV labels to TFRecord shards",
    "visualize": "what the network sees: augmented images, boxes and targets",
    "train": "train a detector; goes on where it was stopped",
    "evaluate": "average precision, precision, recall and latency",
    "infer": "detect: KITTI label files and annotated images",
    "prune": "leave out the filters that matter least",
    "calibrate": "the ranges of all tensors, for 8-bit networks",
    "export": "a model as ONNX: 32, 16 or 8 bits",
    "engine": "an ONNX model as TensorRT engine",
    "compare": "several models side by side: accuracy, size, time",
    "latency": "the times of several models, measured in turns",
    "calibration_tensorfile": "network inputs in TLT's HDF5 file, for 8-bit calibration",
    "doctor": "what is installed here, what works, how fast it is, and what to mend",
    "completion": "a script that completes detectkit's command lines in a shell",
}
ALIASES = {"dataset_convert": "convert", "inference": "infer", "gen_trt_engine": "engine"}  # TLT's names


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows how it is used")


class _Version(argparse.Action):
    """Prints a line for each version, `detectkit X.Y.Z` first, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from detectkit.versions import versions  # what it imports is only needed here

        print("\n".join(f"{name} {version}" for name, version in versions().items()))
        parser.exit()


def parse(arguments: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The module of the chosen command, and its options; raises UsageError for a wrong command line."""
    parser = _top_parser()
    chosen = parser.parse_args(arguments[:1]).command
    name = ALIASES.get(chosen, chosen)
    if name not in COMMANDS:
        raise UsageError(_unknown(chosen))
    command = Parser(prog=f"detectkit {chosen}", allow_abbrev=False)
    module = _add_options(command, name)
    return module, command.parse_args(arguments[1:])


def whole() -> argparse.ArgumentParser:
    """All commands and aliases with their options below one parser, for what reads the tree. It imports every command."""
    parser = Parser(prog="detectkit", allow_abbrev=False)
    _add_version(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name in (*COMMANDS, *ALIASES):
        target = ALIASES.get(name, name)
        _add_options(commands.add_parser(name, help=COMMANDS[target], allow_abbrev=False), target)
    return parser


def _add_options(parser: argparse.ArgumentParser, name: str) -> ModuleType:
    """Give the parser the options and the description of a command; gives its module."""
    module = importlib.import_module(f"detectkit.commands.{name.replace('-', '_')}")
    parser.description = module.__doc__
    module.add_arguments(parser)
    _add_common(parser)
    return module


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="the versions of what matters"
    )


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
    aliases = ", ".join(f"{alias} is {name}" for alias, name in ALIASES.items())
    parser = Parser(
        prog="detectkit",
        description="From a text spec to a trained, measured object detector.",
        epilog=f"commands:\n{listing}\n\nTLT's names: {aliases}.\n`detectkit COMMAND --help` shows the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_version(parser)
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    return parser


def _unknown(name: str) -> str:
    import difflib  # only needed here

    near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
    meant = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"there is no command {name}; {meant}"


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_ignored_argument(
        parser,
        "-k",
        "--key",
        metavar="KEY",
        reason="files are not encrypted here, the key is not used",
        help="accepted for TLT's command lines: files are not encrypted here",
    )
    parser.add_argument("--log_file", type=Path, metavar="FILE", help="append the log lines to this file too")
    parser.add_argument("-v", "--verbose", action="store_true", help="more log lines")
