"""Specs: the messages, and how to read, judge, explain and write them."""

from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.bbox_rasterizer_pb2 import BboxRasterizerConfig
from detectkit.spec.check import Violation, check, class_names
from detectkit.spec.classes import compare_classes, read_class_list
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import (
    COCOConfig,
    DatasetExportConfig,
    KITTIConfig,
    VOCConfig,
)
from detectkit.spec.dataset_pb2 import DatasetConfig, DataSource
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.explain import explain, markdown
from detectkit.spec.from_tlt import differences
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
    loads,
    resolved,
)
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS
from detectkit.spec.postprocessing_pb2 import ClusteringConfig, ConfidenceConfig, PostProcessingConfig
from detectkit.spec.pruning_pb2 import PruningConfig
from detectkit.spec.training_pb2 import (
    AdamOptimizerConfig,
    AdamWOptimizerConfig,
    CostScalingConfig,
    EarlyStoppingAnnealingScheduleConfig,
    FirstStageConfig,
    LearningRateConfig,
    OptimizerConfig,
    RegularizerConfig,
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
    "ClasswiseBboxHandlerConfig",
    "ClearMLConfig",
    "ClusteringConfig",
    "ConfidenceConfig",
    "CostFunctionConfig",
    "CostScalingConfig",
    "DataSource",
    "DatasetConfig",
    "DatasetExportConfig",
    "EarlyStoppingAnnealingScheduleConfig",
    "EvaluationConfig",
    "Experiment",
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
    "SgdOptimizerConfig",
    "SoftStartAnnealingScheduleConfig",
    "Spec",
    "TrainingConfig",
    "VOCConfig",
    "Violation",
    "VisualizerConfig",
    "WandBConfig",
    "check",
    "class_names",
    "compare_classes",
    "differences",
    "dumps",
    "explain",
    "kind_of",
    "load",
    "load_dataset_export",
    "load_experiment",
    "load_inference",
    "loads",
    "markdown",
    "read_class_list",
    "resolved",
    "warnings",
]
