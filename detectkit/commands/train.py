"""Train a detector as the spec says. A run that was stopped goes on where it was: give the same command again."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from detectkit import spec
from detectkit.commands.options import (
    add_device_arguments,
    add_ignored_argument,
    add_spec_argument,
    choose_device,
)
from detectkit.console import duration, log, say
from detectkit.errors import SpecError
from detectkit.files import locked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec")
    parser.add_argument(
        "-r", "--results_dir", required=True, type=Path, metavar="DIR", help="where results go"
    )
    parser.add_argument(
        "-n", "--model_name", default="model", metavar="NAME", help="of the model files (model)"
    )
    add_device_arguments(parser)
    add_ignored_argument(
        parser,
        "--use_amp",
        reason="not used; put training_precision { backend_floatx: FLOAT16 } into model_config instead",
    )
    add_ignored_argument(parser, "--enable_determinism", reason="not used; it is always on, on the CPU")
    add_ignored_argument(
        parser, "-np", "--num_processes", metavar="N", reason="not used; one process trains, on one device"
    )


def run(args: argparse.Namespace) -> None:
    experiment = spec.load_experiment(args.experiment_spec)  # torch takes seconds: not before
    if not experiment.HasField("training_config"):
        raise SpecError(
            f"{args.experiment_spec}: training_config: this section is missing, so nothing can be trained"
        )

    from detectkit.evaluation import require_package
    from detectkit.train.loop import train
    from detectkit.train.run import describe, set_up

    require_package(experiment.evaluation_config)
    device = choose_device(args)
    start = time.monotonic()
    with locked(args.results_dir):
        training = set_up(experiment, args.results_dir, name=args.model_name, device=device)
        log.info(describe(training))
        validation = len(training.validation) if training.validation else 0
        log.info(f"{len(training.training)} training and {validation} validation images, on {device}")
        training.status.write("Starting training.", status="STARTED")
        if training.finished:
            on = "" if training.stopped_early else "raise num_epochs to train on, or "
            log.info(f"{args.results_dir} holds the finished run: {on}use another -r")
        with training.status.failures():
            outcome = train(training)
        training.status.write("Training complete.", status="SUCCESS")
    say(f"trained in {duration(time.monotonic() - start)}")
    say(f"wrote {outcome.last}" + (f" and {outcome.best} (best validation)" if outcome.best else ""))
    say(f"curves: {args.results_dir / 'cost.png'}, {args.results_dir / 'average_precision.png'}")
    say(
        f"next: detectkit evaluate -e {args.experiment_spec} -m {outcome.best or outcome.last} -r {args.results_dir}"
    )
