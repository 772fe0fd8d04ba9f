"""What a spec written for TLT does differently here: for each difference the field, when it applies, and why.

docs/from-tlt.md has every sentence of these tables; `detectkit check --from-tlt SPEC` prints those that apply to a spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from detectkit.spec.augmentation_pb2 import AugmentationConfig
from detectkit.spec.classes import class_names, label_name
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.dataset_pb2 import DataSource
from detectkit.spec.evaluation_pb2 import EvaluationConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import has_tlt_layout, is_keras, is_of_tlt
from detectkit.spec.postprocessing_pb2 import ClusteringConfig
from detectkit.spec.rules import has_batch_norm
from detectkit.spec.training_pb2 import RegularizerConfig

AnySpec = TypeVar("AnySpec")


class Difference(NamedTuple, Generic[AnySpec]):
    """One thing that happens here and does not in TLT, or the other way round."""

    path: str
    sentence: str
    applies: Callable[[AnySpec], bool]
    stops: bool = False  # nothing runs until it is changed

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}"


def differences(message: Experiment | Inference | DatasetExportConfig) -> list[str]:
    """`path: sentence` for everything that a spec, if it was written for TLT, does differently here and that stops no run."""
    return [str(entry) for entry in _applying(message) if not entry.stops]


def obstacles(message: Experiment | Inference | DatasetExportConfig) -> list[str]:
    """The same for what stops a run until it is changed."""
    return [str(entry) for entry in _applying(message) if entry.stops]


def _applying(message: Experiment | Inference | DatasetExportConfig) -> Sequence[Difference[Any]]:
    match message:
        case Experiment():
            return [entry for entry in TRAINING if entry.applies(message)]
        case Inference():
            return [entry for entry in INFERENCE if entry.applies(message)]
        case DatasetExportConfig():
            return [entry for entry in CONVERSION if entry.applies(message)]


# What the tables look at


def _sources(spec: Experiment) -> list[DataSource]:
    held_out = spec.dataset_config.validation_data_source
    return [*spec.dataset_config.data_sources, *([held_out] if held_out.tfrecords_path else [])]


def _is_mapped_twice(spec: Experiment) -> bool:
    """Whether a second look-up of a mapped name gives another class, or none."""
    mapping = spec.dataset_config.target_class_mapping
    return any(mapping.get(target) != target for target in mapping.values())


def _preprocessing(spec: Experiment) -> AugmentationConfig.Preprocessing:
    return spec.augmentation_config.preprocessing


def _moves(spec: Experiment) -> AugmentationConfig.SpatialAugmentation:
    return spec.augmentation_config.spatial_augmentation


def _zooms(spec: Experiment) -> bool:
    return _moves(spec).zoom_min != 1 or _moves(spec).zoom_max != 1


def _shifts(spec: Experiment) -> bool:
    moves = _moves(spec)
    return _zooms(spec) or moves.translate_max_x > 0 or moves.translate_max_y > 0 or moves.rotate_rad_max > 0


def _drops_small_boxes(spec: Experiment) -> bool:
    size = _preprocessing(spec)
    return size.min_bbox_width != 1 or size.min_bbox_height != 1


def _crops(spec: Experiment) -> bool:
    size = _preprocessing(spec)
    return any((size.crop_left, size.crop_top, size.crop_right, size.crop_bottom))


def _is_encrypted(path: str) -> bool:
    return is_of_tlt(path) and not is_keras(path)


def _is_resnet(model: ModelConfig, *, bottlenecks: bool) -> bool:
    return model.arch == "resnet" and (model.num_layers >= 50) is bottlenecks


def _is_torchvisions(model: ModelConfig, arch: str) -> bool:
    return model.arch == arch and not has_tlt_layout(model)


def _starts_elsewhere(model: ModelConfig) -> bool:
    path = model.pretrained_model_file
    return bool(path) and not is_of_tlt(path) and not model.load_graph


def _of_training(spec: Experiment) -> list[ClusteringConfig]:
    entries = spec.postprocessing_config.target_class_config
    return [entries[name].clustering_config for name in class_names(spec) if name in entries]


def _of_inference(spec: Inference) -> list[ClusteringConfig]:
    return [
        entry.clustering_config for entry in spec.bbox_handler_config.classwise_bbox_handler_config.values()
    ]


def _is(configs: Iterable[ClusteringConfig], algorithm: ClusteringConfig.ClusteringAlgorithm) -> bool:
    return any(config.clustering_algorithm == algorithm for config in configs)


def _has_fractions(configs: Iterable[ClusteringConfig]) -> bool:
    """Whether TLT rounds dbscan_min_samples: it takes the whole part, and at least 1."""
    return any(
        config.dbscan_min_samples not in (0, max(int(config.dbscan_min_samples), 1)) for config in configs
    )


def _thresholds_differ(config: ClusteringConfig) -> bool:
    has_nms = config.HasField("nms_confidence_threshold")
    return config.dbscan_confidence_threshold != (config.nms_confidence_threshold if has_nms else 0)


def _leaves_out(configs: Iterable[ClusteringConfig], *names: str) -> bool:
    return any(not config.HasField(name) for config in configs for name in names)


def _has_confidence(spec: Experiment) -> bool:
    entries = spec.postprocessing_config.target_class_config
    return any(entry.confidence_config.confidence_threshold > 0 for entry in entries.values())


def _filters_by_name(spec: Experiment) -> bool:
    entries = spec.loss_mask_label_filter.objective_label_filter_configs
    return any(entry.label_filter.HasField("source_class_label_filter") for entry in entries)


def _filters_by_place(spec: Experiment) -> bool:
    crops = [
        entry.label_filter.bbox_crop_label_filter
        for entry in spec.loss_mask_label_filter.objective_label_filter_configs
        if entry.label_filter.HasField("bbox_crop_label_filter")
    ]
    return any(0 in (crop.crop_left, crop.crop_top, crop.crop_right, crop.crop_bottom) for crop in crops)


def _root(spec: DatasetExportConfig) -> str:
    kind = spec.WhichOneof("convert_config_type")
    return str(getattr(spec, kind).root_directory_path) if kind else ""


def _shards(spec: DatasetExportConfig) -> list[int]:
    return [spec.kitti_config.num_shards, *spec.coco_config.num_shards]


def _modifies(spec: DatasetExportConfig, *names: str) -> bool:
    return any(bool(getattr(spec.sample_modifier_config, name)) for name in names)


def _is_relative(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "~"))


# The tables. A sentence follows `path: `.

NMS, DBSCAN, HYBRID = ClusteringConfig.NMS, ClusteringConfig.DBSCAN, ClusteringConfig.HYBRID
CLUSTERING = 'postprocessing_config.target_class_config["…"].clustering_config'
CLASSWISE = 'bbox_handler_config.classwise_bbox_handler_config["…"]'
SPATIAL = "augmentation_config.spatial_augmentation"
SIZE = "augmentation_config.preprocessing"
BBOX = "model_config.objective_set.bbox"

TRAINING: tuple[Difference[Experiment], ...] = (
    # data
    Difference(
        "dataset_config.target_class_mapping",
        "is applied once; TLT applies it a second time to the classes, so that a class that is not mapped to itself "
        "loses its boxes there, and a chain of two mappings is followed",
        _is_mapped_twice,
    ),
    Difference(
        "dataset_config.target_class_mapping",
        "labels are compared in lower case and without spaces; in TLT a key with capitals or spaces never matches a record",
        lambda spec: any(label != label_name(label) for label in spec.dataset_config.target_class_mapping),
    ),
    Difference(
        "dataset_config.target_class_mapping",
        "a class that cost_function_config does not have is background; TLT stops in the first step",
        lambda spec: not set(spec.dataset_config.target_class_mapping.values()) <= set(class_names(spec)),
    ),
    Difference(
        "dataset_config.data_sources[…].tfrecords_path",
        "a relative path starts from the current folder; TLT's starts from DATA_BASE_PATH",
        lambda spec: any(_is_relative(source.tfrecords_path) for source in _sources(spec)),
    ),
    Difference(
        "dataset_config.data_sources[…].source_weight",
        "counts at every batch size; TLT leaves it out when batch_size_per_gpu is 1",
        lambda spec: spec.training_config.batch_size_per_gpu == 1
        and any(source.source_weight not in (0, 1) for source in _sources(spec)),
    ),
    Difference(
        "random_seed",
        "is 42 where it is not set; TLT reads 0",
        lambda spec: not spec.HasField("random_seed"),
    ),
    # images
    Difference(
        f"{SIZE}.enable_auto_resize",
        "resamples at pixel centres and smooths large reductions; TLT's resize does neither, so small objects look "
        "a little different",
        lambda spec: _preprocessing(spec).enable_auto_resize,
    ),
    Difference(
        f"{SIZE}.min_bbox_width, min_bbox_height",
        "drop small boxes after augmentation; TLT's usual loader ignores both and drops boxes below one pixel before it",
        _drops_small_boxes,
    ),
    Difference(
        f"{SIZE}.crop_left, crop_top, crop_right, crop_bottom",
        "boxes are clipped to the part that is cut out; TLT's usual loader compares shifted boxes with the edges before "
        "the shift, and so loses some",
        _crops,
    ),
    Difference(
        f"{SIZE}.scale_width, scale_height",
        "are factors on the size of each image; TLT's are on the size of the largest image of the sources",
        lambda spec: bool(_preprocessing(spec).scale_width or _preprocessing(spec).scale_height),
    ),
    Difference(
        f"{SPATIAL}.vflip_probability",
        "mirrors images top to bottom; TLT never does",
        lambda spec: _moves(spec).vflip_probability > 0,
    ),
    Difference(
        f"{SPATIAL}.zoom_min, zoom_max",
        "a factor above 1 magnifies; in TLT's usual loader it makes the image smaller",
        _zooms,
    ),
    Difference(
        f"{SPATIAL}.rotate_rad_max",
        "is in radians; TLT's usual loader takes degrees, so multiply by 0.01745 to keep its angles",
        lambda spec: _moves(spec).rotate_rad_max > 0,
    ),
    Difference(
        f"{SPATIAL}.rotate_rad_max",
        "the box of a rotated object encloses its four corners; TLT turns two of them",
        lambda spec: _moves(spec).rotate_rad_max > 0,
    ),
    Difference(
        f"{SPATIAL}.rotate_probability",
        "0 is never; TLT reads 0 as always",
        lambda spec: _moves(spec).rotate_rad_max > 0
        and _moves(spec).HasField("rotate_probability")
        and _moves(spec).rotate_probability == 0,
    ),
    Difference(
        SPATIAL,
        "moved boxes are clipped to the image and dropped when nothing is left; TLT keeps the parts outside",
        _shifts,
    ),
    Difference(
        SPATIAL,
        "what a moved image leaves free is black; in TLT's usual loader it is grey",
        _shifts,
    ),
    Difference(
        "augmentation_config.color_augmentation.contrast_center",
        "is 0.5 where it is not set; TLT reads 0, which changes the brightness with the contrast",
        lambda spec: spec.augmentation_config.color_augmentation.contrast_scale_max > 0
        and not spec.augmentation_config.color_augmentation.HasField("contrast_center"),
    ),
    # network
    Difference(
        "model_config.pretrained_model_file",
        "encrypted files of TLT are not read; name its plain Keras file (.hdf5; docs/tlt.md tells how to get "
        "it), a torchvision file (.pth) of the same backbone or a detectkit model (.safetensors)",
        lambda spec: _is_encrypted(spec.model_config.pretrained_model_file),
        stops=True,
    ),
    Difference(
        "model_config.pretrained_model_file",
        "every tensor of the network must be in a Keras file; TLT leaves layers that do not fit as they are, "
        "at random",
        lambda spec: is_keras(spec.model_config.pretrained_model_file),
    ),
    Difference(
        "model_config.pretrained_model_file",
        "heads of classes of the same name are taken over with the backbone; TLT's heads always start afresh",
        lambda spec: _starts_elsewhere(spec.model_config),
    ),
    Difference(
        "model_config.load_graph",
        "the network is that of this model_config, narrowed to the widths in the file, and must have its layers; TLT takes "
        "the graph from the file and ignores arch, num_layers and the freezing fields",
        lambda spec: spec.model_config.load_graph,
    ),
    Difference(
        "model_config.freeze_pretrained_layers",
        "freezes what came from the file; TLT ignores it",
        lambda spec: spec.model_config.freeze_pretrained_layers,
    ),
    Difference(
        "model_config.num_layers",
        "ResNets of 50 and more layers have the stride in the 3x3 convolution, as torchvision's weights "
        "expect; TLT's is in the first 1x1, as with layout: TLT",
        lambda spec: _is_resnet(spec.model_config, bottlenecks=True) and not has_tlt_layout(spec.model_config),
    ),
    Difference(
        "model_config.use_pooling",
        "keeps the stride of 16: a max-pool in the place of the stride of block 1; TLT's ResNet then ends in a 7x7 pool "
        "that leaves no grid",
        lambda spec: spec.model_config.use_pooling and spec.model_config.arch == "resnet",
    ),
    Difference(
        "model_config.all_projections",
        "without it and with use_pooling, block 1 starts without a projection, as torchvision's; TLT's has one",
        lambda spec: spec.model_config.use_pooling
        and not spec.model_config.all_projections
        and _is_resnet(spec.model_config, bottlenecks=False),
    ),
    Difference(
        "model_config.use_batch_norm",
        "epsilon and momentum of batch normalisation are torchvision's, and no bias stands before it but in "
        "vgg; TLT's are 0.001, which layout: TLT has too, and 0.99, and most of its convolutions keep a bias",
        lambda spec: has_batch_norm(spec.model_config) and not has_tlt_layout(spec.model_config),
    ),
    Difference(
        "model_config.use_batch_norm",
        "batch normalisation moves its statistics by a tenth each step and takes the bias of the convolution "
        "before it into its mean; TLT's moves them by a hundredth and trains that bias",
        lambda spec: has_batch_norm(spec.model_config) and has_tlt_layout(spec.model_config),
    ),
    Difference(
        "model_config.arch",
        "mobilenet_v2 has ReLU6, as torchvision's weights expect; TLT's has ReLU, as with layout: TLT",
        lambda spec: _is_torchvisions(spec.model_config, "mobilenet_v2")
        and not spec.model_config.HasField("activation"),
    ),
    Difference(
        "model_config.arch",
        "googlenet has 3x3 convolutions and pools, as torchvision's weights expect; TLT's has 5x5 and 2x2, as"
        " with layout: TLT",
        lambda spec: _is_torchvisions(spec.model_config, "googlenet"),
    ),
    Difference(
        "model_config.arch",
        "efficientnet pads all sides alike, as torchvision's weights expect; TLT's as TensorFlow, as with "
        "layout: TLT",
        lambda spec: _is_torchvisions(spec.model_config, "efficientnet_b0"),
    ),
    Difference(
        "model_config.dropout_rate",
        "drops values between the backbone and the heads; TLT ignores it",
        lambda spec: spec.model_config.dropout_rate > 0,
    ),
    Difference(
        "model_config.activation",
        "replaces the function after every convolution; TLT ignores it",
        lambda spec: spec.model_config.HasField("activation"),
    ),
    Difference(
        "model_config.training_precision.backend_floatx",
        "FLOAT16 keeps the weights in 32 bits and computes in 16 where that is safe: bfloat16 on a CPU with AMX "
        "units, 32 bits on one that lacks them; on a GPU the cost is then always scaled; the log says what ran",
        lambda spec: spec.model_config.training_precision.backend_floatx == ModelConfig.TrainingPrecision.FLOAT16,
    ),
    Difference(
        f"{BBOX}.scale, offset",
        "are used in inference too; TLT's inference takes 35 and 0.5 whatever the spec says",
        lambda spec: spec.model_config.objective_set.bbox.scale != 35
        or spec.model_config.objective_set.bbox.offset != 0.5,
    ),
    Difference(
        f"{BBOX}.offset",
        "is 0.5 where it is not set; TLT reads 0",
        lambda spec: not spec.model_config.objective_set.bbox.HasField("offset"),
    ),
    Difference(
        "model_config.objective_set.cov.prior",
        "coverage starts at 0.01 in every cell; TLT's starts at 0.5, and where objects are few it may stay there: 0.5 turns "
        "it back",
        lambda spec: not spec.model_config.load_graph and not spec.model_config.objective_set.cov.HasField("prior"),
    ),
    # cost and training
    Difference(
        "cost_function_config.enable_autoweighting",
        "goes by the costs of the last 200 steps, where an epoch has less; TLT goes by the last epoch, however short",
        lambda spec: spec.cost_function_config.enable_autoweighting,
    ),
    Difference(
        "training_config.regularizer",
        "leaves out the biases of the heads; TLT's count, and hold coverage at its start",
        lambda spec: spec.training_config.regularizer.type != RegularizerConfig.NO_REG,
    ),
    Difference(
        "cost_function_config.max_objective_weight",
        "is 1 where it is not set; TLT reads 0, which stops all learning after the first epoch",
        lambda spec: spec.cost_function_config.enable_autoweighting
        and not spec.cost_function_config.HasField("max_objective_weight"),
    ),
    Difference(
        "training_config.cost_scaling.enabled",
        "a step whose gradients are not finite is left out; TLT takes it with zeros, which moves the weights by Adam's "
        "memory",
        lambda spec: spec.training_config.cost_scaling.enabled,
    ),
    Difference(
        "training_config.enable_qat",
        "keeps the activations of the network and rounds weights by output channel, as batch normalisation folds them; "
        "TLT puts ReLU6 in their place and rounds the whole weight by one range, unfolded",
        lambda spec: spec.training_config.enable_qat,
    ),
    Difference(
        "training_config.enable_qat",
        "holds the ranges and the statistics of batch normalisation in the last quarter, and ranges start at the first "
        "batch; TLT's start at 6 and move to the end",
        lambda spec: spec.training_config.enable_qat,
    ),
    Difference(
        "training_config.enable_qat",
        "also rounds mobilenet_v1 and mobilenet_v2; TLT trains them in floating point and does not say so",
        lambda spec: spec.training_config.enable_qat
        and not spec.model_config.load_graph
        and spec.model_config.arch.startswith("mobilenet"),
    ),
    Difference(
        "training_config.visualizer.wandb_config.name",
        "is the name of the run; TLT adds the time",
        lambda spec: spec.training_config.visualizer.wandb_config.enabled
        and bool(spec.training_config.visualizer.wandb_config.name),
    ),
    Difference(
        "training_config.optimizer.adam.epsilon",
        "is added after the bias correction, as torch does; TLT adds it before",
        lambda spec: spec.training_config.optimizer.HasField("adam"),
    ),
    Difference(
        "training_config.regularizer",
        "counts the depthwise convolutions too; TLT leaves them out",
        lambda spec: spec.training_config.regularizer.type != RegularizerConfig.NO_REG
        and spec.model_config.arch.startswith(("mobilenet", "efficientnet")),
    ),
    Difference(
        "training_config.learning_rate.early_stopping_annealing_schedule",
        "validation computes average precision too; TLT computes none with this schedule",
        lambda spec: spec.training_config.learning_rate.HasField("early_stopping_annealing_schedule"),
    ),
    Difference(
        "loss_mask_label_filter",
        "source_class_label_filter sees the names in the records; TLT's sees the mapped ones, after labels that are not "
        "mapped are gone, so that dontcare matches nothing",
        _filters_by_name,
    ),
    Difference(
        "loss_mask_label_filter",
        "an edge of 0 in bbox_crop_label_filter is no limit on that side; in TLT it switches the whole filter off",
        _filters_by_place,
    ),
    # evaluation and detections
    Difference(
        "evaluation_config.average_precision_mode",
        "INTEGRATE is the whole area under the curve, so that a perfect detector has 1; TLT leaves out the last part",
        lambda spec: spec.evaluation_config.average_precision_mode == EvaluationConfig.INTEGRATE,
    ),
    Difference(
        "evaluation_config",
        "a class without labelled boxes has no average precision and no part in the mean; TLT counts it as 0",
        lambda spec: len(class_names(spec)) > 1,
    ),
    Difference(
        f"{CLUSTERING}.clustering_algorithm",
        "NMS keeps its scores and honours minimum_bounding_box_height; TLT's evaluation ranks its boxes by scores that it "
        "has set to 0",
        lambda spec: _is(_of_training(spec), NMS),
    ),
    Difference(
        f"{CLUSTERING}.clustering_algorithm",
        "HYBRID works in validation and evaluation; TLT refuses it there",
        lambda spec: _is(_of_training(spec), HYBRID),
    ),
    Difference(
        f"{CLUSTERING}.dbscan_confidence_threshold, nms_confidence_threshold",
        "each is for its own algorithm; TLT's validation and evaluation swap them",
        lambda spec: any(map(_thresholds_differ, _of_training(spec))),
    ),
    Difference(
        f"{CLUSTERING}.dbscan_min_samples",
        "is the sum of coverages as written; TLT takes its whole part, and at least 1",
        lambda spec: _has_fractions(_of_training(spec)),
    ),
    Difference(
        f"{CLUSTERING}.coverage_threshold, dbscan_eps",
        "are 0.005 and 0.15 where they are not set; TLT reads 0",
        lambda spec: _leaves_out(_of_training(spec), "coverage_threshold", "dbscan_eps"),
    ),
    Difference(
        f"{CLUSTERING}.nms_iou_threshold",
        "is 0.3 where it is not set; TLT's evaluation reads 0, so that boxes that touch drop each other",
        lambda spec: _leaves_out(
            (config for config in _of_training(spec) if config.clustering_algorithm != DBSCAN), "nms_iou_threshold"
        ),
    ),
    Difference(
        'postprocessing_config.target_class_config["…"].confidence_config.confidence_threshold',
        "drops detections of a lower confidence; TLT ignores it",
        _has_confidence,
    ),
)  # fmt: skip

INFERENCE: tuple[Difference[Inference], ...] = (
    Difference(
        "inferencer_config.tlt_config.model",
        "encrypted models of TLT are not read; docs/tlt.md tells how to get the plain one",
        lambda spec: _is_encrypted(spec.inferencer_config.tlt_config.model),
        stops=True,
    ),
    Difference(
        "inferencer_config.tlt_config.model",
        "a Keras file has neither spec nor names of classes; make a model of it: detectkit export -e SPEC -m "
        "MODEL.hdf5 -o MODEL.safetensors",
        lambda spec: is_keras(spec.inferencer_config.tlt_config.model),
        stops=True,
    ),
    Difference(
        "inferencer_config.tensorrt_config.trt_engine",
        "an engine of TLT is not run, for it names neither its classes nor its spec; build one with detectkit engine",
        lambda spec: bool(spec.inferencer_config.tensorrt_config.trt_engine),
        stops=True,
    ),
    Difference(
        "inferencer_config.image_width, image_height",
        "images are resized as in training, with smoothing; TLT's inference has a Lanczos filter of its own",
        lambda spec: spec.HasField("inferencer_config"),
    ),
    Difference(
        "bbox_handler_config.kitti_dump",
        "the lines of a file are ordered by confidence, all classes together; TLT's are ordered class by class",
        lambda spec: spec.bbox_handler_config.kitti_dump and len(spec.inferencer_config.target_classes) != 1,
    ),
    Difference(
        f"{CLASSWISE}.bbox_color",
        "a class without one gets a colour of its own; TLT draws it black",
        lambda spec: any(
            not entry.HasField("bbox_color")
            for entry in spec.bbox_handler_config.classwise_bbox_handler_config.values()
        ),
    ),
    Difference(
        f"{CLASSWISE}.output_map",
        "a class without one keeps its name; TLT's inference stops there",
        lambda spec: any(
            not entry.output_map and name != "default"
            for name, entry in spec.bbox_handler_config.classwise_bbox_handler_config.items()
        ),
    ),
    Difference(
        f"{CLASSWISE}.confidence_threshold",
        "drops detections of a lower confidence, as in TLT 1 and 2; later versions do not know the field",
        lambda spec: any(
            entry.confidence_threshold > 0
            for entry in spec.bbox_handler_config.classwise_bbox_handler_config.values()
        ),
    ),
    Difference(
        f"{CLASSWISE}.confidence_model",
        "mean_cov is the mean of a cluster's coverages; TLT stretches it between the least and the greatest of them",
        lambda spec: any(
            entry.confidence_model == "mean_cov"
            for entry in spec.bbox_handler_config.classwise_bbox_handler_config.values()
        ),
    ),
    Difference(
        "bbox_handler_config.wandb_config.name",
        "is the name of the run; TLT adds the time",
        lambda spec: spec.bbox_handler_config.wandb_config.enabled
        and bool(spec.bbox_handler_config.wandb_config.name),
    ),
    Difference(
        f"{CLASSWISE}.clustering_config.clustering_algorithm",
        "NMS keeps its scores and honours minimum_bounding_box_height; TLT writes scores of 0 and boxes of any height",
        lambda spec: _is(_of_inference(spec), NMS),
    ),
    Difference(
        f"{CLASSWISE}.clustering_config.dbscan_min_samples",
        "is the sum of coverages as written; TLT takes its whole part, and at least 1",
        lambda spec: _has_fractions(_of_inference(spec)),
    ),
    Difference(
        f"{CLASSWISE}.clustering_config.coverage_threshold, dbscan_eps",
        "are 0.005 and 0.15 where they are not set; TLT reads 0",
        lambda spec: _leaves_out(_of_inference(spec), "coverage_threshold", "dbscan_eps"),
    ),
)  # fmt: skip

CONVERSION: tuple[Difference[DatasetExportConfig], ...] = (
    Difference(
        "kitti_config.val_split",
        "the validation fold is drawn at random, by random_seed; TAO takes the first names in the alphabet, TLT 2 does not: "
        "either way the images are others",
        lambda spec: spec.kitti_config.partition_mode == "random" and spec.kitti_config.val_split > 0,
    ),
    Difference(
        "kitti_config.val_split",
        "at 0 everything is in fold 1 and fold 0 has no files; TLT names its only fold 0",
        lambda spec: spec.HasField("kitti_config")
        and spec.kitti_config.partition_mode == "random"
        and spec.kitti_config.val_split == 0,
    ),
    Difference(
        "root_directory_path",
        "a relative path starts from the current folder; TLT's starts from DATA_BASE_PATH",
        lambda spec: _is_relative(_root(spec)),
    ),
    Difference(
        "num_shards",
        "files are of even length and never empty; TLT puts the rest into the last one",
        lambda spec: any(count > 1 for count in _shards(spec)),
    ),
    Difference(
        "coco_config.annotation_files",
        "the images of a fold are shuffled by random_seed; TLT keeps their order",
        lambda spec: spec.HasField("coco_config"),
    ),
    Difference(
        "coco_config.annotation_files",
        "an image whose size is not the one stated is left out and listed in the warning file; TLT takes the stated one",
        lambda spec: spec.HasField("coco_config"),
    ),
    Difference(
        "coco_config.annotation_files",
        "categories keep the letters of every script; TLT's lose those that are not ASCII, to an empty name or to that of "
        "another class",
        lambda spec: spec.HasField("coco_config"),
    ),
    Difference(
        "sample_modifier_config",
        "classes are compared in lower case and without spaces, as the records have them",
        lambda spec: _modifies(
            spec, "filter_samples_containing_only", "dominant_target_classes", "minimum_target_class_imbalance"
        ),
    ),
    Difference(
        "sample_modifier_config.max_training_samples",
        "is divided among the folds that hold frames; TLT counts empty ones too",
        lambda spec: _modifies(spec, "max_training_samples"),
    ),
)  # fmt: skip
