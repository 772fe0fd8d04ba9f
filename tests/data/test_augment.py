from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit.data.augment import (
    Prepared,
    color_matrices,
    contrast_matrices,
    hue_saturation,
    prepare,
    preprocessing_matrices,
    spatial_matrices,
    warp,
)
from detectkit.data.batch import Batch, Sample, collate
from detectkit.data.labels import Objects
from detectkit.spec import AugmentationConfig

NO_SPATIAL = dict(hflip_probability=0.0, vflip_probability=0.0, zoom_min=1.0, zoom_max=1.0)
HALF = [0.5] * 9  # draws that move nothing unless the spec is one-sided


def config(width: int, height: int, *, preprocessing: str = "", rest: str = "") -> AugmentationConfig:
    text = f"preprocessing {{ output_image_width: {width} output_image_height: {height} {preprocessing} }} {rest}"
    return text_format.Parse(text, AugmentationConfig())


def batch(*images: np.ndarray, boxes: list[list[float]] | None = None, reduction: int = 1) -> Batch:
    """Images [c, h, w]; the boxes belong to the first one."""
    samples = []
    for index, image in enumerate(images):
        own = np.array(boxes if boxes and index == 0 else [], dtype=np.float32).reshape(-1, 4)
        size = (image.shape[2] * reduction, image.shape[1] * reduction)
        objects = Objects(
            own,
            np.arange(len(own), dtype=np.int64),
            tuple(map(str, range(len(own)))),
            np.zeros(len(own), np.float32),
            np.zeros(len(own), np.int64),
        )
        samples.append(Sample(image, reduction, size, objects, 1.0 + index, f"frame{index}", ""))
    return collate(samples)


def noise(channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def run(data: Batch, spec: AugmentationConfig, *, seed: int | None = None) -> Prepared:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return prepare(data, spec, generator=generator, device="cpu")


def as_float(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float() / 255


def spatial(**fields: float) -> AugmentationConfig.SpatialAugmentation:
    return AugmentationConfig.SpatialAugmentation(**fields)


def draws(**chosen: float) -> torch.Tensor:
    names = ("hflip", "vflip", "shift_x", "shift_y", "zoom", "zoom_x", "zoom_y", "chance", "angle")
    return torch.tensor([[chosen.get(name, 0.5) for name in names]], dtype=torch.float64)


class TestPreprocessing:
    def test_an_image_of_the_right_size_is_copied_exactly(self) -> None:
        image = noise(3, 32, 48)
        result = run(batch(image), config(48, 32))
        assert torch.equal(result.images[0], as_float(image))
        assert torch.equal(result.matrices[0], torch.eye(3))

    @pytest.mark.spec_field(
        "AugmentationConfig.Preprocessing.output_image_width",
        "AugmentationConfig.Preprocessing.output_image_height",
    )
    def test_a_smaller_image_is_padded_and_a_larger_one_cropped_at_the_top_left(self) -> None:
        small, large = noise(3, 20, 30), noise(3, 64, 80, seed=1)
        result = run(batch(small, large), config(48, 32))
        assert torch.equal(result.images[0, :, :20, :30], as_float(small))
        assert result.images[0, :, 20:].abs().sum() == 0 and result.images[0, :, :, 30:].abs().sum() == 0
        assert torch.equal(result.images[1], as_float(large[:, :32, :48]))

    @pytest.mark.parametrize("size", [(24, 40), (50, 33), (64, 96), (32, 48)], ids=str)
    @pytest.mark.spec_field("AugmentationConfig.Preprocessing.enable_auto_resize")
    def test_auto_resize_is_bilinear_at_pixel_centres(self, size: tuple[int, int]) -> None:
        image = noise(3, *size)
        result = run(batch(image), config(48, 32, preprocessing="enable_auto_resize: true"))
        expected = F.interpolate(as_float(image)[None], (32, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(result.images, expected, atol=2e-5, rtol=0)

    def test_auto_resize_of_different_sizes_in_one_batch_does_not_mix_in_padding(self) -> None:
        images = [noise(3, 24, 40), noise(3, 50, 33, seed=1), noise(3, 32, 48, seed=2)]
        result = run(batch(*images), config(48, 32, preprocessing="enable_auto_resize: true"))
        for found, image in zip(result.images, images):
            expected = F.interpolate(as_float(image)[None], (32, 48), mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)

    def test_boxes_are_scaled_by_each_axis_of_the_resize(self) -> None:
        spec = config(48, 32, preprocessing="enable_auto_resize: true")
        result = run(batch(noise(3, 64, 24), boxes=[[2, 8, 12, 40]]), spec)
        assert result.labels.boxes.tolist() == [[4, 4, 24, 20]]  # x times 2, y times 0.5
        assert result.matrices[0].tolist() == [[2, 0, 0], [0, 0.5, 0], [0, 0, 1]]

    def test_a_reduced_image_is_resized_as_the_whole_would_be(self) -> None:
        image = noise(3, 16, 24)
        spec = config(48, 32, preprocessing="enable_auto_resize: true")
        whole = run(batch(image, boxes=[[2, 4, 10, 12]]), spec)
        reduced = run(batch(image, boxes=[[8, 16, 40, 48]], reduction=4), spec)
        torch.testing.assert_close(reduced.images, whole.images, atol=1e-5, rtol=0)
        assert torch.equal(reduced.labels.boxes, whole.labels.boxes)

    @pytest.mark.spec_field(
        "AugmentationConfig.Preprocessing.crop_left",
        "AugmentationConfig.Preprocessing.crop_top",
        "AugmentationConfig.Preprocessing.crop_right",
        "AugmentationConfig.Preprocessing.crop_bottom",
    )
    def test_crop_shifts_and_blackens_what_it_cuts_off(self) -> None:
        image = noise(3, 40, 60)
        crop = "crop_left: 8 crop_top: 4 crop_right: 40 crop_bottom: 36"
        result = run(
            batch(image, boxes=[[0, 10, 20, 20], [50, 0, 60, 9]]), config(48, 32, preprocessing=crop)
        )
        assert torch.equal(result.images[0, :, :32, :32], as_float(image[:, 4:36, 8:40]))
        assert result.images[0, :, :, 32:].abs().sum() == 0
        assert result.labels.boxes.tolist() == [[0, 6, 12, 16]]  # the second box is outside the rectangle
        assert result.labels.classes.tolist() == [0]

    def test_crop_with_auto_resize_fills_the_network_input(self) -> None:
        image = noise(3, 40, 60)
        fields = "crop_left: 8 crop_top: 4 crop_right: 32 crop_bottom: 20 enable_auto_resize: true"
        result = run(batch(image, boxes=[[8, 4, 20, 12]]), config(48, 32, preprocessing=fields))
        expected = F.interpolate(
            as_float(image)[None, :, 4:20, 8:32], (32, 48), mode="bilinear", align_corners=False
        )
        inner = (
            slice(None),
            slice(None),
            slice(1, -1),
            slice(1, -1),
        )  # the crop's edge blends with its neighbours
        torch.testing.assert_close(result.images[inner], expected[inner], atol=2e-5, rtol=0)
        assert result.labels.boxes.tolist() == [[0, 0, 24, 16]]

    def test_scale_fields_come_before_the_crop(self) -> None:
        pre = config(
            48, 32, preprocessing="scale_width: 2 crop_left: 10 crop_right: 58 crop_bottom: 32"
        ).preprocessing
        matrices, regions = preprocessing_matrices(torch.tensor([[40.0, 32.0]], dtype=torch.float64), pre)
        assert (matrices[0] @ torch.tensor([20.0, 5.0, 1.0], dtype=torch.float64)).tolist() == [30, 5, 1]
        assert regions.tolist() == [[5, 0, 29, 32]]  # the rectangle in original pixels


class TestSpatial:
    @pytest.mark.spec_field(
        "AugmentationConfig.SpatialAugmentation.hflip_probability",
        "AugmentationConfig.SpatialAugmentation.vflip_probability",
    )
    def test_a_flip_is_exact_and_twice_is_nothing(self) -> None:
        image = noise(3, 32, 48)
        spec = config(48, 32, rest="spatial_augmentation { hflip_probability: 1 vflip_probability: 1 }")
        once = run(batch(image, boxes=[[1, 2, 11, 22]]), spec, seed=0)
        assert torch.equal(once.images[0], as_float(image).flip(1, 2))
        assert once.labels.boxes.tolist() == [[37, 10, 47, 30]]  # 48 - 11, 32 - 22, 48 - 1, 32 - 2
        pixels = (once.images[0] * 255).round().to(torch.uint8).numpy()
        twice = run(batch(pixels, boxes=once.labels.boxes.tolist()), spec, seed=0)
        assert torch.equal(twice.images[0], as_float(image))
        assert twice.labels.boxes.tolist() == [[1, 2, 11, 22]]

    @pytest.mark.spec_field(
        "AugmentationConfig.SpatialAugmentation.translate_max_x",
        "AugmentationConfig.SpatialAugmentation.translate_max_y",
    )
    def test_translation_is_by_whole_pixels_and_exact(self) -> None:
        image = noise(3, 32, 48)
        spec = config(48, 32, rest="spatial_augmentation { translate_max_x: 8.9 translate_max_y: 5 }")
        for seed in range(8):
            result = run(batch(image), spec, seed=seed)
            dx, dy = result.matrices[0, 0, 2].item(), result.matrices[0, 1, 2].item()
            assert dx == int(dx) and dy == int(dy) and abs(dx) <= 8 and abs(dy) <= 5
            padded = F.pad(as_float(image), (8, 8, 8, 8))
            expected = padded[:, 8 - int(dy) : 40 - int(dy), 8 - int(dx) : 56 - int(dx)]
            assert torch.equal(result.images[0], expected)

    def test_translations_cover_the_whole_range_evenly(self) -> None:
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(4000, 9, dtype=torch.float64, generator=generator)
        matrices = spatial_matrices(uniform, spatial(translate_max_x=2), width=48, height=32)
        values, counts = matrices[:, 0, 2].unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert counts.min() > 700 and counts.max() < 900  # 800 each
        assert (matrices[:, 1, 2] == 0).all()

    def test_zoom_above_one_magnifies_at_a_random_position(self) -> None:
        left = spatial_matrices(
            draws(zoom_x=0, zoom_y=0), spatial(zoom_min=2, zoom_max=2), width=48, height=32
        )
        assert left[0].tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 1]]
        right = spatial_matrices(
            draws(zoom_x=1, zoom_y=1), spatial(zoom_min=2, zoom_max=2), width=48, height=32
        )
        assert right[0].tolist() == [[2, 0, -48], [0, 2, -32], [0, 0, 1]]  # shows x from 24, y from 16

    def test_zoom_below_one_keeps_all_of_the_image_in_sight(self) -> None:
        for position in (0.0, 0.3, 1.0):
            chosen = draws(zoom_x=position, zoom_y=position)
            matrix = spatial_matrices(chosen, spatial(zoom_min=0.5, zoom_max=0.5), width=48, height=32)[0]
            corners = matrix @ torch.tensor([[0.0, 48.0], [0.0, 32.0], [1.0, 1.0]], dtype=torch.float64)
            assert corners[:2].min() >= 0 and corners[0].max() <= 48 and corners[1].max() <= 32

    @pytest.mark.spec_field("AugmentationConfig.SpatialAugmentation.rotate_rad_max")
    def test_rotation_is_in_radians_about_the_centre(self) -> None:
        matrix = spatial_matrices(draws(angle=1), spatial(rotate_rad_max=math.pi / 2), width=48, height=32)[0]
        moved = matrix @ torch.tensor([[24.0, 34.0], [16.0, 16.0], [1.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(
            moved[:2].T, torch.tensor([[24.0, 16.0], [24.0, 26.0]], dtype=torch.float64)
        )

    @pytest.mark.spec_field("AugmentationConfig.SpatialAugmentation.rotate_probability")
    def test_rotate_probability_zero_never_rotates_and_unset_always_does(self) -> None:
        never = spatial(rotate_rad_max=1, rotate_probability=0)
        assert torch.equal(
            spatial_matrices(draws(angle=1, chance=0), never, width=48, height=32)[0], torch.eye(3).double()
        )
        always = spatial_matrices(
            draws(angle=1, chance=0.999), spatial(rotate_rad_max=1), width=48, height=32
        )[0]
        assert always[0, 0].item() == pytest.approx(math.cos(1))

    def test_the_order_is_flip_then_translation_then_zoom(self) -> None:
        spec = spatial(hflip_probability=1, translate_max_x=4, zoom_min=2, zoom_max=2)
        matrix = spatial_matrices(
            draws(hflip=0, shift_x=0.999, zoom_x=0, zoom_y=0), spec, width=48, height=32
        )[0]
        moved = matrix @ torch.tensor([10.0, 0, 1], dtype=torch.float64)
        assert moved[0].item() == 2 * ((48 - 10) + 4)

    @settings(max_examples=60)
    @given(
        seed=st.integers(0, 10**6),
        x=st.integers(2, 60),
        y=st.integers(2, 40),
        size=st.tuples(st.integers(40, 90), st.integers(40, 70)),
        resize=st.booleans(),
    )
    def test_a_marked_square_and_its_box_move_together(
        self, seed: int, x: int, y: int, size: tuple[int, int], resize: bool
    ) -> None:
        width, height = size
        x, y = min(x, width - 14), min(y, height - 14)
        image = np.zeros((3, height, width), dtype=np.uint8)
        image[:, y : y + 12, x : x + 12] = 255
        text = """spatial_augmentation { hflip_probability: 0.5 vflip_probability: 0.5 zoom_min: 0.8 zoom_max: 1.3
                  translate_max_x: 8 translate_max_y: 6 rotate_rad_max: 0.4 rotate_probability: 0.8 }"""
        preprocessing = "min_bbox_width: 0 min_bbox_height: 0" + " enable_auto_resize: true" * resize
        spec = config(64, 48, preprocessing=preprocessing, rest=text)
        result = run(batch(image, noise(3, 50, 60), boxes=[[x, y, x + 12, y + 12]]), spec, seed=seed)
        rows, columns = np.nonzero(result.images[0, 0].numpy() > 0.5)
        if not len(result.labels.boxes):
            assert len(rows) == 0
            return
        x1, y1, x2, y2 = result.labels.boxes[0].tolist()
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48
        if len(rows):
            # All of the mark is inside the box, and reaches each side of it to within the blur of a bilinear tap.
            assert columns.min() >= x1 - 0.51 and columns.max() + 1 <= x2 + 0.51
            assert rows.min() >= y1 - 0.51 and rows.max() + 1 <= y2 + 0.51
            if x2 - x1 > 4 and y2 - y1 > 4 and 0 < x1 and x2 < 64 and 0 < y1 and y2 < 48:
                found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert found == pytest.approx((x1, y1, x2, y2), abs=1.6)

    def test_background_is_black_and_has_a_hard_edge(self) -> None:
        white = np.full((3, 32, 48), 255, dtype=np.uint8)
        spec = config(48, 32, rest="spatial_augmentation { zoom_min: 0.6 zoom_max: 0.6 rotate_rad_max: 0.3 }")
        image = run(batch(white), spec, seed=3).images[0]
        assert set(image.flatten().round(decimals=4).tolist()) == {0.0, 1.0}
        assert 0.3 < image.mean() < 0.4  # 0.6 squared, less what the rotation turns out of sight


class TestBoxes:
    def test_clipping_at_the_image_and_at_the_network_input(self) -> None:
        boxes = [[-5, -5, 10, 10], [20, 10, 100, 100], [70, 5, 90, 15]]
        result = run(batch(noise(3, 24, 60), boxes=boxes), config(48, 32))
        assert result.labels.boxes.tolist() == [
            [0, 0, 10, 10],
            [20, 10, 48, 24],
        ]  # 24 rows of image, then padding
        assert result.labels.classes.tolist() == [0, 1]

    @pytest.mark.parametrize(
        "box, kept",
        [
            ([0, 0, 10, 8], True),  # exactly the minimum
            ([0, 0, 9.9, 20], False),  # too narrow
            ([0, 0, 20, 7.9], False),  # too low
            ([40, 0, 60, 20], False),  # 8 wide once clipped to the 48 pixels
            ([5, 5, 5, 20], False),  # no area
        ],
    )
    @pytest.mark.spec_field(
        "AugmentationConfig.Preprocessing.min_bbox_width", "AugmentationConfig.Preprocessing.min_bbox_height"
    )
    def test_min_bbox_applies_after_clipping(self, box: list[float], kept: bool) -> None:
        spec = config(48, 32, preprocessing="min_bbox_width: 10 min_bbox_height: 8")
        assert len(run(batch(noise(3, 32, 60), boxes=[box]), spec).labels.boxes) == kept

    def test_empty_boxes_go_even_without_a_minimum(self) -> None:
        spec = config(48, 32, preprocessing="min_bbox_width: 0 min_bbox_height: 0")
        data = batch(noise(3, 32, 48), boxes=[[5, 5, 5, 20], [60, 1, 70, 9], [1, 1, 1.5, 1.5]])
        assert run(data, spec).labels.boxes.tolist() == [[1, 1, 1.5, 1.5]]

    def test_a_rotated_box_encloses_its_corners(self) -> None:
        spec = config(64, 64, rest="spatial_augmentation { rotate_rad_max: 0.5 }")
        result = run(batch(noise(3, 64, 64), boxes=[[22, 27, 42, 37]]), spec, seed=1)
        cosine, sine = abs(result.matrices[0, 0, 0].item()), abs(result.matrices[0, 0, 1].item())
        width, height = 20 * cosine + 10 * sine, 20 * sine + 10 * cosine
        expected = [32 - width / 2, 32 - height / 2, 32 + width / 2, 32 + height / 2]
        assert result.labels.boxes[0].tolist() == pytest.approx(expected, abs=1e-4)

    def test_no_boxes_and_weights(self) -> None:
        result = run(batch(noise(1, 32, 48), noise(1, 32, 48)), config(48, 32))
        assert result.labels.boxes.shape == (0, 4) and result.images.shape == (2, 1, 32, 48)
        assert result.weights.tolist() == [1, 2]


class TestColor:
    def test_hue_zero_and_saturation_one_change_nothing(self) -> None:
        matrix = hue_saturation(torch.zeros(1).double(), torch.ones(1).double())
        torch.testing.assert_close(matrix[0], torch.eye(4).double(), atol=1e-15, rtol=0)

    def test_saturation_zero_is_luma(self) -> None:
        matrix = hue_saturation(torch.tensor([70.0]).double(), torch.zeros(1).double())[0]
        pixel = torch.tensor([1.0, 0.5, 0.25, 1.0], dtype=torch.float64)
        luma = 0.299 + 0.587 * 0.5 + 0.114 * 0.25  # 0.621
        assert (matrix @ pixel).tolist() == pytest.approx([luma, luma, luma, 1])

    def test_hue_by_ninety_degrees_on_red(self) -> None:
        matrix = hue_saturation(torch.tensor([90.0]).double(), torch.ones(1).double())[0]
        red = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
        assert (matrix @ red).tolist() == pytest.approx([0.299 + 0.168, 0.299 - 0.328, 0.299 + 1.25, 1])

    def test_contrast_keeps_its_centre(self) -> None:
        matrix = contrast_matrices(torch.tensor([0.2]).double(), center=0.5)[0]
        pixel = torch.tensor([0.5, 0.75, 0.0, 1.0], dtype=torch.float64)
        assert (matrix @ pixel).tolist() == pytest.approx([0.5, 0.8, -0.1, 1])

    @pytest.mark.spec_field(
        "AugmentationConfig.ColorAugmentation.color_shift_stddev",
        "AugmentationConfig.ColorAugmentation.saturation_shift_max",
        "AugmentationConfig.ColorAugmentation.contrast_scale_max",
        "AugmentationConfig.ColorAugmentation.contrast_center",
    )
    def test_order_contrast_then_saturation_then_brightness(self) -> None:
        color = AugmentationConfig.ColorAugmentation(
            color_shift_stddev=0.1, saturation_shift_max=1, contrast_scale_max=0.4, contrast_center=0.25
        )
        # Draws near 1 are two deviations: contrast 0.4, brightness 0.2; saturation draw 0 is factor 0 (grey).
        chosen = torch.tensor([[0.5, 0.0, 1.0, 1.0]], dtype=torch.float64)
        matrix = color_matrices(chosen, color)
        assert matrix is not None
        pixel = torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64)
        value = 0.5 * 1.4 - 0.25 * 0.4 + 0.2  # 0.8
        assert (matrix[0] @ pixel).tolist() == pytest.approx([value, value, value, 1])

    def test_no_color_fields_no_matrix(self) -> None:
        assert (
            color_matrices(
                torch.rand(2, 4).double(), AugmentationConfig.ColorAugmentation(contrast_center=0.5)
            )
            is None
        )

    def test_draws_are_cut_at_two_deviations(self) -> None:
        uniform = torch.rand(5000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        matrices = color_matrices(uniform, AugmentationConfig.ColorAugmentation(color_shift_stddev=0.1))
        assert matrices is not None
        shift = matrices[:, 0, 3]
        assert torch.equal(matrices[:, 0, 3], matrices[:, 2, 3])  # one offset for all channels
        assert shift.abs().max() <= 0.2 and shift.abs().max() > 0.19
        assert shift.std().item() == pytest.approx(0.088, abs=0.003)  # a normal cut at 2 sigma has 0.88 sigma

    def test_result_is_clipped_and_applied_to_pixels(self) -> None:
        image = noise(3, 32, 48)
        spec = config(48, 32, rest="color_augmentation { contrast_scale_max: 1 contrast_center: 0.5 }")
        result = run(batch(image), spec, seed=5).images[0]
        uniform = torch.rand(1, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        matrix = color_matrices(uniform[:, 9:], spec.color_augmentation)
        assert matrix is not None
        gain, offset = matrix[0, 0, 0].item(), matrix[0, 0, 3].item()
        expected = (as_float(image) * gain + offset).clamp(0, 1)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    def test_grey_images_take_contrast_and_brightness_but_no_hue(self) -> None:
        image = noise(1, 32, 48)
        hue = config(48, 32, rest="color_augmentation { hue_rotation_max: 100 saturation_shift_max: 1 }")
        torch.testing.assert_close(
            run(batch(image), hue, seed=1).images[0], as_float(image), atol=2e-3, rtol=0
        )
        bright = config(48, 32, rest="color_augmentation { color_shift_stddev: 0.2 }")
        shift = (run(batch(image), bright, seed=1).images[0] - as_float(image))[
            (as_float(image) - 0.5).abs() < 0.1
        ]
        assert shift.std() < 1e-6 and shift.abs().mean() > 0.01


class TestDeterminism:
    FULL = """spatial_augmentation { hflip_probability: 0.5 zoom_min: 0.8 zoom_max: 1.2 translate_max_x: 8
              rotate_rad_max: 0.2 } color_augmentation { hue_rotation_max: 25 contrast_scale_max: 0.1 }"""

    def test_the_generator_alone_decides(self) -> None:
        data = batch(noise(3, 40, 60), noise(3, 32, 48), boxes=[[5, 5, 30, 30]])
        spec = config(48, 32, rest=self.FULL)
        first = run(data, spec, seed=7)
        torch.manual_seed(99)
        again, other = run(data, spec, seed=7), run(data, spec, seed=8)
        assert torch.equal(first.images, again.images) and torch.equal(first.matrices, again.matrices)
        assert torch.equal(first.labels.boxes, again.labels.boxes)
        assert not torch.equal(first.images, other.images)

    def test_without_a_generator_nothing_is_random(self) -> None:
        image = noise(3, 32, 48)
        result = run(batch(image), config(48, 32, rest=self.FULL))
        assert torch.equal(result.images[0], as_float(image))

    def test_the_batch_is_left_as_it_was(self) -> None:
        data = batch(noise(3, 40, 60), boxes=[[5, 5, 30, 30]])
        before = [value.clone() for value in data if isinstance(value, torch.Tensor)]
        run(data, config(48, 32, rest=self.FULL), seed=1)
        after = [value for value in data if isinstance(value, torch.Tensor)]
        assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_exact_copies_and_resampling_agree() -> None:
    """The same whole-pixel move, once copied and once resampled because it is a hair off."""
    images = torch.from_numpy(np.stack([noise(3, 30, 40)]))
    inverse = torch.tensor([[[-1.0, 0, 37], [0, 1, -3], [0, 0, 1]]], dtype=torch.float64)
    regions = torch.tensor([[0.0, 0, 40, 30]], dtype=torch.float64)
    copied = warp(images, inverse, regions=regions, width=48, height=32)
    nudged = inverse + torch.tensor([[0, 0, 1e-5], [0, 0, 1e-5], [0, 0, 0]], dtype=torch.float64)
    resampled = warp(images, nudged, regions=regions, width=48, height=32)
    torch.testing.assert_close(copied, resampled, atol=0.02, rtol=0)
    assert copied[0, 0, 3, 0] == images[0, 0, 0, 36]  # output (0.5, 3.5) shows source (36.5, 0.5)
