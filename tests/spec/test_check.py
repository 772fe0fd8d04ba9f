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
    ("training_config.accumulate_batches", 0, "must be in [1, inf), got 0"),
    (f"{SCHEDULE}.min_learning_rate", 0, "must be in (0, inf), got 0"),
    (f"{SCHEDULE}.annealing", 1, "must be in [0, 1), got 1"),
    ("training_config.regularizer.weight", -0.1, "must be in [0, inf), got -0.1"),
    ("training_config.regularizer.type", 3, "must be one of NO_REG (0), L1 (1), L2 (2), got 3"),
    ("training_config.optimizer.adam.beta2", float("inf"), "must be a finite number, got inf"),
    ("augmentation_config.preprocessing.output_image_width", 1250, "must be a multiple of 16, the stride of resnet (for instance 1248), got 1250"),
    ("augmentation_config.preprocessing.output_image_height", 0, "must be in [16, 16384], got 0"),
    ("augmentation_config.preprocessing.output_image_channel", 2, "must be one of 1, 3, got 2"),
    ("augmentation_config.preprocessing.min_bbox_width", float("nan"), "must be a finite number, got nan"),
    ("augmentation_config.spatial_augmentation.zoom_min", 0, "must be in (0, inf), got 0"),
    ("augmentation_config.spatial_augmentation.hflip_probability", 1.5, "must be in [0, 1], got 1.5"),
    ("augmentation_config.color_augmentation.hue_rotation_max", 361, "must be in [0, 360], got 361"),
    ("model_config.objective_set.bbox.scale", 0, "must be in (0, inf), got 0"),
    ("model_config.arch", "resent", "must be one of resnet, vgg, darknet, mobilenet_v1, mobilenet_v2, squeezenet, "
     "googlenet, efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, efficientnet_lite3, efficientnet_lite4, "
     "efficientnet_b0, efficientnet_b1, efficientnet_b2, "
     'efficientnet_b3, efficientnet_b4, efficientnet_b5, efficientnet_b6, efficientnet_b7 (did you mean resnet?), got "resent"'),
    ("model_config.num_layers", 20, "must be one of 10, 18, 34, 50, 101, 152, 200 for resnet, got 20"),
    ("model_config.training_precision.backend_floatx", 2, "must be one of FLOAT32, FLOAT16, got INVALID"),
    ("evaluation_config.average_precision_mode", 2, "must be one of SAMPLE (0), INTEGRATE (1), got 2"),
    ("evaluation_config.first_validation_epoch", 0, "must be in [1, inf), got 0"),
    ("evaluation_config.protocol", 3, "must be one of VOC (0), KITTI (1), COCO (2), got 3"),
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


# Names


@pytest.mark.parametrize(
    ("letter", "code"), [("\n", "U+000A"), ("\x1b", "U+001B"), ("\0", "U+0000"), ("\u202e", "U+202E")]
)
def test_control_characters_are_refused_in_names(experiment, kitti_infer, letter, code):
    name = f"car{letter}rm"
    rule = f"must have no control character (it has {code})"
    experiment.dataset_config.target_class_mapping[name] = "car"
    experiment.dataset_config.dontcare_labels.append(name)
    experiment.cost_function_config.target_classes[0].name = name
    found = {violation.path for violation in spec.check(experiment) if violation.rule == rule}
    assert found == {
        MAPPING,
        "dataset_config.dontcare_labels[0]",
        "cost_function_config.target_classes[0].name",
    }
    inference = spec.loads(kitti_infer)
    inference.inferencer_config.target_classes[0] = name
    assert rule in "".join(violations(inference))
    conversion = spec.DatasetExportConfig()
    conversion.voc_config.root_directory_path, conversion.voc_config.difficult_label = "data", name
    conversion.target_class_mapping["car"] = name
    conversion.sample_modifier_config.filter_samples_containing_only.append(name)
    assert sum(rule in text for text in violations(conversion)) == 3


@pytest.mark.parametrize(
    "name", ["Fu\u00dfg\u00e4nger", "\u8f66", "\u0130", "hot dog", "\u0645\u06cc\u200c\u062e"]
)
def test_letters_of_every_script_are_names(experiment, name):
    experiment.dataset_config.target_class_mapping[name] = "car"
    assert violations(experiment) == []


def test_two_spellings_of_a_label_have_one_class():
    conversion = spec.DatasetExportConfig()
    conversion.voc_config.root_directory_path = "data"
    conversion.target_class_mapping.update({"Hot Dog": "food", "hotdog": "Food", "x": "y"})
    conversion.sample_modifier_config.source_to_target_class_mapping["A b"] = "c"
    assert violations(conversion) == []
    conversion.target_class_mapping["HOT DOG"] = "animal"
    conversion.sample_modifier_config.source_to_target_class_mapping["ab"] = "d"
    assert violations(conversion) == [
        'target_class_mapping: label "hotdog", in lower case and without spaces, must have one class, got "animal", "food"',
        'sample_modifier_config.source_to_target_class_mapping: label "ab", in lower case and without spaces, must have one'
        ' class, got "c", "d"',
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
        "bbox_rasterizer_config",
        "training_config",
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
    ("path", "rule", "instead"),
    [
        ("bbox_rasterizer_config.target_class_config", "must have an entry for", ', or "default"'),
        ("postprocessing_config.target_class_config", "must have an entry for", ', or "default"'),
        (
            "evaluation_config.minimum_detection_ground_truth_overlap",
            "must have an entry for",
            ', or "default"',
        ),
        (MAPPING, "must map a label to", ""),
    ],
)
def test_a_class_missing_in_one_section(experiment, path, rule, instead):
    section, name = path.split(".")
    del getattr(getattr(experiment, section), name)["cyclist"]
    expected = f'{path}: {rule} class "cyclist" of cost_function_config{instead}, got "car", "pedestrian"'
    assert violations(experiment) == [expected]


def test_a_class_missing_in_the_box_sizes(experiment):
    sizes = experiment.evaluation_config.evaluation_box_config
    sizes["car"].minimum_height = 20
    sizes["pedestrian"].maximum_height = 10
    path = "evaluation_config.evaluation_box_config"
    assert violations(experiment) == [
        f'{path}: must have an entry for class "cyclist" of cost_function_config, or "default", got "car", "pedestrian"'
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


def test_what_the_grid_alone_needs(experiment, monkeypatch):
    """Another head does without its sections, and may have costs of other names."""
    experiment.ClearField("bbox_rasterizer_config")
    experiment.postprocessing_config.target_class_config["car"].ClearField("clustering_config")
    experiment.cost_function_config.target_classes[0].ClearField("objectives")
    assert [violation.path for violation in spec.check(experiment)] == [
        "bbox_rasterizer_config",
        'postprocessing_config.target_class_config["car"].clustering_config',
        "cost_function_config.target_classes[0].objectives",
    ]
    monkeypatch.setattr("detectkit.spec.rules.is_grid", lambda model: False)
    assert violations(experiment) == []
    experiment.ClearField("postprocessing_config")
    assert violations(experiment) == []
    experiment.cost_function_config.class_names.extend(["car", "bus"])
    del experiment.cost_function_config.target_classes[:]
    experiment.evaluation_config.ClearField("minimum_detection_ground_truth_overlap")
    experiment.evaluation_config.protocol = spec.EvaluationConfig.COCO
    assert violations(experiment) == []
    weights = [
        (target.name, target.class_weight)
        for target in spec.expanded(experiment).cost_function_config.target_classes
    ]
    assert weights == [("car", 1), ("bus", 1)]


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
    rule = 'label "car", in lower case and without spaces, must have one class, got "car", "cyclist"'
    assert violations(experiment) == [f"{MAPPING}: {rule}"]


def test_labels_are_compared_without_spaces(experiment):
    experiment.dataset_config.target_class_mapping["c ar"] = "cyclist"
    experiment.dataset_config.dontcare_labels.append("cy clist")
    assert violations(experiment) == [
        f'{MAPPING}: label "car", in lower case and without spaces, must have one class, got "car", "cyclist"',
        'dataset_config.dontcare_labels[0]: must not be a label of target_class_mapping too, got "cy clist"',
    ]


def test_crop_rectangle(experiment):
    experiment.augmentation_config.preprocessing.crop_right = 100
    path = "augmentation_config.preprocessing.crop_bottom"
    assert violations(experiment) == [f"{path}: must exceed crop_top (0), got 0"]


def test_freeze_blocks_are_whole_numbers(experiment):
    experiment.model_config.freeze_blocks.append(1.5)
    assert violations(experiment) == ["model_config.freeze_blocks[1]: must be a whole number, got 1.5"]


@pytest.mark.spec_field("ModelConfig.load_graph")
@pytest.mark.parametrize("name", ["load_graph", "freeze_pretrained_layers"])
def test_what_needs_a_model_to_start_from(experiment, name):
    setattr(experiment.model_config, name, True)
    assert violations(experiment) == []
    experiment.model_config.pretrained_model_file = ""
    rule = "needs pretrained_model_file, the model to start from; the spec names none"
    assert violations(experiment) == [f"model_config.{name}: {rule}"]


@pytest.mark.parametrize(
    ("arch", "width", "nearest"),
    [("darknet", 1264, "1280"), ("efficientnet_b3", 1232, "1216"), ("vgg", 1264, ""), ("darknet", 1280, "")],
)
def test_the_input_is_a_multiple_of_the_networks_stride(experiment, arch, width, nearest):
    experiment.model_config.arch = arch
    experiment.model_config.num_layers = 0
    experiment.augmentation_config.preprocessing.output_image_width = width
    rule = f"must be a multiple of 32, the stride of {arch} (for instance {nearest}), got {width}"
    path = "augmentation_config.preprocessing.output_image_width"
    assert violations(experiment) == ([f"{path}: {rule}"] if nearest else [])


@pytest.mark.parametrize(
    ("kind", "parameter", "rule"),
    [
        ("relu", "alpha", "relu takes no parameter, got 0.2"),
        ("elu", "slope", "elu takes alpha, got 0.2"),
        ("leaky_relu", "alpha", ""),
        ("elu", "alpha", ""),
    ],
)
def test_parameters_of_activations(experiment, kind, parameter, rule):
    experiment.model_config.activation.activation_type = kind
    experiment.model_config.activation.activation_parameters[parameter] = 0.2
    path = f'model_config.activation.activation_parameters["{parameter}"]'
    assert violations(experiment) == ([f"{path}: {rule}"] if rule else [])
    assert spec.warnings(experiment) == []


def test_one_of_the_box_costs_must_count(experiment):
    ratios = experiment.model_config.objective_set.bbox.loss_ratios
    ratios.SetInParent()
    assert violations(experiment) == []  # l1 is 1 where it is not written
    ratios.l1 = 0
    path = "model_config.objective_set.bbox.loss_ratios"
    assert violations(experiment) == [f"{path}: l1 or giou must exceed 0, got 0 and 0"]
    ratios.giou = 0.5
    assert violations(experiment) == []


def test_a_region_that_does_not_count_is_no_class(experiment):
    experiment.dataset_config.dontcare_labels.extend(["dontcare", "Cyclist"])
    rule = 'must not be a label of target_class_mapping too, got "Cyclist"'
    assert violations(experiment) == [f"dataset_config.dontcare_labels[1]: {rule}"]


def test_loss_mask(experiment):
    mask = experiment.loss_mask_label_filter
    mask.objective_label_filter_configs.add(target_class_names=["cars"], objective_names=["box"])
    size, crop, source = (mask.objective_label_filter_configs.add().label_filter for _ in range(3))
    size.bbox_dimensions_label_filter.min_width = 20
    crop.bbox_crop_label_filter.crop_left, crop.bbox_crop_label_filter.crop_bottom = 9, 5
    source.source_class_label_filter.source_class_names.append("van")
    path = "loss_mask_label_filter.objective_label_filter_configs"
    assert violations(experiment) == [
        f'{path}[0].objective_names[0]: must be one of cov, bbox (did you mean bbox?), got "box"',
        f"{path}[0].label_filter: needs one of bbox_dimensions_label_filter, bbox_crop_label_filter, "
        "source_class_label_filter",
        f'{path}[0].target_class_names[0]: must be a class of cost_function_config ("car", "cyclist", '
        '"pedestrian" (is "car" meant?)), got "cars"',
    ]
    del mask.objective_label_filter_configs[0]
    size.bbox_dimensions_label_filter.max_width = 10
    crop.bbox_crop_label_filter.crop_right, crop.bbox_crop_label_filter.crop_top = 8, 6
    assert violations(experiment) == [
        f"{path}[0].label_filter.bbox_dimensions_label_filter.min_width: must be at most max_width (10), got 20",
        f"{path}[1].label_filter.bbox_crop_label_filter.crop_left: must be at most crop_right (8), got 9",
        f"{path}[1].label_filter.bbox_crop_label_filter.crop_top: must be at most crop_bottom (5), got 6",
    ]


EARLY = "training_config.learning_rate.early_stopping_annealing_schedule"


@pytest.fixture
def early(experiment):
    schedule = experiment.training_config.learning_rate.early_stopping_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate, schedule.patience_steps = 1e-6, 1e-3, 10
    return schedule


def test_early_stopping_is_patient_between_two_validations_and_the_end(experiment, early):
    assert violations(experiment) == []
    early.patience_steps = 9
    rule = "must be at least evaluation_config.validation_period_during_training (10), got 9"
    assert violations(experiment) == [f"{EARLY}.patience_steps: {rule}"]
    early.patience_steps = 121
    rule = "must be at most the epochs of its stage (120), got 121"
    assert violations(experiment) == [f"{EARLY}.patience_steps: {rule}"]


def test_early_stopping_needs_validation_and_rising_rates(experiment, early):
    early.min_learning_rate = 0.01
    assert violations(experiment) == [
        f"{EARLY}.min_learning_rate: must be at most max_learning_rate (0.001), got 0.01"
    ]
    early.min_learning_rate = 1e-6
    experiment.dataset_config.ClearField("dataset_split_type")
    rule = "needs validation images: set dataset_config.validation_fold or validation_data_source"
    assert violations(experiment) == [f"{EARLY}: {rule}"]


def test_every_stage_needs_a_schedule(experiment):
    experiment.training_config.first_stage.num_epochs = 2
    path = "training_config.first_stage.learning_rate"
    assert violations(experiment) == [f"{path}: this section is missing"]
    experiment.training_config.first_stage.learning_rate.SetInParent()
    experiment.training_config.learning_rate.ClearField("learning_rate")
    rule = "needs soft_start_annealing_schedule { … } or early_stopping_annealing_schedule { … }"
    assert sorted(violations(experiment)) == [f"{path}: {rule}", f"training_config.learning_rate: {rule}"]


def test_nesterov_needs_momentum(experiment):
    sgd = experiment.training_config.optimizer.sgd
    sgd.nesterov = True
    assert violations(experiment) == []  # momentum is 0.9 where it is not written
    sgd.momentum = 0
    rule = "needs a momentum above 0"
    assert violations(experiment) == [f"training_config.optimizer.sgd.nesterov: {rule}"]


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


@pytest.mark.parametrize(
    ("arch", "changes", "expected"),
    [
        ("googlenet", {"num_layers": 18}, "num_layers has no effect: googlenet has one depth"),
        ("darknet", {"use_pooling": True}, "use_pooling has no effect: darknet has one form"),
        ("vgg", {"all_projections": True}, "all_projections has no effect: vgg has no projections to choose"),
        ("squeezenet", {"use_batch_norm": True}, "use_batch_norm has no effect: squeezenet never has batch normalisation"),
        ("efficientnet_b0", {"use_batch_norm": False}, "use_batch_norm has no effect: efficientnet_b0 always has batch normalisation"),
        ("vgg", {"deep_stem": True}, "deep_stem has no effect: vgg has no form v1d, resnet has"),
        ("resnet", {"layout": spec.ModelConfig.TENSORFLOW}, "layout has no effect: resnet has no form of TensorFlow to choose"),
        ("efficientnet_b0", {"use_batch_norm": True, "layout": spec.ModelConfig.TENSORFLOW}, ""),
        ("resnet", {"deep_stem": True, "average_pooled_shortcuts": True}, ""),
        ("vgg", {"freeze_blocks": [0, 1, 6]}, "freeze_blocks has no effect: vgg has blocks 1 to 5 and no 0, 6"),
        ("resnet", {"use_pooling": True, "all_projections": True, "num_layers": 50, "freeze_blocks": [0, 4]}, ""),
        ("efficientnet_b0", {"use_batch_norm": True, "freeze_blocks": [8]}, ""),
    ],
)  # fmt: skip
def test_choices_that_a_network_does_not_have(experiment, arch, changes, expected):
    model = spec.ModelConfig(arch=arch, pretrained_model_file="m.safetensors", **changes)
    model.objective_set.CopyFrom(experiment.model_config.objective_set)
    experiment.model_config.CopyFrom(model)
    assert violations(experiment) == []
    assert spec.warnings(experiment) == ([f"model_config.{expected}"] if expected else [])


def test_what_other_ways_of_counting_do_not_read(experiment):
    evaluation = experiment.evaluation_config
    evaluation.protocol = spec.EvaluationConfig.KITTI
    path = "evaluation_config"
    mode = f"{path}.average_precision_mode has no effect: protocol KITTI has its own recalls"
    assert spec.warnings(experiment) == [mode]
    evaluation.ClearField("average_precision_mode")
    evaluation.protocol = spec.EvaluationConfig.COCO
    reason = "protocol COCO averages over the overlaps 0.5, 0.55 .. 0.95"
    assert spec.warnings(experiment) == [
        f"{path}.minimum_detection_ground_truth_overlap has no effect: {reason}"
    ]
    evaluation.ClearField("minimum_detection_ground_truth_overlap")
    assert violations(experiment) == spec.warnings(experiment) == []


def test_a_confidence_that_nms_cannot_reach(experiment):
    entry = experiment.postprocessing_config.target_class_config["car"]
    entry.confidence_config.confidence_threshold = 2
    assert spec.warnings(experiment) == []  # a DBSCAN cluster may have a sum of 2
    entry.clustering_config.clustering_algorithm = spec.ClusteringConfig.NMS
    (found,) = spec.warnings(experiment)
    assert found.endswith(
        "confidence_threshold: 2 is more than the confidence of any detection of NMS, which is at most 1"
    )


def test_loss_masks_that_select_nothing(experiment):
    mask = experiment.loss_mask_label_filter
    mask.mask_multiplier = 0
    assert spec.warnings(experiment) == [
        "loss_mask_label_filter has no effect: it has no objective_label_filter_configs"
    ]
    mask.objective_label_filter_configs.add().label_filter.source_class_label_filter.SetInParent()
    (found,) = spec.warnings(experiment)
    assert found.endswith("label_filter.source_class_label_filter has no effect: it names no label")


def test_nothing_is_asked_of_a_field_without_effect(experiment, kitti_infer):
    experiment.dataset_config.dataloader_mode = 7
    inference = spec.loads(kitti_infer)
    inference.inferencer_config.stride = 0
    inference.inferencer_config.tensorrt_config.backend_data_type = 9
    assert violations(experiment) == violations(inference) == []


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
    inference.inferencer_config.tensorrt_config.etlt_model = "model.etlt"
    engine, unknown = spec.warnings(inference)
    assert engine.startswith(
        "inferencer_config.tensorrt_config.etlt_model has no effect: this format is not read"
    )
    assert unknown.endswith('["cyclists"] has no effect: there is no such class (is "cyclist" meant?)')


def test_a_share_that_is_likely_not_meant_in_percent(kitti_convert):
    config = spec.loads(kitti_convert)
    config.kitti_config.val_split = 0.2
    assert spec.warnings(config) == ["kitti_config.val_split: 0.2 is in percent; a share of 0.2 is 20"]
    config.voc_config.val_split = 1
    assert spec.warnings(config) == []
    config.yolo_config.val_split = 0.2
    assert spec.warnings(config) == ["yolo_config.val_split: 0.2 is in percent; a share of 0.2 is 20"]
    config.csv_config.val_split = 0.2
    assert spec.warnings(config) == ["csv_config.val_split: 0.2 is in percent; a share of 0.2 is 20"]


def test_conversion_spec(kitti_convert):
    config = spec.loads(kitti_convert)
    config.kitti_config.val_split = 100  # a test set: all of it is fold 0
    assert violations(config) == []
    config.kitti_config.num_partitions = 3
    config.kitti_config.val_split = 101
    assert violations(config) == [
        "kitti_config.val_split: must be in [0, 100], got 101",
        'kitti_config.num_partitions: partition_mode "random" makes 2 partitions, got 3',
    ]
    config.kitti_config.val_split = 0
    config.kitti_config.partition_mode = "sequence"
    path = "kitti_config.kitti_sequence_to_frames_file"
    assert violations(config) == [f'{path}: partition_mode "sequence" needs it']
    missing = "this section is missing (or coco_config, voc_config, yolo_config or csv_config)"
    assert violations(spec.DatasetExportConfig()) == [f"kitti_config: {missing}"]


def test_folds_of_other_layouts():
    coco = {
        "root_directory_path": "/d",
        "img_dir_names": ["a", "b"],
        "annotation_files": ["a.json", "b.json"],
    }
    assert violations(spec.DatasetExportConfig(coco_config=coco)) == []
    wrong = coco | {"annotation_files": ["a.json"], "num_partitions": 3, "num_shards": [1, 2, 3]}
    assert violations(spec.DatasetExportConfig(coco_config=wrong)) == [
        "coco_config.annotation_files: must be as many as img_dir_names, 2, got 1",
        "coco_config.num_partitions: must be the number of img_dir_names, 2 (or left out), got 3",
        "coco_config.num_shards: must be one value, or one for each of the 2 img_dir_names, got 3 values",
    ]
    rule = "must be left out with several annotation_files, each of which is a fold, got 10"
    assert violations(spec.DatasetExportConfig(coco_config=coco | {"val_split": 10})) == [
        f"coco_config.val_split: {rule}"
    ]
    voc = {"root_directory_path": "/d", "image_set_files": ["val.txt", "a.txt"], "val_split": 10}
    rule = "must be left out with several image_set_files, which say what is in each fold, got 10"
    assert violations(spec.DatasetExportConfig(voc_config=voc)) == [f"voc_config.val_split: {rule}"]
    yolo = {"root_directory_path": "/d", "image_dir_names": ["val", "train"], "val_split": 10}
    rule = "must be left out with several image_dir_names, which say what is in each fold, got 10"
    assert violations(spec.DatasetExportConfig(yolo_config=yolo)) == [f"yolo_config.val_split: {rule}"]
    tables = {"root_directory_path": "/d", "csv_files": ["a.csv"], "val_split": 10}
    assert violations(spec.DatasetExportConfig(csv_config=tables)) == []
    tables["csv_files"].append("b.csv")
    rule = "must be left out with several csv_files, which say what is in each fold, got 10"
    assert violations(spec.DatasetExportConfig(csv_config=tables)) == [f"csv_config.val_split: {rule}"]
