"""Each difference from TLT is listed for a spec that meets it, and for no other, and stands in docs/from-tlt.md."""

from collections import Counter
from pathlib import Path

import pytest
from google.protobuf import text_format

from detectkit import spec
from detectkit.spec.from_tlt import CONVERSION, INFERENCE, TRAINING

DOCUMENT = Path(__file__).parents[2] / "docs" / "from-tlt.md"
EMPTY_MOVES = "zoom_min: 1 zoom_max: 1 translate_max_x: 0 translate_max_y: 0"

# A training spec that behaves as in TLT, as far as a spec can.
PLAIN = """
random_seed: 0
dataset_config { data_sources { tfrecords_path: "/r" } target_class_mapping { key: "car" value: "car" } }
model_config { objective_set { bbox { scale: 35 offset: 0.5 } cov { prior: 0.5 } } }
cost_function_config { target_classes { name: "car" } }
postprocessing_config { target_class_config { key: "car" value { clustering_config {
  coverage_threshold: 0.005 dbscan_eps: 0.1 dbscan_min_samples: 1 } } } }
"""
CLUSTERING = 'postprocessing_config { target_class_config { key: "car" value { %s } } }'
WHOLE = "coverage_threshold: 0.005 dbscan_eps: 0.1"

# text added to the spec above -> what is said then: the end of a path and the beginning of a sentence
EXAMPLES = [
    ('dataset_config { target_class_mapping { key: "van" value: "vehicle" } }', "target_class_mapping: is applied once"),
    ('dataset_config { target_class_mapping { key: "van" value: "car" } }', ""),
    ('dataset_config { target_class_mapping { key: "Car" value: "car" } }', "target_class_mapping: labels are compared"),
    ('dataset_config { target_class_mapping { key: "van" value: "vehicle" } }', "target_class_mapping: a class that cost"),
    ('dataset_config { data_sources { tfrecords_path: "records/*" } }', "tfrecords_path: a relative path starts"),
    ('dataset_config { validation_data_source { tfrecords_path: "r/*" } }', "tfrecords_path: a relative path starts"),
    ("dataset_config { data_sources { source_weight: 2 } } training_config { batch_size_per_gpu: 1 }", "source_weight: counts at every"),
    ("dataset_config { data_sources { source_weight: 2 } } training_config { batch_size_per_gpu: 2 }", ""),
    ("augmentation_config { preprocessing { enable_auto_resize: true } }", "enable_auto_resize: resamples"),
    ("augmentation_config { preprocessing { min_bbox_width: 4 } }", "min_bbox_width, min_bbox_height: drop small"),
    ("augmentation_config { preprocessing { min_bbox_width: 1 min_bbox_height: 1 } }", ""),
    ("augmentation_config { preprocessing { crop_right: 9 } }", "crop_bottom: boxes are clipped"),
    ("augmentation_config { preprocessing { scale_width: 0.5 } }", "scale_height: are factors"),
    ("augmentation_config { spatial_augmentation { vflip_probability: 0.5 } }", "vflip_probability: mirrors"),
    ("augmentation_config { spatial_augmentation { hflip_probability: 0.5 } }", ""),
    ("augmentation_config { spatial_augmentation { zoom_max: 1.5 } }", "zoom_min, zoom_max: a factor above 1 magnifies"),
    ("augmentation_config { spatial_augmentation { rotate_rad_max: 1 } }", "rotate_rad_max: is in radians"),
    ("augmentation_config { spatial_augmentation { rotate_rad_max: 1 } }", "rotate_rad_max: the box of a rotated"),
    ("augmentation_config { spatial_augmentation { rotate_rad_max: 1 rotate_probability: 0 } }", "rotate_probability: 0 is never"),
    ("augmentation_config { spatial_augmentation { translate_max_y: 8 } }", "spatial_augmentation: moved boxes are clipped"),
    ("augmentation_config { spatial_augmentation { translate_max_y: 8 } }", "spatial_augmentation: what a moved image"),
    ("augmentation_config { color_augmentation { contrast_scale_max: 0.1 } }", "contrast_center: is 0.5 where"),
    ("augmentation_config { color_augmentation { contrast_scale_max: 0.1 contrast_center: 0.5 } }", ""),
    ('model_config { pretrained_model_file: "m/model.tlt" load_graph: true }', "pretrained_model_file: encrypted files"),
    ('model_config { pretrained_model_file: "m/model.hdf5" }', "pretrained_model_file: every tensor"),
    ('model_config { pretrained_model_file: "m/model.safetensors" load_graph: true layout: TLT }', "load_graph: the network is"),
    ('model_config { pretrained_model_file: "m.pth" }', "pretrained_model_file: heads of classes"),
    ("model_config { load_graph: true }", "load_graph: the network is"),
    ("model_config { freeze_pretrained_layers: true }", "freeze_pretrained_layers: freezes"),
    ("model_config { num_layers: 50 }", "num_layers: ResNets of 50"),
    ("model_config { num_layers: 34 }", ""),
    ("model_config { num_layers: 50 layout: TLT }", ""),
    ("model_config { use_pooling: true all_projections: true }", "use_pooling: keeps the stride"),
    ("model_config { use_pooling: true }", "all_projections: without it"),
    ("model_config { use_batch_norm: true }", "use_batch_norm: epsilon"),
    ('model_config { arch: "efficientnet_b0" }', "use_batch_norm: epsilon"),
    ("model_config { use_batch_norm: true layout: TLT }", "use_batch_norm: batch normalisation moves"),
    ('model_config { arch: "efficientnet_b0" }', "arch: efficientnet pads"),
    ('model_config { arch: "googlenet" }', "arch: googlenet has 3x3"),
    ('model_config { arch: "googlenet" layout: TLT }', ""),
    ('model_config { arch: "squeezenet" use_batch_norm: true }', ""),
    ('model_config { arch: "mobilenet_v2" }', "arch: mobilenet_v2 has ReLU6"),
    ("model_config { dropout_rate: 0.2 }", "dropout_rate: drops values"),
    ('model_config { activation { activation_type: "elu" } }', "activation: replaces"),
    ("model_config { training_precision { backend_floatx: FLOAT16 } }", "backend_floatx: FLOAT16 keeps"),
    ("model_config { objective_set { bbox { scale: 20 } } }", "bbox.scale, offset: are used in inference"),
    ("cost_function_config { enable_autoweighting: true }", "enable_autoweighting: goes by the costs"),
    ("training_config { regularizer { type: L1 } }", "regularizer: leaves out the biases"),
    ("cost_function_config { enable_autoweighting: true }", "max_objective_weight: is 1 where"),
    ("cost_function_config { max_objective_weight: 0.9 }", ""),
    ("training_config { cost_scaling { enabled: true } }", "cost_scaling.enabled: a step whose"),
    ("training_config { cost_scaling { initial_exponent: 20 } }", ""),
    ("training_config { enable_qat: true }", "enable_qat: keeps the activations"),
    ("training_config { enable_qat: true }", "enable_qat: holds the ranges"),
    ('training_config { enable_qat: true } model_config { arch: "mobilenet_v1" }', "enable_qat: also rounds mobilenet_v1"),
    ('training_config { visualizer { wandb_config { enabled: true name: "a" } } }', "wandb_config.name: is the name"),
    ('training_config { visualizer { wandb_config { name: "a" } } }', ""),
    ("training_config { optimizer { adam { } } }", "adam.epsilon: is added"),
    ('training_config { regularizer { type: L1 } } model_config { arch: "mobilenet_v1" }', "regularizer: counts the depthwise"),
    ("training_config { regularizer { type: NO_REG } }", ""),
    ("training_config { learning_rate { early_stopping_annealing_schedule { } } }", "early_stopping_annealing_schedule: validation"),
    ("loss_mask_label_filter { objective_label_filter_configs { label_filter { source_class_label_filter { } } } }", "loss_mask_label_filter: source_class"),
    ("loss_mask_label_filter { objective_label_filter_configs { label_filter { bbox_crop_label_filter { crop_left: 4 } } } }", "loss_mask_label_filter: an edge of 0"),
    ("loss_mask_label_filter { objective_label_filter_configs { label_filter { bbox_crop_label_filter { crop_left: 4 crop_top: 1 crop_right: 9 crop_bottom: 9 } } } }", ""),
    ("evaluation_config { average_precision_mode: INTEGRATE }", "average_precision_mode: INTEGRATE is"),
    ("evaluation_config { average_precision_mode: SAMPLE }", ""),
    ('cost_function_config { target_classes { name: "van" } }', "evaluation_config: a class without labelled boxes"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} clustering_algorithm: NMS nms_iou_threshold: 0.2 }}", "clustering_algorithm: NMS keeps"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} clustering_algorithm: HYBRID nms_iou_threshold: 0.2 }}", "clustering_algorithm: HYBRID works"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} clustering_algorithm: HYBRID }}", "nms_iou_threshold: is 0.3"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} nms_iou_threshold: 0.3 }}", ""),
    (CLUSTERING % f"clustering_config {{ {WHOLE} dbscan_confidence_threshold: 0.3 }}", "nms_confidence_threshold: each is for"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} dbscan_min_samples: 0.05 }}", "dbscan_min_samples: is the sum"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} dbscan_min_samples: 0 }}", ""),
    (CLUSTERING % "clustering_config { dbscan_eps: 0.1 }", "coverage_threshold, dbscan_eps: are 0.005 and 0.15"),
    (CLUSTERING % f"clustering_config {{ {WHOLE} }} confidence_config {{ confidence_threshold: 0.2 }}", "confidence_threshold: drops"),
]  # fmt: skip


def said(text, plain=PLAIN, message=spec.Experiment):
    """The ends of paths and the sentences for a spec with `text` added."""
    built = text_format.Parse(plain, message())
    built.MergeFrom(text_format.Parse(text, message()))
    return spec.obstacles(built) + spec.differences(built)


@pytest.mark.parametrize(("text", "expected"), EXAMPLES)
def test_what_a_training_spec_does_differently(text, expected):
    assert said("") == []
    found = said(text)
    assert any(expected in sentence for sentence in found) if expected else found == []


def test_unset_fields_that_tlt_reads_as_0():
    found = spec.differences(spec.Experiment(dataset_config={}))
    assert [sentence.split(";")[0] for sentence in found] == [
        "random_seed: is 42 where it is not set",
        "model_config.objective_set.bbox.offset: is 0.5 where it is not set",
        "model_config.objective_set.cov.prior: coverage starts at 0.01 in every cell",
    ]


CLASSWISE = 'bbox_handler_config { classwise_bbox_handler_config { key: "car" value { %s } } }'
QUIET = "clustering_config { coverage_threshold: 0.1 dbscan_eps: 0.1 } output_map: 'car' bbox_color { R: 1 }"
OTHERS = [
    ('inferencer_config { tlt_config { model: "a.tlt" } }', "tlt_config.model: encrypted models"),
    ('inferencer_config { tlt_config { model: "a.hdf5" } }', "tlt_config.model: a Keras file has"),
    ('inferencer_config { tensorrt_config { trt_engine: "a.trt" } }', "trt_engine: an engine of TLT is not run"),
    ("inferencer_config { image_width: 16 }", "image_height: images are resized"),
    ("bbox_handler_config { kitti_dump: true }", "kitti_dump: the lines"),
    (CLASSWISE % QUIET.replace("bbox_color { R: 1 }", ""), "bbox_color: a class without"),
    (CLASSWISE % QUIET.replace("output_map: 'car'", ""), "output_map: a class without"),
    (CLASSWISE % QUIET, ""),
    (CLASSWISE % f"{QUIET} confidence_threshold: 0.5", "confidence_threshold: drops detections"),
    (CLASSWISE % f"{QUIET} confidence_model: 'mean_cov'", "confidence_model: mean_cov is the mean"),
    (CLASSWISE % f"{QUIET} confidence_model: 'aggregate_cov'", ""),
    ('bbox_handler_config { wandb_config { enabled: true name: "a" } }', "wandb_config.name: is the name"),
    (CLASSWISE % QUIET.replace("dbscan_eps", "clustering_algorithm: NMS dbscan_eps"), "clustering_algorithm: NMS keeps"),
    (CLASSWISE % QUIET.replace("dbscan_eps", "dbscan_min_samples: 0.05 dbscan_eps"), "dbscan_min_samples: is the sum"),
    (CLASSWISE % QUIET.replace("dbscan_eps: 0.1", ""), "coverage_threshold, dbscan_eps: are 0.005"),
]  # fmt: skip
CONVERSIONS = [
    ("kitti_config { val_split: 14 }", "val_split: the validation fold is drawn"),
    ("kitti_config { }", "val_split: at 0 everything"),
    ('kitti_config { partition_mode: "sequence" }', ""),
    ('coco_config { root_directory_path: "coco" }', "root_directory_path: a relative path"),
    ('voc_config { root_directory_path: "/voc" num_shards: 4 }', ""),
    ("coco_config { num_shards: [1, 4] }", "num_shards: files are"),
    ("coco_config { }", "annotation_files: the images of a fold are shuffled"),
    ("coco_config { }", "annotation_files: an image whose size"),
    ("coco_config { }", "annotation_files: categories keep the letters"),
    ('sample_modifier_config { dominant_target_classes: "Car" }', "sample_modifier_config: classes are compared"),
    ("sample_modifier_config { max_training_samples: 9 }", "max_training_samples: is divided"),
    ("sample_modifier_config { num_duplicates: 2 }", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), OTHERS)
def test_what_an_inference_spec_does_differently(text, expected):
    found = said(text, "", spec.Inference)
    assert any(expected in sentence for sentence in found) if expected else found == []


@pytest.mark.parametrize(("text", "expected"), CONVERSIONS)
def test_what_a_conversion_spec_does_differently(text, expected):
    found = said(text, "", spec.DatasetExportConfig)
    assert any(expected in sentence for sentence in found) if expected else found == []


def test_every_difference_has_an_example():
    starts = [expected for _, expected in EXAMPLES + OTHERS + CONVERSIONS if expected]
    unset = ["random_seed: is 42", "bbox.offset: is 0.5", "cov.prior: coverage starts at 0.01"]
    lines = [str(entry) for entry in (*TRAINING, *INFERENCE, *CONVERSION)]
    assert [line for line in lines if not any(start in line for start in starts + unset)] == []


def test_the_document_has_every_difference():
    lines = DOCUMENT.read_text().splitlines()
    for entry in (*TRAINING, *INFERENCE, *CONVERSION):
        assert f"- `{entry.path}`: {entry.sentence}." in lines
    sections = Counter(line.split("`: ")[0] for line in lines if line.startswith("- `") and "`: " in line)
    assert sum(sections.values()) == len(TRAINING) + len(INFERENCE) + len(CONVERSION)


def test_paths_of_differences_are_fields_of_the_schema():
    for entry in (*TRAINING, *INFERENCE, *CONVERSION):
        first, *others = entry.path.split(", ")
        for path in (first, *(f"{first.rpartition('.')[0]}.{name}" for name in others)):
            plain = path.replace('["…"]', "").replace("[…]", "")
            assert plain == "root_directory_path" or plain == "num_shards" or spec.explain(plain)
