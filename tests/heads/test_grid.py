"""Targets of known boxes, taken for the answer of a network, give the boxes back."""

import pytest
import torch
from google.protobuf import text_format

from detectkit import spec
from detectkit.cli import main
from detectkit.data.augment import Labels, Prepared
from detectkit.data.kitti import read_detections
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.heads.clustering import ClassClustering, clustering_arguments
from detectkit.heads.grid import GridHead, by_class
from detectkit.heads.weighting import OBJECTIVES
from detectkit.model.detector import outline_of


def labels(boxes, classes, images, names=None):
    return Labels(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(images, dtype=torch.int64),
        ["label"] * len(boxes) if names is None else names,
    )


def prepared(boxes, classes, images, count, *, names=None, others=None):
    """A batch of `count` grey pictures of 96 x 64 with labels; `others` are (box, class, image, name) of no target."""
    columns = zip(*others) if others else ([], [], [], [])
    return Prepared(
        images=torch.zeros(count, 3, 64, 96),
        labels=labels(boxes, classes, images, names),
        others=labels(*map(list, columns)),
        weights=torch.ones(count),
        matrices=torch.eye(3).repeat(count, 1, 1),
    )


def perfect(head, batch):
    targets = head.targets(batch)
    return targets.coverage, targets.bbox.flatten(1, 2)


OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)
SQUARE, BAR, WIDE = [3.0, 5.0, 43.0, 45.0], [50.0, 20.0, 94.0, 44.0], [2.0, 10.0, 90.0, 60.0]


def test_encoded_boxes_decode_to_themselves(tiny):
    head = GridHead(tiny, OUTLINE)
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


@pytest.mark.parametrize("algorithm", ["DBSCAN", "NMS", "HYBRID"])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_diverged_answer_detects_nothing_and_leaves_the_other_images_alone(tiny, algorithm, broken):
    for entry in tiny.postprocessing_config.target_class_config.values():
        entry.clustering_config.clustering_algorithm = algorithm
    head = GridHead(tiny, OUTLINE)
    outputs = perfect(head, prepared([SQUARE, BAR, WIDE], [0, 1, 1], [0, 0, 2], 3))
    expected = head.detections(outputs)
    outputs[0][1], outputs[1][1] = 1.0, torch.nan  # boxes that are none, or coverage that is none
    outputs[broken][1] = torch.nan
    for found, wanted in zip(head.detections(outputs), expected, strict=True):
        for value, other in zip(found, wanted, strict=True):
            assert torch.equal(value, other)


@pytest.mark.spec_field("ModelConfig.BboxObjective.scale", "ModelConfig.BboxObjective.offset")
def test_scale_and_offset_are_the_specs(tiny):
    batch = prepared([SQUARE], [0], [0], 1)
    usual = GridHead(tiny, OUTLINE).targets(batch).bbox
    tiny.model_config.objective_set.bbox.scale = 70
    tiny.model_config.objective_set.bbox.offset = 8.0
    head = GridHead(tiny, OUTLINE)
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


def costs_of(head, outputs, targets, image_weights):
    """[C, 2], in the order of the objectives."""
    costs = head.costs(outputs, targets, image_weights)
    assert tuple(costs) == OBJECTIVES
    return torch.stack(list(costs.values()), dim=1)


def test_perfect_boxes_cost_nothing_and_image_weights_count(tiny):
    head = GridHead(tiny, OUTLINE)
    batch = prepared([SQUARE, BAR], [0, 1], [0, 1], 2)
    targets = head.targets(batch)
    costs = costs_of(head, perfect(head, batch), targets, torch.ones(2))
    assert costs.shape == (2, 2)
    assert costs[:, 1].tolist() == [0, 0]
    wrong = (targets.coverage, targets.bbox.flatten(1, 2) + 0.5)
    # Half a unit off on every side: the mean of 0.5 x coverage_norm over all cells.
    expected = 0.5 * targets.coverage_norm.mean((0, 2, 3))
    torch.testing.assert_close(costs_of(head, wrong, targets, torch.ones(2))[:, 1], expected)
    alone = costs_of(head, wrong, targets, torch.tensor([3.0, 0.0]))[:, 1]
    torch.testing.assert_close(alone, expected * torch.tensor([3.0, 0.0]))


@pytest.mark.spec_field(
    "BboxRasterizerConfig.TargetClassConfig.cov_center_x",
    "BboxRasterizerConfig.TargetClassConfig.cov_center_y",
    "BboxRasterizerConfig.TargetClassConfig.cov_radius_x",
    "BboxRasterizerConfig.TargetClassConfig.cov_radius_y",
    "BboxRasterizerConfig.TargetClassConfig.bbox_min_radius",
)
def test_each_class_has_its_own_ellipse(tiny):
    def covered(box, **fields):
        """Columns and rows of the cells that a bar covers, first and last."""
        config = tiny.bbox_rasterizer_config.target_class_config["bar"]
        config.Clear()
        values = {"cov_radius_x": 0.4, "cov_radius_y": 0.4, "bbox_min_radius": 0.1, **fields}
        for field, value in values.items():
            setattr(config, field, value)
        targets = GridHead(tiny, OUTLINE).targets(prepared([box, box], [0, 1], [0, 0], 1))
        rows, columns = targets.coverage[0, 1].nonzero().T.tolist()
        assert targets.coverage[0, 0].sum() > 0  # the square, which is not changed
        return (min(columns), max(columns)), (min(rows), max(rows))

    whole = [0.0, 0.0, 96.0, 64.0]  # 6 x 4 cells, centre at 3, 2
    assert covered(whole) == ((1, 4), (1, 2))  # 3 +- 0.4 * 3 and 2 +- 0.4 * 2
    assert covered(whole, cov_radius_x=1.0) == ((0, 5), (1, 2))
    assert covered(whole, cov_radius_y=1.0) == ((1, 4), (0, 3))
    # At 5/6 of the width the nearer side is 1 away: 5 +- 0.4. At 1/8 of the height: 0.5 +- 0.4 * 0.5.
    assert covered(whole, cov_center_x=5 / 6) == ((4, 5), (1, 2))
    assert covered(whole, cov_center_y=1 / 8) == ((2, 3), (0, 0))
    small = [40.0, 24.0, 56.0, 40.0]  # one cell's size around 3, 2: 0.2 cells of radius
    assert covered(small) == ((2, 3), (1, 2))
    assert covered(small, bbox_min_radius=2.0) == ((1, 4), (0, 3))


@pytest.mark.spec_field("BboxRasterizerConfig.deadzone_radius")
def test_the_deadzone_erases_an_object_behind(tiny):
    # Both are bars; WIDE ends lower and is painted later.
    batch = prepared([[48.0, 0.0, 96.0, 48.0], WIDE], [1, 1], [0, 0], 1)
    covered = []
    for radius in (0.0, 1.0):
        tiny.bbox_rasterizer_config.deadzone_radius = radius
        covered.append(GridHead(tiny, OUTLINE).targets(batch).coverage[0, 1] > 0)
    without, erased = covered
    assert (without | ~erased).all() and without.sum() > erased.sum()


@pytest.mark.spec_field("ModelConfig.LossRatios.l1", "ModelConfig.LossRatios.giou")
def test_box_costs_are_mixed_in_the_ratios_of_the_spec(tiny):
    batch = prepared([[0.0, 0.0, 40.0, 40.0]], [0], [0], 1)
    targets = GridHead(tiny, OUTLINE).targets(batch)
    # Every cell answers with a box 20 pixels further right: L1 is 20 / 35 at two of four sides. 20 x 40 of 60 x 40
    # overlap, and nothing else is around both.
    moved = targets.bbox + torch.tensor([-20.0, 0.0, 20.0, 0.0])[:, None, None] / 35
    weight = targets.coverage_norm[0, 0].mean().item()

    def cost(**ratios):
        for name, value in ratios.items():
            setattr(tiny.model_config.objective_set.bbox.loss_ratios, name, value)
        return costs_of(
            GridHead(tiny, OUTLINE), (targets.coverage, moved.flatten(1, 2)), targets, torch.ones(1)
        )[0, 1].item()

    l1, giou = weight * 2 / 4 * 20 / 35, weight * (1 - 1 / 3)
    assert cost() == pytest.approx(l1)
    assert cost(l1=0, giou=2) == pytest.approx(giou)
    assert cost(l1=3, giou=1) == pytest.approx((3 * l1 + giou) / 4)
    tiny.model_config.objective_set.bbox.loss_ratios.Clear()
    assert cost(giou=1) == pytest.approx((l1 + giou) / 2)  # l1 counts 1 by default
    assert cost(l1=5, giou=0) == pytest.approx(l1)


# Masks. All grids have 6 x 4 cells; a box of whole cells reaches into these alone.

LEFT, RIGHT = [0.0, 16.0, 48.0, 48.0], [64.0, 0.0, 96.0, 64.0]  # 3 x 2 cells and 2 x 4 cells
LEFT_CELLS = torch.tensor([[0, 0, 0, 0, 0, 0]] + 2 * [[1, 1, 1, 0, 0, 0]] + [[0, 0, 0, 0, 0, 0]]).bool()
RIGHT_CELLS = torch.tensor(4 * [[0, 0, 0, 0, 1, 1]]).bool()
ANYWHERE = torch.zeros(4, 6, dtype=torch.bool)


def masking(experiment, text):
    """The spec with a loss mask."""
    text_format.Parse(text, experiment.loss_mask_label_filter)
    return experiment


def masked(experiment, batch):
    """The outputs whose factor is not 1, [image][class][objective] of [H, W]."""
    return GridHead(experiment, OUTLINE).targets(batch).mask != 1


def both(outputs, expected):
    """Whether both objectives of one class are masked in these cells."""
    return all(torch.equal(cells, expected) for cells in outputs)


@pytest.mark.spec_field("LabelFilter.SourceClassLabelFilter.source_class_names")
def test_labels_are_masked_by_the_names_of_the_records(tiny):
    masking(
        tiny,
        """objective_label_filter_configs {
             label_filter { source_class_label_filter { source_class_names: "DontCare" source_class_names: "tram" } } }""",
    )
    others = [(LEFT, BACKGROUND, 0, "dontcare"), (LEFT, BACKGROUND, 1, "tree")]
    batch = prepared([RIGHT, RIGHT], [1, 1], [0, 1], 2, names=["bar", "tram"], others=others)
    first, second = masked(tiny, batch)
    # Of each image one label is named, and it masks the outputs of both classes.
    assert all(both(outputs, LEFT_CELLS) for outputs in first)
    assert all(both(outputs, RIGHT_CELLS) for outputs in second)
    assert GridHead(tiny, OUTLINE).targets(batch).mask.unique().tolist() == [
        0,
        1,
    ]  # without a multiplier, they cost nothing


@pytest.mark.spec_field(
    "ObjectiveLabelFilter.ObjectiveLabelFilterConfig.target_class_names",
    "ObjectiveLabelFilter.ObjectiveLabelFilterConfig.objective_names",
)
def test_classes_and_objectives_are_masked_by_name(tiny):
    masking(
        tiny,
        """objective_label_filter_configs {
             target_class_names: "bar" objective_names: "cov"
             label_filter { source_class_label_filter { source_class_names: "dontcare" } } }
           objective_label_filter_configs {
             target_class_names: "square"
             label_filter { source_class_label_filter { source_class_names: "tree" } } }""",
    )
    others = [(LEFT, DONTCARE, 0, "dontcare"), (RIGHT, BACKGROUND, 0, "tree")]
    square, bar = masked(tiny, prepared([], [], [], 1, others=others))[0]
    assert both(square, RIGHT_CELLS)
    assert torch.equal(bar[0], LEFT_CELLS) and torch.equal(bar[1], ANYWHERE)


@pytest.mark.spec_field(
    "LabelFilter.BboxDimensionsLabelFilter.min_width",
    "LabelFilter.BboxDimensionsLabelFilter.min_height",
    "LabelFilter.BboxDimensionsLabelFilter.max_width",
    "LabelFilter.BboxDimensionsLabelFilter.max_height",
)
@pytest.mark.parametrize(
    ("limits", "cells"),
    [
        ("", LEFT_CELLS | RIGHT_CELLS),
        ("min_width: 48", LEFT_CELLS),  # 48 is enough
        ("min_width: 48.5", ANYWHERE),
        ("max_width: 32", RIGHT_CELLS),
        ("min_height: 33", RIGHT_CELLS),
        ("max_height: 32", LEFT_CELLS),
        ("max_height: 31", ANYWHERE),
        ("min_width: 40 max_width: 60 min_height: 20 max_height: 40", LEFT_CELLS),
    ],
)
def test_labels_are_masked_by_their_size(tiny, limits, cells):
    masking(
        tiny,
        "objective_label_filter_configs { label_filter { bbox_dimensions_label_filter { %s } } }" % limits,
    )
    # Of the label's own class: those of another, and of none, mask nothing of it.
    others = [([0.0, 0.0, 48.0, 16.0], BACKGROUND, 0, "tree")]
    square, bar = masked(tiny, prepared([LEFT, RIGHT], [1, 1], [0, 0], 1, others=others))[0]
    assert both(bar, cells) and both(square, ANYWHERE)


@pytest.mark.spec_field(
    "LabelFilter.BboxCropLabelFilter.crop_left",
    "LabelFilter.BboxCropLabelFilter.crop_right",
    "LabelFilter.BboxCropLabelFilter.crop_top",
    "LabelFilter.BboxCropLabelFilter.crop_bottom",
)
@pytest.mark.parametrize(
    ("rectangle", "cells"),
    [
        ("", LEFT_CELLS | RIGHT_CELLS),
        ("crop_left: 47", LEFT_CELLS | RIGHT_CELLS),
        ("crop_left: 48", RIGHT_CELLS),  # LEFT ends there
        ("crop_right: 64", LEFT_CELLS),
        ("crop_top: 48", RIGHT_CELLS),
        ("crop_bottom: 16", RIGHT_CELLS),
        ("crop_bottom: 17", LEFT_CELLS | RIGHT_CELLS),
        ("crop_left: 10 crop_right: 30 crop_top: 20 crop_bottom: 30", LEFT_CELLS),
        ("crop_left: 49 crop_right: 63", ANYWHERE),
    ],
)
def test_labels_are_masked_by_their_position(tiny, rectangle, cells):
    masking(
        tiny,
        "objective_label_filter_configs { label_filter { bbox_crop_label_filter { %s } } }" % rectangle,
    )
    square, bar = masked(tiny, prepared([LEFT, RIGHT], [0, 1], [0, 0], 1))[0]
    assert both(square, cells & LEFT_CELLS) and both(bar, cells & RIGHT_CELLS)


@pytest.mark.spec_field("ObjectiveLabelFilter.mask_multiplier", "ObjectiveLabelFilter.preserve_ground_truth")
def test_masked_regions_cost_a_multiple_but_for_objects_that_are_preserved(tiny):
    masking(
        tiny,
        """objective_label_filter_configs {
             label_filter { source_class_label_filter { source_class_names: "dontcare" } } }
           objective_label_filter_configs { label_filter { bbox_dimensions_label_filter { min_width: 40 } } }
           mask_multiplier: 3""",
    )
    # A square that two filters name, and a bar next to it.
    ellipse = tiny.bbox_rasterizer_config.target_class_config["square"]
    ellipse.cov_radius_x, ellipse.bbox_min_radius = 0.3, 0.1
    batch = prepared([LEFT, RIGHT], [0, 1], [0, 0], 1, names=["dontcare", "bar"])
    targets = GridHead(tiny, OUTLINE).targets(batch)
    assert both(targets.mask[0, 0], 1.0 + 2 * LEFT_CELLS)
    assert both(targets.mask[0, 1], 1.0 + 2 * LEFT_CELLS)
    covered = targets.coverage[0, 0] > 0
    tiny.loss_mask_label_filter.preserve_ground_truth = True
    targets = GridHead(tiny, OUTLINE).targets(batch)
    assert both(targets.mask[0, 0], 1.0 + 2 * (LEFT_CELLS & ~covered))
    assert both(targets.mask[0, 1], 1.0 + 2 * LEFT_CELLS)  # no bar is there
    assert 0 < (LEFT_CELLS & covered).sum() < LEFT_CELLS.sum()


def test_the_mask_multiplies_the_cost_of_its_cells(tiny):
    batch = prepared([LEFT, RIGHT], [0, 1], [0, 0], 1)
    head = GridHead(tiny, OUTLINE)
    targets = head.targets(batch)
    assert targets.mask is None  # without filters nothing is computed
    generator = torch.Generator().manual_seed(0)
    outputs = torch.rand(1, 2, 4, 6, generator=generator), torch.rand(1, 8, 4, 6, generator=generator)
    plain = costs_of(head, outputs, targets, torch.ones(1))
    assert torch.equal(
        costs_of(head, outputs, targets._replace(mask=torch.ones(1, 2, 2, 4, 6)), torch.ones(1)), plain
    )
    # The cost of the left and of the right half add up, and the two objectives have masks of their own.
    left = torch.ones(1, 2, 2, 4, 6)
    left[..., 3:] = 0
    parts = [costs_of(head, outputs, targets._replace(mask=mask), torch.ones(1)) for mask in (left, 1 - left)]
    torch.testing.assert_close(sum(parts), plain)
    left[:, :, 0], left[:, 1, 1] = 2, 0
    costs = costs_of(head, outputs, targets._replace(mask=left), torch.tensor([3.0]))
    torch.testing.assert_close(costs[:, 0], 6 * plain[:, 0])
    torch.testing.assert_close(costs[:, 1], 3 * torch.stack((parts[0][0, 1], torch.tensor(0.0))))


@pytest.mark.spec_field("DatasetConfig.dontcare_labels")
def test_dontcare_regions_cost_nothing_but_where_an_object_is(tiny):
    region = [0.0, 0.0, 80.0, 64.0]  # 5 x 4 cells, over the square and a part of the bar
    others = [(region, DONTCARE, 0, "dontcare"), (region, BACKGROUND, 1, "tree")]
    batch = prepared([LEFT, RIGHT], [0, 1], [0, 0], 2, others=others)
    assert GridHead(tiny, OUTLINE).targets(batch).mask is None
    tiny.dataset_config.dontcare_labels.append("dontcare")
    head = GridHead(tiny, OUTLINE)
    targets = head.targets(batch)
    inside = torch.tensor(4 * [[1, 1, 1, 1, 1, 0]]).bool()
    for index in (0, 1):
        covered = targets.coverage[0, index] > 0
        assert (covered & inside).any()
        assert both(targets.mask[0, index] == 0, inside & ~covered)
    assert (targets.mask[1] == 1).all() and targets.mask.unique().tolist() == [0, 1]
    # A network that sees objects all over the region pays for the cells next to it alone.
    coverage = targets.coverage.clone()
    coverage[0, :, :, :5] = torch.where(coverage[0, :, :, :5] > 0, coverage[0, :, :, :5], 0.9)
    perfect_cost = costs_of(head, (targets.coverage, targets.bbox.flatten(1, 2)), targets, torch.ones(2))
    costs = costs_of(head, (coverage, targets.bbox.flatten(1, 2)), targets, torch.ones(2))
    torch.testing.assert_close(costs, perfect_cost)


def test_dontcare_and_masked_regions_multiply(tiny):
    tiny.dataset_config.dontcare_labels.append("dontcare")
    masking(
        tiny,
        """objective_label_filter_configs {
             label_filter { source_class_label_filter { source_class_names: "tree" } } }
           mask_multiplier: 4""",
    )
    others = [(LEFT, DONTCARE, 0, "dontcare"), ([32.0, 16.0, 80.0, 48.0], BACKGROUND, 0, "tree")]
    mask = GridHead(tiny, OUTLINE).targets(prepared([], [], [], 1, others=others)).mask
    assert mask[0, 1, 1, 1].tolist() == [0, 0, 0, 4, 4, 1]
    assert (mask == mask[:, :1, :1]).all()


# Clustering


def found(experiment, boxes, coverage, **clustering):
    """Boxes and scores of the squares that these cells of the first row give, one box and coverage a cell."""
    head = GridHead(experiment, OUTLINE, **clustering)
    maps, distances = torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 4, 4, 6)
    for column, ((x1, y1, x2, y2), value) in enumerate(zip(boxes, coverage, strict=True)):
        x, y = 16 * column + head.offset, head.offset
        maps[0, 0, 0, column] = value
        distances[0, 0, :, 0, column] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / head.scale
    (result,) = head.detections((maps, distances.flatten(1, 2)))
    assert (result.classes == 0).all()
    return [[round(value) for value in box] for box in result.boxes.tolist()], result.scores.tolist()


# Three cells of one object, the third box moved by a quarter (IoU 0.6), and one of another.
CELLS = [(0, 0, 32, 32), (0, 0, 32, 32), (8, 0, 40, 32), (50, 10, 90, 30)]
COVERAGE = [0.5, 0.25, 0.5, 0.25]
FIRST, MOVED, OTHER = [0, 0, 32, 32], [8, 0, 40, 32], [50, 10, 90, 30]


@pytest.mark.spec_field(
    "ClusteringConfig.coverage_threshold",
    "ClusteringConfig.minimum_bounding_box_height",
    "ClusteringConfig.dbscan_eps",
    "ClusteringConfig.dbscan_min_samples",
    "ClusteringConfig.dbscan_confidence_threshold",
)
@pytest.mark.parametrize(
    ("changes", "scores"),
    [
        ("", [0.75, 0.5, 0.25]),
        ("coverage_threshold: 0.25", [0.5, 0.5]),  # 0.25 is not above it
        ("minimum_bounding_box_height: 20", [0.75, 0.5]),
        ("dbscan_eps: 0.5", [1.25, 0.25]),
        ("dbscan_min_samples: 0.375", [0.75, 0.5]),
        ("dbscan_min_samples: 0.625", [0.75]),
        ("dbscan_min_samples: 0", []),  # counts as 1
        ("dbscan_confidence_threshold: 0.5", [0.75, 0.5]),
    ],
)
def test_dbscan_as_the_spec_says(tiny, changes, scores):
    config = tiny.postprocessing_config.target_class_config["square"].clustering_config
    config.dbscan_eps, config.dbscan_min_samples = 0.25, 0.125
    config.MergeFrom(text_format.Parse(changes, spec.ClusteringConfig()))
    assert found(tiny, CELLS, COVERAGE)[1] == scores


@pytest.mark.spec_field(
    "ClusteringConfig.clustering_algorithm",
    "ClusteringConfig.nms_iou_threshold",
    "ClusteringConfig.nms_confidence_threshold",
)
def test_nms_and_hybrid_as_the_spec_says(tiny):
    config = tiny.postprocessing_config.target_class_config["square"].clustering_config
    config.dbscan_eps = 0.25
    config.clustering_algorithm = spec.ClusteringConfig.NMS
    assert found(tiny, CELLS, COVERAGE) == ([FIRST, OTHER], [0.5, 0.25])
    config.nms_iou_threshold = 0.75
    assert found(tiny, CELLS, COVERAGE) == ([FIRST, MOVED, OTHER], [0.5, 0.5, 0.25])
    config.nms_confidence_threshold = 0.375
    assert found(tiny, CELLS, COVERAGE) == ([FIRST, MOVED], [0.5, 0.5])
    config.clustering_algorithm = spec.ClusteringConfig.HYBRID
    config.dbscan_min_samples = 0.625
    assert found(tiny, CELLS, COVERAGE) == ([FIRST], [0.5])


@pytest.mark.spec_field("ConfidenceConfig.confidence_threshold")
def test_a_final_threshold_drops_detections_of_its_class(tiny):
    entries = tiny.postprocessing_config.target_class_config
    entries["square"].clustering_config.dbscan_eps = 0.25
    entries["bar"].confidence_config.confidence_threshold = 9
    assert found(tiny, CELLS, COVERAGE)[1] == [0.75, 0.5, 0.25]
    entries["square"].confidence_config.confidence_threshold = 0.5  # 0.5 itself is enough
    assert found(tiny, CELLS, COVERAGE)[1] == [0.75, 0.5]
    entries["square"].clustering_config.clustering_algorithm = spec.ClusteringConfig.NMS
    assert found(tiny, CELLS, COVERAGE)[1] == [0.5]


def test_clustering_is_read_from_the_spec(tiny):
    config = tiny.postprocessing_config.target_class_config["bar"].clustering_config
    config.clustering_algorithm = spec.ClusteringConfig.NMS
    config.nms_iou_threshold = 0.25
    config.minimum_bounding_box_height = 7
    square, bar = GridHead(tiny, OUTLINE).clustering
    assert square["algorithm"] == "dbscan" and square["dbscan_eps"] == pytest.approx(0.4)
    assert bar["algorithm"] == "nms" and bar["nms_iou_threshold"] == 0.25 and bar["minimum_height"] == 7


def test_an_inference_spec_brings_its_own_clustering_with_a_default(tiny):
    values = {"bar": spec.ClusteringConfig(dbscan_eps=0.25), "default": spec.ClusteringConfig(dbscan_eps=0.5)}
    own = {name: ClassClustering(config) for name, config in values.items()}
    square, bar = GridHead(tiny, OUTLINE, clustering=own).clustering
    assert (square["dbscan_eps"], bar["dbscan_eps"]) == (0.5, 0.25)
    square, bar = GridHead(tiny, OUTLINE, clustering={}).clustering
    assert square == bar == clustering_arguments(ClassClustering(spec.ClusteringConfig()))
    assert square["dbscan_eps"] == pytest.approx(0.15) and square["coverage_threshold"] == pytest.approx(
        0.005
    )


INFERENCE = """
inferencer_config { batch_size: 1 image_width: 96 image_height: 64 }
bbox_handler_config {
  kitti_dump: true disable_overlay: true
  classwise_bbox_handler_config { key: "square" value {
    clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 }
    confidence_model: "MODEL"
  } }
  classwise_bbox_handler_config { key: "bar" value {
    clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 }
  } }
}
"""


@pytest.mark.spec_field("ClasswiseBboxHandlerConfig.confidence_model")
def test_infer_writes_the_confidence_that_the_spec_names(learnt, tiny_root, tmp_path):
    image = tiny_root / "kitti" / "image_2" / "000.png"
    scores = {}
    for model in ("aggregate_cov", "mean_cov"):
        path, results = tmp_path / f"{model}.txt", tmp_path / model
        path.write_text(INFERENCE.replace("MODEL", model))
        arguments = ("infer", "-e", path, "-m", learnt, "-i", image, "-r", results, "--gpus", 0)
        assert main(list(map(str, arguments))) == 0
        scores[model] = {line.name: line.score for line in read_detections(results / "labels" / "000.txt")}
    # The model knows this picture: its coverage is nearly that of the targets, at most 0.9 and at least 0.01 a cell.
    total, mean = scores["aggregate_cov"]["square"], scores["mean_cov"]["square"]
    assert 0.01 < mean < 0.9 < total and total / mean == pytest.approx(round(total / mean), rel=1e-3)
    assert scores["mean_cov"]["bar"] == scores["aggregate_cov"]["bar"]  # aggregate_cov by default


def test_an_inference_spec_brings_confidences_of_its_own(tiny):
    config = spec.ClusteringConfig(dbscan_eps=0.25, dbscan_min_samples=0.125)
    options = {"confidence_model": "mean_cov", "confidence_threshold": 0.3}
    scores = found(tiny, CELLS, COVERAGE, clustering={"square": ClassClustering(config, **options)})[1]
    assert scores == [0.5, 0.375]  # MOVED alone, the mean of 0.5 and 0.25; OTHER has 0.25


def test_each_class_is_clustered_with_its_own_values(tiny):
    tiny.postprocessing_config.target_class_config["bar"].clustering_config.minimum_bounding_box_height = 24
    head = GridHead(tiny, OUTLINE)
    batch = prepared([SQUARE, BAR], [0, 1], [0, 0], 1)
    (found,) = head.detections(perfect(head, batch))
    assert found.classes.tolist() == [0]  # the bar is 24 high, and has to be taller


def test_candidates_are_cut_to_the_best_of_each_image(tiny):
    coverage = torch.zeros(2, 2, 4, 6)
    coverage[0, :, 1, 2:5] = torch.tensor([[0.5, 0.9, 0.3], [0.8, 0.1, 0.5]])
    coverage[1, 1, 3, 5] = 0.2
    maps, head = (coverage, torch.zeros(2, 8, 4, 6)), GridHead(tiny, OUTLINE)
    whole, cut = (head.candidates(maps, lowest=0.05, at_most=at_most) for at_most in (None, 2))
    assert whole.scores.tolist() == pytest.approx([0.5, 0.9, 0.3, 0.8, 0.1, 0.5, 0.2])
    assert cut.scores.tolist() == pytest.approx([0.9, 0.8, 0.2])
    assert (cut.images.tolist(), cut.classes.tolist()) == ([0, 0, 1], [0, 1, 1])
    kept = [1, 3, 6]
    assert all(torch.equal(column[kept], own) for column, own in zip(whole, cut, strict=True))
