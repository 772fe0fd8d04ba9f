"""The search for clustering values, on network answers made by hand."""

import pytest
import torch

from detectkit import spec, tune
from detectkit.data.augment import Labels, Prepared
from detectkit.evaluation import evaluate
from detectkit.heads.grid import GridHead
from detectkit.model.detector import outline_of
from detectkit.predict import Latency, Predicted
from detectkit.tune import GRID, tune_clustering


def predicted(head, coverage, boxes, truth):
    """A batch of one image from coverage by class and cell {(class, row, column): value} with boxes in pixels."""
    maps = torch.zeros(1, 2, 4, 6)
    distances = torch.zeros(1, 2, 4, 4, 6)
    for (index, row, column), value in coverage.items():
        maps[0, index, row, column] = value
        x1, y1, x2, y2 = boxes[index, row, column]
        x, y = 16 * column + head.offset, 16 * row + head.offset
        distances[0, index, :, row, column] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / head.scale
    labels = Labels(
        torch.tensor([box for box, _ in truth], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([number for _, number in truth], dtype=torch.int64),
        torch.zeros(len(truth), dtype=torch.int64),
        [head.class_names[number] for _, number in truth],
    )
    none = Labels(*(column[:0] for column in labels))
    prepared = Prepared(torch.zeros(1, 3, 64, 96), labels, none, torch.ones(1), torch.eye(3)[None])
    outputs = (maps, distances.flatten(1, 2))
    return Predicted(None, prepared, outputs, head.detections(outputs), Latency(1.0, 1.0, 1.0))


OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)
LEFT, RIGHT = (0.0, 0.0, 32.0, 32.0), (48.0, 16.0, 90.0, 60.0)


def weak_squares(head):
    """Two squares of two cells each; their coverage adds up to 0.3."""
    cells = {(0, 0, 0): 0.2, (0, 1, 0): 0.1, (0, 2, 4): 0.15, (0, 3, 4): 0.15}
    boxes = {(0, 0, 0): LEFT, (0, 1, 0): LEFT, (0, 2, 4): RIGHT, (0, 3, 4): RIGHT}
    return predicted(head, cells, boxes, [(LEFT, 0), (RIGHT, 0)])


def clustering(experiment, name):
    return experiment.postprocessing_config.target_class_config[name].clustering_config


def precision(experiment, batches):
    head = GridHead(experiment, OUTLINE)
    again = [item._replace(detections=head.detections(item.outputs)) for item in batches]
    return evaluate(again, head.class_names, experiment.evaluation_config)


def test_values_that_find_nothing_are_replaced(tiny):
    clustering(tiny, "square").dbscan_min_samples = 2.0
    head = GridHead(tiny, OUTLINE)
    batches = [weak_squares(head)]
    assert precision(tiny, batches).classes[0].average_precision == 0
    tuned = tune_clustering(batches, head, tiny)
    square, bar = tuned.evaluation.classes
    assert square.average_precision == 1 and bar.average_precision is None
    found = tuned.postprocessing.target_class_config["square"].clustering_config
    assert found.dbscan_min_samples <= 0.3
    # The class without labels, and the spec itself, stay as they were.
    assert (
        tuned.postprocessing.target_class_config["bar"]
        == tiny.postprocessing_config.target_class_config["bar"]
    )
    assert clustering(tiny, "square").dbscan_min_samples == 2


def test_the_threshold_of_the_spec_stays_in_force(tiny):
    config = tiny.postprocessing_config.target_class_config["square"].confidence_config
    config.confidence_threshold = 0.4  # more than the coverage of either square
    batches = [weak_squares(GridHead(tiny, OUTLINE))]
    tuned = tune_clustering(batches, GridHead(tiny, OUTLINE), tiny)
    assert tuned.before.classes[0].detections == tuned.evaluation.classes[0].detections == 0
    config.confidence_threshold = 0.25
    tuned = tune_clustering(batches, GridHead(tiny, OUTLINE), tiny)
    assert tuned.evaluation.classes[0].average_precision == 1
    found = tuned.postprocessing.target_class_config["square"].confidence_config
    assert found.confidence_threshold == 0.25


def test_the_printed_block_can_be_pasted_into_the_spec(tiny):
    clustering(tiny, "square").dbscan_min_samples = 2.0
    batches = [weak_squares(GridHead(tiny, OUTLINE))]
    tuned = tune_clustering(batches, GridHead(tiny, OUTLINE), tiny)
    tiny.ClearField("postprocessing_config")
    pasted = spec.loads(spec.dumps(tiny) + tuned.block)
    assert pasted.postprocessing_config == tuned.postprocessing
    assert precision(pasted, batches).classes[0].average_precision == 1


def test_another_algorithm_stays_where_it_is_better(tiny):
    # Two labels that overlap (IoU 0.6, above every 1 - eps that joins nothing), one strong cell each and a stray one
    # between them: every DBSCAN finds one box or adds a wrong one before a right one, NMS finds both.
    first, second, stray = (0.0, 0.0, 40.0, 40.0), (10.0, 0.0, 50.0, 40.0), (5.0, 0.0, 45.0, 40.0)
    cells = {(0, 0, 0): 0.9, (0, 0, 1): 0.8, (0, 0, 2): 0.85}
    boxes = {(0, 0, 0): first, (0, 0, 1): second, (0, 0, 2): stray}
    tiny.evaluation_config.minimum_detection_ground_truth_overlap["square"] = 0.9
    config = clustering(tiny, "square")
    config.clustering_algorithm, config.nms_iou_threshold = spec.ClusteringConfig.NMS, 0.7
    head = GridHead(tiny, OUTLINE)
    batches = [predicted(head, cells, boxes, [(first, 0), (second, 0)])]
    assert precision(tiny, batches).classes[0].average_precision == 1
    tuned = tune_clustering(batches, head, tiny)
    assert tuned.evaluation.classes[0].average_precision == 1
    assert tuned.postprocessing == tiny.postprocessing_config


def test_a_threshold_below_all_that_are_tried_counts_as_it_stands(tiny):
    clustering(tiny, "square").coverage_threshold = 0.0
    clustering(tiny, "square").dbscan_min_samples = 0.001
    head = GridHead(tiny, OUTLINE)
    batches = [predicted(head, {(0, 0, 0): 0.002}, {(0, 0, 0): LEFT}, [(LEFT, 0)])]
    tuned = tune_clustering(batches, head, tiny)
    assert tuned.evaluation.classes[0].average_precision == 1
    assert tuned.postprocessing == tiny.postprocessing_config


@pytest.mark.parametrize("seed, group", [(0, 32), (1, 2)])
def test_average_precision_never_falls(tiny, monkeypatch, seed, group):
    monkeypatch.setattr(tune, "GROUP", group)
    generator = torch.Generator().manual_seed(seed)
    head = GridHead(tiny, OUTLINE)
    batches = []
    for _ in range(3):
        cells = {
            (index, row, column): float(torch.rand((), generator=generator)) ** 3
            for index in range(2)
            for row in range(4)
            for column in range(6)
        }
        boxes = {}
        for key in cells:
            near = torch.tensor(LEFT if key[2] < 3 else RIGHT) + 6 * torch.randn(4, generator=generator)
            boxes[key] = tuple(near.tolist())
        batches.append(predicted(head, cells, boxes, [(LEFT, 0), (RIGHT, 0), (RIGHT, 1)]))
    batches.insert(1, predicted(head, {}, {}, [(LEFT, 0)]))
    before = precision(tiny, batches)
    tuned = tune_clustering(batches, head, tiny)
    assert tuned.before.classes == before.classes
    for old, new in zip(before.classes, tuned.evaluation.classes, strict=True):
        assert new.average_precision >= old.average_precision
    # What was measured is what the values give.
    tiny.postprocessing_config.CopyFrom(tuned.postprocessing)
    assert precision(tiny, batches).classes == tuned.evaluation.classes


def test_the_values_tried_are_allowed_in_a_spec(tiny):
    for field, values in GRID.items():
        for value in values:
            setattr(clustering(tiny, "square"), field, value)
            assert spec.check(tiny) == []
