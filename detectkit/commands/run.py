"""Do all that a spec has sections for, from labels to an engine, with a report; what is done and unchanged is not done again."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.commands.tree import parse
from detectkit.console import duration, log, say, table
from detectkit.errors import DetectkitError, ModelError, UsageError
from detectkit.files import locked
from detectkit.pipeline.chain import Chain
from detectkit.pipeline.fingerprints import Fingerprints
from detectkit.pipeline.plan import Action, PlannedStage, plan
from detectkit.pipeline.run import FINGERPRINTS, Runner
from detectkit.pipeline.stages import chain_of
from detectkit.spec.networks import is_keras
from detectkit.versions import processor, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(
        parser, help="a training spec, with sections for what comes before and after the training"
    )
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        metavar="DIR",
        help="where results go, a folder a stage (results/NAME, by the name of the spec)",
    )
    parser.add_argument(
        "--from", dest="first", metavar="STAGE", help="do this stage and those after it again"
    )
    parser.add_argument(
        "--until", dest="last", metavar="STAGE", help="stop after this stage and its measurement"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the stages, with the time and space they may take"
    )


def run(args: argparse.Namespace) -> None:
    start = time.monotonic()
    experiment = _without_key(spec.load_experiment(args.experiment_spec))
    folder = _named_alike(args.results_dir or Path("results", args.experiment_spec.stem))
    chain = chain_of(experiment, folder)
    start_from = experiment.model_config.pretrained_model_file
    if not chain.trains and is_keras(start_from):
        raise UsageError(
            f"{start_from} is a Keras file of TLT: make a model of it first, and name that in pretrained_model_file: detectkit"
            f" export -e {args.experiment_spec} -m {start_from} -o {Path(start_from).with_suffix('.safetensors')}"
        )
    if args.dry_run:
        _print_estimates(
            chain, plan(chain, Fingerprints(folder / FINGERPRINTS), first=args.first, last=args.last)
        )
        return
    _require_teachers(experiment, folder)
    with locked(folder):
        runner = Runner(chain, _execute, _report, _about(args, folder))
        steps = plan(chain, runner.prints, first=args.first, last=args.last)
        _print_plan(steps)
        count = runner.run(steps)
    _print_results(folder)
    took = time.monotonic() - start
    if count:
        say(f"{count} of {len(steps)} stages done in {duration(took)}")
    else:
        say(
            f"nothing to do: all {len(steps)} stages are done, and nothing they read has changed ({took:.1f} s)"
        )
    say(f"report: {folder / 'report.html'}")


def _require_teachers(experiment: spec.Experiment, folder: Path) -> None:
    """A teacher that is not there is known before the hours of work that come first; the run itself may write one."""
    for field, name in spec.teacher_files(experiment).items():
        path = Path(name).expanduser()
        if not path.is_file() and folder.resolve() not in path.resolve().parents:
            raise ModelError(f"{field}: there is no file {path}; put it back, or correct the path")


def _named_alike(folder: Path) -> Path:
    """The same path however it was given, since the stages' commands and specs name it: short below the current folder."""
    absolute, here = Path(os.path.abspath(folder)), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def _execute(command: list[str]) -> None:
    module, args = parse(command)
    module.run(args)


def _report(folder: Path) -> None:
    """A report that cannot be made, for whatever reason, is no reason to lose an hour of training."""
    try:
        from detectkit.report import write_report  # torch and matplotlib take seconds: not before

        write_report(folder)
    except Exception as error:
        _warn_of_report(error)


def _warn_of_report(error: Exception) -> None:
    kind = "" if isinstance(error, DetectkitError) else f"{type(error).__name__}: "
    log.warning(f"no report: {kind}{error}")
    log.debug("why there is no report", exc_info=error)


def _about(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    command = ["run", "-e", str(args.experiment_spec), "-r", str(folder)]  # without -k: a key is kept nowhere
    return {
        "spec": str(args.experiment_spec),
        "command": command,
        "versions": versions(),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
    }


def _without_key(experiment: spec.Experiment) -> spec.Experiment:
    """The spec that may be written and shown; the stages have the key of the account from the environment."""
    key = experiment.training_config.visualizer.wandb_config.key
    if not key:
        return experiment
    os.environ.setdefault("WANDB_API_KEY", key)

    from detectkit.trackers import without_key  # with numpy, which a run with nothing to do does without

    return without_key(experiment)


def _print_plan(steps: Sequence[PlannedStage]) -> None:
    if any(step.action != Action.NOTHING for step in steps):
        rows = [(step.stage.name, step.stage.title, step.action.value, step.why) for step in steps]
        table(("stage", "what", "state", "why"), rows)
        say("")


def _print_results(folder: Path) -> None:
    try:
        from detectkit.report import summary

        headers, rows = summary(folder)
    except Exception as error:
        _warn_of_report(error)
        return
    if rows:
        table(headers, rows)
        say("")


def _print_estimates(chain: Chain, steps: Sequence[PlannedStage]) -> None:
    """The plan with what each stage may take; nothing is written."""
    from detectkit.pipeline.estimate import estimates

    if all(step.action == Action.NOTHING for step in steps):
        say(f"nothing to do: all {len(steps)} stages are done, and nothing they read has changed")
        return
    found = estimates(chain, steps)
    rows = []
    for step, estimate in zip(steps, found, strict=True):
        took = "-" if step.action == Action.NOTHING else duration(estimate.seconds)
        size = "-" if step.action == Action.NOTHING else f"{estimate.mib:.1f}"
        rows.append((step.stage.name, step.stage.title, step.action.value, took, size, step.why))
    mib = sum(estimate.mib for estimate in found)
    needed = mib - sum(estimate.freed for estimate in found)
    free = _free_mib(chain.folder)
    rows.append(("in all", "", "", duration(sum(estimate.seconds for estimate in found)), f"{mib:.1f}", ""))
    table(("stage", "what", "state", "about", "MiB", "why"), rows)
    say(f"\n{free / 1024:.1f} GiB are free at {chain.folder}; times and sizes may be twice or half as much")
    if needed > free:
        log.warning(f"{chain.folder}: the run may need {needed:.0f} MiB, and {free:.0f} are free")


def _free_mib(folder: Path) -> float:
    """MiB that the disk of a folder that need not be there yet has left."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free / 2**20
