"""Write a model as ONNX, checked against PyTorch: 32, 16 or 8 bits, for TensorRT, DeepStream and ONNX Runtime.

Options go before the spec's export_config.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import (
    SPEC_OPTIONS,
    add_device_arguments,
    add_ignored_argument,
    choose_device,
)
from detectkit.commands.settings import Settings
from detectkit.console import StatusLog, log, say, table
from detectkit.errors import ModelError, SpecError, UsageError
from detectkit.files import atomic_write, check_writable, make_directory
from detectkit.spec.networks import is_keras

if TYPE_CHECKING:
    import onnx

    from detectkit.deploy.export import Source, Target
    from detectkit.deploy.scales import ScaleTable

SUFFIX = ".onnx"
MODEL_SUFFIX = ".safetensors"
CACHE = "calibration.cache"  # what `detectkit calibrate` writes beside the table
# The options that stand for a field of export_config.
OPTIONS = {
    "data_type": "--data_type",
    "runtime": "--runtime",
    "per_tensor": "--per-tensor",
    "max_drop": "--max-drop",
    "target_opset": "--target_opset",
    "static_batch_size": "--static_batch_size",
    "nms": "--nms",
    "gen_ds_config": "--gen_ds_config",
}
# The other options that say what an ONNX file is like.
OF_ONNX = {
    "calibration": "--calibration",
    "cal_json_file": "--cal_json_file",
    "cal_cache_file": "--cal_cache_file",
    "max_batch_size": "--max_batch_size",
}
ANY_BATCH = -1
RANKED_ON = 16  # training images that say which layers hurt
# Options of TLT's export that other commands serve here, and what does; the first ones take a value.
CALIBRATION, ENGINE = (
    "calibration is a command of its own: detectkit calibrate",
    "engines are built by detectkit engine",
)
VALUES_ELSEWHERE = {
    "--cal_data_file": f"{CALIBRATION} --tensorfile FILE",
    "--cal_image_dir": f"{CALIBRATION} takes the training images of the spec",
    "--batches": f"{CALIBRATION} --batches N",
    "--batch_size": f"{CALIBRATION} --batch_size N",
    "--engine_file": f"{ENGINE} -m MODEL.onnx -o FILE",
    "--max_workspace_size": f"{ENGINE} --max_workspace_size N",
    "--min_batch_size": f"{ENGINE} --min_batch_size N",
    "--opt_batch_size": f"{ENGINE} --opt_batch_size N",
    "--onnx_route": "there is one way to ONNX here",
}
FLAGS_ELSEWHERE = {
    "-s": f"{ENGINE} -s",
    "--strict_type_constraints": f"{ENGINE} -s",
    "--force_ptq": "give --calibration: it goes before the ranges that the training has learned",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        type=Path,
        metavar="MODEL",
        help="a .safetensors model, or with -e an .hdf5 of TLT",
    )
    parser.add_argument(
        "-o",
        "--output_file",
        type=Path,
        metavar="OUT",
        help=f"the ONNX file (MODEL with {SUFFIX}); {SUFFIX} is added where it is missing. OUT{MODEL_SUFFIX} makes a model of"
        " an .hdf5 of TLT",
    )
    parser.add_argument(
        *SPEC_OPTIONS,
        dest="experiment_spec",
        type=Path,
        metavar="SPEC",
        help="a training spec, for export_config; for image size, clustering and validation images (those in the model)",
    )
    parser.add_argument(
        OPTIONS["data_type"], choices=["fp32", "fp16", "int8"], help="of weights and arithmetic (fp32)"
    )
    _add_int8(parser)
    parser.add_argument(
        OPTIONS["target_opset"],
        type=int,
        metavar="N",
        help="version of the ONNX operators, 13 or later (20)",
    )
    parser.add_argument(
        OPTIONS["static_batch_size"],
        type=int,
        metavar="N",
        help=f"images of every batch, {ANY_BATCH} for any number ({ANY_BATCH})",
    )
    parser.add_argument(
        OPTIONS["nms"],
        action=argparse.BooleanOptionalAction,
        help="also decode and apply NMS in the file: a third output, detections",
    )
    _add_deepstream(parser)
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="where status.jsonl goes")
    add_device_arguments(parser)
    for name, reason in VALUES_ELSEWHERE.items():
        add_ignored_argument(parser, name, metavar="X", reason=reason)
    for name, reason in FLAGS_ELSEWHERE.items():
        add_ignored_argument(parser, name, reason=reason)


def _add_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        OPTIONS["runtime"],
        choices=["tensorrt", "onnxruntime"],
        help="which one an int8 file is made for (tensorrt); the other data types are for both",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="scales.json or calibration.cache of detectkit calibrate, for int8",
    )
    parser.add_argument(
        OPTIONS["per_tensor"],
        action=argparse.BooleanOptionalAction,
        help="one scale a weight, not one for each of its filters",
    )
    parser.add_argument(
        OPTIONS["max_drop"],
        type=float,
        metavar="POINTS",
        help="leave as few layers in float as keep mAP on the validation images within so many points",
    )
    parser.add_argument(
        "--cal_json_file",
        type=Path,
        metavar="FILE",
        help="also write the ranges as TLT's JSON (tensor_scales)",
    )


def _add_deepstream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        OPTIONS["gen_ds_config"],
        action=argparse.BooleanOptionalAction,
        help="also write DeepStream's nvinfer_config.txt and labels.txt beside OUT",
    )
    parser.add_argument(
        "--cal_cache_file",
        type=Path,
        metavar="FILE",
        help=f"the cache that nvinfer_config.txt names ({CACHE} beside --calibration): TensorRT 8 to 10 make a float"
        " file 8-bit by it",
    )
    parser.add_argument(
        "--max_batch_size", type=int, metavar="N", help="of nvinfer_config.txt (1, or --static_batch_size)"
    )


def run(args: argparse.Namespace) -> None:
    output = _output(args)
    _check_numbers(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None
    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write("Starting export.", status="STARTED")
    with status.failures():
        kpi = _export(args, given, output)
    status.write("Export complete.", status="SUCCESS", kpi=kpi)


def _export(args: argparse.Namespace, given: spec.Experiment | None, output: Path) -> dict[str, float]:
    """Everything behind the options; gives TLT's figures."""
    from detectkit.deploy.deepstream import require_parser
    from detectkit.deploy.export import check_ranges, finish, float_model, int8_model
    from detectkit.deploy.ranges import read_ranges
    from detectkit.model.detector import parameters

    if output.suffix.lower() == MODEL_SUFFIX:
        return _write_model(args, given, output)
    source = _source(args, given)
    section = (
        given.export_config if given else spec.ExportConfig()
    )  # that in the model was for another export
    settings = Settings(args, section, "export_config", OPTIONS)
    target = _target(settings)
    _check_usage(args, settings, target)
    if settings.value("gen_ds_config"):
        require_parser(source.experiment, source.detector.outline)
    with settings.named():
        model = float_model(source, target)
    ranges = _ranges(args, settings, source, model)
    if settings.value("gen_ds_config") and args.cal_cache_file:
        with _named(args.cal_cache_file):
            check_ranges(model, source, read_ranges(args.cal_cache_file, model))
    chosen: list[str] = []
    if target.data_type == "int8":
        assert ranges  # `_ranges` has asked for it
        if settings.value("max_drop") is not None:
            chosen = _float_layers(args, settings.value("max_drop"), source, target, ranges)
        model = int8_model(model, ranges, target, chosen)
    with _named(args.calibration if target.data_type == "int8" else None):
        done = finish(model, source, target, ranges if target.data_type == "int8" else None)
    with atomic_write(output) as path:
        path.write_bytes(done.content)
    size = len(done.content) / 2**20
    checked = f"at most {done.difference:.1e} from PyTorch on random images"
    if target.data_type == "int8":
        checked = f"{len(chosen)} left in float beside the heads" if chosen else "all but the heads in 8 bits"
    kind = f"int8 for {target.runtime}" if target.data_type == "int8" else target.data_type
    say(f"wrote {output}: {kind}, {size:.1f} MiB; {checked}")
    if args.cal_json_file and ranges:
        _write_tlt_scales(args.cal_json_file, ranges)
    if settings.value("gen_ds_config"):
        _write_deepstream(args, source, target, output)
    if args.experiment_spec:
        say(f"next: detectkit evaluate -e {args.experiment_spec} -m {output}")
    return {"param_count": parameters(source.detector) / 1e6, "size": size}


@contextlib.contextmanager
def _named(path: Path | None) -> Iterator[None]:
    """Begin an error about ranges with the file that they are from."""
    try:
        yield
    except ModelError as error:
        if path is None or str(error).startswith(str(path)):
            raise
        raise ModelError(f"{path}: {error}") from error


def _write_model(args: argparse.Namespace, given: spec.Experiment | None, output: Path) -> dict[str, float]:
    """A Keras file of TLT as a model file, which also holds its spec and the names of its classes."""
    from detectkit.model import checkpoint
    from detectkit.model.detector import parameters
    from detectkit.trackers import without_key

    others = [option for name, option in (OPTIONS | OF_ONNX).items() if getattr(args, name) is not None]
    if others:
        raise UsageError(f"-o {output}: leave {', '.join(others)} out, or give an {SUFFIX} file")
    if not is_keras(str(args.model)):
        raise UsageError(f"-o {output}: {args.model} is no Keras file of TLT: give an {SUFFIX} file")
    model = checkpoint.load(args.model, experiment=given)
    checkpoint.save(output, model.detector, spec.dumps(without_key(model.spec)), model.class_names)
    size = output.stat().st_size / 2**20
    say(
        f"wrote {output}: {model.detector.backbone.title}, {parameters(model.detector):,} parameters, {size:.1f} MiB,"
        f" for {', '.join(model.class_names)} in this order"
    )
    say(f"next: detectkit evaluate -m {output}, to see that it is what TLT had measured")
    return {"param_count": parameters(model.detector) / 1e6, "size": size}


def _output(args: argparse.Namespace) -> Path:
    """The file to write; what is wrong with it is said before the work, not after it."""
    given: Path = args.output_file or args.model.with_suffix(SUFFIX)
    named = given.suffix.lower() in (SUFFIX, MODEL_SUFFIX)
    output = given if named else Path(f"{given}{SUFFIX}")
    if given.is_dir() or output.is_dir():
        raise UsageError(f"-o {given} is a folder: name a file in it")
    for path in (output, args.cal_json_file):
        if path:
            check_writable(path)
    needed = (args.model, args.experiment_spec, args.calibration, args.cal_cache_file, output)
    if args.cal_json_file and args.cal_json_file.resolve() in [path.resolve() for path in needed if path]:
        raise UsageError(f"--cal_json_file {args.cal_json_file} has another use here: give another name")
    return output


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse what no number of the options may be; those of the spec are judged."""
    batch, drop = args.static_batch_size, args.max_drop
    if drop is not None and not 0 <= drop <= 100:
        raise UsageError(f"--max-drop {drop:g}: give points of mAP, from 0 to 100")
    if batch is not None and batch != ANY_BATCH and batch < 1:
        raise UsageError(f"--static_batch_size {batch}: must be at least 1, or {ANY_BATCH} for any number")


def _check_usage(args: argparse.Namespace, settings: Settings, target: Target) -> None:
    """Refuse options that do not go with each other, or with the spec."""
    is_int8 = target.data_type == "int8"
    for name in ("per_tensor", "max_drop"):  # those of a spec wait for another --data_type
        is_asked = settings.is_given(name) and settings.value(name) is not False
        if is_asked and not is_int8:
            raise UsageError(f"{settings.title(name)} is for --data_type int8")
    if args.calibration and not is_int8 and not args.cal_json_file:
        raise UsageError("--calibration is for --data_type int8")
    if args.max_batch_size is not None and (
        args.max_batch_size < 1 or target.batch not in (None, args.max_batch_size)
    ):
        raise UsageError(
            f"--max_batch_size {args.max_batch_size}: must be at least 1, and {settings.title('static_batch_size')} if given"
        )
    if settings.value("gen_ds_config"):
        _check_deepstream(args, settings, target)
        return
    if args.cal_cache_file:
        log.warning("--cal_cache_file: only --gen_ds_config uses it; detectkit calibrate writes the cache")
    if args.max_batch_size is not None:
        log.warning("--max_batch_size: only --gen_ds_config uses it; detectkit engine has one of its own")


def _check_deepstream(args: argparse.Namespace, settings: Settings, target: Target) -> None:
    asked = settings.title("gen_ds_config")
    if target.nms:
        other = "" if settings.is_given("nms") else ", or give --no-nms"
        raise UsageError(f"{asked}: DeepStream clusters itself, leave {settings.title('nms')} out{other}")
    if target.data_type == "int8" and target.runtime == "onnxruntime":
        other = "" if settings.is_given("runtime") else ", or give --runtime tensorrt"
        raise UsageError(f"{asked}: DeepStream runs on TensorRT, leave {settings.text('runtime')} out{other}")
    if args.cal_cache_file and not args.cal_cache_file.is_file():
        raise UsageError(
            f"--cal_cache_file {args.cal_cache_file} is not there: detectkit calibrate writes it"
        )


def _source(args: argparse.Namespace, given: spec.Experiment | None) -> Source:
    from detectkit import runtimes
    from detectkit.deploy.export import Source, image_size
    from detectkit.model.detector import Detector
    from detectkit.predict import make_predictor

    if runtimes.kind(args.model) != "model":
        raise ModelError(
            f"{args.model} is exported already: give the .safetensors model that it was made from"
        )
    network = runtimes.load(args.model, "cpu", experiment=given)
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
    return Source(detector, experiment, network.class_names)


def _target(settings: Settings) -> Target:
    from detectkit.deploy.export import Target

    batch = settings.value("static_batch_size")
    asked = {
        "data_type": settings.value("data_type"),
        "runtime": settings.value("runtime"),
        "per_channel": not settings.value("per_tensor"),
        "opset": settings.value("target_opset"),
        "batch": None if batch == ANY_BATCH else batch or None,  # 0 is a field that is not set
        "nms": bool(settings.value("nms")),
    }
    return Target(**{name: value for name, value in asked.items() if value is not None})


def _ranges(
    args: argparse.Namespace, settings: Settings, source: Source, model: onnx.ModelProto
) -> ScaleTable | None:
    """The ranges of --calibration, or what the training has learned; None where there is neither and no need."""
    from detectkit.deploy.ranges import read_ranges

    if args.calibration:
        return read_ranges(args.calibration, model)
    if source.detector.ranges is not None:
        from detectkit.deploy.calibrate import table_of

        return table_of(source.detector)
    is_int8 = settings.value("data_type") == "int8"
    if is_int8 or args.cal_json_file:
        option = settings.text("data_type") if is_int8 else "--cal_json_file"
        raise UsageError(
            f"{option} needs the ranges of the tensors: `detectkit calibrate -e SPEC -m {args.model} -o DIR` measures them;"
            " then give --calibration DIR/scales.json"
        )
    return None


def _float_layers(
    args: argparse.Namespace, drop: float, source: Source, target: Target, ranges: ScaleTable
) -> list[str]:
    """The layers that stay in float so that mAP falls by at most `drop` points."""
    from detectkit.deploy.export import accuracy, float_model, int8_model, sample_images
    from detectkit.deploy.sensitivity import fewest_float_layers, rank

    device, target = choose_device(args), target._replace(batch=None)
    model = float_model(source, target)
    whole = accuracy(model, source, target, device)
    floor = whole - drop
    say(f"mAP {whole:.2f} % in float; asked for: {floor:.2f} %")
    images = sample_images(source, RANKED_ON)
    ranked = rank(model, ranges, images, runtime=target.runtime, per_channel=target.per_channel)

    def measure(names: list[str]) -> float:
        points = accuracy(int8_model(model, ranges, target, names), source, target, device)
        say(f"mAP {points:.2f} % in 8 bits, {len(names)} of {len(ranked)} layers in float")
        return points

    chosen = fewest_float_layers(measure, [layer for layer, _ in ranked], floor=floor)
    rows = [(layer, f"{sqnr:.1f}", "float" if layer in chosen else "8 bits") for layer, sqnr in ranked]
    table(("layer", "SQNR, dB", "in"), rows, title="each layer alone in 8 bits, the worst first")
    return chosen


def _write_tlt_scales(path: Path, ranges: ScaleTable) -> None:
    content = {"tensor_scales": {name: item.amax for name, item in ranges.tensors.items()}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {path}")


def _write_deepstream(args: argparse.Namespace, source: Source, target: Target, output: Path) -> None:
    from detectkit.deploy import deepstream
    from detectkit.deploy.export import image_size

    height, width = image_size(source.experiment)
    written = deepstream.write_config(
        output,
        source.experiment,
        class_names=source.class_names,
        outline=source.detector.outline,
        channels=source.detector.channels,
        height=height,
        width=width,
        batch_size=args.max_batch_size or target.batch or 1,
        data_type=target.data_type,
        cache=_cache(args, target),
    )
    for warning in deepstream.warnings(source.experiment, source.class_names):
        log.warning(f"{written[-1]}: {warning}")
    say(f"wrote {' and '.join(map(str, written))}")


def _cache(args: argparse.Namespace, target: Target) -> Path | None:
    """The cache of --cal_cache_file, or for int8 the one that `detectkit calibrate` has written beside the table."""
    if args.cal_cache_file or target.data_type != "int8" or not args.calibration:
        return args.cal_cache_file  # type: ignore[no-any-return]
    path: Path = args.calibration.with_name(CACHE)
    return path if path.is_file() else None
