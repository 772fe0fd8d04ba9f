"""The options of `detectkit prune`, and what they and the spec's pruning_config ask for together."""

from __future__ import annotations

import argparse
from typing import Any

from detectkit import spec
from detectkit.errors import UsageError
from detectkit.spec import PruningConfig

# The options that stand for a field of pruning_config.
OPTIONS = {
    "threshold": "-pth",
    "target_params": "--target-params",
    "target_macs": "--target-macs",
    "target_latency": "--target-latency",
    "equalization_criterion": "-eq",
    "granularity": "-pg",
    "min_num_filters": "-nf",
    "excluded_layers": "-el",
    "normalizer": "-n",
}
TARGETS = {
    "target_params": "parameters",
    "target_macs": "multiplications",
    "target_latency": "time (ONNX Runtime, this machine)",
}


def add_aims(parser: argparse.ArgumentParser) -> None:
    """How much goes: a threshold, or a target that one is found for."""
    aims = parser.add_mutually_exclusive_group()
    aims.add_argument(
        OPTIONS["threshold"],
        "--pruning_threshold",
        dest="threshold",
        type=float,
        metavar="X",
        help="filters above it are kept (0.1)",
    )
    for target, meaning in TARGETS.items():
        aims.add_argument(
            OPTIONS[target],
            dest=target,
            type=float,
            metavar="SHARE",
            help=f"find the threshold that leaves at most this share of the {meaning}",
        )
    aims.add_argument(
        "--sweep", action="store_true", help="only show what thresholds leave, with a plot OUT.png; no model"
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Which filters go."""
    parser.add_argument(
        OPTIONS["equalization_criterion"],
        "--equalization_criterion",
        type=str.upper,
        choices=PruningConfig.EqualizationCriterion.keys(),
        metavar="NAME",
        help="union, intersection, arithmetic_mean or geometric_mean of layers that must keep the same filters (union)",
    )
    parser.add_argument(
        OPTIONS["granularity"],
        "--pruning_granularity",
        dest="granularity",
        type=int,
        metavar="N",
        help="widths are multiples of it (8)",
    )
    parser.add_argument(
        OPTIONS["min_num_filters"],
        "--min_num_filters",
        type=int,
        metavar="N",
        help="filters that each layer keeps at least (16)",
    )
    parser.add_argument(
        OPTIONS["excluded_layers"],
        "--excluded_layers",
        nargs="+",
        metavar="LAYER",
        help="layers that keep all filters; names as in the table that is printed",
    )
    parser.add_argument(
        OPTIONS["normalizer"],
        "--normalizer",
        type=str.upper,
        choices=PruningConfig.Normalizer.keys(),
        metavar="NAME",
        help="max or L2: what the norms of a layer's filters are divided by (max)",
    )


def pruning_config(args: argparse.Namespace, experiment: spec.Experiment) -> PruningConfig:
    """The pruning_config of a spec with the options in the place of its fields.

    Raises:
        UsageError: an option is out of its range, or something is missing for training between iterations.
    """
    changed = spec.Experiment()
    changed.CopyFrom(experiment)
    config = changed.pruning_config
    for name, option in OPTIONS.items():
        value: Any = getattr(args, name)
        if value is None:
            continue
        config.ClearField(name)
        try:
            config.MergeFrom(PruningConfig(**{name: value}))
        except ValueError as error:  # what an unsigned field cannot hold
            raise UsageError(f"{option}: must be in [1, {2**32 - 1}], got {value}") from error
    broken = [
        f"{OPTIONS.get(name, violation.path)}: {violation.rule}, got {violation.value}"
        for violation in spec.check(changed)
        for section, _, name in [violation.path.partition(".")]
        if section == "pruning_config"
    ]
    if broken:  # by the options: specs are judged when they are loaded
        raise UsageError("\n".join(broken))
    if config.iterations > 1 and not args.sweep and not experiment.HasField("training_config"):
        raise UsageError(
            f"pruning_config.iterations is {config.iterations}: the spec has no training_config for the training between"
        )
    if config.iterations > 1 and not args.sweep and args.results_dir is None:
        raise UsageError(
            f"pruning_config.iterations is {config.iterations}: give -r DIR for the training between"
        )
    return config
