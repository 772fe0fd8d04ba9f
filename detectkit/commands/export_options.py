"""The options of `detectkit export`, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit.commands.options import add_ignored_argument
from detectkit.commands.settings import Settings
from detectkit.console import log
from detectkit.errors import UsageError

if TYPE_CHECKING:
    from detectkit.deploy.export import Target

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


def add_form(parser: argparse.ArgumentParser) -> None:
    """What the file is like."""
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


def add_deepstream(parser: argparse.ArgumentParser) -> None:
    """What is written for DeepStream."""
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


def add_elsewhere(parser: argparse.ArgumentParser) -> None:
    """TLT's options that do nothing here; a line says which command does it."""
    for name, reason in VALUES_ELSEWHERE.items():
        add_ignored_argument(parser, name, metavar="X", reason=reason)
    for name, reason in FLAGS_ELSEWHERE.items():
        add_ignored_argument(parser, name, reason=reason)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse what no number of the options may be; those of the spec are judged: a UsageError."""
    batch, drop = args.static_batch_size, args.max_drop
    if drop is not None and not 0 <= drop <= 100:
        raise UsageError(f"--max-drop {drop:g}: give points of mAP, from 0 to 100")
    if batch is not None and batch != ANY_BATCH and batch < 1:
        raise UsageError(f"--static_batch_size {batch}: must be at least 1, or {ANY_BATCH} for any number")


def check_usage(args: argparse.Namespace, settings: Settings, target: Target) -> None:
    """Refuse options that do not go with each other, or with the spec: a UsageError."""
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


def target_of(settings: Settings) -> Target:
    """What is to be written."""
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


def cache_file(args: argparse.Namespace, target: Target) -> Path | None:
    """The cache of --cal_cache_file, or for int8 the one that `detectkit calibrate` has written beside the table."""
    if args.cal_cache_file or target.data_type != "int8" or not args.calibration:
        return args.cal_cache_file  # type: ignore[no-any-return]
    path: Path = args.calibration.with_name(CACHE)
    return path if path.is_file() else None
