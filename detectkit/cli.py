"""The `detectkit` command: the argument tree, and from an error to an exit code.

Only the module of the chosen command is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from detectkit import __version__, console
from detectkit.commands.options import add_ignored_argument
from detectkit.errors import DetectkitError, OutputError, UsageError

COMMANDS = {
    "check": "judge a spec, and count the boxes of its data",
    "explain": "what a field of the spec means, its default and range",
    "sample-data": "make a small data set with labels, to try things out",
    "convert": "KITTI, COCO or Pascal VOC labels to TFRecord shards",
    "visualize": "what the network sees: augmented images, boxes and targets",
    "train": "train a detector; goes on where it was stopped",
    "evaluate": "average precision, precision, recall and latency",
    "infer": "detect: KITTI label files and annotated images",
    "prune": "leave out the filters that matter least",
    "calibrate": "the ranges of all tensors, for 8-bit networks",
    "export": "a model as ONNX: 32, 16 or 8 bits",
    "engine": "an ONNX model as TensorRT engine",
    "compare": "several models side by side: accuracy, size, time",
    "calibration_tensorfile": "network inputs in TLT's HDF5 file, for 8-bit calibration",
}
ALIASES = {"dataset_convert": "convert", "inference": "infer", "gen_trt_engine": "engine"}  # TLT's names


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows how it is used")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code (see `detectkit.errors`). `--help` and `--version` leave with SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except DetectkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `detectkit explain | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return OutputError.exit_code
    except RuntimeError as error:
        if not _is_out_of_gpu_memory(error):
            raise
        print("error: out of GPU memory: lower training_config.batch_size_per_gpu (or -b)", file=sys.stderr)
        return DetectkitError.exit_code


def _is_out_of_gpu_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")  # not imported here: it takes seconds
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _run(arguments: list[str]) -> int:
    module, args = parse(arguments)
    console.set_up(verbose=args.verbose, log_file=args.log_file)
    for line in args.ignored:
        console.log.warning(line)
    module.run(args)
    return 0


def parse(arguments: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The module of the chosen command, and its options; raises UsageError for a wrong command line."""
    parser = _top_parser()
    chosen = parser.parse_args(arguments[:1]).command
    name = ALIASES.get(chosen, chosen)
    if name not in COMMANDS:
        raise UsageError(_unknown(chosen))
    module = importlib.import_module(f"detectkit.commands.{name.replace('-', '_')}")
    command = Parser(prog=f"detectkit {chosen}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(command)
    _add_common(command)
    return module, command.parse_args(arguments[1:])


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
    parser.add_argument("--version", action="version", version=f"detectkit {__version__}")
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


if __name__ == "__main__":
    sys.exit(main())
