"""From a spec and a model file to what detects: a training spec's settings, or those of TLT's inference spec."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from detectkit import spec
from detectkit.errors import SpecError, UsageError
from detectkit.heads.clustering import ClassClustering
from detectkit.predict import Predictor, make_predictor
from detectkit.runtimes import Network, load

Asked = spec.Inference | spec.Experiment


def load_predictor(
    given: Asked | None, model_path: Path | None, device: str | torch.device
) -> tuple[Predictor, Asked]:
    """What detects, and the spec that says how: the one that was given, or the model's own.

    Args:
        given: a training spec, or an inference spec as TLT's, which may name the model, its size and the clustering.
        model_path: goes before the model of the spec.

    Raises:
        UsageError: neither names a model.
        ModelError: the file is not a usable model, or not one for the spec.
        SpecError: an inference spec asks for other classes, channels or a size than the model has.
    """
    if not isinstance(given, spec.Inference):
        if model_path is None:
            raise UsageError("give the model: -m MODEL")
        network = load(model_path, device, experiment=given)
        experiment = spec.spec_to_use(given, network.spec, network.file)
        return make_predictor(network, experiment, device), experiment
    config = given.inferencer_config
    named = config.tlt_config.model or config.tensorrt_config.trt_engine
    path = model_path or (Path(named).expanduser() if named else None)
    if path is None:
        raise UsageError(
            "give the model: -m MODEL, or in the spec tlt_config { model: … } or tensorrt_config { trt_engine: … }"
        )
    classwise = given.bbox_handler_config.classwise_bbox_handler_config
    network = load(path, device)
    predictor = make_predictor(
        network,
        _resized(network, config),
        device,
        clustering={
            name: ClassClustering(item.clustering_config, item.confidence_threshold, item.confidence_model)
            for name, item in classwise.items()
        },
    )
    return predictor, given


def _resized(network: Network, config: spec.InferencerConfig) -> spec.Experiment:
    """The model's spec for images of an inference spec's size: resized, as TLT does, whatever the training did."""
    if list(config.target_classes or network.class_names) != network.class_names:
        raise SpecError(
            f"inferencer_config.target_classes: {network.file} detects {', '.join(network.class_names)}, in this order"
        )
    multiple, channels = network.outline.multiple, network.channels
    if config.image_width % multiple or config.image_height % multiple:
        raise SpecError(
            f"inferencer_config: image_width and image_height must be multiples of the network's stride {multiple},"
            f" got {config.image_width}x{config.image_height}"
        )
    if config.image_channels != channels:
        raise SpecError(f"inferencer_config.image_channels: {network.file} takes {channels}")
    resized = copy.deepcopy(network.spec)
    preprocessing = spec.AugmentationConfig.Preprocessing(
        output_image_width=config.image_width,
        output_image_height=config.image_height,
        output_image_channel=channels,
        enable_auto_resize=True,
    )
    resized.augmentation_config.preprocessing.CopyFrom(preprocessing)
    return resized


def images_at_once(message: Asked) -> int:
    """Images of a batch."""
    if isinstance(message, spec.Experiment):
        return spec.batch_size(message)
    return message.inferencer_config.batch_size
