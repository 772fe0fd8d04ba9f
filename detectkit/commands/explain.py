"""What a field of the spec means: its type, default, range, unit, and where it stands."""

from __future__ import annotations

import argparse

from detectkit import spec
from detectkit.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        default="",
        metavar="PATH",
        help="training_config.learning_rate, the end of a path (beta1), or a message (ClusteringConfig); "
        "without it, the sections",
    )


def run(args: argparse.Namespace) -> None:
    say(spec.explain(args.path))
