"""Boxes and non-maximum suppression inside an ONNX model: what `heads.grid.GridHead` does with the maps, as nodes.

B images, C classes, K cells, N boxes kept by the suppression, M detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detectkit.errors import UsageError
from detectkit.heads import Outline, make_head
from detectkit.heads.grid import GridHead
from detectkit.spec import Experiment

DETECTIONS = "detections"


def add_nms(model: onnx.ModelProto, experiment: Experiment, outline: Outline) -> onnx.ModelProto:
    """A copy with a third output, "detections" [M, 7] float32: image, class, score, x1, y1, x2, y2.

    They are those of `GridHead.detections`, by image and descending score: the image is the place in the batch, the class
    counts from 0 in the order of the spec, and corners are in pixels of the network's input. The maps stay outputs.

    Args:
        model: as `onnx.to_model` makes it, or half precision or 8 bits of that; it stays as it is.
        experiment: `postprocessing_config` says how; all classes must cluster with NMS.
        outline: of the network.

    Raises:
        UsageError: the spec clusters a class in another way, or the head is not the grid.
    """
    head = make_head(experiment, outline)
    if not isinstance(head, GridHead):
        raise UsageError("NMS in the file is written for the grid head only (objective_set): leave --nms out")
    for name, options in zip(head.class_names, head.clustering, strict=True):
        if options["algorithm"] != "nms":
            raise UsageError(
                f'the spec clusters "{name}" with {options["algorithm"].upper()}, which ONNX has not: set'
                " clustering_algorithm: NMS for every class in postprocessing_config, or leave --nms out"
            )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Writer(result.graph, head, outline.names).write()
    shape: list[int | str] = ["M", 7]
    result.graph.output.append(helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, shape))
    onnx.checker.check_model(result, full_check=True)
    return result


class _Writer:
    def __init__(self, graph: onnx.GraphProto, head: GridHead, outputs: list[str]) -> None:
        self.graph, self.head = graph, head
        self.coverage, self.distances = outputs
        sides = {value.name: value.type.tensor_type.shape.dim for value in graph.output}
        self.rows, self.columns = (side.dim_value for side in sides[self.coverage][2:])
        self.cells = self.rows * self.columns

    def write(self) -> None:
        boxes, scores = self._boxes(), self._scores()
        thresholds = [options["nms_iou_threshold"] for options in self.head.clustering]
        # ONNX suppresses with one threshold at a time.
        parts = [
            self._suppressed(
                f"group{number}", boxes, scores, [c for c, own in enumerate(thresholds) if own == threshold]
            )
            for number, threshold in enumerate(dict.fromkeys(thresholds))
        ]
        found = self._add("Concat", "found", *parts, axis=0) if len(parts) > 1 else parts[0]
        self._sorted(self._tall(found))

    def _boxes(self) -> str:
        """Corners [B, C, K, 4], as `ops.decode`."""
        head, classes = self.head, len(self.head.class_names)
        x, y = (
            np.arange(count, dtype=np.float32) * np.float32(head.stride) + np.float32(head.offset)
            for count in (self.columns, self.rows)
        )
        centres = np.stack([np.tile(x, self.rows), np.repeat(y, self.columns)])  # [2, K]
        ends = _floats([[head.width], [head.height]])
        distances = self._add("Reshape", "maps", self.distances, np.array([0, classes, 4, self.cells]))
        pixels = self._add("Mul", "distances", distances, np.float32(head.scale))
        near, far = (
            self._add("Gather", name, pixels, np.array(index), axis=2)
            for name, index in (("left_top", [0, 1]), ("right_bottom", [2, 3]))
        )
        first = self._add("Sub", "first", centres, near)
        first = self._add("Min", "first/in", self._add("Max", "first/positive", first, np.float32(0)), ends)
        last = self._add("Min", "last/in", self._add("Add", "last", centres, far), ends)
        last = self._add("Max", "last/uncrossed", last, first)
        corners = self._add("Concat", "corners", first, last, axis=2)
        return self._add("Transpose", "boxes", corners, perm=[0, 1, 3, 2])

    def _scores(self) -> str:
        """Coverage [B, C, K] of the candidates; -1 for the other cells."""
        classes = len(self.head.class_names)
        coverage = self._add("Reshape", "coverage", self.coverage, np.array([0, classes, self.cells]))
        clustering = self.head.clustering
        above = _floats([[options["coverage_threshold"]] for options in clustering])
        least = _floats(
            [
                [max(options["nms_confidence_threshold"], options["confidence_threshold"])]
                for options in clustering
            ]
        )
        good = self._add("Greater", "above", coverage, above)
        # Better boxes suppress worse ones only, so that it is the same to drop these before.
        good = self._add("And", "sure", good, self._add("GreaterOrEqual", "least", coverage, least))
        wrong = self._add("IsNaN", "nan", f"{DETECTIONS}/maps")
        wrong = self._add("Cast", "nan/number", wrong, to=TensorProto.FLOAT)
        wrong = self._add("ReduceSum", "nan/count", wrong, np.array([2]), keepdims=0)
        good = self._add("And", "candidate", good, self._add("Less", "finite", wrong, np.float32(0.5)))
        return self._add("Where", "scores", good, coverage, np.float32(-1))

    def _suppressed(self, part: str, boxes: str, scores: str, classes: list[int]) -> str:
        """Rows [N, 7] of what is kept of these classes, which have one threshold; by image, class and score."""
        count, index = len(classes), np.array(classes)
        if count < len(self.head.class_names):
            boxes = self._add("Gather", f"{part}/boxes", boxes, index, axis=1)
            scores = self._add("Gather", f"{part}/scores", scores, index, axis=1)
        # Every class of every image is a batch entry of its own: boxes of ONNX's classes would be common to all.
        boxes = self._add("Reshape", f"{part}/all_boxes", boxes, np.array([-1, self.cells, 4]))
        scores = self._add("Reshape", f"{part}/all_scores", scores, np.array([-1, 1, self.cells]))
        overlap = self.head.clustering[classes[0]]["nms_iou_threshold"]
        limits = np.array([self.cells]), _floats([overlap]), _floats([0])
        chosen = self._add("NonMaxSuppression", f"{part}/chosen", boxes, scores, *limits)
        entry = self._add("Gather", f"{part}/entry", chosen, np.array([0]), axis=1)
        image = self._add("Div", f"{part}/image", entry, np.array(count))
        number = self._add(
            "Gather", f"{part}/class", index, self._add("Mod", f"{part}/place", entry, np.array(count))
        )
        score = self._add("GatherND", f"{part}/score", scores, chosen)
        place = self._add("Gather", f"{part}/cell", chosen, np.array([0, 2]), axis=1)
        columns = [
            self._add("Cast", f"{part}/image/number", image, to=TensorProto.FLOAT),
            self._add("Cast", f"{part}/class/number", number, to=TensorProto.FLOAT),
            self._add("Reshape", f"{part}/score/column", score, np.array([-1, 1])),
            self._add("GatherND", f"{part}/corners", boxes, place),
        ]
        return self._add("Concat", part, *columns, axis=1)

    def _tall(self, found: str) -> str:
        """Those rows whose boxes are high enough: only now, since a low box may have suppressed others."""
        heights = _floats([options["minimum_height"] for options in self.head.clustering])
        top, bottom, number = (
            self._add("Gather", name, found, np.array(column), axis=1)
            for name, column in (("top", 4), ("bottom", 6), ("class", 1))
        )
        least = self._add(
            "Gather", "least_height", heights, self._add("Cast", "class/index", number, to=TensorProto.INT64)
        )
        tall = self._add("Greater", "tall", self._add("Sub", "height", bottom, top), least)
        index = self._add("Reshape", "tall/index", self._add("NonZero", "tall/where", tall), np.array([-1]))
        return self._add("Gather", "kept", found, index, axis=0)

    def _sorted(self, rows: str) -> None:
        """By image and descending score; TopK leaves what is equal in its order."""
        for name, column, largest, end in (("by_score", 2, 1, ""), ("by_image", 0, 0, DETECTIONS)):
            key = self._add("Gather", f"{name}/key", rows, np.array(column), axis=1)
            values, order = f"{DETECTIONS}/{name}/values", f"{DETECTIONS}/{name}/order"
            count = self._add("Shape", f"{name}/count", key)
            self.graph.node.append(
                helper.make_node("TopK", [key, count], [values, order], name=order, axis=0, largest=largest)
            )
            rows = self._add("Gather", end or name, rows, order, axis=0)

    def _add(self, kind: str, name: str, *inputs: str | NDArray[Any] | np.generic, **attributes: Any) -> str:
        """A node whose value has this name, behind that of the output; its arrays become constants."""
        full = name if name == DETECTIONS else f"{DETECTIONS}/{name}"
        names = []
        for position, value in enumerate(inputs):
            if not isinstance(value, str):
                constant = numpy_helper.from_array(np.asarray(value), f"{full}.{position}")
                self.graph.initializer.append(constant)
                value = constant.name
            names.append(value)
        self.graph.node.append(helper.make_node(kind, names, [full], name=full, **attributes))
        return full


def _floats(values: Sequence[Any]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
