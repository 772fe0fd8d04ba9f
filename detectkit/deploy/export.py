"""From a model to an ONNX file of 32, 16 or 8 bits, checked against PyTorch on the way."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
import torch
from torch import Tensor

from detectkit import runtimes, spec
from detectkit.data.inputs import inputs, spread
from detectkit.data.records import training_frames
from detectkit.deploy.half import half
from detectkit.deploy.nms import add_nms
from detectkit.deploy.onnx import OPSET, check_against, to_model
from detectkit.deploy.qdq import Runtime, quantize
from detectkit.deploy.scales import ScaleTable, dump_table
from detectkit.errors import ModelError, SpecError
from detectkit.evaluation import evaluate
from detectkit.evaluation.predictions import predictions
from detectkit.model.detector import Detector
from detectkit.model.header import seal
from detectkit.predict import load_model, make_predictor
from detectkit.runtimes.onnx import add_header
from detectkit.spec import Experiment
from detectkit.trackers import without_key

# Greatest differences from PyTorch on random images. 8 bits are for the images that they were calibrated on: their maps
# need only be more than noise (dB). Ranges that are right gave 15 and more, those of nothing -6 to 3.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": math.inf}
LEAST_SQNR = {"fp32": -math.inf, "fp16": -math.inf, "int8": 3.0}


class ExportSource(NamedTuple):
    """A model, and the spec that goes into its file: the size of its images, and how to cluster."""

    detector: Detector
    experiment: Experiment
    class_names: list[str]


class Target(NamedTuple):
    """What is written."""

    data_type: Literal["fp32", "fp16", "int8"] = "fp32"
    runtime: Runtime = "tensorrt"  # that an int8 file is made for
    per_channel: bool = True  # int8: a scale for each filter of a weight
    opset: int = OPSET
    batch: int | None = None  # None: any
    nms: bool = False  # decoding and NMS in the file


class Exported(NamedTuple):
    """A finished file."""

    content: bytes
    difference: float  # the greatest from PyTorch's maps on random images, see `check_against`


def load_source(path: Path, given: Experiment | None) -> ExportSource:
    """A model file, and the spec that is given, or else its own.

    Args:
        path: of a .safetensors model, or with a spec of an .hdf5 of TLT.

    Raises:
        ModelError: the file is exported already, is not a usable model, or not one for the spec.
        SpecError: the images of the spec do not fit the network's stride.
    """
    if runtimes.kind(path) != "model":
        raise ModelError(f"{path} is exported already: give the .safetensors model that it was made from")
    network = runtimes.load(path, "cpu", experiment=given)
    detector, experiment = network.forward, spec.spec_to_use(given, network.spec, network.file)
    assert isinstance(detector, Detector)
    make_predictor(network, experiment, "cpu")  # it refuses a spec of another model
    multiple = detector.outline.multiple
    if any(side % multiple for side in image_size(experiment)):
        height, width = image_size(experiment)
        raise SpecError(
            f"output_image_width and output_image_height must be multiples of {multiple} for this network,"
            f" got {width}x{height}"
        )
    return ExportSource(detector, experiment, network.class_names)


def float_model(source: ExportSource, target: Target) -> onnx.ModelProto:
    """The network in 32 bits; where 8 are to be made of it, it has been found to compute what PyTorch does.

    Raises:
        UsageError: there is no such opset, or NMS is asked for and the spec clusters in another way.
        ModelError: it does not compute the same.
    """
    height, width = image_size(source.experiment)
    model = to_model(source.detector, height=height, width=width, opset=target.opset, batch=target.batch)
    if target.nms:
        add_nms(model, source.experiment, source.detector.outline)  # for its refusal, before long work
    if target.data_type == "int8":  # `finish` checks the others
        check_against(source.detector, model.SerializeToString(), tolerance=TOLERANCES["fp32"])
    return model


def image_size(experiment: Experiment) -> tuple[int, int]:
    """Height and width of the network's input."""
    pre = experiment.augmentation_config.preprocessing
    return pre.output_image_height, pre.output_image_width


def int8_model(
    model: onnx.ModelProto, ranges: ScaleTable, target: Target, float_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """A float model in 8 bits, some layers left as they are; see `quantize`."""
    return quantize(
        model,
        ranges,
        runtime=target.runtime,
        per_channel=target.per_channel,
        float_layers=float_layers,
    )


def finish(
    model: onnx.ModelProto, source: ExportSource, target: Target, ranges: ScaleTable | None = None
) -> Exported:
    """Make a file of the model of `float_model`, or for int8 of `int8_model`: all that evaluate and infer need is inside.

    Args:
        ranges: that an int8 model was made with.

    Raises:
        ModelError: it does not run in ONNX Runtime, or does not compute what PyTorch does, in 8 bits not even nearly.
    """
    if target.data_type == "fp16":
        model = half(model)
    if target.nms:
        model = add_nms(model, source.experiment, source.detector.outline)
    _describe(model, source, target, ranges)
    content = seal(model.SerializeToString())
    difference = check_against(
        source.detector,
        content,
        tolerance=TOLERANCES[target.data_type],
        least_sqnr=LEAST_SQNR[target.data_type],
    )
    return Exported(content, difference)


def check_ranges(model: onnx.ModelProto, source: ExportSource, ranges: ScaleTable) -> None:
    """Refuse ranges by which nothing but noise would be left of a model, where another program quantises it.

    Args:
        model: as `float_model` gives it for other data types than int8.

    Raises:
        ModelError: 8 bits of these ranges give noise.
    """
    quantised = int8_model(model, ranges, Target(data_type="int8")).SerializeToString()
    check_against(source.detector, quantised, tolerance=TOLERANCES["int8"], least_sqnr=LEAST_SQNR["int8"])


def accuracy(
    model: onnx.ModelProto, source: ExportSource, target: Target, device: str | torch.device
) -> float:
    """mAP of a model on the validation images of its spec, in ONNX Runtime, in points.

    Raises:
        DataError: the spec has no such images, or no class has a labelled box in them.
    """
    described = onnx.ModelProto()
    described.CopyFrom(model)
    _describe(described, source, target, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(described.SerializeToString())
        predictor = load_model(path, device, experiment=source.experiment)
    predicted = predictions(predictor, source.experiment, label="measuring")
    found = evaluate(predicted, source.class_names, source.experiment.evaluation_config)
    return 100 * found.required_mean()


def sample_images(source: ExportSource, count: int) -> Tensor:
    """Training images [N, c, H, W], at most `count` of them, evenly spread."""
    images = training_frames(source.experiment.dataset_config, source.class_names)
    order = spread(min(count, len(images)), len(images))
    return torch.cat(list(inputs(images, source.experiment, order=order, batch_size=len(order))))


def _describe(
    model: onnx.ModelProto, source: ExportSource, target: Target, ranges: ScaleTable | None
) -> None:
    add_header(
        model,
        spec_text=spec.dumps(without_key(source.experiment)),
        class_names=source.class_names,
        channels=source.detector.channels,
        outline=source.detector.outline,
        data_type=target.data_type,
        scales=dump_table(ranges) if ranges else None,
    )
