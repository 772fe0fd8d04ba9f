"""Write a model as ONNX, checked against PyTorch: 32, 16 or 8 bits, for TensorRT, DeepStream and ONNX Runtime.

Options go before the spec's export_config.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.export_options import (
    OF_ONNX,
    OPTIONS,
    add_deepstream,
    add_elsewhere,
    add_form,
    cache_file,
    check_numbers,
    check_usage,
    target_of,
)
from detectkit.commands.options import SPEC_OPTIONS, add_device_arguments, choose_device
from detectkit.commands.settings import Settings
from detectkit.console import StatusLog, log, say, table
from detectkit.errors import ModelError, UsageError
from detectkit.files import atomic_write, check_writable, make_directory
from detectkit.spec.networks import is_keras

if TYPE_CHECKING:
    import onnx

    from detectkit.deploy.export import ExportSource, Target
    from detectkit.deploy.scales import ScaleTable

SUFFIX = ".onnx"
MODEL_SUFFIX = ".safetensors"


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
    add_form(parser)
    add_deepstream(parser)
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="where status.jsonl goes")
    add_device_arguments(parser)
    add_elsewhere(parser)


def run(args: argparse.Namespace) -> None:
    output = _output(args)
    check_numbers(args)
    given = spec.load_experiment(args.experiment_spec) if args.experiment_spec else None
    status = StatusLog(make_directory(args.results_dir) / "status.jsonl" if args.results_dir else None)
    status.write("Starting export.", status="STARTED")
    with status.failures():
        kpi = _export(args, given, output)
    status.write("Export complete.", status="SUCCESS", kpi=kpi)


def _export(args: argparse.Namespace, given: spec.Experiment | None, output: Path) -> dict[str, float]:
    """Everything behind the options; gives TLT's figures."""
    from detectkit.deploy.deepstream import require_parser
    from detectkit.deploy.export import check_ranges, finish, float_model, int8_model, load_source
    from detectkit.deploy.ranges import read_ranges, write_tlt_ranges
    from detectkit.model.detector import parameters

    if output.suffix.lower() == MODEL_SUFFIX:
        return _write_model(args, given, output)
    source = load_source(args.model, given)
    section = (
        given.export_config if given else spec.ExportConfig()
    )  # that in the model was for another export
    settings = Settings(args, section, "export_config", OPTIONS)
    target = target_of(settings)
    check_usage(args, settings, target)
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
        write_tlt_ranges(args.cal_json_file, ranges)
        say(f"wrote {args.cal_json_file}")
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


def _ranges(
    args: argparse.Namespace, settings: Settings, source: ExportSource, model: onnx.ModelProto
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
    args: argparse.Namespace, drop: float, source: ExportSource, target: Target, ranges: ScaleTable
) -> list[str]:
    """The layers that stay in float so that mAP falls by at most `drop` points, which are shown."""
    from detectkit.deploy.float_layers import choose_float_layers

    chosen, ranked = choose_float_layers(
        source, target, ranges, drop=drop, device=choose_device(args), tell=say
    )
    rows = [(layer, f"{sqnr:.1f}", "float" if layer in chosen else "8 bits") for layer, sqnr in ranked]
    table(("layer", "SQNR, dB", "in"), rows, title="each layer alone in 8 bits, the worst first")
    return chosen


def _write_deepstream(args: argparse.Namespace, source: ExportSource, target: Target, output: Path) -> None:
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
        cache=cache_file(args, target),
    )
    for warning in deepstream.warnings(source.experiment, source.class_names):
        log.warning(f"{written[-1]}: {warning}")
    say(f"wrote {' and '.join(map(str, written))}")
