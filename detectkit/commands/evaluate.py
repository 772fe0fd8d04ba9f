"""Measure a model on the validation images of a spec, or detections in KITTI files on labels, no model needed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detectkit import spec
from detectkit.commands.options import (
    add_device_arguments,
    add_ignored_argument,
    add_spec_argument,
    choose_device,
)
from detectkit.console import log, say, table
from detectkit.errors import DataError, OutputError, UsageError
from detectkit.files import atomic_write, check_writable, make_directory

if TYPE_CHECKING:
    from detectkit.evaluation import Evaluation
    from detectkit.evaluation.advice import Finding
    from detectkit.evaluation.details import Details
    from detectkit.evaluation.results import ClassMistakes, Kinds
    from detectkit.evaluation.rules import Advice
    from detectkit.runtimes import Network
    from detectkit.tune import Tuned

PLOT = "precision_recall.png"
KITTI_RECALLS = 41  # objects that a class needs to reach an AP of 100 % by the protocol KITTI
FRAMEWORKS = {"tlt": "model", "tensorrt": "engine"}  # TLT's names of what runs a model file


class Measured(NamedTuple):
    """What is written of a measurement."""

    result: Evaluation
    details: Details | None = None  # of a model with the clustering of the spec
    tuned: Tuned | None = None  # with --tune-clustering
    findings: Sequence[Finding] = ()  # what ails the network
    changes: Sequence[Advice] = ()  # of the spec, the best first
    note: str = ""  # why neither is told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, required=False, help="a training spec (the one in the model)")
    parser.add_argument(
        "-m", "--model_path", type=Path, metavar="MODEL", help="a model, ONNX model or TensorRT engine"
    )
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        metavar="DIR",
        help="where results.json, details.npz and the plot go",
    )
    parser.add_argument(
        "--use_training_set", action="store_true", help="measure on the training images instead"
    )
    parser.add_argument(
        "--tune-clustering", action="store_true", help="find the best DBSCAN values for each class"
    )
    parser.add_argument(
        "--detections", type=Path, metavar="DIR", help="KITTI files to measure instead of a model"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="DIR", help="KITTI labels that --detections are measured on"
    )
    parser.add_argument("-f", "--framework", choices=list(FRAMEWORKS), help=argparse.SUPPRESS)
    add_device_arguments(parser)
    for names in (("-i", "--image_dir"), ("-l", "--label_dir"), ("-b", "--batch_size")):
        reason = "not used; images, labels and batch size are those of the spec"
        add_ignored_argument(parser, *names, metavar="X", reason=reason)


def run(args: argparse.Namespace) -> None:
    _check_usage(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None
    if args.results_dir:
        check_writable(args.results_dir / "results.json")

    from detectkit.evaluation import advice, evaluate_files, require_package

    if given:  # before any work; without one, the model has to be read first
        require_package(given.evaluation_config)
    if args.detections:
        assert given  # `_check_usage` has asked for it
        result = evaluate_files(args.detections, args.labels, given)
        measured = Measured(
            result, findings=advice.findings(result, given), changes=advice.changes(result, given)
        )
    else:
        measured = _evaluate_model(args, given)
    _print(measured.result)
    _print_advice(measured)
    if measured.tuned:
        say(
            f"before tuning, mAP {_percent(measured.tuned.before.mean_average_precision)} %; the tuned figures above are measured"
            " on the very images that the values were tuned on: measure other images to know what was gained"
        )
    if args.results_dir:
        _write(args, measured)


def _check_usage(args: argparse.Namespace) -> None:
    if bool(args.model_path) == bool(args.detections):
        raise UsageError("give a model (-m MODEL), or detections and labels (--detections DIR --labels DIR)")
    if args.detections and args.experiment_spec is None:
        raise UsageError("--detections: give the spec too (-e SPEC), which has the classes")
    if bool(args.detections) != bool(args.labels):
        raise UsageError("--detections and --labels belong together")
    if args.tune_clustering and not args.model_path:
        raise UsageError("--tune-clustering needs a model (-m MODEL)")
    if args.use_training_set and args.detections:
        raise UsageError(
            "--use_training_set is for a model (-m MODEL): --detections are measured on --labels"
        )
    if args.framework and args.model_path:
        _check_framework(args)


def _evaluate_model(args: argparse.Namespace, given: spec.Experiment | None) -> Measured:
    """The results, with --tune-clustering those of the values that it finds.

    Args:
        given: the spec; None: the one in the model.
    """
    from detectkit import runtimes
    from detectkit.evaluation import evaluate, require_package
    from detectkit.evaluation.collect import Collector
    from detectkit.evaluation.predictions import measured_images, predictions
    from detectkit.predict import make_predictor
    from detectkit.train.step import validation_cost
    from detectkit.tune import tune_clustering

    device = choose_device(args)
    network = runtimes.load(args.model_path, device, experiment=given)
    experiment = spec.spec_to_use(given, network.spec, network.file)
    config = experiment.evaluation_config
    require_package(config)
    predictor = make_predictor(network, experiment, device)
    if not args.use_training_set and experiment.dataset_config.WhichOneof("dataset_split_type") is None:
        raise DataError("the spec has no validation_fold or validation_data_source: give --use_training_set")
    names = predictor.class_names
    images = measured_images(experiment, names, training=args.use_training_set)
    predicted = predictions(predictor, experiment, images=images)
    if args.tune_clustering:
        tuned = tune_clustering(predicted, predictor.head, experiment)
        predictor.seen.warn_of_larger()
        say(f"put this into the spec, in place of its postprocessing_config:\n\n{tuned.block}")
        return Measured(tuned.evaluation, tuned=tuned)
    balance = predictor.head.balance()
    collector = Collector(names, config, images) if args.results_dir else None
    result = evaluate(
        collector.watch(predicted) if collector else predicted,
        names,
        config,
        geometry=predictor.head.geometry,
        cost=lambda batch: validation_cost(balance, predictor.head, batch),
    )
    predictor.seen.warn_of_larger()
    details = collector.details(result) if collector else None
    return _judged(args, network, experiment, Measured(result, details))


def _judged(
    args: argparse.Namespace, network: Network, experiment: spec.Experiment, measured: Measured
) -> Measured:
    """With what ails the network, and what to change."""
    from detectkit.evaluation import advice
    from detectkit.evaluation.trained import training_figures

    if _is_cut(network):
        return measured._replace(
            note="the model is pruned and not trained again yet: what it gets wrong says nothing of the spec"
        )
    result = measured.result
    is_alike = not spec.is_measured_otherwise(network.spec, experiment)
    own = training_figures(args.model_path) if is_alike and not args.use_training_set else {}
    heart = advice.by_heart(own, result, experiment, of="its")
    return measured._replace(
        findings=[*([heart] if heart else []), *advice.findings(result, experiment)],
        changes=advice.changes(result, experiment, own=own, sees=_sees(network)),
    )


def _sees(network: Network) -> int | None:
    """Side in pixels of what a cell sees; None where the file does not tell its layers."""
    from detectkit.model.detector import Detector
    from detectkit.model.operators import receptive_field

    detector = network.forward
    return receptive_field(detector.backbone) if isinstance(detector, Detector) else None


def _is_cut(network: Network) -> bool:
    """Whether a model has fewer channels than its spec asks for, and was not trained so."""
    import torch

    from detectkit.model.detector import Detector, build, parameters

    detector, config = network.forward, network.spec.model_config
    if not isinstance(detector, Detector) or config.load_graph:
        return False
    with torch.device("meta"):
        whole = build(config, network.class_names, network.channels)
    return parameters(detector) < parameters(whole)


def _check_framework(args: argparse.Namespace) -> None:
    """The file's name decides what runs it; -f may only agree."""
    from detectkit.runtimes import kind

    found = kind(args.model_path)
    if found != FRAMEWORKS[args.framework]:
        names = {"model": "a .safetensors model", "onnx": "an ONNX model", "engine": "a TensorRT engine"}
        raise UsageError(
            f"-f {args.framework}: {args.model_path} is {names[found]} by its name: leave -f out"
        )


def _print(result: Evaluation) -> None:
    headers = [
        "class",
        "AP %",
        "precision %",
        "recall %",
        "F1 %",
        "at score",
        "labels",
        "detections",
        "correct",
    ]
    rows = [
        [
            item.name,
            _percent(item.average_precision),
            _percent(item.precision),
            _percent(item.recall),
            _percent(item.f1),
            "-" if item.threshold is None else f"{item.threshold:.3f}",
            item.ground_truth,
            item.detections,
            item.true_positives,
        ]
        for item in result.classes
    ]
    counted = {"VOC": "", "KITTI": "; KITTI's moderate objects", "COCO": "; at IoU 0.5, AP over 0.5 to 0.95"}
    title = f"{result.images} images (precision, recall and score where F1 is best{counted[result.protocol]})"
    table(headers, rows, title=title)
    if result.mean_figures:
        _print_figures(result)
    lines = "line" if result.rejected == 1 else "lines"
    rejected = f" ({result.rejected} unusable label {lines} left out)" if result.rejected else ""
    say(f"\nmAP {_percent(result.mean_average_precision)} %{rejected}")
    _warn_of_classes(result)
    if result.latency:
        stages = [f"{name} {1000 * seconds:.1f}" for name, seconds in result.latency._asdict().items()]
        say(f"median latency, ms an image: {', '.join(stages)} (preprocessing excludes decoding)")


def _print_advice(measured: Measured) -> None:
    """What mistakes cost, what ails the network, and what to change."""
    from detectkit.evaluation import rules

    result = measured.result
    if result.mean_average_precision is not None and result.sizes:
        say(f"mistakes cost, points of AP: {_costs(result.mean_costs)}")
        low, high = result.sizes
        titles = f"up to {low:.0f} px", f"to {high:.0f} px", "larger"
        parts = [
            f"{title}: {_costs(costs, least=0.005)}"
            for title, costs in zip(titles, result.mean_costs_by_size)
            if max(costs) >= 0.005
        ]
        if parts:
            say(f"of objects {'; '.join(parts)}")
    for finding in measured.findings:
        log.warning(finding.text)
    if measured.note:
        say(measured.note)
    if measured.changes:
        for line in rules.told(measured.changes):
            say(line)


def _costs(costs: Kinds, *, least: float = 0.0) -> str:
    """Those of at least `least`, in words."""
    from detectkit.evaluation.results import TITLES

    named = zip(TITLES, costs, strict=True)
    return ", ".join(f"{title} {100 * value:.1f}" for title, value in named if value >= least)


def _warn_of_classes(result: Evaluation) -> None:
    """Name those with too few labels to be measured."""
    if result.mean_average_precision is None:
        log.warning(
            f"no class has a labelled box that counts in these {result.images} images, so there is neither AP nor mAP;"
            " detectkit check -e SPEC counts the labels"
        )
        return
    for item in result.classes:
        if item.average_precision is None:
            log.warning(f"{item.name} has no labelled box here, so it has no AP and does not count for mAP")
        elif result.protocol == "KITTI" and item.ground_truth < KITTI_RECALLS:
            log.warning(
                f"{item.name} has {item.ground_truth} moderate objects here: KITTI samples {KITTI_RECALLS} recalls, so with"
                " fewer objects AP stays below 100 % even where all are found"
            )


def _print_figures(result: Evaluation) -> None:
    """The protocol's own figures, and their means over the classes."""
    keys = list(result.mean_figures)
    rows = [[item.name, *(_percent(item.figures[key]) for key in keys)] for item in result.classes]
    rows.append(["mean", *map(_percent, result.mean_figures.values())])
    table(["class", *(key.replace("_", " ") for key in keys)], rows, title=f"as {result.protocol} counts, %")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _write(args: argparse.Namespace, measured: Measured) -> None:
    from detectkit import draw
    from detectkit.evaluation import details

    folder = make_directory(args.results_dir)
    written = [folder / "results.json"]
    with atomic_write(folder / "results.json") as path:
        path.write_text(json.dumps(_content(args, measured), indent=2) + "\n", encoding="utf-8")
    if measured.details:
        details.save(folder / details.FILE, measured.details)
        written.append(folder / details.FILE)
    else:
        _remove(folder / details.FILE)  # an earlier one, of other detections
    result = measured.result
    curves = {
        item.name: (item.recall_curve, item.precision_curve)
        for item in result.classes
        if item.detections and item.ground_truth
    }
    if curves:
        written.append(folder / PLOT)
        with atomic_write(written[-1]) as path:
            draw.precision_recall(path, curves, title=_title(result))
    else:
        _remove(folder / PLOT)
    *first, last = map(str, written)
    say(f"wrote {', '.join(first)} and {last}" if first else f"wrote {last}")
    if args.model_path:
        with_spec = f" -e {args.experiment_spec}" if args.experiment_spec else ""
        say(f"next: detectkit infer{with_spec} -m {args.model_path} -i IMAGES -r DIR")


def _content(args: argparse.Namespace, measured: Measured) -> dict[str, Any]:
    """What results.json holds."""
    result, tuned = measured.result, measured.tuned
    content: dict[str, Any] = {
        "spec": str(args.experiment_spec or args.model_path),
        "measured": str(args.model_path or args.detections),
        "images": result.images,
        "mean_average_precision": result.mean_average_precision,
        "protocol": result.protocol,
        "classes": {item.name: _without_curves(item._asdict()) for item in result.classes},
    }
    if result.mean_figures:
        content["mean_figures"] = result.mean_figures
    if result.rejected:
        content["unusable_label_lines"] = result.rejected
    if tuned:
        content["mean_average_precision_before_tuning"] = tuned.before.mean_average_precision
        content["measured_on_the_images_tuned_on"] = True
        content["tuned_spec_block"] = tuned.block
    else:
        content["mistakes"] = {item.name: _mistakes(item) for item in result.mistakes}
        content["findings"] = [finding.entry() for finding in measured.findings]
        content["advice"] = [item.entry() for item in measured.changes]
        content["mistake_costs"] = result.mean_costs._asdict()
        content["mistake_costs_by_size"] = [
            {"up_to": bound} | costs._asdict()
            for bound, costs in zip((*(result.sizes or ()), None), result.mean_costs_by_size)
        ]
        if result.confusion:
            content["confusion"] = result.confusion._asdict()
    if result.cost is not None:
        content["validation_cost"] = result.cost
    if result.latency:
        content["latency_seconds_per_image"] = result.latency._asdict()
    return content


def _title(result: Evaluation) -> str:
    mean = result.mean_average_precision
    return f"mAP {'-' if mean is None else f'{mean:.3f}'}"


def _mistakes(item: ClassMistakes) -> dict[str, Any]:
    """An entry of `mistakes`."""
    content = {key: _plain(value) for key, value in item._asdict().items()}
    del content["name"]
    return content


def _plain(value: Any) -> Any:
    """Named tuples as objects of JSON."""
    if hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot remove {path}, which is of another measurement: {error.strerror}"
        ) from error


def _without_curves(item: dict[str, Any]) -> dict[str, Any]:
    """A class's entry; `figures` only where the protocol has any."""
    kept = {key: value for key, value in item.items() if not key.endswith("_curve") and key != "name"}
    if not kept["figures"]:
        del kept["figures"]
    return kept
