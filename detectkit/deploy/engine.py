"""TensorRT engines from ONNX models, on each library in the way that it has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from google.protobuf.message import DecodeError

from detectkit.console import log
from detectkit.deploy.builder import allow_types, set_targets, set_timing_cache
from detectkit.deploy.cache import HEADER, version_number, write_cache
from detectkit.deploy.half import half
from detectkit.deploy.nms import DETECTIONS
from detectkit.deploy.qdq import quantize
from detectkit.deploy.ranges import read_ranges
from detectkit.deploy.scales import ScaleTable
from detectkit.errors import ModelError, UsageError
from detectkit.model.header import INPUT, check_seal
from detectkit.runtimes.tensorrt import DATA_TYPES, Library

QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
SHOWN = 3  # how many of a library's errors a message has


class Engine(NamedTuple):
    """What `build` makes."""

    plan: bytes  # the engine
    layers: int  # of the network before the library joins some of them
    data_type: str  # of DATA_TYPES
    targets: list[str]  # the GPUs that it is for, as sm86
    batch: tuple[int, int, int]  # smallest, best and largest
    height: int  # of the images, pixels
    width: int
    timing_cache: bytes | None  # with the times of this build; None where none was given


def build(
    model: onnx.ModelProto,
    *,
    path: str | os.PathLike[str],
    library: Library,
    data_type: str | None = None,
    batch: tuple[int, int, int] | None = None,
    workspace_gib: float | None = None,
    targets: Sequence[str] = (),
    timing_cache: bytes | None = None,
    cache: str | os.PathLike[str] | None = None,
    strict: bool = False,
) -> Engine:
    """Build an engine.

    Where the library is strongly typed (TensorRT 11, TensorRT for RTX), the ONNX model is brought to the data type
    before the library sees it. TensorRT 10 gets the model as it is, and is allowed the types.

    Args:
        model: as `read_model` gives it, with one input [N, c, height, width].
        path: of the model, named in errors.
        data_type: of DATA_TYPES; what the model holds if None. A 32-bit model becomes any of them, others stay.
        batch: smallest, best and largest number of images; 1 if None. A model of a fixed batch has that one.
        workspace_gib: how much of the GPU's memory a layer may use, GiB; None: all.
        targets: GPUs by compute capability, as sm86. None named: all from Ampere on (TensorRT for RTX), or the GPU
            of this machine (TensorRT).
        timing_cache: of an earlier build with the same TensorRT and GPU, or empty to begin one.
        cache: the ranges for int8 of a 32-bit model: a TensorRT calibration cache, scales.json, or TLT's tensor_scales.
        strict: TensorRT 10 with int8: the other layers stay in 32 bits, where it may take 16 otherwise.

    Raises:
        ModelError: a damaged model, one that the library cannot read or build, ranges of another network.
        UsageError: options that do not go with the model or the library.
    """
    _check_gpu(library)
    model, wanted, calibration = _prepare(model, library, data_type, cache, path)
    builder = library.trt.Builder(library.log)
    network, _parser = _parse(builder, model, library, path)
    config = builder.create_builder_config()
    batch, height, width = _set_shapes(builder, network, config, batch, path)
    if workspace_gib is not None:
        config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, int(workspace_gib * 2**30))
    chosen = set_targets(library, config, targets)
    if not library.strongly_typed:
        allow_types(library.trt, config, wanted, calibration=calibration, strict=strict)
    times = set_timing_cache(library, config, timing_cache)
    return Engine(
        plan=_plan(builder, network, config, library, path),
        layers=network.num_layers,
        data_type=wanted,
        targets=chosen,
        batch=batch,
        height=height,
        width=width,
        timing_cache=None if times is None else bytes(times.serialize()),
    )


def _check_gpu(library: Library) -> None:
    if not library.ahead_of_time and not torch.cuda.is_available():
        raise UsageError(
            f"{library.title} builds an engine on the GPU that it is for, and there is none here: run it there"
            " (TensorRT for RTX builds for other machines' GPUs)"
        )


def _plan(builder: Any, network: Any, config: Any, library: Library, path: str | os.PathLike[str]) -> bytes:
    plan = builder.build_serialized_network(network, config)
    errors = library.take_errors()
    if plan is None:
        raise ModelError(f"{library.title} cannot build {path}: {_some(errors) or 'it gives no reason'}")
    for line in errors:  # of what it has found a way around
        log.warning("%s: %s", library.title, line)
    return bytes(plan)


def data_type_of(model: onnx.ModelProto) -> str:
    """What an ONNX model computes in, by its nodes and weights: one of DATA_TYPES."""
    if any(node.op_type in QUANTIZED for node in model.graph.node):
        return "int8"
    types = {tensor.data_type for tensor in model.graph.initializer}
    return "fp16" if onnx.TensorProto.FLOAT16 in types else "fp32"


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file.

    Raises:
        ModelError: it cannot be read, or is damaged.
    """
    try:
        content = Path(path).read_bytes()
        check_seal(content, path)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        first = (str(error).splitlines() or ["it cannot be parsed"])[0]
        raise ModelError(f"{path} is no ONNX model, or damaged ({first}): export it again") from error
    return model


def _prepare(
    model: onnx.ModelProto,
    library: Library,
    data_type: str | None,
    cache: str | os.PathLike[str] | None,
    path: str | os.PathLike[str],
) -> tuple[onnx.ModelProto, str, bytes | None]:
    """The model that the library is to read, its data type, and for TensorRT 10 the calibration cache."""
    _check_model(model, path)
    held = data_type_of(model)
    wanted = _check_type(held, data_type, cache, path)
    if wanted == held:
        return model, wanted, None
    if wanted == "fp16":
        return (half(model) if library.strongly_typed else model), wanted, None
    assert cache is not None  # `_check_type` has looked
    table = read_ranges(cache, model)
    if library.strongly_typed:
        return quantize(model, table, runtime="tensorrt"), wanted, None
    return model, wanted, _calibration(cache, table, model, library)


def _check_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Refuse what is made for ONNX Runtime: NMS inside, and its integers (unsigned values, biases of 32 bits)."""
    if DETECTIONS in {output.name for output in model.graph.output}:
        raise ModelError(
            f"{path} has NMS inside, which is for ONNX Runtime: export it again without --nms (an engine's maps are"
            " clustered outside of it, as DeepStream does)"
        )
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inputs = {name for node in model.graph.node if node.op_type in QUANTIZED for name in node.input}
    if {types.get(name) for name in inputs} & {onnx.TensorProto.UINT8, onnx.TensorProto.INT32}:
        raise ModelError(
            f"{path} is rounded to 8 bits for ONNX Runtime, in a way that TensorRT has not: export it again with"
            " --runtime tensorrt"
        )


def _check_type(
    held: str,
    wanted: str | None,
    cache: str | os.PathLike[str] | None,
    path: str | os.PathLike[str],
) -> str:
    """The data type of the engine; a UsageError where the model cannot become it."""
    wanted = wanted or held
    if wanted not in DATA_TYPES:
        raise UsageError(f"--data_type {wanted}: must be one of {', '.join(DATA_TYPES)}")
    if held not in ("fp32", wanted):
        raise UsageError(
            f"--data_type {wanted}: {path} holds {held} already; give --data_type {held}, or a model that was exported with"
            " --data_type fp32"
        )
    if wanted == "int8" and held == "fp32" and cache is None:
        raise UsageError(
            f"--data_type int8: {path} has no ranges inside; give --calibration-cache with the calibration.cache or"
            " scales.json of detectkit calibrate, or export it with --data_type int8"
        )
    if cache is not None and (wanted != "int8" or held == "int8"):
        reason = "the model has its ranges inside" if held == "int8" else f"{wanted} needs no ranges"
        log.warning(f"--calibration-cache {cache} is not used: {reason}")
    return wanted


def _calibration(
    cache: str | os.PathLike[str], table: ScaleTable, model: onnx.ModelProto, library: Library
) -> bytes:
    """The calibration cache for this TensorRT: the file itself if it is one, and of the right version."""
    content = Path(cache).read_bytes()
    header = HEADER.match(content)
    if header is None:  # a table
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "calibration.cache")
            write_cache(file, table, tensorrt=library.version, graph=model)
            return file.read_bytes()
    if header[1] != b"%d" % version_number(library.version):
        raise ModelError(
            f"{cache} is for another TensorRT (its first line has {header[1].decode()}) than this one, {library.version}:"
            f" detectkit calibrate --retarget {library.version} {cache}"
        )
    return content


def _parse(
    builder: Any, model: onnx.ModelProto, library: Library, path: str | os.PathLike[str]
) -> tuple[Any, Any]:
    """The network, and the parser that owns its weights."""
    flags = 0
    if library.strongly_typed:
        flags |= 1 << int(library.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = library.trt.OnnxParser(network, library.log)
    if not parser.parse(model.SerializeToString()):
        errors = [_parser_error(parser.get_error(number)) for number in range(parser.num_errors)]
        reported = library.take_errors()  # the same once more, in other words
        raise ModelError(f"{library.title} cannot read {path}: {_some(errors or reported)}")
    return network, parser


def _parser_error(error: Any) -> str:
    """What the parser found, with the node's name and operator where it is about one."""
    text = " ".join(error.desc().split())
    if error.node() < 0 or not error.node_operator():
        return text
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {text}"


def _some(errors: Sequence[str]) -> str:
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return "; ".join(errors[:SHOWN]) + more


def _set_shapes(
    builder: Any,
    network: Any,
    config: Any,
    batch: tuple[int, int, int] | None,
    path: str | os.PathLike[str],
) -> tuple[tuple[int, int, int], int, int]:
    """Tell the library how many images come at once. Gives the three batch sizes, and the images' height and width."""
    shape = tuple(network.get_input(0).shape) if network.num_inputs == 1 else ()
    if len(shape) != 4 or network.get_input(0).name != INPUT or min(shape[1:]) < 1:
        raise ModelError(
            f"{path} must have one input, {INPUT} [N, channels, height, width] of a fixed size: export it with"
            " detectkit export"
        )
    fixed, channels, height, width = shape
    if fixed > 0:
        if batch not in (None, (fixed,) * 3):
            raise UsageError(
                f"{path} has a fixed batch of {fixed}: give no other batch sizes (--min_batch_size, --opt_batch_size,"
                " --max_batch_size), or export it without --static_batch_size"
            )
        return (fixed, fixed, fixed), height, width
    sizes = batch or (1, 1, 1)
    if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise UsageError(
            f"batch sizes {', '.join(map(str, sizes))}: --min_batch_size, --opt_batch_size and --max_batch_size must be 1"
            " or more, and in this order none smaller than the one before"
        )
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((size, channels, height, width) for size in sizes))
    config.add_optimization_profile(profile)
    return sizes, height, width
