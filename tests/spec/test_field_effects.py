"""The effect of fields that no other test sets by themselves."""

import pytest
import torch

from detectkit.data.augment import color_matrices, hue_saturation, preprocessing_matrices, spatial_matrices
from detectkit.spec import AugmentationConfig

CENTRE = [0.5] * 9  # draws that move nothing


@pytest.mark.spec_field(
    "AugmentationConfig.Preprocessing.scale_width", "AugmentationConfig.Preprocessing.scale_height"
)
def test_each_axis_has_its_scale():
    size = {"output_image_width": 48, "output_image_height": 32, "scale_width": 2, "scale_height": 0.5}
    matrices, _ = preprocessing_matrices(
        torch.tensor([[24.0, 64.0]], dtype=torch.float64), AugmentationConfig.Preprocessing(**size)
    )
    assert matrices[0].tolist() == [[2, 0, 0], [0, 0.5, 0], [0, 0, 1]]


@pytest.mark.spec_field(
    "AugmentationConfig.SpatialAugmentation.zoom_min", "AugmentationConfig.SpatialAugmentation.zoom_max"
)
def test_the_zoom_lies_evenly_between_its_limits():
    config = AugmentationConfig.SpatialAugmentation(zoom_min=0.5, zoom_max=1.5)
    factors = torch.linspace(0, 1, 5, dtype=torch.float64)
    uniform = torch.tensor([CENTRE] * 5, dtype=torch.float64)
    uniform[:, 4] = factors
    matrices = spatial_matrices(uniform, config, width=48, height=32)
    assert matrices[:, 0, 0].tolist() == pytest.approx([0.5, 0.75, 1, 1.25, 1.5])


@pytest.mark.spec_field("AugmentationConfig.ColorAugmentation.hue_rotation_max")
def test_the_hue_turns_by_at_most_its_degrees():
    config = AugmentationConfig.ColorAugmentation(hue_rotation_max=40)
    middle, most = 0.5, 1.0  # draws: no turn, and the greatest one
    matrices = color_matrices(torch.tensor([[middle] * 4, [most] + [middle] * 3]).double(), config)
    expected = hue_saturation(torch.tensor([0.0, 40.0]).double(), torch.ones(2).double())
    torch.testing.assert_close(matrices, expected, atol=1e-3, rtol=0)
