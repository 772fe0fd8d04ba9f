"""The ranges of a network's tensors, from any of the files that have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx

from detectkit.deploy.cache import read_cache
from detectkit.deploy.onnx import random_images
from detectkit.deploy.qdq import table_from_cache
from detectkit.deploy.scales import LARGEST, Range, ScaleTable, check_table, load_table
from detectkit.errors import ModelError
from detectkit.files import atomic_write
from detectkit.runtimes.onnx import make_session

NOTHING = 1e-6  # values up to it are 0 but for rounding


def read_ranges(path: str | os.PathLike[str], model: onnx.ModelProto) -> ScaleTable:
    """The ranges for a float network: of scales.json, of a TensorRT calibration cache, or of TLT's tensor_scales.

    Raises:
        ModelError: it is none of them, or is of another network.
    """
    try:
        start = Path(path).read_bytes().lstrip()[:1]
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror or error}; detectkit calibrate writes scales.json and calibration.cache"
        ) from error
    amaxes = read_cache(path) if start != b"{" else _tlt_ranges(path)
    if amaxes is None:
        table = load_table(path)
        check_table(table, model, path)
        _check_zeros(table, model, path)
        return table
    # TensorRT's own caches have constants too, and tensors that it has named itself.
    constants = {tensor.name for tensor in model.graph.initializer}
    amaxes = {
        name: amax for name, amax in amaxes.items() if name not in constants and not name.startswith("(")
    }
    table = table_from_cache(model, amaxes)
    everything = {name: Range(amax, -amax, amax, None) for name, amax in amaxes.items()}
    check_table(table._replace(tensors=everything), model, path)
    _check_zeros(table, model, path)
    return table


def write_tlt_ranges(path: Path, table: ScaleTable) -> None:
    """The ranges as TLT's JSON (tensor_scales), which `read_ranges` reads.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {"tensor_scales": {name: item.amax for name, item in table.tensors.items()}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_zeros(table: ScaleTable, model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Refuse a range of 0, which stands for values that are all 0, of a tensor that has others on random images."""
    zeros = [name for name, item in table.tensors.items() if item.amax == 0]
    if not zeros:
        return
    [image] = model.graph.input
    channels, height, width = (side.dim_value for side in image.type.tensor_type.shape.dim[1:])
    batch = image.type.tensor_type.shape.dim[0].dim_value or 1
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    computed = [name for name in zeros if name != image.name]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    images = {image.name: random_images(batch, channels, height, width).numpy()}
    found = make_session(shown.SerializeToString()).run(computed, images) if computed else []
    for name, values in (images | dict(zip(computed, found))).items():
        if name in zeros and np.abs(values).max() > NOTHING:
            raise ModelError(
                f"{path}: {name} has a range of 0, and values up to {np.abs(values).max():.3g} on random images: run"
                " detectkit calibrate on this model"
            )


def _tlt_ranges(path: str | os.PathLike[str]) -> dict[str, float] | None:
    """What TLT's --cal_json_file writes, amax by tensor; None where the file is something else."""
    try:
        scales = json.loads(Path(path).read_text(encoding="utf-8"))["tensor_scales"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(scales, dict) or not scales:
        raise ModelError(
            f"{path}: tensor_scales must be a map with a range for each tensor; make the file again"
        )
    for name, amax in scales.items():
        is_number = isinstance(amax, (int, float)) and not isinstance(amax, bool)
        if not is_number or not 0 <= amax <= LARGEST:  # true of no NaN
            raise ModelError(
                f"{path}: the range of {name} must be a number of 0 or more, not {amax!r}; make the file again"
            )
    return {name: float(amax) for name, amax in scales.items()}
