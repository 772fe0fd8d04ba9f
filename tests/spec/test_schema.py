"""The schema against TLT's: same names, numbers and types, so that specs interchange; every field documented.

What is ours, messages and fields from number 1000 up, is listed too, so that nothing gets in unseen.
"""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from detectkit.spec.explain import TYPES, comments, messages, places, value_field
from detectkit.spec.rule_pb2 import rule as rule_option
from detectkit.spec.schema import _value, rule_of, violations

# TLT DetectNet_v2, all its messages. dbscan_min_samples is an int32 there; early specs write fractions.
TLT = """
Experiment: random_seed=1 uint32, dataset_config=2 DatasetConfig, augmentation_config=3 AugmentationConfig, postprocessing_config=4 PostProcessingConfig, model_config=5 ModelConfig, evaluation_config=6 EvaluationConfig, cost_function_config=8 CostFunctionConfig, training_config=9 TrainingConfig, bbox_rasterizer_config=10 BboxRasterizerConfig, loss_mask_label_filter=11 ObjectiveLabelFilter, dataset_export_config=12 rep DatasetExportConfig
TrainingConfig: batch_size_per_gpu=1 uint32, num_epochs=2 uint32, learning_rate=3 LearningRateConfig, regularizer=4 RegularizerConfig, optimizer=5 OptimizerConfig, cost_scaling=6 CostScalingConfig, checkpoint_interval=7 uint32, enable_qat=8 bool, visualizer=9 VisualizerConfig
LearningRateConfig: soft_start_annealing_schedule=1 SoftStartAnnealingScheduleConfig, early_stopping_annealing_schedule=2 EarlyStoppingAnnealingScheduleConfig
SoftStartAnnealingScheduleConfig: min_learning_rate=1 float, max_learning_rate=2 float, soft_start=3 float, annealing=4 float
EarlyStoppingAnnealingScheduleConfig: min_learning_rate=1 float, max_learning_rate=2 float, soft_start_epochs=3 uint32, annealing_epochs=4 uint32, patience_steps=5 uint32
OptimizerConfig: adam=1 AdamOptimizerConfig
AdamOptimizerConfig: epsilon=1 float, beta1=2 float, beta2=3 float
RegularizerConfig: type=1 RegularizationType{NO_REG=0 L1=1 L2=2}, weight=2 float
CostScalingConfig: enabled=1 bool, initial_exponent=2 double, increment=3 double, decrement=4 double
VisualizerConfig: enabled=1 bool, num_images=2 uint32, scalar_logging_frequency=3 uint32, infrequent_logging_frequency=4 uint32, target_class_config=5 map VisualizerConfig.TargetClassConfig, wandb_config=6 WandBConfig, clearml_config=7 ClearMLConfig
VisualizerConfig.TargetClassConfig: coverage_threshold=1 float
WandBConfig: enabled=1 bool, key=2 string, project=3 string, entity=4 string, reinit=5 bool, name=6 string, tags=7 rep string, wandb_dir=8 string, notes=9 string, mode=10 MODE{ONLINE=0 OFFLINE=1 DISABLED=2}
ClearMLConfig: project=1 string, task=2 string, tags=3 rep string, reuse_last_task_id=4 bool, continue_last_task=5 bool, deferred_init=6 bool
ModelConfig: pretrained_model_file=1 string, freeze_pretrained_layers=2 bool, allow_loaded_model_modification=3 bool, num_layers=4 int32, use_pooling=5 bool, use_batch_norm=6 bool, dropout_rate=7 float, activation=8 ModelConfig.Activation, objective_set=9 ModelConfig.ObjectiveSet, training_precision=10 ModelConfig.TrainingPrecision, freeze_bn=11 bool, freeze_blocks=12 rep float, arch=13 string, load_graph=14 bool, all_projections=15 bool
ModelConfig.Activation: activation_type=1 string, activation_parameters=2 map float
ModelConfig.BboxObjective: input=1 string, scale=2 float, offset=3 float
ModelConfig.CovObjective: input=1 string
ModelConfig.ObjectiveSet: bbox=1 ModelConfig.BboxObjective, cov=2 ModelConfig.CovObjective
ModelConfig.TrainingPrecision: backend_floatx=1 BackendFloatx{FLOAT32=0 FLOAT16=1 INVALID=2}
DataSource: tfrecords_path=1 string, image_directory_path=2 string, source_weight=3 float
DatasetConfig: data_sources=1 rep DataSource, image_extension=2 string, target_class_mapping=3 map string, validation_fold=4 uint32, validation_data_source=5 DataSource, dataloader_mode=6 DATALOADER_MODE{MULTISOURCE=0 LEGACY=1 DEFAULT=2}, sampling_mode=7 SAMPLING_MODE{USER_DEFINED=0 PROPORTIONAL=1 UNIFORM=2}
AugmentationConfig: preprocessing=1 AugmentationConfig.Preprocessing, spatial_augmentation=2 AugmentationConfig.SpatialAugmentation, color_augmentation=3 AugmentationConfig.ColorAugmentation
AugmentationConfig.Preprocessing: output_image_width=1 uint32, output_image_height=2 uint32, crop_left=4 uint32, crop_top=5 uint32, crop_right=6 uint32, crop_bottom=7 uint32, min_bbox_width=8 float, min_bbox_height=9 float, scale_width=10 float, scale_height=11 float, output_image_channel=13 uint32, output_image_min=14 uint32, output_image_max=15 uint32, enable_auto_resize=16 bool
AugmentationConfig.SpatialAugmentation: hflip_probability=1 float, vflip_probability=2 float, zoom_min=3 float, zoom_max=4 float, translate_max_x=5 float, translate_max_y=6 float, rotate_rad_max=7 float, rotate_probability=8 float
AugmentationConfig.ColorAugmentation: color_shift_stddev=1 float, hue_rotation_max=2 float, saturation_shift_max=3 float, contrast_scale_max=5 float, contrast_center=8 float
BboxRasterizerConfig: target_class_config=1 map BboxRasterizerConfig.TargetClassConfig, deadzone_radius=2 float
BboxRasterizerConfig.TargetClassConfig: cov_center_x=1 float, cov_center_y=2 float, cov_radius_x=3 float, cov_radius_y=4 float, bbox_min_radius=5 float
CostFunctionConfig: target_classes=1 rep CostFunctionConfig.TargetClass, enable_autoweighting=2 bool, max_objective_weight=3 float, min_objective_weight=4 float
CostFunctionConfig.TargetClass: name=1 string, class_weight=2 float, coverage_foreground_weight=3 float, objectives=4 rep CostFunctionConfig.TargetClass.Objective
CostFunctionConfig.TargetClass.Objective: name=1 string, initial_weight=2 float, weight_target=3 float
EvaluationConfig: validation_period_during_training=1 uint32, first_validation_epoch=2 uint32, minimum_detection_ground_truth_overlap=3 map float, evaluation_box_config=4 map EvaluationConfig.EvaluationBoxConfig, average_precision_mode=5 AP_MODE{SAMPLE=0 INTEGRATE=1}, early_stopping_patience_steps=6 uint32
EvaluationConfig.EvaluationBoxConfig: minimum_height=1 int32, maximum_height=2 int32, minimum_width=3 int32, maximum_width=4 int32
PostProcessingConfig: target_class_config=1 map PostProcessingConfig.TargetClassConfig
PostProcessingConfig.TargetClassConfig: clustering_config=1 ClusteringConfig, confidence_config=2 ConfidenceConfig
ClusteringConfig: coverage_threshold=1 float, minimum_bounding_box_height=2 int32, clustering_algorithm=3 ClusteringAlgorithm{DBSCAN=0 NMS=1 HYBRID=2}, dbscan_eps=4 float, dbscan_min_samples=5 float, neighborhood_size=6 int32, dbscan_confidence_threshold=7 float, nms_iou_threshold=8 float, nms_confidence_threshold=9 float
ConfidenceConfig: confidence_threshold=1 float, confidence_model_filename=2 string, normalization_mode=3 string
ObjectiveLabelFilter: objective_label_filter_configs=1 rep ObjectiveLabelFilter.ObjectiveLabelFilterConfig, mask_multiplier=2 float, preserve_ground_truth=3 bool
ObjectiveLabelFilter.ObjectiveLabelFilterConfig: label_filter=1 LabelFilter, target_class_names=2 rep string, objective_names=3 rep string
LabelFilter: bbox_dimensions_label_filter=1 LabelFilter.BboxDimensionsLabelFilter, bbox_crop_label_filter=2 LabelFilter.BboxCropLabelFilter, source_class_label_filter=3 LabelFilter.SourceClassLabelFilter
LabelFilter.BboxDimensionsLabelFilter: min_width=1 float, min_height=2 float, max_width=3 float, max_height=4 float
LabelFilter.BboxCropLabelFilter: crop_left=1 float, crop_right=2 float, crop_top=3 float, crop_bottom=4 float
LabelFilter.SourceClassLabelFilter: source_class_names=4 rep string
DatasetExportConfig: coco_config=1 COCOConfig, kitti_config=2 KITTIConfig, sample_modifier_config=5 DatasetExportConfig.SampleModifierConfig, image_directory_path=6 string, target_class_mapping=7 map string
DatasetExportConfig.SampleModifierConfig: filter_samples_containing_only=1 rep string, dominant_target_classes=2 rep string, minimum_target_class_imbalance=3 map float, num_duplicates=4 uint32, max_training_samples=5 uint32, source_to_target_class_mapping=6 map string
KITTIConfig: root_directory_path=1 string, image_dir_name=2 string, label_dir_name=3 string, point_clouds_dir=4 string, calibrations_dir=5 string, kitti_sequence_to_frames_file=6 string, image_extension=7 string, num_partitions=8 uint32, num_shards=9 uint32, partition_mode=10 string, val_split=11 float
COCOConfig: root_directory_path=1 string, img_dir_names=2 rep string, annotation_files=3 rep string, num_partitions=4 uint32, num_shards=5 rep uint32
Inference: inferencer_config=1 InferencerConfig, bbox_handler_config=2 BboxHandlerConfig
BboxHandlerConfig: kitti_dump=1 bool, disable_overlay=2 bool, overlay_linewidth=3 int32, classwise_bbox_handler_config=4 map ClasswiseBboxHandlerConfig, postproc_classes=5 rep string, wandb_config=6 WandBConfig
ClasswiseBboxHandlerConfig: clustering_config=1 ClusteringConfig, confidence_model=2 string, output_map=3 string, bbox_color=7 ClasswiseBboxHandlerConfig.BboxColor
ClasswiseBboxHandlerConfig.BboxColor: R=1 int32, G=2 int32, B=3 int32
InferencerConfig: tlt_config=1 TLTConfig, tensorrt_config=2 TensorRTConfig, input_nodes=3 rep string, output_nodes=4 rep string, batch_size=5 int32, image_height=6 int32, image_width=7 int32, image_channels=8 int32, gpu_index=9 int32, target_classes=10 rep string, stride=11 int32
TLTConfig: model=1 string
TensorRTConfig: parser=1 Parser{ETLT=0 UFF=1 CAFFE=2}, caffemodel=2 string, prototxt=3 string, uff_model=4 string, etlt_model=5 string, backend_data_type=6 BackendDataType{FP32=0 FP16=1 INT8=2}, save_engine=7 bool, trt_engine=8 string, calibrator_config=9 CalibratorConfig
CalibratorConfig: calibration_cache=1 string, calibration_tensorfile=2 string, n_batches=3 int32
"""  # noqa: E501
LINES = dict(line.split(": ", 1) for line in TLT.strip().splitlines())
OWN_FIELDS = """
BboxObjective.loss_ratios CalibratorConfig.batch_size COCOConfig.crowd_label COCOConfig.val_split ClasswiseBboxHandlerConfig.confidence_threshold
CostFunctionConfig.class_file CostFunctionConfig.class_names CostFunctionConfig.coverage_focal_gamma CovObjective.prior
DatasetConfig.dontcare_labels DatasetExportConfig.embed_images DatasetExportConfig.output_filename
DatasetExportConfig.random_seed DatasetExportConfig.sample_config DatasetExportConfig.voc_config
DatasetExportConfig.yolo_config DatasetExportConfig.csv_config EvaluationConfig.protocol
Experiment.calibration_config Experiment.export_config Experiment.pruning_config ModelConfig.average_pooled_shortcuts
ModelConfig.batch_norm_momentum ModelConfig.deep_stem ModelConfig.layout OptimizerConfig.adamw
OptimizerConfig.sgd
TrainingConfig.accumulate_batches TrainingConfig.clip_gradient_norm TrainingConfig.distillation TrainingConfig.ema_decay
TrainingConfig.first_stage TrainingConfig.max_boxes_per_image TrainingConfig.workers
DatasetExportConfig.cleaning_file DatasetExportConfig.keep_near_duplicates_together Experiment.data_cleaning_config
""".split()
OWN_MESSAGES = {
    "AdamWOptimizerConfig": "epsilon beta1 beta2 weight_decay",
    "CalibrationConfig": "method batches batch_size tensorrt_version quantization_aware_training",
    "DataCleaningConfig": "near_duplicate_distance duplicate_box_iou outlier_deviations ignored_kinds max_suggestions",
    "DistillationConfig": "teacher_model_file weight",
    "EngineConfig": "targets min_batch_size opt_batch_size max_batch_size max_workspace_size",
    "ExportConfig": "data_type runtime per_tensor max_drop target_opset static_batch_size nms gen_ds_config engine_config",
    "FirstStageConfig": "num_epochs learning_rate",
    "ModelConfig.LossRatios": "l1 giou",
    "PruningConfig": "threshold target_params target_macs target_latency equalization_criterion granularity "
    "min_num_filters excluded_layers normalizer criterion calibration_batches iterations retraining",
    "Retraining": "num_epochs learning_rate distillation",
    "SampleConfig": "root_directory_path num_shards",
    "SgdOptimizerConfig": "momentum nesterov",
    "VOCConfig": "root_directory_path image_dir_name annotation_dir_name image_set_files val_split num_shards "
    "difficult_label image_extension",
    "YOLOConfig": "root_directory_path classes_file image_dir_names val_split num_shards",
    "CSVConfig": "root_directory_path csv_files image_dir_name val_split num_shards",
}
MESSAGES = {message.full_name.removeprefix("detectkit.spec."): message for message in messages()}
PLACES = places()


def written(field):
    """A field of the schema in the notation above."""
    value = field.message_type.fields_by_name["value"] if value_field(field) else field
    if value.message_type is not None:
        kind = value.message_type.full_name.removeprefix("detectkit.spec.")
    elif value.enum_type is not None:
        values = " ".join(f"{item.name}={item.number}" for item in value.enum_type.values)
        kind = f"{value.enum_type.name}{{{values}}}"
    else:
        kind = TYPES[value.cpp_type]
    prefix = "map " if value is not field else "rep " if field.is_repeated else ""
    return f"{field.name}={field.number} {prefix}{kind}"


def test_every_message_is_tlts_or_listed_as_ours():
    assert set(MESSAGES) == set(LINES) | set(OWN_MESSAGES)
    for name, fields in OWN_MESSAGES.items():
        assert [field.name for field in MESSAGES[name].fields] == fields.split()


@pytest.mark.parametrize("name", LINES)
def test_fields_have_tlts_names_numbers_and_types(name):
    ours = sorted(written(field) for field in MESSAGES[name].fields if field.number < 1000)
    assert ours == sorted(LINES[name].split(", "))


def test_own_fields_of_tlts_messages_start_at_1000_and_are_listed():
    own = {".".join(place.field.full_name.split(".")[-2:]) for place in PLACES if place.field.number >= 1000}
    assert own == set(OWN_FIELDS)


FIELDS = {place.field.full_name: place.field for place in PLACES}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
def test_every_field_is_documented_and_its_default_keeps_its_rule(field):
    assert len(comments()[field.full_name]) >= 4
    assert comments()[field.full_name].endswith(".")
    rule = rule_of(field)
    scalar = field.message_type is None and not field.is_repeated and not rule.required
    read_unset = field.containing_oneof is None or field.has_default_value
    if scalar and read_unset:
        assert list(_value("here", field.default_value, field, rule)) == []


def test_every_value_of_an_enumeration_is_documented():
    enums = {place.field.enum_type for place in PLACES if place.field.enum_type is not None}
    tlts_own = "DATALOADER_MODE"  # does nothing here
    for enum in enums:
        if enum.name != tlts_own:
            assert all(comments()[f"{enum.full_name}.{value.name}"] for value in enum.values), enum.full_name


@pytest.fixture(scope="module")
def two_heads():
    """A message whose oneof `head` is an objective_set, which is required, or a pyramid."""
    file = descriptor_pb2.FileDescriptorProto(name="two_heads.proto", package="two_heads", syntax="proto2")
    message = file.message_type.add(name="Network")
    message.oneof_decl.add(name="head")
    for number, name in enumerate(("objective_set", "pyramid"), start=1):
        field = message.field.add(name=name, number=number, label=1, type=5, oneof_index=0)
        field.options.Extensions[rule_option].required = name == "objective_set"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("two_heads.Network"))


def test_what_is_required_of_a_oneof_is_one_of_it(two_heads):
    (found,) = violations(two_heads(), "model_config")
    assert str(found) == "model_config.objective_set: one of objective_set, pyramid is needed"
    for name in ("objective_set", "pyramid"):
        assert not list(violations(two_heads(**{name: 1}), "model_config"))
