"""A run that takes a second: six pictures to train on and to measure, a small network."""

from __future__ import annotations

import pytest

from detectkit import spec


@pytest.fixture
def small(tiny: spec.Experiment) -> spec.Experiment:
    """The tiny spec on the six pictures of fold 0 alone, three batches of two; plain gradients, nothing at random."""
    data = tiny.dataset_config
    data.data_sources[0].tfrecords_path = data.data_sources[0].tfrecords_path.replace("fold-*", "fold-000*")
    data.validation_data_source.CopyFrom(data.data_sources[0])
    tiny.augmentation_config.ClearField("spatial_augmentation")
    tiny.augmentation_config.ClearField("color_augmentation")
    tiny.model_config.arch, tiny.model_config.num_layers = "mobilenet_v2", 0
    tiny.training_config.batch_size_per_gpu = 2
    tiny.training_config.ClearField("regularizer")
    tiny.training_config.optimizer.sgd.momentum = 0.0
    soft = tiny.training_config.learning_rate.soft_start_annealing_schedule
    soft.min_learning_rate = soft.max_learning_rate = 0.01
    return tiny
