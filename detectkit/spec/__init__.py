"""Specs: the messages, and how to read, judge, explain and write them."""

from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.bbox_rasterizer_pb2 import BboxRasterizerConfig
from detectkit.spec.by_class import entry_of, expanded, shared_entries
from detectkit.spec.calibration_pb2 import CalibrationConfig
from detectkit.spec.classes import class_names, compare_classes, label_name, read_class_list
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.data_cleaning_pb2 import DataCleaningConfig
from detectkit.spec.dataset_export_pb2 import (
    COCOConfig,
    CSVConfig,
    DatasetExportConfig,
    KITTIConfig,
    SampleConfig,
    VOCConfig,
    YOLOConfig,
)
from detectkit.spec.dataset_pb2 import DatasetConfig, DataSource
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.explain import explain, markdown
from detectkit.spec.export_pb2 import EngineConfig, ExportConfig
from detectkit.spec.from_tlt import differences, obstacles
from detectkit.spec.inference_pb2 import (
    BboxHandlerConfig,
    ClasswiseBboxHandlerConfig,
    Inference,
    InferencerConfig,
)
from detectkit.spec.label_filter_pb2 import LabelFilter, ObjectiveLabelFilter
from detectkit.spec.load import (
    Spec,
    dumps,
    kind_of,
    load,
    load_dataset_export,
    load_experiment,
    load_inference,
    load_written,
    loads,
    reduced,
    resolved,
)
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS, spec_to_use
from detectkit.spec.phases import only
from detectkit.spec.postprocessing_pb2 import ClusteringConfig, ConfidenceConfig, PostProcessingConfig
from detectkit.spec.pruning import chosen_criterion, has_target
from detectkit.spec.pruning_pb2 import PruningConfig
from detectkit.spec.retraining import has_teacher, qat_spec, retraining_spec, teacher_files
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.rules import check
from detectkit.spec.runs import (
    another_training,
    batch_size,
    changed_sections,
    field_changes,
    is_measured_otherwise,
)
from detectkit.spec.schema import Violation, control_character
from detectkit.spec.training_pb2 import (
    AdamOptimizerConfig,
    AdamWOptimizerConfig,
    CostScalingConfig,
    DistillationConfig,
    EarlyStoppingAnnealingScheduleConfig,
    FirstStageConfig,
    LearningRateConfig,
    OptimizerConfig,
    RegularizerConfig,
    Retraining,
    SgdOptimizerConfig,
    SoftStartAnnealingScheduleConfig,
    TrainingConfig,
)
from detectkit.spec.visualizer_pb2 import ClearMLConfig, VisualizerConfig, WandBConfig
from detectkit.spec.warn import warnings

__all__ = [
    "AdamOptimizerConfig",
    "AdamWOptimizerConfig",
    "AugmentationConfig",
    "BboxHandlerConfig",
    "BboxRasterizerConfig",
    "COCOConfig",
    "CSVConfig",
    "CalibrationConfig",
    "ClasswiseBboxHandlerConfig",
    "ClearMLConfig",
    "ClusteringConfig",
    "ConfidenceConfig",
    "CostFunctionConfig",
    "CostScalingConfig",
    "DataCleaningConfig",
    "DataSource",
    "DatasetConfig",
    "DatasetExportConfig",
    "DistillationConfig",
    "EarlyStoppingAnnealingScheduleConfig",
    "EngineConfig",
    "EvaluationConfig",
    "Experiment",
    "ExportConfig",
    "FirstStageConfig",
    "Inference",
    "InferencerConfig",
    "KITTIConfig",
    "LabelFilter",
    "LearningRateConfig",
    "ModelConfig",
    "NETWORKS",
    "ObjectiveLabelFilter",
    "OptimizerConfig",
    "PostProcessingConfig",
    "PruningConfig",
    "RegularizerConfig",
    "Retraining",
    "Rule",
    "SampleConfig",
    "SgdOptimizerConfig",
    "SoftStartAnnealingScheduleConfig",
    "Spec",
    "TrainingConfig",
    "VOCConfig",
    "Violation",
    "VisualizerConfig",
    "WandBConfig",
    "YOLOConfig",
    "another_training",
    "batch_size",
    "changed_sections",
    "check",
    "chosen_criterion",
    "class_names",
    "compare_classes",
    "control_character",
    "differences",
    "dumps",
    "entry_of",
    "expanded",
    "explain",
    "field_changes",
    "has_target",
    "has_teacher",
    "is_measured_otherwise",
    "kind_of",
    "label_name",
    "load",
    "load_dataset_export",
    "load_experiment",
    "load_inference",
    "load_written",
    "loads",
    "markdown",
    "obstacles",
    "only",
    "qat_spec",
    "read_class_list",
    "reduced",
    "resolved",
    "retraining_spec",
    "shared_entries",
    "spec_to_use",
    "teacher_files",
    "warnings",
]
