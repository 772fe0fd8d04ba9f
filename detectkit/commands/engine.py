"""Build a TensorRT engine from an ONNX model: with TensorRT 10 or 11 for the GPU of this machine, with TensorRT for RTX
for any, also where there is none. Options go before the spec's export_config.engine_config."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit import spec
from detectkit.commands.options import SPEC_OPTIONS, add_ignored_argument
from detectkit.commands.settings import Settings
from detectkit.console import StatusLog, log, say
from detectkit.errors import ModelError, UsageError
from detectkit.files import atomic_write, check_writable, make_directory

if TYPE_CHECKING:
    from detectkit.deploy.engine import Engine
    from detectkit.runtimes.tensorrt import Library

SUFFIX = ".engine"
# The options that stand for a field of export_config.engine_config.
OPTIONS = {
    "targets": "--target",
    "min_batch_size": "--min_batch_size",
    "opt_batch_size": "--opt_batch_size",
    "max_batch_size": "--max_batch_size",
    "max_workspace_size": "--max_workspace_size",
}
BYTES = 2**20  # a workspace from here on is one in bytes, as TLT 3 has it, not in GiB
MOST_BYTES = 2**63
CALIBRATION = "the ranges of int8 come from detectkit calibrate: give its file with --calibration-cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model_path", dest="model", required=True, type=Path, metavar="MODEL", help="an .onnx model"
    )
    parser.add_argument(
        "-o",
        "--engine_file",
        dest="output",
        type=Path,
        metavar="ENGINE",
        help=f"the engine; {SUFFIX} is added where it has no such ending (beside the model)",
    )
    parser.add_argument(
        *SPEC_OPTIONS,
        dest="experiment_spec",
        type=Path,
        metavar="SPEC",
        help="a training spec, for export_config.engine_config",
    )
    parser.add_argument(
        "--data_type",
        choices=("fp32", "fp16", "int8"),
        metavar="TYPE",
        help="fp32, fp16 or int8 (what the model holds)",
    )
    _add_limits(parser)
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="where status.jsonl goes")
    _add_ignored(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """What the builder has to keep to."""
    for name, meaning in (("min", "fewest"), ("opt", "usual number of"), ("max", "most")):
        parser.add_argument(
            OPTIONS[f"{name}_batch_size"], type=int, metavar="N", help=f"{meaning} images at once (1)"
        )
    parser.add_argument(
        OPTIONS["max_workspace_size"],
        type=float,
        metavar="GIB",
        help="memory of the GPU that layers may use (all)",
    )
    parser.add_argument(
        "--calibration-cache",
        "--cal_cache_file",
        "--cal_json_file",
        dest="cache",
        type=Path,
        metavar="FILE",
        help="the ranges for int8 of a 32-bit model: calibration.cache or scales.json of detectkit calibrate",
    )
    parser.add_argument(
        OPTIONS["targets"],
        dest="targets",
        type=lambda text: [name for name in text.split(",") if name.strip()],
        metavar="GPUS",
        help="compute capabilities, as sm86,sm89 (TensorRT for RTX: all from sm80 on; TensorRT: the GPU here)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="measured times, read and written: the next build is quicker",
    )
    parser.add_argument(
        "-s",
        "--strict_type_constraints",
        dest="strict",
        action="store_true",
        help="TensorRT 10, int8: the other layers stay in 32 bits",
    )


def _add_ignored(parser: argparse.ArgumentParser) -> None:
    for name in ("--cal_data_file", "--cal_image_dir", "--batches", "--batch_size"):
        add_ignored_argument(parser, name, metavar="X", reason=CALIBRATION)
    add_ignored_argument(parser, "--force_ptq", reason=CALIBRATION)


def run(args: argparse.Namespace) -> None:
    output = _output(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else spec.Experiment()
    config = given.export_config.engine_config
    settings = Settings(args, config, "export_config.engine_config", OPTIONS)
    _workspace(settings)  # refused before the work, not after it

    from detectkit.runtimes.tensorrt import library

    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write("Starting engine.", status="STARTED")
    with status.failures(), settings.named():
        _build(args, settings, output, library())
    status.write("Engine complete.", status="SUCCESS", kpi={"size": output.stat().st_size / 2**20})


def _output(args: argparse.Namespace) -> Path:
    """The file to write; what is wrong with it is said before the work, not after it."""
    if args.model.suffix.lower() != ".onnx":
        raise UsageError(
            f"-m {args.model}: engines are built from .onnx models, which detectkit export writes"
        )

    from detectkit.runtimes import ENGINES  # torch takes seconds: not before

    given: Path = args.output or args.model.with_suffix(SUFFIX)
    output = given if given.suffix.lower() in ENGINES else Path(f"{given}{SUFFIX}")
    if given.is_dir() or output.is_dir():
        raise UsageError(f"-o {given} is a folder: name a file in it")
    check_writable(output)
    return output


def _batch(settings: Settings) -> tuple[int, int, int] | None:
    """The three batch sizes; one that is not given follows from the others."""
    low, best, high = (_number(settings, f"{name}_batch_size") for name in ("min", "opt", "max"))
    if low is None and best is None and high is None:
        return None
    low = 1 if low is None else low
    if high is None:
        high = max(low, best or 1)
    return low, high if best is None else best, high


def _number(settings: Settings, name: str) -> Any:
    """A number of an option, or of a field, where 0 is none."""
    value = settings.value(name)
    return value if value or settings.is_given(name) else None


def _workspace(settings: Settings) -> float | None:
    """GiB; large numbers are bytes."""
    given = _number(settings, "max_workspace_size")
    if given is None:
        return None
    if not 0 < given < MOST_BYTES:
        raise UsageError(
            f"{settings.title('max_workspace_size')} {given:g}: must be above 0, in GiB or (from {BYTES} on) in bytes"
        )
    return float(given / 2**30 if given >= BYTES else given)


def _build(args: argparse.Namespace, settings: Settings, output: Path, library: Library) -> None:
    from detectkit.deploy.engine import build, read_model
    from detectkit.model.header import HEADER
    from detectkit.runtimes.onnx import metadata, read_header

    model = read_model(args.model)
    read_header(model, args.model)  # a model without one, or with a broken one, is refused before the work
    log.info(f"building with {library.title}" + ("" if library.ahead_of_time else ": this takes minutes"))
    start = time.monotonic()
    engine = build(
        model,
        path=args.model,
        library=library,
        data_type=args.data_type,
        batch=_batch(settings),
        workspace_gib=_workspace(settings),
        targets=settings.value("targets") or (),
        timing_cache=_read_times(args.timing_cache),
        cache=args.cache,
        strict=args.strict,
    )
    header = json.loads(metadata(model)[HEADER])
    _write(output, engine, library, header, args.timing_cache)
    _report(output, engine, library, time.monotonic() - start)
    given = args.experiment_spec or "SPEC"
    say(f"next, where such a GPU is: detectkit evaluate -e {given} -m {output}")


def _read_times(path: Path | None) -> bytes | None:
    """A timing cache; empty where the file is yet to be written."""
    try:
        return None if path is None else path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ModelError(f"cannot read the timing cache {path}: {error.strerror or error}") from error


def _write(
    output: Path, engine: Engine, library: Library, header: dict[str, Any], timing_cache: Path | None
) -> None:
    from detectkit.runtimes.tensorrt import Sidecar, save_sidecar

    with atomic_write(output) as path:
        path.write_bytes(engine.plan)
    sidecar = Sidecar(
        header=header,
        builder=library.name,
        version=library.version,
        data_type=engine.data_type,
        targets=engine.targets,
        batch=engine.batch,
        height=engine.height,
        width=engine.width,
    )
    save_sidecar(output, sidecar)
    if timing_cache is not None and engine.timing_cache is not None:
        with atomic_write(timing_cache) as path:
            path.write_bytes(engine.timing_cache)


def _report(output: Path, engine: Engine, library: Library, seconds: float) -> None:
    from detectkit.runtimes.tensorrt import sidecar_path

    low, best, high = engine.batch
    batch = f"batch {low}" if low == high else f"batch {low} to {high}, best at {best}"
    say(
        f"wrote {output}: {len(engine.plan) / 2**20:.1f} MiB, {engine.layers} layers in {engine.data_type}, {batch}, images"
        f" {engine.width}x{engine.height}, for {', '.join(engine.targets)} ({library.title}, {seconds:.1f} s)"
    )
    say(
        f"wrote {sidecar_path(output)}: the classes and the spec, which evaluate and infer need beside the engine"
    )
