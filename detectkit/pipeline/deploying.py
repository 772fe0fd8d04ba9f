"""The stages that make of a network what runs elsewhere: ranges for 8 bits, ONNX files, an engine."""

from __future__ import annotations

import importlib.util
import os

from detectkit.pipeline.basis import TABLES, Basis, Estimate
from detectkit.pipeline.chain import SPEC, Chain, Command, RunStage
from detectkit.pipeline.products import NETWORKS, Product, Role
from detectkit.spec import Experiment, ExportConfig, Rule, batch_size, only

TITLES = {"fp32": "ONNX FP32", "fp16": "ONNX FP16", "int8": "INT8"}
FILES = {
    "model.onnx": "ONNX, 32 bits",
    "model_fp16.onnx": "ONNX, 16 bits",
    "model_int8.onnx": "ONNX, 8 bits",
    "model_int8_tensorrt.onnx": "ONNX, 8 bits, as TensorRT builds an engine of it",
    "labels.txt": "DeepStream: the classes",
    "nvinfer_config.txt": "DeepStream: the configuration of nvinfer",
}
FINDING_RANGES = 4.0  # forward passes an image of a calibration
EXPORTING = 0.6  # seconds of a file
BUILDING, BUILDING_AHEAD = 60.0, 5.0  # seconds of an engine on a GPU, and without one
LAYERS = 20  # that --max-drop tries in float


def has_tensorrt() -> bool:
    """Whether one of its Python packages is installed, without loading it."""
    return importlib.util.find_spec("tensorrt") is not None or builds_ahead()


def builds_ahead() -> bool:
    """Whether the TensorRT is there that builds engines without a GPU: TensorRT for RTX."""
    return any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, without asking its driver."""
    places = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu")  # Linux, WSL, Jetson
    return any(os.path.exists(place) for place in places)


def _builds_engines(chain: Chain) -> str | None:
    if not has_tensorrt():
        return "TensorRT is not installed: pip install 'detectkit[tensorrt]' mends that"
    if not has_gpu() and not builds_ahead():
        return "this TensorRT builds engines on a GPU, and there is none here; TensorRT for RTX builds them anywhere"
    return None


def runs_engines(chain: Chain) -> str | None:
    """Why an engine does not run on this machine."""
    no_gpu = None if has_gpu() else "an engine runs on a GPU, and there is none here"
    return _builds_engines(chain) or no_gpu


def _deployed(chain: Chain) -> str:
    """The model that is calibrated and exported."""
    return chain.last(*NETWORKS, Role.ROUNDED)


def _file(path: str, title: str, role: Role = Role.FILE) -> Product:
    return Product(os.path.basename(path), title, role, path)


# Ranges


def _scales(chain: Chain) -> str:
    return chain.path("calibrate", "scales.json")


def _calibration_spec(chain: Chain) -> Experiment:
    kept = only(chain.experiment, Rule.DATA, "calibration_config")
    kept.calibration_config.ClearField("quantization_aware_training")
    return kept


def _calibrate(chain: Chain) -> list[Command]:
    return [["calibrate", "-e", chain.path(SPEC), "-m", _deployed(chain), "-o", chain.path("calibrate")]]


def _ranges(chain: Chain) -> list[Product]:
    cache, layers = (chain.path("calibrate", name) for name in ("calibration.cache", "layers.json"))
    return [
        _file(cache, "TensorRT 10: the ranges"),
        _file(layers, "what each layer loses in 8 bits", Role.LAYERS),
        _file(_scales(chain), "the ranges, for export"),
    ]


def _calibrating_takes(chain: Chain, basis: Basis) -> Estimate:
    config = chain.experiment.calibration_config
    images = (config.batches or 10) * (config.batch_size or batch_size(chain.experiment))
    is_learned = config.HasField("quantization_aware_training") and not config.HasField("method")
    looked_at = 0 if is_learned else min(images, basis.training)
    return Estimate(1.0 + looked_at * FINDING_RANGES * basis.finding * basis.share, TABLES)


CALIBRATE = RunStage(
    name="calibrate",
    title="ranges for 8 bits",
    wanted=lambda chain: chain.experiment.HasField("calibration_config"),
    commands=_calibrate,
    spec=_calibration_spec,
    reads=lambda chain: [*chain.sources(validation=False), _deployed(chain)],
    writes=lambda chain: [_scales(chain)],
    takes=_calibrating_takes,
    makes=_ranges,
)


# ONNX files


def _data_type(chain: Chain) -> str:
    """fp32, fp16 or int8, of the file that is deployed."""
    return ExportConfig.DataType.Name(chain.experiment.export_config.data_type).lower()


def _onnx(chain: Chain) -> str:
    """The file that is deployed."""
    data_type = _data_type(chain)
    return chain.path("export", "model.onnx" if data_type == "fp32" else f"model_{data_type}.onnx")


def _engine_source(chain: Chain) -> str:
    """What the engine is built of: an 8-bit file for ONNX Runtime has another graph than TensorRT needs."""
    is_for_onnxruntime = chain.experiment.export_config.runtime == ExportConfig.ONNXRUNTIME
    if _data_type(chain) == "int8" and is_for_onnxruntime:
        return chain.path("export", "model_int8_tensorrt.onnx")
    return _onnx(chain)


def _onnx_files(chain: Chain) -> list[str]:
    found = [chain.path("export", "model.onnx"), _onnx(chain)]
    return list(dict.fromkeys(found + ([_engine_source(chain)] if ENGINE.wanted(chain) else [])))


def _export_spec(chain: Chain) -> Experiment:
    """Clustering and data are in the files too, for what deploys them; what the engine is like is not."""
    kept = only(chain.experiment, Rule.DATA, Rule.MEASURING, "export_config")
    kept.export_config.ClearField("engine_config")
    return kept


def _exported(chain: Chain) -> list[str]:
    found = list(dict.fromkeys([_deployed(chain), chain.last(*NETWORKS)]))
    if _data_type(chain) != "int8":
        return found
    # Which layers stay in float is found on images.
    found += chain.sources() if chain.experiment.export_config.HasField("max_drop") else []
    return found + ([_scales(chain)] if CALIBRATE.wanted(chain) else [])


def _export(chain: Chain) -> list[Command]:
    """In 32 bits always, as what to fall back on; then as the spec says."""
    start = ["export", "-e", chain.path(SPEC), "-m"]
    in_float = [
        *start,
        chain.last(*NETWORKS),
        "-o",
        chain.path("export", "model.onnx"),
        "--data_type",
        "fp32",
    ]
    if _data_type(chain) == "fp32":
        return [in_float]
    takes_scales = _data_type(chain) == "int8" and CALIBRATE.wanted(chain)
    ranges = ["--calibration", _scales(chain)] if takes_scales else []
    deployed = [*start, _deployed(chain), "-o"]
    commands = [[*in_float, "--no-gen_ds_config"], [*deployed, _onnx(chain), *ranges]]
    if ENGINE.wanted(chain) and _engine_source(chain) != _onnx(chain):
        commands += [[*deployed, _engine_source(chain), *ranges, "--runtime", "tensorrt"]]
    return commands


def _onnx_products(chain: Chain) -> list[Product]:
    data_type = _data_type(chain)
    deepstream = [chain.path("export", name) for name in ("labels.txt", "nvinfer_config.txt")]
    files = [_file(path, FILES[os.path.basename(path)]) for path in _onnx_files(chain) + deepstream]
    return [Product(data_type, TITLES[data_type], Role.DEPLOYED, _onnx(chain)), *files]


def _exporting_takes(chain: Chain, basis: Basis) -> Estimate:
    weights, files = basis.mib * basis.share, len(_onnx_files(chain))
    part = {"fp32": 0.0, "fp16": 0.5, "int8": 0.25}[_data_type(chain)]
    tried = LAYERS if _data_type(chain) == "int8" and chain.experiment.export_config.max_drop else 0
    # An 8-bit file for TensorRT has its weights in float.
    mib = weights * (1 + part * (files > 1) + (files > 2))
    return Estimate(EXPORTING * files + tried * basis.measuring, mib)


EXPORT = RunStage(
    name="export",
    title="ONNX files",
    wanted=lambda chain: chain.experiment.HasField("export_config"),
    commands=_export,
    spec=_export_spec,
    reads=_exported,
    writes=_onnx_files,
    takes=_exporting_takes,
    makes=_onnx_products,
)


# Engine


def _engine(chain: Chain) -> str:
    return chain.path("engine", "model.engine")


def _engine_spec(chain: Chain) -> Experiment:
    kept = Experiment()
    kept.export_config.engine_config.CopyFrom(chain.experiment.export_config.engine_config)
    return kept


def _engine_products(chain: Chain) -> list[Product]:
    return [
        Product("engine", "engine", Role.DEPLOYED, _engine(chain)),
        _file(_engine(chain), "TensorRT"),
        _file(f"{_engine(chain)}.json", "what the engine was built with, for detectkit"),
    ]


ENGINE = RunStage(
    name="engine",
    title="TensorRT engine",
    wanted=lambda chain: chain.experiment.export_config.HasField("engine_config"),
    commands=lambda chain: [
        ["engine", "-e", chain.path(SPEC), "-m", _engine_source(chain), "-o", _engine(chain)]
    ],
    spec=_engine_spec,
    reads=lambda chain: [_engine_source(chain)],
    writes=lambda chain: [_engine(chain)],
    takes=lambda chain, basis: Estimate(BUILDING if has_gpu() else BUILDING_AHEAD, basis.mib * basis.share),
    makes=_engine_products,
    impossible=_builds_engines,
    tools=("TensorRT",),
)
