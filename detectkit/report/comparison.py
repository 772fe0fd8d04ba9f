"""Models side by side, measured on the same images: accuracy by class, size, time, and how far they find the same."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detectkit import draw, page, runtimes, spec
from detectkit.deploy.export import image_size
from detectkit.deploy.latency import deployed, latencies
from detectkit.evaluation import Evaluation, evaluate
from detectkit.evaluation.agreement import Agreement, agreement
from detectkit.evaluation.predictions import predictions
from detectkit.ops.cluster import Detections
from detectkit.predict import Predicted, Predictor, make_predictor


class ComparedModel(NamedTuple):
    """One model."""

    path: Path
    name: str  # short, see `short_names`
    kind: str  # see `runtimes.Network`
    megabytes: float  # 2^20 bytes
    result: Evaluation
    runtime: str  # that the time is measured in
    seconds: float  # the network alone on one image, see `deploy.latency.deployed`
    agreement: Agreement  # with the first model


def compare(
    paths: Sequence[Path], experiment: spec.Experiment, names: Sequence[str], device: torch.device
) -> list[ComparedModel]:
    """Measure models on the validation images of a spec, and their times in turns.

    Args:
        paths: of models, ONNX files and engines; the first is the measure of the others.
        names: short ones, one a model.

    Raises:
        ModelError: a file is not a usable model, or not one for the spec.
        DataError: the spec has no validation images, or one cannot be read.
    """
    networks = [runtimes.load(path, device, experiment=experiment) for path in paths]
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
        ComparedModel(
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
    found: list[Detections] = []

    def kept() -> Iterator[Predicted]:
        for predicted in predictions(predictor, experiment, label=label):
            found.extend(predicted.in_original_pixels())
            yield predicted

    return evaluate(kept(), predictor.class_names, experiment.evaluation_config), found


def title(compared: Sequence[ComparedModel]) -> str:
    """What the columns of `rows` mean."""
    images = compared[0].result.images
    return (
        f"{images} images; ms: the network alone on one image, as it would be deployed here; faster: times, than the first"
        " model; agree: detections that are those of the first model, at IoU 0.5"
    )


def rows(compared: Sequence[ComparedModel]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for each model."""
    first = compared[0]
    names = [item.name for item in first.result.classes]
    headers = ["model", "MiB", "mAP %", *(f"{name} %" for name in names), "ms", "faster", "agree %"]
    found = [
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
    return headers, found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def as_json(item: ComparedModel) -> dict[str, Any]:
    """The figures of one model for a JSON file."""
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


def as_page(spec_path: Path, compared: Sequence[ComparedModel]) -> str:
    """An HTML page of its own: the table, and precision over recall of every class."""
    headers, cells = rows(compared)
    return page.page(
        "Models side by side",
        page.paragraph(f"{spec_path}: {title(compared)}"),
        page.table(headers, cells),
        page.heading("Precision and recall"),
        page.pictures(
            (_curves(number, compared), own.name) for number, own in enumerate(compared[0].result.classes)
        ),
    )


def _curves(number: int, compared: Sequence[ComparedModel]) -> bytes:
    """Precision over recall of one class, a line for each model."""
    picture = io.BytesIO()
    series = {
        item.name: (own.recall_curve, own.precision_curve)
        for item in compared
        for own in [item.result.classes[number]]
        if own.detections and own.ground_truth
    }
    draw.precision_recall(picture, series, title=compared[0].result.classes[number].name)
    return picture.getvalue()
