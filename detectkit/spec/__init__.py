"""Specs: the messages, and how to read, judge, explain and write them."""

from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.bbox_rasterizer_pb2 import BboxRasterizerConfig
from detectkit.spec.check import Violation, check, class_names, warnings
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import COCOConfig, DatasetExportConfig, KITTIConfig
from detectkit.spec.dataset_pb2 import DatasetConfig, DataSource
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.explain import explain, markdown
from detectkit.spec.inference_pb2 import (
    BboxHandlerConfig,
    ClasswiseBboxHandlerConfig,
    Inference,
    InferencerConfig,
)
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
from detectkit.spec.postprocessing_pb2 import ClusteringConfig, PostProcessingConfig
from detectkit.spec.training_pb2 import (
    AdamOptimizerConfig,
    LearningRateConfig,
    OptimizerConfig,
    RegularizerConfig,
    SoftStartAnnealingScheduleConfig,
    TrainingConfig,
)
from detectkit.spec.visualizer_pb2 import VisualizerConfig

__all__ = [
    "AdamOptimizerConfig",
    "AugmentationConfig",
    "BboxHandlerConfig",
    "BboxRasterizerConfig",
    "COCOConfig",
    "ClasswiseBboxHandlerConfig",
    "ClusteringConfig",
    "CostFunctionConfig",
    "DataSource",
    "DatasetConfig",
    "DatasetExportConfig",
    "EvaluationConfig",
    "Experiment",
    "Inference",
    "InferencerConfig",
    "KITTIConfig",
    "LearningRateConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PostProcessingConfig",
    "RegularizerConfig",
    "SoftStartAnnealingScheduleConfig",
    "Spec",
    "TrainingConfig",
    "Violation",
    "VisualizerConfig",
    "check",
    "class_names",
    "dumps",
    "explain",
    "kind_of",
    "load",
    "load_dataset_export",
    "load_experiment",
    "load_inference",
    "loads",
    "markdown",
    "resolved",
    "warnings",
]
