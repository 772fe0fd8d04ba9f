from pathlib import Path

import pytest

from detectkit import spec
from detectkit.errors import UsageError
from detectkit.spec.explain import places
from detectkit.spec.networks import NETWORKS

REFERENCE = Path(__file__).parents[2] / "docs" / "spec.md"


def test_a_field_tells_type_default_range_unit_and_place():
    text = spec.explain("training_config.checkpoint_interval")
    assert text.splitlines()[:4] == [
        "training_config.checkpoint_interval",
        "  uint32 · default 10 · in [0, inf) · epochs · may change in a resumed training",
        "",
        "  Epochs between two checkpoints. 0 counts as 10.",
    ]
    assert "This is field 7 of TrainingConfig (detectkit/spec/training.proto)." in text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("training_config.batch_size_per_gpu", "uint32 · required · in [1, inf) · images"),
        ("adam.beta1", "training_config.optimizer.adam.beta1\n  float · default 0.9 · in [0, 1)"),
        ("bbox.scale", "model_config.objective_set.bbox.scale\n  float · default 35 · in (0, inf) · pixels"),
        ('bbox_rasterizer_config.target_class_config["car"].cov_radius_x', "float · required · in (0, 1]"),
        ("bbox_rasterizer_config.target_class_config.value.cov_radius_x", "float · required · in (0, 1]"),
        ("cost_function_config.target_classes[0].objectives[1].name", "string · required · one of cov, bbox"),
        ("output_image_width", "a multiple of the network's stride"),
        ("arch", 'default "resnet" · one of resnet, vgg'),
        ("average_precision_mode", "INTEGRATE  Area under the precision-recall curve"),
        ("validation_fold", "excludes validation_data_source"),
        ("neighborhood_size", "Has no effect: TLT never reads it either"),
        ("training_config.learning_rate", "soft_start_annealing_schedule      Rise, hold, fall"),
        ("ClusteringConfig", "nms_iou_threshold"),
        ("detectkit.spec.ModelConfig.BboxObjective", "It stands at:\n  model_config.objective_set.bbox"),
        ("target_class_mapping.", "map from string to string"),
        ("", "Training spec"),
    ],
)
def test_what_is_said(path, expected):
    if path == "target_class_mapping.":
        path = "dataset_config.target_class_mapping"
    assert expected in spec.explain(path)


def test_a_message_used_twice_lists_both_places():
    text = spec.explain("dbscan_eps")
    assert 'postprocessing_config.target_class_config["…"].clustering_config.dbscan_eps' in text
    assert 'bbox_handler_config.classwise_bbox_handler_config["…"].clustering_config.dbscan_eps' in text


def test_every_path_is_explained():
    for place in places():
        assert f"field {place.field.number} of" in spec.explain(place.path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("training_config.num_epoch", "the spec has no training_config.num_epoch; did you mean training_config.num_epochs?"),
        ("betta1", "did you mean training_config.optimizer.adam.beta1 or training_config.optimizer.adamw.beta1?"),
        ("ClusterConfig", "did you mean ClusteringConfig?"),
        ("qqq", "the spec has no qqq: `detectkit explain` lists the sections"),
        ("enabled", "enabled is the name of 3 fields; give one of these paths:\n  training_config.cost_scaling.enabled"),
    ],
)  # fmt: skip
def test_unknown_and_ambiguous_paths(path, expected):
    with pytest.raises(UsageError) as caught:
        spec.explain(path)
    assert expected in str(caught.value)


def test_markdown_has_a_row_for_every_field():
    text = spec.markdown()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    fields = {place.field.full_name for place in places()}
    assert len(rows) == len(fields)
    assert "| `scale` | 2 | float | `35` | in (0, inf), pixels | The network's box outputs" in text
    assert "| `model_config` | 5 | [ModelConfig](#modelconfig) | required |" in text
    assert all(row.count(" | ") == 5 for row in rows)


def test_the_backbones_tell_depths_stride_and_blocks():
    rows = [line.split() for line in spec.explain("arch").splitlines() if line.startswith("  ")]
    told = {row[0]: " ".join(row[1:]) for row in rows}
    assert told["resnet"] == (
        "18 (default), 10, 34, 50, 101, 152, 200 16 0 to 4 use_pooling, all_projections, deep_stem,"
        " average_pooled_shortcuts, use_batch_norm"
    )
    assert told["darknet"] == "19 (default), 53 32 0 to 5 use_batch_norm"
    assert told["squeezenet"] == "one depth 16 0 to 8 never batch norm"
    assert told["efficientnet_lite1"] == "to efficientnet_lite2 one depth 16 0 to 15 always batch norm"
    assert told["efficientnet_b0"] == "to efficientnet_b7 one depth 32 0 to 8 always batch norm"
    within = {"efficientnet_lite2", *(f"efficientnet_b{number}" for number in range(1, 8))}
    assert set(NETWORKS) - set(told) == within


def test_the_reference_is_up_to_date():
    assert REFERENCE.read_text() == spec.markdown(), "run `make docs`"
