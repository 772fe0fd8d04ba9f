"""The detections of the ONNX model are those of the Python path: same boxes, scores and order."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from detectkit import spec
from detectkit.deploy.half import half
from detectkit.deploy.nms import add_nms
from detectkit.deploy.onnx import to_model
from detectkit.errors import UsageError
from detectkit.heads.grid import GridHead
from detectkit.model.detector import outline_of
from detectkit.model import checkpoint
from detectkit.model.header import INPUT

ROWS, COLUMNS = 4, 6  # of the tiny experiment
OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)
NMS = spec.ClusteringConfig.NMS


def maps_only(opset: int = 20) -> onnx.ModelProto:
    """A model whose input holds both maps, [N, 10, 4, 6], which it gives as they are."""
    maps = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 10, ROWS, COLUMNS])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, ROWS, COLUMNS])
        for name, channels in zip(OUTLINE.names, (2, 8), strict=True)
    ]
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [2, 8])
    nodes = [helper.make_node("Split", [INPUT, "sizes"], OUTLINE.names, axis=1)]
    graph = helper.make_graph(nodes, "maps", [maps], outputs, initializer=[sizes])
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def clusters(experiment: spec.Experiment, name: str) -> spec.ClusteringConfig:
    config: spec.ClusteringConfig = experiment.postprocessing_config.target_class_config[
        name
    ].clustering_config
    return config


@pytest.fixture
def suppressed(tiny: spec.Experiment) -> spec.Experiment:
    """The tiny spec with NMS of different settings for its two classes."""
    square, bar = clusters(tiny, "square"), clusters(tiny, "bar")
    square.clustering_algorithm = bar.clustering_algorithm = NMS
    square.coverage_threshold, square.nms_confidence_threshold, square.nms_iou_threshold = 0.2, 0.3, 0.5
    bar.coverage_threshold, bar.nms_confidence_threshold, bar.nms_iou_threshold = 0.25, 0.1, 0.3
    bar.minimum_bounding_box_height = 20
    tiny.postprocessing_config.target_class_config["bar"].confidence_config.confidence_threshold = 0.4
    return tiny


def run(model: onnx.ModelProto, values: Tensor) -> Tensor:
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["detections"], {INPUT: values.numpy()})
    return torch.from_numpy(found)


def expected(experiment: spec.Experiment, coverage: Tensor, bbox: Tensor) -> Tensor:
    """The rows that `GridHead.detections` means."""
    images = GridHead(experiment, OUTLINE).detections((coverage, bbox))
    rows = [
        torch.column_stack(
            (torch.full((len(found.scores),), float(number)), found.classes, found.scores, found.boxes)
        )
        for number, found in enumerate(images)
    ]
    return torch.cat(rows)


def random_maps(seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Half of the cells see something; coverages are hundredths, so that some are equal."""
    generator = torch.Generator().manual_seed(seed)
    coverage = torch.randint(0, 101, (images, 2, ROWS, COLUMNS), generator=generator) / 100
    bbox = torch.randn(images, 8, ROWS, COLUMNS, generator=generator) * 0.6 + 0.4
    return coverage, bbox


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), images=st.integers(1, 3))
def check_random(
    session: onnxruntime.InferenceSession, experiment: spec.Experiment, seed: int, images: int
) -> None:
    coverage, bbox = random_maps(seed, images)
    (found,) = session.run(["detections"], {INPUT: torch.cat((coverage, bbox), dim=1).numpy()})
    np.testing.assert_array_equal(found, expected(experiment, coverage, bbox).numpy())


@pytest.mark.parametrize("overlap", [0.3, 0.5])  # one threshold for both classes, or two
def test_random_maps_give_the_same_rows_to_the_last_bit(suppressed: spec.Experiment, overlap: float) -> None:
    clusters(suppressed, "square").nms_iou_threshold = overlap
    model = add_nms(maps_only(), suppressed, OUTLINE)
    assert sum(node.op_type == "NonMaxSuppression" for node in model.graph.node) == (
        1 if overlap == 0.3 else 2
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    check_random(session, suppressed)
    assert len(expected(suppressed, *random_maps(0, 3))) > 20  # there is something to compare


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
def test_every_opset_has_it(suppressed: spec.Experiment, opset: int) -> None:
    coverage, bbox = random_maps(1, 2)
    model = add_nms(maps_only(opset), suppressed, OUTLINE)
    wanted = expected(suppressed, coverage, bbox)
    assert len(wanted) > 10
    assert torch.equal(run(model, torch.cat((coverage, bbox), dim=1)), wanted)


def test_thresholds_count_as_in_python(suppressed: spec.Experiment) -> None:
    """One cell of each kind: which are strict, and that a low box suppresses before it is dropped."""
    scale = suppressed.model_config.objective_set.bbox.scale
    coverage, bbox = torch.zeros(1, 2, ROWS, COLUMNS), torch.zeros(1, 8, ROWS, COLUMNS)

    def put(number: int, row: int, column: int, score: float, sides: tuple[float, ...]) -> None:
        """A box from the centre of a cell to this many pixels to the left, up, right and down."""
        coverage[0, number, row, column] = score
        bbox[0, 4 * number : 4 * number + 4, row, column] = torch.tensor(sides) / scale

    square = clusters(suppressed, "square")
    square.coverage_threshold, square.nms_confidence_threshold = 0.25, 0.5
    put(0, 0, 0, 0.5, (0, 0, 8, 8))  # as sure as it must be
    put(0, 0, 5, 0.4375, (8, 0, 8, 8))  # less
    put(1, 2, 0, 0.4375, (0, 0, 8, 20))  # as high as is too low
    put(1, 2, 2, 0.4375, (0, 0, 8, 21))
    put(1, 3, 4, 0.75, (0, 9, 16, 9))  # too low, better than, and half of the next
    put(1, 3, 5, 0.5, (16, 20, 0, 12))
    model = add_nms(maps_only(), suppressed, OUTLINE)
    found = run(model, torch.cat((coverage, bbox), dim=1))
    assert torch.equal(found, expected(suppressed, coverage, bbox))
    assert found[:, 1:3].tolist() == [[0, 0.5], [1, 0.4375]]

    coverage[:] = 0
    assert run(model, torch.cat((coverage, bbox), dim=1)).shape == (0, 7)


def test_what_is_no_number_is_no_detection(suppressed: spec.Experiment) -> None:
    coverage, bbox = random_maps(2, 3)
    generator = torch.Generator().manual_seed(3)
    for values in (coverage, bbox):
        values[torch.rand(values.shape, generator=generator) < 0.1] = torch.nan
    bbox[torch.rand(bbox.shape, generator=generator) < 0.1] = torch.inf
    bbox[torch.rand(bbox.shape, generator=generator) < 0.1] = -torch.inf
    wanted = expected(suppressed, coverage, bbox)
    found = run(add_nms(maps_only(), suppressed, OUTLINE), torch.cat((coverage, bbox), dim=1))
    assert len(wanted) > 5 and torch.equal(found, wanted)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_whole_network_detects_what_is_on_the_pictures(
    suppressed: spec.Experiment, learnt: Path, precision: str
) -> None:
    detector = checkpoint.load(learnt).detector
    plain = to_model(detector, height=64, width=96)
    model = add_nms(half(plain) if precision == "fp16" else plain, suppressed, detector.outline)
    assert [output.name for output in model.graph.output] == [*OUTLINE.names, "detections"]
    assert len(plain.graph.output) == 2  # it stays as it was
    images = torch.rand(2, 3, 64, 96)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    coverage, bbox, found = map(torch.from_numpy, session.run(None, {INPUT: images.numpy()}))
    assert torch.equal(found, expected(suppressed, coverage, bbox)) and len(found) > 0


def test_another_clustering_is_refused(suppressed: spec.Experiment) -> None:
    before = copy.deepcopy(suppressed)
    clusters(suppressed, "bar").clustering_algorithm = spec.ClusteringConfig.DBSCAN
    with pytest.raises(UsageError, match='clusters "bar" with DBSCAN.*clustering_algorithm: NMS'):
        add_nms(maps_only(), suppressed, OUTLINE)
    clusters(suppressed, "bar").clustering_algorithm = spec.ClusteringConfig.HYBRID
    with pytest.raises(UsageError, match="HYBRID"):
        add_nms(maps_only(), suppressed, OUTLINE)
    assert add_nms(maps_only(), before, OUTLINE).graph.output[2].name == "detections"
