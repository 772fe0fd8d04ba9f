"""The specs of TLT's and TAO's other networks, which lie in the same folders: told by what only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from detectkit.spec.text import Field

# A field, or a field of a section, that only one network has. A spec of several is that of the first of them.
SIGNS = {
    "dssd_config": "DSSD",
    "retinanet_config": "RetinaNet",
    "ssd_config": "SSD",
    "yolo_config.big_anchor_shape": "YOLO",
    "yolo_config.arch": "YOLO",
    "yolov3_config": "YOLO",
    "yolov4_config": "YOLO",
    "lpr_config": "LPRNet",
    "dataset_config.characters_list_file": "LPRNet",
    "maskrcnn_config": "Mask R-CNN",
    "data_config.training_file_pattern": "Mask R-CNN",
    "network_config": "Faster R-CNN",
    "model_config.input_image_config": "Faster R-CNN",
    "model_config.anchor_box_config": "Faster R-CNN",
    "model_config.roi_mini_batch": "Faster R-CNN",
    "training_config.rpn_min_overlap": "Faster R-CNN",
    "evaluation_config.rpn_pre_nms_top_N": "Faster R-CNN",
    "inference_config.rpn_pre_nms_top_N": "Faster R-CNN",
    "dataset_config.train_csv_path": "multitask classification",
    "dataset_config.val_csv_path": "multitask classification",
    "train_config.train_dataset_path": "image classification",
    "eval_config.eval_dataset_path": "image classification",
    "model_config.input_image_size": "image classification",
    "model_config.retain_head": "image classification",
    "data_class_config": "UNet",
    "dataset_config.data_class_config": "UNet",
    "dataset_config.train_images_path": "UNet",
    "dataset_config.train_masks_path": "UNet",
    "dataset_config.train_data_sources": "UNet",
    "model_config.model_input_width": "UNet",
    "model_config.model_input_height": "UNet",
    "model_config.model_name": "EfficientDet",
    "dataset_config.training_file_pattern": "EfficientDet",
    "dataset_config.validation_json_file": "EfficientDet",
    "training_config.train_batch_size": "EfficientDet",
    "eval_config.eval_epoch_cycle": "EfficientDet",
    "nms_config": "YOLO, SSD or RetinaNet",
}
# Sections that DetectNet_v2 alone has: beside them, a field of another network is a mistake.
OURS = ("bbox_rasterizer_config", "cost_function_config", "postprocessing_config", "bbox_handler_config")
# Words in the YAML files of networks that have no spec in protobuf's text form.
IN_YAML = {
    "bpnet": "BodyPoseNet",
    "fpenet": "FPENet",
    "gazenet": "GazeNet",
    "emotionnet": "EmotionNet",
    "heartrate": "HeartRateNet",
    "efficientdet": "EfficientDet",
    "ocrnet": "OCRNet",
    "ocdnet": "OCDNet",
    "lprnet": "LPRNet",
    "pointpillar": "PointPillars",
    "deformable": "Deformable DETR",
    "dino": "DINO",
    "segformer": "SegFormer",
    "mask2former": "Mask2Former",
    "maskrcnn": "Mask R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "rtdetr": "RT-DETR",
    "centerpose": "CenterPose",
    "poseclass": "Pose Classification",
    "action_recognition": "ActionRecognitionNet",
    "unet": "UNet",
    "classif": "image classification",
}
# A key with what belongs to it on lines below, indented or with dashes, or a path without quotes: protobuf's text has
# none of them.
YAML = re.compile(
    r"^[\w-]+:[ \t]*(#.*)?\n([ \t]*(#.*)?\n)*([ \t]+[\w\"'-]|-)|^[\w-]+:[ \t]+[~.]{0,2}/\w|^__class_name__:|^---\s*$",
    re.MULTILINE,
)
BLOCK = re.compile(r"^[^#\"'\n]*\w[ \t]*:?[ \t]*\{", re.MULTILINE)


def other_network(fields: Iterable[Field]) -> tuple[str, Field] | None:
    """The other network that a spec is for, and the field that tells; None for one of ours or of nothing known."""
    found: dict[str, Field] = {}
    for field in fields:
        found.setdefault(field.name, field)
        for value in field.values:
            for inner in value.fields or ():
                found.setdefault(f"{field.name}.{inner.name}", inner)
    if any(name in found for name in OURS):
        return None
    return next(((network, found[sign]) for sign, network in SIGNS.items() if sign in found), None)


def is_yaml(text: str) -> bool:
    """Whether a text, which is no spec, has the form of YAML."""
    return YAML.search(text) is not None and BLOCK.search(text) is None


def network_in_yaml(text: str) -> str:
    """The network that a YAML file is for, by the words in it; empty where none of them is known."""
    words = text.lower()
    return next((network for word, network in IN_YAML.items() if re.search(rf"\b{word}", words)), "")
