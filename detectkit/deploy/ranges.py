"""The ranges of a network's tensors, from any of the files that have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx

from detectkit.deploy.cache import read_cache
from detectkit.deploy.qdq import table_from_cache
from detectkit.deploy.scales import LARGEST, Range, ScaleTable, check_table, load_table
from detectkit.errors import ModelError


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
        return table
    # TensorRT's own caches have constants too, and tensors that it has named itself.
    constants = {tensor.name for tensor in model.graph.initializer}
    amaxes = {
        name: amax for name, amax in amaxes.items() if name not in constants and not name.startswith("(")
    }
    table = table_from_cache(model, amaxes)
    everything = {name: Range(amax, -amax, amax, None) for name, amax in amaxes.items()}
    check_table(table._replace(tensors=everything), model, path)
    return table


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
