"""DeepStream: what its `nvinfer` needs to run a detector and to cluster as the spec says.

Facts are from nvinfer of DeepStream 6 to 8: its built-in parser finds the maps by "cov" and "bbox" in their names and
takes 35 for the scale and 0.5 for the offset of the boxes; its clusterers are compared with `ops.cluster` below.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit import spec
from detectkit.console import visible
from detectkit.data.batch import has_crop
from detectkit.errors import UsageError
from detectkit.files import atomic_write
from detectkit.heads import Outline, make_head
from detectkit.heads.clustering import ClassClustering, spec_clustering
from detectkit.heads.grid import GridHead
from detectkit.spec.schema import short

LABELS, CONFIG = "labels.txt", "nvinfer_config.txt"  # TLT's names
SCALE, OFFSET = 35.0, 0.5  # of the boxes, in nvinfer's own parser
NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
DBSCAN, NMS, HYBRID = 1, 2, 3  # cluster-mode

Algorithm = spec.ClusteringConfig.ClusteringAlgorithm


class Files(NamedTuple):
    """Names as the configuration gives them: relative to its own folder."""

    onnx: str
    engine: str
    labels: str
    cache: str | None = None  # calibration cache, by which TensorRT 8 to 10 make a float ONNX file 8-bit


def require_parser(experiment: spec.Experiment, outline: Outline) -> None:
    """Refuse maps that nvinfer's own parser does not read: it reads TLT's grid.

    Raises:
        UsageError: the head is another.
    """
    if not isinstance(make_head(experiment, outline), GridHead):
        raise UsageError(
            "nvinfer's own parser reads the grid head only (objective_set): leave --gen_ds_config out, and give nvinfer a"
            " parser of this head's maps"
        )


def labels_text(class_names: Sequence[str]) -> str:
    """The file of `labelfile-path`: one class a line, in the order of the network's outputs."""
    return "".join(f"{visible(name)}\n" for name in class_names)


def engine_name(onnx: str, *, batch_size: int, mode: str) -> str:
    """The name under which nvinfer saves the engine that it builds; `mode` is fp32, fp16 or int8."""
    return f"{onnx}_b{batch_size}_gpu0_{mode}.engine"


def write_config(
    onnx: Path,
    experiment: spec.Experiment,
    *,
    class_names: Sequence[str],
    outline: Outline,
    channels: int,
    height: int,
    width: int,
    batch_size: int,
    data_type: str,
    cache: Path | None,
) -> list[Path]:
    """Write `labels_text` and `nvinfer_config` beside an ONNX file; gives their paths. The arguments are those of the latter.

    Raises:
        OutputError: a file cannot be written.
    """
    mode = "int8" if cache else data_type
    files = Files(
        onnx=onnx.name,
        engine=engine_name(onnx.name, batch_size=batch_size, mode=mode),
        labels=LABELS,
        cache=os.path.relpath(cache, onnx.parent) if cache else None,
    )
    config = nvinfer_config(
        experiment,
        files,
        class_names=class_names,
        outline=outline,
        channels=channels,
        height=height,
        width=width,
        batch_size=batch_size,
        data_type=data_type,
    )
    texts = {onnx.with_name(LABELS): labels_text(class_names), onnx.with_name(CONFIG): config}
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)


def nvinfer_config(
    experiment: spec.Experiment,
    files: Files,
    *,
    class_names: Sequence[str],
    outline: Outline,
    channels: int,
    height: int,
    width: int,
    batch_size: int,
    data_type: str,
) -> str:
    """A complete nvinfer configuration: network, preprocessing, and clustering as the spec's post-processing says.

    What nvinfer cannot do the same way stands in comments; `warnings` gives the grave part of it.

    Args:
        class_names: in the order of the network's outputs.
        outline: what it gives.
        channels: of the images, 3 or 1.
        height: of the network's input in pixels.
        width: likewise.
        batch_size: the greatest.
        data_type: of the ONNX file: fp32, fp16 or int8.
    """
    clustering = _clustering(experiment, class_names)
    mode = cluster_mode(clustering.values())
    quantised = data_type == "int8" or files.cache is not None
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 0,
        "onnx-file": files.onnx,
        "model-engine-file": files.engine,
        "labelfile-path": files.labels,
        **({"int8-calib-file": files.cache} if files.cache else {}),
        "network-mode": NETWORK_MODES["int8" if quantised else data_type],
        "batch-size": batch_size,
        "infer-dims": f"{channels};{height};{width}",
        "net-scale-factor": 1 / 255,
        "offsets": ";".join(["0.0"] * channels),
        "model-color-format": 0 if channels == 3 else 2,
        "maintain-aspect-ratio": 0,
        "scaling-filter": 1,  # bilinear; nvinfer's own choice is the nearest pixel
        "num-detected-classes": len(class_names),
        "output-blob-names": ";".join(outline.names),
        "cluster-mode": mode,
    }
    notes = [
        "nvinfer configuration of detectkit; the values are those of the spec. Paths are relative to this file.",
        _engine_note(data_type, files),
        *_clustering_notes(mode, clustering.values()),
        *warnings(experiment, class_names),
    ]
    groups = [_group("property", properties)]
    for number, (name, own) in enumerate(clustering.items()):
        groups.append(f"# {visible(name)}\n" + _group(f"class-attrs-{number}", _class_attributes(own, mode)))
    return "\n".join(["\n#\n".join(map(_comment, notes)) + "\n", *groups])


def warnings(experiment: spec.Experiment, class_names: Sequence[str]) -> list[str]:
    """What nvinfer does so differently from the spec that boxes will not be the same; a sentence each."""
    found = []
    objective = experiment.model_config.objective_set.bbox
    if (objective.scale, objective.offset) != (SCALE, OFFSET):
        found.append(
            f"the spec's boxes have scale {short(objective.scale)} and offset {short(objective.offset)}, nvinfer's own parser"
            f" takes {SCALE:g} and {OFFSET:g}: its boxes will be wrong; give it a parser (parse-bbox-func-name, custom-lib-path)"
        )
    clustering = _clustering(experiment, class_names)
    if cluster_mode(clustering.values()) == HYBRID:
        merged = [
            name for name, own in clustering.items() if own.config.clustering_algorithm == Algorithm.DBSCAN
        ]
        if merged:
            found.append(
                "nvinfer has one way of clustering for all classes, the spec has several: cluster-mode 3 is NMS for the"
                f" classes that ask for it, but {', '.join(merged)} (DBSCAN) get the best box of a cluster, not their mean"
            )
    pre = experiment.augmentation_config.preprocessing
    if has_crop(pre) or not {pre.scale_width, pre.scale_height} <= {0, 1}:
        found.append(
            "the spec crops or scales images, nvinfer takes whole frames: cut them before it (nvvideoconvert, nvdspreprocess)"
        )
    elif not pre.enable_auto_resize:
        found.append(
            f"the spec does not resize images (enable_auto_resize), nvinfer does: give it frames of {pre.output_image_width}x"
            f"{pre.output_image_height} (width and height of the muxer)"
        )
    return found


def cluster_mode(clustering: Iterable[ClassClustering]) -> int:
    """nvinfer's `cluster-mode`, one for all classes: where they differ, HYBRID, which is NMS for a minBoxes of 0."""
    algorithms = {own.config.clustering_algorithm for own in clustering}
    if algorithms == {Algorithm.DBSCAN}:
        return DBSCAN
    return NMS if algorithms == {Algorithm.NMS} else HYBRID


def _clustering(experiment: spec.Experiment, class_names: Sequence[str]) -> dict[str, ClassClustering]:
    found = spec_clustering(experiment.postprocessing_config)
    return {name: found[name] for name in class_names}


def _class_attributes(own: ClassClustering, mode: int) -> dict[str, object]:
    """The keys of a class. A `topk` of -1, all, is nvinfer's own value, and refused where it is written."""
    config = own.config
    has_clusters = config.clustering_algorithm != Algorithm.NMS
    values: dict[str, object] = {"pre-cluster-threshold": short(config.coverage_threshold)}
    if mode != NMS:
        # A coverage is at most 1: as many boxes are needed at least. 0 turns DBSCAN off.
        least = config.dbscan_min_samples or 1.0
        values["eps"] = short(config.dbscan_eps) if has_clusters else 0
        values["minBoxes"] = max(1, math.ceil(least)) if has_clusters else 0
        if mode == DBSCAN:
            # The sum over a cluster is no less than that of a neighbourhood in it.
            score = max(least, config.dbscan_confidence_threshold, own.confidence_threshold)
            values["dbscan-min-score"] = short(score)
    if mode != DBSCAN:
        values["nms-iou-threshold"] = short(config.nms_iou_threshold)
        merged = config.clustering_algorithm == Algorithm.DBSCAN  # its thresholds are for sums of coverages
        score = 0.0 if merged else max(config.nms_confidence_threshold, own.confidence_threshold)
        values["post-cluster-threshold"] = short(score)
    values["detected-min-h"] = config.minimum_bounding_box_height
    return values


def _engine_note(data_type: str, files: Files) -> str:
    build = "nvinfer builds model-engine-file from onnx-file when it is not there, which takes minutes"
    if files.cache and data_type != "int8":
        return (
            f"{build}; in 8 bits by int8-calib-file, whose first line must name the TensorRT that is there"
            " (detectkit calibrate --retarget), 8 to 10."
        )
    if files.cache:
        return (
            f"{build}. The scales are in the ONNX file; int8-calib-file is there because nvinfer builds for 8 bits only with one,"
            " and TensorRT says that it does not use it."
        )
    if data_type == "int8":
        return (
            "Build model-engine-file with `detectkit engine` (or trtexec --int8) where it will run: nvinfer itself builds for"
            " 8 bits only with an int8-calib-file."
        )
    return f"{build}, as `detectkit engine` does."


def _clustering_notes(mode: int, clustering: Iterable[ClassClustering]) -> list[str]:
    """How close nvinfer's clustering comes to ours."""
    notes = []
    if mode == DBSCAN:
        notes.append(
            "DBSCAN: minBoxes counts boxes where the spec's dbscan_min_samples sums up their coverage: it is the least number"
            " that can reach the sum, and dbscan-min-score asks for the sum of the whole cluster, so a few clusters more may"
            " come out than in `detectkit evaluate`. nvinfer reports the greatest coverage of a cluster, not the sum, and"
            " drops a cluster whose sqrt(area in pixels) is above 60 for each of its boxes."
        )
    elif mode == HYBRID and any(own.config.clustering_algorithm != Algorithm.NMS for own in clustering):
        notes.append(
            "cluster-mode 3: minBoxes counts boxes where the spec's dbscan_min_samples sums up their coverage; nvinfer does"
            " not look at dbscan_confidence_threshold here."
        )
    notes.append(
        "detected-min-h is in pixels of the muxer's frames, minimum_bounding_box_height in those of the network: multiply it"
        " by the ratio of their heights. (0: no limit.)"
    )
    return notes


def _comment(text: str) -> str:
    return textwrap.fill(
        visible(text), 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _group(name: str, values: Mapping[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key}={visible(str(value))}\n" for key, value in values.items())
