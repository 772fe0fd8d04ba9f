from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image

from detectkit.data.batch import collate
from detectkit.data.dataset import Dataset, Frame, capped, image_files, sample_from_image
from detectkit.data.labels import BACKGROUND, Objects
from detectkit.data.records import training_frames
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig
from tests.data.conftest import CLASSES, config, make, picture, record


def pixels(path: Path, channels: int = 3) -> np.ndarray:
    """An image file decoded by the loader, [c, h, w]."""
    return image_files(path).sample(0, channels=channels).image


class TestFrames:
    def test_damaged_embedded_image_names_shard_and_record(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a", image=b"nothing", image_format="png")]})
        with pytest.raises(DataError, match=r"train \(record 0, a\)"):
            training_frames(config(tmp_path), CLASSES).sample(0, channels=3)

    def test_image_of_another_size_than_its_record(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a")]}, images=False)
        picture(41, 30).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="a.png is 41x30 pixels, its record says 40x30"):
            training_frames(config(tmp_path), CLASSES).sample(0, channels=3)

    def test_missing_images_are_found_before_any_work(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record(f"frame{i}") for i in range(6)]})
        for i in range(5):
            (tmp_path / f"frame{i}.png").unlink()
        with pytest.raises(DataError) as caught:
            training_frames(config(tmp_path), CLASSES)
        assert "5 of 6 images are missing" in str(caught.value)
        assert "frame0.png" in str(caught.value) and "frame3.png" not in str(caught.value)


class TestDecoding:
    def test_sixteen_bit_grey_is_scaled(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png").tolist() == [[[0, 1, 100, 255]]] * 3
        assert pixels(tmp_path / "a.png", channels=1).tolist() == [[[0, 1, 100, 255]]]

    def test_grey(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png").tolist() == [[[0, 100, 255]]] * 3

    def test_colour_to_one_channel_is_luma(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)).save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png", channels=1).tolist() == [[[76, 150]]]  # 0.299, 0.587 of 255

    def test_bilevel(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png", channels=1).tolist() == [[[255, 0]]]

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
        red, green, blue = pixels(tmp_path / "a.jpg").mean(axis=(1, 2))
        assert red > 250 and green < 5 and blue < 5

    @pytest.mark.parametrize("transparency", [None, 1, b"\xff\x80"], ids=["opaque", "index", "table"])
    def test_palette(self, tmp_path: Path, transparency: object) -> None:
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
        image = image.convert("P")
        image.putpalette([10, 20, 30, 200, 100, 50])
        extra = {} if transparency is None else {"transparency": transparency}
        image.save(tmp_path / "a.png", **extra)
        assert pixels(tmp_path / "a.png")[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]

    @pytest.mark.parametrize("mode, value", [("RGBA", (10, 20, 30, 0)), ("LA", (77, 128))])
    def test_alpha_is_dropped(self, tmp_path: Path, mode: str, value: tuple[int, ...]) -> None:
        Image.new(mode, (2, 2), value).save(tmp_path / "a.png")
        expected = [10, 20, 30] if mode == "RGBA" else [77] * 3
        assert pixels(tmp_path / "a.png")[:, 0, 0].tolist() == expected

    @pytest.mark.parametrize("keep", [0, 1, 100, 700], ids=lambda keep: f"{keep} bytes")
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp"])
    def test_a_file_cut_short(self, tmp_path: Path, name: str, keep: int) -> None:
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:keep])
        with pytest.raises(DataError, match=f"cannot read the image .*{name}"):
            pixels(tmp_path / name)

    def test_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("not an image")
        with pytest.raises(DataError, match="cannot read the image .*a.png"):
            pixels(tmp_path / "a.png")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    @pytest.mark.parametrize("factor", [2, 3, 4, 6, 12])
    def test_large_images_are_reduced_by_a_whole_factor(self, tmp_path: Path, name: str, factor: int) -> None:
        size = (32 * factor + 5, 24 * factor + factor - 1)
        picture(*size).save(tmp_path / name, quality=95)
        sample = image_files(tmp_path / name).sample(0, channels=3, target_size=(32, 24))
        assert sample.reduction == factor and sample.original_size == size
        assert sample.image.shape[1:] == (-(-size[1] // factor), -(-size[0] // factor))
        whole = np.asarray(picture(*size)).astype(float)
        block = whole[factor : 2 * factor, 3 * factor : 4 * factor].mean(
            axis=(0, 1)
        )  # pixel (3, 1) averages it
        assert np.abs(sample.image[:, 1, 3] - block).max() < 6
        assert collate([sample]).sizes[0].tolist() == pytest.approx([size[0] / factor, size[1] / factor])

    def test_images_up_to_twice_the_size_are_not_reduced(self, tmp_path: Path) -> None:
        picture(63, 100).save(tmp_path / "a.png")
        assert image_files(tmp_path / "a.png").sample(0, channels=3, target_size=(32, 24)).reduction == 1

    @pytest.mark.parametrize(
        "fields, expected",
        [
            ("", 1),
            ("enable_auto_resize: true", 3),
            ("enable_auto_resize: true crop_right: 9 crop_bottom: 9", 1),
        ],
    )
    def test_the_spec_says_whether_images_are_reduced(self, fields: str, expected: int) -> None:
        text = f"preprocessing {{ output_image_width: 64 output_image_height: 32 {fields} }}"
        augmentation = text_format.Parse(text, AugmentationConfig())
        sample = sample_from_image(picture(200, 100), channels=3, augmentation=augmentation)
        assert sample.reduction == expected


class TestImageFiles:
    def test_folder_sorted_and_only_images(self, tmp_path: Path) -> None:
        for name in ("b.JPG", "a.png", "c.ppm", "d.bmp", "e.jpeg", "f.tif", "g.TIFF", "h.webp", "i.pgm"):
            picture(8, 8).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "folder.png").mkdir()
        dataset = image_files(tmp_path)
        assert [frame.frame_id for frame in dataset.frames] == list("abcdefghi")
        assert dataset.sample(1, channels=3).original_size == (8, 8)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            image_files(tmp_path / "none")
        with pytest.raises(DataError, match="no images in .*: files must end in .bmp"):
            image_files(tmp_path)


class TestSampleFromImage:
    SPEC = AugmentationConfig(
        preprocessing=dict(output_image_width=16, output_image_height=16, enable_auto_resize=True)
    )

    def test_file_picture_and_array_agree(self, tmp_path: Path) -> None:
        image = picture(40, 50)
        image.save(tmp_path / "a.png")
        array = np.asarray(image)
        found = [
            sample_from_image(x, channels=3, augmentation=self.SPEC)
            for x in (tmp_path / "a.png", image, array)
        ]
        for sample in found:
            assert sample.reduction == 2 and sample.original_size == (40, 50)
            assert np.array_equal(sample.image, found[0].image)
        assert image.size == (40, 50)  # the caller's picture is left alone

    def test_arrays_that_are_no_images(self) -> None:
        for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
            with pytest.raises(DataError, match="must be uint8"):
                sample_from_image(array, channels=3, augmentation=self.SPEC)
        assert sample_from_image(
            np.zeros((4, 5, 1), np.uint8), channels=1, augmentation=self.SPEC
        ).image.shape == (1, 4, 5)


def test_a_cap_keeps_the_largest_boxes_of_target_classes() -> None:
    sides = np.array([10, 30, 20, 40], dtype=np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    zeros = np.zeros(4)
    objects = Objects(
        boxes,
        np.array([0, 1, 0, BACKGROUND]),
        tuple("abcd"),
        zeros.astype(np.float32),
        zeros.astype(np.int64),
    )
    frame = Dataset([Frame("", "", None, 0, None, objects)], CLASSES)
    assert capped(frame, 2).frames[0].objects.names == ("b", "c", "d")
    assert capped(frame, 3).frames[0].objects.names == ("a", "b", "c", "d")
    assert capped(frame, 0) is frame
