"""What the report tells of the data."""

import numpy as np
import pytest

from detectkit.report import samples


def test_boxes_and_their_sizes(tiny):
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    tiny.augmentation_config.preprocessing.output_image_width = 192  # twice the files' 96
    tiny.augmentation_config.preprocessing.output_image_height = 128
    data = samples.read(tiny)
    assert data.class_names == ["square", "bar"] and data.left_out == 0 and data.stride == 16
    assert data.training.counts == [18, 18] and data.validation.counts == [6, 6]
    assert data.training.sizes[0] == pytest.approx(np.full(18, 56.0))  # 28x28 boxes
    assert data.validation.sizes[1] == pytest.approx(np.full(6, 2 * 640**0.5))  # 40x16
    assert len(data.samples) == 6 and "2 boxes" in data.samples[0]
    tiny.augmentation_config.preprocessing.enable_auto_resize = False
    assert samples.read(tiny).training.sizes[0] == pytest.approx(np.full(18, 28.0))


def test_an_even_sample_of_many_images(tiny, monkeypatch):
    monkeypatch.setattr(samples, "AT_MOST", 9)
    monkeypatch.setattr(samples, "CLASSES", 1)
    data = samples.read(tiny)
    assert (data.training.images, data.training.read, data.training.counts) == (18, 9, [9])
    assert (data.validation.images, data.validation.read) == (6, 6)
    assert data.left_out == 1


def test_a_spec_without_validation(tiny):
    tiny.dataset_config.ClearField("validation_fold")
    data = samples.read(tiny)
    assert data.validation is None and data.training.images == 24
    assert "square: 24 training" in samples.counted(data) and "medians: square 28, bar 25" in samples.sizes(
        data
    )
