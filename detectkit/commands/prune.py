"""Narrow a trained model: the filters that matter least go. Options go before the spec's pruning_config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS, add_device_arguments, choose_device
from detectkit.commands.prune_options import add_aims, add_choices, pruning_config
from detectkit.console import StatusLog, say, table
from detectkit.errors import UsageError
from detectkit.files import atomic_write, check_writable, make_directory
from detectkit.spec.schema import short

if TYPE_CHECKING:
    from detectkit.compress.job import PruningFigures, PruningJob

SUFFIX = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "-pm",
        "--model",
        required=True,
        type=Path,
        metavar="MODEL",
        help="a .safetensors model, or with -e an .hdf5 of TLT",
    )
    parser.add_argument(
        "-o",
        "--output_file",
        required=True,
        type=Path,
        metavar="OUT",
        help=f"the pruned model; {SUFFIX} is added where it is missing",
    )
    parser.add_argument(
        *SPEC_OPTIONS,
        dest="experiment_spec",
        type=Path,
        metavar="SPEC",
        help="a training spec, for pruning_config and retraining (the one in the model)",
    )
    add_aims(parser)
    add_choices(parser)
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        metavar="DIR",
        help="where status.jsonl goes, and the training between iterations",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    output = _output(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None

    from detectkit.compress.job import measure_figures, measure_left, prune_model, save_results, warn_of_size
    from detectkit.compress.prune import widths

    job = _job(args, given, output)
    if args.sweep:
        _sweep(job, output.with_suffix(".png"))
        return
    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write("Starting pruning.", status="STARTED")
    with status.failures():
        model = prune_model(job, args.results_dir)
        left = measure_left(job, model.detector)
        save_results(
            job, model, left
        )  # before the times are measured: a cut there costs no more than the table
        layers = widths(job.model.detector, model.detector)
        table(("layer", "filters", "kept"), layers, title="convolutions")
        figures = measure_figures(job, model.detector, left)
        _show(job, figures)
        warn_of_size(job.config, figures)
    status.write("Pruning complete.", status="SUCCESS", kpi=figures.kpi())
    _say_next(args, job)


def _job(args: argparse.Namespace, given: spec.Experiment | None, output: Path) -> PruningJob:
    """The model, the spec, and the options in one, each judged."""
    from detectkit.compress.job import PruningJob  # torch takes seconds: not before
    from detectkit.compress.preparation import check_spec, choose_criterion, with_teacher
    from detectkit.compress.yardstick import Yardstick
    from detectkit.deploy.stopwatch import Stopwatch
    from detectkit.model import checkpoint

    model = checkpoint.load(args.model, choose_device(args), experiment=given)
    experiment = spec.spec_to_use(given, model.spec, args.model)
    check_spec(args.model, model, experiment)
    config = pruning_config(args, experiment)
    by_weights = args.sweep or args.equalization_criterion is not None or args.normalizer is not None
    choose_criterion(experiment, config, by_weights=by_weights)
    experiment = with_teacher(
        experiment, config, model, path=args.model, output=output, is_given=given is not None
    )
    pre = experiment.augmentation_config.preprocessing
    stopwatch = Stopwatch(model.detector, pre.output_image_height, pre.output_image_width)
    yardstick = Yardstick(model.detector, experiment, stopwatch.seconds)
    return PruningJob(model, args.model, experiment, config, yardstick, output, _retraining_path(output))


def _output(args: argparse.Namespace) -> Path:
    """The file to write; what is wrong with it is said before the work, not after it."""
    given: Path = args.output_file
    output = given if given.suffix == SUFFIX else Path(f"{given}{SUFFIX}")
    if given.is_dir() or output.is_dir():
        raise UsageError(f"-o {given} is a folder: name a file in it")
    if output.resolve() == args.model.resolve():
        raise UsageError(f"-o {output} is the model itself: give another name")
    retraining = _retraining_path(output)
    if args.experiment_spec and retraining.resolve() == args.experiment_spec.resolve():
        raise UsageError(
            f"-o {given}: its spec for retraining would overwrite {retraining}, which -e names: give another name"
        )
    check_writable(output)
    return output


def _retraining_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}_retrain.txt")


def _show(job: PruningJob, figures: PruningFigures) -> None:
    """Print what became of the whole."""
    before, after = figures.parameters
    rows = [
        ("parameters", f"{before:,}", f"{after:,}", f"{figures.ratio:.4f}"),
        ("GMACs an image", *_compared(*figures.gmacs)),
        ("file, MiB", *_compared(*figures.mebibytes)),
        ("ONNX Runtime, ms an image", *_compared(*(1000 * seconds for seconds in figures.seconds))),
    ]
    left = figures.left
    if left is not None:
        share = "-" if left.share is None else f"{left.share:.4f}"
        title = f"mAP %, of {left.images} validation images"
        rows.append((title, f"{100 * left.before:.2f}", f"{100 * left.after:.2f}", share))
    title = f"at {job.yardstick.width}x{job.yardstick.height}, on this machine's CPU"
    table(("", "before", "after", "after / before"), rows, title=title)
    ratio = figures.ratio
    say(f"\nPruning ratio (pruned model / original model): {ratio:.6f}; removed: {1 - ratio:.2%}")


def _compared(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.3f}", f"{after:.3f}", f"{after / before:.4f}"


def _say_next(args: argparse.Namespace, job: PruningJob) -> None:
    count = job.config.iterations
    if count > 1:
        last = args.results_dir / f"iteration_{count}" / "experiment_spec.txt"
        say(f"wrote {job.output}, pruned and retrained {count} times")
        say(f"next: detectkit evaluate -e {args.experiment_spec or last} -m {job.output}")
        return
    if not job.trains:
        say(f"wrote {job.output}; the spec has no training_config, so there is none for retraining")
        say(f"next: detectkit evaluate -e {args.experiment_spec or 'SPEC'} -m {job.output}")
        return
    path = job.retraining
    training, first = spec.load_experiment(path).training_config, job.experiment.training_config.num_epochs
    longer = (
        f", for {training.num_epochs} epochs in the place of {first}" if training.num_epochs > first else ""
    )
    teacher = training.distillation.teacher_model_file
    taught = f", and taught by {teacher}, which has to stay where it is" if teacher else ""
    say(
        f"wrote {job.output}, and {path}: the spec with pretrained_model_file and load_graph set{longer}{taught}"
    )
    say(f"next: detectkit train -e {path} -r DIR")


def _sweep(job: PruningJob, plot: Path) -> None:
    """Print what thresholds leave of the network, and draw it."""
    from detectkit import draw
    from detectkit.compress.prune import Pruner
    from detectkit.compress.sweep import sweep

    before, found = sweep(Pruner(job.model.detector, job.config, job.experiment), job.yardstick)
    names = ("parameters", "MACs", "time")
    rows = [
        (short(item.threshold), *(f"{share:.4f}" for share in item.shares), f"{1000 * item.seconds:.3f}")
        for item in found
    ]
    title = f"shares of the original, which takes {1000 * before:.3f} ms an image in ONNX Runtime here"
    table(("threshold", *names, "ms"), rows, title=title)
    thresholds = [item.threshold for item in found]
    curves = {name: (thresholds, [item.shares[at] for item in found]) for at, name in enumerate(names)}
    with atomic_write(plot) as path:
        draw.curves(
            path,
            curves,
            title="pruning",
            x_label="threshold",
            y_label="share of the original",
            y_limits=(0, 1.05),
        )
    say(f"wrote {plot}")
    say("next: the same with -pth and a threshold of the table, or with a target, in the place of --sweep")
