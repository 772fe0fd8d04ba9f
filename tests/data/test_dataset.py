from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image

from detectkit import spec
from detectkit.console import log
from detectkit.data import dataset as dataset_module
from detectkit.data.dataset import (
    BACKGROUND,
    DONTCARE,
    NO_OBJECTS,
    Batch,
    Dataset,
    Frame,
    Objects,
    Sample,
    capped,
    class_counts,
    collate,
    image_files,
    loader,
    require_separate,
    sample_from_image,
    training_frames,
    training_order,
    validation_frames,
)
from detectkit.data.tfrecord import Record, encode, write_shard
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig, DatasetConfig

MAPPING = 'target_class_mapping { key: "car" value: "vehicle" } target_class_mapping { key: "person" value: "person" }'
CLASSES = ["person", "vehicle"]
NO_FRAME = Frame("", "", None, 0, None, NO_OBJECTS)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that JPEG keeps it: a gradient with an offset."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2 + seed % 50], axis=2).astype(np.uint8))


def record(
    frame_id: str, *, size: tuple[int, int] = (40, 30), names: tuple[str, ...] = ("car",), **kwargs: object
) -> Record:
    boxes = np.array([[1 + i, 2, 11 + i, 22] for i in range(len(names))], dtype=np.float32).reshape(-1, 4)
    zeros = np.zeros(len(names))
    return Record(
        frame_id, *size, list(names), boxes, zeros.astype(np.float32), zeros.astype(np.int64), **kwargs  # type: ignore[arg-type]
    )


def make(root: Path, shards: dict[str, list[Record]], *, images: bool = True) -> Path:
    """Write shards under root/records and an image for every record that does not embed one."""
    (root / "records").mkdir(parents=True, exist_ok=True)
    seeds = itertools.count()
    for name, records in shards.items():
        write_shard(root / "records" / name, [encode(item) for item in records])
        for item in records:
            path = root / f"{item.frame_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if images and item.image is None:
                picture(item.width, item.height, seed=next(seeds)).save(path)
    return root


def config(root: Path, rest: str = "", *, pattern: str = "*", mapping: str = MAPPING) -> DatasetConfig:
    source = f'data_sources {{ tfrecords_path: "{root}/records/{pattern}" image_directory_path: "{root}" }}'
    return text_format.Parse(f"{source} {mapping} {rest}", DatasetConfig())


def read(both: DatasetConfig) -> tuple[Dataset, Dataset]:
    """What a spec trains on and what it measures on."""
    validation = validation_frames(both, CLASSES)
    assert validation is not None
    return training_frames(both, CLASSES), validation


def augmentation(channels: int = 3) -> AugmentationConfig:
    """Of a spec that leaves images in their size."""
    size = {"output_image_width": 64, "output_image_height": 32}
    return AugmentationConfig(preprocessing={**size, "output_image_channel": channels})  # type: ignore[arg-type]


def load_all(dataset: Dataset, *, channels: int = 3, **arguments: object) -> list[Batch]:
    settings = {"batch_size": 2, "order": range(len(dataset)), "workers": 0, **arguments}
    return list(loader(dataset, augmentation(channels), **settings))  # type: ignore[arg-type]


def pixels(path: Path, channels: int = 3) -> np.ndarray:
    """An image file decoded by the loader, [c, h, w]."""
    return image_files(path).sample(0, channels=channels).image


class TestFrames:
    @pytest.mark.spec_field("DataSource.tfrecords_path", "DataSource.image_directory_path")
    def test_records_become_frames(self, tmp_path: Path) -> None:
        make(
            tmp_path, {"train": [record("image_2/a", names=("car", "person")), record("image_2/b", names=())]}
        )
        training = training_frames(config(tmp_path), CLASSES)
        assert validation_frames(config(tmp_path), CLASSES) is None and len(training) == 2
        sample = training.sample(0, channels=3)
        assert sample.frame_id == "image_2/a" and sample.original_size == (40, 30)
        assert sample.objects.boxes.tolist() == [[1, 2, 11, 22], [2, 2, 12, 22]]
        assert sample.objects.classes.tolist() == [1, 0]
        assert sample.image.shape == (3, 30, 40)
        assert np.array_equal(sample.image, np.asarray(picture(40, 30)).transpose(2, 0, 1))

    @pytest.mark.spec_field("DatasetConfig.target_class_mapping")
    def test_mapping_is_by_label_name_and_applied_once(self, tmp_path: Path) -> None:
        chain = 'target_class_mapping { key: "Car" value: "person" } target_class_mapping { key: "person" value: "vehicle" }'
        make(tmp_path, {"train": [record("a", names=("CAR", "person", "tram"))]})
        training = training_frames(config(tmp_path, mapping=chain), CLASSES)
        objects = training.sample(0, channels=3).objects
        assert objects.classes.tolist() == [0, 1, BACKGROUND]  # car -> person, and not on to vehicle
        assert objects.names == ("car", "person", "tram")
        targets, raw = class_counts(training)
        assert targets == {"person": 1, "vehicle": 1}
        assert raw == {"CAR": 1, "person": 1, "tram": 1}

    @pytest.mark.parametrize(
        ("key", "name"),
        [("Hot dog", "hotdog"), ("hotdog", "hot\u00a0Dog"), ("cafe\u0301", "CAF\u00c9"), (" car ", "car")],
    )
    def test_blanks_and_forms_of_letters_do_not_part_labels(
        self, tmp_path: Path, key: str, name: str
    ) -> None:
        make(tmp_path, {"train": [record("a", names=(name, "tram"))]})
        mapping = f'target_class_mapping {{ key: "{key}" value: "person" }}'
        training = training_frames(config(tmp_path, mapping=mapping), CLASSES)
        assert training.sample(0, channels=3).objects.classes.tolist() == [0, BACKGROUND]

    def test_a_target_without_boxes_counts_zero(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a"), record("b")]})
        assert class_counts(training_frames(config(tmp_path), CLASSES))[0] == {"person": 0, "vehicle": 2}

    def test_boxes_without_area_are_dropped(self, tmp_path: Path) -> None:
        bad = record("a", names=("car", "car"))
        bad.boxes[0] = [5, 5, 5, 9]
        make(tmp_path, {"train": [bad]})
        assert len(training_frames(config(tmp_path), CLASSES).sample(0, channels=3).objects.boxes) == 1

    @pytest.mark.spec_field("DatasetConfig.validation_fold")
    def test_validation_fold_over_all_sources(self, tmp_path: Path) -> None:
        for source in ("one", "two"):
            names = [f"k-fold-{fold:03d}-of-002-shard-00000-of-00001" for fold in (0, 1)]
            make(tmp_path / source, {name: [record(f"{source}{name[9]}")] for name in names})
        both = config(tmp_path / "one", "validation_fold: 0")
        both.data_sources.append(config(tmp_path / "two").data_sources[0])
        training, validation = training_frames(both, CLASSES), validation_frames(both, CLASSES)
        assert validation is not None
        assert [frame.frame_id for frame in training.frames] == ["one1", "two1"]
        assert [frame.frame_id for frame in validation.frames] == ["one0", "two0"]

    def test_validation_data_source_trains_on_all_folds(self, tmp_path: Path) -> None:
        make(tmp_path / "a", {"k-fold-000-of-002": [record("x")], "k-fold-001-of-002": [record("y")]})
        make(tmp_path / "b", {"v": [record("z")]})
        paths = f'tfrecords_path: "{tmp_path}/b/records/v" image_directory_path: "{tmp_path}/b"'
        split = config(tmp_path / "a", f"validation_data_source {{ {paths} }}")
        training, validation = training_frames(split, CLASSES), validation_frames(split, CLASSES)
        assert len(training) == 2 and validation is not None and validation.frames[0].frame_id == "z"

    @pytest.mark.parametrize("embedded", [False, True])
    def test_an_image_of_both_folds_is_refused(self, tmp_path: Path, embedded: bool) -> None:
        names = {"k-fold-000-of-002": "abcd", "k-fold-001-of-002": "cdef"}
        images = {
            stem: {"image": stem.encode(), "image_format": "png"} if embedded else {} for stem in "abcdef"
        }
        make(
            tmp_path,
            {name: [record(stem, **images[stem]) for stem in stems] for name, stems in names.items()},
        )
        both = config(tmp_path, "validation_fold: 0")
        with pytest.raises(
            DataError, match=r"^2 of the 4 validation images are among .* trained on \(c, d\)"
        ):
            require_separate(*read(both), both)

    def test_an_image_of_both_folds_by_another_name(self, tmp_path: Path) -> None:
        make(tmp_path, {"k-fold-000-of-002": [record("a")], "k-fold-001-of-002": [record("b"), record("c")]})
        both = config(tmp_path, "validation_fold: 0")
        require_separate(*read(both), both)
        (tmp_path / "a.png").unlink()
        (tmp_path / "a.png").symlink_to("c.png")
        with pytest.raises(DataError, match=r"^1 of the 1 validation images are among .* trained on \(a\)"):
            require_separate(*read(both), both)

    @pytest.mark.parametrize("embedded", [(), ("a",), ("b",), ("a", "b")])
    def test_a_copied_image_is_told(
        self, tmp_path: Path, embedded: tuple[str, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether it lies in a file or in a record, under another name; one byte in another place makes another image."""
        log.propagate = True
        content = bytearray(random.Random(1).randbytes(20_000))
        other = bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        for copy, is_same in ((bytes(content), True), (other, False)):
            root = tmp_path / str(is_same)
            files = {"a": bytes(content), "b": copy}
            images = {
                name: {"image": files[name], "image_format": "png"} if name in embedded else {}
                for name in files
            }
            make(
                root, {f"k-fold-00{n}-of-002": [record(name, **images[name])] for n, name in enumerate(files)}
            )
            for name in set(files) - set(embedded):
                (root / f"{name}.png").write_bytes(files[name])
            both = config(root, "validation_fold: 0")
            caplog.clear()
            require_separate(*read(both), both)
            assert (
                "1 of the 1 validation images are copies of some that are trained on (a)" in caplog.text
            ) == is_same

    def test_files_of_one_form_are_told_by_a_piece(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path, {f"k-fold-00{n}-of-002": [record(name)] for n, name in enumerate("ab")})
        for name in "ab":
            (tmp_path / f"{name}.png").write_bytes(name.encode() * 50_000)
        counts: list[int] = []
        monkeypatch.setattr(
            dataset_module, "_read", lambda frame, start, count: counts.append(count) or frame.path.encode()
        )
        both = config(tmp_path, "validation_fold: 0")
        require_separate(*read(both), both)
        assert counts == [dataset_module.PIECE] * 2

    def test_images_that_only_look_alike_are_not_in_both_folds(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two sets whose frames have the same ids, beside and in the records."""
        for name, content in (("one", b"pixels"), ("two", b"others")):
            images = [record("a", image=content, image_format="png"), record("b")]
            make(tmp_path / name, {"t": images})
        picture(40, 30, seed=49).save(tmp_path / "two" / "b.png")
        paths = f'tfrecords_path: "{tmp_path}/two/records/t" image_directory_path: "{tmp_path}/two"'
        both = config(tmp_path / "one", f"validation_data_source {{ {paths} }}")
        training, validation = read(both)
        assert [frame.frame_id for frame in training.frames] == [
            frame.frame_id for frame in validation.frames
        ]
        require_separate(training, validation, both)
        assert not caplog.messages

    def test_measuring_on_what_is_trained_on_may_be_meant(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        log.propagate = True
        make(tmp_path, {"k-fold-000-of-002": [record("a")], "k-fold-001-of-002": [record("b")]})
        for pattern, is_meant in (("*", True), ("k-fold-*", True), ("k-fold-000*", False)):
            paths = f'tfrecords_path: "{tmp_path}/records/{pattern}" image_directory_path: "{tmp_path}"'
            both = config(tmp_path, f"validation_data_source {{ {paths} }}")
            caplog.clear()
            with (
                nullcontext() if is_meant else pytest.raises(DataError, match="1 of the 1 validation images")
            ):
                require_separate(*read(both), both)
            assert (
                "2 of the 2 validation images are among those that are trained on, as" in caplog.text
            ) == is_meant

    def test_shards_that_are_not_there_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        log.propagate = True
        names = [
            f"k-fold-{fold:03d}-of-002-shard-{part:05d}-of-00003" for fold in (0, 1) for part in range(3)
        ]
        make(tmp_path, {name: [record(name)] for name in names})
        training_frames(config(tmp_path), CLASSES)
        training_frames(config(tmp_path, pattern="*shard-00001*"), CLASSES)  # the others are there
        assert caplog.text == ""
        for name in names[3:5]:
            (tmp_path / "records" / name).unlink()
        training_frames(config(tmp_path), CLASSES)
        told = (
            f"2 of the 3 shards of {tmp_path}/records/k-fold-001-of-002 are not there, nor are their images"
        )
        assert told in caplog.text and "fold-000" not in caplog.text

    def test_records_in_a_store_are_read_by_the_spec_that_the_user_names(
        self, tmp_path: Path, bucket: Path, tiny_text: str
    ) -> None:
        content = io.BytesIO()
        picture(40, 30).save(content, "PNG")
        make(tmp_path, {"t": [record("a", image=content.getvalue(), image_format="png")]})
        (tmp_path / "records" / "t").rename(bucket / "t-fold-001-of-002")
        source = re.search(r'tfrecords_path: "[^"]*"', tiny_text)
        assert source is not None
        text = tiny_text.replace(source[0], 'tfrecords_path: "s3://bucket/t-*"')
        received = spec.loads(text)
        assert isinstance(received, spec.Experiment)
        with pytest.raises(DataError, match="s3://bucket/t-.* is not opened: it is named in a model"):
            training_frames(received.dataset_config, CLASSES)
        (tmp_path / "own.txt").write_text(text)
        own = spec.load_experiment(tmp_path / "own.txt")
        training = training_frames(own.dataset_config, CLASSES)
        assert training.sample(0, channels=3).original_size == (40, 30)

    def test_validation_data_is_read_without_training_data(self, tmp_path: Path) -> None:
        make(tmp_path, {"v": [record("z")]})
        paths = f'tfrecords_path: "{tmp_path}/records/v" image_directory_path: "{tmp_path}"'
        split = config(tmp_path / "elsewhere", f"validation_data_source {{ {paths} }}")
        validation = validation_frames(split, CLASSES)
        assert validation is not None and [frame.frame_id for frame in validation.frames] == ["z"]
        with pytest.raises(DataError, match="no files match tfrecords_path.*elsewhere"):
            training_frames(split, CLASSES)

    def test_fold_that_takes_nothing_or_everything(self, tmp_path: Path) -> None:
        make(tmp_path, {"k-fold-000-of-001": [record("a")]})
        with pytest.raises(DataError, match="fold-007-of-"):
            validation_frames(config(tmp_path, "validation_fold: 7"), CLASSES)
        with pytest.raises(DataError, match="nothing is left to train on"):
            training_frames(config(tmp_path, "validation_fold: 0"), CLASSES)

    @pytest.mark.spec_field("DataSource.source_weight")
    def test_source_weights(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            make(tmp_path / name, {"t": [record(name)]})
        both = config(tmp_path / "one")
        both.data_sources.append(config(tmp_path / "two").data_sources[0])
        both.data_sources[1].source_weight = 0.25
        [batch] = load_all(training_frames(both, CLASSES))
        assert batch.weights.tolist() == [1, 0.25]

    def test_pattern_without_files(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a")]})
        with pytest.raises(DataError, match="no files match tfrecords_path.*valid\\*"):
            training_frames(config(tmp_path, pattern="valid*"), CLASSES)

    def test_shards_without_records(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": []})
        with pytest.raises(DataError, match="no records in .*train"):
            training_frames(config(tmp_path), CLASSES)

    def test_missing_images_are_found_before_any_work(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record(f"frame{i}") for i in range(6)]})
        for i in range(5):
            (tmp_path / f"frame{i}.png").unlink()
        with pytest.raises(DataError) as caught:
            training_frames(config(tmp_path), CLASSES)
        assert "5 of 6 images are missing" in str(caught.value)
        assert "frame0.png" in str(caught.value) and "frame3.png" not in str(caught.value)

    @pytest.mark.parametrize("extension", ["jpg", ".jpg"])
    @pytest.mark.spec_field("DatasetConfig.image_extension")
    def test_image_extension_with_or_without_dot(self, tmp_path: Path, extension: str) -> None:
        make(tmp_path, {"train": [record("a")]}, images=False)
        picture(40, 30).save(tmp_path / "a.jpg")
        training = training_frames(config(tmp_path, f'image_extension: "{extension}"'), CLASSES)
        assert training.sample(0, channels=3).image_path.endswith("a.jpg")

    def test_embedded_images_need_no_image_files(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        picture(40, 30).save(buffer, "PNG")
        plain = record("b")
        make(tmp_path, {"train": [record("a", image=buffer.getvalue(), image_format="png"), plain]})
        training = training_frames(config(tmp_path), CLASSES)
        first, second = (training.sample(i, channels=3).image for i in (0, 1))
        assert np.array_equal(first, np.asarray(picture(40, 30)).transpose(2, 0, 1))
        assert second.shape == first.shape

    def test_damaged_embedded_image_names_shard_and_record(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a", image=b"nothing", image_format="png")]})
        with pytest.raises(DataError, match=r"train \(record 0, a\)"):
            training_frames(config(tmp_path), CLASSES).sample(0, channels=3)

    def test_image_of_another_size_than_its_record(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a")]}, images=False)
        picture(41, 30).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="a.png is 41x30 pixels, its record says 40x30"):
            training_frames(config(tmp_path), CLASSES).sample(0, channels=3)


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


class TestCollate:
    def test_padding_repeats_the_edge_once(self) -> None:
        small = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3)
        large = np.full((1, 4, 5), 9, dtype=np.uint8)
        samples = [
            Sample(image, 1, (image.shape[2], image.shape[1]), NO_OBJECTS, 1.0, "", "")
            for image in (small, large)
        ]
        batch = collate(samples)
        assert batch.images[0, 0].tolist() == [[1, 2, 3, 3, 0], [4, 5, 6, 6, 0], [4, 5, 6, 6, 0], [0] * 5]
        assert batch.sizes.tolist() == [[3, 2], [5, 4]]
        assert batch.boxes.shape == (0, 4) and batch.image_index.dtype == torch.int64

    def test_boxes_know_their_image(self, tmp_path: Path) -> None:
        make(tmp_path, {"t": [record("a", names=("car", "person")), record("b", names=()), record("c")]})
        [batch] = load_all(training_frames(config(tmp_path), CLASSES), batch_size=4)
        assert batch.image_index.tolist() == [0, 0, 2]
        assert batch.classes.tolist() == [1, 0, 1]
        assert batch.frame_ids == ["a", "b", "c"]


class TestLoader:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        sizes = [(40, 30), (36, 34), (20, 20), (40, 30), (50, 10)]
        make(tmp_path, {"t": [record(f"f{i}", size=size) for i, size in enumerate(sizes)]})
        return training_frames(config(tmp_path), CLASSES)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_give_what_the_caller_would(self, dataset: Dataset, workers: int) -> None:
        order = [4, 0, 3, 1, 2, 4, 0]
        alone, helped = (load_all(dataset, order=order, workers=count) for count in (0, workers))
        assert [batch.frame_ids for batch in helped] == [["f4", "f0"], ["f3", "f1"], ["f2", "f4"], ["f0"]]
        for one, other in zip(alone, helped, strict=True):
            for name, value in one._asdict().items():
                theirs = getattr(other, name)
                assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_keeps_its_own_text(self, dataset: Dataset, workers: int) -> None:
        Path(dataset.frames[2].path).write_bytes(b"")
        with pytest.raises(DataError) as caught:
            load_all(dataset, workers=workers)
        assert str(caught.value).startswith("cannot read the image ") and "Traceback" not in str(caught.value)

    def test_global_random_state_stays(self, dataset: Dataset) -> None:
        before = torch.get_rng_state()
        load_all(dataset, workers=1)
        assert torch.equal(before, torch.get_rng_state())

    def test_stopping_early(self, dataset: Dataset) -> None:
        batches = loader(dataset, augmentation(), batch_size=1, order=range(5), workers=1)
        assert next(batches).frame_ids == ["f0"]
        batches.close()  # type: ignore[attr-defined]

    def test_a_worker_that_is_killed(self, dataset: Dataset) -> None:
        before = set(multiprocessing.active_children())
        batches = loader(dataset, augmentation(), batch_size=1, order=[0] * 50, workers=1)
        next(batches)
        on_child_exit = signal.getsignal(signal.SIGCHLD)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        worker.join()
        assert signal.getsignal(signal.SIGCHLD) is on_child_exit is signal.SIG_DFL  # nothing is raised here
        with pytest.raises(DataError, match=r"a loader process died \(.*: lower training_config.workers, or"):
            list(batches)

    def test_a_worker_without_shared_memory(self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(tensor: torch.Tensor) -> None:
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
        with pytest.raises(DataError, match="No space left on device.*: lower training_config.workers, or"):
            load_all(dataset, workers=1)

    def test_a_worker_that_is_killed_while_it_asks_whether_to_go_on(self, dataset: Dataset) -> None:
        class Killed(Dataset):
            def sample(self, index: int, **_: object) -> Sample:
                frame = sys._getframe()
                while "done_event" not in frame.f_locals:  # torch's loop
                    assert frame.f_back is not None
                    frame = frame.f_back
                event = frame.f_locals["done_event"]
                getattr(event, "_cond", nullcontext()).__enter__()  # the lock of multiprocessing's
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError

        with pytest.raises(DataError, match="a loader process died"):
            load_all(Killed(dataset.frames), workers=1)

    def test_a_worker_without_a_socket(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / ("long" * 30)  # the path of a socket has 107 characters at most
        folder.mkdir()
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        monkeypatch.setitem(config, "tempdir", str(folder))
        with pytest.raises(DataError, match="cannot open a socket below .*path too long.*: set TMPDIR to"):
            load_all(dataset, workers=1)

    def test_workers_ignore_what_stops_a_run_and_end_with_the_loader(self, dataset: Dataset) -> None:
        before = set(multiprocessing.active_children())
        batches = loader(dataset, augmentation(), batch_size=1, order=[0] * 50, workers=2)
        next(batches)
        workers = set(multiprocessing.active_children()) - before
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid or 0, number)
        assert len(list(zip(batches, range(40)))) == 40
        assert all(worker.is_alive() for worker in workers)
        start = time.monotonic()
        batches.close()  # type: ignore[attr-defined]
        assert not any(worker.is_alive() for worker in workers) and time.monotonic() - start < 4

    def test_workers_of_a_loader_that_is_never_closed_end_with_the_program(self, dataset: Dataset) -> None:
        program = (
            # Makes Python's finalizers run after multiprocessing, which waits for its processes.
            "import tempfile; early = tempfile.TemporaryDirectory();"
            "import sys; from detectkit.data.dataset import image_files, loader;"
            "from detectkit.spec import AugmentationConfig;"
            "batches = loader(image_files(sys.argv[1]), AugmentationConfig(), batch_size=1, order=[0] * 50, workers=2);"
            "next(batches); cycle = [batches]; cycle.append(cycle)"
        )
        folder = os.path.dirname(dataset.frames[0].path)
        finished = subprocess.run([sys.executable, "-c", program, folder], timeout=60)
        assert finished.returncode == 0

    @pytest.mark.spec_field("AugmentationConfig.Preprocessing.output_image_channel")
    def test_grey(self, dataset: Dataset) -> None:
        assert load_all(dataset, channels=1)[0].images.shape == (2, 1, 34, 40)


class TestTrainingOrder:
    def test_every_index_once_then_wrap_around(self) -> None:
        order = training_order([range(10)], 4, seed=1, epoch=0)
        assert len(order) == 12 and sorted(order[:10]) == list(range(10)) and order[10:] == order[:2]

    def test_fewer_images_than_a_batch(self) -> None:
        order = training_order([range(3)], 8, seed=1, epoch=0)
        assert len(order) == 8 and order[3:6] == order[:3] and order[6:] == order[:2]

    def test_seed_and_epoch_decide(self) -> None:
        first = training_order([range(50)], 5, seed=1, epoch=0)
        assert first == training_order([range(50)], 5, seed=1, epoch=0)
        assert first != training_order([range(50)], 5, seed=1, epoch=1) and first != training_order(
            [range(50)], 5, seed=2, epoch=0
        )

    def test_several_groups_are_drawn_from_equally(self) -> None:
        small, large = range(3), range(3, 30)
        order = training_order([small, large], 10, seed=1, epoch=0)
        assert len(order) == 30
        from_small = [index for index in order if index in small]
        assert sorted(from_small) == [0] * 5 + [1] * 5 + [2] * 5  # 15 of 30, each of the three as often
        assert len(set(order) - set(small)) == 15  # no image of the large one twice
        assert set(order) != set(training_order([small, large], 10, seed=1, epoch=1))

    @pytest.mark.parametrize(
        "mode, counts", [("PROPORTIONAL", {2, 6}), ("USER_DEFINED", {2, 6}), ("UNIFORM", {4})]
    )
    @pytest.mark.spec_field("DatasetConfig.sampling_mode")
    def test_sampling_mode_chooses(self, tmp_path: Path, mode: str, counts: set[int]) -> None:
        make(tmp_path, {"few": [record("a"), record("b")], "many": [record(f"m{n}") for n in range(6)]})
        few, many = (config(tmp_path, pattern=pattern, mapping="") for pattern in ("few", "many"))
        both = config(tmp_path, f"sampling_mode: {mode}", pattern="few")
        both.data_sources.extend(many.data_sources)
        assert list(both.data_sources)[0] == few.data_sources[0]
        frames = training_frames(both, CLASSES)
        order = training_order(frames.groups(), 1, seed=3, epoch=0)
        drawn = [frames.frames[index].source for index in order]
        assert {drawn.count(0), drawn.count(1)} == counts and len(drawn) == 8


class TestLabels:
    def test_dontcare_labels_and_unmapped_ones_are_kept_apart(self, tmp_path: Path) -> None:
        item = record("a", names=("DontCare", "car", "tram"))
        item.truncation[1], item.occlusion[1] = 0.25, 2
        make(tmp_path, {"train": [item]})
        training = training_frames(config(tmp_path, 'dontcare_labels: "DontCare"'), CLASSES)
        assert class_counts(training)[0] == {"person": 0, "vehicle": 1}
        [batch] = load_all(training)
        assert batch.classes.tolist() == [DONTCARE, 1, BACKGROUND]
        assert batch.names == ["dontcare", "car", "tram"]
        assert batch.truncation.tolist() == [0, 0.25, 0] and batch.occlusion.tolist() == [0, 2, 0]

    def test_a_cap_keeps_the_largest_boxes_of_target_classes(self) -> None:
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
        frame = Dataset([NO_FRAME._replace(objects=objects)], CLASSES)
        assert capped(frame, 2).frames[0].objects.names == ("b", "c", "d")
        assert capped(frame, 3).frames[0].objects.names == ("a", "b", "c", "d")
        assert capped(frame, 0) is frame


def test_a_sample_is_evenly_spaced_over_the_shards(tiny):
    names = ["square", "bar"]
    every = training_frames(tiny.dataset_config, names)
    some = training_frames(tiny.dataset_config, names, at_most=6)
    assert [frame.frame_id for frame in some.frames] == [frame.frame_id for frame in every.frames[::3]]
    assert (len(some), some.total, every.total) == (6, 18, 18)
    few = validation_frames(tiny.dataset_config, names, at_most=100)
    assert few is not None and (len(few), few.total) == (6, 6)
