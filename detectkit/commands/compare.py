"""Measure several models side by side: accuracy by class, size, time, and how far they find the same."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detectkit import page, spec
from detectkit.commands.options import add_device_arguments, add_spec_argument, choose_device
from detectkit.console import log, say, table
from detectkit.files import atomic_write, check_writable, make_directory, short_names

if TYPE_CHECKING:
    from detectkit.evaluation import Evaluation
    from detectkit.evaluation.agreement import Agreement
    from detectkit.ops.cluster import Detections
    from detectkit.predict import Predictor

JSON, HTML = "compare.json", "compare.html"


class Compared(NamedTuple):
    """One model."""

    path: Path
    name: str  # short, see `short_names`
    kind: str  # see `runtimes.Network`
    megabytes: float  # 2^20 bytes
    result: Evaluation
    runtime: str  # that the time is measured in
    seconds: float  # the network alone on one image, see `deploy.latency.deployed`
    agreement: Agreement  # with the first model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec: its validation images are measured")
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="models, ONNX files, engines; the first is the measure",
    )
    parser.add_argument(
        "-r", "--results_dir", type=Path, metavar="DIR", help="where compare.json and compare.html go"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    names = short_names(args.models)
    experiment = spec.load_experiment(args.experiment_spec)
    if args.results_dir:
        check_writable(args.results_dir / JSON)

    from detectkit.evaluation import require_package

    require_package(experiment.evaluation_config)
    compared = _compare(args, experiment, names)
    headers, rows = _rows(compared)
    table(headers, rows, title=_title(compared))
    if compared[0].result.mean_average_precision is None:
        log.warning(
            "no class has a labelled box that counts in these images: there is no mAP to compare, only size, time and agreement"
        )
    if args.results_dir:
        _write(args, compared)


def _compare(args: argparse.Namespace, experiment: spec.Experiment, names: Sequence[str]) -> list[Compared]:
    from detectkit import runtimes
    from detectkit.deploy.export import image_size
    from detectkit.deploy.latency import deployed, latencies
    from detectkit.evaluation.agreement import agreement
    from detectkit.predict import make_predictor

    device = choose_device(args)
    networks = [runtimes.load(path, device, experiment=experiment) for path in args.models]
    # All of them before the first is measured: one that does not fit is known at once.
    predictors = [make_predictor(network, experiment, device) for network in networks]
    measured = [
        _measure(predictor, experiment, name) for predictor, name in zip(predictors, names, strict=True)
    ]
    size = image_size(experiment)
    timed = [deployed(network, device, size=size) for network in networks]
    times = latencies([item.run for item in timed])
    _, first = measured[0]
    return [
        Compared(
            path=network.file,
            name=name,
            kind=network.kind,
            megabytes=network.file.stat().st_size / 2**20,
            result=result,
            runtime=item.runtime,
            seconds=seconds,
            agreement=agreement(first, found),
        )
        for network, name, (result, found), item, seconds in zip(
            networks, names, measured, timed, times, strict=True
        )
    ]


def _measure(
    predictor: Predictor, experiment: spec.Experiment, label: str
) -> tuple[Evaluation, list[Detections]]:
    """Accuracy, and the detections that it comes from, in the pixels of the image files."""
    from detectkit.evaluation import evaluate
    from detectkit.evaluation.images import predictions

    found: list[Detections] = []

    def kept() -> Any:
        for predicted in predictions(predictor, experiment, label=label):
            found.extend(predicted.in_original_pixels())
            yield predicted

    return evaluate(kept(), predictor.class_names, experiment.evaluation_config), found


def _title(compared: Sequence[Compared]) -> str:
    images = compared[0].result.images
    return (
        f"{images} images; ms: the network alone on one image, as it would be deployed here; faster: times, than the first"
        " model; agree: detections that are those of the first model, at IoU 0.5"
    )


def _rows(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for each model."""
    first = compared[0]
    names = [item.name for item in first.result.classes]
    headers = ["model", "MiB", "mAP %", *(f"{name} %" for name in names), "ms", "faster", "agree %"]
    rows = [
        [
            item.name,
            f"{item.megabytes:.2f}",
            _percent(item.result.mean_average_precision),
            *(_percent(own.average_precision) for own in item.result.classes),
            f"{1000 * item.seconds:.1f}",
            f"{first.seconds / item.seconds:.2f}",
            f"{100 * item.agreement.share:.2f}",
        ]
        for item in compared
    ]
    return headers, rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _write(args: argparse.Namespace, compared: Sequence[Compared]) -> None:
    folder = make_directory(args.results_dir)
    content = {"spec": str(args.experiment_spec), "models": [_content(item) for item in compared]}
    with atomic_write(folder / JSON) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_write(folder / HTML) as path:
        path.write_text(_page(args.experiment_spec, compared), encoding="utf-8")
    say(f"wrote {folder / JSON} and {folder / HTML}")


def _content(item: Compared) -> dict[str, Any]:
    return {
        "model": str(item.path),
        "kind": item.kind,
        "size_mib": item.megabytes,
        "mean_average_precision": item.result.mean_average_precision,
        "average_precision": {own.name: own.average_precision for own in item.result.classes},
        "runtime": item.runtime,
        "network_seconds_per_image": item.seconds,
        "agreement": {
            "share": item.agreement.share,
            "mean_iou": item.agreement.mean_iou,
            "pairs": item.agreement.pairs,
            "detections": item.agreement.second,
        },
    }


def _page(spec_path: Path, compared: Sequence[Compared]) -> str:
    headers, rows = _rows(compared)
    return page.page(
        "Models side by side",
        page.paragraph(f"{spec_path}: {_title(compared)}"),
        page.table(headers, rows),
        page.heading("Precision and recall"),
        page.pictures(
            (_curves(number, compared), own.name) for number, own in enumerate(compared[0].result.classes)
        ),
    )


def _curves(number: int, compared: Sequence[Compared]) -> bytes:
    """Precision over recall of one class, a line for each model."""
    from detectkit import draw

    picture = io.BytesIO()
    series = {
        item.name: (own.recall_curve, own.precision_curve)
        for item in compared
        for own in [item.result.classes[number]]
        if own.detections and own.ground_truth
    }
    draw.precision_recall(picture, series, title=compared[0].result.classes[number].name)
    return picture.getvalue()
