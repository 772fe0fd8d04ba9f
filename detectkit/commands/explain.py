"""What a field of the spec means: its type, default, range, unit, where it stands, and what a spec leaves to `default`."""

from __future__ import annotations

import argparse

from detectkit import spec
from detectkit.commands.options import add_spec_argument
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
    add_spec_argument(
        parser, required=False, help="a training spec: say which classes its entries `default` serve there"
    )


def run(args: argparse.Namespace) -> None:
    text = spec.explain(args.path)
    path, shared = args.experiment_spec, {}
    if path is not None:
        shared = spec.shared_entries(spec.load_written(path))
    say(text)
    for section, words in shared.items():
        if args.path in section or section in args.path:
            say(f"{path}: {section}: {words}")
