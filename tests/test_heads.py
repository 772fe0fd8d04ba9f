"""Targets of known boxes, taken for the answer of a network, give the boxes back."""

import pytest
import torch

from detectkit import spec
from detectkit.data.augment import Labels, Prepared
from detectkit.heads import GridHead, by_class, clustering_arguments


def labels(boxes, classes, images):
    return Labels(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(images, dtype=torch.int64),
        ["label"] * len(boxes),
    )


def prepared(boxes, classes, images, count):
    """A batch of `count` grey pictures of 96 x 64 with labels."""
    return Prepared(
        images=torch.zeros(count, 3, 64, 96),
        labels=labels(boxes, classes, images),
        others=labels([], [], []),
        weights=torch.ones(count),
        matrices=torch.eye(3).repeat(count, 1, 1),
    )


def perfect(head, batch):
    targets = head.targets(batch)
    return targets.coverage, targets.bbox.flatten(1, 2)


SQUARE, BAR, WIDE = [3.0, 5.0, 43.0, 45.0], [50.0, 20.0, 94.0, 44.0], [2.0, 10.0, 90.0, 60.0]


def test_encoded_boxes_decode_to_themselves(tiny):
    head = GridHead(tiny)
    batch = prepared([SQUARE, BAR, WIDE], [0, 1, 1], [0, 0, 2], 3)
    outputs = perfect(head, batch)
    first, second, third = head.detections(outputs)
    assert sorted(first.classes.tolist()) == [0, 1] and third.classes.tolist() == [1]
    assert len(second.boxes) == len(second.scores) == len(second.classes) == 0
    torch.testing.assert_close(first.boxes[first.classes == 0], torch.tensor([SQUARE]), atol=1e-3, rtol=0)
    torch.testing.assert_close(first.boxes[first.classes == 1], torch.tensor([BAR]), atol=1e-3, rtol=0)
    torch.testing.assert_close(third.boxes, torch.tensor([WIDE]), atol=1e-3, rtol=0)
    # The confidence is the coverage of all cells of the object, the greatest comes first.
    total = outputs[0].sum((2, 3))
    assert first.scores.tolist() == pytest.approx(sorted(total[0].tolist(), reverse=True))
    assert third.scores.tolist() == pytest.approx([total[2, 1].item()])


def test_scale_and_offset_are_the_specs(tiny):
    batch = prepared([SQUARE], [0], [0], 1)
    usual = GridHead(tiny).targets(batch).bbox
    tiny.model_config.objective_set.bbox.scale = 70
    tiny.model_config.objective_set.bbox.offset = 8.0
    head = GridHead(tiny)
    targets = head.targets(batch)
    covered = targets.coverage[0, 0] > 0
    # Left: (anchor - x1) / scale, where the anchor has moved from 0.5 to 8 pixels into the cell.
    torch.testing.assert_close(targets.bbox[0, 0, 0][covered], (usual[0, 0, 0][covered] * 35 + 7.5) / 70)
    torch.testing.assert_close(
        head.detections(perfect(head, batch))[0].boxes, torch.tensor([SQUARE]), atol=1e-3, rtol=0
    )


def test_channels_are_class_major():
    maps = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert by_class(maps)[0, :, :, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_perfect_boxes_cost_nothing_and_image_weights_count(tiny):
    head = GridHead(tiny)
    batch = prepared([SQUARE, BAR], [0, 1], [0, 1], 2)
    targets = head.targets(batch)
    costs = head.costs(perfect(head, batch), targets, torch.ones(2))
    assert costs.shape == (2, 2)
    assert costs[:, 1].tolist() == [0, 0]
    wrong = (targets.coverage, targets.bbox.flatten(1, 2) + 0.5)
    # Half a unit off on every side: the mean of 0.5 x coverage_norm over all cells.
    expected = 0.5 * targets.coverage_norm.mean((0, 2, 3))
    torch.testing.assert_close(head.costs(wrong, targets, torch.ones(2))[:, 1], expected)
    alone = head.costs(wrong, targets, torch.tensor([3.0, 0.0]))[:, 1]
    torch.testing.assert_close(alone, expected * torch.tensor([3.0, 0.0]))


def test_clustering_is_read_from_the_spec(tiny):
    config = tiny.postprocessing_config.target_class_config["bar"].clustering_config
    config.clustering_algorithm = spec.ClusteringConfig.NMS
    config.nms_iou_threshold = 0.25
    config.minimum_bounding_box_height = 7
    square, bar = GridHead(tiny).clustering
    assert square["algorithm"] == "dbscan" and square["dbscan_eps"] == pytest.approx(0.4)
    assert bar["algorithm"] == "nms" and bar["nms_iou_threshold"] == 0.25 and bar["minimum_height"] == 7


def test_an_inference_spec_brings_its_own_clustering_with_a_default(tiny):
    own = {"bar": spec.ClusteringConfig(dbscan_eps=0.25), "default": spec.ClusteringConfig(dbscan_eps=0.5)}
    square, bar = GridHead(tiny, clustering=own).clustering
    assert (square["dbscan_eps"], bar["dbscan_eps"]) == (0.5, 0.25)
    square, bar = GridHead(tiny, clustering={}).clustering
    assert square == bar == clustering_arguments(spec.ClusteringConfig())
    assert square["dbscan_eps"] == pytest.approx(0.15) and square["coverage_threshold"] == pytest.approx(
        0.005
    )


def test_each_class_is_clustered_with_its_own_values(tiny):
    tiny.postprocessing_config.target_class_config["bar"].clustering_config.minimum_bounding_box_height = 24
    head = GridHead(tiny)
    batch = prepared([SQUARE, BAR], [0, 1], [0, 0], 1)
    (found,) = head.detections(perfect(head, batch))
    assert found.classes.tolist() == [0]  # the bar is 24 high, and has to be taller
