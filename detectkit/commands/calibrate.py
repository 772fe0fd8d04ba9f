"""Find the ranges of all values of a model on training images, for 8-bit networks; or give a cache a new version.

Options go before the spec's calibration_config.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS
from detectkit.commands.settings import Settings
from detectkit.console import StatusLog, log, progress, say, table
from detectkit.errors import UsageError
from detectkit.files import atomic_write, make_directory

if TYPE_CHECKING:
    from torch import Tensor

    from detectkit.deploy.calibrate import Layer
    from detectkit.deploy.scales import ScaleTable
    from detectkit.model.detector import Detector

# Those of deploy.scales, which imports too much for --help.
METHODS = ("mse", "minmax", "entropy", "percentile")  # the first is the default
BATCHES = 10
LEAST = 64  # images; with fewer, BCCD's ranges are on average more than 5 % off those of all its 292
SHOWN = 30  # layers on the terminal
NAMED = 5
# The options that stand for a field of calibration_config.
OPTIONS = {
    "method": "--method",
    "batches": "--batches",
    "batch_size": "--batch_size",
    "tensorrt_version": "--trt",
}
# What says how ranges are measured on images, besides --method.
MEASURING = ("batches", "batch_size", "tensorfile", "save_tensorfile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *SPEC_OPTIONS,
        dest="experiment_spec",
        type=Path,
        metavar="SPEC",
        help="a training spec, for calibration_config; for its training images (those in the model)",
    )
    parser.add_argument(
        "-m", "--model", type=Path, metavar="MODEL", help="a .safetensors model, or with -e an .hdf5 of TLT"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where scales.json, calibration.cache and layers.json go; with --retarget, the cache to write",
    )
    parser.add_argument(
        OPTIONS["method"],
        choices=METHODS,
        help="how ranges are chosen (mse; as learned, where a model was trained with enable_qat)",
    )
    parser.add_argument(
        OPTIONS["batches"],
        type=int,
        metavar="N",
        help=f"how many, evenly spread over the training images ({BATCHES}) or of a TensorFile (all)",
    )
    parser.add_argument(
        OPTIONS["batch_size"],
        type=int,
        metavar="N",
        help="images a batch (batch_size_per_gpu of the spec)",
    )
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        "--tensorfile",
        type=Path,
        metavar="FILE",
        help="take the images of a TensorFile of TLT (HDF5) instead",
    )
    files.add_argument(
        "--save-tensorfile", type=Path, metavar="FILE", help="also write the images to a TensorFile"
    )
    parser.add_argument(
        OPTIONS["tensorrt_version"],
        dest="tensorrt_version",
        metavar="VERSION",
        help="of TensorRT, that the cache is for (10.3.0)",
    )
    parser.add_argument(
        "--retarget",
        nargs=2,
        metavar=("VERSION", "CACHE"),
        help="only change the version of TensorRT in a cache, in place or into -o",
    )


def run(args: argparse.Namespace) -> None:
    if args.retarget:
        _retarget(args)
        return
    if args.model is None or args.output is None:
        raise UsageError("give a model (-m MODEL) and a folder for the results (-o DIR), or --retarget")
    for name in ("batches", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.tensorfile and args.batch_size:
        raise UsageError(
            "--batch_size is for images of the spec: the batches of --tensorfile are as they are"
        )
    experiment = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None

    from detectkit.deploy.cache import TENSORRT, version_number

    job = _job(args, experiment)
    tensorrt = job.settings.value("tensorrt_version") or TENSORRT
    try:
        version_number(tensorrt)  # refused before the work, not after it
    except UsageError as error:
        raise UsageError(f"{job.settings.title('tensorrt_version')}: {error}") from error
    status = StatusLog(make_directory(args.output) / "status.jsonl")
    status.write("Starting calibration.", status="STARTED")
    with status.failures():
        scales = _scales(args, job)
        layers = _write(args.output, job, scales, tensorrt)
    ratios = [layer.sqnr for layer in layers if layer.sqnr is not None]
    kpi = {"images": scales.images} | ({"lowest_sqnr": min(ratios)} if ratios else {})
    status.write("Calibration complete.", status="SUCCESS", kpi=kpi)
    _print(layers, scales)
    folder = args.output
    say(
        f"wrote {folder / 'scales.json'}, {folder / 'calibration.cache'} (TensorRT {tensorrt}) and {folder / 'layers.json'}"
    )
    given = f" -e {args.experiment_spec}" if args.experiment_spec else ""
    say(
        f"next: detectkit export{given} -m {args.model} -o {folder / 'model_int8.onnx'} --data_type int8"
        f" --calibration {folder / 'scales.json'}"
    )


def _retarget(args: argparse.Namespace) -> None:
    others = ("experiment_spec", "model", *OPTIONS, "tensorfile", "save_tensorfile")
    if any(getattr(args, name) is not None for name in others):
        raise UsageError("--retarget VERSION CACHE only takes -o FILE beside it")
    version, cache = args.retarget

    from detectkit.deploy.cache import retarget

    retarget(cache, version, args.output)
    say(f"wrote {args.output or cache}, for TensorRT {version}")


class _Job(NamedTuple):
    """What is calibrated, as which spec says, and how."""

    detector: Detector
    experiment: spec.Experiment
    settings: Settings  # of its calibration_config

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        pre = self.experiment.augmentation_config.preprocessing
        return pre.output_image_height, pre.output_image_width


def _job(args: argparse.Namespace, given: spec.Experiment | None) -> _Job:
    """The model, held to the spec."""
    from detectkit import runtimes
    from detectkit.model.detector import Detector
    from detectkit.predict import make_predictor

    network = runtimes.load(args.model, "cpu", experiment=given)
    if not isinstance(network.forward, Detector):
        raise UsageError(f"-m {args.model}: give the .safetensors model that it was made from")
    experiment = spec.spec_to_use(given, network.spec, network.file)
    make_predictor(network, experiment, "cpu")  # refuses one for other classes or channels
    section = given.calibration_config if given else spec.CalibrationConfig()
    settings = Settings(args, section, "calibration_config", OPTIONS)
    asked = any(getattr(args, name) is not None for name in MEASURING)
    if network.forward.ranges is not None and asked and not settings.value("method"):
        raise UsageError(
            f"{args.model} has learned its ranges in training: leave out what says how to measure them on images, or give"
            " --method too"
        )
    return _Job(network.forward, experiment, settings)


def _scales(args: argparse.Namespace, job: _Job) -> ScaleTable:
    """The ranges: those that quantisation-aware training has learned, unless a method is asked for, or those of the images."""
    from detectkit.deploy.calibrate import calibrate, table_of

    method = job.settings.value("method")
    if job.detector.ranges is not None and not method:
        log.info(f"{args.model} has learned its ranges in training: no images are read")
        return table_of(job.detector)
    count, batches = _batches(args, job)
    shown = progress(batches, total=count, label="calibrating", unit="batches")
    scales = calibrate(job.detector, shown, method=method or METHODS[0])
    if scales.images < LEAST:
        log.warning(
            f"{scales.images} images are few to calibrate with: ranges of fewer than {LEAST} depend on which they are;"
            " give more --batches"
        )
    return scales


def _batches(args: argparse.Namespace, job: _Job) -> tuple[int, Iterator[Tensor]]:
    """How many batches there are to calibrate with, and they themselves, [B, c, H, W] in [0, 1]."""
    from detectkit.deploy.tensorfile import write_tensorfile

    if args.tensorfile:
        return _stored(args.tensorfile, job.settings.value("batches"), job)
    count, batches = _training(job)
    if not args.save_tensorfile:
        return count, batches
    shown = progress(batches, total=count, label="writing", unit="batches")
    write_tensorfile(args.save_tensorfile, (batch.numpy() for batch in shown))
    say(f"wrote {args.save_tensorfile}")
    return _stored(args.save_tensorfile, None, job)


def _training(job: _Job) -> tuple[int, Iterator[Tensor]]:
    """Training images of the spec in full batches, without augmentation."""
    from detectkit.data.inputs import inputs, spread
    from detectkit.data.records import training_frames

    config, settings = job.experiment, job.settings
    images = training_frames(config.dataset_config, spec.class_names(config))
    size = min(settings.value("batch_size") or spec.batch_size(config), len(images))
    available, wanted = len(images) // size, settings.value("batches")
    count = min(wanted or BATCHES, available)
    if wanted and wanted > available:
        raise UsageError(
            f"{settings.text('batches')}: {len(images)} training images make {available} full batches of {size}"
        )
    order = spread(count * size, len(images))
    return count, inputs(images, config, order=order, batch_size=size)


def _stored(path: Path, wanted: int | None, job: _Job) -> tuple[int, Iterator[Tensor]]:
    """The first batches of a TensorFile, or all of them."""
    import torch

    from detectkit.deploy.tensorfile import read_tensorfile

    available, batches = read_tensorfile(path, job.detector.channels, *job.size)
    count = wanted or available
    if count > available:
        raise UsageError(f"{job.settings.text('batches')}: {path} has {available}")
    return count, (torch.from_numpy(batch) for batch in itertools.islice(batches, count))


def _write(folder: Path, job: _Job, scales: ScaleTable, tensorrt: str) -> list[Layer]:
    """Write the table, the cache and the report; gives the latter."""
    from detectkit.deploy.cache import write_cache
    from detectkit.deploy.calibrate import layer_report
    from detectkit.deploy.onnx import to_model
    from detectkit.deploy.scales import save_table
    from detectkit.model.graph import folded

    height, width = job.size
    save_table(folder / "scales.json", scales)
    write_cache(
        folder / "calibration.cache",
        scales,
        tensorrt=tensorrt,
        graph=to_model(job.detector, height=height, width=width),
    )
    layers = layer_report(scales, folded(job.detector))
    content: dict[str, Any] = {
        "method": scales.method,
        "images": scales.images,
        "layers": [layer._asdict() | {"range": layer.range._asdict()} for layer in layers],
    }
    with atomic_write(folder / "layers.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return layers


def _print(layers: list[Layer], scales: ScaleTable) -> None:
    hurt = [layer.name for layer in layers if layer.hurts]
    origin = "learned ranges" if scales.method == "qat" else f"{scales.images} images, {scales.method}"
    headers = ["convolution", "lowest", "highest", "range", "input", "weights", "one scale", "both"]
    table(
        headers + ([""] if hurt else []),
        [[*_cells(layer), *(["hurts" if layer.hurts else ""] if hurt else [])] for layer in layers[:SHOWN]],
        title=f"{origin}: what the convolutions read, and signal to noise in 8 bits (dB), the worst first",
    )
    if len(layers) > SHOWN:
        say(f"… and {len(layers) - SHOWN} better ones, see layers.json")
    if hurt:
        more = f" and {len(hurt) - NAMED} more" if len(hurt) > NAMED else ""
        log.warning(
            f"{len(hurt)} of {len(layers)} convolutions hurt: {', '.join(hurt[:NAMED])}{more}; detectkit export"
            " --max-drop finds which of them must stay in float"
        )


def _cells(layer: Layer) -> list[str]:
    values = layer.range
    ranges = [f"{value:.3g}" for value in (values.low, values.high, values.amax)]
    ratios = (values.sqnr, layer.weight, layer.weight_per_tensor, layer.sqnr)
    return [layer.name, *ranges, *map(_decibels, ratios)]


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
