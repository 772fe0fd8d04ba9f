"""What a field of the spec means: its type, default, range, unit, where it stands, and what a spec leaves to `default`."""

from __future__ import annotations

import argparse
import re

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.console import say

KEY = r"\[[^\]]*\]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        default="",
        metavar="PATH",
        help="training_config.learning_rate, the end of a path (beta1), or a message (ClusteringConfig); "
        "without it, the sections",
    )
    add_spec_argument(
        parser, required=False, help="a training spec: say which classes its entries `default` serve there"
    )


def run(args: argparse.Namespace) -> None:
    text = spec.explain(args.path)
    path, shared = args.experiment_spec, {}
    if path is not None:
        shared = spec.shared_entries(spec.load_written(path))
    say(text)
    if path is None:
        return
    fitting = {section: words for section, words in shared.items() if _is_part(args.path, section)}
    for section, words in fitting.items():
        say(f"{path}: {section}: {words}")
    if not fitting:
        say(f"{path}: no entry `default` serves a class there")


def _is_part(one: str, other: str) -> bool:
    """Whether the names of one path are some of the other in a row, keys of maps aside; all have the empty one."""
    short, long = sorted((f".{re.sub(KEY, '', path).strip('.')}." for path in (one, other)), key=len)
    return short in long or not one
