"""Narrow a trained model: the filters that matter least go. Options go before the spec's pruning_config."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS, add_device_arguments, choose_device
from detectkit.console import StatusLog, log, progress, say, table
from detectkit.errors import DataError, ModelError, SpecError, UsageError
from detectkit.files import atomic_write, check_writable, locked, make_directory
from detectkit.spec import PruningConfig
from detectkit.spec.schema import short

if TYPE_CHECKING:
    from detectkit.compress.accuracy import Left
    from detectkit.compress.prune import Pruner, Size
    from detectkit.model.checkpoint import Model
    from detectkit.model.detector import Detector

SUFFIX = ".safetensors"
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
SWEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # shares of the parameters that a sweep shows
ROUNDS, SECONDS = 100, 3.0  # of a comparison of two networks, at most
LITTLE = 0.4  # of mAP: with less, retraining was seen to fall short of it
MARGIN = 0.03  # times of the same network differ by so much: a target is aimed at from below


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
    _add_aims(parser)
    _add_choices(parser)
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        metavar="DIR",
        help="where status.jsonl goes, and the training between iterations",
    )
    add_device_arguments(parser)


def _add_aims(parser: argparse.ArgumentParser) -> None:
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


def _add_choices(parser: argparse.ArgumentParser) -> None:
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


class Job(NamedTuple):
    """What is pruned, and how."""

    model: Model
    path: Path  # of the model
    experiment: spec.Experiment  # for retraining
    config: PruningConfig
    yardstick: Yardstick
    output: Path

    @property
    def trains(self) -> bool:
        """Whether the spec says how to train, so that one for retraining can be made of it."""
        return self.experiment.HasField("training_config")


def run(args: argparse.Namespace) -> None:
    output = _output(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None

    from detectkit.compress.retrain import save_pruned  # torch takes seconds: not before
    from detectkit.model import checkpoint

    model = checkpoint.load(args.model, choose_device(args), experiment=given)
    experiment = spec.spec_to_use(given, model.spec, args.model)
    _check_spec(args.model, model, experiment)
    config = _config(args, experiment)
    _choose_criterion(args, experiment, config)
    experiment = _with_teacher(args, experiment, config, model)
    job = Job(model, args.model, experiment, config, Yardstick(model.detector, experiment), output)
    if args.sweep:
        _sweep(job, output.with_suffix(".png"))
        return
    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write("Starting pruning.", status="STARTED")
    with status.failures():
        model = _prune(job, args.results_dir)
        left = _measure(job, model.detector)
        # Before the times are measured: a cut there costs no more than the table.
        save_pruned(job.output, model, config)
        if config.iterations == 1 and job.trains:
            with atomic_write(_retraining_path(output)) as path:
                path.write_text(_retraining_text(job, left), encoding="utf-8")
        kpi = _report(job, model.detector, left)
    status.write("Pruning complete.", status="SUCCESS", kpi=kpi)
    _say_next(args, job)


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


def _check_spec(path: Path, model: Model, experiment: spec.Experiment) -> None:
    """Refuse a spec of another model: what is pruned with it could not be retrained with it."""
    import torch

    from detectkit.model.base import computes_the_same
    from detectkit.model.detector import build

    wanted, fix = spec.class_names(experiment), "use the spec that it was trained with"
    if wanted != model.class_names:
        raise ModelError(
            f"{path} detects {', '.join(model.class_names)}; the spec is for {', '.join(wanted)} (in this order): {fix}"
        )
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    if channels != model.detector.channels:
        raise ModelError(
            f"{path} takes images of {model.detector.channels} channels, the spec has {channels}: {fix}"
        )
    with torch.device("meta"):
        own, network = (
            build(config, wanted, channels).backbone
            for config in (model.spec.model_config, experiment.model_config)
        )
    if own.tlt != network.tlt:
        fix = f"set layout: {'TLT' if own.tlt else 'TORCHVISION'} in model_config"
    if not computes_the_same(own, network):
        other = ", with another use_pooling, all_projections or activation"
        raise ModelError(
            f"{path} is {own.title}, the spec asks for {network.title}{other if own.title == network.title else ''}: {fix}"
        )


def _config(args: argparse.Namespace, experiment: spec.Experiment) -> PruningConfig:
    """The pruning_config of a spec with the options in the place of its fields."""
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


def _choose_criterion(args: argparse.Namespace, experiment: spec.Experiment, config: PruningConfig) -> None:
    """Put what AUTO stands for here in its place, and say what it is."""
    from detectkit.data.dataset import training_frames

    if config.criterion != PruningConfig.AUTO:
        return
    config.criterion = spec.chosen_criterion(config, experiment.dataset_config)
    if args.sweep or args.equalization_criterion is not None or args.normalizer is not None:
        config.criterion = PruningConfig.NORM
    if config.criterion == PruningConfig.NORM:
        return log.info("criterion NORM, as TLT's: filters are judged by their weights")
    try:
        training_frames(experiment.dataset_config, spec.class_names(experiment), at_most=1)
    except DataError as error:
        config.criterion = PruningConfig.NORM
        return log.warning(
            f"criterion NORM, which looks at no images and leaves less: those to train on cannot be read ({error})"
        )
    log.info(
        "criterion TAYLOR: filters are judged by what the cost of training images would lose (NORM, TLT's, by their weights)"
    )


def _with_teacher(
    args: argparse.Namespace, experiment: spec.Experiment, config: PruningConfig, model: Model
) -> spec.Experiment:
    """The spec, if its teacher can teach the pruned network; a teacher of the past that is gone is left out of it.

    Raises:
        ModelError: the teacher that the given spec names is not there, or of other cells or images.
    """
    from detectkit.train.teacher import read_teacher

    again = spec.retraining_spec(experiment, args.output_file, config.retraining, teacher=args.model)
    teacher = Path(again.training_config.distillation.teacher_model_file or args.model).expanduser()
    if teacher == args.model:
        return experiment
    if args.experiment_spec or teacher.is_file():
        read_teacher(teacher, experiment, model.detector)
        return experiment
    log.info(f"{teacher}, which taught {args.model}, is not there any more: that is the teacher now")
    without = spec.Experiment()
    without.CopyFrom(experiment)
    without.training_config.ClearField("distillation")
    config.retraining.ClearField("distillation")
    return without


class Yardstick:
    """How large networks are beside the original, at the input size of a spec."""

    def __init__(self, original: Detector, experiment: spec.Experiment) -> None:
        pre = experiment.augmentation_config.preprocessing
        self.original = original
        self.height, self.width = pre.output_image_height, pre.output_image_width
        self._shares: dict[object, float] = {}  # of the time, by the shapes of a network

    @property
    def sizes(self) -> dict[str, Size]:
        """Shares by the name of the target, see `compress.prune.prune`."""
        return {"target_params": self.parameters, "target_macs": self.macs, "target_latency": self.latency}

    def parameters(self, network: Detector) -> float:
        """The share of the parameters."""
        from detectkit.model.detector import parameters

        return parameters(network) / parameters(self.original)

    def macs(self, network: Detector) -> float:
        """The share of the multiplications."""
        return self.gmacs(network) / self._gmacs

    def latency(self, network: Detector) -> float:
        """The share of the time and a margin, so that it also holds when it is measured again.

        Networks of the same widths have the same: it is measured once.
        """
        shapes = tuple(weight.shape for weight in network.parameters())
        if shapes not in self._shares:
            before, after = self.seconds(self.original, network)
            self._shares[shapes] = after / before
            log.info(
                f"{self.parameters(network):.4f} of the parameters take {after / before:.4f} of the time"
            )
        return self._shares[shapes] * (1 + MARGIN)

    def gmacs(self, network: Detector) -> float:
        """1e9 multiplications an image."""
        from detectkit.model.detector import gmacs

        return gmacs(network, self.height, self.width)

    def seconds(self, *networks: Detector) -> list[float]:
        """Seconds an image of each, compared side by side."""
        from detectkit.deploy.latency import latencies, onnx_run

        shown = progress(networks, total=len(networks), label="exporting", unit="networks")
        models = [self._original if network is self.original else self._onnx(network) for network in shown]
        limit = SECONDS * len(networks) / 2
        runs = [onnx_run(model, batch_size=1) for model in models]
        return latencies(runs, rounds=ROUNDS, time_limit=limit)

    def _onnx(self, network: Detector) -> bytes:
        from detectkit.deploy.onnx import to_onnx

        return to_onnx(network, height=self.height, width=self.width)

    @cached_property
    def _gmacs(self) -> float:
        return self.gmacs(self.original)

    @cached_property
    def _original(self) -> bytes:
        return self._onnx(self.original)


def _prune(job: Job, results: Path | None) -> Model:
    """Prune, with training in between if the spec says so."""
    from detectkit.compress.prune import prune
    from detectkit.compress.retrain import prune_and_retrain

    model, config, sizes = job.model, job.config, job.yardstick.sizes
    if config.iterations > 1:
        assert results is not None  # `_config` has asked for it
        with locked(results):
            return prune_and_retrain(model, job.experiment, config, results, sizes=sizes, teacher=job.path)
    pruned = prune(model.detector, config, experiment=job.experiment, sizes=sizes)
    if pruned.threshold is not None:
        text, aim = short(pruned.threshold), config.WhichOneof("aim")
        found = f", found for {aim}: the same again with -pth {text}" if aim in TARGETS else ""
        log.info(f"threshold {text}{found}")
    return model._replace(detector=pruned.detector)


def _measure(job: Job, pruned: Detector) -> Left | None:
    """What is left of the accuracy, with a warning where it is little; None: there is nothing to measure it on."""
    from detectkit.compress.accuracy import what_is_left

    left = what_is_left(job.model.detector, pruned, job.experiment)
    if left is None or left.share is None or job.config.iterations > 1:
        return left
    if left.share < LITTLE:
        log.warning(
            f"mAP {100 * left.after:.2f} is left of {100 * left.before:.2f}: training again may not bring it back;"
            f" {_advice(job.config)}"
        )
    return left


def _advice(config: PruningConfig) -> str:
    """What to change where little is left."""
    aim = config.WhichOneof("aim")
    less = f"raise {aim}" if aim in TARGETS else "lower threshold (-pth)"
    if config.criterion != PruningConfig.TAYLOR:
        return f"set criterion: TAYLOR with a target in pruning_config, or {less}"
    return f"{less}, or set iterations: 3 in pruning_config, which trains in between"


def _report(job: Job, pruned: Detector, left: Left | None) -> dict[str, float]:
    """Print what became of the layers and of the whole; gives TLT's figures, and mAP.

    Args:
        left: of the accuracy, where it was measured.
    """
    from detectkit.compress.prune import widths
    from detectkit.model.detector import parameters

    original, yardstick = job.model.detector, job.yardstick
    table(("layer", "filters", "kept"), widths(original, pruned), title="convolutions")
    before, after = parameters(original), parameters(pruned)
    sizes = [file.stat().st_size / 2**20 for file in (job.path, job.output)]
    macs = [yardstick.gmacs(network) for network in (original, pruned)]
    times = [1000 * seconds for seconds in yardstick.seconds(original, pruned)]
    rows = [
        ("parameters", f"{before:,}", f"{after:,}", f"{after / before:.4f}"),
        ("GMACs an image", *_compared(macs)),
        ("file, MiB", *_compared(sizes)),
        ("ONNX Runtime, ms an image", *_compared(times)),
    ]
    if left is not None:
        share = "-" if left.share is None else f"{left.share:.4f}"
        title = f"mAP %, of {left.images} validation images"
        rows.append((title, f"{100 * left.before:.2f}", f"{100 * left.after:.2f}", share))
    title = f"at {yardstick.width}x{yardstick.height}, on this machine's CPU"
    table(("", "before", "after", "after / before"), rows, title=title)
    ratio = after / before
    say(f"\nPruning ratio (pruned model / original model): {ratio:.6f}; removed: {1 - ratio:.2%}")
    _warn_of_size(job.config, ratio, times[1] / times[0])
    kpi = {"pruning_ratio": ratio, "size": sizes[1], "param_count": after / 1e6}
    if left is not None:
        kpi |= {"mean_average_precision_before": left.before, "mean_average_precision": left.after}
    if left is not None and left.share is not None:
        kpi["mean_average_precision_left"] = left.share
    return kpi


def _warn_of_size(config: PruningConfig, ratio: float, took: float) -> None:
    """Say where a pruning has missed what was wanted of it.

    Args:
        ratio: of the parameters.
        took: of the time.
    """
    if ratio == 1:
        log.warning(
            "nothing is left out: raise the threshold (-pth; --sweep shows what each one leaves) or lower"
            " min_num_filters (-nf)"
        )
    most = config.target_latency
    if config.HasField("target_latency") and took > most:
        log.warning(
            f"measured again it takes {took:.4f} of the time, more than the {most:g} of target_latency: times differ here"
            " from one minute to the next; prune again when the machine is idle, or aim lower"
        )


def _compared(values: list[float]) -> tuple[str, ...]:
    before, after = values
    return f"{before:.3f}", f"{after:.3f}", f"{after / before:.4f}"


def _retraining_text(job: Job, left: Left | None) -> str:
    from detectkit.trackers import without_key

    experiment, kept = without_key(job.experiment), left.share if left is not None else None
    again = spec.retraining_spec(experiment, job.output, job.config.retraining, kept=kept, teacher=job.path)
    return spec.dumps(again)


def _say_next(args: argparse.Namespace, job: Job) -> None:
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
    path = _retraining_path(job.output)
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


def _sweep(job: Job, plot: Path) -> None:
    """Print what thresholds leave of the network, and draw it."""
    from detectkit import draw
    from detectkit.compress.prune import Pruner

    yardstick, original = job.yardstick, job.model.detector
    networks = _networks(Pruner(original, job.config, job.experiment), yardstick)
    before, *times = yardstick.seconds(original, *networks.values())
    shares = {
        "parameters": [yardstick.parameters(network) for network in networks.values()],
        "MACs": [yardstick.macs(network) for network in networks.values()],
        "time": [seconds / before for seconds in times],
    }
    rows = [
        (short(threshold), *(f"{share:.4f}" for share in row), f"{1000 * seconds:.3f}")
        for threshold, *row, seconds in zip(networks, *shares.values(), times, strict=True)
    ]
    title = f"shares of the original, which takes {1000 * before:.3f} ms an image in ONNX Runtime here"
    table(("threshold", *shares, "ms"), rows, title=title)
    curves = {name: (list(networks), values) for name, values in shares.items()}
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


def _networks(pruner: Pruner, yardstick: Yardstick) -> Mapping[float, Detector]:
    """The networks of a sweep by their thresholds, ascending."""
    from detectkit.compress.prune import find_threshold

    found: dict[float, Detector] = {}
    for share in SWEEP:
        try:
            threshold = find_threshold(pruner, yardstick.parameters, share, name="target_params")
        except SpecError:  # smaller than the smallest
            if not found:
                raise
            break
        found.setdefault(threshold, pruner.pruned(threshold).detector)
    return found
