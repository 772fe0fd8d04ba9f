import re

import pytest

from detectkit import spec

CAR = 'bbox_rasterizer_config.target_class_config["car"]'
SCHEDULE = "training_config.learning_rate.soft_start_annealing_schedule"
MAPPING = "dataset_config.target_class_mapping"


@pytest.fixture
def experiment(kitti_train):
    return spec.loads(kitti_train)


def violations(message):
    return [str(violation) for violation in spec.check(message)]


def test_a_good_spec_breaks_nothing(experiment):
    assert violations(experiment) == []
    assert spec.warnings(experiment) == []


# path, value, what is said of it
RANGES = [
    ("training_config.batch_size_per_gpu", 0, "must be in [1, inf), got 0"),
    ("training_config.num_epochs", 0, "must be in [1, inf), got 0"),
    ("training_config.checkpoint_interval", 0, "must be in [1, inf), got 0"),
    (f"{SCHEDULE}.min_learning_rate", 0, "must be in (0, inf), got 0"),
    (f"{SCHEDULE}.annealing", 1, "must be in [0, 1), got 1"),
    ("training_config.regularizer.weight", -0.1, "must be in [0, inf), got -0.1"),
    ("training_config.regularizer.type", 3, "must be one of NO_REG (0), L1 (1), L2 (2), got 3"),
    ("training_config.optimizer.adam.beta2", float("inf"), "must be a finite number, got inf"),
    ("augmentation_config.preprocessing.output_image_width", 1250, "must be a multiple of 16 (for instance 1248), got 1250"),
    ("augmentation_config.preprocessing.output_image_height", 0, "must be in [16, inf), got 0"),
    ("augmentation_config.preprocessing.output_image_channel", 2, "must be one of 1, 3, got 2"),
    ("augmentation_config.preprocessing.min_bbox_width", float("nan"), "must be a finite number, got nan"),
    ("augmentation_config.spatial_augmentation.zoom_min", 0, "must be in (0, inf), got 0"),
    ("augmentation_config.spatial_augmentation.hflip_probability", 1.5, "must be in [0, 1], got 1.5"),
    ("augmentation_config.color_augmentation.hue_rotation_max", 361, "must be in [0, 360], got 361"),
    ("model_config.objective_set.bbox.scale", 0, "must be in (0, inf), got 0"),
    ("model_config.arch", "resent", 'must be one of resnet, vgg, darknet, mobilenet_v1, mobilenet_v2, squeezenet, '
     'googlenet, efficientnet_b0 (did you mean resnet?), got "resent"'),
    ("model_config.arch", "vgg", 'this version has resnet only, got "vgg"'),
    ("model_config.num_layers", 20, "resnet has 10, 18, 34, 50, 101, 152 layers, got 20"),
    ("model_config.training_precision.backend_floatx", 2, "must be one of FLOAT32, FLOAT16, got INVALID"),
    ("evaluation_config.average_precision_mode", 2, "must be one of SAMPLE (0), INTEGRATE (1), got 2"),
    ("evaluation_config.first_validation_epoch", 0, "must be in [1, inf), got 0"),
    ("bbox_rasterizer_config.deadzone_radius", 1.5, "must be in [0, 1], got 1.5"),
    (f"{SCHEDULE}.soft_start", 0.8, "must be at most annealing (0.7), got 0.8"),
    (f"{SCHEDULE}.min_learning_rate", 0.1, "must be at most max_learning_rate (0.0005), got 0.1"),
    ("augmentation_config.spatial_augmentation.zoom_min", 1.2, "must be at most zoom_max (1), got 1.2"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), RANGES)
def test_ranges_and_ordered_pairs(experiment, path, value, expected):
    *parents, name = path.split(".")
    message = experiment
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, name, value)
    assert violations(experiment) == [f"{path}: {expected}"]


@pytest.mark.parametrize("value", [0.0, 0.05, 1.0, 25.0])
def test_min_samples_may_be_any_sum_of_coverages(experiment, value):
    for config in experiment.postprocessing_config.target_class_config.values():
        config.clustering_config.dbscan_min_samples = value
        config.clustering_config.neighborhood_size = 20
    assert violations(experiment) == []


def test_every_violation_is_listed_with_its_path(experiment):
    experiment.training_config.num_epochs = 0
    experiment.bbox_rasterizer_config.target_class_config["car"].cov_radius_x = 0
    experiment.evaluation_config.minimum_detection_ground_truth_overlap["car"] = 1.7
    experiment.cost_function_config.target_classes[1].class_weight = -1
    experiment.dataset_config.data_sources[0].tfrecords_path = ""
    assert sorted(violations(experiment)) == [
        f"{CAR}.cov_radius_x: must be in (0, 1], got 0",
        "cost_function_config.target_classes[1].class_weight: must be in (0, inf), got -1",
        'dataset_config.data_sources[0].tfrecords_path: must not be empty, got ""',
        'evaluation_config.minimum_detection_ground_truth_overlap["car"]: must be in [0, 1], got 1.7',
        "training_config.num_epochs: must be in [1, inf), got 0",
    ]


# Sections and classes


def test_an_empty_spec_lists_every_section_it_needs():
    sections = [violation.path for violation in spec.check(spec.Experiment())]
    assert sections == [
        "dataset_config",
        "augmentation_config",
        "postprocessing_config",
        "model_config",
        "evaluation_config",
        "cost_function_config",
        "training_config",
        "bbox_rasterizer_config",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "augmentation_config.preprocessing",
        "training_config.learning_rate",
        "model_config.objective_set.cov",
        "model_config.objective_set.bbox",
        f"{SCHEDULE}.max_learning_rate",
        "training_config.batch_size_per_gpu",
        "dataset_config.data_sources",
        MAPPING,
        "cost_function_config.target_classes",
        "bbox_rasterizer_config.target_class_config",
        "postprocessing_config.target_class_config",
        "evaluation_config.minimum_detection_ground_truth_overlap",
    ],
)
def test_what_a_spec_needs(experiment, path):
    *parents, name = path.split(".")
    message = experiment
    for parent in parents:
        message = getattr(message, parent)
    message.ClearField(name)
    assert [violation.path for violation in spec.check(experiment)] == [path]


@pytest.mark.parametrize(
    "path",
    [
        "training_config.cost_scaling",
        "training_config.regularizer",
        "training_config.optimizer",
        "training_config.visualizer",
        "augmentation_config.spatial_augmentation",
        "augmentation_config.color_augmentation",
        "model_config.training_precision",
        "evaluation_config.evaluation_box_config",
    ],
)
def test_what_a_spec_may_leave_out(experiment, path):
    section, name = path.split(".")
    getattr(experiment, section).ClearField(name)
    assert violations(experiment) == []


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("bbox_rasterizer_config.target_class_config", "must have an entry for"),
        ("postprocessing_config.target_class_config", "must have an entry for"),
        ("evaluation_config.minimum_detection_ground_truth_overlap", "must have an entry for"),
        (MAPPING, "must map a label to"),
    ],
)
def test_a_class_missing_in_one_section(experiment, path, rule):
    section, name = path.split(".")
    del getattr(getattr(experiment, section), name)["cyclist"]
    expected = f'{path}: {rule} class "cyclist" of cost_function_config, got "car", "pedestrian"'
    assert violations(experiment) == [expected]


def test_a_class_missing_in_the_box_sizes(experiment):
    sizes = experiment.evaluation_config.evaluation_box_config
    sizes["car"].minimum_height = 20
    sizes["pedestrian"].maximum_height = 10
    path = "evaluation_config.evaluation_box_config"
    assert violations(experiment) == [
        f'{path}: must have an entry for class "cyclist" of cost_function_config, got "car", "pedestrian"'
    ]
    sizes["cyclist"].minimum_width, sizes["cyclist"].maximum_width = 30, 20
    assert violations(experiment) == [
        f'{path}["cyclist"].minimum_width: must be at most maximum_width (20), got 30'
    ]


def test_a_misspelt_class_is_suggested(experiment):
    experiment.cost_function_config.target_classes[0].name = "Car"
    found = violations(experiment)
    assert len(found) == 4
    assert all('got "car", "cyclist", "pedestrian" (is "car" meant?)' in text for text in found)


def test_objectives(experiment):
    target = experiment.cost_function_config.target_classes[0]
    path = "cost_function_config.target_classes[0].objectives"
    del target.objectives[0]
    assert violations(experiment) == [
        f'{path}: must be "cov" and "bbox", once each (class "car"), got "bbox"'
    ]
    target.objectives[0].initial_weight = 0
    target.objectives.add(name="cov")
    assert violations(experiment) == [f'{path}: the sum of initial_weight must exceed 0 (class "car"), got 0']
    target.ClearField("objectives")
    assert violations(experiment) == [f"{path}: at least one is needed"]


def test_autoweighting_needs_weights_to_move_between(experiment):
    cost = experiment.cost_function_config
    cost.max_objective_weight = 0
    cost.target_classes[0].objectives[0].weight_target = 0
    cost.target_classes[0].objectives[1].weight_target = 0
    assert violations(experiment) == []
    cost.enable_autoweighting = True
    path = "cost_function_config"
    rule = 'the sum of weight_target must exceed 0 (class "car"), got 0'
    assert violations(experiment) == [
        f"{path}.target_classes[0].objectives: {rule}",
        f"{path}.max_objective_weight: must exceed 0 with enable_autoweighting, or nothing is learnt, got 0",
    ]


def test_a_class_given_twice(experiment):
    experiment.cost_function_config.target_classes[1].name = "car"
    assert 'cost_function_config.target_classes: class "car" must stand once, got 2 times' in violations(
        experiment
    )


def test_labels_are_compared_in_lower_case(experiment):
    experiment.dataset_config.target_class_mapping["CAR"] = "car"
    assert violations(experiment) == []
    experiment.dataset_config.target_class_mapping["Car"] = "cyclist"
    rule = 'label "car", in lower case, must have one class, got "car", "cyclist"'
    assert violations(experiment) == [f"{MAPPING}: {rule}"]


def test_crop_rectangle(experiment):
    experiment.augmentation_config.preprocessing.crop_right = 100
    path = "augmentation_config.preprocessing.crop_bottom"
    assert violations(experiment) == [f"{path}: must exceed crop_top (0), got 0"]


@pytest.mark.parametrize("block", [1.5, 5])
def test_freeze_blocks(experiment, block):
    experiment.model_config.freeze_blocks.append(block)
    path = "model_config.freeze_blocks[1]"
    assert violations(experiment) == [f"{path}: must be a whole number from 0 to 4 for resnet, got {block}"]


def test_load_graph_needs_a_model(experiment):
    experiment.model_config.load_graph = True
    assert violations(experiment) == []
    experiment.model_config.pretrained_model_file = ""
    rule = "model_config.load_graph: needs pretrained_model_file, the model to retrain, got true"
    assert violations(experiment) == [rule]


def test_schedules(experiment):
    rate = experiment.training_config.learning_rate
    rate.early_stopping_annealing_schedule.min_learning_rate = 1e-6
    rate.early_stopping_annealing_schedule.max_learning_rate = 1e-3
    (found,) = violations(experiment)
    assert found.endswith("this schedule is not in this version: use soft_start_annealing_schedule")
    rate.ClearField("learning_rate")
    assert violations(experiment) == [
        "training_config.learning_rate: needs soft_start_annealing_schedule { … }"
    ]


# Warnings


def test_warnings_of_a_training_spec(experiment):
    experiment.bbox_rasterizer_config.target_class_config["vehicle"].cov_radius_x = 0.5
    experiment.bbox_rasterizer_config.target_class_config["vehicle"].cov_radius_y = 0.5
    experiment.dataset_config.target_class_mapping["van"] = "cars"
    experiment.dataset_config.ClearField("dataset_split_type")
    experiment.model_config.pretrained_model_file = ""
    experiment.augmentation_config.spatial_augmentation.rotate_rad_max = 5
    assert violations(experiment) == []
    assert [text.split(":")[0] for text in spec.warnings(experiment)] == [
        'bbox_rasterizer_config.target_class_config["vehicle"] has no effect',
        MAPPING,
        "dataset_config",
        "model_config.freeze_blocks",
        "augmentation_config.spatial_augmentation.rotate_rad_max",
    ]
    assert 'boxes of van are background (is "car" meant?)' in spec.warnings(experiment)[1]


INERT_OR_LATER = [
    ("enable_qat", "training_config { enable_qat: true }"),
    ("cost_scaling.enabled", "training_config { cost_scaling { enabled: true } }"),
    ("freeze_pretrained_layers", "model_config { freeze_pretrained_layers: true }"),
    ("dropout_rate", "model_config { dropout_rate: 0.1 }"),
    ("activation", 'model_config { activation { activation_type: "relu" } }'),
    ("loss_mask_label_filter", "loss_mask_label_filter { mask_multiplier: 0 }"),
    ("dataset_export_config", "dataset_export_config { coco_config { } }"),
    ("wandb_config.enabled", "training_config { visualizer { wandb_config { enabled: true } } }"),
    ("clearml_config", "training_config { visualizer { clearml_config { } } }"),
    ("dataloader_mode", "dataset_config { dataloader_mode: LEGACY }"),
    ("sampling_mode", "dataset_config { sampling_mode: UNIFORM }"),
    ("output_image_min", "augmentation_config { preprocessing { output_image_min: 300 } }"),
    ("early_stopping_patience_steps", "evaluation_config { early_stopping_patience_steps: 3 }"),
    (
        "confidence_config",
        'postprocessing_config { target_class_config { key: "car" value { confidence_config { } } } }',
    ),
]


@pytest.mark.parametrize(("name", "text"), INERT_OR_LATER)
def test_fields_without_effect_are_said_so_and_accepted(experiment, name, text):
    from google.protobuf import text_format

    addition = text_format.Parse(text, spec.Experiment())
    clustering = experiment.postprocessing_config
    if "postprocessing" in text:  # a map entry replaces the other
        entry = addition.postprocessing_config.target_class_config["car"]
        entry.clustering_config.CopyFrom(clustering.target_class_config["car"].clustering_config)
    experiment.MergeFrom(addition)
    assert violations(experiment) == []
    (found,) = spec.warnings(experiment)
    assert re.search(rf"{re.escape(name)}(\[0\])? has no effect", found)


@pytest.mark.parametrize(
    "text",
    [
        "training_config { enable_qat: false cost_scaling { enabled: false } }",
        "model_config { dropout_rate: 0 training_precision { backend_floatx: FLOAT32 } }",
        "dataset_config { dataloader_mode: MULTISOURCE sampling_mode: USER_DEFINED }",
    ],
)
def test_fields_at_their_default_are_not_worth_a_warning(experiment, text):
    from google.protobuf import text_format

    experiment.MergeFrom(text_format.Parse(text, spec.Experiment()))
    assert spec.warnings(experiment) == []


# Inference and conversion specs


def test_inference_spec(kitti_infer):
    inference = spec.loads(kitti_infer)
    del inference.bbox_handler_config.classwise_bbox_handler_config["default"]
    inference.inferencer_config.batch_size = 0
    inference.inferencer_config.image_channels = 4
    inference.bbox_handler_config.postproc_classes.append("tram")
    inference.bbox_handler_config.classwise_bbox_handler_config["car"].confidence_model = "mlp"
    path = "bbox_handler_config.classwise_bbox_handler_config"
    assert sorted(violations(inference)) == [
        f'{path}: must have an entry for class "cyclist", or "default", got "car"',
        f'{path}: must have an entry for class "pedestrian", or "default", got "car"',
        f'{path}["car"].confidence_model: must be one of aggregate_cov, mean_cov, got "mlp"',
        'bbox_handler_config.postproc_classes[0]: must be one of inferencer_config.target_classes, got "tram"',
        "inferencer_config.batch_size: must be in [1, inf), got 0",
        "inferencer_config.image_channels: must be one of 1, 3, got 4",
    ]


def test_inference_warnings(kitti_infer):
    inference = spec.loads(kitti_infer)
    inference.inferencer_config.tensorrt_config.trt_engine = "model.engine"
    inference.bbox_handler_config.classwise_bbox_handler_config["cyclists"].output_map = "cyclist"
    engine, unknown = spec.warnings(inference)
    assert engine.startswith("inferencer_config.tensorrt_config has no effect in this version")
    assert unknown.endswith('["cyclists"] has no effect: there is no such class (is "cyclist" meant?)')


def test_conversion_spec(kitti_convert):
    config = spec.loads(kitti_convert)
    config.kitti_config.num_partitions = 3
    config.kitti_config.val_split = 100
    assert violations(config) == [
        "kitti_config.val_split: must be in [0, 100), got 100",
        'kitti_config.num_partitions: partition_mode "random" makes 2 partitions, got 3',
    ]
    config.kitti_config.val_split = 0
    config.kitti_config.partition_mode = "sequence"
    path = "kitti_config.kitti_sequence_to_frames_file"
    assert violations(config) == [f'{path}: partition_mode "sequence" needs it']
    config.coco_config.root_directory_path = "/data"
    (found,) = violations(config)
    assert found == "coco_config: COCO files are not converted in this version: use kitti_config"
    assert violations(spec.DatasetExportConfig()) == ["kitti_config: this section is missing"]
