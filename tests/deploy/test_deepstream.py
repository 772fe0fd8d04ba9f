"""The configuration is held against what nvinfer does with it, written down here in a few lines from its sources."""

import configparser
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit import spec
from detectkit.deploy import deepstream
from detectkit.deploy.deepstream import Files, cluster_mode, engine_name, labels_text, nvinfer_config
from detectkit.heads.clustering import spec_clustering
from detectkit.heads.grid import GridHead
from detectkit.model.detector import outline_of
from detectkit.ops.boxes import iou
from detectkit.ops.cluster import cluster

OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)
FILES = Files("model.onnx", "model.engine", "labels.txt")
PROPERTIES = {
    *("gpu-id", "gie-unique-id", "process-mode", "network-type", "onnx-file", "model-engine-file"),
    *("labelfile-path", "int8-calib-file", "network-mode", "batch-size", "infer-dims", "net-scale-factor"),
    *("offsets", "model-color-format", "maintain-aspect-ratio", "scaling-filter", "num-detected-classes"),
    *("output-blob-names", "cluster-mode"),
}
ATTRIBUTES = {
    *("pre-cluster-threshold", "post-cluster-threshold", "eps", "minBoxes", "dbscan-min-score"),
    *("nms-iou-threshold", "detected-min-h"),
}


def text(experiment, files=FILES, *, channels=3, data_type="fp32"):
    return nvinfer_config(
        experiment,
        files,
        class_names=spec.class_names(experiment),
        outline=outline_of(experiment.model_config, spec.class_names(experiment), channels),
        channels=channels,
        height=64,
        width=96,
        batch_size=4,
        data_type=data_type,
    )


def parsed(content):
    """As GLib's key files: a section a group, comments on lines of their own."""
    parser = configparser.ConfigParser(
        interpolation=None, delimiters="=", comment_prefixes="#", empty_lines_in_values=False
    )
    parser.optionxform = str  # minBoxes
    parser.read_string(content)
    return parser


def entry(experiment, name):
    return experiment.postprocessing_config.target_class_config[name]


def use(experiment, algorithm):
    for name in spec.class_names(experiment):
        config = entry(experiment, name).clustering_config
        config.clustering_algorithm = spec.ClusteringConfig.ClusteringAlgorithm.Value(algorithm)
    return experiment


def test_labels_are_in_the_order_of_the_outputs(tiny):
    assert labels_text(spec.class_names(tiny)) == "square\nbar\n"


def test_a_whole_configuration(tiny):
    found = parsed(text(tiny))
    assert found.sections() == ["property", "class-attrs-0", "class-attrs-1"]
    assert dict(found["property"]) == {
        "gpu-id": "0",
        "gie-unique-id": "1",
        "process-mode": "1",
        "network-type": "0",
        "onnx-file": "model.onnx",
        "model-engine-file": "model.engine",
        "labelfile-path": "labels.txt",
        "network-mode": "0",
        "batch-size": "4",
        "infer-dims": "3;64;96",
        "net-scale-factor": "0.00392156862745098",
        "offsets": "0.0;0.0;0.0",
        "model-color-format": "0",
        "maintain-aspect-ratio": "0",
        "scaling-filter": "1",
        "num-detected-classes": "2",
        "output-blob-names": "output_cov/Sigmoid;output_bbox/BiasAdd",
        "cluster-mode": "1",
    }
    assert dict(found["class-attrs-0"]) == {
        "pre-cluster-threshold": "0.01",
        "eps": "0.4",
        "minBoxes": "1",
        "dbscan-min-score": "0.05",
        "detected-min-h": "0",
    }


@pytest.mark.parametrize("algorithms", list(product(["DBSCAN", "NMS", "HYBRID"], repeat=2)))
def test_keys_are_those_of_nvinfer(tiny, algorithms):
    """topk is not among them: nvinfer refuses the -1 that stands for all, which is what it does without the key."""
    for name, algorithm in zip(spec.class_names(tiny), algorithms):
        config = entry(tiny, name).clustering_config
        config.clustering_algorithm = spec.ClusteringConfig.ClusteringAlgorithm.Value(algorithm)
    found = parsed(text(tiny, FILES._replace(cache="calibration.cache")))
    assert set(found["property"]) == PROPERTIES
    for number in range(2):
        assert set(found[f"class-attrs-{number}"]) <= ATTRIBUTES


@pytest.mark.parametrize("data_type, cache, mode", [
    ("fp32", None, "0"), ("fp16", None, "2"), ("int8", None, "1"),
    ("fp32", "a.cache", "1"), ("fp16", "a.cache", "1"), ("int8", "a.cache", "1"),
])  # fmt: skip
def test_network_mode(tiny, data_type, cache, mode):
    content = text(tiny, FILES._replace(cache=cache), data_type=data_type)
    found = parsed(content)["property"]
    assert found["network-mode"] == mode and found.get("int8-calib-file") == cache
    assert ("Build model-engine-file with `detectkit engine`" in content) == (
        data_type == "int8" and not cache
    )


def test_grey_images(tiny):
    found = parsed(text(tiny, channels=1))["property"]
    assert (found["infer-dims"], found["offsets"], found["model-color-format"]) == ("1;64;96", "0.0", "2")


def test_the_name_of_the_engine_is_the_one_that_nvinfer_gives():
    assert engine_name("a.onnx", batch_size=8, mode="fp16") == "a.onnx_b8_gpu0_fp16.engine"


@pytest.mark.parametrize("samples, confidence, threshold, boxes, score", [
    (0.05, 0.0, 0.0, "1", "0.05"),
    (0.0, 0.0, 0.0, "1", "1"),  # 0 counts as 1
    (1.5, 0.0, 0.0, "2", "1.5"),  # two boxes at least, since a coverage is at most 1
    (3.0, 5.0, 0.0, "3", "5"),
    (3.0, 5.0, 7.5, "3", "7.5"),
])  # fmt: skip
def test_dbscan_values(tiny, samples, confidence, threshold, boxes, score):
    square = entry(tiny, "square")
    square.clustering_config.dbscan_min_samples = samples
    square.clustering_config.dbscan_confidence_threshold = confidence
    square.confidence_config.confidence_threshold = threshold
    found = parsed(text(tiny))["class-attrs-0"]
    assert (found["minBoxes"], found["dbscan-min-score"]) == (boxes, score)


def test_nms_values(tiny):
    use(tiny, "NMS")
    square = entry(tiny, "square")
    square.clustering_config.nms_iou_threshold, square.clustering_config.nms_confidence_threshold = 0.45, 0.2
    square.clustering_config.minimum_bounding_box_height = 9
    square.confidence_config.confidence_threshold = 0.35
    found = parsed(text(tiny))
    assert found["property"]["cluster-mode"] == "2"
    assert dict(found["class-attrs-0"]) == {
        "pre-cluster-threshold": "0.01",
        "nms-iou-threshold": "0.45",
        "post-cluster-threshold": "0.35",
        "detected-min-h": "9",
    }


def test_several_ways_of_clustering(tiny):
    """Mode 3 with minBoxes 0 is NMS alone, so that class stays what it is."""
    entry(tiny, "bar").clustering_config.clustering_algorithm = spec.ClusteringConfig.NMS
    content = text(tiny)
    found = parsed(content)
    assert found["property"]["cluster-mode"] == "3"
    assert (found["class-attrs-1"]["minBoxes"], found["class-attrs-1"]["eps"]) == ("0", "0")
    square = found["class-attrs-0"]
    assert (square["minBoxes"], square["eps"], square["post-cluster-threshold"]) == ("1", "0.4", "0")
    (warning,) = [line for line in deepstream.warnings(tiny, spec.class_names(tiny)) if "one way" in line]
    assert "but square (DBSCAN) get the best box" in warning
    assert "but square (DBSCAN) get the best box" in content.replace("\n# ", " ")


def test_what_nvinfer_cannot_do_is_said(tiny):
    pre, objective = tiny.augmentation_config.preprocessing, tiny.model_config.objective_set.bbox
    names = spec.class_names(tiny)
    (size,) = deepstream.warnings(tiny, names)
    assert "give it frames of 96x64" in size
    pre.enable_auto_resize = True
    assert deepstream.warnings(tiny, names) == []
    objective.offset = 0.25
    (wrong,) = deepstream.warnings(tiny, names)
    assert (
        "scale 35 and offset 0.25" in wrong
        and "takes 35 and 0.5" in wrong
        and "parse-bbox-func-name" in wrong
    )
    objective.offset = 0.5
    pre.crop_right = pre.crop_bottom = 50
    (cropped,) = deepstream.warnings(tiny, names)
    assert "crops or scales images" in cropped


def nvinfer_dbscan(boxes, scores, values):
    """What nvinfer makes of the boxes of a class in cluster-mode 1: rows x1 y1 x2 y2, as a set. A box is near itself."""
    kept = scores >= float(values["pre-cluster-threshold"])
    boxes, scores = boxes[kept], scores[kept]
    close = 1 - iou(boxes[:, None], boxes) < float(values["eps"])
    neighbours = [row.nonzero().flatten().tolist() for row in close]
    core = [len(around) >= int(values["minBoxes"]) for around in neighbours]
    seen, found = set(), set()
    for start in range(len(boxes)):
        if start in seen or not core[start]:
            continue
        members, waiting = set(), [start]
        while waiting:
            index = waiting.pop()
            if index not in seen and core[index]:
                seen.add(index)
                members.add(index)
                waiting += neighbours[index]
        own = torch.tensor(sorted(members))
        total = scores[own].sum()
        if total >= float(values["dbscan-min-score"]):
            # In 64 bits as ours: sums of 32 round to another hundredth now and then.
            weights = scores[own, None].double()
            found.add(rounded(((boxes[own] * weights).sum(0) / weights.sum()).to(boxes.dtype)))
    return found


def nvinfer_nms(boxes, scores, values):
    """What it makes of them in cluster-mode 2."""
    kept = scores >= float(values["pre-cluster-threshold"])
    boxes, scores = boxes[kept], scores[kept]
    apart = (iou(boxes[:, None], boxes) <= float(values["nms-iou-threshold"])).tolist()
    chosen = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(apart[index][other] for other in chosen):
            chosen.append(index)
    return {
        rounded(boxes[index]) for index in chosen if scores[index] > float(values["post-cluster-threshold"])
    }


def rounded(box):
    return tuple(round(value, 2) for value in box.tolist())


@st.composite
def scenes(draw):
    """Boxes [N, 4] around a few objects, and their coverage."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    centers = torch.rand(draw(st.integers(1, 4)), 2, generator=generator) * 80
    centers = centers.repeat_interleave(draw(st.integers(1, 6)), 0)
    corners = centers - 8 + 3 * torch.rand(len(centers), 2, generator=generator)
    sides = 16 + 3 * torch.rand(len(centers), 2, generator=generator)
    return torch.cat((corners, corners + sides), 1), 0.02 + 0.97 * torch.rand(
        len(centers), generator=generator
    )


@settings(max_examples=50)
@given(scene=scenes())
def test_dbscan_gives_the_same_boxes(tiny_text, scene):
    """Where every box may found a cluster, as with the usual values; nvinfer's scores are others."""
    tiny = spec.loads(tiny_text)
    entry(tiny, "square").clustering_config.dbscan_min_samples = 0.01
    boxes, scores = scene
    arguments = GridHead(tiny, OUTLINE).clustering[0]
    ours, _, _ = cluster(boxes, scores, **arguments)
    assert {rounded(box) for box in ours} == nvinfer_dbscan(
        boxes, scores, parsed(text(tiny))["class-attrs-0"]
    )


@settings(max_examples=50)
@given(scene=scenes())
def test_nms_gives_the_same_boxes(tiny_text, scene):
    tiny = use(spec.loads(tiny_text), "NMS")
    boxes, scores = scene
    ours, _, _ = cluster(boxes, scores, **GridHead(tiny, OUTLINE).clustering[0])
    assert {rounded(box) for box in ours} == nvinfer_nms(boxes, scores, parsed(text(tiny))["class-attrs-0"])


@pytest.mark.parametrize("algorithms, mode", [
    (["DBSCAN", "DBSCAN"], 1), (["NMS", "NMS"], 2), (["HYBRID", "HYBRID"], 3), (["NMS", "HYBRID"], 3),
])  # fmt: skip
def test_cluster_mode(tiny, algorithms, mode):
    for name, algorithm in zip(spec.class_names(tiny), algorithms):
        config = entry(tiny, name).clustering_config
        config.clustering_algorithm = spec.ClusteringConfig.ClusteringAlgorithm.Value(algorithm)
    assert cluster_mode(spec_clustering(tiny.postprocessing_config).values()) == mode


def test_a_name_writes_no_line_of_its_own():
    hostile = "car\ncustom-lib-path=/tmp/x.so"
    assert labels_text([hostile, "van"]) == "car\\ncustom-lib-path=/tmp/x.so\nvan\n"
    assert deepstream._group("property", {"onnx-file": hostile}) == (
        "[property]\nonnx-file=car\\ncustom-lib-path=/tmp/x.so\n"
    )
